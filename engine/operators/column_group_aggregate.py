"""Running aggregates of a changelog on columns: what ``operators/group_aggregate`` does on rows, a batch at a time.

Kernels give the results before and after each record; what changes goes on as columns with kinds, in the order of rows.
That takes over, with all that is kept, when something comes that columns cannot do: rows, sums that may go beyond 64
bits, decimals or sums of them of more than 18 digits, averages of decimals, other types than before. With ``rocksdb``
it does so when managed memory ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from engine.core.late_dataclass import dataclass
from engine.core.records import BATCH_ROWS_MAX, ColumnBatch, RowKind
from engine.operators.base import Operator, OperatorContext, OperatorSpec
from engine.operators.column_fields import is_named, own_fields
from engine.operators.columns_until_rows import ColumnsUntilRows
from engine.operators.computed_keys import KeyFunction
from engine.operators.group_aggregate import GroupAggregateOperator, GroupAggregateSpec
from engine.operators.keys import ComposedKey, FieldKey

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from engine.operators.group_slots import Taken

    Array = np.ndarray[Any, Any]

__all__ = ["ColumnGroupAggregateSpec", "column_group_aggregate"]


@final
@dataclass(frozen=True)
class ColumnGroupAggregateSpec(OperatorSpec):
    """``key``: what the key selector is on columns, where it is a function."""

    rows: GroupAggregateSpec
    key: KeyFunction | None = None
    emits_columns = True
    emits_kinds = True
    preload = ("engine.operators.warm_up.groups",)

    @property
    def blocks(self) -> bool:  # type: ignore[override]
        return self.rows.blocks

    def build(self) -> Operator:
        return _ColumnGroupAggregateOperator(self)

    def describe(self) -> str:
        return "vectorised, a changelog of columns" + ("" if self.key is None else self.key.describe())


def column_group_aggregate(rows: GroupAggregateSpec, key: KeyFunction | None = None) -> ColumnGroupAggregateSpec | None:
    """Return the columnar form of running aggregates; None if there is none."""
    if rows.why_rows or (key is None and not isinstance(rows.key_selector, FieldKey | ComposedKey)):
        return None
    if key is not None and isinstance(key.selector, ComposedKey) and not rows.in_place:
        return None  # its tuple is one field of results
    return ColumnGroupAggregateSpec(rows, key)


@final
class _ColumnGroupAggregateOperator(ColumnsUntilRows):
    takes_kinds = True

    def __init__(self, spec: ColumnGroupAggregateSpec) -> None:
        self._spec = spec.rows
        super().__init__(GroupAggregateOperator(spec.rows, is_inside=True), spec.rows.key_selector, spec.key)

    def _open_state(self, ctx: OperatorContext) -> None:
        from engine.operators.group_slots import GroupSlots

        self._state = GroupSlots(ctx, self._spec, self._selector)

    def _has_others(self) -> bool:
        return bool(self._state.slots.others)

    def _kept_bytes(self) -> int:
        return self._state.nbytes

    def _takes_columns(self, columns: pa.RecordBatch, batch: ColumnBatch) -> bool:
        state = self._state
        if not state.define(columns.schema, named=batch.named):
            return False
        if why := state.why_not(columns):
            self._note_rows(why)
            return False
        taken = state.take(columns, batch.kinds)
        if not self._spec.emit_final:
            self._tell(columns, taken, batch.timestamps_ms)
        state.begin(columns, taken)
        return True

    def _tell(self, columns: pa.RecordBatch, taken: Taken, times_ms: Array | None) -> None:
        """Hand on what changes: of each row one record that comes or goes, or two."""
        import numpy as np

        is_changed = np.zeros(len(taken.slots), np.bool_)
        for results in taken.results:
            is_changed |= results.are_changed()
        come, go = taken.nums[:, 0] == 0, taken.nums[:, 1] == 0
        num_told = np.where(come ^ go, 1, np.where(is_changed & ~come, 2, 0))
        rows = np.repeat(np.arange(num_told.size), num_told)
        if not rows.size:
            return
        is_second = np.zeros(rows.size, np.bool_)
        is_second[1:] = rows[1:] == rows[:-1]
        is_alone = num_told[rows] == 1
        sides = np.where(is_alone, come[rows], is_second).astype(np.int64)
        lone_kinds = np.where(come[rows], RowKind.INSERT.value, RowKind.DELETE.value)
        pair_kinds = np.where(is_second, RowKind.UPDATE_AFTER.value, RowKind.UPDATE_BEFORE.value)
        kinds = np.where(is_alone, lone_kinds, pair_kinds).astype(np.int8)
        made = [results.column(rows, sides) for results in taken.results]
        begun = {index: self._state.begun(index, columns, taken, rows) for index in self._begun_columns()}
        self._emit(begun, made, kinds, None if times_ms is None else times_ms[rows])

    def _begun_columns(self) -> list[int]:
        keys, aggregated = self._state.places
        assert self._state.schema is not None
        if not self._spec.in_place:
            return list(dict.fromkeys(keys))
        return [index for index in range(own_fields(self._state.schema.names)) if index not in aggregated]

    def _emit(self, begun: dict[int, pa.Array], made: list[pa.Array], kinds: Array, stamps: Any) -> None:
        """``begun``: what results begin with, by column of the records."""
        import pyarrow as pa

        schema = self._state.schema
        assert schema is not None
        keys, aggregated = self._state.places
        names, named = self._spec.names, self._spec.names is not None
        if self._spec.in_place:
            by_column = {**begun, **dict(zip(aggregated, made, strict=True))}
            arrays = [by_column[index] for index in sorted(by_column)]
            if is_named(schema) or names is None:
                names, named = tuple(schema.names[: len(arrays)]), bool(is_named(schema))
        else:
            arrays = [*(begun[key] for key in keys), *made]
        titles = list(names or (f"f{index}" for index in range(len(arrays))))
        batch = ColumnBatch(pa.RecordBatch.from_arrays(arrays, names=titles), stamps, named=named, kinds=kinds)
        for at in range(0, len(batch), BATCH_ROWS_MAX):
            self.out.emit(batch.slice(at, min(at + BATCH_ROWS_MAX, len(batch))))

    def _give_to_rows(self) -> None:
        if self._state.slots.num_entries():
            self._rows.adopt(self._state.groups())
            self._state.clear()

    def _emit_final(self) -> None:
        import numpy as np

        if not self._spec.emit_final or not self._state.slots.num_slots:
            return
        self._state.remember()
        for slots in self._state.alive():
            begun, results, _ = self._state.records(slots)
            every = np.arange(slots.size)
            made = [each.column(every, every * 0) for each in results]
            wanted = self._begun_columns()
            self._emit({index: begun[index] for index in wanted}, made, np.zeros(slots.size, np.int8), None)
        self._state.clear()
