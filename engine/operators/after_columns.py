"""A keyed aggregation on rows that goes on where one on columns has left off, in a checkpoint.

Whether an operator works on columns is decided when the program is built, by its functions: after a change of one of
them its state may be in slots, and only rows can go on with it. What is in the slots is taken up with the first batch,
not in ``open``, where nobody notes yet what changes since the checkpoint that was restored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.errors import ProgramError
from engine.core.records import BATCH_ROWS_MAX, Batch, ColumnBatch, RowBatch
from engine.operators.base import Operator, OperatorContext, Output
from engine.operators.column_fields import KEY_FIELDS, column_index, is_named
from engine.operators.computed_keys import own_records, python_keys
from engine.operators.keys import ComposedKey, key_fields

if TYPE_CHECKING:
    import pyarrow as pa

    from engine.operators.held_part import HeldPart
    from engine.state.slot_state import SlotState

__all__ = ["SLOTS_PART", "VALUE_COLUMN", "AfterColumns"]

#: The columnar operator's part of state, and its column of the only field that is aggregated (others: c0, c1…).
SLOTS_PART: Final = "slots"
VALUE_COLUMN: Final = "value"


@final
class AfterColumns(Operator):
    """``rows``: the operator, which goes on with the record that each key's state is (``adopt``)."""

    def __init__(self, rows: Any, key_selector: Any) -> None:
        self._rows = rows
        self._key_selector = key_selector
        self._slots: SlotState | None = None
        self._held: HeldPart | None = None

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        from engine.operators.held_part import HELD_PART, HeldPart

        if not (ctx.state.has_left(SLOTS_PART) or ctx.state.has_left(HELD_PART)):
            self._rows.open(ctx, out)
            self.process_batch = self._rows.process_batch  # type: ignore[method-assign]
            return
        from engine.state.slot_state import SlotState

        self._rows.open(ctx, out)
        is_tuple = isinstance(self._key_selector, ComposedKey)
        max_parallelism = ctx.runtime_context.get_max_number_of_parallel_subtasks()
        self._slots = SlotState(max_parallelism, is_tuple=is_tuple)
        ctx.state.add_keyed(SLOTS_PART, self._slots)
        self._held = HeldPart(max_parallelism, is_tuple=is_tuple)
        ctx.state.add_keyed(HELD_PART, self._held)

    def process_batch(self, input_index: int, batch: Batch) -> None:
        self._take_up()
        self._rows.process_batch(input_index, batch)

    def process_watermark(self, watermark_ms: int) -> None:
        self._take_up()
        self._rows.process_watermark(watermark_ms)

    def next_timer_ms(self) -> int | None:
        if self._held is not None and self._held.is_restored:
            return self.ctx.clock.now_ms()
        return self._rows.next_timer_ms()

    def on_timer(self, now_ms: int) -> None:
        self._take_up()
        if self._rows.next_timer_ms() is not None:
            self._rows.on_timer(now_ms)

    def finish(self) -> None:
        self._take_up()
        self._rows.finish()

    def close(self) -> None:
        self._rows.close()

    def _take_up(self) -> None:
        slots, held = self._slots, self._held
        if slots is not None and slots.num_entries():
            for state in (slots, *slots.others):
                for keys, records in _records_of(state, self._key_selector, self.ctx.operator_name):
                    self._rows.adopt(keys, records.rows)
            slots.clear()
        if held is not None and held.is_restored:
            for waiting in held.take():
                batch = own_records(waiting.batch)
                if waiting.is_result:
                    self.out.emit(batch)
                else:
                    self._rows.process_batch(0, batch.to_rows())


def _records_of(slots: SlotState, selector: Any, operator_name: str) -> Iterator[tuple[list[Any], RowBatch]]:
    """Yield keys, and the record that each one's state is."""
    import numpy as np
    import pyarrow as pa

    if slots.table is None:
        return
    schema = pa.ipc.read_schema(pa.py_buffer(slots.note))
    left = [index for index in range(len(schema)) if f"c{index}" not in slots.columns]
    is_tuple = isinstance(selector, ComposedKey)
    if (said := (schema.metadata or {}).get(KEY_FIELDS)) is not None:
        keys = [int(field) for field in said.split(b",")]
    elif fields := key_fields(selector):
        keys = [column_index(schema, field) for field in fields]
    else:
        keys = left if VALUE_COLUMN not in slots.columns else []
    values = [index for index in left if index not in keys]
    if len(keys) != len(slots.table.kinds) or len(values) != (VALUE_COLUMN in slots.columns):
        raise ProgramError(
            f"Operator {operator_name!r}: its state was kept by columns {schema.names}, and this version of the "
            "program does not say which of them is the key. Key the stream by a field's index or by a lambda that "
            "picks a field, as before, or give the operator another uid to begin afresh."
        )
    for start in range(0, slots.num_slots, BATCH_ROWS_MAX):
        part = np.arange(start, min(slots.num_slots, start + BATCH_ROWS_MAX))
        arrays: list[Any] = [None] * len(schema)
        of_keys = slots.table.keys_of(part)
        for index, column in zip(keys, of_keys, strict=True):
            arrays[index] = column
        for index in range(len(schema)):
            name = VALUE_COLUMN if index in values else f"c{index}"
            if name in slots.columns:
                arrays[index] = _as_in_records(slots.columns[name].get(part), schema.types[index])
        columns = pa.RecordBatch.from_arrays(arrays, names=schema.names)
        records = own_records(ColumnBatch(columns, named=is_named(schema)))
        yield python_keys(of_keys, is_tuple=is_tuple), records.to_rows()


def _as_in_records(held: pa.Array, own: pa.DataType) -> pa.Array:
    """Return what is held of a field as values of its type: times and booleans to compare are held as numbers."""
    import pyarrow as pa

    if pa.types.is_boolean(own):
        return held.cast(own)
    if not pa.types.is_temporal(own) or held.type == own:
        return held
    return (held.cast(pa.int32()) if own.bit_width == 32 else held).view(own)
