"""Checkpoints and recovery beside Flink: 1 GB of keyed state on a standalone cluster of each, in turn.

Flink 2.3 keeps it in RocksDB with incremental checkpoints, as it comes (*default*) and with a failure detector and a
restart strategy that are set for quick recovery (*tuned*). Ours has its defaults, with state on disk (*rocksdb*) and
in memory (*hashmap*). A spare TaskManager is up when the working one is killed. Programs: ``programs/keyed_state.py``
and ``KeyedState.java``.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.bench.flink_cluster import TUNED, FlinkCluster
from tests.bench.flink_peer import FlinkPeer
from tests.bench.recovery import Contender, Engine, Load, measure
from tests.bench.stats import ratios, shown, spread, stamped

#: measure → its unit, and how it is named in print
SHOWN = {
    "steady_cores": "job alone at its rate, cores",
    "full_s": "full checkpoint, s",
    "full_cpu_s": "full checkpoint, CPU-s more than job",
    "incremental_s": "incremental after 1 % changed, s",
    "incremental_cpu_s": "incremental, CPU-s more than job",
    "recovery_s": "kill -9 to first record, s",
    "recovery_cpu_s": "kill -9 to first record, CPU-s",
    "peak_mb": "peak memory, MB",
}


class Flink(FlinkCluster):
    """One of Flink's clusters. ``tuned``: with ``TUNED``."""

    def __init__(self, flink: FlinkPeer, load: Load, tuned: bool) -> None:
        settings = {
            "state.backend.type": "rocksdb",
            "execution.checkpointing.incremental": "true",
            "execution.checkpointing.interval": "1 h",
            "execution.checkpointing.dir": f"file://{load.folder}/checkpoints",
        }
        if tuned:
            settings |= TUNED
        super().__init__(
            flink, load.folder, taskmanagers=1, slots=load.parallelism, memory=load.memory, settings=settings
        )

    def submit(self, load: Load) -> str:  # type: ignore[override]
        words = {"keys": load.keys, "value": load.value_bytes, "rate": load.rate, "hot": load.hot, "beat": load.beat}
        return super().submit("peers.KeyedState", {**words, "parallelism": load.parallelism})


def contenders_of(flink: FlinkPeer | None) -> dict[str, tuple[str, Callable[[Load], Contender]]]:
    """Return contender → (state backend, how its cluster is started)."""
    made: dict[str, tuple[str, Callable[[Load], Contender]]] = {"engine-rocksdb": ("rocksdb", Engine)}
    if flink is not None:
        made["flink-default"] = ("rocksdb", lambda load: Flink(flink, load, tuned=False))
        made["flink-tuned"] = ("rocksdb", lambda load: Flink(flink, load, tuned=True))
    made["engine-hashmap"] = ("hashmap", Engine)
    return made


def figures(phases: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Bring what ``recovery.measure`` found into the measures of ``SHOWN``. The job goes on during checkpoints: what it
    uses by itself, in the steady phase, is taken off their CPU seconds."""
    cores = sum(row["cpu_s"] / row["wall_s"] for row in phases if row["kind"] == "steady")
    full = next(row for row in phases if row["kind"] == "FULL")
    increments = [row for row in phases if row["kind"] == "CONFIGURED"]
    recovery = next(row for row in phases if row["kind"] == "recovery")
    return {
        "full_s": full["wall_s"],
        "steady_cores": round(cores, 3),
        "full_cpu_s": _own_cpu_s(full, cores),
        "full_mb": full["written_mb"],
        "incremental_s": statistics.median(row["wall_s"] for row in increments),
        "incremental_cpu_s": statistics.median(_own_cpu_s(row, cores) for row in increments),
        "incremental_mb": statistics.median(row["written_mb"] for row in increments),
        "standstill_ms": max(row["standstill_ms_max"] for row in (full, *increments)),
        "recovery_s": recovery["kill_to_first_record_s"],
        "recovery_cpu_s": recovery["cpu_s"],
        "peak_mb": max(row["peak_mb"] for row in phases),
    }


def _own_cpu_s(row: dict[str, Any], cores: float) -> float:
    return max(0.0, round(row["cpu_s"] - cores * row["wall_s"], 3))


def recovery_race(
    load: Load, *, runs: int, flink: FlinkPeer | None, only: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Run the contenders in turn (``only``: these); return a row each. ``load.folder`` is not used."""
    contenders = {name: one for name, one in contenders_of(flink).items() if only is None or name in only}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for number in range(runs):
        for name, (backend, start) in contenders.items():
            with tempfile.TemporaryDirectory(prefix="engine-recovery-", ignore_cleanup_errors=True) as folder:
                mine = dataclasses.replace(load, backend=backend, folder=Path(folder))
                found[name].append(figures(measure(start, mine)))
            print(f"  run {number + 1} {name}: {found[name][-1]}", flush=True)
    return rows_of(found, load)


def rows_of(found: dict[str, list[dict[str, float]]], load: Load) -> list[dict[str, Any]]:
    """Return a row a contender, and print ratios of the others to each of ours."""
    rows = []
    for name, runs in found.items():
        row: dict[str, Any] = {"workload": "recovery-beside-flink", "contender": name, "runs": len(runs)}
        row |= {"keys": load.keys, "value_bytes": load.value_bytes, "rate": load.rate}
        row |= {key: spread((run[key] for run in runs), 3) for key in runs[0]}
        for other, theirs in found.items():
            if other.startswith("flink") and name.startswith("engine"):
                row[f"ratio_{other}"] = {
                    key: ratios([run[key] for run in theirs], [max(run[key], 0.001) for run in runs]) for key in SHOWN
                }
        rows.append(stamped(row))
    for row in rows:
        print(row["contender"])
        for key, meaning in SHOWN.items():
            beside = "".join(
                f"   {other.removeprefix('ratio_')} / engine {shown(row[other][key])}"
                for other in row
                if other.startswith("ratio_")
            )
            print(f"  {meaning:37} {shown(row[key])}{beside}")
    return rows
