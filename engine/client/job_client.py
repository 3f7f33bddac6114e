"""A handle on one submitted job, with PyFlink's names: status, cancel, result, accumulators, collected rows.

Works the same for a job in this process and one on a cluster: the difference is the ``JobAccess`` behind it
(``executors`` for local, ``rest_client`` for remote).
"""

from __future__ import annotations

import pickle
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar, final

from engine.core.errors import ExternalError, JobCancelledError, JobExecutionError
from engine.core.ids import JobID
from engine.protocol.checkpoint import StopMode
from engine.protocol.control import ErrorInfo
from engine.protocol.lifecycle import JobStatus

__all__ = ["CompletableFuture", "JobAccess", "JobClient", "JobExecutionResult", "JobOutcomeView"]

T = TypeVar("T")

#: Between two questions: first, longest.
BACKOFF_FIRST_S: Final = 0.02
BACKOFF_MAX_S: Final = 0.5
#: Rows come as fast as they are made: a client that waits for them asks more often than one that waits for the end.
COLLECT_BACKOFF_FIRST_S: Final = 0.002
COLLECT_BACKOFF_MAX_S: Final = 0.1

_RESTARTED: Final = (
    "Job {} failed and was restarted after rows of it had been given; without checkpoints they would be given twice. "
    "The job is cancelled. Run it again, switch restarts off (restart-strategy.type: none), or write to a file sink "
    "instead of collecting: its files hold each row once."
)


