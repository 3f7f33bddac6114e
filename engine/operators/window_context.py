"""What triggers, assigners, evictors and window functions are given: key and window, time, state, timers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

from engine.core.clock import Clock
from engine.core.errors import ProgramError
from engine.operators.functions import KeyedStateStore, RuntimeContext
from engine.operators.keyed import NamespaceStateStore
from engine.operators.process_functions import ProcessAllWindowFunction, ProcessWindowFunction
from engine.state.backend import KeyedStateBackend, Merging
from engine.state.descriptors import StateDescriptor, ValueStateDescriptor
from engine.state.timers import Timers
from engine.time.assigners import WindowAssigner
from engine.time.evictors import Evictor
from engine.time.triggers import Trigger

__all__ = ["AssignerContext", "EvictorContext", "FunctionContext", "TriggerContext"]


def _state_of(backend: KeyedStateBackend, descriptor: StateDescriptor) -> Any:
    give = getattr(backend, f"{descriptor.kind}_state", None)
    if give is None:
        raise ProgramError(f"{descriptor!r} is not the descriptor of a keyed state.")
    return give(descriptor)


@final
class TriggerContext(Trigger.OnMergeContext):
    """``window``: the current one; ``merged_windows``: those that went into it, during ``on_merge``."""

    def __init__(self, backend: KeyedStateBackend, timers: Timers, clock: Clock, runtime: RuntimeContext) -> None:
        self._backend = backend
        self._timers = timers
        self._clock = clock
        self._runtime = runtime
        self._notes: dict[str, Any] = {}
        self.window: Any = None
        self.merged_windows: Iterable[Any] = ()

    def get_current_processing_time(self) -> int:
        return self._clock.now_ms()

    def get_metric_group(self) -> Any:
        return self._runtime.get_metrics_group()

    def get_current_watermark(self) -> int:
        return self._timers.current_watermark

    def register_processing_time_timer(self, time: int) -> None:
        self._timers.register_processing_time(self._backend.current_key, self.window, time)

    def register_event_time_timer(self, time: int) -> None:
        self._timers.register_event_time(self._backend.current_key, self.window, time)

    def delete_processing_time_timer(self, time: int) -> None:
        self._timers.delete_processing_time(self._backend.current_key, self.window, time)

    def delete_event_time_timer(self, time: int) -> None:
        self._timers.delete_event_time(self._backend.current_key, self.window, time)

    def get_partitioned_state(self, state_descriptor: StateDescriptor) -> Any:
        state = _state_of(self._backend, state_descriptor)
        state.set_current_namespace(self.window)
        return state

    def merge_partitioned_state(self, state_descriptor: StateDescriptor) -> None:
        state = _state_of(self._backend, state_descriptor)
        if not isinstance(state, Merging):
            raise ProgramError(
                f"merge_partitioned_state({state_descriptor!r}): expected list, reducing or aggregating state."
            )
        state.merge_namespaces(self.window, self.merged_windows)

    def _note(self, name: str) -> Any:
        state = self._notes.get(name)
        if state is None:
            state = self._notes[name] = self._backend.value_state(ValueStateDescriptor(f"$trigger-{name}"))
        return state

    def get_note(self, name: str) -> Any:
        state = self._note(name)
        state.set_current_namespace(self.window)
        return state.value()

    def set_note(self, name: str, value: Any) -> None:
        state = self._note(name)
        state.set_current_namespace(self.window)
        state.update(value)

    def take_merged_notes(self, name: str) -> list[Any]:
        state = self._note(name)
        taken = []
        for window in self.merged_windows:
            state.set_current_namespace(window)
            value = state.value()
            if value is not None:
                taken.append(value)
                state.clear()
        return taken


@final
class AssignerContext(WindowAssigner.WindowAssignerContext):
    def __init__(self, backend: KeyedStateBackend, clock: Clock, runtime: RuntimeContext) -> None:
        self._clock = clock
        self._runtime = runtime
        self._count = backend.value_state(ValueStateDescriptor("$window-element-count"))

    def get_current_processing_time(self) -> int:
        return self._clock.now_ms()

    def get_runtime_context(self) -> RuntimeContext:
        return self._runtime

    def next_number(self) -> int:
        number: int = self._count.value() or 0
        self._count.update(number + 1)
        return number


@final
class EvictorContext(Evictor.EvictorContext):
    def __init__(self, timers: Timers, clock: Clock) -> None:
        self._timers = timers
        self._clock = clock

    def get_current_processing_time(self) -> int:
        return self._clock.now_ms()

    def get_current_watermark(self) -> int:
        return self._timers.current_watermark


@final
class FunctionContext(ProcessWindowFunction.Context[Any], ProcessAllWindowFunction.Context[Any]):
    """The context of process functions; ``window_now`` is the window that fires or goes."""

    def __init__(
        self,
        backend: KeyedStateBackend,
        timers: Timers,
        clock: Clock,
        runtime: RuntimeContext,
        *,
        merges: bool,
    ) -> None:
        self._backend = backend
        self._timers = timers
        self._clock = clock
        self._runtime = runtime
        self._merges = merges
        self.window_now: Any = None

    def window(self) -> Any:
        return self.window_now

    def current_processing_time(self) -> int:
        return self._clock.now_ms()

    def current_watermark(self) -> int:
        return self._timers.current_watermark

    def window_state(self) -> KeyedStateStore:
        if self._merges:
            raise ProgramError(
                "window_state() cannot be used with windows that merge (sessions): a window's state would have to be "
                "merged too. Use global_state()."
            )
        return NamespaceStateStore(self._backend, self.window_now)

    def global_state(self) -> KeyedStateStore:
        return self._runtime
