"""Columns of state: one value a slot. Numbers, times, decimals in arrays, structs by field, all else by a code.

A column knows nothing of keys. Values of text and bytes are kept once each in a table of their own and stand here as
the number of their place in it; lists and maps in an arena, each for itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol, final

import numpy as np

from engine.core.arrow_arrays import arrow_of, bools_of
from engine.state.arrow_views import is_int64_like, is_text_like, valid_mask, values_of
from engine.state.paged_array import PagedArray
from engine.state.short_decimals import first_long, lanes_of, of_units, units_of
from engine.state.slot_table import SlotTable
from engine.state.value_arena import ValueArena

if TYPE_CHECKING:
    import pyarrow as pa

    Array = np.ndarray[Any, Any]
    Slots = Array | slice

__all__ = [
    "CodedColumn",
    "DecimalColumn",
    "FixedColumn",
    "NestedColumn",
    "StateColumn",
    "StructColumn",
    "can_be_kept",
    "state_column",
]

#: Fewer distinct values, or lists that nothing holds any more, are not worth to be looked through.
_RENEW_MIN: Final = 1 << 16
#: Lists that are copied at once: their elements are counted in 32 bits.
_COPIED_MAX: Final = 1 << 18


class StateColumn(Protocol):
    kind: pa.DataType

    def reserve(self, num_slots: int) -> None: ...

    def put(self, slots: Slots, column: pa.Array) -> None:
        """Set the values of these slots, one a row, in order: of equal slots the last one stays."""
        ...

    def get(self, slots: Slots) -> pa.Array: ...

    def compact(self, kept: Array) -> None: ...

    def trim(self, num_slots: int) -> None:
        """Give back what was reserved for slots to come."""
        ...

    @property
    def nbytes(self) -> int: ...


def can_be_kept(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_map(kind):
        return can_be_kept(kind.key_type) and can_be_kept(kind.item_type)
    if pa.types.is_struct(kind):
        return kind.num_fields > 0 and all(can_be_kept(field.type) for field in kind)
    if _is_list(kind):
        return can_be_kept(kind.value_type)
    return is_int64_like(kind) or is_text_like(kind)


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def state_column(kind: pa.DataType) -> StateColumn:
    """Return an empty column of that type, for which ``can_be_kept`` holds."""
    import pyarrow as pa

    if pa.types.is_struct(kind) and all(field.nullable for field in kind):
        return StructColumn(kind)
    if kind.num_fields:
        return NestedColumn(kind)
    if pa.types.is_decimal128(kind):
        return DecimalColumn(kind)
    return FixedColumn(kind) if is_int64_like(kind) else CodedColumn(kind)


class _ArrayColumn:
    """``values.array``: entries are zero at first."""

    def __init__(self, kind: pa.DataType, values: PagedArray) -> None:
        self.kind = kind
        self.values = values
        #: 1 where null; made when the first null comes
        self._nulls: PagedArray | None = None

    def reserve(self, num_slots: int) -> None:
        self.values.reserve(num_slots)
        if self._nulls is not None:
            self._nulls.reserve(num_slots)

    def _put_nulls(self, slots: Slots, column: pa.Array) -> None:
        if column.null_count and self._nulls is None:
            self._nulls = PagedArray(np.uint8)
            self._nulls.reserve(self.values.capacity)
        if self._nulls is not None:
            self._nulls.array[slots] = ~valid_mask(column)

    def _taken(self, slots: Slots) -> tuple[Array, Array | None]:
        """Return copies of values, and which are null."""
        values = self.values.array[slots]
        if isinstance(slots, slice):
            values = values.copy()  # state goes on changing, batches do not
        return values, None if self._nulls is None else self._nulls.array[slots] != 0

    def compact(self, kept: Array) -> None:
        for array in (self.values, self._nulls):
            if array is not None:
                moved = array.array[kept]
                array.array[:] = 0
                array.array[: kept.size] = moved

    def trim(self, num_slots: int) -> None:
        self.values.trim(num_slots)
        if self._nulls is not None:
            self._nulls.trim(num_slots)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self._nulls is None else self._nulls.nbytes)


@final
class FixedColumn(_ArrayColumn):
    """``values.array``: the values as they are in Arrow (booleans as uint8), for kernels."""

    def __init__(self, kind: pa.DataType) -> None:
        import pyarrow as pa

        self._is_bool = pa.types.is_boolean(kind)
        super().__init__(kind, PagedArray(np.uint8 if self._is_bool else values_of(pa.nulls(0, kind)).dtype))

    @property
    def is_plain(self) -> bool:
        """Whether ``values`` are all numbers as records have them, none of them null."""
        import pyarrow as pa

        is_number = not (self._is_bool or pa.types.is_temporal(self.kind))
        return is_number and self._nulls is None

    def put(self, slots: Slots, column: pa.Array) -> None:
        values = self.values.array
        if self._is_bool:
            bools = bools_of(column)
            values[slots] = bools & valid_mask(column) if column.null_count else bools
        else:
            values[slots] = values_of(column)
        self._put_nulls(slots, column)

    def get(self, slots: Slots) -> pa.Array:
        import pyarrow as pa

        values, mask = self._taken(slots)
        if self._is_bool:
            return arrow_of(values != 0, self.kind, mask=mask)
        if not pa.types.is_temporal(self.kind):
            return arrow_of(values, self.kind, mask=mask)
        return arrow_of(values, pa.int32() if values.dtype == np.int32 else pa.int64(), mask=mask).view(self.kind)


@final
class DecimalColumn(_ArrayColumn):
    """``values.array``: integers of 64 bits, for kernels, or lanes (``short_decimals``) since the first value of more
    than 18 digits, whatever the type says: as a rule none comes."""

    def __init__(self, kind: pa.DataType) -> None:
        super().__init__(kind, PagedArray(np.int64))

    @property
    def is_wide(self) -> bool:
        return self.values.array.ndim == 2

    def has_room_for(self, column: pa.Array) -> bool:
        """Whether the values can be put here as things are."""
        return self.is_wide or first_long(column) == len(column)

    def widen(self) -> None:
        """Have lanes from now on."""
        if self.is_wide:
            return
        before, self.values = self.values.array, PagedArray(np.int64, 2)
        self.values.reserve(before.size)
        lanes = self.values.array
        lanes[: before.size, 0] = before
        lanes[: before.size, 1] = before >> 63

    def put(self, slots: Slots, column: pa.Array) -> None:
        if not self.has_room_for(column):
            self.widen()
        self.values.array[slots] = lanes_of(column) if self.is_wide else units_of(column)
        self._put_nulls(slots, column)

    def get(self, slots: Slots) -> pa.Array:
        values, mask = self._taken(slots)
        return of_units(values, self.kind, mask=mask)


@final
class CodedColumn:
    def __init__(self, kind: pa.DataType) -> None:
        self.kind = kind
        self._distinct = SlotTable([kind])
        self._codes = PagedArray(np.int32)
        #: with so many distinct values those that no entry has any more are forgotten
        self._renew_at = _RENEW_MIN

    def reserve(self, num_slots: int) -> None:
        self._codes.reserve(num_slots)

    def put(self, slots: Slots, column: pa.Array) -> None:
        self._codes.array[slots] = self._distinct.slots_of([column])
        if self._distinct.num_slots > self._renew_at:
            held = self._distinct.keys_of(self._codes.array)[0]
            self._distinct = SlotTable([self.kind])
            self._codes.array[:] = self._distinct.slots_of([held])
            self._renew_at = max(_RENEW_MIN, 2 * self._distinct.num_slots)

    def get(self, slots: Slots) -> pa.Array:
        return self._distinct.keys_of(self._codes.array[slots])[0]

    def compact(self, kept: Array) -> None:
        column = self.get(kept)
        self._distinct = SlotTable([self.kind])
        self.put(slice(0, kept.size), column)

    def trim(self, num_slots: int) -> None:
        self._codes.trim(num_slots)
        self._distinct.trim()

    @property
    def nbytes(self) -> int:
        return self._codes.nbytes + self._distinct.nbytes


@final
class StructColumn:
    """Rows within records: a column for each field, and one for which of them are there."""

    def __init__(self, kind: pa.DataType) -> None:
        import pyarrow as pa

        self.kind = kind
        self._are_there = FixedColumn(pa.bool_())
        self._fields = [state_column(field.type) for field in kind]

    @property
    def _columns(self) -> list[StateColumn]:
        return [self._are_there, *self._fields]

    def reserve(self, num_slots: int) -> None:
        for column in self._columns:
            column.reserve(num_slots)

    def put(self, slots: Slots, column: pa.Array) -> None:
        self._are_there.put(slots, column.is_valid())
        for own, field in zip(self._fields, column.flatten(), strict=True):
            own.put(slots, field)

    def get(self, slots: Slots) -> pa.Array:
        import pyarrow as pa
        import pyarrow.compute as pc

        fields, is_null = [own.get(slots) for own in self._fields], pc.invert(self._are_there.get(slots))
        return pa.StructArray.from_arrays(fields, fields=list(self.kind), mask=is_null)

    def compact(self, kept: Array) -> None:
        for column in self._columns:
            column.compact(kept)

    def trim(self, num_slots: int) -> None:
        for column in self._columns:
            column.trim(num_slots)

    @property
    def nbytes(self) -> int:
        return sum(column.nbytes for column in self._columns)


@final
class NestedColumn:
    """Lists, maps, structs of which a field is never null. What no slot holds any more is forgotten once it is most."""

    def __init__(self, kind: pa.DataType) -> None:
        self.kind = kind
        self._arena = ValueArena(kind)
        #: by slot, the number in the arena plus 1; 0 = nothing has been put there
        self._numbers = PagedArray(np.int64)
        self._num_dead = 0

    def reserve(self, num_slots: int) -> None:
        self._numbers.reserve(num_slots)

    def put(self, slots: Slots, column: pa.Array) -> None:
        numbers = self._numbers.array
        if isinstance(slots, slice):
            self._num_dead += int(np.count_nonzero(numbers[slots]))
            first = self._arena.add(column) + 1
            numbers[slots] = np.arange(first, first + len(column))
        else:
            before, rows = numbers[slots], np.arange(slots.size)
            numbers[slots] = rows
            last = np.flatnonzero(numbers[slots] == rows)
            self._num_dead += int(np.count_nonzero(before[last]))
            first = self._arena.add(column if last.size == slots.size else column.take(arrow_of(last))) + 1
            numbers[slots[last]] = np.arange(first, first + last.size)
        if self._num_dead > max(_RENEW_MIN, self._arena.num_slots - self._num_dead):
            self._renew(np.flatnonzero(numbers))

    def _renew(self, held: Array) -> None:
        """Have but what these slots hold."""
        arena, numbers = ValueArena(self.kind), self._numbers.array
        for at in range(0, held.size, _COPIED_MAX):
            part = held[at : at + _COPIED_MAX]
            first = arena.add(self.get(part)) + 1
            numbers[part] = np.arange(first, first + part.size)
        self._arena, self._num_dead = arena, 0

    def get(self, slots: Slots) -> pa.Array:
        return self._arena.get(self._numbers.array[slots] - 1)

    def compact(self, kept: Array) -> None:
        moved = self._numbers.array[kept]
        self._numbers.array[:] = 0
        self._numbers.array[: kept.size] = moved
        self._renew(np.flatnonzero(self._numbers.array))

    def trim(self, num_slots: int) -> None:
        self._numbers.trim(num_slots)

    @property
    def nbytes(self) -> int:
        return self._numbers.nbytes + self._arena.nbytes
