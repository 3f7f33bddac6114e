"""Records of both sides of a window join that lie in files of the local disk, by slice of time.

The records of a side and slice are sorted by partition of their key (``spilled_panes``), so whoever joins a window
reads it partition by partition, each side's records of a key in the order in which they came. Records for a slice in
files wait in memory for others. Which slices are in files is said elsewhere (``window_join_state``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Final, final

import numpy as np
import pyarrow as pa

from engine.core.arrow_arrays import arrow_of
from engine.operators.slice_records import SliceRecords
from engine.operators.spilled_panes import SpilledPanes, in_pieces
from engine.state.arrow_views import values_of

Array = np.ndarray[Any, Any]

__all__ = ["SpilledRecords"]

#: Up to when windows had fired, and origin (``slice_records``).
_Kind = tuple[int, int]
#: In files, before the records' own columns: event time, number by arrival.
_NUM_OWN: Final = 2
#: What a record takes beside its columns while a piece is joined: slot, order, number by arrival.
_BYTES_PER_ROW: Final = 40


@final
class SpilledRecords:
    """Of both sides. ``folder``: on a local disk; ``waiting_bytes_max``: of records that wait in memory; being written
    they need three times as much."""

    def __init__(self, num_partitions: int, folder: str, waiting_bytes_max: int) -> None:
        self._num_partitions = num_partitions
        self._files = [SpilledPanes(num_partitions, folder, waiting_bytes_max // 2) for _ in range(2)]
        self.clear()

    def clear(self) -> None:
        for files in self._files:
            files.clear()
        #: start → by side: (up to when windows had fired, origin) → number of the pane in the side's files
        self._panes: dict[int, tuple[dict[_Kind, int], dict[_Kind, int]]] = {}
        #: start → number by arrival of the last record
        self._last_arrivals: dict[int, int] = {}
        self._next_number = 0
        self._schemas: list[pa.Schema | None] = [None, None]
        #: rows that were ever held, by side, and their bytes
        self._held = [(0, 0), (0, 0)]

    def __contains__(self, start: int) -> bool:
        return start in self._panes

    def __bool__(self) -> bool:
        return bool(self._panes)

    def starts(self) -> list[int]:
        """Return the slices in order of time."""
        return sorted(self._panes)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(files.nbytes for files in self._files)

    @property
    def num_rows(self) -> int:
        return sum(files.num_rows for files in self._files)

    def fired_of(self, start: int) -> set[int]:
        """Return up to when windows of a slice's records had fired."""
        return {fired_ms for numbers in self._panes[start] for fired_ms, _ in numbers}

    def hold(self, side: int, start: int, some: SliceRecords, partitions: Array) -> None:
        """Keep records; the slice is in files from now on."""
        files = self._files[side]
        numbers = self._panes.setdefault(start, ({}, {}))[side]
        kind = some.fired_ms, some.origin
        if kind not in numbers:
            numbers[kind] = self._next_number
            files.add_pane(self._next_number)
            self._next_number += 1
        self._last_arrivals[start] = max(self._last_arrivals.get(start, -1), int(some.arrivals.max(initial=-1)))
        self._schemas[side] = some.columns.schema
        arrays = [arrow_of(some.times_ms), arrow_of(some.arrivals), *some.columns.columns]
        rows = pa.RecordBatch.from_arrays(arrays, names=[str(at) for at in range(len(arrays))])
        num_rows, nbytes = self._held[side]
        self._held[side] = num_rows + rows.num_rows, nbytes + rows.nbytes
        files.hold(numbers[kind], rows, partitions)

    def drop(self, starts: Iterable[int]) -> None:
        for start in starts:
            del self._last_arrivals[start]
            for files, numbers in zip(self._files, self._panes.pop(start), strict=True):
                files.drop(numbers.values())

    def last_arrival(self, start: int) -> int:
        return self._last_arrivals[start]

    # --- while an increment is restored

    def drop_origin(self, start: int, origin: int) -> None:
        """Forget what a former subtask had in a slice."""
        for files, numbers in zip(self._files, self._panes[start], strict=True):
            gone = [kind for kind in numbers if kind[1] == origin]
            files.drop(numbers.pop(kind) for kind in gone)
        if not any(self._panes[start]):
            self.drop([start])

    def note_fired(self, origin: int, watermark_ms: int) -> None:
        """The windows of all records of a former subtask have fired up to that time."""
        for panes in self._panes.values():
            for files, numbers in zip(self._files, panes, strict=True):
                for kind in [kind for kind in numbers if kind[1] == origin and kind[0] < watermark_ms]:
                    number, later = numbers.pop(kind), (watermark_ms, origin)
                    if later in numbers:
                        files.unite(numbers[later], number)
                    else:
                        numbers[later] = number

    def pieces_of(self, starts: Iterable[int], bytes_max: int, within: range | None = None) -> list[range]:
        """Return the partitions in pieces of which the records of these slices take about so much memory together."""
        return in_pieces(self.bytes_by_partition(starts), bytes_max, within or range(self._num_partitions))

    def bytes_by_partition(self, starts: Iterable[int]) -> Array:
        sizes = np.zeros(self._num_partitions, np.int64)
        starts = list(starts)
        for side, files in enumerate(self._files):
            numbers = itertools.chain.from_iterable(self._panes[start][side].values() for start in starts)
            num_rows, nbytes = self._held[side]
            sizes += files.rows_by_partition(numbers) * (nbytes // max(1, num_rows) + _BYTES_PER_ROW)
        return sizes

    def records_of(self, side: int, start: int, partitions: range) -> Iterator[SliceRecords]:
        """Yield what the side has of these partitions of a slice; those of a key in the order in which they came as far
        as their windows had fired up to the same time."""
        for (fired_ms, origin), number in self._panes[start][side].items():
            found = [rows.columns for rows in self._files[side].rows_of(number, partitions)]
            if found:
                rows = pa.concat_batches(found)
                columns = pa.RecordBatch.from_arrays(rows.columns[_NUM_OWN:], schema=self._schemas[side])
                times_ms, arrivals = (values_of(rows.column(at)) for at in range(_NUM_OWN))
                yield SliceRecords(columns, times_ms, arrivals, fired_ms, origin)
