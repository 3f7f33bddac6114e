"""The TaskManager: registers with the JobManager, heartbeats, makes a slot process per allocation and supervises it.

On asyncio, without user code. When the connection to the JobManager ends or falls silent, or another one leads, slots
run on for a while: whoever leads next is told what they hold, and either goes on with it or has it ended. Without high
availability nobody follows, so they are killed at once. Not here: what happens inside a slot process (``slot_process``,
``stream_task``), how it is forked (``zygote``), its files (``slot_files``), what it tells the next leader (``slots``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, final

from engine.core.config import Configuration
from engine.core.errors import EngineError, ExternalError, InputError
from engine.core.ids import AllocationID, ExecutionAttemptID, ResourceID
from engine.core.options import ClusterOptions, HaOptions, JobOptions, MemoryOptions
from engine.operators.failure import error_info
from engine.protocol.checkpoint import (
    AcknowledgeCheckpoint,
    AwaitsCheckpoint,
    DeclineCheckpoint,
    NotifyCheckpointAborted,
    NotifyCheckpointComplete,
    TriggerCheckpoint,
)
from engine.protocol.control import (
    AcceptRegistration,
    AllocateSlot,
    CancelTask,
    DeployTask,
    ErrorInfo,
    FreeSlot,
    HeartbeatFromJobManager,
    HeartbeatFromTaskManager,
    HeldSlot,
    InitializeSlot,
    ListLogs,
    LogRead,
    LogsListed,
    OperatorEventSent,
    ReadLog,
    RejectRegistration,
    SendOperatorEvent,
    ShutDownTaskManager,
    SlotAllocated,
    SlotAllocationFailed,
    SlotFreed,
    SlotLost,
    SlotReport,
    TaskManagerDraining,
    TaskManagerRegistered,
    TaskManagerUnregistered,
    TasksReported,
    TaskStateChanged,
)
from engine.protocol.lifecycle import ExecutionState
from engine.protocol.profiling import SampleStacks, StacksSampled
from engine.rpc.endpoint import JobManagerConnection
from engine.rpc.heartbeat import HeartbeatMonitor
from engine.runtime.taskmanager.log_files import list_logs, read_log
from engine.runtime.taskmanager.private_folder import PrivateFolder
from engine.runtime.taskmanager.slot_exit import why_ended
from engine.runtime.taskmanager.slot_files import SlotFiles
from engine.runtime.taskmanager.slots import Slot, SlotHandle, SlotHost, SlotReports
from engine.runtime.taskmanager.user_files import SITE_FOLDER_KEY

__all__ = [
    "SlotHostFactory",
    "TaskExecutor",
    "TaskExecutorSettings",
    "slot_memory_bytes",
    "unique_resource_id",
]

logger = logging.getLogger(__name__)

#: Of the process size, what the supervisor and the zygote need.
FRAMEWORK_BYTES: Final = 64 << 20
SLOT_MEMORY_MIN_BYTES: Final = 32 << 20
#: Metrics travel with heartbeats at least this often while tasks run; people watch them.
METRICS_INTERVAL_MS: Final = 1000
#: A slot that is freed has nothing left to do; if it has not ended after this, it is killed.
FREE_GRACE_S: Final = 0.5
BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0
CONNECT_ATTEMPT_S: Final = 5.0
#: Keys that say what a cluster is, not how a job runs.
CLUSTER_PREFIXES: Final = ("taskmanager.", "jobmanager.", "rest.", "web.", "heartbeat.", "env.", "io.tmp.dirs")
#: A zygote that died is known to be dead after this.
ZYGOTE_ENDED_S: Final = 0.3
#: Longest path of a Unix socket on Linux is 107 bytes; room for the file's name.
UNIX_FOLDER_MAX: Final = 80


#: interpreter path → a host whose slots run in it
SlotHostFactory: TypeAlias = Callable[[str], Awaitable[SlotHost]]
Connector: TypeAlias = Callable[[float], Awaitable[JobManagerConnection]]


def slot_memory_bytes(config: Configuration, num_slots: int) -> int:
    """Return what a slot's job may use."""
    return max(SLOT_MEMORY_MIN_BYTES, (config.get(MemoryOptions.TM_PROCESS) - FRAMEWORK_BYTES) // num_slots)


@dataclass(frozen=True)
class TaskExecutorSettings:
    resource_id: ResourceID
    host: str
    bind_host: str
    num_slots: int
    config: Configuration
    log_dir: str = ""
    main_log: str = ""  #: file name in log_dir
    log_url: str = ""  #: where others show them


@final
class TaskExecutor:
    """``await run()`` serves until ``stop()`` or until the JobManager cannot be found."""

    def __init__(
        self,
        settings: TaskExecutorSettings,
        *,
        connect: Connector,
        slot_hosts: SlotHostFactory,
        temp_dir: str | None,
        leader_replaced: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """``leader_replaced`` returns when another JobManager leads than the one of the last ``connect``."""
        self._settings = settings
        self._config = settings.config
        self._connect = connect
        self._leader_replaced = leader_replaced or _never
        self._slot_hosts = slot_hosts
        self._hosts: dict[str, asyncio.Task[SlotHost]] = {}
        self._folder = tempfile.mkdtemp(prefix="tm-", dir=temp_dir or None)
        too_long = len(self._folder) > UNIX_FOLDER_MAX
        self._socket_folder = PrivateFolder("flink-sockets-", _short_temp_dir()) if too_long else None
        self._files = SlotFiles(self._folder)
        self._slots: dict[AllocationID, Slot] = {}
        self._reports = SlotReports(self._slots)
        #: so long slots run on without a leader
        self._keep_s = 0.0 if leader_replaced is None else self._config.get(HaOptions.KEEP_TASKS) / 1000
        self._giving_up: asyncio.TimerHandle | None = None
        self._leader: str = ""  #: token of the one that accepted this TaskManager last
        self._former_leaders: set[str] = set()
        self._connection: JobManagerConnection | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping: asyncio.Event = asyncio.Event()
        self._stop_reason = "it was stopped"
        self._drains = False
        self._drained: asyncio.Event = asyncio.Event()
        self._closed = False

    # --- life --------------------------------------------------------------------------------------------------------

    def stop(self, reason: str = "it was stopped", *, drain: bool = False) -> None:
        """Make ``run`` return soon; may be called again and from signal handlers of the loop.

        ``drain``: the JobManager may take checkpoints of the jobs that run here first; a second call ends that.
        """
        if not self._stopping.is_set():
            self._stop_reason, self._drains = reason, drain
            self._stopping.set()
        else:
            self._drained.set()

    async def run(self) -> None:
        """Serve until told to stop. Raises ExternalError when no JobManager accepts it in time."""
        try:
            # Warm while the connection is made: the first job finds a ready zygote.
            self._host_for(self._python({}))
            while not self._stopping.is_set():
                connection = await self._register()
                if connection is None:
                    break
                await self._serve(connection)
        finally:
            await self._close()

    async def _register(self) -> JobManagerConnection | None:
        """Return a connection whose first answer accepted us, or None when stopped meanwhile."""
        loop = asyncio.get_running_loop()
        timeout_ms = self._config.get(ClusterOptions.REGISTRATION_TIMEOUT)
        deadline = loop.time() + timeout_ms / 1000
        pause = BACKOFF_FIRST_S
        problem: Exception = ExternalError("never tried")
        while loop.time() < deadline:
            attempt = asyncio.ensure_future(self._register_once())
            replaced = asyncio.ensure_future(self._leader_replaced())
            if not await self._wait_for(attempt, replaced):
                await _end(attempt, replaced)
                return None
            if not attempt.done():
                await _end(attempt, replaced)
                pause = BACKOFF_FIRST_S
                continue
            try:
                connection = attempt.result()
                await _end(replaced)
                return connection
            except EngineError as error:
                if self._stopping.is_set():
                    logger.warning("%s", error)
                    await _end(replaced)
                    return None
                if str(error) != str(problem):
                    logger.warning("cannot register yet: %s Trying again until %d ms have passed.", error, timeout_ms)
                problem = error
            # It may have begun to wait before the attempt knew of any leader.
            await _end(replaced)
            pausing = asyncio.ensure_future(asyncio.sleep(pause))
            replaced = asyncio.ensure_future(self._leader_replaced())
            goes_on = await self._wait_for(pausing, replaced)
            pause = BACKOFF_FIRST_S if replaced.done() else min(pause * 2, BACKOFF_MAX_S)
            await _end(pausing, replaced)
            if not goes_on:
                return None
        raise ExternalError(
            f"No JobManager accepted this TaskManager within {timeout_ms} ms (taskmanager.registration.timeout): "
            f"{problem}"
        )

    async def _wait_for(self, *work: asyncio.Future[Any]) -> bool:
        """Return when one of these is done: whether we are to go on."""
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({stopping, *work}, return_when=asyncio.FIRST_COMPLETED)
            return not self._stopping.is_set()
        finally:
            stopping.cancel()

    async def _register_once(self) -> JobManagerConnection:
        connection = await self._connect(CONNECT_ATTEMPT_S)
        try:
            connection.send_nowait(self._registration(await self._reports.ask()))
            answer = await asyncio.wait_for(connection.receive(), CONNECT_ATTEMPT_S)
        except TimeoutError:
            await connection.close()
            raise ExternalError(f"The JobManager at {connection.peer} did not answer the registration.") from None
        except BaseException:
            await connection.close()
            raise
        match answer:
            case _ if connection.token in self._former_leaders:
                problem = f"The JobManager at {connection.peer} led before another one and does not know that yet."
            case AcceptRegistration():
                if self._leader and self._leader != connection.token:
                    self._former_leaders.add(self._leader)
                self._leader = connection.token
                self._heartbeat_interval_ms = answer.heartbeat_interval_ms
                self._heartbeat_timeout_ms = answer.heartbeat_timeout_ms
                logger.info("taskmanager=%s registered at %s", self._settings.resource_id, connection.peer)
                return connection
            case ShutDownTaskManager(reason):
                self.stop(reason)
                problem = f"The JobManager says that this TaskManager is to end: {reason}"
            case RejectRegistration(reason):
                problem = f"The JobManager refused the registration: {reason}"
            case None:
                problem = f"The JobManager at {connection.peer} closed the connection during registration."
            case _:
                problem = f"The JobManager answered the registration with {type(answer).__name__}."
        await connection.close()
        raise ExternalError(problem)

    def _registration(self, held: tuple[HeldSlot, ...]) -> TaskManagerRegistered:
        settings, config = self._settings, self._config
        page = os.sysconf("SC_PAGE_SIZE")
        return TaskManagerRegistered(
            resource_id=settings.resource_id,
            host=settings.host,
            num_slots=settings.num_slots,
            cpu_cores=os.cpu_count() or 1,
            physical_memory_bytes=page * os.sysconf("SC_PHYS_PAGES"),
            process_memory_bytes=config.get(MemoryOptions.TM_PROCESS),
            slot_memory_bytes=slot_memory_bytes(config, settings.num_slots),
            log_dir=settings.log_dir,
            pid=os.getpid(),
            data_port=config.get(ClusterOptions.TM_DATA_PORT),
            held=held,
            log_url=settings.log_url,
        )

    async def _serve(self, connection: JobManagerConnection) -> None:
        self._connection = connection
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
        for message in self._reports.take_unsent():
            self._send(message)
        interval_ms = self._heartbeat_interval_ms
        look_ms = min(METRICS_INTERVAL_MS, interval_ms)
        heard = HeartbeatMonitor[str](self._heartbeat_timeout_ms, look_ms=look_ms, grace_ms=interval_ms)
        heard.track(connection.token, _loop_ms())
        receiving = asyncio.ensure_future(self._receive(connection, heard))
        beating = asyncio.ensure_future(self._beat(connection, heard, look_ms))
        replaced = asyncio.ensure_future(self._watch_leader())
        try:
            if not await self._wait_for(receiving, beating, replaced):
                await self._drain(connection, receiving)
                connection.send_nowait(TaskManagerUnregistered(self._settings.resource_id, self._stop_reason))
            else:
                ended = next(work for work in (receiving, beating, replaced) if work.done())
                why = ended.exception() or "the connection ended"
                fate = f"run on for at most {self._keep_s:g} s" if self._keep_s else "are killed"
                logger.warning("lost the JobManager (%s): %d slots %s, registering again", why, len(self._slots), fate)
        finally:
            self._connection = None
            await _end(receiving, beating, replaced)
            if self._keep_s and not self._stopping.is_set():
                self._keep_slots()
            else:
                await self._kill_all_slots()
            await connection.close()

    def _keep_slots(self) -> None:
        """Nobody leads: let tasks run on, but not for ever, nor what was only about to hold some."""
        for slot in self._slots.values():
            slot.freeing = slot.freeing or slot.handle is None
        if self._giving_up is None:
            self._giving_up = asyncio.get_running_loop().call_later(self._keep_s, self._give_up_slots)

    def _give_up_slots(self) -> None:
        self._giving_up = None
        if self._slots:
            logger.warning("no JobManager has come for %g s: %d slots are killed", self._keep_s, len(self._slots))
        for slot in self._slots.values():
            slot.freeing = True
            self._kill(slot)

    async def _drain(self, connection: JobManagerConnection, receiving: asyncio.Future[None]) -> None:
        """Keep the slots until the JobManager has taken checkpoints of their jobs, but not for long."""
        timeout_s = self._config.get(ClusterOptions.DRAIN_TIMEOUT) / 1000
        if self._drains and self._slots and timeout_s:
            connection.send_nowait(TaskManagerDraining(self._settings.resource_id, self._stop_reason))
            drained: asyncio.Future[Any] = asyncio.ensure_future(self._drained.wait())
            await asyncio.wait({drained, receiving}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            drained.cancel()

    async def _watch_leader(self) -> None:
        """Raises ExternalError when another JobManager leads."""
        await self._leader_replaced()
        raise ExternalError("another one leads")

    async def _receive(self, connection: JobManagerConnection, heard: HeartbeatMonitor[str]) -> None:
        while (message := await connection.receive()) is not None:
            heard.received(connection.token, _loop_ms())
            try:
                self._on_message(message)
            except Exception:  # one bad message must not end the other slots
                logger.exception("handling %s failed", type(message).__name__)

    async def _beat(self, connection: JobManagerConnection, heard: HeartbeatMonitor[str], look_ms: int) -> None:
        """Send heartbeats. Raises: ExternalError when the JobManager has been silent for too long."""
        next_beat_ms = _loop_ms()
        while not heard.expired(_loop_ms()):
            has_news = any(slot.metrics for slot in self._slots.values())
            if has_news or _loop_ms() >= next_beat_ms:
                next_beat_ms = _loop_ms() + self._heartbeat_interval_ms
                connection.send_nowait(self._heartbeat())
            self._files.sweep()
            await asyncio.sleep(look_ms / 1000)
        raise ExternalError(f"no heartbeat from it for {self._heartbeat_timeout_ms} ms (heartbeat.timeout)")

    def _heartbeat(self) -> HeartbeatFromTaskManager:
        metrics = {slot.allocation_id: slot.metrics for slot in self._slots.values() if slot.metrics}
        for slot in self._slots.values():
            slot.metrics = {}
        slot_rss = {s.allocation_id: _rss_bytes(s.handle.pid) for s in self._slots.values() if s.handle is not None}
        return HeartbeatFromTaskManager(self._settings.resource_id, metrics, _rss_bytes(os.getpid()), slot_rss)

    async def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._kill_all_slots()
        for task in list(self._tasks):
            task.cancel()
        for host in self._hosts.values():
            host.cancel() if not host.done() else None
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await (await host).close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        shutil.rmtree(self._folder, ignore_errors=True)  # here and not in a thread: the interpreter may be ending
        if self._socket_folder is not None:
            self._socket_folder.close()

    def _spawn(self, work: Any, name: str) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _send(self, message: Any) -> None:
        if self._connection is not None:
            self._connection.send_nowait(message)

    def _send_of(self, slot: Slot, message: Any) -> None:
        """Send what a slot says, now or to the next leader."""
        if self._connection is None:
            self._reports.keep(slot, message)
        else:
            self._send(message)

    # --- commands of the JobManager ----------------------------------------------------------------------------------

    def _on_message(self, message: Any) -> None:
        match message:
            case AllocateSlot(allocation_id, slot_id, job):
                work_dir = os.path.join(self._folder, "slots", allocation_id)
                cancellation_s = self._effective(job.config).get(ClusterOptions.CANCELLATION_TIMEOUT) / 1000
                slot = Slot(allocation_id, slot_id, job.job_id, work_dir, cancellation_s)
                self._slots[allocation_id] = slot
                self._spawn(self._run_slot(slot, message), f"slot-{allocation_id}")
            case FreeSlot(allocation_id, reason, grace_ms):
                self._free(allocation_id, reason, grace_ms)
            case DeployTask(allocation_id):
                deploying = self._slots.get(allocation_id)
                if deploying is not None and deploying.handle is not None:
                    deploying.deployed(message)
                    deploying.handle.send(message)
            case CancelTask(allocation_id, attempt_id):
                self._cancel(allocation_id, attempt_id, message)
            case (
                SendOperatorEvent(allocation_id=allocation_id)
                | TriggerCheckpoint(allocation_id=allocation_id)
                | NotifyCheckpointComplete(allocation_id=allocation_id)
                | NotifyCheckpointAborted(allocation_id=allocation_id)
                | SampleStacks(allocation_id=allocation_id)
            ):
                receiving = self._slots.get(allocation_id)
                if receiving is not None and receiving.handle is not None:
                    receiving.handle.send(message)
            case HeartbeatFromJobManager():
                pass
            case ReadLog():
                self._send(self._read_log(message))
            case ListLogs(request_id):
                self._send(LogsListed(request_id, list_logs(self._settings.log_dir)))
            case ShutDownTaskManager(reason):
                self.stop(reason)
            case _:
                logger.warning("the JobManager sent an unexpected %s", type(message).__name__)

    def _read_log(self, message: ReadLog) -> LogRead:
        try:
            content, size = read_log(
                self._settings.log_dir,
                message.name,
                main_log=self._settings.main_log,
                offset=message.offset,
                length_max=message.length_max,
            )
        except (InputError, OSError) as error:
            return LogRead(message.request_id, b"", 0, str(error))
        return LogRead(message.request_id, content, size)

    def _cancel(self, allocation_id: AllocationID, attempt_id: ExecutionAttemptID, message: CancelTask) -> None:
        slot = self._slots.get(allocation_id)
        if slot is None or slot.handle is None or attempt_id not in slot.live:
            return
        slot.cancelled(attempt_id)
        slot.handle.send(message)
        asyncio.get_running_loop().call_later(slot.cancellation_s, self._escalate, slot, attempt_id)

    def _escalate(self, slot: Slot, attempt_id: ExecutionAttemptID) -> None:
        if attempt_id in slot.live and slot.handle is not None and not slot.killed_for_cancel:
            logger.warning("job=%s attempt=%s does not end on cancel: its slot is killed", slot.job_id, attempt_id)
            slot.killed_for_cancel = True
            slot.handle.kill()

    def _free(self, allocation_id: AllocationID, reason: str, grace_ms: int) -> None:
        slot = self._slots.get(allocation_id)
        if slot is None or slot.freeing:
            return
        slot.freeing = True
        logger.info("job=%s slot=%s freed: %s", slot.job_id, slot.slot_id, reason)
        if slot.handle is not None:
            slot.handle.send(FreeSlot(allocation_id, reason, grace_ms))
            asyncio.get_running_loop().call_later(FREE_GRACE_S + grace_ms / 1000, self._kill, slot)

    @staticmethod
    def _kill(slot: Slot) -> None:
        if slot.handle is not None:
            slot.handle.kill()

    async def _kill_all_slots(self) -> None:
        for slot in list(self._slots.values()):
            slot.freeing = True
            self._kill(slot)
        waiting = [task for task in self._tasks if task.get_name().startswith("slot-")]
        if waiting:
            await asyncio.wait(waiting, timeout=FREE_GRACE_S * 4)
        for task in waiting:
            task.cancel()
        self._slots.clear()

    # --- one slot ----------------------------------------------------------------------------------------------------

    async def _run_slot(self, slot: Slot, message: AllocateSlot) -> None:
        try:
            await self._make_and_serve(slot, message)
        finally:
            self._slots.pop(slot.allocation_id, None)
            self._reports.slot_ended()
            if all(other.job_id != slot.job_id for other in self._slots.values()):
                self._files.release(slot.job_id)
            await _remove(slot.work_dir)

    async def _make_and_serve(self, slot: Slot, message: AllocateSlot) -> None:
        try:
            handle = await self._make_slot(slot, message)
        except Exception as error:
            self._slots.pop(slot.allocation_id, None)
            if not isinstance(error, EngineError):
                logger.exception("job=%s slot=%s could not be made", slot.job_id, slot.slot_id)
            info = error_info(error)
            self._send_of(slot, SlotAllocationFailed(slot.allocation_id, slot.slot_id, info))
            return
        try:
            slot.handle = handle
            if slot.freeing:
                handle.kill()
            else:
                logger.info("job=%s slot=%s allocated: pid=%d", slot.job_id, slot.slot_id, handle.pid)
                self._send(SlotAllocated(slot.allocation_id, slot.slot_id, handle.address))
            while (up := await handle.receive()) is not None:
                self._on_slot_message(slot, up)
            self._slot_ended(slot, await handle.wait())
        finally:
            handle.kill()

    async def _make_slot(self, slot: Slot, message: AllocateSlot) -> SlotHandle:
        connection = self._connection
        if connection is None:
            raise ExternalError("The JobManager is gone.")
        job, config = message.job, self._config
        effective = self._effective(job.config).to_dict()
        python = self._python(job.config)
        files_dir = os.path.join(slot.work_dir, "files")
        work_dir = os.path.join(slot.work_dir, "work")
        os.makedirs(work_dir)
        os.makedirs(files_dir)
        if job.files:
            site = await self._files.prepare(job, files_dir, connection, python)
            if site:
                effective[SITE_FOLDER_KEY] = site
        index = int(slot.slot_id.rsplit("_", 1)[1])
        port = config.get(ClusterOptions.TM_DATA_PORT)
        sockets = self._folder if self._socket_folder is None else self._socket_folder.path
        init = InitializeSlot(
            allocation_id=slot.allocation_id,
            slot_id=slot.slot_id,
            slot_index=index,
            resource_id=self._settings.resource_id,
            job=job,
            work_dir=work_dir,
            files_dir=files_dir,
            data_host=self._settings.host,
            data_bind_host=self._settings.bind_host,
            data_port=port + index if port else 0,
            unix_path=os.path.join(sockets, f"{slot.allocation_id[:12]}.sock"),
            memory_bytes=slot_memory_bytes(config, self._settings.num_slots),
            config=effective,
        )
        # Shielded: this slot may be given up while others wait for the same host.
        host = await asyncio.shield(self._host_for(python))
        try:
            return await _fork(host, init)
        except ExternalError as error:
            # Is it this slot that cannot start, or did the zygote die (killed for memory by the kernel, by hand)?
            try:
                await asyncio.wait_for(host.wait(), ZYGOTE_ENDED_S)
            except TimeoutError:
                raise error from None
            logger.warning("job=%s: the zygote is gone, starting another one", job.job_id)
            self._hosts.pop(python, None)
            return await _fork(await asyncio.shield(self._host_for(python)), init)

    def _effective(self, job_config: dict[str, str]) -> Configuration:
        """Return this TaskManager's configuration with the job's over it. What describes the cluster stays as it is:
        a client's configuration file may be one for another cluster."""
        jobs = {key: value for key, value in job_config.items() if not key.startswith(CLUSTER_PREFIXES)}
        return Configuration(self._config).add_all(jobs)

    def _python(self, job_config: dict[str, str]) -> str:
        return self._effective(job_config).get(JobOptions.PYTHON_EXECUTABLE) or sys.executable

    def _host_for(self, python: str) -> asyncio.Task[SlotHost]:
        found = self._hosts.get(python)
        failed = found is not None and found.done() and (found.cancelled() or found.exception() is not None)
        if found is None or failed:
            found = asyncio.get_running_loop().create_task(_started(self._slot_hosts, python))
            self._hosts[python] = found
        return found

    def _on_slot_message(self, slot: Slot, message: Any) -> None:
        match message:
            case TaskStateChanged():
                if message.error is not None:
                    task = slot.live.get(message.attempt_id, message.attempt_id)
                    logger.warning("job=%s task=%r failed: %s", slot.job_id, task, message.error.message)
                slot.state_changed(message)
                self._send_of(slot, message)
            case OperatorEventSent() | AcknowledgeCheckpoint() | DeclineCheckpoint() | AwaitsCheckpoint():
                self._send_of(slot, message)
            case TasksReported():
                self._reports.answered(slot, message)
            case StacksSampled():
                self._send(message)
            case SlotReport():
                slot.metrics = message.metrics
            case _:
                logger.warning("slot=%s sent an unexpected %s", slot.slot_id, type(message).__name__)

    def _slot_ended(self, slot: Slot, code: int) -> None:
        self._slots.pop(slot.allocation_id, None)
        if slot.freeing:
            self._send_of(slot, SlotFreed(slot.allocation_id, slot.slot_id))
            return
        if slot.killed_for_cancel:
            for attempt_id in slot.live:
                self._send_of(slot, TaskStateChanged(slot.job_id, attempt_id, ExecutionState.CANCELED))
            message = "its slot was killed because a task did not end on cancel (task.cancellation.timeout)"
        else:
            tasks = f"Running in it: {', '.join(slot.live.values())}." if slot.live else "No task ran in it."
            message = f"{why_ended(code)} Slot {slot.slot_id} on host {self._settings.host}. {tasks}"
            logger.error("job=%s slot=%s lost: %s", slot.job_id, slot.slot_id, message)
        error = ErrorInfo("SlotLost", message, "", "external")
        self._send_of(slot, SlotLost(slot.allocation_id, slot.slot_id, error))


def _short_temp_dir() -> str | None:
    """Return a temporary folder whose name leaves room for a socket's."""
    for folder in (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"):
        if len(folder) <= UNIX_FOLDER_MAX - 24 and os.access(folder, os.W_OK | os.X_OK):
            return folder
    return None


async def _fork(host: SlotHost, init: InitializeSlot) -> SlotHandle:
    # The host is shared by jobs: it imports nothing that is not the engine's own, whatever a job asks for.
    own = [module for module in init.job.preload if module.startswith("engine.")]
    if own:
        host.load(own)
    return await host.fork_slot(init)


async def _started(factory: SlotHostFactory, python: str) -> SlotHost:
    return await factory(python)


def _loop_ms() -> int:
    return int(1000 * asyncio.get_running_loop().time())


async def _never() -> None:
    await asyncio.get_running_loop().create_future()


async def _end(*work: asyncio.Future[Any]) -> None:
    for one in work:
        one.cancel()
    await asyncio.gather(*work, return_exceptions=True)


async def _remove(folder: str) -> None:
    try:
        await asyncio.get_running_loop().run_in_executor(None, lambda: shutil.rmtree(folder, ignore_errors=True))
    except RuntimeError:  # the interpreter is ending and starts no threads
        shutil.rmtree(folder, ignore_errors=True)


def _rss_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def unique_resource_id(host: str) -> ResourceID:
    """Return an id such as Flink prints: host, pid and six hex digits of the time."""
    return ResourceID(f"{host}:{os.getpid()}-{time.time_ns() & 0xFFFFFF:06x}")
