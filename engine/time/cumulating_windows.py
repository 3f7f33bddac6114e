"""Cumulating windows: of one beginning, growing by a step until the largest size, then anew (SQL's CUMULATE)."""

from __future__ import annotations

from typing import final

from engine.core.errors import ProgramError
from engine.time.assigners import RegularWindows, Span
from engine.time.windows import TimeWindow, span_ms

__all__ = ["CumulatingEventTimeWindows"]


@final
class CumulatingEventTimeWindows(RegularWindows):
    """``of(Time.days(1), Time.hours(1))``: at each full hour, all since midnight."""

    _event_time = True

    def __init__(self, max_size: int, step: int, offset: int = 0) -> None:
        super().__init__(max_size, max_size, offset)
        if step <= 0 or max_size % step:
            raise ProgramError(
                f"CumulatingEventTimeWindows: the largest size ({max_size} ms) must be a multiple of the step "
                f"({step} ms)."
            )
        self._step = step

    @staticmethod
    def of(max_size: Span, step: Span, offset: Span | None = None) -> CumulatingEventTimeWindows:
        name = "CumulatingEventTimeWindows.of"
        offset_ms = 0 if offset is None else span_ms(offset, name)
        return CumulatingEventTimeWindows(span_ms(max_size, name), span_ms(step, name), offset_ms)

    @property
    def step_ms(self) -> int:
        return self._step

    def windows_of(self, timestamp: int) -> list[TimeWindow]:
        begin = TimeWindow.get_window_start_with_offset(timestamp, self._offset, self._size)
        return [TimeWindow(begin, end) for end in range(begin + self._size, timestamp, -self._step)]

    def __repr__(self) -> str:
        return f"CumulatingEventTimeWindows({self._size}, {self._step}, {self._offset})"
