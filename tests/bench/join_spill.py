"""Window joins beyond their share of memory: ``python -m tests.bench.join_spill [--records 4000000] [--memory-mb 64]``.

The join alone, in a process of its own for each way: on columns, whose slices lie in files; on columns with memory for
all; and on rows with RocksDB (a hundredth of the records, or it takes hours). Records of both sides have an int64 key
and value; each key comes once a side, by chance, so there are as many pairs as records a side, by a compiled function.
In the middle of the window there is a barrier, then the window fires. Million records of both sides per CPU-second with
the firing, resident memory above that of the operator after a small window, the longest batch, and what a task does at
the barrier itself, in CPU time. ``--late``: so many records of each batch come behind the watermark, within the
lateness, of keys by chance, and each gives its pairs at once.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from engine.core.records import BATCH_ROWS_MAX
from engine.operators.column_window_join import column_window_join
from engine.operators.compile.expressions import Kind
from engine.operators.compile.translate import Shape
from engine.operators.keys import FieldKey
from engine.operators.window import WindowSpec
from engine.operators.window_functions import JoinedFunction
from engine.time.assigners import TumblingEventTimeWindows
from engine.time.triggers import EventTimeTrigger
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=4_000_000, help="of each side")
    parser.add_argument("--memory-mb", type=int, default=64, help="the operator's share")
    parser.add_argument("--late", type=int, default=0, help="records of each batch")
    parser.add_argument("--only", choices=WAYS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.only, options.records, options.memory_mb, options.late)))
        return
    print_each([options.only] if options.only else WAYS, __spec__.name)


if __name__ == "__main__":
    main()
