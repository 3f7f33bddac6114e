"""Decides when a job takes checkpoints and savepoints, and what becomes of each.

Pure: ``handle(event, now_ms) -> list[Command]`` (``messages``); ``now_ms`` never goes back. A checkpoint is PREPARING
while the operators' coordinators give their state, RUNNING while tasks are waited for, WRITING until its metadata is
durable; then it is complete: older ones are subsumed, tasks and coordinators are told. Not here: carrying that out
(``runtime/jobmanager/checkpointing``), files (``storage``), which of them may go (``store``).

A plain savepoint changes nothing: it is never restored from by itself, and nothing is committed for it. The savepoint
that stops a job is its last restore point, and what it holds is committed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, final

from engine.checkpoint import messages as msg
from engine.checkpoint.invariants import check_pending, check_stored
from engine.checkpoint.leftovers import Leftovers
from engine.checkpoint.model import (
    CheckpointFolders,
    CompletedCheckpoint,
    JobLayout,
    Task,
    attempt_of,
    files_of_handles,
)
from engine.checkpoint.pending import (
    Pending,
    Request,
    Stage,
    completed_checkpoint,
    half_finished_union,
    options_of,
    tasks_to_trigger,
)
from engine.checkpoint.requests import RequestQueue
from engine.checkpoint.schedule import CheckpointSchedule, FailureBudget
from engine.checkpoint.settings import CheckpointSettings
from engine.checkpoint.statistics import CheckpointRecord, CheckpointStatistics, RestoreRecord
from engine.checkpoint.store import CompletedCheckpointStore, Garbage, StoredCheckpoint
from engine.core.ids import OperatorID
from engine.protocol.checkpoint import (
    NO_CHECKPOINT,
    AcknowledgeCheckpoint,
    CheckpointFailureReason,
    CheckpointKind,
    DeclineCheckpoint,
    StopMode,
)

__all__ = ["CheckpointCoordinator"]

_RETRIED: Final = frozenset({CheckpointFailureReason.TASK_FINISHED, CheckpointFailureReason.TASK_NOT_READY})


@final
class CheckpointCoordinator:
    """``restored``: what the job starts from, oldest first; ``counter``: the newest checkpoint id that was given out,
    perhaps by another JobManager."""

    def __init__(
        self,
        layout: JobLayout,
        settings: CheckpointSettings,
        folders: CheckpointFolders,
        *,
        restored: Sequence[StoredCheckpoint] = (),
        counter: int = 0,
    ) -> None:
        self._settings = settings
        self._folders = folders
        self._set_layout(layout)
        self.statistics = CheckpointStatistics(settings.history)
        self._store = CompletedCheckpointStore(settings.num_retained)
        self._leftovers = Leftovers(self._store, folders)
        self._next_id = counter + 1
        for stored in restored:
            self._store.add(stored.checkpoint, is_owned=stored.is_owned)
            self._next_id = max(self._next_id, stored.checkpoint.checkpoint_id + 1)
        self._attempt_number = -1
        #: tasks are, or will be, running and the job does not wind down
        self._is_active = False
        self._has_ended = False
        self._running: set[Task] = set()
        self._finished: set[Task] = set()
        #: of those that run: have come to their end but for a checkpoint that completes
        self._awaiting: set[Task] = set()
        #: in order of their ids; at most one is PREPARING
        self._pending: dict[int, Pending] = {}
        #: WRITING when they were given up: discarded when the answer comes
        self._dropped: dict[int, Pending] = {}
        self._requests = RequestQueue(layout.job_id, settings.timeout_ms)
        #: A savepoint that stops the job is complete: answered when the job has ended.
        self._stopped: msg.AnswerRequest | None = None
        #: The latest that became durable after its attempt had stopped: whoever goes on from there commits it.
        self._uncommitted: CompletedCheckpoint | None = None
        self._schedule = CheckpointSchedule(settings)
        self._failures = FailureBudget(settings.tolerable_failures)
        self._now_ms = 0
        self._wall_ms = 0
        self._commands: list[msg.Command] = []

    # --- what the shell asks -----------------------------------------------------------------------------------------

    def restore_point(self) -> CompletedCheckpoint | None:
        """Return what an attempt that begins now starts from; None = afresh."""
        return self._store.latest()

    def kept(self) -> list[CompletedCheckpoint]:
        """Return what the job may go on from, oldest first."""
        return [stored.checkpoint for stored in self._store.all()]

    def is_preparing(self, checkpoint_id: int) -> bool:
        """Return whether PrepareCheckpoint still waits for its answer."""
        pending = self._pending.get(checkpoint_id)
        return pending is not None and pending.stage is Stage.PREPARING

    def next_timer_ms(self) -> int | None:
        """Return when TimerFired is to come at the latest; it may come earlier and more often."""
        times = [pending.deadline_ms for pending in self._pending.values() if pending.stage is not Stage.WRITING]
        times += self._requests.deadlines_ms()
        if self._can_begin() and self._has_room():
            times.append(self._schedule.due_ms())
        return min(times, default=None)

    def handle(self, event: msg.Event, now_ms: int, wall_ms: int | None = None) -> list[msg.Command]:
        """Return what to do now, in order. ``wall_ms``: the time that people read, if it is another.

        Events that come too late or twice change nothing.
        """
        self._now_ms, self._wall_ms = now_ms, now_ms if wall_ms is None else wall_ms
        self._commands = []
        match event:
            case msg.AttemptBegun(attempt_number, new_layout):
                self._begin_attempt(attempt_number, new_layout)
            case msg.AttemptTakenOver(attempt_number):
                self._take_over(attempt_number)
            case msg.TaskRunning(task):
                if self._is_active and task not in self._finished:
                    self._running.add(task)
            case msg.TaskFinished(task):
                self._on_finished(task)
            case msg.JobStopping():
                self._stop("the job failed or was cancelled")
            case msg.NoAttemptFollows():
                self._commit_last()
            case msg.AllTasksFinished():
                self._on_all_finished()
            case msg.JobEnded(error, retain):
                self._on_ended(error, retain)
            case msg.SavepointRequested(request_id, folder, stop, cancel):
                self._on_request(Request(request_id, 0, folder, stop=stop, cancel=cancel))
            case msg.CheckpointRequested(request_id, incremental):
                self._on_request(Request(request_id, 0, incremental=incremental))
            case msg.CheckpointPrepared(checkpoint_id, coordinators):
                self._on_prepared(checkpoint_id, coordinators)
            case msg.PrepareFailed(checkpoint_id, message, reason):
                self._abort_if(Stage.PREPARING, checkpoint_id, reason, message)
            case msg.Acknowledged(message):
                self._on_acknowledged(message)
            case msg.Declined(message):
                self._on_declined(message)
            case msg.CheckpointAwaited(attempt_id):
                self._on_awaited(*attempt_of(attempt_id))
            case msg.MetadataWritten(checkpoint_id):
                self._on_written(checkpoint_id)
            case msg.MetadataFailed(checkpoint_id, message):
                self._on_write_failed(checkpoint_id, message)
            case msg.RestoreFailed(checkpoint_id, message):
                self._on_restore_failed(checkpoint_id, message)
            case msg.TimerFired():
                pass
            case _:
                raise AssertionError(event)
        self._expire()
        self._begin_what_is_due()
        return self._commands

    # --- attempts ----------------------------------------------------------------------------------------------------

    def _set_layout(self, layout: JobLayout) -> None:
        self._layout = layout
        self._parallelism = {vertex.vertex_id: vertex.parallelism for vertex in layout.vertices}
        self._all_tasks = frozenset(layout.tasks())

    def _begin_attempt(self, attempt_number: int, new_layout: JobLayout | None) -> None:
        self._stop("the job was restarted")
        # What is restored has been decided: one that becomes durable only now belongs to a history that is given up.
        self._drop_written()
        if new_layout is not None:
            self._set_layout(new_layout)
        self._attempt_number = attempt_number
        self._is_active = True
        self._uncommitted = None
        self._running.clear()
        self._finished.clear()
        self._awaiting.clear()
        self._failures.restore()
        self._schedule.begin(self._now_ms)
        self._stopped_in_vain()
        latest = self._store.latest()
        if latest is not None:
            is_savepoint = latest.kind is CheckpointKind.SAVEPOINT
            record = RestoreRecord(latest.checkpoint_id, self._wall_ms, is_savepoint, latest.folder)
            self.statistics.restored(record)

    def _take_over(self, attempt_number: int) -> None:
        """The former leader may have died before it told tasks of what is durable, or of what it gave up."""
        assert self._attempt_number < 0, self._attempt_number
        self._attempt_number = attempt_number
        self._is_active = True
        self._running = set(self._all_tasks)
        tasks = tuple(sorted(self._running))
        latest = self._store.latest()
        self._schedule.resume(self._now_ms, None if latest is None else self._wall_ms - latest.timestamp_ms)
        if latest is not None:
            self._commands.append(msg.NotifyComplete(latest, tasks))
        newest = NO_CHECKPOINT if latest is None else latest.checkpoint_id
        self._commands += [msg.NotifyAborted(number, tasks) for number in range(newest + 1, self._next_id)]

    def _stopped_in_vain(self) -> None:
        """The job goes on though a savepoint had stopped it: it failed before all of its tasks had ended. When it goes
        on from the last checkpoint, which follows that savepoint, all have: it only commits again."""
        latest, stopped = self._store.latest(), self._stopped
        if stopped is not None and (latest is None or latest.folder == stopped.folder):
            request_id, folder = stopped.request_id, stopped.folder
            self._stopped = None
            message = (
                f"Savepoint {folder} is complete, but the job failed before it had stopped and goes on from there."
            )
            self._commands.append(msg.AnswerRequest(request_id, error=message))

    def _stop(self, what: str) -> None:
        """No further checkpoint of this attempt. Those whose metadata is being written may yet complete."""
        self._is_active = False
        for pending in list(self._pending.values()):
            if pending.stage is not Stage.WRITING:
                self._abort(pending, CheckpointFailureReason.JOB_STOPPED)
        self._commands += self._requests.refuse_all(what)

    def _drop_written(self) -> None:
        for pending in list(self._pending.values()):
            self._drop(pending, CheckpointFailureReason.JOB_STOPPED)

    def _drop(self, pending: Pending, reason: CheckpointFailureReason) -> None:
        assert pending.stage is Stage.WRITING, pending
        pending.dropped_for = reason
        self._dropped[pending.checkpoint_id] = self._pending.pop(pending.checkpoint_id)

    def _on_finished(self, task: Task) -> None:
        self._running.discard(task)
        self._awaiting.discard(task)
        if not self._is_active:
            return
        self._finished.add(task)
        for pending in list(self._pending.values()):
            if task in pending.waiting:
                self._abort(pending, CheckpointFailureReason.TASK_FINISHED)

    def _on_awaited(self, task: Task, attempt_number: int) -> None:
        """The next checkpoint comes soon, not at once: other tasks are about to say the same."""
        if self._is_active and attempt_number == self._attempt_number and task not in self._finished:
            if self._is_stopping() and not self._awaiting:
                self._schedule.postpone(self._now_ms)  # it was held back
            else:
                self._schedule.hurry(self._now_ms)
            self._awaiting.add(task)

    def _on_all_finished(self) -> None:
        """What the coordinators commit at the job's end is made durable first: when a commit fails half-way, the job
        goes on from there, with all tasks finished, and commits again."""
        for pending in list(self._pending.values()):
            if pending.stage is not Stage.WRITING:
                self._abort(pending, CheckpointFailureReason.JOB_STOPPED)
        self._commands += self._requests.refuse_all("the job has finished")
        self._is_active = False
        if not (self._settings.is_periodic and self._layout.has_coordinators):
            self._commands.append(msg.EndJob())
            return
        self._finished.update(self._all_tasks)
        self._running.clear()
        self._begin(None, is_final=True)

    def _on_ended(self, error: str | None, retain: bool) -> None:
        self._stop("the job has ended")
        self._drop_written()
        self._has_ended = True
        if self._stopped is not None:
            answer, self._stopped = self._stopped, None
            if error is not None:
                message = f"Savepoint {answer.folder} is complete, but the job failed before it had stopped: {error}"
                answer = msg.AnswerRequest(answer.request_id, error=message)
            self._commands.append(answer)
        if not retain:
            self._discard(self._store.remove_all())
        if not self._dropped:
            self._commands.append(msg.CleanUp(self._leftovers.retained()))

    # --- requests ----------------------------------------------------------------------------------------------------

    def _on_request(self, request: Request) -> None:
        if not self._is_active:
            self._refuse(request, "the job is not running")
        elif self._is_stopping():
            self._refuse(request, "a savepoint that stops the job is under way")
        else:
            self._commands += self._requests.put(request, self._now_ms)

    def _refuse(self, request: Request, why: str) -> None:
        self._commands.append(self._requests.refusal(request, why))

    def _is_stopping(self) -> bool:
        """A savepoint under way ends the job; nothing begins beside it."""
        stops = (p.request is not None and (p.request.cancel or p.is_stop) for p in self._pending.values())
        return self._stopped is not None or any(stops)

    # --- begin -------------------------------------------------------------------------------------------------------

    def _can_begin(self) -> bool:
        return (
            self._is_active
            and len(self._running) + len(self._finished) == len(self._all_tasks)
            and bool(self._running)
            and (self._settings.after_tasks_finish or not self._finished)
            and all(pending.stage is not Stage.PREPARING for pending in self._pending.values())
            and (not self._is_stopping() or self._ends_behind_stop())
        )

    def _ends_behind_stop(self) -> bool:
        """The job is drained: what tasks give at their very end comes after the savepoint, and is committed by a
        checkpoint of its own, lest it come twice if another task fails now."""
        return self._stopped is not None and bool(self._awaiting)

    def _has_room(self) -> bool:
        """Whether a periodic checkpoint may be under way beside the others."""
        under_way = sum(not pending.is_savepoint for pending in self._pending.values())
        return self._settings.is_periodic and under_way < self._settings.max_concurrent

    def _begin_what_is_due(self) -> None:
        while self._requests and self._can_begin() and not self._is_stopping():
            first = self._requests.first()
            under_way = sum(not pending.is_savepoint for pending in self._pending.values())
            if not first.folder and under_way >= self._settings.max_concurrent:
                break
            self._begin(self._requests.take())
        if self._can_begin() and self._has_room() and self._schedule.due_ms() <= self._now_ms:
            self._schedule.took_turn(self._now_ms)
            self._begin(None)

    def _begin(self, request: Request | None, *, is_final: bool = False) -> None:
        checkpoint_id, self._next_id = self._next_id, self._next_id + 1
        options = options_of(
            self._settings, self._folders, checkpoint_id, request, self._store.base(), is_final=is_final
        )
        folder = self._folders.exclusive(checkpoint_id)
        if request is not None and request.folder:
            folder = request.folder
        pending = Pending(
            checkpoint_id,
            options,
            folder,
            self._now_ms + self._settings.timeout_ms,
            self._wall_ms,
            request,
            waiting=set(self._running),
            finished=frozenset(self._finished),
            is_final=is_final,
        )
        self._pending[checkpoint_id] = pending
        if options.base_checkpoint_id != NO_CHECKPOINT:
            self._store.pin(options.base_checkpoint_id)
        self.statistics.began(
            CheckpointRecord(
                checkpoint_id,
                options.kind,
                self._wall_ms,
                self._parallelism,
                is_stop=pending.is_stop,
                num_finished=len(pending.finished),
            )
        )
        self._commands.append(msg.PrepareCheckpoint(checkpoint_id))

    def _on_prepared(self, checkpoint_id: int, coordinators: Mapping[OperatorID, bytes]) -> None:
        pending = self._pending.get(checkpoint_id)
        if pending is None or pending.stage is not Stage.PREPARING:
            return
        pending.coordinators = coordinators
        pending.stage = Stage.RUNNING
        if pending.waiting:
            tasks = tuple(sorted(tasks_to_trigger(pending, self._layout)))
            self._commands.append(msg.TriggerTasks(checkpoint_id, pending.timestamp_ms, tasks, pending.options))
        self._commands.append(msg.ReleaseEvents(checkpoint_id))
        self._write_if_all_acknowledged(pending)

    # --- answers of tasks --------------------------------------------------------------------------------------------

    def _on_acknowledged(self, ack: AcknowledgeCheckpoint) -> None:
        task, attempt_number = attempt_of(ack.attempt_id)
        pending = self._pending.get(ack.checkpoint_id)
        files = {h.path for h in files_of_handles(ack.operators, ack.in_flight) if h.path}
        is_expected = (
            attempt_number == self._attempt_number
            and pending is not None
            and pending.stage is Stage.RUNNING
            and task in pending.waiting
        )
        if self._has_ended:
            return
        if not is_expected:
            live = (*self._pending.values(), *self._dropped.values())
            self._discard(self._leftovers.late(ack.checkpoint_id, files, live))
            return
        assert pending is not None
        pending.waiting.discard(task)
        pending.acknowledged[task] = ack
        if not pending.is_savepoint:
            self._store.retain(files)
        self.statistics.acknowledged(ack.checkpoint_id, task, ack.metrics, self._wall_ms)
        self._write_if_all_acknowledged(pending)

    def _on_declined(self, decline: DeclineCheckpoint) -> None:
        task, attempt_number = attempt_of(decline.attempt_id)
        pending = self._pending.get(decline.checkpoint_id)
        if pending is None or pending.stage is not Stage.RUNNING or attempt_number != self._attempt_number:
            return
        if task in pending.waiting:
            vertex = self._layout.vertex(task.vertex_id)
            name = f"{vertex.name} ({task.subtask_index + 1}/{vertex.parallelism})"
            message = f"task {name} declined: {decline.message or decline.reason.sentence}"
            self._abort(pending, decline.reason, message)

    def _write_if_all_acknowledged(self, pending: Pending) -> None:
        if pending.waiting:
            return
        half_finished = half_finished_union(pending, self._layout)
        if half_finished:
            self._abort(
                pending,
                CheckpointFailureReason.TASK_FINISHED,
                f"some subtasks of {half_finished} have finished and others have not; its union list state would lose "
                "what the former held",
            )
            return
        pending.stage = Stage.WRITING
        pending.completed = completed_checkpoint(pending, self._layout)
        is_restore_point = not pending.is_savepoint or pending.is_stop
        self._commands.append(msg.WriteMetadata(pending.completed, is_restore_point))

    # --- completion --------------------------------------------------------------------------------------------------

    def _on_written(self, checkpoint_id: int) -> None:
        dropped = self._dropped.pop(checkpoint_id, None)
        if dropped is not None:
            self._forget_dropped(dropped)
            return
        pending = self._pending.get(checkpoint_id)
        if pending is None or pending.stage is not Stage.WRITING:
            return
        del self._pending[checkpoint_id]
        completed = pending.completed
        assert completed is not None
        self.statistics.completed(checkpoint_id, completed.folder, self._wall_ms)
        if pending.is_savepoint:
            self._savepoint_completed(pending, completed)
        else:
            self._checkpoint_completed(pending, completed)

    def _checkpoint_completed(self, pending: Pending, completed: CompletedCheckpoint) -> None:
        self._failures.restore()
        self._schedule.ended(self._now_ms)
        before = {stored.checkpoint.checkpoint_id for stored in self._store.all()}
        garbage = self._store.add(completed)
        garbage += self._store.release(pending.files())  # the store refers to them now
        garbage += self._leftovers.unpin(pending)
        for gone in before - {stored.checkpoint.checkpoint_id for stored in self._store.all()}:
            self.statistics.discarded(gone)
        self._subsume_before(completed.checkpoint_id)
        if self._is_active:
            self._commands.append(msg.NotifyComplete(completed, tuple(sorted(self._running))))
        else:
            self._uncommitted = completed
        self._discard(garbage)
        self._answer(pending, completed)
        if pending.is_final:
            self._commands.append(msg.EndJob())

    def _commit_last(self) -> None:
        completed, self._uncommitted = self._uncommitted, None
        if completed is not None:
            self._commands.append(msg.NotifyComplete(completed, ()))

    def _subsume_before(self, checkpoint_id: int) -> None:
        """Checkpoints complete in order, so that the latest one is what is restored and commits go forward."""
        for other in list(self._pending.values()):
            if other.checkpoint_id < checkpoint_id and not other.is_savepoint:
                if other.stage is Stage.WRITING:
                    self._drop(other, CheckpointFailureReason.SUBSUMED)
                else:
                    self._abort(other, CheckpointFailureReason.SUBSUMED)

    def _savepoint_completed(self, pending: Pending, completed: CompletedCheckpoint) -> None:
        request = pending.request
        assert request is not None
        if pending.is_stop and self._is_active:
            # The job's last restore point: what it holds is committed, so the job must not go on from before it.
            garbage = self._store.add(completed, is_owned=False)
            self._stopped = msg.AnswerRequest(request.request_id, completed.checkpoint_id, completed.folder)
            self._subsume_before(completed.checkpoint_id)
            self._commands.append(msg.NotifyComplete(completed, tuple(sorted(self._running))))
            self._discard(garbage)
            return
        if pending.is_stop:
            message = (
                f"Savepoint {completed.folder} is complete, but the job failed or was cancelled before it stopped."
            )
            self._commands.append(msg.AnswerRequest(request.request_id, error=message))
            return
        if request.cancel and self._finished != self._all_tasks:  # else it has ended by itself, and commits just now
            self._commands.append(msg.CancelJob())
            self._stop("the job is cancelled")
        self._answer(pending, completed)

    def _answer(self, pending: Pending, completed: CompletedCheckpoint) -> None:
        if pending.request is not None:
            answer = msg.AnswerRequest(pending.request.request_id, completed.checkpoint_id, completed.folder)
            self._commands.append(answer)

    # --- failure -----------------------------------------------------------------------------------------------------

    def _on_write_failed(self, checkpoint_id: int, message: str) -> None:
        dropped = self._dropped.pop(checkpoint_id, None)
        if dropped is not None:
            self._forget_dropped(dropped)
        else:
            self._abort_if(Stage.WRITING, checkpoint_id, CheckpointFailureReason.STORAGE_FAILED, message)

    def _forget_dropped(self, dropped: Pending) -> None:
        self.statistics.failed(dropped.checkpoint_id, dropped.dropped_for.sentence, self._wall_ms)
        self._discard(self._leftovers.give_up(dropped))
        if dropped.request is not None:
            self._refuse(dropped.request, dropped.dropped_for.sentence)
        if self._has_ended and not self._dropped:
            self._commands.append(msg.CleanUp(self._leftovers.retained()))

    def _abort_if(self, stage: Stage, checkpoint_id: int, reason: CheckpointFailureReason, message: str) -> None:
        pending = self._pending.get(checkpoint_id)
        if pending is not None and pending.stage is stage:
            self._abort(pending, reason, message)

    def _abort(self, pending: Pending, reason: CheckpointFailureReason, message: str = "") -> None:
        message = (message or reason.sentence).rstrip(".")
        del self._pending[pending.checkpoint_id]
        self.statistics.failed(pending.checkpoint_id, message, self._wall_ms)
        if not pending.is_savepoint:
            self._schedule.ended(self._now_ms)
        tasks = tuple(sorted(self._running)) if pending.stage is not Stage.PREPARING else ()
        self._commands.append(msg.NotifyAborted(pending.checkpoint_id, tasks))
        if pending.stage is Stage.PREPARING:
            self._commands.append(msg.ReleaseEvents(pending.checkpoint_id))
        self._discard(self._leftovers.give_up(pending))
        if pending.is_final:
            text = f"The last checkpoint of the job failed, its output is not committed: {message}."
            self._commands.append(msg.EndJobFailed(text))
            return
        self._after_abort(pending, reason, message)

    def _after_abort(self, pending: Pending, reason: CheckpointFailureReason, message: str) -> None:
        what = "Savepoint" if pending.is_savepoint else "Checkpoint"
        request = pending.request
        is_drain = pending.options.stop is StopMode.DRAIN
        if is_drain and pending.stage is not Stage.PREPARING and self._is_active:
            # Event time has ended, so only a restart brings the job back. Suspended sources go on when they are told.
            self._commands.append(msg.FailJob(f"The savepoint that was to stop the job failed: {message}.", reason))
        elif request is not None and reason in _RETRIED and self._is_active and self._requests.put_back(request):
            return
        if request is not None:
            self._refuse(request, message)
            return
        if reason in _RETRIED:
            self._schedule.hurry(self._now_ms)
        if self._is_active:
            failed = self._failures.spend(reason, f"{what} {pending.checkpoint_id} failed: {message}")
            self._commands += [failed] if failed is not None else []

    def _discard(self, garbage: Garbage) -> None:
        self._commands += self._leftovers.discard(garbage)

    def _expire(self) -> None:
        for pending in list(self._pending.values()):
            if pending.stage is not Stage.WRITING and pending.deadline_ms <= self._now_ms:
                self._abort(pending, CheckpointFailureReason.EXPIRED, pending.lateness(self._settings.timeout_ms))
        missing = len(self._all_tasks) - len(self._running) - len(self._finished)
        why = f"{missing} of {len(self._all_tasks)} tasks are not running" if missing else "others took too long"
        self._commands += self._requests.expire(self._now_ms, why)

    def _on_restore_failed(self, checkpoint_id: int, message: str) -> None:
        if not self._store.remove(checkpoint_id):
            return
        for pending in list(self._pending.values()):
            if pending.stage is Stage.WRITING and pending.options.base_checkpoint_id == checkpoint_id:
                self._drop(pending, CheckpointFailureReason.STORAGE_FAILED)
        older = self._store.latest()
        if older is None:
            # Not from the beginning: what was committed since would be done twice.
            text = f"Checkpoint {checkpoint_id} is damaged and there is no older one to go on from: {message}"
            self._commands.append(msg.FailJob(text, is_final=True))
        else:
            text = (
                f"Checkpoint {checkpoint_id} is damaged; the job goes on from checkpoint {older.checkpoint_id} before "
                f"it, and sinks may show twice what came between them: {message}"
            )
            self._commands.append(msg.FailJob(text))

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself. For tests."""
        check_pending(self._pending, self._all_tasks, self._finished, is_active=self._is_active)
        periodic = sum(not (p.is_savepoint or p.is_final or p.request) for p in self._pending.values())
        assert periodic <= self._settings.max_concurrent, periodic
        check_stored(self._store, self._pending.values(), self._settings.num_retained, bool(self._dropped))
