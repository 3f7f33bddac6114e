"""What joins on columns keep: rows of a side by number, and what a checkpoint has of both sides.

A chunk is what one key group has: for each side an Arrow IPC stream, its length before it, of event times, numbers by
arrival, numbers of partners where they are counted, and the records; perhaps several times, where increments stand
behind each other. An increment begins with what it says of those below it (``Told``), its length, negative, before it.
It says nothing about keys, so rows can go on with it as well (``LeftRecords``). Schemas say whether records are Rows
(``column_fields.is_named``).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.late_dataclass import dataclass
from engine.core.records import ColumnBatch
from engine.operators.column_fields import is_named, own_columns
from engine.operators.left_chunks import LeftChunks
from engine.time.windows import TIME_MIN_MS

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from engine.state.hash_partitions import HashPartitions

    Array = np.ndarray[Any, Any]

__all__ = [
    "GONE",
    "JOIN_PART",
    "JoinPlace",
    "LeftRecords",
    "RowStore",
    "SideRecords",
    "Told",
    "chunks_of",
    "in_order",
    "key_columns",
    "key_kinds",
    "layer_of",
    "records_in",
    "told_of",
]

#: Name of the part of state in checkpoints, for good.
JOIN_PART: Final = "join-records"
#: In place of the number of a record's partners, in an increment: the record of that arrival is no longer there.
GONE: Final = -2
_SIDES: Final = 2
_LENGTH: Final = struct.Struct("<q")
_TIME: Final = "$time"
_ARRIVAL: Final = "$arrival"
_WATERMARK: Final = b"watermark"
#: Name of a field, and in the metadata of a batch that has it.
_PARTNERS: Final = "$partners"


@final
@dataclass(frozen=True, slots=True)
class JoinPlace:
    """Which keys a join that may lie in files has, and where. ``fields``: of the key, by side; ``is_tuple``: it is a
    tuple even of a single one; ``folder``: on a local disk; ``bytes_max``: the share of memory."""

    max_parallelism: int
    key_groups: range
    fields: tuple[tuple[int | str, ...], ...]
    is_tuple: bool
    folder: str
    bytes_max: int

    def partitions(self, number: int) -> HashPartitions:
        from engine.state.hash_partitions import HashPartitions

        return HashPartitions(number, self.max_parallelism, self.key_groups, is_tuple=self.is_tuple)

    def groups_of(self, keys: Sequence[pa.Array]) -> Array:
        """Return the key group of each row's key, int64."""
        from engine.state.column_hash import groups_of_rows

        groups: Array = groups_of_rows(list(keys), self.max_parallelism, is_tuple=self.is_tuple).astype("int64")
        return groups


@final
class SideRecords:
    """Records of one side, with computed keys behind their fields. ``arrivals``: rising numbers, the order in which
    they came; ``watermark_ms``: of the checkpoint they are from; ``partners``: how many each has, int64, where a
    regular join counts them."""

    def __init__(
        self,
        side: int,
        columns: pa.RecordBatch,
        times_ms: Array,
        arrivals: Array,
        watermark_ms: int,
        partners: Array | None = None,
    ) -> None:
        self.side = side
        self.columns = columns
        self.times_ms = times_ms
        self.arrivals = arrivals
        self.watermark_ms = watermark_ms
        self.partners = partners

    def rows(self) -> tuple[list[Any], list[int]]:
        """Return the records as Python objects, without computed keys, and their event times."""
        named = is_named(self.columns.schema)
        batch = ColumnBatch(own_columns(self.columns), self.times_ms, named=named).to_rows()
        assert batch.timestamps_ms is not None
        return batch.rows, batch.timestamps_ms


def in_order(pieces: Iterable[SideRecords]) -> Iterator[SideRecords]:
    """Yield the records of each side in order of arrival, as far as their types and watermarks are the same; those with
    the latest watermark first, as they came before others of their key. Where partners are counted, of a record that is
    there several times the last one stands for all: increments write it anew."""
    import numpy as np
    import pyarrow as pa

    alike: dict[tuple[int, int, str, bool], list[SideRecords]] = {}
    for records in pieces:
        kind = -records.watermark_ms, records.side, str(records.columns.schema), records.partners is not None
        alike.setdefault(kind, []).append(records)
    for (negative_ms, side, _, _), some in sorted(alike.items(), key=lambda item: item[0]):
        arrivals = np.concatenate([records.arrivals for records in some])
        order = np.argsort(arrivals, kind="stable")
        (columns,) = pa.Table.from_batches([records.columns for records in some]).combine_chunks().to_batches()
        times_ms = np.concatenate([records.times_ms for records in some])
        counted = [records.partners for records in some if records.partners is not None]
        partners = np.concatenate(counted) if counted else None
        if partners is not None:
            is_last = np.append(arrivals[order][1:] != arrivals[order][:-1], True)
            order = order[is_last & (partners[order] != GONE)]
            partners = partners[order]
        yield SideRecords(side, columns.take(pa.array(order)), times_ms[order], arrivals[order], -negative_ms, partners)


