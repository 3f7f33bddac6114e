"""Assigners, merging of spans and evictors against what their definitions say, also before 1970 and at the limits."""

from __future__ import annotations

import datetime as dt
import io
import itertools
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.errors import ProgramError
from engine.time.assigners import (
    CountSlidingWindowAssigner,
    CountTumblingWindowAssigner,
    EventTimeSessionWindows,
    GlobalWindows,
    SlidingEventTimeWindows,
    TumblingEventTimeWindows,
    TumblingProcessingTimeWindows,
    WindowAssigner,
)
from engine.time.evictors import CountEvictor, DeltaEvictor, TimeEvictor, TimestampedValue
from engine.time.triggers import CountTrigger, PurgingTrigger
from engine.time.watermarks import Duration, Time
from engine.time.window_serializers import CountWindowSerializer, GlobalWindowSerializer, TimeWindowSerializer
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS, CountWindow, GlobalWindow, TimeWindow, merged_spans, span_ms

TIMES = st.integers(TIME_MIN_MS + 1, TIME_MAX_MS) | st.integers(-100, 100)
SIZES = st.integers(1, 60)


class Context(WindowAssigner.WindowAssignerContext):
    def __init__(self, now_ms=0):
        self.now_ms = now_ms
        self.numbers = itertools.count()

    def get_current_processing_time(self):
        return self.now_ms

    def get_runtime_context(self):
        raise AssertionError("not asked for")

    def next_number(self):
        return next(self.numbers)


@given(TIMES, SIZES, SIZES, st.data())
def test_sliding_windows_are_all_that_hold_the_time_and_start_on_the_grid(time, size, slide, data):
    offset = data.draw(st.integers(-slide + 1, slide - 1))
    found = SlidingEventTimeWindows(size, slide, offset).assign_windows(None, time, Context())
    expected = {start for start in range(time - size + 1, time + 1) if (start - offset) % slide == 0}
    assert {window.start for window in found} == expected
    assert len(found) == len(expected)
    assert all(window.end - window.start == size for window in found)


@given(TIMES, SIZES, st.data())
def test_a_tumbling_window_is_a_sliding_one_with_slide_equal_to_size(time, size, data):
    offset = data.draw(st.integers(-size + 1, size - 1))
    [window] = TumblingEventTimeWindows(size, offset).assign_windows(None, time, Context())
    assert window.start <= time < window.end
    assert window.start == TimeWindow.get_window_start_with_offset(time, offset, size)


def test_a_day_in_china_begins_eight_hours_before_utc_also_before_1970():
    days = TumblingEventTimeWindows.of(Time.days(1), Time.hours(-8))
    moment = int(dt.datetime(1969, 12, 30, 17, tzinfo=dt.UTC).timestamp() * 1000)
    [window] = days.assign_windows(None, moment, Context())
    assert dt.datetime.fromtimestamp(window.start / 1000, dt.UTC) == dt.datetime(1969, 12, 30, 16, tzinfo=dt.UTC)


def test_the_last_window_ends_with_time_itself():
    [window] = TumblingEventTimeWindows.of(Time.seconds(1)).assign_windows(None, TIME_MAX_MS, Context())
    assert window.max_timestamp() == TIME_MAX_MS


def test_processing_time_windows_go_by_the_clock():
    assigner = TumblingProcessingTimeWindows.of(Time.milliseconds(10))
    assert assigner.assign_windows(None, 500, Context(now_ms=27)) == [TimeWindow(20, 30)]


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(1, 10)), max_size=12))
def test_spans_that_overlap_or_touch_are_one(spans):
    windows = [TimeWindow(start, start + length) for start, length in spans]
    groups = merged_spans(windows)
    assert sorted(set(windows)) == sorted(window for _, members in groups for window in members)
    for cover, members in groups:
        covered = {point for window in members for point in range(window.start, window.end + 1)}
        assert covered == set(range(cover.start, cover.end + 1))
    for (first, _), (second, _) in itertools.pairwise(groups):
        assert first.end < second.start


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 30))
def test_count_windows_hold_the_elements_that_they_should(size, slide, num_elements):
    held: dict[CountWindow, list[int]] = {}
    context = Context()
    assigner = CountSlidingWindowAssigner.of(size, slide)
    for number in range(num_elements):
        for window in assigner.assign_windows(None, 0, context):
            held.setdefault(window, []).append(number)
    expected = {
        CountWindow(window): [n for n in range(window * slide, window * slide + size) if n < num_elements]
        for window in range(num_elements)
    }
    assert held == {window: numbers for window, numbers in expected.items() if numbers}


