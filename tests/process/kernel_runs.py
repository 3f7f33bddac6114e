"""Runs columnar operators, each kind in a new process: ``python -m tests.process.kernel_runs``.

The modules that their specs name are loaded first, as a zygote does; from then on no kernel may be compiled, or loaded
from the cache, whichever way batches come. Prints those that were, and of each kind how many had been loaded, and how
many of these numba's cache did not have.
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from engine.core.records import ColumnBatch, RowBatch
from engine.core.type_info import Types
from engine.datastream.aggregates import avg, count, count_distinct, first, last, max_, min_, sum_
from engine.operators.aggregate import FieldAggregate
from engine.operators.base import OperatorSpec
from engine.operators.column_aggregate import ColumnAggregateSpec, ColumnReduceSpec
from engine.operators.column_deduplicate import column_deduplicate
from engine.operators.column_folds import shape_of_schema
from engine.operators.column_group_aggregate import column_group_aggregate
from engine.operators.column_interval_join import column_interval_join
from engine.operators.column_last_row import ColumnLastRowSpec
from engine.operators.column_regular_join import column_regular_join
from engine.operators.column_session import column_session
from engine.operators.column_top_n import column_top_n
from engine.operators.column_window import column_window
from engine.operators.column_window_join import column_window_join
from engine.operators.deduplicate import FIRST, LAST, DeduplicateSpec
from engine.operators.field_aggregates import RowAggregates, WindowRecord
from engine.operators.group_aggregate import GroupAggregateSpec
from engine.operators.interval_join import IntervalJoinSpec
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.regular_join import Beside, RegularJoinSpec
from engine.operators.row_columns import RowColumns
from engine.operators.text import CHUNK_COLUMN, ColumnarSumSpec, TokenizeSpec, WordCountSpec, WordTokenizer
from engine.operators.top_n import TopNSpec
from engine.operators.warm_up.cached_code import TAKEN
from engine.operators.window import WindowSpec
from engine.operators.window_contents import AggregateFold, ReduceFold
from engine.operators.window_functions import JoinedFunction, window_call
from engine.protocol.stream import Records
from engine.runtime.exchange.column_hash import subtask_of_rows
from engine.runtime.exchange.wire import Decoder, Encoder
from engine.time.assigners import EventTimeSessionWindows, SlidingEventTimeWindows, TumblingEventTimeWindows
from engine.time.triggers import EventTimeTrigger
from engine.time.watermarks import Time
from tests.testing.operator_harness import OperatorHarness

SCHEMA = pa.schema([("k", pa.int64()), ("v", pa.int64()), ("x", pa.float64()), ("name", pa.string())])
NARROW = SCHEMA.set(1, pa.field("v", pa.int32())).set(2, pa.field("x", pa.float32()))
KEYS = (FieldKey(0), FieldKey(3), ComposedKey((0, 3)))
SPAN_MS = 100
#: More keys than a new table has room for.
NUM_ROWS = 1500


def keyed() -> Iterator[OperatorSpec]:
    for kind in ("sum", "min", "max", "max_by"):
        for field in (1, 2):
            yield ColumnAggregateSpec(FieldKey(0), kind, field)
    for key in KEYS[1:]:
        yield ColumnAggregateSpec(key, "min_by", 1)
    for function in (lambda a, b: a, lambda a, b: b, lambda a, b: b if b[2] > a[2] else a):
        yield ColumnReduceSpec(FieldKey(0), function)
    yield ColumnReduceSpec(FieldKey(0), lambda a, b: (a[0], a[1] + b[1] * 2, max(a[2], b[2]), b[3]))


def _windows(assigner: Any, fold: Any, key: Any) -> WindowSpec:
    num_keys = len(key.fields) if isinstance(key, ComposedKey) else 1
    call = window_call(WindowRecord(num_keys) if isinstance(fold, AggregateFold) else None)
    return WindowSpec((key,), assigner, EventTimeTrigger(), call, fold)


def windows() -> Iterator[OperatorSpec]:
    plain = [count(), count(3), sum_(1), min_(1), max_(1), avg(1), sum_(2), min_(2), max_(2), avg(2)]
    distinct = [count_distinct(field) for field in range(4)]
    tumbling, sliding = TumblingEventTimeWindows(SPAN_MS, 0), SlidingEventTimeWindows(2 * SPAN_MS, SPAN_MS, 0)
    for key in KEYS:
        yield column_window(_windows(sliding, AggregateFold(RowAggregates([*plain, *distinct])), key), None)
        edges = [first(1), last(1), first(3), last(2)]
        for assigner in (tumbling, sliding):
            yield column_window(_windows(assigner, AggregateFold(RowAggregates(edges)), key), None)
    shape = shape_of_schema(SCHEMA)
    for field in (1, 2):
        for kind in ("max_by", "min", "max", "sum"):
            yield column_window(_windows(tumbling, ReduceFold(FieldAggregate(kind, field)), FieldKey(0)), shape)
    yield column_window(_windows(tumbling, ReduceFold(lambda a, b: b if b[1] > a[1] else a), FieldKey(0)), shape)


def sessions() -> Iterator[OperatorSpec]:
    gap = EventTimeSessionWindows.with_gap(Time.milliseconds(5))
    aggregates = [count(), count(3), sum_(1), min_(1), max_(1), avg(1), sum_(2), min_(2), max_(2), avg(2)]
    aggregates += [count_distinct(1), count_distinct(3)]
    for key in KEYS:
        yield column_session(_windows(gap, AggregateFold(RowAggregates(aggregates)), key))


def joins() -> Iterator[OperatorSpec]:
    shapes = shape_of_schema(SCHEMA), shape_of_schema(SCHEMA)
    for key in KEYS:
        for function in (lambda a, b: a + b, lambda a, b: [a, b]):
            yield column_interval_join(IntervalJoinSpec((key, key), -2, 2, function, (None, None)), shapes)
            joined = JoinedFunction(function, False)
            for assigner in (TumblingEventTimeWindows(SPAN_MS, 0), SlidingEventTimeWindows(2 * SPAN_MS, SPAN_MS, 0)):
                spec = WindowSpec((key, key), assigner, EventTimeTrigger(), joined)
                yield column_window_join(spec, shapes)
        for how in ("inner", "full"):
            yield column_regular_join(RegularJoinSpec((key, key), how, Beside((4, 4))), shapes)
            limited = RegularJoinSpec((key, key), how, Beside((4, 4)), lambda a, b: a[1] > b[1], ttl_ms=1000)
            yield column_regular_join(limited, shapes)


def tops() -> Iterator[OperatorSpec]:
    for key in KEYS:
        for order in (((1, False),), ((2, True), (1, True))):
            for retracts in (False, True):
                yield column_top_n(TopNSpec(key, 2, order, with_rank=len(order) > 1, retracts=retracts))
        yield column_deduplicate(DeduplicateSpec(key, FIRST))
        yield column_deduplicate(DeduplicateSpec(key, LAST))
        yield ColumnLastRowSpec(DeduplicateSpec(key, LAST), retracts=True)


def groups() -> Iterator[OperatorSpec]:
    for key in KEYS:
        aggregates = (count(), count(3), sum_(1), avg(1), sum_(2), avg(2))
        yield column_group_aggregate(GroupAggregateSpec(key, aggregates))
        yield column_group_aggregate(GroupAggregateSpec(key, (sum_(1),), in_place=True))


KINDS = {
    "keyed": keyed,
    "windows": windows,
    "sessions": sessions,
    "joins": joins,
    "tops": tops,
    "groups": groups,
    "words": (),
}


def batches(schema: pa.Schema) -> Iterator[ColumnBatch]:
    """Yield batches as a source makes them, and as they come over the exchange in small and in large frames."""
    rng = np.random.default_rng(1)
    encoder, decoder = Encoder(), Decoder()
    for start, num_rows in enumerate((NUM_ROWS, 20, NUM_ROWS, 20)):
        keys = rng.integers(0, NUM_ROWS, num_rows)
        values = [pa.array(keys), pa.array(keys % 7), pa.array(keys / 4), pa.array(keys).cast(pa.string())]
        arrays = [own.cast(kind) for own, kind in zip(values, schema.types, strict=True)]
        stamps = SPAN_MS * start + np.sort(rng.integers(0, SPAN_MS, num_rows))
        batch = ColumnBatch(pa.RecordBatch.from_arrays(arrays, schema=schema), stamps)
        for columns, is_tuple in ((arrays[:1], False), (arrays[3:], False), ([arrays[0], arrays[3]], True)):
            subtask_of_rows(columns, 2, 128, is_tuple=is_tuple)
        if start < 2:
            yield batch
            continue
        for form in (bytes, bytearray):
            for frame in encoder.encode(Records(batch)):
                element = decoder.decode(frame.kind, form(b"".join(frame.buffers)))
            yield element.batch


def run(spec: OperatorSpec, schema: pa.Schema) -> None:
    """Some batches, a checkpoint, and the rest in an operator that is restored from it."""
    with OperatorHarness(spec) as harness:
        for number, batch in enumerate(batches(schema)):
            harness.process_batch(batch, input_index=number % spec.num_inputs)
        harness.watermark(2 * SPAN_MS)
        taken = harness.snapshot(1)
        # Functions are compiled for 64 bits only; and one is called for each pair of a join.
        if schema is SCHEMA and spec.num_inputs == 1:
            assert all(isinstance(batch, ColumnBatch) for batch in harness.output.batches), spec
    with OperatorHarness(spec, restored=[taken]) as harness:
        for number, batch in enumerate(batches(schema)):
            harness.process_batch(batch, input_index=number % spec.num_inputs)
        harness.snapshot(2, since=taken)
        harness.watermark(1 << 40)
        harness.end()


def run_few() -> None:
    """Take up a few typed rows without columns of them."""
    rows = [(number, number % 7, number / 4, f"\N{SNOWMAN}{number}") for number in range(20)]
    type_info = Types.TUPLE([Types.LONG(), Types.LONG(), Types.DOUBLE(), Types.STRING()])
    for spec in keyed():
        for key in (FieldKey(0), FieldKey(3)):
            if not isinstance(spec, ColumnAggregateSpec):
                continue
            with OperatorHarness(replace(spec, key_selector=key, rows_behind=True)) as harness:
                typed = RowColumns(type_info)
                for _ in range(3):
                    harness.head.process_typed(0, RowBatch(rows), typed)
                assert [type(batch) for batch in harness.output.batches] == [ColumnBatch, RowBatch, RowBatch]


def kernels() -> set[str]:
    from numba.core.registry import CPUDispatcher

    found = [each for each in gc.get_objects() if isinstance(each, CPUDispatcher)]
    own = [each for each in found if each.py_func.__module__.startswith("engine.")]
    return {f"{each.py_func.__name__}{signature}" for each in own for signature in each.signatures}


def run_words() -> None:
    """Count lines that come as rows, as columns and as chunks of a file, and add up counts that come in each way."""
    lines = [f"one two\xa0three {number} a-word-of-many-bytes" for number in range(NUM_ROWS)]
    ways: list[Any] = [RowBatch(lines)]
    for name, texts in (("f0", lines), (CHUNK_COLUMN, ["\n".join(lines)])):
        ways.append(ColumnBatch(pa.RecordBatch.from_pydict({name: pa.array(texts)}), scalar=True))
    counts: list[Any] = [RowBatch([("a", 1), ("b", 2)])]
    for spec in (TokenizeSpec(WordTokenizer()), WordCountSpec(WordTokenizer())):
        with OperatorHarness(spec) as harness:
            for way in ways:
                harness.process_batch(way)
            harness.end()
            counts += harness.output.batches
    encoder, decoder = Encoder(), Decoder()
    for form in (bytes, bytearray):
        for frame in encoder.encode(Records(counts[1])):
            element = decoder.decode(frame.kind, form(b"".join(frame.buffers)))
        counts.append(element.batch)
    with OperatorHarness(ColumnarSumSpec()) as harness:
        for batch in counts:
            harness.process_batch(batch)
        harness.end()


def check(kind: str) -> None:
    specs = list(KINDS[kind]()) if KINDS[kind] else [TokenizeSpec(WordTokenizer())]
    assert None not in specs
    for name in {module for spec in specs for module in spec.preload}:
        importlib.import_module(name).warm_up()
    loaded = kernels()
    if kind == "words":
        run_words()
    else:
        for spec in specs:
            run(spec, SCHEMA)
    if kind not in ("joins", "words"):
        run(specs[0], NARROW)
    if kind == "keyed":
        run_few()
    for kernel in sorted(kernels() - loaded):
        print(f"{kind}: not loaded ahead: {kernel}", flush=True)
    print(f"{kind}: {len(loaded)} loaded, {len(TAKEN.compiled)} compiled", flush=True)


def main() -> None:
    import numba  # noqa: F401 - once for all

    for kind in KINDS:
        child = os.fork()
        if not child:
            check(kind)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
