"""Columns whose values lie side by side and have no nulls: what the exchange moves as bytes, without asking Arrow.

Of a column in a dictionary these are the numbers of its rows, if it may be tidy (``core/dictionaries``).

Not here: how they are laid out by channel (``column_scatter``) and what a frame of them looks like (``wire``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.core.dictionaries import is_tidy_type

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["PlainColumns", "address_of", "address_of_array", "bytes_of", "field_of_times", "widths_of"]

_BITS = (8, 16, 32, 64)


class PlainColumns:
    """Knows of the schema that it saw last whether its columns may be plain; so a stream is asked once."""

    def __init__(self) -> None:
        #: the first of the equal ones that came in a row, and the widths of its columns if they may be plain
        self.schema: pa.Schema | None = None
        self.known_widths: tuple[int, ...] | None = None

    def see(self, schema: pa.Schema) -> bool:
        """Return whether it is another one than before."""
        if self.schema is not None and (self.schema is schema or self.schema.equals(schema)):
            return False
        self.schema, self.known_widths = schema, widths_of(schema)
        return True

    def widths(self, columns: pa.RecordBatch) -> tuple[int, ...] | None:
        """Return the bytes of a value of each column; None if one is of another kind, or has nulls."""
        self.see(columns.schema)
        return self.widths_as_seen(columns)

    def widths_as_seen(self, columns: pa.RecordBatch) -> tuple[int, ...] | None:
        """The same of columns whose schema was the last one to be seen."""
        if self.known_widths is None:
            return None
        for column in columns.columns:
            if column.null_count:
                return None
        return self.known_widths


def widths_of(schema: pa.Schema) -> tuple[int, ...] | None:
    """Return the bytes of a value of each column; None if there are none or one is of another kind."""
    import pyarrow as pa

    if not len(schema):
        return None  # only a batch that says it can have rows without columns
    kinds = [pa.int32() if is_tidy_type(kind) else kind for kind in schema.types]
    if not all(pa.types.is_primitive(kind) and kind.bit_width in _BITS for kind in kinds):
        return None
    return tuple(kind.bit_width // 8 for kind in kinds)


def bytes_of(column: pa.Array, width: int) -> memoryview:
    """Return the values of a plain column, ``width`` bytes each; no copy."""
    start, size = column.offset * width, len(column) * width
    buffer = column.buffers()[1]
    return memoryview(b"" if buffer is None else buffer)[start : start + size]


def address_of(column: pa.Array, width: int) -> int:
    """Return where the values of a plain column that is not empty begin."""
    address: int = column.buffers()[1].address
    return address + column.offset * width


def address_of_array(array: np.ndarray[Any, Any]) -> int:
    """Return where the values of an array begin."""
    address: int = array.__array_interface__["data"][0]
    return address


def field_of_times(columns: pa.RecordBatch, times: np.ndarray[Any, Any] | None, widths: tuple[int, ...]) -> int:
    """Return which field of a batch that is not empty its event times are, in the very same memory; -1 if none. Most
    programs take them from a field; then they need not be moved beside it."""
    if times is None or not times.size or not times.flags.c_contiguous:
        return -1
    address = address_of_array(times)
    for index, (column, width) in enumerate(zip(columns.columns, widths, strict=True)):
        if width == times.itemsize and address_of(column, width) == address:
            return index
    return -1
