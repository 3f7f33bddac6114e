"""The last record of each key in columns: a slot for each key, whose values are replaced as records come.

Each record that comes is told with the one that it replaces: kinds and records of what changes, in the order of rows.
Of a changelog a slot whose record was taken back stays until most are gone: increments have to say that it is.
What is in checkpoints serves an operator on columns and one on rows. Increments have the slots that changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.arrow_arrays import arrow_of
from engine.core.records import ColumnBatch, Named
from engine.operators.base import OperatorContext
from engine.operators.column_fields import KEY_FIELDS, are_alike, column_index, is_named, named_schema
from engine.operators.computed_keys import own_records
from engine.operators.keys import ComposedKey, key_fields

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from engine.state.slot_state import SlotState

    Array = np.ndarray[Any, Any]

__all__ = ["LAST_PART", "LastRecords"]

#: Name of the part of state in checkpoints, for good.
LAST_PART: Final = "last-records"
#: Rows that become Python objects at once.
_ROWS_MAX: Final = 1 << 16
#: Of a changelog, the column that says whose record is gone.
_GONE: Final = "gone"
#: Fewer keys whose records are gone are not worth a new table.
_GONE_MIN: Final = 1 << 16
#: Columns of texts are made anew when so many records, and twice those that are kept, have come since.
_COMPACT_MIN: Final = 1 << 16


@final
class LastRecords:
    """``slots``: the registered part; ``schema``: of the records, which says whether they are Rows; None = none yet."""

    def __init__(
        self, ctx: OperatorContext, key_selector: Any, *, ordered: bool = False, retracts: bool = False
    ) -> None:
        """``ordered``: records are given in the order in which their keys came, which no checkpoint knows.
        ``retracts``: what comes may be a changelog."""
        import numpy as np

        from engine.state.paged_array import PagedArray
        from engine.state.slot_state import SlotState

        is_tuple = isinstance(key_selector, ComposedKey)
        self._fields = key_fields(key_selector)
        self.slots: SlotState = SlotState(ctx.runtime_context.get_max_number_of_parallel_subtasks(), is_tuple=is_tuple)
        self.schema: pa.Schema | None = None
        #: by slot: number of its last record, of those that have come from 1 on
        self._numbers = PagedArray(np.int64)
        self._firsts = PagedArray(np.int64) if ordered else None
        self._num_seen = 0
        self._num_put = 0
        self._retracts = retracts
        self._num_gone: int | None = None
        ctx.state.add_keyed(LAST_PART, self.slots)

    @property
    def nbytes(self) -> int:
        return self.slots.nbytes + self._numbers.nbytes

    def num_entries(self) -> int:
        return self.slots.num_entries()

    def clear(self) -> None:
        self.slots.clear()
        self.schema = self._num_gone = None

    def define(self, schema: pa.Schema, *, named: Named) -> bool:
        """Make everything for records of that schema; False when columns cannot do it."""
        import pyarrow as pa

        from engine.state.slot_columns import can_be_kept
        from engine.state.struct_keys import can_be_row_key

        self.remember()
        schema = named_schema(schema, named)
        if self.schema is not None:
            return are_alike(self.schema, schema)
        keys = [column_index(schema, field) for field in self._fields]
        if min(keys) < 0 or not all(can_be_row_key(schema.types[key]) for key in keys):
            return False
        # Of a float key too: 0.0 and -0.0 are one key, and it is the last record's that results have.
        kept = {
            f"c{index}": kind
            for index, kind in enumerate(schema.types)
            if index not in keys or pa.types.is_floating(kind)
        }
        if not all(map(can_be_kept, kept.values())):
            return False
        if self._retracts:
            kept[_GONE] = pa.bool_()
        noted = schema.with_metadata({**(schema.metadata or {}), KEY_FIELDS: ",".join(map(str, keys)).encode()})
        self.slots.define([schema.types[key] for key in keys], kept)
        self.slots.note = noted.serialize().to_pybytes()
        self._know(noted)
        return True

    def remember(self) -> None:
        """Know the records' schema again, if state was restored and none have come yet."""
        if self.schema is None and self.slots.note:
            self._know(_schema_of(self.slots))

    def _know(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._keys = _key_fields(schema)

    # --- records come -------------------------------------------------------------------------------------------------

    def take(self, columns: pa.RecordBatch) -> tuple[pa.RecordBatch, Array, Array]:
        """Take up records of the schema; return the records that come and go, their kinds, and the rows that make
        them do so."""
        import numpy as np

        from engine.operators.top_kernels import take_last

        num_rows = columns.num_rows
        known = self.slots.num_slots
        slots, first = self.slots.find([columns.column(key) for key in self._keys])
        self._numbers.reserve(self.slots.num_slots)
        if self._firsts is not None:
            self._firsts.reserve(self.slots.num_slots)
            self._firsts.array[slots[first]] = self._num_seen + first
        kinds, changes = np.empty(2 * num_rows, np.int8), np.empty((2 * num_rows, 2), np.int64)
        formers, last_rows = np.empty(num_rows, np.int32), np.empty(num_rows, np.int64)
        seen = self._num_seen, known
        num, num_formers, num_last = take_last(slots, seen, self._numbers.array, kinds, changes, formers, last_rows)
        self._num_seen += num_rows
        changed = self._changed(columns, changes[:num, 0], formers[:num_formers])
        self._put(columns, slots, last_rows[:num_last])
        return changed, kinds[:num], changes[:num, 1]

    def take_changes(self, columns: pa.RecordBatch, kinds: Array | None) -> tuple[pa.RecordBatch, Array, Array]:
        """As ``take`` for a changelog. ``kinds``: int8, of RowKind; None = all insert."""
        import numpy as np

        from engine.operators.top_kernels import take_last_changes

        num_rows, known = columns.num_rows, self.slots.num_slots
        if self._num_gone is None:
            self._num_gone = int(np.count_nonzero(self._gone(self.slots)[:known]))
        slots, first = self.slots.find([columns.column(key) for key in self._keys])
        self._numbers.reserve(self.slots.num_slots)
        if self._firsts is not None:
            self._firsts.reserve(self.slots.num_slots)
        if first.size:  # what takes nothing back has a slot, too
            self._put(columns, slots, first)
        firsts = np.zeros(0, np.int64) if self._firsts is None else self._firsts.array
        by_slot = self._numbers.array, self._gone(self.slots), firsts
        own_kinds = np.zeros(num_rows, np.int8) if kinds is None else np.array(kinds, np.int8)
        told, changes = np.empty(2 * num_rows, np.int8), np.empty((2 * num_rows, 2), np.int64)
        formers, last_rows = np.empty(num_rows, np.int32), np.empty(num_rows, np.int64)
        seen = self._num_seen, known
        num, num_formers, num_last, num_more = take_last_changes(
            slots, own_kinds, seen, by_slot, told, changes, formers, last_rows
        )
        self._num_seen += num_rows
        self._num_gone += self.slots.num_slots - known - num_more
        changed = self._changed(columns, changes[:num, 0], formers[:num_formers])
        self._put(columns, slots, last_rows[:num_last])
        self.slots.mark(slots)
        if self._num_gone > max(_GONE_MIN, self.slots.num_slots // 2):
            self._forget_gone()
        return changed, told[:num], changes[:num, 1]

    @staticmethod
    def _gone(state: SlotState) -> Array:
        column: Any = state.columns[_GONE]
        gone: Array = column.values.array
        return gone

    def _forget_gone(self) -> None:
        import numpy as np

        from engine.state.paged_array import PagedArray

        kept = np.flatnonzero(self._gone(self.slots)[: self.slots.num_slots] == 0)
        self.slots.forget_others(kept)
        self._numbers, self._num_gone = PagedArray(np.int64), 0  # all are of earlier batches
        if self._firsts is not None:
            firsts, self._firsts = self._firsts.array[kept], PagedArray(np.int64)
            self._firsts.reserve(kept.size)
            self._firsts.array[: kept.size] = firsts

    def _changed(self, columns: pa.RecordBatch, records: Array, formers: Array) -> pa.RecordBatch:
        """Return records by number: those of this batch, then those of the slots ``formers`` before it."""
        import pyarrow as pa

        order = arrow_of(records)
        arrays = columns.columns
        if formers.size:
            before = self._arrays_of(self.slots, self._keys, len(arrays), formers)
            arrays = [pa.concat_arrays(both) for both in zip(arrays, before, strict=True)]
        arrays = [column.take(order) for column in arrays]
        return pa.RecordBatch.from_arrays(arrays, names=columns.schema.names)

    def _put(self, columns: pa.RecordBatch, slots: Array, rows: Array) -> None:
        if rows.size < columns.num_rows:
            columns, slots = columns.take(arrow_of(rows)), slots[rows]
        for name, own in self.slots.columns.items():
            if name != _GONE:
                own.put(slots, columns.column(int(name[1:])))
        self.slots.mark(slots)
        self._num_put += rows.size
        if self._num_put > max(_COMPACT_MIN, 2 * self.slots.num_slots):
            self._forget_texts()

    def _forget_texts(self) -> None:
        """Columns of texts keep each that they have ever seen, until they are made anew."""
        import numpy as np

        from engine.state.slot_columns import CodedColumn

        self._num_put = 0
        for column in self.slots.columns.values():
            if isinstance(column, CodedColumn):
                column.compact(np.arange(self.slots.num_slots))

    # --- what is kept -------------------------------------------------------------------------------------------------

    @staticmethod
    def _records_of(state: SlotState, schema: pa.Schema, slots: Array) -> pa.RecordBatch:
        import pyarrow as pa

        arrays = LastRecords._arrays_of(state, _key_fields(schema), len(schema), slots)
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    @staticmethod
    def _arrays_of(state: SlotState, fields: list[int], num_columns: int, slots: Array) -> list[pa.Array]:
        """``fields``: those of the key."""
        assert state.table is not None
        keys = state.table.keys_of(slots)
        return [
            state.columns[f"c{index}"].get(slots) if f"c{index}" in state.columns else keys[fields.index(index)]
            for index in range(num_columns)
        ]

    def records(self) -> Iterator[pa.RecordBatch]:
        """Yield all records, of all types that were restored; the schemas say whether they are Rows."""
        import numpy as np

        for state in (self.slots, *self.slots.others):
            order = np.arange(state.num_slots)
            if self._firsts is not None and state is self.slots:
                self._firsts.reserve(state.num_slots)  # of restored keys nobody knows; 0 is before all others
                order = np.argsort(self._firsts.array[: state.num_slots], kind="stable")
            if _GONE in state.columns:
                order = order[self._gone(state)[order] == 0]
            for at in range(0, order.size, _ROWS_MAX):
                yield self._records_of(state, _schema_of(state), order[at : at + _ROWS_MAX])

    def rows(self) -> Iterator[list[Any]]:
        """Yield all records as Python objects, some at a time."""
        for columns in self.records():
            yield own_records(ColumnBatch(columns, named=is_named(columns.schema))).to_rows().rows


def _schema_of(state: SlotState) -> pa.Schema:
    import pyarrow as pa

    return pa.ipc.read_schema(pa.py_buffer(state.note))


def _key_fields(schema: pa.Schema) -> list[int]:
    return [int(field) for field in schema.metadata[KEY_FIELDS].split(b",")]
