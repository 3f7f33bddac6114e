"""Keyed choice of a record over columns (min_by, max_by, functions that pick): which record each row's result is.

Not here: the values that are compared and the records so far, which are state (``column_aggregate``), and windows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import numpy as np
import pyarrow as pa

from engine.core.arrow_arrays import arrow_of
from engine.operators import column_kernels as kernels
from engine.operators import decimal_kernels
from engine.operators.record_choice import RecordChoice
from engine.state.paged_array import PagedArray
from engine.state.slot_columns import StateColumn

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

__all__ = ["ChosenRows", "mixed_column"]


@final
class ChosenRows:
    """Numbers records of all batches, so that a slot need not be told when a new batch begins. In no checkpoint: what
    was restored is of an earlier batch, like all that came before."""

    def __init__(self, choice: RecordChoice) -> None:
        self._law = choice.law
        #: by slot, the number of the record that it has; 0 = of a time before these numbers
        self._number_of_slot = PagedArray(np.int64)
        self._next = 1

    def choose(self, slots: Array, first: Array, values: Array, held: Array) -> tuple[Array, Array]:
        """Return what is compared of each row's result, and the row of this batch that the result is, or -1 if it is
        what the slot had before.

        ``first``: the rows that made new slots; ``values``: what is compared, by row, numbers or lanes of decimals;
        ``held``: the same of the record so far, by slot, of new slots that of their first row; changed in place.
        """
        self._number_of_slot.reserve(held.shape[0])
        numbers = self._number_of_slot.array
        numbers[slots[first]] = self._next + first.astype(np.int64)
        after, chosen = np.empty((slots.size, *held.shape[1:]), held.dtype), np.empty(slots.size, np.int64)
        choose = kernels.choose_running if held.ndim == 1 else decimal_kernels.choose_running_lanes
        choose(slots, values, self._law, held, numbers, self._next, after, chosen)
        self._next += slots.size
        return after, chosen


def mixed_column(column: pa.Array, held: StateColumn, slots: Array, choice: tuple[Array, Array]) -> pa.Array:
    """Return for each row the value of the row that was chosen, or what its slot holds where that is -1. ``choice``:
    the rows, and which of them are -1."""
    chosen, earlier = choice
    if not earlier.size:
        return column.take(arrow_of(chosen))
    if earlier.size == chosen.size:
        return held.get(slots)
    places = chosen.copy()
    places[earlier] = len(column) + np.arange(earlier.size)
    return pa.concat_arrays([column, held.get(slots[earlier])]).take(arrow_of(places))
