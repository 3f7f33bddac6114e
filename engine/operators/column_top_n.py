"""Top-N on columns: of each key a chain of places from the last record to the first; a kernel takes up a batch.

Nearly all records of a long stream are compared with the last one of their key and left out. Those that come in give
changes, as of ``operators/top_n``, in columns with kinds; that takes over, with all that is kept, when something comes
that columns cannot do: rows, an order by long texts, lists as values. With ``rocksdb`` it does so when managed memory
ends.

Of a changelog all records of a key are kept, in order (``top_segments``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.arrow_arrays import arrow_of
from engine.core.records import BATCH_ROWS_MAX, ColumnBatch, Named, RowKind
from engine.operators.base import Operator, OperatorContext, OperatorSpec
from engine.operators.column_fields import column_index, is_named
from engine.operators.columns_until_rows import ColumnsUntilRows
from engine.operators.computed_keys import KeyFunction, own_columns, own_records
from engine.operators.keys import ComposedKey, FieldKey, key_fields
from engine.operators.top_chunks import TOP_PART, chunks_of, columns_in, rows_in
from engine.operators.top_n import RANK, TopNOperator, TopNSpec

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from engine.operators.top_segments import TopSegments
    from engine.state.slot_columns import StateColumn
    from engine.state.slot_table import SlotTable

    Array = np.ndarray[Any, Any]

__all__ = ["ColumnTopNSpec", "column_top_n"]

#: Rows that are turned into columns at once while a snapshot is made.
_ROWS_MAX: Final = 1 << 18
#: Columns of texts are made anew when so many records, and twice those that are kept, have come in since.
_COMPACT_MIN: Final = 1 << 16


@final
@dataclass(frozen=True)
class ColumnTopNSpec(OperatorSpec):
    """``key``: what the key selector is on columns, where it is a function."""

    rows: TopNSpec
    key: KeyFunction | None = None
    emits_columns = True
    emits_kinds = True
    preload = ("engine.operators.warm_up.tops",)

    @property
    def blocks(self) -> bool:  # type: ignore[override]
        return self.rows.emit_final

    def build(self) -> Operator:
        return _ColumnTopNOperator(self)

    def describe(self) -> str:
        computed = "" if self.key is None else self.key.describe()
        return f"vectorised, order by long texts on rows, a changelog of columns{computed}"


def column_top_n(rows: TopNSpec, key: KeyFunction | None = None) -> ColumnTopNSpec | None:
    """Return the columnar form of a top-N; None if there is none."""
    is_known = key is not None or isinstance(rows.key_selector, FieldKey | ComposedKey)
    return ColumnTopNSpec(rows, key) if is_known and not rows.why_rows else None


# --- state ------------------------------------------------------------------------------------------------------------


@final
class TopState:
    """Implements ``parts.KeyedPart``. ``selector``: of the key's columns, which are kept with the records."""

    def __init__(self, spec: TopNSpec, selector: FieldKey | ComposedKey, max_parallelism: int) -> None:
        self._spec = spec
        self._max_parallelism = max_parallelism
        self._is_tuple = isinstance(selector, ComposedKey)
        self._fields = key_fields(selector)
        self.named: Named = False
        self.clear()

    def clear(self) -> None:
        import numpy as np

        from engine.state.paged_array import PagedArray

        self.schema: pa.Schema | None = None
        self.table: SlotTable | None = None
        self.columns: list[StateColumn] = []
        self.num_places = 0
        #: Restored from subtasks whose records were of other types, after the parallelism has changed: other keys.
        self.others: dict[int, bytes] = {}
        self._heads, self._counts = PagedArray(np.int64), PagedArray(np.int64)
        self._nexts, self._owners = PagedArray(np.int64), PagedArray(np.int64)
        #: what the records are ordered by; of each field, how many lanes (``order_lanes``)
        self._held = PagedArray(np.int64, 2 * len(self._spec.order))
        self._num_lanes = [2] * len(self._spec.order)
        #: number of the next batch's first record: those of earlier ones need not be told that it begins
        self._base = 1
        self._num_put = 0
        #: of a changelog, in place of chains
        self._segments: TopSegments | None = None
        if self._spec.retracts:
            from engine.operators.top_segments import TopSegments

            self._segments = TopSegments()

    def define(self, schema: pa.Schema, *, named: Named) -> bool:
        """Make everything for records of that schema; False when columns cannot do it."""
        from engine.operators.order_lanes import can_order
        from engine.state.slot_columns import can_be_kept, state_column
        from engine.state.slot_table import SlotTable
        from engine.state.struct_keys import can_be_row_key

        if self.schema is not None and self.named == named and self.schema.equals(schema):
            return True  # found without lists of Python objects
        if self.schema is not None:
            return bool(self.schema.types == schema.types and self.schema.names == schema.names and self.named == named)
        self._keys = [column_index(schema, field) for field in self._fields]
        self._order = [(column_index(schema, field), ascending) for field, ascending in self._spec.order]
        if min(*self._keys, *(index for index, _ in self._order), 0) < 0:
            return False
        if not all(can_be_row_key(schema.types[key]) for key in self._keys) or not all(map(can_be_kept, schema.types)):
            return False
        if not all(can_order(schema.types[index]) for index, _ in self._order):
            return False
        self.schema, self.named = schema.remove_metadata(), named
        self.table = SlotTable([schema.types[key] for key in self._keys])
        self.columns = [state_column(kind) for kind in schema.types]
        return True

    def has_lanes_for(self, columns: pa.RecordBatch) -> bool:
        """Make room for what these records are ordered by; False when a text is too long."""
        from engine.operators.order_lanes import lanes_needed

        needed = [lanes_needed(columns.column(index)) for index, _ in self._order]
        if None in needed:
            return False
        wanted = [max(have, need or 0) for have, need in zip(self._num_lanes, needed, strict=True)]
        if wanted != self._num_lanes:
            self._widen(wanted)
        return True

    def _widen(self, wanted: list[int]) -> None:
        import numpy as np

        from engine.operators.order_lanes import widened
        from engine.state.paged_array import PagedArray

        held = self._held.array[: self.num_places]
        parts, begin = [], 0
        for (_, ascending), have, want in zip(self._order, self._num_lanes, wanted, strict=True):
            own = held[:, begin : begin + have]
            parts.append(own if have == want else widened(own, want, ascending=ascending))
            begin += have
        self._held, self._num_lanes = PagedArray(np.int64, sum(wanted)), wanted
        self._held.reserve(self.num_places)
        self._held.array[: self.num_places] = np.concatenate(parts, axis=1)

    @property
    def nbytes(self) -> int:
        arrays = self._heads, self._counts, self._nexts, self._owners, self._held
        table = 0 if self.table is None else self.table.nbytes
        segments = 0 if self._segments is None else self._segments.nbytes
        return table + segments + sum(array.nbytes for array in arrays) + sum(column.nbytes for column in self.columns)

    def tells_apart(self, columns: pa.RecordBatch, kinds: Array | None) -> bool:
        """Whether what a batch takes back can be told from other records."""
        if self._segments is None or kinds is None or not ((kinds == 1) | (kinds == 3)).any():
            return True
        assert self.table is not None
        slots = self.table.slots_of([columns.column(key) for key in self._keys])
        given = slots, self.table.num_slots, self._lanes(columns), self._held.array
        return self._segments.tells_apart(columns, kinds, given, self._records_at)

    def _records_at(self, places: Array) -> pa.RecordBatch:
        import pyarrow as pa

        return pa.RecordBatch.from_arrays([column.get(places) for column in self.columns], schema=self.schema)

    def _take_changelog(
        self, columns: pa.RecordBatch, kinds: Array | None, segments: TopSegments, *, tells: bool
    ) -> Iterator[tuple[pa.RecordBatch, Array]]:
        import numpy as np

        assert self.table is not None
        num_rows = columns.num_rows
        slots = self.table.slots_of([columns.column(key) for key in self._keys])
        given = slots, self.table.num_slots, self._lanes(columns), self._held
        place_of_row = np.empty(num_rows, np.int64)
        out = np.empty((max(2 * BATCH_ROWS_MAX, 2 * self._spec.n + 2), 4), np.int64)
        how = self._spec.n, self._spec.with_rank
        for changes in segments.take(columns, kinds, given, how, self._base, place_of_row, out):
            if tells:
                yield self._changed(columns, changes[:, 1]), changes
        rows = np.flatnonzero(place_of_row >= 0)
        rows = rows[segments.owners.array[place_of_row[rows]] == self._base + rows]
        self.num_places = segments.num_places
        self._base += num_rows
        if rows.size:
            self._put(place_of_row[rows], columns.take(arrow_of(rows)))

    def take(
        self, columns: pa.RecordBatch, kinds: Array | None = None, *, tells: bool
    ) -> Iterator[tuple[pa.RecordBatch, Array]]:
        """Take up records; yield, if it ``tells``, what changes in portions: the records, and (kind, record, rank, row)
        of each. All must be asked for. ``kinds``: of a changelog, which ``tells_apart``."""
        import numpy as np

        if self._segments is not None:
            yield from self._take_changelog(columns, kinds, self._segments, tells=tells)
            return

        from engine.operators.top_kernels import take_top

        assert self.table is not None
        num_rows = columns.num_rows
        slots = self.table.slots_of([columns.column(key) for key in self._keys])
        for by_slot in (self._heads, self._counts):
            by_slot.reserve(self.table.num_slots)
        places = self._nexts, self._owners, self._held
        for by_place in places:
            by_place.reserve(self.num_places + num_rows)
        lanes = self._lanes(columns)
        place_of_row = np.empty(num_rows, np.int64)
        how = self._spec.n, self._spec.with_rank
        out = np.empty((max(2 * BATCH_ROWS_MAX, 2 * self._spec.n + 2), 4), np.int64)
        row, used = 0, self.num_places
        while row < num_rows:
            chains = self._heads.array, self._counts.array
            arrays = self._nexts.array, self._owners.array, self._held.array
            row, used, num = take_top(slots, lanes, (row, used), how, self._base, chains, arrays, place_of_row, out)
            if num and tells:
                yield self._changed(columns, out[:num, 1]), out[:num]
        # A record may have been pushed out by a later one of the same batch.
        rows = np.flatnonzero(place_of_row >= 0)
        rows = rows[self._owners.array[place_of_row[rows]] == self._base + rows]
        self.num_places = used
        self._base += num_rows
        if rows.size:  # in a long stream nearly all are left out
            self._put(place_of_row[rows], columns.take(arrow_of(rows)))

    def _put(self, places: Array, columns: pa.RecordBatch) -> None:
        self._num_put += places.size
        for own, column in zip(self.columns, columns.columns, strict=True):
            own.reserve(self.num_places)
            own.put(places, column)
        if self._num_put > max(_COMPACT_MIN, 2 * self.num_places):
            self._forget_texts()

    def _forget_texts(self) -> None:
        """Columns of texts keep each that they have ever seen, until they are made anew."""
        import numpy as np

        from engine.state.slot_columns import CodedColumn, StructColumn

        self._num_put = 0
        for column in self.columns:
            if isinstance(column, CodedColumn | StructColumn):
                column.compact(np.arange(self.num_places))

    def _changed(self, columns: pa.RecordBatch, records: Array) -> pa.RecordBatch:
        """Return records: of places as they were before this batch, or (-1 - row) of this batch."""
        import numpy as np
        import pyarrow as pa

        is_new = records < 0
        rows, places = pa.array(-1 - records[is_new]), records[~is_new]
        order = np.empty(records.size, np.int64)
        order[is_new] = np.arange(len(rows))
        order[~is_new] = len(rows) + np.arange(places.size)
        arrays = []
        for own, column in zip(self.columns, columns.columns, strict=True):
            new = column.take(rows)
            arrays.append(pa.concat_arrays([new, own.get(places)]).take(pa.array(order)) if places.size else new)
        return pa.RecordBatch.from_arrays(arrays, names=columns.schema.names)

    def _lanes(self, columns: pa.RecordBatch) -> Array:
        """Return what the records are ordered by."""
        import numpy as np

        from engine.operators.order_lanes import order_lanes

        fields = [
            order_lanes(columns.column(index), num_lanes, ascending=ascending)
            for (index, ascending), num_lanes in zip(self._order, self._num_lanes, strict=True)
        ]
        return fields[0] if len(fields) == 1 else np.concatenate(fields, axis=1)

    def records(self) -> Iterator[tuple[pa.RecordBatch, Array]]:
        """Yield all records with their ranks: those of a key in their order."""
        import numpy as np
        import pyarrow as pa

        from engine.operators.top_kernels import order_of_chains

        if self.table is None:
            return
        assert self.schema is not None
        if self._segments is not None:
            order, ranks = self._segments.order(self.table.num_slots)
        else:
            order, ranks = (np.empty(self.num_places, np.int64) for _ in range(2))
            chains = self._heads.array, self._counts.array, self._nexts.array
            order_of_chains(*chains, min(self.table.num_slots, self._heads.capacity), order, ranks)
        for at in range(0, order.size, _ROWS_MAX):
            places = order[at : at + _ROWS_MAX]
            arrays = [column.get(places) for column in self.columns]
            yield pa.RecordBatch.from_arrays(arrays, schema=self.schema), ranks[at : at + _ROWS_MAX]

    def rows(self) -> list[Any]:
        """Return all records as Python objects, those of a key in their order."""
        found: list[Any] = []
        for columns, _ in self.records():
            found += own_records(ColumnBatch(columns, named=self.named)).to_rows().rows
        for chunk in self.others.values():
            found += rows_in(chunk)
        return found

    # --- KeyedPart

    def num_entries(self) -> int:
        return self.num_places + len(self.others)

    def snapshot(self, key_groups: Iterable[int]) -> dict[int, bytes]:
        wanted = set(key_groups)
        chunks = chunks_of(self._with_groups(), wanted, named=self.named)
        return chunks | {group: chunk for group, chunk in self.others.items() if group in wanted}

    def _with_groups(self) -> Iterator[tuple[pa.RecordBatch, Array]]:
        from engine.state.column_hash import groups_of_rows

        for columns, _ in self.records():
            keys = [columns.column(key) for key in self._keys]
            yield columns, groups_of_rows(keys, self._max_parallelism, is_tuple=self._is_tuple).astype("int64")

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        for group, chunk in chunks.items():
            for columns in columns_in(chunk):
                defined = self.define(columns.schema, named=is_named(columns.schema))
                if not (defined and self.has_lanes_for(columns)):
                    self.others[group] = chunk
                    break
                for _ in self.take(columns, tells=False):
                    pass


