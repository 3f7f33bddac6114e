"""numba kernels of top-N and of last rows on columns: free functions on arrays; slow obvious twins are
``operators/top_n`` and ``operators/deduplicate``.

Records that are kept have places in arrays; those of a key are a chain from the last to the first, so that one that
comes in is compared with the last one first. One that is pushed out gives its place to the one that came in. Importing
this imports numba.
"""

from __future__ import annotations

from typing import Any

import numba

__all__ = [
    "is_before",
    "order_of_chains",
    "record_named",
    "take_last",
    "take_last_changes",
    "take_top",
    "tell",
]


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
    this batch, else -1 - its row. Has room for 2 n + 2 changes at least.
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
        behind, better, walked = -1, head, 0
        while better >= 0 and is_before(lanes, row, held, better):
            behind = better
            better = nexts[better]
            walked += 1
        is_full = count == n
        if is_full and walked == 0:
            place_of_row[row] = -1
            row += 1
            continue
        if with_rank:
            num = _tell_ranks((row, head, count), (walked, is_full), base, nexts, owners, num, out)
        else:
            if is_full:
                num = tell(out, num, 3, record_named(owners, head, base), 0, row)
            num = tell(out, num, 0, -1 - row, 0, row)
        if is_full:
            taken = head
            heads[slot] = nexts[taken] + 1
            if behind == taken:
                behind = -1
        else:
            taken = used
            used += 1
            counts[slot] = count + 1
        nexts[taken] = better
        if behind < 0:
            heads[slot] = taken + 1
        else:
            nexts[behind] = taken
        owners[taken] = base + row
        held[taken, :] = lanes[row, :]
        place_of_row[row] = taken
        row += 1
    return row, used, num


@numba.njit(nogil=True, cache=True)
def is_before(lanes: Any, row: int, held: Any, place: int) -> bool:
    for lane in range(lanes.shape[1]):
        if lanes[row, lane] != held[place, lane]:
            return bool(lanes[row, lane] < held[place, lane])
    return False


@numba.njit(nogil=True, cache=True)
def record_named(owners: Any, place: int, base: int) -> int:
    """Return how ``out`` names the record at a place."""
    return place if owners[place] < base else base - owners[place] - 1  # type: ignore[no-any-return]


@numba.njit(nogil=True, cache=True)
def tell(out: Any, num: int, kind: int, record: int, rank: int, row: int) -> int:
    out[num, 0] = kind
    out[num, 1] = record
    out[num, 2] = rank
    out[num, 3] = row
    return num + 1


@numba.njit(nogil=True, cache=True)
def _tell_ranks(
    of: tuple[int, int, int], how: tuple[int, bool], base: int, nexts: Any, owners: Any, num: int, out: Any
) -> int:
    """Write what a row's coming in changes, by rank, and return the number of changes after it.

    ``of``: row, last place of its key or -1, number of places; ``how``: how many of them it is before, whether they
    are n. The chain is walked from its end, so changes are written from theirs.
    """
    row, place, count = of
    walked, is_full = how
    end = i = num + 2 * walked + (0 if is_full else 1)
    former = record_named(owners, place, base) if walked else -1 - row
    if not is_full:
        i -= 1
        tell(out, i, 0, former, count + 1, row)
    for step in range(walked):
        before = -1 - row
        if step + 1 < walked:
            place = nexts[place]
            before = record_named(owners, place, base)
        i -= 2
        tell(out, i, 1, former, count - step, row)
        tell(out, i + 1, 2, before, count - step, row)
        former = before
    return end


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


@numba.njit(nogil=True, cache=True)
def take_last(
    slots: Any,
    seen: tuple[int, int],
    numbers: Any,
    out_kinds: Any,
    out_changes: Any,
    out_formers: Any,
    out_last: Any,
) -> tuple[int, int, int]:
    """Let each row replace the record of its slot; write what changes; return how many changes, former slots and last
    rows were written.

    ``slots`` int32; ``seen``: rows before these, and slots that had a record before them; ``numbers`` int64, by slot:
    of its last row, from 1 on, counted over all rows. ``out_kinds`` int8: 0 = comes to a new slot, 1 = goes, 2 = comes
    in its place, which follows. ``out_changes`` int64: the record, which is a row or, from the number of rows on, that
    of ``out_formers`` (int32: slots whose record is from before these rows); the row that made the change.
    ``out_last`` int64: the last row of each slot, rising.
    """
    before, known = seen
    num = num_formers = 0
    for row in range(slots.size):
        slot = slots[row]
        former = -1
        if numbers[slot] > before:
            former = numbers[slot] - before - 1
        elif slot < known:
            former = slots.size + num_formers
            out_formers[num_formers] = slot
            num_formers += 1
        numbers[slot] = before + row + 1
        if former >= 0:
            out_kinds[num] = 1
            out_changes[num, 0] = former
            out_changes[num, 1] = row
            num += 1
        out_kinds[num] = 2 if former >= 0 else 0
        out_changes[num, 0] = row
        out_changes[num, 1] = row
        num += 1
    num_last = 0
    for row in range(slots.size):
        if numbers[slots[row]] == before + row + 1:
            out_last[num_last] = row
            num_last += 1
    return num, num_formers, num_last


@numba.njit(nogil=True, cache=True)
def take_last_changes(
    slots: Any,
    kinds: Any,
    seen: tuple[int, int],
    by_slot: tuple[Any, Any, Any],
    out_kinds: Any,
    out_changes: Any,
    out_formers: Any,
    out_last: Any,
) -> tuple[int, int, int, int]:
    """As ``take_last`` for a changelog: what takes back (``kinds`` int8: 1 and 3) deletes the record of its slot, which
    is told by 3; return also how many slots have a record more than before, negative if less.

    ``by_slot``: ``numbers``; uint8, 1 = the slot's record is gone; int64, number of the row that came when there was
    none, from 0 on, or nothing if nobody asks for it.
    """
    before, known = seen
    numbers, gone, firsts = by_slot
    num = num_formers = num_more = 0
    for row in range(slots.size):
        slot = slots[row]
        is_of_these = numbers[slot] > before
        is_there = (is_of_these or slot < known) and gone[slot] == 0
        takes_back = kinds[row] == 1 or kinds[row] == 3
        if is_there:
            former = numbers[slot] - before - 1
            if not is_of_these:
                former = slots.size + num_formers
                out_formers[num_formers] = slot
                num_formers += 1
            out_kinds[num] = 3 if takes_back else 1
            out_changes[num, 0] = former
            out_changes[num, 1] = row
            num += 1
        if takes_back:
            gone[slot] = 1
            num_more -= is_there
            continue
        if not is_there:
            num_more += 1
            if firsts.size:
                firsts[slot] = before + row
        gone[slot] = 0
        numbers[slot] = before + row + 1
        out_kinds[num] = 2 if is_there else 0
        out_changes[num, 0] = row
        out_changes[num, 1] = row
        num += 1
    num_last = 0
    for row in range(slots.size):
        if numbers[slots[row]] == before + row + 1:
            out_last[num_last] = row
            num_last += 1
    return num, num_formers, num_last, num_more
