"""What a checkpoint of windows on columns costs: ``python -m tests.bench.window_checkpoint [--keys 1000000]``.

Count, sum and maximum by int64 key alone, in tumbling windows or (``--slide``) in windows of four slices. All keys have
a record in each slice, then one per cent of them, by chance, get one in the newest slice before each checkpoint: what
is written, the CPU time of who writes it, and of the task at the barrier, without the fork. It drives the code of a
slot, in this process. ``--memory-mb``: the operator's share; slices beyond it lie in files. ``--distinct``: distinct
values too. ``--sessions``: sessions, one a key, in place of windows.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from engine.core.ids import OperatorID
from engine.core.records import BATCH_ROWS_MAX, ColumnBatch
from engine.operators.column_session import column_session
from engine.operators.column_window import column_window
from engine.operators.field_aggregates import RowAggregates, WindowRecord, count, count_distinct, max_, sum_
from engine.operators.keys import FieldKey
from engine.operators.window import WindowSpec
from engine.operators.window_contents import AggregateFold
from engine.operators.window_functions import window_call
from engine.protocol.checkpoint import CheckpointOptions
from engine.runtime.taskmanager.mailbox import Mailbox
from engine.runtime.taskmanager.snapshot_capture import StateCapture
from engine.runtime.taskmanager.snapshot_workers import SlotSnapshotWorkers
from engine.time.assigners import EventTimeSessionWindows, SlidingEventTimeWindows, TumblingEventTimeWindows
from engine.time.triggers import EventTimeTrigger
from tests.bench.state_memory import STRIDE
from tests.bench.stats import record
from tests.testing.operator_harness import OperatorHarness

_SIZE_MS = 4000


def spec_of(slide: bool, distinct: bool, sessions: bool = False) -> Any:
    assigner: Any = (
        SlidingEventTimeWindows(_SIZE_MS, _SIZE_MS // 4, 0) if slide else TumblingEventTimeWindows(_SIZE_MS, 0)
    )
    aggregates = [count(), sum_(1), max_(1), *([count_distinct(1)] if distinct else [])]
    fold = AggregateFold(RowAggregates(aggregates))
    if sessions:
        assigner = EventTimeSessionWindows(_SIZE_MS)
    rows = WindowSpec((FieldKey(0),), assigner, EventTimeTrigger(), window_call(WindowRecord(1)), fold)
    return column_session(rows) if sessions else column_window(rows)


def send(harness: OperatorHarness, numbers: np.ndarray[Any, Any], stamp_ms: int) -> None:
    for at in range(0, numbers.size, BATCH_ROWS_MAX):
        part = numbers[at : at + BATCH_ROWS_MAX]
        keys = (part.astype(np.uint64) * np.uint64(STRIDE)).view(np.int64)
        columns = pa.record_batch([pa.array(keys), pa.array(part % 7)], names=["k", "v"])
        harness.process_batch(ColumnBatch(columns, np.full(part.size, stamp_ms, np.int64)))


class Barriers:
    """Takes checkpoints as a slot does, and the time that they take."""

    def __init__(self, harness: OperatorHarness, folder: str) -> None:
        self._mailbox = Mailbox()
        self._workers = SlotSnapshotWorkers(self._mailbox)
        self._fork = self._workers.fork
        self._workers.fork = self._timed_fork  # type: ignore[method-assign]
        self._fork_ms = 0.0
        self._harness = harness
        registries = [(OperatorID.from_text("bench"), harness.contexts[0].state)]
        self._capture = StateCapture(
            registries, range(128), self._workers, name="bench", work_dir=folder, is_periodic=True
        )
        root = f"file://{folder}"
        self._options = CheckpointOptions(exclusive_folder=root, shared_folder=root, incremental=True)
        self.number = 0

    def _timed_fork(self, work: Any, on_done: Any) -> Any:
        begin = time.thread_time()
        try:
            return self._fork(work, on_done)
        finally:
            self._fork_ms = (time.thread_time() - begin) * 1e3

    def take(self) -> dict[str, float]:
        self._fork_ms = 0.0
        ended: list[BaseException | None] = []
        options = replace(self._options, base_checkpoint_id=self.number)
        self.number += 1
        before = _cpu_s()
        begin = time.thread_time()
        self._harness.head.prepare_snapshot(self.number)
        snapshot = self._capture.capture(self.number, options, {}, lambda _, error: ended.append(error))
        barrier_ms = (time.thread_time() - begin) * 1e3
        while not ended:
            self._mailbox.turn(0)
            time.sleep(0.002)
        assert ended == [None], ended
        self._capture.acknowledged(snapshot)
        return {
            "written MB": snapshot.written_bytes / 1e6,
            "all CPU, s": _cpu_s() - before,
            "fork, ms": self._fork_ms,
            "barrier without fork, ms": barrier_ms - self._fork_ms,
        }


def _cpu_s() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(own.ru_utime + own.ru_stime for own in usage)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--memory-mb", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.01, help="of the keys that change")
    parser.add_argument("--slide", action="store_true")
    parser.add_argument("--distinct", action="store_true")
    parser.add_argument("--sessions", action="store_true", help="a session of each key instead")
    options = parser.parse_args()
    rng = np.random.default_rng(1)
    spec = spec_of(options.slide, options.distinct, options.sessions)
    with (
        tempfile.TemporaryDirectory() as folder,
        OperatorHarness(spec, memory_bytes=options.memory_mb << 20) as harness,
    ):
        slices = range(0, _SIZE_MS, _SIZE_MS // 4) if options.slide else range(0, _SIZE_MS, _SIZE_MS)
        for start in slices:
            send(harness, rng.permutation(options.keys), start + 1)
        barriers = Barriers(harness, folder)
        found = {"full": barriers.take()}
        rounds = []
        for number in range(options.rounds):
            send(harness, rng.choice(options.keys, int(options.keys * options.share), replace=False), slices[-1] + 2)
            harness.watermark(slices[-1] - 1 + number)
            rounds.append(barriers.take())
        found["after the changes, median"] = {
            name: statistics.median(made[name] for made in rounds) for name in rounds[0]
        }
        found["worst"] = {name: max(made[name] for made in rounds) for name in rounds[0]}
    record(found)
    print(json.dumps({way: {name: round(v, 3) for name, v in own.items()} for way, own in found.items()}, indent=2))


if __name__ == "__main__":
    main()
