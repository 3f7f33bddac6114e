"""Joins on columns against those on rows: the same pairs, late records and times, with crashes and without."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import groupby

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.core.errors import UserCodeError
from engine.core.records import ColumnBatch, Row, RowKind, row_of_kind, rows_of
from engine.operators.column_interval_join import ColumnIntervalJoinSpec, column_interval_join
from engine.operators.column_join import KEEPS_STATE
from engine.operators.column_window_join import ColumnWindowJoinSpec, column_window_join
from engine.operators.compile.expressions import Kind
from engine.operators.compile.translate import Shape
from engine.operators.interval_join import IntervalJoinSpec, ProcessJoinFunction
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.output_tag import OutputTag
from engine.operators.window import WindowSpec
from engine.operators.window_functions import JoinedFunction
from engine.time.assigners import SlidingEventTimeWindows, TumblingEventTimeWindows
from engine.time.cumulating_windows import CumulatingEventTimeWindows
from engine.time.triggers import EventTimeTrigger
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import MARK, Case, Rows, Watermark
from tests.unit.operators.test_restore import FULL, INCREMENTAL, ROCKSDB, Run, straight
from tests.unit.operators.test_restore_columns import BARRIER, PHASES, disturbed, in_order, subtask_of, undisturbed

LEFT = pa.schema([("k", pa.int64()), ("v", pa.int64()), ("name", pa.string())])
RIGHT = pa.schema([("k", pa.int64()), ("x", pa.float64()), ("w", pa.int64())])
#: The same records with keys of another type: columns cannot compare these with the others' in one subtask.
OTHER_LEFT = LEFT.set(0, pa.field("k", pa.int32()))
TEXT_KEYS = LEFT.set(0, pa.field("k", pa.large_string()))
SHAPES = (Shape((Kind.INT, Kind.INT, Kind.STR)), Shape((Kind.INT, Kind.FLOAT, Kind.INT)))
KEYS = {"field": (FieldKey(0), FieldKey(0)), "tuple": (ComposedKey((0, 1)), ComposedKey((0, 2)))}
LARGE = 2**63 - 1


class Paired(ProcessJoinFunction):
    def process_element(self, left, right, ctx):
        yield left, right, ctx.get_left_timestamp(), ctx.get_right_timestamp(), ctx.get_timestamp()
        if left[1] == 1:
            yield OutputTag("late"), "one"


def called(left, right):
    return [left, right]


def aside(left, right):
    return (OutputTag("late"), left) if left[1] == 1 else (left, right)


def several(left, right):
    for _ in range(left[1] % 3):
        yield left, right


def computed(left, right):
    total = left[1] + right[2]  # beyond 64 bits the interpreter is asked
    k, x, w = right
    return (k, total, left[2], x, -w if x is None else w)


FUNCTIONS = {"added": lambda a, b: a + b, "computed": computed, "called": called, "aside": aside}
COMPILED = ("added", "computed")
INTERVALS = [(-5, 5), (0, 0), (2, 9), (-9, -2), (-30, 0)]
ASSIGNERS = {
    "tumbling": TumblingEventTimeWindows(10, 3),
    "sliding": SlidingEventTimeWindows(20, 5, 0),
    "gaps": SlidingEventTimeWindows(4, 10, 0),
    "cumulating": CumulatingEventTimeWindows(20, 5, 0),
}


def interval(bounds, function, keys="field"):
    return IntervalJoinSpec(KEYS[keys], *bounds, function, ("late", "late"))


def windowed(assigner, function, keys="field", flat=False, late_tag="late"):
    joined = JoinedFunction(function, flat)
    return WindowSpec(KEYS[keys], ASSIGNERS[assigner], EventTimeTrigger(), joined, late_tag=late_tag)


# --- one subtask, in order --------------------------------------------------------------------------------------------

KEY = st.one_of(st.none(), st.integers(0, 2))
FEW = st.integers(-3, 3)
TEXT = st.one_of(st.none(), st.sampled_from(["", "a", "ä"]))
FLOAT = st.one_of(st.none(), st.sampled_from([0.0, -0.0, float("nan"), 1.5]))
TIME = st.integers(-25, 45)
LEFT_ROW = st.tuples(KEY, st.one_of(FEW, FEW, st.just(LARGE)), TEXT)
RIGHT_ROW = st.tuples(KEY, FLOAT, FEW)
STEP = st.one_of(
    st.lists(st.tuples(LEFT_ROW, TIME), max_size=8).map(lambda step: (0, step)),
    st.lists(st.tuples(RIGHT_ROW, TIME), max_size=8).map(lambda step: (1, step)),
    st.integers(-20, 60),
)


def columns(rows, stamps, schema):
    arrays = [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(schema)]
    return ColumnBatch(pa.RecordBatch.from_arrays(arrays, schema=schema), np.array(stamps, np.int64))


def play(spec, steps, order):
    """Return the results after each step, in an order that is defined, and what came too late."""
    seen, watermark_ms = [], None
    with OperatorHarness(spec, name="Join") as harness:
        for step in [*steps, 10_000]:
            if isinstance(step, int):
                watermark_ms = step if watermark_ms is None else max(watermark_ms, step)
                harness.watermark(watermark_ms)
            else:
                side, records = step
                rows, stamps = ([record[i] for record in records] for i in range(2))
                harness.process_batch(columns(rows, stamps, (LEFT, RIGHT)[side]), input_index=side)
            seen.append(order(list(zip(map(repr, harness.output.rows), harness.output.timestamps_ms, strict=True))))
            harness.output.batches.clear()
        late = [row for batch in harness.output.side.get("late", []) for row in rows_of(batch).rows]
        dropped = harness.runtime_context.get_metrics_group().counter("numLateRecordsDropped").get_count()
        return seen, sorted(map(repr, late)), harness.output.watermarks_ms, dropped


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("function", [*FUNCTIONS, "process"])
@pytest.mark.parametrize("bounds", INTERVALS)
def test_interval_joins_of_columns_give_what_those_of_rows_give(bounds, function, keys):
    rows = interval(bounds, Paired() if function == "process" else FUNCTIONS[function], keys)
    spec = column_interval_join(rows, SHAPES)
    assert isinstance(spec, ColumnIntervalJoinSpec)
    assert (spec.shape is not None) is (function in COMPILED)

    @settings(max_examples=12, deadline=None, phases=PHASES)
    @given(st.lists(STEP, max_size=8))
    @example([(0, [((1, 1, "a"), 5)]), 5, (1, [((1, 1.5, 2), 5)]), (0, [((1, 2, "b"), 5)]), (1, [((1, 2.5, 2), 5)])])
    def check(steps):
        assert play(spec, steps, sorted) == play(rows, steps, sorted)

    check()


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("function", [*FUNCTIONS, "several"])
@pytest.mark.parametrize("kind", ASSIGNERS)
def test_window_joins_of_columns_give_what_those_of_rows_give(kind, function, keys):
    flat = function == "several"
    rows = windowed(kind, several if flat else FUNCTIONS[function], keys, flat, None if function == "added" else "late")
    spec = column_window_join(rows, SHAPES)
    assert isinstance(spec, ColumnWindowJoinSpec)
    assert (spec.shape is not None) is (function in COMPILED)

    @settings(max_examples=12, deadline=None, phases=PHASES)
    @given(st.lists(STEP, max_size=8))
    def check(steps):
        assert play(spec, steps, sorted) == play(rows, steps, sorted)

    check()


def by_key(results):
    """The pairs of a key in their order; that of the keys is not defined."""
    ordered = sorted(results, key=lambda result: (result[1], eval(result[0])[0]))
    return [list(group) for _, group in groupby(ordered, key=lambda result: (result[1], eval(result[0])[0]))]


ORDERED = st.one_of(
    st.lists(st.tuples(st.tuples(st.integers(0, 2), FEW, st.just("a")), TIME), max_size=8).map(lambda step: (0, step)),
    st.lists(st.tuples(st.tuples(st.integers(0, 2), st.just(1.5), FEW), TIME), max_size=8).map(lambda step: (1, step)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ORDERED, max_size=8))
def test_pairs_of_a_key_and_window_come_in_the_order_of_the_row_operator(steps):
    rows = windowed("sliding", FUNCTIONS["added"])
    assert play(column_window_join(rows, SHAPES), steps, by_key) == play(rows, steps, by_key)


def test_many_pairs_come_in_several_batches_and_none_twice():
    for rows, spec in (
        (both := interval((-5, 5), FUNCTIONS["added"]), column_interval_join(both, SHAPES)),
        (both := windowed("tumbling", FUNCTIONS["added"]), column_window_join(both, SHAPES)),
    ):
        steps = [(0, [((i % 2, i, "a"), 4) for i in range(400)]), (1, [((i % 2, 0.5, i), 5) for i in range(300)])]
        seen = play(spec, steps, sorted)
        assert sum(map(len, seen[0])) == 60_000
        assert seen == play(rows, steps, sorted)


@pytest.mark.parametrize("edge", [TIME_MIN_MS + 1, TIME_MAX_MS - 30])
def test_joins_at_both_ends_of_time_are_those_of_rows(edge):
    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 1), st.lists(st.integers(edge, edge + 30), max_size=4)), max_size=4))
    def check(steps):
        timed = [(side, [((1, 1, "a") if side == 0 else (1, 1.0, 1), time) for time in times]) for side, times in steps]
        for rows, spec in pairs_of_specs():
            assert play(spec, [*timed, TIME_MAX_MS], sorted) == play(rows, [*timed, TIME_MAX_MS], sorted)

    def pairs_of_specs():
        yield (rows := interval((-5, 5), called)), column_interval_join(rows, SHAPES)
        yield (rows := windowed("tumbling", called)), column_window_join(rows, SHAPES)

    check()


def test_errors_of_the_function_are_told_as_those_of_rows():
    def fails(left, right):
        return left[1] // right[2]

    steps = [(0, [((1, 1, "a"), 4), ((2, 5, "a"), 4)]), (1, [((2, 0.5, 1), 5), ((2, 0.5, 0), 5)])]
    for rows, spec in (
        (both := interval((-5, 5), fails), column_interval_join(both, SHAPES)),
        (both := windowed("tumbling", fails), column_window_join(both, SHAPES)),
    ):
        assert spec.shape is not None
        told = []
        for each in (rows, spec):
            with pytest.raises(UserCodeError) as error:
                play(each, steps, sorted)
            told.append(str(error.value))
        assert told[0] == told[1]


def test_what_columns_cannot_do_has_no_columnar_form():
    plain = windowed("tumbling", called)
    late = replace(plain, allowed_lateness_ms=TIME_MAX_MS)
    assert column_window_join(late, SHAPES) == "its allowed lateness is beyond 62 bits"
    assert "second input its key" in column_window_join(replace(plain, key_selectors=(FieldKey(0), len)), SHAPES)
    by_function = replace(interval((0, 1), called), key_selectors=(len, len))
    assert "first input its key" in column_interval_join(by_function, SHAPES)
    assert column_interval_join(interval((0, TIME_MAX_MS), called), SHAPES) == "its bounds are beyond 62 bits"

    class Opened(ProcessJoinFunction):
        def open(self, runtime_context):
            self.context = runtime_context

        def process_element(self, left, right, ctx):
            yield left

    assert column_interval_join(interval((0, 1), Opened()), SHAPES) == KEEPS_STATE


# --- crashes, other parallelism, other types, rows --------------------------------------------------------------------

SCHEMAS = (
    st.sampled_from([LEFT, LEFT, LEFT, OTHER_LEFT, TEXT_KEYS, None]),
    st.sampled_from([RIGHT, RIGHT, RIGHT, None]),
)


@st.composite
def batches(draw):
    side = draw(st.integers(0, 1))
    rows = draw(st.lists((LEFT_ROW, RIGHT_ROW)[side], min_size=1, max_size=6))
    schema = draw(SCHEMAS[side])
    if schema is TEXT_KEYS:
        rows = [(None if row[0] is None else str(row[0]), *row[1:]) for row in rows]
    stamps = draw(st.lists(st.integers(-5, 50), min_size=len(rows), max_size=len(rows)))
    return Rows(rows, stamps, side, schema)


SCRIPTS = st.lists(
    st.one_of(batches(), batches(), batches(), BARRIER, st.integers(0, 55).map(Watermark)), max_size=14
).map(lambda steps: [*in_order(steps), Watermark(TIME_MAX_MS)])
ROUTES = (FieldKey(0), FieldKey(0))


@pytest.mark.parametrize("config", [FULL, INCREMENTAL, ROCKSDB], ids=["full", "incremental", "rocksdb"])
@pytest.mark.parametrize("function", ["added", "called"])
@pytest.mark.parametrize("bounds", INTERVALS[:3])
def test_interval_joins_after_any_script_are_those_of_rows(bounds, function, config):
    rows = interval(bounds, FUNCTIONS[function])
    spec = column_interval_join(rows, SHAPES)

    @settings(max_examples=15, deadline=None, phases=PHASES)
    @given(SCRIPTS)
    def check(script):
        model = Case((rows,), script, ROUTES)
        # A record of the very time of the watermark waits for one of the same time, until the next watermark: after a
        # restore that is the same one again.
        wanted = disturbed(model, config) if bounds == (0, 0) else undisturbed(model)
        assert disturbed(Case((spec,), script, ROUTES), config) == wanted

    check()


@pytest.mark.parametrize("config", [FULL, INCREMENTAL, ROCKSDB], ids=["full", "incremental", "rocksdb"])
@pytest.mark.parametrize("function", ["added", "called"])
@pytest.mark.parametrize("kind", ASSIGNERS)
def test_window_joins_after_any_script_are_those_of_rows(kind, function, config):
    rows = windowed(kind, FUNCTIONS[function])
    spec = column_window_join(rows, SHAPES)

    @settings(max_examples=15, deadline=None, phases=PHASES)
    @given(SCRIPTS)
    def check(script):
        assert disturbed(Case((spec,), script, ROUTES), config) == undisturbed(Case((rows,), script, ROUTES))

    check()


def named(left, right):
    return [left["v"], right.x, type(left).__name__]


def some_named(script, every):
    """Return the script with Rows instead of tuples in every ``every``-th step, where they are columns."""
    return [
        replace(step, rows=[row_of_kind(RowKind.INSERT, row, tuple(step.schema.names)) for row in step.rows])
        if isinstance(step, Rows) and step.schema is not None and index % every == 0
        else step
        for index, step in enumerate(script)
    ]


def only_columns(script):
    schemas = LEFT, RIGHT
    return [replace(s, schema=schemas[s.input_index]) if isinstance(s, Rows) else s for s in script if not _texts(s)]


def _texts(step):
    return isinstance(step, Rows) and step.schema is TEXT_KEYS


@pytest.mark.parametrize("name", ["interval", "tumbling"])
@pytest.mark.parametrize("kind", ["named", "called", "mixed"])
def test_joins_of_named_rows_give_functions_rows(name, kind):
    function = named if kind == "named" else called
    rows = interval((-5, 5), function) if name == "interval" else windowed(name, function)
    spec = column_interval_join(rows, SHAPES) if name == "interval" else column_window_join(rows, SHAPES)

    @settings(max_examples=25, deadline=None, phases=PHASES)
    @given(SCRIPTS.map(only_columns).map(lambda script: some_named(script, 2 if kind == "mixed" else 1)))
    def check(script):
        assert disturbed(Case((spec,), script, ROUTES), INCREMENTAL) == undisturbed(Case((rows,), script, ROUTES))

    check()


def test_named_rows_that_columns_have_left_are_rows_for_what_follows():
    for rows, spec in (
        (both := interval((-15, 15), named), column_interval_join(both, SHAPES)),
        (both := windowed("tumbling", named), column_window_join(both, SHAPES)),
    ):
        with OperatorHarness(spec) as harness:
            harness.process_batch(replace(columns([(1, 2, "a")], [4], LEFT), named=True), input_index=0)
            taken = harness.snapshot(1)
        with OperatorHarness(rows, restored=[taken]) as harness:
            harness.process_batch(replace(columns([(1, 0.5, 3)], [5], RIGHT), named=True), input_index=1)
            harness.watermark(TIME_MAX_MS)
            assert harness.output.rows == [[2, 0.5, "Row"]]


def test_late_rows_stay_rows():
    for spec in (
        column_interval_join(interval((-15, 15), called), SHAPES),
        column_window_join(windowed("tumbling", called), SHAPES),
    ):
        with OperatorHarness(spec) as harness:
            harness.watermark(100)
            harness.process_batch(replace(columns([(1, 2, "a")], [4], LEFT), named=True), input_index=0)
            (late,) = harness.output.side["late"]
            assert late.to_rows().rows == [Row(k=1, v=2, name="a")]


@pytest.mark.parametrize("name", ["interval", "window"])
def test_records_with_keys_of_other_types_come_together(name):
    """Of two subtasks, one has seen int64 and the other text; a third takes over both."""
    rows = interval((-5, 5), called) if name == "interval" else windowed("tumbling", called)
    spec = column_interval_join(rows, SHAPES) if name == "interval" else column_window_join(rows, SHAPES)
    texts = [key for key in map(str, range(30)) if subtask_of(key, 2) == 1]
    numbers = [key for key in range(30) if subtask_of(key, 2) == 0]
    script = [
        Rows([(key, 1, "a") for key in numbers], [5] * len(numbers), 0, LEFT),
        Rows([(key, 2, "b") for key in texts], [5] * len(texts), 0, TEXT_KEYS),
    ]
    more = [Rows([(key, 0.5, 7) for key in numbers + texts], [6] * len(numbers + texts), 1), Watermark(TIME_MAX_MS)]
    run = Run(Case((spec,), [*script, *more], ROUTES), FULL, None)
    run.start(2)
    run.play([*script, MARK])
    run.start(1)
    assert run.harnesses[0].operators[0]._state.others
    run.play([MARK])
    run.start(1)
    run.play(more)
    results = run.finish()
    assert results == straight(Case((rows,), [*script, *more], ROUTES))
    assert results.total() == len(numbers + texts)


@pytest.mark.parametrize("name", ["interval", "tumbling", "sliding"])
def test_rows_go_on_where_columns_have_left_off(name):
    rows = interval((-15, 15), called) if name == "interval" else windowed(name, called)
    spec = column_interval_join(rows, SHAPES) if name == "interval" else column_window_join(rows, SHAPES)
    before = [
        Rows([(key, 1, "a") for key in range(6)], [12] * 6, 0, LEFT),
        Rows([(key, 1.5, 1) for key in range(6)], [11] * 6, 1, RIGHT),
        Watermark(14),
    ]
    after = [
        Rows([(key, 2.5, 2) for key in range(6)], [15] * 6, 1, RIGHT),
        Rows([(key, 2, "b") for key in range(6)], [17] * 6, 0, LEFT),
        Watermark(TIME_MAX_MS),
    ]
    run = Run(Case((spec,), [*before, *after], ROUTES), FULL, None)
    run.start(1)
    run.play([*before, MARK])
    run.case = Case((rows,), [], ROUTES)
    run.start(2)
    run.play([MARK])  # what nobody has taken up yet stays in checkpoints
    run.start(1)
    run.play(after)
    assert run.finish() == straight(Case((rows,), [*before, *after], ROUTES))


def test_a_record_whose_partners_are_gone_is_forgotten(monkeypatch):
    monkeypatch.setattr("engine.operators.column_interval_join._COMPACT_MIN", 100)
    spec = column_interval_join(interval((0, 5), FUNCTIONS["added"]), SHAPES)
    results = Counter()
    with OperatorHarness(spec) as harness:
        for at in range(0, 3000, 10):
            left = [(None if i == 7 else at * 10 + i, i, f"n{at}-{i}") for i in range(20)]
            right = [(row[0], 0.5, row[1]) for row in left]
            harness.process_batch(columns(left, [at] * 20, LEFT))
            harness.process_batch(columns(right, [at + 5] * 20, RIGHT), input_index=1)
            harness.watermark(at)
            results.update(row[1] == row[5] and row[2] == f"n{at}-{row[1]}" for row in harness.output.rows)
            harness.output.batches.clear()
            for side in harness.head._state.memory.sides:
                assert side.store.num_rows < 250
        assert harness.head._state.memory.table.num_slots < 300
    assert results == {True: 20 * 300}


def test_a_window_join_keeps_many_small_batches_as_few():
    spec = column_window_join(windowed("tumbling", FUNCTIONS["added"]), SHAPES)
    with OperatorHarness(spec) as harness:
        for n in range(1000):
            harness.process_batch(columns([(n, n, "a")], [5], LEFT))
        ((left, _),) = harness.head._state.panes.values()
        assert len(left) <= 10
        assert harness.head._state.num_entries() == 1000
        harness.watermark(100)
        assert harness.head._state.num_entries() == 0


def test_windows_that_one_of_two_subtasks_had_fired_do_not_fire_again():
    """Unaligned: the barrier has overtaken a watermark on its way to the second subtask."""
    spec = column_window_join(windowed("sliding", FUNCTIONS["added"]), SHAPES)
    keys = [next(key for key in range(99) if subtask_of(key, 2) == index) for index in range(2)]
    snapshots, seen = [], Counter()
    for index, watermark_ms in enumerate((9, 3)):
        with OperatorHarness(spec, subtask_index=index, parallelism=2) as harness:
            harness.process_batch(columns([(keys[index], 1, "a")], [2], LEFT))
            harness.process_batch(columns([(keys[index], 1.5, 1)], [3], RIGHT), input_index=1)
            harness.watermark(watermark_ms)
            seen.update(zip(harness.output.rows, harness.output.timestamps_ms, strict=True))
            snapshots.append(harness.snapshot(1))
    with OperatorHarness(spec, restored=snapshots) as harness:
        harness.watermark(100)
        seen.update(zip(harness.output.rows, harness.output.timestamps_ms, strict=True))
    assert seen == {((key, 1, "a", key, 1.5, 1), end - 1): 1 for key in keys for end in (5, 10, 15, 20)}


def test_a_record_at_the_very_watermark_is_handed_over_with_the_others():
    rows = interval((0, 0), FUNCTIONS["added"])
    found = []
    for spec in (rows, column_interval_join(rows, SHAPES)):
        with OperatorHarness(spec) as harness:
            harness.process_batch(columns([(1, 1, "gone")], [5], LEFT))
            harness.watermark(5)
            harness.process_batch(columns([(1, 2, "kept")], [5], LEFT))
            harness.process([(1, 0.5, 3)], [5], input_index=1)
            found.append(harness.output.rows)
    assert found[0] == found[1] == [(1, 2, "kept", 1, 0.5, 3)]
