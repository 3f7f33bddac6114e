"""Watermark alignment: sources of a group wait for the slowest, and splits of a source for each other."""

from __future__ import annotations

import contextlib

import pytest

from engine.connectors.simple import SequenceSource
from engine.connectors.source import NoMoreSplits, SourceSpec, SplitAssigned
from engine.connectors.stamped_source import StampedSourceSpec
from engine.core.clock import ManualClock
from engine.core.errors import ProgramError
from engine.core.records import RowBatch
from engine.operators import watermark_alignment
from engine.operators.base import JobOutcome, OperatorSpec, PollResult, SourceOperator
from engine.operators.watermark_alignment import AllowedWatermark, WatermarkReported
from engine.time.watermarks import Duration, WatermarkStrategy
from tests.testing.checkpointed_job import CheckpointedJob
from tests.testing.operator_harness import OperatorHarness, start_coordinators
from tests.testing.partitioned_source import PartitionedSource, write_partitions

BY_VALUE = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(lambda value, _: value)
BY_SECOND_FIELD = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(lambda row, _: row[1])


@pytest.fixture(autouse=True)
def no_groups(monkeypatch):
    monkeypatch.setattr(watermark_alignment, "_GROUPS", {})


class Given(SourceOperator):
    """Emits what the test puts into ``batches``."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def poll(self, rows_max: int) -> PollResult:
        if self.batches:
            self.out.emit(RowBatch(self.batches.pop(0)))
        return PollResult.IDLE


class GivenSpec(OperatorSpec):
    num_inputs = 0

    def build(self) -> SourceOperator:
        return Given()


def aligned(group="g", drift=10):
    strategy = BY_VALUE.with_watermark_alignment(group, Duration.of_millis(drift), Duration.of_millis(5))
    return StampedSourceSpec(GivenSpec(), strategy.with_idleness(Duration.of_millis(40)))


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

    def read(self, number, time):
        source = self.harnesses[number].head
        source._source.batches.append([time])
        source.poll(10)

    def end(self, number):
        self.harnesses[number].head.finish()

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
        sources.tick()
        assert sources.ready() == [True, True, True]  # nobody knows the time yet
        for number, time in enumerate((101, 106, 130)):
            sources.read(number, time)
        sources.tick()
        assert sources.ready() == [True, True, False]
        sources.read(0, 125)
        sources.tick()
        assert sources.ready() == [False, True, False]  # now the second is the slowest, at 105
        sources.read(1, 125)
        sources.tick()
        assert sources.ready() == [True, True, True]
        sources.read(2, 200)
        sources.tick()
        sources.end(1)
        sources.tick()
        assert sources.ready() == [True, True, False]  # the first is still at 124
        sources.end(0)
        sources.tick()
        assert sources.ready() == [True, True, True]


def test_an_idle_source_does_not_hold_up_the_others_and_one_that_waits_is_not_idle():
    with contextlib.ExitStack() as stack:
        sources = Sources(stack)
        for number, time in enumerate((100, 200, 200)):
            sources.read(number, time)
        sources.tick()
        assert sources.ready() == [True, False, False]
        for _ in range(8):
            sources.tick()
        first, second, other = sources.harnesses
        assert first.output.idle == [True]
        assert second.output.idle == other.output.idle == []
        assert sources.ready() == [True, True, True]


def test_groups_do_not_wait_for_each_other():
    with contextlib.ExitStack() as stack:
        sources = Sources(stack, other_group="h")
        for number, time in enumerate((100, 100, 500)):
            sources.read(number, time)
        sources.tick()
        assert sources.ready() == [True, True, True]
        for coordinator in sources.coordinators:
            coordinator.job_ended(JobOutcome.FINISHED)
        assert watermark_alignment._GROUPS == {}


# --- splits -----------------------------------------------------------------------------------------------------------


class Job:
    """One subtask that reads files together or numbers in turn, alone in its group."""

    def __init__(self, spec, *, drift=10, config=None):
        self.clock = ManualClock(0)
        self.drift = drift
        self.job = CheckpointedJob(spec, clock=self.clock, config=config)
        self.job.start()

    def report(self):
        """Tell the watermark, and hear how far everybody may go."""
        self.clock.advance(5)
        self.job.harnesses[0].head.on_timer(self.clock.now_ms())

    @property
    def head(self):
        return self.job.harnesses[0].head


def partitioned(folder, *, pauses=True, drift=10):
    strategy = BY_SECOND_FIELD.with_watermark_alignment("g", Duration.of_millis(drift), Duration.of_millis(5))
    return StampedSourceSpec(SourceSpec(PartitionedSource(str(folder), pauses)), strategy)


def hand_out(job, number=None):
    enumerator = job.job.coordinators[0]._source._enumerator
    for split in list(iter(lambda: enumerator.next_split(0, "nowhere"), None))[:number]:
        job.head.handle_event(SplitAssigned(split))
    job.head.handle_event(NoMoreSplits())


def test_a_split_that_runs_ahead_is_not_read_until_the_others_have_come_near(tmp_path):
    write_partitions(tmp_path, {"fast": [1, 30, 60, 90], "slow": [1, *range(10, 60, 5)]})
    job = Job(partitioned(tmp_path))
    hand_out(job)
    while not job.job.finished:
        job.report()
        job.job.poll(0, 1)
    rows = job.job.rows()
    assert len(rows) == 15
    furthest = {"fast": 0, "slow": 0}
    for name, time in rows:
        furthest[name] = time
        if name == "fast" and furthest["slow"] < 55:
            # The record that goes beyond what is allowed is read; none behind it is.
            previous = [t for n, t in rows[: rows.index((name, time))] if n == "fast"][-1:]
            assert not previous or previous[0] - 1 <= furthest["slow"] - 1 + job.drift
    assert rows.index(("fast", 90)) > rows.index(("slow", 45))
    job.job.dispose()


def test_without_alignment_the_same_splits_are_read_in_turn(tmp_path):
    write_partitions(tmp_path, {"fast": [1, 30, 60, 90], "slow": [1, *range(10, 60, 5)]})
    job = Job(StampedSourceSpec(SourceSpec(PartitionedSource(str(tmp_path))), BY_SECOND_FIELD))
    enumerator = job.job.coordinators[0]._enumerator
    for split in list(iter(lambda: enumerator.next_split(0, "nowhere"), None)):
        job.head.handle_event(SplitAssigned(split))
    for _ in range(15):
        job.job.poll(0, 1)
    assert job.job.rows().index(("fast", 90)) < 8
    job.job.dispose()


def test_a_paused_split_is_not_idle_and_the_last_split_is_never_paused(tmp_path):
    write_partitions(tmp_path, {"fast": [1, 50, 51, 52], "slow": [1, 2]})
    spec = partitioned(tmp_path)
    spec = StampedSourceSpec(spec.source, spec.strategy.with_idleness(Duration.of_millis(40)))
    job = Job(spec)
    hand_out(job)
    for _ in range(3):
        job.report()
        job.job.poll(0, 1)
    assert job.job.rows() == [("fast", 1), ("slow", 1), ("fast", 50)]
    assert len(job.head._paused) == 1
    job.head._had_more = False  # all time counts
    [paused] = job.head._paused
    [slow] = [split.split_id for split in job.head._source._reader.splits if split.split_id != paused]
    for _ in range(20):
        job.head._time.begin_split(slow)  # it is not idle either
        job.report()
    assert job.head._paused == {paused}
    assert not job.head._time.splits.is_split_idle(paused)
    job.job.poll(0, 1)
    assert job.job.rows()[-1] == ("slow", 2)
    assert job.head._paused == frozenset()  # slow has ended
    job.job.dispose()


@pytest.mark.parametrize("allowed", [False, True])
def test_a_reader_that_cannot_stop_single_splits_is_an_error_unless_that_is_allowed(tmp_path, allowed):
    write_partitions(tmp_path, {"fast": [1, 50, 51, 52], "slow": [1, 2, 3, 4]})
    config = {"pipeline.watermark-alignment.allow-unaligned-source-splits": str(allowed).lower()}
    job = Job(partitioned(tmp_path, pauses=False), config=config)
    hand_out(job)

    def read():
        while not job.job.finished:
            job.report()
            job.head._source._reader.paused = frozenset()
            job.job.poll(0, 1)

    if allowed:
        read()
        assert len(job.job.rows()) == 8
    else:
        with pytest.raises(ProgramError, match=r"pause_splits.*\n?.*allow-unaligned-source-splits"):
            read()
    job.job.dispose()


def test_a_split_that_is_read_waits_for_other_sources_though_later_splits_hold_the_watermark():
    strategy = BY_VALUE.with_watermark_alignment("g", Duration.of_millis(5), Duration.of_millis(5))
    job = CheckpointedJob(StampedSourceSpec(SourceSpec(SequenceSource(0, 99)), strategy), parallelism=2)
    job.start()
    for subtask in (0, 1):
        job.poll(subtask, 3)
    taken = job.complete()
    job.kill()
    clock = job._clock = ManualClock(0)
    job.start(taken, parallelism=1)
    head = job.harnesses[0].head
    head.handle_event(AllowedWatermark(20))  # another source is at 15
    while head.is_ready():
        job.poll(0, 2)
    assert (job.rows()[-1], job.harnesses[0].output.watermarks_ms) == (22, [])
    clock.advance(5)
    sent = job.harnesses[0].events
    head.on_timer(clock.now_ms())
    assert sent[-1] == WatermarkReported(21)
    job.dispose()


def test_splits_whose_turn_comes_later_do_not_stop_the_one_that_is_read():
    strategy = BY_VALUE.with_watermark_alignment("g", Duration.of_millis(5), Duration.of_millis(5))
    job = CheckpointedJob(StampedSourceSpec(SourceSpec(SequenceSource(0, 99)), strategy), parallelism=2)
    job.start()
    for subtask in (0, 1):
        job.poll(subtask, 3)
    taken = job.complete()
    rows = job.rows()
    job.kill()
    clock = job._clock = ManualClock(0)
    job.start(taken, parallelism=1)
    for _ in range(60):
        clock.advance(5)
        head = job.harnesses[0].head
        head.on_timer(clock.now_ms())
        if 0 not in job.finished and head.is_ready():
            job.poll(0, 4)
    assert sorted(rows + job.rows()) == list(range(100))
    job.dispose()


@pytest.mark.parametrize(("drift", "rows"), [(100, 50), (10**9, 16_384)])
def test_batches_are_so_small_that_a_source_stops_near_what_is_allowed(drift, rows):
    strategy = BY_VALUE.with_watermark_alignment("g", Duration.of_millis(drift))
    with OperatorHarness(StampedSourceSpec(SourceSpec(SequenceSource(0, 10**6)), strategy)) as harness:
        for _ in range(20):
            harness.head.poll(16_384)
        assert len(harness.output.batches[-1]) <= rows
        assert len(harness.output.batches[-1]) > rows / 4
        assert max(len(batch) for batch in harness.output.batches) <= max(64, rows)
