"""Keyed state in memory whose values expire: each value, list element or map entry carries the time of its last touch.

An expired value is gone for its reader at once; its memory is given back when it is read, when it stands among the
oldest of its table at another access (incremental cleanup), or by being left out of a snapshot. Time is the clock's
wall time. Cells are kept in the order of their last touch, so cleanup looks at the oldest only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from engine.core.clock import Clock
from engine.state.descriptors import StateDescriptor, StateTtlConfig, StateVisibility, UpdateType
from engine.state.heap_states import (
    MISSING,
    HeapAggregatingState,
    HeapListState,
    HeapMapState,
    HeapReducingState,
    HeapState,
    HeapValueState,
    KeyContext,
    Table,
)

__all__ = [
    "TTL_STATES",
    "last_touch_ms",
    "stamped",
    "unexpired",
    "unstamped",
]

#: (value, wall time of its last touch)
Stamped = tuple[Any, int]


class _Expiring(HeapState):
    """What all expiring states share; cells are OrderedDicts by last touch."""

    def __init__(self, keys: KeyContext, table: Table, descriptor: StateDescriptor, clock: Clock) -> None:
        super().__init__(keys, table, descriptor)
        assert descriptor.ttl_config is not None
        config = descriptor.ttl_config
        self._now_ms: Callable[[], int] = clock.now_ms
        self._ttl_ms = config.ttl_ms
        self._touch_on_read = config.update_type is UpdateType.OnReadAndWrite
        self._shows_expired = config.state_visibility is StateVisibility.ReturnExpiredIfNotCleanedUp
        cleanup = config.cleanup_strategies.get_incremental_cleanup_strategy()
        self._cleanup_size = 0 if cleanup is None else cleanup.cleanup_size
        self.cleans_every_record = cleanup is not None and cleanup.run_cleanup_for_every_record

    def _new_cells(self) -> dict[Any, Any]:
        return OrderedDict()

    def _is_expired(self, stamp_ms: int) -> bool:
        return stamp_ms + self._ttl_ms <= self._now_ms()

    def _put(self, cell: Any) -> None:
        super()._put(cell)
        self._move_last()
        self.clean_up()

    def _move_last(self) -> None:
        cells: Any = self._spaces[self._namespace]
        cells.move_to_end(self._keys.current_key)

    def clean_up(self) -> None:
        """Remove the oldest cells that have expired as a whole, some at a time."""
        cells: Any = self._spaces.get(self._namespace)
        if not cells:
            return
        oldest_kept_ms = self._now_ms() - self._ttl_ms
        for _ in range(self._cleanup_size):
            key = next(iter(cells), MISSING)
            if key is MISSING or self._last_touch_ms(cells[key]) > oldest_kept_ms:
                break
            del cells[key]
            changed = self._table.changed
            if changed is not None:
                self._note_removal(changed, key)
        if not cells:
            del self._spaces[self._namespace]

    def _last_touch_ms(self, cell: Any) -> int:
        return int(cell[1])


class _ExpiringCell(_Expiring):
    """Value, reducing and aggregating state: the cell is (value, stamp); this strips and adds the stamp."""

    def _get(self) -> Any:
        cell = super()._get()
        if cell is MISSING:
            self.clean_up()
            return MISSING
        value, stamp_ms = cell
        if self._is_expired(stamp_ms):
            self.clear()
            return value if self._shows_expired else MISSING
        if self._touch_on_read:
            self._put(value)
        else:
            self.clean_up()
        return value

    def _put(self, cell: Any) -> None:
        super()._put((cell, self._now_ms()))


class TtlValueState(_ExpiringCell, HeapValueState):
    def __init__(self, keys: KeyContext, table: Table, descriptor: Any, clock: Clock) -> None:
        _Expiring.__init__(self, keys, table, descriptor, clock)


class TtlReducingState(_ExpiringCell, HeapReducingState):
    def __init__(self, keys: KeyContext, table: Table, descriptor: Any, clock: Clock) -> None:
        _Expiring.__init__(self, keys, table, descriptor, clock)
        self._reduce = descriptor.reducer()


class TtlAggregatingState(_ExpiringCell, HeapAggregatingState):
    def __init__(self, keys: KeyContext, table: Table, descriptor: Any, clock: Clock) -> None:
        _Expiring.__init__(self, keys, table, descriptor, clock)
        self._function = descriptor.get_agg_function()


class TtlListState(_Expiring, HeapListState):
    """Each element expires by itself: the cell is a list of (element, stamp), oldest touch first."""

    def __init__(self, keys: KeyContext, table: Table, descriptor: Any, clock: Clock) -> None:
        _Expiring.__init__(self, keys, table, descriptor, clock)

    def _last_touch_ms(self, cell: Any) -> int:
        return int(cell[-1][1])

    def _living(self) -> list[Stamped]:
        cell = self._get()
        if cell is MISSING:
            return []
        kept = [element for element in cell if not self._is_expired(element[1])]
        if len(kept) < len(cell):
            self._replace(kept)
        return cell if self._shows_expired else kept

    def _replace(self, elements: list[Stamped]) -> None:
        if elements:
            self._put(elements)
        else:
            self.clear()

    def get(self) -> list[Any]:
        living = self._living()
        if self._touch_on_read and living:
            now_ms = self._now_ms()
            self._replace([(value, now_ms) for value, stamp_ms in living if not self._is_expired(stamp_ms)])
        return [value for value, _ in living]

    def add(self, value: Any) -> None:
        self.add_all([value])

    def add_all(self, values: Iterable[Any]) -> None:
        now_ms = self._now_ms()
        added = [(value, now_ms) for value in values]
        if not added:
            return
        cell = self._get()
        if cell is MISSING:
            self._put(added)
            return
        expired = 0  # they stand at the front
        while expired < len(cell) and self._is_expired(cell[expired][1]):
            expired += 1
        del cell[:expired]
        cell += added
        self._put(cell)

    def update(self, values: Iterable[Any]) -> None:
        now_ms = self._now_ms()
        self._replace([(value, now_ms) for value in values])


class TtlMapState(_Expiring, HeapMapState):
    """Each entry expires by itself: the cell is an OrderedDict of key → (value, stamp), oldest touch first."""

    def __init__(self, keys: KeyContext, table: Table, descriptor: Any, clock: Clock) -> None:
        _Expiring.__init__(self, keys, table, descriptor, clock)

    def _last_touch_ms(self, cell: Any) -> int:
        return int(cell[next(reversed(cell))][1])

    def _find(self, key: Any) -> Any:
        """Return the value that a reader may see, or MISSING."""
        cell = self._get()
        entry = MISSING if cell is MISSING else cell.get(key, MISSING)
        if entry is MISSING:
            return MISSING
        value, stamp_ms = entry
        if self._is_expired(stamp_ms):
            self.remove(key)
            return value if self._shows_expired else MISSING
        if self._touch_on_read:
            TtlMapState.put(self, key, value)  # no user's write: nobody looks at the type again
        return value

    def get(self, key: Any) -> Any:
        value = self._find(key)
        return None if value is MISSING else value

    def contains(self, key: Any) -> bool:
        return self._find(key) is not MISSING

    def put(self, key: Any, value: Any) -> None:
        cell = self._get()
        if cell is MISSING:
            cell = OrderedDict()
        cell[key] = (value, self._now_ms())
        cell.move_to_end(key)
        for _ in range(self._cleanup_size):
            oldest = next(iter(cell))
            if not self._is_expired(cell[oldest][1]):
                break
            del cell[oldest]
        self._put(cell)

    def items(self) -> list[tuple[Any, Any]]:
        cell = self._get()
        if cell is MISSING:
            return []
        return [(key, value) for key in list(cell) if (value := self._find(key)) is not MISSING]

    def is_empty(self) -> bool:
        return not self.items()


TTL_STATES: dict[str, Callable[..., Any]] = {
    "value": TtlValueState,
    "reducing": TtlReducingState,
    "aggregating": TtlAggregatingState,
    "list": TtlListState,
    "map": TtlMapState,
}


# --- cells of tables that come and go ---------------------------------------------------------------------------------


def last_touch_ms(kind: str, cell: Any) -> int:
    """Return when something in a cell was touched last."""
    if kind == "list":
        return int(cell[-1][1])
    if kind == "map":
        return int(cell[next(reversed(cell))][1])
    return int(cell[1])


def unexpired(kind: str, cell: Any, config: StateTtlConfig, now_ms: int) -> Any:
    """Return what a snapshot keeps of a cell, or MISSING."""
    oldest_kept_ms = now_ms - config.ttl_ms
    if kind == "list":
        return [element for element in cell if element[1] > oldest_kept_ms] or MISSING
    if kind == "map":
        return OrderedDict((k, entry) for k, entry in cell.items() if entry[1] > oldest_kept_ms) or MISSING
    return cell if cell[1] > oldest_kept_ms else MISSING


def stamped(kind: str, cell: Any, now_ms: int) -> Any:
    """Return a cell of a state that had no time to live, as if written now."""
    if kind == "list":
        return [(value, now_ms) for value in cell]
    if kind == "map":
        return OrderedDict((key, (value, now_ms)) for key, value in cell.items())
    return (cell, now_ms)


def unstamped(kind: str, cell: Any) -> Any:
    """Return a cell of a state that has no time to live any more."""
    if kind == "list":
        return [value for value, _ in cell]
    if kind == "map":
        return {key: value for key, (value, _) in cell.items()}
    return cell[0]
