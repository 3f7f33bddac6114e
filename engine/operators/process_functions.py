"""Process and window functions as users implement them: they see time, keys, state and side outputs. PyFlink's names.

Methods that process are generators (or return an iterable, or None): ``yield value`` emits, ``yield tag, value`` emits
to the side output of that OutputTag. Not here: how they are run (``operators/process``, ``broadcast``, ``window``).
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from engine.operators.functions import Function, KeyedStateStore
from engine.state.descriptors import MapStateDescriptor
from engine.state.states import BroadcastState, ReadOnlyBroadcastState

__all__ = [
    "AllWindowFunction",
    "BaseBroadcastProcessFunction",
    "BroadcastProcessFunction",
    "CoProcessFunction",
    "KeyedBroadcastProcessFunction",
    "KeyedCoProcessFunction",
    "KeyedProcessFunction",
    "ProcessAllWindowFunction",
    "ProcessFunction",
    "ProcessWindowFunction",
    "TimeDomain",
    "TimerService",
    "WindowFunction",
]

IN = TypeVar("IN")
IN1 = TypeVar("IN1")
IN2 = TypeVar("IN2")
OUT = TypeVar("OUT")
KEY = TypeVar("KEY")
W = TypeVar("W")
W2 = TypeVar("W2")


class TimeDomain(enum.Enum):
    """By which time a timer fires."""

    EVENT_TIME = 0
    PROCESSING_TIME = 1


class TimerService(abc.ABC):
    """Time, and timers of the current key. Not to be confused with ``state/timers.TimerService``, which keeps them."""

    @abc.abstractmethod
    def current_processing_time(self) -> int:
        """Return the wall clock in milliseconds."""

    @abc.abstractmethod
    def current_watermark(self) -> int:
        """Return how far event time has come, in milliseconds; a very small number before the first watermark."""

    @abc.abstractmethod
    def register_processing_time_timer(self, timestamp: int) -> None: ...

    @abc.abstractmethod
    def register_event_time_timer(self, timestamp: int) -> None:
        """Have ``on_timer`` called when the watermark passes ``timestamp``; once, however often it is registered."""

    @abc.abstractmethod
    def delete_processing_time_timer(self, timestamp: int) -> None: ...

    @abc.abstractmethod
    def delete_event_time_timer(self, timestamp: int) -> None: ...


# --- what contexts offer ----------------------------------------------------------------------------------------------


class _Context(abc.ABC):
    @abc.abstractmethod
    def timer_service(self) -> TimerService: ...

    @abc.abstractmethod
    def timestamp(self) -> int | None:
        """Return the event time of the record (or the time of the timer); None when the record has none."""


class _KeyedContext(_Context):
    @abc.abstractmethod
    def get_current_key(self) -> Any: ...


class _OnTimerContext(_KeyedContext):
    @abc.abstractmethod
    def time_domain(self) -> TimeDomain: ...


# --- one input --------------------------------------------------------------------------------------------------------


class ProcessFunction(Function):
    """On a stream without keys: no state and no timers, but time and side outputs."""

    class Context(_Context):
        pass

    @abc.abstractmethod
    def process_element(self, value: Any, ctx: Context) -> Iterable[Any] | None: ...


class KeyedProcessFunction(Function):
    class Context(_KeyedContext):
        pass

    class OnTimerContext(_OnTimerContext):
        pass

    @abc.abstractmethod
    def process_element(self, value: Any, ctx: Context) -> Iterable[Any] | None: ...

    def on_timer(self, timestamp: int, ctx: OnTimerContext) -> Iterable[Any] | None:
        """A timer of the current key has fired."""


# --- two inputs -------------------------------------------------------------------------------------------------------


class CoProcessFunction(Function):
    class Context(_Context):
        pass

    @abc.abstractmethod
    def process_element1(self, value: Any, ctx: Context) -> Iterable[Any] | None: ...

    @abc.abstractmethod
    def process_element2(self, value: Any, ctx: Context) -> Iterable[Any] | None: ...


class KeyedCoProcessFunction(Function):
    """State and timers of a key are shared by both inputs."""

    class Context(_KeyedContext):
        pass

    class OnTimerContext(_OnTimerContext):
        pass

    @abc.abstractmethod
    def process_element1(self, value: Any, ctx: Context) -> Iterable[Any] | None: ...

    @abc.abstractmethod
    def process_element2(self, value: Any, ctx: Context) -> Iterable[Any] | None: ...

    def on_timer(self, timestamp: int, ctx: OnTimerContext) -> Iterable[Any] | None:
        """A timer of the current key has fired."""


# --- a stream and a broadcast stream ----------------------------------------------------------------------------------


class BaseBroadcastProcessFunction(Function):
    class BaseContext(abc.ABC):
        @abc.abstractmethod
        def timestamp(self) -> int | None: ...

        @abc.abstractmethod
        def current_processing_time(self) -> int: ...

        @abc.abstractmethod
        def current_watermark(self) -> int: ...

    class Context(BaseContext):
        """For broadcast elements: may change the broadcast state, equally in every subtask."""

        @abc.abstractmethod
        def get_broadcast_state(self, state_descriptor: MapStateDescriptor) -> BroadcastState: ...

    class ReadOnlyContext(BaseContext):
        @abc.abstractmethod
        def get_broadcast_state(self, state_descriptor: MapStateDescriptor) -> ReadOnlyBroadcastState: ...


class BroadcastProcessFunction(BaseBroadcastProcessFunction, Generic[IN1, IN2, OUT]):
    class Context(BaseBroadcastProcessFunction.Context):
        pass

    class ReadOnlyContext(BaseBroadcastProcessFunction.ReadOnlyContext):
        pass

    @abc.abstractmethod
    def process_element(self, value: Any, ctx: ReadOnlyContext) -> Iterable[Any] | None: ...

    @abc.abstractmethod
    def process_broadcast_element(self, value: Any, ctx: Context) -> Iterable[Any] | None: ...


class KeyedBroadcastProcessFunction(BaseBroadcastProcessFunction, Generic[KEY, IN1, IN2, OUT]):
    """Keyed state and timers are there for elements of the keyed stream, not for broadcast ones."""

    class Context(BaseBroadcastProcessFunction.Context):
        pass

    class ReadOnlyContext(BaseBroadcastProcessFunction.ReadOnlyContext):
        @abc.abstractmethod
        def timer_service(self) -> TimerService: ...

        @abc.abstractmethod
        def get_current_key(self) -> Any: ...

    class OnTimerContext(ReadOnlyContext):
        @abc.abstractmethod
        def time_domain(self) -> TimeDomain: ...

    @abc.abstractmethod
    def process_element(self, value: Any, ctx: ReadOnlyContext) -> Iterable[Any] | None: ...

    @abc.abstractmethod
    def process_broadcast_element(self, value: Any, ctx: Context) -> Iterable[Any] | None: ...

    def on_timer(self, timestamp: int, ctx: OnTimerContext) -> Iterable[Any] | None:
        """A timer of the current key has fired."""


# --- windows ----------------------------------------------------------------------------------------------------------


class WindowFunction(Function, Generic[IN, OUT, KEY, W]):
    @abc.abstractmethod
    def apply(self, key: Any, window: Any, inputs: Iterable[Any]) -> Iterable[Any] | None:
        """Return the results of a window that fires."""


class AllWindowFunction(Function, Generic[IN, OUT, W]):
    @abc.abstractmethod
    def apply(self, window: Any, inputs: Iterable[Any]) -> Iterable[Any] | None:
        """Return the results of a window that fires."""


class _WindowContext(abc.ABC, Generic[W2]):
    @abc.abstractmethod
    def window(self) -> Any: ...

    @abc.abstractmethod
    def window_state(self) -> KeyedStateStore:
        """Return state of this key and window; clear it in ``clear``."""

    @abc.abstractmethod
    def global_state(self) -> KeyedStateStore:
        """Return state of this key that all its windows share."""


class ProcessWindowFunction(Function, Generic[IN, OUT, KEY, W]):
    class Context(_WindowContext[W2]):
        @abc.abstractmethod
        def current_processing_time(self) -> int: ...

        @abc.abstractmethod
        def current_watermark(self) -> int: ...

    @abc.abstractmethod
    def process(self, key: Any, context: Context, elements: Iterable[Any]) -> Iterable[Any] | None:
        """Return the results of a window that fires."""

    def clear(self, context: Context) -> None:
        """The window is over: clear what ``window_state`` holds. PyFlink has it abstract; here it may be left out."""


class ProcessAllWindowFunction(Function, Generic[IN, OUT, W]):
    class Context(_WindowContext[W2]):
        pass

    @abc.abstractmethod
    def process(self, context: Context, elements: Iterable[Any]) -> Iterable[Any] | None:
        """Return the results of a window that fires."""

    def clear(self, context: Context) -> None:
        """The window is over: clear what ``window_state`` holds."""