def key_kinds(schema: pa.Schema, fields: Sequence[int]) -> list[pa.DataType] | None:
    """Return the types by which keys of both sides are compared; None when columns cannot be (a part of) a key.

    Integers of all widths are one type, as they are in Python; other types are equal only to themselves.
    """
    import pyarrow as pa

    from engine.state.struct_keys import can_be_row_key

    if min(fields) < 0:
        return None
    kinds = [schema.types[field] for field in fields]
    if not all(map(can_be_row_key, kinds)):
        return None
    return [pa.int64() if pa.types.is_integer(kind) and kind != pa.uint64() else kind for kind in kinds]


def key_columns(columns: pa.RecordBatch, fields: Sequence[int], kinds: Sequence[pa.DataType]) -> list[pa.Array]:
    own = [columns.column(field) for field in fields]
    return [column if column.type == kind else column.cast(kind) for column, kind in zip(own, kinds, strict=True)]


# --- rows by number ---------------------------------------------------------------------------------------------------


@final
class RowStore:
    """Records of one side, numbered as they come, chained by the slot of their key. All types are ``can_be_kept``."""

    def __init__(self, schema: pa.Schema) -> None:
        import numpy as np

        from engine.state.paged_array import PagedArray
        from engine.state.slot_columns import state_column

        self.schema = schema
        self.num_rows = 0
        self._columns = [state_column(kind) for kind in schema.types]
        self._slots = PagedArray(np.int32)
        self._links = PagedArray(np.int64, 2)
        self._ends = PagedArray(np.int64, 2)

    @property
    def chains(self) -> tuple[Array, Array]:
        """``links`` and ``ends`` of the kernels; good until the next change."""
        return self._links.array, self._ends.array

    @property
    def times_ms(self) -> Array:
        times: Array = self._links.array[: self.num_rows, 0]
        return times

    @property
    def slots(self) -> Array:
        return self._slots.array[: self.num_rows]

    @property
    def nbytes(self) -> int:
        columns = sum(column.nbytes for column in self._columns)
        return columns + self._slots.nbytes + self._links.nbytes + self._ends.nbytes

    def reserve_slots(self, num_slots: int) -> None:
        self._ends.reserve(num_slots)

    def append(self, columns: pa.RecordBatch, times_ms: Array, slots: Array) -> None:
        """``slots``: of the keys, below what ``reserve_slots`` was last told."""
        from engine.operators.join_kernels import link_rows

        first, end = self.num_rows, self.num_rows + slots.size
        for own, column in zip(self._columns, columns.columns, strict=True):
            own.reserve(end)
            own.put(slice(first, end), column)
        self._slots.reserve(end)
        self._slots.array[first:end] = slots
        self._links.reserve(end)
        self._links.array[first:end, 0] = times_ms
        link_rows(slots, first, self._links.array, self._ends.array)
        self.num_rows = end

    def column(self, index: int, rows: Array) -> pa.Array:
        """Return the values of one field in these rows."""
        return self._columns[index].get(rows)

    def records(self, rows: Array) -> pa.RecordBatch:
        import pyarrow as pa

        arrays = [column.get(rows) for column in self._columns]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def keep(self, rows: Array, slot_of_slot: Array | None = None) -> None:
        """Forget all rows but these (rising numbers), which are numbered anew; ``slot_of_slot``: new slots, if any."""
        from engine.operators.join_kernels import link_rows

        for column in self._columns:
            column.compact(rows)
        slots = self._slots.array[rows]
        if slot_of_slot is not None:
            slots = slot_of_slot[slots]
        self._slots.array[: rows.size] = slots
        self._links.array[: rows.size, 0] = self._links.array[rows, 0]
        self._ends.array[:] = 0
        link_rows(slots, 0, self._links.array, self._ends.array)
        self.num_rows = rows.size


# --- checkpoints ------------------------------------------------------------------------------------------------------


def chunks_of(kept: Iterable[tuple[SideRecords, Array]], key_groups: Iterable[int]) -> dict[int, bytes]:
    """Return chunks by key group. ``kept``: records and the key group of each, in order of arrival."""
    import numpy as np
    import pyarrow as pa

    wanted = set(key_groups)
    streams: dict[tuple[int, int], tuple[Any, Any]] = {}
    for records, groups in kept:
        side = records.side
        rows = _with_times(records)
        order = np.argsort(groups, kind="stable")
        rows, groups = rows.take(pa.array(order)), groups[order]
        ends = (np.flatnonzero(np.diff(groups, append=-1)) + 1).tolist()
        begin = 0
        for end in ends:
            group = int(groups[begin])
            if group in wanted:
                if (group, side) not in streams:
                    sink = pa.BufferOutputStream()
                    streams[group, side] = sink, pa.ipc.new_stream(sink, rows.schema)
                told = {_WATERMARK: str(records.watermark_ms)}
                if records.partners is not None:
                    told[_PARTNERS.encode()] = "1"
                streams[group, side][1].write_batch(rows.slice(begin, end - begin), told)
            begin = end
    chunks: dict[int, bytes] = {}
    for group in sorted({group for group, _ in streams}):
        parts = []
        for side in range(_SIDES):
            content = b""
            if (group, side) in streams:
                sink, writer = streams[group, side]
                writer.close()
                content = sink.getvalue().to_pybytes()
            parts += [_LENGTH.pack(len(content)), content]
        chunks[group] = b"".join(parts)
    return chunks


