"""How long a task stands still for a snapshot of much state, and what increments write.

``python -m tests.bench.checkpoint_pause [--megabytes 1000]`` fills a part with that much (as the process's memory
shows; with ``--backend rocksdb`` as the values have bytes, which are random then), takes a full checkpoint into a
folder, changes 1 % of the keys, takes another, restores it. ``--rounds 30`` repeats the second half: each time other
keys, at random over all of them, and tells what the increments wrote on average and at worst. It drives the same code
as a slot, in this process: ``StateCapture`` with ``SlotSnapshotWorkers``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import cached_property
from typing import Any

from engine.checkpoint.restored_state import HandleRestoredState
from engine.core.clock import SystemClock
from engine.core.ids import OperatorID
from engine.protocol.checkpoint import CheckpointOptions, OperatorRestore
from engine.runtime.taskmanager.huge_pages import MALLOC_HUGE, with_huge_malloc
from engine.runtime.taskmanager.mailbox import Mailbox
from engine.runtime.taskmanager.snapshot_capture import StateCapture, TaskSnapshot
from engine.runtime.taskmanager.snapshot_workers import SlotSnapshotWorkers
from engine.state.descriptors import ValueStateDescriptor
from engine.state.heap_backend import HeapKeyedStateBackend
from engine.state.parts import OperatorStateRegistry
from engine.state.rocksdb_backend import RocksDBKeyedStateBackend
from engine.state.states import ValueState
from tests.bench.stats import record

GROUPS = range(128)


class Table:
    """A value state, key → (count, bytes). ``folder``: of RocksDB's files; None = the hashmap backend."""

    def __init__(self, folder: str | None = None, memory_bytes: int = 0) -> None:
        self.backend: HeapKeyedStateBackend | RocksDBKeyedStateBackend
        if folder is None:
            self.backend = HeapKeyedStateBackend(SystemClock(), 128, incremental=True)
        else:
            self.backend = RocksDBKeyedStateBackend(
                SystemClock(), 128, folder=folder, memory_bytes=memory_bytes, session=os.path.basename(folder)
            )

    @cached_property
    def state(self) -> ValueState:
        """Known after the restore, as in a job: what RocksDB restores into a part that has states is copied by row."""
        return self.backend.value_state(ValueStateDescriptor("value"))

    def put(self, key: str, count: int, content: bytes) -> None:
        self.backend.set_current_key(key)
        self.state.update((count, content))


def rss_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def huge_mb() -> int:
    with open("/proc/self/smaps_rollup", encoding="ascii") as stream:
        return next(int(line.split()[1]) >> 10 for line in stream if line.startswith("AnonHugePages"))


def fill(table: Table, megabytes: int, value_bytes: int) -> int:
    start, key = rss_bytes(), 0
    if isinstance(table.backend, RocksDBKeyedStateBackend):
        num_keys = (megabytes << 20) // value_bytes
        for key in range(num_keys):
            table.put(f"user-{key}", 0, new_value(table, value_bytes))
        return num_keys
    while rss_bytes() - start < megabytes << 20:
        for _ in range(1000):
            table.put(f"user-{key}", 0, new_value(table, value_bytes))
            key += 1
    return key


def new_value(table: Table, value_bytes: int) -> bytes:
    if isinstance(table.backend, RocksDBKeyedStateBackend):
        return os.urandom(value_bytes)  # it compresses what it writes
    return os.urandom(8) + bytes(value_bytes)


