"""numba kernels of joins on columns: free functions on arrays; each has a slow obvious twin in the tests.

Rows of a side are numbered; those of a key are a chain in order of arrival (interval join), or lie side by side in an
order by key (window join, interval join in files). Pairs come out in portions: a kernel says where it stopped.
Importing this imports numba.
"""

from __future__ import annotations

from typing import Any

import numba

__all__ = ["changes_of_chains", "link_rows", "order_by_slot", "pairs_of_chains", "pairs_of_codes", "pairs_of_groups"]


@numba.njit(nogil=True, cache=True)
def link_rows(slots: Any, first: int, links: Any, ends: Any) -> int:
    """Append the rows ``first``, ``first + 1``… to the chains of their slots; return the row after the last one.

    ``slots`` int32; ``links`` int64 (rows, 2): time, next row or -1; ``ends`` int64 (slots, 2): first and last row of
    the chain, plus 1, 0 = none. 45 M rows/s at a million slots.
    """
    for i in range(slots.size):
        slot = slots[i]
        row = first + i
        links[row, 1] = -1
        last = ends[slot, 1] - 1
        if last < 0:
            ends[slot, 0] = row + 1
        else:
            links[last, 1] = row
        ends[slot, 1] = row + 1
    return first + slots.size


@numba.njit(nogil=True, cache=True)
def pairs_of_chains(
    slots: Any,
    times_ms: Any,
    at: tuple[int, int],
    bounds: tuple[int, int],
    gone: tuple[int, int],
    links: Any,
    ends: Any,
    out_rows: Any,
    out_partners: Any,
) -> tuple[int, int, int]:
    """Write (row, partner) for each partner in the chain of the row's slot within its bounds; return (row reached,
    partner reached or -1, pairs written).

    ``at``: what the last call returned, (0, -1) at first; ``bounds``: earliest and latest partner relative to the row,
    inclusive; ``gone`` = (mark, floor): partners before the row ``mark`` count as removed up to the time ``floor``.
    Removed ones at the head of a chain are unlinked on the way.
    """
    row, partner = at
    lower, upper = bounds
    mark, floor = gone
    num_pairs = 0
    while row < slots.size:
        slot = slots[row]
        low = times_ms[row] + lower
        high = times_ms[row] + upper
        if partner < 0:
            partner = ends[slot, 0] - 1
            while 0 <= partner < mark and links[partner, 0] <= floor:
                partner = links[partner, 1]
            ends[slot, 0] = partner + 1
            if partner < 0:
                ends[slot, 1] = 0
        while partner >= 0:
            time_ms = links[partner, 0]
            if low <= time_ms <= high and (partner >= mark or time_ms > floor):
                if num_pairs == out_rows.size:
                    return row, partner, num_pairs
                out_rows[num_pairs] = row
                out_partners[num_pairs] = partner
                num_pairs += 1
            partner = links[partner, 1]
        row += 1
    return row, -1, num_pairs


@numba.njit(nogil=True, cache=True)
def order_by_slot(slots: Any, starts: Any, order: Any) -> int:
    """Sort row numbers by slot, equal ones in their order; return their number.

    ``starts``: int64, zeros, one entry more than slots: afterwards, where each slot's rows begin in ``order`` (int64).
    """
    for row in range(slots.size):
        starts[slots[row] + 1] += 1
    for slot in range(1, starts.size):
        starts[slot] += starts[slot - 1]
    for row in range(slots.size):
        slot = slots[row]
        order[starts[slot]] = row
        starts[slot] += 1
    for slot in range(starts.size - 1, 0, -1):
        starts[slot] = starts[slot - 1]
    starts[0] = 0
    return slots.size


@numba.njit(nogil=True, cache=True)
def pairs_of_groups(
    left: tuple[Any, Any], right: tuple[Any, Any], at: tuple[int, int, int], out_left: Any, out_right: Any
) -> tuple[int, int, int, int]:
    """Write each pair of rows of one slot, by slot, left row, right row; return (slot, left, right reached, pairs).

    ``left``, ``right``: ``starts`` and ``order`` of ``order_by_slot``, for the same slots; ``at``: the first three of
    what the last call returned, (0, -1, -1) at first. All is done when the slot reached is the number of slots.
    """
    left_starts, left_order = left
    right_starts, right_order = right
    slot, i, j = at
    num_pairs = 0
    while slot < left_starts.size - 1:
        if i < 0:
            i = left_starts[slot]
            j = right_starts[slot]
        end = right_starts[slot + 1]
        while i < left_starts[slot + 1]:
            row = left_order[i]
            while j < end:
                if num_pairs == out_left.size:
                    return slot, i, j, num_pairs
                out_left[num_pairs] = row
                out_right[num_pairs] = right_order[j]
                num_pairs += 1
                j += 1
            i += 1
            j = right_starts[slot]
        i = -1
        slot += 1
    return slot, -1, -1, num_pairs


