"""Keys of columns → slots: the index of columnar keyed state. What a slot holds is kept by its users, in arrays.

Slots are numbered in order of first sight and stay as they are until ``compact``. A key may be one column or several,
of any Arrow type that is a number, a time, text, bytes or a decimal, or a struct of such (``struct_keys``), texts also
in tidy dictionaries; null is a key like any other, all NaN are one key, and 0.0 and -0.0 are one. The index grows bit
by bit: no batch waits for a rehash of everything, nor for the pages of an index that is twice as large.

Memory a key: 8 bytes for a number, or its bytes + 4 for a text; 5 to 10 bytes of index, 15 at most just after it has
grown. Kernels: ``slot_kernels``.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, final

import numpy as np

from engine.core.arrow_arrays import arrow_of
from engine.core.dictionaries import is_tidy_type
from engine.state.arrow_views import (
    as_int64,
    fixed_width,
    from_int64,
    is_int64_like,
    is_text_like,
    of_texts,
    text_views,
    valid_mask,
)
from engine.state.encoded_keys import EncodedKeys
from engine.state.paged_array import PagedArray, zeros
from engine.state.struct_keys import KeyParts

if TYPE_CHECKING:
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

__all__ = ["SLOTS_MAX", "SlotTable", "can_be_key"]

SLOTS_MAX: Final = (1 << 31) - 2
_BUCKETS_MIN: Final = 1 << 10
#: The index grows when so many of its buckets are taken.
_LOAD_MAX: Final = 0.8
#: Buckets that are carried over for each row that comes in while the index grows: done long before it is full again.
_CARRIED_PER_ROW: Final = 8
_CARRIED_MIN: Final = 4096
#: New keys fall on all pages of a larger index at once, and the kernel clears each (2 MB in up to 4 ms). So its pages
#: are touched one after the other while the last eighth of the smaller one fills: a page or less for a batch.
_TOUCHED_WITHIN: Final = 8
#: A smaller index takes no time worth it.
_TOUCHED_BYTES_MIN: Final = 4 << 20
#: Bytes of texts up to which 32 bits tell where one begins. Beyond, once in a table's life, all places are copied.
_NARROW_BYTES_MAX: Final = (1 << 32) - 1
#: Entries from one touch to the next: where large pages cannot be had, small ones are.
_TOUCHED_STEP: Final = mmap.PAGESIZE // 4


def can_be_key(kind: pa.DataType) -> bool:
    """Whether a column of this type can be (a part of) a key, of which there is but one value: not a struct."""
    return is_int64_like(kind) or is_text_like(kind)


class _Keys(Protocol):
    """The keys of one table in arrays, and the kernels that go with them. ``keys``: a batch of them, prepared."""

    def prepare(self, columns: Sequence[pa.Array]) -> tuple[Any, int]:
        """Return the keys and their number. Nulls have been left out."""
        ...

    def reserve(self, num_slots: int, keys: Any, row: int) -> None:
        """Make room for a further slot, that of the key at ``row``, and some more."""
        ...

    def add_blank(self, slot: int) -> None:
        """Give a slot to a key without a value: null."""
        ...

    def find(self, keys: Any, row: int, buckets: Any, counts: Any, slot_of_row: Array, first: Array) -> Any: ...

    def carry_over(self, old: Array, start: int, end: int, fresh: Array) -> None: ...

    def columns_of(self, slots: Array) -> list[pa.Array]: ...

    def trim(self, num_slots: int) -> None:
        """Give back what was reserved for slots to come."""
        ...

    @property
    def capacity(self) -> int: ...

    @property
    def nbytes(self) -> int: ...


@final
class _IntKeys:
    def __init__(self, kind: pa.DataType) -> None:
        from engine.state import slot_kernels

        self._kernels = slot_kernels
        self._kind = kind
        self._keys = PagedArray(np.int64)

    def prepare(self, columns: Sequence[pa.Array]) -> tuple[Any, int]:
        keys = as_int64(columns[0])
        return keys, keys.size

    def reserve(self, num_slots: int, keys: Any, row: int) -> None:
        self._keys.reserve(num_slots + 1)

    def add_blank(self, slot: int) -> None:
        self._keys.reserve(slot + 1)

    def find(self, keys: Any, row: int, buckets: Any, counts: Any, slot_of_row: Array, first: Array) -> Any:
        return self._kernels.find_int_slots(keys, row, buckets, self._keys.array, counts, slot_of_row, first)

    def carry_over(self, old: Array, start: int, end: int, fresh: Array) -> None:
        self._kernels.carry_over_ints(old, start, end, self._keys.array, fresh)

    def columns_of(self, slots: Array) -> list[pa.Array]:
        return [from_int64(self._keys.array[slots], self._kind, None)]

    def trim(self, num_slots: int) -> None:
        self._keys.trim(num_slots)

    @property
    def capacity(self) -> int:
        return self._keys.capacity

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes


@final
class _TextKeys:
    def __init__(self, kind: pa.DataType) -> None:
        from engine.state import slot_kernels

        self._kernels = slot_kernels
        self._kind = kind
        self._arena = PagedArray(np.uint8)
        #: where each slot's bytes begin in the arena, with the end of the last one: 32 bits as long as that is enough
        self._begins = PagedArray(np.uint32)

    def prepare(self, columns: Sequence[pa.Array]) -> tuple[Any, int]:
        return text_views(columns[0]), len(columns[0])

    def reserve(self, num_slots: int, keys: Any, row: int) -> None:
        offsets, _ = keys
        used = int(self._begins.array[num_slots]) if self._begins.capacity else 0
        self._arena.reserve(used + int(offsets[row + 1] - offsets[row]))
        if self._arena.capacity > _NARROW_BYTES_MAX:
            self.widen()
        self._begins.reserve(num_slots + 2)

    def widen(self) -> None:
        """Have 64 bits tell where a text begins, if they do not yet."""
        narrow = self._begins.array
        if narrow.dtype == np.uint32:
            self._begins = PagedArray(np.int64)
            self._begins.reserve(narrow.size)
            self._begins.array[: narrow.size] = narrow

    def add_blank(self, slot: int) -> None:
        width = fixed_width(self._kind)
        self.reserve(slot, (np.array([0, width], np.int64), None), 0)
        self._begins.array[slot + 1] = self._begins.array[slot] + width

    def find(self, keys: Any, row: int, buckets: Any, counts: Any, slot_of_row: Array, first: Array) -> Any:
        own = self._arena.array, self._begins.array
        return self._kernels.find_text_slots(keys, row, buckets, own, counts, slot_of_row, first)

    def carry_over(self, old: Array, start: int, end: int, fresh: Array) -> None:
        self._kernels.carry_over_texts(old, start, end, (self._arena.array, self._begins.array), fresh)

    def columns_of(self, slots: Array) -> list[pa.Array]:
        begins = self._begins.array
        slots = np.ascontiguousarray(slots)  # kernels are compiled for no other
        offsets = np.zeros(slots.size + 1, np.int64)
        np.cumsum(begins[slots + 1] - begins[slots], out=offsets[1:])
        content = np.empty(int(offsets[-1]), np.uint8)
        self._kernels.gather_texts(self._arena.array, begins, slots, offsets, content)
        return [of_texts(offsets, content, self._kind)]

    def trim(self, num_slots: int) -> None:
        self._arena.trim(int(self._begins.array[num_slots]) if num_slots else 0)
        self._begins.trim(num_slots + 1)

    @property
    def capacity(self) -> int:
        return self._begins.capacity - 1

    @property
    def nbytes(self) -> int:
        return self._arena.nbytes + self._begins.nbytes


@final
class _LaneKeys:
    """Keys of several columns: an int64 lane each, texts by a number of their own, and a lane for what is null."""

    def __init__(self, kinds: Sequence[pa.DataType]) -> None:
        from engine.state import slot_kernels

        self._kernels = slot_kernels
        self._kinds = kinds
        self._codes = [None if is_int64_like(kind) else SlotTable([kind]) for kind in kinds]
        self._keys = PagedArray(np.int64, len(kinds) + 1)

    def prepare(self, columns: Sequence[pa.Array]) -> tuple[Any, int]:
        lanes = np.empty((len(columns[0]), len(columns) + 1), np.int64)
        nulls = np.zeros(len(columns[0]), np.int64)
        for lane, (column, codes) in enumerate(zip(columns, self._codes, strict=True)):
            if codes is not None:
                lanes[:, lane] = codes.slots_of([column])
                continue
            values = as_int64(column)
            if column.null_count:
                valid = valid_mask(column)
                values = np.where(valid, values, 0)
                nulls |= (~valid).astype(np.int64) << lane
            lanes[:, lane] = values
        lanes[:, -1] = nulls
        return lanes, lanes.shape[0]

    def reserve(self, num_slots: int, keys: Any, row: int) -> None:
        self._keys.reserve(num_slots + 1)

    def add_blank(self, slot: int) -> None:
        self._keys.reserve(slot + 1)

    def find(self, keys: Any, row: int, buckets: Any, counts: Any, slot_of_row: Array, first: Array) -> Any:
        return self._kernels.find_lane_slots(keys, row, buckets, self._keys.array, counts, slot_of_row, first)

    def carry_over(self, old: Array, start: int, end: int, fresh: Array) -> None:
        self._kernels.carry_over_lanes(old, start, end, self._keys.array, fresh)

    def columns_of(self, slots: Array) -> list[pa.Array]:
        lanes = self._keys.array[slots]
        columns = []
        for lane, (kind, codes) in enumerate(zip(self._kinds, self._codes, strict=True)):
            values = np.ascontiguousarray(lanes[:, lane])
            if codes is not None:
                columns += codes.keys_of(values)
            else:
                columns.append(from_int64(values, kind, (lanes[:, -1] >> lane) & 1 == 0))
        return columns

    def trim(self, num_slots: int) -> None:
        self._keys.trim(num_slots)
        for codes in self._codes:
            if codes is not None:
                codes.trim()

    @property
    def capacity(self) -> int:
        return self._keys.capacity

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + sum(codes.nbytes for codes in self._codes if codes is not None)


@final
class SlotTable:
    """``kinds``: the Arrow types of the key's columns; ``can_be_key`` or ``can_be_row_key`` holds for each."""

    def __init__(self, kinds: Sequence[pa.DataType]) -> None:
        self.kinds = list(kinds)
        self._make()

    def _make(self) -> None:
        self._parts = KeyParts(self.kinds)
        kinds = self._parts.kinds
        self._keys: _Keys
        if len(kinds) > 1:
            self._keys = _LaneKeys(kinds)
        else:
            self._keys = _IntKeys(kinds[0]) if is_int64_like(kinds[0]) else _TextKeys(kinds[0])
        self._fresh: Array = np.zeros(_BUCKETS_MIN, np.uint32)
        self._old: Array = np.zeros(0, np.uint32)
        self._carried = 0
        #: the index to grow into, and how many of its buckets have memory
        self._next: Array = np.zeros(0, np.uint32)
        self._touched = 0
        self.num_slots = 0
        #: slot of the key null when there is one column, or -1
        self._null_slot = -1
        self._encoded = EncodedKeys()

    def __getstate__(self) -> dict[str, Any]:
        """The index to grow into is not content: it would be read as zeros, and written. Nor is what is remembered."""
        return {**self.__dict__, "_next": np.zeros(0, np.uint32), "_touched": 0, "_encoded": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._encoded = EncodedKeys()

    @property
    def nbytes(self) -> int:
        index = self._fresh.nbytes + self._old.nbytes + self._touched * self._next.itemsize
        return self._keys.nbytes + index + self._encoded.nbytes

    # --- finding -----------------------------------------------------------------------------------------------------

    def slots_of(self, columns: Sequence[pa.Array]) -> Array:
        """Return the slot of each row's key, int32; new keys get new slots."""
        return self.find(columns)[0]

    def find(self, columns: Sequence[pa.Array]) -> tuple[Array, Array]:
        """Return the slot of each row, int32, and the rows that made the new slots, in order of these."""
        columns = self._parts.of(columns)
        column = columns[0]
        if len(columns) == 1 and is_tidy_type(column.type):
            return self._encoded.find(column, self.find)
        if len(columns) > 1 or not column.null_count:
            keys, num_rows = self._keys.prepare(columns)
            return self._find(keys, num_rows)
        valid = valid_mask(column)
        null_row = int(np.argmin(valid))
        is_new = self._null_slot < 0
        if is_new:
            self._reserve_index(0)
            self._add_null_slot()
        slots = np.full(len(column), self._null_slot, np.int32)
        keys, num_rows = self._keys.prepare([column.drop_null()])
        slots[valid], first = self._find(keys, num_rows)
        first = np.flatnonzero(valid)[first].astype(np.int32)
        return slots, np.concatenate([np.array([null_row], np.int32), first]) if is_new else first

    def find_prepared(self, keys: Any, num_rows: int) -> tuple[Array, Array]:
        """As ``find``, of keys of one column without nulls that nobody has as Arrow's: int64 values of integers, or
        (offsets, content) of texts, as ``text_views`` gives them."""
        assert len(self._parts.kinds) == 1
        return self._find(keys, num_rows)

    def _add_null_slot(self) -> None:
        """Take a slot that is in no bucket; its stored key has no meaning."""
        self._keys.add_blank(self.num_slots)
        self._null_slot = self.num_slots
        self.num_slots += 1

    def _find(self, keys: Any, num_rows: int) -> tuple[Array, Array]:
        slot_of_row = np.empty(num_rows, np.int32)
        first = np.empty(num_rows, np.int32)
        before = self.num_slots
        row, is_begun = 0, False
        while True:
            self._reserve_index(num_rows - row, is_begun=is_begun)
            is_begun = True
            slots_max = min(self._keys.capacity, int(self._fresh.size * _LOAD_MAX) - 1)
            made = self.num_slots - before
            counts = self.num_slots, slots_max
            row, self.num_slots = self._keys.find(
                keys, row, (self._fresh, self._old), counts, slot_of_row, first[made:]
            )
            if row >= num_rows:
                return slot_of_row, first[: self.num_slots - before]
            if self.num_slots >= SLOTS_MAX:
                raise MemoryError(f"One subtask has more than {SLOTS_MAX} keys; raise the parallelism.")
            self._keys.reserve(self.num_slots, keys, row)

    def _reserve_index(self, num_rows: int, *, is_begun: bool = False) -> None:
        """Grow the index if it is full; go on with an earlier growth, once a batch: not if this one ``is_begun``."""
        if self.num_slots + 1 >= int(self._fresh.size * _LOAD_MAX) - 1:
            self._carry_over(self._old.size)
            self._old, self._carried = self._fresh, 0
            self._fresh = self._next if self._next.size else zeros(2 * self._fresh.size, np.uint32)
            self._forget_next()
            is_begun = False
        if self._old.size and not is_begun:
            self._carry_over(max(_CARRIED_MIN, num_rows * _CARRIED_PER_ROW))
        elif not self._old.size:
            self._touch_next(num_rows)

    def _touch_next(self, num_rows: int) -> None:
        """Touch as much of the index to grow into as these rows, if all are new, fill of the way to where it grows."""
        slots_max = int(self._fresh.size * _LOAD_MAX) - 1
        way = slots_max // _TOUCHED_WITHIN
        done = self.num_slots + num_rows - (slots_max - way)
        size = 2 * self._fresh.size
        if done <= 0 or size * self._fresh.itemsize < _TOUCHED_BYTES_MIN:
            return
        if not self._next.size:
            self._next = zeros(size, np.uint32)
        end = min(size, size * done // way)
        if end > self._touched:
            self._next[self._touched : end : _TOUCHED_STEP] = 0
            self._touched = min(size, -(-end // _TOUCHED_STEP) * _TOUCHED_STEP)

    def _forget_next(self) -> None:
        self._next, self._touched = np.zeros(0, np.uint32), 0

    def _carry_over(self, num_buckets: int) -> None:
        end = min(self._old.size, self._carried + num_buckets)
        if end > self._carried:
            self._keys.carry_over(self._old, self._carried, end, self._fresh)
        self._carried = end
        if end == self._old.size:
            self._old, self._carried = np.zeros(0, np.uint32), 0

    # --- the keys ----------------------------------------------------------------------------------------------------

    def keys_of(self, slots: Array) -> list[pa.Array]:
        """Return the key columns of these slots."""
        columns = self._keys.columns_of(slots)
        if self._null_slot >= 0:
            import pyarrow as pa
            import pyarrow.compute as pc

            is_null = slots == self._null_slot
            if is_null.any():
                columns = [pc.if_else(arrow_of(is_null), pa.scalar(None, columns[0].type), columns[0])]
        return self._parts.whole(columns)

    def widen(self) -> None:
        """Make room for texts of more than 4 GiB, which comes by itself when it is needed: so that kernels can be
        compiled before."""
        if isinstance(self._keys, _TextKeys):
            self._keys.widen()

    def trim(self) -> None:
        """Give back what was reserved for slots to come."""
        self._keys.trim(self.num_slots)
        self._forget_next()

    def compact(self, kept: Array) -> None:
        """Forget all slots but ``kept`` (rising slot numbers); slot ``kept[i]`` becomes slot i."""
        columns = self.keys_of(kept)
        null_row = int(np.searchsorted(kept, self._null_slot)) if self._null_slot >= 0 else 0
        self._make()
        # The null key takes its slot before the others of its batch: it has to be the first one of a batch.
        for start, end in ((0, null_row), (null_row, kept.size)):
            if end > start:
                slots, _ = self.find([column.slice(start, end - start) for column in columns])
                if not np.array_equal(slots, np.arange(start, end)):
                    raise AssertionError("keys changed places")
