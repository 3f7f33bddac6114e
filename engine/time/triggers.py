"""Triggers: when a window is evaluated and when its contents are dropped. PyFlink's names, and Flink's DeltaTrigger.

A trigger keeps no state of its own: one object serves all keys and windows of a subtask. What it must remember per key
and window goes through its context: ``get_partitioned_state`` for programs, ``get_note``/``set_note`` for the triggers
here, which stand below the state layer. Both live in keyed state.
"""

from __future__ import annotations

import abc
import datetime as dt
import enum
from collections.abc import Callable
from typing import Any, final

from engine.core.errors import ProgramError
from engine.time.watermarks import Duration, Time
from engine.time.windows import TIME_MAX_MS, Window, span_ms

__all__ = [
    "ContinuousEventTimeTrigger",
    "ContinuousProcessingTimeTrigger",
    "CountTrigger",
    "DeltaTrigger",
    "EventTimeTrigger",
    "NeverTrigger",
    "ProcessingTimeTrigger",
    "PurgingTrigger",
    "Trigger",
    "TriggerResult",
    "lacks_on_merge",
]

Span = Time | Duration | dt.timedelta


class TriggerResult(enum.Enum):
    """What becomes of a window: (evaluate and emit, drop the contents)."""

    CONTINUE = (False, False)
    FIRE_AND_PURGE = (True, True)
    FIRE = (True, False)
    PURGE = (False, True)

    def is_fire(self) -> bool:
        return self.value[0]

    def is_purge(self) -> bool:
        return self.value[1]


_CONTINUE = TriggerResult.CONTINUE
_FIRE = TriggerResult.FIRE


class Trigger(abc.ABC):
    """Decides for each key and window. Implement the four abstract methods; ``on_merge`` too if ``can_merge``."""

    def __class_getitem__(cls, parameters: Any) -> Any:
        """``Trigger[tuple, TimeWindow]``, as PyFlink's programs write it."""
        return cls

    class TriggerContext(abc.ABC):
        """What a trigger may ask and do; it stands for the current key and window."""

        @abc.abstractmethod
        def get_current_processing_time(self) -> int: ...

        @abc.abstractmethod
        def get_metric_group(self) -> Any: ...

        @abc.abstractmethod
        def get_current_watermark(self) -> int: ...

        @abc.abstractmethod
        def register_processing_time_timer(self, time: int) -> None: ...

        @abc.abstractmethod
        def register_event_time_timer(self, time: int) -> None: ...

        @abc.abstractmethod
        def delete_processing_time_timer(self, time: int) -> None: ...

        @abc.abstractmethod
        def delete_event_time_timer(self, time: int) -> None: ...

        @abc.abstractmethod
        def get_partitioned_state(self, state_descriptor: Any) -> Any:
            """Return the state of this key and window."""

        @abc.abstractmethod
        def get_note(self, name: str) -> Any:
            """Return what ``set_note`` kept for this key and window, or None (ours, not PyFlink's)."""

        @abc.abstractmethod
        def set_note(self, name: str, value: Any) -> None:
            """Keep a picklable value for this key and window; None forgets it (ours, not PyFlink's)."""

    class OnMergeContext(TriggerContext):
        @abc.abstractmethod
        def merge_partitioned_state(self, state_descriptor: Any) -> None:
            """Move the states of the windows that were merged into that of the window that results."""

        @abc.abstractmethod
        def take_merged_notes(self, name: str) -> list[Any]:
            """Return and forget the notes of the windows that were merged, without None (ours, not PyFlink's)."""

    @abc.abstractmethod
    def on_element(self, element: Any, timestamp: int, window: Any, ctx: Trigger.TriggerContext) -> TriggerResult: ...

    @abc.abstractmethod
    def on_processing_time(self, time: int, window: Any, ctx: Trigger.TriggerContext) -> TriggerResult: ...

    @abc.abstractmethod
    def on_event_time(self, time: int, window: Any, ctx: Trigger.TriggerContext) -> TriggerResult: ...

    def can_merge(self) -> bool:
        """Return whether the trigger may be used with windows that merge (sessions)."""
        return False

    def on_merge(self, window: Any, ctx: Trigger.OnMergeContext) -> None:
        """Windows have been merged into ``window``: register its timers, merge what was kept. A trigger without it is
        refused where windows merge."""
        raise ProgramError(f"{type(self).__name__}.can_merge() is true, but it has no on_merge().")

    @abc.abstractmethod
    def clear(self, window: Any, ctx: Trigger.TriggerContext) -> None:
        """The window goes: delete the timers and the state that are left."""


