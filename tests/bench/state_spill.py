"""Keyed state beyond its share of memory: ``python -m tests.bench.state_spill [--keys 10000000] [--memory-mb 64]``.

A running sum of int64 by int64 key alone, in a process of its own for each way: on columns, whose partitions lie in
files; on rows in a dict, which knows no limit; and on rows with RocksDB (a hundredth of the keys, or it takes hours).
First each key comes once, then keys come by chance, then a barrier. Million records per CPU-second, resident memory
above that of the operator with its first keys, and the longest batch in CPU time. ``--values``: further int64 fields,
which stay what they were in a key's first record; 14 make records of 128 bytes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from engine.core.records import BATCH_ROWS_MAX, ColumnBatch
from engine.operators.aggregate import KeyedAggregateSpec
from engine.operators.column_aggregate import ColumnAggregateSpec
from engine.operators.keys import FieldKey
from tests.bench.state_files import unnamed_bytes
from tests.bench.state_memory import STRIDE, print_each, resident
from tests.testing.operator_harness import OperatorHarness

WAYS = {
    "columns": ColumnAggregateSpec(FieldKey(0), "sum", 1),
    "rows": KeyedAggregateSpec(FieldKey(0), "sum", 1),
    "rocksdb": KeyedAggregateSpec(FieldKey(0), "sum", 1),
}
_ROCKSDB_PART = 100


class Nowhere:
    """An Output that forgets."""

    def emit(self, batch: Any) -> None:
        pass


def batch_of(numbers: np.ndarray[Any, Any], num_values: int = 0) -> ColumnBatch:
    keys = (numbers.astype(np.uint64) * np.uint64(STRIDE)).view(np.int64)
    columns = [pa.array(keys), pa.array(np.ones(keys.size, np.int64))]
    columns += [pa.array(numbers + value) for value in range(num_values)]
    return ColumnBatch(pa.record_batch(columns, names=["k", "v", *(f"v{value}" for value in range(num_values))]))


def measure(way: str, num_keys: int, num_updates: int, memory_mb: int, num_values: int = 0) -> dict[str, float]:
    config = {}
    if way == "rocksdb":
        config = {"state.backend.type": "rocksdb"}
        num_keys, num_updates = num_keys // _ROCKSDB_PART, num_updates // _ROCKSDB_PART
    with OperatorHarness(WAYS[way], memory_bytes=memory_mb << 20, config=config) as harness:
        harness.process_batch(batch_of(np.arange(BATCH_ROWS_MAX), num_values))
        harness.output.emit = Nowhere().emit  # type: ignore[method-assign]
        base, base_files = resident(), unnamed_bytes()
        found: dict[str, float] = {}
        rng = np.random.default_rng(1)

        def run(name: str, batches: Iterable[ColumnBatch]) -> None:
            spent_s = longest_s = 0.0
            num_rows = peak = 0
            for batch in batches:
                begin_s = time.process_time()
                harness.process_batch(batch)
                step_s = time.process_time() - begin_s
                spent_s, longest_s = spent_s + step_s, max(longest_s, step_s)
                num_rows, peak = num_rows + len(batch), max(peak, resident() - base)
            found[f"{name}, M a CPU-s"] = num_rows / spent_s / 1e6
            found[f"{name}, peak MB"] = peak / 1e6
            found[f"{name}, longest ms"] = longest_s * 1e3

        starts = range(BATCH_ROWS_MAX, num_keys, BATCH_ROWS_MAX)
        first = (np.arange(start, min(num_keys, start + BATCH_ROWS_MAX)) for start in starts)
        run("new keys", (batch_of(numbers, num_values) for numbers in first))
        later = (rng.integers(0, num_keys, BATCH_ROWS_MAX) for _ in range(num_updates // BATCH_ROWS_MAX))
        run("updates", (batch_of(numbers, num_values) for numbers in later))
        found["files, MB"] = (unnamed_bytes() - base_files) / 1e6
        begin_s = time.process_time()
        harness.head.prepare_snapshot(1)
        found["barrier, ms"] = (time.process_time() - begin_s) * 1e3
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=10_000_000)
    parser.add_argument("--updates", type=int, default=10_000_000)
    parser.add_argument("--memory-mb", type=int, default=64, help="the operator's share")
    parser.add_argument("--values", type=int, default=0, help="further fields of a record")
    parser.add_argument("--only", choices=WAYS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        shape = options.keys, options.updates, options.memory_mb, options.values
        print(json.dumps(measure(options.only, *shape)))
        return
    print_each([options.only] if options.only else WAYS, __spec__.name)


if __name__ == "__main__":
    main()
