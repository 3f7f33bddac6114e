"""Columns in dictionaries: each value once, and a number of it for each row.

Sources that find texts so, and functions of whole batches, hand them on; who cannot use them asks for
``plain_columns``. A *tidy* column has texts or bytes, numbers of 32 bits and no null among its values: such a one goes
through the exchange as it is, and keys in it are looked up once a value. All else becomes plain where it comes in
(``Tidying``). A dictionary that several batches have is one array: ``same_values`` looks at addresses, not at values.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "Tidying",
    "bytes_of_rows",
    "has_dictionary",
    "is_text",
    "is_tidy",
    "is_tidy_type",
    "plain_column",
    "plain_columns",
    "plain_schema",
    "plain_type",
    "same_values",
]

#: A dictionary that comes for the first time has at most this share of its batch's rows: above, nothing is gained by it
#: unless it comes again (decision 74).
_SHARE_MAX: Final = 0.5


def has_dictionary(kind: pa.DataType) -> bool:
    """Whether values of this type, or something inside of them, are in dictionaries."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return True
    return bool(kind.num_fields) and any(has_dictionary(kind.field(place).type) for place in range(kind.num_fields))


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the same values without dictionaries."""
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if not has_dictionary(kind):
        return kind
    if types.is_struct(kind):
        return pa.struct([_plain_field(field) for field in kind])
    if types.is_map(kind):
        return pa.map_(_plain_field(kind.key_field), _plain_field(kind.item_field))
    if types.is_large_list(kind):
        return pa.large_list(_plain_field(kind.value_field))
    if types.is_fixed_size_list(kind):
        return pa.list_(_plain_field(kind.value_field), kind.list_size)
    return pa.list_(_plain_field(kind.value_field)) if types.is_list(kind) else kind


def _plain_field(field: pa.Field) -> pa.Field:
    return field.with_type(plain_type(field.type))


def plain_column(column: pa.Array) -> pa.Array:
    """Return the same values without dictionaries."""
    import pyarrow as pa

    while pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    wanted = plain_type(column.type)
    return column if wanted is column.type or wanted == column.type else column.cast(wanted)


def plain_columns(columns: pa.RecordBatch, tidy: Callable[[], Collection[int]] | None = None) -> pa.RecordBatch:
    """Return the columns without dictionaries, the same object if they have none. ``tidy``, asked otherwise: the places
    of columns that keep theirs if they are tidy."""
    import pyarrow as pa

    kinds = columns.schema.types
    if not any(map(has_dictionary, kinds)):
        return columns
    kept = () if tidy is None else tidy()
    arrays = [
        column if place in kept and is_tidy(column) else plain_column(column)
        for place, column in enumerate(columns.columns)
    ]
    return pa.RecordBatch.from_arrays(arrays, names=columns.schema.names)


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema of the same columns without dictionaries."""
    import pyarrow as pa

    return pa.schema(list(map(_plain_field, schema)), schema.metadata)


def bytes_of_rows(columns: pa.RecordBatch) -> int:
    """Return the bytes of the columns, without the values of dictionaries, which are the same for many batches."""
    import pyarrow as pa

    kinds = columns.schema.types
    if not any(map(pa.types.is_dictionary, kinds)):
        return int(columns.nbytes)
    return sum((own.indices if pa.types.is_dictionary(own.type) else own).nbytes for own in columns.columns)


def is_tidy_type(kind: pa.DataType) -> bool:
    """Whether a column of this type is tidy unless there are nulls among its values."""
    import pyarrow as pa

    if not pa.types.is_dictionary(kind) or kind.index_type != pa.int32():
        return False
    return is_text(kind.value_type)


def is_text(kind: pa.DataType) -> bool:
    """Whether values are texts or bytes, of any length."""
    import pyarrow as pa

    types = pa.types
    is_short = types.is_string(kind) or types.is_binary(kind)
    return bool(is_short or types.is_large_string(kind) or types.is_large_binary(kind))


def is_tidy(column: pa.Array) -> bool:
    return is_tidy_type(column.type) and not column.dictionary.null_count


def same_values(left: pa.Array, right: pa.Array) -> bool:
    """Whether both are the same place in memory. Somebody must hold on to them, else it may be another's by now."""
    if left is right:
        return True
    if len(left) != len(right) or left.offset != right.offset or left.type != right.type:
        return False
    buffers = zip(left.buffers(), right.buffers(), strict=True)
    return all((a and a.address) == (b and b.address) for a, b in buffers)


@final
class Tidying:
    """Makes the columns of one stream tidy or plain, and gives equal dictionaries that follow each other one array."""

    def __init__(self) -> None:
        #: by place: the values of the last dictionary, whether it was kept or not
        self._last: dict[int, pa.Array] = {}

    def of(self, columns: pa.RecordBatch) -> pa.RecordBatch:
        import pyarrow as pa

        kinds = columns.schema.types
        if not any(map(has_dictionary, kinds)):
            return columns
        arrays = [
            self._tidied(place, column) if has_dictionary(column.type) else column
            for place, column in enumerate(columns.columns)
        ]
        return pa.RecordBatch.from_arrays(arrays, names=columns.schema.names)

    def _tidied(self, place: int, column: pa.Array) -> pa.Array:
        import pyarrow as pa

        if not pa.types.is_dictionary(column.type) or not is_text(column.type.value_type):
            return plain_column(column)
        values = column.dictionary
        last = self._last.get(place)
        comes_again = last is not None and (same_values(values, last) or values.equals(last))
        if comes_again:
            values = last
        else:
            self._last[place] = values
        if values.null_count or not (comes_again or len(values) <= _SHARE_MAX * len(column)):
            return plain_column(column)
        indices = column.indices
        if indices.type != pa.int32():
            indices = indices.cast(pa.int32())
        return pa.DictionaryArray.from_arrays(indices, values, safe=False)
