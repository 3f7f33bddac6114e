"""The first record of each key on columns: a slot table knows the keys; the rows that make new slots go on.

``operators/deduplicate`` takes over, with the keys, when rows come, or keys that columns cannot have. With ``rocksdb``
it does so when managed memory ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from engine.core.arrow_arrays import arrow_of
from engine.core.records import Batch, ColumnBatch
from engine.operators.base import Operator, OperatorContext, OperatorSpec, Output
from engine.operators.column_fields import column_index, plain_columns
from engine.operators.column_last_row import ColumnLastRowSpec
from engine.operators.deduplicate import FIRST, DeduplicateOperator, DeduplicateSpec
from engine.operators.handed_over import why_handed_over
from engine.operators.keyed import KEYED_PART
from engine.operators.keys import ComposedKey
from engine.operators.memory_watch import MemoryWatch
from engine.operators.seen_keys import keys_in, state_of

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ColumnDeduplicateSpec", "column_deduplicate"]


@final
@dataclass(frozen=True)
class ColumnDeduplicateSpec(OperatorSpec):
    rows: DeduplicateSpec
    emits_columns = True
    preload = ("engine.operators.warm_up.tables",)

    def build(self) -> Operator:
        return _ColumnDeduplicateOperator(self)

    def describe(self) -> str:
        return "vectorised"


def column_deduplicate(rows: DeduplicateSpec) -> ColumnDeduplicateSpec | ColumnLastRowSpec | None:
    """Return the columnar form of a first or last row; None if there is none."""
    if rows.why_rows:
        return None
    return ColumnDeduplicateSpec(rows) if rows.keeps == FIRST else ColumnLastRowSpec(rows)


@final
class _ColumnDeduplicateOperator(Operator):
    def __init__(self, spec: ColumnDeduplicateSpec) -> None:
        assert spec.rows.keeps == FIRST
        self._rows = DeduplicateOperator(spec.rows, is_inside=True)
        self._selector = spec.rows.key_selector
        self._is_tuple = isinstance(self._selector, ComposedKey)
        self._is_on_rows = False

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._watch = MemoryWatch(ctx)
        self._rows.open(ctx, out)
        self._state = state_of(ctx, self._selector)
        self._is_on_rows = ctx.state.keyed[KEYED_PART].num_entries() > 0

    def close(self) -> None:
        self._rows.close()

    def process_batch(self, input_index: int, batch: Batch) -> None:
        state = self._state
        is_here = not (self._is_on_rows or state.others)
        is_full = is_here and self._watch.must_leave(state.nbytes)
        if is_here and not is_full:
            keys = self._keys_of(batch)
            if keys is not None:
                assert isinstance(batch, ColumnBatch)
                self._take(keys, batch)
                return
        if is_here:
            self._note_rows(why_handed_over(batch, is_full=is_full))
        self._hand_over()
        self._rows.process_batch(input_index, batch)

    def _keys_of(self, batch: Batch) -> list[pa.Array] | None:
        """Return the columns of the key; None when these are not for columns."""
        from engine.state.struct_keys import can_be_row_key

        if not isinstance(batch, ColumnBatch) or batch.scalar:
            return None
        columns = plain_columns(batch.columns)
        fields = self._selector.fields if self._is_tuple else (self._selector.field,)
        places = [column_index(columns.schema, field) for field in fields]
        if min(places) < 0:
            return None
        keys = [columns.column(place) for place in places]
        kinds = [key.type for key in keys]
        if not all(map(can_be_row_key, kinds)):
            return None
        if self._state.table is None:
            self._state.define(kinds, {})
        return keys if self._state.table is not None and self._state.table.kinds == kinds else None

    def _take(self, keys: list[pa.Array], batch: ColumnBatch) -> None:
        import numpy as np

        slots, first = self._state.find(keys)
        if not first.size:
            return
        rows = np.sort(first)  # the slot of the key null is made before the others of a batch
        self._state.mark(slots[rows])
        stamps = batch.timestamps_ms
        self.out.emit(
            ColumnBatch(batch.columns.take(arrow_of(rows)), None if stamps is None else stamps[rows], named=batch.named)
        )

    def _hand_over(self) -> None:
        self._is_on_rows = True
        if self._state.num_entries():
            self._rows.adopt(keys_in(self._state, is_tuple=self._is_tuple))
            self._state.clear()

    def finish(self) -> None:
        if self._is_on_rows or self._state.others:
            self._hand_over()
        self._rows.finish()
