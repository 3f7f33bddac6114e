"""The shell around the slot book: TaskManager connections, heartbeats, logs, and the driver that starts workers.

All on the event loop. Not here: who gets which slot (``slot_manager``, pure), jobs (``job_master``). Deployments that
start TaskManagers on demand (YARN, a local environment) bring a ``ResourceDriver``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, final

from engine.core.clock import Clock
from engine.core.config import Configuration
from engine.core.errors import ExternalError
from engine.core.ids import AllocationID, JobID, ResourceID
from engine.core.late_dataclass import dataclass
from engine.core.options import ClusterOptions
from engine.graph.execution_graph import SlotGrant
from engine.protocol.checkpoint import AcknowledgeCheckpoint, AwaitsCheckpoint, CheckpointAnswer, DeclineCheckpoint
from engine.protocol.control import (
    AcceptRegistration,
    AllocateSlot,
    DownMessage,
    ErrorInfo,
    HeartbeatFromJobManager,
    HeartbeatFromTaskManager,
    HeldSlot,
    JobInformation,
    ListLogs,
    LogRead,
    LogsListed,
    OperatorEventSent,
    ReadLog,
    RejectRegistration,
    ShutDownTaskManager,
    SlotAllocated,
    SlotAllocationFailed,
    SlotFreed,
    SlotLost,
    TaskManagerDraining,
    TaskManagerRegistered,
    TaskManagerUnregistered,
    TaskStateChanged,
)
from engine.protocol.profiling import SampleStacks, StacksSampled
from engine.rpc.endpoint import Connection
from engine.rpc.heartbeat import HeartbeatMonitor
from engine.runtime.jobmanager import scheduler as sched
from engine.runtime.jobmanager import slot_manager as book
from engine.runtime.jobmanager.gateway import TaskManagerView
from engine.runtime.jobmanager.takeover import ReportedSlot

__all__ = ["JobEvents", "ResourceDriver", "ResourceManager", "StandaloneDriver", "WorkerEvents"]

logger = logging.getLogger(__name__)

#: Request timeouts and idle workers are looked at this often.
TICK_S: Final = 0.25
#: A connection that does not register within this time is closed.
REGISTRATION_S: Final = 10.0
#: A TaskManager that was told to end instead of being registered gets this long to hear it.
REFUSAL_S: Final = 2.0
LOG_TIMEOUT_S: Final = 10.0
#: A driver may need a moment to learn why a worker died; the job's error waits for it so long.
DIAGNOSE_S: Final = 3.0


class WorkerEvents(Protocol):
    """What a driver tells the ResourceManager, on the event loop."""

    def worker_lost(self, resource_id: ResourceID, reason: str) -> None:
        """A worker process is gone, registered or not; ``reason`` is shown to the jobs that ran there."""
        ...

    def workers_leave(self, resource_ids: Sequence[ResourceID], reason: str) -> None:
        """These workers are better replaced now than lost later: they end once their jobs have taken a checkpoint."""
        ...

    def workers_failed(self, reason: str) -> None:
        """Workers that were asked for cannot be started: every job that waits for slots fails with ``reason``."""
        ...


class ResourceDriver(Protocol):
    """Starts and stops TaskManagers somewhere. Called on the event loop; what is not async returns at once."""

    #: False: workers come by themselves, nothing can be started (standalone cluster).
    on_demand: bool
    #: Workers that are kept even when idle.
    workers_min: int

    async def start(self, events: WorkerEvents) -> None:
        """Called once, before anything else, when TaskManagers can already connect."""
        ...

    def start_workers(self, num_workers: int) -> None:
        """So many further workers are needed now, in all: a level, in which workers that were asked for and have not
        registered yet are counted. A lower number than before means: those not yet started need not be."""
        ...

    def refuses(self, resource_id: ResourceID) -> str:
        """Return why this TaskManager, which wants to register, must end: whoever started it holds it for dead. Else
        ""."""
        ...

    def worker_registered(self, resource_id: ResourceID) -> None: ...

    def stop_worker(self, resource_id: ResourceID) -> None:
        """The worker is not needed any more; it has been told to end."""
        ...

    def workers(self) -> Sequence[ResourceID]:
        """All that were asked for and are not known to be gone."""
        ...

    async def diagnose(self, resource_id: ResourceID) -> str:
        """Return why a worker was lost, "" when that is not known; waits a moment for it."""
        ...

    async def stop(self) -> None:
        """The cluster ends: stop all workers."""
        ...


@final
class StandaloneDriver:
    """TaskManagers are started by people and scripts."""

    on_demand = False
    workers_min = 0

    async def start(self, events: WorkerEvents) -> None:
        pass

    def start_workers(self, num_workers: int) -> None:
        pass

    def refuses(self, resource_id: ResourceID) -> str:
        return ""

    def worker_registered(self, resource_id: ResourceID) -> None:
        pass

    def stop_worker(self, resource_id: ResourceID) -> None:
        pass

    def workers(self) -> Sequence[ResourceID]:
        return ()

    async def diagnose(self, resource_id: ResourceID) -> str:
        return ""

    async def stop(self) -> None:
        pass


class JobEvents(Protocol):
    """Where the ResourceManager's news for jobs go; implemented by the Dispatcher. Unknown jobs are ignored."""

    def post_to_job(self, job_id: JobID, event: sched.Event) -> None: ...

    def operator_event(self, message: OperatorEventSent) -> None: ...

    def checkpoint_answer(self, message: CheckpointAnswer) -> None: ...

    @property
    def knows_jobs(self) -> bool:
        """Whether the jobs of former leaders are known."""
        ...

    def slots_reported(self, job_id: JobID, slots: Sequence[ReportedSlot]) -> None:
        """A TaskManager has brought slots of a job that expects them (``ResourceManager.expect_slots``)."""
        ...

    async def prepare_loss(self, job_id: JobID) -> None:
        """The job is about to lose slots: return when it has written down what it can. Never raises."""
        ...


