"""Windows beyond their share of memory: ``python -m tests.bench.window_spill [--keys 4000000] [--memory-mb 64]``.

Count, sum and maximum by int64 key alone, in a process of its own for each way: on columns, whose slices lie in files;
on columns with memory for all; and on rows with RocksDB (a hundredth of the keys and records, or it takes hours).
Each window sees records of all keys by chance; in its middle there is a barrier, then it fires. Million records per
CPU-second with the firing, resident memory above that of the operator with its first keys, the longest batch, and what
a task does at the barrier itself, in CPU time. ``--slide``: windows overlap, four slices each.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import pyarrow as pa

from engine.core.records import BATCH_ROWS_MAX, ColumnBatch
from engine.operators.column_window import column_window
from engine.operators.field_aggregates import RowAggregates, WindowRecord, count, max_, sum_
from engine.operators.keys import FieldKey
from engine.operators.window import WindowSpec
from engine.operators.window_contents import AggregateFold
from engine.operators.window_functions import window_call
from engine.time.assigners import SlidingEventTimeWindows, TumblingEventTimeWindows
from engine.time.triggers import EventTimeTrigger
from tests.bench.operator_meter import OperatorMeter
from tests.bench.state_memory import STRIDE, print_each
from tests.testing.operator_harness import OperatorHarness

WAYS = ("files", "memory", "rocksdb")
_SIZE_MS = 4000
_ROCKSDB_PART = 100


def spec_of(way: str, slide: bool) -> Any:
    assigner = SlidingEventTimeWindows(_SIZE_MS, _SIZE_MS // 4, 0) if slide else TumblingEventTimeWindows(_SIZE_MS, 0)
    fold = AggregateFold(RowAggregates([count(), sum_(1), max_(1)]))
    rows = WindowSpec((FieldKey(0),), assigner, EventTimeTrigger(), window_call(WindowRecord(1)), fold)
    return rows if way == "rocksdb" else column_window(rows)


class Counted:
    """An Output that counts."""

    def __init__(self) -> None:
        self.num_rows = 0

    def emit(self, batch: Any) -> None:
        self.num_rows += len(batch)

    def emit_watermark(self, watermark_ms: int) -> None:
        pass


def batch_of(numbers: np.ndarray[Any, Any], stamps: np.ndarray[Any, Any]) -> ColumnBatch:
    keys = (numbers.astype(np.uint64) * np.uint64(STRIDE)).view(np.int64)
    return ColumnBatch(pa.record_batch([pa.array(keys), pa.array(numbers)], names=["k", "v"]), stamps)


def measure(way: str, num_keys: int, num_records: int, memory_mb: int, slide: bool) -> dict[str, float]:
    memory_bytes = (memory_mb << 20) if way != "memory" else 1 << 40
    if way == "rocksdb":
        num_keys, num_records = num_keys // _ROCKSDB_PART, num_records // _ROCKSDB_PART
    config = {"state.backend.type": "rocksdb"} if way == "rocksdb" else {}
    with OperatorHarness(spec_of(way, slide), memory_bytes=memory_bytes, config=config) as harness:
        rng = np.random.default_rng(1)
        harness.process_batch(batch_of(np.arange(BATCH_ROWS_MAX), np.zeros(BATCH_ROWS_MAX, np.int64)))
        out = Counted()
        harness.output.emit = out.emit  # type: ignore[method-assign]
        harness.watermark(_SIZE_MS)
        meter = OperatorMeter(harness)
        num_batches = num_records // BATCH_ROWS_MAX
        out.num_rows = 0
        for number in range(num_batches):
            stamps = _SIZE_MS + number * _SIZE_MS // num_batches + rng.integers(0, 5, BATCH_ROWS_MAX)
            batch = batch_of(rng.integers(0, num_keys, BATCH_ROWS_MAX), stamps)
            with meter.batch():
                harness.process_batch(batch)
                if slide and number * 4 // num_batches < (number + 1) * 4 // num_batches:
                    harness.watermark(int(stamps.min()) - 5)
            if number == num_batches // 2:
                meter.barrier()
        meter.end(3 * _SIZE_MS, "firing", num_batches * BATCH_ROWS_MAX)
        return {**meter.found, "results, M": out.num_rows / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=4_000_000)
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--memory-mb", type=int, default=64, help="the operator's share")
    parser.add_argument("--slide", action="store_true")
    parser.add_argument("--only", choices=WAYS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        found = measure(options.only, options.keys, options.records, options.memory_mb, options.slide)
        print(json.dumps(found))
        return
    print_each([options.only] if options.only else WAYS, __spec__.name)


if __name__ == "__main__":
    main()
