"""Chunks of columnar state: Arrow IPC streams of the rows of one key group."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["GONE", "GONE_KEYS", "INCREMENT", "KIND", "WATERMARK", "by_group", "empty_chunk", "streams"]

#: In the metadata of an increment of windows: where slices of time begin that are gone, and how far the time is.
GONE: Final = b"gone"
WATERMARK: Final = b"watermark"
#: In that of sessions: that it is an increment, all of whose keys take the place of what was there of them; of streams
#: behind the first, what they are; and of these, keys that have no session any more.
INCREMENT: Final = b"increment"
KIND: Final = b"kind"
GONE_KEYS: Final = b"gone-keys"


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


def by_group(rows: pa.RecordBatch, groups: Any, wanted: Container[int]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Cut rows by their key groups, an array of integers, in whose order those come that are wanted."""
    import numpy as np

    from engine.core.arrow_arrays import arrow_of

    groups = groups.astype(np.uint16)
    order = np.argsort(groups, kind="stable")
    groups, rows, begin = groups[order], rows.take(arrow_of(order)), 0
    for end in [*(np.flatnonzero(groups[1:] != groups[:-1]) + 1).tolist(), groups.size]:
        if end > begin and int(groups[begin]) in wanted:
            yield int(groups[begin]), rows.slice(begin, end - begin)
        begin = end


def empty_chunk(metadata: Mapping[Any, str | bytes]) -> bytes:
    """Return the chunk of a key group without rows."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    pa.ipc.new_stream(sink, pa.schema([], metadata)).close()
    content: bytes = sink.getvalue().to_pybytes()
    return content
