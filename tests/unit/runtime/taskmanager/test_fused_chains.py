"""Map, filter and flat_map of a chain run in one loop; nobody can tell but by the clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.clock import SystemClock
from engine.core.errors import UserCodeError
from engine.core.ids import JobID, OperatorID
from engine.core.records import BATCH_ROWS_MAX, Batch, ColumnBatch, RowBatch, rows_of
from engine.core.type_info import TypeInformation, Types
from engine.graph.job_graph import ChainedOperator, ChainSpec, Exit
from engine.graph.transformation import Partitioning, ShipStrategy
from engine.operators.base import OperatorContext, OperatorSpec
from engine.operators.functions import MapFunction, RuntimeContext
from engine.operators.row_loop import RowLoop
from engine.operators.stateless import FilterSpec, FlatMapSpec, MapSpec
from engine.runtime.taskmanager.chain_runner import OperatorChain

FORWARD = Partitioning(ShipStrategy.FORWARD)
Stamped = tuple[Any, "int | None"]


class Box:
    def __init__(self) -> None:
        self.batches: list[RowBatch] = []
        self.shapes: list[type[Batch]] = []
        self.watermarks_ms: list[int] = []

    def emit(self, batch: Batch) -> None:
        self.shapes.append(type(batch))
        self.batches.append(rows_of(batch))

    def emit_watermark(self, watermark_ms: int) -> None:
        self.watermarks_ms.append(watermark_ms)

    def emit_idle(self, idle: bool) -> None:
        raise AssertionError

    def emit_superstep_end(self, superstep: int) -> None:
        raise AssertionError

    def stamped(self) -> list[Stamped]:
        found: list[Stamped] = []
        for batch in self.batches:
            found += zip(batch.rows, batch.timestamps_ms or [None] * len(batch), strict=True)
        return found


class Run:
    """A chain of the specs, one behind the other; every operator in ``exits`` also has an exit of its own."""

    def __init__(
        self,
        *specs: OperatorSpec,
        exits: tuple[int, ...] = (),
        columns_of: Mapping[int, TypeInformation] | None = None,
    ) -> None:
        last, columns_of = len(specs) - 1, columns_of or {}
        operators = tuple(
            ChainedOperator(
                OperatorID.from_text(f"{i}"),
                f"op{i}",
                spec,
                ((i + 1, None, 0),) if i < last else (),
                columns_of.get(i),
            )
            for i, spec in enumerate(specs)
        )
        at = (*exits, last)
        self.boxes = [Box() for _ in at]
        self.box = self.boxes[-1]
        self.chain = OperatorChain(ChainSpec(operators, tuple(Exit(i, None, FORWARD) for i in at)), self.boxes)
        self.slot_shared: dict[str, Any] = {}
        self.loop = RowLoop.of(self.slot_shared)

    def _context(self, chained: ChainedOperator) -> OperatorContext:
        return OperatorContext(
            runtime_context=RuntimeContext(task_name=chained.name),
            operator_id=chained.operator_id,
            operator_name=chained.name,
            job_id=JobID.generate(),
            job_name="job",
            config={},
            clock=SystemClock(),
            work_dir="",
            memory_bytes=0,
            send_event=lambda event: None,
            wake=lambda: None,
            slot_shared=self.slot_shared,
        )

    def __enter__(self) -> Run:
        self.chain.open(self._context)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.chain.close()

    def process(self, rows: list[Any], stamps: list[int] | None = None) -> None:
        self.chain.process_batch(0, RowBatch(rows, stamps))

    def counts(self) -> list[int]:
        return [output.num_records for output in self.chain._outputs]


# --- the obvious version ----------------------------------------------------------------------------------------------


class Failed(Exception):
    def __init__(self, index: int, record: Any) -> None:
        super().__init__(index, record)
        self.index = index
        self.record = record


def results_of(spec: Any, record: Any) -> Iterator[Any]:
    result = spec.function(record)
    match spec:
        case MapSpec():
            yield result
        case FilterSpec():
            if result:
                yield record
        case _:
            if isinstance(result, str):
                raise TypeError
            yield from () if result is None else result


def obvious(specs: list[OperatorSpec], rows: list[Stamped], counts: list[int]) -> Iterator[Stamped]:
    def through(index: int, record: Any) -> Iterator[Any]:
        if index == len(specs):
            yield record
            return
        results = results_of(specs[index], record)
        while True:
            try:
                one = next(results)
            except StopIteration:
                return
            except Exception as error:
                raise Failed(index, record) from error
            counts[index] += 1
            yield from through(index + 1, one)

    for record, stamp in rows:
        for one in through(0, record):
            yield one, stamp


def pieces(x: int) -> Any:
    match x % 5:
        case 0:
            return None
        case 1:
            return [x, x + 1, x + 2]
        case 2:
            return (y for y in (x, -x))
        case 3:
            return (x,)
    return []


def fails_late(x: int) -> Any:
    yield x
    if x % 7 == 3:
        raise ValueError(x)
    yield x + 1


def wrong_type(x: int) -> Any:
    return "text" if x % 11 == 5 else [x]


class Truthless:
    """A filter's answer that has no truth."""

    def __bool__(self) -> bool:
        raise TypeError("no truth")


