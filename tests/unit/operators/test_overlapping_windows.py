"""Overlapping windows on columns whose results depend on the order of records: those of rows, to the last bit."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.errors import ProgramError, UserCodeError
from engine.datastream.aggregates import avg, count, count_distinct, first, last, max_, sum_
from engine.operators import memory_watch, spilled_panes, spilling_windows
from engine.operators.aggregate import FieldAggregate
from engine.operators.column_window import column_window
from engine.operators.field_aggregates import RowAggregates, WindowRecord
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.window import WindowSpec
from engine.operators.window_contents import AggregateFold, ReduceFold
from engine.operators.window_functions import window_call
from engine.operators.window_slices import WholeWindows, slices_of
from engine.time.assigners import SlidingEventTimeWindows
from engine.time.cumulating_windows import CumulatingEventTimeWindows
from engine.time.triggers import EventTimeTrigger
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators import test_column_window_folds
from tests.unit.operators.restore_cases import MARK, Case, Rows, Watermark
from tests.unit.operators.test_column_window import AGGREGATES, ASSIGNERS, built_in, columns, drive, play, windows
from tests.unit.operators.test_column_window_folds import FOLDS, SCHEMA, columnar, spec_of
from tests.unit.operators.test_restore import FULL, INCREMENTAL, Run
from tests.unit.operators.test_restore_columns import PHASES, TIMED_SCRIPTS, disturbed, undisturbed

OVERLAPPING = {
    "sliding": ASSIGNERS["sliding"],
    "apart": SlidingEventTimeWindows(4, 6, 1),  # two slices each, but no record is in two
    "cumulating": CumulatingEventTimeWindows(12, 4, 1),
}
#: Tenths: sums depend on the order.
FLOATS = st.one_of(st.none(), st.sampled_from([0.0, -0.0, math.nan, 1e16]), st.integers(-9, 9).map(lambda n: n / 10))
ROW = st.tuples(
    st.one_of(st.none(), st.integers(0, 2)),
    st.one_of(st.none(), st.integers(-5, 5)),
    FLOATS,
    st.one_of(st.none(), st.sampled_from(["", "a", "é"])),
)
BATCH = st.lists(st.tuples(ROW, st.integers(-15, 35)), min_size=1, max_size=12)
STEPS = st.lists(BATCH | BATCH | st.integers(-20, 45), max_size=7)


@pytest.fixture(params=["memory", "files", "some in files"])
def place(request, monkeypatch):
    """All windows in memory; in files after every batch; or when there are several, and records wait for many."""
    if request.param == "memory":
        return
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 1)
    monkeypatch.setattr(spilling_windows, "NUM_PARTITIONS", 4)
    monkeypatch.setattr(spilled_panes, "_RECORDS_MIN", 3)
    monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 400)
    if request.param == "files":
        monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: held_bytes > 0)
        return
    monkeypatch.setattr(spilling_windows, "_WAITING_SHARE", 100)
    monkeypatch.setattr(spilling_windows.SpillingWindows, "has_too_much", lambda self: len(self.state.panes) > 2)
    monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: False)

    def make_room(self, order):
        self.evict(sorted(self.state.panes, key=order)[2:])

    monkeypatch.setattr(spilling_windows.SpillingWindows, "make_room", make_room)


def outcome(spec, steps):
    try:
        return play(spec, steps)
    except UserCodeError as error:  # a None is added or compared
        return str(error)


def same(spec, rows, examples=8):
    assert spec.by_window

    @settings(max_examples=examples, deadline=None, phases=PHASES)
    @given(STEPS)
    def check(steps):
        assert outcome(spec, steps) == outcome(rows, steps)

    check()


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("lateness_ms", [0, 7])
@pytest.mark.parametrize("kind", OVERLAPPING)
def test_built_in_aggregates(kind, lateness_ms):
    key = ComposedKey((0, 3)) if kind == "apart" else FieldKey(0)
    rows = built_in(OVERLAPPING[kind], AGGREGATES, key, lateness_ms=lateness_ms, late_tag="late")
    same(column_window(rows), rows)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("kind", ["sum", "min", "max", "min_by", "max_by"])
@pytest.mark.parametrize("assigner", ["sliding", "cumulating"])
def test_results_that_are_records(kind, assigner):
    fold = ReduceFold(FieldAggregate(kind, 2))
    rows = windows(OVERLAPPING[assigner], fold, lateness_ms=7 if kind != "max" else 0, late_tag="late")
    same(column_window(rows), rows, 6)


def test_late_records_make_the_windows_of_each_fire_in_the_order_of_rows():
    rows = built_in(OVERLAPPING["sliding"], [first(1), last(1), sum_(2)], lateness_ms=30)
    steps = [[((1, 1, 0.1, "a"), 9)], 20, [((1, 2, 0.2, "b"), 9), ((1, 3, 0.3, "c"), 8), ((1, 4, 0.4, "d"), 13)]]
    played = []
    for spec in (rows, column_window(rows)):
        with OperatorHarness(spec) as harness:
            for step in steps:
                if isinstance(step, int):
                    harness.watermark(step)
                else:
                    harness.process_batch(columns(*zip(*step, strict=True)))
            played.append(harness.output.rows)
    assert played[0] == played[1]
    assert len(played[0]) == 3 + 3 + 3 + 2


USERS = {
    **{name: (fold, SCHEMA) for name, fold in FOLDS.items()},
    "picks": (ReduceFold(lambda a, b: b if b[2] < a[2] else a), SCHEMA),
    "last": (ReduceFold(lambda a, b: (a[0], b[1], b[2], b[3])), SCHEMA),
}


@pytest.mark.parametrize("config", [FULL, INCREMENTAL], ids=["full", "incremental"])
@pytest.mark.parametrize("kind", ["sliding", "cumulating"])
@pytest.mark.parametrize("fold", USERS)
def test_a_users_fold_after_any_script_with_crashes_and_other_parallelisms(fold, kind, config):
    @settings(max_examples=6, deadline=None, phases=PHASES)
    @given(test_column_window_folds.SCRIPTS, st.sampled_from([0, 15]))
    def check(script, lateness_ms):
        rows = spec_of(USERS[fold][0], assigner=OVERLAPPING[kind], lateness_ms=lateness_ms)
        spec = columnar(rows)
        assert spec is not None
        assert spec.by_window
        assert disturbed(Case((spec,), script), config) == undisturbed(Case((rows,), script))

    check()


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("kind", ["sliding", "cumulating"])
def test_built_in_aggregates_after_any_script_with_crashes_and_other_parallelisms(kind):
    """Sums beyond 64 bits, other types and rows among them."""
    fold = AggregateFold(RowAggregates([first(1), last(1), sum_(1), count_distinct(1)]))
    call = window_call(WindowRecord(1))
    rows = WindowSpec((FieldKey(0),), OVERLAPPING[kind], EventTimeTrigger(), call, fold, None, 9, "late")
    spec = column_window(rows)
    assert spec is not None

    @settings(max_examples=6, deadline=None, phases=PHASES)
    @given(TIMED_SCRIPTS)
    def check(script):
        assert disturbed(Case((spec,), script), INCREMENTAL) == undisturbed(Case((rows,), script))

    check()


@pytest.mark.usefixtures("place")
def test_sums_that_may_leave_64_bits_go_on_as_python_integers():
    rows = built_in(OVERLAPPING["sliding"], [first(1), sum_(1), avg(1)], lateness_ms=7, late_tag="late")
    large = st.one_of(st.none(), st.integers(-5, 5), st.sampled_from([2**63 - 1, -(2**63), 2**62, 2**60]))
    row = st.tuples(st.one_of(st.none(), st.integers(0, 1)), large, st.just(0.1), st.just("a"))
    step = st.one_of(st.lists(st.tuples(row, st.integers(-25, 45)), min_size=1, max_size=8), st.integers(-20, 60))

    @settings(max_examples=10, deadline=None, phases=PHASES)
    @given(st.lists(step, max_size=7))
    def check(steps):
        assert play(column_window(rows), steps) == play(rows, steps)

    check()


def test_the_bound_of_sums_forgets_windows_that_are_gone():
    spec = column_window(built_in(OVERLAPPING["sliding"], [last(1), sum_(1)]))
    with OperatorHarness(spec) as harness:
        for at in range(0, 400, 20):
            harness.process_batch(columns([(1, 1 << 59, 0.5, "a")], [at]))
            harness.watermark(at + 15)
        assert not harness.head._is_on_rows
        assert {row[-1] for row in harness.output.rows} == {1 << 59}


@pytest.mark.parametrize("kind", OVERLAPPING)
@pytest.mark.parametrize("edge", [TIME_MIN_MS + 1, TIME_MAX_MS - 30])
def test_both_ends_of_time(kind, edge):
    rows = built_in(OVERLAPPING[kind], [first(1), last(1)], late_tag="late", lateness_ms=3)
    for times in ([edge, 5, edge + 20], [5, 9, 30]):
        played = []
        for spec in (rows, column_window(rows)):
            with OperatorHarness(spec) as harness:
                steps = [[((1, 7, 0.1, "a"), 5)], [((1, n, 0.1, "a"), time) for n, time in enumerate(times)], 7]
                played.append(drive(harness, [*steps, TIME_MAX_MS]))
        assert played[0] == played[1]


@pytest.mark.parametrize("lateness_ms", [0, 15])
@pytest.mark.parametrize("kind", ["sliding", "cumulating"])
@pytest.mark.parametrize("fold", ["aggregate", "picks"])
def test_an_operator_on_rows_goes_on_where_one_on_columns_has_left_off(fold, kind, lateness_ms):
    rows = spec_of(USERS[fold][0], assigner=OVERLAPPING[kind], lateness_ms=lateness_ms)
    before = [Rows([(n % 5, n, n / 10, "abc"[n % 3]) for n in range(24)], list(range(24)), schema=SCHEMA)]
    before += [Watermark(12), MARK]
    after = [Rows([(1, 7, 9.0, "z"), (3, 2, 0.1, "z"), (7, 1, 0.3, "y")], [11, 26, 14]), Watermark(TIME_MAX_MS)]
    run = Run(Case((columnar(rows),), []), INCREMENTAL, None)
    run.start(2)
    run.play(before)
    run.case = Case((rows,), [])
    run.start(3)
    run.play(after)
    assert run.finish() == undisturbed(Case((rows,), [*before[:2], *after]))


def test_panes_of_windows_are_not_taken_for_slices():
    run = Run(Case((column_window(built_in(OVERLAPPING["sliding"], [first(1)])),), []), FULL, None)
    run.start(1)
    run.play([Rows([(1, 1, 1.0, "a")], [4], schema=SCHEMA), MARK])
    run.case = Case((column_window(built_in(OVERLAPPING["sliding"], [max_(1)])),), [])
    with pytest.raises(ProgramError, match="by other fields"):
        run.start(1)


def test_which_windows_have_panes_of_their_own():
    sliding, cumulating = OVERLAPPING["sliding"], OVERLAPPING["cumulating"]
    assert not column_window(built_in(ASSIGNERS["tumbling"], [first(1)])).by_window
    assert not column_window(built_in(SlidingEventTimeWindows(5, 10, 0), [first(1)])).by_window  # one slice each
    assert not column_window(built_in(sliding, [count(), sum_(1), count_distinct(1)], lateness_ms=0)).by_window
    assert column_window(built_in(sliding, [count_distinct(1)], lateness_ms=1)).by_window
    assert column_window(built_in(cumulating, [count(), last(1)])).by_window
    assert column_window(built_in(SlidingEventTimeWindows(640, 10, 0), [first(1)])).by_window
    assert column_window(built_in(SlidingEventTimeWindows(650, 10, 0), [first(1)])) is None
    assert column_window(built_in(SlidingEventTimeWindows(650, 10, 0), [sum_(1)])) is not None
    by_field = ReduceFold(FieldAggregate("max_by", 1))
    assert column_window(windows(CumulatingEventTimeWindows(650, 10), by_field)) is None


@pytest.mark.parametrize("kind", OVERLAPPING)
def test_each_window_has_a_number(kind):
    slices = slices_of(OVERLAPPING[kind])
    whole = WholeWindows(slices)
    found = {window for time_ms in range(-40, 40) for window in slices.windows_with(time_ms)}
    assert len({whole.number_of(window) for window in found}) == len(found)
    for window in found:
        number = whole.number_of(window)
        assert whole.window_of(number) == window
        assert whole.windows_with(number) == [window]
        assert whole.slices_of(window) == (number,)
        assert whole.last_end(number) == window[1]


def test_a_late_record_of_a_window_on_its_way_to_files_has_all_before_it(monkeypatch):
    monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 1 << 20)
    monkeypatch.setattr(spilling_windows, "_MOVED_BYTES_MAX", 1)
    rows = built_in(OVERLAPPING["sliding"], [first(1), last(1), sum_(1)], lateness_ms=30)
    with OperatorHarness(column_window(rows)) as harness, OperatorHarness(rows) as model:
        for own in (harness, model):
            own.process_batch(columns([(key, key, 0.5, "") for key in range(20)], [8] * 20))
            own.watermark(20)
        windows_of = harness.head._windows
        windows_of.make_room(lambda start: start)
        assert windows_of._moving
        for own in (harness, model):
            own.process_batch(columns([(key, 100 + key, 0.5, "") for key in range(20)], [8] * 20))
            own.watermark(1000)
        assert len(model.output.rows) > 20
        assert sorted(harness.output.rows) == sorted(model.output.rows)
