"""What a batch costs, however few records it has: keyed operators on columns, beside the same on rows.

    python -m tests.bench small_batches [--only NAME …] [--seconds 0.4]

Microseconds of CPU time a batch, of 1, 10, 100 and 1,000 records (key, time, amount, text) that come as columns to one
operator alone, of 1,000 keys, all seen before; the row operator makes tuples of them first, as it does in a job. The
crossover is the smallest of these sizes at which columns are not slower. The batches are made before, in a loop; each
figure is the best of three. "exchange": cut by the hash of the key for two channels, written and read, as columns and
as rows. "typed rows": into an aggregation on columns, with results as rows, and into one on rows.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from engine.core.records import Batch, ColumnBatch, RowBatch
from engine.core.type_info import Types
from engine.graph.transformation import Partitioning, ShipStrategy
from engine.operators.aggregate import FieldAggregate, KeyedAggregateSpec, KeyedReduceSpec
from engine.operators.base import OperatorSpec
from engine.operators.column_aggregate import ColumnAggregateSpec, ColumnReduceSpec
from engine.operators.column_deduplicate import column_deduplicate
from engine.operators.column_session import column_session
from engine.operators.column_top_n import column_top_n
from engine.operators.column_window import column_window
from engine.operators.deduplicate import FIRST, LAST, DeduplicateSpec
from engine.operators.field_aggregates import RowAggregates, WindowRecord, count, sum_
from engine.operators.keys import FieldKey
from engine.operators.row_columns import RowColumns
from engine.operators.top_n import TopNSpec
from engine.operators.window import WindowSpec
from engine.operators.window_contents import AggregateFold, ReduceFold
from engine.operators.window_functions import PassThrough
from engine.protocol.stream import Records
from engine.runtime.exchange.partitioners import make_channel_selector
from engine.runtime.exchange.wire import Decoder, Encoder
from engine.runtime.taskmanager.slot_process import _GC_THRESHOLDS
from engine.time.assigners import EventTimeSessionWindows, TumblingEventTimeWindows
from engine.time.triggers import EventTimeTrigger
from tests.bench.column_aggregates import batches
from tests.bench.stats import record
from tests.testing.operator_harness import CollectedOutput, OperatorHarness

KEY = FieldKey(0)
SIZES = (1, 10, 100, 1_000)
NUM_KEYS = 1_000
#: Batches that are made before, to be given again and again.
_NUM_BATCHES = 64


def windows(assigner: TumblingEventTimeWindows | EventTimeSessionWindows, fold: ReduceFold | AggregateFold) -> tuple:
    function = WindowRecord(1) if isinstance(fold, AggregateFold) else PassThrough()
    rows = WindowSpec((KEY,), assigner, EventTimeTrigger(), function, fold=fold)
    return column_window(rows) or column_session(rows), rows


def workloads() -> dict[str, tuple[OperatorSpec | None, OperatorSpec]]:
    """Return (on columns, on rows) by name."""
    first, last = DeduplicateSpec(KEY, FIRST), DeduplicateSpec(KEY, LAST)
    top = TopNSpec(KEY, 3, ((2, False),), False)
    aggregates = AggregateFold(RowAggregates((count(), sum_(2))))
    return {
        "sum": (ColumnAggregateSpec(KEY, "sum", 2), KeyedAggregateSpec(KEY, "sum", 2)),
        "max_by": (ColumnAggregateSpec(KEY, "max_by", 2), KeyedAggregateSpec(KEY, "max_by", 2)),
        "reduce": (ColumnReduceSpec(KEY, added), KeyedReduceSpec(KEY, added)),
        "first row": (column_deduplicate(first), first),
        "last row": (column_deduplicate(last), last),
        "top 3": (column_top_n(top), top),
        "window, sum": windows(TumblingEventTimeWindows(60_000, 0), ReduceFold(FieldAggregate("sum", 2))),
        "window, count and sum": windows(TumblingEventTimeWindows(60_000, 0), aggregates),
        "session, count and sum": windows(EventTimeSessionWindows(60_000), aggregates),
    }


def exchange(batches: Sequence[Batch]) -> Callable[[Batch], None]:
    """Return what takes a batch through a hash exchange: cut, in buffers, written and read."""
    selector = make_channel_selector(Partitioning(ShipStrategy.HASH, KEY), 2, operator_name="bench")
    ends = [(Encoder(), Decoder()) for _ in range(2)]

    def through(batch: Batch) -> None:
        for channel, part in selector.split(batch):
            encoder, decoder = ends[channel]
            for frame in encoder.encode(Records(part)):
                decoder.decode(frame.kind, b"".join(frame.buffers))

    for batch in batches:
        through(batch)
    return through


def micros_of(call: Callable[[Any], None], batches: Sequence[Batch], seconds: float) -> float:
    found = []
    for _ in range(3):
        count = 0
        begin_s = time.process_time()
        while time.process_time() - begin_s < seconds:
            for batch in batches:
                call(batch)
            count += len(batches)
        found.append((time.process_time() - begin_s) / count * 1e6)
    return min(found)


def exchange_pair(size: int, seconds: float) -> tuple[float, float]:
    columns = given(size)
    rows = [batch.to_rows() for batch in columns]
    return micros_of(exchange(columns), columns, seconds), micros_of(exchange(rows), rows, seconds)


def typed_pair(kind: str, size: int, seconds: float) -> tuple[float, float]:
    """As far as rows are few: more of them become columns."""
    typed = RowColumns(Types.TUPLE([Types.LONG(), Types.LONG(), Types.LONG()]))
    every, *some = (RowBatch([(row % NUM_KEYS, row, row) for row in range(num)]) for num in (NUM_KEYS, *[size] * 8))
    found: list[float] = []
    for spec in (ColumnAggregateSpec(KEY, kind, 1, rows_behind=True), KeyedAggregateSpec(KEY, kind, 1)):
        with OperatorHarness(spec) as harness:
            head, output = harness.head, harness.output
            take = partial(head.process_typed, 0, columns=typed) if not found else partial(head.process_batch, 0)

            def call(batch: Batch, take: Any = take, output: CollectedOutput = output) -> None:
                take(batch)
                output.batches.clear()
                output.story.clear()

            call(every)
            found.append(micros_of(call, some, seconds))
    return found[0], found[1]


def added(a: tuple, b: tuple) -> tuple:
    return a[0], b[1], a[2] + b[2], a[3]


def given(size: int) -> list[ColumnBatch]:
    """Return batches of that size."""
    made = []
    for batch in batches(_NUM_BATCHES * size, NUM_KEYS):
        at = 0
        while at < len(batch):
            part = batch.slice(at, min(at + size, len(batch)))
            made.append(ColumnBatch(part.columns, np.full(len(part), 1_000, np.int64)))
            at += size
    return made


def micros_a_batch(spec: OperatorSpec, size: int, seconds: float) -> float:
    some, every = given(size), given(16_384 // _NUM_BATCHES)
    with OperatorHarness(spec) as harness:
        for batch in every:
            harness.process_batch(batch)
        found = []
        for _ in range(3):
            count = 0
            begin_s = time.process_time()
            while time.process_time() - begin_s < seconds:
                for batch in some:
                    harness.process_batch(batch)
                count += len(some)
                harness.output.batches.clear()
                harness.output.story.clear()
            found.append((time.process_time() - begin_s) / count * 1e6)
    return min(found)


def show(name: str, pairs: Sequence[tuple[float, float]]) -> None:
    crossover = next((size for size, (ours, theirs) in zip(SIZES, pairs, strict=True) if ours <= theirs), None)
    cells = "".join(f"{ours:>8.0f} ({theirs:>5.0f})" for ours, theirs in pairs)
    print(f"{name:26}{cells}   {crossover or '-'}", flush=True)
    record(
        {
            "workload": f"small batches, {name}",
            **{
                f"{side} {size}": pair[at]
                for size, pair in zip(SIZES, pairs, strict=True)
                for at, side in enumerate(("columns", "rows"))
            },
        }
    )


def main(arguments: Sequence[str] | None = None) -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=0.4)
    options = parser.parse_args(arguments)
    gc.set_threshold(*_GC_THRESHOLDS)
    print("µs a batch, columns (rows)" + "".join(f"{size:>16,}" for size in SIZES) + "   crossover")
    for name, (columns, rows) in workloads().items():
        if options.only and name not in options.only:
            continue
        assert columns is not None, name
        pairs = [
            (micros_a_batch(columns, size, options.seconds), micros_a_batch(rows, size, options.seconds))
            for size in SIZES
        ]
        show(name, pairs)
    for name, pair_of in (
        ("exchange", exchange_pair),
        ("typed rows, sum", partial(typed_pair, "sum")),
        ("typed rows, max_by", partial(typed_pair, "max_by")),
    ):
        if not options.only or name in options.only:
            show(name, [pair_of(size, options.seconds) for size in SIZES])


if __name__ == "__main__":
    main()
