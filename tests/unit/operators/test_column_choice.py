"""Functions that pick one of two records, the first, the last or by a comparison, on columns."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from engine.core.records import ColumnBatch
from engine.operators.aggregate import KeyedAggregateSpec, KeyedReduceSpec
from engine.operators.column_aggregate import ColumnAggregateSpec, ColumnReduceSpec
from engine.operators.column_folds import choice_of, folded_values
from engine.operators.functions import ReduceFunction
from engine.operators.keys import FieldKey
from engine.operators.record_choice import RecordChoice
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import MARK, Case, Rows
from tests.unit.operators.test_column_aggregate import columns, run, told_apart
from tests.unit.operators.test_column_reduce import ROW, SCHEMA, function_of
from tests.unit.operators.test_restore import FULL, INCREMENTAL, Run
from tests.unit.operators.test_restore_columns import BARRIER, disturbed, undisturbed

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
        (lambda a, b: b if b[2] > a[2] else a, None),  # texts
        (lambda a, b: b if b[1] > a[1] else b, None),
        (lambda a, b: b if b[4] > a[4] else a, None),
        (lambda a, b: b if b[0] < a[0] < 5 else a, None),
        (lambda a, b, c=1: b if b[1] > a[1] else a, None),
    ],
)
def test_a_function_is_known_to_pick_only_where_it_compares_one_number_of_both(function, choice):
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
    "max_by, then rows": (ColumnAggregateSpec(FieldKey(0), "max_by", 1), KeyedAggregateSpec(FieldKey(0), "max_by", 1)),
    "max_by, then min_by": (ColumnAggregateSpec(FieldKey(0), "max_by", 1), ColumnAggregateSpec(FieldKey(0), "min_by", 1)),
    "picked, then rows": (
        ColumnReduceSpec(FieldKey(0), FUNCTIONS["greatest"]),
        KeyedReduceSpec(FieldKey(0), FUNCTIONS["greatest"]),
    ),
    "picked, then summed": (
        ColumnReduceSpec(FieldKey(0), FUNCTIONS["greatest"]),
        ColumnReduceSpec(FieldKey(0), sums),
    ),
    "first, then picked": (
        ColumnReduceSpec(FieldKey(0), FUNCTIONS["first"]),
        ColumnReduceSpec(FieldKey(0), FUNCTIONS["last of least"]),
    ),
}


@pytest.mark.parametrize("config", [FULL, INCREMENTAL], ids=["full", "incremental"])
@pytest.mark.parametrize("name", SPECS)
def test_another_function_goes_on_with_the_records_that_were_picked(name, config):
    before, after = SPECS[name]
    first = [Rows([(n % 5, n, f"{n}") for n in range(20)], schema=PAIRS), MARK, Rows([(3, 4, "x")], schema=PAIRS), MARK]
    second = [Rows([(1, 100, "y"), (7, 1, "z"), (2, -7, "u")], schema=PAIRS)]
    run_ = Run(Case((before,), [], (FieldKey(0),)), config, None)
    run_.start(2)
    run_.play(first)
    run_.case = Case((after,), [], (FieldKey(0),))
    run_.start(1)
    run_.play([*second, MARK])
    found = run_.finish()

    def on_rows(spec):
        if isinstance(spec, ColumnReduceSpec):
            return KeyedReduceSpec(spec.key_selector, spec.function)
        return KeyedAggregateSpec(spec.key_selector, getattr(spec, "kind"), 1)

    expected = Run(Case((on_rows(before) if isinstance(before, (ColumnReduceSpec, ColumnAggregateSpec)) else before,), [], (FieldKey(0),)), config, None)
    expected.start(1)
    expected.play(first)
    expected.case = Case((on_rows(after) if isinstance(after, (ColumnReduceSpec, ColumnAggregateSpec)) else after,), [], (FieldKey(0),))
    expected.start(1)
    expected.play(second)
    assert found == expected.finish()
