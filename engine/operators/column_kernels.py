"""numba kernels of columnar aggregation: free functions on arrays; each has a slow obvious twin in the tests.

Importing this module imports numba: do it where a kernel is about to run. Compiled for int64 and float64 as needed.
"""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np

__all__ = [
    "RUNNING",
    "add_floats",
    "add_ints",
    "choose_codes_of_rows",
    "choose_of_rows",
    "choose_running",
    "count_rows",
    "lower_to",
    "lower_to_or_nan",
    "panes_of_times",
    "put_last",
    "raise_to",
    "raise_to_or_nan",
    "rows_by_pane",
    "rows_of_two_panes",
    "running_max",
    "running_min",
    "running_sum_of_floats",
    "running_sum_of_ints",
]


@numba.njit(nogil=True, cache=True)
def running_sum_of_ints(slots: Any, values: Any, sum_of_slot: Any, after: Any) -> int:
    """Add each value to its slot's sum (int64) and write the sum after it; return the rows done.

    Stops before a row whose sum would not fit into 64 bits. 97-111 M rows/s at a million slots, 730 M at
    ten thousand.
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
    """As Python's ``other if other < value else value``: a NaN that came first stays. 150 M rows/s at a million
    slots, 1300 M at ten thousand."""
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


#: By kind and whether values are floats.
RUNNING: Final[dict[tuple[str, bool | None], Any]] = {
    ("sum", False): running_sum_of_ints,
    ("sum", True): running_sum_of_floats,
    ("min", False): running_min,
    ("min", True): running_min,
    ("max", False): running_max,
    ("max", True): running_max,
}


@numba.njit(nogil=True)
def _takes_over(law: tuple[int, bool], value: Any, held: Any) -> bool:
    """``law``: of ``RecordChoice``."""
    sign, negated = law
    if sign == 0:
        holds = value < held
    elif sign == 1:
        holds = value <= held
    elif sign == 2:
        holds = value > held
    else:
        holds = value >= held
    return bool(holds != negated)


@numba.njit(nogil=True, cache=True)
def choose_running(
    slots: Any, values: Any, law: tuple[int, bool], held: Any, number_of_slot: Any, base: int, after: Any, chosen: Any
) -> None:
    """Choose between each row's record and its slot's so far.

    ``held``: by slot, what is compared of its record; ``number_of_slot``: int64, that record's number, where row 0 here
    has the number ``base``. Written by row: ``after``, what is compared of the record that stays, and ``chosen``,
    int64, the row of that record, or -1 if it is of an earlier batch. 51 M rows/s at a million slots, 380 M at
    ten thousand.
    """
    for row in range(slots.size):
        slot = slots[row]
        if _takes_over(law, values[row], held[slot]):
            held[slot] = values[row]
            number_of_slot[slot] = base + row
        after[row] = held[slot]
        chosen[row] = max(number_of_slot[slot] - base, -1)


# --- windows: ``rows`` picks the rows of one pane, int32; ``acc`` is the pane's column of one value a slot -----------


@numba.njit(nogil=True, cache=True)
def panes_of_times(
    times_ms: Any, row: int, law: tuple[int, int], starts: Any, num_panes: int, out: Any
) -> tuple[int, int]:
    """Write the number of each row's pane; return (row reached, number of panes).

    ``times_ms`` int64; ``law``: (pane size, offset); ``starts``: int64, where each pane begins, by number; ``out``:
    int32. Stops before a row of a new pane when ``starts`` is full. 670-1100 M rows/s: neighbours often share a pane.
    """
    size, offset = law
    pane = 0
    low, high = 1, 0
    while row < times_ms.size:
        time_ms = times_ms[row]
        if not low <= time_ms < high:
            start = time_ms - (time_ms - offset) % size
            pane = 0
            while pane < num_panes and starts[pane] != start:
                pane += 1
            if pane == num_panes:
                if num_panes == starts.size:
                    return row, num_panes
                starts[pane] = start
                num_panes += 1
            low, high = start, start + size
        out[row] = pane
        row += 1
    return row, num_panes


@numba.njit(nogil=True, cache=True)
def rows_by_pane(pane_of_row: Any, begin: int, end: int, ends: Any, rows: Any) -> None:
    """Sort the rows from ``begin`` to ``end`` by pane, stable, into these places of ``rows`` (int32), and write where
    each pane ends (int64). ``pane_of_row``: int32, in range. 490 M rows/s for two panes."""
    ends[:] = 0
    for row in range(begin, end):
        ends[pane_of_row[row]] += 1
    at = begin
    for pane in range(ends.size):
        count = ends[pane]
        ends[pane] = at
        at += count
    for row in range(begin, end):
        pane = pane_of_row[row]
        rows[ends[pane]] = row
        ends[pane] += 1


@numba.njit(nogil=True, cache=True)
def rows_of_two_panes(times_ms: Any, end_ms: int, earlier: Any, later: Any) -> int:
    """Write the rows whose time is before ``end_ms`` and the others, rising; return how many are earlier.

    ``earlier``, ``later``: int32, one longer than ``times_ms``. No branch, for neighbours out of order share no pane.
    2 G rows/s.
    """
    num_earlier = num_later = 0
    for row in range(times_ms.size):
        earlier[num_earlier] = row
        later[num_later] = row
        is_later = 1 if times_ms[row] >= end_ms else 0
        num_later += is_later
        num_earlier += 1 - is_later
    return num_earlier


@numba.njit(nogil=True, cache=True)
def count_rows(rows: Any, slots: Any, acc: Any, begun_slots: Any, begun_rows: Any) -> int:
    """Count rows by slot; list the slots whose count was 0, each with the row that came first; return how many.

    70 M rows/s at a million slots, 550 M at ten thousand, four values a slot; the kernels below do
    52-83 M and 370-600 M.
    """
    begun = 0
    for i in range(rows.size):
        row = rows[i]
        slot = slots[row]
        if acc[slot] == 0:
            begun_slots[begun] = slot
            begun_rows[begun] = row
            begun += 1
        acc[slot] += 1
    return begun


@numba.njit(nogil=True, cache=True)
def add_ints(rows: Any, slots: Any, values: Any, acc: Any) -> int:
    """Add to int64 sums; return the rows done, fewer when a sum would not fit into 64 bits."""
    for i in range(rows.size):
        row = rows[i]
        slot = slots[row]
        a = acc[slot]
        b = np.int64(values[row])
        total = a + b
        if ((a ^ total) & (b ^ total)) < 0:
            return i
        acc[slot] = total
    return rows.size


@numba.njit(nogil=True, cache=True)
def add_floats(rows: Any, slots: Any, values: Any, acc: Any) -> int:
    for i in range(rows.size):
        row = rows[i]
        acc[slots[row]] += values[row]
    return rows.size


@numba.njit(nogil=True, cache=True)
def lower_to(rows: Any, slots: Any, values: Any, acc: Any) -> int:
    for i in range(rows.size):
        row = rows[i]
        if values[row] < acc[slots[row]]:
            acc[slots[row]] = values[row]
    return rows.size


@numba.njit(nogil=True, cache=True)
def raise_to(rows: Any, slots: Any, values: Any, acc: Any) -> int:
    for i in range(rows.size):
        row = rows[i]
        if values[row] > acc[slots[row]]:
            acc[slots[row]] = values[row]
    return rows.size


@numba.njit(nogil=True, cache=True)
def lower_to_or_nan(rows: Any, slots: Any, values: Any, acc: Any) -> int:
    """As ``lower_to``, but a NaN wins whenever it comes: independent of the order."""
    for i in range(rows.size):
        row = rows[i]
        if values[row] < acc[slots[row]] or values[row] != values[row]:
            acc[slots[row]] = values[row]
    return rows.size


@numba.njit(nogil=True, cache=True)
def raise_to_or_nan(rows: Any, slots: Any, values: Any, acc: Any) -> int:
    for i in range(rows.size):
        row = rows[i]
        if values[row] > acc[slots[row]] or values[row] != values[row]:
            acc[slots[row]] = values[row]
    return rows.size


@numba.njit(nogil=True, cache=True)
def put_last(rows: Any, slots: Any, values: Any, acc: Any) -> int:
    for i in range(rows.size):
        row = rows[i]
        acc[slots[row]] = values[row]
    return rows.size


@numba.njit(nogil=True, cache=True)
def choose_of_rows(rows: Any, slots: Any, values: Any, law: tuple[int, bool], acc: Any, taken: Any) -> int:
    """List in ``taken``, int32, the rows whose records took the place of their slot's, in order; return how many. 46 M
    rows/s at a million slots, four values a slot, 360 M at ten thousand."""
    num_taken = 0
    for i in range(rows.size):
        row = rows[i]
        slot = slots[row]
        if _takes_over(law, values[row], acc[slot]):
            acc[slot] = values[row]
            taken[num_taken] = row
            num_taken += 1
    return num_taken


@numba.njit(nogil=True, cache=True)
def choose_codes_of_rows(
    rows: Any, slots: Any, codes: Any, ranks: Any, law: tuple[int, bool], acc: Any, taken: Any
) -> int:
    """As ``choose_of_rows`` of values that are codes, with their ranks, int32, by code."""
    num_taken = 0
    for i in range(rows.size):
        row = rows[i]
        slot = slots[row]
        if _takes_over(law, ranks[codes[row]], ranks[acc[slot]]):
            acc[slot] = codes[row]
            taken[num_taken] = row
            num_taken += 1
    return num_taken
