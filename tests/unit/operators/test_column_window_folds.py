"""Windows on columns with a user's own fold: what comes out is what the interpreter gives, also across crashes."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st

from engine.core.errors import ProgramError, UserCodeError
from engine.core.records import ColumnBatch
from engine.operators.column_folds import shape_of_schema
from engine.operators.column_window import ColumnWindowSpec, column_window
from engine.operators.functions import AggregateFunction
from engine.operators.keys import FieldKey
from engine.operators.process_functions import ProcessWindowFunction
from engine.operators.window import WindowSpec
from engine.operators.window_contents import AggregateFold, ReduceFold
from engine.operators.window_functions import window_call
from engine.time.assigners import SlidingEventTimeWindows, TumblingEventTimeWindows
from engine.time.triggers import CountTrigger
from engine.time.windows import TIME_MAX_MS
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import MARK, Case, PerWindow, Rows, Watermark
from tests.unit.operators.test_column_aggregate import FLOATS, told_apart
from tests.unit.operators.test_column_reduce import function_of
from tests.unit.operators.test_restore import FULL, INCREMENTAL, Run
from tests.unit.operators.test_restore_columns import BARRIER, disturbed, in_order, undisturbed

SCHEMA = pa.schema([("k", pa.int64()), ("v", pa.int64()), ("x", pa.float64()), ("s", pa.string())])
TUMBLING = TumblingEventTimeWindows(10, 3)
ALIVE = st.sampled_from([0, 15])


class WithWindow(ProcessWindowFunction):
    def process(self, key, context, elements):
        (result,) = elements
        yield key, context.window().start, context.current_watermark(), result


class CountSumMax(AggregateFunction):
    def create_accumulator(self):
        return 0, 0.0, float("-inf"), 0, 5

    def add(self, value, accumulator):
        count, total, largest, whole, least = accumulator
        amount = value[2]
        twice = value[1] + value[1]
        largest = amount if amount > largest else largest
        return count + 1, total + amount, largest, whole + twice, min(least, value[1])

    def get_result(self, accumulator):
        return accumulator

    def merge(self, acc_a, acc_b):
        return (
            acc_a[0] + acc_b[0],
            acc_a[1] + acc_b[1],
            acc_b[2] if acc_b[2] > acc_a[2] else acc_a[2],
            acc_a[3] + acc_b[3],
            min(acc_a[4], acc_b[4]),
        )


class Means(CountSumMax):
    def get_result(self, accumulator):
        return accumulator[1] / accumulator[0]


def spec_of(fold, function=None, assigner=TUMBLING, lateness_ms=0, **others):
    spec = WindowSpec(
        (FieldKey(0),),
        assigner,
        assigner.get_default_trigger(None),
        window_call(function or WithWindow()),
        fold=fold,
        allowed_lateness_ms=lateness_ms,
        late_tag="late",
    )
    return spec if not others else WindowSpec(**{**vars(spec), **others})


def columnar(spec, schema=SCHEMA) -> ColumnWindowSpec | None:
    return column_window(spec, shape_of_schema(schema))


VALUES = st.one_of(st.integers(-3, 3), st.integers(-3, 3), st.sampled_from([2**63 - 1, -(2**63)]))


@st.composite
def batches(draw):
    row = st.tuples(
        st.integers(0, 4),
        draw(st.sampled_from([VALUES, st.integers(-9, 9)])),
        draw(st.sampled_from([FLOATS, st.integers(-8, 8).map(float)])),
        st.sampled_from(["a", "b", "c"]),
    )
    rows = draw(st.lists(row, min_size=1, max_size=6))
    stamps = draw(st.lists(st.integers(-5, 50), min_size=len(rows), max_size=len(rows)))
    return Rows(rows, stamps, schema=draw(st.sampled_from([SCHEMA] * 5 + [None])))


SCRIPTS = st.lists(st.one_of(batches(), batches(), BARRIER, st.integers(0, 55).map(Watermark)), max_size=14).map(
    lambda steps: [*in_order(steps), Watermark(TIME_MAX_MS)]
)
FOLDS = {
    "aggregate": AggregateFold(CountSumMax()),
    "mean": AggregateFold(Means()),
    "reduce": ReduceFold(lambda a, b: (a[0], a[1] + b[1], max(a[2], b[2]), b[3])),
}


@pytest.mark.parametrize("config", [FULL, INCREMENTAL], ids=["full", "incremental"])
@pytest.mark.parametrize("fold", FOLDS)
def test_after_any_script_with_crashes_and_other_parallelisms_results_are_those_of_rows(fold, config):
    @settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
    @given(SCRIPTS, ALIVE)
    def check(script, lateness_ms):
        rows = spec_of(FOLDS[fold], lateness_ms=lateness_ms)
        spec = columnar(rows)
        assert spec is not None
        assert disturbed(Case((spec,), script), config) == undisturbed(Case((rows,), script))

    check()


ADDED = [
    *["a[{i}] + v[1]", "a[{i}] + v[2]", "v[2] + a[{i}]", "a[{i}] - v[1]", "a[{i}] + v[1] * 2", "a[{i}] + 1"],
    *["max(a[{i}], v[1])", "min(a[{i}], v[2])", "max(v[2], a[{i}])", "v[2] if v[2] > a[{i}] else a[{i}]"],
    *["v[1] if a[{i}] > v[1] else a[{i}]", "v[1]", "v[2]", "a[{i}]", "a[{i}] * 2", "a[{i}] + len(v[3])", "v[3]"],
]
SEEDS = ["0", "0.0", "-0.0", "7", "-1e300", "float('-inf')", "float('nan')", "1.5", str(2**63)]
ROWS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(-5, 5), FLOATS, st.sampled_from(["a", "bc"])), min_size=1, max_size=12
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(SEEDS), st.sampled_from(ADDED)), min_size=1, max_size=4), ROWS)
def test_any_accumulator_gives_what_the_interpreter_gives(fields, rows):
    seeds = ", ".join(seed for seed, _ in fields)
    added = ", ".join(form.format(i=index) for index, (_, form) in enumerate(fields))
    source = (
        "class f(AggregateFunction):\n"
        f"    def create_accumulator(self):\n        return ({seeds},)\n"
        f"    def add(self, v, a):\n        return ({added},)\n"
        "    def get_result(self, a):\n        return a\n"
        "    def merge(self, a, b):\n        raise AssertionError\n"
    )
    spec = spec_of(AggregateFold(function_of(source, AggregateFunction=AggregateFunction)()))
    ours = columnar(spec)
    event("on rows" if ours is None else "on columns")
    stamps = [(7 * index) % 20 for index in range(len(rows))]
    assert results(ours or spec, rows, stamps) == results(spec, rows, stamps)


def results(spec, rows, stamps):
    arrays = [pa.array([row[i] for row in rows], kind) for i, kind in enumerate(SCHEMA.types)]
    batch = ColumnBatch(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA), np.array(stamps, np.int64))
    with OperatorHarness(spec, name="Windows") as harness:
        try:
            harness.process_batch(batch)
            harness.watermark(TIME_MAX_MS)
        except UserCodeError as error:
            return str(error)
        return sorted(told_apart(harness.output.rows))


def test_numbers_come_out_as_they_would_of_the_interpreter():
    rows = [(1, 2, 0.5, "a"), (1, 4, -0.0, "b"), (2, 1, math.inf, "a")]
    assert results(columnar(spec_of(FOLDS["aggregate"])), rows, [4, 5, 6]) == [
        ("1", "3", str(TIME_MAX_MS), "(2, 0.5, 0.5, 12, 2)"),
        ("2", "3", str(TIME_MAX_MS), "(1, inf, inf, 2, 1)"),
    ]


class Listing(CountSumMax):
    def create_accumulator(self):
        return []

    def add(self, value, accumulator):
        return [*accumulator, value]


class Made(CountSumMax):
    def create_accumulator(self):
        return tuple([0] * 5)


@pytest.mark.parametrize(
    "spec",
    [
        spec_of(AggregateFold(Listing())),
        spec_of(AggregateFold(Made())),
        spec_of(FOLDS["aggregate"], PerWindow()),  # clears state when the window goes
        spec_of(FOLDS["aggregate"], assigner=SlidingEventTimeWindows(650, 10, 0)),  # many windows a record
        spec_of(FOLDS["aggregate"], trigger=CountTrigger.of(2)),
        spec_of(ReduceFold(lambda a, b: (a[0], a[1] + 2 * b[1], a[2], a[3]))),
        spec_of(FOLDS["aggregate"], key_selectors=(lambda row: row[0] % 2,)),
        spec_of(FOLDS["aggregate"], key_selectors=(FieldKey(2),)),  # 0.0 and -0.0 are one key
    ],
    ids=range(8),
)
def test_other_windows_stay_on_rows(spec):
    assert columnar(spec) is None


@pytest.mark.parametrize("config", [FULL, INCREMENTAL], ids=["full", "incremental"])
@pytest.mark.parametrize("lateness_ms", [0, 15])
@pytest.mark.parametrize("fold", FOLDS)
def test_an_operator_on_rows_goes_on_where_one_on_columns_has_left_off(fold, lateness_ms, config):
    """The program's functions have changed meanwhile, so that columns are out of the question."""
    rows = spec_of(FOLDS[fold], lateness_ms=lateness_ms)
    records = [(n % 5, n, n / 4, "abc"[n % 3]) for n in range(24)]
    before = [Rows(records, list(range(24)), schema=SCHEMA), Watermark(12), MARK]
    middle = [Rows([(1, 100, 0.5, "x"), (7, 1, 1.0, "y")], [16, 20]), MARK, Watermark(14), MARK]
    after = [Rows([(1, 7, 9.0, "z"), (3, 2, 1.0, "z")], [11, 26]), Watermark(TIME_MAX_MS)]
    run = Run(Case((columnar(rows),), []), config, None)
    run.start(2)
    run.play(before)
    run.case = Case((rows,), [])
    run.start(2)
    run.play([MARK])  # before any record: nothing may get lost
    run.start(1)
    run.play(middle)
    run.start(3)
    run.play(after)
    assert run.finish() == undisturbed(Case((rows,), [*before[:2], *middle[:1], *middle[2:3], *after]))


def test_windows_of_columns_do_not_go_on_as_others():
    rows = spec_of(FOLDS["aggregate"])
    run = Run(Case((columnar(rows),), []), FULL, None)
    run.start(1)
    run.play([Rows([(1, 1, 1.0, "a")], [4], schema=SCHEMA), MARK])
    run.case = Case((spec_of(None),), [])
    run.start(1)
    with pytest.raises(ProgramError, match="one accumulator a key; they cannot go on as others"):
        run.play([Watermark(5)])