@final
class CompletableFuture(Generic[T]):
    """A result that may not be there yet. Nothing runs behind it: it asks when it is asked.

    ``poll(timeout_s)`` returns a 1-tuple with the value or None if it is not there after about ``timeout_s``.
    """

    def __init__(self, poll: Callable[[float], tuple[T] | None]) -> None:
        self._poll = poll
        self._value: tuple[T] | None = None
        self._error: BaseException | None = None

    @classmethod
    def completed(cls, value: T) -> CompletableFuture[T]:
        return cls(lambda timeout_s: (value,))

    def _ask(self, timeout_s: float) -> bool:
        if self._value is None and self._error is None:
            try:
                self._value = self._poll(timeout_s)
            except Exception as error:
                self._error = error
        return self._value is not None or self._error is not None

    def done(self) -> bool:
        return self._ask(0.0)

    def result(self, timeout: float | None = None) -> T:
        """Wait for the value, for ever or ``timeout`` seconds. Raises TimeoutError, and the error if it is one."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = BACKOFF_FIRST_S
        while not self._ask(pause):
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"No result within {timeout} s.")
            pause = min(pause * 1.5, BACKOFF_MAX_S)
        if self._error is not None:
            raise self._error
        assert self._value is not None
        return self._value[0]

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait, then return the error, or None if there is a value."""
        try:
            self.result(timeout)
        except TimeoutError:
            if self._error is None:
                raise
        except Exception:
            pass
        return self._error

    def cancel(self) -> bool:
        """Nothing can be taken back: False, as a finished Java future says."""
        return False

    def cancelled(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class JobOutcomeView:
    """How a job ended."""

    status: JobStatus
    net_runtime_ms: int
    accumulators: dict[str, Any]
    failure: ErrorInfo | None


class JobAccess(Protocol):
    """One job, wherever it runs. Calls block briefly. Raises ExternalError when the cluster does not answer."""

    @property
    def base_url(self) -> str:
        """Address of REST and dashboard, "" without."""
        ...

    def status(self, job_id: JobID) -> JobStatus: ...

    def cancel(self, job_id: JobID) -> None: ...

    def outcome(self, job_id: JobID, timeout_s: float) -> JobOutcomeView | None:
        """Return how the job ended, or None if it has not after waiting for about ``timeout_s``."""
        ...

    def accumulators(self, job_id: JobID) -> dict[str, Any]:
        """Values as they are now."""
        ...

    def coordinator_request(self, job_id: JobID, operator_id: str, request: object) -> object: ...

    def trigger_savepoint(
        self, job_id: JobID, target: str | None, *, stop: StopMode = StopMode.NONE, cancel: bool = False
    ) -> str:
        """Ask for a savepoint; return an id for ``savepoint_result``."""
        ...

    def savepoint_result(self, job_id: JobID, trigger_id: str, timeout_s: float) -> str | None:
        """Return where it is, or None if it is not complete after about ``timeout_s``. Raises ExternalError."""
        ...


@final
class JobExecutionResult:
    def __init__(self, job_id: JobID, net_runtime_ms: int, accumulators: dict[str, Any]) -> None:
        self._job_id = job_id
        self._net_runtime_ms = net_runtime_ms
        self._accumulators = accumulators

    def get_job_id(self) -> JobID:
        return self._job_id

    def is_job_execution_result(self) -> bool:
        return True

    def get_net_runtime(self) -> int:
        """Milliseconds from submission to the end."""
        return self._net_runtime_ms

    def get_accumulator_result(self, accumulator_name: str) -> Any:
        """Return the merged value; None if there was no such accumulator."""
        return self._accumulators.get(accumulator_name)

    def get_all_accumulator_results(self) -> dict[str, Any]:
        return dict(self._accumulators)

    def __str__(self) -> str:
        lines = ["Program execution finished", f"Job with JobID {self._job_id} has finished."]
        lines.append(f"Job Runtime: {self._net_runtime_ms} ms")
        if self._accumulators:
            lines.append("Accumulator Results: ")
            lines += [f"- {name} ({type(v).__name__}): {v}" for name, v in sorted(self._accumulators.items())]
        return "\n".join(lines)


@final
class JobClient:
    def __init__(self, job_id: JobID, access: JobAccess, *, cancel_on_interrupt: bool = False) -> None:
        self._job_id = job_id
        self._access = access
        self._cancel_on_interrupt = cancel_on_interrupt

    def get_job_id(self) -> JobID:
        return self._job_id

    @property
    def web_interface_url(self) -> str:
        """Address of the dashboard; "" when the cluster in this process was started without ``rest.port``."""
        return self._access.base_url

    def get_job_status(self) -> CompletableFuture[JobStatus]:
        return CompletableFuture(lambda timeout_s: (self._access.status(self._job_id),))

    def cancel(self) -> CompletableFuture[None]:
        """Ask for the job's end; the future is done when the cluster has taken the request."""
        self._access.cancel(self._job_id)
        return CompletableFuture.completed(None)

    def stop_with_savepoint(
        self, advance_to_end_of_event_time: bool, savepoint_directory: str | None = None
    ) -> CompletableFuture[str]:
        """End the job with a savepoint; the future has its path when the job has finished.

        With ``advance_to_end_of_event_time`` all windows fire first. No folder = the configured one.
        """
        stop = StopMode.DRAIN if advance_to_end_of_event_time else StopMode.SUSPEND
        return self._savepoint(savepoint_directory, stop=stop)

    def trigger_savepoint(self, savepoint_directory: str | None = None) -> CompletableFuture[str]:
        """Take a savepoint; the job goes on. The future has its path."""
        return self._savepoint(savepoint_directory)

    def cancel_with_savepoint(self, savepoint_directory: str | None = None) -> CompletableFuture[str]:
        """Take a savepoint, then cancel the job. The future has the savepoint's path."""
        return self._savepoint(savepoint_directory, cancel=True)

    def _savepoint(
        self, folder: str | None, *, stop: StopMode = StopMode.NONE, cancel: bool = False
    ) -> CompletableFuture[str]:
        trigger_id = self._access.trigger_savepoint(self._job_id, folder, stop=stop, cancel=cancel)

        def poll(timeout_s: float) -> tuple[str] | None:
            path = self._access.savepoint_result(self._job_id, trigger_id, timeout_s)
            return None if path is None else (path,)

        return CompletableFuture(poll)

    def get_accumulators(self) -> CompletableFuture[dict[str, Any]]:
        return CompletableFuture(lambda timeout_s: (self._access.accumulators(self._job_id),))

    def get_job_execution_result(self) -> CompletableFuture[JobExecutionResult]:
        """The result raises JobExecutionError with the root cause, or JobCancelledError."""

        def poll(timeout_s: float) -> tuple[JobExecutionResult] | None:
            outcome = self._access.outcome(self._job_id, timeout_s)
            return None if outcome is None else (self._result(outcome),)

        return CompletableFuture(poll)

    def _result(self, outcome: JobOutcomeView) -> JobExecutionResult:
        match outcome.status:
            case JobStatus.FINISHED:
                return JobExecutionResult(self._job_id, outcome.net_runtime_ms, outcome.accumulators)
            case JobStatus.CANCELED:
                raise JobCancelledError(f"Job {self._job_id} was cancelled.")
        message = outcome.failure.message if outcome.failure is not None else f"It ended as {outcome.status.value}."
        error = JobExecutionError(message)
        if outcome.failure is not None and outcome.failure.domain == "internal" and outcome.failure.trace:
            error.add_note(outcome.failure.trace)  # a bug of ours: its reporter needs the stack
        raise error

    def on_interrupt(self) -> None:
        """Ctrl-C while somebody waits for the job: cancel it if it was asked for, or if it dies with this process."""
        if self._cancel_on_interrupt:
            try:
                self._access.cancel(self._job_id)
            except ExternalError as error:
                print(f"Job {self._job_id} was not cancelled: {error}", file=sys.stderr, flush=True)

    def collect_batches(self, operator_id: str) -> Iterator[list[Any]]:
        """Yield lists of rows of a collect sink until the job has ended.

        A restart of the job before the first rows is not noticed, with checkpoints none is: rows are given when a
        checkpoint has completed behind them, or the job has finished. Without checkpoints a restart after the first
        rows cannot be hidden: they begin anew, in an order of their own. Then the job is cancelled, for nobody fetches
        its rows any more.

        Raises: JobExecutionError, JobCancelledError when it did not end well, after the rows that it gave; also
            JobExecutionError when the job was restarted after rows were given.
        """
        for batch in self._batches(operator_id):
            if batch is None:
                self._access.cancel(self._job_id)
                raise JobExecutionError(_RESTARTED.format(self._job_id))
            yield batch

    def collect_all(self, operator_id: str) -> list[Any]:
        """Return all rows of a collect sink when the job has ended; those of attempts that failed are thrown away.

        Raises: JobExecutionError, JobCancelledError when it did not end well.
        """
        rows: list[Any] = []
        for batch in self._batches(operator_id):
            if batch is None:
                rows.clear()
            else:
                rows += batch
        return rows

    def _batches(self, operator_id: str) -> Iterator[list[Any] | None]:
        """Yield lists of rows, and None when the job was restarted and rows that were given come again.

        With checkpoints a batch is held until it is committed: then it can neither come again nor differently.
        """
        from engine.connectors.collect import FetchedResults, FetchResults

        version, offset, pause = "", 0, COLLECT_BACKOFF_FIRST_S
        held: deque[tuple[int, bytes]] = deque()  # (number, pickled rows): not committed yet
        given = 0  # batches before this number were given
        while True:
            answer = self._fetch(operator_id, FetchResults(version, offset))
            if answer is None:
                # Not started yet, or it never will be.
                if self._access.outcome(self._job_id, pause) is not None:
                    break
            else:
                assert isinstance(answer, FetchedResults), answer
                if answer.version != version:
                    is_first, version = version == "", answer.version
                    if not is_first:
                        kept = answer.committed or 0
                        if given > kept:
                            yield None
                            given = 0
                        held = deque((number, blob) for number, blob in held if number < kept)
                        offset = min(offset, kept)
                        continue
                for number, blob in enumerate(answer.blobs, answer.offset):
                    if number >= offset:
                        offset = number + 1
                        held.append((number, blob))
                while held and (answer.committed is None or held[0][0] < answer.committed):
                    number, blob = held.popleft()
                    given = number + 1
                    yield pickle.loads(blob)
                if answer.finished and not held and self._access.outcome(self._job_id, pause) is not None:
                    break  # else it commits, or is about to be restarted
                if answer.finished and held and self._is_over(pause):
                    break  # what never was committed is not given
                if answer.blobs:
                    pause = COLLECT_BACKOFF_FIRST_S
                    continue
                time.sleep(pause)
            pause = min(pause * 1.5, COLLECT_BACKOFF_MAX_S)
        self.get_job_execution_result().result()

    def _is_over(self, timeout_s: float) -> bool:
        """Whether the job ended without a last commit."""
        outcome = self._access.outcome(self._job_id, timeout_s)
        return outcome is not None and outcome.status is not JobStatus.FINISHED

    def _fetch(self, operator_id: str, request: object) -> object | None:
        from engine.core.errors import JobNotFoundError

        try:
            return self._access.coordinator_request(self._job_id, operator_id, request)
        except JobNotFoundError:
            return None
