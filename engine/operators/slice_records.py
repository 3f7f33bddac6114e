"""Records of one side of a window join in one slice of time, as they came."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import pyarrow as pa

from engine.core.arrow_arrays import arrow_of
from engine.operators.join_kernels import order_by_slot
from engine.state.slot_table import SlotTable
from engine.time.windows import TIME_MIN_MS

Array = np.ndarray[Any, Any]

__all__ = ["KeyIndex", "SliceRecords", "are_small", "joined"]

#: Batches that are smaller together become one: many small ones cost more than their content.
_MERGED_ROWS_MAX: Final = 1 << 16


@final
class KeyIndex:
    """Finds the records of some keys among many."""

    def __init__(self, kinds: list[pa.DataType], keys: list[pa.Array]) -> None:
        self._table = SlotTable(kinds)
        slots = self._table.slots_of(keys)
        self._num_slots = self._table.num_slots
        self._starts, self._order = np.zeros(self._num_slots + 1, np.int64), np.empty(slots.size, np.int64)
        order_by_slot(slots, self._starts, self._order)

    @property
    def nbytes(self) -> int:
        return self._table.nbytes + self._starts.nbytes + self._order.nbytes

    def rows_of(self, keys: list[pa.Array]) -> Array:
        """Return the rows of these keys, rising."""
        slots = np.unique(self._table.slots_of(keys))
        slots = slots[slots < self._num_slots]
        begins = self._starts[slots]
        sizes = self._starts[slots + 1] - begins
        ends = np.cumsum(sizes)
        places = np.arange(ends[-1] if ends.size else 0) + np.repeat(begins - (ends - sizes), sizes)
        return np.sort(self._order[places])


@final
@dataclass(slots=True, eq=False)
class SliceRecords:
    """``arrivals``: rising numbers, the order in which they came; of restored ones ``fired_ms``: up to when their
    windows have fired, and ``origin``: the former subtask, from 1."""

    columns: pa.RecordBatch
    times_ms: Array
    arrivals: Array
    fired_ms: int = TIME_MIN_MS
    origin: int = 0
    #: for late records, and what it took when it was made
    index: KeyIndex | None = None
    _index_bytes: int = 0

    @property
    def nbytes(self) -> int:
        return int(self.columns.nbytes) + self.times_ms.nbytes + self.arrivals.nbytes + self._index_bytes

    def take(self, rows: Array) -> SliceRecords:
        own = self.times_ms[rows], self.arrivals[rows]
        return SliceRecords(self.columns.take(arrow_of(rows)), *own, self.fired_ms, self.origin)

    def keep_index(self, index: KeyIndex) -> int:
        """Return how much more memory that takes."""
        self.index, self._index_bytes = index, index.nbytes
        return self._index_bytes


def are_small(before: SliceRecords, last: SliceRecords) -> bool:
    """Whether two batches are to become one: as in a binary counter, so that a row is copied a few times only."""
    sizes = before.times_ms.size, last.times_ms.size
    are_alike = (before.fired_ms, before.origin) == (last.fired_ms, last.origin)
    return are_alike and sizes[0] < 2 * sizes[1] and sum(sizes) <= _MERGED_ROWS_MAX


def joined(kept: list[SliceRecords]) -> tuple[pa.RecordBatch, Array, Array]:
    """Return columns, event times and numbers by arrival of all, one behind the other."""
    if len(kept) == 1:
        return kept[0].columns, kept[0].times_ms, kept[0].arrivals
    (columns,) = pa.Table.from_batches([some.columns for some in kept]).combine_chunks().to_batches()
    times_ms, arrivals = ([some.times_ms for some in kept], [some.arrivals for some in kept])
    return columns, np.concatenate(times_ms), np.concatenate(arrivals)