@final
class EventTimeTrigger(Trigger):
    """Fires when the watermark passes the end of the window, and for each element that is late but allowed."""

    @staticmethod
    def create() -> EventTimeTrigger:
        return EventTimeTrigger()

    def on_element(self, element: Any, timestamp: int, window: Window, ctx: Trigger.TriggerContext) -> TriggerResult:
        end = window.max_timestamp()
        if end <= ctx.get_current_watermark():
            return _FIRE
        ctx.register_event_time_timer(end)
        return _CONTINUE

    def on_processing_time(self, time: int, window: Window, ctx: Trigger.TriggerContext) -> TriggerResult:
        return _CONTINUE

    def on_event_time(self, time: int, window: Window, ctx: Trigger.TriggerContext) -> TriggerResult:
        return _FIRE if time == window.max_timestamp() else _CONTINUE

    def can_merge(self) -> bool:
        return True

    def on_merge(self, window: Window, ctx: Trigger.OnMergeContext) -> None:
        end = window.max_timestamp()
        if end > ctx.get_current_watermark():
            ctx.register_event_time_timer(end)

    def clear(self, window: Window, ctx: Trigger.TriggerContext) -> None:
        ctx.delete_event_time_timer(window.max_timestamp())


@final
class ProcessingTimeTrigger(Trigger):
    """Fires when the clock passes the end of the window."""

    @staticmethod
    def create() -> ProcessingTimeTrigger:
        return ProcessingTimeTrigger()

    def on_element(self, element: Any, timestamp: int, window: Window, ctx: Trigger.TriggerContext) -> TriggerResult:
        ctx.register_processing_time_timer(window.max_timestamp())
        return _CONTINUE

    def on_processing_time(self, time: int, window: Window, ctx: Trigger.TriggerContext) -> TriggerResult:
        return _FIRE

    def on_event_time(self, time: int, window: Window, ctx: Trigger.TriggerContext) -> TriggerResult:
        return _CONTINUE

    def can_merge(self) -> bool:
        return True

    def on_merge(self, window: Window, ctx: Trigger.OnMergeContext) -> None:
        end = window.max_timestamp()
        if end > ctx.get_current_processing_time():
            ctx.register_processing_time_timer(end)

    def clear(self, window: Window, ctx: Trigger.TriggerContext) -> None:
        ctx.delete_processing_time_timer(window.max_timestamp())


def _positive_interval(interval: int, name: str) -> int:
    if interval <= 0:
        raise ProgramError(f"{name}: the interval must be longer than 0 ms, got {interval}.")
    return interval


@final
class ContinuousEventTimeTrigger(Trigger):
    """Fires each time the watermark has passed another ``interval``, and at the end of the window."""

    _NOTE = "fire-time"

    def __init__(self, interval: int) -> None:
        self.interval = _positive_interval(interval, "ContinuousEventTimeTrigger")

    @staticmethod
    def of(interval: Span) -> ContinuousEventTimeTrigger:
        return ContinuousEventTimeTrigger(span_ms(interval, "ContinuousEventTimeTrigger.of"))

    def on_element(self, element: Any, timestamp: int, window: Window, ctx: Trigger.TriggerContext) -> TriggerResult:
        if window.max_timestamp() <= ctx.get_current_watermark():
            return _FIRE
        ctx.register_event_time_timer(window.max_timestamp())
        if ctx.get_note(self._NOTE) is None:
            self._register_next(timestamp - timestamp % self.interval, window, ctx)
        return _CONTINUE

    def _register_next(self, time: int, window: Window, ctx: Trigger.TriggerContext) -> None:
        next_time = min(time + self.interval, window.max_timestamp())
        if ctx.get_current_watermark() == window.max_timestamp() == TIME_MAX_MS:
            next_time = TIME_MAX_MS  # nothing comes any more: not every interval up to the end of time
        ctx.set_note(self._NOTE, next_time)
        ctx.register_event_time_timer(next_time)

    def on_processing_time(self, time: int, window: Window, ctx: Trigger.TriggerContext) -> TriggerResult:
        return _CONTINUE

    def on_event_time(self, time: int, window: Window, ctx: Trigger.TriggerContext) -> TriggerResult:
        if time == window.max_timestamp():
            return _FIRE
        if ctx.get_note(self._NOTE) != time:
            return _CONTINUE
        self._register_next(time, window, ctx)
        return _FIRE

    def can_merge(self) -> bool:
        return True

    def on_merge(self, window: Window, ctx: Trigger.OnMergeContext) -> None:
        times = ctx.take_merged_notes(self._NOTE)
        if times:
            ctx.set_note(self._NOTE, min(times))
            ctx.register_event_time_timer(min(times))
        if window.max_timestamp() > ctx.get_current_watermark():
            ctx.register_event_time_timer(window.max_timestamp())

    def clear(self, window: Window, ctx: Trigger.TriggerContext) -> None:
        ctx.delete_event_time_timer(window.max_timestamp())
        time = ctx.get_note(self._NOTE)
        if time is not None:
            ctx.delete_event_time_timer(time)
            ctx.set_note(self._NOTE, None)


