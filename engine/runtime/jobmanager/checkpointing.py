"""The shell of one job's checkpoints: feeds the pure CheckpointCoordinator and carries out its commands.

On the event loop; files are written, read and deleted in a thread of the job. Not here: when a checkpoint is taken and
what follows (``checkpoint/coordinator``), how coordinators of operators are called (``coordinators``), the job itself
(``job_master``), what is looked at before the job is accepted (``job_preparation``).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, Protocol, final

from engine.checkpoint import messages as msg
from engine.checkpoint import storage
from engine.checkpoint.assignment import JobRestore, assign_state
from engine.checkpoint.coordinator import CheckpointCoordinator
from engine.checkpoint.model import CheckpointFolders, CompletedCheckpoint, Task
from engine.checkpoint.settings import CheckpointSettings, checkpoint_settings
from engine.checkpoint.store import Garbage
from engine.core.clock import Clock
from engine.core.config import Configuration
from engine.core.errors import ConfigError, CorruptStateError, EngineError, ExternalError, ProgramError
from engine.core.ids import AllocationID, ExecutionAttemptID, OperatorID
from engine.core.options import CheckpointingOptions
from engine.graph.job_graph import JobGraph, JobType
from engine.ha.contracts import LeadershipLostError
from engine.ha.job_store import JobResult, JobStore
from engine.protocol.checkpoint import (
    AcknowledgeCheckpoint,
    AwaitsCheckpoint,
    CheckpointAnswer,
    CheckpointFailureReason,
    CheckpointKind,
    DeclineCheckpoint,
    NotifyCheckpointAborted,
    NotifyCheckpointComplete,
    StopMode,
    TriggerCheckpoint,
)
from engine.protocol.control import DownMessage
from engine.protocol.lifecycle import JobStatus
from engine.runtime.jobmanager.gateway import CheckpointsView, TakenCheckpoint
from engine.runtime.jobmanager.io_thread import IoThread, WorkerFactory, WorkerThread
from engine.runtime.jobmanager.job_preparation import PreparedJob, job_layout

__all__ = ["CheckpointHost", "CheckpointManager"]

logger = logging.getLogger(__name__)

SUSPENDED: Final = "this JobManager does not lead any more; ask the one that does."
#: Between two attempts to write to a store that does not answer.
STORE_RETRY_S: Final = 0.5
#: The clean-up of an ended job may take this long when the process ends.
CLEAN_UP_S: Final = 30.0
#: So long the end of a job waits for a checkpoint that is being written. Storage that takes longer is in trouble.
WRITE_WAIT_S: Final = 5.0


class CheckpointHost(Protocol):
    """What the manager asks of its JobMaster. Called on the loop."""

    def send_to_task(self, task: Task, message: Callable[[AllocationID, ExecutionAttemptID], DownMessage]) -> None:
        """Send to the task's current attempt; dropped when there is none."""
        ...

    def snapshot_coordinators(
        self, checkpoint_id: int, done: Callable[[dict[OperatorID, bytes] | Exception], None]
    ) -> None:
        """Take their state; from then on hold back what they send."""
        ...

    def release_events(self, checkpoint_id: int) -> None: ...

    def coordinators_completed(
        self,
        checkpoint_id: int,
        committables: Mapping[OperatorID, Mapping[int, bytes]],
        done: Callable[[], None],
    ) -> None:
        """Let them commit; ``done`` is called when all have, unless the attempt ends before."""
        ...

    def coordinators_of_savepoint(
        self,
        checkpoint_id: int,
        committables: Mapping[OperatorID, Mapping[int, bytes]],
        done: Callable[[Exception | None], None],
    ) -> None:
        """Let them keep what a savepoint names, then call ``done`` in any case."""
        ...

    def coordinators_aborted(self, checkpoint_id: int) -> None: ...

    def end_coordinators(self, error: str | None) -> None:
        """All tasks have finished: commit, or with ``error`` do not."""
        ...

    def checkpoint_failed(self, message: str, is_final: bool) -> None:
        """Fail the job."""
        ...

    def cancel(self) -> None: ...

    def checkpoints_crashed(self, error: Exception) -> None:
        """A bug of ours."""
        ...

    def leadership_lost(self, error: EngineError) -> None:
        """Another JobManager leads: nothing may follow."""
        ...


