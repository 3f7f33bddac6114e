"""Distinct values of session windows over columns: an index of pairs (session, value), and a chain of pairs by session.

Takes the place of ``window_distinct`` in the accumulators of sessions, which become one and whose numbers are given
again: so the index knows them by serial numbers that are given once, and a chain tells what a session has when it
becomes part of another. Pairs of sessions that are over stay in the index until they are most.
"""

from __future__ import annotations

from typing import Any, Final, final

import numpy as np
import pyarrow as pa

from engine.core.records import python_values
from engine.operators import session_kernels as kernels
from engine.operators.window_distinct import ValuesOfBatch
from engine.operators.window_panes import Pane
from engine.state.arrow_views import values_of
from engine.state.key_groups import canonical_key
from engine.state.paged_array import PagedArray
from engine.state.slot_table import SlotTable

Array = np.ndarray[Any, Any]

__all__ = ["SessionDistinct"]

#: Fewer dead pairs than this are never worth a compaction.
_COMPACT_MIN: Final = 1 << 16


@final
class SessionDistinct:
    """``index``: of the field in records; ``column``: of the pane, that has the numbers of values. ``start`` in the
    methods is that of the one pane there is; ``slots`` are sessions."""

    def __init__(self, index: int, kind: pa.DataType, column: int) -> None:
        self.index = index
        self.column = column
        self._kinds = [pa.int64(), kind]
        #: by session: its serial number, and the first pair of its chain plus 1, 0 = none
        self._serials = PagedArray(np.int64)
        self._heads = PagedArray(np.int64)
        self._next_serial = 0
        self._batch = ValuesOfBatch(pa.nulls(0, kind))
        self._make_pairs()

    def _make_pairs(self) -> None:
        self._pairs = SlotTable(self._kinds)
        #: by pair: the next one of its session plus 1
        self._links = PagedArray(np.int64)
        self._num_dead = 0

    @property
    def nbytes(self) -> int:
        return self._pairs.nbytes + sum(array.nbytes for array in (self._links, self._serials, self._heads))

    # --- sessions

    def begin(self, sessions: Array, num_sessions: int) -> None:
        """Make room for new sessions, which have no values."""
        self._serials.reserve(num_sessions)
        self._heads.reserve(num_sessions)
        self._serials.array[sessions] = np.arange(self._next_serial, self._next_serial + sessions.size)
        self._heads.array[sessions] = 0
        self._next_serial += sessions.size

    def merge(self, pane: Pane, sources: Array, targets: Array) -> None:
        """Give what sessions have to those that they are part of."""
        owners, values = self._values_of(pane, sources)
        self._add(pane, targets[owners], values)
        self.drop(pane, sources)

    def drop(self, pane: Pane, sessions: Array) -> None:
        """Forget the values of sessions, whose numbers the pane still has."""
        self._num_dead += int(pane.column(self.column)[sessions].sum())
        self._heads.array[sessions] = 0
        if self._num_dead > max(_COMPACT_MIN, self._pairs.num_slots // 2):
            self._compact()

    def renumber(self, live: Array) -> None:
        """Session ``live[i]``, rising, is session i from now on; the others have no values."""
        for by_session in (self._serials, self._heads):
            by_session.array[: live.size] = by_session.array[live]

    def trim(self, num_sessions: int) -> None:
        """Give back what is reserved, and what is left of the batch."""
        if self._num_dead > self._pairs.num_slots // 2:
            self._heads.array[num_sessions:] = 0
            self._compact()
        self._batch = ValuesOfBatch(pa.nulls(0, self._kinds[1]))
        self._pairs.trim()
        self._links.trim(self._pairs.num_slots)
        self._serials.trim(num_sessions)
        self._heads.trim(num_sessions)

    def _compact(self) -> None:
        live = np.flatnonzero(self._heads.array)
        owners, values = self._chained(live, self._pairs.num_slots)
        self._make_pairs()
        self._heads.array[live] = 0
        self._link(live[owners], values)

    # --- records

    def begin_batch(self, column: pa.Array) -> None:
        """Prepare the values of the batch whose rows ``take_up`` takes."""
        self._batch = ValuesOfBatch(column)

    def take_up(self, start: int, pane: Pane, rows: Array, slots: Array) -> None:
        """``slots``: by row of the batch."""
        rows, values = self._batch.of_rows(rows)
        if rows.size:
            self._add(pane, slots[rows], values)

    def _add(self, pane: Pane, sessions: Array, values: pa.Array) -> None:
        np.add.at(pane.column(self.column), self._link(sessions, values), 1)

    def _link(self, sessions: Array, values: pa.Array) -> Array:
        """Enter pairs; return the sessions of those that are new."""
        before = self._pairs.num_slots
        _, first = self._pairs.find([pa.array(self._serials.array[sessions]), values])
        self._links.reserve(self._pairs.num_slots)
        of_new = sessions[first]
        kernels.link_pairs(of_new, before, self._heads.array, self._links.array)
        return of_new

    # --- what sessions have

    def _values_of(self, pane: Pane, sessions: Array) -> tuple[Array, pa.Array]:
        """Return (place of the session, value) of all pairs of these sessions, in their order."""
        return self._chained(sessions, int(pane.column(self.column)[sessions].sum()))

    def _chained(self, sessions: Array, pairs_max: int) -> tuple[Array, pa.Array]:
        pairs, owners = np.empty(pairs_max, np.int64), np.empty(pairs_max, np.int64)
        count = kernels.list_pairs(self._heads.array[sessions], self._links.array, pairs, owners)
        return owners[:count], self._pairs.keys_of(pairs[:count])[1]

    def sets_of(self, start: int, slots: Array) -> list[set[Any]]:
        """Return the values of each of these sessions, as the row operator's accumulator has them."""
        found: list[set[Any]] = [set() for _ in range(slots.size)]
        owners, values = self._chained(slots, self._pairs.num_slots)
        for owner, value in zip(owners.tolist(), python_values(values), strict=True):
            found[owner].add(canonical_key(value))
        return found

    def lists_of(self, start: int, slots: Array, numbers: Array) -> pa.Array:
        """Return the values of each of these sessions. ``numbers``: of values, by session of these."""
        offsets = np.zeros(slots.size + 1, np.int64)
        np.cumsum(numbers, out=offsets[1:])
        _, values = self._chained(slots, int(offsets[-1]))
        return pa.LargeListArray.from_arrays(pa.array(offsets), values)

    def restore(self, start: int, pane: Pane, slots: Array, lists: pa.Array) -> None:
        """Take up what ``lists_of`` gave, in new sessions."""
        numbers = values_of(lists.value_lengths())
        if numbers.sum():
            self._add(pane, np.repeat(slots, numbers), lists.flatten())
