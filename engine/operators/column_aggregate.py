"""Keyed running sum, min, max over columns: what ``operators/aggregate`` does on rows, a batch at a time.

Results are those of the row operator, value by value. Where columns cannot give them (a record that is no column batch,
a null to be added, a sum beyond 64 bits, nested types) the operator hands its state to the row operator and goes on
with that: the stream does not notice. Streaming emits a result per record, ``emit_final`` (batch) one per key at the
end.

Each key's state is in one of two parts, the slots or the row operator's own. A restored subtask may find both, as those
it follows may have worked in different ways; what the row operator has, only rows can go on with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.records import BATCH_ROWS_MAX, Batch, ColumnBatch, RowBatch
from engine.operators.aggregate import KeyedAggregateSpec
from engine.operators.base import Operator, OperatorContext, OperatorSpec, Output
from engine.operators.column_fields import column_index, plain_columns
from engine.operators.keyed import KEYED_PART
from engine.operators.keys import ComposedKey, FieldKey

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from engine.state.slot_columns import FixedColumn
    from engine.state.slot_state import SlotState

    Array = np.ndarray[Any, Any]

__all__ = ["COLUMN_KINDS", "ColumnAggregateSpec"]

COLUMN_KINDS: Final = ("sum", "min", "max")
_VALUE: Final = "value"
_NAMED: Final = {b"records": b"rows"}


@final
@dataclass(frozen=True)
class ColumnAggregateSpec(OperatorSpec):
    """``key_selector``: FieldKey or ComposedKey; ``kind``: one of COLUMN_KINDS; ``field``: position or name."""

    key_selector: FieldKey | ComposedKey
    kind: str
    field: int | str
    emit_final: bool = False
    #: what comes out are columns, if what goes in is
    emits_columns = True
    preload = ("engine.operators.column_warm_up",)

    @property
    def blocks(self) -> bool:  # type: ignore[override]
        return self.emit_final

    def build(self) -> Operator:
        return _ColumnAggregateOperator(self)

    def describe(self) -> str:
        return "vectorised"


@dataclass(frozen=True)
class _Layout:
    """Where in a batch's columns the keys, the value and the rest are."""

    schema: pa.Schema
    keys: tuple[int, ...]
    value: int
    #: columns of which the first record's value is kept
    kept: tuple[int, ...]

    @property
    def named(self) -> bool:
        """Whether records are Rows: said in the schema, so that it is in the state's note."""
        return _NAMED.items() <= (self.schema.metadata or {}).items()

    def name_of(self, index: int) -> str:
        return f"c{index}"


def _layout_of(schema: pa.Schema, spec: ColumnAggregateSpec) -> _Layout | None:
    """Return where things are, or None when columns of this schema cannot be aggregated here."""
    import pyarrow as pa

    from engine.state.slot_columns import can_be_kept
    from engine.state.slot_table import can_be_key

    selector = spec.key_selector
    fields = selector.fields if isinstance(selector, ComposedKey) else (selector.field,)
    keys = tuple(column_index(schema, field) for field in fields)
    value = column_index(schema, spec.field)
    if value < 0 or min(keys) < 0:
        return None
    kind = schema.types[value]
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)) or kind in (pa.uint64(), pa.float16()):
        return None
    if not all(can_be_key(schema.types[key]) for key in keys):
        return None
    # A float key too: 0.0 and -0.0 are one key, and it is the first record's that results have.
    kept = tuple(
        index
        for index, own in enumerate(schema.types)
        if index != value and (index not in keys or pa.types.is_floating(own))
    )
    if not all(can_be_kept(schema.types[index]) for index in kept):
        return None
    return _Layout(schema, keys, value, kept)


