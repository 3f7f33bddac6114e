"""Regular joins, top-N, first and last rows, running aggregates: on columns, beside the same on rows.

    python -m tests.bench.changelogs [--records 1000000] [--keys 100000]

CPU-seconds of one operator alone (kernels loaded before), for records (key, time, amount, text) that come as columns:
the row operator makes tuples of them first, as it does in a job. ``rows`` is the row operator with tuples made before.
Joins have two records of each key on the left side at the most, so that the number of pairs stays near that of records.
All must give the same number of results. The garbage collector is set as in a slot; what was made before is not its
concern.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from engine.core.records import BATCH_ROWS_MAX, Batch, ColumnBatch, RowKind
from engine.operators.base import OperatorSpec
from engine.operators.column_deduplicate import column_deduplicate
from engine.operators.column_folds import shape_of_schema
from engine.operators.column_group_aggregate import column_group_aggregate
from engine.operators.column_last_row import ColumnLastRowSpec
from engine.operators.column_regular_join import column_regular_join
from engine.operators.column_top_n import column_top_n
from engine.operators.deduplicate import FIRST, LAST, DeduplicateSpec
from engine.operators.field_aggregates import FieldAggregateOf, avg, count, sum_
from engine.operators.group_aggregate import GroupAggregateSpec
from engine.operators.keys import FieldKey
from engine.operators.regular_join import Beside, RegularJoinSpec
from engine.operators.top_n import TopNSpec
from engine.runtime.taskmanager.slot_process import _GC_THRESHOLDS
from tests.bench.column_aggregates import SCHEMA, batches
from tests.bench.stats import record
from tests.testing.operator_harness import OperatorHarness

KEY = FieldKey(0)
HOUR_MS = 3_600_000
#: Batches with the number of their input.
Given = list[tuple[int, Batch]]


SHAPE = shape_of_schema(SCHEMA)


def greater(left: Any, right: Any) -> Any:
    return left[2] > right[2]


def asked(left: Any, right: Any) -> Any:
    """Is not compiled for."""
    return [left[2]] > [right[2]]


def joined(how: str, condition: Any = None, ttl_ms: int | None = None) -> tuple[OperatorSpec | None, OperatorSpec]:
    names = tuple(f"f{at}" for at in range(2 * len(SCHEMA)))
    rows = RegularJoinSpec((KEY, KEY), how, Beside((len(SCHEMA), len(SCHEMA)), names), condition, ttl_ms)
    return column_regular_join(rows, (SHAPE, SHAPE)), rows


def top(n: int, with_rank: bool, field: int = 2) -> tuple[OperatorSpec | None, OperatorSpec]:
    rows = TopNSpec(KEY, n, ((field, False),), with_rank)
    return column_top_n(rows), rows


def top_of_changelog(n: int, with_rank: bool) -> tuple[OperatorSpec | None, OperatorSpec]:
    rows = TopNSpec(KEY, n, ((2, False),), with_rank, retracts=True)
    return column_top_n(rows), rows


def groups(*aggregates: FieldAggregateOf, in_place: bool = False) -> tuple[OperatorSpec | None, OperatorSpec]:
    rows = GroupAggregateSpec(KEY, aggregates, in_place)
    return column_group_aggregate(rows), rows


def workloads() -> dict[str, tuple[OperatorSpec | None, OperatorSpec]]:
    """Return (on columns, on rows) by name."""
    first, last = DeduplicateSpec(KEY, FIRST), DeduplicateSpec(KEY, LAST)
    return {
        "regular join, inner": joined("inner"),
        "regular join, condition": joined("inner", greater),
        "regular join, left": joined("left"),
        "join, called": joined("inner", asked),
        "join, left, condition": joined("left", greater),
        "join, left, called": joined("left", asked),
        "join, ttl": joined("inner", ttl_ms=HOUR_MS),
        "join, left, ttl": joined("left", ttl_ms=HOUR_MS),
        "join of a changelog": joined("inner"),
        "join of a ch., left": joined("left"),
        "join of a ch., right": joined("right"),
        "top 1": top(1, False),
        "top 3": top(3, False),
        "top 3 with ranks": top(3, True),
        "top 3 by text": top(3, False, 3),
        "first row": (column_deduplicate(first), first),
        "last row": (column_deduplicate(last), last),
        "last row of a ch.": (ColumnLastRowSpec(last, retracts=True), last),
        "top 3 of a ch.": top_of_changelog(3, False),
        "top 3, ranks of a ch.": top_of_changelog(3, True),
        "sum of a ch.": groups(sum_(2), in_place=True),
        "groups of a ch.": groups(count(), sum_(2), avg(2)),
    }


def one_input(num_records: int, num_keys: int) -> Given:
    return [(0, batch) for batch in batches(num_records, num_keys)]


def two_inputs(num_records: int, num_keys: int) -> Given:
    """Return batches of both sides in turn: keys of the left one each come once or twice, those of the right at random
    among them."""
    rng = np.random.default_rng(2)
    given: Given = []
    for number, batch in enumerate(batches(num_records, num_keys)):
        size = batch.columns.num_rows
        begin = number // 2 * BATCH_ROWS_MAX
        own = np.arange(begin, begin + size) % (num_records // 4 or 1)
        keys = own if number % 2 == 0 else rng.integers(0, num_records // 4 or 1, size)
        columns = batch.columns.set_column(0, SCHEMA.field(0), pa.array(keys))
        given.append((number % 2, ColumnBatch(columns, batch.timestamps_ms)))
    return given


def with_updates(given: Given) -> Given:
    """Return the batches, of which every other one of the left side updates half of what the one before it said: each
    record is taken back, and comes with another amount."""
    changed: Given = []
    before: pa.RecordBatch | None = None
    for side, batch in given:
        assert isinstance(batch, ColumnBatch)
        columns = batch.columns
        if side == 0 and before is not None:
            half = columns.num_rows // 2
            columns = before.take(pa.array(np.repeat(np.arange(half), 2)))
            amounts = columns.column(2).to_numpy() + np.tile([0, 1], half)
            columns = columns.set_column(2, SCHEMA.field(2), pa.array(amounts).cast(SCHEMA.types[2]))
            kinds = np.tile([RowKind.UPDATE_BEFORE.value, RowKind.UPDATE_AFTER.value], half).astype(np.int8)
            stamps = None if batch.timestamps_ms is None else batch.timestamps_ms[: 2 * half]
            changed.append((side, ColumnBatch(columns, stamps, named=True, kinds=kinds)))
            before = None
            continue
        if side == 0:
            before = columns
        changed.append((side, ColumnBatch(columns, batch.timestamps_ms, named=True)))
    return changed


def run(spec: OperatorSpec, given: Given) -> tuple[float, int]:
    """Return the CPU time of an operator for these batches, and the number of its results."""
    used = results = 0
    with OperatorHarness(spec) as harness:
        for index, batch in given:
            before = time.process_time_ns()
            harness.process_batch(batch, input_index=index)
            used += time.process_time_ns() - before
            results += sum(map(len, harness.output.batches))
            harness.output.batches.clear()
    return used / 1e9, results


def in_rows(given: Given) -> Given:
    return [(index, batch.to_rows()) for index, batch in given if isinstance(batch, ColumnBatch)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", help="workloads with this in their names")
    options = parser.parse_args(arguments)
    gc.set_threshold(*_GC_THRESHOLDS)
    print(f"{options.records:,} records, {options.keys:,} keys; CPU-seconds a million records, best of {options.runs}")
    print(f"{'':22} {'results':>10} {'columns':>8} {'on rows':>8} {'rows':>8} {'ratio':>6}")
    for name, (columnar, rows) in workloads().items():
        if options.only not in name:
            continue
        assert columnar is not None
        make = two_inputs if "join" in name else one_input
        given = make(options.records, options.keys)
        if "of a ch" in name:
            given = with_updates(given)
        plain = in_rows(given)
        run(columnar, make(4 * BATCH_ROWS_MAX, 1000))
        gc.collect()
        gc.freeze()
        found, counts = [], set()
        for spec, of in ((columnar, given), (rows, given), (rows, plain)):
            times = []
            for _ in range(options.runs):
                seconds, results = run(spec, of)
                times.append(seconds)
                counts.add(results)
            found.append(min(times) / options.records * 1e6)
        assert len(counts) == 1, counts
        columns, on_rows, in_tuples = found
        ratio = on_rows / columns
        print(f"{name:22} {counts.pop():>10,} {columns:8.3f} {on_rows:8.3f} {in_tuples:8.3f} {ratio:6.1f}", flush=True)
        record({"name": name, "columns_s": columns, "on_rows_s": on_rows, "rows_s": in_tuples, "ratio": ratio})
        gc.unfreeze()


if __name__ == "__main__":
    main()
