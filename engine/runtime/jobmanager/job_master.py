"""The shell of one job: feeds the pure Scheduler and carries out its commands. Everything happens on the event loop.

An exception in here fails this job and nothing else. Not here: what to do next (``scheduler``), slots of other jobs
(``resource_manager``), the list of jobs (``dispatcher``).
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import pickle
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, final

from engine.checkpoint.assignment import JobRestore
from engine.checkpoint.model import Task
from engine.core.clock import Clock
from engine.core.config import Configuration
from engine.core.errors import EngineError, ExternalError, ProgramError
from engine.core.ids import AllocationID, ExecutionAttemptID, JobID, JobVertexID, OperatorID
from engine.core.metrics import Accumulator
from engine.core.options import HaOptions, RestOptions
from engine.graph.execution_graph import ExceptionEntry, ExecutionGraph
from engine.graph.rescale import rescaled, uniform_parallelism
from engine.ha.job_store import JobStore
from engine.operators.base import JobOutcome
from engine.operators.failure import error_info
from engine.protocol.control import (
    CancelTask,
    DeployTask,
    DownMessage,
    ErrorInfo,
    JobInformation,
    OperatorEventSent,
    SendOperatorEvent,
)
from engine.protocol.lifecycle import ExecutionState, JobStatus
from engine.rpc.codec import decode
from engine.runtime.jobmanager import scheduler as sched
from engine.runtime.jobmanager.checkpointing import SUSPENDED, CheckpointManager, is_corrupt_state
from engine.runtime.jobmanager.coordinators import JobCoordinators
from engine.runtime.jobmanager.io_thread import WorkerFactory, WorkerThread
from engine.runtime.jobmanager.job_preparation import PreparedJob
from engine.runtime.jobmanager.recovery import result_of
from engine.runtime.jobmanager.restart import restart_strategy
from engine.runtime.jobmanager.restart_notices import RestartNotices
from engine.runtime.jobmanager.takeover import ReportedSlot, TakeOver
from engine.runtime.jobmanager.taking_over import TakingOver

__all__ = ["JobMaster", "SlotService", "merged_accumulators"]

logger = logging.getLogger(__name__)

#: Global job parameters travel to slots in the job's configuration, as JSON.
PARAMETERS_KEY: Final = "pipeline.global-job-parameters"
_RESCALE_POLL_S: Final = 0.02


class SlotService(Protocol):
    """What a JobMaster asks of the ResourceManager. Answers come as scheduler events through ``JobMaster.post``."""

    def request_slots(self, job: JobInformation, keys: tuple[sched.SlotRequestKey, ...]) -> None: ...

    def release_slots(self, allocation_ids: tuple[AllocationID, ...], reason: str, grace_ms: int) -> None: ...

    def job_ended(self, job_id: JobID) -> None: ...

    def expect_slots(self, job_id: JobID) -> None:
        """TaskManagers that register may bring slots of the job, see ``JobMaster.slots_reported``; they are held for it
        until it gives them back."""
        ...

    def expect_no_slots(self, job_id: JobID) -> None:
        """Slots of the job that come from now on are freed."""
        ...

    def take_slots_over(self, keys: Mapping[AllocationID, sched.SlotRequestKey]) -> None: ...

    def send_to_slot(self, allocation_id: AllocationID, message: DownMessage) -> None:
        """Send to the TaskManager that holds the allocation; dropped when it is gone (its loss is reported)."""
        ...


@final
class JobMaster:
    """Raises ConfigError when the job's restart strategy or checkpoint settings cannot be used."""

    def __init__(
        self,
        prepared: PreparedJob,
        *,
        config: Configuration,
        slots: SlotService,
        clock: Clock,
        on_terminated: Callable[[JobMaster], None],
        new_worker: WorkerFactory = WorkerThread,
        store: JobStore | None = None,
        on_leadership_lost: Callable[[EngineError], None] = lambda error: None,
        on_exception: Callable[[ExecutionGraph], None] = lambda graph: None,
        exceptions: Sequence[ExceptionEntry] = (),
    ) -> None:
        """``store``: where the job's progress is written down, so that it survives this process; None = nowhere.
        ``exceptions``: those under former leaders; ``on_exception`` is called when there are more.
        """
        job_graph = prepared.job_graph
        self.job_id = job_graph.job_id
        self._slots = slots
        self._clock = clock
        self._new_worker = new_worker
        self._on_terminated = on_terminated
        self._store = store
        self._on_leadership_lost = on_leadership_lost
        self._is_suspended = False
        effective = Configuration(config).add_all(job_graph.config)
        shared = dict(job_graph.config)
        if job_graph.parameters:
            shared[PARAMETERS_KEY] = json.dumps(job_graph.parameters)
        self._information = JobInformation(job_graph.job_id, job_graph.name, shared, job_graph.files, job_graph.preload)
        self._config = effective.to_dict()
        self.checkpoints = CheckpointManager(
            prepared, effective, clock=clock, host=self, new_worker=new_worker, store=store
        )
        recovers = self.checkpoints.takes_checkpoints
        self._restarts = restart_strategy(effective, takes_checkpoints=recovers)
        self._restart_notices = RestartNotices(job_graph.name)
        first_attempt = prepared.first_attempt
        self._scheduler = sched.Scheduler(
            job_graph, clock.now_ms(), self._restarts, recovers=recovers, first_attempt=first_attempt
        )
        self._on_exception = on_exception
        self.graph.exceptions = deque(exceptions, maxlen=effective.get(RestOptions.EXCEPTIONS))
        self._newest_exception = self._last_exception()
        #: What the current attempt starts from.
        self._restore: JobRestore | None = None
        self._first_attempt = first_attempt
        self._coordinators = self._new_coordinators(first_attempt)
        #: Its answer to EndCoordinators becomes a failure: the last checkpoint could not be taken.
        self._end_error: ErrorInfo | None = None
        #: The checkpoint whose trigger is not out yet, and what was sent by coordinators that it has the state of.
        self._holding: int | None = None
        self._held: list[tuple[JobVertexID, OperatorID, int, bytes]] = []
        self._restart_timer: asyncio.TimerHandle | None = None
        self._is_cancelled_early = False
        #: Tasks may run that a former leader has deployed; None once that is decided.
        self._taking_over: TakingOver | None = None
        if prepared.running_attempt >= 0:
            self._taking_over = TakingOver(
                job_graph,
                prepared.running_attempt,
                wait_ms=effective.get(HaOptions.REPORT_TASKS),
                fits=self._resume_coordinators,
                given_up=self._restart_instead,
            )
        self._events: deque[sched.Event] = deque()
        self._handling = False
        self._ended: asyncio.Future[ExecutionGraph] = asyncio.get_running_loop().create_future()
        #: Events of coordinators to subtasks that are not deployed yet, in order.
        self._undelivered: defaultdict[tuple[JobVertexID, int], list[tuple[OperatorID, bytes]]] = defaultdict(list)
        self._deployed: dict[tuple[JobVertexID, int], sched.Deploy] = {}

    @property
    def graph(self) -> ExecutionGraph:
        return self._scheduler.graph

    @property
    def has_ended(self) -> bool:
        return self._ended.done()

    def start(self) -> None:
        if self._taking_over is None:
            self.post(sched.StartScheduling())
        else:
            self._slots.expect_slots(self.job_id)  # until ``wait_for_tasks`` ends

    def wait_for_tasks(self) -> None:
        """From now on TaskManagers know where this JobManager is."""
        if self._taking_over is not None:
            self._taking_over.begin()

    def cancel(self) -> None:
        """Does nothing when the job has ended."""
        self.post(sched.CancelRequested())

    async def result(self) -> ExecutionGraph:
        """Wait for the job's end. Raises ExternalError when another JobManager goes on with it."""
        return await asyncio.shield(self._ended)

    def post(self, event: sched.Event) -> None:
        """Hand an event to the scheduler. Events that arrive while commands are carried out wait their turn."""
        if self.has_ended or self._is_suspended:
            return
        if self._taking_over is not None:
            self._while_taking_over(event, self._taking_over)
            return
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events and not self.has_ended and not self._is_suspended:
                event = self._events.popleft()
                self._before(event)
                for command in self._scheduler.handle(event, self._clock.now_ms()):
                    self._carry_out(command)
                self._after(event)
                self._tell_exceptions()
        except Exception as error:
            self._crash(error)
        finally:
            self._handling = False

    def _last_exception(self) -> ExceptionEntry | None:
        return self.graph.exceptions[-1] if self.graph.exceptions else None

    def _tell_exceptions(self) -> None:
        newest = self._last_exception()
        if newest is not self._newest_exception:
            self._newest_exception = newest
            self._on_exception(self.graph)

    def _before(self, event: sched.Event) -> None:
        """A damaged checkpoint is put aside before the scheduler decides what follows from the task's failure."""
        if isinstance(event, sched.TaskStateReported) and event.report.error is not None:
            found = self.graph.find_attempt(event.report.attempt_id)
            if found is not None and found[1] is found[0].current and is_corrupt_state(event.report.error.type_name):
                self.checkpoints.restore_failed(event.report.error.message)

    def _after(self, event: sched.Event) -> None:
        """Tell of tasks that run or have finished, as the scheduler sees them."""
        if not isinstance(event, sched.TaskStateReported):
            return
        found = self.graph.find_attempt(event.report.attempt_id)
        if found is None or found[1] is not found[0].current or self.has_ended:
            return
        task = Task(found[0].job_vertex.vertex_id, found[0].subtask_index)
        if found[1].state is ExecutionState.RUNNING:
            self.checkpoints.task_running(task)
        elif found[1].state is ExecutionState.FINISHED:
            self.checkpoints.task_finished(task)

    async def rescale(self, parallelism: int | Mapping[JobVertexID, int]) -> None:
        """Take a checkpoint and go on from it at another parallelism: of single vertices, or of all that follow the
        job's default. Return when the job runs so.

        Raises: ProgramError when it cannot be, ExternalError when the job goes on as before: no checkpoint, no slots.
        """
        before = self.graph.job_graph
        wanted = uniform_parallelism(before, parallelism) if isinstance(parallelism, int) else parallelism
        job_graph = rescaled(before, wanted)
        if job_graph.vertices == before.vertices:
            return
        if any(edge.blocking for edge in before.edges):
            raise ProgramError(f"Job {before.name!r} runs in batch mode; only streaming jobs change their parallelism.")
        await self.checkpoints.take_checkpoint(incremental=None)
        self.post(sched.RescaleRequested(job_graph))
        if self.graph.status is not JobStatus.FAILING:
            raise ExternalError(f"Job {self.job_id} is {self.graph.status.value}: its parallelism stays. Try again.")
        while self.graph.status is not JobStatus.RUNNING:
            if self.has_ended:
                raise ExternalError(f"Job {self.job_id} is {self.graph.status.value} before it ran again.")
            await asyncio.sleep(_RESCALE_POLL_S)
        if self.graph.job_graph is not job_graph:
            said = self.graph.exceptions[-1].error.message if self.graph.exceptions else "it failed meanwhile"
            raise ExternalError(f"Job {self.job_id} goes on at its former parallelism: {said}")
        if self._store is not None:
            await self.checkpoints.put_job(job_graph)

    def handle_operator_event(self, message: OperatorEventSent) -> None:
        """A subtask sends to its operator's coordinator; one of a former attempt is not heard any more."""
        if self._taking_over is not None:
            self._taking_over.events.append(message)  # of no other attempt: nothing else runs
            return
        found = self.graph.find_attempt(message.attempt_id)
        if not self.has_ended and found is not None and found[1] is found[0].current:
            self._coordinators.handle_event(message)

    async def coordinator_request(self, operator_id: str, request: object) -> object:
        """Also works after the job's end: a client fetches the rest of a result. Raises JobNotFoundError."""
        return await self._coordinators.request(operator_id, request)

    def close(self) -> None:
        """The job is forgotten."""
        self._coordinators.close()

    def suspend(self) -> None:
        """Another JobManager goes on with the job: do nothing more, clean nothing up. May be called again."""
        if self._is_suspended:
            return
        self._is_suspended = True
        if self._taking_over is not None:
            self._taking_over.end()
        self._events.clear()
        self._coordinators.abandon()
        self.checkpoints.suspend()
        if self._restart_timer is not None:
            self._restart_timer.cancel()
        if not self.graph.status.is_terminal_state():
            self.graph.transition(JobStatus.SUSPENDED, self._clock.now_ms())
            logger.info("job=%s name=%r is SUSPENDED", self.job_id, self.graph.job_graph.name)
        if not self._ended.done():
            self._ended.set_exception(ExternalError(f"Job {self.job_id} is suspended: {SUSPENDED}"))
            self._ended.exception()  # seen: nobody may be waiting

    def leadership_lost(self, error: EngineError) -> None:
        """The job store has refused a write."""
        if not self._is_suspended:
            logger.warning("job=%s: %s", self.job_id, error)
            self.suspend()
            self._on_leadership_lost(error)

    # --- the tasks of a former leader --------------------------------------------------------------------------------

    def slots_reported(self, slots: Sequence[ReportedSlot]) -> None:
        """A TaskManager has registered with slots of this job, which expects them."""
        if self._taking_over is not None and not self._is_suspended:
            try:
                self._taking_over.slots_reported(slots)
            except Exception as error:
                self._crash(error)

    def _while_taking_over(self, event: sched.Event, taking_over: TakingOver) -> None:
        """It is not decided yet whether running tasks are taken over, and the scheduler knows of none."""
        try:
            match event:
                case sched.TaskStateReported(report):
                    taking_over.task_changed(report)
                case sched.SlotsLost(allocation_ids, error):
                    taking_over.slots_lost(allocation_ids, error.message)
                case sched.CoordinatorsStarted():
                    self._take_over(taking_over)
                case sched.CoordinatorFailed(error):
                    taking_over.give_up(error.message)
                case sched.CancelRequested():
                    self._is_cancelled_early = True
                    taking_over.give_up("it is to be cancelled")
        except Exception as error:
            self._crash(error)

    def _resume_coordinators(self, verdict: TakeOver) -> None:
        taking_over = self._taking_over
        assert taking_over is not None
        self._slots.expect_no_slots(self.job_id)
        self._slots.take_slots_over({grant.allocation_id: key for key, grant in verdict.grants})
        try:
            self._restore = self.checkpoints.restore_of_newest(self.graph.job_graph)
        except EngineError as error:
            taking_over.give_up(str(error))
            return
        coordinators = self._coordinators = self._new_coordinators(taking_over.attempt_number)
        self.checkpoints.settle(lambda: coordinators.resume(verdict.reports))

    def _take_over(self, taking_over: TakingOver) -> None:
        """All is there: from here on the job is as if this JobMaster had deployed its tasks."""
        verdict = taking_over.verdict
        assert verdict is not None
        taking_over.end()
        self._taking_over = None
        logger.info("job=%s: its running tasks are taken over, attempt %d", self.job_id, taking_over.attempt_number)
        self.post(sched.TasksTakenOver(taking_over.attempt_number, verdict.grants))
        for event in taking_over.events:
            self.handle_operator_event(event)
        self.checkpoints.take_over(taking_over.attempt_number)

    def _restart_instead(self, allocation_ids: tuple[AllocationID, ...]) -> None:
        self._taking_over = None
        self._slots.expect_no_slots(self.job_id)
        if allocation_ids:
            self._slots.release_slots(allocation_ids, "the job is restarted by another JobManager", 0)

        def start() -> None:
            self.post(sched.StartScheduling())
            if self._is_cancelled_early:
                self.post(sched.CancelRequested())

        # Those that were to go on with the tasks may be committing: what others commit comes after it.
        former, self._coordinators = self._coordinators, self._new_coordinators(self._first_attempt)
        former.abandon_then(start)

    # --- attempts ---------------------------------------------------------------------------------------------------

    def _new_coordinators(self, attempt_number: int) -> JobCoordinators:
        """Return coordinators that are heard as long as they are the current ones."""

        def post(event: sched.Event) -> None:
            if self._coordinators is not coordinators:
                return
            if isinstance(event, sched.JobEndHandled) and self._end_error is not None:
                event, self._end_error = sched.JobEndHandled(self._end_error), None
            self.post(event)

        def send(vertex_id: JobVertexID, operator_id: OperatorID, subtask: int, event: bytes, snapshot_of: int) -> None:
            if self._coordinators is coordinators:
                if snapshot_of == self._holding:
                    self._held.append((vertex_id, operator_id, subtask, event))
                else:
                    self._send_operator_event(vertex_id, operator_id, subtask, event)

        coordinators = JobCoordinators(
            self.graph.job_graph,
            self._config,
            attempt_number=attempt_number,
            restored=self._restore,
            post=post,
            send=send,
            new_worker=self._new_worker,
            fence=None if self._store is None else self._fence,
            lost=self.leadership_lost,
        )
        return coordinators

    def _fence(self, attempt_number: int, publishes: bool, is_over: bool) -> None:
        """In the coordinators' thread."""
        assert self._store is not None
        self._store.begin_attempt(self.job_id, attempt_number, publishes=publishes, is_over=is_over)

    def _start_coordinators(self, attempt_number: int) -> None:
        self._undelivered.clear()
        self._deployed.clear()
        self._held.clear()
        self._holding = None
        self._restore = self.checkpoints.begin_attempt(attempt_number, self.graph.job_graph)
        self._coordinators.abandon()
        coordinators = self._coordinators = self._new_coordinators(attempt_number)
        self.checkpoints.settle(coordinators.start)

    def _restart_coordinators(self, attempt_number: int, vertices: tuple[JobVertexID, ...]) -> None:
        """Some regions begin again; the others' coordinators and tasks go on."""
        for known in (self._undelivered, self._deployed):
            for vertex_id, subtask in [key for key in known if key[0] in vertices]:
                del known[vertex_id, subtask]
        self._coordinators.restart(vertices, attempt_number)

    def _restart_after(self, attempt_number: int, delay_ms: int) -> None:
        exceptions = self.graph.exceptions
        cause = self.graph.failure or (exceptions[-1].error if exceptions else None)  # of regions, the newest
        why = cause.message.partition("\n")[0] if cause is not None else "unknown"
        strategy = self._restarts.describe()
        logger.info("job=%s attempt=%d follows in %d ms: %s %s", self.job_id, attempt_number, delay_ms, why, strategy)
        self._restart_notices.tell(attempt_number, delay_ms, cause)
        due = sched.RestartDue(attempt_number)
        self._restart_timer = asyncio.get_running_loop().call_later(delay_ms / 1000, self.post, due)

    # --- commands ----------------------------------------------------------------------------------------------------

    def _carry_out(self, command: sched.Command) -> None:
        match command:
            case sched.RequestSlots(keys):
                self._slots.request_slots(self._information, keys)
            case sched.ReleaseSlots(allocation_ids, reason, grace_ms):
                self._slots.release_slots(allocation_ids, reason, grace_ms)
            case sched.Deploy(allocation_id, task):
                self._deployed[task.vertex_id, task.subtask_index] = command
                if self._restore is not None:
                    restore = self._restore.tasks[Task(task.vertex_id, task.subtask_index)]
                    task = dataclasses.replace(task, restore=restore)
                self._slots.send_to_slot(allocation_id, DeployTask(allocation_id, task))
                self._deliver(task.vertex_id, task.subtask_index)
            case sched.Adopt(allocation_id, task):
                self._deployed[task.vertex_id, task.subtask_index] = sched.Deploy(allocation_id, task)
                self._deliver(task.vertex_id, task.subtask_index)
            case sched.Cancel(allocation_id, attempt_id):
                self._slots.send_to_slot(allocation_id, CancelTask(allocation_id, attempt_id))
            case sched.StartCoordinators(attempt_number, ()):
                self._start_coordinators(attempt_number)
            case sched.StartCoordinators(attempt_number, vertices):
                self._restart_coordinators(attempt_number, vertices)
            case sched.NotifySubtaskFinished(vertex_id, subtask_index):
                self._coordinators.subtask_finished(vertex_id, subtask_index)
            case sched.EndCoordinators(JobOutcome.FINISHED):
                self.checkpoints.all_tasks_finished()
            case sched.EndCoordinators(JobOutcome.CANCELED as outcome):
                self.checkpoints.no_attempt_follows(lambda: self._coordinators.end(outcome))
            case sched.EndCoordinators(outcome):
                self._coordinators.end(outcome)
            case sched.GiveUpCoordinators(outcome):
                self.checkpoints.no_attempt_follows(lambda: self._coordinators.give_up(outcome))
            case sched.RestartAfter(attempt_number, delay_ms):
                self._restart_after(attempt_number, delay_ms)
            case sched.JobStatusChanged(status):
                logger.info("job=%s name=%r is %s", self.job_id, self.graph.job_graph.name, status.value)
                if status in (JobStatus.FAILING, JobStatus.CANCELLING):
                    self.checkpoints.stopping()
                if status is JobStatus.RESTARTING:
                    self._log_failure()
            case sched.JobTerminated():
                self._terminate()
            case _:
                raise AssertionError(command)

    # --- checkpoints (CheckpointHost) --------------------------------------------------------------------------------

    def send_to_task(self, task: Task, message: Callable[[AllocationID, ExecutionAttemptID], DownMessage]) -> None:
        deployed = self._deployed.get((task.vertex_id, task.subtask_index))
        if deployed is not None:
            allocation_id = deployed.allocation_id
            self._slots.send_to_slot(allocation_id, message(allocation_id, deployed.task.attempt_id))

    def snapshot_coordinators(
        self, checkpoint_id: int, done: Callable[[dict[OperatorID, bytes] | Exception], None]
    ) -> None:
        self._holding = checkpoint_id
        self._coordinators.snapshot(checkpoint_id, done)

    def release_events(self, checkpoint_id: int) -> None:
        if self._holding == checkpoint_id:
            self._holding = None
            held, self._held = self._held, []
            for vertex_id, operator_id, subtask, event in held:
                self._send_operator_event(vertex_id, operator_id, subtask, event)

    def coordinators_completed(
        self,
        checkpoint_id: int,
        committables: Mapping[OperatorID, Mapping[int, bytes]],
        done: Callable[[], None],
    ) -> None:
        coordinators = self._coordinators

        def if_current() -> None:
            if self._coordinators is coordinators and not self.has_ended:
                done()

        coordinators.checkpoint_completed(checkpoint_id, committables, if_current)

    def coordinators_of_savepoint(
        self,
        checkpoint_id: int,
        committables: Mapping[OperatorID, Mapping[int, bytes]],
        done: Callable[[Exception | None], None],
    ) -> None:
        self._coordinators.savepoint_taken(checkpoint_id, committables, done)

    def coordinators_aborted(self, checkpoint_id: int) -> None:
        self._coordinators.checkpoint_aborted(checkpoint_id)

    def end_coordinators(self, error: str | None) -> None:
        if error is not None:
            self._end_error = ErrorInfo("CheckpointException", error, "", "external")
        # The job may have failed since its tasks finished: a coordinator raised.
        is_finishing = error is None and self.graph.status is JobStatus.RUNNING
        self._coordinators.end(JobOutcome.FINISHED if is_finishing else JobOutcome.FAILED)

    def checkpoint_failed(self, message: str, is_final: bool) -> None:
        self.post(sched.CoordinatorFailed(ErrorInfo("CheckpointException", message, "", "external"), is_final))

    def checkpoints_crashed(self, error: Exception) -> None:
        if self.has_ended:
            logger.error("job=%s: internal error after its end", self.job_id, exc_info=error)
        else:
            self._crash(error)

    def _send_operator_event(self, vertex_id: JobVertexID, operator_id: OperatorID, subtask: int, event: bytes) -> None:
        if not self.has_ended:
            self._undelivered[vertex_id, subtask].append((operator_id, event))
            self._deliver(vertex_id, subtask)

    def _deliver(self, vertex_id: JobVertexID, subtask: int) -> None:
        deployed = self._deployed.get((vertex_id, subtask))
        if deployed is None or (vertex_id, subtask) not in self._undelivered:
            return
        allocation_id = deployed.allocation_id
        for operator_id, event in self._undelivered.pop((vertex_id, subtask)):
            message = SendOperatorEvent(allocation_id, deployed.task.attempt_id, operator_id, event)
            self._slots.send_to_slot(allocation_id, message)

    def _terminate(self) -> None:
        self._slots.job_ended(self.job_id)
        self.graph.accumulator_results = merged_accumulators(self.graph)
        if self._restart_timer is not None:
            self._restart_timer.cancel()
        if self.graph.status is JobStatus.FAILED:
            self._log_failure()
        self._end()

    def _end(self) -> None:
        """What the job has done is done: write it down, then delete what nobody needs and tell those who wait."""
        if self._store is None:
            self._ended_for_good()
        elif not self.graph.is_result_pending:
            self.graph.is_result_pending = True
            self.checkpoints.write_result(result_of(self.graph), self._ended_for_good)

    def _ended_for_good(self) -> None:
        if self._ended.done():
            return
        self.graph.is_result_pending = False
        self._ended.set_result(self.graph)  # first: a bug in what follows must not keep the job from ending
        self._checkpoints_ended()
        self._on_terminated(self)

    def _checkpoints_ended(self) -> None:
        failure = self.graph.failure
        self.checkpoints.ended(self.graph.status, None if failure is None else failure.message)

    def _log_failure(self) -> None:
        if self.graph.failure is not None:
            logger.error("job=%s failed: %s", self.job_id, self.graph.failure.message)
            if self.graph.failure.trace:
                logger.info("job=%s trace of the failure:\n%s", self.job_id, self.graph.failure.trace)

    def _crash(self, error: Exception) -> None:
        """A bug of ours: fail this job, whatever state it is in, and go on with the others."""
        logger.error("job=%s: internal error, the job is failed", self.job_id, exc_info=error)
        if self._taking_over is not None:
            self._taking_over.end()
            self._taking_over = None
        graph, now_ms = self.graph, self._clock.now_ms()
        graph.failure = graph.failure or _internal(error)
        if not graph.status.is_globally_terminal_state():
            graph.story.append(f"{now_ms} internal error in state {graph.status.name}: {error!r}")
            graph.status = JobStatus.FAILED
            graph.status_timestamps[JobStatus.FAILED] = now_ms
        self._coordinators.end(JobOutcome.FAILED)
        self._slots.job_ended(self.job_id)
        if not self._ended.done():
            self._end()


