"""The operator contract: what runs in a chain, who calls it, and what it may call.

Everything here is called by the task's mailbox thread, never concurrently. One call handles one batch; an operator
emits by calling its Output, which hands the batch straight to the next operator of the chain or to an exit.

Life of an operator: ``OperatorSpec.build()`` → ``open`` → (``process_batch`` | ``process_watermark`` |
``handle_event`` | ``on_timer``)* → ``end_input`` once per input → ``finish`` → (until ``holds_end`` is False) →
``close``. ``close`` is always called, also after a failure or a cancel; it must not emit.

Configuration (``OperatorSpec``: immutable, pickled with cloudpickle) is not logic (``Operator``), which is not state.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from engine.core.clock import Clock
from engine.core.ids import JobID, OperatorID
from engine.core.late_dataclass import dataclass
from engine.core.records import Batch, ColumnBatch, RowBatch
from engine.operators.functions import RuntimeContext
from engine.state.parts import OperatorStateRegistry

if TYPE_CHECKING:
    from engine.operators.row_columns import RowColumns

__all__ = [
    "BATCH_ONLY",
    "CoordinatorContext",
    "CoordinatorSpec",
    "JobOutcome",
    "Operator",
    "OperatorContext",
    "OperatorCoordinator",
    "OperatorSpec",
    "Output",
    "PollResult",
    "SourceOperator",
    "batch_for",
]


class Output(Protocol):
    """Where an operator's results go. Never blocks: backpressure is applied by not stepping the task."""

    def emit(self, batch: Batch) -> None:
        """Hand on a batch; empty batches are dropped. The batch must not be changed afterwards."""
        ...

    def emit_side(self, tag: str, batch: Batch) -> None:
        """Hand a batch to the side output ``tag``; dropped when nobody listens to it."""
        ...

    def emit_watermark(self, watermark_ms: int) -> None: ...

    def emit_idle(self, idle: bool) -> None:
        """Event time no longer waits for this stream, or does again; a watermark makes it active too."""
        ...

    def emit_superstep_end(self, superstep: int) -> None:
        """Bulk iterations only: all of this superstep's records have been emitted."""
        ...


@dataclass(slots=True)
class OperatorContext:
    """What the runtime gives to ``Operator.open``."""

    runtime_context: RuntimeContext
    operator_id: OperatorID
    operator_name: str
    job_id: JobID
    job_name: str
    #: effective configuration, job over cluster
    config: dict[str, str]
    clock: Clock
    #: private folder on a local disk for spilling; exists
    work_dir: str
    #: bytes of managed memory that this operator may use before it must spill
    memory_bytes: int
    #: sends a picklable engine object to this operator's coordinator in the JobManager; never blocks
    send_event: Callable[[object], None]
    #: thread-safe: makes the task loop call ``poll``/``is_ready`` again soon; for I/O threads of sources
    wake: Callable[[], None]
    #: host name of this TaskManager, for locality of splits
    host: str = "localhost"
    #: objects shared by all subtasks in this slot process, e.g. the feedback queue of an iteration
    slot_shared: dict[str, Any] = field(default_factory=dict)
    #: where the operator registers what checkpoints are to keep, and finds it again
    state: OperatorStateRegistry = field(default_factory=OperatorStateRegistry)


