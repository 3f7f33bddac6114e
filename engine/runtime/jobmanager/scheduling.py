"""What a job's scheduler hears and says: events and commands. Nothing here does any work; ``scheduler`` decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from engine.core.ids import AllocationID, ExecutionAttemptID, JobVertexID
from engine.core.late_dataclass import dataclass
from engine.graph.execution_graph import SlotGrant
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
class TasksTakenOver:
    """Instead of StartScheduling: all tasks of an attempt that a former leader made run on in these slots, one for each
    key, and their coordinators have been started."""

    attempt_number: int
    grants: Sequence[tuple[SlotRequestKey, SlotGrant]]


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
    """A coordinator raised, at start or later. (When ``job_ended`` raised: ``JobEndHandled.error``.)

    ``is_final``: it would raise again (no such input, the output exists), so the job is not restarted.
    """

    error: ErrorInfo
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class JobEndHandled:
    """Answer to EndCoordinators: all have returned; ``error`` = the first that raised."""

    error: ErrorInfo | None = None


@dataclass(frozen=True, slots=True)
class GivenUpHandled:
    """Answer to GiveUpCoordinators."""


@dataclass(frozen=True, slots=True)
class MetricsReported:
    metrics: Mapping[ExecutionAttemptID, TaskMetrics]


@dataclass(frozen=True, slots=True)
class RescaleRequested:
    """Go on from the newest checkpoint at another parallelism. Ignored unless the job runs undisturbed."""

    job_graph: JobGraph  #: as it is to be from now on


@dataclass(frozen=True, slots=True)
class RestartDue:
    """Answer to RestartAfter: the time has come."""

    attempt_number: int


Event: TypeAlias = (
    StartScheduling
    | SlotsGranted
    | SlotsUnavailable
    | TasksTakenOver
    | TaskStateReported
    | SlotsLost
    | CancelRequested
    | CoordinatorsStarted
    | CoordinatorFailed
    | JobEndHandled
    | GivenUpHandled
    | MetricsReported
    | RescaleRequested
    | RestartDue
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
class Adopt:
    """This task runs there already; from now on it is this JobMaster's."""

    allocation_id: AllocationID
    task: TaskDeployment


@dataclass(frozen=True, slots=True)
class Cancel:
    allocation_id: AllocationID
    attempt_id: ExecutionAttemptID


@dataclass(frozen=True, slots=True)
class StartCoordinators:
    """Create and start every coordinator of the job (or of ``vertices``, after ``job_ended(FAILED)`` of those before),
    anew for each attempt; answer CoordinatorsStarted (also when there are none) or CoordinatorFailed. From now on
    nothing is heard of those of former attempts."""

    attempt_number: int = 0
    vertices: tuple[JobVertexID, ...] = ()  #: none = all


@dataclass(frozen=True, slots=True)
class NotifySubtaskFinished:
    """Tell the coordinators of this vertex."""

    vertex_id: JobVertexID
    subtask_index: int


@dataclass(frozen=True, slots=True)
class EndCoordinators:
    """Call ``job_ended`` of every coordinator that was started, after all that was queued for it before; answer
    JobEndHandled. Sent once an attempt, when no task is live."""

    outcome: JobOutcome


@dataclass(frozen=True, slots=True)
class GiveUpCoordinators:
    """After EndCoordinators(FAILED): no attempt follows. Call ``given_up`` of every coordinator; answer GivenUpHandled
    in any case."""

    outcome: JobOutcome  #: how the job ends: FAILED, or CANCELED while it waited for its next attempt


@dataclass(frozen=True, slots=True)
class RestartAfter:
    """Send RestartDue with this number in ``delay_ms``."""

    attempt_number: int
    delay_ms: int


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
    | Adopt
    | Cancel
    | StartCoordinators
    | NotifySubtaskFinished
    | EndCoordinators
    | GiveUpCoordinators
    | RestartAfter
    | JobStatusChanged
    | JobTerminated
)
