"""Bytes between slots: frames, the handshake, and how elements become payloads and back. No socket here: ``transport``.

A frame is a 16-byte header (payload size, channel, kind) and a payload. Rows travel pickled, one list a frame, whatever
their size; Row objects of the same names as their values. Columns travel as they lie in memory, one behind the other,
or as Arrow IPC messages where they have nulls or values of many sizes (the schema once a channel either way), and are
read without a copy. Of tidy dictionaries the values go once (``sent_values``), of others with each batch. A blocking
partition spills the same frames. Either may be compressed: a frame by itself, where that makes it smaller.

Pickles are loaded only after the handshake named this very job: both ends are slots of one job, which run its user code
anyway.
"""

from __future__ import annotations

import enum
import pickle
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias, final

from engine.core.dictionaries import has_dictionary
from engine.core.errors import InternalError, UserCodeError
from engine.core.ids import JobID
from engine.core.late_dataclass import dataclass
from engine.core.record_class import class_from, class_pickle
from engine.core.records import ColumnBatch, Named, Row, RowBatch
from engine.protocol.stream import Element, Records
from engine.runtime.exchange.plain_columns import PlainColumns, bytes_of, field_of_times, widths_of
from engine.runtime.exchange.row_pickle import RowPickler, rows_of_values, values_of_rows
from engine.runtime.exchange.sent_values import (
    SentValues,
    numbered,
    numbers_of,
    numbers_schema,
    payload_of,
    read_values,
    with_values,
)

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "CODECS",
    "HEADER",
    "HELLO_SIZE",
    "PROTOCOL_VERSION",
    "Buffer",
    "Decoder",
    "Encoder",
    "Frame",
    "FrameKind",
    "RemoteError",
    "Subscribe",
    "check_hello",
    "estimate_row_bytes",
    "hello",
    "pack_frame",
]

Buffer: TypeAlias = bytes | bytearray | memoryview

#: Raised whenever a frame's meaning changes; slots of different versions refuse each other.
PROTOCOL_VERSION: Final = 5
#: payload size, channel, kind
HEADER: Final = struct.Struct("<QIB3x")
_HELLO: Final = struct.Struct("<4sHH32s")
_MAGIC: Final = b"FLX\x1a"
HELLO_SIZE: Final = _HELLO.size
#: flags, rows, bytes of timestamps (or which field they are); 16 bytes, so that what follows stays aligned for Arrow
_COLUMNS_HEAD: Final = struct.Struct("<H2xIQ")
_FLAG_SCALAR: Final = 1
_FLAG_STAMPS: Final = 2
_FLAG_NAMED: Final = 8
_FLAG_STREAM: Final = 4  # a whole IPC stream: dictionaries do not fit in a lone record batch message
_FLAG_PLAIN: Final = 16  # values of one column after the other, each column from a multiple of 8 bytes on
_FLAG_CLASS: Final = 64  # records are objects of the class that came last
_FLAG_NUMBERS: Final = 128  # columns in dictionaries have numbers; their values came before
_FLAG_TIMES_ARE_FIELD: Final = 256  # of plain columns: no timestamps of their own
_FLAG_KINDS: Final = 32  # behind the timestamps, a byte each, filled up to a multiple of 8
_ALIGNMENT: Final = 8
#: Buffers of a frame, which one system call should take; those of wider batches are joined.
_BUFFERS_MAX: Final = 64

#: How rows are pickled, said by the first byte: a list; a pair with timestamps; Rows of the same names as these, their
#: kinds, their values, and timestamps.
_BARE_ROWS: Final = b"\x00"
_STAMPED_ROWS: Final = b"\x01"
_ROW_VALUES: Final = b"\x02"

#: What frames may be compressed with, by the number in front of one that is.
CODECS: Final = ("lz4", "zstd")
#: number of the codec, size before
_PACKED_HEAD: Final = struct.Struct("<B7xQ")
#: Below this a frame is as it is: little to gain, and latency to lose.
_PACKED_MIN: Final = 512

_SAMPLE_BYTES_MAX: Final = 64 << 10
_UNKNOWN_ROW_BYTES: Final = 256
#: Rows of which one sample is pickled to guess the size of all, before a frame was sent.
_SAMPLE_ROWS: Final = 4


