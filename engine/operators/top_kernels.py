"""numba kernels of top-N on columns: free functions on arrays; a slow obvious twin is ``operators/top_n``.

Records that are kept have places in arrays; those of a key are a chain from the last to the first, so that one that
comes in is compared with the last one first. One that is pushed out gives its place to the one that came in. Importing
this imports numba.
"""

from __future__ import annotations

from typing import Any

import numba

__all__ = ["order_of_chains", "take_top"]


@numba.njit(nogil=True, cache=True)
def take_top(
    slots: Any,
    lanes: Any,
    at: tuple[int, int],
    how: tuple[int, bool],
    base: int,
    chains: tuple[Any, Any],
    places: tuple[Any, Any, Any],
    place_of_row: Any,
    out: Any,
) -> tuple[int, int, int]:
    """Take up rows and write what changes; return (row reached, places in use, changes written).

    ``slots`` int32; ``lanes`` int64 (rows, lanes): what rows are ordered by, ascending; ``at``: row to begin with,
    places in use; ``how``: n, whether changes have ranks. ``chains``: int64, by slot: the last one's place + 1 or 0,
    and number of places. ``places``: next better place or -1; int64 owner; lanes. ``owner``: ``base`` + row of the
    record at a place, or less when it is of an earlier batch. ``place_of_row``: int64, written: where the row went, or
    -1. ``out`` int64 (changes, 4): kind as of RowKind, record, rank, row; a record is a place if it was there before
    this batch, else -1 - its row. Has room for 2 n + 2 changes at least. 60 M rows/s where few come in.
    """
    row, used = at
    n, with_rank = how
    heads, counts = chains
    nexts, owners, held = places
    num = 0
    while row < slots.size:
        slot = slots[row]
        count = counts[slot]
        if num + (2 * count + 2 if with_rank else 2) > out.shape[0]:
            break
        head = heads[slot] - 1
        behind, place, walked = -1, head, 0
        while place >= 0:
            is_before = False
            for lane in range(lanes.shape[1]):
                if lanes[row, lane] != held[place, lane]:
                    is_before = lanes[row, lane] < held[place, lane]
                    break
            if not is_before:
                break
            behind = place
            place = nexts[place]
            walked += 1
        is_full = count == n
        if is_full and walked == 0:
            place_of_row[row] = -1
            row += 1
            continue
        if with_rank:
            end = num + 2 * walked + (0 if is_full else 1)
            i = end
            moved = head
            former = moved if moved < 0 or owners[moved] < base else base - owners[moved] - 1
            if not is_full:
                i -= 1
                out[i, 0] = 0
                out[i, 1] = former if walked else -1 - row
                out[i, 2] = count + 1
                out[i, 3] = row
            for step in range(walked):
                moved = nexts[moved]
                better = moved if moved < 0 or owners[moved] < base else base - owners[moved] - 1
                i -= 1
                out[i, 0] = 2
                out[i, 1] = better if step + 1 < walked else -1 - row
                out[i, 2] = count - step
                out[i, 3] = row
                i -= 1
                out[i, 0] = 1
                out[i, 1] = former
                out[i, 2] = count - step
                out[i, 3] = row
                former = better
            num = end
        else:
            if is_full:
                out[num, 0] = 3
                out[num, 1] = head if owners[head] < base else base - owners[head] - 1
                out[num, 2] = 0
                out[num, 3] = row
                num += 1
            out[num, 0] = 0
            out[num, 1] = -1 - row
            out[num, 2] = 0
            out[num, 3] = row
            num += 1
        if is_full:
            taken = head
            heads[slot] = nexts[taken] + 1
            if behind == taken:
                behind = -1
        else:
            taken = used
            used += 1
            counts[slot] = count + 1
        nexts[taken] = place
        if behind < 0:
            heads[slot] = taken + 1
        else:
            nexts[behind] = taken
        owners[taken] = base + row
        for lane in range(lanes.shape[1]):
            held[taken, lane] = lanes[row, lane]
        place_of_row[row] = taken
        row += 1
    return row, used, num


@numba.njit(nogil=True, cache=True)
def order_of_chains(heads: Any, counts: Any, nexts: Any, num_slots: int, order: Any, ranks: Any) -> int:
    """Write the places of all slots, those of a slot from the first to the last, and their ranks from 1; return their
    number."""
    num = 0
    for slot in range(num_slots):
        place = heads[slot] - 1
        for rank in range(counts[slot], 0, -1):
            order[num + rank - 1] = place
            ranks[num + rank - 1] = rank
            place = nexts[place]
        num += counts[slot]
    return num
