from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from engine.core.errors import UserCodeError
from engine.core.records import ColumnBatch, RowBatch
from engine.datastream.aggregates import avg, count, count_distinct, first, last, max_, min_, sum_
from engine.operators.aggregate import FieldAggregate
from engine.operators.column_window import column_window
from engine.operators.field_aggregates import RowAggregates, WindowRecord
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.window import WindowSpec
from engine.operators.window_contents import AggregateFold, ReduceFold
from engine.operators.window_functions import window_call
from engine.time.assigners import SlidingEventTimeWindows, TumblingEventTimeWindows
from engine.time.cumulating_windows import CumulatingEventTimeWindows
from engine.time.triggers import EventTimeTrigger
from engine.time.watermarks import Time
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.test_column_aggregate import Restored, harness_with

SCHEMA = pa.schema([("k", pa.int64()), ("v", pa.int64()), ("x", pa.float64()), ("name", pa.string())])
ASSIGNERS = {
    "tumbling": TumblingEventTimeWindows.of(Time.milliseconds(10)),
    "offset": TumblingEventTimeWindows.of(Time.milliseconds(10), Time.milliseconds(3)),
    "sliding": SlidingEventTimeWindows.of(Time.milliseconds(10), Time.milliseconds(4)),
    "gaps": SlidingEventTimeWindows.of(Time.milliseconds(4), Time.milliseconds(10)),
    "cumulating": CumulatingEventTimeWindows.of(Time.milliseconds(12), Time.milliseconds(4)),
}
AGGREGATES = [
    count(),
    count(3),
    sum_(1),
    min_(1),
    max_(1),
    avg(1),
    first(3),
    last(3),
    last(1),
    sum_(2),
    max_(2),
    min_(3),
    max_(3),
    avg(2),
    count_distinct(1),
    count_distinct(2),
    count_distinct(3),
]
#: halves: sums are exact in any order
FLOATS = st.one_of(st.none(), st.sampled_from([0.0, -0.0, math.nan, math.inf]), st.integers(-9, 9).map(lambda n: n / 2))
ROW = st.tuples(
    st.one_of(st.none(), st.integers(0, 2)),
    st.one_of(st.none(), st.integers(-5, 5)),
    FLOATS,
    st.one_of(st.none(), st.sampled_from(["", "a", "é"])),
)
STEP = st.one_of(st.lists(st.tuples(ROW, st.integers(-25, 45)), min_size=1, max_size=8), st.integers(-20, 60))


def columns(rows, stamps):
    arrays = [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(SCHEMA)]
    return ColumnBatch(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA), np.array(stamps, np.int64))


def windows(assigner, fold, key=FieldKey(0), lateness_ms=0, late_tag=None, function=None):
    trigger = EventTimeTrigger()
    return WindowSpec((key,), assigner, trigger, window_call(function), fold, None, lateness_ms, late_tag)


def built_in(assigner, aggregates, key=FieldKey(0), **settings):
    num_keys = len(key.fields) if isinstance(key, ComposedKey) else 1
    return windows(assigner, AggregateFold(RowAggregates(aggregates)), key, function=WindowRecord(num_keys), **settings)


def drive(harness, steps, zeros_alike=False):
    """Play batches and rising watermarks; return the results after each watermark, sorted, and what came too late."""
    seen, watermark_ms = [], None
    for step in steps:
        if isinstance(step, int):
            watermark_ms = step if watermark_ms is None else max(watermark_ms, step)
            harness.watermark(watermark_ms)
        else:
            rows, stamps = zip(*step, strict=True)
            harness.process_batch(columns(rows, stamps))
        results = [
            (repr(row).replace("-0.0", "0.0") if zeros_alike else repr(row), stamp)
            for batch in harness.output.batches
            for row, stamp in zip(_plain(batch).rows, _plain(batch).timestamps_ms, strict=True)
        ]
        harness.output.batches.clear()
        seen.append(sorted(results))
    late = [row for batch in harness.output.side.get("late", []) for row in _plain(batch).rows]
    return seen, sorted(map(repr, late)), harness.output.watermarks_ms


def _plain(batch):
    return batch if isinstance(batch, RowBatch) else batch.to_rows()


def play(spec, steps, zeros_alike=False):
    with OperatorHarness(spec, name="Window") as harness:
        return drive(harness, [*steps, 10_000], zeros_alike)


