"""Regular joins, on rows and on columns, against what the output says of the tables so far."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.clock import ManualClock
from engine.core.errors import UserCodeError
from engine.core.records import ColumnBatch, Row, RowKind, kind_of, row_of_kind, rows_of
from engine.operators.column_regular_join import ColumnRegularJoinSpec, column_regular_join
from engine.operators.compile.expressions import Kind
from engine.operators.compile.translate import Shape
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.regular_join import JOIN_KINDS, Beside, RegularJoinSpec
from engine.operators.stateless import MapSpec
from engine.time.windows import TIME_MAX_MS
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import MARK, Case, Rows, Watermark
from tests.unit.operators.test_restore import FULL, INCREMENTAL, ROCKSDB, Run, straight
from tests.unit.operators.test_restore_columns import BARRIER, PHASES, disturbed, subtask_of, undisturbed

LEFT = pa.schema([("k", pa.int64()), ("v", pa.int64()), ("name", pa.string())])
RIGHT = pa.schema([("k", pa.int64()), ("x", pa.float64()), ("w", pa.int64())])
#: The same records with keys of another type: columns cannot compare these with the others' in one subtask.
TEXT_KEYS = LEFT.set(0, pa.field("k", pa.large_string()))
NARROW_KEYS = LEFT.set(0, pa.field("k", pa.int32()))
NARROW_VALUES = LEFT.set(1, pa.field("v", pa.int32()))
SHAPES = (Shape((Kind.INT, Kind.INT, Kind.STR)), Shape((Kind.INT, Kind.FLOAT, Kind.INT)))
KEYS = {"field": (FieldKey(0), FieldKey(0)), "tuple": (ComposedKey((0, 1)), ComposedKey((0, 2)))}
BESIDE = Beside((3, 3))


def computed(left, right):
    k, v, name = left
    return (k, v + right[2], name, right[1])


def called(left, right):
    return [left, right]


OUTPUTS = {"beside": BESIDE, "named": Beside((3, 3), tuple("abcdef")), "computed": computed, "called": called}


def join(how, output=BESIDE, keys="field", **settings):
    return RegularJoinSpec(KEYS[keys], how, output, **settings)


def on_columns(rows):
    spec = column_regular_join(rows, SHAPES)
    assert isinstance(spec, ColumnRegularJoinSpec)
    return spec


def shown(result):
    """Of a Row its kind too, which ``repr`` does not say."""
    return (str(kind_of(result)), type(result).__name__, repr(result))


FEW = st.integers(-3, 3)
LEFT_ROW = st.tuples(st.one_of(st.none(), st.integers(0, 2)), FEW, st.one_of(st.none(), st.sampled_from(["", "ä"])))
RIGHT_ROW = st.tuples(st.one_of(st.none(), st.integers(0, 2)), st.sampled_from([0.0, -0.0, 1.5]), FEW)


def columns(rows, schema):
    arrays = [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(schema)]
    return ColumnBatch(pa.RecordBatch.from_arrays(arrays, schema=schema))


def key_of(row, side, keys):
    values = row[:1] if keys == "field" else (row[0], row[1 if side == 0 else 2])
    return None if None in values else values


def table_of(sides, how, keys, condition=None):
    """Return the rows of the join of two tables, each with its number: two loops."""
    outer = JOIN_KINDS[how]
    joined = Counter()
    matched = set()
    for i, left in enumerate(sides[0]):
        for j, right in enumerate(sides[1]):
            key = key_of(left, 0, keys)
            if key is not None and key == key_of(right, 1, keys) and (condition is None or condition(left, right)):
                joined[(*left, *right)] += 1
                matched |= {(0, i), (1, j)}
    for side, rows in enumerate(sides):
        for i, row in enumerate(rows):
            if outer[side] and (side, i) not in matched:
                joined[(*row, None, None, None) if side == 0 else (None, None, None, *row)] += 1
    return joined


def applied(table, results):
    for result in results:
        if kind_of(result) in (RowKind.INSERT, RowKind.UPDATE_AFTER):
            table[tuple(result)] += 1
        else:
            table[tuple(result)] -= 1
            assert table[tuple(result)] >= 0, "taken back before it was given"
    return +table


STEP = st.one_of(
    st.lists(LEFT_ROW, max_size=5).map(lambda rows: (0, rows)),
    st.lists(RIGHT_ROW, max_size=5).map(lambda rows: (1, rows)),
)


def greater(left, right):
    return left[1] >= right[2]


@pytest.mark.parametrize("how", JOIN_KINDS)
@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("kind", ["rows", "condition", "columns"])
def test_after_each_batch_the_output_says_what_the_join_of_both_tables_is(kind, keys, how):
    condition = greater if kind == "condition" else None
    rows = join(how, keys=keys, condition=condition)

    @settings(max_examples=6, deadline=None, phases=PHASES)
    @given(st.lists(STEP, max_size=7))
    def check(steps):
        sides, table = ([], []), Counter()
        with OperatorHarness(on_columns(rows) if kind == "columns" else rows) as harness:
            for side, records in steps:
                batch = columns(records, (LEFT, RIGHT)[side])
                harness.process_batch(batch if kind == "columns" else rows_of(batch), input_index=side)
                sides[side].extend(records)
                table = applied(table, harness.output.rows)
                harness.output.batches.clear()
                assert table == table_of(sides, how, keys, condition)

    check()


def quotient(left, right):
    """Fails for some pairs, and is in doubt where sums are beyond 64 bits."""
    return left[1] // right[2] > 0


def doubtful(left, right):
    return left[1] + right[2] > 0 and left[2] != "no"


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("condition", [greater, quotient, doubtful])
def test_a_condition_on_columns_holds_for_the_pairs_for_which_it_holds_on_rows(condition, output):
    rows = join("inner", OUTPUTS[output], condition=condition)
    large = st.one_of(FEW, st.just(2**63 - 1))
    step = st.one_of(
        st.lists(st.tuples(st.integers(0, 1), large, st.just("a")), max_size=5).map(lambda some: (0, some, True)),
        st.lists(st.tuples(st.integers(0, 1), st.just(0.5), large), max_size=5).map(lambda some: (1, some, True)),
    )

    @settings(max_examples=15, deadline=None, phases=PHASES)
    @given(st.lists(step, max_size=6))
    def check(steps):
        assert seen_or_told(on_columns(rows), steps) == seen_or_told(rows, steps)

    check()


def seen_or_told(spec, steps):
    try:
        return play(spec, steps)
    except UserCodeError as error:
        return str(error).splitlines()[0]


@st.composite
def changelogs(draw):
    """Steps (side, kind, row) that take back what stands there only."""
    steps, sides = [], ([], [])
    for _ in range(draw(st.integers(0, 20))):
        side = draw(st.integers(0, 1))
        if sides[side] and draw(st.booleans()):
            row = sides[side].pop(draw(st.integers(0, len(sides[side]) - 1)))
            steps.append((side, draw(st.sampled_from([RowKind.UPDATE_BEFORE, RowKind.DELETE])), row))
        else:
            row = draw((LEFT_ROW, RIGHT_ROW)[side])
            sides[side].append(row)
            steps.append((side, draw(st.sampled_from([RowKind.INSERT, RowKind.UPDATE_AFTER])), row))
    return steps


@pytest.mark.parametrize("how", JOIN_KINDS)
@pytest.mark.parametrize("condition", [None, greater])
def test_what_an_input_takes_back_is_taken_back_in_the_output(condition, how):
    spec = join(how, condition=condition)

    @settings(max_examples=15, deadline=None, phases=PHASES)
    @given(changelogs())
    def check(steps):
        sides, table = ([], []), Counter()
        with OperatorHarness(spec) as harness:
            for side, kind, row in steps:
                harness.process([row_of_kind(kind, row)], input_index=side)
                if kind in (RowKind.INSERT, RowKind.UPDATE_AFTER):
                    sides[side].append(row)
                else:
                    sides[side].remove(row)
                table = applied(table, harness.output.rows)
                harness.output.batches.clear()
                assert table == table_of(sides, how, "field", condition)

    check()


def test_kinds_are_those_of_flink():
    def kinds(how, *steps):
        with OperatorHarness(join(how)) as harness:
            for side, kind, row in steps:
                harness.process([row_of_kind(kind, row)], input_index=side)
            return [(str(kind_of(row)), *row) for row in harness.output.rows]

    left, right = (1, 2, "a"), (1, 0.5, 3)
    none = (None, None, None)
    back = [(0, RowKind.INSERT, left), (1, RowKind.INSERT, right), (1, RowKind.UPDATE_BEFORE, right)]
    again = (1, RowKind.UPDATE_AFTER, right)
    assert kinds("inner", *back, again) == [("+I", *left, *right), ("-U", *left, *right), ("+U", *left, *right)]
    assert kinds("left", *back, again) == [
        ("+I", *left, *none),
        ("-D", *left, *none),
        ("+I", *left, *right),
        ("-U", *left, *right),
        ("+I", *left, *none),
        ("-D", *left, *none),
        ("+I", *left, *right),
    ]
    assert kinds("right", *back) == [("+I", *left, *right), ("-D", *left, *right)]


def play(spec, steps):
    """Return the results after each step, in their order."""
    seen = []
    with OperatorHarness(spec, MapSpec(shown)) as harness:
        for side, records, stamped in steps:
            batch = columns(records, (LEFT, RIGHT)[side])
            if stamped:
                batch = replace(batch, timestamps_ms=pa.array(range(len(records)), pa.int64()).to_numpy())
            harness.process_batch(batch, input_index=side)
            seen.append((harness.output.rows, harness.output.timestamps_ms))
            harness.output.batches.clear()
    return seen


@pytest.mark.parametrize(
    ("output", "how"),
    [(output, how) for output in OUTPUTS for how in JOIN_KINDS if output != "computed" or how == "inner"],
)
def test_joins_of_columns_give_what_those_of_rows_give_in_that_order(output, how):
    rows = join(how, OUTPUTS[output])
    assert (on_columns(rows).shape is not None) is (output != "called")

    @settings(max_examples=6, deadline=None, phases=PHASES)
    @given(st.lists(st.tuples(STEP, st.booleans()).map(lambda step: (*step[0], step[1])), max_size=7))
    def check(steps):
        assert play(on_columns(rows), steps) == play(rows, steps)

    check()


def test_many_changes_come_in_portions(monkeypatch):
    monkeypatch.setattr("engine.operators.column_regular_join.BATCH_ROWS_MAX", 7)
    steps = [
        (0, [(i % 2, i, "a") for i in range(40)], True),
        (1, [(i % 3, 0.5, i) for i in range(30)], True),
        (0, [(i % 2, i, "b") for i in range(3)], False),
    ]
    for how in JOIN_KINDS:
        seen = play(on_columns(join(how)), steps)
        assert len(seen[1][0]) >= 400
        assert seen == play(join(how), steps)


def test_what_columns_cannot_do_is_said_in_the_plan():
    plain = join("left")
    assert (
        column_regular_join(plain, (None, None)).describe()
        == "vectorised, left, records by key, a changelog of columns"
    )
    changed = replace(plain, key_selectors=(len, len))
    assert "its key is a function that is not compiled" in column_regular_join(changed, SHAPES)
    assert plain.describe() == "left, on rows"
    inner = on_columns(join("inner", condition=greater))
    assert inner.describe() == "vectorised, inner, records by key, condition compiled, columns beside columns"
    asked = on_columns(join("left", condition=lambda a, b: bool({a, b}), ttl_ms=5))
    assert (
        asked.describe() == "vectorised, left, records by key, condition called for each pair, a changelog of columns"
    )
    for output, is_columns in ((BESIDE, False), (OUTPUTS["named"], True), (computed, False)):
        spec = column_regular_join(join("inner", output), SHAPES, has_kinds=True)
        assert spec.describe().endswith("a changelog of " + ("columns" if is_columns else "rows"))
        assert spec.emits_kinds
        assert spec.emits_columns is is_columns


def test_an_error_of_the_output_is_told_with_both_records():
    def fails(left, right):
        return left[1] // right[2]

    told = []
    steps = [(0, [(1, 1, "a"), (2, 5, "a")], False), (1, [(2, 0.5, 1), (2, 0.5, 0)], False)]
    for spec in (join("inner", fails), on_columns(join("inner", fails))):
        with pytest.raises(UserCodeError) as error:
            play(spec, steps)
        told.append(str(error.value))
    assert "(2, 5, 'a'), (2, 0.5, 0)" in told[0]
    assert told[0] == told[1]


def test_records_are_forgotten_after_their_time_to_live_and_nothing_is_taken_back():
    clock = ManualClock(1000)
    with OperatorHarness(join("left", ttl_ms=10), MapSpec(shown), clock=clock) as harness:
        harness.process([(1, 1, "a")], input_index=0)
        clock.advance(9)
        harness.process([(1, 0.5, 1)], input_index=1)
        assert len(harness.output.rows) == 3
        clock.advance(9)  # the left one has been written anew, with its first partner
        harness.process([(1, 0.5, 2)], input_index=1)
        assert [row[0] for row in harness.output.rows[3:]] == ["+I"]
        clock.advance(12)
        harness.process([(1, 0.5, 3)], input_index=1)
        assert len(harness.output.rows) == 4


# --- crashes, other parallelism, other types, rows --------------------------------------------------------------------

SCHEMAS = (
    st.sampled_from([LEFT, LEFT, LEFT, NARROW_KEYS, TEXT_KEYS, None]),
    st.sampled_from([RIGHT, RIGHT, RIGHT, None]),
)
ROUTES = (FieldKey(0), FieldKey(0))


@st.composite
def batches(draw):
    side = draw(st.integers(0, 1))
    rows = draw(st.lists((LEFT_ROW, RIGHT_ROW)[side], min_size=1, max_size=6))
    schema = draw(SCHEMAS[side])
    if schema is TEXT_KEYS:
        rows = [(None if row[0] is None else str(row[0]), *row[1:]) for row in rows]
    return Rows(rows, None, side, schema)


SCRIPTS = st.lists(st.one_of(batches(), batches(), BARRIER), max_size=14).map(
    lambda steps: [*steps, Watermark(TIME_MAX_MS)]
)


@pytest.mark.parametrize("config", [FULL, INCREMENTAL, ROCKSDB], ids=["full", "incremental", "rocksdb"])
@pytest.mark.parametrize("how", [*JOIN_KINDS, "inner, condition"])
def test_joins_after_any_script_are_those_of_rows(how, config):
    rows = join(how.split(",")[0], condition=greater if "," in how else None)

    @settings(max_examples=6, deadline=None, phases=PHASES)
    @given(SCRIPTS)
    def check(script):
        golden = undisturbed(Case((rows, MapSpec(shown)), script, ROUTES))
        assert disturbed(Case((on_columns(rows), MapSpec(shown)), script, ROUTES), config) == golden

    check()


@pytest.mark.parametrize("how", ["inner", "full"])
@pytest.mark.parametrize("schema", [TEXT_KEYS, NARROW_VALUES], ids=["keys", "values"])
def test_records_of_other_types_come_together(schema, how):
    """Two subtasks have seen records of different types; a third takes over both, and increments of both."""
    rows = join(how)
    candidates = [str(key) if schema is TEXT_KEYS else key for key in range(30)]
    others = [key for key in candidates if subtask_of(key, 2) == 1]
    numbers = [key for key in range(30) if subtask_of(key, 2) == 0]
    right = RIGHT.set(0, schema.field(0))
    first = [
        Rows([(key, 1, "a") for key in numbers], None, 0, LEFT),
        Rows([(key, 2, "b") for key in others], None, 0, schema),
    ]
    second = [
        Rows([(key, 3, "c") for key in numbers], None, 0, LEFT),
        Rows([(key, 0.5, 4) for key in others], None, 1, right),
    ]
    more = [Rows([(key, 0.5, 7) for key in numbers + others], None, 1), Rows([(key, 5, "d") for key in others])]
    specs = (on_columns(rows), MapSpec(shown))
    run = Run(Case(specs, [], ROUTES), INCREMENTAL, None)
    run.start(2)
    run.play([*first, MARK, *second, MARK])
    assert run.num_deltas == 4  # two of them are empty: of what rows keep
    run.start(1)
    assert run.harnesses[0].operators[0]._state.others
    run.play([MARK])
    run.start(1)
    run.play(more)
    assert run.finish() == straight(Case((rows, MapSpec(shown)), [*first, *second, *more], ROUTES))


@pytest.mark.parametrize("how", JOIN_KINDS)
def test_state_that_outgrows_its_memory_goes_to_the_disk(how, monkeypatch):
    rows = join(how)
    steps = [Rows([(key, 1, "a") for key in range(6)], None, 0, LEFT), Rows([(3, 1.5, 1)], None, 1, RIGHT)]
    run = Run(Case((on_columns(rows), MapSpec(shown)), [], ROUTES), ROCKSDB, None)
    run.start(1)
    run.play([*steps, MARK])
    assert not run.harnesses[0].operators[0]._is_on_rows
    run.start(2)
    monkeypatch.setattr("engine.operators.column_join.MemoryWatch.must_leave", lambda watch, held_bytes: held_bytes > 0)
    run.play([*steps, MARK])
    assert all(harness.operators[0]._is_on_rows for harness in run.harnesses)
    run.start(1)
    run.play(steps)
    assert run.finish() == straight(Case((rows, MapSpec(shown)), steps * 3, ROUTES))


@pytest.mark.parametrize("how", JOIN_KINDS)
def test_rows_go_on_where_columns_have_left_off(how):
    rows = join(how)
    before = [Rows([(key, 1, "a") for key in range(6)], None, 0, LEFT), Rows([(3, 1.5, 1)], None, 1, RIGHT)]
    later = [Rows([(3, 2.5, 1), (4, 2.5, 1)], None, 1, RIGHT)]
    after = [Rows([(key, 2.5, 2) for key in range(8)], None, 1), Rows([(3, 2, "b")], None, 0)]
    run = Run(Case((on_columns(rows), MapSpec(shown)), [], ROUTES), INCREMENTAL, None)
    run.start(1)
    run.play([*before, MARK, *later, MARK])
    run.case = Case((rows, MapSpec(shown)), [], ROUTES)
    run.start(2)
    run.play([MARK])  # what nobody has taken up yet stays in checkpoints
    run.start(1)
    run.play(after)
    assert run.finish() == straight(Case((rows, MapSpec(shown)), [*before, *later, *after], ROUTES))


def test_a_retraction_finds_its_record_where_that_came_as_a_column():
    with OperatorHarness(on_columns(join("inner"))) as harness:
        harness.process_batch(columns([(1, 2, "a")], LEFT))
        harness.process_batch(columns([(1, 0.5, 3)], RIGHT), input_index=1)
        harness.process([Row.of_kind(RowKind.DELETE, 1, 2, "a")], input_index=0)
        harness.process([(1, 0.5, 4)], input_index=1)
        assert [shown(row)[0] for row in harness.output.rows] == ["+I", "-D"]
