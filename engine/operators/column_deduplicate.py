"""The first record of each key on columns: a slot table knows the keys; the rows that make new slots go on.

``operators/deduplicate`` takes over, with the keys, when rows come, or keys that columns cannot have. With ``rocksdb``
it does so when managed memory ends.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from engine.core.arrow_arrays import arrow_of
from engine.core.dictionaries import plain_type
from engine.core.records import ColumnBatch
from engine.operators.base import Operator, OperatorContext, OperatorSpec
from engine.operators.column_fields import column_index, has_fields, only_keys
from engine.operators.column_last_row import ColumnLastRowSpec
from engine.operators.columns_until_rows import ColumnsUntilRows
from engine.operators.computed_keys import KeyFunction
from engine.operators.deduplicate import FIRST, DeduplicateOperator, DeduplicateSpec
from engine.operators.keys import ComposedKey, FieldKey, key_fields
from engine.operators.seen_keys import keys_in, state_of

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ColumnDeduplicateSpec", "column_deduplicate"]


@final
@dataclass(frozen=True)
class ColumnDeduplicateSpec(OperatorSpec):
    """``key``: what the key selector is on columns, where it is a function."""

    rows: DeduplicateSpec
    key: KeyFunction | None = None
    emits_columns = True
    preload = ("engine.operators.warm_up.tables",)

    def build(self) -> Operator:
        return _ColumnDeduplicateOperator(self)

    def describe(self) -> str:
        return "vectorised" + ("" if self.key is None else self.key.describe())


def column_deduplicate(
    rows: DeduplicateSpec, key: KeyFunction | None = None
) -> ColumnDeduplicateSpec | ColumnLastRowSpec | None:
    """Return the columnar form of a first or last row; None if there is none."""
    if rows.why_rows or (key is None and not isinstance(rows.key_selector, FieldKey | ComposedKey)):
        return None
    return ColumnDeduplicateSpec(rows, key) if rows.keeps == FIRST else ColumnLastRowSpec(rows, key)


@final
class _ColumnDeduplicateOperator(ColumnsUntilRows):
    takes_objects = True

    def __init__(self, spec: ColumnDeduplicateSpec) -> None:
        assert spec.rows.keeps == FIRST
        super().__init__(DeduplicateOperator(spec.rows, is_inside=True), spec.rows.key_selector, spec.key)
        self._is_tuple = isinstance(self._selector, ComposedKey)

    def _open_state(self, ctx: OperatorContext) -> None:
        self._state = state_of(ctx, self._selector)

    def _has_others(self) -> bool:
        return bool(self._state.others)

    def _kept_bytes(self) -> int:
        return self._state.nbytes

    def _takes_columns(self, columns: pa.RecordBatch, batch: ColumnBatch) -> bool:
        keys = self._keys_of(columns) if has_fields(batch.named, key_fields(self._given)) else None
        if keys is None:
            return False
        self._take(keys, batch)
        return True

    def _only_keys(self, schema: pa.Schema) -> Collection[int]:
        return only_keys(schema, key_fields(self._selector), ())

    def _keys_of(self, columns: pa.RecordBatch) -> list[pa.Array] | None:
        """Return the columns of the key; None when these are not for columns."""
        from engine.state.struct_keys import can_be_row_key

        places = [column_index(columns.schema, field) for field in key_fields(self._selector)]
        if min(places) < 0:
            return None
        keys = [columns.column(place) for place in places]
        kinds = [plain_type(key.type) for key in keys]
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

    def _give_to_rows(self) -> None:
        if self._state.num_entries():
            self._rows.adopt(keys_in(self._state, is_tuple=self._is_tuple))
            self._state.clear()
