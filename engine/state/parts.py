"""What an operator's state is made of, as the runtime sees it: named parts that can be snapshotted and restored.

An operator registers its parts in ``open`` with ``ctx.state`` (keyed state, timers, a table of its own, lists of
operator state); a part is restored at once when it is registered. At a checkpoint the runtime goes through the
registered parts; the operator itself only has the hooks of ``operators/base``. Not here: files
(``checkpoint/storage``).

Where a snapshot is made: small parts in the task's thread. Large ones in a forked child of the slot process, which sees
the state as it was at the fork (so the task stands still for the fork only) and whose changes nobody sees. So what
``snapshot`` returns must depend on nothing but memory, and it must start no thread. A small increment of a large part
is noted in the task's thread and written by another (``NotingPart``).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, final, runtime_checkable

from engine.core.errors import ProgramError
from engine.state.key_types import KeyTypes
from engine.state.noted import NotedDelta
from engine.state.operator_state import OperatorStateSnapshot, OperatorStateStore

__all__ = [
    "ChunkSource",
    "DeltaPart",
    "FilePart",
    "HostedPart",
    "KeyedPart",
    "LatePart",
    "LazyPart",
    "LyingDown",
    "NotingPart",
    "OperatorStateRegistry",
    "RestoredState",
]


@runtime_checkable
class KeyedPart(Protocol):
    """State cut by key group: a chunk is what the part holds for one key group, as bytes of its own format."""

    def num_entries(self) -> int:
        """About how many entries it holds: decides where the snapshot is made. Must be cheap."""
        ...

    def snapshot(self, key_groups: Iterable[int]) -> Mapping[int, bytes]:
        """Return the chunks of these key groups as of now; empty ones are left out."""
        ...

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        """Take up chunks before the first record. Called once for each layer, oldest first, and for the layers of
        several former subtasks one after the other; their key groups are disjoint."""
        ...


@runtime_checkable
class LazyPart(KeyedPart, Protocol):
    """A keyed part that may be large: in the forked child its chunks are made and written one by one."""

    def lazy_snapshot(self, key_groups: Iterable[int]) -> Mapping[int, bytes]:
        """As ``snapshot``, but a chunk is made when it is asked for: the state must not change until all were."""
        ...


@runtime_checkable
class DeltaPart(KeyedPart, Protocol):
    """A keyed part that knows what changed. Epoch n is the time between the barriers n-1 and n."""

    def snapshot_delta(self, key_groups: Iterable[int], since_checkpoint_id: int) -> Mapping[int, bytes] | None:
        """Return chunks with what changed since the barrier of that checkpoint, removals included; ``restore`` takes
        them after the full chunks. None: cannot tell (too old, too much), make a full one. May run in the child."""
        ...

    def begin_epoch(self, checkpoint_id: int) -> None:
        """The barrier of this checkpoint has passed: what changes from now on comes after it."""
        ...

    def forget_epochs(self, until_checkpoint_id: int, kept_ids: Container[int] = ()) -> None:
        """No increment will build on a checkpoint before this one, but perhaps on these."""
        ...

    def num_changed(self, since_checkpoint_id: int, at_most: int) -> int | None:
        """Return about how many entries ``snapshot_delta`` would have; None = not known, or more than that."""
        ...


@runtime_checkable
class NotingPart(DeltaPart, Protocol):
    """A delta part that can note at the barrier what changed, so that an increment of few entries needs no child."""

    def note_delta(self, key_groups: Iterable[int], since_checkpoint_id: int, entries_max: int) -> NotedDelta | None:
        """As ``snapshot_delta`` in two steps: what changed is looked up now, in the time that ``entries_max`` entries
        take (half a microsecond each), and becomes chunks in another thread, whatever the task changes meanwhile. None:
        cannot tell, more than that, or values that could be changed in place."""
        ...


class LyingDown(Protocol):
    """Files that are on their way into a folder."""

    def finish(self) -> None:
        """Wait until they are there; in an I/O thread. Raises: ExternalError, OSError."""
        ...

    def abandon(self) -> None:
        """Nobody wants them any more; does nothing when they are there."""
        ...


@runtime_checkable
class FilePart(Protocol):
    """A part that keeps itself in files of its own format, e.g. RocksDB; in savepoints it gives chunks like the others,
    in the format of ``heap_backend``."""

    #: e.g. "rocksdb"
    format: str

    def num_entries(self) -> int: ...

    def snapshot(self, key_groups: Iterable[int]) -> Iterator[tuple[int, bytes]]:
        """Yield the canonical chunks one by one (they need not fit in memory together); runs in an I/O thread on the
        state as of ``freeze_rows``, or as of now when that was not called since the last time."""
        ...

    def freeze(self, folder: str) -> LyingDown:
        """Begin to lay the state as of now into a new local folder (hard links): cheap. A file's name and size identify
        its content for good, except for those that ``is_mutable`` says."""
        ...

    def freeze_rows(self) -> None:
        """Remember the state as of now for ``snapshot``, without files."""
        ...

    def is_mutable(self, file_name: str) -> bool:
        """Whether a file of this name must be written again with every checkpoint (e.g. CURRENT, MANIFEST)."""
        ...

    def restore(self, chunks: Mapping[int, bytes]) -> None: ...

    def restore_files(self, folder: str, key_groups: range) -> None:
        """Take up these key groups from a folder with the files of one former subtask; the folder is the part's now."""
        ...


