"""The kinds of keyed state over tables in memory: namespace → key → cell.

A cell is the value (value, reducing), the accumulator (aggregating), a list or a dict. Values that expire stand in
``ttl``; tables, current key and snapshots in ``heap_backend``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import field
from typing import Any, Final, Protocol

from engine.core.late_dataclass import dataclass
from engine.state.backend import (
    VOID,
    NamespacedAggregatingState,
    NamespacedListState,
    NamespacedMapState,
    NamespacedReducingState,
    NamespacedValueState,
)
from engine.state.descriptors import AggregatingStateDescriptor, ReducingStateDescriptor, StateDescriptor

__all__ = [
    "MISSING",
    "RECENT_CELLS_MIN",
    "UNCHANGEABLE",
    "HeapAggregatingState",
    "HeapListState",
    "HeapMapState",
    "HeapReducingState",
    "HeapState",
    "HeapValueState",
    "KeyContext",
    "Places",
    "Spaces",
    "Table",
]

MISSING: Final[Any] = object()

#: namespace → key → cell
Spaces = dict[Any, dict[Any, Any]]

#: Values of these types cannot be changed behind the state's back; all others count as changed when they were read.
UNCHANGEABLE: Final = frozenset((str, int, float, bool, bytes, tuple, type(None)))

#: Kinds of state whose cells are replaced with each write. Of the others a cell is changed in place: its key is noted.
_REPLACED: Final = frozenset(("value", "reducing", "aggregating"))
#: Tables with fewer cells note each key: they would settle after every few writes.
RECENT_CELLS_MIN: Final = 4096
#: What was overwritten is kept until a table settles: so many cells at most, or fewer in a small table.
_RECENT_MAX: Final = 8192
_RECENT_SHARE: Final = 1 / 16
_RECENT_MIN: Final = int(RECENT_CELLS_MIN * _RECENT_SHARE)


@dataclass(slots=True, eq=False)
class Places:
    """What was written or removed in some time. Nearly all state has but one namespace, and a dict takes up a key in a
    quarter of the time in which a set takes up a pair."""

    #: of the namespace VOID; all values are None
    keys: dict[Any, None] = field(default_factory=dict)
    #: (namespace, key) of the others
    spaced: set[tuple[Any, Any]] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.keys) + len(self.spaced)

    def add(self, namespace: Any, key: Any) -> None:
        if namespace is VOID:
            self.keys[key] = None
        else:
            self.spaced.add((namespace, key))

    def update(self, other: Places) -> None:
        self.keys.update(other.keys)
        self.spaced.update(other.spaced)


@dataclass(slots=True, eq=False)
class Table:
    """All values of one state."""

    kind: str
    has_ttl: bool
    spaces: Spaces = field(default_factory=dict)
    #: None for a restored table that nobody has asked for yet
    descriptor: StateDescriptor | None = None
    #: what was written or removed in this epoch; None = nobody asks (no increments)
    changed: Places | None = None
    #: called when removals have made ``changed`` larger than this
    changed_max: int = 0
    give_up: Callable[[], None] | None = None
    #: Cells of the namespace VOID that were written of late, and are not in ``spaces`` yet: noting each key beside the
    #: write would be one more look-up, 60 to 110 ns. None = cells are written to ``spaces`` at once. Whoever reads
    #: ``spaces`` as a whole has the table settle before.
    recent: dict[Any, Any] | None = None
    #: called when ``recent`` is larger than this
    recent_max: int = 0

    def begin_recent(self) -> None:
        """An epoch begins: decide whether cells are collected in ``recent``."""
        self.settle()
        num_cells = len(self.spaces.get(VOID, ()))
        if self.has_ttl or self.kind not in _REPLACED or num_cells < RECENT_CELLS_MIN:
            self.recent = None  # cells that expire lie in the order of their last touch
            return
        self.recent = {}
        self.recent_max = max(_RECENT_MIN, min(int(num_cells * _RECENT_SHARE), _RECENT_MAX))

    def settle(self) -> None:
        """Put what was written of late in its place, and note its keys. 0.1 to 0.2 us a cell."""
        recent = self.recent
        if not recent:
            return
        cells = self.spaces.get(VOID)
        if cells is None:
            cells = self.spaces[VOID] = {}
        cells.update(recent)
        if self.changed is not None:
            self.changed.keys.update(dict.fromkeys(recent))
        recent.clear()

    def end_recent(self) -> None:
        self.settle()
        self.recent = None


class KeyContext(Protocol):
    """Who knows the current key."""

    #: the current key without the check; a value that is in no table when there is none
    key_or_none: Any

    @property
    def current_key(self) -> Any: ...


class HeapState:
    """The cell of the current key in the current namespace: read, written, forgotten."""

    def __init__(self, keys: KeyContext, table: Table, descriptor: StateDescriptor) -> None:
        self._keys = keys
        self._table = table
        self._spaces = table.spaces
        self._descriptor = descriptor
        self._namespace: Any = VOID

    @property
    def table(self) -> Table:
        """For operators whose loops would be slowed down by a state object; they note what they change."""
        return self._table

    def set_current_namespace(self, namespace: Any) -> None:
        self._namespace = namespace

    def _get(self) -> Any:
        """Return the cell or MISSING."""
        key, namespace = self._keys.key_or_none, self._namespace
        if namespace is VOID:
            recent = self._table.recent
            if recent:
                cell = recent.get(key, MISSING)
                if cell is not MISSING:
                    return cell
        cells = self._spaces.get(namespace)
        if cells is not None:
            try:
                return cells[key]
            except KeyError:
                pass
        self._keys.current_key  # noqa: B018 - raises when there is none
        return MISSING

    def _put(self, cell: Any) -> None:
        key = self._keys.key_or_none
        if key is MISSING:
            self._keys.current_key  # noqa: B018 - raises
        if self._namespace is VOID:
            recent = self._table.recent
            if recent is not None:
                recent[key] = cell
                if len(recent) > self._table.recent_max:
                    self._table.settle()
                return
        cells = self._spaces.get(self._namespace)
        if cells is None:
            cells = self._spaces[self._namespace] = self._new_cells()
        cells[key] = cell
        changed = self._table.changed
        if changed is not None:
            if self._namespace is VOID:
                changed.keys[key] = None
            else:
                changed.spaced.add((self._namespace, key))

    def _note_change(self) -> None:
        """The cell of the current key was changed in place, or may be."""
        changed = self._table.changed
        if changed is not None:
            changed.add(self._namespace, self._keys.key_or_none)

    def _new_cells(self) -> dict[Any, Any]:
        return {}

    def clear(self) -> None:
        key = self._keys.current_key
        if self._namespace is VOID and self._table.recent:
            self._table.recent.pop(key, None)
        cells = self._spaces.get(self._namespace)
        if cells is not None:
            cells.pop(key, None)
            if not cells:
                del self._spaces[self._namespace]
            changed = self._table.changed
            if changed is not None:
                self._note_removal(changed, key)

    def _note_removal(self, changed: Places, key: Any) -> None:
        changed.add(self._namespace, key)
        if len(changed) > self._table.changed_max and self._table.give_up is not None:
            self._table.give_up()

    def _take_of(self, namespaces: Iterable[Any]) -> list[Any]:
        """Return the cells of the current key in other namespaces and forget them."""
        current = self._namespace
        taken = []
        for self._namespace in namespaces:
            cell = self._get()
            if cell is not MISSING:
                taken.append(cell)
                self.clear()
        self._namespace = current
        return taken

    def merge_namespaces(self, target: Any, sources: Iterable[Any]) -> None:
        taken = self._take_of(source for source in sources if source != target)
        if not taken:
            return
        current, self._namespace = self._namespace, target
        merged = self._get()
        for cell in taken:
            merged = cell if merged is MISSING else self._merged(merged, cell)
        self._put(merged)
        self._namespace = current

    def _merged(self, first: Any, second: Any) -> Any:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{self._descriptor.kind} state {self._descriptor.name!r}>"


class HeapValueState(HeapState, NamespacedValueState):
    def value(self) -> Any:
        cell = self._get()
        if cell is MISSING:
            return None
        if self._table.changed is not None and type(cell) not in UNCHANGEABLE:
            self._note_change()
        return cell

    def update(self, value: Any) -> None:
        if value is None:
            self.clear()
        else:
            self._put(value)


class HeapReducingState(HeapState, NamespacedReducingState):
    def __init__(self, keys: KeyContext, table: Table, descriptor: ReducingStateDescriptor) -> None:
        super().__init__(keys, table, descriptor)
        self._reduce = descriptor.reducer()

    def get(self) -> Any:
        cell = self._get()
        return None if cell is MISSING else cell

    def add(self, value: Any) -> None:
        cell = self._get()
        self._put(value if cell is MISSING else self._reduce(cell, value))

    def _merged(self, first: Any, second: Any) -> Any:
        return self._reduce(first, second)


class HeapAggregatingState(HeapState, NamespacedAggregatingState):
    def __init__(self, keys: KeyContext, table: Table, descriptor: AggregatingStateDescriptor) -> None:
        super().__init__(keys, table, descriptor)
        self._function = descriptor.get_agg_function()

    def get(self) -> Any:
        cell = self._get()
        return None if cell is MISSING else self._function.get_result(cell)

    def add(self, value: Any) -> None:
        cell = self._get()
        self._put(self._function.add(value, self._function.create_accumulator() if cell is MISSING else cell))

    def _merged(self, first: Any, second: Any) -> Any:
        return self._function.merge(first, second)


class HeapListState(HeapState, NamespacedListState):
    def get(self) -> list[Any]:
        cell = self._get()
        if cell is MISSING:
            return []
        if self._table.changed is not None and cell and type(cell[0]) not in UNCHANGEABLE:
            self._note_change()
        return cell.copy()

    def add(self, value: Any) -> None:
        cell = self._get()
        if cell is MISSING:
            self._put([value])
        else:
            cell.append(value)
            self._note_change()

    def add_all(self, values: Iterable[Any]) -> None:
        added = list(values)
        cell = self._get()
        if cell is not MISSING:
            cell += added
            self._note_change()
        elif added:
            self._put(added)

    def update(self, values: Iterable[Any]) -> None:
        replaced = list(values)
        if replaced:
            self._put(replaced)
        else:
            self.clear()

    def _merged(self, first: Any, second: Any) -> Any:
        first += second
        return first


class HeapMapState(HeapState, NamespacedMapState):
    def get(self, key: Any) -> Any:
        cell = self._get()
        value = None if cell is MISSING else cell.get(key)
        if self._table.changed is not None and type(value) not in UNCHANGEABLE:
            self._note_change()
        return value

    def contains(self, key: Any) -> bool:
        cell = self._get()
        return cell is not MISSING and key in cell

    def put(self, key: Any, value: Any) -> None:
        cell = self._get()
        if cell is MISSING:
            self._put({key: value})
        else:
            cell[key] = value
            self._note_change()

    def put_all(self, dict_value: Any) -> None:
        for key, value in dict_value.items() if hasattr(dict_value, "items") else dict_value:
            self.put(key, value)

    def remove(self, key: Any) -> None:
        cell = self._get()
        if cell is not MISSING:
            cell.pop(key, None)
            if cell:
                self._note_change()
            else:
                self.clear()

    # Copies: the map may be changed while what they return is iterated.

    def items(self) -> list[tuple[Any, Any]]:
        cell = self._get()
        if cell is MISSING:
            return []
        items = list(cell.items())
        if self._table.changed is not None and items and type(items[0][1]) not in UNCHANGEABLE:
            self._note_change()
        return items

    def keys(self) -> list[Any]:
        return [key for key, _ in self.items()]

    def values(self) -> list[Any]:
        return [value for _, value in self.items()]

    def is_empty(self) -> bool:
        cell = self._get()
        return cell is MISSING or not cell