@final
class ContinuousProcessingTimeTrigger(Trigger):
    """Fires each time another ``interval`` has passed on the clock while the window has elements."""

    _NOTE = "fire-time"

    def __init__(self, interval: int) -> None:
        self.interval = _positive_interval(interval, "ContinuousProcessingTimeTrigger")

    @staticmethod
    def of(interval: Span) -> ContinuousProcessingTimeTrigger:
        return ContinuousProcessingTimeTrigger(span_ms(interval, "ContinuousProcessingTimeTrigger.of"))

    def on_element(self, element: Any, timestamp: int, window: Window, ctx: Trigger.TriggerContext) -> TriggerResult:
        if ctx.get_note(self._NOTE) is None:
            now = ctx.get_current_processing_time()
            self._register_next(now - now % self.interval, window, ctx)
        return _CONTINUE

    def _register_next(self, time: int, window: Window, ctx: Trigger.TriggerContext) -> None:
        next_time = min(time + self.interval, window.max_timestamp())
        ctx.set_note(self._NOTE, next_time)
        ctx.register_processing_time_timer(next_time)

    def on_processing_time(self, time: int, window: Window, ctx: Trigger.TriggerContext) -> TriggerResult:
        if ctx.get_note(self._NOTE) != time:
            return _CONTINUE
        if time < window.max_timestamp():  # else it would fire at this time for ever
            self._register_next(time, window, ctx)
        return _FIRE

    def on_event_time(self, time: int, window: Window, ctx: Trigger.TriggerContext) -> TriggerResult:
        return _CONTINUE

    def can_merge(self) -> bool:
        return True

    def on_merge(self, window: Window, ctx: Trigger.OnMergeContext) -> None:
        times = ctx.take_merged_notes(self._NOTE)
        if times:
            ctx.set_note(self._NOTE, min(times))
            ctx.register_processing_time_timer(min(times))

    def clear(self, window: Window, ctx: Trigger.TriggerContext) -> None:
        time = ctx.get_note(self._NOTE)
        if time is not None:
            ctx.delete_processing_time_timer(time)
            ctx.set_note(self._NOTE, None)


@final
class CountTrigger(Trigger):
    """Fires for every ``window_size`` elements of a window."""

    _NOTE = "count"

    def __init__(self, window_size: int) -> None:
        if isinstance(window_size, bool) or not isinstance(window_size, int) or window_size < 1:
            raise ProgramError(f"CountTrigger: expected a number of elements of at least 1, got {window_size!r}.")
        self._window_size = window_size

    @staticmethod
    def of(window_size: int) -> CountTrigger:
        return CountTrigger(window_size)

    def on_element(self, element: Any, timestamp: int, window: Window, ctx: Trigger.TriggerContext) -> TriggerResult:
        count = (ctx.get_note(self._NOTE) or 0) + 1
        if count < self._window_size:
            ctx.set_note(self._NOTE, count)
            return _CONTINUE
        ctx.set_note(self._NOTE, None)
        return _FIRE

    def on_processing_time(self, time: int, window: Window, ctx: Trigger.TriggerContext) -> TriggerResult:
        return _CONTINUE

    def on_event_time(self, time: int, window: Window, ctx: Trigger.TriggerContext) -> TriggerResult:
        return _CONTINUE

    def can_merge(self) -> bool:
        return True

    def on_merge(self, window: Window, ctx: Trigger.OnMergeContext) -> None:
        count = sum(ctx.take_merged_notes(self._NOTE)) + (ctx.get_note(self._NOTE) or 0)
        ctx.set_note(self._NOTE, count or None)

    def clear(self, window: Window, ctx: Trigger.TriggerContext) -> None:
        ctx.set_note(self._NOTE, None)


