"""Every workload of ours once, in seconds and without peers, so that none can rot."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from engine.operators import memory_watch
from tests.bench import (
    join_spill,
    keyed,
    latency,
    session_spill,
    state_increments,
    state_pauses,
    state_spill,
    window_spill,
)
from tests.bench.python_peers import race
from tests.bench.recovery import Load
from tests.bench.recovery_race import recovery_race
from tests.bench.scaling import scaling

__all__ = ["PARTS"]


def _channels() -> int:
    rows = scaling(["channels"], events=40_000, runs=1, timeout_s=300, cache=Path(), channels=(2, 6))
    return 0 if len(rows) == 2 else 1


def _slots() -> int:
    with tempfile.TemporaryDirectory(prefix="engine-bench-") as folder:
        shape = {"runs": 1, "timeout_s": 300, "cache": Path(folder), "workloads": ["map-python", "word-count"]}
        rows = scaling(["slots"], events=20_000, slots=(2,), **shape)
    return 0 if [row["of"] for row in rows] == ["map-python", "word-count"] else 1


def _lambdas() -> int:
    for workload in ("keyed-python", "window-python"):
        race(workload, python_of=str, runs=1, parallelism=2, timeout_s=300, scale=0.005, only=["engine"])
    return 0


def _recovery() -> int:
    load = Load(
        keys=1000,
        value_bytes=64,
        rate=2000,
        parallelism=1,
        backend="",
        memory="1g",
        settle_s=0,
        increments=1,
        folder=Path(),
    )
    (row,) = recovery_race(load, runs=1, flink=None, only=["engine-rocksdb"])
    return 0 if row["recovery_s"][1] > 0 else 1


def _in_files(measure: Callable[[], dict[str, float]]) -> int:
    """Measure with a share of memory that is small enough for little state to lie in files."""
    with mock.patch.object(memory_watch, "_BYTES_MIN", 1 << 20):
        found = measure()
    return 0 if found["files, MB"] > 1 and found.get("results, M", 1) > 0 else 1


def _spill() -> int:
    return _in_files(lambda: state_spill.measure("columns", num_keys=100_000, num_updates=50_000, memory_mb=1))


def _window_spill() -> int:
    shape = {"num_keys": 40_000, "num_records": 200_000}
    return _in_files(lambda: window_spill.measure("files", **shape, memory_mb=1, slide=True))


def _join_spill() -> int:
    return _in_files(lambda: join_spill.measure("files", num_records=60_000, memory_mb=1, late=16))


def _session_spill() -> int:
    shape = {"num_keys": 100_000, "num_records": 100_000}
    return _in_files(lambda: session_spill.measure("files", **shape, memory_mb=1, quiet=True))


def _increments() -> int:
    """Increments have little, of whatever, wherever it lies; what lies in files does."""
    for kind in state_increments.KINDS:
        for place in state_increments.PLACES:
            shape = {"num_keys": 60_000, "memory_mb": 1, "rounds": 2, "share": 0.01, "busy": False}
            with mock.patch.object(memory_watch, "_BYTES_MIN", 1 << 20):
                found = state_increments.measure(kind, place, **shape)
            if found["increment, written MB"] > found["full, written MB"] / 10:
                return 1
            if (found["files, MB"] > 1) != (place == "files"):
                return 1
    return 0


def _pauses() -> int:
    with mock.patch.object(memory_watch, "_BYTES_MIN", 1 << 20):
        found = [state_pauses.measure(mechanism, 4) for mechanism in state_pauses.MECHANISMS]
    return 0 if all(own["entries, M"] > 0 and own["median, ms"] > 0 for own in found) else 1


#: name → what returns 0 when it counts right; exceptions say what does not
PARTS = {
    "keyed": keyed.smoke,
    "latency": latency.smoke,
    "channels": _channels,
    "slots": _slots,
    "lambdas": _lambdas,
    "recovery": _recovery,
    "pauses": _pauses,
    "spill": _spill,
    "window-spill": _window_spill,
    "join-spill": _join_spill,
    "session-spill": _session_spill,
    "increments": _increments,
}
