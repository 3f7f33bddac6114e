"""numba kernels of regular joins whose records go again: taken back by a changelog, or as their time to live is over.

Records of a side are chained by key (``join_kernels.link_rows``); the first number of a link is when the record was
written, 0 without a time to live. A record that is gone has the time ``GONE``, and is in no chain. Importing this
imports numba.
"""

from __future__ import annotations

from typing import Any, Final

import numba

__all__ = ["GONE", "LIVES_ON", "changes_of_pairs", "find_removed", "mix_hashes", "partners_of_rows", "settle_chains"]

GONE: Final = -(1 << 63)
#: What was written up to then has expired, where nothing does.
LIVES_ON: Final = -(1 << 62)


@numba.njit(nogil=True, cache=True)
def mix_hashes(hashes: Any, values: Any) -> int:
    """Take one more field into the hash of each record. ``hashes`` uint64; ``values`` int64. 800 M values/s."""
    for row in range(hashes.size):
        mixed = (hashes[row] ^ numba.uint64(values[row])) * numba.uint64(0x9E3779B97F4A7C15)
        hashes[row] = mixed ^ (mixed >> numba.uint64(29))
    return hashes.size


@numba.njit(nogil=True, cache=True)
def _unlink(slot: Any, before: Any, row: Any, links: Any, ends: Any) -> Any:
    """Take a row out of its chain; ``before``: the one before it, or -1. Return the one after it, or -1."""
    after = links[row, 1]
    if before < 0:
        ends[slot, 0] = after + 1
    else:
        links[before, 1] = after
    if after < 0:
        ends[slot, 1] = before + 1
    links[row, 0] = GONE
    return after


@numba.njit(nogil=True, cache=True)
def find_removed(
    slots: Any,
    is_added: Any,
    can_match: Any,
    hashes: Any,
    first: int,
    floor_ms: int,
    links: Any,
    ends: Any,
    own_hashes: Any,
    out_removed: Any,
    out_times_ms: Any,
) -> int:
    """For each row of a batch that takes a record back, mark the first one of its chain with its hash as ``GONE``,
    and write its number and its time; -1 = there is none. Return how many were found.

    ``slots`` int32, -1 = equal to none; ``is_added``, ``can_match`` uint8; the rows that are added stand in the chains
    from ``first`` on, but are there only for what comes behind them; chains keep what is marked.
    """
    visible = first
    num = 0
    for i in range(slots.size):
        slot = slots[i]
        out_removed[i] = -1
        if slot < 0:
            continue
        if is_added[i]:
            visible += 1
            continue
        if not can_match[i]:
            continue
        row = ends[slot, 0] - 1
        while 0 <= row < visible:
            if links[row, 0] > floor_ms and own_hashes[row] == hashes[i]:
                out_removed[i] = row
                out_times_ms[i] = links[row, 0]
                links[row, 0] = GONE
                num += 1
                break
            row = links[row, 1]
    return num


@numba.njit(nogil=True, cache=True)
def settle_chains(slots: Any, floor_ms: int, written: tuple[int, int], links: Any, ends: Any, touched: Any) -> int:
    """Take all that is gone out of the chains of these slots; the rest is written now. Return the number of slots.

    ``written``: the time, 0 = none is kept, and the epoch; ``touched``: int32, the epoch in which a row was written.
    """
    now_ms, epoch = written
    for i in range(slots.size):
        slot = slots[i]
        before = -1
        row = ends[slot, 0] - 1
        while row >= 0:
            if links[row, 0] <= floor_ms:
                row = _unlink(slot, before, row, links, ends)
            else:
                if now_ms:
                    links[row, 0] = now_ms
                    touched[row] = epoch
                before = row
                row = links[row, 1]
    return slots.size


@numba.njit(nogil=True, cache=True)
def partners_of_rows(
    slots: Any, row: int, floor_ms: int, links: Any, ends: Any, out_rows: Any, out_partners: Any
) -> tuple[int, int]:
    """Write (row, partner) for each partner of the rows from ``row`` on, and take those that have expired out of their
    chains; return (row reached, pairs written). A row has all its partners or none: where it got no further than
    ``row`` there is no room for those of a single one.

    ``slots`` int32, of the rows, -1 = equal to none; the others as in ``join_kernels.pairs_of_chains``.
    """
    num = 0
    while row < slots.size:
        begin = num
        slot = slots[row]
        before = -1
        partner = ends[slot, 0] - 1 if 0 <= slot < ends.shape[0] else -1
        while partner >= 0:
            if links[partner, 0] <= floor_ms:
                partner = _unlink(slot, before, partner, links, ends)
                continue
            if num == out_rows.size:
                return row, begin
            out_rows[num] = row
            out_partners[num] = partner
            num += 1
            before = partner
            partner = links[partner, 1]
        row += 1
    return row, num


@numba.njit(nogil=True, cache=True)
def changes_of_pairs(
    is_added: Any,
    kinds: Any,
    rows: tuple[int, int],
    pairs: tuple[Any, Any, Any],
    is_outer: tuple[bool, bool],
    written: tuple[int, int],
    links: Any,
    touched: Any,
    num_partners: Any,
    own_partners: Any,
    out: tuple[Any, Any, Any, Any],
) -> int:
    """Write what rows of one side change in the output of a regular join; return the number of changes.

    ``rows``: begin and end; ``pairs``: (row, partner, 1 if they match), as of ``partners_of_rows``, all of these rows;
    ``is_outer``: of their own side and of the other one, of which are ``links`` and, for each of its rows, the number
    of its partners; those of the rows that are added are written to ``own_partners``; ``written``, ``touched``: as in
    ``settle_chains``. ``out``: kinds int8, rows int64,
    1 where the row itself is in the change uint8, partners int64, -1 = none; room for twice the pairs and the rows.
    """
    now_ms, epoch = written
    pair_rows, partners, holds = pairs
    out_kinds, out_rows, out_owns, out_partners = out
    num = 0
    begin = 0
    for row in range(rows[0], rows[1]):
        end = begin
        matching = 0
        while end < pair_rows.size and pair_rows[end] == row:
            matching += holds[end]
            end += 1
        added = is_added[row] != 0
        if added:
            own_partners[row] = matching
            kind = 0 if is_outer[0] or is_outer[1] else kinds[row]
        else:
            kind = 3 if is_outer[0] else kinds[row]
        if added and is_outer[1]:
            for at in range(begin, end):
                if holds[at]:
                    if num_partners[partners[at]] == 0:
                        out_kinds[num], out_rows[num], out_owns[num], out_partners[num] = 3, row, 0, partners[at]
                        num += 1
                    num_partners[partners[at]] += 1
                    touched[partners[at]] = epoch
        if is_outer[0] and not matching:
            out_kinds[num], out_rows[num], out_owns[num], out_partners[num] = kind, row, 1, -1
            num += 1
        for at in range(begin, end):
            if holds[at]:
                out_kinds[num], out_rows[num], out_owns[num], out_partners[num] = kind, row, 1, partners[at]
                num += 1
        if is_outer[1] and matching:
            if not added:
                for at in range(begin, end):
                    if holds[at]:
                        if num_partners[partners[at]] == 1:
                            out_kinds[num], out_rows[num], out_owns[num], out_partners[num] = 0, row, 0, partners[at]
                            num += 1
                        num_partners[partners[at]] = max(0, num_partners[partners[at]] - 1)
                        touched[partners[at]] = epoch
            if now_ms:
                for at in range(begin, end):  # a list on rows is written as a whole
                    links[partners[at], 0] = now_ms
                    touched[partners[at]] = epoch
        begin = end
    return num
