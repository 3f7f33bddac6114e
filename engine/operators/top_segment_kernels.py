"""numba kernels of top-N of a changelog on columns: free functions on arrays; the slow obvious twin is
``operators/top_n``.

All records of a key are kept, in order, in a segment of an arena: numbers of places, in which the records themselves
are. So a record finds its place in log k steps, and moves the rest of its segment by one. A segment that is full goes
to one of twice the size at the end of the arena. Importing this imports numba.
"""

from __future__ import annotations

from typing import Any

import numba

from engine.operators.top_kernels import is_before, record_named, tell

__all__ = ["find_equal", "order_of_segments", "pack_segments", "take_changes"]

_SEGMENT_MIN = 4


@numba.njit(nogil=True, cache=True)
def _takes_back(kind: Any) -> bool:
    return bool(kind == 1 or kind == 3)


@numba.njit(nogil=True, cache=True)
def _comes_before(held: Any, place: int, lanes: Any, row: int) -> bool:
    for lane in range(lanes.shape[1]):
        if lanes[row, lane] != held[place, lane]:
            return bool(held[place, lane] < lanes[row, lane])
    return False


@numba.njit(nogil=True, cache=True)
def _first_not_before(lanes: Any, row: int, held: Any, arena: Any, start: int, size: int) -> int:
    """Return where in a segment the first record stands that does not come before the row."""
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        if _comes_before(held, arena[start + middle], lanes, row):
            low = middle + 1
        else:
            high = middle
    return low


@numba.njit(nogil=True, cache=True)
def _first_behind(lanes: Any, row: int, held: Any, arena: Any, start: int, size: int) -> int:
    """Return where in a segment the first record stands that the row comes before."""
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        if is_before(lanes, row, held, arena[start + middle]):
            high = middle
        else:
            low = middle + 1
    return low


@numba.njit(nogil=True, cache=True)
def find_equal(
    of_rows: tuple[Any, Any, Any, Any, Any], segments: Any, arena: Any, places: tuple[Any, Any, Any], out: Any
) -> int:
    """Write (row, place) for each row that takes back and each record of its key that has its order and its hash;
    return their number, of which ``out`` (int64, (pairs, 2)) may have room for some only. See ``take_changes``."""
    slots, kinds, lanes, hashes, can_match = of_rows
    _, held, own_hashes = places
    num = 0
    for row in range(slots.size):
        if not _takes_back(kinds[row]) or not can_match[row]:
            continue
        start, size = segments[slots[row], 0], segments[slots[row], 1]
        for at in range(_first_not_before(lanes, row, held, arena, start, size), size):
            place = arena[start + at]
            if is_before(lanes, row, held, place):
                break
            if own_hashes[place] == hashes[row]:
                if num < out.shape[0]:
                    out[num, 0] = row
                    out[num, 1] = place
                num += 1
    return num


