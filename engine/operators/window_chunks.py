"""Chunks of windows over columns: Arrow IPC streams of one key group, whose batches are of one pane each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

__all__ = ["empty_chunk", "streams"]


def streams(
    pieces: Iterable[tuple[int, pa.RecordBatch, int]], metadata: Mapping[str | bytes, str | bytes]
) -> dict[int, bytes]:
    """Return the chunks by key group that have these pieces."""
    begun: dict[int, tuple[Any, Any]] = {}
    for group, rows, watermark_ms in pieces:
        if group not in begun:
            sink = pa.BufferOutputStream()
            begun[group] = sink, pa.ipc.new_stream(sink, rows.schema.with_metadata(metadata))
        begun[group][1].write_batch(rows, {"watermark": str(watermark_ms)})
    chunks = {}
    for group, (sink, writer) in begun.items():
        writer.close()
        chunks[group] = sink.getvalue().to_pybytes()
    return chunks


def empty_chunk(metadata: Mapping[str | bytes, str | bytes]) -> bytes:
    """Return the chunk of a key group without windows."""
    sink = pa.BufferOutputStream()
    pa.ipc.new_stream(sink, pa.schema([], metadata)).close()
    content: bytes = sink.getvalue().to_pybytes()
    return content
