"""What operators on keyed streams share: the key of each record, keyed state, and state of one namespace for users."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, final

from engine.operators.base import OperatorContext
from engine.operators.bound_function import BoundFunction
from engine.operators.failure import user_error
from engine.operators.functions import KeyedStateStore
from engine.operators.keys import FieldKey, key_error, key_function
from engine.state.backend import KeyedStateBackend
from engine.state.descriptors import (
    AggregatingStateDescriptor,
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    ValueStateDescriptor,
)
from engine.state.heap_backend import HeapKeyedStateBackend
from engine.state.states import AggregatingState, ListState, MapState, ReducingState, ValueState

__all__ = ["Keys", "NamespaceStateStore", "last_row", "open_keyed_state"]


def open_keyed_state(ctx: OperatorContext) -> KeyedStateBackend:
    """Return the keyed state of an operator; from now on its RuntimeContext gives it out to the user's function."""
    runtime_context = ctx.runtime_context
    backend = HeapKeyedStateBackend(ctx.clock, runtime_context.get_max_number_of_parallel_subtasks())
    runtime_context._keyed_state = backend
    return backend


def last_row(rows: list[Any], remaining: Iterator[Any]) -> Any:
    """Return the row that ``remaining = iter(rows)`` gave last."""
    return rows[len(rows) - operator.length_hint(remaining) - 1]


@final
class Keys:
    """A key selector inside an operator: opened, closed, and its failures told from those of the function."""

    def __init__(self, selector: Any) -> None:
        self._selector = selector
        self._function: BoundFunction | None = None
        if callable(selector) and isinstance(selector, FieldKey):
            self._call = key_function(selector)
        else:
            self._function = BoundFunction(selector, "get_key")
            self._call = key_function(selector)
        self._operator_name = ""

    def open(self, ctx: OperatorContext) -> None:
        self._operator_name = ctx.operator_name
        if self._function is not None:
            self._function.open(ctx)

    def close(self) -> None:
        if self._function is not None:
            self._function.close()

    def of(self, rows: list[Any]) -> list[Any]:
        call = self._call
        remaining = iter(rows)
        try:
            return [call(row) for row in remaining]
        except BaseException as error:
            row = last_row(rows, remaining)
            seen = key_error(error, self._selector, row)
            raise user_error(seen, operator_name=self._operator_name, record=row) from seen

    def check(self, key: Any, row: Any) -> None:
        """Raise UserCodeError when the key cannot be looked up (a list, a dict…)."""
        try:
            hash(key)
        except TypeError as error:
            seen = TypeError(
                f"{key!r:.80} of type {type(key).__name__} cannot be a key: it is not hashable. "
                "Return a str, number, bytes or a tuple of these from the key selector."
            )
            raise user_error(seen, operator_name=self._operator_name, record=row) from error


@final
class NamespaceStateStore(KeyedStateStore):
    """Keyed state in one namespace, e.g. of a window: what ``window_state()`` returns."""

    def __init__(self, backend: KeyedStateBackend, namespace: Any) -> None:
        self._backend = backend
        self.namespace = namespace

    def _here(self, state: Any) -> Any:
        state.set_current_namespace(self.namespace)
        return state

    def get_state(self, state_descriptor: ValueStateDescriptor) -> ValueState:
        state: ValueState = self._here(self._backend.value_state(state_descriptor))
        return state

    def get_list_state(self, state_descriptor: ListStateDescriptor) -> ListState:
        state: ListState = self._here(self._backend.list_state(state_descriptor))
        return state

    def get_map_state(self, state_descriptor: MapStateDescriptor) -> MapState:
        state: MapState = self._here(self._backend.map_state(state_descriptor))
        return state

    def get_reducing_state(self, state_descriptor: ReducingStateDescriptor) -> ReducingState:
        state: ReducingState = self._here(self._backend.reducing_state(state_descriptor))
        return state

    def get_aggregating_state(self, state_descriptor: AggregatingStateDescriptor) -> AggregatingState:
        state: AggregatingState = self._here(self._backend.aggregating_state(state_descriptor))
        return state
