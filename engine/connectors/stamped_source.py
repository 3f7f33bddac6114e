"""A source with the WatermarkStrategy that ``from_source`` was given: each split has a watermark of its own.

It runs any source operator and stands between it and the chain: what the source emits is stamped, what it tells of its
splits goes to ``operators/event_time``. Here too: sources wait for each other, and splits of one source for each other
(watermark alignment; who may go how far is ``operators/watermark_alignment``). Source: Flink's SourceOperator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, final

from engine.connectors.source import SplitOrder, SplitOutput, SplitReadingOperator
from engine.core.config import Configuration
from engine.core.errors import ProgramError
from engine.core.late_dataclass import dataclass
from engine.core.options import JobOptions
from engine.core.records import BATCH_ROWS_MAX, Batch
from engine.operators.base import (
    CoordinatorContext,
    CoordinatorSpec,
    JobOutcome,
    OperatorContext,
    OperatorCoordinator,
    OperatorSpec,
    Output,
    PollResult,
    SourceOperator,
)
from engine.operators.event_time import MAIN_SPLIT, EventTime
from engine.operators.watermark_alignment import (
    AlignedSource,
    AlignmentCoordinatorSpec,
    AllowedWatermark,
    WatermarkReported,
)
from engine.time.watermarks import WatermarkStrategy
from engine.time.windows import TIME_MIN_MS

__all__ = ["StampedSourceSpec"]

#: Of a pause between two looks at a source that has more to read, at most this part of the idle timeout counts: the
#: rest is backpressure. Not nothing, or a silent split beside busy ones would never be idle.
_COUNTED_PARTS: Final = 10
#: Records of an aligned source's first batch, when it is not known how far they bring it.
_ALIGNED_ROWS_FIRST: Final = 64


@final
@dataclass(frozen=True)
class StampedSourceSpec(OperatorSpec):
    """``source``: the spec of a SourceOperator; ``strategy`` says times and watermarks of what it emits.
    ``keeps_columns``: as of EventTime."""

    source: OperatorSpec
    strategy: WatermarkStrategy
    keeps_columns: bool = True
    num_inputs = 0

    def build(self) -> SourceOperator:
        source = self.source.build()
        assert isinstance(source, SourceOperator), source
        return _StampedSource(source, self.strategy, self.keeps_columns)

    def coordinator(self) -> CoordinatorSpec | None:
        source = self.source.coordinator()
        if self.strategy.alignment is None:
            return source
        group, drift_ms, _ = self.strategy.alignment
        return _StampedCoordinatorSpec(source, AlignmentCoordinatorSpec(group, drift_ms))

    def describe(self) -> str:
        return self.source.describe()

    def for_batch(self) -> OperatorSpec:
        """Return the source with times but without watermarks: in batch event time ends with the input."""
        if self.strategy.timestamp_assigner is None:
            return self.source
        return replace(self, strategy=WatermarkStrategy(timestamp_assigner=self.strategy.timestamp_assigner))


@final
class _StampedOutput(SplitOutput):
    """The Output that the source has."""

    def __init__(self, time: EventTime, out: Output) -> None:
        self._time = time
        self._out = out

    def emit(self, batch: Batch) -> None:
        self._time.process(batch, MAIN_SPLIT)

    def emit_side(self, tag: str, batch: Batch) -> None:
        self._out.emit_side(tag, batch)

    def emit_watermark(self, watermark_ms: int) -> None:
        raise AssertionError("event time of this source is what its strategy says")

    def emit_idle(self, idle: bool) -> None:
        raise AssertionError("event time of this source is what its strategy says")

    def emit_superstep_end(self, superstep: int) -> None:
        self._out.emit_superstep_end(superstep)

    def add_split(self, split_id: str) -> None:
        self._time.add_split(split_id, is_read=False)

    def begin_split(self, split_id: str) -> None:
        self._time.begin_split(split_id)

    def emit_of(self, split_id: str, batch: Batch) -> None:
        self._time.process(batch, split_id)

    def end_split(self, split_id: str) -> None:
        self._time.end_split(split_id)


@final
class _StampedSource(SourceOperator):
    def __init__(self, source: SourceOperator, strategy: WatermarkStrategy, keeps_columns: bool) -> None:
        self._source = source
        self._strategy = strategy
        self._keeps_columns = keeps_columns
        self._order = source.split_order if isinstance(source, SplitReadingOperator) else SplitOrder.UNTOLD
        self._aligned: AlignedSource | None = None
        self._rows_max = _ALIGNED_ROWS_FIRST
        self._paused: frozenset[str] = frozenset()
        #: The source had more when it was polled last: that it was not polled again since has other reasons.
        self._had_more = False

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._time = EventTime(self._strategy, ctx, out, keeps_columns=self._keeps_columns)
        if self._strategy.alignment is not None:
            self._aligned = AlignedSource(ctx, self._strategy.alignment[2])
            self._may_run_ahead = Configuration(ctx.config).get(JobOptions.ALLOW_UNALIGNED_SOURCE_SPLITS)
        self._looked_ms = ctx.clock.now_ms()
        self._source.open(ctx, _StampedOutput(self._time, out))
        if self._order is SplitOrder.UNTOLD:
            self._time.add_split(MAIN_SPLIT)

    def poll(self, rows_max: int) -> PollResult:
        if self._strategy.idle_timeout_ms is not None:
            self._look(self.ctx.clock.now_ms())
        if self._strategy.alignment is None:
            result = self._source.poll(rows_max)
        else:
            result = self._poll_aligned(rows_max)
        self._had_more = result is PollResult.MORE
        return result

    def _look(self, now_ms: int) -> None:
        """Leave time out of idleness in which there was something to read, and nobody asked for it."""
        passed_ms, self._looked_ms = now_ms - self._looked_ms, now_ms
        if not self._is_within():
            self._time.leave_out(passed_ms)
        elif self._had_more:
            counted_ms = (self._strategy.idle_timeout_ms or 0) // _COUNTED_PARTS
            self._time.leave_out(max(0, passed_ms - counted_ms))

    # --- alignment ---------------------------------------------------------------------------------------------------

    def _poll_aligned(self, rows_max: int) -> PollResult:
        """Poll for so few records that they do not bring the source far beyond what is allowed: it cannot stop amid a
        batch."""
        assert self._strategy.alignment is not None
        drift_ms = self._strategy.alignment[1]
        before_ms = self._aligned_ms()
        result = self._source.poll(min(rows_max, self._rows_max))
        if before_ms > TIME_MIN_MS:
            advance_ms = self._aligned_ms() - before_ms
            if 2 * advance_ms > drift_ms:
                self._rows_max = max(1, self._rows_max // 2)
            elif 8 * advance_ms < drift_ms:
                self._rows_max = min(BATCH_ROWS_MAX, self._rows_max * 2)
        self._pause_what_is_ahead()
        return result

    def is_ready(self) -> bool:
        return self._is_within() and self._source.is_ready()

    def _is_within(self) -> bool:
        return self._aligned is None or self._aligned.may_read(self._aligned_ms())

    def _aligned_ms(self) -> int:
        """Return the watermark that others wait for, and that waits for others."""
        if self._order is not SplitOrder.ONE_BY_ONE:
            return self._time.watermark_ms
        # Splits whose turn comes later hold the source's watermark. That says nothing of how far it has read: others
        # would not be held back by this source, nor would it wait for them.
        begun_ms = self._time.splits.lowest_begun_ms()
        return self._time.watermark_ms if begun_ms is None else max(begun_ms, self._time.watermark_ms)

    def _pause_what_is_ahead(self) -> None:
        assert self._aligned is not None
        splits = self._time.splits
        if self._order is not SplitOrder.TOGETHER:
            return
        # One split is ahead of nobody here; the source as a whole waits for others.
        ahead = splits.ahead_of(self._aligned.allowed_ms) if len(splits) > 1 else frozenset()
        if ahead != self._paused:
            for split_id in self._paused - ahead:
                self._time.is_waiting(split_id)
            self._paused = ahead
            if not self._source_pauses(ahead) and not self._may_run_ahead:
                raise ProgramError(
                    f"The source of {self.ctx.operator_name!r} cannot stop reading single splits, which watermark "
                    "alignment asks for: write pause_splits() of its reader, or let splits run ahead with "
                    f"{JobOptions.ALLOW_UNALIGNED_SOURCE_SPLITS.key}: true."
                )

    def _source_pauses(self, split_ids: frozenset[str]) -> bool:
        assert isinstance(self._source, SplitReadingOperator)
        return self._source.pause_splits(split_ids)

    def handle_event(self, event: object) -> None:
        if not isinstance(event, AllowedWatermark):
            self._source.handle_event(event)
            return
        assert self._aligned is not None
        self._look(self.ctx.clock.now_ms())
        self._aligned.allow(event)
        self._pause_what_is_ahead()

    # --- time --------------------------------------------------------------------------------------------------------

    def next_timer_ms(self) -> int | None:
        times = [self._source.next_timer_ms(), self._time.next_timer_ms()]
        if self._aligned is not None:
            times.append(self._aligned.next_report_ms)
        return min((time_ms for time_ms in times if time_ms is not None), default=None)

    def on_timer(self, now_ms: int) -> None:
        due_ms = self._source.next_timer_ms()
        if due_ms is not None and due_ms <= now_ms:
            self._source.on_timer(now_ms)
        self._look(now_ms)
        for split_id in self._paused:
            self._time.is_waiting(split_id)
        self._time.on_timer(now_ms)
        if self._aligned is not None and now_ms >= self._aligned.next_report_ms:
            self._aligned.report(now_ms, None if self._time.is_idle else self._aligned_ms())

    def finish(self) -> None:
        self._source.finish()
        self._time.end()

    # --- the source's own --------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        self._source.cancel()

    def holds_end(self) -> bool:
        return self._source.holds_end()

    def release_end(self) -> None:
        self._source.release_end()

    def close(self) -> None:
        self._source.close()

    def prepare_snapshot(self, checkpoint_id: int) -> None:
        self._source.prepare_snapshot(checkpoint_id)

    def snapshot_state(self, checkpoint_id: int) -> None:
        self._source.snapshot_state(checkpoint_id)

    def prepare_commit(self, checkpoint_id: int) -> object | None:
        return self._source.prepare_commit(checkpoint_id)

    def notify_checkpoint_complete(self, checkpoint_id: int) -> None:
        self._source.notify_checkpoint_complete(checkpoint_id)

    def notify_checkpoint_aborted(self, checkpoint_id: int) -> None:
        self._source.notify_checkpoint_aborted(checkpoint_id)

    def report(self) -> object | None:
        return self._source.report()


# --- in the JobManager ------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class _StampedCoordinatorSpec(CoordinatorSpec):
    source: CoordinatorSpec | None
    alignment: AlignmentCoordinatorSpec

    @property
    def can_resume(self) -> bool:  # type: ignore[override]
        return self.source is None or self.source.can_resume

    def create(self) -> OperatorCoordinator:
        source = None if self.source is None else self.source.create()
        return _StampedCoordinator(source, self.alignment.create())


@final
class _StampedCoordinator(OperatorCoordinator):
    """The source's coordinator, and the one that keeps sources together; only the former has a state."""

    def __init__(self, source: OperatorCoordinator | None, alignment: OperatorCoordinator) -> None:
        self._has_source = source is not None
        self._source = source or OperatorCoordinator()
        self._alignment = alignment

    def start(self, ctx: CoordinatorContext) -> None:
        self._source.start(ctx)
        self._alignment.start(ctx)

    def resume(self, ctx: CoordinatorContext, reports: Mapping[int, object]) -> None:
        """Subtasks tell their watermarks again and again; nobody is held back for one that has not yet."""
        if self._has_source:
            self._source.resume(ctx, reports)
        else:
            self._source.start(ctx)
        self._alignment.start(ctx)

    def handle_event(self, subtask_index: int, attempt_number: int, event: object) -> None:
        target = self._alignment if isinstance(event, WatermarkReported) else self._source
        target.handle_event(subtask_index, attempt_number, event)

    def handle_request(self, request: object) -> object:
        return self._source.handle_request(request)

    def subtask_finished(self, subtask_index: int) -> None:
        self._source.subtask_finished(subtask_index)
        self._alignment.subtask_finished(subtask_index)

    def restore(self, state: bytes, committables: Mapping[int, object]) -> None:
        self._source.restore(state, committables)

    def snapshot(self, checkpoint_id: int) -> bytes:
        return self._source.snapshot(checkpoint_id)

    def checkpoint_completed(self, checkpoint_id: int, committables: Mapping[int, object]) -> None:
        self._source.checkpoint_completed(checkpoint_id, committables)

    def checkpoint_aborted(self, checkpoint_id: int) -> None:
        self._source.checkpoint_aborted(checkpoint_id)

    def check_end(self, outcome: JobOutcome) -> None:
        self._source.check_end(outcome)

    def published(self) -> Sequence[str]:
        return self._source.published()

    def job_ended(self, outcome: JobOutcome) -> None:
        self._source.job_ended(outcome)
        self._alignment.job_ended(outcome)
