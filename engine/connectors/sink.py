"""Sinks that commit: the contract between writers, checkpoints and commits, and how users write such a sink.

Two phases. A writer writes where nobody looks; at a barrier it hands out committables: what has to be done to make its
work visible. They are part of the checkpoint. When that is durable they are committed, again and again until it is
known that it was done, also by another process after a crash; so committing twice must be like committing once.

The engine's own sinks commit in the JobManager (``file_commits``), where no user code runs. A user's ``Sink`` commits
in its task: committables are operator state until ``notify_checkpoint_complete``. When its input has ended the task
stays until the next checkpoint has completed (``Operator.holds_end``): what it committed earlier would come again
if the job had to go back. Without checkpoints it commits at its end; should another task fail then, all comes again.
Source: Flink's Sink V2 (``SinkWriter``, ``CommittingSinkWriter``, ``StatefulSinkWriter``, ``Committer``).
"""

from __future__ import annotations

import abc
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, final

from engine.checkpoint.settings import checkpoint_settings
from engine.core.config import Configuration, duration_ms
from engine.core.errors import ProgramError
from engine.core.late_dataclass import dataclass
from engine.core.records import Batch, rows_of
from engine.core.type_info import TypeInformation
from engine.operators.base import JobOutcome, Operator, OperatorContext, OperatorSpec, Output
from engine.operators.failure import NO_RECORD, user_error
from engine.operators.functions import RuntimeContext
from engine.protocol.checkpoint import NO_CHECKPOINT
from engine.state.descriptors import ListStateDescriptor

__all__ = [
    "Committer",
    "CommittingSinkSpec",
    "Sink",
    "SinkContext",
    "SinkWriter",
    "retains_checkpoints",
    "takes_checkpoints",
]

_log = logging.getLogger(__name__)

#: Between two attempts to commit what the committer gave back.
_RETRY_FIRST_MS: Final = 1_000
_RETRY_MAX_MS: Final = 60_000


def takes_checkpoints(config: Mapping[str, str]) -> bool:
    """Return whether a job of this effective configuration takes checkpoints by itself (batch jobs do not)."""
    return duration_ms(config.get("execution.checkpointing.interval") or "0") > 0


def retains_checkpoints(config: Mapping[str, str], outcome: JobOutcome) -> bool:
    """Return whether a job of this effective configuration leaves its last checkpoints behind when it ends so."""
    settings = checkpoint_settings(Configuration(config))
    if settings.in_memory or not settings.is_periodic:
        return False
    return settings.retain_on_failure if outcome is JobOutcome.FAILED else settings.retain_on_cancellation


@dataclass(frozen=True, slots=True)
class SinkContext:
    """What a writer may know about a record, or about where it runs when it is created."""

    runtime_context: RuntimeContext
    #: 0 when the sink starts afresh
    restored_states: int = 0
    timestamp_ms: int | None = None

    def timestamp(self) -> int | None:
        return self.timestamp_ms


class SinkWriter(abc.ABC):
    """Writes the records of one subtask. All calls come from one thread; none may block for long."""

    @abc.abstractmethod
    def write(self, element: Any, context: SinkContext) -> None: ...

    def flush(self, end_of_input: bool) -> None:
        """Called before ``prepare_commit`` and ``snapshot_state``, and at the end: write out what is in memory."""

    def prepare_commit(self) -> Sequence[Any]:
        """Return what the committer is to make visible, once: everything since the last call. Picklable."""
        return ()

    def snapshot_state(self, checkpoint_id: int) -> Sequence[Any]:
        """Return what ``restore_writer`` needs, as elements that may go to different subtasks. Picklable."""
        return ()

    def close(self) -> None:
        """Called once, always. What was not handed out by ``prepare_commit`` must stay invisible."""


class Committer(abc.ABC):
    """Makes visible what writers have prepared."""

    @abc.abstractmethod
    def commit(self, committables: Sequence[Any]) -> Sequence[Any] | None:
        """Commit them all; return those that are to be tried again later. An exception fails the job, which goes on
        from the checkpoint that holds them and commits again. What was committed before must be left as it is."""

    def close(self) -> None:
        pass


class Sink(abc.ABC):
    """A sink of the user's own, for ``DataStream.sink_to``. An object of it is configuration: picklable."""

    @abc.abstractmethod
    def create_writer(self, context: SinkContext) -> SinkWriter: ...

    def restore_writer(self, context: SinkContext, states: Sequence[Any]) -> SinkWriter:
        """Create a writer that goes on from the states that writers gave to a checkpoint, perhaps of several or none
        of the former subtasks."""
        if states:
            raise ProgramError(f"{type(self).__name__} keeps state of its writers, but has no restore_writer().")
        return self.create_writer(context)

    def create_committer(self) -> Committer | None:
        """Return None when ``write`` is all there is: then the sink is at-least-once."""
        return None

    @final
    def to_spec(self, type_info: TypeInformation | None = None) -> OperatorSpec:
        return CommittingSinkSpec(self)


