"""Overlapping windows over columns that do not share slices: each window is a pane, and a record goes into several.

So a window's records are folded in the order in which they came, as on rows: what comes first or last, sums of floats
and functions of the user's come out the same. A record that is in several panes cannot be given to the row operator
when one of them refuses it: whether all do take a batch is known before. Not here: what panes hold (``window_state``,
``spilling_windows``), and when they fire (``column_window``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final, final

import numpy as np
import pyarrow as pa

from engine.operators.spilling_windows import SpillingWindows
from engine.operators.window_slices import WholeWindows
from engine.operators.window_sums import SUM_MAX

Array = np.ndarray[Any, Any]

__all__ = ["OverlappingWindows"]

#: Sums stay far below what panes in files refuse, however bounds were rounded.
_BOUND_MAX: Final = SUM_MAX / 2


@final
class OverlappingWindows:
    """Which rows go into which panes. ``limit_ms``: where times end, either way."""

    def __init__(self, panes: WholeWindows, windows: SpillingWindows, lateness_ms: int, limit_ms: int) -> None:
        self._panes = panes
        self._windows = windows
        self._lateness_ms = lateness_ms
        self._limit_ms = limit_ms - panes.slices.size_ms
        #: no sum of integers is beyond it; what was restored has not been looked at
        self._bound = math.inf
        #: it was sums that were not taken
        self.is_beyond = False

    def can_take(self, columns: pa.RecordBatch, times_ms: Array) -> bool:
        """Whether no pane refuses a record of the batch, which comes next. Sums of integers are given up when those of
        their sizes in a window, of all keys together, pass 2^61, those of decimals at half of what Python rounds: too
        early, as a rule, but never wrong."""
        if times_ms.size and not -self._limit_ms < int(times_ms.min()) <= int(times_ms.max()) < self._limit_ms:
            return False
        if not self._windows.state.can_take_later(columns):
            return False
        added = self._windows.state.bound_of_records(columns)
        self._bound += added
        if self._bound > _BOUND_MAX:  # it has counted windows that are gone
            self._bound = self._windows.bound_of_sums() + added
        self.is_beyond = self._bound > _BOUND_MAX
        return not self.is_beyond

    def in_files(self, times_ms: Array) -> Iterator[tuple[int, Array]]:
        """Yield the panes in files that have rows, with these."""
        for pane in self._windows.spilled.starts():
            begin, end = self._panes.window_of(pane)
            rows = np.flatnonzero((begin <= times_ms) & (times_ms < end))
            if rows.size:
                yield pane, rows

    def in_memory(
        self, slices: list[int], times_ms: Array, begin: int, end: int, watermark_ms: int, *, is_all: bool
    ) -> Iterator[tuple[int, Array]]:
        """Yield the panes in memory of windows that are alive and have these slices, with those of the rows from
        ``begin`` to ``end`` that they have; ``is_all``: all."""
        windows = dict.fromkeys(window for start in slices for window in self._panes.slices.windows_with(start))
        times_ms = times_ms[begin:end]
        rows = np.arange(begin, end, dtype=np.int32)
        for window in windows:
            pane = self._panes.number_of(window)
            if window[1] - 1 + self._lateness_ms > watermark_ms and pane not in self._windows.spilled:
                yield pane, rows if is_all else rows[(window[0] <= times_ms) & (times_ms < window[1])]
