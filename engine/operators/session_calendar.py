"""When sessions are due, in order of time: a calendar queue, so that a watermark costs what fires at it.

Days are the 32nd to 64th part of the time that sessions wait, and of each of the next 127 there is a list of sessions;
of today there is one for each hour, the 64th part of a day, but a millisecond at least. When the time goes on, whole
lists are due, but for the last one; when a day begins, its sessions move to hours, so no watermark moves more than a
32nd of sessions that come evenly. What is due later than that waits in a list of its own, which is looked through every
64 days. A session that becomes longer stays where it is: its list comes first, and then it is put where it belongs.
Importing this imports numba.
"""

from __future__ import annotations

from typing import Any, Final, final

import numba
import numpy as np

from engine.state.paged_array import PagedArray
from engine.time.windows import TIME_MAX_MS

Array = np.ndarray[Any, Any]

__all__ = ["FreeNumbers", "SessionCalendar"]

_HOURS: Final = 64
_DAYS: Final = 128
_HOUR_BITS: Final = 6
#: Lists behind those of hours and days: what is due later, and what is due already.
_LATER: Final = _HOURS + _DAYS
_OVERDUE: Final = _LATER + 1
#: What is due later is looked through when so many days have gone by.
_LATER_DAYS: Final = 64
#: Before and behind all times there are (those of records, gaps and lateness are below 1 << 61): so differences stay
#: within 64 bits.
_BEGINNING_MS: Final = -(1 << 61)
_END_MS: Final = 3 * (1 << 61) - 1
#: Columns of links.
_BEFORE, _AFTER = range(2)


@numba.njit(nogil=True, cache=True)
def _place_of(due_ms: int, now_ms: int, day_bits: int, hour_bits: int) -> int:
    if due_ms <= now_ms:
        return _OVERDUE
    days = (due_ms >> day_bits) - (now_ms >> day_bits)
    if days >= _DAYS:
        return _LATER
    if days > 0:
        return _HOURS + ((due_ms >> day_bits) & (_DAYS - 1))
    return (due_ms >> hour_bits) & (_HOURS - 1)


# ``links`` int32 (sessions, 2): the session before plus 1, or minus the list and 1 where it is the first; the one after
# plus 1. 0, 0 = in no list. ``heads`` int32: by list, the first session plus 1.
@numba.njit(nogil=True, cache=True)
def _link(session: int, place: int, links: Any, heads: Any) -> None:
    after = heads[place]
    if after:
        links[after - 1, _BEFORE] = session + 1
    links[session, _BEFORE] = -1 - place
    links[session, _AFTER] = after
    heads[place] = session + 1


@numba.njit(nogil=True, cache=True)
def _link_due(those: Any, dues_ms: Any, now_ms: int, bits: tuple[int, int], links: Any, heads: Any) -> int:
    """Put sessions that are in no list where they belong; return their number. ``bits``: of times, below days and
    hours."""
    for i in range(those.size):
        _link(those[i], _place_of(dues_ms[i], now_ms, bits[0], bits[1]), links, heads)
    return those.size


@numba.njit(nogil=True, cache=True)
def _unlink_due(those: Any, links: Any, heads: Any) -> int:
    """Take sessions out of their lists, if they are in any; return how many were."""
    count = 0
    for i in range(those.size):
        if those[i] >= links.shape[0]:
            continue
        before, after = links[those[i], _BEFORE], links[those[i], _AFTER]
        if before == 0:
            continue
        if before < 0:
            heads[-1 - before] = after
        else:
            links[before - 1, _AFTER] = after
        if after:
            links[after - 1, _BEFORE] = before
        links[those[i], _BEFORE] = 0
        links[those[i], _AFTER] = 0
        count += 1
    return count


@numba.njit(nogil=True, cache=True)
def _empty(place: int, links: Any, heads: Any, taken: Any, count: int) -> int:
    at = heads[place] - 1
    heads[place] = 0
    while at >= 0:
        taken[count] = at
        count += 1
        following = links[at, _AFTER] - 1
        links[at, _BEFORE] = 0
        links[at, _AFTER] = 0
        at = following
    return count


@numba.njit(nogil=True, cache=True)
def _take_due(
    times_ms: tuple[int, int, int],
    bits: tuple[int, int],
    lateness_ms: int,
    sessions: Any,
    fired: Any,
    links: Any,
    heads: Any,
    taken: Any,
) -> int:
    """Take out what is due when the time goes on, put it into ``taken``, in no order, and return its number.

    ``times_ms``: before, now, and when the later ones were looked through; ``sessions`` as in ``session_kernels``;
    ``fired``: by session, where there is a lateness. A session is due a millisecond before its end, that lateness later
    where it has fired.
    """
    before_ms, now_ms, looked_ms = times_ms
    day_bits, hour_bits = bits
    day, today = before_ms >> day_bits, now_ms >> day_bits
    num = _empty(_OVERDUE, links, heads, taken, 0)
    first, last = (before_ms >> hour_bits) & (_HOURS - 1), _HOURS - 1
    if today == day:
        last = (now_ms >> hour_bits) & (_HOURS - 1)
    for hour in range(first, last + 1):
        num = _empty(hour, links, heads, taken, num)
    for ahead in range(1, min(_DAYS - 1, today - day) + 1):
        num = _empty(_HOURS + ((day + ahead) & (_DAYS - 1)), links, heads, taken, num)
    if today - (looked_ms >> day_bits) >= _LATER_DAYS:
        num = _empty(_LATER, links, heads, taken, num)
    count = 0
    for i in range(num):
        session = taken[i]
        due_ms = sessions[session, 1] - 1
        if lateness_ms and fired[session]:
            due_ms += lateness_ms
        if due_ms <= now_ms:
            taken[count] = session
            count += 1
        else:
            _link(session, _place_of(due_ms, now_ms, day_bits, hour_bits), links, heads)
    return count