@pytest.mark.parametrize("lateness_ms", [0, 7])
@pytest.mark.parametrize("key", [FieldKey(0), FieldKey(3), ComposedKey((0, 3))])
@pytest.mark.parametrize("kind", ASSIGNERS)
def test_windows_of_columns_give_what_those_of_rows_give(kind, key, lateness_ms):
    aggregates = [a for a in AGGREGATES if kind in ("tumbling", "offset") or a.kind not in ("first", "last")]
    if kind not in ("tumbling", "offset") and lateness_ms:
        aggregates = [a for a in aggregates if a.kind != "count_distinct"]
    rows = built_in(ASSIGNERS[kind], aggregates, key, lateness_ms=lateness_ms, late_tag="late")
    spec = column_window(rows)
    assert spec is not None

    @settings(max_examples=10, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
    @given(st.lists(STEP, max_size=5))
    def check(steps):
        overlap = kind not in ("tumbling", "offset")  # then which of two zeros is the larger depends on the order
        assert play(spec, steps, zeros_alike=overlap) == play(rows, steps, zeros_alike=overlap)

    check()


@pytest.mark.parametrize("kind", ASSIGNERS)
@pytest.mark.parametrize("edge", [TIME_MIN_MS + 1, TIME_MAX_MS - 30])
def test_windows_at_both_ends_of_time_are_those_of_rows(kind, edge):
    rows = built_in(ASSIGNERS[kind], [count(), sum_(1)], late_tag="late", lateness_ms=3)
    columnar = column_window(rows)
    assert columnar is not None
    times = st.one_of(st.integers(edge, edge + 30), st.integers(-25, 45))

    @settings(deadline=None, max_examples=40)
    @given(st.lists(st.lists(st.tuples(ROW, times), min_size=1, max_size=6) | st.integers(-20, 60), max_size=5))
    def check(steps):
        played = []
        for spec in (rows, columnar):
            with OperatorHarness(spec, name="Window") as harness:
                played.append(drive(harness, [*steps, TIME_MAX_MS]))
        assert played[0] == played[1]

    check()


@pytest.mark.parametrize("lateness_ms", [0, 7])
@pytest.mark.parametrize("field", [1, 2])
@pytest.mark.parametrize("kind", ["sum", "min", "max", "min_by", "max_by"])
def test_results_that_are_records_are_those_of_rows(kind, field, lateness_ms):
    rows = windows(ASSIGNERS["tumbling"], ReduceFold(FieldAggregate(kind, field)), lateness_ms=lateness_ms)
    spec = column_window(rows)
    assert spec is not None

    @settings(max_examples=10, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
    @given(st.lists(STEP, max_size=5))
    def check(steps):
        valued = [
            [((row[0], row[1] or 0, 0.0 if row[2] is None else row[2], row[3]), stamp) for row, stamp in step]
            if isinstance(step, list)
            else step
            for step in steps
        ]
        assert play(spec, valued) == play(rows, valued)

    check()


def test_types_that_kernels_do_not_know_are_left_to_rows_before_the_first_record():
    rows = built_in(ASSIGNERS["tumbling"], [sum_(3)])
    steps = [5, [((1, 1, 1.0, "b"), 12), ((1, 1, 1.0, "c"), 13)], 40]
    told = []
    for spec in (column_window(rows), rows):
        with pytest.raises(UserCodeError) as error:
            play(spec, steps)
        told.append(str(error.value))
    assert told[0] == told[1]


def test_records_without_event_times_are_told_so():
    batch = columns([(1, 1, 1.0, "a")], [1])
    batch.timestamps_ms = None
    spec = column_window(built_in(ASSIGNERS["tumbling"], [count()]))
    with OperatorHarness(spec) as harness, pytest.raises(Exception, match="assign_timestamps_and_watermarks"):
        harness.process_batch(batch)


@pytest.mark.parametrize("lateness_ms", [0, 7])
@pytest.mark.parametrize("kind", ASSIGNERS)
def test_sums_beyond_64_bits_go_on_as_python_integers(kind, lateness_ms):
    rows = built_in(ASSIGNERS[kind], [sum_(1), count(), avg(1), sum_(2)], lateness_ms=lateness_ms, late_tag="late")
    large = st.one_of(st.none(), st.integers(-5, 5), st.sampled_from([2**63 - 1, -(2**63), 2**62]))
    row = st.tuples(st.one_of(st.none(), st.integers(0, 1)), large, FLOATS, st.just("a"))
    step = st.one_of(st.lists(st.tuples(row, st.integers(-25, 45)), min_size=1, max_size=8), st.integers(-20, 60))

    @settings(max_examples=30, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
    @given(st.lists(step, max_size=6))
    def check(steps):
        assert play(column_window(rows), steps, zeros_alike=True) == play(rows, steps, zeros_alike=True)

    check()


@pytest.mark.parametrize("kind", ["sum", "min"])
def test_a_null_in_a_record_to_be_reduced_is_what_it_is_on_rows(kind):
    rows = windows(ASSIGNERS["tumbling"], ReduceFold(FieldAggregate(kind, 1)))
    steps = [[((1, 7, 1.0, "a"), 1), ((2, 1, 1.0, "b"), 1)], [((2, 3, 1.0, "x"), 5), ((3, None, 1.0, "c"), 2)], 40]
    if kind == "min":
        assert play(column_window(rows), steps) == play(rows, steps)
        return
    with pytest.raises(UserCodeError) as told, OperatorHarness(column_window(rows), name="Window") as harness:
        drive(harness, steps)
    with pytest.raises(UserCodeError) as expected:
        play(rows, steps)
    assert str(told.value) == str(expected.value)


def test_records_are_chosen_by_a_time_and_may_be_of_any_type():
    schema = pa.schema([("k", pa.string()), ("t", pa.timestamp("ms")), ("d", pa.decimal128(9, 2)), ("b", pa.bool_())])
    rows = [("é", 5, 2, True), ("é", 7, None, None), (None, 1, 3, False), ("é", 7, 4, True)]
    arrays = [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(schema)]
    batch = ColumnBatch(pa.RecordBatch.from_arrays(arrays, schema=schema), np.array([1, 2, 3, 4]))
    spec = windows(ASSIGNERS["tumbling"], ReduceFold(FieldAggregate("max_by", "t")), FieldKey("k"))
    with OperatorHarness(column_window(spec)) as harness:
        harness.process_batch(batch)
        harness.watermark(100)
        assert [type(batch) for batch in harness.output.batches] == [ColumnBatch]
        expected = ColumnBatch(batch.columns.slice(1, 2)).to_rows().rows
        assert sorted(harness.output.rows, key=repr) == sorted(expected, key=repr)


@pytest.mark.parametrize("kind", ["tumbling", "sliding"])
def test_windows_go_on_from_a_snapshot_in_which_some_have_fired(kind):
    aggregates = [count(), count(1), sum_(1), *([first(3), last(3), count_distinct(3)] if kind == "tumbling" else [])]
    spec = column_window(built_in(ASSIGNERS[kind], [*aggregates, max_(2)], lateness_ms=5))
    before = [[((1, 1, 1.0, "a"), 2), ((2, None, 1.0, None), 3), ((1, 5, 1.0, "b"), 14)], 11]
    after = [[((1, 7, 1.0, "z"), 15), ((2, 9, 1.0, "y"), 13)], 100]
    straight, _, _ = play(spec, before + after)
    with harness_with(spec) as harness:
        drive(harness, before)
        part = harness.registry.keyed["window-slots"]
        chunks = {"window-slots": part.snapshot(range(128))}
    with harness_with(spec, Restored(chunks)) as harness:
        harness.watermark(11)
        harness.output.watermarks_ms.clear()
        seen, _, _ = drive(harness, after)
    assert seen == straight[2:4]


def test_keys_that_are_in_no_window_any_more_are_forgotten(monkeypatch):
    monkeypatch.setattr("engine.operators.window_state._COMPACT_SLOTS_MIN", 100)
    aggregates = [count(), first(3), last(3), max_(3), count_distinct(3)]  # those before have codes of one table
    spec = column_window(built_in(ASSIGNERS["tumbling"], aggregates))
    with OperatorHarness(spec) as harness:
        for at in range(0, 2000, 10):
            rows = [(at * 10 + i, 1, 1.0, f"{name}{at}-{i}") for name in "fl" for i in range(20)]
            harness.process_batch(columns(rows, [at] * 40))
            harness.watermark(at)
            batch = columns(rows[:20], [at] * 20)  # of a window that goes on: its slots may have moved by now
            harness.process_batch(batch)
            expected = [(3, f"f{at - 10}-{i}", f"f{at - 10}-{i}", f"l{at - 10}-{i}", 2) for i in range(20) if at]
            assert [row[3:] for row in harness.output.rows] == expected
            harness.output.batches.clear()
        assert harness.head._state._table.num_slots < 200
