"""Values of one type by number, in the order in which they came: lists, maps and structs, which nothing compares.

Unlike a table of distinct values (``slot_table``) it gives each value a number of its own, equal ones too. Nothing is
forgotten one by one: who holds the numbers makes another arena of what is left.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np

from engine.core.arrow_arrays import arrow_of

if TYPE_CHECKING:
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

__all__ = ["ValueArena"]

#: Values of pieces that become one: many small ones cost more than what is in them.
_PIECE_MAX: Final = 1 << 16


@final
class ValueArena:
    """``slots_of``, ``keys_of`` and ``num_slots`` as of a ``SlotTable`` of one column, where codes are held."""

    def __init__(self, kind: pa.DataType) -> None:
        self.kind = kind
        self._pieces: list[pa.Array] = []
        #: by piece, the number behind its last value
        self._ends: list[int] = []
        self.nbytes = 0

    @property
    def num_slots(self) -> int:
        return self._ends[-1] if self._ends else 0

    def add(self, column: pa.Array) -> int:
        """Take up a copy of these values; return the number of the first one."""
        import pyarrow as pa

        first = self.num_slots
        if not len(column):
            return first
        parts = [column, column.slice(0, 0)]  # of two arrays a new one is made, of what is in use
        size = len(column)
        while self._pieces and len(self._pieces[-1]) < 2 * size and len(self._pieces[-1]) + size <= _PIECE_MAX:
            parts.insert(0, self._pieces.pop())
            self._ends.pop()
            size += len(parts[0])
            self.nbytes -= parts[0].nbytes
        piece = pa.concat_arrays(parts)
        self._pieces.append(piece)
        self._ends.append(first + len(column))
        self.nbytes += piece.nbytes
        return first

    def get(self, numbers: Array) -> pa.Array:
        import pyarrow as pa

        if not numbers.size:
            return pa.nulls(0, self.kind)
        low, high = (bisect_right(self._ends, number) for number in (int(numbers.min()), int(numbers.max())))
        if low == high:
            return self._pieces[low].take(arrow_of(numbers - self._begin(low)))
        of_piece = np.searchsorted(np.array(self._ends), numbers, side="right")
        order = np.argsort(of_piece, kind="stable")
        cuts = np.searchsorted(of_piece[order], np.arange(low, high + 2))
        taken = [
            self._pieces[piece].take(arrow_of(numbers[order[cuts[at] : cuts[at + 1]]] - self._begin(piece)))
            for at, piece in enumerate(range(low, high + 1))
            if cuts[at] < cuts[at + 1]
        ]
        places = np.empty(order.size, np.int64)
        places[order] = np.arange(order.size)
        return pa.concat_arrays(taken).take(arrow_of(places))

    def _begin(self, piece: int) -> int:
        return self._ends[piece - 1] if piece else 0

    # --- as of a table

    def slots_of(self, columns: Sequence[pa.Array]) -> Array:
        first = self.add(columns[0])
        return np.arange(first, self.num_slots)

    def keys_of(self, slots: Array) -> list[pa.Array]:
        return [self.get(slots)]

    def trim(self) -> None:
        """Nothing is reserved."""
