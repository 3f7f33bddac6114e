"""State of an operator that belongs to no key: lists that are dealt out anew on rescale, and broadcast maps.

In memory; ``snapshot`` and ``restore`` are values, ``redistribute`` is a pure function of all subtasks' snapshots.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, final

from engine.core.errors import ProgramError
from engine.core.type_info import TypeInformation
from engine.state.chunks import dump_chunk, load_chunk
from engine.state.declared_types import check_restored, hold
from engine.state.descriptors import ListStateDescriptor, MapStateDescriptor, StateDescriptor
from engine.state.states import BroadcastState, ListState, ReadOnlyBroadcastState

__all__ = ["OperatorStateSnapshot", "OperatorStateStore", "ReadOnlyView", "Redistribution", "redistribute"]


class Redistribution(enum.Enum):
    """Who gets which elements when the parallelism changes."""

    SPLIT = "split"  #: each element goes to one subtask, evenly
    UNION = "union"  #: every subtask gets all elements
    BROADCAST = "broadcast"  #: every subtask had and gets the same map


@final
class OperatorListState(ListState):
    def __init__(self) -> None:
        self.elements: list[Any] = []
        self.declared: TypeInformation | None = None

    def get(self) -> list[Any]:
        return self.elements.copy()

    def add(self, value: Any) -> None:
        self.elements.append(value)

    def add_all(self, values: Iterable[Any]) -> None:
        self.elements += values

    def update(self, values: Iterable[Any]) -> None:
        self.elements = list(values)

    def clear(self) -> None:
        self.elements = []


@final
class HeapBroadcastState(BroadcastState):
    def __init__(self) -> None:
        self.entries: dict[Any, Any] = {}
        self.declared: TypeInformation | None = None

    def get(self, key: Any) -> Any:
        return self.entries.get(key)

    def contains(self, key: Any) -> bool:
        return key in self.entries

    def put(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def put_all(self, dict_value: Any) -> None:
        self.entries.update(dict_value)

    def remove(self, key: Any) -> None:
        self.entries.pop(key, None)

    def clear(self) -> None:
        self.entries.clear()

    # Copies: the map may be changed while what they return is iterated.

    def items(self) -> list[tuple[Any, Any]]:
        return list(self.entries.items())

    def keys(self) -> list[Any]:
        return list(self.entries)

    def values(self) -> list[Any]:
        return list(self.entries.values())

    def is_empty(self) -> bool:
        return not self.entries


@final
class ReadOnlyView(ReadOnlyBroadcastState):
    """A broadcast state that may be read only: a subtask that changed it alone would differ from the others."""

    def __init__(self, state: BroadcastState) -> None:
        self._state = state

    def get(self, key: Any) -> Any:
        return self._state.get(key)

    def contains(self, key: Any) -> bool:
        return self._state.contains(key)

    def items(self) -> Iterable[tuple[Any, Any]]:
        return self._state.items()

    def keys(self) -> Iterable[Any]:
        return self._state.keys()

    def values(self) -> Iterable[Any]:
        return self._state.values()

    def is_empty(self) -> bool:
        return self._state.is_empty()

    def _refuse(self, *args: Any) -> NoReturn:
        raise ProgramError(
            "Broadcast state can only be read here. Change it in process_broadcast_element(), which every subtask "
            "runs on the same elements."
        )

    put = put_all = remove = clear = __setitem__ = __delitem__ = _refuse


@dataclass(frozen=True)
class OperatorStateSnapshot:
    """Name → how it is redistributed, and its elements (pickled one by one) or its map (one pickle)."""

    states: dict[str, tuple[Redistribution, list[bytes]]] = field(default_factory=dict)


@final
class OperatorStateStore:
    """The operator states of one operator in one subtask. ``owner``: whose they are, for messages, if what is restored
    has to be looked at: another version of the program may have written it."""

    def __init__(self, owner: str = "") -> None:
        self._owner = owner
        self._states: dict[str, tuple[Redistribution, OperatorListState | HeapBroadcastState]] = {}

    def get_list_state(self, descriptor: ListStateDescriptor) -> ListState:
        return self._state(descriptor, ListStateDescriptor, Redistribution.SPLIT)  # type: ignore[return-value]

    def get_union_list_state(self, descriptor: ListStateDescriptor) -> ListState:
        return self._state(descriptor, ListStateDescriptor, Redistribution.UNION)  # type: ignore[return-value]

    def get_broadcast_state(self, state_descriptor: MapStateDescriptor) -> BroadcastState:
        state = self._state(state_descriptor, MapStateDescriptor, Redistribution.BROADCAST)
        return state  # type: ignore[return-value]

    def _state(
        self, descriptor: StateDescriptor, expected: type[StateDescriptor], mode: Redistribution
    ) -> OperatorListState | HeapBroadcastState:
        if not isinstance(descriptor, expected):
            raise ProgramError(f"{mode.value} state wants a {expected.__name__}, got {descriptor!r}.")
        if descriptor.ttl_config is not None:
            raise ProgramError(f"Operator state {descriptor.name!r} cannot expire: time to live is for keyed state.")
        known = self._states.setdefault(descriptor.name, (mode, _empty(mode)))
        if known[0] is not mode:
            raise ProgramError(
                f"Operator state {descriptor.name!r} is a {known[0].value} state and cannot be a {mode.value} state."
            )
        state = known[1]
        if descriptor.type_info is not state.declared:  # else asked for again: functions do, for each record
            restored = state.elements if isinstance(state, OperatorListState) else state.entries
            if restored and self._owner and state.declared is None:
                check_restored(self._owner, descriptor, [restored])
            state.declared = descriptor.type_info
            hold(state, descriptor)
        return state

    def num_entries(self) -> int:
        """Of all lists and maps."""
        return sum(
            len(state.elements if isinstance(state, OperatorListState) else state.entries)
            for _, state in self._states.values()
        )

    def snapshot(self) -> OperatorStateSnapshot:
        states = {}
        for name, (mode, state) in self._states.items():
            what = f"Operator state {name!r}"
            if isinstance(state, OperatorListState):
                states[name] = (mode, [dump_chunk(element, what) for element in state.elements])
            else:
                states[name] = (mode, [dump_chunk(state.entries, what)])
        return OperatorStateSnapshot(states)

    def restore(self, snapshot: OperatorStateSnapshot) -> None:
        """Take up a snapshot, before the states are asked for or after."""
        for name, (mode, chunks) in snapshot.states.items():
            known_mode, state = self._states.setdefault(name, (mode, _empty(mode)))
            if known_mode is not mode:
                raise ProgramError(f"Operator state {name!r} was a {mode.value} state and is now {known_mode.value}.")
            if isinstance(state, OperatorListState):
                state.add_all(load_chunk(chunk, f"Operator state {name!r}") for chunk in chunks)
            else:
                for chunk in chunks:
                    state.put_all(load_chunk(chunk, f"Broadcast state {name!r}"))


def _empty(mode: Redistribution) -> OperatorListState | HeapBroadcastState:
    return HeapBroadcastState() if mode is Redistribution.BROADCAST else OperatorListState()


def redistribute(snapshots: Sequence[OperatorStateSnapshot], parallelism: int) -> list[OperatorStateSnapshot]:
    """Return what each of ``parallelism`` new subtasks restores from the snapshots of all old ones, in their order."""
    gathered: dict[str, tuple[Redistribution, list[bytes]]] = {}
    for snapshot in snapshots:
        for name, (mode, chunks) in snapshot.states.items():
            known_mode, known = gathered.setdefault(name, (mode, []))
            assert known_mode is mode, f"{name}: {known_mode} and {mode} in one checkpoint"
            if mode is not Redistribution.BROADCAST or not known:
                known += chunks
    dealt: list[OperatorStateSnapshot] = []
    for subtask in range(parallelism):
        states: dict[str, tuple[Redistribution, list[bytes]]] = {}
        for name, (mode, chunks) in gathered.items():
            if mode is Redistribution.SPLIT:
                # Consecutive ranges, as for key groups: what was together stays together.
                start, end = (len(chunks) * part // parallelism for part in (subtask, subtask + 1))
                states[name] = (mode, chunks[start:end])
            else:
                states[name] = (mode, list(chunks))
        dealt.append(OperatorStateSnapshot(states))
    return dealt
