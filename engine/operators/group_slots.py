"""What running aggregates of a changelog keep on columns: a slot for each key, with the number of its records.

A slot without records is of a key that is gone. It stays until most are gone: increments have to say that it is gone.
Columns of type null (those of an outer join of which no partner has come) are of any type: they are made when it is
known. Not here: minima and maxima, averages of decimals, sums beyond 64 bits or 18 digits, which rows have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import pyarrow as pa

from engine.core.arrow_arrays import arrow_of
from engine.core.records import ColumnBatch, Named, RowKind, record_values, row_of_kind
from engine.operators.base import OperatorContext
from engine.operators.column_choice import mixed_column
from engine.operators.column_fields import KEY_FIELDS, column_index, is_named, named_schema
from engine.operators.computed_keys import own_records, python_keys
from engine.operators.field_aggregates import FieldAggregateOf
from engine.operators.group_aggregate import GROUP_PART, GroupAggregateSpec
from engine.operators.handed_over import BEYOND_64_BITS
from engine.operators.keys import ComposedKey, FieldKey, key_fields
from engine.state.arrow_views import valid_mask, values_of
from engine.state.paged_array import PagedArray
from engine.state.short_decimals import DIGITS_MAX, first_long, of_units, short_kind, units_of
from engine.state.slot_columns import can_be_kept, state_column
from engine.state.slot_state import SlotState
from engine.state.struct_keys import can_be_row_key

Array = np.ndarray[Any, Any]

__all__ = ["GroupSlots", "Taken"]

_NUM: Final = "num"
#: Sums of integers stay below it in any case, or rows take over.
_SUM_MAX: Final = 2**63 - 1
_UNITS_MAX: Final = 10**DIGITS_MAX - 1
#: Why rows take over.
_LONG_DECIMALS: Final = "a decimal of more than 18 digits, or a sum that may have as many"
#: Larger integers are no exact floats.
_EXACT_MAX: Final = 1 << 53
#: Fewer keys that are gone are not worth a new table.
_GONE_MIN: Final = 1 << 16
#: Keys that become Python objects at once.
_ROWS_MAX: Final = 1 << 16


@final
@dataclass(frozen=True)
class Taken:
    """What a batch does, by row: numbers of records of its slot before and after (int64, (rows, 2)); 1 = comes, -1 =
    goes, 0 = goes from nothing (int8); the results; the row of the slot's first record, -1 = in the state; the slot."""

    nums: Array
    signs: Array
    results: list[_Results]
    first_of_row: Array
    slots: Array


@final
@dataclass(frozen=True)
class _Results:
    """Of one aggregate: numbers of values and, but for counts, sums; int64 or float64, (rows, 2), before and after.
    ``kind``: of the sum's column, or of the field, which may be null."""

    aggregate: FieldAggregateOf
    counts: Array
    sums: Array | None
    kind: pa.DataType

    def are_changed(self) -> Array:
        """Return of which rows the result is another one, bool; NaN is NaN."""
        is_there = self.counts != 0
        if self.aggregate.kind == "count":
            return np.asarray(self.counts[:, 0] != self.counts[:, 1])
        if self.sums is None:
            return np.zeros(is_there.shape[0], np.bool_)
        values = self.sums
        if self.aggregate.kind == "avg":
            values = np.stack([_averages(values[:, at], self.counts[:, at]) for at in range(2)], axis=1)
        before, after = values[:, 0], values[:, 1]
        same = (before == after) | ((before != before) & (after != after))
        return np.asarray((is_there[:, 0] != is_there[:, 1]) | (is_there[:, 0] & ~same))

    def column(self, rows: Array, sides: Array) -> pa.Array:
        """Return results of rows, before (side 0) or after them (1)."""
        counts = self.counts[rows, sides]
        if self.aggregate.kind == "count":
            return arrow_of(counts)
        if self.sums is None:
            return pa.nulls(rows.size, self.kind)
        sums, mask = self.sums[rows, sides], counts == 0
        own_mask = mask if mask.any() else None
        if self.aggregate.kind == "avg":
            return arrow_of(_averages(sums, counts), mask=own_mask)
        if pa.types.is_decimal128(self.kind):
            return of_units(sums, self.kind, mask=own_mask)
        return arrow_of(sums, mask=own_mask)


