"""Waits until TaskManagers have reported what runs of a job, and until its coordinators are there.

The first word to the contrary ends it, and the job is restarted.

On the event loop, once for a job that a former leader has left. Not here: what fits (``takeover``), what follows
(``job_master``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from typing import final

from engine.core.ids import AllocationID
from engine.graph.job_graph import JobGraph
from engine.protocol.control import OperatorEventSent, TaskStateChanged
from engine.protocol.lifecycle import ExecutionState
from engine.runtime.jobmanager.takeover import ReportedSlot, Restart, TakeOver, Wait, judge

__all__ = ["TakingOver"]

logger = logging.getLogger(__name__)


@final
class TakingOver:
    """``fits`` is called when everything is reported: the job's coordinators are to be started. ``given_up`` is called
    instead, or any time after that, when something does not fit, with the slots that were reported."""

    def __init__(
        self,
        job_graph: JobGraph,
        attempt_number: int,
        *,
        wait_ms: int,
        fits: Callable[[TakeOver], None],
        given_up: Callable[[tuple[AllocationID, ...]], None],
    ) -> None:
        self.attempt_number = attempt_number
        #: set when everything is reported
        self.verdict: TakeOver | None = None
        #: what tasks have said to their coordinators, which are not there yet
        self.events: list[OperatorEventSent] = []
        self._job_graph = job_graph
        self._wait_ms = wait_ms
        self._fits = fits
        self._given_up = given_up
        self._slots: dict[AllocationID, ReportedSlot] = {}
        self._has_ended = False
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        logger.info(
            "job=%s waits %d ms for reports of its running tasks, attempt %d",
            self._job_graph.job_id,
            self._wait_ms,
            self.attempt_number,
        )
        self._timer = asyncio.get_running_loop().call_later(self._wait_ms / 1000, self._expired)

    def end(self) -> None:
        """Nothing more is called."""
        self._has_ended = True
        if self._timer is not None:
            self._timer.cancel()

    def slots_reported(self, slots: Sequence[ReportedSlot]) -> None:
        if self._has_ended:
            return
        self._slots.update((slot.held.allocation_id, slot) for slot in slots)
        match judge(self._job_graph, self.attempt_number, self._slots.values()):
            case Restart(reason):
                self.give_up(reason)
            case TakeOver() as verdict:
                self.verdict = verdict
                if self._timer is not None:
                    self._timer.cancel()
                self._fits(verdict)
            case Wait(num_missing):
                logger.info("job=%s: %d tasks are not reported yet", self._job_graph.job_id, num_missing)

    def slots_lost(self, allocation_ids: Collection[AllocationID], why: str) -> None:
        if not self._slots.keys().isdisjoint(allocation_ids):
            self.give_up(why)

    def task_changed(self, report: TaskStateChanged) -> None:
        """It was RUNNING when it was reported."""
        if report.state is not ExecutionState.RUNNING:
            why = "" if report.error is None else f": {report.error.message}"
            self.give_up(f"task {report.attempt_id} is {report.state.name}{why}")

    def give_up(self, reason: str) -> None:
        if self._has_ended:
            return
        self.end()
        logger.warning(
            "job=%s: its running tasks are not taken over, it is restarted: %s", self._job_graph.job_id, reason
        )
        self._given_up(tuple(self._slots))

    def _expired(self) -> None:
        verdict = judge(self._job_graph, self.attempt_number, self._slots.values())
        missing = f"{verdict.num_missing} tasks were" if isinstance(verdict, Wait) else "not all tasks were"
        self.give_up(f"{missing} not reported within {self._wait_ms} ms")
