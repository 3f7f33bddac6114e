"""Event-time windows, tumbling or sliding, one accumulator a key, on rows: the quick way through ``operators/window``.

A window fires for all its keys at once and is gone then, so which timers there are follows from what the windows hold:
none is kept, they are told when a checkpoint asks (``TimerService.implied``). State is that of ``window_contents``,
cell by cell: a checkpoint does not know which way its windows went. Not here: triggers, lateness, evictors, RocksDB.
"""

from __future__ import annotations

import functools
import linecache
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.errors import EngineError
from engine.operators.window_contents import AggregateFold, Fold
from engine.operators.window_slices import Slices, slices_of
from engine.state.heap_states import Table
from engine.state.key_groups import canonical_key
from engine.state.timers import Timer
from engine.time.assigners import RegularWindows
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS

if TYPE_CHECKING:
    from engine.state.heap_backend import HeapKeyedStateBackend

__all__ = ["WindowCells"]

#: window's key → (accumulator,)
Cells = dict[Any, Any]


@final
class WindowCells:
    """``table``: of the windows' contents, in which window → key → (accumulator,). Rate: 0.2 us a record on top of the
    key selector and the fold, a third of it the look-ups in large dicts."""

    def __init__(
        self, table: Table, backend: HeapKeyedStateBackend, assigner: RegularWindows, fold: Fold, refuse: Any
    ) -> None:
        self._table = table
        self._spaces = table.spaces
        self._backend = backend
        self._assigner = assigner
        self._fold = fold
        #: called with a record that has no event time: raises
        self._refuse: Callable[[Any, int], Any] = refuse
        is_aggregate = isinstance(fold, AggregateFold)
        self._add = fold.given.add if isinstance(fold, AggregateFold) else fold.add
        slices = slices_of(assigner)
        assert slices is not None, assigner
        self._slices = slices
        is_single = slices.slice_ms == slices.size_ms
        self._loop = _loop(is_aggregate, is_single, self._slices)
        self._cells_at = self._single_at if is_single else self._several_at
        #: slice of time → cells of its windows, of those that are in use; None = it is late for all of them
        self._memo: dict[int, Any] = {}
        #: event time of the first window that is going to fire
        self.next_ms = min(map(_last_ms, self._spaces), default=TIME_MAX_MS + 1)

    # --- records -----------------------------------------------------------------------------------------------------

    def take_up(
        self, keys: list[Any], rows: list[Any], stamps: list[int], watermark_ms: int, late: Callable[..., None]
    ) -> None:
        """Add each record to its windows; ``late(row, stamp)`` is called with those that no window
        takes.

        Raises: UserCodeError of the fold, ProgramError for a key that cannot be one.
        """
        key_types = self._backend.key_types
        if key_types.is_open:
            for key in keys:
                key_types.see(key)
                if not key_types.is_open:
                    break
        find = functools.partial(self._cells_at, watermark_ms)
        self._loop(keys, rows, stamps, self._memo, find, self._begin, late, self._add, self._blame)
        if self._table.changed is not None:
            self._note(keys, stamps, self._table.changed.spaced)

    def _single_at(self, watermark_ms: int, row: Any, stamp: int) -> Cells | None:
        found = self._several_at(watermark_ms, row, stamp)
        return found[0] if found else None

    def _several_at(self, watermark_ms: int, row: Any, stamp: int) -> list[Cells] | None:
        """Return the cells of the windows that have this time; None: there are none, or none is alive."""
        if stamp == TIME_MIN_MS:
            self._refuse(row, stamp)
        windows = [window for window in self._assigner.windows_of(stamp) if _last_ms(window) > watermark_ms]
        return [self._cells_of(window) for window in windows] or None

    def _cells_of(self, window: Any) -> Cells:
        cells = self._spaces.get(window)
        if cells is None:
            cells = self._spaces[window] = {}
            self.next_ms = min(self.next_ms, _last_ms(window))
        return cells

    def _begin(self, cells: Cells, key: Any, row: Any) -> None:
        """Take up a record whose key was not found."""
        key = canonical_key(key)
        held = cells.get(key)
        cells[key] = (self._fold.first(row) if held is None else self._fold.add(held[0], row),)

    def _blame(self, error: BaseException, key: Any, row: Any) -> BaseException:
        if isinstance(error, EngineError):
            return error
        if isinstance(error, TypeError):
            self._backend.set_current_key(key)  # says it when the key is not hashable
        return self._fold.error(error, row)

    def _note(self, keys: list[Any], stamps: list[int], changed: set[tuple[Any, Any]]) -> None:
        slice_ms, offset_ms = self._slices.slice_ms, self._slices.offset_ms
        windows_of = self._assigner.windows_of
        memo: dict[int, list[Any]] = {}
        for key, stamp in zip(keys, stamps, strict=True):
            at = (stamp - offset_ms) // slice_ms
            if at not in memo:
                memo[at] = [window for window in windows_of(stamp) if window in self._spaces]
            for window in memo[at]:
                changed.add((window, canonical_key(key)))

    # --- time --------------------------------------------------------------------------------------------------------

    def due(self, watermark_ms: int) -> Iterator[tuple[Any, Cells]]:
        """Take out the windows that fire by this watermark, in order of time; each is there until the next is asked
        for."""
        if watermark_ms < self.next_ms:
            return
        self._memo.clear()
        for window in sorted((w for w in self._spaces if _last_ms(w) <= watermark_ms), key=lambda w: (_last_ms(w), w)):
            yield window, self._spaces[window]
            self._forget(window)
        self.next_ms = min(map(_last_ms, self._spaces), default=TIME_MAX_MS + 1)

    def _forget(self, window: Any) -> None:
        cells = self._spaces.pop(window)
        table = self._table
        if table.changed is not None:
            table.changed.spaced.update((window, key) for key in cells)
            if len(table.changed) > table.changed_max and table.give_up is not None:
                table.give_up()

    def put(self, window: Any, key: Any, accumulator: Any) -> None:
        """Merge in what another operator has held of a window until now."""
        self._backend.set_current_key(key)
        key = self._backend.current_key
        cells = self._cells_of(window)
        held = cells.get(key)
        cells[key] = (accumulator if held is None else self._fold.merge(held[0], accumulator),)
        if self._table.changed is not None:
            self._table.changed.add(window, key)

    def timers(self) -> Iterable[Timer]:
        """Return the timers that follow from what the windows hold."""
        return ((_last_ms(window), key, window) for window, cells in self._spaces.items() for key in cells)

    @staticmethod
    def implies(timers: Iterable[Timer]) -> bool:
        """Return whether these timers are such that follow from what their windows hold."""
        return all(time_ms == _last_ms(window) for time_ms, _, window in timers)

    def num_timers(self) -> int:
        return sum(map(len, self._spaces.values()))