@final
class CheckpointManager:
    """Raises ConfigError when the job's settings cannot be used.

    With a ``store`` the job survives its JobManager: a checkpoint's id is written down before its tasks are triggered,
    and what the job goes on from before anything of it is committed, or anything that came before is deleted.
    """

    def __init__(
        self,
        prepared: PreparedJob,
        config: Configuration,
        *,
        clock: Clock,
        host: CheckpointHost,
        new_worker: WorkerFactory = WorkerThread,
        store: JobStore | None = None,
    ) -> None:
        job_graph = prepared.job_graph
        self.job_id = job_graph.job_id
        self.settings: CheckpointSettings = checkpoint_settings(config)
        self._is_streaming = job_graph.job_type is JobType.STREAMING
        self._clock = clock
        self._host = host
        self._layout = job_layout(job_graph)
        root = config.get(CheckpointingOptions.CHECKPOINTS_DIR)
        self._folders = CheckpointFolders(storage.absolute_folder(root) if root else "", job_graph.job_id)
        self._savepoint_root = config.get(CheckpointingOptions.SAVEPOINT_DIR)
        self._allow_non_restored = config.get(CheckpointingOptions.ALLOW_NON_RESTORED)
        self._coordinator = CheckpointCoordinator(
            self._layout,
            self.settings,
            self._folders,
            restored=prepared.restored,
            counter=prepared.counter,
        )
        self._loop = asyncio.get_running_loop()
        self._io = IoThread(f"checkpoints-{self.job_id[:8]}", new_worker)
        #: Events that come while commands are carried out wait their turn.
        self._events: deque[msg.Event] = deque()
        self._is_handling = False
        self._timer: asyncio.TimerHandle | None = None
        self._answers: dict[str, asyncio.Future[TakenCheckpoint]] = {}
        #: what the current attempt started from
        self._restored_id: int | None = None
        self._cleaned_up: asyncio.Future[None] = self._loop.create_future()
        self._store = store
        self._is_suspended = False
        #: Ids that the store points to, oldest first, when no write is under way; None = not known: a write failed.
        self._pointed: tuple[int, ...] | None = prepared.pointed
        self._num_writes = 0  #: of pointers, under way
        #: Not deleted before it is known again what the store points to.
        self._held_garbage: list[Garbage] = []

    @property
    def takes_checkpoints(self) -> bool:
        """Whether a failure of the job loses nothing."""
        return self._is_streaming and self.settings.is_periodic

    def view(self) -> CheckpointsView:
        return CheckpointsView(self.settings, self._coordinator.statistics, not self._is_streaming)

    # --- the job's life ----------------------------------------------------------------------------------------------

    def begin_attempt(self, attempt_number: int, job_graph: JobGraph) -> JobRestore | None:
        """Return what the attempt starts from; None = afresh. ``job_graph``: as it is now, perhaps rescaled."""
        if not self._is_streaming:
            return None
        assert not self._is_handling, "the answer is needed at once"
        self._layout = job_layout(job_graph)
        self._handle(msg.AttemptBegun(attempt_number, self._layout))
        checkpoint = self._coordinator.restore_point()
        self._restored_id = None if checkpoint is None else checkpoint.checkpoint_id
        if checkpoint is None:
            return None
        logger.info(
            "job=%s attempt=%d goes on from checkpoint=%d %s",
            self.job_id,
            attempt_number,
            checkpoint.checkpoint_id,
            checkpoint.folder,
        )
        return assign_state(checkpoint, self._layout, allow_non_restored=self._allow_non_restored)

    def restore_of_newest(self, job_graph: JobGraph) -> JobRestore | None:
        """Return what an attempt would start from; begins none."""
        checkpoint = self._coordinator.restore_point()
        if checkpoint is None:
            return None
        return assign_state(checkpoint, job_layout(job_graph), allow_non_restored=self._allow_non_restored)

    def take_over(self, attempt_number: int) -> None:
        """All tasks of this attempt run, and have been taken over from another JobManager."""
        self._handle(msg.AttemptTakenOver(attempt_number))

    def settle(self, then: Callable[[], None]) -> None:
        """Call ``then`` when the store points to what the attempt goes on from, and to nothing else.

        Called after ``begin_attempt``. What was being written when the attempt before ended is given up: its successor
        removes what sinks have of it, so no later leader may go on from there.
        """
        kept = self._coordinator.kept() if self._is_streaming else []
        ids = tuple(one.checkpoint_id for one in kept)
        if self._store is None or (self._is_settled() and self._pointed == ids):
            then()
            return
        store, job_id = self._store, self.job_id

        def done(result: Exception | None) -> None:
            if isinstance(result, LeadershipLostError):
                self._host.leadership_lost(result)
                return
            self._pointers_written(None if isinstance(result, Exception) else ids)
            if isinstance(result, Exception):
                logger.warning("job=%s: %s Trying again in %g s.", job_id, result, STORE_RETRY_S)
                self._loop.call_later(STORE_RETRY_S, self.settle, then)
            else:
                then()

        self._num_writes += 1
        self._io.submit(lambda: store.put_checkpoints(job_id, kept), done)

    def _is_settled(self) -> bool:
        return self._num_writes == 0 and self._pointed is not None

    def _pointers_written(self, ids: tuple[int, ...] | None) -> None:
        """``ids`` None: nobody knows whether they were."""
        self._num_writes -= 1
        self._pointed = ids
        if self._is_settled():
            self._delete_held()

    def _delete_held(self) -> None:
        held, self._held_garbage = self._held_garbage, []
        for garbage in held:
            self._io.submit(functools.partial(storage.delete_garbage, garbage))

    def suspend(self) -> None:
        """Another JobManager leads, or soon will: do nothing more, delete nothing. May be called again."""
        self._is_suspended = True
        if self._timer is not None:
            self._timer.cancel()
        self._io.abandon()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ExternalError(f"Job {self.job_id} is suspended: {SUSPENDED}"))
                answer.exception()  # seen: nobody may be waiting any more
        self._answers.clear()
        if not self._cleaned_up.done():
            self._cleaned_up.set_result(None)

    async def put_job(self, job_graph: JobGraph) -> None:
        """The job is another from now on: the next leader is to run this one. Raises ExternalError."""
        assert self._store is not None
        store = self._store
        try:
            await self._io.run(lambda: store.put_job(job_graph, {}))
        except LeadershipLostError as error:
            self._host.leadership_lost(error)
            raise ExternalError(f"Job {self.job_id} is suspended: {SUSPENDED}") from error

    def write_result(self, result: JobResult, done: Callable[[], None]) -> None:
        """Write down how the job ended, after all that was asked for before; then call ``done``."""
        assert self._store is not None
        store = self._store

        def written(answer: Exception | None) -> None:
            if isinstance(answer, LeadershipLostError):
                self._host.leadership_lost(answer)
            elif isinstance(answer, Exception):
                logger.warning("job=%s: %s Trying again in %g s.", self.job_id, answer, STORE_RETRY_S)
                self._loop.call_later(STORE_RETRY_S, self.write_result, result, done)
            else:
                done()

        self._io.submit(lambda: store.put_result(result), written)

    def task_running(self, task: Task) -> None:
        self._handle(msg.TaskRunning(task))

    def task_finished(self, task: Task) -> None:
        self._handle(msg.TaskFinished(task))

    def restore_failed(self, message: str) -> None:
        """A task could not restore because of a damaged file. Called before the scheduler hears of its failure."""
        if self._restored_id is None:
            return
        checkpoint_id, self._restored_id = self._restored_id, None
        self._handle(msg.RestoreFailed(checkpoint_id, message))

    def stopping(self) -> None:
        """The job fails or is cancelled."""
        self._handle(msg.JobStopping())

    def no_attempt_follows(self, then: Callable[[], None]) -> None:
        """The job is about to be FAILED or CANCELED: let coordinators commit what has become durable while the attempt
        was winding down, then call ``then``. Waits for what is being written, but not for long: until its fate is
        known, coordinators have to leave behind what it names, or to remove what a retained checkpoint needs."""
        if not self._is_streaming:
            then()
            return
        is_called = False

        def settled(_: object = None) -> None:
            nonlocal is_called
            if not is_called:
                is_called = True
                timer.cancel()
                self._handle(msg.NoAttemptFollows())
                then()

        timer = self._loop.call_later(WRITE_WAIT_S, settled)
        self._io.submit(lambda: None, settled)

    def all_tasks_finished(self) -> None:
        """Answered by ``end_coordinators`` of the host."""
        if self._is_streaming:
            self._handle(msg.AllTasksFinished())
        else:
            self._host.end_coordinators(None)

    def ended(self, status: JobStatus, error: str | None) -> None:
        retain = (status is JobStatus.CANCELED and self.settings.retain_on_cancellation) or (
            status is JobStatus.FAILED and self.settings.retain_on_failure
        )
        failure = None if status is JobStatus.FINISHED else error or f"the job is {status.value}"
        self._handle(msg.JobEnded(failure, retain))

    async def cleaned_up(self) -> None:
        """Wait until nothing of the job is left but what is retained, or has to be given up."""
        await asyncio.wait([self._cleaned_up], timeout=CLEAN_UP_S)

    # --- requests of users -------------------------------------------------------------------------------------------

    async def take_savepoint(
        self, target: str | None, *, stop: StopMode = StopMode.NONE, cancel: bool = False
    ) -> TakenCheckpoint:
        """Return when it is complete; with ``stop`` when the job has ended.

        Raises: ConfigError when there is no folder that can be written, ExternalError when it failed.
        """
        self._check_streaming()
        root = target or self._savepoint_root
        if not root:
            raise ConfigError(
                f"No folder for the savepoint: name one, or set {CheckpointingOptions.SAVEPOINT_DIR.key} in the "
                "configuration."
            )
        root = storage.absolute_folder(root)
        name = secrets.token_hex(6)
        key = "the given target" if target else CheckpointingOptions.SAVEPOINT_DIR.key
        await self._io.run(lambda: storage.check_writable(root, key, name))
        folder = storage.savepoint_folder(root, self.job_id, name)
        return await self._ask(lambda request_id: msg.SavepointRequested(request_id, folder, stop, cancel))

    async def take_checkpoint(self, *, incremental: bool | None = None) -> TakenCheckpoint:
        self._check_streaming()
        return await self._ask(lambda request_id: msg.CheckpointRequested(request_id, incremental))

    def _check_streaming(self) -> None:
        if not self._is_streaming:
            raise ProgramError(f"Job {self.job_id} runs in BATCH mode: it takes no checkpoints and no savepoints.")

    async def _ask(self, event: Callable[[str], msg.Event]) -> TakenCheckpoint:
        request_id = secrets.token_hex(8)
        answer: asyncio.Future[TakenCheckpoint] = self._loop.create_future()
        self._answers[request_id] = answer
        self._handle(event(request_id))
        return await answer

    # --- messages of tasks -------------------------------------------------------------------------------------------

    def answered(self, message: CheckpointAnswer) -> None:
        match message:
            case AcknowledgeCheckpoint():
                self._handle(msg.Acknowledged(message))
            case DeclineCheckpoint():
                self._declined(message)
            case AwaitsCheckpoint():
                self._handle(msg.CheckpointAwaited(message.attempt_id))

    def _declined(self, message: DeclineCheckpoint) -> None:
        logger.info(
            "job=%s checkpoint=%d attempt=%s declined: %s %s",
            self.job_id,
            message.checkpoint_id,
            message.attempt_id,
            message.reason.sentence,
            message.message,
        )
        self._handle(msg.Declined(message))

    # --- the decider -------------------------------------------------------------------------------------------------

    def _handle(self, event: msg.Event) -> None:
        if self._is_suspended or (not self._is_streaming and not isinstance(event, msg.JobEnded)):
            return
        self._events.append(event)
        if self._is_handling:
            return
        self._is_handling = True
        try:
            while self._events:
                commands = self._coordinator.handle(
                    self._events.popleft(), self._clock.monotonic_ms(), self._clock.now_ms()
                )
                for command in commands:
                    self._carry_out(command)
            self._set_timer()
        except Exception as error:
            self._events.clear()
            self._host.checkpoints_crashed(error)
        finally:
            self._is_handling = False

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._is_suspended:
            return
        due_ms = self._coordinator.next_timer_ms()
        if due_ms is not None:
            delay_ms = max(0, due_ms - self._clock.monotonic_ms())
            self._timer = self._loop.call_later(delay_ms / 1000, self._handle, msg.TimerFired())

    def _carry_out(self, command: msg.Command) -> None:
        match command:
            case msg.PrepareCheckpoint(checkpoint_id):
                self._prepare(checkpoint_id)
            case msg.TriggerTasks(checkpoint_id, timestamp_ms, tasks, options):
                for task in tasks:
                    self._host.send_to_task(
                        task, lambda a, e: TriggerCheckpoint(a, e, checkpoint_id, timestamp_ms, options)
                    )
            case msg.ReleaseEvents(checkpoint_id):
                self._host.release_events(checkpoint_id)
            case msg.WriteMetadata(checkpoint, is_restore_point):
                self._write(checkpoint, is_restore_point)
            case msg.NotifyComplete(checkpoint, tasks):
                self._notify_complete(checkpoint, tasks)
            case msg.NotifyAborted(checkpoint_id, tasks):
                self._host.coordinators_aborted(checkpoint_id)
                for task in tasks:
                    self._host.send_to_task(task, lambda a, e: NotifyCheckpointAborted(a, e, checkpoint_id))
            case msg.Discard(garbage):
                self._discard(garbage)
            case msg.AnswerRequest():
                self._answer(command)
            case msg.FailJob(message, _, is_final):
                logger.error("job=%s: %s", self.job_id, message)
                self._host.checkpoint_failed(message, is_final)
            case msg.CancelJob():
                self._host.cancel()
            case msg.EndJob():
                self._host.end_coordinators(None)
            case msg.EndJobFailed(message):
                self._host.end_coordinators(message)
            case msg.CleanUp(retained):
                self._clean_up(retained)
            case _:
                raise AssertionError(command)

    def _prepare(self, checkpoint_id: int) -> None:
        answer = functools.partial(self._prepared, checkpoint_id)
        if self._store is None:
            self._host.snapshot_coordinators(checkpoint_id, answer)
            return
        store = self._store

        def begun(result: Exception | None) -> None:
            if isinstance(result, LeadershipLostError):
                self._host.leadership_lost(result)
            elif not self._coordinator.is_preparing(checkpoint_id):
                pass  # it was given up meanwhile, and nothing may be held back for it
            elif isinstance(result, ExternalError):
                self._handle(msg.PrepareFailed(checkpoint_id, str(result), CheckpointFailureReason.IO_EXCEPTION))
            elif isinstance(result, Exception):
                answer(result)
            else:
                self._host.snapshot_coordinators(checkpoint_id, answer)

        self._io.submit(lambda: store.begin_checkpoint(self.job_id, checkpoint_id), begun)

    def _discard(self, garbage: Garbage) -> None:
        if self._store is not None and not self._is_settled():
            self._held_garbage.append(garbage)
        else:
            self._io.submit(lambda: storage.delete_garbage(garbage))

    def _prepared(self, checkpoint_id: int, states: dict[OperatorID, bytes] | Exception) -> None:
        if isinstance(states, Exception):
            self._handle(msg.PrepareFailed(checkpoint_id, f"{type(states).__name__}: {states}"))
        else:
            self._handle(msg.CheckpointPrepared(checkpoint_id, states))

    def _write(self, checkpoint: CompletedCheckpoint, is_restore_point: bool) -> None:
        store = self._store if is_restore_point else None
        self._num_writes += store is not None
        is_put_begun = False

        def write() -> int:
            nonlocal is_put_begun
            size = storage.write_metadata(checkpoint) if checkpoint.folder else 0
            if store is not None:
                is_put_begun = True
                store.put_checkpoint(checkpoint, self.settings.num_retained)
            return size

        def done(result: int | Exception) -> None:
            if isinstance(result, LeadershipLostError):
                self._host.leadership_lost(result)
                return
            if store is not None and isinstance(result, Exception):
                self._pointers_written(None if is_put_begun else self._pointed)
            elif store is not None:
                known = (*(self._pointed or ()), checkpoint.checkpoint_id)
                self._pointers_written(known[-self.settings.num_retained :])
            if isinstance(result, Exception):
                logger.warning("job=%s checkpoint=%d: %s", self.job_id, checkpoint.checkpoint_id, result)
                self._handle(msg.MetadataFailed(checkpoint.checkpoint_id, str(result)))
            else:
                self._handle(msg.MetadataWritten(checkpoint.checkpoint_id))

        def begin(error: Exception | None = None) -> None:
            if error is not None:
                done(error)
            else:
                self._io.submit(write, done)

        if checkpoint.kind is CheckpointKind.SAVEPOINT:
            # Before anybody can restore from it.
            self._host.coordinators_of_savepoint(checkpoint.checkpoint_id, checkpoint.committables(), begin)
        else:
            begin()

    def _notify_complete(self, checkpoint: CompletedCheckpoint, tasks: tuple[Task, ...]) -> None:
        checkpoint_id = checkpoint.checkpoint_id
        logger.info("job=%s checkpoint=%d is complete %s", self.job_id, checkpoint_id, checkpoint.folder)

        def committed() -> None:
            for task in tasks:
                self._host.send_to_task(task, lambda a, e: NotifyCheckpointComplete(a, e, checkpoint_id))

        # Tasks hear of it when all is committed, not before: until then a later checkpoint offers the same again. A
        # commit may fail, or never come, after that later one has completed, and then the job goes on from there.
        self._host.coordinators_completed(checkpoint_id, checkpoint.committables(), committed)

    def _answer(self, command: msg.AnswerRequest) -> None:
        answer = self._answers.pop(command.request_id)
        if answer.done():  # whoever asked has gone away
            return
        if command.error is None:
            answer.set_result(TakenCheckpoint(command.checkpoint_id, command.folder))
        else:
            answer.set_exception(ExternalError(command.error))
            answer.exception()  # seen: nobody may be waiting any more

    def _clean_up(self, retained: tuple[str, ...]) -> None:
        def done(result: Exception | None) -> None:
            if isinstance(result, Exception):
                logger.warning("job=%s: files of checkpoints may be left behind: %s", self.job_id, result)
            if not self._cleaned_up.done():
                self._cleaned_up.set_result(None)

        folder = self._folders.job
        store = self._store

        def clean_up() -> None:
            if folder and self._is_streaming:
                storage.remove_job_folder(folder, retained)
            if store is not None:
                store.remove_job(self.job_id)

        self._delete_held()
        self._io.submit(clean_up, done)
        self._io.close()


def is_corrupt_state(type_name: str) -> bool:
    """Whether a task's error says that a file of the checkpoint is damaged."""
    return type_name.rpartition(".")[2] == CorruptStateError.__name__
