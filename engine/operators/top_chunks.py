"""What a top-N on columns leaves in checkpoints, for itself and for one on rows.

A chunk is what one key group has: an Arrow IPC stream of records, those of a key in their order. The schema says
whether the records are Rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from engine.core.records import ColumnBatch, Named
from engine.operators.column_fields import is_named, named_schema
from engine.operators.computed_keys import own_records

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

__all__ = ["TOP_PART", "chunks_of", "columns_in", "rows_in"]

#: Name of the part of state in checkpoints, for good.
TOP_PART: Final = "top-records"


def chunks_of(
    pieces: Iterable[tuple[pa.RecordBatch, Array]], key_groups: Iterable[int], *, named: Named
) -> dict[int, bytes]:
    """Return chunks by key group. ``pieces``: records and the key group of each."""
    import numpy as np
    import pyarrow as pa

    wanted = set(key_groups)
    streams: dict[int, tuple[Any, Any]] = {}
    for records, groups in pieces:
        order = np.argsort(groups, kind="stable")
        rows, groups = records.take(pa.array(order)), groups[order]
        begin = 0
        for end in (np.flatnonzero(np.diff(groups, append=-1)) + 1).tolist():
            group = int(groups[begin])
            if group in wanted:
                if group not in streams:
                    sink = pa.BufferOutputStream()
                    schema = named_schema(rows.schema, named)
                    streams[group] = sink, pa.ipc.new_stream(sink, schema)
                streams[group][1].write_batch(rows.slice(begin, end - begin))
            begin = end
    chunks = {}
    for group, (sink, writer) in streams.items():
        writer.close()
        chunks[group] = sink.getvalue().to_pybytes()
    return chunks


def columns_in(chunk: bytes) -> Iterator[pa.RecordBatch]:
    """Yield the records of a chunk; the schema is that of the chunk."""
    import pyarrow as pa

    with pa.ipc.open_stream(pa.py_buffer(chunk)) as reader:
        yield from reader


def rows_in(chunk: bytes) -> list[Any]:
    """Return the records of a chunk as Python objects."""
    rows: list[Any] = []
    for columns in columns_in(chunk):
        rows += own_records(ColumnBatch(columns, named=is_named(columns.schema))).to_rows().rows
    return rows
