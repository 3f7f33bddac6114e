"""Which records of each key there are, in their order: what a top-N of a changelog keeps on columns beside the records.

Records are numbered by place; one that is taken back gives its place to the next that comes. It is found by its order
and a hash of the whole record; that no other record has that hash is seen before anything is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, final

import numpy as np
import pyarrow as pa

from engine.core.arrow_arrays import arrow_of
from engine.operators.record_equality import are_equal, hashes_of_records
from engine.state.paged_array import PagedArray

Array = np.ndarray[Any, Any]

__all__ = ["TopSegments"]

#: A smaller arena is not packed.
_PACKED_MIN: Final = 1 << 16
#: Most of a packed arena is taken.
_PACKED_SHARE: Final = 4


@final
class TopSegments:
    """``num_records``: of all keys; ``num_places``: that have been in use at a time."""

    def __init__(self) -> None:
        self.num_places = 0
        self.owners, self._hashes = PagedArray(np.int64), PagedArray(np.uint64)
        self._segments, self._arena, self._free = PagedArray(np.int64, 3), PagedArray(np.int64), PagedArray(np.int64)
        self._num_free = self._end = 0

    @property
    def num_records(self) -> int:
        return self.num_places - self._num_free

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in (self.owners, self._hashes, self._segments, self._arena, self._free))

    def _of_rows(self, columns: pa.RecordBatch, kinds: Array | None, slots: Array, lanes: Array) -> Any:
        hashes, can_match = hashes_of_records(columns)
        own_kinds = np.zeros(slots.size, np.int8) if kinds is None else np.array(kinds, np.int8)
        return slots, own_kinds, lanes, hashes, can_match

    def tells_apart(
        self,
        columns: pa.RecordBatch,
        kinds: Array,
        given: tuple[Array, int, Array, Array],
        records_at: Callable[[Array], pa.RecordBatch],
    ) -> bool:
        """Whether records that have one hash are equal, as far as a batch takes some of them back. ``given``: slots and
        their number, lanes, lanes held; ``records_at``: of places."""
        from engine.operators.top_segment_kernels import find_equal

        slots, num_slots, lanes, held = given
        self._segments.reserve(num_slots)
        of_rows = self._of_rows(columns, kinds, slots, lanes)
        hashes, can_match = of_rows[3:]
        order = np.argsort(np.where(can_match != 0, hashes, np.uint64(0)), kind="stable")
        order = order[can_match[order] != 0]
        same = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
        if not are_equal(columns.take(arrow_of(order[same])), columns.take(arrow_of(order[same + 1]))).all():
            return False
        pairs = np.empty((2 * slots.size, 2), np.int64)
        arrays = self.owners.array, held, self._hashes.array
        while (num := find_equal(of_rows, self._segments.array, self._arena.array, arrays, pairs)) > pairs.shape[0]:
            pairs = np.empty((num, 2), np.int64)
        found = columns.take(arrow_of(pairs[:num, 0].copy()))
        return bool(are_equal(found, records_at(pairs[:num, 1].copy())).all())

    def take(
        self,
        columns: pa.RecordBatch,
        kinds: Array | None,
        given: tuple[Array, int, Array, PagedArray],
        how: tuple[int, bool],
        base: int,
        place_of_row: Array,
        out: Array,
    ) -> Iterator[Array]:
        """Take up records; yield what changes in portions, as ``take_changes`` writes it to ``out``. All must be asked
        for. ``given``: slots and their number, lanes, lanes held."""
        from engine.operators.top_segment_kernels import take_changes

        slots, num_slots, lanes, held = given
        self._segments.reserve(num_slots)
        for by_place in (self.owners, self._hashes, held, self._free):
            by_place.reserve(self.num_places + slots.size)
        of_rows = self._of_rows(columns, kinds, slots, lanes)
        row = 0
        while row < slots.size:
            # Room for the segment of that row at twice its size; kernels come back when there is none.
            size = int(self._segments.array[slots[row], 1])
            self._arena.reserve(self._end + 2 * size + max(64, slots.size))
            at = row, self.num_places, self._num_free, self._end
            arrays = self.owners.array, held.array, self._hashes.array
            row, self.num_places, self._num_free, self._end, num = take_changes(
                of_rows,
                at,
                how,
                base,
                self._segments.array,
                self._arena.array,
                arrays,
                self._free.array,
                place_of_row,
                out,
            )
            if num:
                yield out[:num]
        if self._end > max(_PACKED_MIN, _PACKED_SHARE * self.num_records):
            self._pack(num_slots)

    def _pack(self, num_slots: int) -> None:
        from engine.operators.top_segment_kernels import pack_segments

        fresh = PagedArray(np.int64)
        fresh.reserve(self.num_records)
        self._end = pack_segments(self._segments.array, self._arena.array, num_slots, fresh.array)
        self._arena = fresh

    def order(self, num_slots: int) -> tuple[Array, Array]:
        """Return the places of all records, those of a key in their order, and their ranks."""
        from engine.operators.top_segment_kernels import order_of_segments

        order, ranks = (np.empty(self.num_records, np.int64) for _ in range(2))
        order_of_segments(
            self._segments.array, self._arena.array, min(num_slots, self._segments.capacity), order, ranks
        )
        return order, ranks
