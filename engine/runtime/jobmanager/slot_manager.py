"""The slot book: which TaskManagers are there, who holds which slot, who waits, whether workers must come or may go.

Pure: events in, commands out; ``resource_manager`` is the shell around it. Not here: which task goes into which slot
(``scheduler``: one shared slot per slot sharing group and subtask index).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from engine.core.ids import AllocationID, JobID, ResourceID
from engine.graph.execution_graph import SlotGrant
from engine.protocol.control import (
    AllocateSlot,
    ErrorInfo,
    FreeSlot,
    JobInformation,
    SlotAllocated,
    SlotAllocationFailed,
    SlotFreed,
    SlotLost,
    TaskManagerRegistered,
)
from engine.runtime.jobmanager.scheduler import SlotRequestKey

# --- events (besides protocol's SlotAllocated, SlotAllocationFailed, SlotFreed, SlotLost) ---------------------------


@dataclass(frozen=True, slots=True)
class TaskManagerAdded:
    """A TaskManager registered, perhaps again after a broken connection (then its ``held`` slots are compared)."""

    registration: TaskManagerRegistered


@dataclass(frozen=True, slots=True)
class TaskManagerRemoved:
    """It unregistered, broke its connection for good or fell silent; ``error`` is what jobs with slots there get."""

    resource_id: ResourceID
    error: ErrorInfo


@dataclass(frozen=True, slots=True)
class SlotsRequested:
    """A job wants one slot per key, all or nothing."""

    job: JobInformation
    keys: Sequence[SlotRequestKey]


@dataclass(frozen=True, slots=True)
class SlotsReleased:
    allocation_ids: Sequence[AllocationID]
    reason: str = "the job no longer needs it"
    grace_ms: int = 0


@dataclass(frozen=True, slots=True)
class JobEnded:
    """Withdraw the job's open request and free all that it holds."""

    job_id: JobID


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: look at request timeouts and idle workers. Once a second is enough."""


Event: TypeAlias = (
    TaskManagerAdded
    | TaskManagerRemoved
    | SlotsRequested
    | SlotsReleased
    | JobEnded
    | SlotAllocated
    | SlotAllocationFailed
    | SlotFreed
    | SlotLost
    | Tick
)

# --- commands -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendToTaskManager:
    resource_id: ResourceID
    message: AllocateSlot | FreeSlot


@dataclass(frozen=True, slots=True)
class GrantSlots:
    job_id: JobID
    grants: tuple[tuple[SlotRequestKey, SlotGrant], ...]


@dataclass(frozen=True, slots=True)
class RejectSlots:
    job_id: JobID
    error: ErrorInfo


@dataclass(frozen=True, slots=True)
class SlotsOfJobLost:
    job_id: JobID
    allocation_ids: tuple[AllocationID, ...]
    error: ErrorInfo


@dataclass(frozen=True, slots=True)
class RequestWorkers:
    """So many slots are missing now, in all (a level, not a difference; 0 = none any more). Sent when it changes. The
    driver compares it with the workers that it has already asked for."""

    num_slots_missing: int


@dataclass(frozen=True, slots=True)
class ReleaseWorker:
    """The worker was idle for resourcemanager.taskmanager-timeout: stop it. Its slots are not given out any more;
    TaskManagerRemoved follows."""

    resource_id: ResourceID


Command: TypeAlias = SendToTaskManager | GrantSlots | RejectSlots | SlotsOfJobLost | RequestWorkers | ReleaseWorker


class SlotManager:
    """``handle(event, now_ms) -> list[Command]``; times are monotonic milliseconds."""

    def __init__(
        self,
        *,
        request_timeout_ms: int,
        worker_idle_timeout_ms: int,
        on_demand: bool = False,
        workers_min: int = 0,
        slots_max: int = 2**31 - 1,
    ) -> None:
        raise NotImplementedError

    def handle(self, event: Event, now_ms: int) -> list[Command]:
        raise NotImplementedError
