"""How workloads scale, with slots, channels and keys. Warm executions, so start-up is in none.

    python -m tests.bench scaling --only slots ceiling --workload window map-python …    by default: keyed-sum
    python -m tests.bench scaling --only slots --workload keyed-sum --with-flink         Flink's 1 → 2 in the same run

Slots: events a second (wall) with two slots over one. Ceiling: events a second of two jobs of one slot at once, nothing
between them, over one job alone: about what this machine's second core adds at most. Channels: events a CPU-second of
the keyed sum when the same events come from 1 to 32 sources, 2 to 64 channels into each sum, in the same two slots.
Keys: the same from a thousand to ten million keys. Word counts count bytes of text instead of events.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.flink_peer import FlinkPeer
from tests.bench.keyed import Sample, contenders_of, sample_of
from tests.bench.measure import run
from tests.bench.stats import ratios, shown, spread, stamped
from tests.bench.text import text_of

HERE = Path(__file__).resolve().parent
KEYS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
CHANNELS = (2, 4, 8, 16, 32, 64)
SLOTS = (1, 2)
CURVES = ("slots", "ceiling", "channels", "keys")


@dataclass(frozen=True)
class Scaled:
    """A workload. ``size``: events, or bytes of text, that keep one slot busy for some seconds."""

    program: str
    size: int
    keys: int = 0  #: of map_python: rounds; 0: it counts the words of a text
    options: tuple[str, ...] = ()


WORKLOADS = {
    "keyed-sum": Scaled("keyed_sum", 100_000_000, 100_000),
    "window": Scaled("window", 60_000_000, 100_000),
    "interval-join": Scaled("joins", 12_000_000, 500_000, ("join=interval",)),
    "window-join": Scaled("joins", 24_000_000, 1_000_000, ("join=window",)),
    "keyed-lambdas": Scaled("keyed_lambdas", 40_000_000, 1_000_000),
    "window-lambdas": Scaled("window_lambdas", 10_000_000, 100_000),
    "keyed-rows": Scaled("keyed_lambdas", 1_000_000, 100_000, ("rows",)),
    "window-rows": Scaled("window_lambdas", 1_000_000, 100_000, ("rows",)),
    "word-count": Scaled("word_count_vectorised", 500_000_000),
    "word-count-lambdas": Scaled("word_count_lambdas", 50_000_000),
    "map-python": Scaled("map_python", 2_000_000, 3),
    "map-python-long": Scaled("map_python", 1_000_000, 10),
}

#: size, slots, further options → what an execution cost
Job = Callable[[int, int, Sequence[str]], Sample]


def job_of(scaled: Scaled, cache: Path, timeout_s: float) -> Job:
    """Return what runs one job of a workload in a process of its own, twice."""
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    program = str(HERE / "programs" / f"{scaled.program}.py")

    def job(size: int, slots: int, options: Sequence[str]) -> Sample:
        with tempfile.TemporaryDirectory(prefix="engine-bench-") as folder:
            text = not scaled.keys
            what = [str(text_of(cache, size)), f"{folder}/out"] if text else [str(size), str(scaled.keys)]
            command = [sys.executable, program, *what, str(slots), "reps=2", *scaled.options, *options]
            return sample_of(run(command, timeout_s=timeout_s, env=env))

    return job


def flinks_job(flink: FlinkPeer, timeout_s: float) -> Job:
    """Return what runs Flink's program of the keyed sum, twice in one JVM. Those of others are made for two slots."""

    def job(size: int, slots: int, options: Sequence[str]) -> Sample:
        shape: dict[str, Any] = {"events": size, "keys": WORKLOADS["keyed-sum"].keys, "parallelism": slots}
        return contenders_of("keyed-sum", **shape, flink=flink, timeout_s=timeout_s)["flink-java"]()

    return job


