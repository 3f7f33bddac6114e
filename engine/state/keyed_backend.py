"""What backends of keyed state share: the current key, and which descriptor may ask for which kind of state.

Not here: where values are kept (``heap_backend``, ``rocksdb_backend``).
"""

from __future__ import annotations

import abc
from typing import Any, Final

from engine.core.errors import ProgramError
from engine.state.backend import (
    NamespacedAggregatingState,
    NamespacedListState,
    NamespacedMapState,
    NamespacedReducingState,
    NamespacedValueState,
)
from engine.state.descriptors import (
    AggregatingStateDescriptor,
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    StateDescriptor,
    ValueStateDescriptor,
)
from engine.state.heap_states import MISSING, Table
from engine.state.key_groups import canonical_key
from engine.state.key_types import KeyTypes

__all__ = ["KeyedBackend", "check_kind"]

#: Of tuples, floats… remembered so that they are not searched for NaN again; some MB.
_CANONICAL_KEYS_MAX: Final = 1 << 16
#: Keys of these types are what they are.
_ASSIGNED: Final = frozenset((str, int))


def check_kind(table: Table, descriptor: StateDescriptor, owner: str) -> None:
    """Raises: ProgramError when the state is known as another kind of state."""
    if table.kind == descriptor.kind:
        return
    if table.descriptor is None:
        raise ProgramError(
            f"{owner}: state {descriptor.name!r} was a {table.kind} state when the checkpoint was taken, and this "
            f"version of the program asks for a {descriptor.kind} state of that name: give the new one another name."
        )
    raise ProgramError(
        f"State {descriptor.name!r} is a {table.kind} state and cannot be a {descriptor.kind} state as well: "
        "give one of them another name."
    )


class KeyedBackend(abc.ABC):
    """Base of the implementations of ``backend.KeyedStateBackend``. ``owner``: whose state it is, for messages.
    ``key_types``: who watches the keys after a restore; by default they are watched. ``is_own``: what is restored was
    written by the same program: nobody looks at its types, as values that were changed in place may be of others."""

    def __init__(self, owner: str, key_types: KeyTypes | None = None, *, is_own: bool = False) -> None:
        self._owner = owner
        self._is_own = is_own
        self._key_types = key_types or KeyTypes(owner)
        #: what is to be told of each record: expiring states that clean up then, by name, and a restore under way
        self._cleaned: dict[Any, Any] = {}
        #: keys seen of late that need no second look; a NaN that is not the canonical one is never found in it
        self._canonical: set[Any] = set()
        self.key_or_none: Any = MISSING

    # --- the key ---------------------------------------------------------------------------------------------------

    @property
    def key_types(self) -> KeyTypes:
        """For operators that work on many keys at once, without ``set_current_key``."""
        return self._key_types

    @property
    def current_key(self) -> Any:
        key = self.key_or_none
        if key is MISSING:
            raise ProgramError(
                "Keyed state was used where there is no current key. Use it in the methods that process a record of "
                "a keyed stream or fire a timer; open() may only get the state, not read or write it."
            )
        return key

    def set_current_key(self, key: Any) -> None:
        kind = type(key)
        if kind is not str and kind is not int:
            try:
                if key not in self._canonical:
                    key = self._new_canonical(key)
            except TypeError as error:
                raise ProgramError(
                    f"{key!r:.80} of type {kind.__name__} cannot be a key: it is not hashable. "
                    "Return a str, number, bytes or a tuple of these from the key selector."
                ) from error
        if self._key_types.is_open:
            self._key_types.see(key)
        self.key_or_none = key
        for state in self._cleaned.values():
            state.clean_up()

    def may_assign(self, keys: list[Any]) -> bool:
        """Whether ``set_current_key`` of each of these would only set ``key_or_none``: then whoever goes through them
        may do that itself, which costs a tenth."""
        return not self._cleaned and not self._key_types.is_open and _ASSIGNED.issuperset(map(type, keys))

    def _new_canonical(self, key: Any) -> Any:
        if len(self._canonical) >= _CANONICAL_KEYS_MAX:
            self._canonical.clear()
        key = canonical_key(key)
        self._canonical.add(key)
        return key

    def clear_current_key(self) -> None:
        self.key_or_none = MISSING

    # --- states ----------------------------------------------------------------------------------------------------

    def value_state(self, descriptor: ValueStateDescriptor) -> NamespacedValueState:
        return self._state(descriptor, ValueStateDescriptor)  # type: ignore[no-any-return]

    def list_state(self, descriptor: ListStateDescriptor) -> NamespacedListState:
        return self._state(descriptor, ListStateDescriptor)  # type: ignore[no-any-return]

    def map_state(self, descriptor: MapStateDescriptor) -> NamespacedMapState:
        return self._state(descriptor, MapStateDescriptor)  # type: ignore[no-any-return]

    def reducing_state(self, descriptor: ReducingStateDescriptor) -> NamespacedReducingState:
        return self._state(descriptor, ReducingStateDescriptor)  # type: ignore[no-any-return]

    def aggregating_state(self, descriptor: AggregatingStateDescriptor) -> NamespacedAggregatingState:
        return self._state(descriptor, AggregatingStateDescriptor)  # type: ignore[no-any-return]

    def _state(self, descriptor: StateDescriptor, expected: type[StateDescriptor]) -> Any:
        if not isinstance(descriptor, expected):
            raise ProgramError(
                f"A {expected.kind} state wants a {expected.__name__}, got {descriptor!r} "
                f"of type {type(descriptor).__name__}."
            )
        return self._make(descriptor)

    @abc.abstractmethod
    def _make(self, descriptor: StateDescriptor) -> Any:
        """Return a state object. Raises ProgramError when the name is known as another kind of state."""
