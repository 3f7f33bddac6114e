"""Keyed workloads beside Flink: ``keyed-sum``, ``keyed-sum-on-disk``, ``window``, ``interval-join``, ``window-join``.
Events a CPU-second, in one run, alternating.

Every contender executes its job twice in one process. *Warm* is the second execution alone: what its processes used
from before it until all is quiet after it; Flink's own programs measure so, and it is the fair figure for a job that
runs for hours. *Cold* is all the rest of that process: start of the interpreter or JVM, first execution, compilation,
end; it is what a user of a short job waits for. Both contenders are charged alike in both.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench.flink_peer import FlinkPeer
from tests.bench.measure import Measurement, run
from tests.bench.state_files import FolderWatch
from tests.bench.stats import ratios, shown, spread, stamped

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WINDOW_SQL = """CREATE TABLE g (`user` BIGINT, amount DOUBLE, ts TIMESTAMP_LTZ(3),
WATERMARK FOR ts AS ts - INTERVAL '5' SECOND)
WITH ('connector'='peersgen','rows'='{events}','keys'='{keys}','inter'='true');
CREATE TABLE s (u BIGINT, w TIMESTAMP_LTZ(3), c BIGINT, t DOUBLE, m DOUBLE) WITH ('connector'='blackhole');
INSERT INTO s SELECT `user`, window_start, COUNT(*), SUM(amount), MAX(amount)
FROM TABLE(TUMBLE(TABLE g, DESCRIPTOR(ts), INTERVAL '10' SECOND)) GROUP BY `user`, window_start, window_end;
"""
#: Of ``keyed-sum-on-disk``: managed memory of each contender, for both slots: as little as ours works with.
DISK_MEMORY_MB = 128
_WARM = re.compile(r"^RESULT .*?warm cpu=([0-9.]+) secs=([0-9.]+)", re.MULTILINE)
_REACHED = re.compile(r"^RESULT .*? rep=[01] .* events=([0-9]+)", re.MULTILINE)
_IN_FILES = re.compile(r"^RESULT .*state in files, MB: ([0-9]+)", re.MULTILINE)
PROGRAMS = {
    "keyed-sum": "keyed_sum",
    "keyed-sum-on-disk": "keyed_sum",
    "window": "window",
    "interval-join": "joins",
    "window-join": "joins",
}
JOINS = {"interval-join": "interval", "window-join": "window"}
#: Flink's block cache and write buffers: as much as the whole state needs.
_FLINK_ROCKSDB = ["state.backend.type=rocksdb", "taskmanager.memory.managed.size=1g"]


@dataclass(frozen=True)
class Sample:
    """One process with two executions."""

    warm_cpu_s: float
    warm_wall_s: float
    cold_cpu_s: float
    cold_wall_s: float
    peak_mb: float
    files_mb: int = 0  #: state that lay in files, of all slots together; what was seen at most
    #: how far the executions came, cold and warm, when they were ended by a limit; (): to the end
    reached: tuple[int, ...] = ()

    def warm_events(self, events: int) -> int:
        return self.reached[1] if self.reached else events

    def cold_events(self, events: int) -> int:
        return self.reached[0] if self.reached else events


def sample_of(result: Measurement) -> Sample:
    """Read what a program with ``reps=2`` has printed. Raises: RuntimeError when it failed."""
    found = _WARM.findall(result.output)
    if result.exit_code != 0 or len(found) != 1:
        raise RuntimeError(f"exit code {result.exit_code}: {result.output[-3000:]}")
    cpu_s, wall_s = map(float, found[0])
    files_mb = max(map(int, _IN_FILES.findall(result.output)), default=0)
    reached = tuple(map(int, _REACHED.findall(result.output)))
    return Sample(cpu_s, wall_s, result.cpu_s - cpu_s, result.wall_s - wall_s, result.peak_mb, files_mb, reached)


def on_disk(contender: str, sample: Sample, memory_mb: int, events: int) -> Sample:
    """Return the sample. Raises: RuntimeError when no more state lay in files than there was memory for it. Where a
    limit ended the execution early that is only told: less state is less work, so its rate is if anything too good."""
    told = f"{contender}: {sample.files_mb} MB of its state lay in files, with {memory_mb} MB of managed memory."
    if sample.files_mb <= memory_mb:
        if not sample.files_mb or not is_limited(sample, events):
            raise RuntimeError(
                f"{told} This is to measure state that does not fit into memory: give it more --keys and --events."
            )
        print(f"  {told} It was ended before there was more: its rate flatters it.", flush=True)
    return sample


def ours(program: str, events: int, keys: int, parallelism: int, timeout_s: float, *options: str) -> Sample:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(HERE / "programs" / f"{program}.py"), str(events), str(keys), str(parallelism)]
    return sample_of(run([*command, "reps=2", *options], timeout_s=timeout_s, env=env))


def contenders_of(
    workload: str,
    *,
    events: int,
    keys: int,
    parallelism: int,
    flink: FlinkPeer | None,
    timeout_s: float,
    backend: str = "hashmap",
    options: tuple[str, ...] = (),
    values: int = 0,
    limit_s: int = 0,
) -> dict[str, Callable[[], Sample]]:
    """Return contender → function that gives one Sample. Of ``keyed-sum-on-disk``: ``values``, 0 or 14, are further
    fields of 8 bytes; ``limit_s`` is how long one execution of Flink's may take, 0 = as long as it takes."""
    program = PROGRAMS[workload]
    if workload == "keyed-sum-on-disk":
        words = ["backend=rocksdb", f"memory={DISK_MEMORY_MB}m", f"values={values}", "files"]
    else:
        words = [f"backend={backend}"] if backend != "hashmap" else []
    if workload in JOINS:
        words.append(f"join={JOINS[workload]}")
    made = {"engine": lambda: ours(program, events, keys, parallelism, timeout_s, *words, *options)}
    if flink is None:
        return made
    common = ["reps=2", f"n={events}", f"keys={keys}", f"p={parallelism}"]

    def java(main: str, *more: str) -> Callable[[], Sample]:
        return lambda: sample_of(flink.run(main, [*common, *more], timeout_s))

    if workload == "keyed-sum-on-disk":
        theirs = [*common, "mode=wide" if values else "mode=reduce", *([f"limit={limit_s}"] if limit_s else [])]
        made["flink-java"] = lambda: flinks_on_disk(flink, theirs, timeout_s)
    elif workload == "keyed-sum":
        made["flink-java"] = java("peers.W2", "mode=reduce", *(_FLINK_ROCKSDB if backend == "rocksdb" else []))
    elif workload in JOINS:
        made["flink-java"] = java("peers.W4", f"join={JOINS[workload]}")
    else:
        sql = flink.cache / "window.sql"
        sql.write_text(WINDOW_SQL.format(events=events, keys=keys))
        made["flink-java"] = java("peers.W3", "inter=true")
        made["flink-sql"] = java("peers.SqlRun", f"file={sql}")
    return made


