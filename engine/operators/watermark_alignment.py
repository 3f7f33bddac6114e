"""Watermark alignment: sources of one group wait for each other, so that a fast one does not fill the state of windows
and joins with records that wait for a slow one. Source: FLIP-182, Flink's SourceCoordinator.

Each subtask tells its watermark to its coordinator now and then; the coordinators of a group share what they heard, in
the JobManager, and answer with how far everyone may go: the lowest watermark plus the allowed drift. A subtask that is
further does not read on. Idle and ended subtasks do not hold the others up.
"""

from __future__ import annotations

from dataclasses import field
from typing import Final, final

from engine.core.ids import JobID
from engine.core.late_dataclass import dataclass
from engine.operators.base import (
    CoordinatorContext,
    CoordinatorSpec,
    JobOutcome,
    OperatorContext,
    OperatorCoordinator,
)
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS

__all__ = ["AlignedSource", "AlignmentCoordinatorSpec", "AllowedWatermark", "WatermarkReported"]


@dataclass(frozen=True, slots=True)
class WatermarkReported:
    """Subtask → coordinator. ``watermark_ms`` None: idle."""

    watermark_ms: int | None


@dataclass(frozen=True, slots=True)
class AllowedWatermark:
    """Coordinator → subtask: do not read on when your watermark is beyond this."""

    watermark_ms: int


@final
class AlignedSource:
    """What a subtask knows. The operator asks ``may_read`` and calls ``report`` when ``next_report_ms`` has come."""

    def __init__(self, ctx: OperatorContext, interval_ms: int) -> None:
        self._ctx = ctx
        self._interval_ms = max(1, interval_ms)
        self.allowed_ms = TIME_MAX_MS  #: who is beyond this does not read on
        self.next_report_ms = ctx.clock.now_ms()

    def report(self, now_ms: int, watermark_ms: int | None) -> None:
        self.next_report_ms = now_ms + self._interval_ms
        if watermark_ms != TIME_MIN_MS:  # before its first record it has nothing to say
            self._ctx.send_event(WatermarkReported(watermark_ms))

    def allow(self, event: AllowedWatermark) -> None:
        self.allowed_ms = event.watermark_ms
        self._ctx.wake()

    def may_read(self, watermark_ms: int) -> bool:
        return watermark_ms <= self.allowed_ms or watermark_ms == TIME_MAX_MS


# --- in the JobManager ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Group:
    """Watermarks by coordinator and subtask; of those that are neither idle nor ended."""

    watermarks_ms: dict[_AlignmentCoordinator, dict[int, int]] = field(default_factory=dict)

    def lowest_ms(self) -> int | None:
        return min((ms for of_subtask in self.watermarks_ms.values() for ms in of_subtask.values()), default=None)


#: Groups of running jobs. A job's coordinators run in one thread.
_GROUPS: Final[dict[tuple[JobID, str], _Group]] = {}


@final
@dataclass(frozen=True)
class AlignmentCoordinatorSpec(CoordinatorSpec):
    group: str
    drift_ms: int

    def create(self) -> OperatorCoordinator:
        return _AlignmentCoordinator(self.group, self.drift_ms)


@final
class _AlignmentCoordinator(OperatorCoordinator):
    def __init__(self, group: str, drift_ms: int) -> None:
        self._name = group
        self._drift_ms = drift_ms

    def start(self, ctx: CoordinatorContext) -> None:
        super().start(ctx)
        self._group = _GROUPS.setdefault((ctx.job_id, self._name), _Group())
        self._group.watermarks_ms[self] = {}

    def handle_event(self, subtask_index: int, attempt_number: int, event: object) -> None:
        assert isinstance(event, WatermarkReported), event
        own = self._group.watermarks_ms[self]
        if event.watermark_ms is None or event.watermark_ms == TIME_MAX_MS:
            own.pop(subtask_index, None)
        else:
            own[subtask_index] = event.watermark_ms
        lowest_ms = self._group.lowest_ms()
        allowed_ms = TIME_MAX_MS if lowest_ms is None else min(TIME_MAX_MS, lowest_ms + self._drift_ms)
        self.ctx.send_event(subtask_index, AllowedWatermark(allowed_ms))

    def subtask_finished(self, subtask_index: int) -> None:
        self._group.watermarks_ms[self].pop(subtask_index, None)

    def job_ended(self, outcome: JobOutcome) -> None:
        self._group.watermarks_ms.pop(self, None)
        if not self._group.watermarks_ms:
            _GROUPS.pop((self.ctx.job_id, self._name), None)
