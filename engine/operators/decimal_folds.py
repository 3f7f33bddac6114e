"""Decimals that keyed aggregations add and compare: integers of 64 bits as long as they do, then lanes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from engine.operators import column_kernels, decimal_kernels
from engine.state.short_decimals import (
    digits_added_exactly,
    first_long_units,
    lanes_of,
    lanes_of_int,
    lanes_of_units,
    units_of,
)
from engine.state.slot_columns import DecimalColumn

if TYPE_CHECKING:
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

__all__ = ["add_up", "values_for"]


def values_for(held: DecimalColumn, column: pa.Array) -> Array:
    """Return the values of a batch as they are held, for which ``held`` has room afterwards."""
    if not held.has_room_for(column):
        held.widen()
    return lanes_of(column) if held.is_wide else units_of(column)


def add_up(held: DecimalColumn, slots: Array, values: Array) -> tuple[Array, int]:
    """Add each value to its slot's sum; return the sum after each row, and how many rows that are: fewer than all if
    Python would round the next sum."""
    if values.ndim == 1:
        sums, after = held.values.array, np.empty(slots.size, np.int64)
        done = int(column_kernels.running_sum_of_ints(slots, values, sums, after))
        if first_long_units(after[:done]) == slots.size:
            return after, done
        np.subtract.at(sums, slots[:done], values[:done])
        held.widen()
        values = lanes_of_units(values)
    lanes = np.empty((slots.size, 2), np.int64)
    limit = lanes_of_int(10 ** digits_added_exactly())
    done = int(decimal_kernels.running_sum_of_lanes(slots, values, limit, held.values.array, lanes))
    return lanes[:done], done
