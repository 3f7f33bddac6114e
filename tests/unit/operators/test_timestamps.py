"""Timestamps, watermarks, idleness and custom generators of one subtask."""

from __future__ import annotations

import contextlib

import pytest

from engine.core.clock import ManualClock
from engine.core.errors import UserCodeError
from engine.operators import watermark_alignment
from engine.operators.base import JobOutcome
from engine.operators.timestamps import TimestampsSpec
from engine.time.watermarks import Duration, Watermark, WatermarkGenerator, WatermarkStrategy
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS
from tests.testing.operator_harness import OperatorHarness, start_coordinators


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
    with OperatorHarness(strategy(WatermarkStrategy.for_generator(Punctuated)), clock=clock) as harness:
        out = harness.output
        out.emit = lambda batch: story.append(list(batch.rows)) if len(batch) else None
        out.emit_watermark = story.append
        harness.process([3, 10, 14])
        assert story == [[3, 10], 10, [14], 13]
        harness.head._generator.highest = 50
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


# --- alignment --------------------------------------------------------------------------------------------------------


def aligned(group="g", drift=10):
    base = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(lambda value, stamp: value)
    spec = base.with_watermark_alignment(group, Duration.of_millis(drift), Duration.of_millis(5))
    return TimestampsSpec(spec.with_idleness(Duration.of_millis(40)), at_source=True)


@pytest.fixture(autouse=True)
def no_groups(monkeypatch):
    monkeypatch.setattr(watermark_alignment, "_GROUPS", {})


class Sources:
    """Two subtasks of one source and one of another, with their coordinators."""

    def __init__(self, stack, other_group="g"):
        self.clock = ManualClock(1000)
        self.harnesses = []
        self.coordinators = []
        for spec, subtasks in ((aligned(), 2), (aligned(other_group), 1)):
            made = [
                OperatorHarness(spec, subtask_index=index, parallelism=subtasks, clock=self.clock)
                for index in range(subtasks)
            ]
            coordinators = start_coordinators(spec, parallelism=subtasks, harnesses=made)
            self.coordinators += coordinators
            for harness in made:
                harness._coordinators = coordinators
                self.harnesses.append(stack.enter_context(harness))

    def tick(self, millis=5):
        self.clock.advance(millis)
        for _ in range(2):  # all have reported, then all hear of it
            for harness in self.harnesses:
                harness.head.on_timer(self.clock.now_ms())
                harness.head._aligned.next_report_ms = self.clock.now_ms()

    def ready(self):
        return [harness.head.is_ready() for harness in self.harnesses]


def test_sources_of_a_group_wait_for_the_slowest_within_the_allowed_drift():
    with contextlib.ExitStack() as stack:
        sources = Sources(stack)
        first, second, other = sources.harnesses
        sources.tick()
        assert sources.ready() == [True, True, True]  # nobody knows the time yet
        for harness, time in ((first, 101), (second, 106), (other, 130)):
            harness.process([time])
        sources.tick()
        assert sources.ready() == [True, True, False]
        first.process([125])
        sources.tick()
        assert sources.ready() == [False, True, False]  # now the second is the slowest, at 105
        second.process([125])
        sources.tick()
        assert sources.ready() == [True, True, True]
        other.process([200])
        sources.tick()
        second.watermark(TIME_MAX_MS)  # it has ended
        sources.tick()
        assert sources.ready() == [True, True, False]  # the first is still at 124
        first.watermark(TIME_MAX_MS)
        sources.tick()
        assert sources.ready() == [True, True, True]


def test_an_idle_source_does_not_hold_up_the_others_and_one_that_waits_is_not_idle():
    with contextlib.ExitStack() as stack:
        sources = Sources(stack)
        first, second, other = sources.harnesses
        for harness, time in ((first, 100), (second, 200), (other, 200)):
            harness.process([time])
        sources.tick()
        assert sources.ready() == [True, False, False]
        for _ in range(10):
            sources.tick()
        assert first.output.idle == [True]
        assert second.output.idle == other.output.idle == []
        assert sources.ready() == [True, True, True]


def test_groups_do_not_wait_for_each_other():
    with contextlib.ExitStack() as stack:
        sources = Sources(stack, other_group="h")
        for harness, time in zip(sources.harnesses, (100, 100, 500), strict=True):
            harness.process([time])
        sources.tick()
        assert sources.ready() == [True, True, True]
        for coordinator in sources.coordinators:
            coordinator.job_ended(JobOutcome.FINISHED)
        assert watermark_alignment._GROUPS == {}


def test_alignment_is_for_sources_only():
    base = WatermarkStrategy.for_monotonous_timestamps()
    spec = TimestampsSpec(base.with_watermark_alignment("g", Duration.of_millis(1)))
    assert spec.coordinator() is None
    assert aligned().coordinator() is not None
