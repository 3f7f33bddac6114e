"""Rows that wait until there are many, to be taken up partition by partition of state that is on the disk.

What comes out afterwards is in the order in which the rows came in, with the watermarks between them: nobody behind
notices but for the time. Not here: state (``state/spilling_slots``), when rows are taken up (the operator).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from engine.core.arrow_arrays import arrow_of
from engine.core.records import BATCH_ROWS_MAX, Batch, ColumnBatch
from engine.operators.base import Output

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

__all__ = ["HeldRows", "Results", "TakenRows"]


@final
@dataclass(frozen=True, slots=True)
class TakenRows:
    """All rows that were held, those of a partition together: ``columns``, of which row i came as number ``order[i]``.
    ``watermarks``: (rows that came before it, time)."""

    columns: pa.RecordBatch
    stamps: Array | None
    order: Array
    ends: Array
    watermarks: list[tuple[int, int]]

    def parts(self) -> list[tuple[int, int, int]]:
        """Return (partition, begin, end) of those that have rows."""
        ends = self.ends.tolist()
        return [part for part in zip(range(len(ends)), [0, *ends], ends) if part[2] > part[1]]

    def as_they_came(self, begin: int) -> ColumnBatch:
        """Return the rows from ``begin`` on, in the order in which they came."""
        import numpy as np

        rows = begin + np.argsort(self.order[begin:])
        return ColumnBatch(self.columns.take(arrow_of(rows)), None if self.stamps is None else self.stamps[rows])


@final
class HeldRows:
    """``bytes_max``: of what is held; being taken up it needs three times as much."""

    def __init__(self, bytes_max: int, num_partitions: int) -> None:
        self._bytes_max = bytes_max
        self._num_partitions = num_partitions
        self._batches: list[pa.RecordBatch] = []
        self._stamps: list[Array | None] = []
        self._partitions: list[Array] = []
        self._watermarks: list[tuple[int, int]] = []
        self._num_rows = 0
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
        return not self._batches or (stamps is None) == (self._stamps[0] is None)

    def add(self, columns: pa.RecordBatch, stamps: Array | None, partitions: Array) -> None:
        """All columns have the same schema. ``partitions``: uint16, by row."""
        self._batches.append(columns)
        self._stamps.append(stamps)
        self._partitions.append(partitions)
        self._num_rows += columns.num_rows
        self._nbytes += columns.nbytes + partitions.nbytes + (0 if stamps is None else stamps.nbytes)

    def add_watermark(self, watermark_ms: int) -> None:
        self._watermarks.append((self._num_rows, watermark_ms))

    def take_watermarks(self) -> list[int]:
        """Return the watermarks, before or after whose rows, and hold them no longer."""
        watermarks, self._watermarks = self._watermarks, []
        return [watermark_ms for _, watermark_ms in watermarks]

    def batches(self) -> list[ColumnBatch]:
        """Return the rows in their order."""
        return [ColumnBatch(*pair) for pair in zip(self._batches, self._stamps, strict=True)]

    def take_batches(self) -> list[ColumnBatch]:
        """Return the rows in their order and hold them no longer."""
        batches = self.batches()
        self._forget_rows()
        return batches

    def _forget_rows(self) -> None:
        self._batches, self._stamps, self._partitions = [], [], []
        self._num_rows = self._nbytes = 0

    def take(self) -> TakenRows:
        """Return what is held, a row at least, and hold it no longer."""
        taken, self._watermarks = self.peek(), []
        self._forget_rows()
        return taken

    def peek(self) -> TakenRows:
        """Return what is held, a row at least."""
        import numpy as np
        import pyarrow as pa

        from engine.state.hash_kernels import order_by_channel

        ends, order = np.zeros(self._num_partitions, np.int64), np.empty(self._num_rows, np.int32)
        order_by_channel(np.concatenate(self._partitions), ends, order)
        joined = pa.concat_batches(self._batches)
        given = [stamps for stamps in self._stamps if stamps is not None]
        stamps: Array | None = np.concatenate(given)[order] if given else None
        return TakenRows(joined.take(arrow_of(order)), stamps, order, ends, self._watermarks)


@final
class Results:
    """An Output that keeps what an operator makes of taken rows, one record of each, partition by partition."""

    def __init__(self, taken: TakenRows) -> None:
        import numpy as np

        self._taken = taken
        self._batches: list[ColumnBatch] = []
        #: when they are being emitted: all of them as they were made, their order, and how many have been emitted
        self._all: ColumnBatch | None = None
        self._order = np.zeros(0, np.int64)
        self._num_emitted = 0

    def emit(self, batch: Batch) -> None:
        assert isinstance(batch, ColumnBatch)
        self._batches.append(batch)

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
        taken, num_rows = self._taken, self.num_rows
        rows = self._begin_to_emit()
        is_all = num_rows == taken.order.size
        for end, watermark_ms in taken.watermarks if is_all else ():
            yield from self._emit_until(out, end)
            out.emit_watermark(watermark_ms)
        yield from self._emit_until(out, rows.size)

    @property
    def num_rows(self) -> int:
        """How many there are; of those that have been emitted too."""
        return sum(map(len, self._batches)) if self._all is None else len(self._all)

    def unemitted(self) -> ColumnBatch | None:
        """Return the results that have not been emitted yet, in their order."""
        if self._all is None and not self._batches:
            return None
        rows, columns = self._in_order(), self._joined() if self._all is None else self._all
        rows = rows[self._num_emitted :]
        stamps = None if columns.timestamps_ms is None else columns.timestamps_ms[rows]
        return ColumnBatch(columns.columns.take(arrow_of(rows)), stamps, named=columns.named) if rows.size else None

    def _in_order(self) -> Array:
        """Return which result comes first, which one then…"""
        import numpy as np

        num_rows = self.num_rows
        rows = np.full(self._taken.order.size, -1, np.int64)
        rows[self._taken.order[:num_rows]] = np.arange(num_rows)
        return rows if num_rows == rows.size else rows[rows >= 0]

    def _begin_to_emit(self) -> Array:
        rows = self._order = self._in_order()
        if self._batches:
            self._all, self._batches = self._joined(), []
        return rows

    def _joined(self) -> ColumnBatch:
        import pyarrow as pa

        columns = pa.concat_batches([batch.columns for batch in self._batches])
        return ColumnBatch(columns, self._taken.stamps, named=self._batches[0].named)

    def _emit_until(self, out: Output, end: int) -> Iterator[None]:
        if self._all is None:
            return
        stamps = self._all.timestamps_ms
        while self._num_emitted < end:
            part = self._order[self._num_emitted : min(end, self._num_emitted + BATCH_ROWS_MAX)]
            columns = self._all.columns.take(arrow_of(part))
            self._num_emitted += part.size
            out.emit(ColumnBatch(columns, None if stamps is None else stamps[part], named=self._all.named))
            yield
