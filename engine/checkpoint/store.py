"""The completed checkpoints of one job, and which files may go. Pure: it returns what is to be deleted.

A file is kept as long as a checkpoint in the store, one under way, or one that such a one builds on refers to it.
Files that are not the job's (a savepoint it started from, savepoints it took) are never in here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import final

from engine.checkpoint.model import CompletedCheckpoint
from engine.core.late_dataclass import dataclass
from engine.protocol.checkpoint import CheckpointKind

__all__ = ["CompletedCheckpointStore", "Garbage", "StoredCheckpoint"]


@dataclass(frozen=True, slots=True)
class Garbage:
    """What nobody needs. ``folders`` go as a whole, their metadata first."""

    folders: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.folders or self.files)

    def __add__(self, other: Garbage) -> Garbage:
        return Garbage(self.folders + other.folders, self.files + other.files)


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    checkpoint: CompletedCheckpoint
    #: its files are the job's and go when it is subsumed
    is_owned: bool


@final
class CompletedCheckpointStore:
    def __init__(self, num_retained: int) -> None:
        self._num_retained = num_retained
        #: oldest first
        self._stored: list[StoredCheckpoint] = []
        #: Subsumed, but a checkpoint under way builds on them.
        self._kept_for_base: dict[int, StoredCheckpoint] = {}
        #: checkpoint id → how many checkpoints under way build on it
        self._pins: Counter[int] = Counter()
        #: file → how many checkpoints, kept or under way, refer to it
        self._references: Counter[str] = Counter()

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def latest(self) -> CompletedCheckpoint | None:
        return self._stored[-1].checkpoint if self._stored else None

    def all(self) -> list[StoredCheckpoint]:
        """Return them oldest first."""
        return list(self._stored)

    def base(self) -> CompletedCheckpoint | None:
        """Return what an increment may build on: the latest, if it is a checkpoint of the job's own."""
        if self._stored and self._stored[-1].is_owned:
            latest = self._stored[-1].checkpoint
            return latest if latest.kind is CheckpointKind.CHECKPOINT else None
        return None

    def add(self, checkpoint: CompletedCheckpoint, *, is_owned: bool = True) -> Garbage:
        """Keep a completed checkpoint; return what is to be deleted because older ones are not kept any more."""
        latest = self.latest()
        assert latest is None or checkpoint.checkpoint_id > latest.checkpoint_id, "checkpoints complete in order"
        if is_owned:
            self._references.update(checkpoint.files())
        self._stored.append(StoredCheckpoint(checkpoint, is_owned))
        garbage = Garbage()
        while len(self._stored) > self._num_retained:
            garbage += self._drop(self._stored.pop(0))
        return garbage

    def remove(self, checkpoint_id: int) -> bool:
        """Forget a checkpoint that turned out to be damaged; its files stay until the job ends, for whoever looks into
        it. Return whether it was there."""
        kept = [stored for stored in self._stored if stored.checkpoint.checkpoint_id != checkpoint_id]
        found = len(kept) < len(self._stored)
        self._stored = kept
        return found

    def remove_all(self) -> Garbage:
        """The job has ended and nothing is retained."""
        garbage = Garbage()
        while self._stored:
            garbage += self._drop(self._stored.pop())
        return garbage

    def _drop(self, stored: StoredCheckpoint) -> Garbage:
        if not stored.is_owned:
            return Garbage()
        if self._pins[stored.checkpoint.checkpoint_id]:
            self._kept_for_base[stored.checkpoint.checkpoint_id] = stored
            return Garbage()
        return self._delete(stored.checkpoint)

    def _delete(self, checkpoint: CompletedCheckpoint) -> Garbage:
        return Garbage((checkpoint.folder,) if checkpoint.folder else ()) + self.release(checkpoint.files())

    # --- those under way ---------------------------------------------------------------------------------------------

    def pin(self, checkpoint_id: int) -> None:
        """A checkpoint begins that builds on this one."""
        self._pins[checkpoint_id] += 1

    def unpin(self, checkpoint_id: int) -> Garbage:
        """A checkpoint that built on this one has ended. Called after its own files are retained or released."""
        self._pins[checkpoint_id] -= 1
        assert self._pins[checkpoint_id] >= 0, checkpoint_id
        if self._pins[checkpoint_id]:
            return Garbage()
        del self._pins[checkpoint_id]
        stored = self._kept_for_base.pop(checkpoint_id, None)
        return Garbage() if stored is None else self._delete(stored.checkpoint)

    def retain(self, files: Iterable[str]) -> None:
        """A checkpoint that is under way refers to these."""
        self._references.update(set(files))

    def release(self, files: Iterable[str]) -> Garbage:
        """One reference to each of these is gone; return those that nobody refers to."""
        unused = []
        for path in sorted(set(files)):
            self._references[path] -= 1
            assert self._references[path] >= 0, path
            if not self._references[path]:
                del self._references[path]
                unused.append(path)
        return Garbage((), tuple(unused))

    def unreferenced(self, files: Iterable[str]) -> Garbage:
        """Return those that nobody refers to: of an acknowledgement that nobody waits for."""
        return Garbage((), tuple(sorted(path for path in set(files) if path not in self._references)))

    def references(self) -> Counter[str]:
        """Return the counts; for tests."""
        return Counter(self._references)

    def kept_for_base(self) -> set[int]:
        """Return what is kept only for those under way; for tests."""
        return set(self._kept_for_base)
