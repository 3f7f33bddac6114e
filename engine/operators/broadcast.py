"""A stream, keyed or not, beside a broadcast stream whose elements every subtask keeps as broadcast state.

Input 0 is the stream, input 1 the broadcast one. The two contexts differ: only broadcast elements may change broadcast
state, only keyed records have a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from engine.core.errors import ProgramError
from engine.core.records import Batch, rows_of
from engine.core.type_info import TypeInformation
from engine.operators.base import Operator, OperatorContext, OperatorSpec, Output
from engine.operators.process import OperatorTimerService, ProcessContext, ProcessInput, ProcessOperator
from engine.state.backend import KeyedStateBackend
from engine.state.descriptors import MapStateDescriptor
from engine.state.operator_state import OperatorStateStore, ReadOnlyView
from engine.state.states import BroadcastState, ReadOnlyBroadcastState

__all__ = ["BroadcastProcessSpec"]


@final
@dataclass(frozen=True)
class BroadcastProcessSpec(OperatorSpec):
    """A (Keyed)BroadcastProcessFunction. ``descriptors``: the broadcast states, as declared with ``broadcast(...)``."""

    function: Any
    descriptors: tuple[MapStateDescriptor, ...]
    key_selector: Any = None
    output_type: TypeInformation | None = None
    num_inputs = 2

    def build(self) -> Operator:
        return _BroadcastOperator(self.function, self.descriptors, self.key_selector, self.output_type)

    def describe(self) -> str:
        return "interpreted (it is called for each record)"


class _BroadcastStates:
    """The declared broadcast states by name."""

    def __init__(self, descriptors: tuple[MapStateDescriptor, ...], store: OperatorStateStore) -> None:
        self._states = {descriptor.name: store.get_broadcast_state(descriptor) for descriptor in descriptors}

    def of(self, descriptor: Any) -> BroadcastState:
        if not isinstance(descriptor, MapStateDescriptor):
            raise ProgramError(f"get_broadcast_state({descriptor!r}): expected a MapStateDescriptor.")
        if descriptor.name not in self._states:
            raise ProgramError(
                f"There is no broadcast state {descriptor.name!r}; declared with broadcast(...): "
                f"{', '.join(map(repr, self._states))}."
            )
        return self._states[descriptor.name]


@final
class _ReadOnlyContext(ProcessContext):
    """For records of the stream and timers."""

    def __init__(
        self, timer_service: OperatorTimerService, backend: KeyedStateBackend | None, states: _BroadcastStates
    ) -> None:
        super().__init__(timer_service, backend)
        self._states = states

    def get_broadcast_state(self, state_descriptor: MapStateDescriptor) -> ReadOnlyBroadcastState:
        return ReadOnlyView(self._states.of(state_descriptor))


@final
class _WritableContext:
    """For elements of the broadcast stream."""

    def __init__(self, timer_service: OperatorTimerService, states: _BroadcastStates) -> None:
        self._timer_service = timer_service
        self._states = states
        self.now_at: int | None = None

    def get_broadcast_state(self, state_descriptor: MapStateDescriptor) -> BroadcastState:
        return self._states.of(state_descriptor)

    def timestamp(self) -> int | None:
        return self.now_at

    def current_processing_time(self) -> int:
        return self._timer_service.current_processing_time()

    def current_watermark(self) -> int:
        return self._timer_service.current_watermark()


@final
class _BroadcastOperator(ProcessOperator):
    def __init__(
        self,
        function: Any,
        descriptors: tuple[MapStateDescriptor, ...],
        key_selector: Any,
        output_type: TypeInformation | None,
    ) -> None:
        inputs = (ProcessInput("process_element", key_selector), ProcessInput("process_broadcast_element"))
        super().__init__(function, inputs, output_type)
        self._descriptors = descriptors

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        states = _BroadcastStates(self._descriptors, ctx.state.operator_states())
        self._process_ctx = _ReadOnlyContext(self._timer_service, self._backend, states)
        self._writable_ctx = _WritableContext(self._timer_service, states)

    def process_batch(self, input_index: int, batch: Batch) -> None:
        if input_index == 0:
            super().process_batch(0, batch)
            return
        if self._backend is not None:
            self._backend.clear_current_key()
        rows = rows_of(batch)
        self._process_unkeyed(self._calls[1], self._writable_ctx, rows.rows, rows.timestamps_ms)
        self._results.flush()