@runtime_checkable
class HostedPart(Protocol):
    """A keyed part whose rows lie in the files of another one, which the operator registers before: a checkpoint of
    files has them, and they are back when the host is. In savepoints it gives chunks of its own."""

    @property
    def host(self) -> FilePart: ...

    def num_entries(self) -> int: ...

    def snapshot(self, key_groups: Iterable[int]) -> Iterator[tuple[int, bytes]]:
        """As of a ``FilePart``."""
        ...

    def freeze_rows(self) -> None:
        """As of a ``FilePart``."""
        ...

    def restore(self, chunks: Mapping[int, bytes]) -> None: ...


class ChunkSource(Protocol):
    """Chunks of a restored part that are read when they are asked for."""

    @property
    def key_groups(self) -> Sequence[int]: ...

    def peek(self) -> Iterator[tuple[int, bytes]]:
        """Yield the beginnings of all chunks with their key groups, oldest layer first; they may be damaged."""
        ...

    def read(self, key_group: int) -> Iterator[bytes]:
        """Yield the chunks of a key group, oldest layer first. Raises: CorruptStateError."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class LatePart(KeyedPart, Protocol):
    """A part that can be restored while the task is processing. It sees to it itself that nobody notices."""

    def restore_later(self, source: ChunkSource) -> bool:
        """Instead of ``restore``: take the chunks up when they are needed. False: at once, please."""
        ...

    def restore_some(self) -> bool:
        """Take up some more, in some milliseconds; return whether more is left."""
        ...

    def restore_rest(self) -> None:
        """Take up all that is left: before each snapshot, as a child may not do that."""
        ...


class RestoredState(Protocol):
    """What a checkpoint holds for one operator in one subtask; read when asked for."""

    def keyed_layers(self, part: str) -> Iterator[Mapping[int, bytes]]:
        """Chunks of the subtask's key groups, layer by layer."""
        ...

    def keyed_later(self, part: str) -> ChunkSource | None:
        """The same, read when it is asked for; None where that is not possible or not worth it."""
        ...

    def keyed_folders(self, part: str, format: str) -> Iterator[tuple[str, range]]:
        """Downloaded files of a FilePart: local folder and the key groups to take from it."""
        ...

    def lists(self) -> OperatorStateSnapshot | None: ...

    def part_names(self) -> Sequence[str]: ...

    @property
    def watched_as(self) -> str:
        """How messages name the operator if its keys are to be watched (``key_types``); "" = they are not."""
        ...

    @property
    def told_as(self) -> str:
        """How messages name the operator, with its uid, if another job's state is restored; else ""."""
        ...


@final
class OperatorStateRegistry:
    """The parts of one operator in one subtask. ``restored``: None when the job starts afresh."""

    def __init__(self, restored: RestoredState | None = None) -> None:
        self._restored = restored
        self.restored_from = 0  #: the checkpoint that the task starts from, also if it knows nothing of the operator
        self.keyed: dict[str, KeyedPart | FilePart | HostedPart] = {}
        #: parts of which something may not have been taken up yet
        self.late: list[LatePart] = []
        self.lists: OperatorStateStore | None = None
        #: Called with the checkpoint's number before the parts are captured.
        self.before_snapshot: list[Callable[[int], None]] = []

    @property
    def is_restored(self) -> bool:
        """The checkpoint that the job goes on from knows this operator, whether or not it has state for this subtask: a
        source that finds none has been read to its end by then. A new operator of a restored job starts afresh."""
        return self._restored is not None

    @property
    def told_as(self) -> str:
        """How messages name the operator, with its uid, if another job's state was restored, whose program may have
        been another version; else ""."""
        return "" if self._restored is None else self._restored.told_as

    def key_types(self) -> KeyTypes:
        """Return who watches the keys of a part, as far as they are to be watched."""
        return KeyTypes("" if self._restored is None else self._restored.watched_as)

    def add_keyed(self, name: str, part: KeyedPart | FilePart | HostedPart) -> None:
        """Register a part and restore it. ``name``: stable across versions of the program, e.g. "keyed", "timers"."""
        if name in self.keyed:
            raise ProgramError(f"An operator has two parts of keyed state named {name!r}.")
        self.keyed[name] = part
        if self._restored is None:
            return
        if isinstance(part, FilePart):
            for folder, key_groups in self._restored.keyed_folders(name, part.format):
                part.restore_files(folder, key_groups)
        if isinstance(part, LatePart) and (source := self._restored.keyed_later(name)) is not None:
            if part.restore_later(source):
                self.late.append(part)
                return
            source.close()
        for chunks in self._restored.keyed_layers(name):
            part.restore(chunks)

    def operator_states(self) -> OperatorStateStore:
        """Return the lists and broadcast states of the operator, restored."""
        if self.lists is None:
            self.lists = OperatorStateStore(self.told_as)
            if self._restored is not None:
                snapshot = self._restored.lists()
                if snapshot is not None:
                    self.lists.restore(snapshot)
        return self.lists

    def has_left(self, name: str) -> bool:
        """Whether there is a restored keyed part of that name which nobody has registered yet."""
        return name in self.unused_parts()

    def unused_parts(self) -> list[str]:
        """Return restored keyed parts that nobody has registered: state that would be lost."""
        if self._restored is None:
            return []
        return [name for name in self._restored.part_names() if name not in self.keyed]
