"""A source with a watermark for each split: splits read together, in turn, or not at all; restores; idleness."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.connectors.generator import DataGeneratorSpec
from engine.connectors.simple import SequenceSource
from engine.connectors.source import NoMoreSplits, SourceSpec, SplitAssigned, SplitOrder
from engine.connectors.stamped_source import StampedSourceSpec
from engine.core.clock import ManualClock
from engine.core.records import RowBatch, rows_of
from engine.operators.base import OperatorSpec, PollResult, SourceOperator
from engine.operators.event_time import MAIN_SPLIT
from engine.time.watermarks import Duration, Watermark, WatermarkGenerator, WatermarkStrategy
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS
from tests.testing.checkpointed_job import CheckpointedJob
from tests.testing.operator_harness import OperatorHarness
from tests.testing.partitioned_source import PartitionedReader, PartitionedSource, write_partitions

MONOTONOUS = WatermarkStrategy.for_monotonous_timestamps()
BY_SECOND_FIELD = MONOTONOUS.with_timestamp_assigner(lambda row, _: row[1])
BY_VALUE = MONOTONOUS.with_timestamp_assigner(lambda value, _: value)


def late_records(output):
    """Return the records that came behind a watermark which said that none like it would."""
    late, watermark = [], TIME_MIN_MS
    for told in output.story:
        if isinstance(told, int):
            assert told > watermark, "a watermark went back"
            watermark = told
        else:
            rows = rows_of(told)
            late += [row for row, stamp in zip(rows.rows, rows.timestamps_ms, strict=True) if stamp <= watermark]
    return late


def poll_all(job, *, until=None, rows_max=3):
    """Poll the subtasks in turn, to their end or until so many records have come."""
    while job.harnesses.keys() - job.finished and (until is None or len(job.rows()) < until):
        for subtask in sorted(job.harnesses.keys() - job.finished):
            job.poll(subtask, rows_max)


# --- splits that are read together ------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    times_of=st.dictionaries(
        st.sampled_from("abcde"), st.lists(st.integers(-50, 50), min_size=1, max_size=12).map(sorted), min_size=1
    ),
    taken_at=st.lists(st.integers(0, 20), max_size=2),
    parallelisms=st.lists(st.integers(1, 3), min_size=3, max_size=3),
)
def test_no_record_of_splits_in_order_is_late_however_far_they_are_apart(
    times_of, taken_at, parallelisms, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("partitions")
    # Times of one partition are told apart, so that none equals the one before.
    times_of = {name: [4 * time + i for i, time in enumerate(times)] for name, times in times_of.items()}
    records = write_partitions(folder, times_of)
    job = CheckpointedJob(StampedSourceSpec(SourceSpec(PartitionedSource(str(folder))), BY_SECOND_FIELD))
    kept, taken = [], None
    for parallelism, count in zip(parallelisms, [*taken_at, None], strict=False):
        job.start(taken, parallelism=parallelism)
        # All splits are handed out before the first record: a split that comes later may begin before the watermark.
        if taken is None:
            _hand_out(job, parallelism)
        poll_all(job, until=count)
        for harness in job.harnesses.values():
            assert late_records(harness.output) == []
        kept += job.rows()
        if count is not None:
            taken = job.complete()
            job.kill()
    job.dispose()
    assert Counter(kept) == Counter(records)


def _hand_out(job, parallelism):
    enumerator = job.coordinators[0]._enumerator
    splits = list(iter(lambda: enumerator.next_split(0, "nowhere"), None))
    for number, split in enumerate(splits):
        job.harnesses[number % parallelism].head.handle_event(SplitAssigned(split))
    for subtask in range(parallelism):
        job.harnesses[subtask].head.handle_event(NoMoreSplits())


def test_with_one_generator_for_all_splits_the_same_records_would_be_late(tmp_path, monkeypatch):
    """What the watermark of each split is for."""
    write_partitions(tmp_path, {"ahead": [100, 200, 300], "behind": [1, 2, 3]})
    late = [("behind", 1), ("behind", 2), ("behind", 3)]
    for order, expected in ((SplitOrder.TOGETHER, []), (SplitOrder.UNTOLD, late)):
        monkeypatch.setattr(PartitionedReader, "split_order", order)
        spec = StampedSourceSpec(SourceSpec(PartitionedSource(str(tmp_path))), BY_SECOND_FIELD)
        job = CheckpointedJob(spec)
        job.start()
        _hand_out(job, 1)
        poll_all(job)
        assert late_records(job.harnesses[0].output) == expected
        job.dispose()


def test_a_split_that_has_ended_leaves_the_watermark_to_the_others(tmp_path):
    write_partitions(tmp_path, {"a": [5], "b": [100, 200, 300]})
    job = CheckpointedJob(StampedSourceSpec(SourceSpec(PartitionedSource(str(tmp_path))), BY_SECOND_FIELD))
    job.start()
    _hand_out(job, 1)
    poll_all(job)
    # 4 is never told: a ends with its only record, when b has none yet.
    assert job.harnesses[0].output.watermarks_ms == [99, 199, 299, TIME_MAX_MS]
    job.dispose()


# --- one by one -------------------------------------------------------------------------------------------------------


def test_restored_splits_that_are_not_read_yet_hold_the_watermark_back():
    spec = StampedSourceSpec(SourceSpec(SequenceSource(0, 39)), BY_VALUE)
    job = CheckpointedJob(spec, parallelism=4)
    job.start()
    poll_all(job, until=12, rows_max=3)  # of 0…9, 10…19, 20…29, 30…39 three each
    taken = job.complete()
    job.kill()
    job.start(taken, parallelism=1)
    poll_all(job, rows_max=3)
    output = job.harnesses[0].output
    assert late_records(output) == []
    # The watermark begins with the last of the four.
    assert next(told for told in output.story if isinstance(told, int)) > 29
    job.dispose()


def test_of_splits_that_are_asked_for_one_after_the_other_each_begins_a_generator_of_its_own():
    made = []

    class Counting(WatermarkGenerator):
        def __init__(self):
            made.append(self)
            self.seen = []

        def on_event(self, event, event_timestamp, output):
            self.seen.append(event)
            output.emit_watermark(Watermark(event_timestamp))

        def on_periodic_emit(self, output):
            pass

    strategy = WatermarkStrategy.for_generator(Counting).with_timestamp_assigner(lambda value, _: value)
    spec = StampedSourceSpec(SourceSpec(SequenceSource(0, 9)), strategy)
    with OperatorHarness(spec, parallelism=2) as harness:  # the other subtask asks for nothing
        harness.run_source(rows_max=2)
        assert [generator.seen for generator in made] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
        assert harness.output.watermarks_ms == [*range(10), TIME_MAX_MS]


def test_a_source_without_splits_has_one_watermark():
    spec = StampedSourceSpec(DataGeneratorSpec(abs, 6), BY_VALUE)
    with OperatorHarness(spec) as harness:
        harness.run_source(rows_max=3)
        assert harness.output.watermarks_ms == [1, 4, TIME_MAX_MS]
        assert harness.output.timestamps_ms == [0, 1, 2, 3, 4, 5]


# --- idleness ---------------------------------------------------------------------------------------------------------


class Silent(SourceOperator):
    """Emits what it is told to; ``more`` says whether it has more."""

    def __init__(self, batches: list[list[int]], more: bool) -> None:
        self.batches = batches
        self.more = more

    def poll(self, rows_max: int) -> PollResult:
        if self.batches:
            self.out.emit(RowBatch(self.batches.pop(0)))
        return PollResult.MORE if self.more else PollResult.IDLE


class SilentSpec(OperatorSpec):
    num_inputs = 0

    def __init__(self, batches: list[list[int]], more: bool) -> None:
        self.arguments = batches, more

    def build(self) -> SourceOperator:
        return Silent(*self.arguments)


def tick(harness, clock, millis):
    clock.advance(millis)
    due_ms = harness.head.next_timer_ms()
    if due_ms is not None and due_ms <= clock.now_ms():
        harness.head.on_timer(clock.now_ms())


def test_an_idle_split_is_left_out_and_a_source_whose_splits_are_all_idle_is_idle(tmp_path):
    write_partitions(tmp_path, {"a": [5, 6], "b": [100, 200, 300, 400]})
    clock = ManualClock(0)
    idle = BY_SECOND_FIELD.with_idleness(Duration.of_millis(50))
    job = CheckpointedJob(StampedSourceSpec(SourceSpec(PartitionedSource(str(tmp_path))), idle), clock=clock)
    job.start()
    _hand_out(job, 1)
    harness = job.harnesses[0]
    reader = harness.head._source._reader
    for _ in range(2):
        job.poll(0, 1)
    assert harness.output.watermarks_ms == [4]
    reader.paused = frozenset({split.split_id for split in reader.splits if split.path.endswith("a")})
    harness.head._had_more = False  # it had nothing more, so all time counts
    tick(harness, clock, 30)
    job.poll(0, 1)  # b goes on, a is silent
    harness.head._had_more = False
    tick(harness, clock, 24)
    assert harness.output.watermarks_ms == [4, 199]
    assert harness.output.idle == []
    tick(harness, clock, 60)
    assert harness.output.idle == [True]
    job.poll(0, 1)
    assert (harness.output.idle, harness.output.watermarks_ms) == ([True, False], [4, 199, 299])
    job.dispose()


def test_a_source_that_cannot_hand_on_what_it_has_is_not_idle():
    """Its task is not stepped under backpressure; then timers are due before anything is read."""
    idle = BY_VALUE.with_idleness(Duration.of_millis(100))
    for more, expected in ((True, []), (False, [True])):
        clock = ManualClock(0)
        with OperatorHarness(StampedSourceSpec(SilentSpec([[1]], more), idle), clock=clock) as harness:
            harness.head.poll(10)
            tick(harness, clock, 5000)
            assert harness.output.idle == expected


def test_a_busy_source_does_not_keep_a_silent_split_from_being_idle(tmp_path):
    write_partitions(tmp_path, {"a": [5, 6], "b": list(range(100, 200))})
    clock = ManualClock(0)
    idle = BY_SECOND_FIELD.with_idleness(Duration.of_millis(50))
    job = CheckpointedJob(StampedSourceSpec(SourceSpec(PartitionedSource(str(tmp_path))), idle), clock=clock)
    job.start()
    _hand_out(job, 1)
    harness = job.harnesses[0]
    job.poll(0, 1)
    reader = harness.head._source._reader
    reader.paused = frozenset({split.split_id for split in reader.splits if split.path.endswith("a")})
    for _ in range(60):
        job.poll(0, 1)
        tick(harness, clock, 2)
    assert harness.output.idle == []
    assert harness.output.watermarks_ms[-1] > 150
    job.dispose()


def test_a_subtask_without_splits_is_idle_after_the_timeout_and_active_when_it_gets_one():
    clock = ManualClock(0)
    idle = BY_VALUE.with_idleness(Duration.of_millis(50))
    job = CheckpointedJob(StampedSourceSpec(SourceSpec(SequenceSource(7, 8)), idle), clock=clock)
    job.start()
    harness = job.harnesses[0]
    tick(harness, clock, 49)
    assert harness.output.idle == []
    tick(harness, clock, 1)
    assert (harness.output.idle, harness.head.next_timer_ms()) == ([True], None)
    poll_all(job)
    assert (harness.output.idle, harness.output.watermarks_ms) == ([True, False], [7, TIME_MAX_MS])
    job.dispose()


def test_a_split_whose_turn_has_not_come_is_not_idle():
    """Flink leaves it out after the timeout, and its records are late when it is read."""
    clock = ManualClock(0)
    idle = BY_VALUE.with_idleness(Duration.of_millis(50))
    job = CheckpointedJob(StampedSourceSpec(SourceSpec(SequenceSource(0, 19)), idle), parallelism=2, clock=clock)
    job.start()
    for subtask in (0, 1):
        job.poll(subtask, 3)
    taken = job.complete()
    job.kill()
    job.start(taken, parallelism=1)
    for _ in range(5):
        job.poll(0, 1)
        job.harnesses[0].head._had_more = False  # all time counts
        tick(job.harnesses[0], clock, 40)
    assert job.harnesses[0].output.watermarks_ms == []
    poll_all(job)
    assert late_records(job.harnesses[0].output) == []
    job.dispose()


def test_an_idle_split_that_ends_leaves_the_stream_idle():
    clock = ManualClock(0)
    idle = BY_VALUE.with_idleness(Duration.of_millis(50))
    with OperatorHarness(StampedSourceSpec(SilentSpec([[1]], False), idle), clock=clock) as harness:
        harness.head.poll(1)
        tick(harness, clock, 50)
        harness.head._time.end_split(MAIN_SPLIT)
        assert harness.output.idle == [True]


# --- the end ----------------------------------------------------------------------------------------------------------


def test_nothing_is_timed_behind_the_end():
    clock = ManualClock(0)
    idle = BY_VALUE.with_idleness(Duration.of_millis(50))
    with OperatorHarness(StampedSourceSpec(DataGeneratorSpec(abs, 3), idle), clock=clock) as harness:
        harness.run_source()
        assert harness.head.next_timer_ms() is None
        harness.head.on_timer(1000)
        assert (harness.output.idle, harness.output.watermarks_ms[-1]) == ([], TIME_MAX_MS)


@pytest.mark.parametrize("spec", [SourceSpec(SequenceSource(1, 5)), DataGeneratorSpec(abs, 5)], ids=["splits", "none"])
def test_in_batch_there_are_times_but_no_watermarks(spec):
    stamped = StampedSourceSpec(spec, BY_VALUE.with_idleness(Duration.of_millis(1))).for_batch()
    with OperatorHarness(stamped) as harness:
        harness.run_source()
        assert harness.output.timestamps_ms == harness.output.rows
        assert harness.output.watermarks_ms == [TIME_MAX_MS]
    assert StampedSourceSpec(spec, MONOTONOUS).for_batch() is spec
