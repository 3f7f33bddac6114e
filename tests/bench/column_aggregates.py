"""Operators that choose records or count distinct values: on columns, beside the same on rows.

    python -m tests.bench.column_aggregates [--records 2000000] [--keys 100000]

CPU-seconds of one operator alone (kernels loaded before), for records (key, time, amount, text) that come as columns:
the row operator makes tuples of them first, as it does in a job. ``rows`` is the row operator with tuples made before.
Both must give the same number of results with the same sum of amounts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.core.records import BATCH_ROWS_MAX, Batch, ColumnBatch, rows_of
from engine.operators.aggregate import FieldAggregate, KeyedAggregateSpec, KeyedReduceSpec
from engine.operators.base import OperatorSpec
from engine.operators.column_aggregate import ColumnAggregateSpec, ColumnReduceSpec
from engine.operators.column_folds import shape_of_schema
from engine.operators.column_session import column_session
from engine.operators.column_window import column_window
from engine.operators.computed_keys import KeyFunction, key_function_of
from engine.operators.field_aggregates import FieldAggregateOf, RowAggregates, WindowRecord, count_distinct
from engine.operators.keys import FieldKey
from engine.operators.window import WindowSpec
from engine.operators.window_contents import AggregateFold, ReduceFold
from engine.operators.window_functions import window_call
from engine.state.short_decimals import of_units
from engine.time.assigners import EventTimeSessionWindows, SlidingEventTimeWindows, TumblingEventTimeWindows
from engine.time.triggers import EventTimeTrigger
from tests.bench.stats import record
from tests.testing.operator_harness import OperatorHarness

SCHEMA = pa.schema([("key", pa.int64()), ("time", pa.int64()), ("amount", pa.int64()), ("text", pa.string())])
KEY = FieldKey(0)
#: Records of one second of event time.
PER_SECOND = 100_000
WATERMARK_EVERY_MS = 1000
LONG = " of 22 digits"


def first(a, b):
    return a


def last(a, b):
    return b


def newest(a, b):
    return b if b[2] > a[2] else a


def windows(fold: Any, assigner: Any = None) -> WindowSpec:
    function = WindowRecord(1) if isinstance(fold, AggregateFold) else None
    return WindowSpec(
        (KEY,),
        assigner or TumblingEventTimeWindows(10_000, 0),
        EventTimeTrigger(),
        window_call(function),
        fold,
    )


def in_columns(rows: WindowSpec) -> tuple[OperatorSpec, OperatorSpec]:
    spec = column_window(rows, shape_of_schema(SCHEMA))
    assert spec is not None
    return spec, rows


def by_function(function) -> tuple[OperatorSpec, OperatorSpec]:
    key = key_function_of(function, shape_of_schema(SCHEMA))
    assert isinstance(key, KeyFunction)
    return ColumnAggregateSpec(key.selector, "sum", 2, key=key), KeyedAggregateSpec(function, "sum", 2)


def in_sessions(rows: WindowSpec) -> tuple[OperatorSpec, OperatorSpec]:
    spec = column_session(rows, shape_of_schema(SCHEMA))
    assert spec is not None
    return spec, rows


def keyed(kind: str) -> tuple[OperatorSpec, OperatorSpec]:
    return ColumnAggregateSpec(KEY, kind, 3), KeyedAggregateSpec(KEY, kind, 3)


def workloads() -> dict[str, tuple[OperatorSpec, OperatorSpec]]:
    """Return (on columns, on rows) by name."""
    distinct = AggregateFold(RowAggregates([count_distinct(2)]))
    gap = EventTimeSessionWindows(500)
    sessions = windows(distinct, gap)
    texts = AggregateFold(RowAggregates([FieldAggregateOf("min", 3), FieldAggregateOf("max", 3)]))
    sums = AggregateFold(RowAggregates([FieldAggregateOf("sum", 3)]))
    edges = windows(AggregateFold(RowAggregates([FieldAggregateOf("first", 2), FieldAggregateOf("last", 2)])), gap)
    chosen, picked = windows(ReduceFold(FieldAggregate("max_by", 2)), gap), windows(ReduceFold(newest), gap)
    return {
        "sum by r[0] // 2": by_function(lambda r: r[0] // 2),
        "sum by (r[3], r[0] % 100)": by_function(lambda r: (r[3], r[0] % 100)),
        "sum by r[3].lower()": by_function(lambda r: r[3].lower()),
        "max_by": (ColumnAggregateSpec(KEY, "max_by", 2), KeyedAggregateSpec(KEY, "max_by", 2)),
        "reduce: first": (ColumnReduceSpec(KEY, first), KeyedReduceSpec(KEY, first)),
        "reduce: last": (ColumnReduceSpec(KEY, last), KeyedReduceSpec(KEY, last)),
        "reduce: greatest": (ColumnReduceSpec(KEY, newest), KeyedReduceSpec(KEY, newest)),
        "10 s windows, max_by": in_columns(windows(ReduceFold(FieldAggregate("max_by", 2)))),
        "10 s windows, reduce: greatest": in_columns(windows(ReduceFold(newest))),
        "10 s windows, count_distinct": in_columns(windows(distinct)),
        "10 s windows each 5 s, count_distinct": in_columns(
            windows(distinct, SlidingEventTimeWindows(10_000, 5000, 0))
        ),
        "10 s windows, min and max of texts": in_columns(windows(texts)),
        "10 s windows each 5 s, min and max of texts": in_columns(
            windows(texts, SlidingEventTimeWindows(10_000, 5000, 0))
        ),
        "10 s windows, max_by a text": in_columns(windows(ReduceFold(FieldAggregate("max_by", 3)))),
        "sessions, gap 0.5 s, min and max of texts": in_sessions(windows(texts, gap)),
        "10 s windows, avg of decimals": in_columns(
            windows(AggregateFold(RowAggregates([FieldAggregateOf("avg", 3)])))
        ),
        "10 s windows, min and max of long decimals": in_columns(windows(texts)),
        **{f"{kind} of decimals{of}": keyed(kind) for kind in ("sum", "max_by") for of in ("", LONG)},
        **{f"10 s windows, sum of decimals{of}": in_columns(windows(sums)) for of in ("", LONG)},
        f"10 s windows each 5 s, sum of decimals{LONG}": in_columns(
            windows(sums, SlidingEventTimeWindows(10_000, 5000, 0))
        ),
        f"10 s windows, avg of decimals{LONG}": in_columns(
            windows(AggregateFold(RowAggregates([FieldAggregateOf("avg", 3)])))
        ),
        f"sessions, gap 0.5 s, sum of decimals{LONG}": in_sessions(windows(sums, gap)),
        "max_by, records with lists": (ColumnAggregateSpec(KEY, "max_by", 2), KeyedAggregateSpec(KEY, "max_by", 2)),
        "10 s windows, last of lists": in_columns(windows(AggregateFold(RowAggregates([FieldAggregateOf("last", 3)])))),
        "10 s windows, max_by, records with lists": in_columns(windows(ReduceFold(FieldAggregate("max_by", 2)))),
        "10 s windows, sum by Rows": in_columns(windows(AggregateFold(RowAggregates([FieldAggregateOf("sum", 2)])))),
        "sessions, gap 0.5 s, sum by Rows": in_sessions(
            windows(AggregateFold(RowAggregates([FieldAggregateOf("sum", 2)])), gap)
        ),
        "sessions, gap 0.5 s, count_distinct": in_sessions(sessions),
        "sessions, gap 0.5 s, first and last": in_sessions(edges),
        "sessions, gap 0.5 s, max_by": in_sessions(chosen),
        "sessions, gap 0.5 s, reduce: greatest": in_sessions(picked),
    }


def with_rows(batch: ColumnBatch) -> ColumnBatch:
    """The key is a Row of a number and a text."""
    columns = batch.columns
    remainders = pa.array(columns.column(0).to_numpy() % 3).cast(pa.string())
    keys = pa.StructArray.from_arrays([columns.column(0), remainders], ["number", "text"])
    return ColumnBatch(columns.set_column(0, "key", keys), batch.timestamps_ms)


def with_lists(batch: ColumnBatch) -> ColumnBatch:
    """Instead of a text there is a list of two."""
    texts = batch.columns.column(3)
    twice = pa.array(np.arange(2 * len(texts)) // 2)
    lists = pa.ListArray.from_arrays(np.arange(0, 2 * len(texts) + 1, 2, np.int32), texts.take(twice))
    return ColumnBatch(batch.columns.set_column(3, "text", lists), batch.timestamps_ms)


def with_decimals(batch: ColumnBatch) -> ColumnBatch:
    """Instead of a text there is an amount of money, of 12 digits."""
    units = batch.columns.column(2).to_numpy() * 1_234_567
    return ColumnBatch(batch.columns.set_column(3, "text", of_units(units, pa.decimal128(38, 2))), batch.timestamps_ms)


def with_long_decimals(batch: ColumnBatch, scale: int = 20) -> ColumnBatch:
    """The same with 30 digits, or fewer."""
    short = with_decimals(batch).columns.column(3)
    longs = short.cast(pa.decimal128(38, scale))
    return ColumnBatch(batch.columns.set_column(3, "text", longs), batch.timestamps_ms)


def of_name(name: str) -> Callable[[ColumnBatch], ColumnBatch]:
    """Return what makes the records of a workload."""
    if "lists" in name:
        return with_lists
    if LONG in name:
        return lambda batch: with_long_decimals(batch, 12)
    if "decimals" in name:
        return with_long_decimals if "long" in name else with_decimals
    return with_rows if "Rows" in name else lambda batch: batch


def batches(num_records: int, num_keys: int) -> list[ColumnBatch]:
    rng = np.random.default_rng(1)
    made = []
    for begin in range(0, num_records, BATCH_ROWS_MAX):
        size = min(BATCH_ROWS_MAX, num_records - begin)
        times = (np.arange(begin, begin + size) * 1000) // PER_SECOND
        amounts = rng.integers(0, 1000, size)
        texts = pa.array([f"city {n}" for n in rng.integers(0, 5000, size).tolist()])
        keys = rng.integers(0, num_keys, size)
        columns = pa.RecordBatch.from_arrays([pa.array(keys), pa.array(times), pa.array(amounts), texts], schema=SCHEMA)
        made.append(ColumnBatch(columns, times))
    return made


def cpu_seconds(spec: OperatorSpec, given: Iterable[Batch], seen: Callable[[list[Batch]], None]) -> float:
    """Return the CPU time of an operator for these batches, watermarks included; ``seen``: called with its results."""
    used = 0
    watermark_ms = 0
    with OperatorHarness(spec) as harness:
        for batch in given:
            assert batch.timestamps_ms is not None
            end_ms = int(batch.timestamps_ms[-1])
            before = time.process_time_ns()
            harness.process_batch(batch)
            if end_ms >= watermark_ms + WATERMARK_EVERY_MS:
                watermark_ms = end_ms
                harness.watermark(watermark_ms - 1)
            used += time.process_time_ns() - before
            seen(harness.output.batches)
            harness.output.batches.clear()
        before = time.process_time_ns()
        harness.watermark(1 << 50)
        harness.end()
        used += time.process_time_ns() - before
        seen(harness.output.batches)
    return used / 1e9


class Totals:
    """How many results there were, and the sum of their amounts, or of the last field where they have four."""

    def __init__(self) -> None:
        self.count = self.total = 0

    def __call__(self, given: list[Batch]) -> None:
        for batch in given:
            self.count += len(batch)
            if isinstance(batch, ColumnBatch):
                self.total += int(pc.sum(batch.columns.column(2)).as_py() or 0)
                self.total += _last_field(batch.columns.column(3))
            else:
                for row in rows_of(batch).rows:
                    self.total += row[2] + (row[3] if isinstance(row[3], int) else 0)


def _last_field(column: pa.Array) -> int:
    return int(pc.sum(column).as_py() or 0) if pa.types.is_integer(column.type) else 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=2_000_000)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", help="workloads with this in their names")
    options = parser.parse_args()
    given = batches(options.records, options.keys)
    warm = batches(2 * BATCH_ROWS_MAX, 1000)
    print(f"{options.records:,} records, {options.keys:,} keys; CPU-seconds a million records, best of {options.runs}")
    print(f"{'':38} {'columns':>8} {'on rows':>8} {'rows':>8} {'ratio':>6}")
    for name, (columnar, rows) in workloads().items():
        if options.only not in name:
            continue
        made_of = of_name(name)
        cpu_seconds(columnar, map(made_of, warm), lambda batches: None)
        found = []
        totals = []
        of_columns = list(map(made_of, given))
        of: Sequence[Batch]
        for spec, of in ((columnar, of_columns), (rows, of_columns), (rows, [one.to_rows() for one in of_columns])):
            times = []
            for _ in range(options.runs):
                total = Totals()
                times.append(cpu_seconds(spec, of, total))
            found.append(min(times) / options.records * 1e6)
            totals.append((total.count, total.total))
        assert totals[0] == totals[1] == totals[2], totals
        print(f"{name:38} {found[0]:8.3f} {found[1]:8.3f} {found[2]:8.3f} {found[1] / found[0]:6.1f}", flush=True)
        ways = dict(zip(("columns_s", "on_rows_s", "rows_s"), found, strict=True))
        record({"name": name, **ways, "ratio": found[1] / found[0]})


if __name__ == "__main__":
    main()
