"""Memory of columnar keyed state, bytes a key: ``python -m tests.bench.state_memory [--keys 1000000 10000000 …]``.

A keyed count alone in a process of its own for each size: key → int64, as ``key_by(0).sum(1)`` of ones keeps it, with
the marks of increments. Resident memory of the process (pages of 2 MB count when one byte of them is used) above that
of the same operator with its first keys. ``worst`` is the most that a key took while there were at least half as many.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from engine.core.records import BATCH_ROWS_MAX, ColumnBatch
from engine.operators.column_aggregate import ColumnAggregateSpec
from engine.operators.keys import FieldKey
from tests.bench.stats import record
from tests.testing.operator_harness import OperatorHarness

PAGE = 4096
#: As Knuth's multiplicative hash: all keys differ, and none comes near the one before.
STRIDE = 0x9E3779B97F4A7C15


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def print_each(ways: Iterable[str], module: str) -> None:
    """Measure each way in a process of its own, with this program's arguments: ``module --one --only way``."""
    for way in ways:
        command = [sys.executable, "-m", module, "--one", "--only", way, *sys.argv[1:]]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print(f"{way}: " + "; ".join(f"{name} {value:.2f}" for name, value in found.items()), flush=True)
        record({"name": way, **found})


def batch_of(start: int, num_rows: int, kind: str) -> ColumnBatch:
    keys = (np.arange(start, start + num_rows, dtype=np.uint64) * np.uint64(STRIDE)).view(np.int64)
    column = pa.array(keys)
    if kind == "text":
        column = pa.array(np.char.mod("%016x", keys.view(np.uint64)))
    return ColumnBatch(pa.record_batch([column, pa.array(np.ones(num_rows, np.int64))], names=["key", "count"]))


def measure(num_keys: int, kind: str) -> dict[str, float]:
    """Return bytes a key at the end and at the worst moment, the peak in MB, and the rate of new keys."""
    spec = ColumnAggregateSpec(FieldKey(0), "sum", 1, emit_final=True)
    with OperatorHarness(spec, memory_bytes=1 << 40) as harness:  # nothing goes to files
        harness.process_batch(batch_of(0, BATCH_ROWS_MAX, kind))
        harness.snapshot(1)
        base = resident()
        begin_s = time.process_time()
        worst = peak = 0.0
        for start in range(BATCH_ROWS_MAX, num_keys, BATCH_ROWS_MAX):
            batch = batch_of(start, min(BATCH_ROWS_MAX, num_keys - start), kind)
            harness.process_batch(batch)
            if start % (8 * BATCH_ROWS_MAX) == 0:
                held = resident() - base
                peak = max(peak, held)
                if 2 * start >= num_keys:
                    worst = max(worst, held / start)
        cpu_s = time.process_time() - begin_s
        end = (resident() - base) / num_keys
        context = harness.contexts[0]
        state = next(part for part in context.state.keyed.values() if part.num_entries())
        assert state.num_entries() == num_keys
        own = state.nbytes / num_keys  # type: ignore[attr-defined]
        return {
            "end": end,
            "worst": max(worst, end),
            "reserved": own,
            "peak_mb": peak / 1e6,
            "m_keys_per_s": num_keys / cpu_s / 1e6,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--kind", choices=["int", "text"], default="int", help="text: 16 bytes a key")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.keys[0], options.kind)))
        return
    width = 8 if options.kind == "int" else 16
    print("        keys  bytes a key  without key    worst  address space  M new keys/CPU-s")
    for num_keys in options.keys:
        command = [sys.executable, "-m", __spec__.name, "--one", "--kind", options.kind, "--keys", str(num_keys)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"{num_keys:12,} {found['end']:12.1f} {found['end'] - width:12.1f} {found['worst']:8.1f}"
            f" {found['reserved']:14.1f} {found['m_keys_per_s']:17.1f}",
            flush=True,
        )
        record({"keys": num_keys, **found})


if __name__ == "__main__":
    main()