def _internal(error: Exception) -> ErrorInfo:
    info = error_info(error)
    message = f"Internal error in the JobMaster: {info.message}"
    return ErrorInfo(info.type_name, message, info.trace, "internal")


def merged_accumulators(graph: ExecutionGraph) -> dict[str, tuple[str, Any]]:
    """Return name → (type, value) over the last attempts of all subtasks.

    An accumulator that cannot be read or merged has its error as value: it never fails a job that has done its work.
    """
    merged: dict[str, Accumulator] = {}
    failed: dict[str, tuple[str, Any]] = {}
    for subtask in graph.all_subtasks():
        data = subtask.current.accumulators
        if not data:
            continue
        try:
            found = _load_accumulators(data)
        except Exception as error:
            failed[f"accumulators of {subtask.name}"] = ("Error", f"cannot be read: {error}")
            continue
        for name, accumulator in found.items():
            try:
                if name in merged:
                    merged[name].merge(accumulator)
                else:
                    merged[name] = accumulator
            except Exception as error:
                failed[name] = ("Error", f"cannot be merged: {error}")
    results: dict[str, tuple[str, Any]] = {}
    for name, accumulator in merged.items():
        try:
            results[name] = (type(accumulator).__name__, _portable(accumulator.get_local_value()))
        except Exception as error:
            failed[name] = ("Error", f"has no value: {error}")
    return results | failed


def _portable(value: Any) -> Any:
    """Return a value that can be sent to clients: itself, or its text when its class is the user's own."""
    try:
        pickle.dumps(value)
    except Exception:
        return repr(value)
    return value


def _load_accumulators(data: bytes) -> dict[str, Accumulator]:
    try:
        return decode(data, dict)
    except Exception:  # an accumulator class or a value of the user's own
        import cloudpickle

        loaded: dict[str, Accumulator] = cloudpickle.loads(data)
        return loaded