@final
class DeltaTrigger(Trigger):
    """Fires when an element is farther than ``threshold`` from the one that fired last (or came first)."""

    _NOTE = "last-element"

    def __init__(self, threshold: float, delta_function: Callable[[Any, Any], float]) -> None:
        self._threshold = threshold
        self._delta = getattr(delta_function, "get_delta", delta_function)
        if not callable(self._delta):
            raise ProgramError(f"DeltaTrigger: expected a function (old, new) → number, got {delta_function!r:.80}.")

    @staticmethod
    def of(threshold: float, delta_function: Callable[[Any, Any], float]) -> DeltaTrigger:
        return DeltaTrigger(threshold, delta_function)

    def on_element(self, element: Any, timestamp: int, window: Window, ctx: Trigger.TriggerContext) -> TriggerResult:
        noted = ctx.get_note(self._NOTE)  # in a tuple: an element may be None
        if noted is None:
            ctx.set_note(self._NOTE, (element,))
            return _CONTINUE
        if self._delta(noted[0], element) <= self._threshold:
            return _CONTINUE
        ctx.set_note(self._NOTE, (element,))
        return _FIRE

    def on_processing_time(self, time: int, window: Window, ctx: Trigger.TriggerContext) -> TriggerResult:
        return _CONTINUE

    def on_event_time(self, time: int, window: Window, ctx: Trigger.TriggerContext) -> TriggerResult:
        return _CONTINUE

    def clear(self, window: Window, ctx: Trigger.TriggerContext) -> None:
        ctx.set_note(self._NOTE, None)


@final
class NeverTrigger(Trigger):
    """Never fires: what GlobalWindows has unless the program gives another."""

    def on_element(self, element: Any, timestamp: int, window: Window, ctx: Trigger.TriggerContext) -> TriggerResult:
        return _CONTINUE

    def on_processing_time(self, time: int, window: Window, ctx: Trigger.TriggerContext) -> TriggerResult:
        return _CONTINUE

    def on_event_time(self, time: int, window: Window, ctx: Trigger.TriggerContext) -> TriggerResult:
        return _CONTINUE

    def can_merge(self) -> bool:
        return True

    def on_merge(self, window: Window, ctx: Trigger.OnMergeContext) -> None:
        pass

    def clear(self, window: Window, ctx: Trigger.TriggerContext) -> None:
        pass


@final
class PurgingTrigger(Trigger):
    """Makes another trigger drop the contents of a window whenever it fires."""

    def __init__(self, nested_trigger: Trigger) -> None:
        if not isinstance(nested_trigger, Trigger):
            raise ProgramError(f"PurgingTrigger.of: expected a Trigger, got {nested_trigger!r:.80}.")
        self.nested_trigger = nested_trigger

    @staticmethod
    def of(nested_trigger: Trigger) -> PurgingTrigger:
        return PurgingTrigger(nested_trigger)

    @staticmethod
    def _purging(result: TriggerResult) -> TriggerResult:
        return TriggerResult.FIRE_AND_PURGE if result.is_fire() else result

    def on_element(self, element: Any, timestamp: int, window: Window, ctx: Trigger.TriggerContext) -> TriggerResult:
        return self._purging(self.nested_trigger.on_element(element, timestamp, window, ctx))

    def on_processing_time(self, time: int, window: Window, ctx: Trigger.TriggerContext) -> TriggerResult:
        return self._purging(self.nested_trigger.on_processing_time(time, window, ctx))

    def on_event_time(self, time: int, window: Window, ctx: Trigger.TriggerContext) -> TriggerResult:
        return self._purging(self.nested_trigger.on_event_time(time, window, ctx))

    def can_merge(self) -> bool:
        return self.nested_trigger.can_merge()

    def on_merge(self, window: Window, ctx: Trigger.OnMergeContext) -> None:
        self.nested_trigger.on_merge(window, ctx)

    def clear(self, window: Window, ctx: Trigger.TriggerContext) -> None:
        self.nested_trigger.clear(window, ctx)


def lacks_on_merge(trigger: Trigger) -> bool:
    """Return whether a trigger, or the one inside of it, could not be told of windows that were merged."""
    nested = trigger.nested_trigger if isinstance(trigger, PurgingTrigger) else trigger
    return type(nested).on_merge is Trigger.on_merge
