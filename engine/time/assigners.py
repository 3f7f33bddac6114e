"""Window assigners: which windows an element goes to. PyFlink's names; a dynamic gap may be a plain function too.

An assigner is immutable and shared by all keys. Those by count keep their count in keyed state, through the context.
Not here: what a window is (``time/windows``) and when it is evaluated (``time/triggers``).
"""

from __future__ import annotations

import abc
import datetime as dt
from collections.abc import Callable, Collection, Iterable
from typing import Any, final

from engine.core.errors import ProgramError
from engine.time.triggers import (
    CountTrigger,
    EventTimeTrigger,
    NeverTrigger,
    ProcessingTimeTrigger,
    PurgingTrigger,
    Trigger,
)
from engine.time.watermarks import Duration, Time
from engine.time.windows import TIME_MIN_MS, CountWindow, GlobalWindow, TimeWindow, Window, span_ms

__all__ = [
    "CountSlidingWindowAssigner",
    "CountTumblingWindowAssigner",
    "DynamicEventTimeSessionWindows",
    "DynamicProcessingTimeSessionWindows",
    "EventTimeSessionWindows",
    "GlobalWindows",
    "MergingWindowAssigner",
    "ProcessingTimeSessionWindows",
    "RegularWindows",
    "SessionWindowTimeGapExtractor",
    "SlidingEventTimeWindows",
    "SlidingProcessingTimeWindows",
    "TumblingEventTimeWindows",
    "TumblingProcessingTimeWindows",
    "WindowAssigner",
    "count_windows",
]

Span = Time | Duration | dt.timedelta


class WindowAssigner(abc.ABC):
    """Assigns no, one or several windows to each element."""

    def __class_getitem__(cls, parameters: Any) -> Any:
        """``WindowAssigner[tuple, TimeWindow]``, as PyFlink's programs write it."""
        return cls

    class WindowAssignerContext(abc.ABC):
        @abc.abstractmethod
        def get_current_processing_time(self) -> int: ...

        @abc.abstractmethod
        def get_runtime_context(self) -> Any:
            """Return the RuntimeContext; its keyed state belongs to the element's key."""

        @abc.abstractmethod
        def next_number(self) -> int:
            """Return how many elements of this key came before: 0, 1, 2… (ours, not PyFlink's)."""

    @abc.abstractmethod
    def assign_windows(
        self, element: Any, timestamp: int, context: WindowAssigner.WindowAssignerContext
    ) -> Collection[Any]: ...

    @abc.abstractmethod
    def get_default_trigger(self, env: Any) -> Trigger: ...

    def get_window_serializer(self) -> Any:
        """Only for PyFlink's sake: windows are pickled here."""
        return None

    @abc.abstractmethod
    def is_event_time(self) -> bool: ...


class MergingWindowAssigner(WindowAssigner):
    """An assigner whose windows grow together (sessions)."""

    class MergeCallback(abc.ABC):
        @abc.abstractmethod
        def merge(self, to_be_merged: Iterable[Any], merge_result: Any) -> None: ...

    @abc.abstractmethod
    def merge_windows(self, windows: Iterable[Any], callback: MergingWindowAssigner.MergeCallback) -> None:
        """Call ``callback.merge`` for each group of ``windows`` that become one."""


def _check_timestamp(timestamp: int) -> None:
    if timestamp == TIME_MIN_MS:
        raise ProgramError(
            "An event-time window got a record without a timestamp. Call assign_timestamps_and_watermarks() with a "
            "timestamp assigner before the window, or use windows of processing time."
        )


def _checked_size(name: str, size: int, slide: int, offset: int) -> None:
    if size <= 0 or slide <= 0:
        raise ProgramError(f"{name}: size and slide must be longer than 0 ms, got {size} and {slide}.")
    if abs(offset) >= slide:
        raise ProgramError(f"{name}: the offset must be shorter than {slide} ms, got {offset}.")


class RegularWindows(WindowAssigner):
    """Windows of one size that begin every ``slide`` milliseconds; tumbling ones have slide = size."""

    _event_time: bool

    def __init__(self, size: int, slide: int, offset: int) -> None:
        _checked_size(type(self).__name__, size, slide, offset)
        self._size = size
        self._slide = slide
        self._offset = offset

    def windows_of(self, timestamp: int) -> list[TimeWindow]:
        """Return the windows that have ``timestamp``, the last one first."""
        size, slide = self._size, self._slide
        start = timestamp - (timestamp - self._offset) % slide
        if size == slide:
            return [TimeWindow(start, start + size)]
        return [TimeWindow(begin, begin + size) for begin in range(start, timestamp - size, -slide)]

    def assign_windows(
        self, element: Any, timestamp: int, context: WindowAssigner.WindowAssignerContext
    ) -> list[TimeWindow]:
        if self._event_time:
            _check_timestamp(timestamp)
            return self.windows_of(timestamp)
        return self.windows_of(context.get_current_processing_time())

    def get_default_trigger(self, env: Any) -> Trigger:
        return EventTimeTrigger() if self._event_time else ProcessingTimeTrigger()

    def is_event_time(self) -> bool:
        return self._event_time

    def __repr__(self) -> str:
        slide = "" if self._size == self._slide else f"{self._slide}, "
        return f"{type(self).__name__}({self._size}, {slide}{self._offset})"


