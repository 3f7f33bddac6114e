"""Every workload of ours once, in seconds and without peers, so that none can rot."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.bench import join_spill, keyed, latency, window_spill
from tests.bench.python_peers import race
from tests.bench.recovery import Load
from tests.bench.recovery_race import recovery_race
from tests.bench.scaling import scaling
from tests.bench.state_spill import measure

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


def _spill() -> int:
    found = measure("columns", num_keys=40_000, num_updates=20_000, memory_mb=64)
    return 0 if found["updates, M a CPU-s"] > 0 else 1


def _window_spill() -> int:
    found = window_spill.measure("files", num_keys=40_000, num_records=40_000, memory_mb=64, slide=True)
    return 0 if found["results, M"] > 0 else 1


def _join_spill() -> int:
    found = join_spill.measure("files", num_records=40_000, memory_mb=64, late=16)
    return 0 if found["results, M"] > 0 else 1


#: name → what returns 0 when it counts right; exceptions say what does not
PARTS = {
    "keyed": keyed.smoke,
    "latency": latency.smoke,
    "channels": _channels,
    "slots": _slots,
    "lambdas": _lambdas,
    "recovery": _recovery,
    "spill": _spill,
    "window-spill": _window_spill,
    "join-spill": _join_spill,
}