def test_windows_survive_pickling_and_are_what_they_are():
    for window in (TimeWindow(-5, 5), CountWindow(3), GlobalWindow.get()):
        copy = pickle.loads(pickle.dumps(window))
        assert (copy, type(copy), hash(copy)) == (window, type(window), hash(window))
    assert (repr(TimeWindow(0, 5)), repr(CountWindow(1))) == ("TimeWindow(start=0, end=5)", "CountWindow(id=1)")
    assert GlobalWindows.create().assign_windows(None, 0, Context()) == [GlobalWindow()]


@pytest.mark.parametrize(
    ("serializer", "windows"),
    [
        (TimeWindowSerializer(), [TimeWindow(-5, 5), TimeWindow(-(2**63), 2**63 - 1)]),
        (CountWindowSerializer(), [CountWindow(0), CountWindow(7)]),
        (GlobalWindowSerializer(), [GlobalWindow.get(), GlobalWindow.get()]),
    ],
)
def test_windows_are_read_back_as_they_were_written(serializer, windows):
    stream = io.BytesIO()
    for window in windows:
        serializer.serialize(window, stream)
    stream.seek(0)
    assert [serializer.deserialize(stream) for _ in windows] == windows
    assert stream.read() == b""


def test_spans_may_be_said_in_three_ways():
    assert [span_ms(s, "x") for s in (Time.seconds(2), Duration.of_seconds(2), dt.timedelta(seconds=2))] == [2000] * 3
    with pytest.raises(ProgramError, match=r"of: expected a Time.* got 5"):
        TumblingEventTimeWindows.of(5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TumblingEventTimeWindows(0, 0), "longer than 0 ms"),
        (lambda: TumblingEventTimeWindows(5, 5), "the offset must be shorter than 5"),
        (lambda: SlidingEventTimeWindows(5, 0, 0), "longer than 0 ms"),
        (lambda: EventTimeSessionWindows(0), "the gap must be longer"),
        (lambda: EventTimeSessionWindows.with_dynamic_gap(5), "expected a SessionWindowTimeGapExtractor"),
        (lambda: CountTumblingWindowAssigner.of(0), "at least 1"),
        (lambda: CountTrigger.of("3"), "at least 1"),
        (lambda: PurgingTrigger.of(CountTrigger), "expected a Trigger"),
        (lambda: CountEvictor.of(-1), "a number of elements"),
        (lambda: DeltaEvictor.of(1, 5), r"expected a function \(old, new\)"),
    ],
)
def test_wrong_settings_say_what_is_wrong(make, message):
    with pytest.raises(ProgramError, match=message):
        make()


def test_an_event_time_window_refuses_a_record_without_a_timestamp():
    for assigner in (TumblingEventTimeWindows(5, 0), EventTimeSessionWindows(5)):
        with pytest.raises(ProgramError, match="assign_timestamps_and_watermarks"):
            assigner.assign_windows("x", TIME_MIN_MS, Context())


def test_a_dynamic_gap_is_milliseconds_or_a_span_and_nothing_else():
    def end_of(gap):
        (window,) = EventTimeSessionWindows.with_dynamic_gap(lambda element: gap).assign_windows(None, 10, Context())
        return window.end

    assert [end_of(gap) for gap in (5, Time.milliseconds(5), dt.timedelta(milliseconds=5))] == [15] * 3
    for gap, message in (
        (2.5, "of type float"),
        ("5", "of type str"),
        (None, "of type NoneType"),
        (0, "longer than 0"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            end_of(gap)


def test_evictors_keep_what_they_say():
    elements = [TimestampedValue(value, stamp) for value, stamp in [(1, 10), (5, 30), (9, 25), (8, 20)]]

    def before(evictor):
        return [element.value for element in evictor.evict_before(elements, len(elements), None, None)]

    assert before(CountEvictor.of(2)) == [9, 8]
    assert before(CountEvictor.of(0)) == []
    assert before(CountEvictor.of(2, True)) == [1, 5, 9, 8]
    assert before(TimeEvictor.of(Time.milliseconds(10))) == [5, 9]
    assert before(DeltaEvictor.of(3, lambda old, new: abs(old - new))) == [9, 8]
    assert [e.value for e in CountEvictor.of(1, True).evict_after(elements, 4, None, None)] == [8]