def _optional_ms(offset: Span | None, what: str) -> int:
    return 0 if offset is None else span_ms(offset, what)


@final
class TumblingEventTimeWindows(RegularWindows):
    """Windows of one size, side by side, by event time. ``offset`` shifts them: of(Time.days(1), Time.hours(-8))."""

    _event_time = True

    def __init__(self, size: int, offset: int) -> None:
        super().__init__(size, size, offset)

    @staticmethod
    def of(size: Span, offset: Span | None = None) -> TumblingEventTimeWindows:
        name = "TumblingEventTimeWindows.of"
        return TumblingEventTimeWindows(span_ms(size, name), _optional_ms(offset, name))


@final
class TumblingProcessingTimeWindows(RegularWindows):
    """Windows of one size, side by side, by the clock."""

    _event_time = False

    def __init__(self, size: int, offset: int) -> None:
        super().__init__(size, size, offset)

    @staticmethod
    def of(size: Span, offset: Span | None = None) -> TumblingProcessingTimeWindows:
        name = "TumblingProcessingTimeWindows.of"
        return TumblingProcessingTimeWindows(span_ms(size, name), _optional_ms(offset, name))


@final
class SlidingEventTimeWindows(RegularWindows):
    """Windows of one size that begin every ``slide``, by event time."""

    _event_time = True

    @staticmethod
    def of(size: Span, slide: Span, offset: Span | None = None) -> SlidingEventTimeWindows:
        name = "SlidingEventTimeWindows.of"
        return SlidingEventTimeWindows(span_ms(size, name), span_ms(slide, name), _optional_ms(offset, name))


@final
class SlidingProcessingTimeWindows(RegularWindows):
    """Windows of one size that begin every ``slide``, by the clock."""

    _event_time = False

    @staticmethod
    def of(size: Span, slide: Span, offset: Span | None = None) -> SlidingProcessingTimeWindows:
        name = "SlidingProcessingTimeWindows.of"
        return SlidingProcessingTimeWindows(span_ms(size, name), span_ms(slide, name), _optional_ms(offset, name))


class SessionWindowTimeGapExtractor(abc.ABC):
    """Tells how long a session stays open after an element."""

    @abc.abstractmethod
    def extract(self, element: Any) -> int:
        """Return the gap in milliseconds."""


class _Sessions(MergingWindowAssigner):
    """A window per element from its time to the end of the gap; windows that overlap or touch become one."""

    _event_time: bool

    def _gap_of(self, element: Any) -> int:
        raise NotImplementedError

    def assign_windows(
        self, element: Any, timestamp: int, context: WindowAssigner.WindowAssignerContext
    ) -> list[TimeWindow]:
        if self._event_time:
            _check_timestamp(timestamp)
        else:
            timestamp = context.get_current_processing_time()
        return [TimeWindow(timestamp, timestamp + self._gap_of(element))]

    def merge_windows(self, windows: Iterable[Any], callback: MergingWindowAssigner.MergeCallback) -> None:
        TimeWindow.merge_windows(windows, callback)

    def get_default_trigger(self, env: Any) -> Trigger:
        return EventTimeTrigger() if self._event_time else ProcessingTimeTrigger()

    def is_event_time(self) -> bool:
        return self._event_time


class _FixedSessions(_Sessions):
    def __init__(self, session_gap: int) -> None:
        if session_gap <= 0:
            raise ProgramError(f"{type(self).__name__}: the gap must be longer than 0 ms, got {session_gap}.")
        self._gap = session_gap

    def _gap_of(self, element: Any) -> int:
        return self._gap

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._gap})"


def _gap_ms(gap: Any) -> int:
    """Return what an extractor gave as milliseconds."""
    if isinstance(gap, Time | Duration | dt.timedelta):
        return span_ms(gap, "The session gap")
    if hasattr(gap, "__index__"):  # numpy's integers
        return int(gap)
    raise TypeError(
        f"The session gap must be whole milliseconds (int), the extractor gave {gap!r:.80} of type "
        f"{type(gap).__name__}."
    )


class _DynamicSessions(_Sessions):
    def __init__(self, session_window_time_gap_extractor: SessionWindowTimeGapExtractor | Callable[[Any], int]) -> None:
        extractor = session_window_time_gap_extractor
        if not isinstance(extractor, SessionWindowTimeGapExtractor) and not callable(extractor):
            raise ProgramError(
                f"{type(self).__name__}: expected a SessionWindowTimeGapExtractor or a function of the element that "
                f"returns milliseconds, got {extractor!r:.80}."
            )
        self._extract = extractor.extract if isinstance(extractor, SessionWindowTimeGapExtractor) else extractor

    def _gap_of(self, element: Any) -> int:
        gap = self._extract(element)
        if type(gap) is not int:
            gap = _gap_ms(gap)
        if gap <= 0:
            raise ValueError(f"The session gap must be longer than 0 ms, the extractor gave {gap!r}.")
        return gap

    def __repr__(self) -> str:
        return f"{type(self).__name__}({getattr(self._extract, '__qualname__', self._extract)})"


