"""Windows as values: a span of time, a run of elements, or everything; and which spans are one. PyFlink's names.

Not here: which windows an element goes to (``time/assigners``) and when they are evaluated (``time/triggers``).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, final

from engine.time.watermarks import span_ms

__all__ = [
    "TIME_MAX_MS",
    "TIME_MIN_MS",
    "CountWindow",
    "GlobalWindow",
    "TimeWindow",
    "Window",
    "merged_spans",
    "span_ms",
]

#: Event time before the first watermark, and "no timestamp"; Long.MIN_VALUE as in Flink.
TIME_MIN_MS: Final = -(2**63)
#: The end of event time; Long.MAX_VALUE as in Flink.
TIME_MAX_MS: Final = 2**63 - 1


class Window(abc.ABC):
    """A finite bucket of elements. Windows are hashable, comparable for equality and picklable."""

    __slots__ = ()

    @abc.abstractmethod
    def max_timestamp(self) -> int:
        """Return the largest event time that still belongs to the window."""


class _Span(NamedTuple):
    start: int
    end: int


class TimeWindow(_Span, Window):
    """From ``start`` (inclusive) to ``end`` (exclusive), milliseconds since the epoch. A tuple: quick to look up."""

    __slots__ = ()

    def max_timestamp(self) -> int:
        # The last window before the end of time ends with it: a watermark cannot come any further.
        return min(self.end - 1, TIME_MAX_MS)

    def intersects(self, other: TimeWindow) -> bool:
        """Return whether the windows overlap or touch."""
        return self.start <= other.end and self.end >= other.start

    def cover(self, other: TimeWindow) -> TimeWindow:
        """Return the smallest window that covers both."""
        return TimeWindow(min(self.start, other.start), max(self.end, other.end))

    @staticmethod
    def get_window_start_with_offset(timestamp: int, offset: int, window_size: int) -> int:
        """Return the start of the window of ``window_size`` that has ``timestamp``, also before 1970."""
        return timestamp - (timestamp - offset) % window_size

    @staticmethod
    def merge_windows(windows: Iterable[TimeWindow], callback: Any) -> None:
        """Call ``callback.merge(merged, result)`` (or ``callback(merged, result)``) for each group that overlaps."""
        merge: Callable[[set[TimeWindow], TimeWindow], None] = getattr(callback, "merge", callback)
        for result, members in merged_spans(windows):
            if len(members) > 1:
                merge(members, result)

    def __repr__(self) -> str:
        return f"TimeWindow(start={self.start}, end={self.end})"


def merged_spans(windows: Iterable[TimeWindow]) -> list[tuple[TimeWindow, set[TimeWindow]]]:
    """Return (cover, members) of each group of windows that overlap or touch, in order of time."""
    groups: list[tuple[TimeWindow, set[TimeWindow]]] = []
    for window in sorted(windows):
        if groups and groups[-1][0].intersects(window):
            cover, members = groups[-1]
            members.add(window)
            groups[-1] = (cover.cover(window), members)
        else:
            groups.append((window, {window}))
    return groups


class _Numbered(NamedTuple):
    id: int


class CountWindow(_Numbered, Window):
    """The ``id``-th run of elements of a key."""

    __slots__ = ()

    def max_timestamp(self) -> int:
        return TIME_MAX_MS

    def __repr__(self) -> str:
        return f"CountWindow(id={self.id})"


@final
class GlobalWindow(Window):
    """The one window that has all elements."""

    __slots__ = ()

    @staticmethod
    def get() -> GlobalWindow:
        return _GLOBAL

    def max_timestamp(self) -> int:
        return TIME_MAX_MS

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GlobalWindow)

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "GlobalWindow"


_GLOBAL: Final = GlobalWindow()
