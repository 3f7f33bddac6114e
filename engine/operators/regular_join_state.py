"""What a regular join on columns keeps: the records of both sides, and how many partners each has where that counts.

As long as records only come, and all of a key are partners, no number of them is kept: a record stands alone in the
output as long as the other side has none of its key. That is over (``is_counted``) when a changelog takes something
back, and from the beginning where outer joins have conditions or records a time to live: then each record of an outer
side has the number of its partners, as on rows, and each the wall time at which it was written in place of its event
time. A record that is gone keeps its row until most are gone.

Increments have the records that came. Of a join that counts, they have all records that were written since, whole, and
those that went, by the number of their row, so that is the same from the full checkpoint on: where rows are numbered
anew, or were by a restore, the next one is full.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.arrow_arrays import arrow_of
from engine.operators.column_interval_join import IntervalState
from engine.operators.join_state import GONE, RowStore, SideRecords, chunks_of, in_order, records_in
from engine.operators.record_equality import are_equal, hashes_of_records
from engine.state.changes import EPOCHS_MAX

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from engine.state.paged_array import PagedArray
    from engine.state.slot_expiry import Expiry

    Array = np.ndarray[Any, Any]

__all__ = ["RegularState"]

#: Rows that are turned into columns at once while a snapshot is made.
_ROWS_MAX: Final = 1 << 18
#: Fewer keys than this are never worth a new table of them.
_COMPACT_MIN: Final = 1 << 16
#: As in ``regular_join_kernels``, whose import costs more.
_GONE_MS: Final = -(1 << 63)
#: Number of partners of a record that came from a join that did not count them: all of its key.
_ALL: Final = -1


@final
class RegularState:
    """Implements ``parts.DeltaPart``."""

    def __init__(
        self,
        max_parallelism: int,
        fields: tuple[tuple[int | str, ...], ...],
        *,
        is_tuple: bool,
        is_outer: tuple[bool, bool],
        is_counted: bool,
        expiry: Expiry | None = None,
    ) -> None:
        self._max_parallelism = max_parallelism
        self._is_tuple = is_tuple
        self._is_outer = is_outer
        self._expiry = expiry
        self._has_to_count = is_counted
        self.kept = IntervalState(max_parallelism, fields, is_tuple=is_tuple)
        self.clear()

    def clear(self) -> None:
        self.kept.clear()
        #: checkpoint → rows of each side at its barrier, and the epoch that began there
        self._marks: dict[int, tuple[tuple[int, int], int]] = {}
        self.epoch = 1
        #: by side: of a join that counts, the epoch in which each row was written, or went
        self._touched = _arrays("int32")
        #: while layers are restored: (side, key group) → numbers that the rows had in the checkpoint, rising, and have
        self._restored_rows: dict[tuple[int, int], tuple[Array, Array]] = {}
        self.is_counted = self._has_to_count
        #: by side: the number of partners of each row; of inner sides none
        self._partners = _arrays("int64")
        #: whether some of them are to be found yet
        self._has_restored = False
        #: by side: the hash of each row, as far as there are some
        self._hashes = _arrays("uint64")
        self._num_hashed = [0, 0]

    @property
    def others(self) -> dict[int, bytes]:
        return self.kept.others

    def define(self, side: int, schema: pa.Schema) -> bool:
        return self.kept.define(side, schema)

    @property
    def nbytes(self) -> int:
        return self.kept.nbytes + sum(array.nbytes for array in (*self._partners, *self._hashes, *self._touched))

    # --- time to live

    def now_ms(self) -> int:
        return 0 if self._expiry is None else self._expiry.now_ms()

    def floor_ms(self, now_ms: int) -> int:
        """Return the time up to which what was written has expired."""
        from engine.operators.regular_join_kernels import LIVES_ON

        return LIVES_ON if self._expiry is None else now_ms - self._expiry.ttl_ms

    # --- numbers of partners

    def counts(self, has_changes: bool) -> bool:
        """Return whether numbers of partners are kept: from now on if there are changes."""
        self._settle()
        if has_changes and not self.is_counted:
            self._begin_counting()
        return self.is_counted

    def _begin_counting(self) -> None:
        self.is_counted = self._has_restored = True
        self._marks = {}  # increments are no longer what has come
        for side, num_rows in enumerate(self._num_rows()):
            self._touched[side].reserve(num_rows)
            if self._is_outer[side]:
                self._partners[side].reserve(num_rows)
                self._partners[side].array[:num_rows] = _ALL
        self._settle()

    def _settle(self) -> None:
        """Find what restored records lack: how many partners they have."""
        import numpy as np

        has_restored, self._has_restored = self._has_restored, False
        if not has_restored:
            return
        self._restored_rows = {}
        if not self.is_counted:
            self._partners, self._touched = _arrays("int64"), _arrays("int32")
            return
        for side, own in enumerate(self.kept.sides):
            if own is None or not self._is_outer[side]:
                continue
            numbers = self._partners[side].array[: own.store.num_rows]
            unknown = np.flatnonzero(numbers == _ALL)
            other = self.kept.sides[1 - side]
            if other is None or self.kept.table is None:
                numbers[unknown] = 0
                continue
            live = other.store.slots[self._live(1 - side)]
            numbers[unknown] = np.bincount(live, minlength=self.kept.table.num_slots)[own.store.slots[unknown]]

    def partners(self, side: int) -> Array:
        """Return the number of partners of each row of an outer side; good until rows are added."""
        return self._partners[side].array

    def touched(self, side: int) -> Array:
        """Return the epoch in which each row was written; likewise."""
        return self._touched[side].array

    # --- what comes and goes

    def add(self, side: int, columns: pa.RecordBatch, slots: Array, now_ms: int) -> int:
        """Append records; return the row of the first one. How many partners they have is still to be set."""
        import numpy as np

        store = self._store(side)
        first = store.num_rows
        self.kept.append(side, columns, np.full(slots.size, now_ms, np.int64), slots)
        if self._is_outer[side]:
            self._partners[side].reserve(store.num_rows)
        self._touched[side].reserve(store.num_rows)
        self._touched[side].array[first : store.num_rows] = self.epoch
        return first

    def remove(
        self, side: int, columns: pa.RecordBatch, slots: Array, is_added: Array, first: int, now_ms: int
    ) -> None:
        """Forget what a batch takes back: for each such row the first record of its key that is equal to it, if any.

        ``slots``, ``is_added`` uint8: of all rows, -1 = equal to none; those that are added have just been appended,
        from ``first`` on, and are there for what comes behind them.
        """
        import numpy as np
        import pyarrow as pa

        from engine.operators import regular_join_kernels as kernels

        store = self._store(side)
        hashes, can_match = hashes_of_records(columns)
        self._hash_rows(side, first)
        own_hashes = self._hashes[side]
        own_hashes.reserve(store.num_rows)
        own_hashes.array[first : store.num_rows] = hashes[(is_added != 0) & (slots >= 0)]
        self._num_hashed[side] = store.num_rows
        removed, times_ms = np.empty(slots.size, np.int64), np.empty(slots.size, np.int64)
        floor_ms = self.floor_ms(now_ms)
        given = slots, is_added, can_match, hashes, first, floor_ms
        kernels.find_removed(*given, *store.chains, own_hashes.array, removed, times_ms)
        rows = np.flatnonzero(removed >= 0)
        if not are_equal(columns.take(pa.array(rows)), store.records(removed[rows])).all():
            store.chains[0][removed[rows], 0] = times_ms[rows]  # others have that hash, too
            self._find_removed_exactly(store, columns, given, removed)
            rows = np.flatnonzero(removed >= 0)
        touched = self._touched[side].array
        touched[removed[rows]] = self.epoch
        kernels.settle_chains(np.unique(slots[rows]), floor_ms, (now_ms, self.epoch), *store.chains, touched)

    @staticmethod
    def _find_removed_exactly(store: RowStore, columns: pa.RecordBatch, given: Any, removed: Array) -> None:
        """As the kernel, but records themselves are compared: once in 2**32 times."""
        import numpy as np

        from engine.operators.regular_join_kernels import GONE

        slots, is_added, can_match, _, visible, floor_ms = given
        links, ends = store.chains
        removed[:] = -1
        for i in range(slots.size):
            if slots[i] < 0 or is_added[i] or not can_match[i]:
                visible += int(slots[i] >= 0 and is_added[i])
                continue
            row = ends[slots[i], 0] - 1
            while 0 <= row < visible:
                if links[row, 0] > floor_ms and are_equal(columns.slice(i, 1), store.records(np.array([row])))[0]:
                    removed[i], links[row, 0] = row, GONE
                    break
                row = links[row, 1]

    def _hash_rows(self, side: int, end: int) -> None:
        """Have the hashes of the rows before ``end``."""
        import numpy as np

        own, store = self._hashes[side], self._store(side)
        own.reserve(store.num_rows)
        for at in range(self._num_hashed[side], end, _ROWS_MAX):
            rows = np.arange(at, min(at + _ROWS_MAX, end))
            own.array[rows] = hashes_of_records(store.records(rows))[0]

    def forget_gone(self) -> None:
        """Give back the room of records that are gone, and of keys without any, once they are most."""
        import numpy as np

        from engine.state.slot_table import SlotTable

        sides = [side for side in self.kept.sides if side is not None]
        if all(side.store.num_rows < side.compact_at for side in sides):
            return
        live = [self._live(index) for index in range(2)]
        is_due = False
        for own, side in zip(live, self.kept.sides, strict=True):
            if side is not None and side.store.num_rows >= side.compact_at:
                is_due |= 2 * own.size <= side.store.num_rows
                side.compact_at = max(_COMPACT_MIN, 2 * own.size)
        if not is_due:
            return
        self._marks = {}  # rows are numbered anew
        for index, side in enumerate(self.kept.sides):
            if side is None:
                continue
            own, size = live[index], live[index].size
            for numbers in (self._partners[index], self._hashes[index], self._touched[index]):
                if numbers.capacity:
                    numbers.reserve(side.store.num_rows)
                    numbers.array[:size] = numbers.array[own]
            side.store.keep(own)
            self._num_hashed[index] = int(np.searchsorted(own, self._num_hashed[index]))
        table = self.kept.table
        assert table is not None
        used = np.zeros(table.num_slots, np.bool_)
        for side in sides:
            used[side.store.slots] = True
        slots = np.flatnonzero(used)
        if used.size < _COMPACT_MIN or 2 * slots.size > used.size:
            return
        self.kept.table = SlotTable(table.kinds)
        slot_of_slot = np.zeros(used.size, np.int32)
        slot_of_slot[slots] = self.kept.table.slots_of(table.keys_of(slots))
        for side in sides:
            side.store.keep(np.arange(side.store.num_rows), slot_of_slot)

    def _store(self, side: int) -> RowStore:
        own = self.kept.sides[side]
        assert own is not None
        return own.store

    def _live(self, side: int) -> Array:
        """Return the rows that are kept, rising."""
        import numpy as np

        own = self.kept.sides[side]
        if own is None:
            return np.zeros(0, np.int64)
        return np.flatnonzero(own.store.times_ms > self.floor_ms(self.now_ms()))

    # --- snapshots

    def num_entries(self) -> int:
        return self.kept.num_entries()

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        for group, chunk in chunks.items():
            found = list(records_in(chunk))
            is_known = group not in self.others
            if not (is_known and all(self.define(records.side, records.columns.schema) for records in found)):
                self.others[group] = self.others.get(group, b"") + self._given_up(group) + chunk
                continue
            for records in found:
                self._take_up(records, group)

    def _take_up(self, records: SideRecords, group: int) -> None:
        import numpy as np

        from engine.operators import regular_join_kernels as kernels

        side, columns, partners = records.side, records.columns, records.partners
        self._has_restored = True
        times_ms = np.zeros_like(records.times_ms)
        if self._expiry is not None:  # what had no time to live is as if written now
            times_ms = np.where(records.times_ms > 0, records.times_ms, self.now_ms())
        if partners is None:
            partners = np.full(times_ms.size, _ALL)
            is_new = np.ones(times_ms.size, np.bool_)
        else:
            self.is_counted = True
            numbers, rows = self._restored_rows.get((side, group), (np.zeros(0, np.int64), np.zeros(0, np.int64)))
            at = np.searchsorted(numbers, records.arrivals)
            is_known = np.append(numbers, -1)[at] == records.arrivals
            again = rows[at[is_known]]
            is_gone = partners == GONE
            links = self._store(side).chains[0]
            links[again, 0] = np.where(is_gone, kernels.GONE, times_ms)[is_known]
            if self._is_outer[side]:
                self._partners[side].array[again] = partners[is_known]
            is_new = ~(is_known | is_gone)
        if not is_new.all():
            columns, times_ms, partners = columns.filter(arrow_of(is_new)), times_ms[is_new], partners[is_new]
        first = self._store(side).num_rows
        self.kept.append(side, columns, times_ms, self.kept.slots_of(side, columns))
        end = first + times_ms.size
        self._touched[side].reserve(end)
        if self._is_outer[side]:
            self._partners[side].reserve(end)
            self._partners[side].array[first:end] = partners
        if records.partners is not None:
            numbers = np.concatenate([numbers, records.arrivals[is_new]])
            self._restored_rows[side, group] = numbers, np.concatenate([rows, np.arange(first, end)])

    def _given_up(self, group: int) -> bytes:
        """Return a chunk of what was restored of a key group and can be counted, as its later layers are for others."""
        import numpy as np

        from engine.operators import regular_join_kernels as kernels

        pieces = []
        for side in range(2):
            numbers, rows = self._restored_rows.pop((side, group), (None, None))
            if numbers is None or rows is None:
                continue
            store = self._store(side)
            times_ms = store.times_ms[rows]
            is_live = times_ms != kernels.GONE
            rows, numbers, times_ms = rows[is_live], numbers[is_live], times_ms[is_live]
            partners = self._partners[side].array[rows] if self._is_outer[side] else np.zeros(rows.size, np.int64)
            records = SideRecords(side, store.records(rows), times_ms, numbers, 0, partners)
            pieces.append((records, np.full(rows.size, group)))
            store.chains[0][rows, 0] = kernels.GONE
        return chunks_of(pieces, {group}).get(group, b"")

    def snapshot(self, key_groups: Iterable[int]) -> dict[int, bytes]:
        self._settle()
        wanted = set(key_groups)
        chunks = chunks_of(self._kept_since(None), wanted)
        for group, chunk in self.others.items():
            if group in wanted:
                chunks[group] = chunks.get(group, b"") + chunk
        return chunks

    def records(self) -> Iterator[SideRecords]:
        """Yield all that is kept, each side in order of arrival."""
        self._settle()
        for records, _ in self._kept_since(None):
            yield records
        for chunk in self.others.values():
            yield from in_order(records_in(chunk))

    def _kept_since(self, mark: tuple[tuple[int, int], int] | None) -> Iterator[tuple[SideRecords, Array]]:
        """Yield records with their key groups; ``mark``: those that have changed since then."""
        import numpy as np

        from engine.state.column_hash import groups_of_rows

        for index, side in enumerate(self.kept.sides):
            if side is None:
                continue
            store = side.store
            rows = self._live(index) if mark is None else self._changed(index, mark)
            for at in range(0, rows.size, _ROWS_MAX):
                part = rows[at : at + _ROWS_MAX]
                columns, times_ms = store.records(part), store.times_ms[part]
                keys = [columns.column(key) for key in side.keys]
                groups = groups_of_rows(keys, self._max_parallelism, is_tuple=self._is_tuple).astype("int64")
                partners = None
                if self.is_counted:
                    partners = self._partners[index].array[part] if self._is_outer[index] else np.zeros_like(part)
                    partners = np.where(times_ms > _GONE_MS, partners, GONE)
                yield SideRecords(index, columns, times_ms, part, 0, partners), groups

    # --- DeltaPart

    def _num_rows(self) -> tuple[int, int]:
        left, right = (0 if side is None else side.store.num_rows for side in self.kept.sides)
        return left, right

    def _mark(self, checkpoint_id: int) -> tuple[tuple[int, int], int] | None:
        return None if self.others else self._marks.get(checkpoint_id)

    def _changed(self, side: int, mark: tuple[tuple[int, int], int]) -> Array:
        """Return the rows that were written since, rising, and those that were there and have gone."""
        import numpy as np

        (num_rows, epoch), store = (mark[0][side], mark[1]), self._store(side)
        if not self.is_counted:
            return np.arange(num_rows, store.num_rows)
        rows = np.flatnonzero(self._touched[side].array[: store.num_rows] >= epoch)
        return rows[(store.times_ms[rows] > _GONE_MS) | (rows < num_rows)]

    def snapshot_delta(self, key_groups: Iterable[int], since_checkpoint_id: int) -> dict[int, bytes] | None:
        mark = self._mark(since_checkpoint_id)
        return None if mark is None else chunks_of(self._kept_since(mark), key_groups)

    def num_changed(self, since_checkpoint_id: int, at_most: int) -> int | None:
        mark = self._mark(since_checkpoint_id)
        if mark is None:
            return None
        sides = [side for side, own in enumerate(self.kept.sides) if own is not None]
        num = sum(self._changed(side, mark).size for side in sides)
        return num if num <= at_most else None

    def begin_epoch(self, checkpoint_id: int) -> None:
        if self.is_counted and self._has_restored:
            return  # rows have other numbers than in what was restored
        self.epoch += 1
        self._marks[checkpoint_id] = self._num_rows(), self.epoch
        while len(self._marks) > EPOCHS_MAX:
            del self._marks[min(self._marks)]  # what builds on it is a full one

    def forget_epochs(self, until_checkpoint_id: int, kept_ids: Container[int] = ()) -> None:
        self._marks = {id: mark for id, mark in self._marks.items() if id >= until_checkpoint_id or id in kept_ids}


def _arrays(dtype: str) -> list[PagedArray]:
    from engine.state.paged_array import PagedArray

    return [PagedArray(dtype), PagedArray(dtype)]
