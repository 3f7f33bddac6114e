"""Operators on columns that may have to go on with rows: any script, with crashes or without, gives what rows give.

A script mixes batches of columns, of rows and of sums beyond 64 bits with barriers; behind a barrier the job may crash
and come back at another parallelism. Where nothing crashes, increments build on each other.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from engine.core.records import ColumnBatch, Row
from engine.operators.aggregate import FieldAggregate, KeyedAggregateSpec
from engine.operators.column_aggregate import ColumnAggregateSpec
from engine.operators.column_window import column_window
from engine.operators.field_aggregates import RowAggregates, WindowRecord, avg, count, count_distinct, first, max_, sum_
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.window import WindowSpec
from engine.operators.window_contents import AggregateFold, ReduceFold
from engine.operators.window_functions import window_call
from engine.state.key_groups import key_group_of
from engine.time.assigners import SlidingEventTimeWindows, TumblingEventTimeWindows
from engine.time.cumulating_windows import CumulatingEventTimeWindows
from engine.time.triggers import EventTimeTrigger
from engine.time.windows import TIME_MAX_MS
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import MARK, Case, Rows, Watermark
from tests.unit.operators.test_restore import FULL, INCREMENTAL, Run, straight

SCHEMA = pa.schema([("k", pa.int64()), ("v", pa.int64())])
#: The same records in columns of other types: subtasks that saw the one and the other may come together in a restore.
OTHER_SCHEMA = pa.schema([("k", pa.int32()), ("v", pa.int64())])
PHASES = [Phase.explicit, Phase.reuse, Phase.generate]
FEW = st.integers(-3, 3)
VALUES = st.one_of(FEW, FEW, FEW, st.sampled_from([2**63 - 1, -(2**63)]))
KEYS = st.one_of(st.none(), st.integers(0, 5))
#: a barrier; None = all goes well, else the parallelism after a crash
BARRIER = st.one_of(st.none(), st.integers(1, 3))


@st.composite
def batches(draw) -> Rows:
    rows = draw(st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=6))
    stamps = draw(st.lists(st.integers(-5, 50), min_size=len(rows), max_size=len(rows)))
    return Rows(rows, stamps, schema=draw(st.sampled_from([SCHEMA, SCHEMA, SCHEMA, OTHER_SCHEMA, None])))


SCRIPTS = st.lists(st.one_of(batches(), batches(), BARRIER), max_size=14)
TIMED_SCRIPTS = st.lists(st.one_of(batches(), batches(), BARRIER, st.integers(0, 55).map(Watermark)), max_size=14).map(
    lambda steps: [*in_order(steps), Watermark(TIME_MAX_MS)]
)


def in_order(steps: list) -> list:
    """Watermarks never fall."""
    times = iter(sorted(step.time_ms for step in steps if isinstance(step, Watermark)))
    return [Watermark(next(times)) if isinstance(step, Watermark) else step for step in steps]


def disturbed(case: Case, config: dict[str, str]) -> Counter[str]:
    """Play the script as its barriers say; what follows one before a crash is lost and comes again."""
    run = Run(case, config, None)
    run.start(1)
    for index, step in enumerate(case.script):
        if step is not None and not isinstance(step, int):
            run.play([step])
            continue
        run.play([MARK])
        if step is not None:
            watermark_ms = run.watermark_ms
            run.play(doomed for doomed in case.script[index + 1 : index + 2] if isinstance(doomed, Rows))
            run.watermark_ms = watermark_ms
            run.start(step)
    return run.finish()


def undisturbed(case: Case) -> Counter[str]:
    return straight(Case(case.specs, [s for s in case.script if s is not None and not isinstance(s, int)], case.keys))


@pytest.mark.parametrize("config", [FULL, INCREMENTAL], ids=["full", "incremental"])
@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("kind", ["sum", "min", "max", "min_by", "max_by"])
@pytest.mark.parametrize("key", [FieldKey(0), ComposedKey((0,))])
def test_aggregates_after_any_script_are_those_of_rows(key, kind, final, config):
    @settings(max_examples=15, deadline=None, phases=PHASES)
    @given(SCRIPTS)
    def check(script):
        keys = (key,)
        ours = disturbed(Case((ColumnAggregateSpec(key, kind, 1, final),), script, keys), config)
        assert ours == undisturbed(Case((KeyedAggregateSpec(key, kind, 1, final),), script, keys))

    check()


def test_rows_and_tuples_of_former_subtasks_stay_what_they_are():
    """Their columns are the same: one of three subtasks has seen Rows, another one tuples."""
    columns = ColumnAggregateSpec(FieldKey(0), "max_by", 1, True)
    rows = KeyedAggregateSpec(FieldKey(0), "max_by", 1, True)
    for n in range(4):
        script = [3, Rows([Row(k=n, v=n)], schema=SCHEMA), Rows([(n + 1, 5)], schema=SCHEMA), 1]
        ours = disturbed(Case((columns,), script, (FieldKey(0),)), INCREMENTAL)
        assert ours == undisturbed(Case((rows,), script, (FieldKey(0),)))


@pytest.mark.parametrize("other", [Row(k=0, v=7), (0, 7, "more")])
@pytest.mark.parametrize("final", [False, True])
def test_a_sum_of_pairs_among_other_records_is_the_one_of_its_last_increment(other, final):
    """The first layer has it among pairs, the next one among all kinds of records."""
    spec = KeyedAggregateSpec(FieldKey(0), "sum", 1, final)
    script = [Rows([(4, 5)]), Rows([other]), None, Rows([(4, 1)]), 1, Rows([(4, 2)])]
    case = Case((spec,), script, (FieldKey(0),))
    assert disturbed(case, INCREMENTAL) == undisturbed(case)


@pytest.mark.parametrize("key", [FieldKey(1), ComposedKey((0, 1))])
def test_sums_of_a_field_that_is_the_key_are_those_of_rows(key):
    rows = [Rows([(1, 2), (1, 2), (1, 4), (0, 2)], schema=SCHEMA), Rows([(1, 2), (1, 4), (1, 6)], schema=OTHER_SCHEMA)]
    ours = straight(Case((ColumnAggregateSpec(key, "sum", 1),), rows, (key,)))
    assert ours == straight(Case((KeyedAggregateSpec(key, "sum", 1),), rows, (key,)))


def of_named_rows(script: list, every: int) -> list:
    """Return the script with Rows instead of tuples in every ``every``-th batch."""
    return [
        replace(step, rows=[Row(k=k, v=v) for k, v in step.rows])
        if isinstance(step, Rows) and index % every == 0
        else step
        for index, step in enumerate(script)
    ]


@pytest.mark.parametrize("every", [1, 2], ids=["rows", "rows and tuples"])
@pytest.mark.parametrize("final", [False, True])
def test_aggregates_of_named_rows_are_named_rows(final, every):
    @settings(max_examples=25, deadline=None, phases=PHASES)
    @given(SCRIPTS.map(lambda script: of_named_rows(script, every)))
    def check(script):
        keys = (FieldKey(0),)
        ours = disturbed(Case((ColumnAggregateSpec(keys[0], "sum", 1, final),), script, keys), INCREMENTAL)
        assert ours == undisturbed(Case((KeyedAggregateSpec(keys[0], "sum", 1, final),), script, keys))

    check()


@pytest.mark.parametrize("every", [1, 2], ids=["rows", "rows and tuples"])
@pytest.mark.parametrize("kind", ["sum", "min_by"])
def test_windows_of_named_rows_hold_named_rows(kind, every):
    fold = ReduceFold(FieldAggregate(kind, 1))
    rows = WindowSpec((FieldKey(0),), TumblingEventTimeWindows(10, 3), EventTimeTrigger(), window_call(None), fold)

    @settings(max_examples=30, deadline=None, phases=PHASES)
    @given(TIMED_SCRIPTS.map(lambda script: of_named_rows(script, every)))
    def check(script):
        ours = disturbed(Case((column_window(rows),), script, (FieldKey(0),)), INCREMENTAL)
        assert ours == undisturbed(Case((rows,), script, (FieldKey(0),)))

    check()


def test_windows_of_named_rows_and_of_tuples_come_together():
    fold = ReduceFold(FieldAggregate("max_by", 1))
    rows = WindowSpec((FieldKey(0),), TumblingEventTimeWindows(10, 3), EventTimeTrigger(), window_call(None), fold)
    script = [
        Rows([Row(k=key, v=key + 1) if subtask_of(key, 2) else (key, key + 1)], [5], schema=SCHEMA) for key in range(12)
    ]
    more = [Rows([(key, 10) for key in range(14)], [7] * 14, schema=SCHEMA), Watermark(TIME_MAX_MS)]
    run = Run(Case((column_window(rows),), [*script, *more], (FieldKey(0),)), FULL, None)
    run.start(2)
    run.play([*script, MARK])
    run.start(1)
    assert run.harnesses[0].operators[0]._state.others
    run.play(more)
    assert run.finish() == straight(Case((rows,), [*script, *more], (FieldKey(0),)))


def test_windows_of_named_rows_stay_columns():
    rows = WindowSpec((FieldKey("k"),), *WINDOWS["chosen"][:1], EventTimeTrigger(), window_call(None))
    with OperatorHarness(column_window(replace(rows, fold=ReduceFold(FieldAggregate("max_by", "v"))))) as harness:
        columns = pa.record_batch([[1, 1], [4, 3]], schema=SCHEMA)
        harness.process_batch(ColumnBatch(columns, np.array([4, 5]), named=True))
        harness.watermark(100)
        assert all(isinstance(batch, ColumnBatch) for batch in harness.output.batches)
        assert harness.output.rows == [Row(k=1, v=4)]


@pytest.mark.parametrize("config", [FULL, INCREMENTAL], ids=["full", "incremental"])
@pytest.mark.parametrize("again", [False, True], ids=["one restore", "two restores"])
@pytest.mark.parametrize("final", [False, True])
def test_slots_of_other_types_come_together(final, again, config):
    """Of two subtasks, one has seen int64 keys and the other int32; a third takes over both."""
    by_subtask = {0: SCHEMA, 1: OTHER_SCHEMA}
    first_rows = [Rows([(key, key + 1)], schema=by_subtask[subtask_of(key, 2)]) for key in range(12)]
    more = [Rows([(key, 10) for key in range(14)], schema=SCHEMA)]
    script = [*first_rows, MARK, *([MARK] if again else []), *more]
    case = Case((ColumnAggregateSpec(FieldKey(0), "sum", 1, final),), script, (FieldKey(0),))
    run = Run(case, config, None)
    run.start(2)
    run.play([*first_rows, MARK])
    for _ in range(1 + again):
        run.start(1)
        assert run.harnesses[0].operators[0]._state.others
        run.play([MARK])
    run.start(3)
    run.play(more)
    rows = Case((KeyedAggregateSpec(FieldKey(0), "sum", 1, final),), [*first_rows, *more], (FieldKey(0),))
    assert run.finish() == straight(rows)


def subtask_of(key, parallelism: int) -> int:
    return key_group_of(key, 128) * parallelism // 128


def other_types_come_together(columns, rows):
    """Two subtasks keep columns of different types, which one subtask then restores."""
    by_subtask = {0: SCHEMA, 1: OTHER_SCHEMA}
    script = [Rows([(key, key + 1)], [5], schema=by_subtask[subtask_of(key, 2)]) for key in range(12)]
    more = [Rows([(key, 10) for key in range(14)], [7] * 14, schema=SCHEMA), Watermark(TIME_MAX_MS)]
    run = Run(Case((columns,), [*script, *more], (FieldKey(0),)), FULL, None)
    run.start(2)
    run.play([*script, MARK])
    run.start(1)
    assert run.harnesses[0].operators[0]._state.others
    run.play([MARK])
    run.start(1)
    run.play(more)
    assert run.finish() == straight(Case((rows,), [*script, *more], (FieldKey(0),)))


def test_windows_of_other_types_come_together():
    assigner, fold = WINDOWS["tumbling"]
    rows = WindowSpec((FieldKey(0),), assigner, EventTimeTrigger(), window_call(WindowRecord(1)), fold)
    other_types_come_together(column_window(rows), rows)


def test_increments_of_columns_build_on_each_other_until_rows_take_over():
    wide = [(n, n) for n in range(100)]
    script = [
        Rows(wide, schema=SCHEMA),
        MARK,
        Rows([(3, 5), (200, 1)], schema=SCHEMA),
        MARK,
        Rows([(50, -4), (200, 2)], schema=SCHEMA),
        MARK,
    ]
    more = Rows([(n, 1) for n in (3, 50, 99, 200, 201)], schema=SCHEMA)
    case = Case((ColumnAggregateSpec(FieldKey(0), "sum", 1),), script)
    run = Run(case, INCREMENTAL, None)
    run.start(1)
    run.play(script)
    full, *changes = run.snapshots[0].layers[0]["slots"]
    assert len(changes) == 2
    assert 4 * max(map(size_of, changes)) < size_of(full)
    run.start(1)
    run.play([more, MARK])
    assert len(run.snapshots[0].layers[0]["slots"]) == 4
    run.play([Rows([(3, 7)]), MARK])
    assert run.snapshots[0].layers[0]["slots"] == [{}]  # nothing of the former layers comes back
    run.start(1)
    run.play([Rows([(4, 7)]), MARK, Rows([(5, 7)]), MARK])
    assert len(run.snapshots[0].layers[0]["keyed"]) > 1
    run.start(2)
    run.play([more])
    steps = [*script, more, Rows([(3, 7)]), Rows([(4, 7)]), Rows([(5, 7)]), more]
    assert run.finish() == undisturbed(Case((KeyedAggregateSpec(FieldKey(0), "sum", 1),), steps))


def size_of(chunks: dict[int, bytes]) -> int:
    return sum(map(len, chunks.values()))


@pytest.mark.parametrize("backend", ["hashmap", "rocksdb"])
def test_a_fresh_subtask_begins_with_columns(backend):
    rows = WindowSpec((FieldKey(0),), *WINDOWS["sliding"][:1], EventTimeTrigger(), window_call(WindowRecord(1)))
    rows = replace(rows, fold=WINDOWS["sliding"][1])
    for spec in (ColumnAggregateSpec(FieldKey(0), "sum", 1), column_window(rows)):
        with OperatorHarness(spec, config={"state.backend.type": backend}) as harness:
            columns = pa.record_batch([[1, 2], [3, 4]], schema=SCHEMA)
            harness.process_batch(ColumnBatch(columns, np.array([1, 2])))
            harness.watermark(1000)
            assert all(isinstance(batch, ColumnBatch) for batch in harness.output.batches)
            assert len(harness.output.rows) >= 2


WINDOWS = {
    "tumbling": (TumblingEventTimeWindows(10, 0), AggregateFold(RowAggregates([sum_(1), first(1), count(1)]))),
    "reduced": (TumblingEventTimeWindows(10, 3), ReduceFold(FieldAggregate("sum", 1))),
    "chosen": (TumblingEventTimeWindows(10, 3), ReduceFold(FieldAggregate("max_by", 1))),
    "distinct": (TumblingEventTimeWindows(10, 0), AggregateFold(RowAggregates([count_distinct(1), sum_(1)]))),
    "distinct, sliding": (
        SlidingEventTimeWindows(20, 5, 0),
        AggregateFold(RowAggregates([count_distinct(1), sum_(1), count_distinct(0)])),
    ),
    "sliding": (SlidingEventTimeWindows(20, 5, 0), AggregateFold(RowAggregates([sum_(1), avg(1), count(), max_(1)]))),
    "gaps": (SlidingEventTimeWindows(4, 10, 0), AggregateFold(RowAggregates([sum_(1)]))),
    "cumulating": (CumulatingEventTimeWindows(20, 5, 0), AggregateFold(RowAggregates([avg(1), max_(1)]))),
}


@pytest.mark.parametrize("config", [FULL, INCREMENTAL], ids=["full", "incremental"])
@pytest.mark.parametrize("lateness_ms", [0, 9])
@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("key", [FieldKey(0), ComposedKey((0, 1))])
def test_windows_after_any_script_are_those_of_rows(key, name, lateness_ms, config):
    assigner, fold = WINDOWS[name]
    function = None if isinstance(fold, ReduceFold) else WindowRecord(1 if isinstance(key, FieldKey) else 2)
    rows = WindowSpec((key,), assigner, EventTimeTrigger(), window_call(function), fold, None, lateness_ms, "late")
    columnar = column_window(rows)
    if columnar is None:
        assert (name, lateness_ms) == ("distinct, sliding", 9)
        return

    @settings(max_examples=10, deadline=None, phases=PHASES)
    @given(TIMED_SCRIPTS)
    def check(script):
        assert disturbed(Case((columnar,), script, (key,)), config) == undisturbed(Case((rows,), script, (key,)))

    check()