class FrameKind(enum.IntEnum):
    # consumer → producer
    SUBSCRIBE = 1
    ADD_CREDIT = 2
    UNSUBSCRIBE = 3
    # producer → consumer
    WELCOME = 10
    REFUSED = 11
    ROWS = 12
    COLUMNS = 13
    SCHEMA = 14
    EVENT = 15
    ERROR = 16
    PACKED_ROWS = 17
    PACKED_COLUMNS = 18
    RECORD_CLASS = 19
    VALUES = 20  # of a column in a dictionary

    @property
    def is_records(self) -> bool:
        """Whether a frame of this kind uses up a credit."""
        return self in (FrameKind.ROWS, FrameKind.COLUMNS, FrameKind.PACKED_ROWS, FrameKind.PACKED_COLUMNS)


@dataclass(frozen=True, slots=True)
class Frame:
    """An encoded element, or a part of one (a schema, a class, the values of a dictionary)."""

    kind: FrameKind
    buffers: Sequence[Buffer]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Subscribe:
    partition_id: str
    subpartition_index: int
    credit: int


@dataclass(frozen=True, slots=True)
class RemoteError:
    """The producer cannot serve a channel."""

    message: str
    is_user_error: bool = False


def pack_frame(kind: FrameKind, channel: int, payload: Buffer = b"") -> bytes:
    """Return a small frame as one piece of bytes."""
    return HEADER.pack(len(payload), channel, kind) + bytes(payload)


def hello(job_id: JobID) -> bytes:
    """Return the first bytes that a consumer sends."""
    return _HELLO.pack(_MAGIC, PROTOCOL_VERSION, 0, job_id.encode())


def check_hello(data: Buffer, job_id: JobID) -> str:
    """Return why a peer with this greeting is refused, or "" if it is welcome."""
    magic, version, _, peer_job = _HELLO.unpack(data)
    if magic != _MAGIC:
        return "the peer does not speak the exchange protocol"
    if version != PROTOCOL_VERSION:
        return f"the peer speaks version {version} of the exchange protocol, this slot {PROTOCOL_VERSION}"
    if peer_job != job_id.encode():
        return f"this slot belongs to job {job_id}, the peer asked for job {peer_job.decode('ascii', 'replace')}"
    return ""


# --- rows --------------------------------------------------------------------------------------------------------