# --- the operator -----------------------------------------------------------------------------------------------------


@final
class _ColumnTopNOperator(ColumnsUntilRows):
    takes_kinds = True
    takes_objects = True

    def __init__(self, spec: ColumnTopNSpec) -> None:
        self._spec = spec.rows
        super().__init__(TopNOperator(spec.rows, is_inside=True), spec.rows.key_selector, spec.key)

    def _open_state(self, ctx: OperatorContext) -> None:
        self._state = TopState(self._spec, self._selector, ctx.runtime_context.get_max_number_of_parallel_subtasks())
        ctx.state.add_keyed(TOP_PART, self._state)

    def _has_others(self) -> bool:
        return bool(self._state.others)

    def _kept_bytes(self) -> int:
        return self._state.nbytes

    def _takes_columns(self, columns: pa.RecordBatch, batch: ColumnBatch) -> bool:
        state = self._state
        if batch.kinds is not None and not self._spec.retracts:
            self._note_rows("a changelog came, of which the plan did not know")
            return False
        if not self._has_fields(batch.named, (*key_fields(self._given), *(field for field, _ in self._spec.order))):
            return False
        if not (state.define(columns.schema, named=batch.named) and state.has_lanes_for(columns)):
            return False
        if not state.tells_apart(columns, batch.kinds):
            self._note_rows("records that are not equal have one hash")
            return False
        self._take(columns, batch.timestamps_ms, batch.kinds)
        return True

    def _take(self, columns: pa.RecordBatch, times_ms: Array | None, kinds: Array | None) -> None:
        for changed, changes in self._state.take(columns, kinds, tells=not self._spec.emit_final):
            stamps = None if times_ms is None else times_ms[changes[:, 3]]
            self._emit(changed, changes[:, 0].astype("int8"), changes[:, 2].copy(), stamps)

    def _emit(self, columns: pa.RecordBatch, kinds: Array, ranks: Array, stamps: Array | None) -> None:
        """Hand on records as Rows, with names if the records are Rows, or else the program has some."""
        import pyarrow as pa

        columns = own_columns(columns)
        names = columns.schema.names if self._state.named is True else self._spec.names
        arrays, titles = columns.columns, list(names or columns.schema.names)
        if self._spec.with_rank:
            arrays, titles = [*arrays, arrow_of(ranks)], [*titles, RANK]
        made = pa.RecordBatch.from_arrays(arrays, names=titles)
        self.out.emit(ColumnBatch(made, stamps, named=names is not None, kinds=kinds))

    def _give_to_rows(self) -> None:
        if self._state.num_entries():
            self._rows.adopt(self._state.rows())
            self._state.clear()

    def _emit_final(self) -> None:
        import numpy as np

        if not self._spec.emit_final:
            return
        for columns, ranks in self._state.records():
            if self._spec.retracts:
                first = np.flatnonzero(ranks <= self._spec.n)
                columns, ranks = columns.take(arrow_of(first)), ranks[first]
            for at in range(0, columns.num_rows, BATCH_ROWS_MAX):
                part = columns.slice(at, BATCH_ROWS_MAX)
                kinds = np.full(part.num_rows, RowKind.INSERT.value, np.int8)
                self._emit(part, kinds, ranks[at : at + BATCH_ROWS_MAX], None)
        self._state.clear()
