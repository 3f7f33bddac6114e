"""Windows cut into slices: the spans that are never split between windows. Each record belongs to one slice, a window
is some slices in a row. Tumbling windows are one slice each. Or each window stands for itself (``WholeWindows``). Pure
arithmetic in milliseconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from engine.time.assigners import SlidingEventTimeWindows, TumblingEventTimeWindows, WindowAssigner
from engine.time.cumulating_windows import CumulatingEventTimeWindows

__all__ = ["Slices", "WholeWindows", "slices_of"]


@final
@dataclass(frozen=True)
class Slices:
    """``size_ms``: the longest window's; windows begin every ``slide_ms`` and, if ``step_ms`` is not 0, each beginning
    has windows of one, two, three… steps."""

    size_ms: int
    slide_ms: int
    offset_ms: int
    step_ms: int = 0

    @property
    def slice_ms(self) -> int:
        return self.step_ms or math.gcd(self.size_ms, self.slide_ms)

    @property
    def num_slices(self) -> int:
        """How many slices a window has, at most."""
        return self.size_ms // self.slice_ms

    @property
    def windows_of_slice(self) -> int:
        """How many windows have a slice, at most."""
        return -(-self.size_ms // (self.step_ms or self.slide_ms))

    def windows_with(self, start_ms: int) -> list[tuple[int, int]]:
        """Return (start, end) of the windows that have the slice from ``start_ms`` on, the last one first."""
        if self.step_ms:
            begin = start_ms - (start_ms - self.offset_ms) % self.size_ms
            return [(begin, end) for end in range(begin + self.size_ms, start_ms, -self.step_ms)]
        last = start_ms - (start_ms - self.offset_ms) % self.slide_ms
        return [(begin, begin + self.size_ms) for begin in range(last, start_ms - self.size_ms, -self.slide_ms)]

    def slices_of(self, window: tuple[int, int]) -> range:
        """Return where the slices of a window begin."""
        return range(window[0], window[1], self.slice_ms)

    def last_end(self, start_ms: int) -> int | None:
        """Return the end of the last window that has the slice, or None between windows that have gaps."""
        return max((end for _, end in self.windows_with(start_ms)), default=None)


@final
@dataclass(frozen=True)
class WholeWindows:
    """As ``Slices``, with one number for each window: for what cannot be put together of slices. The number is where
    the window begins; of cumulating ones, which begin together, where its last step does."""

    slices: Slices
    num_slices = 1

    def number_of(self, window: tuple[int, int]) -> int:
        return window[1] - (self.slices.step_ms or self.slices.size_ms)

    def window_of(self, number: int) -> tuple[int, int]:
        slices = self.slices
        if slices.step_ms:
            return number - (number - slices.offset_ms) % slices.size_ms, number + slices.step_ms
        return number, number + slices.size_ms

    def windows_with(self, number: int) -> list[tuple[int, int]]:
        return [self.window_of(number)]

    def slices_of(self, window: tuple[int, int]) -> tuple[int, ...]:
        return (self.number_of(window),)

    def last_end(self, number: int) -> int | None:
        return self.window_of(number)[1]


def slices_of(assigner: WindowAssigner) -> Slices | None:
    """Return how the assigner's windows are cut; None when they cannot be."""
    match assigner:
        case TumblingEventTimeWindows() | SlidingEventTimeWindows():
            return Slices(assigner._size, assigner._slide, assigner._offset)
        case CumulatingEventTimeWindows():
            return Slices(assigner._size, assigner._size, assigner._offset, assigner.step_ms)
    return None
