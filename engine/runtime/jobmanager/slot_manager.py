"""The slot book: which TaskManagers are there, who holds which slot, who waits, whether workers must come or may go.

Pure: events in, commands out; ``resource_manager`` is the shell around it. Not here: which task goes into which slot
(``scheduler``: one shared slot per slot sharing group and subtask index).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Final, TypeAlias

from engine.core.config import Configuration
from engine.core.errors import ConfigError, NoResourceAvailableError
from engine.core.ids import AllocationID, JobID, ResourceID, SlotID
from engine.core.late_dataclass import dataclass
from engine.core.options import ClusterOptions
from engine.graph.execution_graph import SlotGrant
from engine.protocol.control import (
    AllocateSlot,
    ErrorInfo,
    FreeSlot,
    HeldSlot,
    JobInformation,
    SlotAddress,
    SlotAllocated,
    SlotAllocationFailed,
    SlotFreed,
    SlotLost,
    TaskManagerRegistered,
)
from engine.runtime.jobmanager.scheduler import SlotRequestKey

#: So often is a slot process that cannot be made (a file is missing, the disk is full) tried before it is an error.
ALLOCATION_ATTEMPTS_MAX: Final = 3

_FREED_UNASKED: Final = ErrorInfo("SlotLost", "The TaskManager gave the slot up.", "", "external")

# --- events (besides protocol's SlotAllocated, SlotAllocationFailed, SlotFreed, SlotLost) ---------------------------


@dataclass(frozen=True, slots=True)
class TaskManagerAdded:
    """A TaskManager registered, perhaps again after a broken connection (then its ``held`` slots are compared).
    ``expected``: jobs that may go on with slots that it holds; those of others are freed."""

    registration: TaskManagerRegistered
    expected: frozenset[JobID] = frozenset()


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
class SlotsTakenOver:
    """A job goes on with slots that TaskManagers held."""

    keys: Mapping[AllocationID, SlotRequestKey]


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
    | SlotsTakenOver
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

# --- the decider ----------------------------------------------------------------------------------------------------


class _SlotState(enum.Enum):
    FREE = "free"
    ALLOCATING = "allocating"  #: the TaskManager was told, its process is being made
    HELD = "held"  #: the process runs; the job has it, or gets it as soon as its other slots are there
    FREEING = "freeing"  #: the TaskManager was told, its process is being ended


@dataclass(slots=True)
class _Slot:
    slot_id: SlotID
    state: _SlotState = _SlotState.FREE
    allocation_id: AllocationID | None = None
    job_id: JobID | None = None
    key: SlotRequestKey | None = None
    address: SlotAddress | None = None


@dataclass(slots=True)
class _TaskManager:
    registration: TaskManagerRegistered
    slots: list[_Slot]
    idle_since_ms: int
    is_released: bool = False  #: ReleaseWorker was sent: nothing new goes there

    @property
    def resource_id(self) -> ResourceID:
        return self.registration.resource_id

    @property
    def is_idle(self) -> bool:
        return all(slot.state is _SlotState.FREE for slot in self.slots)

    def free_slots(self) -> list[_Slot]:
        return [] if self.is_released else [slot for slot in self.slots if slot.state is _SlotState.FREE]


@dataclass(slots=True)
class _Request:
    """A job that waits for free slots (``slots`` is empty) or for the processes in them (``slots`` has all keys)."""

    job: JobInformation
    keys: tuple[SlotRequestKey, ...]
    deadline_ms: int
    timeout_ms: int
    slots: dict[SlotRequestKey, _Slot] = field(default_factory=dict)
    num_failures: int = 0

    def missing_keys(self) -> list[SlotRequestKey]:
        return [key for key in self.keys if key not in self.slots]


class SlotManager:
    """``handle(event, now_ms) -> list[Command]``; times are monotonic milliseconds.

    ``on_demand``: workers can be started (RequestWorkers) and released; ``workers_min`` of them stay for ever.
    """

    def __init__(
        self,
        *,
        request_timeout_ms: int,
        worker_idle_timeout_ms: int,
        on_demand: bool = False,
        workers_min: int = 0,
        slots_max: int = 2**31 - 1,
        new_allocation_id: Callable[[], AllocationID] = AllocationID.generate,
    ) -> None:
        self._request_timeout_ms = request_timeout_ms
        self._worker_idle_timeout_ms = worker_idle_timeout_ms
        self._on_demand = on_demand
        self._workers_min = workers_min
        self._slots_max = slots_max
        self._new_allocation_id = new_allocation_id
        #: In order of registration: slots of earlier ones are filled first, so that later ones can become idle.
        self._taskmanagers: dict[ResourceID, _TaskManager] = {}
        #: Every slot that is not free, by its allocation.
        self._slot_of: dict[AllocationID, _Slot] = {}
        #: Jobs that wait, first come first.
        self._requests: dict[JobID, _Request] = {}
        self._num_missing = 0  #: as last told by RequestWorkers
        self._now_ms = 0
        self._commands: list[Command] = []

    @property
    def num_slots(self) -> int:
        return sum(len(one.slots) for one in self._taskmanagers.values())

    @property
    def num_free_slots(self) -> int:
        return sum(len(one.free_slots()) for one in self._taskmanagers.values())

    def handle(self, event: Event, now_ms: int) -> list[Command]:
        """Return what to do now, in order. Events about unknown jobs, allocations and TaskManagers change nothing."""
        self._now_ms = now_ms
        self._commands = []
        match event:
            case TaskManagerAdded(registration, expected):
                self._on_added(registration, expected)
            case TaskManagerRemoved(resource_id, error):
                self._on_removed(resource_id, error)
            case SlotsRequested(job, keys):
                self._on_requested(job, tuple(keys))
            case SlotsTakenOver(slot_keys):
                for allocation_id, key in slot_keys.items():
                    self._slot_of[allocation_id].key = key
            case SlotsReleased(allocation_ids, reason, grace_ms):
                for allocation_id in allocation_ids:
                    self._free(allocation_id, reason, grace_ms)
            case JobEnded(job_id):
                self._on_job_ended(job_id)
            case SlotAllocated(allocation_id, _, address):
                self._on_allocated(allocation_id, address)
            case SlotAllocationFailed(allocation_id, _, error):
                self._on_gone(allocation_id, error, is_failure=True)
            case SlotFreed(allocation_id, _):
                self._on_gone(allocation_id, _FREED_UNASKED, is_failure=False)
            case SlotLost(allocation_id, _, error):
                self._on_gone(allocation_id, error, is_failure=True)
            case Tick():
                pass
            case _:
                raise AssertionError(event)
        self._expire_requests()
        self._serve_requests()
        self._tell_missing()
        self._release_idle_workers()
        # Jobs last: they may answer at once, before the caller has carried out the rest of this list.
        self._commands.sort(key=_rank)
        return self._commands

    # --- TaskManagers -----------------------------------------------------------------------------------------------

    def _on_added(self, registration: TaskManagerRegistered, expected: frozenset[JobID]) -> None:
        resource_id = registration.resource_id
        held = {one.allocation_id: one for one in registration.held}
        known = self._taskmanagers.get(resource_id)
        if known is not None:
            self._compare(known, registration, held)
        else:
            slots = [_Slot(SlotID.of(resource_id, index)) for index in range(registration.num_slots)]
            self._taskmanagers[resource_id] = _TaskManager(registration, slots, self._now_ms)
        for slot in self._taskmanagers[resource_id].slots:
            for one in [one for one in held.values() if one.slot_id == slot.slot_id]:
                if slot.state is not _SlotState.FREE:
                    continue
                slot.allocation_id = one.allocation_id
                self._slot_of[one.allocation_id] = slot
                if one.job_id in expected and one.address is not None:
                    slot.state, slot.job_id, slot.address = _SlotState.HELD, one.job_id, one.address
                else:
                    self._send_free(slot, "its job does not go on with it", 0)

    def _compare(
        self, known: _TaskManager, registration: TaskManagerRegistered, held: dict[AllocationID, HeldSlot]
    ) -> None:
        """A TaskManager is back: what it does not hold any more is gone."""
        known.registration = registration
        error = ErrorInfo(
            "SlotLost", f"TaskManager {known.resource_id} registered again without the slot.", "", "external"
        )
        for slot in known.slots:
            if slot.allocation_id is None:
                continue
            if slot.allocation_id not in held:
                self._on_gone(slot.allocation_id, error, is_failure=False)
            elif slot.state is _SlotState.FREEING:
                self._send_free(slot, "it was to be freed before the connection broke", 0)

    def _on_removed(self, resource_id: ResourceID, error: ErrorInfo) -> None:
        gone = self._taskmanagers.pop(resource_id, None)
        if gone is None:
            return
        lost: dict[JobID, list[AllocationID]] = {}
        for slot in gone.slots:
            granted_to = self._forget(slot)
            if granted_to is not None:
                lost.setdefault(granted_to[0], []).append(granted_to[1])
        for job_id, allocation_ids in lost.items():
            self._commands.append(SlotsOfJobLost(job_id, tuple(allocation_ids), error))

    # --- single slots -----------------------------------------------------------------------------------------------

    def _forget(self, slot: _Slot) -> tuple[JobID, AllocationID] | None:
        """Make a slot free whose process is gone. Return job and allocation if a job had it."""
        allocation_id, job_id, key, state = slot.allocation_id, slot.job_id, slot.key, slot.state
        if allocation_id is None:
            return None
        del self._slot_of[allocation_id]
        slot.state = _SlotState.FREE
        slot.allocation_id = slot.job_id = slot.key = slot.address = None
        owner = self._taskmanagers.get(_resource_of(slot))
        if owner is not None and owner.is_idle:
            owner.idle_since_ms = self._now_ms
        if state is _SlotState.FREEING or job_id is None:
            return None
        request = self._request_with(slot, job_id, key)
        if request is not None and key is not None:  # not granted yet: the request looks for another slot
            del request.slots[key]
            return None
        return job_id, allocation_id

    def _request_with(self, slot: _Slot, job_id: JobID | None, key: SlotRequestKey | None) -> _Request | None:
        """Return the open request that this slot was taken for; None if there is none or it was granted."""
        request = None if job_id is None else self._requests.get(job_id)
        return request if request is not None and key is not None and request.slots.get(key) is slot else None

    def _on_gone(self, allocation_id: AllocationID, error: ErrorInfo, *, is_failure: bool) -> None:
        slot = self._slot_of.get(allocation_id)
        if slot is None:
            return
        request = self._request_with(slot, slot.job_id, slot.key)
        granted_to = self._forget(slot)
        if granted_to is not None:
            self._commands.append(SlotsOfJobLost(granted_to[0], (allocation_id,), error))
        elif request is not None and is_failure:
            request.num_failures += 1
            if request.num_failures >= ALLOCATION_ATTEMPTS_MAX:
                self._reject(request, error)

    def _send_free(self, slot: _Slot, reason: str, grace_ms: int) -> None:
        assert slot.allocation_id is not None
        slot.state = _SlotState.FREEING
        message = FreeSlot(slot.allocation_id, reason, grace_ms)
        self._commands.append(SendToTaskManager(_resource_of(slot), message))

    def _free(self, allocation_id: AllocationID, reason: str, grace_ms: int) -> None:
        slot = self._slot_of.get(allocation_id)
        if slot is not None and slot.state is not _SlotState.FREEING:
            self._send_free(slot, reason, grace_ms)

    def _on_allocated(self, allocation_id: AllocationID, address: SlotAddress) -> None:
        slot = self._slot_of.get(allocation_id)
        if slot is None or slot.state is not _SlotState.ALLOCATING or slot.job_id is None:
            return
        slot.state = _SlotState.HELD
        slot.address = address
        self._grant_if_complete(self._requests[slot.job_id])

    # --- requests ---------------------------------------------------------------------------------------------------

    def _on_requested(self, job: JobInformation, keys: tuple[SlotRequestKey, ...]) -> None:
        if job.job_id in self._requests:
            return
        try:
            timeout_ms = self._timeout_of(job)
        except ConfigError as error:
            failure = ErrorInfo(type(error).__name__, str(error), "", error.domain.value)
            self._commands.append(RejectSlots(job.job_id, failure))
            return
        self._requests[job.job_id] = _Request(job, keys, self._now_ms + timeout_ms, timeout_ms)

    def _timeout_of(self, job: JobInformation) -> int:
        config = Configuration(job.config)
        option = ClusterOptions.SLOT_REQUEST_TIMEOUT
        return config.get(option) if config.contains(option) else self._request_timeout_ms

    def _serve_requests(self) -> None:
        """Give free slots to the requests that they suffice for, first come first; a later one that fits may pass."""
        free = [slot for one in self._taskmanagers.values() for slot in one.free_slots()]
        for request in self._requests.values():
            missing = request.missing_keys()
            if missing and len(missing) <= len(free):
                for key in missing:
                    self._allocate(request, key, free.pop(0))
            elif missing and request.slots:
                # It lost a slot on the way. Whoever holds some and waits for more could wait for another such job.
                for slot in request.slots.values():
                    self._send_free(slot, "not all slots of the job could be had", 0)
                request.slots.clear()

    def _allocate(self, request: _Request, key: SlotRequestKey, slot: _Slot) -> None:
        slot.state = _SlotState.ALLOCATING
        slot.allocation_id = self._new_allocation_id()
        slot.job_id, slot.key = request.job.job_id, key
        self._slot_of[slot.allocation_id] = slot
        request.slots[key] = slot
        message = AllocateSlot(slot.allocation_id, slot.slot_id, request.job)
        self._commands.append(SendToTaskManager(_resource_of(slot), message))

    def _grant_if_complete(self, request: _Request) -> None:
        if request.missing_keys() or any(slot.state is not _SlotState.HELD for slot in request.slots.values()):
            return
        grants = tuple((key, self._grant(request.slots[key])) for key in request.keys)
        del self._requests[request.job.job_id]
        self._commands.append(GrantSlots(request.job.job_id, grants))

    def _grant(self, slot: _Slot) -> SlotGrant:
        assert slot.allocation_id is not None
        assert slot.address is not None
        resource_id = _resource_of(slot)
        registered = self._taskmanagers[resource_id].registration
        return SlotGrant(slot.allocation_id, resource_id, registered.host, slot.address, registered.log_url)

    def _reject(self, request: _Request, error: ErrorInfo) -> None:
        del self._requests[request.job.job_id]
        for slot in request.slots.values():
            self._send_free(slot, "the job did not get all its slots", 0)
        self._commands.append(RejectSlots(request.job.job_id, error))

    def _on_job_ended(self, job_id: JobID) -> None:
        self._requests.pop(job_id, None)
        for slot in list(self._slot_of.values()):
            if slot.job_id == job_id and slot.state is not _SlotState.FREEING:
                self._send_free(slot, "the job has ended", 0)

    def _expire_requests(self) -> None:
        for request in list(self._requests.values()):
            if self._now_ms >= request.deadline_ms:
                self._reject(request, self._no_resource_error(request))

    def _no_resource_error(self, request: _Request) -> ErrorInfo:
        wanted = _count(len(request.keys), "slot")
        message = (
            f"Job {request.job.job_name!r} did not get its slots within {request.timeout_ms / 1000:g} s "
            f"(slot.request.timeout): it needs {wanted}, "
        )
        if request.slots:
            message += (
                "which were assigned, but not all of their processes were ready in time. Raise slot.request.timeout, "
                "or see the TaskManagers' logs for what holds them up."
            )
        else:
            message += (
                f"the cluster has {_count(self.num_slots, 'slot')} on "
                f"{_count(len(self._taskmanagers), 'TaskManager')}, {self.num_free_slots} of them free. "
                "Lower the parallelism of the job (-p, parallelism.default), raise taskmanager.numberOfTaskSlots, "
                "start more TaskManagers, or wait for other jobs to end."
            )
        return ErrorInfo(NoResourceAvailableError.__name__, message, "", NoResourceAvailableError.domain.value)

    # --- workers ----------------------------------------------------------------------------------------------------

    def _tell_missing(self) -> None:
        if not self._on_demand:
            return
        wanted = sum(len(request.missing_keys()) for request in self._requests.values())
        # A slot that is being freed serves a waiting job sooner than a new worker would.
        soon = sum(slot.state is _SlotState.FREEING for slot in self._slot_of.values())
        missing = max(0, min(wanted - self.num_free_slots - soon, self._slots_max - self.num_slots))
        if missing != self._num_missing:
            self._num_missing = missing
            self._commands.append(RequestWorkers(missing))

    def _release_idle_workers(self) -> None:
        if not self._on_demand or self._requests:
            return  # a job that waits for more slots will use the idle ones too
        staying = [one for one in self._taskmanagers.values() if not one.is_released]
        surplus = len(staying) - self._workers_min
        for one in reversed(staying):
            if surplus > 0 and one.is_idle and self._now_ms - one.idle_since_ms >= self._worker_idle_timeout_ms:
                surplus -= 1
                one.is_released = True
                self._commands.append(ReleaseWorker(one.resource_id))

    # --- invariants -------------------------------------------------------------------------------------------------

    def check_invariants(self) -> None:
        """Raise AssertionError when the book contradicts itself. For tests; cheap."""
        taken = [slot for one in self._taskmanagers.values() for slot in one.slots if slot.state is not _SlotState.FREE]
        assert {id(slot) for slot in taken} == {id(slot) for slot in self._slot_of.values()}
        for allocation_id, slot in self._slot_of.items():
            assert slot.allocation_id == allocation_id, slot
            assert slot.state is not _SlotState.HELD or slot.address is not None, slot
            assert slot.state is not _SlotState.ALLOCATING or slot.job_id in self._requests, slot
        for request in self._requests.values():
            assert all(slot.key == key and slot.job_id == request.job.job_id for key, slot in request.slots.items())
            assert all(slot.state in (_SlotState.ALLOCATING, _SlotState.HELD) for slot in request.slots.values())
            assert len(request.missing_keys()) == 0 or len(request.missing_keys()) > self.num_free_slots, "not served"
            assert set(request.slots) in (set(), set(request.keys)), "all or nothing"
        for one in self._taskmanagers.values():
            assert not one.is_released or one.is_idle, "a released worker has a job"


def _rank(command: Command) -> int:
    match command:
        case RequestWorkers():
            return 0
        case SendToTaskManager():
            return 1
    return 2


def _resource_of(slot: _Slot) -> ResourceID:
    return ResourceID(slot.slot_id.rpartition("_")[0])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
