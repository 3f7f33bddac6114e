"""numba kernels of session windows on columns, with a slow obvious twin in the tests. Importing this imports numba."""

from __future__ import annotations

from typing import Any

import numba

__all__ = ["assign_sessions", "link_pairs", "link_sessions", "list_pairs", "unlink_sessions"]


@numba.njit(nogil=True, cache=True)
def assign_sessions(
    slots: Any,
    times_ms: Any,
    law: tuple[int, int],
    heads: Any,
    sessions: Any,
    fresh: Any,
    session_of_row: Any,
    merged: Any,
) -> tuple[int, int]:
    """Take up each row, in order, in the session of its key; return (new sessions, sessions that joined others).

    ``law``: (gap, watermark); ``heads`` int64: first session of each slot's chain plus 1, 0 = none; ``sessions`` int64
    (sessions, 4): start, end, next of the chain plus 1, what it is part of plus 1. ``fresh``: numbers for new sessions,
    one a row. Out: ``session_of_row`` int64, -1 = too late; ``merged`` int64: the sessions that are part of others now,
    whose last column says of which in the end. Sessions of a key never overlap or touch.
    """
    gap, watermark_ms = law
    num_fresh = 0
    num_merged = 0
    for row in range(slots.size):
        start = times_ms[row]
        end = start + gap
        low, high = start, end
        mine = -1
        before = -1
        at = heads[slots[row]] - 1
        while at >= 0:
            following = sessions[at, 2]
            if sessions[at, 0] <= end and sessions[at, 1] >= start:
                low = min(low, sessions[at, 0])
                high = max(high, sessions[at, 1])
                if mine < 0:
                    mine = at
                    before = at
                else:
                    sessions[before, 2] = following
                    sessions[at, 3] = mine + 1
                    merged[num_merged] = at
                    num_merged += 1
            else:
                before = at
            at = following - 1
        if mine < 0:
            if end - 1 <= watermark_ms:
                session_of_row[row] = -1
                continue
            mine = fresh[num_fresh]
            num_fresh += 1
            sessions[mine, 2] = heads[slots[row]]
            sessions[mine, 3] = 0
            heads[slots[row]] = mine + 1
        sessions[mine, 0] = low
        sessions[mine, 1] = high
        session_of_row[row] = mine
    for i in range(num_merged):
        root = sessions[merged[i], 3] - 1
        while sessions[root, 3] != 0:
            root = sessions[root, 3] - 1
        sessions[merged[i], 3] = root + 1
    for row in range(slots.size):
        mine = session_of_row[row]
        if mine >= 0 and sessions[mine, 3] != 0:
            session_of_row[row] = sessions[mine, 3] - 1
    return num_fresh, num_merged


@numba.njit(nogil=True, cache=True)
def link_sessions(slots: Any, starts: Any, ends: Any, made: Any, heads: Any, sessions: Any) -> int:
    """Put sessions, whose numbers are ``made``, into the chains of their keys' slots; return their number."""
    for i in range(made.size):
        session = made[i]
        sessions[session, 0] = starts[i]
        sessions[session, 1] = ends[i]
        sessions[session, 2] = heads[slots[i]]
        sessions[session, 3] = 0
        heads[slots[i]] = session + 1
    return made.size


@numba.njit(nogil=True, cache=True)
def unlink_sessions(gone: Any, slot_of_session: Any, heads: Any, sessions: Any) -> int:
    """Take sessions out of the chains of their keys; return their number."""
    for i in range(gone.size):
        slot = slot_of_session[gone[i]]
        before = -1
        at = heads[slot] - 1
        while at >= 0 and at != gone[i]:
            before = at
            at = sessions[at, 2] - 1
        if at < 0:
            continue
        if before < 0:
            heads[slot] = sessions[at, 2]
        else:
            sessions[before, 2] = sessions[at, 2]
    return gone.size


@numba.njit(nogil=True, cache=True)
def link_pairs(sessions: Any, first: int, heads: Any, links: Any) -> int:
    """Put the pairs ``first``, ``first + 1``… at the heads of their sessions' chains; return the pair after the last.

    ``heads``, by session, and ``links``, by pair: int64, a pair plus 1, 0 = none.
    """
    for i in range(sessions.size):
        pair = first + i
        links[pair] = heads[sessions[i]]
        heads[sessions[i]] = pair + 1
    return first + sessions.size


@numba.njit(nogil=True, cache=True)
def list_pairs(heads: Any, links: Any, pairs: Any, owners: Any) -> int:
    """List the pairs of chains, and which of them each is of; return how many. Stops when there is no more room."""
    count = 0
    for i in range(heads.size):
        at = heads[i] - 1
        while at >= 0 and count < pairs.size:
            pairs[count] = at
            owners[count] = i
            count += 1
            at = links[at] - 1
    return count
