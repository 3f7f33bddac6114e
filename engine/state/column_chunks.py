"""Chunks of columnar state: Arrow IPC streams of the rows of one key group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["GONE", "WATERMARK", "empty_chunk", "streams"]

#: In the metadata of an increment of windows: where slices of time begin that are gone, and how far the time is.
GONE: Final = b"gone"
WATERMARK: Final = b"watermark"


def streams(
    pieces: Iterable[tuple[int, pa.RecordBatch] | tuple[int, pa.RecordBatch, dict[str, str]]],
    metadata: Mapping[Any, str | bytes],
) -> dict[int, bytes]:
    """Return the chunks by key group that have these pieces: (key group, rows[, what the batch says of itself])."""
    import pyarrow as pa

    begun: dict[int, tuple[Any, Any]] = {}
    for group, rows, *own in pieces:
        if group not in begun:
            sink = pa.BufferOutputStream()
            begun[group] = sink, pa.ipc.new_stream(sink, rows.schema.with_metadata(metadata))
        begun[group][1].write_batch(rows, *own)
    chunks = {}
    for group, (sink, writer) in begun.items():
        writer.close()
        chunks[group] = sink.getvalue().to_pybytes()
    return chunks


def empty_chunk(metadata: Mapping[Any, str | bytes]) -> bytes:
    """Return the chunk of a key group without rows."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    pa.ipc.new_stream(sink, pa.schema([], metadata)).close()
    content: bytes = sink.getvalue().to_pybytes()
    return content
