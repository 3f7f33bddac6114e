"""numba kernels of running aggregates of a changelog on columns: free functions on arrays; the slow obvious twin is
``operators/group_aggregate``. Importing this imports numba.
"""

from __future__ import annotations

from typing import Any

import numba

__all__ = ["count_groups", "count_values", "sum_values"]

#: As of RowKind.
_UPDATE_BEFORE = 1
_DELETE = 3


@numba.njit(nogil=True, cache=True)
def count_groups(
    slots: Any, kinds: Any, base: int, num_of_slot: Any, first_of_slot: Any, signs: Any, nums: Any, first_of_row: Any
) -> int:
    """Count the records of each slot; return how many slots have records more than before, negative if less.

    ``slots`` int32; ``kinds`` int8, of RowKind. ``num_of_slot`` int64; ``first_of_slot`` int64: number of the first
    record since the slot had none, where row 0 here has the number ``base``. Written by row: ``signs`` int8, 1 = comes,
    -1 = goes, 0 = goes from a slot that has none, which is nothing; ``nums`` int64 (rows, 2): records before and after;
    ``first_of_row`` int64: the row of the first record, -1 if it is of an earlier batch.
    """
    num_more = 0
    for row in range(slots.size):
        slot = slots[row]
        num = num_of_slot[slot]
        nums[row, 0] = num
        if kinds[row] == _UPDATE_BEFORE or kinds[row] == _DELETE:
            signs[row] = -1 if num else 0
            if num == 1:
                num_more -= 1
        else:
            signs[row] = 1
            if num == 0:
                num_more += 1
                first_of_slot[slot] = base + row
        num += signs[row]
        num_of_slot[slot] = num
        nums[row, 1] = num
        first_of_row[row] = max(first_of_slot[slot] - base, -1)
    return num_more


@numba.njit(nogil=True, cache=True)
def count_values(slots: Any, signs: Any, nums: Any, valid: Any, count_of_slot: Any, counts: Any) -> None:
    """Count the values that are not null. ``signs``, ``nums``: of ``count_groups``; ``valid`` bool, by row;
    ``count_of_slot`` int64; ``counts`` int64 (rows, 2), written: before and after each row."""
    for row in range(slots.size):
        slot = slots[row]
        count = 0 if nums[row, 0] == 0 else count_of_slot[slot]
        counts[row, 0] = count
        if valid[row]:
            count += signs[row]
        counts[row, 1] = count
        count_of_slot[slot] = count


@numba.njit(nogil=True, cache=True)
def sum_values(slots: Any, signs: Any, counts: Any, values: Any, valid: Any, sum_of_slot: Any, sums: Any) -> None:
    """Add up, or subtract, the values that are not null. ``counts``: of ``count_values``; ``values``, ``sum_of_slot``
    and ``sums`` are of one type, int64 or float64; ``sums`` (rows, 2), written: before and after each row, without
    meaning where the count is 0. What is the first value of its slot, or leaves it without any, leaves no rounding
    behind. Integers are to fit."""
    for row in range(slots.size):
        slot = slots[row]
        total = sum_of_slot[slot]
        sums[row, 0] = total
        if valid[row] and signs[row] != 0:
            if counts[row, 0] == 0:
                total = values[row] if signs[row] > 0 else 0 - values[row]
            elif signs[row] > 0:
                total += values[row]
            else:
                total -= values[row]
            sum_of_slot[slot] = total
        sums[row, 1] = total