def take(
    capture: StateCapture, mailbox: Mailbox, table: Table, keys: list[str], number: int, options: CheckpointOptions
) -> Any:
    """Take a checkpoint and go on changing the state of ``keys`` meanwhile, as a task does; return figures and the
    snapshot."""
    ended: list[BaseException | None] = []

    def on_end(snapshot: TaskSnapshot, error: BaseException | None) -> None:
        ended.append(error)

    huge = huge_mb()
    start, start_cpu = time.perf_counter(), time.thread_time()
    snapshot = capture.capture(number, options, {}, on_end)
    pause, pause_cpu = time.perf_counter() - start, time.thread_time() - start_cpu
    longest, at, updates = 0.0, 0, 0
    while not ended:
        before = time.perf_counter()
        mailbox.turn(0)
        for _ in range(100):
            table.put(keys[at % len(keys)], at, bytes(8))
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
    parser.add_argument("--value-bytes", type=int, default=400, help="up to 480: in Python's arenas, else in malloc's")
    parser.add_argument("--backend", choices=["hashmap", "rocksdb"], default="hashmap")
    parser.add_argument("--memory-mb", type=int, default=256, help="of RocksDB: cache and write buffers")
    parser.add_argument("--settle-s", type=float, default=0, help="time for pages to be merged, RocksDB's files too")
    parser.add_argument("--rounds", type=int, default=1, help="how many times 1 %% is changed")
    arguments = parser.parse_args()
    if MALLOC_HUGE not in os.environ:  # as a slot is started
        command = [sys.executable, "-m", "tests.bench.checkpoint_pause", *sys.argv[1:]]
        env = {**os.environ, MALLOC_HUGE: with_huge_malloc("")}
        told = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
        print(told, end="")
        record(json.loads(told))
        return
    registry, mailbox = OperatorStateRegistry(), Mailbox()
    operator_id = OperatorID.from_text("bench")
    with tempfile.TemporaryDirectory() as folder:
        is_rocksdb = arguments.backend == "rocksdb"
        made = lambda name: Table(f"{folder}/{name}" if is_rocksdb else None, arguments.memory_mb << 20)  # noqa: E731
        table = made("former")
        registry.add_keyed("keyed", table.backend)
        workers = SlotSnapshotWorkers(mailbox)
        capture = StateCapture(
            [(operator_id, registry)], GROUPS, workers, name="bench", work_dir=folder, is_periodic=True
        )
        start = time.perf_counter()
        num_keys = fill(table, arguments.megabytes, arguments.value_bytes)
        fill_s = time.perf_counter() - start
        rng = random.Random(1)
        some = lambda: [f"user-{key}" for key in rng.sample(range(num_keys), num_keys // 100)]  # noqa: E731
        keys = some()
        time.sleep(arguments.settle_s)
        root = f"file://{folder}"
        full = CheckpointOptions(exclusive_folder=root, shared_folder=root, incremental=True)
        results: dict[str, Any] = {"keys": num_keys, "rss_mb": rss_bytes() >> 20, "fill_s": round(fill_s, 1)}
        results["full"], snapshot = take(capture, mailbox, table, keys, 1, full)
        shares = []
        for number in range(1, arguments.rounds + 1):
            for key in keys:
                table.put(key, number, new_value(table, arguments.value_bytes))
            keys = some()
            time.sleep(arguments.settle_s)
            changed = replace(full, base_checkpoint_id=number)
            results["after_1_percent"], snapshot = take(capture, mailbox, table, keys, number + 1, changed)
            shares.append(results["after_1_percent"]["written_mb"] / results["full"]["written_mb"])
        results["written_share"] = {"mean": round(statistics.mean(shares), 4), "worst": round(max(shares), 4)}
        results["written_shares"] = [round(share, 4) for share in shares]
        start = time.perf_counter()
        restore = OperatorRestore(tuple(snapshot.keyed.values()))
        restored = HandleRestoredState(
            restore, operator_name="bench", subtask_index=0, parallelism=1, key_groups=GROUPS, work_dir=folder
        )
        other = made("restored")
        OperatorStateRegistry(restored).add_keyed("keyed", other.backend)
        results["restore_s"] = round(time.perf_counter() - start, 2)
        if isinstance(other.backend, HeapKeyedStateBackend):
            other.backend.restore_rest()  # what no record has asked for is taken up late
            assert other.backend.num_entries() == num_keys  # RocksDB only estimates it
        other.backend.close()
        table.backend.close()
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
