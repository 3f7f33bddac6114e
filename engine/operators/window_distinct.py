"""Distinct values by key in the panes of windows over columns: for each pane an index of pairs (slot of key, value).

How many a slot has stands in a column of the pane, like an accumulator; several panes are counted together when a
window of them fires. Null takes no part; all NaN are one value, and so are 0.0 and -0.0, as ``canonical_key`` has it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

import numpy as np
import pyarrow as pa

from engine.core.arrow_arrays import arrow_of
from engine.core.records import python_values
from engine.operators.window_panes import Pane
from engine.state.arrow_views import is_int64_like, is_text_like, valid_mask, values_of
from engine.state.key_groups import canonical_key
from engine.state.slot_table import SlotTable

Array = np.ndarray[Any, Any]

__all__ = ["DistinctValues", "ValuesOfBatch", "can_be_distinct"]


def can_be_distinct(kind: pa.DataType) -> bool:
    """Whether values of this type differ as their Python objects do."""
    if is_text_like(kind):
        return True
    has_nanoseconds = pa.types.is_temporal(kind) and getattr(kind, "unit", "") == "ns"  # datetime has microseconds
    return is_int64_like(kind) and kind != pa.float16() and not has_nanoseconds


@final
class ValuesOfBatch:
    """One field of the batch that is being taken up."""

    def __init__(self, column: pa.Array) -> None:
        self._column = column
        self._valid: Array | None = valid_mask(column) if column.null_count else None

    def of_rows(self, rows: Array) -> tuple[Array, pa.Array]:
        """Return those of the rows that have a value, and their values."""
        if self._valid is not None:
            rows = rows[self._valid[rows]]
        return rows, self._column if rows.size == len(self._column) else self._column.take(arrow_of(rows))


@final
class DistinctValues:
    """``index``: of the field in records; ``column``: of panes, that has the numbers of values."""

    def __init__(self, index: int, kind: pa.DataType, column: int) -> None:
        self.index = index
        self.column = column
        self._kinds = [pa.int64(), kind]
        #: start of a pane → its pairs
        self._pairs: dict[int, SlotTable] = {}
        self._batch = ValuesOfBatch(pa.nulls(0, kind))

    def begin_batch(self, column: pa.Array) -> None:
        """Prepare the values of the batch whose rows ``take_up`` takes."""
        self._batch = ValuesOfBatch(column)

    def take_up(self, start: int, pane: Pane, rows: Array, slots: Array) -> None:
        """``slots``: by row of the batch."""
        rows, values = self._batch.of_rows(rows)
        if rows.size:
            self._add(start, pane, slots[rows], values)

    def _add(self, start: int, pane: Pane, slots: Array, values: pa.Array) -> None:
        if start not in self._pairs:
            self._pairs[start] = SlotTable(self._kinds)
        _, first = self._pairs[start].find([arrow_of(slots.astype(np.int64)), values])
        np.add.at(pane.column(self.column), slots[first], 1)

    def count_together(self, starts: Iterable[int], target: Array) -> None:
        """Write into ``target``, (slots, columns), how many values each slot has in these panes together."""
        together = SlotTable(self._kinds)
        for start in starts:
            if start in self._pairs:
                together.find(_pairs_of(self._pairs[start]))
        slots = values_of(_pairs_of(together)[0])
        target[:, self.column] = np.bincount(slots, minlength=target.shape[0])

    def sets_of(self, start: int, slots: Array) -> list[set[Any]]:
        """Return the values of each of these slots in a pane, as the row operator's accumulator has them."""
        found: dict[int, set[Any]] = {slot: set() for slot in slots.tolist()}
        if start in self._pairs:
            own, values = _pairs_of(self._pairs[start])
            for slot, value in zip(values_of(own).tolist(), python_values(values), strict=True):
                if slot in found:
                    found[slot].add(canonical_key(value))
        return list(found.values())

    @property
    def nbytes(self) -> int:
        return sum(table.nbytes for table in self._pairs.values())

    def num_pairs(self, start: int) -> int:
        return self._pairs[start].num_slots if start in self._pairs else 0

    def drop(self, start: int) -> None:
        self._pairs.pop(start, None)

    def keep(self, start: int, slots: Array) -> None:
        """Forget the values that other slots of a pane have."""
        if start in self._pairs:
            of_pairs, values = _pairs_of(self._pairs[start])
            kept = np.isin(values_of(of_pairs), slots)
            self._pairs[start] = SlotTable(self._kinds)
            self._pairs[start].find([of_pairs.filter(arrow_of(kept)), values.filter(arrow_of(kept))])

    def compact(self, kept: Array) -> None:
        """``kept``: rising slots; slot ``kept[i]`` becomes slot i."""
        for start, table in self._pairs.items():
            slots, values = _pairs_of(table)
            moved = np.searchsorted(kept, values_of(slots)).astype(np.int64)
            self._pairs[start] = SlotTable(self._kinds)
            self._pairs[start].find([arrow_of(moved), values])

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def lists_of(self, start: int, slots: Array, numbers: Array) -> pa.Array:
        """Return the values of each of these slots, rising. ``numbers``: of values, by slot of these."""
        offsets = np.zeros(slots.size + 1, np.int64)
        np.cumsum(numbers, out=offsets[1:])
        if start not in self._pairs:
            return pa.LargeListArray.from_arrays(arrow_of(offsets), pa.nulls(0, self._kinds[1]))
        own, values = _pairs_of(self._pairs[start])
        of_pairs = values_of(own)
        if offsets[-1] == of_pairs.size:
            order = np.argsort(of_pairs, kind="stable")
        else:  # these are not all slots of the pane
            found = np.flatnonzero(np.isin(of_pairs, slots))
            order = found[np.argsort(of_pairs[found], kind="stable")]
        return pa.LargeListArray.from_arrays(arrow_of(offsets), values.take(arrow_of(order)))

    def restore(self, start: int, pane: Pane, slots: Array, lists: pa.Array) -> None:
        """Take up what ``lists_of`` gave. ``slots``: those that these keys have now."""
        numbers = values_of(lists.value_lengths())
        if numbers.sum():
            self._add(start, pane, np.repeat(slots, numbers), lists.flatten())


def _pairs_of(table: SlotTable) -> list[pa.Array]:
    return table.keys_of(np.arange(table.num_slots))