def scaling(
    curves: Sequence[str],
    *,
    events: int | None,
    runs: int,
    timeout_s: float,
    cache: Path,
    workloads: Sequence[str] = ("keyed-sum",),
    flink: FlinkPeer | None = None,
    channels: Sequence[int] = CHANNELS,
    slots: Sequence[int] = SLOTS,
) -> list[dict[str, Any]]:
    """Measure ``curves``; the points of a curve in turn, run by run, Flink's after ours. ``events``:
    None = each workload's own size; ``channels`` and ``keys`` are curves of the keyed sum."""
    rows: list[dict[str, Any]] = []
    for curve in curves:
        for workload in workloads if curve in ("slots", "ceiling") else ["keyed-sum"]:
            scaled = WORKLOADS[workload]
            jobs = {"engine": job_of(scaled, cache, timeout_s)}
            if flink is not None and curve == "slots" and workload == "keyed-sum":
                jobs["flink-java"] = flinks_job(flink, timeout_s)
            size = events or scaled.size
            points = _points(curve, workload, size, timeout_s, cache, channels=channels, slots=slots)
            found: dict[str, dict[int, list[Sample]]] = {name: {point: [] for point in points} for name in jobs}
            for _ in range(runs):
                for name, job in jobs.items():
                    for point, measured in points.items():
                        found[name][point].append(measured(job))
            for name, taken in found.items():
                rows += [stamped(row) for row in rows_of(curve, workload, name, size, taken)]
    return rows


def _points(
    curve: str,
    workload: str,
    size: int,
    timeout_s: float,
    cache: Path,
    *,
    channels: Sequence[int],
    slots: Sequence[int],
) -> dict[int, Callable[[Job], Sample]]:
    """Return point of the curve → what measures a contender there."""
    match curve:
        case "slots":
            return {count: lambda job, count=count: job(size, count, ()) for count in slots}
        case "ceiling":
            return {count: lambda job, count=count: at_once(count, lambda: job(size, 1, ())) for count in SLOTS}
        case "channels":
            return {count: lambda job, count=count: job(size, 2, [f"sources={count // 2}"]) for count in channels}
        case _:
            made = {keys: job_of(Scaled("keyed_sum", size, keys), cache, timeout_s) for keys in KEYS}
            return {keys: lambda job, keys=keys: made[keys](size, 2, ()) for keys in KEYS}


def at_once(jobs: int, job: Callable[[], Sample]) -> Sample:
    """Return what the events of one job cost when so many run at once."""
    with ThreadPoolExecutor(jobs) as pool:
        begun = [pool.submit(job) for _ in range(jobs)]
        samples = [one.result() for one in begun]
    return Sample(
        sum(one.warm_cpu_s for one in samples) / jobs,
        max(one.warm_wall_s for one in samples) / jobs,
        sum(one.cold_cpu_s for one in samples) / jobs,
        max(one.cold_wall_s for one in samples) / jobs,
        sum(one.peak_mb for one in samples),
    )


def rows_of(
    curve: str, workload: str, contender: str, size: int, found: dict[int, list[Sample]]
) -> list[dict[str, Any]]:
    """Return a row a point, with its rates and their ratio to the curve's first point, and print it."""
    rows = []
    first = next(iter(found.values()))
    unit = "events" if WORKLOADS[workload].keys else "bytes"
    for point, taken in found.items():
        row = {
            "workload": f"scaling-{curve}",
            "of": workload,
            "contender": contender,
            curve: point,
            unit: size,
            "runs": len(taken),
            f"warm_{unit}_per_cpu_s": spread((size / one.warm_cpu_s for one in taken), 0),
            f"warm_{unit}_per_s": spread((size / one.warm_wall_s for one in taken), 0),
            "ratio_to_first_cpu": ratios([one.warm_cpu_s for one in first], [one.warm_cpu_s for one in taken]),
            "ratio_to_first_wall": ratios([one.warm_wall_s for one in first], [one.warm_wall_s for one in taken]),
            "peak_mb": round(max(one.peak_mb for one in taken)),
        }
        rows.append(row)
        print(
            f"{workload} {contender} {point:>9} {curve:8} M {unit} per CPU-second "
            f"{shown(row[f'warm_{unit}_per_cpu_s'], 1e6)}, a second {shown(row[f'warm_{unit}_per_s'], 1e6)}; of the "
            f"first point: per CPU-second {shown(row['ratio_to_first_cpu'])}, a second "
            f"{shown(row['ratio_to_first_wall'])}",
            flush=True,
        )
    return rows
