"""The source contract: splits, the enumerator that hands them out (in the JobManager), readers (in the tasks).

A ``Source`` is configuration. ``SourceSpec`` turns it into a chain's head operator plus a coordinator; sources that
need no splits (socket, datagen without a bound) implement an OperatorSpec of their own instead. Not here: event time by
split (``stamped_source``), which hears of splits through ``SplitOutput``.
"""

from __future__ import annotations

import abc
import enum
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, Protocol, TypeVar, final, runtime_checkable

from engine.connectors.sink import takes_checkpoints
from engine.core.errors import ExternalError
from engine.core.late_dataclass import dataclass
from engine.core.plain_pickle import dump_plain, load_plain
from engine.core.records import Batch
from engine.operators.base import (
    CoordinatorContext,
    CoordinatorSpec,
    OperatorContext,
    OperatorCoordinator,
    OperatorSpec,
    Output,
    PollResult,
    SourceOperator,
)
from engine.state.descriptors import ListStateDescriptor

__all__ = [
    "Boundedness",
    "NoMoreSplits",
    "RequestSplit",
    "Source",
    "SourceReader",
    "SourceSpec",
    "Split",
    "SplitAssigned",
    "SplitEnumerator",
    "SplitOrder",
    "SplitOutput",
    "SplitReadingOperator",
    "without_assigned",
]

SplitT = TypeVar("SplitT", bound="Split")


class Boundedness(enum.Enum):
    BOUNDED = "bounded"
    CONTINUOUS_UNBOUNDED = "unbounded"


@runtime_checkable
class Split(Protocol):
    """A part of the input that one reader reads alone. Picklable, engine classes and plain values only. One whose id is
    empty has no records: it only makes the reader ask again (monitoring)."""

    @property
    def split_id(self) -> str: ...


class SplitEnumerator(abc.ABC):
    """Finds and hands out splits, in the JobManager. May block; one thread."""

    @abc.abstractmethod
    def start(self, parallelism: int) -> None:
        """Find the splits. Raises InputError when the input is missing or unreadable."""

    @abc.abstractmethod
    def next_split(self, subtask_index: int, host: str) -> Split | None:
        """Return the next split for a reader on ``host``, or None when there will be none for it."""

    def snapshot(self) -> object:
        """Return what ``restore`` needs to hand out the splits that were not handed out yet, and no other; picklable,
        of engine classes and plain values."""
        raise NotImplementedError(f"{type(self).__name__} cannot take part in checkpoints.")

    def restore(self, state: object, parallelism: int) -> None:
        """Called instead of ``start`` when the job goes on from a checkpoint."""
        raise NotImplementedError(f"{type(self).__name__} cannot take part in checkpoints.")

    def assigned(self, splits: Collection[Split]) -> None:
        """Called after ``start`` or ``restore`` when the readers run on though the JobManager is another one: its
        enumerator, in the same state then, has handed these out since. Raise what you like if you cannot tell for
        certain what is left: then readers are restarted from the checkpoint."""
        raise NotImplementedError(f"{type(self).__name__} cannot go on with running readers.")


def without_assigned(splits: Iterable[SplitT], assigned: Collection[Split]) -> list[SplitT]:
    """Return the splits that were not assigned, in their order. Raises: ExternalError when one that was is not among
    them as it is: then they were cut, or found, in another way."""
    left = {split.split_id: split for split in splits}
    for split in assigned:
        if left.pop(split.split_id, None) != split:
            raise ExternalError(f"Split {split.split_id} was handed out, but it is not known here as it is.")
    return list(left.values())


class SplitOrder(enum.Enum):
    """What a reader says of its splits, so that each can have a watermark of its own."""

    UNTOLD = "untold"  #: nothing: all that it reads has one watermark
    ONE_BY_ONE = "one by one"  #: it reads one to its end, then the next, in the order in which they were added
    TOGETHER = "together"  #: it reads all that it has at the same time