@final
class DynamicEventTimeSessionWindows(_DynamicSessions):
    _event_time = True

    @staticmethod
    def with_dynamic_gap(
        extractor: SessionWindowTimeGapExtractor | Callable[[Any], int],
    ) -> DynamicEventTimeSessionWindows:
        return DynamicEventTimeSessionWindows(extractor)


@final
class DynamicProcessingTimeSessionWindows(_DynamicSessions):
    _event_time = False

    @staticmethod
    def with_dynamic_gap(
        extractor: SessionWindowTimeGapExtractor | Callable[[Any], int],
    ) -> DynamicProcessingTimeSessionWindows:
        return DynamicProcessingTimeSessionWindows(extractor)


@final
class EventTimeSessionWindows(_FixedSessions):
    """Sessions: windows that end when no element came for ``gap`` of event time."""

    _event_time = True

    @staticmethod
    def with_gap(size: Span) -> EventTimeSessionWindows:
        return EventTimeSessionWindows(span_ms(size, "EventTimeSessionWindows.with_gap"))

    @staticmethod
    def with_dynamic_gap(
        extractor: SessionWindowTimeGapExtractor | Callable[[Any], int],
    ) -> DynamicEventTimeSessionWindows:
        return DynamicEventTimeSessionWindows(extractor)


@final
class ProcessingTimeSessionWindows(_FixedSessions):
    """Sessions: windows that end when no element came for ``gap`` on the clock."""

    _event_time = False

    @staticmethod
    def with_gap(size: Span) -> ProcessingTimeSessionWindows:
        return ProcessingTimeSessionWindows(span_ms(size, "ProcessingTimeSessionWindows.with_gap"))

    @staticmethod
    def with_dynamic_gap(
        extractor: SessionWindowTimeGapExtractor | Callable[[Any], int],
    ) -> DynamicProcessingTimeSessionWindows:
        return DynamicProcessingTimeSessionWindows(extractor)


@final
class GlobalWindows(WindowAssigner):
    """One window for everything; it never fires unless the program gives a trigger."""

    @staticmethod
    def create() -> GlobalWindows:
        return GlobalWindows()

    def assign_windows(
        self, element: Any, timestamp: int, context: WindowAssigner.WindowAssignerContext
    ) -> list[GlobalWindow]:
        return [GlobalWindow.get()]

    def get_default_trigger(self, env: Any) -> Trigger:
        return NeverTrigger()

    def is_event_time(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "GlobalWindows()"


def _checked_count(name: str, what: str, count: Any) -> int:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ProgramError(f"{name}: {what} must be a number of elements of at least 1, got {count!r}.")
    return count


class _Counting(WindowAssigner):
    """Windows by the number of an element within its key. A window fires once, when it is full, and is dropped."""

    def __init__(self, window_size: int, window_slide: int) -> None:
        name = type(self).__name__
        self._window_size = _checked_count(name, "the size", window_size)
        self._window_slide = _checked_count(name, "the slide", window_slide)

    def assign_windows(
        self, element: Any, timestamp: int, context: WindowAssigner.WindowAssignerContext
    ) -> list[Window]:
        number = context.next_number()
        slide = self._window_slide
        last = number // slide
        first = max(0, (number - self._window_size) // slide + 1)
        return [CountWindow(window_id) for window_id in range(last, first - 1, -1)]

    def get_default_trigger(self, env: Any) -> Trigger:
        return PurgingTrigger(CountTrigger(self._window_size))

    def is_event_time(self) -> bool:
        return False


@final
class CountTumblingWindowAssigner(_Counting):
    def __init__(self, window_size: int) -> None:
        super().__init__(window_size, window_size)

    @staticmethod
    def of(window_size: int) -> CountTumblingWindowAssigner:
        return CountTumblingWindowAssigner(window_size)

    def __repr__(self) -> str:
        return f"CountTumblingWindowAssigner({self._window_size})"


@final
class CountSlidingWindowAssigner(_Counting):
    @staticmethod
    def of(window_size: int, window_slide: int) -> CountSlidingWindowAssigner:
        return CountSlidingWindowAssigner(window_size, window_slide)

    def __repr__(self) -> str:
        return f"CountSlidingWindowAssigner({self._window_size}, {self._window_slide})"


def count_windows(size: int, slide: int = 0) -> WindowAssigner:
    """Return the assigner of ``count_window(size, slide)``; no slide = side by side."""
    return CountSlidingWindowAssigner(size, slide) if slide else CountTumblingWindowAssigner(size)