def _averages(sums: Array, counts: Array) -> Array:
    """Return each sum by the number of its values, as Python divides; 0 where that is 0."""
    made = np.divide(sums, counts, out=np.zeros(counts.size), where=counts != 0)
    if sums.dtype != np.float64:
        for large in np.flatnonzero(((sums > _EXACT_MAX) | (sums < -_EXACT_MAX)) & (counts != 0)).tolist():
            made[large] = int(sums[large]) / int(counts[large])  # exact to the last digit, as on rows
    return made


@final
class GroupSlots:
    """``slots``: the registered part; ``schema``: of the records, which says whether they are Rows; None = none yet."""

    def __init__(self, ctx: OperatorContext, spec: GroupAggregateSpec, selector: FieldKey | ComposedKey) -> None:
        """``selector``: of the key's columns, which may be computed."""
        self._spec = spec
        self._fields = key_fields(selector)
        self._is_tuple = isinstance(selector, ComposedKey)
        self.slots = SlotState(ctx.runtime_context.get_max_number_of_parallel_subtasks(), is_tuple=self._is_tuple)
        self._begin()
        ctx.state.add_keyed(GROUP_PART, self.slots)

    def _begin(self) -> None:
        self.schema: pa.Schema | None = None
        self._keys: list[int] = []
        #: of each aggregate, the column of its field, -1 = it counts records
        self._aggregated: list[int] = []
        #: number of the first record of each slot, as far as it came in this life; of the next record
        self._firsts = PagedArray(np.int64)
        self._next = 1
        self._num_gone: int | None = None
        #: no sum of these columns of state is larger, or smaller than its opposite
        self._bounds: dict[str, int] = {}

    def clear(self) -> None:
        self.slots.clear()
        self._begin()

    @property
    def nbytes(self) -> int:
        return self.slots.nbytes + self._firsts.nbytes

    # --- types --------------------------------------------------------------------------------------------------------

    def define(self, schema: pa.Schema, *, named: Named) -> bool:
        """Make everything for records of that schema; False when columns cannot do it."""
        self.remember()
        if self.schema is not None:
            return self._widened(schema, named)
        schema = named_schema(schema, named)
        keys = [column_index(schema, field) for field in self._fields]
        aggregated = [-1 if each.field is None else column_index(schema, each.field) for each in self._spec.aggregates]
        if min(keys) < 0 or not all(can_be_row_key(schema.types[key]) for key in keys):
            return False
        if any(
            index < 0 and each.field is not None for index, each in zip(aggregated, self._spec.aggregates, strict=True)
        ):
            return False
        noted = schema.with_metadata({**(schema.metadata or {}), KEY_FIELDS: ",".join(map(str, keys)).encode()})
        self._know(noted)
        columns = self._columns_of(noted)
        if columns is None:
            self.schema = None
            return False
        self.slots.define([schema.types[key] for key in keys], columns)
        self.slots.note = noted.serialize().to_pybytes()
        return True

    def remember(self) -> None:
        """Know the records' schema again, if state was restored and none have come yet."""
        if self.schema is None and self.slots.note:
            self._know(pa.ipc.read_schema(pa.py_buffer(self.slots.note)))

    def _know(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._keys = [int(field) for field in schema.metadata[KEY_FIELDS].split(b",")]
        self._aggregated = [
            -1 if each.field is None else column_index(schema, each.field) for each in self._spec.aggregates
        ]

    def _kept(self, schema: pa.Schema) -> list[int]:
        """Return the columns of which each slot has its first record's value, beside the key."""
        floats = [key for key in self._keys if pa.types.is_floating(schema.types[key])]
        if not self._spec.in_place:
            return sorted(set(floats))
        rest = [index for index in range(len(schema)) if index not in self._keys and index not in self._aggregated]
        return sorted({*rest, *floats})

    def _columns_of(self, schema: pa.Schema) -> dict[str, pa.DataType] | None:
        """Return the columns of state for records of the schema, None if there is one that cannot be."""
        columns = {_NUM: pa.int64()}
        for index in self._kept(schema):
            kind = schema.types[index]
            if not pa.types.is_null(kind):
                if not can_be_kept(kind):
                    return None
                columns[f"c{index}"] = kind
        for number, (index, each) in enumerate(zip(self._aggregated, self._spec.aggregates, strict=True)):
            if index >= 0:
                columns[f"n{number}"] = pa.int64()
            kind = schema.types[index]
            if each.kind != "count" and not pa.types.is_null(kind):
                held = _held_kind(each.kind, kind)
                if held is None:
                    return None
                columns[f"s{number}"] = held
        return columns

    def _widened(self, schema: pa.Schema, named: Named) -> bool:
        """Whether records of this schema are like those before; where one of both has a column without a type, it gets
        that of the other."""
        own = self.schema
        assert own is not None
        if is_named(own) != named:
            return False
        if schema.equals(own):
            return True
        if schema.names != own.names:
            return False
        kinds = [kind if pa.types.is_null(had) else had for had, kind in zip(own.types, schema.types, strict=True)]
        if any(kind not in (had, pa.null()) for had, kind in zip(kinds, schema.types, strict=True)):
            return False
        if kinds == own.types:
            return True
        if any(own.types[key] != kinds[key] for key in self._keys):
            return False
        wide = pa.schema(list(zip(own.names, kinds, strict=True)), metadata=own.metadata)
        columns = self._columns_of(wide)
        if columns is None:
            return False
        for name, kind in columns.items():
            if name not in self.slots.columns:
                made = self.slots.columns[name] = state_column(kind)
                made.reserve(self.slots.num_slots)
                if name[0] == "c":
                    made.put(slice(0, self.slots.num_slots), pa.nulls(self.slots.num_slots, kind))
        self.slots.columns = {name: self.slots.columns[name] for name in columns}  # one order, however it came
        self._know(wide)
        self.slots.note = wide.serialize().to_pybytes()
        self.slots.forget_changes()
        return True

    # --- records come and go ------------------------------------------------------------------------------------------

    def why_not(self, columns: pa.RecordBatch) -> str:
        """Return why a sum could outgrow what is held here, in some order of the records; "" = none can."""
        bounds: dict[str, int] = {}
        for number, index in enumerate(self._aggregated):
            name = f"s{number}"
            held: Any = self.slots.columns.get(name)
            column = columns.column(index)
            if held is None or pa.types.is_floating(held.kind) or pa.types.is_null(column.type):
                continue
            is_decimal = pa.types.is_decimal128(held.kind)
            if is_decimal and first_long(column) < len(column):
                return _LONG_DECIMALS
            values = units_of(column) if is_decimal else values_of(column)
            if column.null_count:
                values = values[valid_mask(column)]
            most, more = _UNITS_MAX if is_decimal else _SUM_MAX, _largest(values) * values.size
            if (bound := self._bounds.get(name, most) + more) > most:
                bound = _largest(held.values.array[: self.slots.num_slots]) + more
            if bound > most:
                return _LONG_DECIMALS if is_decimal else BEYOND_64_BITS
            bounds[name] = bound
        self._bounds |= bounds
        return ""

    def take(self, columns: pa.RecordBatch, kinds: Array | None) -> Taken:
        """Take up records that fit. What results begin with is still that of before: see ``begin``."""
        from engine.operators import group_kernels as kernels

        state, num_rows = self.slots, columns.num_rows
        if self._num_gone is None:
            self._num_gone = state.num_slots - int(np.count_nonzero(self._nums()[: state.num_slots]))
        known = state.num_slots
        slots, first = state.find([columns.column(key) for key in self._keys])
        if first.size:  # of a retraction of nothing as well: something has to be there
            self._put_first(columns, slots, first)
        self._firsts.reserve(state.num_slots)
        own_kinds = np.zeros(num_rows, np.int8) if kinds is None else np.array(kinds, np.int8)
        signs, nums = np.empty(num_rows, np.int8), np.empty((num_rows, 2), np.int64)
        first_of_row = np.empty(num_rows, np.int64)
        num_more = kernels.count_groups(
            slots, own_kinds, self._next, self._nums(), self._firsts.array, signs, nums, first_of_row
        )
        self._next += num_rows
        self._num_gone += state.num_slots - known - num_more
        results = []
        for number, (index, each) in enumerate(zip(self._aggregated, self._spec.aggregates, strict=True)):
            if index < 0:
                results.append(_Results(each, nums, None, pa.int64()))
                continue
            column = columns.column(index)
            valid, counts = valid_mask(column), np.empty((num_rows, 2), np.int64)
            counted: Any = state.columns[f"n{number}"]
            kernels.count_values(slots, signs, nums, valid, counted.values.array, counts)
            held: Any = state.columns.get(f"s{number}")
            sums = None
            if held is not None:
                values = _numbers(column, held.kind)
                sums = np.empty((num_rows, 2), values.dtype)
                kernels.sum_values(slots, signs, counts, values, valid, held.values.array, sums)
            results.append(_Results(each, counts, sums, pa.null() if held is None else held.kind))
        state.mark(slots)
        return Taken(nums, signs, results, first_of_row, slots)

    def _nums(self) -> Array:
        column: Any = self.slots.columns[_NUM]
        nums: Array = column.values.array
        return nums

    def begun(self, index: int, columns: pa.RecordBatch, taken: Taken, rows: Array) -> pa.Array:
        """Return the value of a column that results of these rows begin with. Before ``begin`` of that batch."""
        column = columns.column(index)
        assert self.schema is not None
        kind = self.schema.types[index]
        if pa.types.is_null(column.type) and not pa.types.is_null(kind):
            column = pa.nulls(len(column), kind)
        if f"c{index}" not in self.slots.columns:
            return column.take(arrow_of(rows))  # of the key, or of no type
        chosen = taken.first_of_row[rows]
        return mixed_column(
            column, self.slots.columns[f"c{index}"], taken.slots[rows], (chosen, np.flatnonzero(chosen < 0))
        )

    def begin(self, columns: pa.RecordBatch, taken: Taken) -> None:
        """Keep the first records of slots that had none, and forget what is gone, if it is most."""
        rows = np.flatnonzero((taken.nums[:, 0] == 0) & (taken.nums[:, 1] == 1))
        if rows.size:
            self._put_first(columns, taken.slots, rows)
        assert self._num_gone is not None
        if self._num_gone > max(_GONE_MIN, self.slots.num_slots // 2):
            self.slots.forget_others(np.flatnonzero(self._nums()[: self.slots.num_slots]))
            self._firsts, self._next, self._num_gone = PagedArray(np.int64), 1, 0

    def _put_first(self, columns: pa.RecordBatch, slots: Array, rows: Array) -> None:
        order = arrow_of(rows)
        for name, own in self.slots.columns.items():
            if name[0] == "c":
                first = columns.column(int(name[1:])).take(order)
                own.put(slots[rows], pa.nulls(rows.size, own.kind) if pa.types.is_null(first.type) else first)

    @property
    def places(self) -> tuple[list[int], list[int]]:
        """The columns of the key, and those that are aggregated."""
        return self._keys, self._aggregated

    # --- what is kept -------------------------------------------------------------------------------------------------

    def groups(self) -> Iterator[tuple[list[Any], list[Any]]]:
        """Yield keys and what ``operators/group_aggregate`` has of them, of all types that were restored."""
        for state in (self.slots, *self.slots.others):
            if state.num_slots:
                reader = self if state is self.slots and self.schema is not None else self._reading(state)
                yield from reader._groups_of(state)

    def _reading(self, state: SlotState) -> GroupSlots:
        reader = object.__new__(GroupSlots)
        reader._spec, reader._fields, reader._is_tuple, reader.slots = self._spec, self._fields, self._is_tuple, state
        reader._begin()
        reader._know(pa.ipc.read_schema(pa.py_buffer(state.note)))
        return reader

    def records(self, slots: Array) -> tuple[list[pa.Array], list[_Results], Array]:
        """Return of slots the columns that results begin with, the results, and the number of records; sides of results
        are both what is held."""
        assert self.schema is not None
        assert self.slots.table is not None
        keys = self.slots.table.keys_of(slots)
        begun: list[pa.Array] = []
        for index, kind in enumerate(self.schema.types):
            if f"c{index}" in self.slots.columns:
                begun.append(self.slots.columns[f"c{index}"].get(slots))
            else:
                begun.append(keys[self._keys.index(index)] if index in self._keys else pa.nulls(slots.size, kind))
        nums = self._nums()[slots]
        results = []
        for number, (index, each) in enumerate(zip(self._aggregated, self._spec.aggregates, strict=True)):
            counted: Any = None if index < 0 else self.slots.columns[f"n{number}"]
            counts = nums if counted is None else counted.values.array[slots]
            held: Any = self.slots.columns.get(f"s{number}")
            sums = None if held is None else np.stack([held.values.array[slots]] * 2, axis=1)
            kind = pa.null() if held is None else held.kind
            results.append(_Results(each, np.stack([counts] * 2, axis=1), sums, kind))
        return begun, results, nums

    def alive(self) -> Iterator[Array]:
        """Yield the slots that have records, some at a time."""
        for at in range(0, self.slots.num_slots, _ROWS_MAX):
            end = min(at + _ROWS_MAX, self.slots.num_slots)
            yield at + np.flatnonzero(self._nums()[at:end])

    def _groups_of(self, state: SlotState) -> Iterator[tuple[list[Any], list[Any]]]:
        assert self.schema is not None
        assert state.table is not None
        names = self._spec.names
        for slots in self.alive():
            begun, results, nums = self.records(slots)
            keys = python_keys(state.table.keys_of(slots), is_tuple=self._is_tuple)
            firsts: list[Any]
            if self._spec.in_place:
                batch = ColumnBatch(
                    pa.RecordBatch.from_arrays(begun, names=self.schema.names), named=is_named(self.schema)
                )
                rows = own_records(batch).to_rows().rows
                firsts = [row_of_kind(RowKind.INSERT, row, names) for row in rows]
            else:
                own = [begun[key] for key in self._keys]
                firsts = list(zip(*map(record_values, own), strict=True))
            accumulators = zip(*map(_accumulators, results), strict=True)
            yield keys, list(zip(nums.tolist(), firsts, accumulators, strict=True))


def _accumulators(results: _Results) -> Sequence[Any]:
    counts = results.counts[:, 1].tolist()
    if results.aggregate.kind == "count":
        return counts
    if results.sums is None:
        return [(None, count) for count in counts]
    every = np.arange(len(counts))
    kind = FieldAggregateOf("sum", results.aggregate.field)
    sums = record_values(_Results(kind, results.counts, results.sums, results.kind).column(every, every * 0 + 1))
    return list(zip(sums, counts, strict=True))


def _largest(values: Array) -> int:
    """Return the greatest absolute value, 0 if there are none."""
    return max(abs(int(values.min())), abs(int(values.max()))) if values.size else 0


def _held_kind(how: str, kind: pa.DataType) -> pa.DataType | None:
    """Return as what sums of such values are held, None if they are not."""
    if pa.types.is_decimal128(kind):
        return short_kind(kind) if how == "sum" else None
    if pa.types.is_floating(kind) and kind != pa.float16():
        return pa.float64()
    return pa.int64() if pa.types.is_integer(kind) and kind != pa.uint64() else None


def _numbers(column: pa.Array, held: pa.DataType) -> Array:
    """Return values as they are held, a copy; of a column without a type anything."""
    dtype: Any = np.float64 if pa.types.is_floating(held) else np.int64
    if pa.types.is_null(column.type):
        return np.zeros(len(column), dtype)
    return units_of(column) if pa.types.is_decimal128(held) else values_of(column).astype(dtype)