@numba.njit(nogil=True, cache=True)
def _next_due(now_ms: int, looked_ms: int, bits: tuple[int, int], heads: Any, none_ms: int) -> int:
    """Return a time before which nothing is due; ``none_ms`` where there is nothing."""
    day_bits, hour_bits = bits
    if heads[_OVERDUE]:
        return now_ms
    day = now_ms >> day_bits
    for hour in range((now_ms >> hour_bits) & (_HOURS - 1), _HOURS):
        if heads[hour]:
            return (day << day_bits) + (hour << hour_bits)
    for ahead in range(1, _DAYS):
        if heads[_HOURS + ((day + ahead) & (_DAYS - 1))]:
            return (day + ahead) << day_bits
    return ((looked_ms >> day_bits) + _DAYS) << day_bits if heads[_LATER] else none_ms


@final
class SessionCalendar:
    """The sessions of one state, by number. ``gap_ms``: so long they wait; ``lateness_ms``: for so long they are kept
    when they have fired."""

    def __init__(self, gap_ms: int, lateness_ms: int) -> None:
        self._lateness_ms = lateness_ms
        day_bits = max(_HOUR_BITS, (gap_ms + lateness_ms).bit_length() - _HOUR_BITS)
        self._bits = day_bits, day_bits - _HOUR_BITS
        self._now_ms = self._looked_ms = _BEGINNING_MS
        self._clear()

    def _clear(self) -> None:
        self._links = PagedArray(np.int32, 2)
        self._heads = np.zeros(_OVERDUE + 1, np.int32)
        self._num_linked = 0

    @property
    def nbytes(self) -> int:
        return self._links.nbytes + self._heads.nbytes

    def add(self, sessions: Array, dues_ms: Array, num_sessions: int) -> None:
        """Take up sessions, int64, that it does not know; ``num_sessions``: numbers are below."""
        self._links.reserve(num_sessions)
        self._num_linked += _link_due(sessions, dues_ms, self._now_ms, self._bits, self._links.array, self._heads)

    def remove(self, sessions: Array) -> None:
        """Forget sessions, int64, as far as they are known."""
        if sessions.size and self._num_linked:
            self._num_linked -= _unlink_due(sessions, self._links.array, self._heads)

    def advance(self, now_ms: int, sessions: Array, fired: Array) -> Array:
        """Let the time go on; return the sessions that are due, rising, int64, which are forgotten. ``sessions``: what
        they begin and end at; ``fired``: whether each has, where that matters."""
        before_ms, self._now_ms = self._now_ms, max(self._now_ms, min(now_ms, _END_MS))
        taken = np.empty(self._num_linked, np.int64)
        times_ms = before_ms, self._now_ms, self._looked_ms
        links, heads = self._links.array, self._heads
        count = _take_due(times_ms, self._bits, self._lateness_ms, sessions, fired, links, heads, taken)
        self._num_linked -= count
        day_bits = self._bits[0]
        if (self._now_ms >> day_bits) - (self._looked_ms >> day_bits) >= _LATER_DAYS:
            self._looked_ms = self._now_ms
        return np.sort(taken[:count])

    def trim(self, num_sessions: int) -> None:
        """Give back what is reserved."""
        self._links.trim(num_sessions)

    def next_due_ms(self) -> int:
        """Return a time before which nothing is due."""
        return int(_next_due(self._now_ms, self._looked_ms, self._bits, self._heads, TIME_MAX_MS))

    def begin_anew(self, dues_ms: Array) -> None:
        """Sessions have other numbers now, from 0 on; there are no others."""
        self._clear()
        self.add(np.arange(dues_ms.size), dues_ms, dues_ms.size)


@final
class FreeNumbers:
    """Numbers of sessions that are over, to be given again: those first that came last."""

    def __init__(self) -> None:
        #: the next one stands last
        self._stack = PagedArray(np.int64)
        self.size = 0

    def add(self, numbers: Array) -> None:
        """These come first, in their order."""
        self._stack.reserve(self.size + numbers.size)
        self._stack.array[self.size : self.size + numbers.size] = numbers[::-1]
        self.size += numbers.size

    def take(self, count: int) -> Array:
        """Return so many, or all there are."""
        left = max(0, self.size - count)
        taken = self._stack.array[left : self.size][::-1].copy()
        self.size = left
        return taken

    def clear(self) -> None:
        self._stack = PagedArray(np.int64)
        self.size = 0
