"""Reduce with a function that folds field by field, on columns: what comes out is what the interpreter gives."""

from __future__ import annotations

import itertools
import linecache

import pyarrow as pa
import pytest
from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st

from engine.core.records import ColumnBatch, RowBatch
from engine.operators.aggregate import KeyedAggregateSpec, KeyedReduceSpec
from engine.operators.column_aggregate import ColumnAggregateSpec, ColumnReduceSpec
from engine.operators.column_folds import folded_values
from engine.operators.functions import ReduceFunction
from engine.operators.keys import ComposedKey, FieldKey
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import MARK, Case, Rows
from tests.unit.operators.test_column_aggregate import FLOATS, columns, run, told_apart
from tests.unit.operators.test_restore import FULL, INCREMENTAL, Run
from tests.unit.operators.test_restore_columns import BARRIER, disturbed, undisturbed

SCHEMA = pa.schema([("k", pa.int64()), ("n", pa.int64()), ("x", pa.float64()), ("s", pa.string())])
KEYS = ["a[0]", "b[0]"]
INTS = [
    *["a[1] + b[1]", "b[1] + a[1]", "a[1] - b[1]", "a[1] + 1", "a[1] + b[1] * b[1]", "a[1] + (b[1] & 7)"],
    *["max(a[1], b[1])", "min(b[1], a[1])", "b[1] if b[1] > a[1] else a[1]", "a[1] if a[1] <= b[1] else b[1]"],
    *["a[1] if b[1] < a[1] else b[1]", "a[1]", "b[1]", "b[1] + 1", "a[1] + b[1] // b[0]", "a[1] + RATE * b[1]"],
    *["a[1] * b[1]", "a[1] + a[0]", "b[1] - a[1]"],
]
REALS = [
    *["a[2] + b[2]", "a[2] - b[2]", "b[2] * 2.0", "b[2]", "a[2]", "a[-2] + b[-2]", "a[2] + b[2] / 3.0"],
    *["max(a[2], b[2])", "min(a[2], b[2])", "b[2] if b[2] < a[2] else a[2]", "b[2] if a[2] < b[2] else a[2]"],
    *["max(b[2], a[2])", "a[2] if a[2] > b[2] else b[2]", "a[2] + b[1]", "b[2] if b[2] >= a[2] else a[2]"],
]
TEXTS = ["a[3]", "b[3]", "a[3] + b[3]"]
ROW = st.tuples(
    st.integers(-2, 2),
    st.one_of(st.integers(-5, 5), st.sampled_from([2**63 - 1, -(2**63), 2**62])),
    FLOATS,
    st.one_of(st.none(), st.sampled_from(["", "a", "b"])),
)
RATE = 3
_numbers = itertools.count()


def function_of(source, **others):
    file_name = f"<fold {next(_numbers)}>"
    linecache.cache[file_name] = (len(source), None, source.splitlines(keepends=True), file_name)
    names = {"RATE": RATE, **others}
    exec(compile(source, file_name, "exec", dont_inherit=True), names)
    return names["f"]


@pytest.mark.parametrize("final", [False, True])
@settings(max_examples=200, deadline=None)
@given(
    st.tuples(*map(st.sampled_from, (KEYS, INTS, REALS, TEXTS))),
    st.lists(st.lists(ROW, min_size=1, max_size=10), max_size=4),
)
def test_results_are_those_of_the_interpreter(final, fields, batches):
    function = function_of(f"f = lambda a, b: ({', '.join(fields)})\n")
    event("on columns" if folded_values(function, SCHEMA) else "on rows")
    ours = run(ColumnReduceSpec(FieldKey(0), function, final), [columns(batch, SCHEMA) for batch in batches])
    theirs = run(KeyedReduceSpec(FieldKey(0), function, final), [columns(batch, SCHEMA) for batch in batches])
    assert ours[1] == theirs[1]
    sort = sorted if final else list
    assert sort(told_apart(ours[0])) == sort(told_apart(theirs[0]))


PAIRS = pa.schema([("k", pa.int64()), ("v", pa.int64()), ("w", pa.int64())])
VALUES = st.one_of(st.integers(-3, 3), st.integers(-3, 3), st.sampled_from([2**63 - 1, -(2**63)]))


@st.composite
def batches(draw):
    rows = draw(st.lists(st.tuples(st.integers(0, 4), VALUES, st.integers(0, 9)), min_size=1, max_size=6))
    return Rows(rows, None, schema=draw(st.sampled_from([PAIRS, PAIRS, PAIRS, None])))


