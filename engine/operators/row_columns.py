"""Typed rows → columns, where an operator on columns comes next: before the exchange, so that they cross it as columns.

What comes out is, read as rows again, what went in: value by value, type by type. A batch with one record that is not
exactly of the declared type (a ``bool`` or an ``IntEnum`` where an int is declared, an int beyond 64 bits, a subclass,
another length, a Row of another kind or with other names) stays rows, and so do all after it: the operator behind goes
on on rows for good then, and would have to make rows of columns. Integers and floats of all declared widths become
columns of 64 bits, as a Python object has them. None is a null. Where results of a ROW type would be made Rows
(``row_output``), tuples become columns as they are, and Rows only where they do not.

Rate: 40 to 50 ns a field and row, checks included (decision 0066). A batch of few rows takes 8 us here, and some 50 us
more than its pickle on its way through an exchange: it crosses as rows, and becomes columns behind it (decision 0073).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.arrow_arrays import arrow_of
from engine.core.records import Batch, ColumnBatch, Row, RowBatch, RowKind
from engine.core.type_info import BasicType, BasicTypeInfo, RowTypeInfo, TupleTypeInfo, TypeInformation
from engine.operators.row_output import row_maker

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SMALL_ROWS_MAX", "RowColumns", "column_kinds"]

#: A batch of at most so many rows costs less in an exchange than its columns would, made behind it or before.
SMALL_ROWS_MAX: Final = 128

_OF_BASIC: Final[dict[BasicType, type]] = {
    BasicType.STRING: str,
    BasicType.CHAR: str,
    BasicType.BYTE: int,
    BasicType.SHORT: int,
    BasicType.INT: int,
    BasicType.LONG: int,
    BasicType.FLOAT: float,
    BasicType.DOUBLE: float,
    BasicType.BOOLEAN: bool,
}


def column_kinds(type_info: TypeInformation | None) -> tuple[type, ...] | None:
    """Return the Python type of each field of such records, or None where they cannot become columns here."""
    if not isinstance(type_info, TupleTypeInfo) or not type_info.get_field_types():
        return None
    names = type_info.get_field_names()
    kinds = [
        _OF_BASIC.get(field.basic_type) if isinstance(field, BasicTypeInfo) else None
        for field in type_info.get_field_types()
    ]
    if len(set(names)) < len(names):
        return None
    found = tuple(kind for kind in kinds if kind is not None)
    return found if len(found) == len(kinds) else None


@final
class RowColumns:
    """Converts the batches of one stream. ``type_info``: one that has ``column_kinds``. ``makes_rows``: nobody has made
    Rows of what comes, so it is done here (ROW types only)."""

    def __init__(self, type_info: TypeInformation, *, makes_rows: bool = False) -> None:
        kinds = column_kinds(type_info)
        assert kinds is not None, type_info
        assert isinstance(type_info, TupleTypeInfo)
        #: the Python type of each field
        self.kinds = kinds
        #: whether the records are Rows
        self.is_named = isinstance(type_info, RowTypeInfo)
        self._names = tuple(type_info.get_field_names())
        self._fields = [itemgetter(index) for index in range(len(kinds))]
        self._make: Callable[[Any], Any] | None = None
        if makes_rows:
            assert isinstance(type_info, RowTypeInfo), type_info
            self._make = row_maker(type_info)
        #: a batch has come whose records are not exactly of the type
        self.is_over = False

    def of(self, batch: Batch) -> Batch:
        """Return the batch as columns, or as it is where they would not be the same records."""
        if not isinstance(batch, RowBatch):
            return batch
        columns = None if self.is_over else self._columns_of(batch)
        if columns is not None:
            return columns
        self.is_over = True
        return self.as_rows(batch)

    def as_rows(self, batch: RowBatch) -> RowBatch:
        """Return the batch as who reads it as rows has it."""
        return batch if self._make is None else RowBatch(list(map(self._make, batch.rows)), batch.timestamps_ms)

    def told(self) -> str:
        """Return what happens to the rows, for people."""
        return "results as columns" + (", until one was not of its type" if self.is_over else "")

    @cached_property
    def schema(self) -> pa.Schema:
        """Of the columns."""
        import pyarrow as pa

        kinds = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}
        return pa.schema([pa.field(name, kinds[kind]) for name, kind in zip(self._names, self.kinds, strict=True)])

    @cached_property
    def _types(self) -> list[pa.DataType]:
        return list(self.schema.types)

    def lists_of(self, batch: RowBatch) -> list[tuple[list[Any], type, bool]] | None:
        """Return the values of each field, their type, and whether some are None; or None if the records are not of
        the type. Integers may still be beyond 64 bits, and texts have halves of surrogate pairs."""
        num_rows = len(batch.rows)
        rows = self._values_of(batch.rows)
        if rows is None or list(map(len, rows)).count(len(self.kinds)) < num_rows:
            return None
        lists = []
        for field, kind in zip(self._fields, self.kinds, strict=True):
            values = list(map(field, rows))
            types = list(map(type, values))
            num = types.count(kind)
            if num < num_rows and num + types.count(type(None)) < num_rows:
                return None
            lists.append((values, kind, num < num_rows))
        return lists

    def _columns_of(self, batch: RowBatch) -> ColumnBatch | None:
        lists = self.lists_of(batch)
        if lists is None:
            return None
        import numpy as np
        import pyarrow as pa

        arrays: list[pa.Array] = []
        stamps = None
        try:
            for (values, kind, has_nulls), own in zip(lists, self._types, strict=True):
                array = _array_of(values, kind, own, has_nulls=has_nulls)
                if array is None:
                    return None
                arrays.append(array)
            if batch.timestamps_ms is not None:
                stamps = np.fromiter(batch.timestamps_ms, np.int64, len(batch.rows))
        except (OverflowError, UnicodeEncodeError, pa.ArrowException):
            return None  # beyond 64 bits, half of a surrogate pair
        return ColumnBatch(pa.RecordBatch.from_arrays(arrays, schema=self.schema), stamps, named=self.is_named)

    def _values_of(self, rows: list[Any]) -> list[Any] | None:
        """Return the fields of each record, as a tuple or list; None if one is no such record."""
        num_rows = len(rows)
        if not self.is_named or self._make is not None:
            if list(map(type, rows)).count(tuple) == num_rows:
                return rows
            if not self.is_named:
                return None
            rows = list(map(self._make, rows)) if self._make is not None else rows
        if (
            list(map(type, rows)).count(Row) < num_rows
            or list(map(_KIND_OF, rows)).count(RowKind.INSERT) < num_rows
            or list(map(_NAMES_OF, rows)).count(self._names) < num_rows
        ):
            return None
        return list(map(_VALUES_OF, rows))


_KIND_OF: Final = attrgetter("_kind")
_NAMES_OF: Final = attrgetter("_fields")
_VALUES_OF: Final = attrgetter("_values")


def _array_of(values: list[Any], kind: type, own: pa.DataType, *, has_nulls: bool) -> pa.Array | None:
    """Return a column of these values, or None if there is none."""
    import numpy as np
    import pyarrow as pa

    if not has_nulls and kind is int:
        return arrow_of(np.fromiter(values, np.int64, len(values)))
    if not has_nulls and kind is float:
        return arrow_of(np.fromiter(values, np.float64, len(values)))
    array = pa.array(values, own, from_pandas=False)
    return array if isinstance(array, pa.Array) else None  # texts beyond 2 GiB come in pieces
