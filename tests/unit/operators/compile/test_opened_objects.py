"""Function objects with an ``open`` that asks for no state: what they are from then on is compiled."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from engine.common import Types
from engine.core.records import ColumnBatch, rows_of
from engine.operators.aggregate import KeyedReduceSpec
from engine.operators.column_aggregate import ColumnReduceSpec
from engine.operators.column_interval_join import column_interval_join
from engine.operators.column_window import column_window
from engine.operators.compile.expressions import Kind
from engine.operators.compile.opened import as_opened, sets_in_open
from engine.operators.compile.shapes import Shape
from engine.operators.functions import AggregateFunction, FilterFunction, JoinFunction, MapFunction, ReduceFunction
from engine.operators.interval_join import IntervalJoinSpec
from engine.operators.keys import FieldKey
from engine.operators.row_output import RowMap
from engine.operators.stateless import FilterSpec, MapSpec
from engine.operators.window import WindowSpec
from engine.operators.window_contents import AggregateFold
from engine.operators.window_functions import window_call
from engine.time.assigners import TumblingEventTimeWindows
from engine.time.triggers import EventTimeTrigger
from tests.testing.operator_harness import OperatorHarness

SHAPE = Shape((Kind.INT, Kind.INT))
FIELD = FieldKey(0), FieldKey(0)


class Scaled(MapFunction):
    def __init__(self):
        self.factor = None

    def open(self, runtime_context):
        self.factor = 3
        self.subtask = runtime_context.get_index_of_this_subtask()

    def map(self, value):
        return value[0], value[1] * self.factor + self.subtask


class Named(MapFunction):
    def open(self, runtime_context):
        self.names = {number: f"n{number}" for number in range(9)}

    def map(self, value):
        return self.names[value[0]], self.names.get(value[1], "?")


class Kept(FilterFunction):
    def open(self, runtime_context):
        self.limit: int = 2

    def filter(self, value):
        return value[1] > self.limit


class Counting(MapFunction):
    def open(self, runtime_context):
        self.counter = runtime_context.get_metrics_group().counter("seen")

    def map(self, value):
        self.counter.inc()
        return value[0], value[1]


class Remembering(MapFunction):
    def open(self, runtime_context):
        self.context = runtime_context  # that it might ask for state

    def map(self, value):
        return value[0], value[1]


class Weighted(ReduceFunction):
    def open(self, runtime_context):
        self.weight = 2

    def reduce(self, value1, value2):
        return value1[0], value1[1] + value2[1] * self.weight


class Total(AggregateFunction):
    def open(self, runtime_context):
        self.weight = 2

    def create_accumulator(self):
        return 0, 0

    def add(self, value, accumulator):
        return accumulator[0] + value[1], accumulator[1] + 1

    def get_result(self, accumulator):
        return accumulator

    def merge(self, a, b):
        return a[0] + b[0], a[1] + b[1]


class Joined(JoinFunction):
    def open(self, runtime_context):
        self.weight = 2

    def join(self, first, second):
        return first[0], first[1] * self.weight - second[1]


def batch(rows):
    columns = pa.RecordBatch.from_arrays(
        [pa.array(own, pa.int64()) for own in zip(*rows, strict=True)], names=["a", "b"]
    )
    return ColumnBatch(columns, np.arange(len(rows)))


ROWS = [(1, 5), (2, -3), (1, 7), (3, 2), (1, 8)]


@pytest.mark.parametrize("kind", [Scaled, Named, Kept, Counting, Remembering])
def test_maps_and_filters_give_what_they_give_for_rows(kind):
    spec = FilterSpec if kind is Kept else MapSpec
    found = []
    for given in (batch(ROWS), rows_of(batch(ROWS))):
        with OperatorHarness(spec(kind())) as harness:
            harness.process_batch(given)
            found.append(harness.output.rows)
            is_columns = isinstance(harness.output.batches[0], ColumnBatch)
            assert is_columns is (isinstance(given, ColumnBatch) and kind not in (Counting, Remembering))
    assert found[0] == found[1]


def test_attributes_are_watched_behind_the_open():
    function = Scaled()
    with OperatorHarness(MapSpec(function)) as harness:
        harness.process_batch(batch(ROWS))
        function.factor = 5
        harness.process_batch(batch(ROWS))
        assert harness.output.rows == [(a, b * factor) for factor in (3, 5) for a, b in ROWS]


def test_reduce_functions_use_what_their_open_has_set():
    found = []
    for spec in (ColumnReduceSpec(FieldKey(0), Weighted()), KeyedReduceSpec(FieldKey(0), Weighted())):
        with OperatorHarness(spec) as harness:
            harness.process_batch(batch(ROWS))
            found.append(harness.output.rows)
            assert isinstance(spec, KeyedReduceSpec) or not harness.head._is_on_rows
    assert found[0] == found[1]
    assert found[0][-1] == (1, 5 + 2 * 7 + 2 * 8)


def test_aggregate_and_join_functions_with_an_open_are_compiled():
    call = window_call(None)
    rows = WindowSpec(FIELD[:1], TumblingEventTimeWindows(10, 0), EventTimeTrigger(), call, AggregateFold(Total()))
    assert column_window(rows, SHAPE) is not None
    join = IntervalJoinSpec(FIELD, -5, 5, Joined().join)
    assert column_interval_join(join, (SHAPE, SHAPE)).shape is None
    joined = as_opened(Joined())
    assert column_interval_join(IntervalJoinSpec(FIELD, -5, 5, joined), (SHAPE, SHAPE)).shape == SHAPE


def test_the_plan_reads_what_open_sets_to_constants():
    given = Scaled()
    opened = as_opened(given)
    assert (given.factor, opened.factor) == (None, 3)
    assert "subtask" not in vars(opened)
    assert sets_in_open(given, "subtask")
    assert not sets_in_open(given, "other")
    assert as_opened(Remembering.__new__(Remembering)).__dict__ == {}
    assert as_opened(print) is print
    wrapped = RowMap(Scaled(), Types.ROW_NAMED(["a", "b"], [Types.LONG(), Types.LONG()]))
    assert (wrapped.function.factor, as_opened(wrapped).function.factor) == (None, 3)
    assert sets_in_open(wrapped, "subtask")


class Early(Scaled):
    def open(self, runtime_context):
        self.first = 1
        if runtime_context.get_attempt_number():
            return
        self.factor = 4


def test_what_stands_behind_a_return_is_not_known():
    assert vars(as_opened(Early())) == {"factor": None, "first": 1}
