"""Records of an interval join that lie in files of the local disk, sorted so that pairs are found by merging.

A segment has records of one side that came one after the other, in order of a number made from the hash of their key
(``HashPartitions.codes_of_rows``), those of a number in order of arrival; it is never changed. To find the partners of
some records, which are sorted in the same way, both are gone through side by side: of what lies in files the numbers
and times are read, in sequence, and of records only those that are partners. Equal numbers are equal keys but for
chance, so keys are compared in the end. Not here: which segments there are (``spilling_intervals``).
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import pyarrow as pa

from engine.core.arrow_arrays import arrow_of
from engine.core.records import BATCH_ROWS_MAX
from engine.operators.column_join import TIME_LIMIT_MS
from engine.operators.join_kernels import pairs_of_codes
from engine.state.arrow_views import values_of
from engine.state.batch_files import write_batches
from engine.state.slot_table import SlotTable
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS

Array = np.ndarray[Any, Any]

__all__ = ["FoundPairs", "PairFinder", "Removals", "Segment", "portions", "sorted_segment", "written"]

#: Pairs that are in memory at once, with their records.
_PAIRS_MAX: Final = 1 << 16
#: In files, behind the records' own columns: code, event time, number by arrival.
_NUM_OWN: Final = 3
#: What a record takes beside its columns.
_BYTES_PER_ROW: Final = 24


@final
@dataclass(slots=True, eq=False)
class Segment:
    """``codes``: rising; ``arrivals``: the order in which they came, of a code rising; ``floor_ms``: those with event
    times up to it are gone; ``mapping``: of the file, None = in memory."""

    columns: pa.RecordBatch
    codes: Array
    times_ms: Array
    arrivals: Array
    mapping: mmap.mmap | None = None
    floor_ms: int = TIME_MIN_MS
    #: of times: the first, one that nine of ten are not behind, and the last
    spread_ms: tuple[int, int, int] = (TIME_MAX_MS, TIME_MIN_MS, TIME_MIN_MS)
    last_arrival: int = -1

    def __post_init__(self) -> None:
        if self.times_ms.size:
            place = self.times_ms.size * 9 // 10
            most_ms = np.partition(self.times_ms, place)[place]
            self.spread_ms = int(self.times_ms.min()), int(most_ms), int(self.times_ms.max())
            self.last_arrival = int(self.arrivals.max())

    @property
    def num_rows(self) -> int:
        return int(self.times_ms.size)

    @property
    def nbytes(self) -> int:
        return int(self.columns.nbytes) + _BYTES_PER_ROW * self.num_rows

    def between(self, codes: tuple[int, int]) -> tuple[int, int]:
        """Return the first of the rows with codes in this range, and the one behind them."""
        begin, end = np.searchsorted(self.codes, np.array(codes, np.uint64)).tolist()
        return begin, end

    def let_go(self) -> None:
        """What has been read need not be resident."""
        if self.mapping is not None:
            self.mapping.madvise(mmap.MADV_DONTNEED)

    def is_gone(self) -> bool:
        return self.spread_ms[2] <= self.floor_ms

    def is_mostly_gone(self) -> bool:
        """Whether nine of ten records are gone, and the others may stay for long."""
        first, most, last = self.spread_ms
        return most <= self.floor_ms and last - self.floor_ms > most - first


def sorted_segment(columns: Sequence[pa.RecordBatch], codes: Array, times_ms: Array, arrivals: Array) -> Segment:
    """Return a segment in memory of records in order of arrival."""
    order = np.argsort(codes, kind="stable")
    taken = pa.concat_batches(columns).take(arrow_of(order))
    return Segment(taken, codes[order], times_ms[order], arrivals[order])


def written(segment: Segment, folder: str) -> Segment:
    """Return the same segment in a file. Raises: ExternalError."""
    own = [arrow_of(array) for array in (segment.codes, segment.times_ms, segment.arrivals)]
    arrays = [*segment.columns.columns, *own]
    rows = pa.RecordBatch.from_arrays(arrays, names=[str(at) for at in range(len(arrays))])
    (batch,), mapping = write_batches([rows], folder, "records of a join")
    columns = pa.RecordBatch.from_arrays(batch.columns[:-_NUM_OWN], schema=segment.columns.schema)
    codes, times_ms, arrivals = (values_of(column) for column in batch.columns[-_NUM_OWN:])
    # Not made anew, which would read the file.
    segment.columns, segment.codes, segment.times_ms, segment.arrivals = columns, codes, times_ms, arrivals
    segment.mapping = mapping
    return segment


@final
class Removals:
    """What watermarks have removed, in their order: records of a side that came before number ``marks[side]``, with
    event times up to ``floors_ms[side]``. The last one stays in force for what comes."""

    def __init__(self, uppers_ms: tuple[int, int]) -> None:
        """``uppers_ms``: how far the latest partner of a record is behind it, by side; 0 at least."""
        self._uppers_ms = uppers_ms
        self._at: list[int] = []
        self._marks: list[tuple[int, int]] = []
        self._floors_ms: list[tuple[int, int]] = []

    def add(self, arrival: int, watermark_ms: int, marks: tuple[int, int] | None = None) -> None:
        """A watermark comes before the record of this number."""
        self._at.append(arrival)
        self._marks.append(marks or (arrival, arrival))
        self._floors_ms.append(self.floors_at(watermark_ms))

    def floors_at(self, watermark_ms: int) -> tuple[int, int]:
        """Return up to which event times a watermark removes records, by side."""
        watermark_ms = max(watermark_ms, -TIME_LIMIT_MS)
        return watermark_ms - self._uppers_ms[0], watermark_ms - self._uppers_ms[1]

    def take(self) -> Removals:
        """Return all that there are, and keep the last one only."""
        taken = Removals(self._uppers_ms)
        taken._at, taken._marks, taken._floors_ms = self._at, self._marks, self._floors_ms
        self._at, self._marks, self._floors_ms = self._at[-1:], self._marks[-1:], self._floors_ms[-1:]
        return taken

    def of_partners(self, side: int, arrivals: Array) -> tuple[Array, Array]:
        """Return mark and floor of the partners, which are of that side, of records with these numbers."""
        places = np.searchsorted(np.array(self._at, np.int64), arrivals, side="right")
        marks = np.array([0, *(marks[side] for marks in self._marks)], np.int64)
        floors_ms = np.array([TIME_MIN_MS, *(floors[side] for floors in self._floors_ms)], np.int64)
        return marks[places], floors_ms[places]

    def now(self, side: int, arrival: int = TIME_MAX_MS) -> tuple[int, int]:
        """Return the mark and the floor that are in force, or were when the record of this number came."""
        (mark,), (floor_ms,) = self.of_partners(side, np.array([arrival]))
        return int(mark), int(floor_ms)


@dataclass(frozen=True, slots=True)
class _Hits:
    """Rows of a segment and their partners in one of the other side."""

    side: int
    rows: tuple[Segment, Array]
    partners: tuple[Segment, Array]


@final
@dataclass(frozen=True, slots=True)
class FoundPairs:
    """Records of both sides, and which of them are the pairs, in order."""

    sides: tuple[pa.RecordBatch, pa.RecordBatch]
    times_ms: tuple[Array, Array]
    order: Array


@final
class PairFinder:
    """Finds the partners of ``sought`` among ``kept``, by side, those of each record in order of arrival, as far as
    they came before it and are there still. ``key_columns``: of some records of a side, to be compared."""

    def __init__(
        self,
        sought: Sequence[tuple[int, Segment]],
        kept: tuple[Sequence[Segment], Sequence[Segment]],
        bounds: tuple[tuple[int, int], tuple[int, int]],
        removals: Removals,
        key_columns: Callable[[int, pa.RecordBatch], list[pa.Array]],
        kinds: Sequence[pa.DataType],
    ) -> None:
        self._sought = sought
        self._kept = kept
        self._bounds = bounds
        self._removals = removals
        self._key_columns = key_columns
        self._kinds = kinds
        self._out = np.empty(_PAIRS_MAX, np.int64), np.empty(_PAIRS_MAX, np.int64)

    def cuts(self, rows: int) -> list[tuple[int, int]]:
        """Return ranges of codes that are all there are, with about so many of the sought records each."""
        codes = np.sort(np.concatenate([segment.codes for _, segment in self._sought]))
        edges = np.unique(codes[::rows]).tolist()
        return list(zip(edges, [*edges[1:], int(codes[-1]) + 1], strict=True))

    def pairs_of(self, codes: tuple[int, int]) -> Iterator[FoundPairs]:
        """Yield the pairs of records with codes in a range, those of a key in order of the later record."""
        yield from self._pairs_of(codes, (0, TIME_MAX_MS))
        for segment in (segment for side in self._kept for segment in side):
            segment.let_go()

    def _pairs_of(self, codes: tuple[int, int], arrived: tuple[int, int]) -> Iterator[FoundPairs]:
        if (hits := self._hits(codes, arrived)) is not None:
            if hits and (found := self._found(hits)) is not None:
                yield found
            return
        # Too many at once: half of the keys, or of a single key half of the records, or of a single one bit by bit.
        edges = self._halves(codes, arrived)
        if edges is None:
            for portion in self._portions(codes, arrived):
                if (found := self._found([portion])) is not None:
                    yield found
            return
        for half in edges:
            yield from self._pairs_of(*half)

    def _halves(
        self, codes: tuple[int, int], arrived: tuple[int, int]
    ) -> list[tuple[tuple[int, int], tuple[int, int]]] | None:
        inside, numbers = [], []
        for _, segment in self._sought:
            part = slice(*segment.between(codes))
            is_in = (segment.arrivals[part] >= arrived[0]) & (segment.arrivals[part] < arrived[1])
            inside.append(segment.codes[part][is_in])
            numbers.append(segment.arrivals[part][is_in])
        own, arrivals = np.sort(np.concatenate(inside)), np.sort(np.concatenate(numbers))
        if own[0] != own[-1]:
            middle = int(max(own[own.size // 2], own[np.searchsorted(own, own[0], side="right")]))
            return [((codes[0], middle), arrived), ((middle, codes[1]), arrived)]
        if own.size == 1:
            return None
        at = int(arrivals[arrivals.size // 2])
        return [(codes, (arrived[0], at)), (codes, (at, arrived[1]))]

    def _hits(self, codes: tuple[int, int], arrived: tuple[int, int]) -> list[_Hits] | None:
        """Return what is found, None = more than there is room for."""
        found, num = [], 0
        for hits in self._portions(codes, arrived):
            num += hits.rows[1].size
            if num > _PAIRS_MAX:
                return None
            found.append(hits)
        return found

    def _portions(self, codes: tuple[int, int], arrived: tuple[int, int]) -> Iterator[_Hits]:
        for side, segment in self._sought:
            begin, end = segment.between(codes)
            if begin == end:
                continue
            part = slice(begin, end)
            arrivals = segment.arrivals[part]
            gone = self._removals.of_partners(1 - side, arrivals)
            rows = segment.codes[part], segment.times_ms[part], arrivals, *gone
            first_ms, _, last_ms = segment.spread_ms
            lower, upper = self._bounds[side]
            for other in self._kept[1 - side]:
                if other.spread_ms[2] < first_ms + lower or other.spread_ms[0] > last_ms + upper:
                    continue
                for own, partners in self._merged(rows, other, codes, self._bounds[side], arrived):
                    yield _Hits(side, (segment, begin + own), (other, partners))

    def _merged(
        self, rows: tuple[Array, ...], other: Segment, codes: tuple[int, int], bounds: tuple[int, int], arrived: Any
    ) -> Iterator[tuple[Array, Array]]:
        begin, end = other.between(codes)
        if begin == end:
            return
        part = slice(begin, end)
        partners = other.codes[part], other.times_ms[part], other.arrivals[part]
        at = 0, 0, -1
        while at[0] < rows[0].size:
            *reached, num = pairs_of_codes(rows, partners, at, bounds, arrived, other.floor_ms, *self._out)
            at = reached[0], reached[1], reached[2]
            if num:
                yield self._out[0][:num].copy(), begin + self._out[1][:num]

    def _found(self, hits: list[_Hits]) -> FoundPairs | None:
        """Return the hits whose keys are equal, in order; None = there are none."""
        columns: tuple[list[pa.RecordBatch], list[pa.RecordBatch]] = [], []
        times_ms: tuple[list[Array], list[Array]] = [], []
        for some in hits:
            for side, (segment, rows) in ((some.side, some.rows), (1 - some.side, some.partners)):
                columns[side].append(segment.columns.take(arrow_of(rows)))
                times_ms[side].append(segment.times_ms[rows])
        sides = pa.concat_batches(columns[0]), pa.concat_batches(columns[1])
        table = SlotTable(list(self._kinds))
        left, right = (table.slots_of(self._key_columns(side, own)) for side, own in enumerate(sides))
        numbers = np.concatenate([some.rows[0].arrivals[some.rows[1]] for some in hits])
        order = np.argsort(numbers, kind="stable")
        order = order[(left == right)[order]]
        return (
            FoundPairs(sides, (np.concatenate(times_ms[0]), np.concatenate(times_ms[1])), order) if order.size else None
        )


def portions(found: FoundPairs) -> Iterator[Array]:
    """Yield the pairs batch by batch."""
    for at in range(0, found.order.size, BATCH_ROWS_MAX):
        yield found.order[at : at + BATCH_ROWS_MAX]