def estimate_row_bytes(batch: RowBatch) -> float:
    """Return about how many bytes a row of the batch takes on the wire, from a sample."""
    step = max(1, len(batch.rows) // _SAMPLE_ROWS)
    size = num = 0
    for row in batch.rows[: step * _SAMPLE_ROWS : step]:
        try:
            size += len(RowPickler().dump([row], row._values if type(row) is Row else row))
        except UserCodeError:
            return _UNKNOWN_ROW_BYTES  # inside one slot it may pass all the same
        num += 1
        if size > _SAMPLE_BYTES_MAX:
            break
    return size / num


# --- encode and decode ---------------------------------------------------------------------------------------------


@final
class Encoder:
    """Turns the elements of one channel into frames. Holds what the channel's reader knows: schema and classes.
    ``codec``: one of CODECS that records are compressed with; "" = they are not."""

    def __init__(self, operator_name: str = "", codec: str = "") -> None:
        self._codec = codec
        self._plain = PlainColumns()  #: knows the schema that the reader has
        self._has_others = False  #: it has dictionaries that do not go by themselves
        self._numbers: pa.Schema | None = None  #: it with numbers where there are dictionaries that do
        self._sent = SentValues()
        self._record_class: type | None = None  #: the one that the reader has
        self._rows = RowPickler(operator_name)

    def encode(self, element: Element) -> list[Frame]:
        frames = self._encoded(element)
        return [_packed(frame, self._codec) for frame in frames] if self._codec else frames

    def _encoded(self, element: Element) -> list[Frame]:
        if type(element) is not Records:
            payload = pickle.dumps(element, 5)
            return [Frame(FrameKind.EVENT, (payload,), len(payload))]
        batch = element.batch
        if type(batch) is RowBatch:
            stamps = batch.timestamps_ms
            if (values := values_of_rows(batch.rows)) is not None:
                payload = self._rows.dump(batch.rows, (*values, stamps), values[2])
                return [Frame(FrameKind.ROWS, (_ROW_VALUES, payload), len(payload) + 1)]
            payload = self._rows.dump(batch.rows, batch.rows if stamps is None else (batch.rows, stamps))
            head = _BARE_ROWS if stamps is None else _STAMPED_ROWS
            return [Frame(FrameKind.ROWS, (head, payload), len(payload) + 1)]
        assert isinstance(batch, ColumnBatch), batch
        return self._encode_columns(batch)

    def _encode_columns(self, batch: ColumnBatch) -> list[Frame]:
        columns = batch.columns
        frames: list[Frame] = []
        flags = _FLAG_SCALAR if batch.scalar else 0
        if isinstance(batch.named, type):
            flags |= _FLAG_CLASS
            if batch.named is not self._record_class:
                self._record_class = batch.named
                pickled = class_pickle(batch.named)
                frames.append(Frame(FrameKind.RECORD_CLASS, (pickled,), len(pickled)))
        elif batch.named:
            flags |= _FLAG_NAMED
        kinds: Buffer = b""
        if batch.kinds is not None:
            flags |= _FLAG_KINDS
            kinds = batch.kinds.astype("i1", copy=False).tobytes() + bytes(-len(batch) % _ALIGNMENT)
        values: list[Buffer]
        field = -1
        known = self._plain.schema
        if self._numbers is not None or known is None or not known.equals(columns.schema):
            columns = self._chosen(columns, frames)
        if self._has_others:
            flags |= _FLAG_STREAM
            values = [_as_stream(columns)]
        elif (widths := self._plain.widths_as_seen(columns)) is not None:
            flags |= _FLAG_PLAIN
            values = _plain_values(columns, widths)
            field = field_of_times(columns, batch.timestamps_ms, widths)
        else:
            numbers = columns if self._numbers is None else numbers_of(columns, self._numbers)
            values = [memoryview(numbers.serialize())]
        if self._numbers is not None:
            flags |= _FLAG_NUMBERS
        stamps: Buffer = b""
        if field >= 0:
            flags |= _FLAG_TIMES_ARE_FIELD
        elif batch.timestamps_ms is not None:
            flags |= _FLAG_STAMPS
            stamps = batch.timestamps_ms.astype("<i8", order="C", copy=False).data.cast("B")
        head = _COLUMNS_HEAD.pack(flags, columns.num_rows, len(stamps) if field < 0 else field)
        beside = [own for own in (stamps, kinds) if own]
        buffers: list[Buffer] = [head, *beside, *values]
        frames.append(Frame(FrameKind.COLUMNS, buffers, sum(map(len, buffers))))
        return frames

    def _chosen(self, columns: pa.RecordBatch, frames: list[Frame]) -> pa.RecordBatch:
        """Return the columns as they are to go, with or without dictionaries; add what the reader needs before."""
        fresh: dict[int, pa.Array] = {}
        if any(map(has_dictionary, columns.schema.types)):
            columns, fresh = self._sent.chosen(columns)
        if self._plain.see(columns.schema):
            schema = columns.schema
            tidy = set(numbered(schema))
            self._has_others = any(has_dictionary(kind) for at, kind in enumerate(schema.types) if at not in tidy)
            self._numbers = numbers_schema(schema) if tidy and not self._has_others else None
            if not self._has_others:
                content = bytes(memoryview(schema.serialize()))
                frames.append(Frame(FrameKind.SCHEMA, (content,), len(content)))
        for place, values in fresh.items():
            payload = payload_of(place, values)
            frames.append(Frame(FrameKind.VALUES, payload, sum(map(len, payload))))
        return columns


_PACKED: Final = {FrameKind.ROWS: FrameKind.PACKED_ROWS, FrameKind.COLUMNS: FrameKind.PACKED_COLUMNS}
_UNPACKED: Final = {packed: plain for plain, packed in _PACKED.items()}


def _packed(frame: Frame, codec: str) -> Frame:
    """Return a frame of records compressed, or as it is if that does not make it smaller."""
    kind = _PACKED.get(frame.kind)
    if kind is None or frame.size_bytes < _PACKED_MIN:
        return frame
    import pyarrow as pa

    content = pa.compress(b"".join(frame.buffers), codec, asbytes=True)
    head = _PACKED_HEAD.pack(CODECS.index(codec), frame.size_bytes)
    size_bytes = len(head) + len(content)
    return Frame(kind, (head, content), size_bytes) if size_bytes < frame.size_bytes else frame


def _as_stream(columns: pa.RecordBatch) -> memoryview:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, columns.schema) as writer:
        writer.write_batch(columns)
    return memoryview(sink.getvalue())


def _plain_values(columns: pa.RecordBatch, widths: tuple[int, ...]) -> list[Buffer]:
    """Return the memory of the columns itself: nothing is copied before the socket does it."""
    values: list[Buffer] = []
    for column, width in zip(columns.columns, widths, strict=True):
        own = bytes_of(column, width)
        values.append(own)
        if padding := -len(own) % _ALIGNMENT:
            values.append(bytes(padding))
    return values if len(values) < _BUFFERS_MAX else [b"".join(values)]


