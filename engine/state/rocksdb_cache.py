"""Rows of RocksDB as Python objects: a write-behind cache, so that hot keys cost a dict access and no pickling.

What was used of late is in the young generation; when that is full it becomes the old one, and what has not been used
since is forgotten. Changed rows are written in batches. How many rows fit is estimated from the size of those that
were pickled, as Python does not say what an object takes.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from typing import Any, Final, final

from engine.state.heap_states import MISSING

__all__ = ["RowCache"]

#: Changed rows that wait at most: what a checkpoint has to write while the task stands still, some ms.
_DIRTY_MAX: Final = 2048
#: Values of one key that a program may hold and change in place at the same time.
_LOANED_MAX: Final = 512
#: What an object in memory takes more than its pickle, and what a row takes besides.
_OBJECT_FACTOR: Final = 4
_ROW_BYTES: Final = 500
_ROWS_MIN: Final = 32
#: Every so many writes the value is pickled to see how large it is.
_SAMPLE_EVERY: Final = 64

_ABSENT: Final = object()


@final
class RowCache:
    """``load``: row → value or MISSING; ``write``: takes (row, value or MISSING) of changed rows; ``is_in_use``: may
    the program hold a row's value now. A row is any hashable value."""

    def __init__(
        self,
        size_bytes: int,
        load: Callable[[Any], Any],
        write: Callable[[Iterable[tuple[Any, Any]]], None],
        is_in_use: Callable[[Any], bool],
    ) -> None:
        self._size_bytes = size_bytes
        self._load = load
        self._write = write
        self._is_in_use = is_in_use
        self._young: dict[Any, Any] = {}
        self._old: dict[Any, Any] = {}
        self._dirty: set[Any] = set()
        #: rows that are known not to be stored: a window that comes and goes between two writes costs nothing
        self._unstored: set[Any] = set()
        #: given out and perhaps changed in place any time while they are in use: they stay dirty and in the cache
        self._loaned: set[Any] = set()
        self._mean_bytes = 100.0
        self._num_puts = 0
        self._young_max = self._dirty_max = _ROWS_MIN
        self._resize()

    def _resize(self) -> None:
        rows_max = int(self._size_bytes / (_OBJECT_FACTOR * self._mean_bytes + _ROW_BYTES))
        self._young_max = max(_ROWS_MIN, rows_max // 2)
        self._dirty_max = min(_DIRTY_MAX, self._young_max)

    def get(self, row: Any) -> Any:
        value = self._young.get(row, _ABSENT)
        if value is not _ABSENT:
            return value
        value = self._old.get(row, _ABSENT)
        if value is _ABSENT:
            value = self._load(row)
            if value is MISSING:
                self._unstored.add(row)
        self._keep(row, value)
        return value

    def peek(self, row: Any) -> Any:
        """Return the value of a row that is in the cache, without making it younger."""
        value = self._young.get(row, _ABSENT)
        return self._old[row] if value is _ABSENT else value

    def put(self, row: Any, value: Any) -> None:
        """Set a value; MISSING removes it."""
        self._num_puts += 1
        if not self._num_puts % _SAMPLE_EVERY or self._num_puts < _ROWS_MIN:
            self._measure(value)
        self._dirty.add(row)
        self._keep(row, value)
        if len(self._dirty) - len(self._loaned) > self._dirty_max:
            self.write_out()

    def touch(self, row: Any) -> None:
        """The value that ``get`` gave is changed in place, or may be until the row is no longer in use."""
        if len(self._loaned) >= _LOANED_MAX:
            self._loaned.clear()
        self._loaned.add(row)
        self.put(row, self.get(row))

    def _keep(self, row: Any, value: Any) -> None:
        self._young[row] = value
        if len(self._young) > self._young_max:
            self.write_out()
            self._old, self._young = self._young, {row: self._young[row] for row in self._loaned if row in self._young}
            self._unstored = {row for row in self._unstored if row in self._old}

    def _measure(self, value: Any) -> None:
        if value is MISSING:
            return
        try:
            self.note_size(len(pickle.dumps(value, 5)))
        except Exception:  # will be told with its state and key when it is written
            return
        self._resize()

    def note_size(self, size_bytes: int) -> None:
        """A value took so many bytes."""
        # Growth is believed at once, since what it is about is not to run out of memory.
        weight = 0.5 if size_bytes > self._mean_bytes else 0.05
        self._mean_bytes += weight * (size_bytes - self._mean_bytes)

    def write_out(self) -> None:
        """Write what has changed; it stays in the cache."""
        if not self._dirty:
            return
        dirty, self._dirty = self._dirty, set()
        changed = []
        for row in dirty:
            value = self.peek(row)
            if value is not MISSING:
                self._unstored.discard(row)
            elif row in self._unstored:
                continue
            else:
                self._unstored.add(row)
            changed.append((row, value))
        self._write(changed)
        self._loaned = {row for row in self._loaned if self._is_in_use(row)}
        self._dirty |= self._loaned
        self._resize()

    def clear(self) -> None:
        """Forget everything, changes too."""
        self._young, self._old = {}, {}
        self._dirty, self._unstored, self._loaned = set(), set(), set()

    def __len__(self) -> int:
        return len(self._young) + len(self._old)