@numba.njit(nogil=True, cache=True)
def take_changes(
    of_rows: tuple[Any, Any, Any, Any, Any],
    at: tuple[int, int, int, int],
    how: tuple[int, bool],
    base: int,
    segments: Any,
    arena: Any,
    places: tuple[Any, Any, Any],
    free: Any,
    place_of_row: Any,
    out: Any,
) -> tuple[int, int, int, int, int]:
    """Take up rows, which come or take back, and write what changes; return (row reached, places in use, free ones
    among them, end of the arena, changes written).

    ``of_rows``: slots int32; kinds int8; lanes int64 (rows, lanes), what rows are ordered by, ascending; hashes uint64
    of whole records; uint8, whether the record is equal to itself. ``at``: as returned. ``how``: n, whether changes
    have ranks. ``segments`` int64, by slot: begin in the arena, records, room. ``arena`` int64: places, those of a
    segment in their order. ``places``: int64 owner, lanes, hashes. ``free`` int64: places that nobody has. ``owner``,
    ``base``, ``place_of_row``, ``out``: as of ``top_kernels.take_top``; ``out`` has room for 2 n + 2 changes at least.
    """
    slots, kinds, lanes, hashes, can_match = of_rows
    row, used, num_free, end = at
    n, _ = how
    owners, held, own_hashes = places
    num = 0
    while row < slots.size:
        slot = slots[row]
        start, size = segments[slot, 0], segments[slot, 1]
        if num + 2 * min(n, size) + 2 > out.shape[0] or end + 2 * size + _SEGMENT_MIN > arena.size:
            break
        if _takes_back(kinds[row]):
            place_of_row[row] = -1
            found = -1
            if can_match[row]:
                for i in range(_first_not_before(lanes, row, held, arena, start, size), size):
                    if is_before(lanes, row, held, arena[start + i]):
                        break
                    if own_hashes[arena[start + i]] == hashes[row]:
                        found = i
                        break
            if found >= 0:
                num = _tell_gone(arena, start, size, found, how, owners, base, num, row, out)
                free[num_free] = arena[start + found]
                num_free += 1
                for i in range(start + found, start + size - 1):
                    arena[i] = arena[i + 1]
                segments[slot, 1] = size - 1
            row += 1
            continue
        found = _first_behind(lanes, row, held, arena, start, size)
        num = _tell_come(arena, start, size, found, how, owners, base, num, row, out)
        if size == segments[slot, 2]:
            segments[slot, 2] = max(_SEGMENT_MIN, 2 * size)
            for i in range(size):
                arena[end + i] = arena[start + i]
            start = segments[slot, 0] = end
            end += segments[slot, 2]
        if num_free:
            num_free -= 1
            place = free[num_free]
        else:
            place = used
            used += 1
        for i in range(start + size, start + found, -1):
            arena[i] = arena[i - 1]
        arena[start + found] = place
        segments[slot, 1] = size + 1
        owners[place] = base + row
        own_hashes[place] = hashes[row]
        held[place, :] = lanes[row, :]
        place_of_row[row] = place
        row += 1
    return row, used, num_free, end, num


@numba.njit(nogil=True, cache=True)
def _tell_come(
    arena: Any,
    start: int,
    size: int,
    found: int,
    how: tuple[int, bool],
    owners: Any,
    base: int,
    num: int,
    row: int,
    out: Any,
) -> int:
    """Write what a row changes that comes in at a place of its segment."""
    n, with_rank = how
    if found >= n:
        return num
    if not with_rank:
        if size >= n:
            num = tell(out, num, 3, record_named(owners, arena[start + n - 1], base), 0, row)
        return tell(out, num, 0, -1 - row, 0, row)  # type: ignore[no-any-return]
    record = -1 - row
    for rank in range(found + 1, min(size, n) + 1):
        former = record_named(owners, arena[start + rank - 1], base)
        num = tell(out, num, 1, former, rank, row)
        num = tell(out, num, 2, record, rank, row)
        record = former
    if size < n:
        num = tell(out, num, 0, record, size + 1, row)
    return num


@numba.njit(nogil=True, cache=True)
def _tell_gone(
    arena: Any,
    start: int,
    size: int,
    found: int,
    how: tuple[int, bool],
    owners: Any,
    base: int,
    num: int,
    row: int,
    out: Any,
) -> int:
    """Write what changes as the record at a place of its segment goes."""
    n, with_rank = how
    if found >= n:
        return num
    if not with_rank:
        num = tell(out, num, 3, record_named(owners, arena[start + found], base), 0, row)
        if size > n:
            num = tell(out, num, 0, record_named(owners, arena[start + n], base), 0, row)
        return num
    for rank in range(found + 1, min(n, size) + 1):
        record = record_named(owners, arena[start + rank - 1], base)
        if rank == size:
            num = tell(out, num, 3, record, rank, row)
        else:
            num = tell(out, num, 1, record, rank, row)
            num = tell(out, num, 2, record_named(owners, arena[start + rank], base), rank, row)
    return num


@numba.njit(nogil=True, cache=True)
def order_of_segments(segments: Any, arena: Any, num_slots: int, order: Any, ranks: Any) -> int:
    """Write the places of all slots, those of a slot in their order, and their ranks from 1; return their number."""
    num = 0
    for slot in range(num_slots):
        for at in range(segments[slot, 1]):
            order[num] = arena[segments[slot, 0] + at]
            ranks[num] = at + 1
            num += 1
    return num


@numba.njit(nogil=True, cache=True)
def pack_segments(segments: Any, arena: Any, num_slots: int, fresh: Any) -> int:
    """Write all segments one behind the other, without room; return the end."""
    end = 0
    for slot in range(num_slots):
        start, size = segments[slot, 0], segments[slot, 1]
        for at in range(size):
            fresh[end + at] = arena[start + at]
        segments[slot, 0] = end
        segments[slot, 2] = size
        end += size
    return end
