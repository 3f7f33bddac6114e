"""What changed since which checkpoint: the memory behind increments. An epoch is the time between two barriers.

Only keys are remembered, in sets by epoch; the values are read when the increment is made. Nothing is remembered before
the first barrier, since no increment builds on less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Generic, TypeVar, final

from engine.state.heap_states import Places, Table

__all__ = ["CHANGED_MIN", "EPOCHS_MAX", "EpochLog", "TableChanges"]

#: Barriers without a completed checkpoint to build on; after that many the next checkpoint is a full one.
EPOCHS_MAX: Final = 32
#: Changes are remembered up to this number, however small the state is.
CHANGED_MIN: Final = 1 << 16

T = TypeVar("T")


@final
class EpochLog(Generic[T]):
    """What was noted in each epoch; the last one goes on."""

    def __init__(self) -> None:
        #: (checkpoint whose barrier began it, notes), oldest first
        self._epochs: list[tuple[int, T]] = []

    def begin(self, checkpoint_id: int, notes: T, former_sizes: list[int], size_max: int) -> None:
        """``former_sizes``: how many notes each of ``all()`` has. Old epochs are dropped when they have too many: an
        increment since then would be as large as the whole."""
        remembered = 0
        for index in range(len(self._epochs) - 1, -1, -1):
            remembered += former_sizes[index]
            if remembered > size_max or len(self._epochs) - index >= EPOCHS_MAX:
                del self._epochs[: index + 1]
                break
        self._epochs.append((checkpoint_id, notes))

    def all(self) -> list[T]:
        return [notes for _, notes in self._epochs]

    def since(self, checkpoint_id: int) -> list[T] | None:
        """Return the notes of all epochs from that barrier on; None = not known."""
        if all(begun_by != checkpoint_id for begun_by, _ in self._epochs):
            return None
        return [notes for begun_by, notes in self._epochs if begun_by >= checkpoint_id]

    def forget(self, until_checkpoint_id: int) -> None:
        kept = [epoch for epoch in self._epochs[:-1] if epoch[0] >= until_checkpoint_id]
        self._epochs = kept + self._epochs[-1:]

    def clear(self) -> None:
        self._epochs.clear()


@final
class TableChanges:
    """Of the tables of a backend: which places (namespace, key) were written or removed."""

    def __init__(self) -> None:
        self._log: EpochLog[dict[str, Places]] = EpochLog()
        self._changed_max = CHANGED_MIN
        self._tables: list[Table] = []

    def begin(self, checkpoint_id: int, tables: Mapping[str, Table], num_entries: int) -> None:
        self._changed_max = max(CHANGED_MIN, num_entries)
        sizes = [sum(map(len, notes.values())) for notes in self._log.all()]
        self._log.begin(checkpoint_id, {}, sizes, self._changed_max)
        self._tables = []
        for name, table in tables.items():
            self.join(name, table)

    def join(self, name: str, table: Table) -> None:
        """A state is there from now on."""
        epochs = self._log.all()
        if epochs:
            table.changed = epochs[-1].setdefault(name, Places())
            table.changed_max = self._changed_max
            table.give_up = self._give_up
            self._tables.append(table)

    def _give_up(self) -> None:
        """So much was removed that an increment is not worth its memory: until the next barrier nothing is noted."""
        self._log.clear()
        for table in self._tables:
            table.changed = None

    def since(self, checkpoint_id: int) -> dict[str, Places] | None:
        """Return what changed since that barrier, by state, to be read before more changes; None = not known."""
        epochs = self._log.since(checkpoint_id)
        if epochs is None:
            return None
        if len(epochs) == 1:
            return epochs[0]
        changed: dict[str, Places] = {}
        for notes in epochs:
            for name, places in notes.items():
                changed.setdefault(name, Places()).update(places)
        return changed

    def forget(self, until_checkpoint_id: int) -> None:
        self._log.forget(until_checkpoint_id)
