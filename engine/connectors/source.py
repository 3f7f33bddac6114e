"""The source contract: splits, the enumerator that hands them out (in the JobManager), readers (in the tasks).

A ``Source`` is configuration. ``SourceSpec`` turns it into a chain's head operator plus a coordinator; sources that
need no splits (socket, datagen without a bound) implement an OperatorSpec of their own instead.
"""

from __future__ import annotations

import abc
import enum
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, final, runtime_checkable

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
]


class Boundedness(enum.Enum):
    BOUNDED = "bounded"
    CONTINUOUS_UNBOUNDED = "unbounded"


@runtime_checkable
class Split(Protocol):
    """A part of the input that one reader reads alone. Picklable, engine classes and plain values only."""

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


class SourceReader(abc.ABC):
    """Reads one split after the other, in the task's thread; blocking I/O belongs in a thread of its own."""

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


# --- glue ------------------------------------------------------------------------------------------------------------


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

    def snapshot(self, checkpoint_id: int) -> bytes:
        return dump_plain(self._enumerator.snapshot())

    def handle_event(self, subtask_index: int, attempt_number: int, event: object) -> None:
        assert isinstance(event, RequestSplit), event
        split = self._enumerator.next_split(subtask_index, event.host)
        self.ctx.send_event(subtask_index, NoMoreSplits() if split is None else SplitAssigned(split))


#: The name of the list state with the splits that a reader has not read to their end. Source: Flink's SourceOperator.
SPLITS_STATE: Final = "SourceReaderState"


@final
class _SourceOperator(SourceOperator):
    def __init__(self, source: Source) -> None:
        self._reader = source.create_reader()
        self._request_pending = False
        self._no_more_splits = False
        #: Given by a checkpoint, not yet by this subtask to its reader, which takes one after the other.
        self._restored: deque[Any] = deque()

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._splits = ctx.state.operator_states().get_list_state(ListStateDescriptor(SPLITS_STATE))
        self._restored.extend(self._splits.get())
        self._reader.open(ctx)

    def poll(self, rows_max: int) -> PollResult:
        reader = self._reader
        self._want_split()
        batch = reader.poll(rows_max)
        if batch is not None:
            self.out.emit(batch)
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
            self._reader.add_split(self._restored.popleft())
            return True
        if not (self._request_pending or self._no_more_splits) and self._reader.wants_split():
            self._request_pending = True
            self.ctx.send_event(RequestSplit(self.ctx.host))
        return False

    def snapshot_state(self, checkpoint_id: int) -> None:
        self._splits.update([*self._reader.snapshot(), *self._restored])

    def handle_event(self, event: object) -> None:
        match event:
            case SplitAssigned(split):
                self._request_pending = False
                self._reader.add_split(split)
            case NoMoreSplits():
                self._request_pending = False
                self._no_more_splits = True
            case _:
                raise AssertionError(event)
        self.ctx.wake()

    def close(self) -> None:
        self._reader.close()