class SourceReader(abc.ABC):
    """Reads splits in the task's thread, one after the other or all together; blocking I/O belongs in a thread of its
    own."""

    #: Unless it is UNTOLD, the reader has ``split_of_batch`` and calls ``end_split``.
    split_order: SplitOrder = SplitOrder.UNTOLD
    _ended: tuple[str, ...] = ()

    def open(self, ctx: OperatorContext) -> None:
        self.ctx = ctx

    @abc.abstractmethod
    def add_split(self, split: Split) -> None: ...

    @abc.abstractmethod
    def poll(self, rows_max: int) -> Batch | None:
        """Return the next batch of the current split, or None when nothing is there right now."""

    @abc.abstractmethod
    def wants_split(self) -> bool:
        """True when the current split (if any) is, or soon will be, read to its end: ask for another one."""

    @abc.abstractmethod
    def is_drained(self) -> bool:
        """True when every split that was added has been read and emitted."""

    def split_of_batch(self) -> str:
        """Return the id of the split that the batch came from which ``poll`` returned last; a batch is of one split."""
        raise NotImplementedError(f"{type(self).__name__}.split_order is {self.split_order}, but it tells no split.")

    def end_split(self, split_id: str) -> None:
        """Note that ``poll`` has returned, or is about to return, the last record of this split. For readers alone."""
        self._ended += (split_id,)

    def take_ended(self) -> Collection[str]:
        """Return the ids of splits whose last record ``poll`` has returned since this was called last."""
        ended, self._ended = self._ended, ()
        return ended

    def pause_splits(self, split_ids: frozenset[str]) -> bool:
        """Return no record of these splits, and again those of all others, until this is called again; they are too far
        ahead of other splits (watermark alignment). Asked only of readers that read splits TOGETHER. Return False if
        the reader cannot do it."""
        return False

    def snapshot(self) -> list[Split]:
        """Return the splits that are not read to their end, each so that reading it anew goes on behind the last record
        that ``poll`` returned."""
        raise NotImplementedError(f"{type(self).__name__} cannot take part in checkpoints.")

    def close(self) -> None:
        pass


class Source(abc.ABC):
    """Configuration of an input. Immutable and picklable."""

    boundedness: Boundedness = Boundedness.BOUNDED

    @abc.abstractmethod
    def create_enumerator(self) -> SplitEnumerator: ...

    @abc.abstractmethod
    def create_reader(self) -> SourceReader: ...

    def without_user_code(self) -> Source:
        """Return what makes the same enumerator and can be sent to the JobManager: no functions of the program."""
        return self


# --- events between reader and enumerator -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RequestSplit:
    host: str


@dataclass(frozen=True, slots=True)
class SplitAssigned:
    split: Any


@dataclass(frozen=True, slots=True)
class NoMoreSplits:
    pass


@dataclass(frozen=True, slots=True)
class SplitsReceived:
    """What a reader tells an enumerator that takes over (``Operator.report``)."""

    host: str
    #: it has asked for a split, and has no answer
    is_waiting: bool
    #: (newest checkpoint before, split), at least of those behind the newest completed checkpoint
    received: tuple[tuple[int, Any], ...]


# --- glue ------------------------------------------------------------------------------------------------------------


class SplitOutput(abc.ABC):
    """An Output that wants to know of splits. Each is added, then begun, then gives batches, then ends."""

    @abc.abstractmethod
    def add_split(self, split_id: str) -> None:
        """The split belongs to this subtask, and will be read here to its end."""

    @abc.abstractmethod
    def begin_split(self, split_id: str) -> None:
        """The reader has got it."""

    @abc.abstractmethod
    def emit_of(self, split_id: str, batch: Batch) -> None: ...

    @abc.abstractmethod
    def end_split(self, split_id: str) -> None: ...


class SplitReadingOperator(SourceOperator):
    """A source operator that tells its splits to a SplitOutput."""

    @property
    @abc.abstractmethod
    def split_order(self) -> SplitOrder: ...

    @abc.abstractmethod
    def pause_splits(self, split_ids: frozenset[str]) -> bool:
        """See SourceReader."""


@final
@dataclass(frozen=True)
class SourceSpec(OperatorSpec):
    """Runs any ``Source``: the operator polls the reader and asks the enumerator for splits one at a time."""

    source: Source
    num_inputs = 0

    def build(self) -> _SourceOperator:
        return _SourceOperator(self.source)

    def coordinator(self) -> CoordinatorSpec:
        return _EnumeratorSpec(self.source.without_user_code())


@final
@dataclass(frozen=True)
class _EnumeratorSpec(CoordinatorSpec):
    source: Source
    can_resume = True

    def create(self) -> OperatorCoordinator:
        return _EnumeratorCoordinator(self.source)


