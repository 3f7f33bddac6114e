"""How long a task stands still for a snapshot of much state, and what an increment writes.

``python -m tests.bench.checkpoint_pause [--megabytes 1000]`` fills a part with that much (as the process's memory
shows), takes a full checkpoint into a folder, changes 1 % of the keys, takes another, restores both. It drives the same
code as a slot, in this process: ``StateCapture`` with ``SlotSnapshotWorkers``.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from typing import Any

from engine.checkpoint.restored_state import HandleRestoredState
from engine.core.ids import OperatorID
from engine.protocol.checkpoint import CheckpointOptions, OperatorRestore
from engine.runtime.taskmanager.mailbox import Mailbox
from engine.runtime.taskmanager.snapshot_capture import StateCapture, TaskSnapshot
from engine.runtime.taskmanager.snapshot_workers import SlotSnapshotWorkers
from engine.state.chunks import dump_chunk, load_chunk
from engine.state.key_groups import key_group_of
from engine.state.parts import OperatorStateRegistry

GROUPS = range(128)
VALUE_BYTES = 400


class Table:
    """A part: key → (count, bytes)."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[int, bytes]] = {}
        self._changed: list[tuple[int, set[str]]] = []

    def put(self, key: str, count: int) -> None:
        self.rows[key] = (count, os.urandom(8) + bytes(VALUE_BYTES))
        if self._changed:
            self._changed[-1][1].add(key)

    def num_entries(self) -> int:
        return len(self.rows)

    def snapshot(self, key_groups: Iterable[int]) -> Mapping[int, bytes]:
        return self._chunks(self.rows)

    def _chunks(self, keys: Iterable[str]) -> Mapping[int, bytes]:
        groups: dict[int, dict[str, Any]] = {}
        for key in keys:
            groups.setdefault(key_group_of(key, 128), {})[key] = self.rows[key]
        return {group: dump_chunk(rows, "rows") for group, rows in groups.items()}

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        for chunk in chunks.values():
            self.rows.update(load_chunk(chunk))

    def snapshot_delta(self, key_groups: Iterable[int], since_checkpoint_id: int) -> Mapping[int, bytes] | None:
        return self._chunks(
            {key for begun_by, keys in self._changed if begun_by >= since_checkpoint_id for key in keys}
        )

    def begin_epoch(self, checkpoint_id: int) -> None:
        self._changed.append((checkpoint_id, set()))

    def forget_epochs(self, until_checkpoint_id: int) -> None:
        pass


def rss_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def huge_mb() -> int:
    with open("/proc/self/smaps_rollup", encoding="ascii") as stream:
        return next(int(line.split()[1]) >> 10 for line in stream if line.startswith("AnonHugePages"))


def fill(table: Table, megabytes: int) -> int:
    start, key = rss_bytes(), 0
    while rss_bytes() - start < megabytes << 20:
        for _ in range(1000):
            table.put(f"user-{key}", 0)
            key += 1
    return key


def take(capture: StateCapture, mailbox: Mailbox, table: Table, number: int, options: CheckpointOptions) -> Any:
    """Take a checkpoint and go on changing state meanwhile, as a task does; return figures and the snapshot."""
    ended: list[BaseException | None] = []

    def on_end(snapshot: TaskSnapshot, error: BaseException | None) -> None:
        ended.append(error)

    keys = list(table.rows)[:: max(1, len(table.rows) // 50_000)]
    huge = huge_mb()
    start, start_cpu = time.perf_counter(), time.thread_time()
    snapshot = capture.capture(number, options, {}, on_end)
    pause, pause_cpu = time.perf_counter() - start, time.thread_time() - start_cpu
    longest, at, updates = 0.0, 0, 0
    while not ended:
        before = time.perf_counter()
        mailbox.turn(0)
        for _ in range(100):
            table.rows[keys[at % len(keys)]] = (at, bytes(8))
            at += 1
        updates += 100
        longest = max(longest, time.perf_counter() - before)
    took = time.perf_counter() - start
    assert ended == [None], ended
    capture.acknowledged(snapshot)
    figures = {
        "huge_mb": huge,
        "pause_ms": round(pause * 1000, 1),
        "pause_cpu_ms": round(pause_cpu * 1000, 1),
        "longest_turn_meanwhile_ms": round(longest * 1000, 1),
        "took_s": round(took, 2),
        "written_mb": round(snapshot.written_bytes / 1e6, 1),
        "state_mb": round(snapshot.state_bytes() / 1e6, 1),
        "updates_per_s_meanwhile": int(updates / took),
    }
    return figures, snapshot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--settle-s", type=float, default=60, help="time for pages to be merged")
    arguments = parser.parse_args()
    table, registry, mailbox = Table(), OperatorStateRegistry(), Mailbox()
    registry.add_keyed("keyed", table)
    operator_id = OperatorID.from_text("bench")
    num_keys = fill(table, arguments.megabytes)
    with tempfile.TemporaryDirectory() as folder:
        workers = SlotSnapshotWorkers(mailbox)
        capture = StateCapture([(operator_id, registry)], GROUPS, workers, name="bench", work_dir=folder)
        time.sleep(arguments.settle_s)
        root = f"file://{folder}"
        full = CheckpointOptions(exclusive_folder=root, shared_folder=root, incremental=True)
        results = {"keys": num_keys, "rss_mb": rss_bytes() >> 20}
        results["full"], _ = take(capture, mailbox, table, 1, full)
        for key in range(0, num_keys, 100):
            table.put(f"user-{key}", 1)
        time.sleep(arguments.settle_s)
        changed = CheckpointOptions(exclusive_folder=root, shared_folder=root, incremental=True, base_checkpoint_id=1)
        results["after_1_percent"], snapshot = take(capture, mailbox, table, 2, changed)
        share = results["after_1_percent"]["written_mb"] / results["full"]["written_mb"]
        results["written_share"] = round(share, 4)
        start = time.perf_counter()
        restore = OperatorRestore(tuple(snapshot.keyed.values()))
        restored = HandleRestoredState(
            restore, operator_name="bench", subtask_index=0, parallelism=1, key_groups=GROUPS, work_dir=folder
        )
        other = Table()
        OperatorStateRegistry(restored).add_keyed("keyed", other)
        results["restore_s"] = round(time.perf_counter() - start, 2)
        assert len(other.rows) == num_keys
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