def _with_times(records: SideRecords) -> pa.RecordBatch:
    import pyarrow as pa

    arrays, names = [pa.array(records.times_ms), pa.array(records.arrivals)], [_TIME, _ARRIVAL]
    if records.partners is not None:
        arrays.append(pa.array(records.partners))
        names.append(_PARTNERS)
    arrays += records.columns.columns
    rows = pa.RecordBatch.from_arrays(arrays, names=[*names, *records.columns.schema.names])
    return rows.replace_schema_metadata(records.columns.schema.metadata)


@final
@dataclass(frozen=True, slots=True)
class Told:
    """What an increment says of records in the layers below it. ``floors_ms``: by side, those with event times up to it
    are gone; ``gone``: so are those of slices of time that begin there, where ``slices`` are (size, offset), ms;
    ``watermark_ms``: the time has come as far."""

    floors_ms: tuple[int, int] | None = None
    gone: tuple[int, ...] = ()
    slices: tuple[int, int] = (1, 0)
    watermark_ms: int = TIME_MIN_MS

    def chunk(self, layer: bytes) -> bytes:
        """Return the chunk of a key group. ``layer``: its records, as ``chunks_of`` gives them, b"" = it has none."""
        content = json.dumps([self.floors_ms, self.gone, self.slices, self.watermark_ms]).encode()
        return _LENGTH.pack(-len(content)) + content + (layer or _LENGTH.pack(0) * _SIDES)

    @classmethod
    def of(cls, content: bytes) -> Told:
        floors_ms, gone, slices, watermark_ms = json.loads(content)
        return cls(None if floors_ms is None else tuple(floors_ms), tuple(gone), tuple(slices), watermark_ms)

    def left_of(self, records: SideRecords) -> SideRecords | None:
        """Return what is left of records below, None = nothing."""
        import numpy as np
        import pyarrow as pa

        times_ms = records.times_ms
        is_left = np.ones(times_ms.size, np.bool_)
        if self.floors_ms is not None:
            is_left &= times_ms > self.floors_ms[records.side]
        if self.gone:
            size, offset = self.slices
            is_left &= ~np.isin(times_ms - (times_ms - offset) % size, self.gone)
        rows = np.flatnonzero(is_left)
        if not rows.size:
            return None
        watermark_ms = max(self.watermark_ms, records.watermark_ms)
        columns = records.columns if rows.size == times_ms.size else records.columns.take(pa.array(rows))
        return SideRecords(records.side, columns, times_ms[rows], records.arrivals[rows], watermark_ms)


def records_in(chunk: bytes) -> Iterator[SideRecords]:
    """Yield what a chunk has: of each side in order of arrival."""
    yield from layer_of(chunk)[1]


def told_of(chunk: bytes) -> Told | None:
    """Return what a chunk says of the layers below it; None = it is no increment."""
    (size,) = _LENGTH.unpack_from(chunk) if chunk else (0,)
    return Told.of(chunk[_LENGTH.size : _LENGTH.size - size]) if size < 0 else None


def layer_of(chunk: bytes) -> tuple[Told | None, list[SideRecords]]:
    """Return what a chunk says of the layers below it, and its records: of several increments, what is left."""
    import pyarrow as pa

    from engine.state.arrow_views import values_of

    told: Told | None = None
    found: list[SideRecords] = []
    at = number = 0
    while at < len(chunk):
        (size,) = _LENGTH.unpack_from(chunk, at)
        at += _LENGTH.size
        if size < 0:
            own = Told.of(chunk[at : at - size])
            if not number:
                told = own
            found = [left for records in found if (left := own.left_of(records)) is not None]
            at -= size
            continue
        side, number = number % _SIDES, number + 1
        if size:
            with pa.ipc.open_stream(pa.py_buffer(chunk).slice(at, size)) as reader:
                for batch, metadata in reader.iter_batches_with_custom_metadata():
                    num = 3 if _PARTNERS.encode() in metadata else 2
                    columns = pa.RecordBatch.from_arrays(batch.columns[num:], names=batch.schema.names[num:])
                    columns = columns.replace_schema_metadata(batch.schema.metadata)
                    times_ms, arrivals, *partners = (values_of(batch.column(index)).copy() for index in range(num))
                    watermark_ms = int(metadata[_WATERMARK])
                    found.append(SideRecords(side, columns, times_ms, arrivals, watermark_ms, *partners))
        at += size
    return told, found


@final
class LeftRecords(LeftChunks):
    """What a join on columns has left in a checkpoint, for one on rows."""

    def take(self) -> Iterator[SideRecords]:
        """Yield, and forget, the records."""
        for pieces in self.take_groups():
            yield from pieces

    def take_groups(self) -> Iterator[Iterator[SideRecords]]:
        """As ``take``, key group by key group."""
        for chunk in self.take_chunks():
            yield in_order(records_in(chunk))