@final
class Decoder:
    """Turns the frames of one channel back into elements. ``payload`` may be kept by the element that comes out."""

    def __init__(self) -> None:
        self._schema: pa.Schema | None = None
        self._widths: tuple[int, ...] | None = None
        self._whole: pa.Schema | None = None  #: with dictionaries, where ``_schema`` has numbers
        self._values: dict[int, pa.Array] = {}  #: of dictionaries, by place
        self._record_class: type | None = None

    def decode(self, kind: FrameKind, payload: Buffer) -> Element | RemoteError | None:
        """Return the element, or None when the frame only prepares the next ones."""
        match kind:
            case FrameKind.ROWS:
                view = memoryview(payload)
                return Records(_decoded_rows(view[:1], pickle.loads(view[1:])))
            case FrameKind.COLUMNS:
                return Records(self._decode_columns(payload))
            case FrameKind.PACKED_ROWS | FrameKind.PACKED_COLUMNS:
                import pyarrow as pa

                number, size_bytes = _PACKED_HEAD.unpack_from(payload)
                content = pa.decompress(memoryview(payload)[_PACKED_HEAD.size :], size_bytes, CODECS[number])
                return self.decode(_UNPACKED[kind], memoryview(content))
            case FrameKind.SCHEMA:
                import pyarrow as pa

                self._schema = pa.ipc.read_schema(pa.py_buffer(payload))
                self._whole = self._schema if numbered(self._schema) else None
                if self._whole is not None:
                    self._schema = numbers_schema(self._whole)
                self._widths = widths_of(self._schema)
                return None
            case FrameKind.RECORD_CLASS:
                self._record_class = class_from(bytes(payload))
                return None
            case FrameKind.VALUES:
                place, values = read_values(payload)
                self._values[place] = values
                return None
            case FrameKind.EVENT:
                event: Element = pickle.loads(payload)
                return event
            case FrameKind.ERROR:
                error: RemoteError = pickle.loads(payload)
                return error
            case _:
                raise InternalError(f"Frame kind {kind.name} does not belong in a channel.")

    def _decode_columns(self, payload: Buffer) -> ColumnBatch:
        import numpy as np
        import pyarrow as pa

        from engine.state.arrow_views import kernel_view

        flags, num_rows, stamps_size = _COLUMNS_HEAD.unpack_from(payload)
        start = _COLUMNS_HEAD.size
        field = -1
        if flags & _FLAG_TIMES_ARE_FIELD:
            field, stamps_size = stamps_size, 0
        stamps = None
        if flags & _FLAG_STAMPS:
            stamps = kernel_view(np.frombuffer(payload, dtype="<i8", count=stamps_size // 8, offset=start))
        start += stamps_size
        kinds = None
        if flags & _FLAG_KINDS:
            kinds = kernel_view(np.frombuffer(payload, dtype="i1", count=num_rows, offset=start))
            start += num_rows + -num_rows % _ALIGNMENT
        message = pa.py_buffer(payload).slice(start)
        if flags & _FLAG_PLAIN:
            columns = self._plain_columns(message, num_rows)
            if field >= 0:
                stamps = kernel_view(np.frombuffer(columns.column(field).buffers()[1], "<i8"))
        elif flags & _FLAG_STREAM:
            columns = pa.ipc.open_stream(message).read_next_batch()
        else:
            assert self._schema is not None, "columns before their schema"
            columns = pa.ipc.read_record_batch(message, self._schema)
        if flags & _FLAG_NUMBERS:
            assert self._whole is not None, "numbers without a schema that has dictionaries"
            columns = with_values(columns, self._values, self._whole)
        named: Named = bool(flags & _FLAG_NAMED)
        if flags & _FLAG_CLASS:
            assert self._record_class is not None, "objects before their class"
            named = self._record_class
        return ColumnBatch(columns, stamps, bool(flags & _FLAG_SCALAR), named, kinds)

    def _plain_columns(self, values: pa.Buffer, num_rows: int) -> pa.RecordBatch:
        import pyarrow as pa

        schema, widths = self._schema, self._widths
        assert schema is not None, "columns before their schema"
        assert widths is not None, f"columns of {schema.types} are not plain"
        arrays: list[pa.Array] = []
        at = 0
        for kind, width in zip(schema.types, widths, strict=True):
            size = num_rows * width
            arrays.append(pa.Array.from_buffers(kind, num_rows, [None, values.slice(at, size)], 0))
            at += size + -size % _ALIGNMENT
        assert at == values.size, (at, values.size, num_rows)
        return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _decoded_rows(head: memoryview, content: Any) -> RowBatch:
    if head == _BARE_ROWS:
        return RowBatch(content)
    if head == _STAMPED_ROWS:
        return RowBatch(content[0], content[1])
    *values, stamps = content
    return RowBatch(rows_of_values(*values), stamps)