class Operator(abc.ABC):
    """Logic of one subtask of one operator. Subclasses are ``@final``; composition is by chaining."""

    #: Whether columns may come with the kinds of a changelog. An operator that is silent gets such batches as Rows, by
    #: whoever calls it (``batch_for``): it must say that it knows kinds before it can take one that goes for one that
    #: comes.
    takes_kinds: ClassVar[bool] = False
    #: Likewise, whether columns may come whose records are objects of a class (``ColumnBatch.named``).
    takes_objects: ClassVar[bool] = False

    ctx: OperatorContext
    out: Output
    #: Of operators on columns: something came that columns cannot do, and all is done on rows since.
    _is_on_rows = False
    #: Why, "" = what was restored is why.
    _why_on_rows = ""

    def _note_rows(self, why: str) -> None:
        """Rows are about to take over, if they have not yet. The first reason is the one that is told."""
        if not self._is_on_rows and not self._why_on_rows:
            self._why_on_rows = why

    def tier(self, planned: str) -> str:
        """Return how batches are taken up by now, for people. ``planned``: what the spec says of it."""
        if not self._is_on_rows:
            return planned
        return f"on rows: {self._why_on_rows or 'its state was restored from rows or other types'} (planned: {planned})"

    def open(self, ctx: OperatorContext, out: Output) -> None:
        """Called once before anything else. Overriders call ``super().open(ctx, out)`` first."""
        self.ctx = ctx
        self.out = out

    @abc.abstractmethod
    def process_batch(self, input_index: int, batch: Batch) -> None:
        """Handle the next batch of an input. The batch is shared with others: do not change it."""

    def process_typed(self, input_index: int, batch: RowBatch, columns: RowColumns) -> None:
        """Handle rows of a declared type, which come instead of columns where they are few. Default: as columns."""
        self.process_batch(input_index, columns.of(batch))

    def process_watermark(self, watermark_ms: int) -> None:
        """Event time has reached ``watermark_ms`` on all inputs. Default: hand it on."""
        self.out.emit_watermark(watermark_ms)

    def advance_watermark(self, watermark_ms: int) -> Generator[None, None, None] | None:
        """As ``process_watermark``, which may make millions of results, in pieces: what is returned is iterated until
        it ends, and others work in between. None = all has been done.

        Whoever iterates goes on with it before any other call that records, time or ends make; only snapshots, where
        ``can_snapshot_between`` says so, and notices of checkpoints come in between. It may be given up for ``close``.
        Source: Flink's InternalTimeServiceManager.tryAdvanceWatermark.
        """
        self.process_watermark(watermark_ms)
        return None

    def can_snapshot_between(self) -> bool:
        """Whether state tells, now that ``advance_watermark`` is between two pieces, what has not been emitted yet: a
        restored operator emits just that when the watermark comes again."""
        return False

    def process_idle(self, idle: bool) -> None:
        """All inputs have gone idle, or one has come back. Default: hand it on."""
        self.out.emit_idle(idle)

    def end_input(self, input_index: int) -> None:
        """No batch of this input follows."""

    def end_superstep(self, superstep: int) -> None:
        """All dynamic inputs have delivered this superstep. Emit what belongs to it, forget it, then hand it on."""
        self.out.emit_superstep_end(superstep)

    def finish(self) -> None:
        """All inputs have ended: emit what is left. Not called when the task fails or is cancelled."""

    def holds_end(self) -> bool:
        """Asked after ``finish``: True = the task stays RUNNING and takes part in checkpoints until this is False, e.g.
        because what was written last can be committed only when a checkpoint has completed. Must be cheap."""
        return False

    def release_end(self) -> None:
        """Called after ``finish`` while ``holds_end``, when no checkpoint will come any more (there are none, or the
        job stops with a savepoint): do now what waited for one."""

    def close(self) -> None:
        """Give back files, threads and sockets. Called once, always."""

    def is_ready(self) -> bool:
        """False = do not step this task now (e.g. a collect sink whose client is slow). Must be cheap."""
        return True

    def handle_event(self, event: object) -> None:
        """An object from this operator's coordinator."""

    def next_timer_ms(self) -> int | None:
        """Wall-clock time at which ``on_timer`` wants to be called, or None."""
        return None

    def on_timer(self, now_ms: int) -> None:
        """The time asked for by ``next_timer_ms`` has come."""

    # Checkpoints. The order at a barrier: ``prepare_snapshot`` of all operators of the chain, head to tail; the barrier
    # goes out; ``snapshot_state`` and ``prepare_commit`` of all; the parts in ``ctx.state`` are captured.

    def prepare_snapshot(self, checkpoint_id: int) -> None:
        """The barrier has come: emit what is held back (partial results, open batches); it goes on behind that."""

    def snapshot_state(self, checkpoint_id: int) -> None:
        """Bring what is registered in ``ctx.state`` up to date (e.g. the reading position). Must not emit. Overriders
        that run functions of the program call super: a function may be a CheckpointedFunction."""
        for bring_up_to_date in self.ctx.state.before_snapshot:
            bring_up_to_date(checkpoint_id)

    def prepare_commit(self, checkpoint_id: int) -> object | None:
        """Return what the operator's coordinator is to make visible when the checkpoint has completed, as a picklable
        engine object: everything that is finished and not yet known to be committed, so what an aborted checkpoint had
        comes again in the next. Committing is idempotent."""
        return None

    def notify_checkpoint_complete(self, checkpoint_id: int) -> None:
        """The checkpoint is durable and what it offered is committed. May come late or, when a later one completed, not
        at all; must not emit."""

    def notify_checkpoint_aborted(self, checkpoint_id: int) -> None:
        """The checkpoint will never complete."""

    def report(self) -> object | None:
        """Return what ``OperatorCoordinator.resume`` needs and no checkpoint has: of what was sent and received since.
        Called when the JobManager is gone and another one takes over; what was under way between the two is lost.
        Picklable, of engine classes and plain values."""
        return None


