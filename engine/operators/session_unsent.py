"""What sessions on columns had to send, and had not sent yet, when a checkpoint was made of them in files.

Records for sessions in files wait, and so does the time. Who makes a checkpoint takes them up, and may send nothing:
what fires then, and what came too late, stands behind the sessions in the chunk, as streams of their own. Who reads a
chunk for its sessions sees the first stream only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.records import ColumnBatch, Named

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

__all__ = ["DUE", "LATE", "Unsent", "late_rows", "metadata_of"]

#: Kinds of streams: sessions that fire, in the columns of a chunk, and records that came too late.
DUE: Final = b"due"
LATE: Final = b"late"
_KIND: Final = b"kind"
_NAMED: Final = b"named"


@final
class Unsent:
    """To be sent before anything else. ``due``: rows of chunks."""

    def __init__(self) -> None:
        self.due: list[pa.RecordBatch] = []
        self.late: list[ColumnBatch] = []

    def __bool__(self) -> bool:
        return bool(self.due or self.late)

    def num_entries(self) -> int:
        return sum(map(len, self.late)) + sum(rows.num_rows for rows in self.due)

    def restore(self, chunk: bytes) -> None:
        for schema, batches in _streams_behind(chunk):
            if schema.metadata[_KIND] == DUE:
                self.due += batches
            else:
                self.late += (_late_batch(rows, schema.metadata.get(_NAMED) == b"1") for rows in batches)

    def add(self, other: Unsent) -> None:
        self.due += other.due
        self.late += other.late


def metadata_of(kind: bytes, *, named: Named = False) -> dict[bytes, bytes]:
    """Return what a stream of this kind says of itself."""
    return {_KIND: kind, _NAMED: b"1" if named else b"0"}


def late_rows(columns: pa.RecordBatch, times_ms: Array) -> pa.RecordBatch:
    """Return records that came too late as a stream has them: event times behind their fields."""
    import pyarrow as pa

    arrays = [*columns.columns, pa.array(times_ms, pa.int64())]
    return pa.RecordBatch.from_arrays(arrays, names=[*columns.schema.names, "time"])


def _late_batch(rows: pa.RecordBatch, named: Named) -> ColumnBatch:
    import pyarrow as pa

    *columns, times_ms = rows.columns
    own = pa.RecordBatch.from_arrays(columns, names=rows.schema.names[:-1])
    return ColumnBatch(own, times_ms.to_numpy(zero_copy_only=False), named=named)


def _streams_behind(chunk: bytes) -> Iterator[tuple[pa.Schema, Iterable[pa.RecordBatch]]]:
    """Yield the streams behind the first one, whole."""
    import pyarrow as pa

    source, is_first = pa.BufferReader(chunk), True
    while source.tell() < len(chunk):
        reader = pa.ipc.open_stream(source)
        batches = list(reader)
        if not is_first:
            yield reader.schema, batches
        is_first = False
