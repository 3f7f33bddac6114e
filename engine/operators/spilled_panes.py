"""What windows over columns hold in files of the local disk: by pane (slice of time) rows, sorted by partition of key.

Two kinds of rows: folded ones, one for each key, as a checkpoint has them, and records that wait, of which the newest
are still in memory. Whoever reads a pane takes up the folded ones first, then the records in the order in which they
came: so every result is what it would have been without files, sums of floats and distinct values too. Nothing is
changed in place: a partition whose records have been folded gets a new segment, and what it had before is not read any
more. Files are unlinked and mapped, as those of ``state/spilling_slots``: a forked child reads them. Not here: which
panes are in files, and the folding (``spilling_windows``).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, final

import numpy as np
import pyarrow as pa

from engine.core.arrow_arrays import arrow_of
from engine.state.batch_files import write_batches
from engine.state.hash_kernels import order_by_channel

Array = np.ndarray[Any, Any]

__all__ = ["Rows", "SpilledPanes", "in_pieces"]

#: Records by folded rows from which on a pane is folded again, and records below which that is never worth it.
_RECORDS_PER_FOLDED: Final = 4
_RECORDS_MIN: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a pane, of one kind."""

    columns: pa.RecordBatch
    is_folded: bool


@dataclass(frozen=True, slots=True)
class _Segment:
    """Rows of one pane, those of a partition together. ``ends``: of each partition; ``mapping``: None = memory."""

    columns: pa.RecordBatch
    ends: Array
    is_folded: bool
    mapping: mmap.mmap | None = None

    def rows_until(self, partition: int) -> int:
        """Return how many rows are of partitions before this one."""
        return int(self.ends[partition - 1]) if partition else 0


@dataclass(slots=True)
class _SpilledPane:
    num_partitions: int
    segments: list[_Segment] = field(default_factory=list)
    #: number of ``segments[0]``
    begin: int = 0
    #: records that wait in memory, with their partitions, and the same sorted
    tail: list[tuple[pa.RecordBatch, Array]] = field(default_factory=list)
    sorted_tail: _Segment | None = None
    #: by partition: the first segment that counts; rows in segments by kind
    first: Array = field(init=False)
    num_folded: Array = field(init=False)
    num_records: Array = field(init=False)
    #: no sum of integers can be beyond it, whatever is folded in which order
    bound: float = 0.0

    def __post_init__(self) -> None:
        self.first, self.num_folded, self.num_records = np.zeros((3, self.num_partitions), np.int64)

    def add(self, segment: _Segment) -> None:
        self.segments.append(segment)
        counts = self.num_folded if segment.is_folded else self.num_records
        counts += np.diff(segment.ends, prepend=0)

    def add_before_records(self, segment: _Segment) -> None:
        """Add folded rows behind other ones, but before the records: those may have come, and been written, while the
        rest of the pane was on its way."""
        self.add(segment)
        at = next((at for at, other in enumerate(self.segments) if not other.is_folded), len(self.segments) - 1)
        self.segments.insert(at, self.segments.pop())
        self.first[self.first > self.begin + at] += 1

    def replace(self, partitions: range, segment: _Segment) -> None:
        """Let the segment stand for all that these partitions have had in segments."""
        part = slice(partitions.start, partitions.stop)
        self.first[part] = self.begin + len(self.segments)
        self.num_folded[part] = self.num_records[part] = 0
        self.add(segment)
        dead = int(self.first.min()) - self.begin
        if dead > 0:
            del self.segments[:dead]
            self.begin += dead

    def tail_segment(self) -> _Segment | None:
        if self.tail and self.sorted_tail is None:
            columns = pa.concat_batches([columns for columns, _ in self.tail])
            partitions = np.concatenate([partitions for _, partitions in self.tail])
            self.sorted_tail = _sorted(columns, partitions, self.num_partitions, is_folded=False)
            self.tail = [(self.sorted_tail.columns, _partitions_of(self.sorted_tail))]
        return self.sorted_tail