def batch_for(operator: Operator, batch: Batch) -> Batch:
    """Return a batch as the operator can take it: where that knows no kinds, Rows in place of columns with kinds; where
    it knows no objects of classes, these in place of their columns."""
    if type(batch) is ColumnBatch:
        if batch.kinds is not None and not operator.takes_kinds:
            return batch.to_rows()
        if batch.named.__class__ is not bool and not operator.takes_objects:
            return batch.to_rows()
    return batch


class PollResult(enum.Enum):
    MORE = "more"  #: something was emitted or may be at once: poll again soon
    IDLE = "idle"  #: nothing now; ``ctx.wake``, an event or a timer will bring more
    END = "end"  #: the input is exhausted; never poll again


class SourceOperator(Operator):
    """Head of a chain without inputs. The task polls it when its outputs have room."""

    def process_batch(self, input_index: int, batch: Batch) -> None:
        raise AssertionError("a source has no input")

    @abc.abstractmethod
    def poll(self, rows_max: int) -> PollResult:
        """Emit at most about ``rows_max`` records and return; must not block for longer than a few ms."""

    def cancel(self) -> None:
        """The job is being cancelled (or stopped): stop reading. ``close`` follows."""


#: ``OperatorSpec.not_checkpointed`` of batch operators.
BATCH_ONLY: Final = (
    "it belongs to a batch job: what it holds is made again from its input, and batch jobs take no checkpoints"
)


class OperatorSpec(abc.ABC):
    """Immutable description of an operator, made by the API, pickled into the JobGraph."""

    #: How many logical inputs the operator has; 0 for sources.
    num_inputs: int = 1
    #: Inputs that must end before any other is read (build side of a hash join, broadcast sets), lowest first.
    inputs_first: tuple[int, ...] = ()
    #: True when nothing is emitted before all input has ended: a natural cut between stages.
    blocks: bool = False
    #: Why the operator cannot take part in checkpoints, though it keeps something; "" = it takes part. Jobs with such
    #: an operator decline checkpoints with this sentence instead of losing state.
    not_checkpointed: str = ""
    #: Modules that a process which forks slots imports before it does: worth it where each slot would pay much.
    preload: tuple[str, ...] = ()

    @abc.abstractmethod
    def build(self) -> Operator: ...

    def coordinator(self) -> CoordinatorSpec | None:
        """What runs beside the JobMaster for this operator; must be built of engine classes and plain values only,
        so that the JobManager never loads user code."""
        return None

    def describe(self) -> str:
        """One short phrase for plans and explain, e.g. 'vectorised' or 'interpreted (untyped lambda)'."""
        return ""


class JobOutcome(enum.Enum):
    FINISHED = "finished"
    FAILED = "failed"
    CANCELED = "canceled"


@dataclass(slots=True)
class CoordinatorContext:
    parallelism: int
    job_id: JobID
    config: dict[str, str]
    #: sends an engine object to a subtask's operator (``Operator.handle_event``); thread-safe
    send_event: Callable[[int, object], None]
    #: Rises with each restart of the job; coordinators are made anew then. Subtasks' attempts have it at least.
    attempt_number: int = 0
    #: the same as in the subtasks' OperatorContext: marks what operator and coordinator leave in shared places
    operator_id: OperatorID | None = None
    #: the checkpoint whose state ``restore`` was given, 0 = none
    restored_from: int = 0


