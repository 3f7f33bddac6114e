"""A few typed rows into keyed aggregations on columns, without columns of them: what is kept is in arrays by slot, and
only keys and what is folded or compared become arrays, 15 us for a few rows of integers where columns in and out take
55 (decision 0073).

For keys that the state has, of one integer or text, and one number that is folded or compared. Whatever else comes
becomes columns (``row_columns``) before anything is changed. Results are rows: it is for where nobody behind wants
columns. Not here: the state, and who emits (``column_aggregate_operator``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, final

import numpy as np

from engine.core.late_dataclass import dataclass
from engine.core.records import RowBatch, record_values, row_of
from engine.operators.column_kernels import RUNNING
from engine.operators.column_layout import Layout
from engine.operators.row_columns import SMALL_ROWS_MAX, RowColumns
from engine.state.slot_columns import FixedColumn

if TYPE_CHECKING:
    from engine.operators.column_choice import ChosenRows
    from engine.state.slot_columns import StateColumn
    from engine.state.slot_state import SlotState

    Array = np.ndarray[Any, Any]

__all__ = ["FewRows", "SmallRows", "small_rows_of"]

_NUMBERS: Final = {int: np.int64, float: np.float64}
_NONE: Final = np.zeros(0, np.int32)


@final
@dataclass(frozen=True, slots=True)
class FewRows:
    """``lists``: values by field; ``keys``: as the slot table looks them up; ``values``: what is folded or compared."""

    batch: RowBatch
    lists: list[Any]
    keys: Any
    values: Array


@final
class SmallRows:
    """Of one layout. ``columns``: what knows the rows' type, and would make columns of them."""

    def __init__(self, layout: Layout, columns: RowColumns) -> None:
        self._layout, self._columns = layout, columns
        self._names = tuple(layout.names) if layout.named else None
        self._is_known = False
        #: with the last rows the state may have become larger
        self.has_grown = False
        if layout.values is not None or len(layout.keys) > 1 or len(layout.folded) > 1:
            return
        (self._key,), (self._folded,) = layout.keys, layout.folded
        self._is_known = (
            layout.schema.equals(columns.schema)
            and layout.named == columns.is_named
            and columns.kinds[self._key] in (int, str)
            and columns.kinds[self._folded] in _NUMBERS
            and self._key != self._folded
        )

    def is_of(self, layout: Layout, columns: RowColumns) -> bool:
        return self._layout is layout and self._columns is columns

    def read(self, batch: RowBatch) -> FewRows | None:
        """Return the rows, or None when they have to become columns."""
        if not self._is_known or len(batch) > SMALL_ROWS_MAX:
            return None
        found = self._columns.lists_of(batch)
        if found is None:
            return None
        num_rows, lists = len(batch.rows), []
        folded: Array | None = None
        keys: Any = None
        try:
            for index, (values, kind, has_nulls) in enumerate(found):
                if has_nulls:
                    return None
                lists.append(values)
                array: Any = None
                if kind is str:
                    encoded = [value.encode() for value in values]
                    array = _views(encoded) if index == self._key else None
                elif kind is int or index == self._folded:
                    array = np.fromiter(values, _NUMBERS[kind], num_rows)
                if index == self._key:
                    keys = array
                elif index == self._folded:
                    folded = array
        except (OverflowError, UnicodeEncodeError):
            return None  # no such records: it is said where columns are made
        assert folded is not None
        return FewRows(batch, lists, keys, folded)

    def results(self, few: FewRows, slots: Array, state: SlotState, chosen: ChosenRows | None) -> RowBatch | None:
        """Take up rows of slots that there are; return a result for each, or for those before a sum beyond 64 bits.
        None if columns have to be made: nothing has changed then. ``chosen``: of an operator that chooses records."""
        layout, self.has_grown = self._layout, False
        held: Array = state.columns[layout.name_of(self._folded)].values.array  # type: ignore[attr-defined]
        kept = {index: state.columns[layout.name_of(index)] for index in layout.kept}
        if layout.choice is not None:
            return (
                None
                if chosen is None
                else self._choices(few, slots, state, kept, chosen.choose(slots, _NONE, few.values, held))
            )
        after = np.empty(slots.size, held.dtype)
        done = RUNNING[layout.folded[self._folded], held.dtype.kind == "f"](slots, few.values, held, after)
        state.mark(slots)
        slots, lists = slots[:done], [values[:done] for values in few.lists]
        for index, column in kept.items():
            lists[index] = _held(column, slots)
        lists[self._folded] = after[:done].tolist()
        stamps = few.batch.timestamps_ms
        return self._batch(lists, None if stamps is None else stamps[:done])

    def _choices(
        self, few: FewRows, slots: Array, state: SlotState, kept: dict[int, StateColumn], choice: tuple[Array, Array]
    ) -> RowBatch:
        """Let the records that were chosen take the place of those so far. ``choice``: what is compared of each result,
        and the row that it is, or -1 = what the slot has had."""
        after, chosen = choice
        rows, lists = chosen.tolist(), list(few.lists)
        has_earlier = min(rows) < 0
        for index, column in kept.items():
            values = few.lists[index]
            if has_earlier:
                held = _held(column, slots)
                lists[index] = [own if row < 0 else values[row] for row, own in zip(rows, held, strict=True)]
            else:
                lists[index] = [values[row] for row in rows]
        lists[self._folded] = after.tolist()
        taken = [row for row, own in enumerate(rows) if own == row]
        if taken:
            changed = slots if len(taken) == slots.size else slots[taken]
            for index, column in kept.items():
                self.has_grown |= _put(column, changed, [few.lists[index][row] for row in taken])
            state.mark(changed)
        return self._batch(lists, few.batch.timestamps_ms)

    def _batch(self, lists: list[Any], stamps: list[int] | None) -> RowBatch:
        records = zip(*lists, strict=True)
        names = self._names
        return RowBatch(list(records) if names is None else [row_of(names, list(own)) for own in records], stamps)


def small_rows_of(known: SmallRows | None, layout: Layout | None, columns: RowColumns) -> SmallRows | None:
    """Return what takes up such rows, ``known`` if that does; None before anything has come as columns."""
    if layout is None or (known is not None and known.is_of(layout, columns)):
        return known
    return SmallRows(layout, columns)


def _views(texts: list[bytes]) -> tuple[Array, Array]:
    """Return (offsets, content), as ``arrow_views.text_views`` does of a column."""
    offsets = np.zeros(len(texts) + 1, np.int32)
    np.cumsum(list(map(len, texts)), out=offsets[1:])
    return offsets, np.frombuffer(bytearray(b"".join(texts)), np.uint8)


def _put(column: StateColumn, slots: Array, values: list[Any]) -> bool:
    """Set the values of these slots, none of them None, in order; return whether that may have taken memory."""
    if isinstance(column, FixedColumn) and column.is_plain:
        array = column.values.array
        array[slots] = np.fromiter(values, array.dtype, len(values))
        return False
    import pyarrow as pa

    column.put(slots, pa.array(values, column.kind))
    return True


def _held(column: StateColumn, slots: Array) -> list[Any]:
    if isinstance(column, FixedColumn) and column.is_plain:
        values: list[Any] = column.values.array[slots].tolist()
        return values
    return record_values(column.get(slots))
