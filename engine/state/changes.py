"""What changed since which checkpoint: the memory behind increments. An epoch is the time between two barriers.

Only keys are remembered, in one set a state and epoch; the values are read when the increment is made. Nothing is
remembered before the first barrier, since no increment builds on less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, final

from engine.state.heap_states import Table

__all__ = ["Epochs"]

#: Barriers without a completed checkpoint to build on; after that many the next checkpoint is a full one.
_EPOCHS_MAX: Final = 32
#: Removed keys are remembered up to this number, however small the state is.
_CHANGED_MIN: Final = 1 << 16


@final
class Epochs:
    def __init__(self) -> None:
        #: (checkpoint whose barrier began it, state → what changed in it), oldest first; the last one goes on
        self._epochs: list[tuple[int, dict[str, set[Any]]]] = []
        self._changed_max = _CHANGED_MIN
        self._tables: list[Table] = []

    def begin(self, checkpoint_id: int, tables: Mapping[str, Table], num_entries: int) -> None:
        self._epochs.append((checkpoint_id, {}))
        self._changed_max = max(_CHANGED_MIN, num_entries)
        self._tables = []
        for name, table in tables.items():
            self.join(name, table)
        remembered = 0
        for index in range(len(self._epochs) - 1, -1, -1):
            remembered += sum(map(len, self._epochs[index][1].values()))
            if remembered > self._changed_max or len(self._epochs) - index > _EPOCHS_MAX:
                del self._epochs[: index + 1]  # an increment since then would be as large as the whole
                break

    def join(self, name: str, table: Table) -> None:
        """A state is there from now on."""
        if self._epochs:
            table.changed = self._epochs[-1][1].setdefault(name, set())
            table.changed_max = self._changed_max
            table.give_up = self._give_up
            self._tables.append(table)

    def _give_up(self) -> None:
        """So much was removed that an increment is not worth its memory: until the next barrier nothing is noted."""
        self._epochs.clear()
        for table in self._tables:
            table.changed = None

    def since(self, checkpoint_id: int) -> dict[str, set[Any]] | None:
        """Return what changed since that barrier, by state; None = not known."""
        if all(begun_by != checkpoint_id for begun_by, _ in self._epochs):
            return None
        changed: dict[str, set[Any]] = {}
        for begun_by, of_state in self._epochs:
            if begun_by >= checkpoint_id:
                for name, places in of_state.items():
                    changed.setdefault(name, set()).update(places)
        return changed

    def forget(self, until_checkpoint_id: int) -> None:
        self._epochs = [epoch for epoch in self._epochs if epoch[0] >= until_checkpoint_id or epoch is self._epochs[-1]]