@pytest.mark.parametrize("config", [FULL, INCREMENTAL], ids=["full", "incremental"])
@pytest.mark.parametrize("final", [False, True])
def test_after_any_script_with_crashes_and_other_parallelisms_results_are_those_of_rows(final, config):
    def function(a, b):
        total = a[1] + b[1]
        return a[0], total, b[2]

    @settings(max_examples=40, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
    @given(st.lists(st.one_of(batches(), batches(), BARRIER), max_size=14))
    def check(script):
        ours = disturbed(Case((ColumnReduceSpec(FieldKey(0), function, final),), script), config)
        assert ours == undisturbed(Case((KeyedReduceSpec(FieldKey(0), function, final),), script))

    check()


class Sum(ReduceFunction):
    def reduce(self, value1, value2):
        key, total = value1
        _, amount = value2
        return key, total + amount


class Opened(Sum):
    def open(self, runtime_context):
        self.rate = 2


class Bound(Sum):
    rate = 2

    def reduce(self, value1, value2):
        return value1[0], value1[1] + value2[1] * self.rate


def printing(a, b):
    print(a)
    return a[0], a[1] + b[1]


def defaulted(a, b, c=1):
    return a[0], a[1] + b[1]


@pytest.mark.parametrize(
    ("function", "is_known"),
    [(Sum(), True), (Opened(), True), (Bound(), True), (printing, False), (defaulted, False), (print, False)],
)
def test_a_function_is_folded_by_field_only_where_nothing_else_can_happen(function, is_known):
    schema = pa.schema([("k", pa.int64()), ("v", pa.int64())])
    assert (folded_values(function, schema) is not None) is is_known


def test_narrow_numbers_are_left_to_the_interpreter():
    """A float32 is summed in double precision by the interpreter, an int32 may leave its type."""
    for kind in (pa.float32(), pa.int32(), pa.uint64(), pa.bool_()):
        assert folded_values(lambda a, b: (a[0], a[1] + b[1]), pa.schema([("k", pa.int64()), ("v", kind)])) is None


def test_a_key_that_the_function_changes_is_left_to_the_interpreter():
    spec = ColumnReduceSpec(FieldKey(0), lambda a, b: (b[0] + 1, a[1] + b[1]))
    schema = pa.schema([("k", pa.int64()), ("v", pa.int64())])
    assert run(spec, [columns([(1, 2), (1, 3)], schema)] * 2)[0] == [(1, 2), (2, 5), (2, 7), (2, 10)]


def test_a_sum_beyond_64_bits_takes_back_what_the_other_sums_have_added():
    schema = pa.schema([("k", pa.int64()), ("v", pa.int64()), ("w", pa.int64()), ("x", pa.float64())])
    rows = [(1, 1, 2**63 - 1, 0.5), (2, 1, 1, 0.5), (1, 1, 1, 0.25), (2, 1, 1, 0.25)]
    spec = ColumnReduceSpec(FieldKey(0), lambda a, b: (a[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]))
    out, error = run(spec, [columns(rows, schema), columns(rows[1:2], schema)])
    assert error is None
    assert out == [rows[0], rows[1], (1, 2, 2**63, 0.75), (2, 2, 2, 0.75), (2, 3, 3, 1.25)]


def test_a_variable_of_the_program_that_changes_sends_records_to_the_interpreter():
    rate = 2

    def function(a, b):
        return a[0], a[1] + b[1] * rate

    schema = pa.schema([("k", pa.int64()), ("v", pa.int64())])
    with OperatorHarness(ColumnReduceSpec(FieldKey(0), function)) as harness:
        harness.process_batch(columns([(1, 1), (1, 1)], schema))
        assert all(isinstance(batch, ColumnBatch) for batch in harness.output.batches)
        rate = 10
        harness.process_batch(columns([(1, 1)], schema))
        assert harness.output.rows == [(1, 1), (1, 3), (1, 13)]
        assert isinstance(harness.output.batches[-1], RowBatch)


SPECS = {
    "reduce": lambda n: (ColumnReduceSpec(FieldKey(0), fold, n), KeyedReduceSpec(FieldKey(0), fold, n)),
    "unknown key": lambda n: (ColumnReduceSpec(FieldKey(0), fold, n), KeyedReduceSpec(lambda r: r[0], fold, n)),
    "sum": lambda n: (ColumnAggregateSpec(FieldKey(0), "sum", 1, n), KeyedAggregateSpec(FieldKey(0), "sum", 1, n)),
    "pairs of keys": lambda n: (
        ColumnAggregateSpec(ComposedKey((2, 0)), "max", 1, n),
        KeyedAggregateSpec(ComposedKey((2, 0)), "max", 1, n),
    ),
}


def fold(a, b):
    return a[0], a[1] + b[1], b[2]


@pytest.mark.parametrize("config", [FULL, INCREMENTAL], ids=["full", "incremental"])
@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_an_operator_on_rows_goes_on_where_one_on_columns_has_left_off(name, final, config):
    """The program's functions have changed meanwhile, so that columns are out of the question."""
    before, after = SPECS[name](final)
    first = [Rows([(n % 5, n, n % 2) for n in range(20)], schema=PAIRS), MARK, Rows([(3, 4, 1)], schema=PAIRS), MARK]
    second = [Rows([(1, 100, 0), (7, 1, 1)]), MARK, MARK, Rows([(1, 1, 0), (2, 5, 0), (7, 1, 1)])]
    key = after.key_selector
    run_ = Run(Case((before,), [], (key,)), config, None)
    run_.start(2)
    run_.play(first)
    run_.case = Case((after,), [], (key,))
    run_.start(2)
    run_.play([MARK])  # before any record: nothing of the slots may get lost
    run_.start(1)
    run_.play(second[:3])
    run_.start(1)
    run_.play(second[3:])
    assert run_.finish() == undisturbed(Case((after,), [s for s in [*first, *second] if s is not MARK], (key,)))
