"""States of jobs and executions: enums, their legal edges, and which states are the last.

Job:        CREATED → RUNNING → FINISHED
                │        ├→ FAILING → FAILED | RESTARTING → CREATED…
                │        └→ CANCELLING → CANCELED
Execution:  CREATED → SCHEDULED → DEPLOYING → INITIALIZING → RUNNING → FINISHED
            any live state → CANCELING → CANCELED, any live state → FAILED

Names are Flink's, one L in CANCELED and two in CANCELLING included, because REST clients compare them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

__all__ = ["EXECUTION_LEGAL", "JOB_LEGAL", "ExecutionState", "JobStatus"]


class JobStatus(enum.Enum):
    INITIALIZING = "INITIALIZING"
    CREATED = "CREATED"
    RUNNING = "RUNNING"
    FAILING = "FAILING"
    FAILED = "FAILED"
    CANCELLING = "CANCELLING"
    CANCELED = "CANCELED"
    FINISHED = "FINISHED"
    RESTARTING = "RESTARTING"
    SUSPENDED = "SUSPENDED"
    RECONCILING = "RECONCILING"

    def is_globally_terminal_state(self) -> bool:
        return self in (JobStatus.FAILED, JobStatus.CANCELED, JobStatus.FINISHED)

    def is_terminal_state(self) -> bool:
        return self.is_globally_terminal_state() or self is JobStatus.SUSPENDED


_J = JobStatus
JOB_LEGAL: Final[Mapping[JobStatus, frozenset[JobStatus]]] = {
    _J.INITIALIZING: frozenset({_J.CREATED, _J.FAILED, _J.CANCELED, _J.SUSPENDED}),
    _J.CREATED: frozenset({_J.RUNNING, _J.FAILING, _J.CANCELLING, _J.CANCELED, _J.FAILED, _J.SUSPENDED}),
    _J.RUNNING: frozenset({_J.FINISHED, _J.FAILING, _J.CANCELLING, _J.RESTARTING, _J.SUSPENDED}),
    _J.FAILING: frozenset({_J.FAILED, _J.RESTARTING, _J.CANCELLING, _J.SUSPENDED}),
    _J.CANCELLING: frozenset({_J.CANCELED, _J.FAILING, _J.SUSPENDED}),
    _J.RESTARTING: frozenset({_J.CREATED, _J.RUNNING, _J.FAILING, _J.CANCELLING, _J.SUSPENDED}),
    _J.RECONCILING: frozenset({_J.RUNNING, _J.FAILING, _J.CANCELLING, _J.SUSPENDED}),
    _J.FAILED: frozenset(),
    _J.CANCELED: frozenset(),
    _J.FINISHED: frozenset(),
    _J.SUSPENDED: frozenset(),
}


class ExecutionState(enum.Enum):
    CREATED = "CREATED"
    SCHEDULED = "SCHEDULED"
    DEPLOYING = "DEPLOYING"
    INITIALIZING = "INITIALIZING"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    CANCELING = "CANCELING"
    CANCELED = "CANCELED"
    FAILED = "FAILED"
    RECONCILING = "RECONCILING"

    def is_terminal(self) -> bool:
        return self in (ExecutionState.FINISHED, ExecutionState.CANCELED, ExecutionState.FAILED)


_E = ExecutionState
_END = (_E.CANCELING, _E.CANCELED, _E.FAILED)
EXECUTION_LEGAL: Final[Mapping[ExecutionState, frozenset[ExecutionState]]] = {
    _E.CREATED: frozenset({_E.SCHEDULED, *_END}),
    _E.SCHEDULED: frozenset({_E.DEPLOYING, *_END}),
    # A task may report RUNNING or even FINISHED before its INITIALIZING was seen: reports are coalesced.
    _E.DEPLOYING: frozenset({_E.INITIALIZING, _E.RUNNING, _E.FINISHED, *_END}),
    _E.INITIALIZING: frozenset({_E.RUNNING, _E.FINISHED, *_END}),
    _E.RUNNING: frozenset({_E.FINISHED, *_END}),
    _E.CANCELING: frozenset({_E.CANCELED, _E.FINISHED, _E.FAILED}),
    _E.RECONCILING: frozenset({_E.RUNNING, *_END}),
    _E.FINISHED: frozenset(),
    _E.CANCELED: frozenset(),
    _E.FAILED: frozenset(),
}
