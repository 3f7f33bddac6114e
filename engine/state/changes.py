"""What changed since which checkpoint: the memory behind increments. An epoch is the time between two barriers.

Only keys are remembered, in sets by epoch; the values are read when the increment is made. Nothing is remembered before
the first barrier, since no increment builds on less.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
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
    """What was noted in each epoch; the last one goes on. ``empty`` makes notes, ``add`` adds the second to the first,
    ``size`` counts them."""

    def __init__(self, empty: Callable[[], T], add: Callable[[T, T], None], size: Callable[[T], int]) -> None:
        self._empty = empty
        self._add = add
        self._size = size
        #: (checkpoint whose barrier began it, notes), oldest first
        self._epochs: list[tuple[int, T]] = []

    def begin(self, checkpoint_id: int, size_max: int) -> T:
        """Return the notes of the new epoch. Old epochs are dropped when they have too many: an increment since then
        would be as large as the whole."""
        remembered = 0
        for index in range(len(self._epochs) - 1, -1, -1):
            remembered += self._size(self._epochs[index][1])
            if remembered > size_max or len(self._epochs) - index >= EPOCHS_MAX:
                del self._epochs[: index + 1]
                break
        self._epochs.append((checkpoint_id, self._empty()))
        return self._epochs[-1][1]

    @property
    def current(self) -> T | None:
        return self._epochs[-1][1] if self._epochs else None

    def notes(self) -> Iterator[T]:
        """Yield the notes of each epoch that is remembered, for who has to say them in other words."""
        return (notes for _, notes in self._epochs)

    def items(self) -> Iterator[tuple[int, T]]:
        """Yield each epoch that is remembered, oldest first: the checkpoint whose barrier began it, its notes."""
        return iter(self._epochs)

    def since(self, checkpoint_id: int) -> T | None:
        """Return what was noted from that barrier on, to be read before more is; None = not known."""
        epochs = self._from(checkpoint_id)
        if epochs is None:
            return None
        if len(epochs) == 1:
            return epochs[0]
        united = self._empty()
        for notes in epochs:
            self._add(united, notes)
        return united

    def num_since(self, checkpoint_id: int, at_most: int) -> int | None:
        """Return about how many notes ``since`` gives; None = not known, or more than that."""
        epochs = self._from(checkpoint_id)
        if epochs is None:
            return None
        total = sum(map(self._size, epochs))
        if total <= at_most:
            return total
        if max(map(self._size, epochs)) > at_most:
            return None
        united = self._empty()
        for notes in epochs:
            self._add(united, notes)
            if self._size(united) > at_most:
                return None
        return self._size(united)

    def _from(self, checkpoint_id: int) -> list[T] | None:
        if all(begun_by != checkpoint_id for begun_by, _ in self._epochs):
            return None
        return [notes for begun_by, notes in self._epochs if begun_by >= checkpoint_id]

    def forget(self, until_checkpoint_id: int, kept_ids: Container[int] = ()) -> None:
        """Nobody will ask for what was noted since barriers before that one, but for those in ``kept_ids``."""
        kept: list[tuple[int, T]] = []
        for begun_by, notes in self._epochs[:-1]:
            if begun_by >= until_checkpoint_id or begun_by in kept_ids:
                kept.append((begun_by, notes))
            elif kept:
                self._add(kept[-1][1], notes)
        self._epochs = kept + self._epochs[-1:]

    def clear(self) -> None:
        self._epochs.clear()


@final
class TableChanges:
    """Of the tables of a backend: which places (namespace, key) were written or removed."""

    def __init__(self) -> None:
        self._log: EpochLog[dict[str, Places]] = EpochLog(dict, _add_places, _num_places)
        self._changed_max = CHANGED_MIN
        self._tables: list[Table] = []
        #: Not in the first epoch, which follows a full snapshot by a child: what is overwritten then lies in pages that
        #: are written to for the first time since the fork, 1 us each, which would all come at the next barrier.
        self._collects = False

    def begin(self, checkpoint_id: int, tables: Mapping[str, Table], num_entries: int) -> None:
        self._changed_max = max(CHANGED_MIN, num_entries)
        for table in tables.values():
            table.settle()  # its keys belong to the epoch that ends
        self._collects = self._log.current is not None
        self._log.begin(checkpoint_id, self._changed_max)
        self._tables = []
        for name, table in tables.items():
            self.join(name, table)

    def join(self, name: str, table: Table) -> None:
        """A state is there from now on."""
        current = self._log.current
        if current is not None:
            table.changed = current.setdefault(name, Places())
            table.changed_max = self._changed_max
            table.give_up = self._give_up
            if self._collects:
                table.begin_recent()
            else:
                table.end_recent()
            self._tables.append(table)

    def _give_up(self) -> None:
        """So much was removed that an increment is not worth its memory: until the next barrier nothing is noted."""
        self._log.clear()
        for table in self._tables:
            table.end_recent()
            table.changed = None

    def since(self, checkpoint_id: int) -> dict[str, Places] | None:
        """Return what changed since that barrier, by state, to be read before more changes; None = not known."""
        return self._log.since(checkpoint_id)

    def num_since(self, checkpoint_id: int, at_most: int) -> int | None:
        return self._log.num_since(checkpoint_id, at_most)

    def forget(self, until_checkpoint_id: int, kept_ids: Container[int] = ()) -> None:
        self._log.forget(until_checkpoint_id, kept_ids)


def _add_places(notes: dict[str, Places], more: dict[str, Places]) -> None:
    for name, places in more.items():
        notes.setdefault(name, Places()).update(places)


def _num_places(notes: dict[str, Places]) -> int:
    return sum(map(len, notes.values()))
