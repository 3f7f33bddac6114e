"""Runs a job's OperatorCoordinators (split enumerators, committers, collect sinks) in one I/O thread of the job.

They may block on a file system; the event loop never does. No two calls of one job overlap, and they happen in the
order in which they were asked for. What a coordinator sends to subtasks after its snapshot is marked with the number of
that checkpoint, so that it can be held back until the checkpoint's trigger is out. Not here: what a coordinator does
(``connectors``), what follows from its failure (``scheduler``).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

from engine.checkpoint.assignment import JobRestore
from engine.core.errors import Domain, EngineError, ExternalError, JobNotFoundError, Retry
from engine.core.ids import JobVertexID, OperatorID
from engine.graph.job_graph import JobGraph
from engine.ha.contracts import LeadershipLostError
from engine.operators.base import CoordinatorContext, CoordinatorSpec, JobOutcome, OperatorCoordinator
from engine.operators.failure import error_info
from engine.protocol.checkpoint import NO_CHECKPOINT
from engine.protocol.control import OperatorEventSent
from engine.rpc.codec import decode, encode
from engine.runtime.jobmanager.io_thread import Worker, WorkerFactory, WorkerThread
from engine.runtime.jobmanager.scheduling import (
    CoordinatorFailed,
    CoordinatorsStarted,
    Event,
    GivenUpHandled,
    JobEndHandled,
)

__all__ = ["JobCoordinators"]

logger = logging.getLogger(__name__)

#: A coordinator that hangs (a dead file system) must not keep a cancelled job from ending.
STUCK_S: Final = 1.0
#: Clean-up of a cancelled or failed job that has begun may take this long.
CLEAN_UP_S: Final = 30.0
#: Between two attempts to write to a store that does not answer.
FENCE_RETRY_S: Final = 0.5
_sleep: Callable[[float], None] = time.sleep
PUBLISHED_TOLD_MAX: Final = 20  # outputs that an error message lists


@dataclass(slots=True)
class _Hosted:
    vertex_id: JobVertexID
    operator_id: OperatorID
    parallelism: int
    spec: bytes
    coordinator: OperatorCoordinator | None = None
    attempt_number: int = 0
    #: the last checkpoint that has its state
    snapshot_of: int = NO_CHECKPOINT


@final
class JobCoordinators:
    """The coordinators of one attempt of a job. ``post`` takes scheduler events, ``send`` takes (vertex, operator,
    subtask, pickled event, number of the last checkpoint that has the sender's state); both are called on the loop. All
    methods are called on the loop. ``restored``: what they start from, None = afresh.

    ``fence(attempt number, is about to publish, is over)`` is called in the thread before anything that others could
    see: it raises LeadershipLostError when another JobManager leads, and nothing follows but a call of ``lost``."""

    def __init__(
        self,
        job_graph: JobGraph,
        config: dict[str, str],
        *,
        attempt_number: int = 0,
        restored: JobRestore | None = None,
        post: Callable[[Event], None],
        send: Callable[[JobVertexID, OperatorID, int, bytes, int], None],
        new_worker: WorkerFactory = WorkerThread,
        fence: Callable[[int, bool, bool], None] | None = None,
        lost: Callable[[EngineError], None] = lambda error: None,
    ) -> None:
        self._job_graph = job_graph
        self._config = config
        self._restored = restored
        self._post = post
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._hosted = [
            _Hosted(vertex.vertex_id, operator_id, vertex.parallelism, spec, attempt_number=attempt_number)
            for vertex in job_graph.vertices
            for operator_id, spec in vertex.coordinators.items()
        ]
        self._by_operator = {hosted.operator_id: hosted for hosted in self._hosted}
        self._new_worker = new_worker
        self._worker: Worker | None = None
        self._attempt_number = attempt_number
        self._fence = fence
        self._lost = lost
        self._end_asked = False
        self._end_begun = False
        self._end_answered = False
        self._abandoned = False

    # --- asked for by the JobMaster ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Create and start all; posts CoordinatorsStarted or CoordinatorFailed."""
        if self._end_asked or self._abandoned:
            return
        if not self._hosted and self._fence is None:
            self._post(CoordinatorsStarted())
            return
        self._submit(lambda: self._start_all(self._hosted, self._attempt_number))

    def resume(self, reports: Mapping[OperatorID, Mapping[int, bytes]]) -> None:
        """Create all for an attempt whose tasks run; posts as ``start`` does. ``reports``: by operator and subtask."""
        if self._end_asked or self._abandoned:
            return
        self._submit(lambda: self._start_all(self._hosted, self._attempt_number, reports))

    def restart(self, vertices: Collection[JobVertexID], attempt_number: int) -> None:
        """Let those of some vertices clean up and start others in their place; posts as ``start`` does. Nothing is
        heard of the former ones any more."""
        restarted = [hosted for hosted in self._hosted if hosted.vertex_id in vertices]
        if not restarted and self._fence is None:
            self._post(CoordinatorsStarted())
            return
        for hosted in restarted:
            hosted.attempt_number = attempt_number
        self._attempt_number = attempt_number
        self._submit(lambda: self._restart_all(restarted, attempt_number))

    def handle_event(self, message: OperatorEventSent) -> None:
        hosted = self._by_operator.get(message.operator_id)
        if hosted is None:
            logger.warning("job=%s operator=%s has no coordinator for an event", message.job_id, message.operator_id)
            return
        attempt_number = int(message.attempt_id.rsplit("_", 1)[1])

        def call(coordinator: OperatorCoordinator) -> None:
            event = decode(message.event, object)
            coordinator.handle_event(message.subtask_index, attempt_number, event)

        self._submit(lambda: self._guarded(hosted, call))

    def subtask_finished(self, vertex_id: JobVertexID, subtask_index: int) -> None:
        for hosted in self._hosted:
            if hosted.vertex_id == vertex_id:
                self._submit(functools.partial(self._guarded, hosted, lambda c: c.subtask_finished(subtask_index)))

    def snapshot(self, checkpoint_id: int, done: Callable[[dict[OperatorID, bytes] | Exception], None]) -> None:
        """Take the state of all, after all that was asked for before; ``done`` is called on the loop."""
        if not self._hosted:
            self._loop.call_soon(done, {})
            return
        self._submit(lambda: self._snapshot_all(checkpoint_id, done))

    def checkpoint_completed(
        self,
        checkpoint_id: int,
        committables: Mapping[OperatorID, Mapping[int, bytes]],
        done: Callable[[], None],
    ) -> None:
        """Let all commit, then call ``done`` on the loop; a failure is posted as CoordinatorFailed instead."""
        if not self._hosted:
            done()
            return

        def commit(hosted: _Hosted) -> bool:
            encoded = committables.get(hosted.operator_id, {})
            return self._guarded(hosted, lambda c: c.checkpoint_completed(checkpoint_id, _decoded(encoded)))

        def commit_all() -> None:
            if all(commit(hosted) for hosted in self._hosted):
                self._on_loop(done)

        self._submit(commit_all)

    def checkpoint_aborted(self, checkpoint_id: int) -> None:
        for hosted in self._hosted:
            self._submit(functools.partial(self._guarded, hosted, lambda c: c.checkpoint_aborted(checkpoint_id)))

    def savepoint_taken(
        self,
        checkpoint_id: int,
        committables: Mapping[OperatorID, Mapping[int, bytes]],
        done: Callable[[Exception | None], None],
    ) -> None:
        """Tell all, then call ``done`` on the loop, in any case."""
        if not self._hosted:
            done(None)
            return

        def tell_all() -> None:
            error: Exception | None = None
            try:
                for hosted in self._hosted:
                    if self._abandoned:
                        raise ExternalError("The job was restarted meanwhile.")
                    if hosted.coordinator is not None:
                        encoded = committables.get(hosted.operator_id, {})
                        hosted.coordinator.savepoint_taken(checkpoint_id, _decoded(encoded))
            except Exception as raised:
                error = raised
            self._on_loop(done, error)

        self._submit(tell_all)

    async def request(self, operator_id: str, request: object) -> object:
        """Return the coordinator's answer to a client. Raises JobNotFoundError, and what the coordinator raises."""
        hosted = self._by_operator.get(OperatorID(operator_id))
        if hosted is None:
            raise JobNotFoundError(
                f"Job {self._job_graph.job_id} has no operator {operator_id} that answers requests of clients."
            )
        answer: asyncio.Future[object] = self._loop.create_future()

        def call() -> None:
            if hosted.coordinator is None:
                error = JobNotFoundError(f"Operator {operator_id} of job {self._job_graph.job_id} was never started.")
                self._on_loop(_fail, answer, error)
                return
            try:
                result = hosted.coordinator.handle_request(request)
            except Exception as error:
                self._on_loop(_fail, answer, error)
            else:
                self._on_loop(_succeed, answer, result)

        self._submit(call)
        return await answer

    def end(self, outcome: JobOutcome) -> None:
        """Tell all that the job has ended; posts JobEndHandled."""
        self._end_asked = True
        if not any(hosted.coordinator is not None for hosted in self._hosted) and self._worker is None:
            self._answer_end(None)
            return
        self._submit(lambda: self._end_all(outcome))
        if outcome is not JobOutcome.FINISHED:
            self._loop.call_later(STUCK_S, self._give_up_if, lambda: not self._end_begun)
            self._loop.call_later(CLEAN_UP_S, self._give_up_if, lambda: True)

    def give_up(self, outcome: JobOutcome) -> None:
        """After ``end(FAILED)``: tell all that no attempt follows; posts GivenUpHandled."""
        answered = begun = False

        def answer() -> None:
            nonlocal answered
            if not answered:
                answered = True
                self._post(GivenUpHandled())

        def call() -> None:
            nonlocal begun
            begun = True
            # What is removed here may be what another leader's attempt is about to commit.
            if not self._is_fenced(self._attempt_number, is_over=True):
                return
            for hosted in self._hosted:
                if hosted.coordinator is not None and not self._abandoned:
                    try:
                        hosted.coordinator.given_up(outcome)
                    except Exception:
                        logger.warning("job=%s: files may be left behind", self._job_graph.job_id, exc_info=True)
            self._on_loop(answer)

        if self._worker is None:
            answer()
            return
        self._submit(call)
        self._loop.call_later(STUCK_S, lambda: None if begun else answer())
        self._loop.call_later(CLEAN_UP_S, answer)

    def close(self) -> None:
        """The job is forgotten: end the thread when it has done what it was asked for."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def abandon(self) -> None:
        """Another attempt follows, with coordinators of its own: what hangs in the thread, should it go on one day, is
        not to disturb them."""
        self._abandoned = True
        self.close()

    def abandon_then(self, then: Callable[[], None]) -> None:
        """The same; ``then`` is called on the loop when the call that is under way, if any, has returned."""
        self._abandoned = True
        if self._worker is None:
            then()
            return
        self._submit(lambda: self._on_loop(then))
        self.close()

    # --- in the thread -----------------------------------------------------------------------------------------------

    def _submit(self, call: Callable[[], object]) -> None:
        if self._worker is None:
            self._worker = self._new_worker(f"coordinators-{self._job_graph.job_id[:8]}")
        self._worker.submit(call)

    def _on_loop(self, function: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop is closed: the process is ending
            logger.debug("job=%s: the event loop has ended", self._job_graph.job_id)

    def _is_fenced(self, attempt_number: int, *, publishes: bool = False, is_over: bool = False) -> bool:
        """Return whether this JobManager still leads, and has told its successor of the attempt. Waits for a store that
        does not answer: either it does some day, or the leadership is lost."""
        while not self._abandoned and self._fence is not None:
            try:
                self._fence(attempt_number, publishes, is_over)
                return True
            except LeadershipLostError as error:
                self._on_loop(self._lost, error)
                return False
            except ExternalError as error:
                logger.warning("job=%s: %s Trying again in %g s.", self._job_graph.job_id, error, FENCE_RETRY_S)
                _sleep(FENCE_RETRY_S)
        return not self._abandoned

    def _restart_all(self, restarted: list[_Hosted], attempt_number: int) -> None:
        if self._is_fenced(attempt_number):
            self._end_each(restarted, JobOutcome.FAILED)
            self._start_all(restarted, attempt_number)

    def _start_all(
        self,
        all_hosted: list[_Hosted],
        attempt_number: int,
        reports: Mapping[OperatorID, Mapping[int, bytes]] | None = None,
    ) -> None:
        """``reports`` None: their tasks are yet to be deployed."""
        if not self._is_fenced(attempt_number):
            return
        for hosted in all_hosted:
            if self._abandoned:
                return

            def send(subtask: int, event: object, hosted: _Hosted = hosted) -> None:
                self._on_loop(self._send_if_current, hosted, attempt_number, subtask, encode(event), hosted.snapshot_of)

            try:
                spec = decode(hosted.spec, object)
                assert isinstance(spec, CoordinatorSpec), spec
                coordinator = spec.create()
                context = CoordinatorContext(
                    hosted.parallelism,
                    self._job_graph.job_id,
                    self._config,
                    send,
                    attempt_number,
                    operator_id=hosted.operator_id,
                    restored_from=NO_CHECKPOINT if self._restored is None else self._restored.checkpoint_id,
                )
                hosted.coordinator = coordinator
                if self._restored is not None:
                    state = self._restored.coordinators.get(hosted.operator_id, b"")
                    encoded = self._restored.committables.get(hosted.operator_id, {})
                    coordinator.restore(state, _decoded(encoded))
                if reports is None:
                    coordinator.start(context)
                else:
                    coordinator.resume(context, _decoded(reports.get(hosted.operator_id, {})))
            except Exception as error:
                self._on_loop(self._post, CoordinatorFailed(error_info(error), _is_final(error)))
                return
        self._on_loop(self._post, CoordinatorsStarted())

    def _snapshot_all(self, checkpoint_id: int, done: Callable[[dict[OperatorID, bytes] | Exception], None]) -> None:
        states: dict[OperatorID, bytes] = {}
        try:
            for hosted in self._hosted:
                if hosted.coordinator is not None and not self._abandoned:
                    states[hosted.operator_id] = hosted.coordinator.snapshot(checkpoint_id)
                    # In this thread, so before anything that it sends afterwards.
                    hosted.snapshot_of = checkpoint_id
        except Exception as error:
            logger.warning("job=%s checkpoint=%d: no state of a coordinator", self._job_graph.job_id, checkpoint_id)
            self._on_loop(done, error)
        else:
            self._on_loop(done, states)

    def _guarded(self, hosted: _Hosted, call: Callable[[OperatorCoordinator], None]) -> bool:
        """Return whether the call was made and went well."""
        if hosted.coordinator is None or self._abandoned:
            return False
        try:
            call(hosted.coordinator)
        except Exception as error:
            self._on_loop(self._post, CoordinatorFailed(error_info(error)))
            return False
        return True

    def _send_if_current(
        self, hosted: _Hosted, attempt_number: int, subtask: int, event: bytes, snapshot_of: int
    ) -> None:
        if hosted.attempt_number == attempt_number:
            self._send(hosted.vertex_id, hosted.operator_id, subtask, event, snapshot_of)

    def _end_all(self, outcome: JobOutcome) -> None:
        """Commit in two steps: nobody shows anything before all have found that they can."""
        self._end_begun = True
        publishes = outcome is not JobOutcome.FAILED and any(hosted.coordinator for hosted in self._hosted)
        if not self._is_fenced(self._attempt_number, publishes=publishes, is_over=True):
            return
        problem = None if outcome is JobOutcome.FAILED else self._check_each(outcome)
        error = self._end_each(self._hosted, outcome if problem is None else JobOutcome.FAILED)
        self._on_loop(self._answer_end, problem or error)

    def _check_each(self, outcome: JobOutcome) -> Exception | None:
        """Return the first error."""
        for hosted in self._hosted:
            if hosted.coordinator is None or self._abandoned:
                continue
            try:
                hosted.coordinator.check_end(outcome)
            except Exception as error:
                logger.warning("job=%s: a coordinator cannot commit", self._job_graph.job_id, exc_info=True)
                return error
        return None

    def _end_each(self, all_hosted: list[_Hosted], outcome: JobOutcome) -> Exception | None:
        """Return the first error; after one, what the others have not shown yet is cleaned up."""
        first: Exception | None = None
        for hosted in all_hosted:
            if hosted.coordinator is None or self._abandoned:
                continue
            try:
                hosted.coordinator.job_ended(outcome if first is None else JobOutcome.FAILED)
            except Exception as error:
                logger.warning("job=%s: end of a coordinator failed", self._job_graph.job_id, exc_info=True)
                first = first or error
        shown = [name for hosted in all_hosted if hosted.coordinator for name in hosted.coordinator.published()]
        return _with_published(first, shown) if first is not None and shown else first

    # --- end ---------------------------------------------------------------------------------------------------------

    def _answer_end(self, error: Exception | None) -> None:
        if not self._end_answered:
            self._end_answered = True
            self._post(JobEndHandled(None if error is None else error_info(error)))

    def _give_up_if(self, condition: Callable[[], bool]) -> None:
        if not self._end_answered and condition():
            logger.warning("job=%s: a coordinator hangs; the job ends without its clean-up", self._job_graph.job_id)
            self._answer_end(None)


def _decoded(committables: Mapping[int, bytes]) -> dict[int, object]:
    return {subtask: decode(encoded, object) for subtask, encoded in committables.items()}


def _with_published(error: Exception, shown: list[str]) -> Exception:
    """Return the error with what the job has shown before it: the user has to know what is half done."""
    names = ", ".join(shown[:PUBLISHED_TOLD_MAX])
    more = len(shown) - PUBLISHED_TOLD_MAX
    names += f" and {more} more" if more > 0 else ""
    text = f"{str(error).rstrip('.')}. Published before that, and left: {names}; nothing else."
    if isinstance(error, EngineError):
        told = ExternalError(text)
        told.__cause__ = error
        return told
    return ExternalError(f"{type(error).__name__}: {text}")


def _is_final(error: Exception) -> bool:
    """Whether a start fails in the same way however often it is tried: no such input, the output exists."""
    return isinstance(error, EngineError) and error.domain is Domain.USER and error.retry is Retry.NEVER


def _succeed(answer: asyncio.Future[object], result: object) -> None:
    if not answer.done():
        answer.set_result(result)


def _fail(answer: asyncio.Future[object], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
