"""The JobManager's front: accepts jobs, owns their JobMasters, answers questions about them. One event loop for all.

Implements ``gateway.DispatcherGateway``. Not here: how one job runs (``job_master``), where slots come from
(``resource_manager``), HTTP (``rest``), which classes a process is made of (``engine/cluster``).
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, final

from engine.checkpoint.settings import CheckpointSettings
from engine.checkpoint.statistics import CheckpointStatistics
from engine.checkpoint.storage import dispose_savepoint
from engine.core.clock import Clock
from engine.core.config import Configuration
from engine.core.errors import (
    ConfigError,
    CorruptStateError,
    EngineError,
    ExternalError,
    InputError,
    JobNotFoundError,
    ProgramError,
)
from engine.core.ids import AllocationID, JobID, JobVertexID, ResourceID
from engine.core.options import ClusterOptions, RestOptions
from engine.graph.execution_graph import ExceptionEntry, ExecutionGraph
from engine.graph.job_graph import JobGraph
from engine.ha.contracts import LeadershipLostError
from engine.ha.history import LeaderHistory, LeaderRecord
from engine.ha.job_store import JobResult, JobStore
from engine.protocol.checkpoint import CheckpointAnswer, StopMode
from engine.protocol.control import OperatorEventSent
from engine.protocol.lifecycle import JobStatus
from engine.protocol.profiling import StacksSampled
from engine.runtime.jobmanager import scheduler as sched
from engine.runtime.jobmanager.archive import ArchiveRenderer, archive_job, summary
from engine.runtime.jobmanager.blob_store import BlobStore
from engine.runtime.jobmanager.checkpointing import SUSPENDED
from engine.runtime.jobmanager.gateway import CheckpointsView, ClusterOverview, TakenCheckpoint, TaskManagerView
from engine.runtime.jobmanager.io_thread import IoThread, WorkerFactory, WorkerThread
from engine.runtime.jobmanager.job_master import JobMaster
from engine.runtime.jobmanager.job_preparation import PreparedJob, prepare_job
from engine.runtime.jobmanager.recovery import fetch_files, finish_clean_up, graph_of, prepare_recovered_job
from engine.runtime.jobmanager.resource_manager import ResourceDriver, ResourceManager, StandaloneDriver
from engine.runtime.jobmanager.takeover import ReportedSlot

__all__ = ["Dispatcher"]

logger = logging.getLogger(__name__)

#: Jobs get this long to be cancelled when the cluster is shut down.
SHUT_DOWN_S: Final = 5.0
#: How often files of ended jobs are looked for.
SWEEP_S: Final = 30.0
#: Archives of the last jobs get this long to be written when the process ends.
ARCHIVE_S: Final = 10.0


@final
class Dispatcher:
    """Use: create in a running loop, ``start``, serve ``resource_manager.handle_connection``, ``close``.

    With a ``job_store`` it lives as long as one leadership: ``start`` takes over what the leader before has written
    down, ``suspend`` leaves everything to the next one.
    """

    def __init__(
        self,
        config: Configuration,
        *,
        clock: Clock,
        driver: ResourceDriver | None = None,
        slots_per_worker: int | None = None,
        log_dir: str | None = None,
        extras: dict[str, Any] | None = None,
        render_archive: ArchiveRenderer = summary,
        temp_dir: str | None = None,
        new_worker: WorkerFactory = WorkerThread,
        job_store: JobStore | None = None,
        history: LeaderHistory | None = None,
        tasks_may_run: bool = True,
    ) -> None:
        """``tasks_may_run``: some TaskManagers may be left of the leader before."""
        self._tasks_may_run = tasks_may_run
        self._new_worker = new_worker
        self._store = job_store
        self._history = history
        #: Jobs whose exceptions are being written down → whether there have been more since.
        self._noting: dict[JobID, bool] = {}
        #: Who has led this cluster, oldest first; empty without high availability.
        self.leaders: Sequence[LeaderRecord] = ()
        self._io = IoThread("job-store", new_worker)
        #: Jobs that ended under former leaders, in order of their ends.
        self._ended_before: dict[JobID, ExecutionGraph] = {}
        self._is_suspended = False
        #: Set when the store says that another JobManager leads; the process main waits for it.
        self.leadership_lost = asyncio.Event()
        #: Set when the jobs of former leaders are known here.
        self._recovered = asyncio.Event()
        self._config = config
        self._clock = clock
        self._log_dir = log_dir
        self._extras = extras or {}
        self._render_archive = render_archive
        self._archive_dir = config.get(RestOptions.ARCHIVE_DIR)
        self._history_max = max(0, config.get(RestOptions.HISTORY))
        self._jobs: dict[JobID, JobMaster] = {}  # in order of submission
        self._driver = driver or StandaloneDriver()
        temp = temp_dir or config.get(RestOptions.TMP_DIR) or _first_folder(config.get(ClusterOptions.TMP_DIRS))
        self.blobs = BlobStore(temp, clock)
        self.resource_manager = ResourceManager(
            config, driver=self._driver, clock=clock, jobs=self, slots_per_worker=slots_per_worker
        )
        self._preparing: dict[JobID, asyncio.Future[JobID]] = {}
        self._background: set[asyncio.Future[Any]] = set()
        self._sweeping: asyncio.Task[None] | None = None
        #: Set when somebody asked this cluster to end; the process main waits for it.
        self.shut_down_requested = asyncio.Event()
        #: Called with each ended job; for per-job clusters.
        self.on_job_ended: Callable[[ExecutionGraph], None] | None = None

    async def start(self) -> None:
        """Begin; with a job store return when all jobs of former leaders are known here and those that have not ended
        go on. Raises LeadershipLostError, and ExternalError when the store cannot be read."""
        self._sweeping = asyncio.get_running_loop().create_task(self._sweep())
        await self.resource_manager.start()
        if self._store is not None:
            await self._recover(self._store)
        self._recovered.set()
        for master in list(self._jobs.values()):
            master.wait_for_tasks()

    async def recovered(self) -> None:
        """Return when ``start`` is done."""
        await self._recovered.wait()

    # --- the jobs of former leaders ----------------------------------------------------------------------------------

    async def _recover(self, store: JobStore) -> None:
        results = {result.job_id: result for result in await self._io.run(store.results)}
        for result in list(results.values())[-self._history_max :] if self._history_max else ():
            graph = self._ended_before[result.job_id] = graph_of(result)
            graph.exceptions.extend(await self._exceptions_before(result.job_id))
        job_ids = await self._io.run(store.job_ids)
        if job_ids or results:
            logger.info("taking over %d jobs; %d have ended before", len(set(job_ids) - set(results)), len(results))
        for job_id in job_ids:
            if job_id in results:
                await self._io.run(functools.partial(finish_clean_up, store, results[job_id], self._config))
            else:
                await self._recover_job(store, job_id)

    async def _recover_job(self, store: JobStore, job_id: JobID) -> None:
        try:
            prepared = await self._io.run(functools.partial(prepare_recovered_job, store, job_id, self._config))
            if not self._tasks_may_run:
                prepared = dataclasses.replace(prepared, running_attempt=-1)
            await self._fetch_files(store, prepared.job_graph)
            self._start(self._new_master(prepared, await self._exceptions_before(job_id)))
        except (CorruptStateError, InputError, ConfigError) as error:
            logger.error("job=%s cannot go on and is failed: %s", job_id, error)
            now_ms = self._clock.now_ms()
            result = JobResult(job_id, str(job_id), JobStatus.FAILED.value, str(error), now_ms, now_ms)
            await self._io.run(lambda: store.put_result(result))
            self._ended_before[job_id] = graph_of(result)

    async def _exceptions_before(self, job_id: JobID) -> list[ExceptionEntry]:
        """Return those that the job had under former leaders, oldest first."""
        history = self._history
        return [] if history is None else await self._io.run(lambda: history.exceptions(job_id))

    def _note_exceptions(self, graph: ExecutionGraph) -> None:
        """Write them down; a job that fails again and again has one write under way, not a queue of them."""
        history, job_id = self._history, graph.job_graph.job_id
        if history is None:
            return
        if job_id in self._noting:
            self._noting[job_id] = True
            return
        self._noting[job_id] = False
        entries = tuple(graph.exceptions)

        def done(result: Exception | None) -> None:
            if isinstance(result, Exception):
                logger.warning("job=%s: its exceptions are not written down: %s", job_id, result)
            if self._noting.pop(job_id):
                self._note_exceptions(graph)

        self._io.submit(lambda: history.put_exceptions(job_id, entries), done)

    async def _fetch_files(self, store: JobStore, job_graph: JobGraph) -> None:
        known = {file.sha256 for file in job_graph.files if self.has_blob(file.sha256)}
        folder = self.blobs.folder
        for path in await self._io.run(lambda: fetch_files(store, job_graph, known, folder)):
            self.blobs.put(path)

    async def suspend(self) -> None:
        """Another JobManager leads, or soon will, with the jobs of this one: stop, and clean nothing up. TaskManagers
        that are connected let their tasks run on, for the next one. May be called again."""
        if self._is_suspended:
            return
        self._is_suspended = True
        self._recovered.set()
        self._io.abandon()
        for master in self._jobs.values():
            master.suspend()
        if self._sweeping is not None:
            self._sweeping.cancel()
        await self.resource_manager.close(stop_workers=False)
        self.blobs.close()

    def _on_leadership_lost(self, error: EngineError) -> None:
        self.leadership_lost.set()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                self.blobs.sweep()
            except OSError:
                logger.exception("files of ended jobs could not be removed")

    async def close(self, *, stop_workers: bool = False) -> None:
        """The cluster ends: cancel what runs, wait a moment for it, give everything back."""
        try:
            running = [master for master in self._jobs.values() if not master.has_ended]
            for master in running:
                master.cancel()
            if running:
                waits = [asyncio.ensure_future(master.result()) for master in running]
                await asyncio.wait(waits, timeout=SHUT_DOWN_S)
            if self._background:
                await asyncio.wait(set(self._background), timeout=ARCHIVE_S)
            await self.resource_manager.close(stop_workers=stop_workers)
            for master in self._jobs.values():
                master.close()
            self._io.close()
        finally:
            self._is_suspended = True
            if self._sweeping is not None:
                self._sweeping.cancel()
            self.blobs.close()

    # --- gateway: cluster --------------------------------------------------------------------------------------------

    @property
    def config(self) -> Configuration:
        return self._config

    @property
    def log_dir(self) -> str | None:
        return self._log_dir

    def rest_extras(self) -> dict[str, Any]:
        return dict(self._extras)

    def overview(self) -> ClusterOverview:
        taskmanagers = self.resource_manager.taskmanagers()
        statuses = [graph.status for graph in self.jobs()]
        return ClusterOverview(
            num_taskmanagers=len(taskmanagers),
            slots_total=sum(view.registration.num_slots for view in taskmanagers),
            slots_available=sum(view.slots_free for view in taskmanagers),
            jobs_running=sum(not status.is_globally_terminal_state() for status in statuses),
            jobs_finished=statuses.count(JobStatus.FINISHED),
            jobs_cancelled=statuses.count(JobStatus.CANCELED),
            jobs_failed=statuses.count(JobStatus.FAILED),
        )

    async def shut_down_cluster(self) -> None:
        logger.info("the cluster is asked to shut down")
        self.shut_down_requested.set()

    # --- gateway: jobs -----------------------------------------------------------------------------------------------

    def jobs(self) -> Sequence[ExecutionGraph]:
        graphs = [master.graph for master in reversed(self._jobs.values())]
        return [*graphs, *reversed(self._ended_before.values())]

    def job(self, job_id: JobID) -> ExecutionGraph:
        before = self._ended_before.get(job_id)
        return self._master(job_id).graph if before is None else before

    def _master(self, job_id: JobID) -> JobMaster:
        master = self._jobs.get(job_id)
        if master is None and job_id in self._ended_before:
            raise JobNotFoundError(f"Job {job_id} ended before this JobManager began to lead; only its end is known.")
        if master is None:
            raise JobNotFoundError(
                f"No job {job_id} is known here; it never was or is no longer remembered (web.history)."
            )
        return master

    async def submit_job(self, job_graph: JobGraph) -> JobID:
        if self.shut_down_requested.is_set():
            raise ProgramError("The cluster is shutting down and takes no more jobs.")
        await self._recovered.wait()
        if self._is_suspended:
            raise ExternalError(f"Job {job_graph.name!r} is not accepted: {SUSPENDED}")
        job_id = job_graph.job_id
        if self._store is not None and (job_id in self._jobs or job_id in self._ended_before):
            # The client asks again: the answer was lost with the leader that accepted it.
            logger.info("job=%s was accepted before", job_id)
            return job_id
        if job_id in self._jobs:
            raise ProgramError(f"Job {job_id} was submitted before; every submission needs an id of its own.")
        if not job_graph.vertices:
            raise ProgramError(f"Job {job_graph.name!r} has no operators: define a sink before execute().")
        for file in job_graph.files:
            if self.blobs.path(file.sha256) is None:
                raise ProgramError(f"File {file.name!r} of job {job_graph.name!r} was not uploaded; submit again.")
        # Another submission of the same job may come while files are looked at.
        if job_id in self._preparing:
            if self._store is not None:
                return await asyncio.shield(self._preparing[job_id])
            raise ProgramError(f"Job {job_id} is being submitted already.")
        accepting = asyncio.ensure_future(self._accept(job_graph))
        self._preparing[job_id] = accepting
        accepting.add_done_callback(lambda _: self._preparing.pop(job_id))
        return await asyncio.shield(accepting)

    async def _accept(self, job_graph: JobGraph) -> JobID:
        prepared = await prepare_job(job_graph, self._config)
        if self.shut_down_requested.is_set():
            raise ProgramError("The cluster is shutting down and takes no more jobs.")
        master = self._new_master(prepared)  # what is wrong with its configuration is told before it is kept
        if self._store is not None:
            store, files = self._store, {file.sha256: self.blobs.path(file.sha256) for file in job_graph.files}
            paths = {sha256: path for sha256, path in files.items() if path is not None}
            try:
                await self._io.run(lambda: store.put_job(prepared.job_graph, paths))
            except LeadershipLostError as error:
                self.leadership_lost.set()
                raise ExternalError(f"Job {job_graph.name!r} is not accepted: {error}") from error
            if self._is_suspended:
                raise ExternalError(f"Job {job_graph.name!r} goes on elsewhere: {SUSPENDED}")
        self._start(master)
        return job_graph.job_id

    def _new_master(self, prepared: PreparedJob, exceptions: Sequence[ExceptionEntry] = ()) -> JobMaster:
        return JobMaster(
            prepared,
            config=self._config,
            slots=self.resource_manager,
            clock=self._clock,
            on_terminated=self._job_terminated,
            new_worker=self._new_worker,
            store=self._store,
            on_leadership_lost=self._on_leadership_lost,
            on_exception=self._note_exceptions,
            exceptions=exceptions,
        )

    def _start(self, master: JobMaster) -> None:
        job_graph = master.graph.job_graph
        self._jobs[job_graph.job_id] = master
        self.blobs.retain(job_graph.job_id, (file.sha256 for file in job_graph.files))
        logger.info("job=%s name=%r submitted", job_graph.job_id, job_graph.name)
        master.start()

    async def cancel_job(self, job_id: JobID) -> None:
        if job_id not in self._ended_before:
            self._master(job_id).cancel()

    def checkpoints(self, job_id: JobID) -> CheckpointsView:
        if job_id in self._ended_before:
            return CheckpointsView(CheckpointSettings(), CheckpointStatistics(0), False)
        return self._master(job_id).checkpoints.view()

    async def trigger_checkpoint(self, job_id: JobID, incremental: bool | None) -> TakenCheckpoint:
        return await self._master(job_id).checkpoints.take_checkpoint(incremental=incremental)

    async def trigger_savepoint(
        self, job_id: JobID, target: str | None, *, stop: StopMode = StopMode.NONE, cancel: bool = False
    ) -> TakenCheckpoint:
        return await self._master(job_id).checkpoints.take_savepoint(target, stop=stop, cancel=cancel)

    async def dispose_savepoint(self, path: str) -> None:
        await asyncio.get_running_loop().run_in_executor(None, dispose_savepoint, path)

    async def rescale_job(self, job_id: JobID, parallelism: int | Mapping[JobVertexID, int]) -> None:
        await self._master(job_id).rescale(parallelism)

    async def job_result(self, job_id: JobID) -> ExecutionGraph:
        if job_id in self._ended_before:
            return self._ended_before[job_id]
        return await self._master(job_id).result()

    async def coordinator_request(self, job_id: JobID, operator_id: str, request: object) -> object:
        return await self._master(job_id).coordinator_request(operator_id, request)

    def _job_terminated(self, master: JobMaster) -> None:
        self.blobs.release(master.job_id)
        clean_up: asyncio.Future[Any] = asyncio.ensure_future(master.checkpoints.cleaned_up())
        self._background.add(clean_up)
        clean_up.add_done_callback(self._background.discard)
        if self.on_job_ended is not None:
            self.on_job_ended(master.graph)
        if self._archive_dir:
            loop = asyncio.get_running_loop()
            writing = loop.run_in_executor(None, self._archive, master.graph)
            self._background.add(writing)
            writing.add_done_callback(self._background.discard)
        ended = [job_id for job_id, other in self._jobs.items() if other.has_ended]
        for job_id in ended[: max(0, len(ended) - self._history_max)]:
            # Clients that wait for the result still hold it; the newest job is always remembered for them.
            if job_id != master.job_id:
                self._jobs.pop(job_id).close()

    def _archive(self, graph: ExecutionGraph) -> None:
        try:
            path = archive_job(graph, self._archive_dir, self._render_archive)
            logger.info("job=%s archived to %s", graph.job_graph.job_id, path)
        except Exception:
            logger.exception("job=%s could not be archived", graph.job_graph.job_id)

    # --- news from TaskManagers (JobEvents) --------------------------------------------------------------------------

    def post_to_job(self, job_id: JobID, event: sched.Event) -> None:
        master = self._jobs.get(job_id)
        if master is not None:
            master.post(event)

    def checkpoint_answer(self, message: CheckpointAnswer) -> None:
        master = self._jobs.get(message.job_id)
        if master is not None:
            master.checkpoints.answered(message)

    async def prepare_loss(self, job_id: JobID) -> None:
        master = self._jobs.get(job_id)
        if master is None or not master.checkpoints.takes_checkpoints or master.graph.status is not JobStatus.RUNNING:
            return
        try:
            taken = await master.checkpoints.take_checkpoint()
            logger.info("job=%s checkpoint=%d is taken before a TaskManager ends", job_id, taken.checkpoint_id)
        except EngineError as error:
            logger.warning("job=%s goes on from its last checkpoint when a TaskManager ends: %s", job_id, error)

    @property
    def knows_jobs(self) -> bool:
        return self._recovered.is_set()

    def slots_reported(self, job_id: JobID, slots: Sequence[ReportedSlot]) -> None:
        self._jobs[job_id].slots_reported(slots)  # only a job that is here expects any

    def operator_event(self, message: OperatorEventSent) -> None:
        master = self._jobs.get(message.job_id)
        if master is not None:
            master.handle_operator_event(message)

    # --- gateway: blobs, TaskManagers --------------------------------------------------------------------------------

    def put_blob(self, content_path: str) -> str:
        return self.blobs.put(content_path)

    def has_blob(self, sha256: str) -> bool:
        return self.blobs.path(sha256) is not None

    def taskmanagers(self) -> Sequence[TaskManagerView]:
        return self.resource_manager.taskmanagers()

    def taskmanager(self, resource_id: ResourceID) -> TaskManagerView:
        return self.resource_manager.taskmanager(resource_id)

    async def read_taskmanager_log(self, resource_id: ResourceID, name: str) -> bytes:
        return await self.resource_manager.read_log(resource_id, name)

    async def sample_stacks(
        self, resource_id: ResourceID, allocation_id: AllocationID, num_samples: int, interval_ms: int
    ) -> StacksSampled:
        return await self.resource_manager.sample_stacks(resource_id, allocation_id, num_samples, interval_ms)

    async def list_taskmanager_logs(self, resource_id: ResourceID) -> Sequence[tuple[str, int, int]]:
        return await self.resource_manager.list_logs(resource_id)


def _first_folder(text: str) -> str | None:
    """Return the first of folders separated by , or :."""
    folders = [part.strip() for part in text.replace(",", os.pathsep).split(os.pathsep) if part.strip()]
    return folders[0] if folders else None
