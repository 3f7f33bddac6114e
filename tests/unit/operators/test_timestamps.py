"""Timestamps, watermarks, idleness and custom generators of one subtask."""

from __future__ import annotations

import datetime as dt
import decimal

import numpy as np
import pyarrow as pa
import pytest

from engine.core.clock import ManualClock
from engine.core.errors import UserCodeError
from engine.core.records import ColumnBatch
from engine.operators.timestamps import TimestampsSpec
from engine.time.watermarks import Duration, Watermark, WatermarkGenerator, WatermarkStrategy
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS
from tests.testing.operator_harness import OperatorHarness


def strategy(base):
    return TimestampsSpec(base.with_timestamp_assigner(lambda value, stamp: value))


def test_the_watermark_follows_the_highest_time_less_the_allowed_disorder_and_never_goes_back():
    with OperatorHarness(strategy(WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_millis(5)))) as harness:
        for batch in ([3, 20, 7], [10], [21]):
            harness.process(batch)
        assert harness.output.timestamps_ms == [3, 20, 7, 10, 21]
        assert harness.output.watermarks_ms == [14, 15]


def test_only_the_last_watermark_of_upstream_passes():
    with OperatorHarness(strategy(WatermarkStrategy.for_monotonous_timestamps())) as harness:
        harness.watermark(5)
        harness.watermark(TIME_MAX_MS)
        assert harness.output.watermarks_ms == [TIME_MAX_MS]


@pytest.mark.parametrize("time", [TIME_MIN_MS, TIME_MAX_MS + 1])
def test_a_time_outside_of_64_bits_is_refused(time):
    error = pytest.raises(UserCodeError, match=rf"the timestamp {time} is no time.*\n.*on record: {time}")
    with OperatorHarness(strategy(WatermarkStrategy.for_monotonous_timestamps())) as harness, error:
        harness.process([1, time])


@pytest.mark.parametrize("time", [None, "2024", dt.datetime(2024, 1, 1), float("nan"), float("inf"), 1j])
def test_what_is_no_time_is_refused_with_its_record(time):
    error = pytest.raises(UserCodeError, match=r"returned .* of type .*; expected milliseconds since 1970 as an int")
    with OperatorHarness(strategy(WatermarkStrategy.for_monotonous_timestamps())) as harness, error as caught:
        harness.process([1, time])
    assert f"on record: {time!r}" in str(caught.value)
    assert ("int(value.timestamp() * 1000)" in str(caught.value)) is isinstance(time, dt.datetime)


def test_numbers_of_other_types_become_whole_milliseconds():
    with OperatorHarness(strategy(WatermarkStrategy.for_monotonous_timestamps())) as harness:
        harness.process([1.9, np.int64(2), decimal.Decimal(3), True])
        assert [(stamp, type(stamp)) for stamp in harness.output.timestamps_ms] == [(n, int) for n in (1, 2, 3, 1)]


def test_a_supplier_that_makes_no_generator_is_told():
    spec = TimestampsSpec(WatermarkStrategy.for_generator(lambda: 5))
    with pytest.raises(UserCodeError, match=r"for_generator\(\) made 5, no WatermarkGenerator"), OperatorHarness(spec):
        pass


def test_times_before_1970_and_at_the_limits_are_times():
    with OperatorHarness(strategy(WatermarkStrategy.for_monotonous_timestamps())) as harness:
        harness.process([TIME_MIN_MS + 1, -1, TIME_MAX_MS])
        assert harness.output.timestamps_ms == [TIME_MIN_MS + 1, -1, TIME_MAX_MS]
        assert harness.output.watermarks_ms == [TIME_MAX_MS - 1]


def test_a_stream_without_records_goes_idle_and_comes_back_with_the_next_one():
    clock = ManualClock(1000)
    base = WatermarkStrategy.for_monotonous_timestamps().with_idleness(Duration.of_millis(50))
    with OperatorHarness(strategy(base), clock=clock) as harness:
        clock.advance(30)
        harness.process([1])
        assert harness.head.next_timer_ms() == 1080
        clock.advance(50)
        harness.head.on_timer(clock.now_ms())
        assert (harness.output.idle, harness.head.next_timer_ms()) == ([True], None)
        harness.process([2])
        assert (harness.output.idle, harness.output.watermarks_ms) == ([True, False], [0, 1])


def test_an_idle_stream_that_ends_is_active_before_event_time_ends():
    """Else nobody would hear the end: what an idle channel says of event time does not count."""
    clock = ManualClock(1000)
    base = WatermarkStrategy.for_monotonous_timestamps().with_idleness(Duration.of_millis(50))
    with OperatorHarness(strategy(base), clock=clock) as harness:
        clock.advance(60)
        harness.head.on_timer(clock.now_ms())
        assert harness.output.idle == [True]
        harness.watermark(TIME_MAX_MS)
        assert (harness.output.idle, harness.output.watermarks_ms) == ([True, False], [TIME_MAX_MS])


class Punctuated(WatermarkGenerator):
    def __init__(self):
        self.highest = 0

    def on_event(self, event, event_timestamp, output):
        self.highest = max(self.highest, event_timestamp)
        if event % 10 == 0:
            output.emit_watermark(Watermark(event_timestamp))

    def on_periodic_emit(self, output):
        output.emit_watermark(self.highest - 1)


def test_a_generator_puts_its_watermarks_between_records_and_is_asked_by_the_clock():
    clock = ManualClock(0)
    story = []
    generator = Punctuated()
    with OperatorHarness(strategy(WatermarkStrategy.for_generator(lambda: generator)), clock=clock) as harness:
        out = harness.output
        out.emit = lambda batch: story.append(list(batch.rows)) if len(batch) else None
        out.emit_watermark = story.append
        harness.process([3, 10, 14])
        assert story == [[3, 10], 10, [14], 13]
        generator.highest = 50
        assert harness.head.next_timer_ms() == 200
        clock.advance(200)
        harness.head.on_timer(clock.now_ms())
        assert (story[-1], harness.head.next_timer_ms()) == (49, 400)


def test_a_failing_generator_names_the_record():
    class Wrong(Punctuated):
        def on_event(self, event, event_timestamp, output):
            raise KeyError(event)

    error = pytest.raises(UserCodeError, match=r"KeyError: 7\n.*on record: 7")
    with OperatorHarness(strategy(WatermarkStrategy.for_generator(Wrong))) as harness, error:
        harness.process([7])


def test_ingestion_time_is_the_clocks_and_goes_on_without_records():
    clock = ManualClock(1000)
    with OperatorHarness(TimestampsSpec(WatermarkStrategy.for_ingestion_time()), clock=clock) as harness:
        harness.process(["a", "b"], [7, 8])
        clock._now_ms -= 100  # it was put back
        harness.process(["c"])
        clock.advance(350)
        harness.head.on_timer(clock.now_ms())
        harness.process_batch(ColumnBatch(pa.RecordBatch.from_pydict({"x": [1, 2]})))
        assert harness.output.timestamps_ms == [1000, 1000, 1000, 1250, 1250]
        assert harness.output.watermarks_ms == [999, 1249]
        assert isinstance(harness.output.batches[-1], ColumnBatch)
        harness.watermark(TIME_MAX_MS)
        assert harness.head.next_timer_ms() is None
