"""What late records make the windows of a window join give once more: all pairs of their key, up to themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, final

import numpy as np
import pyarrow as pa

from engine.core.records import BATCH_ROWS_MAX
from engine.operators.slice_records import joined
from engine.operators.window_join_state import WindowJoinState
from engine.state.slot_table import SlotTable

Array = np.ndarray[Any, Any]

__all__ = ["LatePairs"]


@final
class LatePairs:
    """Of some late records, which the state has taken up. ``keys``: theirs; ``starts``: the panes of their windows."""

    def __init__(self, state: WindowJoinState, keys: list[pa.Array], starts: Iterable[int], lateness_ms: int) -> None:
        assert state.kinds is not None
        self._lateness_ms = lateness_ms
        table = SlotTable(state.kinds)
        self._slots = table.slots_of(keys).tolist()
        starts = sorted(starts)
        partitions: list[int] = []
        if any(start in state.spilled for start in starts):
            state.evict(starts)
            partitions = state.partitions_of(keys)
        self._sides = [_KeyRecords(state, side, (table, keys), starts, partitions) for side in range(2)]

    def columns(self, side: int) -> pa.RecordBatch:
        """Return the records that the pairs are of."""
        columns = self._sides[side].columns
        assert columns is not None
        return columns

    def of(self, number: int, arrival: int, window: tuple[int, int]) -> Iterator[tuple[Array, Array]]:
        """Yield the pairs of the late record with this number, in portions: rows of ``columns`` of either side."""
        lefts, rights = (side.rows_of(self._slots[number], arrival, window, self._lateness_ms) for side in self._sides)
        for at in range(0, lefts.size * rights.size, BATCH_ROWS_MAX):
            pairs = np.arange(at, min(at + BATCH_ROWS_MAX, lefts.size * rights.size))
            yield lefts[pairs // rights.size], rights[pairs % rights.size]


@final
class _KeyRecords:
    """One side's records of some keys, by key, in order of arrival."""

    def __init__(
        self,
        state: WindowJoinState,
        side: int,
        keys: tuple[SlotTable, list[pa.Array]],
        starts: list[int],
        partitions: list[int],
    ) -> None:
        table, columns_of_keys = keys
        found = [
            (start, some)
            for start in starts
            for some in state.records_of_keys(side, start, columns_of_keys, partitions)
        ]
        self.columns: pa.RecordBatch | None = None
        self._bounds = np.zeros(table.num_slots + 1, np.int64)
        self._rows = self._arrivals = self._starts = self._fired_ms = np.zeros(0, np.int64)
        if not found:
            return
        self.columns, _, arrivals = joined([some for _, some in found])
        sizes = [some.times_ms.size for _, some in found]
        slots = table.slots_of(state.key_columns(side, self.columns))
        self._rows = np.lexsort((arrivals, slots))
        self._bounds = np.searchsorted(slots[self._rows], np.arange(table.num_slots + 1))
        self._arrivals = arrivals[self._rows]
        self._starts = np.repeat([start for start, _ in found], sizes)[self._rows]
        self._fired_ms = np.repeat([some.fired_ms for _, some in found], sizes)[self._rows]

    def rows_of(self, slot: int, arrival: int, window: tuple[int, int], lateness_ms: int) -> Array:
        """Return the rows of a key in a window that had come with the record of this number."""
        part = slice(self._bounds[slot], self._bounds[slot + 1])
        starts = self._starts[part]
        wanted = (self._arrivals[part] <= arrival) & (starts >= window[0]) & (starts < window[1])
        wanted &= self._fired_ms[part] < window[1] - 1 + lateness_ms
        rows: Array = self._rows[part][wanted]
        return rows
