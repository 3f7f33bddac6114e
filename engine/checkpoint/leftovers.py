"""What checkpoints that will never be had have written, and what of it may go. Pure; part of ``coordinator``."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, final

from engine.checkpoint.messages import Discard
from engine.checkpoint.model import CheckpointFolders
from engine.checkpoint.pending import Pending, Stage
from engine.checkpoint.store import CompletedCheckpointStore, Garbage
from engine.protocol.checkpoint import NO_CHECKPOINT

__all__ = ["Leftovers"]

#: Savepoints that were given up, whose late files are still cleared away; they come within seconds.
DEAD_SAVEPOINTS_MAX: Final = 20


@final
class Leftovers:
    def __init__(self, store: CompletedCheckpointStore, folders: CheckpointFolders) -> None:
        self._store = store
        self._folders = folders
        #: Folders of savepoints that were given up, by their ids: tasks may yet tell of files there.
        self._dead_savepoints: dict[int, str] = {}

    def give_up(self, pending: Pending) -> Garbage:
        """Return what a checkpoint that will never be had has written; let go of what it builds on."""
        if pending.stage is Stage.PREPARING:
            # No task has written anything yet; and if another JobManager leads, its checkpoint may have this number.
            return self.unpin(pending)
        if pending.is_savepoint:
            self._dead_savepoints[pending.checkpoint_id] = pending.folder
            while len(self._dead_savepoints) > DEAD_SAVEPOINTS_MAX:
                del self._dead_savepoints[min(self._dead_savepoints)]
            return Garbage((pending.folder,))
        garbage = self._store.release(pending.files())
        if pending.folder:
            garbage = Garbage((pending.folder,)) + garbage
        return garbage + self.unpin(pending)

    def unpin(self, pending: Pending) -> Garbage:
        base_id = pending.options.base_checkpoint_id
        return Garbage() if base_id == NO_CHECKPOINT else self._store.unpin(base_id)

    def late(self, checkpoint_id: int, files: Collection[str], live: Collection[Pending]) -> Garbage:
        """Return what of the files that came for a checkpoint that is no more is nobody's. ``live``: of whatever stage,
        also those whose metadata is still being written in vain."""
        if not self._folders.root and checkpoint_id not in self._dead_savepoints:
            return Garbage()
        used = {path for other in live for path in other.files()}
        folder = self._dead_savepoints.get(checkpoint_id) or self._folders.exclusive(checkpoint_id)
        own = (self._folders.job + "/", folder + "/")
        garbage = self._store.unreferenced([path for path in files if path.startswith(own) and path not in used])
        is_dead = all(other.checkpoint_id != checkpoint_id for other in live)
        is_kept = any(stored.checkpoint.checkpoint_id == checkpoint_id for stored in self._store.all())
        if garbage and is_dead and not is_kept and checkpoint_id not in self._store.kept_for_base():
            garbage = Garbage((folder,)) + garbage
        return garbage

    def discard(self, garbage: Garbage) -> list[Discard]:
        """Never a folder in which there is still something of use."""
        folders = tuple(folder for folder in garbage.folders if not self._is_used(folder))
        return [Discard(Garbage(folders, garbage.files))] if folders or garbage.files else []

    def _is_used(self, folder: str) -> bool:
        return any(path.startswith(folder + "/") for path in self._store.references())

    def retained(self) -> tuple[str, ...]:
        """Return folders and files of what the job may go on from, if it is retained."""
        found: list[str] = []
        for stored in self._store.all():
            if stored.is_owned and stored.checkpoint.folder:
                found += [stored.checkpoint.folder, *sorted(stored.checkpoint.files())]
        return tuple(found)