@final
class _ColumnAggregateOperator(Operator):
    def __init__(self, spec: ColumnAggregateSpec) -> None:
        self._spec = spec
        self._rows: Any = KeyedAggregateSpec(spec.key_selector, spec.kind, spec.field, spec.emit_final).build()
        #: the row operator has taken over
        self._is_on_rows = False
        self._layout: _Layout | None = None
        #: slots to hand over when the last batch was left half way; None = all
        self._trimmed: Array | None = None

    def open(self, ctx: OperatorContext, out: Output) -> None:
        from engine.operators import column_kernels as kernels
        from engine.state.slot_state import SlotState

        super().open(ctx, out)
        self._rows_output = _RowsOutput(out)
        self._rows.open(ctx, self._rows_output)
        self._kernels = {
            ("sum", False): kernels.running_sum_of_ints,
            ("sum", True): kernels.running_sum_of_floats,
            ("min", False): kernels.running_min,
            ("min", True): kernels.running_min,
            ("max", False): kernels.running_max,
            ("max", True): kernels.running_max,
        }
        max_parallelism = ctx.runtime_context.get_max_number_of_parallel_subtasks()
        self._state: SlotState = SlotState(max_parallelism, is_tuple=isinstance(self._spec.key_selector, ComposedKey))
        ctx.state.add_keyed("slots", self._state)
        self._is_on_rows = ctx.state.keyed[KEYED_PART].num_entries() > 0
        if self._state.note:
            self._layout = self._layout_of_note(self._state.note)

    # --- records -----------------------------------------------------------------------------------------------------

    def process_batch(self, input_index: int, batch: Batch) -> None:
        if self._is_on_rows or self._state.others:
            if self._state.num_slots:
                self._hand_over()
            self._rows.process_batch(input_index, batch)
            return
        columns = None
        if isinstance(batch, ColumnBatch) and not batch.scalar:
            columns = self._known_columns(plain_columns(batch.columns), batch.named)
        if columns is None:
            self._hand_over()
            self._rows.process_batch(input_index, batch)
            return
        assert isinstance(batch, ColumnBatch)
        done = self._process_columns(columns, batch.timestamps_ms)
        if done < len(batch):
            self._hand_over()
            self._rows.process_batch(input_index, batch.slice(done, len(batch)))

    def _known_columns(self, columns: pa.RecordBatch, named: bool) -> pa.RecordBatch | None:
        """Return the columns if they can be taken up, None if rows have to."""
        layout = self._layout
        if layout is not None and layout.named != named:
            return None
        if layout is not None and layout.schema.equals(columns.schema):
            return columns
        if layout is not None:
            return columns if layout.schema.types == columns.schema.types else None
        schema = columns.schema.with_metadata(_NAMED if named else None)
        layout = self._layout = _layout_of(schema, self._spec)
        if layout is None:
            return None
        self._state.note = schema.serialize().to_pybytes()
        self._state.define(
            [columns.schema.types[key] for key in layout.keys],
            {_VALUE: self._value_kind(layout)} | {layout.name_of(i): columns.schema.types[i] for i in layout.kept},
        )
        return columns

    def _value_kind(self, layout: _Layout) -> pa.DataType:
        import pyarrow as pa

        return pa.float64() if pa.types.is_floating(layout.schema.types[layout.value]) else pa.int64()

    def _process_columns(self, columns: pa.RecordBatch, stamps: Array | None) -> int:
        """Take up the rows and emit; return how many, fewer than all if the next one is not for columns."""
        import numpy as np

        from engine.state.arrow_views import valid_mask, values_of

        layout = self._layout
        assert layout is not None
        value_column = columns.column(layout.value)
        if value_column.null_count:
            valid = int(np.argmin(valid_mask(value_column)))  # the rows before the first null
            if not valid:
                return 0
            columns = columns.slice(0, valid)
            value_column = columns.column(layout.value)
            stamps = None if stamps is None else stamps[:valid]
        state = self._state
        before = state.num_slots
        slots, first = state.find([columns.column(key) for key in layout.keys])
        values = values_of(value_column)
        self._begin_slots(layout, before, columns, first, values)
        value: Any = state.columns[_VALUE]
        held = value.values.array
        after = np.empty(slots.size, held.dtype)
        done = int(self._kernels[self._spec.kind, held.dtype == np.float64](slots, values, held, after))
        state.mark(slots)
        if done < slots.size:
            self._trim(before, first, done)
        if not self._spec.emit_final:
            self._emit(layout, columns.slice(0, done), slots[:done], after[:done], stamps)
        return done

    def _begin_slots(self, layout: _Layout, before: int, columns: pa.RecordBatch, first: Array, values: Array) -> None:
        """Give new slots what the aggregation begins with, and the rest of their first record."""
        import pyarrow as pa

        if not first.size:
            return
        new = slice(before, before + first.size)
        held = self._fixed().values.array
        if self._spec.kind != "sum":
            held[new] = values[first]
        elif held.dtype.kind == "f":
            held[new] = -0.0  # the only float that leaves every other one as it is when it is added
        if layout.kept:
            rows = pa.array(first)
            for index in layout.kept:
                self._state.columns[layout.name_of(index)].put(new, columns.column(index).take(rows))

    def _fixed(self) -> FixedColumn:
        column: Any = self._state.columns[_VALUE]
        fixed: FixedColumn = column
        return fixed

    def _trim(self, before: int, first: Array, done: int) -> None:
        """Forget the slots that rows behind ``done`` made."""
        import numpy as np

        made = np.arange(before, before + first.size)[first < done]
        self._trimmed = np.concatenate([np.arange(before), made])

    def _emit(self, layout: _Layout, columns: pa.RecordBatch, slots: Array, after: Array, stamps: Array | None) -> None:
        if not len(slots):
            return
        arrays = list(columns.columns)
        for index in layout.kept:
            arrays[index] = self._state.columns[layout.name_of(index)].get(slots)
        arrays[layout.value] = self._result(layout, after)
        stamps = None if stamps is None else stamps[: slots.size]
        self.out.emit(ColumnBatch(_batch_of(arrays, layout.schema.names), stamps, named=layout.named))

    def _result(self, layout: _Layout, values: Array) -> pa.Array:
        import pyarrow as pa

        own = layout.schema.types[layout.value]
        # A minimum fits its own type; a sum may not.
        return pa.array(values) if self._spec.kind == "sum" else pa.array(values).cast(own)

    # --- the end, and the way to rows --------------------------------------------------------------------------------

    def finish(self) -> None:
        if (self._is_on_rows and self._state.num_slots) or self._state.others:
            self._hand_over()
        if self._is_on_rows or not self._state.num_slots:
            self._rows.finish()
        elif self._spec.emit_final:
            assert self._layout is not None
            for batch in self._batches(self._layout, self._state, None):
                self.out.emit(batch)
            self._state.clear()

    def _batches(self, layout: _Layout, state: SlotState, kept: Array | None) -> Any:
        """Yield all slots, or ``kept``, as records: the first of each key, with the aggregate as its value."""
        import numpy as np

        assert state.table is not None
        value: Any = state.columns[_VALUE]
        every = np.arange(state.num_slots) if kept is None else kept
        for start in range(0, every.size, BATCH_ROWS_MAX):
            slots = every[start : start + BATCH_ROWS_MAX]
            arrays: list[Any] = [None] * len(layout.schema)
            for index, column in zip(layout.keys, state.table.keys_of(slots), strict=True):
                arrays[index] = column
            for index in layout.kept:
                arrays[index] = state.columns[layout.name_of(index)].get(slots)
            arrays[layout.value] = self._result(layout, value.values.array[slots])
            yield ColumnBatch(_batch_of(arrays, layout.schema.names), named=layout.named)

    def _hand_over(self) -> None:
        """Give all state to the row operator; it takes every record from now on.

        Not in ``open``, where nobody notes yet what changes since the checkpoint that was restored: an increment on it
        would bring the slots back and know nothing of the rows.
        """
        self._is_on_rows = True
        if self._state.num_slots:
            assert self._layout is not None
            for batch in self._batches(self._layout, self._state, self._trimmed):
                self._take_over(batch.to_rows())
        for other in self._state.others:
            layout = self._layout_of_note(other.note)
            assert layout is not None
            for batch in self._batches(layout, other, None):
                self._take_over(batch.to_rows())
        self._state.clear()

    def _layout_of_note(self, note: bytes) -> _Layout | None:
        import pyarrow as pa

        return _layout_of(pa.ipc.read_schema(pa.py_buffer(note)), self._spec)

    def _take_over(self, rows: RowBatch) -> None:
        """The first record of a key is its state in the row operator: each of these is."""
        self._rows_output.is_silent = True
        self._rows.process_batch(0, rows)
        self._rows_output.is_silent = False

    def close(self) -> None:
        self._rows.close()


def _batch_of(arrays: list[pa.Array], names: list[str]) -> pa.RecordBatch:
    import pyarrow as pa

    return pa.RecordBatch.from_arrays(arrays, names=names)


@final
class _RowsOutput:
    """The row operator's Output: to ours, or to nobody while it takes up state."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self.is_silent = False

    def emit(self, batch: Batch) -> None:
        if not self.is_silent:
            self._out.emit(batch)

    def emit_side(self, tag: str, batch: Batch) -> None:
        self._out.emit_side(tag, batch)

    def emit_watermark(self, watermark_ms: int) -> None:
        self._out.emit_watermark(watermark_ms)

    def emit_idle(self, idle: bool) -> None:
        self._out.emit_idle(idle)

    def emit_superstep_end(self, superstep: int) -> None:
        self._out.emit_superstep_end(superstep)
