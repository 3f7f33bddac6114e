"""Keyed state in memory: tables, the current key, snapshots by key group. The states themselves: ``heap_states``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final

from engine.core.clock import Clock
from engine.core.errors import ProgramError
from engine.state.backend import (
    VOID,
    NamespacedAggregatingState,
    NamespacedListState,
    NamespacedMapState,
    NamespacedReducingState,
    NamespacedValueState,
)
from engine.state.chunks import dump_chunk, load_chunk
from engine.state.descriptors import (
    AggregatingStateDescriptor,
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    StateDescriptor,
    StateVisibility,
    ValueStateDescriptor,
)
from engine.state.heap_states import (
    MISSING,
    HeapAggregatingState,
    HeapListState,
    HeapMapState,
    HeapReducingState,
    HeapValueState,
    Spaces,
)
from engine.state.key_groups import canonical_key, key_group_of
from engine.state.ttl import TTL_STATES, stamped, unexpired, unstamped

__all__ = ["HeapKeyedStateBackend"]

_STATES: Final[dict[str, Any]] = {
    "value": HeapValueState,
    "list": HeapListState,
    "map": HeapMapState,
    "reducing": HeapReducingState,
    "aggregating": HeapAggregatingState,
}


#: Of tuples, floats… remembered so that they are not searched for NaN again; some MB.
_CANONICAL_KEYS_MAX: Final = 1 << 16


@dataclass
class _Table:
    """All values of one state."""

    kind: str
    has_ttl: bool
    spaces: Spaces = field(default_factory=dict)
    #: None for a restored table that nobody has asked for yet
    descriptor: StateDescriptor | None = None


@final
class HeapKeyedStateBackend:
    """Implements ``backend.KeyedStateBackend``. ``clock``: for values that expire."""

    def __init__(self, clock: Clock, max_parallelism: int) -> None:
        self._clock = clock
        self._max_parallelism = max_parallelism
        self._tables: dict[str, _Table] = {}
        #: expiring states that want to clean up with every record, by name
        self._cleaned: dict[str, Any] = {}
        #: keys seen of late that need no second look; a NaN that is not the canonical one is never found in it
        self._canonical: set[Any] = set()
        self.key_or_none: Any = MISSING

    # --- the key ---------------------------------------------------------------------------------------------------

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
        self.key_or_none = key
        for state in self._cleaned.values():
            state.clean_up()

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
        table = self._table_of(descriptor)
        if descriptor.ttl_config is None:
            return _STATES[descriptor.kind](self, table.spaces, descriptor)
        state = TTL_STATES[descriptor.kind](self, table.spaces, descriptor, self._clock)
        if state.cleans_every_record:
            self._cleaned.setdefault(descriptor.name, state)
        return state

    def _table_of(self, descriptor: StateDescriptor) -> _Table:
        has_ttl = descriptor.ttl_config is not None
        table = self._tables.get(descriptor.name)
        if table is None:
            table = self._tables[descriptor.name] = _Table(descriptor.kind, has_ttl, descriptor=descriptor)
            return table
        if table.kind != descriptor.kind:
            raise ProgramError(
                f"State {descriptor.name!r} is a {table.kind} state and cannot be a {descriptor.kind} state as well: "
                "give one of them another name."
            )
        if table.descriptor is None:
            self._adopt(table, has_ttl)
        elif table.has_ttl != has_ttl:
            raise ProgramError(
                f"State {descriptor.name!r} is used with and without a time to live: use one descriptor for it."
            )
        table.descriptor = descriptor
        return table

    def _adopt(self, table: _Table, has_ttl: bool) -> None:
        """The program now says whether a restored state expires: bring its cells into that form."""
        if table.has_ttl == has_ttl:
            return
        now_ms = self._clock.now_ms()
        for namespace, cells in list(table.spaces.items()):
            changed: dict[Any, Any] = OrderedDict() if has_ttl else {}
            for key, cell in cells.items():
                changed[key] = stamped(table.kind, cell, now_ms) if has_ttl else unstamped(table.kind, cell)
            table.spaces[namespace] = changed
        table.has_ttl = has_ttl

    def keys(self, state_name: str, namespace: Any = VOID) -> Iterator[Any]:
        table = self._tables.get(state_name)
        return iter(list(table.spaces.get(namespace, ())) if table is not None else [])

    # --- snapshots -------------------------------------------------------------------------------------------------

    def snapshot(self, key_groups: Iterable[int]) -> dict[int, bytes]:
        wanted = set(key_groups)
        #: group → state name → (kind, has_ttl, [(namespace, key, cell)])
        groups: dict[int, dict[str, tuple[str, bool, list[tuple[Any, Any, Any]]]]] = {}
        group_of_key: dict[Any, int] = {}
        for name, table in self._tables.items():
            for namespace, key, cell in self._kept(table):
                group = group_of_key.get(key, -1)
                if group < 0:
                    group = group_of_key[key] = key_group_of(key, self._max_parallelism)
                if group in wanted:
                    states = groups.setdefault(group, {})
                    states.setdefault(name, (table.kind, table.has_ttl, []))[2].append((namespace, key, cell))
        return {group: dump_chunk(states, f"keyed state {', '.join(states)}") for group, states in groups.items()}

    def _kept(self, table: _Table) -> Iterator[tuple[Any, Any, Any]]:
        """Return the cells that a snapshot of the table has."""
        config = None if table.descriptor is None else table.descriptor.ttl_config
        if config is not None:
            hidden = config.state_visibility is StateVisibility.NeverReturnExpired
            if not hidden and not config.cleanup_strategies.full_snapshot:
                config = None
        now_ms = self._clock.now_ms() if config is not None else 0
        for namespace, cells in table.spaces.items():
            for key, cell in cells.items():
                kept = cell if config is None else unexpired(table.kind, cell, config, now_ms)
                if kept is not MISSING:
                    yield namespace, key, kept

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        for data in chunks.values():
            for name, (kind, has_ttl, entries) in load_chunk(data).items():
                table = self._tables.setdefault(name, _Table(kind, has_ttl))
                for namespace, key, cell in entries:
                    cells = table.spaces.get(namespace)
                    if cells is None:
                        cells = table.spaces[namespace] = OrderedDict() if has_ttl else {}
                    cells[canonical_key(key)] = cell
