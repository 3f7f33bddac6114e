"""Decides what one job does next: which slots it asks for, which tasks are deployed or cancelled, when it has ended.

Pure: events in, commands out; the JobMaster (``job_master``) carries the commands out in their order. All changes of
the ExecutionGraph happen here. Not here: where slots come from (``slot_manager``), what runs in the JobManager for
single operators (``coordinators``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from engine.core.ids import AllocationID, ExecutionAttemptID, JobVertexID
from engine.graph.execution_graph import ExecutionGraph, SlotGrant
from engine.graph.job_graph import JobGraph
from engine.operators.base import JobOutcome
from engine.protocol.control import ErrorInfo, TaskDeployment, TaskMetrics, TaskStateChanged
from engine.protocol.lifecycle import JobStatus


@dataclass(frozen=True, slots=True, order=True)
class SlotRequestKey:
    """One shared slot: it takes subtask ``subtask_index`` of every vertex of the slot sharing group."""

    slot_sharing_group: str
    subtask_index: int


# --- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartScheduling:
    pass


@dataclass(frozen=True, slots=True)
class SlotsGranted:
    """Answer to RequestSlots: one grant for every key that was asked for."""

    grants: Sequence[tuple[SlotRequestKey, SlotGrant]]


@dataclass(frozen=True, slots=True)
class SlotsUnavailable:
    """Answer to RequestSlots: there will be none."""

    error: ErrorInfo


@dataclass(frozen=True, slots=True)
class TaskStateReported:
    report: TaskStateChanged


@dataclass(frozen=True, slots=True)
class SlotsLost:
    """Slot processes died, alone or with their TaskManager; all that ran in them is gone."""

    allocation_ids: Sequence[AllocationID]
    error: ErrorInfo


@dataclass(frozen=True, slots=True)
class CancelRequested:
    pass


@dataclass(frozen=True, slots=True)
class CoordinatorsStarted:
    """All coordinators' ``start`` returned."""


@dataclass(frozen=True, slots=True)
class CoordinatorFailed:
    """A coordinator raised, at start or later. (When ``job_ended`` raised: ``JobEndHandled.error``.)"""

    error: ErrorInfo


@dataclass(frozen=True, slots=True)
class JobEndHandled:
    """Answer to EndCoordinators: all have returned; ``error`` = the first that raised."""

    error: ErrorInfo | None = None


@dataclass(frozen=True, slots=True)
class MetricsReported:
    metrics: Mapping[ExecutionAttemptID, TaskMetrics]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed. The scheduler has no deadline yet; restart delays will use it."""


Event: TypeAlias = (
    StartScheduling
    | SlotsGranted
    | SlotsUnavailable
    | TaskStateReported
    | SlotsLost
    | CancelRequested
    | CoordinatorsStarted
    | CoordinatorFailed
    | JobEndHandled
    | MetricsReported
    | Tick
)

# --- commands -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RequestSlots:
    """Ask for one slot per key, all or nothing. At most one such request is open."""

    keys: tuple[SlotRequestKey, ...]


@dataclass(frozen=True, slots=True)
class ReleaseSlots:
    """Give slots back; their processes get ``grace_ms`` to end. No task of ours is live in them."""

    allocation_ids: tuple[AllocationID, ...]
    reason: str
    grace_ms: int


@dataclass(frozen=True, slots=True)
class Deploy:
    allocation_id: AllocationID
    task: TaskDeployment


@dataclass(frozen=True, slots=True)
class Cancel:
    allocation_id: AllocationID
    attempt_id: ExecutionAttemptID


@dataclass(frozen=True, slots=True)
class StartCoordinators:
    """Create and start every coordinator of the job; answer CoordinatorsStarted (also when there are none) or
    CoordinatorFailed."""


@dataclass(frozen=True, slots=True)
class NotifySubtaskFinished:
    """Tell the coordinators of this vertex."""

    vertex_id: JobVertexID
    subtask_index: int


@dataclass(frozen=True, slots=True)
class EndCoordinators:
    """Call ``job_ended`` of every coordinator that was started, after all that was queued for it before; answer
    JobEndHandled. Sent once, when no task is live."""

    outcome: JobOutcome


@dataclass(frozen=True, slots=True)
class JobStatusChanged:
    status: JobStatus


@dataclass(frozen=True, slots=True)
class JobTerminated:
    """The last command: the job is FINISHED, FAILED or CANCELED, holds nothing and wants nothing. An open request for
    slots is void (``slot_manager.JobEnded`` withdraws it)."""

    status: JobStatus


Command: TypeAlias = (
    RequestSlots
    | ReleaseSlots
    | Deploy
    | Cancel
    | StartCoordinators
    | NotifySubtaskFinished
    | EndCoordinators
    | JobStatusChanged
    | JobTerminated
)


class Scheduler:
    """``handle(event, now_ms) -> list[Command]``; ``now_ms`` is wall-clock time, it becomes the timestamps in REST."""

    def __init__(self, job_graph: JobGraph, now_ms: int) -> None:
        self.graph = ExecutionGraph(job_graph, now_ms)

    def handle(self, event: Event, now_ms: int) -> list[Command]:
        raise NotImplementedError