@final
class _EnumeratorCoordinator(OperatorCoordinator):
    """Its state is the enumerator's. A request that came before the snapshot was answered before it, so the split is in
    the reader's state; one that comes later is asked again by the restored reader."""

    def __init__(self, source: Source) -> None:
        self._enumerator = source.create_enumerator()
        self._restored: bytes | None = None

    def restore(self, state: bytes, committables: Mapping[int, object]) -> None:
        # Without a state the checkpoint does not know this source: it begins afresh.
        self._restored = state or None

    def start(self, ctx: CoordinatorContext) -> None:
        super().start(ctx)
        if self._restored is None:
            self._enumerator.start(ctx.parallelism)
        else:
            self._enumerator.restore(load_plain(self._restored), ctx.parallelism)
            self._restored = None

    def resume(self, ctx: CoordinatorContext, reports: Mapping[int, object]) -> None:
        """A split that was sent and not received is handed out once more; what was asked in vain is answered."""
        if len(reports) < ctx.parallelism:
            raise ExternalError("Not all readers have said which splits they have.")
        self.start(ctx)
        waiting: dict[int, str] = {}
        assigned: list[Any] = []
        for subtask, report in sorted(reports.items()):
            assert isinstance(report, SplitsReceived), report
            assigned += [split for since, split in report.received if since >= ctx.restored_from]
            if report.is_waiting:
                waiting[subtask] = report.host
        self._enumerator.assigned(assigned)
        for subtask, host in waiting.items():
            self.handle_event(subtask, ctx.attempt_number, RequestSplit(host))

    def snapshot(self, checkpoint_id: int) -> bytes:
        return dump_plain(self._enumerator.snapshot())

    def handle_event(self, subtask_index: int, attempt_number: int, event: object) -> None:
        assert isinstance(event, RequestSplit), event
        split = self._enumerator.next_split(subtask_index, event.host)
        self.ctx.send_event(subtask_index, NoMoreSplits() if split is None else SplitAssigned(split))


#: The name of the list state with the splits that a reader has not read to their end. Source: Flink's SourceOperator.
SPLITS_STATE: Final = "SourceReaderState"


@final
class _SourceOperator(SplitReadingOperator):
    def __init__(self, source: Source) -> None:
        self._reader = source.create_reader()
        self._split_out: SplitOutput | None = None  #: hears of splits, where somebody wants to
        self._request_pending = False
        self._no_more_splits = False
        #: Given by a checkpoint, not yet by this subtask to its reader, which takes one after the other.
        self._restored: deque[Any] = deque()
        #: (newest checkpoint before, split) of those that no completed checkpoint knows, as far as this task was told
        self._received: list[tuple[int, Any]] = []

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._splits = ctx.state.operator_states().get_list_state(ListStateDescriptor(SPLITS_STATE))
        self._restored.extend(self._splits.get())
        self._newest_checkpoint = ctx.state.restored_from
        self._keeps_received = takes_checkpoints(ctx.config)  # else nobody takes over, and nobody says what is known
        self._reader.open(ctx)
        if isinstance(out, SplitOutput) and self._reader.split_order is not SplitOrder.UNTOLD:
            self._split_out = out
            for split in self._restored:
                out.add_split(split.split_id)

    @property
    def split_order(self) -> SplitOrder:
        return self._reader.split_order

    def pause_splits(self, split_ids: frozenset[str]) -> bool:
        return self._reader.pause_splits(split_ids)

    def poll(self, rows_max: int) -> PollResult:
        reader = self._reader
        self._want_split()
        batch = reader.poll(rows_max)
        split_out = self._split_out
        if split_out is not None:
            if batch is not None:
                split_out.emit_of(reader.split_of_batch(), batch)
            # Behind the batch: it may be of one that has ended with it.
            for split_id in reader.take_ended():
                split_out.end_split(split_id)
        elif batch is not None:
            self.out.emit(batch)
        if batch is not None:
            return PollResult.MORE
        # Polling may have found the end of the split, which nobody else will tell of.
        if self._want_split():
            return PollResult.MORE
        if self._no_more_splits and not self._restored and reader.is_drained():
            return PollResult.END
        return PollResult.IDLE

    def _want_split(self) -> bool:
        """Give the reader a restored split, or ask for one, if it wants it; return whether it was given one."""
        if self._restored:
            if not self._reader.wants_split():
                return False
            self._add_split(self._restored.popleft())
            return True
        if not (self._request_pending or self._no_more_splits) and self._reader.wants_split():
            self._request_pending = True
            self.ctx.send_event(RequestSplit(self.ctx.host))
        return False

    def _add_split(self, split: Split) -> None:
        if self._split_out is not None and split.split_id:
            self._split_out.add_split(split.split_id)
            self._split_out.begin_split(split.split_id)
        self._reader.add_split(split)

    def snapshot_state(self, checkpoint_id: int) -> None:
        super().snapshot_state(checkpoint_id)
        self._splits.update([*self._reader.snapshot(), *self._restored])
        self._newest_checkpoint = checkpoint_id

    def notify_checkpoint_complete(self, checkpoint_id: int) -> None:
        self._received = [(since, split) for since, split in self._received if since >= checkpoint_id]

    def report(self) -> SplitsReceived:
        return SplitsReceived(self.ctx.host, self._request_pending, tuple(self._received))

    def handle_event(self, event: object) -> None:
        match event:
            case SplitAssigned(split):
                self._request_pending = False
                if split.split_id and self._keeps_received:
                    self._received.append((self._newest_checkpoint, split))
                self._add_split(split)
            case NoMoreSplits():
                self._request_pending = False
                self._no_more_splits = True
            case _:
                raise AssertionError(event)
        self.ctx.wake()

    def close(self) -> None:
        self._reader.close()
