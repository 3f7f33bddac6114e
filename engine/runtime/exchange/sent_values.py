"""Dictionaries on their way: the values of a column go once, the numbers of rows with each batch.

A channel whose dictionaries change with each batch, or that gets few rows of each, would carry more bytes than the
values themselves are. So a dictionary goes when what has been sent, or would be, without it is as much as itself: never
more than twice of what would have been best. Until then its column goes without one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from engine.core.dictionaries import is_tidy, is_tidy_type, plain_column, same_values

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SentValues", "numbered", "numbers_of", "numbers_schema", "payload_of", "read_values", "with_values"]

_NUMBER_BYTES = 4


@final
class SentValues:
    """What the reader of one channel has, by column; of the producer."""

    def __init__(self) -> None:
        self._sent: dict[int, pa.Array] = {}
        #: a dictionary that has not gone, and the bytes that it would have saved
        self._waiting: dict[int, tuple[pa.Array, float]] = {}

    def chosen(self, columns: pa.RecordBatch) -> tuple[pa.RecordBatch, dict[int, pa.Array]]:
        """Return the columns as they are to go, and the values by place that must go before."""
        import pyarrow as pa

        arrays, fresh, is_changed = columns.columns, {}, False
        for place, column in enumerate(arrays):
            if not is_tidy(column):
                continue
            if not self._has(place, column):
                if self._is_worth(place, column):
                    fresh[place] = self._sent[place] = column.dictionary
                    self._waiting.pop(place, None)
                else:
                    arrays[place], is_changed = plain_column(column), True
        if not is_changed:
            return columns, fresh
        return pa.RecordBatch.from_arrays(arrays, names=columns.schema.names), fresh

    def _has(self, place: int, column: pa.Array) -> bool:
        sent = self._sent.get(place)
        return sent is not None and same_values(sent, column.dictionary)

    def _is_worth(self, place: int, column: pa.Array) -> bool:
        values = column.dictionary
        own_bytes = values.nbytes
        saved = len(column) * (own_bytes / max(1, len(values)) - _NUMBER_BYTES)
        waiting = self._waiting.get(place)
        if waiting is not None and same_values(waiting[0], values):
            saved += waiting[1]
        self._waiting[place] = values, saved
        return saved >= own_bytes


def numbered(schema: pa.Schema) -> list[int]:
    """Return the places of tidy columns; of a schema in which no other column has dictionaries."""
    return [place for place, kind in enumerate(schema.types) if is_tidy_type(kind)]


def numbers_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema with the numbers of tidy columns in their places."""
    import pyarrow as pa

    return pa.schema([field.with_type(pa.int32()) if is_tidy_type(field.type) else field for field in schema])


def payload_of(place: int, values: pa.Array) -> tuple[bytes, memoryview]:
    """Return the payload that ``read_values`` takes."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    batch = pa.record_batch([values], names=["values"])
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return place.to_bytes(8, "little"), memoryview(sink.getvalue())


def read_values(payload: Any) -> tuple[int, pa.Array]:
    import pyarrow as pa

    stream = pa.ipc.open_stream(pa.py_buffer(payload).slice(8))
    return int.from_bytes(memoryview(payload)[:8], "little"), stream.read_next_batch().column(0)


def numbers_of(columns: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return the columns with the numbers of tidy ones in their places. ``schema``: of that."""
    import pyarrow as pa

    arrays = [column.indices if pa.types.is_dictionary(column.type) else column for column in columns.columns]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def with_values(columns: pa.RecordBatch, values: dict[int, pa.Array], schema: pa.Schema) -> pa.RecordBatch:
    """Return what ``numbers_of`` was made from. ``values``: of all tidy columns of ``schema``."""
    import pyarrow as pa

    arrays = columns.columns
    for place in numbered(schema):
        arrays[place] = pa.DictionaryArray.from_arrays(arrays[place], values[place], safe=False)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
