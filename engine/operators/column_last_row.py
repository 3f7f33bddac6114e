"""The last row of each key on columns: each record comes with the one that it replaces, as columns with kinds.

How records are kept: ``last_records``. ``operators/deduplicate`` takes over, with all of them, when something comes
that columns cannot do: rows, and so what is taken back, keys or values that columns cannot keep, records of other
types. With ``rocksdb`` it does so when managed memory ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from engine.core.records import BATCH_ROWS_MAX, ColumnBatch, RowKind
from engine.operators.base import Operator, OperatorContext, OperatorSpec
from engine.operators.column_fields import is_named
from engine.operators.columns_until_rows import ColumnsUntilRows
from engine.operators.computed_keys import KeyFunction, own_columns
from engine.operators.deduplicate import LAST, DeduplicateOperator, DeduplicateSpec
from engine.operators.keys import key_fields
from engine.operators.last_records import LastRecords

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ColumnLastRowSpec"]


@final
@dataclass(frozen=True)
class ColumnLastRowSpec(OperatorSpec):
    """``key``: what the key selector is on columns, where it is a function; ``retracts``: the input is a changelog."""

    rows: DeduplicateSpec
    key: KeyFunction | None = None
    retracts: bool = False
    emits_columns = True
    emits_kinds = True
    preload = ("engine.operators.warm_up.tops",)

    @property
    def blocks(self) -> bool:  # type: ignore[override]
        return self.rows.blocks

    def build(self) -> Operator:
        return _ColumnLastRowOperator(self)

    def describe(self) -> str:
        return "vectorised, a changelog of columns" + ("" if self.key is None else self.key.describe())


@final
class _ColumnLastRowOperator(ColumnsUntilRows):
    takes_kinds = True
    takes_objects = True

    def __init__(self, spec: ColumnLastRowSpec) -> None:
        assert spec.rows.keeps == LAST
        self._spec = spec.rows
        self._retracts = spec.retracts
        super().__init__(DeduplicateOperator(spec.rows, is_inside=True), spec.rows.key_selector, spec.key)

    def _open_state(self, ctx: OperatorContext) -> None:
        self._state = LastRecords(ctx, self._selector, ordered=self._spec.emit_final, retracts=self._retracts)

    def _has_others(self) -> bool:
        return bool(self._state.slots.others)

    def _kept_bytes(self) -> int:
        return self._state.nbytes

    def _takes_columns(self, columns: pa.RecordBatch, batch: ColumnBatch) -> bool:
        if batch.kinds is not None and not self._retracts:
            self._note_rows("a changelog came, of which the plan did not know")
            return False
        if not self._has_fields(batch.named, key_fields(self._given)):
            return False
        if not self._state.define(columns.schema, named=batch.named):
            return False
        self._take(columns, batch.timestamps_ms, batch.kinds)
        return True

    def _take(self, columns: pa.RecordBatch, times_ms: Any, given: Any) -> None:
        state = self._state
        changed, kinds, rows = state.take_changes(columns, given) if self._retracts else state.take(columns)
        if not self._spec.emit_final:
            stamps = None if times_ms is None else times_ms[rows]
            self._emit(changed, stamps, kinds)

    def _emit(self, columns: pa.RecordBatch, stamps: Any, kinds: Any) -> None:
        """Hand on records as Rows, with names if the records are Rows, or else the program has some."""
        import pyarrow as pa

        assert self._state.schema is not None
        columns = own_columns(columns)
        names = self._spec.names
        named = is_named(self._state.schema) is True
        if names is not None and not named:
            columns = pa.RecordBatch.from_arrays(columns.columns, names=names)
        made = ColumnBatch(columns, stamps, named=named or names is not None, kinds=kinds)
        for at in range(0, len(made), BATCH_ROWS_MAX):
            self.out.emit(made.slice(at, min(at + BATCH_ROWS_MAX, len(made))))

    def _give_to_rows(self) -> None:
        if self._state.num_entries():
            self._rows.adopt_last(self._state.rows())
            self._state.clear()

    def _emit_final(self) -> None:
        import numpy as np

        if not self._spec.emit_final:
            return
        self._state.remember()
        for columns in self._state.records():
            kinds = np.full(columns.num_rows, RowKind.INSERT.value, np.int8)
            self._emit(columns.replace_schema_metadata(None), None, kinds)
        self._state.clear()