def _last_ms(window: Any) -> int:
    return window.max_timestamp()  # type: ignore[no-any-return]


# --- the code -------------------------------------------------------------------------------------------------------


_SINGLE: Final = """\
def loop(keys, rows, stamps, memo, find, begin, late, add, blame):
    key = row = None
    try:
        for key, row, stamp in zip(keys, rows, stamps, strict=True):
            try:
                cells = memo[SLICE]
            except KeyError:
                cells = memo[SLICE] = find(row, stamp)
            if cells is None:
                late(row, stamp)
                continue
            try:
                held = cells[key]
            except KeyError:
                begin(cells, key, row)
            else:
                cells[key] = (ADD,)
    except BaseException as error:
        raise blame(error, key, row) from error
"""
_SEVERAL: Final = """\
def loop(keys, rows, stamps, memo, find, begin, late, add, blame):
    key = row = None
    try:
        for key, row, stamp in zip(keys, rows, stamps, strict=True):
            try:
                found = memo[SLICE]
            except KeyError:
                found = memo[SLICE] = find(row, stamp)
            if found is None:
                late(row, stamp)
                continue
            for cells in found:
                try:
                    held = cells[key]
                except KeyError:
                    begin(cells, key, row)
                else:
                    cells[key] = (ADD,)
    except BaseException as error:
        raise blame(error, key, row) from error
"""


@functools.lru_cache(64)
def _loop(is_aggregate: bool, is_single: bool, slices: Slices) -> Callable[..., None]:
    """Return the loop, with the fold's own function called in the order of its arguments, not through another one."""
    shifted = f"(stamp - {slices.offset_ms})" if slices.offset_ms else "stamp"
    source = (_SINGLE if is_single else _SEVERAL).replace("SLICE", f"{shifted} // {slices.slice_ms}")
    source = source.replace("ADD", "add(row, held[0])" if is_aggregate else "add(held[0], row)")
    # In the engine's folder, so that no traceback takes it for a user's file.
    file_name = f"{__file__}:{slices} {'aggregate' if is_aggregate else 'reduce'}{'' if is_single else ' sliding'}"
    linecache.cache[file_name] = (len(source), None, source.splitlines(keepends=True), file_name)
    names: dict[str, Any] = {"__name__": __name__}  # a profile names the module of each function
    exec(compile(source, file_name, "exec"), names)
    loop: Callable[..., None] = names["loop"]
    return loop
