"""Joins beyond their share of memory: ``python -m tests.bench.join_spill [--records 4000000] [--memory-mb 64]``.

A window join, or with ``--interval`` an interval join, alone, in a process of its own for each way: on columns, whose
records lie in files; on columns with memory for all; and on rows with RocksDB (a hundredth of the records, or it takes
hours). Records of both sides have an int64 key
and value; each key comes once a side, by chance, so there are as many pairs as records a side, by a compiled function.
In the middle of the window there is a barrier, then the window fires. Million records of both sides per CPU-second with
the firing, resident memory above that of the operator after a small window, the longest batch, and what a task does at
the barrier itself, in CPU time. ``--late``: so many records of each batch come behind the watermark, within the
lateness, of keys by chance, and each gives its pairs at once. ``--interval``: the time goes on with the records, and a
partner may be a quarter of them away, so nearly half of all are there at any time; a watermark comes with every eighth
batch, and the operator's timer is served as a task serves it.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from engine.core.records import BATCH_ROWS_MAX
from engine.operators.column_interval_join import column_interval_join
from engine.operators.column_window_join import column_window_join
from engine.operators.compile.expressions import Kind
from engine.operators.compile.translate import Shape
from engine.operators.interval_join import IntervalJoinSpec
from engine.operators.keys import FieldKey
from engine.operators.window import WindowSpec
from engine.operators.window_functions import JoinedFunction
from engine.time.assigners import TumblingEventTimeWindows
from engine.time.triggers import EventTimeTrigger
from engine.time.windows import TIME_MAX_MS
from tests.bench.operator_meter import OperatorMeter
from tests.bench.state_memory import print_each
from tests.bench.window_spill import Counted, batch_of
from tests.testing.operator_harness import OperatorHarness

WAYS = ("files", "memory", "rocksdb")
_SIZE_MS = 4000
_ROCKSDB_PART = 100
_RECORD = Shape((Kind.INT, Kind.INT))


def spec_of(way: str, late: int) -> Any:
    function = JoinedFunction(lambda left, right: (left[0], left[1] + right[1]), False)
    rows = WindowSpec(
        (FieldKey(0), FieldKey(0)),
        TumblingEventTimeWindows(_SIZE_MS, 0),
        EventTimeTrigger(),
        function,
        allowed_lateness_ms=_SIZE_MS if late else 0,
    )
    return rows if way == "rocksdb" else column_window_join(rows, (_RECORD, _RECORD))


def measure(way: str, num_records: int, memory_mb: int, late: int) -> dict[str, float]:
    memory_bytes = (memory_mb << 20) if way != "memory" else 1 << 40
    if way == "rocksdb":
        num_records //= _ROCKSDB_PART
    config = {"state.backend.type": "rocksdb"} if way == "rocksdb" else {}
    with OperatorHarness(spec_of(way, late), memory_bytes=memory_bytes, config=config) as harness:
        out = Counted()
        harness.output.emit = out.emit  # type: ignore[method-assign]
        first = np.arange(BATCH_ROWS_MAX)
        for side in range(2):
            harness.process_batch(batch_of(first, np.zeros(first.size, np.int64)), input_index=side)
        harness.watermark(_SIZE_MS)
        rng = np.random.default_rng(1)
        numbers = [rng.permutation(num_records) for _ in range(2)]
        meter, num = OperatorMeter(harness), 0
        num_batches = -(-num_records // BATCH_ROWS_MAX)
        out.num_rows = 0
        for number in range(num_batches):
            part = slice(number * BATCH_ROWS_MAX, (number + 1) * BATCH_ROWS_MAX)
            for side in range(2):
                own = numbers[side][part]
                stamps = _SIZE_MS + number * _SIZE_MS // num_batches + rng.integers(0, 5, own.size)
                stamps[:late] -= _SIZE_MS
                batch = batch_of(own, stamps)
                with meter.batch():
                    harness.process_batch(batch, input_index=side)
                num += own.size
            if number == num_batches // 2:
                meter.barrier()
        meter.end(3 * _SIZE_MS, "firing", num)
        return {**meter.found, "results, M": out.num_rows / 1e6}


def measure_interval(way: str, num_records: int, memory_mb: int) -> dict[str, float]:
    memory_bytes = (memory_mb << 20) if way != "memory" else 1 << 40
    if way == "rocksdb":
        num_records //= _ROCKSDB_PART
    config = {"state.backend.type": "rocksdb"} if way == "rocksdb" else {}
    band = num_records // 4
    rows = IntervalJoinSpec((FieldKey(0), FieldKey(0)), -band, band, lambda a, b: (a[0], a[1] + b[1]))
    spec = rows if way == "rocksdb" else column_interval_join(rows, (_RECORD, _RECORD))
    with OperatorHarness(spec, memory_bytes=memory_bytes, config=config) as harness:  # type: ignore[arg-type]
        out = Counted()
        harness.output.emit = out.emit  # type: ignore[method-assign]
        first = np.arange(BATCH_ROWS_MAX)
        for side in range(2):
            harness.process_batch(batch_of(first, np.full(first.size, -3 * band)), input_index=side)
        harness.watermark(-band)
        rng = np.random.default_rng(1)
        # Partners are of the same quarter.
        numbers = [
            np.concatenate([at + rng.permutation(band) for at in range(0, num_records - band + 1, band)])
            for _ in range(2)
        ]
        meter, num, head = OperatorMeter(harness), 0, harness.head
        out.num_rows = 0
        for number in range(-(-numbers[0].size // BATCH_ROWS_MAX)):
            part = slice(number * BATCH_ROWS_MAX, (number + 1) * BATCH_ROWS_MAX)
            for side in range(2):
                own = numbers[side][part]
                batch = batch_of(own, part.start + np.arange(own.size))
                with meter.batch():
                    harness.process_batch(batch, input_index=side)
                with meter.batch():
                    if number % 8 == 7 and side:
                        harness.watermark(part.start)
                    due_ms = head.next_timer_ms()
                    if due_ms is not None and due_ms <= harness.clock.now_ms():
                        head.on_timer(harness.clock.now_ms())
                num += own.size
            if number == numbers[0].size // BATCH_ROWS_MAX // 2:
                meter.barrier()
        meter.end(TIME_MAX_MS, "the end", num)
        return {**meter.found, "results, M": out.num_rows / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=4_000_000, help="of each side")
    parser.add_argument("--memory-mb", type=int, default=64, help="the operator's share")
    parser.add_argument("--late", type=int, default=0, help="records of each batch")
    parser.add_argument("--interval", action="store_true")
    parser.add_argument("--only", choices=WAYS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one and options.interval:
        print(json.dumps(measure_interval(options.only, options.records, options.memory_mb)))
        return
    if options.one:
        print(json.dumps(measure(options.only, options.records, options.memory_mb, options.late)))
        return
    print_each([options.only] if options.only else WAYS, __spec__.name)


if __name__ == "__main__":
    main()
