"""Keyed workloads beside Flink: ``keyed-sum`` and ``window``. Events a CPU-second, in one run, alternating.

Ours is charged with the whole process tree from start to end. Flink is charged as its own programs measure it: the
JVM's CPU around a warm execution (the first one in the JVM, with its compilation, is left out): it is favoured.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.bench.measure import run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
HEAP = "6g"
#: Java 17 hides what Flink's serializers need.
OPENS = (
    "lang",
    "net",
    "io",
    "nio",
    "lang.reflect",
    "text",
    "time",
    "util",
    "util.concurrent",
    "util.concurrent.atomic",
)
WINDOW_SQL = """CREATE TABLE g (`user` BIGINT, amount DOUBLE, ts TIMESTAMP_LTZ(3),
WATERMARK FOR ts AS ts - INTERVAL '5' SECOND)
WITH ('connector'='peersgen','rows'='{events}','keys'='{keys}','inter'='true');
CREATE TABLE s (u BIGINT, w TIMESTAMP_LTZ(3), c BIGINT, t DOUBLE, m DOUBLE) WITH ('connector'='blackhole');
INSERT INTO s SELECT `user`, window_start, COUNT(*), SUM(amount), MAX(amount)
FROM TABLE(TUMBLE(TABLE g, DESCRIPTOR(ts), INTERVAL '10' SECOND)) GROUP BY `user`, window_start, window_end;
"""


@dataclass(frozen=True)
class Sample:
    cpu_s: float
    wall_s: float
    peak_mb: float


class FlinkPeer:
    """Flink 2.3 in Java, from the jars of its Python package."""

    def __init__(self, python: str, cache: Path) -> None:
        home = Path(python).parents[1]
        jars = sorted(home.glob("lib/python3*/site-packages/pyflink/lib/*.jar"))
        self._classpath = ":".join(map(str, jars))
        self._cache = cache
        self._classes = cache / "flink-classes"
        self._compile()

    def _compile(self) -> None:
        sources = sorted((HERE / "peers" / "flink").rglob("*.java"))
        stamp = self._classes / ".stamp"
        wanted = str([(str(path.name), path.stat().st_mtime) for path in sources])
        if stamp.exists() and stamp.read_text() == wanted:
            return
        shutil.rmtree(self._classes, ignore_errors=True)
        self._classes.mkdir(parents=True)
        command = ["javac", "-nowarn", "-d", str(self._classes), "-cp", self._classpath, *map(str, sources)]
        subprocess.run(command, check=True, capture_output=True)
        shutil.copytree(HERE / "peers" / "flink" / "META-INF", self._classes / "META-INF")
        stamp.write_text(wanted)

    def sample(self, main: str, arguments: list[str], timeout_s: float) -> Sample:
        """Run twice in one JVM; return the second, warm execution."""
        opens = [f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in OPENS]
        command = ["java", f"-Xms{HEAP}", f"-Xmx{HEAP}", "-XX:+UseParallelGC", "-XX:MaxDirectMemorySize=2g", *opens]
        command += ["-cp", f"{self._classpath}:{self._classes}", main, *arguments, "reps=2"]
        result = run(command, timeout_s=timeout_s)
        found = re.findall(r"RESULT .*?warm cpu=([0-9.]+) secs=([0-9.]+)", result.output)
        if result.exit_code != 0 or not found:
            raise RuntimeError(f"{main} failed: {result.output[-3000:]}")
        cpu_s, wall_s = map(float, found[-1])
        return Sample(cpu_s, wall_s, result.peak_mb)

    def sql_file(self, text: str) -> str:
        path = self._cache / "window.sql"
        path.write_text(text)
        return str(path)


def ours(program: str, events: int, keys: int, parallelism: int, timeout_s: float) -> Sample:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(HERE / "programs" / f"{program}.py"), str(events), str(keys), str(parallelism)]
    result = run(command, timeout_s=timeout_s, env=env)
    if result.exit_code != 0:
        raise RuntimeError(f"{program} failed: {result.output[-3000:]}")
    return Sample(result.cpu_s, result.wall_s, result.peak_mb)


def contenders_of(workload: str, events: int, keys: int, parallelism: int, flink: FlinkPeer | None, timeout_s: float):
    """Return contender → function that gives one Sample."""
    program = {"keyed-sum": "keyed_sum", "window": "window"}[workload]
    made = {"engine": lambda: ours(program, events, keys, parallelism, timeout_s)}
    if flink is None:
        return made
    common = [f"n={events}", f"keys={keys}", f"p={parallelism}"]
    if workload == "keyed-sum":
        made["flink-java"] = lambda: flink.sample("peers.W2", [*common, "mode=reduce"], timeout_s)
    else:
        sql = WINDOW_SQL.format(events=events, keys=keys)
        made["flink-java"] = lambda: flink.sample("peers.W3", [*common, "inter=true"], timeout_s)
        made["flink-sql"] = lambda: flink.sample("peers.SqlRun", [*common, f"file={flink.sql_file(sql)}"], timeout_s)
    return made


def keyed(
    workload: str, *, events: int, keys: int, parallelism: int, runs: int, flink: FlinkPeer | None, timeout_s: float
) -> list[dict]:
    """Run the contenders in turn; return one row each, with ratios of medians."""
    contenders = contenders_of(workload, events, keys, parallelism, flink, timeout_s)
    samples: dict[str, list[Sample]] = {name: [] for name in contenders}
    for number in range(runs):
        for name, sample in contenders.items():
            taken = sample()
            samples[name].append(taken)
            print(f"  run {number + 1} {name}: wall {taken.wall_s:.2f} s, CPU {taken.cpu_s:.2f} s", flush=True)
    rows = [_row(workload, name, events, keys, parallelism, taken) for name, taken in samples.items()]
    for row in rows:
        ratio = rows[0]["events_per_cpu_s"][1] / row["events_per_cpu_s"][1]
        row["ratio_of_engine"] = round(ratio, 2)
        print(
            f"{row['contender']:12} M events per CPU-second {[round(v / 1e6, 2) for v in row['events_per_cpu_s']]} "
            f"(min, median, max), peak {row['peak_mb']} MB, engine / {row['contender']}: {ratio:.2f}",
            flush=True,
        )
    return rows


def _row(workload: str, name: str, events: int, keys: int, parallelism: int, taken: list[Sample]) -> dict:
    rates = sorted(events / sample.cpu_s for sample in taken)
    walls = sorted(events / sample.wall_s for sample in taken)
    return {
        "workload": workload,
        "contender": name,
        "events": events,
        "keys": keys,
        "parallelism": parallelism,
        "runs": len(taken),
        "events_per_cpu_s": [round(rates[0]), round(statistics.median(rates)), round(rates[-1])],
        "events_per_s": [round(walls[0]), round(statistics.median(walls)), round(walls[-1])],
        "peak_mb": round(max(sample.peak_mb for sample in taken)),
        "load": round(os.getloadavg()[0], 1),
        "at": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def smoke() -> int:
    """Seconds, ours only: every event is in a result, once."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for program, expected in (("keyed_sum", r"keys=1000 "), ("window", r"events=40000 ")):
        command = [sys.executable, str(HERE / "programs" / f"{program}.py"), "40000", "1000", "2", "collect"]
        result = run(command, timeout_s=120, env=env)
        print(program, result.output.strip().splitlines()[-1:])
        if result.exit_code != 0 or re.search(expected, result.output) is None:
            print(result.output[-3000:])
            return 1
    return 0
