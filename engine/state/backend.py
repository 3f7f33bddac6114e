"""The contract of keyed state: what operators ask of whatever keeps it. Implementations: ``heap_backend``,
``rocksdb_backend``.

A state is found by (state name, namespace, key). The key is the backend's current one; the namespace is the state
object's own: window operators set it to the window, everybody else leaves it at ``VOID``. Two state objects of one
descriptor see the same values, each through its own namespace. So a window's state and the state that a user's
function has of its RuntimeContext never meet.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator
from typing import Any, Final, Protocol

from engine.state.descriptors import (
    AggregatingStateDescriptor,
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    ValueStateDescriptor,
)
from engine.state.states import AggregatingState, ListState, MapState, ReducingState, ValueState

__all__ = [
    "VOID",
    "KeyedStateBackend",
    "Merging",
    "Namespaced",
    "NamespacedAggregatingState",
    "NamespacedListState",
    "NamespacedMapState",
    "NamespacedReducingState",
    "NamespacedValueState",
]

#: The namespace of state that belongs to no window.
VOID: Final = None


class Namespaced(abc.ABC):
    @abc.abstractmethod
    def set_current_namespace(self, namespace: Any) -> None:
        """Mean another namespace from now on: a hashable, picklable value, e.g. a window."""


class Merging(Namespaced):
    @abc.abstractmethod
    def merge_namespaces(self, target: Any, sources: Iterable[Any]) -> None:
        """Of the current key: add what the sources hold to the target (lists joined, accumulators merged, values
        reduced, in the order of the sources) and forget the sources. The current namespace does not change."""


class NamespacedValueState(ValueState, Namespaced): ...


class NamespacedMapState(MapState, Namespaced): ...


class NamespacedListState(ListState, Merging): ...


class NamespacedReducingState(ReducingState, Merging): ...


class NamespacedAggregatingState(AggregatingState, Merging): ...


class KeyedStateBackend(Protocol):
    """Keyed state of one operator in one subtask. Used by one thread. How it is snapshotted: ``parts``.

    Raises (all methods that give out a state): ProgramError when the name is known as another kind of state.
    Raises (all methods of states): ProgramError when there is no current key.
    """

    @property
    def current_key(self) -> Any:
        """The key that states mean, canonical. Raises ProgramError when there is none."""
        ...

    #: the current key without the check; a value that is in no table when there is none
    key_or_none: Any

    def set_current_key(self, key: Any) -> None: ...

    def may_assign(self, keys: list[Any]) -> bool:
        """Whether ``set_current_key`` of each of these would do no more than set ``key_or_none``."""
        ...

    def clear_current_key(self) -> None:
        """From now on no key is meant, e.g. in ``open`` or for a broadcast element: state is refused."""
        ...

    def value_state(self, descriptor: ValueStateDescriptor) -> NamespacedValueState: ...

    def list_state(self, descriptor: ListStateDescriptor) -> NamespacedListState: ...

    def map_state(self, descriptor: MapStateDescriptor) -> NamespacedMapState: ...

    def reducing_state(self, descriptor: ReducingStateDescriptor) -> NamespacedReducingState: ...

    def aggregating_state(self, descriptor: AggregatingStateDescriptor) -> NamespacedAggregatingState: ...

    def keys(self, state_name: str, namespace: Any = VOID) -> Iterator[Any]:
        """Return the keys that have a value in a state; the state may be changed meanwhile."""
        ...

    def close(self) -> None:
        """Give back files and memory."""
        ...
