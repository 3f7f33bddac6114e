"""numba kernels of columnar aggregation: free functions on arrays; each has a slow obvious twin in the tests.

Importing this module imports numba: do it where a kernel is about to run. Compiled for int64 and float64 as needed.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

__all__ = ["running_max", "running_min", "running_sum_of_floats", "running_sum_of_ints"]


@numba.njit(nogil=True, cache=True)
def running_sum_of_ints(slots: Any, values: Any, sum_of_slot: Any, after: Any) -> int:
    """Add each value to its slot's sum (int64) and write the sum after it; return the rows done.

    Stops before a row whose sum would not fit into 64 bits. 100 M rows/s at a million slots, 500 M at ten thousand.
    """
    for row in range(slots.size):
        slot = slots[row]
        a = sum_of_slot[slot]
        b = np.int64(values[row])
        total = a + b
        if ((a ^ total) & (b ^ total)) < 0:
            return row
        sum_of_slot[slot] = total
        after[row] = total
    return slots.size


@numba.njit(nogil=True, cache=True)
def running_sum_of_floats(slots: Any, values: Any, sum_of_slot: Any, after: Any) -> int:
    """As ``running_sum_of_ints`` for float64; never stops early. The order of addition is that of the rows."""
    for row in range(slots.size):
        slot = slots[row]
        total = sum_of_slot[slot] + values[row]
        sum_of_slot[slot] = total
        after[row] = total
    return slots.size


@numba.njit(nogil=True, cache=True)
def running_min(slots: Any, values: Any, min_of_slot: Any, after: Any) -> int:
    """As Python's ``other if other < value else value``: a NaN that came first stays. 100-500 M rows/s."""
    for row in range(slots.size):
        slot = slots[row]
        if values[row] < min_of_slot[slot]:
            min_of_slot[slot] = values[row]
        after[row] = min_of_slot[slot]
    return slots.size


@numba.njit(nogil=True, cache=True)
def running_max(slots: Any, values: Any, max_of_slot: Any, after: Any) -> int:
    """As ``running_min``, the other way round."""
    for row in range(slots.size):
        slot = slots[row]
        if values[row] > max_of_slot[slot]:
            max_of_slot[slot] = values[row]
        after[row] = max_of_slot[slot]
    return slots.size
