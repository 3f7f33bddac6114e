"""Evictors: which elements of a window are dropped before or after its function sees them. Flink's names and rules.

A window with an evictor keeps all its elements, as ``TimestampedValue``s; an evictor returns those that stay.
"""

from __future__ import annotations

import abc
import datetime as dt
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

from engine.core.errors import ProgramError
from engine.time.watermarks import Duration, Time
from engine.time.windows import span_ms

__all__ = ["CountEvictor", "DeltaEvictor", "Evictor", "TimeEvictor", "TimestampedValue"]

Span = Time | Duration | dt.timedelta


class TimestampedValue(NamedTuple):
    """An element of a window and its event time; TIME_MIN_MS (Long.MIN_VALUE) when it has none."""

    value: Any
    timestamp: int

    def get_value(self) -> Any:
        return self.value

    def get_timestamp(self) -> int:
        return self.timestamp


class Evictor(abc.ABC):
    """Implement one or both. Flink's remove from an iterator; ours return the elements that stay, in order."""

    class EvictorContext(abc.ABC):
        @abc.abstractmethod
        def get_current_processing_time(self) -> int: ...

        @abc.abstractmethod
        def get_current_watermark(self) -> int: ...

    def evict_before(
        self, elements: Sequence[TimestampedValue], size: int, window: Any, ctx: Evictor.EvictorContext
    ) -> Sequence[TimestampedValue]:
        """Return the elements that the window function sees and that stay in the window."""
        return elements

    def evict_after(
        self, elements: Sequence[TimestampedValue], size: int, window: Any, ctx: Evictor.EvictorContext
    ) -> Sequence[TimestampedValue]:
        """Return the elements that stay in the window after its function ran."""
        return elements


class _OneSided(Evictor):
    """Evicts before the function runs, or after it when ``do_evict_after``."""

    _do_evict_after: bool

    def _kept(self, elements: Sequence[TimestampedValue]) -> Sequence[TimestampedValue]:
        raise NotImplementedError

    def evict_before(
        self, elements: Sequence[TimestampedValue], size: int, window: Any, ctx: Evictor.EvictorContext
    ) -> Sequence[TimestampedValue]:
        return elements if self._do_evict_after else self._kept(elements)

    def evict_after(
        self, elements: Sequence[TimestampedValue], size: int, window: Any, ctx: Evictor.EvictorContext
    ) -> Sequence[TimestampedValue]:
        return self._kept(elements) if self._do_evict_after else elements


@final
class CountEvictor(_OneSided):
    """Keeps the last ``max_count`` elements."""

    def __init__(self, max_count: int, do_evict_after: bool = False) -> None:
        if isinstance(max_count, bool) or not isinstance(max_count, int) or max_count < 0:
            raise ProgramError(f"CountEvictor: expected a number of elements, got {max_count!r}.")
        self._max_count = max_count
        self._do_evict_after = do_evict_after

    @staticmethod
    def of(max_count: int, do_evict_after: bool = False) -> CountEvictor:
        return CountEvictor(max_count, do_evict_after)

    def _kept(self, elements: Sequence[TimestampedValue]) -> Sequence[TimestampedValue]:
        return elements[max(0, len(elements) - self._max_count) :]


@final
class TimeEvictor(_OneSided):
    """Keeps elements that are newer than the newest one less ``window_size``; without timestamps it keeps all."""

    def __init__(self, window_size: int, do_evict_after: bool = False) -> None:
        self._window_size = window_size
        self._do_evict_after = do_evict_after

    @staticmethod
    def of(window_size: Span, do_evict_after: bool = False) -> TimeEvictor:
        return TimeEvictor(span_ms(window_size, "TimeEvictor.of"), do_evict_after)

    def _kept(self, elements: Sequence[TimestampedValue]) -> Sequence[TimestampedValue]:
        cutoff = max((element.timestamp for element in elements), default=0) - self._window_size
        return [element for element in elements if element.timestamp > cutoff]


@final
class DeltaEvictor(_OneSided):
    """Keeps elements that are nearer than ``threshold`` to the last one."""

    def __init__(
        self, threshold: float, delta_function: Callable[[Any, Any], float], do_evict_after: bool = False
    ) -> None:
        self._threshold = threshold
        self._delta = getattr(delta_function, "get_delta", delta_function)
        if not callable(self._delta):
            raise ProgramError(f"DeltaEvictor: expected a function (old, new) → number, got {delta_function!r:.80}.")
        self._do_evict_after = do_evict_after

    @staticmethod
    def of(threshold: float, delta_function: Callable[[Any, Any], float], do_evict_after: bool = False) -> DeltaEvictor:
        return DeltaEvictor(threshold, delta_function, do_evict_after)

    def _kept(self, elements: Sequence[TimestampedValue]) -> Sequence[TimestampedValue]:
        if not elements:
            return elements
        last = elements[-1].value
        return [element for element in elements if self._delta(element.value, last) < self._threshold]
