"""Lays the rows of plain columns out by channel, in one pass over several batches.

A batch that is cut into many channels makes small ones, and each costs its consumers the same few calls as a large one.
So there is a place for each channel into which the rows of several batches are written, while they are in the core's
cache, until a part is about as large as a batch, or until somebody asks for what there is: the exit does before each
event and when its buffer timeout is over, so nothing waits longer than it would in a buffer. A part is a slice of what
was written; no row is copied twice. Columns in dictionaries are plain as long as the dictionary is the same.

Not here: which channel a row goes to (``partitioners``), which columns are plain (``plain_columns``).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.dictionaries import same_values
from engine.core.records import BATCH_ROWS_MAX, Batch, ColumnBatch
from engine.runtime.exchange.plain_columns import PlainColumns, address_of, address_of_array, field_of_times

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

__all__ = ["GATHERED_CHANNELS_MAX", "ColumnScatter"]

#: Batches of the usual size that are gathered for so many channels; more channels get smaller parts.
GATHERED_CHANNELS_MAX: Final = 4
#: Bytes that are gathered: what is written is to be still in a cache when it is sent or read.
_GATHERED_BYTES_MAX: Final = 1 << 20
#: Room in a channel's place beyond its share of the rows, for keys are not spread evenly. A part that is larger than a
#: batch by less than this is left whole: its rest would be a batch of few rows.
_TOLERANCE: Final = 0.25
#: Less than this share of the room is copied out of it, so that a few rows do not hold on to the memory of many.
_SHARE_MIN: Final = 0.25


@final
class ColumnScatter:
    """``gathers``: False = nothing is held, each batch is cut at once."""

    def __init__(self, num_channels: int, *, gathers: bool) -> None:
        self._num_channels = num_channels
        self._gathers = gathers
        self._plain = PlainColumns()
        self._place: _Place | None = None
        self._last: ColumnBatch | None = None  #: the last batch, if it had dictionaries

    def add(self, batch: ColumnBatch, channel_of_row: Array) -> list[tuple[int, Batch]] | None:
        """Return what is ready of this batch and those before, which may be nothing; None if the columns are not plain:
        nothing has happened then. ``channel_of_row``: uint16, in range."""
        assert channel_of_row.size == len(batch)  # else rows would vanish
        widths = self._plain.widths(batch.columns)
        if widths is None:
            return None
        place = self._place
        ready: list[tuple[int, Batch]] = []
        if place is None or not place.is_alike(batch) or not place.write(batch, channel_of_row):
            ready = self.take()
            rows_max = self._rows_max(batch, widths) if self._comes_again(batch) else 0
            room = int(rows_max / self._num_channels * (1 + _TOLERANCE))
            place = self._place = None
            if len(batch) < rows_max:
                place = _Place(batch, self._plain, [room] * self._num_channels, rows_max)
            if place is None or not place.write(batch, channel_of_row):
                return ready + _cut_alone(batch, self._plain, channel_of_row, self._num_channels)
            self._place = place
        if place.num_rows >= place.rows_max:
            ready += self.take()
        return ready

    def _comes_again(self, batch: ColumnBatch) -> bool:
        """Whether its dictionaries, if it has any, are those of the batch before: else there is nothing to gather."""
        last, values = self._last, _dictionaries(batch)
        self._last = batch if values else None
        if not values:
            return True
        return last is not None and _have_values(last, values)

    def _rows_max(self, batch: ColumnBatch, widths: tuple[int, ...]) -> int:
        """Return how many rows to gather."""
        if not self._gathers:
            return 0
        row_bytes = sum(widths) + (0 if batch.timestamps_ms is None else 8) + (0 if batch.kinds is None else 1)
        return min(BATCH_ROWS_MAX * min(self._num_channels, GATHERED_CHANNELS_MAX), _GATHERED_BYTES_MAX // row_bytes)

    def take(self) -> list[tuple[int, Batch]]:
        """Return the parts of all that is held, channels rising; in each the rows in the order in which they came."""
        place = self._place
        if place is None or not place.num_rows:
            return []
        if place.num_rows < place.rows_max * _SHARE_MIN:
            return place.copy_out()
        self._place = None
        return place.parts()


def _cut_alone(
    batch: ColumnBatch, plain: PlainColumns, channel_of_row: Array, num_channels: int
) -> list[tuple[int, Batch]]:
    """Cut a batch by itself, into exactly the room that it needs."""
    import numpy as np

    from engine.state.hash_kernels import count_by_channel

    counts = np.empty(num_channels, np.int64)
    count_by_channel(channel_of_row, counts)
    if counts.max() == len(batch):
        return [(int(counts.argmax()), batch)]
    place = _Place(batch, plain, counts.tolist(), 0)
    is_written = place.write(batch, channel_of_row)
    assert is_written, counts
    return place.parts()


@final
class _Place:
    """Arrays, one a column, in which each channel has room for so many rows.

    ``like``: whose shape all batches have, its columns seen last by ``plain``. ``rows_max``: rows after which it should
    be emptied.
    """

    def __init__(self, like: ColumnBatch, plain: PlainColumns, rooms: list[int], rows_max: int) -> None:
        import numpy as np

        self.rows_max = rows_max
        self.num_rows = 0
        self._plain, self._schema = plain, plain.schema
        self._scalar, self._named = like.scalar, like.named
        self._is_stamped, self._has_kinds = like.timestamps_ms is not None, like.kinds is not None
        #: by place, of columns in dictionaries
        self._values = _dictionaries(like)
        widths = plain.known_widths
        assert widths is not None
        self._widths = widths
        self._field_of_times = _field_of_times(like, widths)  #: written once, as the field
        self._end: Array = np.cumsum(rooms)
        self._start: Array = self._end - rooms
        self._next: Array = self._start.copy()
        size = sum(rooms)
        self._arrays = [np.empty(size, f"u{width}") for width in widths]
        self._stamps = np.empty(size, np.int64) if self._is_stamped and self._field_of_times < 0 else None
        self._kinds = np.empty(size, np.int8) if self._has_kinds else None
        written = [*self._arrays, *(own for own in (self._stamps, self._kinds) if own is not None)]
        #: of the kernel: where values are, where they go, and their width
        self._columns: Array = np.array([(0, address_of_array(own), own.itemsize) for own in written], np.int64)
        self._rows_of_channel: Array = np.empty(len(rooms), np.int64)
        self._place_of_row: Array = np.empty(max(rows_max, len(like)), np.int32)

    def is_alike(self, batch: ColumnBatch) -> bool:
        """Whether its rows can go with those that are here. ``plain`` has seen it last."""
        shape = batch.scalar, batch.named, batch.timestamps_ms is not None, batch.kinds is not None
        own = self._scalar, self._named, self._is_stamped, self._has_kinds
        if shape != own or self._plain.schema is not self._schema:
            return False
        if self._is_stamped and _field_of_times(batch, self._widths) != self._field_of_times:
            return False
        return not self._values or _have_values(batch, self._values)

    def write(self, batch: ColumnBatch, channel_of_row: Array) -> bool:
        """Put each row behind those of its channel; return whether there was room for all of them, else nothing has
        happened."""
        import numpy as np

        from engine.state.hash_kernels import write_rows

        num_rows = len(batch)
        if num_rows > self._place_of_row.size:
            return False
        sources = [address_of(*own) for own in zip(batch.columns.columns, self._widths, strict=True)]
        if self._stamps is not None:
            stamps = np.ascontiguousarray(batch.timestamps_ms, np.int64)  # held until the kernel has read it
            sources.append(address_of_array(stamps))
        if self._has_kinds:
            kinds = np.ascontiguousarray(batch.kinds, np.int8)  # held, too
            sources.append(address_of_array(kinds))
        self._columns[:, 0] = sources
        is_written: bool = write_rows(
            channel_of_row,
            self._next,
            self._end,
            self._rows_of_channel,
            self._place_of_row[:num_rows],
            self._columns,
        )
        if is_written:
            self.num_rows += num_rows
        return is_written

    def parts(self) -> list[tuple[int, Batch]]:
        """Return slices of what was written. Nothing may be written any more."""
        whole = self._batch_of(self._arrays, self._stamps, self._kinds)
        return _parts(whole, self._start.tolist(), self._next.tolist())

    def copy_out(self) -> list[tuple[int, Batch]]:
        """Return copies of what was written, and begin anew."""
        import numpy as np

        counts = self._next - self._start
        used = [slice(*bounds) for bounds in zip(self._start.tolist(), self._next.tolist(), strict=True)]
        arrays = [np.concatenate([array[own] for own in used]) for array in self._arrays]
        stamps, kinds = (
            None if beside is None else np.concatenate([beside[own] for own in used])
            for beside in (self._stamps, self._kinds)
        )
        self._next = self._start.copy()
        self.num_rows = 0
        ends = np.cumsum(counts)
        return _parts(self._batch_of(arrays, stamps, kinds), (ends - counts).tolist(), ends.tolist())

    def _batch_of(self, arrays: list[Array], stamps: Array | None, kinds: Array | None) -> ColumnBatch:
        import numpy as np
        import pyarrow as pa

        from engine.state.arrow_views import kernel_view

        schema = self._schema
        assert schema is not None
        columns: list[pa.Array] = []
        for at, (kind, array) in enumerate(zip(schema.types, arrays, strict=True)):
            if at in self._values:
                numbers = pa.Array.from_buffers(kind.index_type, array.size, [None, pa.py_buffer(array)])
                values = self._values[at]
                columns.append(pa.DictionaryArray.from_arrays(numbers, values, ordered=kind.ordered, safe=False))
            else:
                columns.append(pa.Array.from_buffers(kind, array.size, [None, pa.py_buffer(array)]))
        batch = pa.RecordBatch.from_arrays(columns, schema=schema)
        if self._field_of_times >= 0:
            stamps = kernel_view(arrays[self._field_of_times].view(np.int64))
        return ColumnBatch(batch, stamps, self._scalar, self._named, kinds)


def _dictionaries(batch: ColumnBatch) -> dict[int, pa.Array]:
    import pyarrow as pa

    columns = batch.columns.columns
    return {at: column.dictionary for at, column in enumerate(columns) if isinstance(column, pa.DictionaryArray)}


def _have_values(batch: ColumnBatch, values: dict[int, pa.Array]) -> bool:
    """Whether the columns at these places have these dictionaries. The schema is the one that they had."""
    if batch.columns.num_columns <= max(values):
        return False
    columns = {at: batch.columns.column(at) for at in values}
    return all(hasattr(own, "dictionary") and same_values(own.dictionary, values[at]) for at, own in columns.items())


def _field_of_times(batch: ColumnBatch, widths: tuple[int, ...]) -> int:
    return field_of_times(batch.columns, batch.timestamps_ms, widths)


def _parts(rows: ColumnBatch, starts: list[int], ends: list[int]) -> list[tuple[int, Batch]]:
    parts: list[tuple[int, Batch]] = []
    for channel, (start, end) in enumerate(zip(starts, ends, strict=True)):
        num = 1 if end - start <= BATCH_ROWS_MAX * (1 + _TOLERANCE) else -(-(end - start) // BATCH_ROWS_MAX)
        bounds = [start + (end - start) * i // num for i in range(num + 1)]
        parts += [(channel, rows.slice(first, last)) for first, last in itertools.pairwise(bounds) if last > first]
    return parts
