"""Small things that columnar operators share: fields of a schema, batches without dictionaries."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["column_index", "plain_columns"]


def column_index(schema: pa.Schema, field: int | str) -> int:
    """Return the column that a field names, by position (negative: from the end) or name; -1 if there is none."""
    if isinstance(field, str):
        return int(schema.get_field_index(field))
    index = field + len(schema) if field < 0 else field
    return index if 0 <= index < len(schema) else -1


def plain_columns(columns: pa.RecordBatch) -> pa.RecordBatch:
    """Return the columns with dictionaries replaced by their values."""
    import pyarrow as pa

    if not any(pa.types.is_dictionary(kind) for kind in columns.schema.types):
        return columns
    arrays = [column.dictionary_decode() if pa.types.is_dictionary(column.type) else column for column in columns.columns]
    return pa.RecordBatch.from_arrays(arrays, names=columns.schema.names)