class OperatorCoordinator:
    """Runs in the JobManager, one per operator that wants one, in the job's own I/O thread: it may block on a file
    system, and no two calls overlap. Examples: split enumerators, commit of file sinks, collect sinks, iterations.

    Any exception fails the job with that error. One of ``start`` whose domain is USER and that never gets better
    (``Retry.NEVER``) is final, after others the job may be restarted as its restart strategy says.
    """

    def start(self, ctx: CoordinatorContext) -> None:
        """Before any task is deployed. Check paths, list input. Overriders call super first."""
        self.ctx = ctx

    def resume(self, ctx: CoordinatorContext, reports: Mapping[int, object]) -> None:
        """Called instead of ``start`` where the spec says ``can_resume``: the JobManager that began the attempt is
        gone, its tasks run on. ``restore`` was called before if the job has a checkpoint; nothing has become durable
        since. ``reports``: by subtask, of ``Operator.report``; none of the subtasks has come to its end.

        Must leave alone what running tasks work with. An exception means that it cannot be: then all tasks are
        restarted from the checkpoint, with coordinators of their own; this one hears nothing more.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot go on with running tasks.")

    def handle_event(self, subtask_index: int, attempt_number: int, event: object) -> None:
        """An object that a subtask sent with ``ctx.send_event``."""

    def handle_request(self, request: object) -> object:
        """A client asks (collect sink). Returns the answer."""
        raise NotImplementedError

    def subtask_finished(self, subtask_index: int) -> None:
        """The subtask reached FINISHED."""

    def restore(self, state: bytes, committables: Mapping[int, object]) -> None:
        """Called before ``start`` when the job goes on from a checkpoint. ``state``: of ``snapshot``, b"" if it had
        none; ``committables``: by subtask, what ``Operator.prepare_commit`` gave it; perhaps committed already."""

    def snapshot(self, checkpoint_id: int) -> bytes:
        """Return the coordinator's state. Events that were sent to subtasks before are part of the checkpoint, those
        sent afterwards reach the subtasks behind its barrier."""
        return b""

    def checkpoint_completed(self, checkpoint_id: int, committables: Mapping[int, object]) -> None:
        """The checkpoint is durable: commit. An exception fails the job, which restarts from this checkpoint or a later
        one and gets them again by ``restore``: subtasks offer them until all coordinators have returned from here."""

    def checkpoint_aborted(self, checkpoint_id: int) -> None:
        """The checkpoint will never complete."""

    def check_end(self, outcome: JobOutcome) -> None:
        """Called for all coordinators of the job before ``job_ended(outcome)`` of any, unless it FAILED: raise now what
        would make that fail, so that no other's output is shown either. Changes nothing that others see."""

    def published(self) -> Sequence[str]:
        """Return what ``job_ended`` has shown so far; told to the user when it, or that of another one, fails."""
        return ()

    def job_ended(self, outcome: JobOutcome) -> None:
        """All tasks are done and gone: commit (FINISHED) or clean up. The job's status changes after this returns.

        FAILED may be followed by another attempt, with coordinators of its own.
        """

    def given_up(self, outcome: JobOutcome) -> None:
        """After ``job_ended(FAILED)``: no attempt follows, for the job has FAILED for good, or was CANCELED while it
        waited for its next attempt. Clean up what only that one would have wanted; savepoints and retained checkpoints
        may still be restored. Also called when ``start`` has raised."""

    def savepoint_taken(self, checkpoint_id: int, committables: Mapping[int, object]) -> None:
        """A savepoint is about to become durable, by which nothing will be committed: see to it that what it names
        stays, whatever becomes of this job. ``checkpoint_aborted`` follows when it does not become durable."""


class CoordinatorSpec(abc.ABC):
    """Picklable, engine classes and plain values only."""

    #: Whether its coordinator has ``resume``: what it knows is in checkpoints, or can be told by its subtasks.
    can_resume: bool = False

    @abc.abstractmethod
    def create(self) -> OperatorCoordinator: ...
