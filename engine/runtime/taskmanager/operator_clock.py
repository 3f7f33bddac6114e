"""Divides the time of a chain among its operators: whose code is running, without those behind it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import final

__all__ = ["OperatorClock"]


@final
class OperatorClock:
    """Two looks at the clock a batch and operator. Index ``num_operators`` stands for the exits, the one after for
    nobody."""

    def __init__(self, num_operators: int, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._now_ns = now_ns
        self._spent_ns = [0] * (num_operators + 2)
        self._nobody = num_operators + 1
        self._current = self._nobody
        self._marked_ns = 0

    def enter(self, index: int) -> int:
        """Operator ``index`` goes on from here; returns whose time it was, to be entered again afterwards."""
        now_ns = self._now_ns()
        before = self._current
        self._spent_ns[before] += now_ns - self._marked_ns
        self._marked_ns = now_ns
        self._current = index
        return before

    def enter_nobody(self) -> int:
        return self.enter(self._nobody)

    def busy_ms(self, index: int) -> int:
        return self._spent_ns[index] // 1_000_000
