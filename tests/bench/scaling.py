"""How the keyed sum scales, ours only: with slots, channels and keys. Warm executions, so start-up is in none.

Slots: events a second (wall) with two slots over one. Channels: events a CPU-second when the same events come from 1 to
32 sources, 2 to 64 channels into each sum, in the same two slots. Keys: events a CPU-second from a thousand to ten
million. Ceiling: events a second of two such jobs at once, each in a slot of its own, nothing between them, over one
job alone: about what this machine's second core adds at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.bench.keyed import Sample, ours
from tests.bench.stats import ratios, shown, spread, stamped

KEYS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
CHANNELS = (2, 4, 8, 16, 32, 64)
SLOTS = (1, 2)


def scaling(
    curves: Sequence[str], *, events: int, runs: int, timeout_s: float, channels: Sequence[int] = CHANNELS
) -> list[dict[str, Any]]:
    """Measure ``curves`` (of "slots", "ceiling", "channels", "keys"); the points of a curve in turn, run by run."""
    rows: list[dict[str, Any]] = []
    for curve in curves:
        # curve → point → keys, slots, options
        points: dict[int, tuple[int, int, list[str]]] = {
            "slots": {slots: (100_000, slots, []) for slots in SLOTS},
            "ceiling": {jobs: (100_000, 1, []) for jobs in SLOTS},
            "channels": {count: (100_000, 2, [f"sources={count // 2}"]) for count in channels},
            "keys": {keys: (keys, 2, []) for keys in KEYS},
        }[curve]
        found: dict[int, list[Sample]] = {point: [] for point in points}
        for _ in range(runs):
            for point, (keys, slots, options) in points.items():
                jobs = point if curve == "ceiling" else 1
                found[point].append(at_once(jobs, events, keys, slots, timeout_s, *options))
        rows += [stamped(row) for row in rows_of(curve, events, found)]
    return rows


def at_once(jobs: int, events: int, keys: int, slots: int, timeout_s: float, *options: str) -> Sample:
    """Return what the events of one job cost when so many run at once."""
    with ThreadPoolExecutor(jobs) as pool:
        begun = [pool.submit(ours, "keyed_sum", events, keys, slots, timeout_s, *options) for _ in range(jobs)]
        samples = [one.result() for one in begun]
    return Sample(
        sum(one.warm_cpu_s for one in samples) / jobs,
        max(one.warm_wall_s for one in samples) / jobs,
        sum(one.cold_cpu_s for one in samples) / jobs,
        max(one.cold_wall_s for one in samples) / jobs,
        sum(one.peak_mb for one in samples),
    )


def rows_of(curve: str, events: int, found: dict[int, list[Sample]]) -> list[dict[str, Any]]:
    """Return a row a point, with its rates and their ratio to the curve's first point, and print it."""
    rows = []
    first = next(iter(found.values()))
    for point, taken in found.items():
        row = {
            "workload": f"scaling-{curve}",
            "contender": "engine",
            curve: point,
            "events": events,
            "runs": len(taken),
            "warm_events_per_cpu_s": spread((events / one.warm_cpu_s for one in taken), 0),
            "warm_events_per_s": spread((events / one.warm_wall_s for one in taken), 0),
            "ratio_to_first_cpu": ratios([one.warm_cpu_s for one in first], [one.warm_cpu_s for one in taken]),
            "ratio_to_first_wall": ratios([one.warm_wall_s for one in first], [one.warm_wall_s for one in taken]),
            "peak_mb": round(max(one.peak_mb for one in taken)),
        }
        rows.append(row)
        print(
            f"{point:>9} {curve:8} M events per CPU-second {shown(row['warm_events_per_cpu_s'], 1e6)}, "
            f"a second {shown(row['warm_events_per_s'], 1e6)}; of the first point: per CPU-second "
            f"{shown(row['ratio_to_first_cpu'])}, a second {shown(row['ratio_to_first_wall'])}",
            flush=True,
        )
    return rows
