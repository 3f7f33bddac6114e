"""The longest batch while columnar keyed state grows: ``python -m tests.bench.state_growth [--keys 10000000]``.

A keyed count alone in a process: batches of new keys, each seen for the first time. CPU time of a batch, ms: the median
and the three longest of those that began with so many keys, and minor page faults of the longest.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from engine.core.records import BATCH_ROWS_MAX
from engine.operators.column_aggregate import ColumnAggregateSpec
from engine.operators.keys import FieldKey
from tests.bench.state_memory import batch_of
from tests.bench.stats import record
from tests.testing.operator_harness import OperatorHarness


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt


def measure(num_keys: int, kind: str) -> list[tuple[int, float, int]]:
    """Return for each batch: keys before it, CPU ms, page faults."""
    found = []
    with OperatorHarness(ColumnAggregateSpec(FieldKey(0), "sum", 1, emit_final=True), memory_bytes=1 << 40) as harness:
        for start in range(0, num_keys, BATCH_ROWS_MAX):
            batch = batch_of(start, min(BATCH_ROWS_MAX, num_keys - start), kind)
            faults_before, begin_ns = faults(), time.thread_time_ns()
            harness.process_batch(batch)
            found.append((start, (time.thread_time_ns() - begin_ns) / 1e6, faults() - faults_before))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=10_000_000)
    parser.add_argument("--kind", choices=["int", "text"], default="int", help="text: 16 bytes a key")
    options = parser.parse_args()
    batches = measure(options.keys, options.kind)
    print("      keys from          to   median  longest three, ms (faults of the first)")
    low, high = 100_000, 200_000
    while low < options.keys:
        some = [batch for batch in batches if low <= batch[0] < high]
        longest = sorted(some, key=lambda batch: -batch[1])[:3]
        shown = " ".join(f"{ms:8.1f} at {start:10,}" for start, ms, _ in longest)
        record(
            {
                "workload": "state_growth",
                "kind": options.kind,
                "keys_from": low,
                "longest_ms": [ms for _, ms, _ in longest],
            }
        )
        print(f"{low:15,} {high:11,} {np.median([ms for _, ms, _ in some]):8.1f} {shown} ({longest[0][2]})")
        low, high = high, 2 * high
    print(f"all: {sum(ms for _, ms, _ in batches) / 1000:.2f} CPU-s")


if __name__ == "__main__":
    main()
