"""The kinds of keyed state over rows of RocksDB, through the cache.

Value, reducing and aggregating state and everything that expires: one row a key and namespace, by the code of
``heap_states`` and ``ttl``. A list is one row for each run of elements that was appended, so that appending reads and
rewrites nothing; a map is one row an entry. Where rows are laid down: ``rocksdb_backend``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol, final

from engine.state.backend import VOID, NamespacedListState, NamespacedMapState
from engine.state.descriptors import StateDescriptor
from engine.state.heap_states import (
    MISSING,
    UNCHANGEABLE,
    HeapAggregatingState,
    HeapReducingState,
    HeapState,
    HeapValueState,
    KeyContext,
    Table,
)
from engine.state.rocksdb_cache import RowCache
from engine.state.ttl import TtlAggregatingState, TtlListState, TtlMapState, TtlReducingState, TtlValueState

__all__ = ["OTHERS", "ROCKS_STATES", "ROCKS_TTL_STATES", "ListCell", "RocksStore", "RocksTable"]

#: Elements that are kept in memory beside the rows; longer lists are read anew each time.
_ELEMENTS_KEPT_MAX: Final = 1024
#: Appended elements that wait at most.
_PENDING_MAX: Final = 256
#: A list in more rows than that is written again as one when it has been read.
_ROWS_MAX: Final = 16

#: In place of a map's key: the entries whose keys have no bytes of their own, together.
OTHERS: Final[Any] = object()


class RocksStore(Protocol):
    """What lists and maps ask of the backend beyond the cache."""

    def list_rows(self, row: Any) -> tuple[list[Any], int]:
        """Return the stored elements of a list and in how many rows they are."""
        ...

    def write_row(self, row: Any, value: Any) -> None: ...

    def map_entries(self, row: Any) -> list[tuple[Any, Any]]:
        """Return the stored entries of a map; write out before."""
        ...

    def can_encode(self, value: Any) -> bool: ...


@dataclass(slots=True, eq=False)
class RocksTable(Table):
    """One state. ``changed`` are places that stay empty: it makes the states tell of changes in place."""

    name: str = ""
    name_bytes: bytes = b""  #: as in keys of rows
    cache: Any = None  #: RowCache
    store: Any = None  #: RocksStore
    #: row from which the next look for expired ones begins
    cursor: bytes = b""


class RocksCell(HeapState):
    """The cell of the current key and namespace in the cache instead of in a dict."""

    _table: RocksTable

    def _get(self) -> Any:
        return self._table.cache.get((self._table, self._namespace, self._keys.current_key))

    def _put(self, cell: Any) -> None:
        self._table.cache.put((self._table, self._namespace, self._keys.current_key), cell)

    def _note_change(self) -> None:
        self._table.cache.touch((self._table, self._namespace, self._keys.current_key))

    def clear(self) -> None:
        self._table.cache.put((self._table, self._namespace, self._keys.current_key), MISSING)


class _RocksCleanup:
    """Expired rows are removed when changes are written, see the backend."""

    def clean_up(self) -> None:
        pass

    def _move_last(self) -> None:
        pass


class _RocksValueState(HeapValueState, RocksCell):
    pass


class _RocksReducingState(HeapReducingState, RocksCell):
    pass


class _RocksAggregatingState(HeapAggregatingState, RocksCell):
    pass


class _RocksTtlValueState(_RocksCleanup, TtlValueState, RocksCell):
    pass


class _RocksTtlReducingState(_RocksCleanup, TtlReducingState, RocksCell):
    pass


class _RocksTtlAggregatingState(_RocksCleanup, TtlAggregatingState, RocksCell):
    pass


class _RocksTtlListState(_RocksCleanup, TtlListState, RocksCell):
    pass


class _RocksTtlMapState(_RocksCleanup, TtlMapState, RocksCell):
    pass


@dataclass(slots=True)
class ListCell:
    """What the cache has of a list."""

    #: all of it, or None: not read, or too long to keep
    elements: list[Any] | None
    #: appended and not written yet
    pending: list[Any]
    #: the stored rows are void: they go before ``pending`` is written
    is_replaced: bool = False


@final
class _RocksListState(NamespacedListState):
    def __init__(self, keys: KeyContext, table: RocksTable, descriptor: StateDescriptor) -> None:
        self._keys = keys
        self._table = table
        self._cache: RowCache = table.cache
        self._descriptor = descriptor
        self._namespace: Any = VOID

    def set_current_namespace(self, namespace: Any) -> None:
        self._namespace = namespace

    def _row(self) -> Any:
        return (self._table, self._namespace, self._keys.current_key)

    def get(self) -> list[Any]:
        row = self._row()
        cell: ListCell = self._cache.get(row)
        if cell.elements is not None:
            return cell.elements.copy()
        stored, num_rows = ([], 0) if cell.is_replaced else self._table.store.list_rows(row)
        elements = stored + cell.pending
        if num_rows > _ROWS_MAX:
            cell.pending, cell.is_replaced = elements.copy(), True
            self._cache.put(row, cell)
        if len(elements) <= _ELEMENTS_KEPT_MAX:
            cell.elements = elements.copy()
        return elements

    def add(self, value: Any) -> None:
        self.add_all((value,))

    def add_all(self, values: Iterable[Any]) -> None:
        row = self._row()
        cell: ListCell = self._cache.get(row)
        size = len(cell.pending)
        cell.pending += values
        if len(cell.pending) == size:
            return
        if cell.elements is not None:
            cell.elements += cell.pending[size:]
            if len(cell.elements) > _ELEMENTS_KEPT_MAX:
                cell.elements = None
        self._cache.put(row, cell)
        if len(cell.pending) > _PENDING_MAX:
            self._table.store.write_row(row, cell)

    def update(self, values: Iterable[Any]) -> None:
        elements = list(values)
        kept = elements.copy() if len(elements) <= _ELEMENTS_KEPT_MAX else None
        self._cache.put(self._row(), ListCell(kept, elements, True))

    def clear(self) -> None:
        self._cache.put(self._row(), ListCell([], [], True))

    def merge_namespaces(self, target: Any, sources: Iterable[Any]) -> None:
        current = self._namespace
        merged: list[Any] = []
        for source in sources:
            if source != target:
                self._namespace = source
                found = self.get()
                if found:
                    merged += found
                    self.clear()
        self._namespace = target
        self.add_all(merged)
        self._namespace = current

    def __repr__(self) -> str:
        return f"<list state {self._descriptor.name!r}>"


@final
class _RocksMapState(NamespacedMapState):
    def __init__(self, keys: KeyContext, table: RocksTable, descriptor: StateDescriptor) -> None:
        self._keys = keys
        self._table = table
        self._cache: RowCache = table.cache
        self._descriptor = descriptor
        self._namespace: Any = VOID

    def set_current_namespace(self, namespace: Any) -> None:
        self._namespace = namespace

    def _row(self, map_key: Any) -> Any:
        return (self._table, self._namespace, self._keys.current_key, map_key)

    def _is_other(self, map_key: Any) -> bool:
        return type(map_key) is not str and type(map_key) is not int and not self._table.store.can_encode(map_key)

    def _others(self) -> dict[Any, Any]:
        found = self._cache.get(self._row(OTHERS))
        return {} if found is MISSING else found

    def _find(self, map_key: Any) -> Any:
        if self._is_other(map_key):
            return self._others().get(map_key, MISSING)
        row = self._row(map_key)
        value = self._cache.get(row)
        if type(value) not in UNCHANGEABLE and value is not MISSING:
            self._cache.touch(row)
        return value

    def get(self, key: Any) -> Any:
        value = self._find(key)
        return None if value is MISSING else value

    def contains(self, key: Any) -> bool:
        return self._find(key) is not MISSING

    def put(self, key: Any, value: Any) -> None:
        if self._is_other(key):
            self._cache.put(self._row(OTHERS), {**self._others(), key: value})
        else:
            self._cache.put(self._row(key), value)

    def put_all(self, dict_value: Any) -> None:
        for key, value in dict_value.items() if hasattr(dict_value, "items") else dict_value:
            self.put(key, value)

    def remove(self, key: Any) -> None:
        if self._is_other(key):
            others = self._others().copy()
            others.pop(key, None)
            self._cache.put(self._row(OTHERS), others or MISSING)
        else:
            self._cache.put(self._row(key), MISSING)

    def items(self) -> list[tuple[Any, Any]]:
        entries: list[tuple[Any, Any]] = self._table.store.map_entries(self._row(OTHERS)[:3])
        return entries

    def keys(self) -> list[Any]:
        return [key for key, _ in self.items()]

    def values(self) -> list[Any]:
        return [value for _, value in self.items()]

    def is_empty(self) -> bool:
        return not self.items()

    def clear(self) -> None:
        for key in self.keys():
            self.remove(key)

    def __repr__(self) -> str:
        return f"<map state {self._descriptor.name!r}>"


ROCKS_STATES: Final[dict[str, Any]] = {
    "value": _RocksValueState,
    "reducing": _RocksReducingState,
    "aggregating": _RocksAggregatingState,
    "list": _RocksListState,
    "map": _RocksMapState,
}
ROCKS_TTL_STATES: Final[dict[str, Any]] = {
    "value": _RocksTtlValueState,
    "reducing": _RocksTtlReducingState,
    "aggregating": _RocksTtlAggregatingState,
    "list": _RocksTtlListState,
    "map": _RocksTtlMapState,
}