FUNCTIONS: dict[str, tuple[type, Callable[[int], Any]]] = {
    "map +1": (MapSpec, lambda x: x + 1),
    "map //": (MapSpec, lambda x: 100 // (x % 13 - 6) if x % 3 == 0 else x * 2),
    "filter odd": (FilterSpec, lambda x: x % 2),
    "filter most": (FilterSpec, lambda x: x % 10 != 0),
    "filter without truth": (FilterSpec, lambda x: Truthless() if x % 17 == 4 else True),
    "flat_map": (FlatMapSpec, pieces),
    "flat_map fails late": (FlatMapSpec, fails_late),
    "flat_map of a wrong type": (FlatMapSpec, wrong_type),
    "flat_map of lists": (FlatMapSpec, lambda x: [x, x]),
}


@settings(max_examples=300, deadline=None, report_multiple_bugs=False)
@given(
    names=st.lists(st.sampled_from(sorted(FUNCTIONS)), min_size=1, max_size=6),
    batches=st.lists(st.lists(st.integers(-50, 50), max_size=12), max_size=4),
    stamped=st.booleans(),
)
def test_a_fused_chain_gives_what_nested_calls_give(names, batches, stamped):
    specs = [FUNCTIONS[name][0](FUNCTIONS[name][1]) for name in names]
    expected: list[Stamped] = []
    counts = [0] * len(specs)
    with Run(*specs) as run:
        for rows in batches:
            stamps = list(range(len(rows))) if stamped else None
            try:
                results = list(obvious(specs, list(zip(rows, stamps or [None] * len(rows))), counts))
            except Failed as failed:
                with pytest.raises(UserCodeError, match=rf"'op{failed.index}' on record: {failed.record}\b"):
                    run.process(rows, stamps)
                return
            expected += results
            run.process(rows, stamps)
            assert run.box.stamped() == expected
            assert run.counts() == counts


@settings(max_examples=150, deadline=None, report_multiple_bugs=False)
@given(
    names=st.lists(st.sampled_from(["map +1", "filter odd", "flat_map", "flat_map of lists"]), min_size=1, max_size=4),
    rows=st.lists(st.integers(-50, 50), min_size=1, max_size=30),
    cut_at=st.sets(st.integers(0, 29)),
    stamped=st.booleans(),
)
def test_a_fused_loop_that_is_cut_hands_on_what_it_has_and_goes_on(names, rows, cut_at, stamped):
    specs = [FUNCTIONS[name][0](FUNCTIONS[name][1]) for name in names]
    counts = [0] * (len(specs) + 1)
    stamps = list(range(len(rows))) if stamped else None
    seen = 0

    def cutting(x: int) -> int:
        nonlocal seen
        if seen in cut_at:
            run.loop.cut()
        seen += 1
        return x

    all_specs = [MapSpec(cutting), *specs]
    with Run(*all_specs) as run:
        run.process(rows, stamps)
    assert seen == len(rows)
    plain = [MapSpec(lambda x: x), *specs]
    assert run.box.stamped() == list(obvious(plain, list(zip(rows, stamps or [None] * len(rows))), counts))
    assert run.counts() == counts
    # At each cut but one at the last row a batch ended.
    assert all(run.box.batches)


def test_results_so_far_are_handed_on_at_a_cut():
    def cutting(x: int) -> int:
        if x == 1:
            run.loop.cut()
        return x

    with Run(MapSpec(cutting), MapSpec(lambda x: x * 10)) as run:
        run.process([0, 1, 2, 3], [5, 6, 7, 8])
    assert [(batch.rows, batch.timestamps_ms) for batch in run.box.batches] == [
        ([0, 10], [5, 6]),
        ([20, 30], [7, 8]),
    ]


def test_each_record_passes_all_functions_before_the_next_one_begins():
    story = []
    with Run(MapSpec(lambda x: story.append(("a", x)) or x), MapSpec(lambda x: story.append(("b", x)) or x)) as run:
        run.process([1, 2])
    assert story == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_records_stay_the_same_objects():
    rows = [object(), object()]
    with Run(FilterSpec(lambda x: True), MapSpec(lambda x: x), FlatMapSpec(lambda x: [x])) as run:
        run.process(rows)
    assert all(one is other for one, other in zip(run.box.batches[0].rows, rows, strict=True))


def test_an_operator_with_an_exit_ends_its_run_and_both_ways_get_its_records():
    with Run(MapSpec(lambda x: x + 1), MapSpec(lambda x: x * 2), MapSpec(lambda x: -x), exits=(1,)) as run:
        run.process([1, 2])
    assert [box.stamped() for box in run.boxes] == [[(4, None), (6, None)], [(-4, None), (-6, None)]]
    assert run.counts() == [2, 2, 2]


@pytest.mark.parametrize("stamped", [False, True])
@pytest.mark.parametrize("with_map", [False, True])
def test_a_record_that_becomes_very_many_is_handed_on_in_parts(stamped, with_map):
    pending = 0
    seen_max = 0

    def many(x: int) -> Iterator[int]:
        nonlocal pending, seen_max
        for i in range(x):
            pending += 1
            seen_max = max(seen_max, pending)
            yield i

    specs = [MapSpec(lambda x: x), FlatMapSpec(many), *([MapSpec(lambda x: x)] if with_map else [])]
    with Run(*specs) as run:
        collect = run.box.emit

        def emit(batch: Batch) -> None:
            nonlocal pending
            pending -= len(batch)
            collect(batch)

        run.box.emit = emit  # type: ignore[method-assign]
        run.process([3, 100_000, 2], [7, 8, 9] if stamped else None)
    expected = [*range(3), *range(100_000), *range(2)]
    stamps = [7] * 3 + [8] * 100_000 + [9] * 2 if stamped else [None] * 100_005
    assert run.box.stamped() == list(zip(expected, stamps, strict=True))
    assert seen_max <= 2 * BATCH_ROWS_MAX
    assert run.counts() == [3, 100_005, 100_005][: len(specs)]


def test_a_failure_behind_the_run_is_not_taken_for_one_of_its_functions():
    class Full(Exception):
        pass

    def full(batch: Batch) -> None:
        raise Full

    with Run(MapSpec(lambda x: x), FlatMapSpec(lambda x: [x] * x)) as run:
        run.box.emit = full  # type: ignore[method-assign]
        for num in (1, BATCH_ROWS_MAX):  # at the end of the loop and inside it
            with pytest.raises(Full):
                run.chain.operators[0].process_batch(0, RowBatch([num]))


def test_an_error_shows_the_frames_of_the_user_only():
    def divide(x: int) -> float:
        return 1 / x

    with Run(MapSpec(lambda x: x), MapSpec(divide)) as run, pytest.raises(UserCodeError) as caught:
        run.process([1, 0])
    text = str(caught.value)
    assert "in divide" in text
    assert "return 1 / x" in text
    assert text.count("File ") == 1


def test_functions_are_opened_with_their_own_context_and_closed():
    story = []

    class Naming(MapFunction):
        def open(self, runtime_context):
            self.name = runtime_context.get_task_name()
            story.append(f"open {self.name}")

        def map(self, value):
            return [*value, self.name]

        def close(self):
            story.append(f"close {self.name}")

    with Run(MapSpec(Naming()), MapSpec(Naming()), FilterSpec(lambda x: True)) as run:
        run.process([[]])
        run.chain.process_watermark(7)
    assert run.box.stamped() == [(["op0", "op1"], None)]
    assert run.box.watermarks_ms == [7]
    assert story == ["open op1", "open op0", "close op0", "close op1"]


def test_stop_iteration_and_system_exit_are_errors_of_their_function():
    for function in (lambda x: next(iter([])), lambda x: exit()):
        with Run(MapSpec(lambda x: x), FlatMapSpec(function)) as run, pytest.raises(UserCodeError, match=r"'op1'.*: 5"):
            run.process([5])


# --- columns ----------------------------------------------------------------------------------------------------------


def columns_of(*columns: list[Any], stamps: list[int] | None = None) -> ColumnBatch:
    batch = pa.RecordBatch.from_arrays([pa.array(column) for column in columns], names=["a", "b"][: len(columns)])
    return ColumnBatch(batch, None if stamps is None else np.array(stamps, np.int64))


def test_columns_stay_columns_through_functions_that_compile():
    with Run(MapSpec(lambda r: (r[0] + 1, r[1])), FilterSpec(lambda r: r[0] % 2 == 0), MapSpec(lambda r: r[1])) as run:
        run.box.emit = run.box.batches.append  # type: ignore[method-assign, assignment]
        run.chain.process_batch(0, columns_of([1, 2, 3], ["x", "y", "z"], stamps=[7, 8, 9]))
    (batch,) = run.box.batches
    assert isinstance(batch, ColumnBatch)
    assert (batch.to_rows().rows, batch.timestamps_ms.tolist()) == (["x", "z"], [7, 9])
    assert run.counts() == [3, 2, 2]


def test_columns_become_rows_at_the_first_function_that_does_not_compile():
    seen = []
    with Run(FilterSpec(lambda r: r[0] > 1), FlatMapSpec(lambda r: [seen.append(r) or r[0]] * 2), MapSpec(str)) as run:
        run.chain.process_batch(0, columns_of([1, 2, 3], ["x", "y", "z"], stamps=[7, 8, 9]))
    assert seen == [(2, "y"), (3, "z")]
    assert run.box.stamped() == [("2", 8), ("2", 8), ("3", 9), ("3", 9)]
    assert run.counts() == [2, 4, 4]


def test_a_batch_with_an_overflow_is_interpreted_and_the_next_one_is_compiled_again():
    with Run(MapSpec(lambda r: r[0] * 3)) as run:
        for values in ([2**62, 1], [1, 2]):
            run.chain.process_batch(0, columns_of(values))
        (function,) = run.chain.operators[0]._column_functions[0]
    assert run.box.stamped() == [(3 * 2**62, None), (3, None), (3, None), (6, None)]
    assert (function.num_interpreted, function.num_compiled) == (1, 1)


def test_an_error_on_a_record_of_columns_is_that_of_the_interpreter():
    told = pytest.raises(UserCodeError, match=r"ZeroDivisionError.*\n.*'op1' on record: \(0, 'y'\)\n.*lambda")
    with Run(MapSpec(lambda r: (r[0] - 5, r[1])), MapSpec(lambda r: 10 // r[0])) as run, told:
        run.chain.process_batch(0, columns_of([4, 5], ["x", "y"]))


def test_many_batches_in_doubt_leave_the_function_to_the_interpreter_for_good():
    with Run(MapSpec(lambda r: r[0] * 3)) as run:
        for _ in range(7):
            run.chain.process_batch(0, columns_of([2**62]))
        run.chain.process_batch(0, columns_of([1]))
        (function,) = run.chain.operators[0]._column_functions[0]
    assert run.box.stamped() == [(3 * 2**62, None)] * 7 + [(3, None)]
    assert (function.num_interpreted, function.num_compiled) == (8, 0)
    assert "5 batches in a row" in function.reason


def test_a_variable_of_the_surroundings_may_change_between_batches():
    factor = 2

    with Run(MapSpec(lambda r: r[0] * factor)) as run:
        run.chain.process_batch(0, columns_of([1]))
        factor = 3
        run.chain.process_batch(0, columns_of([1]))
        (function,) = run.chain.operators[0]._column_functions[0]
    assert run.box.stamped() == [(2, None), (3, None)]
    assert function.num_compiled == 2


# --- rows that become columns in the middle ---------------------------------------------------------------------------


@pytest.mark.parametrize("odd", [False, True])
def test_what_follows_rows_that_become_columns_runs_on_those_unless_one_is_not_of_its_type(odd):
    pairs = Types.TUPLE([Types.LONG(), Types.DOUBLE()])
    steps = (
        MapSpec(lambda i: (i, i / 2 if i or not odd else "x")),
        FilterSpec(lambda pair: pair[0] != 1),
        MapSpec(swapped),
    )
    with Run(*steps, columns_of={0: pairs, 2: Types.TUPLE([Types.DOUBLE(), Types.LONG()])}) as run:
        run.process([1, 2, 3], [10, 20, 30])
        run.process([0, 1], [40, 50])
        run.process([4], [60])
        tiers = [one.tier for one in run.chain.operator_metrics()]
    assert run.box.stamped() == [((1.0, 2), 20), ((1.5, 3), 30), (("x" if odd else 0.0, 0), 40), ((2.0, 4), 60)]
    assert run.box.shapes == ([ColumnBatch, RowBatch, RowBatch] if odd else [ColumnBatch] * 3)
    assert run.counts() == [6, 4, 4]
    assert tiers[0].startswith("interpreted (rows)")
    assert tiers[0].endswith("results as columns" + (odd * ", until one was not of its type"))
    assert tiers[1] == "compiled"


def swapped(pair: Any) -> Any:
    return pair[1], pair[0]
