"""Rows that wait until there are many, to be taken up partition by partition of state that is on the disk.

What comes out afterwards is in the order in which the rows came in, with the watermarks between them: nobody behind
notices but for the time. Not here: state (``state/spilling_slots``), when rows are taken up (the operator).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.arrow_arrays import arrow_of
from engine.core.records import BATCH_ROWS_MAX, Batch, ColumnBatch
from engine.operators.base import Output

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

__all__ = ["HeldRows", "Results", "TakenRows"]

#: Rows that are sorted together at least: some hundred of a partition, and all of them in the processor's cache.
_BLOCK_ROWS: Final = 1 << 15


@final
@dataclass(frozen=True, slots=True)
class _Block:
    """Rows that came one after the other, those of a partition together: row i of ``columns`` came as number
    ``order[i]`` (int32) of these, and those of partition p end at ``ends[p]`` (int64)."""

    columns: pa.RecordBatch
    stamps: Array | None
    order: Array
    ends: Array


@final
class TakenRows:
    """All rows that were held. They are numbered in the order in which they came, and have a place among all of them by
    partition. ``watermarks``: (rows that came before it, time)."""

    def __init__(self, blocks: list[_Block], watermarks: list[tuple[int, int]]) -> None:
        import numpy as np

        self.watermarks = watermarks
        self._blocks = blocks
        #: where the rows of a partition begin in a block, and end: (blocks, partitions + 1)
        ends = np.stack([block.ends for block in blocks])
        self._bounds = np.concatenate([np.zeros((len(blocks), 1), np.int64), ends], axis=1)
        #: of each block, the number of its first row
        self._firsts = np.concatenate([[0], np.cumsum([block.order.size for block in blocks])])
        #: by partition, the place of its first row; one more entry for the end
        self._places = self._bounds.sum(axis=0)
        counts = np.diff(self._bounds, axis=1)
        #: how many rows of the same partition are in earlier blocks: (blocks, partitions)
        self._before = np.cumsum(counts, axis=0) - counts

    @property
    def num_rows(self) -> int:
        return int(self._firsts[-1])

    @property
    def num_blocks(self) -> int:
        return len(self._blocks)

    def parts(self) -> list[tuple[int, int, int]]:
        """Return (partition, begin, end) of those that have rows, by place."""
        places = self._places.tolist()
        return [part for part in zip(range(len(places)), places, places[1:], strict=False) if part[2] > part[1]]

    def of_partition(self, number: int) -> tuple[pa.RecordBatch, Array | None, Array]:
        """Return the rows of a partition, one at least, in the order in which they came: columns, times, numbers."""
        import numpy as np
        import pyarrow as pa

        having = [
            (block, slice(begin, end), first)
            for block, begin, end, first in zip(
                self._blocks,
                self._bounds[:, number].tolist(),
                self._bounds[:, number + 1].tolist(),
                self._firsts.tolist(),
                strict=False,
            )
            if end > begin
        ]
        columns = [block.columns.slice(rows.start, rows.stop - rows.start) for block, rows, _ in having]
        stamps = [block.stamps[rows] for block, rows, _ in having if block.stamps is not None]
        numbers = np.concatenate([block.order[rows].astype(np.int64) + first for block, rows, first in having])
        joined = columns[0] if len(columns) == 1 else pa.concat_batches(columns)
        return joined, np.concatenate(stamps) if stamps else None, numbers

    def as_they_came(self, begin: int) -> ColumnBatch:
        """Return the rows from this place on, one at least, in the order in which they came."""
        rows = (_in_order(block, self.rows_before(at, begin)) for at, block in enumerate(self._blocks))
        return _joined([batch for batch in rows if len(batch)])

    def rows_before(self, block: int, place: int) -> int:
        """Return how many rows of a block have a place before this one: they come first there."""
        import numpy as np

        if place >= self.num_rows:
            return self._blocks[block].order.size
        number = int(np.searchsorted(self._places, place, side="right")) - 1
        begin, end = self._bounds[block, number : number + 2].tolist()
        within = place - int(self._places[number]) - int(self._before[block, number])
        return int(begin + min(max(within, 0), end - begin))

    def results_of(self, block: int, made: list[ColumnBatch]) -> ColumnBatch | None:
        """Return what was made of the rows of a block, in the order of these; None = nothing. ``made``: of each of
        ``parts``, one record of each row, up to some place."""
        import pyarrow as pa

        own, pieces = self._blocks[block], list[Any]()
        begins, bounds = self._before[block].tolist(), self._bounds[block].tolist()
        for (number, _, _), batch in zip(self.parts(), made, strict=False):
            begin = begins[number]
            count = min(bounds[number + 1] - bounds[number], len(batch) - begin)
            if count > 0:
                pieces.append(batch.columns.slice(begin, count))
        if not pieces:
            return None
        columns = pa.concat_batches(pieces)
        rows = _places_of(own.order[: columns.num_rows])
        stamps = None if own.stamps is None else own.stamps[rows]
        return ColumnBatch(columns.take(arrow_of(rows)), stamps, named=made[0].named)


def _places_of(order: Array) -> Array:
    """Return which row came first, which one then…"""
    import numpy as np

    if order.size and int(order.max()) == order.size - 1:  # all of them: no need to sort
        rows = np.empty(order.size, np.int64)
        rows[order] = np.arange(order.size)
        return rows
    return np.argsort(order)


def _in_order(block: _Block, begin: int = 0) -> ColumnBatch:
    """Return the rows of a block from this one on, in the order in which they came."""
    rows = begin + _places_of(block.order[begin:])
    return ColumnBatch(block.columns.take(arrow_of(rows)), None if block.stamps is None else block.stamps[rows])


def _joined(batches: list[ColumnBatch]) -> ColumnBatch:
    """Return one batch of all, of which there is one at least."""
    import numpy as np
    import pyarrow as pa

    stamps = [batch.timestamps_ms for batch in batches if batch.timestamps_ms is not None]
    columns = pa.concat_batches([batch.columns for batch in batches])
    return ColumnBatch(columns, np.concatenate(stamps) if stamps else None, named=batches[0].named)


@final
class HeldRows:
    """``bytes_max``: of what is held; being taken up it needs three times as much.

    Rows are sorted by partition block by block as they come: to sort all of them when they are taken up would be a
    pause, and slower, as it would read all of memory by chance.
    """

    def __init__(self, bytes_max: int, num_partitions: int) -> None:
        self._bytes_max = bytes_max
        self._num_partitions = num_partitions
        self._blocks: list[_Block] = []
        #: those behind the blocks, as they came
        self._batches: list[pa.RecordBatch] = []
        self._stamps: list[Array | None] = []
        self._partitions: list[Array] = []
        self._watermarks: list[tuple[int, int]] = []
        self._num_rows = self._num_unsorted = 0
        self._nbytes = 0

    @property
    def num_rows(self) -> int:
        return self._num_rows

    @property
    def filled(self) -> float:
        """How full it is; 1 = rows have to be taken up before more come."""
        return self._nbytes / self._bytes_max

    def fits(self, stamps: Array | None) -> bool:
        """Whether rows can be held beside those that are: with times or without, like these."""
        has_stamps = [block.stamps is not None for block in self._blocks[:1]] + [
            own is not None for own in self._stamps[:1]
        ]
        return not has_stamps or (stamps is not None) == has_stamps[0]

    def add(self, columns: pa.RecordBatch, stamps: Array | None, partitions: Array) -> None:
        """All columns have the same schema. ``partitions``: uint16, by row."""
        self._batches.append(columns)
        self._stamps.append(stamps)
        self._partitions.append(partitions)
        self._num_rows += columns.num_rows
        self._num_unsorted += columns.num_rows
        self._nbytes += columns.nbytes + partitions.nbytes + (0 if stamps is None else stamps.nbytes)
        if self._num_unsorted >= _BLOCK_ROWS:
            self._sort()

    def _sort(self) -> None:
        """Make a block of the rows that are in none."""
        import numpy as np
        import pyarrow as pa

        from engine.state.hash_kernels import order_by_channel

        if not self._num_unsorted:
            return
        ends, order = np.zeros(self._num_partitions, np.int64), np.empty(self._num_unsorted, np.int32)
        order_by_channel(np.concatenate(self._partitions), ends, order)
        given = [stamps for stamps in self._stamps if stamps is not None]
        columns = pa.concat_batches(self._batches).take(arrow_of(order))
        self._blocks.append(_Block(columns, np.concatenate(given)[order] if given else None, order, ends))
        self._forget_unsorted()

    def _forget_unsorted(self) -> None:
        self._batches, self._stamps, self._partitions = [], [], []
        self._num_unsorted = 0

    def add_watermark(self, watermark_ms: int) -> None:
        self._watermarks.append((self._num_rows, watermark_ms))

    def take_watermarks(self) -> list[int]:
        """Return the watermarks, before or after whose rows, and hold them no longer."""
        watermarks, self._watermarks = self._watermarks, []
        return [watermark_ms for _, watermark_ms in watermarks]

    def batches(self) -> Iterator[ColumnBatch]:
        """Yield the rows in their order."""
        yield from map(_in_order, self._blocks)
        yield from itertools.starmap(ColumnBatch, zip(self._batches, self._stamps, strict=True))

    def take_batches(self) -> list[ColumnBatch]:
        """Return the rows in their order and hold them no longer."""
        batches = list(self.batches())
        self._forget_rows()
        return batches

    def _forget_rows(self) -> None:
        self._forget_unsorted()
        self._blocks, self._num_rows, self._nbytes = [], 0, 0

    def take(self) -> TakenRows:
        """Return what is held, a row at least, and hold it no longer."""
        taken, self._watermarks = self.peek(), []
        self._forget_rows()
        return taken

    def peek(self) -> TakenRows:
        """Return what is held, a row at least."""
        self._sort()
        return TakenRows(list(self._blocks), list(self._watermarks))


@final
class Results:
    """An Output that keeps what an operator makes of taken rows, one record of each, partition by partition."""

    def __init__(self, taken: TakenRows) -> None:
        self._taken = taken
        #: of each partition that has rows
        self._made: list[ColumnBatch] = []
        #: of all results in their order
        self._num_emitted = 0

    def emit(self, batch: Batch) -> None:
        assert isinstance(batch, ColumnBatch)
        self._made.append(batch)

    def emit_side(self, tag: str, batch: Batch) -> None:
        raise AssertionError("held rows have no side output")

    def emit_watermark(self, watermark_ms: int) -> None:
        raise AssertionError("held watermarks are emitted with the results")

    def emit_idle(self, idle: bool) -> None:
        raise AssertionError("held rows are taken up before")

    def emit_superstep_end(self, superstep: int) -> None:
        raise AssertionError("held rows are taken up before")

    def emit_in_order(self, out: Output) -> Iterator[None]:
        """Emit the results in the order of their rows, and the watermarks if that is all; yield after each batch."""
        is_all = self.num_rows == self._taken.num_rows
        watermarks = deque(self._taken.watermarks if is_all else ())
        for batch in self._in_order():
            begin = 0
            while begin < len(batch):
                while watermarks and watermarks[0][0] <= self._num_emitted:
                    out.emit_watermark(watermarks.popleft()[1])
                end = min(len(batch), begin + BATCH_ROWS_MAX)
                if watermarks:
                    end = min(end, begin + watermarks[0][0] - self._num_emitted)
                self._num_emitted += end - begin
                out.emit(batch.slice(begin, end))
                yield
                begin = end
        for _, watermark_ms in watermarks:
            out.emit_watermark(watermark_ms)

    @property
    def num_rows(self) -> int:
        """How many there are; of those that have been emitted too."""
        return sum(map(len, self._made))

    def unemitted(self) -> ColumnBatch | None:
        """Return the results that have not been emitted yet, in their order."""
        batches, before = [], self._num_emitted
        for batch in self._in_order():
            if before < len(batch):
                batches.append(batch.slice(before, len(batch)))
            before = max(0, before - len(batch))
        return _joined(batches) if batches else None

    def _in_order(self) -> Iterator[ColumnBatch]:
        """Yield what there is, block by block."""
        for block in range(self._taken.num_blocks):
            batch = self._taken.results_of(block, self._made)
            if batch is not None:
                yield batch