def flinks_on_disk(flink: FlinkPeer, words: list[str], timeout_s: float) -> Sample:
    """Run the sum with RocksDB in a folder of its own, which is looked at meanwhile: Flink removes it at the end."""
    with tempfile.TemporaryDirectory(prefix="engine-bench-rocksdb-") as folder:
        options = ["state.backend.type=rocksdb", f"state.backend.rocksdb.localdir={folder}"]
        options += [f"taskmanager.memory.managed.size={DISK_MEMORY_MB}m", "state.backend.rocksdb.use-bloom-filter=true"]
        with FolderWatch(folder) as watch:
            sample = sample_of(flink.run("peers.W2", [*words, *options], timeout_s))
        return replace(sample, files_mb=watch.bytes_max // 1_000_000)


def keyed(
    workload: str,
    *,
    events: int,
    keys: int,
    parallelism: int,
    runs: int,
    flink: FlinkPeer | None,
    timeout_s: float,
    backend: str = "hashmap",
    options: tuple[str, ...] = (),
    values: int = 0,
    limit_s: int = 0,
) -> list[dict]:
    """Run the contenders in turn; return one row each, with ratios run by run."""
    if workload == "keyed-sum-on-disk":
        backend = "rocksdb"
    contenders = contenders_of(
        workload,
        events=events,
        keys=keys,
        parallelism=parallelism,
        flink=flink,
        timeout_s=timeout_s,
        backend=backend,
        options=options,
        values=values,
        limit_s=limit_s,
    )
    samples: dict[str, list[Sample]] = {name: [] for name in contenders}
    for number in range(runs):
        for name, sample in contenders.items():
            taken = sample()
            if workload == "keyed-sum-on-disk":
                on_disk(name, taken, DISK_MEMORY_MB, events)
            samples[name].append(taken)
            print(
                f"  run {number + 1} {name}: warm {taken.warm_cpu_s:.2f} CPU-s in {taken.warm_wall_s:.2f} s, "
                f"cold {taken.cold_cpu_s:.2f} CPU-s in {taken.cold_wall_s:.2f} s"
                + (f", state in files {taken.files_mb} MB" if taken.files_mb else "")
                + (
                    f", {limit_s} s were over after {taken.reached} events of {events}"
                    if is_limited(taken, events)
                    else ""
                ),
                flush=True,
            )
    shape = {"events": events, "keys": keys, "parallelism": parallelism, "backend": backend}
    shape |= {"values": values} if values else {}
    return [stamped({"workload": workload, **shape, **row}) for row in rows_of(samples, events)]


def is_limited(sample: Sample, events: int) -> bool:
    return any(reached < events for reached in sample.reached)


def rows_of(samples: dict[str, list[Sample]], events: int) -> list[dict]:
    """Return a row a contender and print it. The first contender is the one whose ratios to the others are given, by
    CPU-seconds an event. ``reached``: a limit ended this contender's executions; those events are its events then."""
    rows = []
    first = next(iter(samples.values()))

    def warm(taken: list[Sample]) -> list[float]:
        return [one.warm_cpu_s / one.warm_events(events) for one in taken]

    def cold(taken: list[Sample]) -> list[float]:
        return [one.cold_cpu_s / one.cold_events(events) for one in taken]

    for name, taken in samples.items():
        row = {
            "contender": name,
            "runs": len(taken),
            "warm_events_per_cpu_s": spread((1 / used for used in warm(taken)), 0),
            "cold_events_per_cpu_s": spread((1 / used for used in cold(taken)), 0),
            "warm_events_per_s": spread((one.warm_events(events) / one.warm_wall_s for one in taken), 0),
            "peak_mb": round(max(one.peak_mb for one in taken)),
            "files_mb": max(one.files_mb for one in taken),
            "ratio_warm": ratios(warm(taken), warm(first)),
            "ratio_cold": ratios(cold(taken), cold(first)),
            "ratio_engine_cold_peer_warm": ratios(warm(taken), cold(first)),
        }
        if any(is_limited(one, events) for one in taken):
            row["reached"] = [one.reached for one in taken]
        rows.append(row)
        print(
            f"{name:12} M events per CPU-second: warm {shown(row['warm_events_per_cpu_s'], 1e6)}, "
            f"cold {shown(row['cold_events_per_cpu_s'], 1e6)} (min / median / max), peak {row['peak_mb']} MB"
            + (f"; ended by the limit after {row['reached']} events" if "reached" in row else ""),
            flush=True,
        )
        if taken is not first:
            print(
                f"  engine / {name}: warm both {shown(row['ratio_warm'])}, cold both {shown(row['ratio_cold'])}, "
                f"engine cold beside a warm peer {shown(row['ratio_engine_cold_peer_warm'])}",
                flush=True,
            )
    return rows


def smoke() -> int:
    """Seconds, ours only: every event is in a result, once, from several sources and on disk as well; a second
    execution is measured."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    checks = (
        ("keyed_sum", ["sources=3", "backend=rocksdb", "collect"], r"keys=1000 "),
        ("window", ["collect"], r"events=40000 "),
        ("joins", ["join=interval", "collect"], r"rows=400633 total=419820718.115 users=201007177"),
        ("joins", ["join=window", "collect", "plain"], r"rows=400690 total=419880303.416 users=201038272"),
        (
            "keyed_sum",
            ["reps=2", "memory=128m", "backend=rocksdb", "values=3", "files"],
            r"rep=1 warm cpu=[0-9.]+ secs=[0-9.]+",
        ),
    )
    for program, options, expected in checks:
        command = [sys.executable, str(HERE / "programs" / f"{program}.py"), "40000", "1000", "2", *options]
        result = run(command, timeout_s=300, env=env)
        print(program, result.output.strip().splitlines()[-1:])
        if result.exit_code != 0 or re.search(expected, result.output) is None:
            print(result.output[-3000:])
            return 1
    return 0
