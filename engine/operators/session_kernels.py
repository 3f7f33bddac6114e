"""numba kernels of session windows on columns, with a slow obvious twin in the tests. Importing this imports numba."""

from __future__ import annotations

from typing import Any, Final

import numba

__all__ = ["LEVEL_BITS", "assign_sessions", "link_pairs", "link_sessions", "list_pairs", "unlink_sessions"]


#: Bits behind the number of the row that last changed a session, for its level: below the rows of a batch.
LEVEL_BITS: Final = 15


@numba.njit(nogil=True, cache=True)
def _note(notes: Any, number: int, first: int, second: int, third: int, fourth: int) -> None:
    notes[number, 0] = first
    notes[number, 1] = second
    notes[number, 2] = third
    notes[number, 3] = fourth


@numba.njit(nogil=True, cache=True)
def _forget_levels(sessions: Any, those: Any) -> None:
    for i in range(those.size):
        sessions[those[i], 3] &= ~((1 << LEVEL_BITS) - 1)


# Out of ``assign_sessions`` comes: ``of_row``, by row: the session at that time, int64, -1 = too late, and its level,
# int16. ``merges`` int64 (rows, 4): a session that became part of another one, that one, the level of both together,
# and whether what the former holds goes first: the session that was changed last goes second, as on rows. ``fires``
# int64 (rows, 4): a row whose session has ended, but is kept for late rows, its level, and start and end of the
# session with it. A level's merges come before its rows, and these before its fires; no session is named by two
# merges or fires of one level.
@numba.njit(nogil=True, cache=True)
def assign_sessions(
    slots: Any,
    times_ms: Any,
    watermarks_ms: Any,
    law: tuple[int, int, int],
    heads: Any,
    sessions: Any,
    fresh: Any,
    of_row: tuple[Any, Any],
    merges: Any,
    fires: Any,
) -> tuple[int, int, int, int]:
    """Take up each row, in order, in the session of its key; return (new sessions, merges, fires, levels).

    ``watermarks_ms``: the time when each row came, rising: a session that was over by then is taken out of its chain,
    and is what it was. ``law``: (gap, allowed lateness, number of row 0); ``heads`` int64: first session of each slot's
    chain plus 1, 0 = none; ``sessions`` int64 (sessions, 4): start, end, next of the chain plus 1, and the row that
    last changed it with, in the last LEVEL_BITS bits, its level, which is 0 between two calls. ``fresh``: numbers for
    new sessions, one a row. Sessions of a key never overlap or touch. There are less than 2 ** LEVEL_BITS rows, or half
    as many where lateness is allowed. What ``of_row``, ``merges`` and ``fires`` are to have is said above.
    """
    gap, lateness, base = law
    session_of_row, level_of_row = of_row
    level_mask = (1 << LEVEL_BITS) - 1
    num_fresh = num_merges = num_fires = 0
    num_levels = 1
    for row in range(slots.size):
        start = times_ms[row]
        end = start + gap
        low, high = start, end
        watermark_ms = watermarks_ms[row]
        mine = before = -1
        is_same, level = False, 0
        at = heads[slots[row]] - 1
        while at >= 0:
            following = sessions[at, 2]
            if sessions[at, 1] - 1 + lateness <= watermark_ms:
                if before < 0:
                    heads[slots[row]] = following
                else:
                    sessions[before, 2] = following
            elif sessions[at, 0] <= end and sessions[at, 1] >= start:
                is_same = sessions[at, 0] == start and sessions[at, 1] == end
                low = min(low, sessions[at, 0])
                high = max(high, sessions[at, 1])
                if mine < 0:
                    mine = at
                    before = at
                    level = sessions[at, 3] & level_mask
                else:
                    sessions[before, 2] = following
                    level = max(level, sessions[at, 3] & level_mask) + 1
                    _note(merges, num_merges, at, mine, level, sessions[at, 3] < sessions[mine, 3])
                    num_merges += 1
            else:
                before = at
            at = following - 1
        if mine < 0:
            if end - 1 + lateness <= watermark_ms:
                session_of_row[row] = -1
                level_of_row[row] = -1
                continue
            mine = fresh[num_fresh]
            num_fresh += 1
            sessions[mine, 2] = heads[slots[row]]
            heads[slots[row]] = mine + 1
        sessions[mine, 0] = low
        sessions[mine, 1] = high
        if not is_same:
            sessions[mine, 3] = ((base + row) << LEVEL_BITS) | level
        session_of_row[row] = mine
        level_of_row[row] = level
        num_levels = max(num_levels, level + 1)
        if high - 1 <= watermark_ms:
            _note(fires, num_fires, row, level, low, high)
            num_fires += 1
            sessions[mine, 3] = (sessions[mine, 3] & ~level_mask) | (level + 1)
    _forget_levels(sessions, merges[:num_merges, 1])
    _forget_levels(sessions, session_of_row[fires[:num_fires, 0]])
    return num_fresh, num_merges, num_fires, num_levels


@numba.njit(nogil=True, cache=True)
def link_sessions(slots: Any, starts: Any, ends: Any, made: Any, base: int, heads: Any, sessions: Any) -> int:
    """Put sessions, whose numbers are ``made``, into the chains of their keys' slots, as if the rows ``base``,
    ``base + 1``… had changed them; return their number."""
    for i in range(made.size):
        session = made[i]
        sessions[session, 0] = starts[i]
        sessions[session, 1] = ends[i]
        sessions[session, 2] = heads[slots[i]]
        sessions[session, 3] = (base + i) << LEVEL_BITS
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