@final
class SpilledPanes:
    """``folder``: on a local disk; ``tail_bytes_max``: of records that wait in memory; being written they need three
    times as much."""

    def __init__(self, num_partitions: int, folder: str, tail_bytes_max: int) -> None:
        self._num_partitions = num_partitions
        self._folder = folder
        self._tail_bytes_max = tail_bytes_max
        self._panes: dict[int, _SpilledPane] = {}
        self._tail_bytes = 0

    def __contains__(self, start: int) -> bool:
        return start in self._panes

    def __bool__(self) -> bool:
        return bool(self._panes)

    def starts(self) -> list[int]:
        """Return the panes in order of time."""
        return sorted(self._panes)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self._tail_bytes

    @property
    def num_rows(self) -> int:
        """Folded rows and records, those in memory included."""
        return sum(map(self.num_rows_of, self._panes))

    def num_rows_of(self, start: int, marks: Array | None = None) -> int:
        """Return about how many rows a pane has, or those of its partitions that are marked: records in memory may be
        of any."""
        pane = self._panes[start]
        rows = pane.num_folded + pane.num_records
        in_files = int(rows.sum() if marks is None else rows[marks != 0].sum())
        return in_files + sum(columns.num_rows for columns, _ in pane.tail)

    def add_pane(self, start: int) -> None:
        self._panes.setdefault(start, _SpilledPane(self._num_partitions))

    def drop(self, starts: Iterable[int]) -> None:
        for start in starts:
            pane = self._panes.pop(start)
            self._tail_bytes -= _size(pane.tail)

    def clear(self) -> None:
        self._panes, self._tail_bytes = {}, 0

    def unite(self, start: int, other: int) -> None:
        """Let the records of a pane be those of another one, which keeps its own before them; none was folded."""
        pane, more = self._panes[start], self._panes.pop(other)
        for segment in more.segments:
            pane.add(segment)
        pane.tail += more.tail
        pane.sorted_tail = None
        pane.bound += more.bound

    # --- what goes in

    def raise_bound(self, start: int, by: float, limit: float) -> bool:
        """Return whether the sums of the pane stay below the limit for sure with so much more; if not, do nothing."""
        pane = self._panes[start]
        if pane.bound + by > limit:
            return False
        pane.bound += by
        return True

    def bound_of(self, starts: Iterable[int]) -> float:
        return sum(self._panes[start].bound for start in starts)

    def hold(self, start: int, columns: pa.RecordBatch, partitions: Array) -> None:
        """Keep records of a pane until somebody folds them."""
        pane = self._panes[start]
        pane.tail.append((columns, partitions))
        pane.sorted_tail = None
        self._tail_bytes += columns.nbytes + partitions.nbytes
        if self._tail_bytes > self._tail_bytes_max:
            self.flush()

    def flush(self) -> None:
        """Write the records that wait in memory."""
        having = [(pane, segment) for pane in self._panes.values() if (segment := pane.tail_segment()) is not None]
        if not having:
            return
        for (pane, _), segment in zip(having, self._written([segment for _, segment in having]), strict=True):
            pane.add(segment)
            pane.tail, pane.sorted_tail = [], None
        self._tail_bytes = 0

    def add_folded(self, start: int, columns: pa.RecordBatch, partitions: Array) -> None:
        """Add folded rows, which stand for what the pane has of their keys: as a rule nothing, but where an increment
        is restored."""
        segment = _sorted(columns, partitions, self._num_partitions, is_folded=True)
        self._panes[start].add_before_records(*self._written([segment]))

    def replace(self, start: int, of: range, columns: pa.RecordBatch, partitions: Array) -> None:
        """Let folded rows stand for all that these partitions of a pane have, but for records in memory."""
        segment = _sorted(columns, partitions, self._num_partitions, is_folded=True)
        self._panes[start].replace(of, *self._written([segment]))

    def _written(self, segments: list[_Segment]) -> list[_Segment]:
        """Return the same segments in a new file. All have the same schema."""
        batches, mapping = write_batches([segment.columns for segment in segments], self._folder, "windows")
        return [
            _Segment(columns, segment.ends, segment.is_folded, mapping)
            for columns, segment in zip(batches, segments, strict=True)
        ]

    # --- what comes out

    def rows_of(self, start: int, partitions: range, *, with_tail: bool = True) -> Iterator[Rows]:
        """Yield what the pane has of these partitions, folded rows first; to be copied before the next ones come."""
        pane = self._panes[start]
        first = pane.first[partitions.start : partitions.stop]
        for number, segment in enumerate(pane.segments, pane.begin):
            edges = np.flatnonzero(np.diff(first <= number, prepend=False, append=False)) + partitions.start
            for begin, end in edges.reshape(-1, 2).tolist():
                yield from _slice(segment, begin, end)
            if segment.mapping is not None:
                segment.mapping.madvise(mmap.MADV_DONTNEED)  # the file's pages are the kernel's again
        if with_tail and (tail := pane.tail_segment()) is not None:
            yield from _slice(tail, partitions.start, partitions.stop)

    def has_records(self, start: int, partitions: range) -> bool:
        """Whether records of these partitions wait in files."""
        return bool(self._panes[start].num_records[partitions.start : partitions.stop].any())

    def has_tail(self, starts: Iterable[int]) -> bool:
        return any(self._panes[start].tail for start in starts)

    def ranges(self, starts: Iterable[int], rows_max: int, within: range | None = None) -> list[range]:
        """Return the partitions in pieces of about so many rows of these panes, or of one partition."""
        return in_pieces(self.rows_by_partition(starts), rows_max, within or range(self._num_partitions))

    def rows_by_partition(self, starts: Iterable[int]) -> Array:
        """Return the number of rows that these panes have, by partition."""
        counts = np.zeros(self._num_partitions, np.int64)
        for start in starts:
            pane = self._panes[start]
            counts += pane.num_folded + pane.num_records
            if (tail := pane.tail_segment()) is not None:
                counts += np.diff(tail.ends, prepend=0)
        return counts

    def to_be_folded(self) -> int | None:
        """Return a pane that has so many records in files that it takes less room, and time, to fold them."""
        for start, pane in self._panes.items():
            num_records = int(pane.num_records.sum())
            if num_records > _RECORDS_MIN and num_records > _RECORDS_PER_FOLDED * int(pane.num_folded.sum()):
                return start
        return None