@numba.njit(nogil=True, cache=True)
def changes_of_chains(
    slots: Any,
    is_first: Any,
    at: tuple[int, int, int],
    is_outer: tuple[bool, bool],
    links: Any,
    ends: Any,
    out_kinds: Any,
    out_rows: Any,
    out_partners: Any,
) -> tuple[int, int, int, int]:
    """Write what rows of one side change in the output of a regular join; return (row, phase, partner reached, number).

    A change is (kind, row, partner): kind 0 = the pair comes, or the row alone where partner is -1; 3 = the partner
    alone goes, as this row is its first one. ``slots``: of the rows, -1 = equal to none; ``is_first``: 1 for the first
    row ever of its slot; ``at``: the first three of what the last call returned, (0, 0, -1) at first; ``is_outer``: of
    the rows' own side and of the other, whose ``links`` and ``ends`` are given, as of ``link_rows``.
    60 M changes/s (100 k slots, a partner a row).
    """
    row, phase, partner = at
    num = 0
    while row < slots.size:
        slot = slots[row]
        head = ends[slot, 0] - 1 if 0 <= slot < ends.shape[0] else -1
        if head < 0:
            if is_outer[0]:
                if num == out_rows.size:
                    return row, 0, -1, num
                out_kinds[num] = 0
                out_rows[num] = row
                out_partners[num] = -1
                num += 1
            row += 1
            continue
        if phase == 0:
            partner = head
            phase = 1 if is_outer[1] and is_first[row] else 2
        while phase == 1:
            if num == out_rows.size:
                return row, phase, partner, num
            out_kinds[num] = 3
            out_rows[num] = row
            out_partners[num] = partner
            num += 1
            partner = links[partner, 1]
            if partner < 0:
                partner = head
                phase = 2
        while partner >= 0:
            if num == out_rows.size:
                return row, phase, partner, num
            out_kinds[num] = 0
            out_rows[num] = row
            out_partners[num] = partner
            num += 1
            partner = links[partner, 1]
        phase = 0
        row += 1
    return row, 0, -1, num


@numba.njit(nogil=True, cache=True)
def pairs_of_codes(
    rows: Any,
    partners: Any,
    at: tuple[int, int, int],
    bounds: tuple[int, int],
    arrived: tuple[int, int],
    floor: int,
    out_rows: Any,
    out_partners: Any,
) -> tuple[int, int, int, int]:
    """Write (row, partner) for each partner that has the row's code, came before it and is within its bounds; return
    (row, partner with its code, partner reached or -1, pairs written).

    ``rows``: codes rising (uint64), times, numbers by arrival, and marks and floors: of each row the ``gone`` of
    ``pairs_of_chains`` that held when it came, the mark as a number by arrival; ``partners``: the first three. Only
    rows that came as ``arrived[0]`` to ``arrived[1] - 1`` are looked at; partners up to ``floor`` are gone in any case.
    ``at``: the first three of what the last call returned, (0, 0, -1) at first; all is done when the row reached is the
    number of rows. Where there are few rows for many partners, these are not looked at one by one.
    """
    codes, times_ms, arrivals, marks, floors = rows
    partner_codes, partner_times_ms, partner_arrivals = partners
    row, first, partner = at
    lower, upper = bounds
    num_partners = partner_codes.size
    num_pairs = 0
    while row < codes.size:
        if not arrived[0] <= arrivals[row] < arrived[1]:
            row += 1
            continue
        code = codes[row]
        if first < num_partners and partner_codes[first] < code:
            step = 1
            while first + step < num_partners and partner_codes[first + step] < code:
                first += step
                step += step
            end = min(first + step, num_partners)
            first += 1
            while first < end:
                middle = (first + end) // 2
                if partner_codes[middle] < code:
                    first = middle + 1
                else:
                    end = middle
        if partner < 0:
            partner = first
        low = times_ms[row] + lower
        high = times_ms[row] + upper
        while partner < num_partners and partner_codes[partner] == code:
            time_ms = partner_times_ms[partner]
            if (
                low <= time_ms <= high
                and time_ms > floor
                and partner_arrivals[partner] < arrivals[row]
                and (partner_arrivals[partner] >= marks[row] or time_ms > floors[row])
            ):
                if num_pairs == out_rows.size:
                    return row, first, partner, num_pairs
                out_rows[num_pairs] = row
                out_partners[num_pairs] = partner
                num_pairs += 1
            partner += 1
        partner = -1
        row += 1
    return row, first, -1, num_pairs