@final
@dataclass(frozen=True)
class CommittingSinkSpec(OperatorSpec):
    sink: Any

    def build(self) -> Operator:
        return _CommittingSinkOperator(self.sink)

    def describe(self) -> str:
        return f"{type(self.sink).__name__}, interpreted"


@final
class _CommittingSinkOperator(Operator):
    """States: "WriterState" has what writers gave; "Committables" has (checkpoint id, committable), those of the
    checkpoint itself included. What comes back from a checkpoint was prepared for it, so it is committed at once."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._writer: SinkWriter | None = None
        self._committer: Committer | None = None
        #: (checkpoint id, committable), oldest first; NO_CHECKPOINT while no barrier has passed
        self._pending: list[tuple[int, Any]] = []
        #: given back by the committer
        self._again: list[Any] = []
        self._retry_ms = _RETRY_FIRST_MS
        self._retry_at_ms: int | None = None
        self._is_finished = False

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        states = ctx.state.operator_states()
        self._writer_states = states.get_list_state(ListStateDescriptor("WriterState"))
        self._committables = states.get_list_state(ListStateDescriptor("Committables"))
        writer_states = self._writer_states.get()
        self._context = SinkContext(ctx.runtime_context, len(writer_states))
        self._committer = self._guarded(self._sink.create_committer)
        restored = [committable for _, committable in self._committables.get()]
        if restored:
            self._commit(restored)
        if ctx.state.is_restored:
            self._writer = self._guarded(lambda: self._sink.restore_writer(self._context, writer_states))
        else:
            self._writer = self._guarded(lambda: self._sink.create_writer(self._context))

    def process_batch(self, input_index: int, batch: Batch) -> None:
        assert self._writer is not None
        rows = rows_of(batch)
        stamps = rows.timestamps_ms
        write, context = self._writer.write, self._context
        row = NO_RECORD
        try:
            for index, row in enumerate(rows.rows):
                if stamps is not None:
                    context = SinkContext(self._context.runtime_context, self._context.restored_states, stamps[index])
                write(row, context)
        except BaseException as error:
            raise user_error(error, operator_name=self.ctx.operator_name, record=row) from error

    def snapshot_state(self, checkpoint_id: int) -> None:
        if not self._is_finished:
            self._prepare(end_of_input=False)
            writer = self._writer
            assert writer is not None
            self._writer_states.update(self._guarded(lambda: writer.snapshot_state(checkpoint_id)))
        self._pending = [(number or checkpoint_id, committable) for number, committable in self._pending]
        again = [(checkpoint_id, committable) for committable in self._again]
        self._committables.update([*again, *self._pending])

    def _prepare(self, *, end_of_input: bool) -> None:
        writer = self._writer
        assert writer is not None
        self._guarded(lambda: writer.flush(end_of_input))
        prepared = self._guarded(writer.prepare_commit)
        self._pending += [(NO_CHECKPOINT, committable) for committable in prepared or ()]

    def notify_checkpoint_complete(self, checkpoint_id: int) -> None:
        ready = [c for number, c in self._pending if NO_CHECKPOINT < number <= checkpoint_id]
        self._pending = [(n, c) for n, c in self._pending if not NO_CHECKPOINT < n <= checkpoint_id]
        if ready:
            self._commit(ready)

    def _commit(self, committables: list[Any]) -> None:
        committer = self._committer
        if committer is None:
            raise ProgramError(
                f"{type(self._sink).__name__}: its writer's prepare_commit() returned committables, but "
                "create_committer() returned None. Return a Committer."
            )
        left = list(self._guarded(lambda: committer.commit(committables)) or ())
        self._again += left
        if not self._again:
            self._retry_ms, self._retry_at_ms = _RETRY_FIRST_MS, None
        elif self._retry_at_ms is None:
            _log.warning(
                "sink %r: %d of %d committables are to be committed later; retrying in %d ms",
                self.ctx.operator_name,
                len(left),
                len(committables),
                self._retry_ms,
            )
            self._retry_at_ms = self.ctx.clock.now_ms() + self._retry_ms
            self._retry_ms = min(2 * self._retry_ms, _RETRY_MAX_MS)

    def next_timer_ms(self) -> int | None:
        return self._retry_at_ms

    def on_timer(self, now_ms: int) -> None:
        if self._retry_at_ms is not None and now_ms >= self._retry_at_ms:
            again, self._again, self._retry_at_ms = self._again, [], None
            self._commit(again)

    def finish(self) -> None:
        self._prepare(end_of_input=True)
        self._is_finished = True
        self._writer_states.clear()

    def release_end(self) -> None:
        ready, self._pending = [committable for _, committable in self._pending], []
        if ready:
            self._commit(ready)

    def holds_end(self) -> bool:
        return bool(self._pending or self._again)

    def close(self) -> None:
        writer, self._writer = self._writer, None
        committer, self._committer = self._committer, None
        try:
            if writer is not None:
                self._guarded(writer.close)
        finally:
            if committer is not None:
                self._guarded(committer.close)

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except BaseException as error:
            raise user_error(error, operator_name=self.ctx.operator_name, record=NO_RECORD) from error