def in_pieces(sizes: Array, size_max: int, within: range) -> list[range]:
    """Return partitions in pieces that are not larger than ``size_max`` together, or of one partition. ``sizes``: by
    partition; those without content are in no piece, or beside others."""
    pieces, begin, size = [], within.start, 0
    for partition in within:
        if size and size + sizes[partition] > size_max:
            pieces.append(range(begin, partition))
            begin, size = partition, 0
        size += int(sizes[partition])
    if size:
        pieces.append(range(begin, within.stop))
    return pieces


def _sorted(columns: pa.RecordBatch, partitions: Array, num_partitions: int, *, is_folded: bool) -> _Segment:
    ends, order = np.zeros(num_partitions, np.int64), np.empty(partitions.size, np.int32)
    order_by_channel(partitions, ends, order)
    return _Segment(columns.take(arrow_of(order)), ends, is_folded)


def _partitions_of(segment: _Segment) -> Array:
    numbers = np.diff(segment.ends, prepend=0)
    return np.repeat(np.arange(numbers.size, dtype=np.uint16), numbers)


def _slice(segment: _Segment, begin: int, end: int) -> Iterator[Rows]:
    at, until = segment.rows_until(begin), segment.rows_until(end)
    if until > at:
        yield Rows(segment.columns.slice(at, until - at), segment.is_folded)


def _size(tail: list[tuple[pa.RecordBatch, Array]]) -> int:
    return sum(columns.nbytes + partitions.nbytes for columns, partitions in tail)