@dataclass(slots=True)
class _TaskManager:
    registration: TaskManagerRegistered
    connection: Connection
    last_heartbeat_ms: int
    rss_bytes: int = 0
    end_reason: str = ""  #: set when it said why it ends


@dataclass(slots=True)
class _Allocation:
    resource_id: ResourceID
    job_id: JobID


@final
class ResourceManager:
    def __init__(
        self,
        config: Configuration,
        *,
        driver: ResourceDriver,
        clock: Clock,
        jobs: JobEvents,
        slots_per_worker: int | None = None,
    ) -> None:
        self._driver = driver
        self._clock = clock
        self._jobs = jobs
        self._slots_per_worker = slots_per_worker or config.get(ClusterOptions.NUM_SLOTS)
        self._heartbeat_interval_ms = config.get(ClusterOptions.HEARTBEAT_INTERVAL)
        self._heartbeat_timeout_ms = config.get(ClusterOptions.HEARTBEAT_TIMEOUT)
        self._book = book.SlotManager(
            request_timeout_ms=config.get(ClusterOptions.SLOT_REQUEST_TIMEOUT),
            worker_idle_timeout_ms=config.get(ClusterOptions.TASKMANAGER_TIMEOUT),
            on_demand=driver.on_demand,
            workers_min=driver.workers_min,
            slots_max=config.get(ClusterOptions.SLOTS_MAX),
        )
        self._heartbeats: HeartbeatMonitor[ResourceID] = HeartbeatMonitor(
            self._heartbeat_timeout_ms, look_ms=int(1000 * TICK_S), grace_ms=self._heartbeat_interval_ms
        )
        self._taskmanagers: dict[ResourceID, _TaskManager] = {}
        self._allocations: dict[AllocationID, _Allocation] = {}
        self._waiting_jobs: dict[JobID, None] = {}
        #: jobs that may go on with slots that TaskManagers bring
        self._expected: set[JobID] = set()
        self._log_requests: dict[int, asyncio.Future[Any]] = {}
        self._request_ids = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to tick and start the driver. Raises what the driver raises."""
        self._spawn(self._tick())
        await self._driver.start(self)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self, *, stop_workers: bool) -> None:
        """End; with ``stop_workers`` all TaskManagers are told to end too."""
        if stop_workers:
            for taskmanager in self._taskmanagers.values():
                taskmanager.connection.send_nowait(ShutDownTaskManager("the cluster is shut down"))
        for task in list(self._tasks):
            task.cancel()
        await self._driver.stop()

    # --- connections -------------------------------------------------------------------------------------------------

    async def handle_connection(self, connection: Connection) -> None:
        """Serve one TaskManager until its connection ends. A ConnectionHandler."""
        try:
            first = await asyncio.wait_for(connection.receive(), REGISTRATION_S)
        except TimeoutError:
            logger.warning("peer=%s connected but did not register within %g s", connection.peer, REGISTRATION_S)
            return
        if not isinstance(first, TaskManagerRegistered):
            return
        if reason := self._driver.refuses(first.resource_id):
            logger.warning("taskmanager=%s is told to end: %s", first.resource_id, reason)
            connection.send_nowait(ShutDownTaskManager(reason))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(connection.receive(), REFUSAL_S)  # it closes the connection
            return
        if first.held and not self._jobs.knows_jobs:
            connection.send_nowait(RejectRegistration("It does not know yet which jobs go on with these slots."))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(connection.receive(), REFUSAL_S)
            return
        taskmanager = self._register(first, connection)
        try:
            while (message := await connection.receive()) is not None:
                self._on_message(taskmanager, message)
        finally:
            await self._connection_ended(taskmanager)

    def _register(self, registration: TaskManagerRegistered, connection: Connection) -> _TaskManager:
        resource_id, now_ms = registration.resource_id, self._clock.monotonic_ms()
        if resource_id in self._taskmanagers:
            self._remove(self._taskmanagers[resource_id], "it connected again after its connection broke")
        taskmanager = _TaskManager(registration, connection, self._clock.now_ms())
        self._taskmanagers[resource_id] = taskmanager
        self._heartbeats.track(resource_id, now_ms)
        logger.info(
            "taskmanager=%s registered: host=%s slots=%d", resource_id, registration.host, registration.num_slots
        )
        connection.send_nowait(
            AcceptRegistration(str(id(self)), self._heartbeat_interval_ms, self._heartbeat_timeout_ms)
        )
        self._driver.worker_registered(resource_id)
        expected = frozenset(held.job_id for held in registration.held) & self._expected
        self._decide(book.TaskManagerAdded(registration, expected))
        for job_id in sorted(expected):
            slots = [_reported(registration, held) for held in registration.held if held.job_id == job_id]
            for slot in slots:
                if slot.grant is not None:
                    self._allocations[slot.grant.allocation_id] = _Allocation(resource_id, job_id)
            self._jobs.slots_reported(job_id, slots)
        return taskmanager

    async def _connection_ended(self, taskmanager: _TaskManager) -> None:
        resource_id = taskmanager.registration.resource_id
        if self._taskmanagers.get(resource_id) is not taskmanager:
            return  # removed before: silent, released or replaced
        reason = taskmanager.end_reason
        if not reason:
            try:
                reason = await asyncio.wait_for(self._driver.diagnose(resource_id), DIAGNOSE_S)
            except TimeoutError:
                reason = ""
        if self._taskmanagers.get(resource_id) is taskmanager:
            self._remove(taskmanager, reason or "its connection to the JobManager ended; see its log")

    def _remove(self, taskmanager: _TaskManager, reason: str) -> None:
        registration = taskmanager.registration
        resource_id = registration.resource_id
        del self._taskmanagers[resource_id]
        self._heartbeats.untrack(resource_id)
        self._spawn(taskmanager.connection.close())
        logger.warning("taskmanager=%s is gone: %s", resource_id, reason)
        message = f"TaskManager {resource_id} on host {registration.host} was lost: {reason}."
        self._decide(book.TaskManagerRemoved(resource_id, ErrorInfo("TaskManagerLost", message, "", "external")))
        for allocation_id in [a for a, held in self._allocations.items() if held.resource_id == resource_id]:
            del self._allocations[allocation_id]

    def _on_message(self, taskmanager: _TaskManager, message: Any) -> None:
        resource_id = taskmanager.registration.resource_id
        if self._taskmanagers.get(resource_id) is not taskmanager:
            return
        self._heartbeats.received(resource_id, self._clock.monotonic_ms())
        taskmanager.last_heartbeat_ms = self._clock.now_ms()
        match message:
            case TaskStateChanged():
                self._jobs.post_to_job(message.job_id, sched.TaskStateReported(message))
            case OperatorEventSent():
                self._jobs.operator_event(message)
            case AcknowledgeCheckpoint() | DeclineCheckpoint() | AwaitsCheckpoint():
                self._jobs.checkpoint_answer(message)
            case HeartbeatFromTaskManager():
                taskmanager.rss_bytes = message.rss_bytes + sum(message.slot_rss_bytes.values())
                for allocation_id, metrics in message.metrics.items():
                    if allocation_id in self._allocations:
                        self._jobs.post_to_job(self._allocations[allocation_id].job_id, sched.MetricsReported(metrics))
            case SlotAllocated():
                self._decide(message)
            case SlotAllocationFailed() | SlotFreed() | SlotLost():
                self._decide(message)
                self._allocations.pop(message.allocation_id, None)
            case LogRead() | LogsListed() | StacksSampled():
                answer = self._log_requests.pop(message.request_id, None)
                if answer is not None and not answer.done():
                    answer.set_result(message)
            case TaskManagerDraining():
                self._spawn(self._drain([taskmanager], message.reason))
            case TaskManagerUnregistered():
                taskmanager.end_reason = message.reason
                self._remove(taskmanager, message.reason)
            case _:
                logger.warning("taskmanager=%s sent an unexpected %s", resource_id, type(message).__name__)

    async def _drain(self, taskmanagers: Sequence[_TaskManager], reason: str) -> None:
        """Jobs with slots there take a checkpoint; then the TaskManagers may go, and they go on elsewhere at once."""
        leaving = {taskmanager.registration.resource_id: taskmanager for taskmanager in taskmanagers}
        job_ids = {held.job_id for held in self._allocations.values() if held.resource_id in leaving}
        logger.info("taskmanager=%s is about to end (%s), jobs there: %d", ",".join(leaving), reason, len(job_ids))
        await asyncio.gather(*(self._jobs.prepare_loss(job_id) for job_id in job_ids))
        for resource_id, taskmanager in leaving.items():
            if self._taskmanagers.get(resource_id) is taskmanager:
                taskmanager.connection.send_nowait(ShutDownTaskManager(reason))

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        heartbeat_due = 0.0
        while True:
            await asyncio.sleep(TICK_S)
            try:
                now_ms = self._clock.monotonic_ms()
                if loop.time() >= heartbeat_due:
                    heartbeat_due = loop.time() + self._heartbeat_interval_ms / 1000
                    for taskmanager in self._taskmanagers.values():
                        taskmanager.connection.send_nowait(HeartbeatFromJobManager())
                for resource_id in self._heartbeats.expired(now_ms):
                    silent = self._taskmanagers.get(resource_id)
                    if silent is not None:
                        text = f"no heartbeat for {self._heartbeat_timeout_ms} ms (heartbeat.timeout)"
                        self._remove(silent, text)
                self._decide(book.Tick())
            except Exception:  # the slot book of all jobs: go on with the next tick
                logger.exception("tick of the ResourceManager failed")

    # --- the slot book -----------------------------------------------------------------------------------------------

    def _decide(self, event: book.Event) -> None:
        for command in self._book.handle(event, self._clock.monotonic_ms()):
            self._carry_out(command)

    def _carry_out(self, command: book.Command) -> None:
        match command:
            case book.SendToTaskManager(resource_id, message):
                if isinstance(message, AllocateSlot):
                    self._allocations[message.allocation_id] = _Allocation(resource_id, message.job.job_id)
                if resource_id in self._taskmanagers:
                    self._taskmanagers[resource_id].connection.send_nowait(message)
            case book.GrantSlots(job_id, grants):
                self._waiting_jobs.pop(job_id, None)
                self._jobs.post_to_job(job_id, sched.SlotsGranted(grants))
            case book.RejectSlots(job_id, error):
                self._waiting_jobs.pop(job_id, None)
                self._jobs.post_to_job(job_id, sched.SlotsUnavailable(error))
            case book.SlotsOfJobLost(job_id, allocation_ids, error):
                self._jobs.post_to_job(job_id, sched.SlotsLost(allocation_ids, error))
            case book.RequestWorkers(num_slots_missing):
                self._driver.start_workers(-(-num_slots_missing // self._slots_per_worker))
            case book.ReleaseWorker(resource_id):
                logger.info("taskmanager=%s is idle and released", resource_id)
                if resource_id in self._taskmanagers:
                    taskmanager = self._taskmanagers[resource_id]
                    taskmanager.end_reason = "it was idle and has been released"
                    taskmanager.connection.send_nowait(ShutDownTaskManager(taskmanager.end_reason))
                self._driver.stop_worker(resource_id)
            case _:
                raise AssertionError(command)

    # --- SlotService -------------------------------------------------------------------------------------------------

    def request_slots(self, job: JobInformation, keys: tuple[sched.SlotRequestKey, ...]) -> None:
        self._waiting_jobs[job.job_id] = None
        self._decide(book.SlotsRequested(job, keys))

    def expect_slots(self, job_id: JobID) -> None:
        self._expected.add(job_id)

    def expect_no_slots(self, job_id: JobID) -> None:
        self._expected.discard(job_id)

    def take_slots_over(self, keys: Mapping[AllocationID, sched.SlotRequestKey]) -> None:
        self._decide(book.SlotsTakenOver(keys))

    def release_slots(self, allocation_ids: tuple[AllocationID, ...], reason: str, grace_ms: int) -> None:
        self._decide(book.SlotsReleased(allocation_ids, reason, grace_ms))

    def job_ended(self, job_id: JobID) -> None:
        self._waiting_jobs.pop(job_id, None)
        self._expected.discard(job_id)
        self._decide(book.JobEnded(job_id))

    def send_to_slot(self, allocation_id: AllocationID, message: DownMessage) -> None:
        held = self._allocations.get(allocation_id)
        if held is not None and held.resource_id in self._taskmanagers:
            self._taskmanagers[held.resource_id].connection.send_nowait(message)

    # --- WorkerEvents ------------------------------------------------------------------------------------------------

    def worker_lost(self, resource_id: ResourceID, reason: str) -> None:
        if resource_id in self._taskmanagers:
            self._remove(self._taskmanagers[resource_id], reason)

    def workers_leave(self, resource_ids: Sequence[ResourceID], reason: str) -> None:
        known = [self._taskmanagers[resource_id] for resource_id in resource_ids if resource_id in self._taskmanagers]
        self._spawn(self._drain(known, reason))

    def workers_failed(self, reason: str) -> None:
        logger.error("no more TaskManagers can be started: %s", reason)
        for job_id in list(self._waiting_jobs):
            self._waiting_jobs.pop(job_id, None)
            self._decide(book.JobEnded(job_id))
            message = f"No TaskManager could be started for the job: {reason}"
            error = ErrorInfo("NoResourceAvailableError", message, "", "external")
            self._jobs.post_to_job(job_id, sched.SlotsUnavailable(error))

    # --- views -------------------------------------------------------------------------------------------------------

    def taskmanagers(self) -> list[TaskManagerView]:
        return [self._view(taskmanager) for taskmanager in self._taskmanagers.values()]

    def taskmanager(self, resource_id: ResourceID) -> TaskManagerView:
        """Raises KeyError."""
        return self._view(self._taskmanagers[resource_id])

    def _view(self, taskmanager: _TaskManager) -> TaskManagerView:
        registration = taskmanager.registration
        held = Counter(a.job_id for a in self._allocations.values() if a.resource_id == registration.resource_id)
        return TaskManagerView(
            registration,
            max(0, registration.num_slots - held.total()),
            taskmanager.last_heartbeat_ms,
            taskmanager.rss_bytes,
            dict(held),
        )

    async def read_log(self, resource_id: ResourceID, name: str) -> bytes:
        """Raises KeyError for an unknown TaskManager, ExternalError when it does not answer or has no such file."""
        answer = await self._ask(resource_id, lambda request_id: ReadLog(request_id, name))
        if answer.error:
            raise ExternalError(answer.error)
        content: bytes = answer.content
        return content

    async def list_logs(self, resource_id: ResourceID) -> tuple[tuple[str, int, int], ...]:
        """Raises as ``read_log`` does."""
        files: tuple[tuple[str, int, int], ...] = (await self._ask(resource_id, ListLogs)).files
        return files

    async def sample_stacks(
        self, resource_id: ResourceID, allocation_id: AllocationID, num_samples: int, interval_ms: int
    ) -> StacksSampled:
        """Raises as ``read_log`` does."""
        answer: StacksSampled = await self._ask(
            resource_id,
            lambda request_id: SampleStacks(request_id, allocation_id, num_samples, interval_ms),
            LOG_TIMEOUT_S + num_samples * interval_ms / 1000,
        )
        return answer

    async def _ask(
        self,
        resource_id: ResourceID,
        request: Callable[[int], ReadLog | ListLogs | SampleStacks],
        timeout_s: float = LOG_TIMEOUT_S,
    ) -> Any:
        taskmanager = self._taskmanagers[resource_id]
        request_id = next(self._request_ids)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._log_requests[request_id] = answer
        taskmanager.connection.send_nowait(request(request_id))
        try:
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            raise ExternalError(f"TaskManager {resource_id} did not answer within {timeout_s:g} s.") from None
        finally:
            self._log_requests.pop(request_id, None)


def _reported(registration: TaskManagerRegistered, held: HeldSlot) -> ReportedSlot:
    if held.address is None:
        return ReportedSlot(held, None)
    grant = SlotGrant(
        held.allocation_id, registration.resource_id, registration.host, held.address, registration.log_url
    )
    return ReportedSlot(held, grant)
