"""When a job's next periodic checkpoint is due, and how many may fail. Pure; part of ``coordinator``."""

from __future__ import annotations

from typing import Final, final

from engine.checkpoint.messages import FailJob
from engine.checkpoint.settings import CheckpointSettings
from engine.protocol.checkpoint import CheckpointFailureReason

__all__ = ["CheckpointSchedule", "FailureBudget"]

#: The next checkpoint begins so soon after one that a task's end made impossible, and when tasks wait for one at their
#: end: more tasks may be about to end.
RETRY_MS: Final = 100


@final
class CheckpointSchedule:
    def __init__(self, settings: CheckpointSettings) -> None:
        self._interval_ms = settings.interval_ms
        self._min_pause_ms = settings.min_pause_ms
        self._next_ms = 0
        #: when the last one ended, however it did; None = none has
        self._last_end_ms: int | None = None

    def begin(self, now_ms: int) -> None:
        """An attempt begins."""
        self._last_end_ms = None
        self._next_ms = now_ms + self._interval_ms

    def resume(self, now_ms: int, since_ms: int | None) -> None:
        """An attempt goes on under another JobManager. ``since_ms``: how long ago the newest complete checkpoint began,
        None = there is none. What is behind the time is taken at once: nobody took any meanwhile."""
        self._last_end_ms = now_ms  # nobody knows when; a pause is kept in any case
        since_ms = self._interval_ms if since_ms is None else max(0, since_ms)  # clocks of two hosts may differ
        self._next_ms = now_ms + max(0, self._interval_ms - since_ms)

    def due_ms(self) -> int:
        if self._last_end_ms is None:
            return self._next_ms
        return max(self._next_ms, self._last_end_ms + self._min_pause_ms)

    def took_turn(self, now_ms: int) -> None:
        """The one that was due begins. Turns that were missed are left out."""
        self._next_ms += self._interval_ms
        if self._next_ms <= now_ms:
            self._next_ms = now_ms + self._interval_ms

    def ended(self, now_ms: int) -> None:
        self._last_end_ms = now_ms

    def hurry(self, now_ms: int) -> None:
        """The next one is wanted soon, if not sooner."""
        self._next_ms = min(self._next_ms, now_ms + RETRY_MS)

    def postpone(self, now_ms: int) -> None:
        """The next one is wanted soon, not at once."""
        self._next_ms = now_ms + RETRY_MS


@final
class FailureBudget:
    """Failures in a row that a job bears."""

    def __init__(self, tolerable_failures: int) -> None:
        self._tolerable = tolerable_failures
        self._in_a_row = 0

    def restore(self) -> None:
        """One completed, or an attempt begins."""
        self._in_a_row = 0

    def spend(self, reason: CheckpointFailureReason, what: str) -> FailJob | None:
        """``what`` failed: return how the job fails if that is one too many."""
        if not reason.counts:
            return None
        self._in_a_row += 1
        if self._in_a_row != self._tolerable + 1:
            return None
        text = (
            f"Exceeded checkpoint tolerable failure threshold "
            f"(execution.checkpointing.tolerable-failed-checkpoints: {self._tolerable}). {what}."
        )
        return FailJob(text, reason)
