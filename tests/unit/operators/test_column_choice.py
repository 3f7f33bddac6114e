"""Functions that pick one of two records, the first, the last or by a comparison, on columns."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from engine.core.errors import ProgramError
from engine.core.records import ColumnBatch
from engine.operators.aggregate import KeyedAggregateSpec, KeyedReduceSpec
from engine.operators.column_aggregate import ColumnAggregateSpec, ColumnReduceSpec
from engine.operators.column_folds import choice_of, folded_values, shape_of_schema
from engine.operators.column_window import column_window
from engine.operators.functions import ReduceFunction
from engine.operators.keys import FieldKey
from engine.operators.process_functions import ProcessWindowFunction
from engine.operators.record_choice import RecordChoice
from engine.operators.window import WindowSpec
from engine.operators.window_contents import ReduceFold
from engine.operators.window_functions import window_call
from engine.time.assigners import TumblingEventTimeWindows
from engine.time.triggers import EventTimeTrigger
from engine.time.windows import TIME_MAX_MS
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import MARK, Case, Rows, Watermark
from tests.unit.operators.test_column_aggregate import FLOATS, columns, run, told_apart
from tests.unit.operators.test_column_reduce import ROW, SCHEMA, function_of
from tests.unit.operators.test_restore import FULL, INCREMENTAL, Run
from tests.unit.operators.test_restore_columns import BARRIER, disturbed, in_order, undisturbed

SIGNS = ["<", "<=", ">", ">="]
TESTS = [f"{x}[{i}] {sign} {y}[{i}]" for x, y in ("ab", "ba") for i in (1, 2, -2) for sign in SIGNS]
PICKS = ["a", "b", *(f"{x} if {test} else {y}" for x, y in ("ab", "ba") for test in TESTS)]
PHASES = [Phase.explicit, Phase.reuse, Phase.generate]


@pytest.mark.parametrize("final", [False, True])
@settings(max_examples=250, deadline=None)
@given(st.sampled_from(PICKS), st.lists(st.lists(ROW, min_size=1, max_size=10), max_size=4))
def test_what_is_picked_is_what_the_interpreter_picks(final, picked, batches):
    function = function_of(f"f = lambda a, b: {picked}\n")
    given_ = [columns(batch, SCHEMA) for batch in batches]
    with OperatorHarness(ColumnReduceSpec(FieldKey(0), function, final)) as harness:
        for batch in given_:
            harness.process_batch(batch)
        harness.end()
        assert all(isinstance(batch, ColumnBatch) for batch in harness.output.batches)
        ours = harness.output.rows
    theirs = run(KeyedReduceSpec(FieldKey(0), function, final), given_)[0]
    sort = sorted if final else list
    assert sort(told_apart(ours)) == sort(told_apart(theirs))


class Newest(ReduceFunction):
    def reduce(self, value1, value2):
        return value2 if value2[1] >= value1[1] else value1


def by_statement(a, b):
    """The later one."""
    if a[1] > b[1]:
        return a
    return b


def by_else(a, b):
    time = b[1]
    if time > a[1]:
        return b
    else:
        return a


def reads_more(a, b):
    if a[1] > b[1] and a[0]:
        return a
    return b


def sometimes_nothing(a, b):
    if a[1] > b[1]:
        return a


@pytest.mark.parametrize(
    ("function", "choice"),
    [
        (Newest(), RecordChoice(1, ">=")),
        (by_statement, RecordChoice(1, "<", negated=True)),
        (by_else, RecordChoice(1, ">")),
        (lambda a, b: b if b[-1] < a[-1] else a, RecordChoice(3, "<")),
        (reads_more, None),
        (sometimes_nothing, None),
        (lambda a, b: b if b[1] > a[3] else a, None),
        (lambda a, b: b if b[1] > b[3] else a, None),
        (lambda a, b: b if b[1] == a[1] else a, None),
        (lambda a, b: b if b[2] > a[2] else a, RecordChoice(2, ">")),
        (function_of("f = lambda a, b: b if b[1] > a[1] else b\n"), None),
        (function_of("f = lambda a, b: b if b[1] > a[1] else RATE\n"), None),
        (lambda a, b: (b if b[1] > a[1] else a)[:], None),
        (lambda a, b: b if b[4] > a[4] else a, None),
        (lambda a, b: b if b[0] < a[0] < 5 else a, None),
        (lambda a, b, c=1: b if b[1] > a[1] else a, None),
    ],
)
def test_a_function_is_known_to_pick_only_where_it_compares_one_number_or_text_of_both(function, choice):
    schema = pa.schema([("k", pa.int64()), ("v", pa.int64()), ("s", pa.string()), ("t", pa.int64())])
    assert choice_of(function, schema) == choice


def test_the_first_and_the_last_record_are_folds_of_fields_of_any_type():
    schema = pa.schema([("k", pa.int64()), ("t", pa.timestamp("ms")), ("d", pa.decimal128(9, 2)), ("b", pa.bool_())])
    rows = [(1, 5, 2, True), (1, None, None, None), (1, 7, 3, False)]
    for function in (lambda a, b: a, lambda a, b: b):
        assert folded_values(function, schema) is not None
        batches = [columns(rows, schema), columns(rows[1:], schema)]
        theirs = run(KeyedReduceSpec(FieldKey(0), function), batches)
        assert run(ColumnReduceSpec(FieldKey(0), function), batches) == theirs


PAIRS = pa.schema([("k", pa.int64()), ("v", pa.int64()), ("w", pa.string())])


@st.composite
def batches(draw):
    texts = st.one_of(st.none(), st.sampled_from(["", "a", "é"]))
    rows = draw(st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 3), texts), min_size=1, max_size=6))
    return Rows(rows, None, schema=draw(st.sampled_from([PAIRS, PAIRS, PAIRS, None])))


FUNCTIONS = {
    "first": lambda a, b: a,
    "last": lambda a, b: b,
    "greatest": lambda a, b: b if b[1] > a[1] else a,
    "last of least": lambda a, b: a if a[1] < b[1] else b,
}


@pytest.mark.parametrize("config", [FULL, INCREMENTAL], ids=["full", "incremental"])
@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_after_any_script_with_crashes_and_other_parallelisms_results_are_those_of_rows(name, final, config):
    function = FUNCTIONS[name]

    @settings(max_examples=25, deadline=None, phases=PHASES)
    @given(st.lists(st.one_of(batches(), batches(), BARRIER), max_size=14))
    def check(script):
        ours = disturbed(Case((ColumnReduceSpec(FieldKey(0), function, final),), script), config)
        assert ours == undisturbed(Case((KeyedReduceSpec(FieldKey(0), function, final),), script))

    check()


def sums(a, b):
    return a[0], a[1] + b[1], a[2]


SPECS = {
    "max_by, then rows": (
        (ColumnAggregateSpec(FieldKey(0), "max_by", 1), KeyedAggregateSpec(FieldKey(0), "max_by", 1)),
        (KeyedAggregateSpec(FieldKey(0), "max_by", 1), KeyedAggregateSpec(FieldKey(0), "max_by", 1)),
    ),
    "max_by, then min": (
        (ColumnAggregateSpec(FieldKey(0), "max_by", 1), KeyedAggregateSpec(FieldKey(0), "max_by", 1)),
        (ColumnAggregateSpec(FieldKey(0), "min", 1), KeyedAggregateSpec(FieldKey(0), "min", 1)),
    ),
    **{
        f"{before}, then {after}": (
            (ColumnReduceSpec(FieldKey(0), FUNCTIONS[before]), KeyedReduceSpec(FieldKey(0), FUNCTIONS[before])),
            (spec(FieldKey(0), function), KeyedReduceSpec(FieldKey(0), function)),
        )
        for before, after, spec, function in (
            ("greatest", "rows", KeyedReduceSpec, FUNCTIONS["greatest"]),
            ("greatest", "sums", ColumnReduceSpec, sums),
            ("first", "last of least", ColumnReduceSpec, FUNCTIONS["last of least"]),
        )
    },
}


def changed(before, after, scripts, config, parallelism):
    """Return what comes out of an operator that another one follows, in the middle of its work."""
    run_ = Run(Case((before,), [], (FieldKey(0),)), config, None)
    run_.start(parallelism)
    run_.play(scripts[0])
    run_.case = Case((after,), [], (FieldKey(0),))
    run_.start(1)
    run_.play(scripts[1])
    return run_.finish()


@pytest.mark.parametrize("config", [FULL, INCREMENTAL], ids=["full", "incremental"])
@pytest.mark.parametrize("name", SPECS)
def test_another_function_goes_on_with_the_records_that_were_picked(name, config):
    (before, before_on_rows), (after, after_on_rows) = SPECS[name]
    first = [Rows([(n % 5, n, f"{n}") for n in range(20)], schema=PAIRS), MARK, Rows([(3, 4, "x")], schema=PAIRS), MARK]
    second = [Rows([(1, 100, "y"), (7, 1, "z"), (2, -7, "u")], schema=PAIRS), MARK]
    ours = changed(before, after, (first, second), config, 2)
    assert ours == changed(before_on_rows, after_on_rows, (first, second), config, 1)


# --- windows ----------------------------------------------------------------------------------------------------------

VALUED = pa.schema([("k", pa.int64()), ("v", pa.int64()), ("x", pa.float64()), ("s", pa.string())])


class WithStart(ProcessWindowFunction):
    def process(self, key, context, elements):
        for record in elements:
            yield key, context.window().start, record


def windows(function, window_function=None, lateness_ms=0, key=FieldKey(0)):
    return WindowSpec(
        (key,),
        TumblingEventTimeWindows(10, 3),
        EventTimeTrigger(),
        window_call(window_function),
        ReduceFold(function),
        None,
        lateness_ms,
        "late",
    )


def columnar(rows, schema=VALUED):
    spec = column_window(rows, shape_of_schema(schema))
    assert spec is not None
    return spec


@st.composite
def timed(draw):
    row = st.tuples(st.integers(0, 3), st.integers(-3, 3), FLOATS, st.sampled_from(["", "a", "é"]))
    rows = draw(st.lists(row, min_size=1, max_size=8))
    stamps = draw(st.lists(st.integers(-5, 50), min_size=len(rows), max_size=len(rows)))
    return Rows(rows, stamps, schema=draw(st.sampled_from([VALUED] * 5 + [None])))


TIMED_SCRIPTS = st.lists(st.one_of(timed(), timed(), BARRIER, st.integers(0, 55).map(Watermark)), max_size=14).map(
    lambda steps: [*in_order(steps), Watermark(TIME_MAX_MS)]
)


@pytest.mark.parametrize("config", [FULL, INCREMENTAL], ids=["full", "incremental"])
@pytest.mark.parametrize("window_function", [None, WithStart()], ids=["alone", "and a function"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_windows_that_pick_records_are_those_of_rows_after_any_script(name, window_function, config):
    @settings(max_examples=20, deadline=None, phases=PHASES)
    @given(TIMED_SCRIPTS, st.sampled_from([0, 12]))
    def check(script, lateness_ms):
        rows = windows(FUNCTIONS[name], window_function, lateness_ms)
        assert disturbed(Case((columnar(rows),), script), config) == undisturbed(Case((rows,), script))

    check()


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PICKS), timed())
def test_windows_pick_what_the_interpreter_picks(picked, step):
    rows = windows(function_of(f"f = lambda a, b: {picked}\n"))
    script = [Rows(step.rows, step.stamps, schema=VALUED), Watermark(TIME_MAX_MS)]
    assert undisturbed(Case((columnar(rows),), script)) == undisturbed(Case((rows,), script))


@pytest.mark.parametrize("lateness_ms", [0, 15])
def test_windows_on_rows_go_on_with_the_records_that_columns_have_picked(lateness_ms):
    rows = windows(lambda a, b: b if b[2] > a[2] else a, None, lateness_ms)
    records = [(n % 5, n, (7 * n) % 11 / 4, "abc"[n % 3]) for n in range(24)]
    before = [Rows(records, list(range(24)), schema=VALUED), Watermark(12), MARK]
    after = [Rows([(1, 100, 0.5, "x"), (7, 1, 1.0, "y"), (3, 2, 9.0, "z")], [16, 20, 11]), Watermark(TIME_MAX_MS)]
    run_ = Run(Case((columnar(rows),), []), FULL, None)
    run_.start(2)
    run_.play(before)
    run_.case = Case((rows,), [])
    run_.start(1)
    run_.play([MARK])
    run_.start(3)
    run_.play(after)
    assert run_.finish() == undisturbed(Case((rows,), [*before[:2], *after]))


def test_windows_that_compare_another_field_than_before_do_not_take_one_for_the_other():
    """Both are of one type: nothing else would tell that the columns of a checkpoint have changed places."""
    schema = pa.schema([("k", pa.int64()), ("v", pa.int64()), ("w", pa.int64())])
    before, after = (windows(lambda a, b: b if b[1] > a[1] else a), windows(lambda a, b: b if b[2] > a[2] else a))
    run_ = Run(Case((columnar(before, schema),), []), FULL, None)
    run_.start(1)
    run_.play([Rows([(1, 1, 2)], [4], schema=schema), MARK])
    run_.case = Case((columnar(after, schema),), [])
    with pytest.raises(ProgramError, match="by other fields"):
        run_.start(1)


def test_records_of_more_fields_than_were_planned_are_compared_as_the_function_says():
    """Counted from the end, the field is another one."""
    rows = windows(lambda a, b: b if b[-1] > a[-1] else a)
    planned = pa.schema([("k", pa.int64()), ("v", pa.int64())])
    wider = pa.schema([*planned, ("w", pa.int64())])
    script = [Rows([(1, 5, 1), (1, 4, 2)], [4, 5], schema=wider), Watermark(TIME_MAX_MS)]
    found = undisturbed(Case((columnar(rows, planned),), script))
    assert found == undisturbed(Case((rows,), script))


def test_windows_whose_key_is_a_float_are_left_to_rows():
    """0.0 and -0.0 are one key, and which of them a function is given would have to be known."""
    assert column_window(windows(FUNCTIONS["greatest"], key=FieldKey(2)), shape_of_schema(VALUED)) is None


def test_the_plan_says_that_a_choice_is_compiled():
    assert columnar(windows(FUNCTIONS["greatest"])).describe().startswith("compiled on columns, else interpreted")
    assert columnar(windows(FUNCTIONS["greatest"])).emits_columns
    assert not columnar(windows(FUNCTIONS["greatest"], WithStart())).emits_columns
