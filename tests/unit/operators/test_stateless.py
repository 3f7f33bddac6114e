from __future__ import annotations

import pyarrow as pa
import pytest

from engine.core.errors import UserCodeError
from engine.core.records import BATCH_ROWS_MAX, ColumnBatch
from engine.operators.functions import CoFlatMapFunction, CoMapFunction, MapFunction
from engine.operators.stateless import (
    CoFlatMapSpec,
    CoMapSpec,
    FilterSpec,
    FlatMapSpec,
    MapSpec,
    ProjectSpec,
)
from tests.testing.operator_harness import OperatorHarness


def test_map_applies_a_lambda_and_keeps_timestamps():
    with OperatorHarness(MapSpec(lambda x: x * 2)) as harness:
        harness.process([1, 2], [10, 20])
        assert (harness.output.rows, harness.output.timestamps_ms) == ([2, 4], [10, 20])


def test_map_function_object_is_opened_before_and_closed_after():
    calls = []

    class Mapper(MapFunction):
        def open(self, runtime_context):
            calls.append(("open", runtime_context.get_index_of_this_subtask()))

        def map(self, value):
            calls.append(("map", value))
            return value

        def close(self):
            calls.append(("close",))

    with OperatorHarness(MapSpec(Mapper()), subtask_index=1, parallelism=2) as harness:
        harness.process([7])
    assert calls == [("open", 1), ("map", 7), ("close",)]


@pytest.mark.parametrize(
    "spec",
    [MapSpec(lambda x: 1 / x), FilterSpec(lambda x: 1 / x), FlatMapSpec(lambda x: [1 / x])],
    ids=["map", "filter", "flat_map"],
)
def test_an_exception_names_the_operator_and_the_record(spec):
    error = pytest.raises(UserCodeError, match=r"ZeroDivisionError.*\n.*'Divide' on record: 0\b")
    with OperatorHarness(spec, name="Divide") as harness, error:
        harness.process([4, 2, 0, 1])


def test_stop_iteration_out_of_a_function_is_an_error_not_an_end():
    error = pytest.raises(UserCodeError, match="StopIteration")
    with OperatorHarness(MapSpec(lambda x: next(iter([])))) as harness, error:
        harness.process([1, 2])


def test_filter_keeps_records_with_their_timestamps():
    with OperatorHarness(FilterSpec(lambda x: x % 2)) as harness:
        harness.process([1, 2, 3], [10, 20, 30])
        assert (harness.output.rows, harness.output.timestamps_ms) == ([1, 3], [10, 30])
        harness.process([1, 2])
        assert harness.output.rows == [1, 3, 1]


def test_flat_map_takes_lists_generators_tuples_and_none():
    def function(x):
        return {0: None, 1: [1, 2], 2: (3,), 3: iter([4, 5])}[x]

    with OperatorHarness(FlatMapSpec(function)) as harness:
        harness.process([0, 1, 2, 3], [10, 20, 30, 40])
        assert harness.output.rows == [1, 2, 3, 4, 5]
        assert harness.output.timestamps_ms == [20, 20, 30, 40, 40]


@pytest.mark.parametrize("stamped", [False, True])
def test_flat_map_of_a_huge_generator_is_emitted_in_chunks_in_order(stamped):
    in_memory = 0
    seen_max = 0

    def function(x):
        nonlocal in_memory, seen_max
        for i in range(x):
            in_memory += 1
            seen_max = max(seen_max, in_memory)
            yield i

    with OperatorHarness(FlatMapSpec(function)) as harness:
        collect = harness.output.emit

        def emit(batch):
            nonlocal in_memory
            in_memory -= len(batch)
            collect(batch)

        harness.output.emit = emit
        harness.process([3, 100_000, 2], [1, 2, 3] if stamped else None)
    assert harness.output.rows == [*range(3), *range(100_000), *range(2)]
    assert seen_max <= 2 * BATCH_ROWS_MAX
    if stamped:
        assert harness.output.timestamps_ms == [1] * 3 + [2] * 100_000 + [3] * 2


def test_flat_map_that_fails_in_its_generator_names_the_record():
    def function(x):
        yield 1
        yield from [1 / x]

    with OperatorHarness(FlatMapSpec(function)) as harness, pytest.raises(UserCodeError, match=r"on record: 0"):
        harness.process([1, 0])


def test_flat_map_that_returns_a_string_is_an_error_with_a_hint():
    error = pytest.raises(UserCodeError, match=r"cut into characters.*\[value\].*map")
    with OperatorHarness(FlatMapSpec(lambda line: line)) as harness, error:
        harness.process(["to be"])


def test_flat_map_that_returns_a_number_is_an_error():
    error = pytest.raises(UserCodeError, match="expected an iterable")
    with OperatorHarness(FlatMapSpec(lambda line: 5)) as harness, error:
        harness.process(["to be"])


def test_columns_become_rows_at_the_entrance_of_a_function():
    batch = ColumnBatch(pa.RecordBatch.from_pydict({"w": ["a", "b"], "n": [1, 2]}))
    with OperatorHarness(MapSpec(lambda pair: (pair[0], pair[1] + 1))) as harness:
        harness.process_batch(batch)
        assert harness.output.rows == [("a", 2), ("b", 3)]


def test_project_picks_fields_of_rows_and_of_columns():
    batch = ColumnBatch(pa.RecordBatch.from_pydict({"w": ["a", "b"], "n": [1, 2]}))
    with OperatorHarness(ProjectSpec((1, 0))) as harness:
        harness.process([("x", 9)])
        harness.process_batch(batch)
        assert harness.output.rows == [(9, "x"), (1, "a"), (2, "b")]
        assert isinstance(harness.output.batches[1], ColumnBatch)
    with OperatorHarness(ProjectSpec((1,))) as harness:
        harness.process([("x", 9)])
        assert harness.output.rows == [(9,)]
        with pytest.raises(UserCodeError, match=r"project\(1\) does not fit"):
            harness.process([("x",)])


class _Tagging(CoMapFunction, CoFlatMapFunction):
    def map1(self, value):
        return ("one", value)

    def map2(self, value):
        return ("two", value)

    def flat_map1(self, value):
        return [value] * 2

    def flat_map2(self, value):
        raise ValueError("no")


def test_co_map_and_co_flat_map_call_the_method_of_the_input():
    with OperatorHarness(CoMapSpec(_Tagging())) as harness:
        harness.process([1])
        harness.process([2], input_index=1)
        assert harness.output.rows == [("one", 1), ("two", 2)]
    with OperatorHarness(CoFlatMapSpec(_Tagging()), name="Co") as harness:
        harness.process([1])
        assert harness.output.rows == [1, 1]
        with pytest.raises(UserCodeError, match="'Co' on record: 2"):
            harness.process([2], input_index=1)
