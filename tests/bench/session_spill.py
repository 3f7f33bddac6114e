"""Sessions beyond their share of memory: ``python -m tests.bench.session_spill [--keys 4000000] [--memory-mb 64]``.

Count, sum and maximum by int64 key alone, in a process of its own for each way: on columns, with partitions in files;
on columns with memory for all; and on rows with RocksDB (a hundredth of keys, records and gap, or it takes hours).
Records of all keys by chance, a thousand each millisecond, with a gap of two seconds: sessions fire all the time, and
after each batch the watermark follows; a clock that stands for real time calls timers. ``--quiet``: the watermark waits
for the end. In the middle there is a barrier. Million records per CPU-second with all results, resident memory above
that of the operator with its first keys, the longest batch, and what a task does at the barrier itself, in CPU time.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from engine.core.records import BATCH_ROWS_MAX
from engine.operators.column_session import column_session
from engine.operators.field_aggregates import RowAggregates, WindowRecord, count, max_, sum_
from engine.operators.keys import FieldKey
from engine.operators.window import WindowSpec
from engine.operators.window_contents import AggregateFold
from engine.operators.window_functions import window_call
from engine.time.assigners import EventTimeSessionWindows
from engine.time.triggers import EventTimeTrigger
from engine.time.windows import TIME_MAX_MS
from tests.bench.operator_meter import OperatorMeter
from tests.bench.state_memory import print_each
from tests.bench.window_spill import Counted, batch_of
from tests.testing.operator_harness import OperatorHarness

WAYS = ("files", "memory", "rocksdb")
_GAP_MS = 2000
_RECORDS_PER_MS = 1000
_ROCKSDB_PART = 100


def spec_of(way: str, gap_ms: int) -> Any:
    fold = AggregateFold(RowAggregates([count(), sum_(1), max_(1)]))
    assigner = EventTimeSessionWindows(gap_ms)
    rows = WindowSpec((FieldKey(0),), assigner, EventTimeTrigger(), window_call(WindowRecord(1)), fold)
    return rows if way == "rocksdb" else column_session(rows)


def measure(way: str, num_keys: int, num_records: int, memory_mb: int, quiet: bool) -> dict[str, float]:
    memory_bytes = (memory_mb << 20) if way != "memory" else 1 << 40
    gap_ms = _GAP_MS
    if way == "rocksdb":
        num_keys, num_records, gap_ms = (n // _ROCKSDB_PART for n in (num_keys, num_records, gap_ms))
    config = {"state.backend.type": "rocksdb"} if way == "rocksdb" else {}
    with OperatorHarness(spec_of(way, gap_ms), memory_bytes=memory_bytes, config=config) as harness:
        rng = np.random.default_rng(1)
        harness.process_batch(batch_of(np.arange(BATCH_ROWS_MAX), np.full(BATCH_ROWS_MAX, -10 * gap_ms)))
        out = Counted()
        harness.output.emit = out.emit  # type: ignore[method-assign]
        harness.output.emit_watermark = out.emit_watermark  # type: ignore[method-assign]
        harness.watermark(-5 * gap_ms)
        meter, head = OperatorMeter(harness), harness.head
        out.num_rows = 0
        num_batches = num_records // BATCH_ROWS_MAX
        for number in range(num_batches):
            stamps = (number * BATCH_ROWS_MAX + np.arange(BATCH_ROWS_MAX)) // _RECORDS_PER_MS
            batch = batch_of(rng.integers(0, num_keys, BATCH_ROWS_MAX), stamps)
            with meter.batch():
                harness.process_batch(batch)
                if not quiet:
                    harness.watermark(int(stamps[0]) - 5)
                if (due := head.next_timer_ms()) is not None and due <= harness.clock.now_ms():
                    head.on_timer(harness.clock.now_ms())
            if number == num_batches // 2:
                meter.barrier()
        meter.end(TIME_MAX_MS, "the end", num_batches * BATCH_ROWS_MAX)
        return {**meter.found, "results, M": out.num_rows / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=4_000_000)
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--memory-mb", type=int, default=64, help="the operator's share")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--only", choices=WAYS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.only, options.keys, options.records, options.memory_mb, options.quiet)))
        return
    print_each([options.only] if options.only else WAYS, __spec__.name)


if __name__ == "__main__":
    main()
