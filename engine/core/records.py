"""The two shapes of batch that flow through the engine, and what stands around a record.

A ``RowBatch`` is a list of Python objects; a ``ColumnBatch`` is an Arrow RecordBatch. Untyped streams and user
functions use rows; built-in vectorised operators use columns. Conversion happens at named places only: an
operator that wants rows calls ``rows_of``; nothing converts back silently. A batch is immutable: whoever wants
to change it makes a new one.

pyarrow is imported only when a ColumnBatch is touched: a program of plain rows never pays for it.
"""

from __future__ import annotations

import copyreg
import enum
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from engine.core.arrow_arrays import numbers_of
from engine.core.dictionaries import plain_column
from engine.core.late_dataclass import dataclass

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = [
    "BATCH_ROWS_MAX",
    "ROW_KINDS",
    "Batch",
    "ColumnBatch",
    "Named",
    "Row",
    "RowBatch",
    "RowKind",
    "arrow_values",
    "kind_of",
    "python_lists",
    "python_values",
    "record_values",
    "row_of",
    "row_of_kind",
    "rows_of",
    "rows_of_kinds",
]

#: Soft upper bound of records in one batch. Larger is no faster and costs latency and memory.
BATCH_ROWS_MAX = 16_384


class RowKind(enum.Enum):
    """What a record says about the table behind a changelog stream. Values and names as in Flink."""

    INSERT = 0
    UPDATE_BEFORE = 1
    UPDATE_AFTER = 2
    DELETE = 3

    def __str__(self) -> str:
        return ("+I", "-U", "+U", "-D")[self.value]


#: By value.
ROW_KINDS: Final = tuple(RowKind)


@dataclass(slots=True)
class RowBatch:
    """Python objects in stream order. ``timestamps_ms``: event times, one a row, or None when there are none."""

    rows: list[Any]
    timestamps_ms: list[int] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def slice(self, start: int, end: int) -> RowBatch:
        stamps = self.timestamps_ms
        return RowBatch(self.rows[start:end], None if stamps is None else stamps[start:end])


#: What records of columns are: False = tuples, True = Rows, a class = its objects (``record_class``).
Named: TypeAlias = bool | type


@dataclass(slots=True)
class ColumnBatch:
    """An Arrow RecordBatch. ``scalar``: the stream's records are the single column's values, not 1-tuples.

    ``timestamps_ms``: int64 array, shape (num_rows,), or None. ``named``: the records are Rows with the columns' names,
    or objects of that class, not tuples; objects come only to an operator that knows them (``Operator.takes_objects``).
    Structs within records are Rows, maps are dicts. ``kinds``: of a changelog, int8 values of ``RowKind``,
    one a record; its records are Rows, those that insert too. None = no changelog: all are inserted. An operator gets
    kinds only if it says that it knows them (``Operator.takes_kinds``), else Rows.
    """

    columns: pa.RecordBatch
    timestamps_ms: np.ndarray[Any, Any] | None = None
    scalar: bool = False
    named: Named = False
    kinds: np.ndarray[Any, Any] | None = None

    def __len__(self) -> int:
        return int(self.columns.num_rows)

    def slice(self, start: int, end: int) -> ColumnBatch:
        stamps, kinds = self.timestamps_ms, self.kinds
        return ColumnBatch(
            self.columns.slice(start, end - start),
            None if stamps is None else stamps[start:end],
            self.scalar,
            self.named,
            None if kinds is None else kinds[start:end],
        )

    def to_rows(self) -> RowBatch:
        """Return the same records as Python objects: Rows of their kind if they have one, bare values if ``scalar``,
        Rows or objects if ``named``, else tuples."""
        stamps = None if self.timestamps_ms is None else self.timestamps_ms.tolist()
        lists = python_lists(self.columns)
        if self.kinds is not None:
            kinds = map(ROW_KINDS.__getitem__, self.kinds.tolist())
            return RowBatch(
                rows_of_kinds(kinds, lists, tuple(self.columns.schema.names) if self.named else None), stamps
            )
        if self.scalar:
            return RowBatch(lists[0], stamps)
        if isinstance(self.named, type):
            return RowBatch(list(map(self.named, *lists)), stamps)
        if self.named:
            names = tuple(self.columns.schema.names)
            return RowBatch([row_of(names, list(values)) for values in zip(*lists, strict=True)], stamps)
        return RowBatch(list(zip(*lists, strict=True)), stamps)


Batch: TypeAlias = RowBatch | ColumnBatch


def python_values(column: pa.Array) -> list[Any]:
    """Return a column's values as Python objects. Integers and floats without nulls take a fifth of ``to_pylist``'s
    time."""
    import pyarrow as pa

    kind = column.type
    if not column.null_count and (pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind)):
        values: list[Any] = numbers_of(column).tolist()
        return values
    if pa.types.is_dictionary(kind):
        return _values_by_number(column)
    listed: list[Any] = column.to_pylist()
    return listed


def _values_by_number(column: pa.Array) -> list[Any]:
    """Values in a dictionary that cannot change are one object each, others one a row."""
    if column.type.value_type.num_fields:
        return python_values(plain_column(column))
    values, indices = python_values(column.dictionary), column.indices
    if not indices.null_count:
        return list(map(values.__getitem__, numbers_of(indices).tolist()))
    return [None if number is None else values[number] for number in indices.to_pylist()]


def rows_of(batch: Batch) -> RowBatch:
    """Return the batch as rows, converting if it is columnar."""
    return batch if isinstance(batch, RowBatch) else batch.to_rows()


class Row:
    """PyFlink's Row: positional values, optionally with field names, and a RowKind.

    ``Row(1, "a")`` is positional, ``Row(id=1, name="a")`` is named; ``Row("id", "name")(1, "a")`` builds from names.
    Equal rows have equal values, names and kind; rows are hashable when their values are.
    """

    __slots__ = ("_fields", "_kind", "_values")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if args and kwargs:
            raise ValueError("Row takes either positional or named values, not both.")
        self._fields: tuple[str, ...] | None = tuple(kwargs) if kwargs else None
        self._values: list[Any] = list(kwargs.values()) if kwargs else list(args)
        self._kind = RowKind.INSERT

    @staticmethod
    def of_kind(row_kind: RowKind, *args: Any, **kwargs: Any) -> Row:
        row = Row(*args, **kwargs)
        row._kind = row_kind
        return row

    def __call__(self, *values: Any) -> Row:
        """Use this row's values as field names for ``values``, as ``Row("id", "name")(1, "a")``."""
        if len(values) != len(self._values):
            raise ValueError(f"Row has {len(self._values)} field names, got {len(values)} values.")
        row = Row(*values)
        row._fields = tuple(str(name) for name in self._values)
        return row

    def get_row_kind(self) -> RowKind:
        return self._kind

    def set_row_kind(self, row_kind: RowKind) -> None:
        self._kind = row_kind

    def has_field_names(self) -> bool:
        return self._fields is not None

    def set_field_names(self, field_names: list[str]) -> None:
        self._fields = tuple(field_names)

    def get_fields_by_names(self, names: list[str]) -> list[Any]:
        return [self[name] for name in names]

    def as_dict(self, recursive: bool = False) -> dict[str, Any]:
        if self._fields is None:
            raise TypeError("Row has no field names; as_dict() needs them. Build it with Row(name=value).")

        def convert(value: Any) -> Any:
            if isinstance(value, Row):
                return value.as_dict(True)
            if isinstance(value, list):
                return [convert(item) for item in value]
            if isinstance(value, dict):
                return {key: convert(item) for key, item in value.items()}
            return value

        pairs = zip(self._fields, self._values, strict=True)
        return {name: convert(value) if recursive else value for name, value in pairs}

    def __getitem__(self, item: int | slice | str) -> Any:
        if isinstance(item, str):
            return self._values[self._index_of(item)]
        return self._values[item]

    def __setitem__(self, item: int | str, value: Any) -> None:
        self._values[self._index_of(item) if isinstance(item, str) else item] = value

    def _index_of(self, name: str) -> int:
        if self._fields is None or name not in self._fields:
            raise KeyError(f"Row has no field {name!r}; its fields are {list(self._fields or [])}.")
        return self._fields.index(name)

    def __getattr__(self, item: str) -> Any:
        if item.startswith("__"):
            raise AttributeError(item)
        try:
            return self._values[self._index_of(item)]
        except KeyError as error:
            raise AttributeError(str(error)) from None

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, item: Any) -> bool:
        return item in self._values

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Row):
            return NotImplemented
        return self._kind is other._kind and self._values == other._values and self._fields == other._fields

    def __hash__(self) -> int:
        return hash(tuple(self._values))

    def __reduce__(self) -> tuple[Any, ...]:
        if type(self) is Row:
            return _rebuild_row, (self._fields, self._values, self._kind)
        # A class of the user's stays what it is, with what it has besides; its constructor may ask for anything.
        state: Any = object.__getstate__(self)  # type: ignore[attr-defined]
        own, slots = state
        made: Any = copyreg.__newobj__  # type: ignore[attr-defined]
        return made, (type(self),), (own, {**slots, "_values": list(self._values)})

    def __repr__(self) -> str:
        if self._fields is None:
            return "Row({})".format(", ".join(repr(value) for value in self._values))
        pairs = zip(self._fields, self._values, strict=True)
        return "Row({})".format(", ".join(f"{name}={value!r}" for name, value in pairs))


def row_of(names: tuple[str, ...] | None, values: list[Any]) -> Row:
    """Return a Row that inserts, with that very list: a fifth of what the constructor and ``set_field_names`` take."""
    row = Row.__new__(Row)
    row._fields, row._values, row._kind = names, values, RowKind.INSERT
    return row


def kind_of(record: Any) -> RowKind:
    """Return what a record says about the table behind its stream; all but Rows are INSERTs."""
    return record._kind if isinstance(record, Row) else RowKind.INSERT


def row_of_kind(kind: RowKind, record: Any, names: tuple[str, ...] | None = None) -> Row:
    """Return a new Row of that kind with the fields of a record; all but Rows, tuples and lists are a single field.

    ``names``: of the fields, where the record has none of its own.
    """
    row = Row.__new__(Row)
    if isinstance(record, Row):
        row._fields = record._fields or names
    else:
        row._fields = names
        if not isinstance(record, tuple | list):
            record = (record,)
    row._values = list(record)
    row._kind = kind
    return row


def rows_of_kinds(kinds: Iterable[RowKind], lists: list[list[Any]], names: tuple[str, ...] | None) -> list[Row]:
    """Return new Rows of these kinds. ``lists``: the values of each field, as of ``python_lists``."""
    rows = []
    for kind, values in zip(kinds, zip(*lists, strict=True), strict=True):
        row = Row.__new__(Row)
        row._fields, row._values, row._kind = names, list(values), kind
        rows.append(row)
    return rows


def python_lists(columns: pa.RecordBatch) -> list[list[Any]]:
    """Return the values of each column as they are in records: structs as Rows, maps as dicts."""
    return [record_values(column) for column in columns.columns]


def record_values(column: pa.Array) -> list[Any]:
    """Return the values of one column as they are in records."""
    values = python_values(column)
    convert = _nested(column.type)
    return values if convert is None else list(map(convert, values))


def _nested(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """Return what makes Rows of the structs, and dicts of the maps, in a value of this type; None if it has none."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _nested(kind.value_type)
    if not kind.num_fields:
        return None
    if pa.types.is_struct(kind):
        names = tuple(field.name for field in kind)
        inner = [_nested(field.type) for field in kind]

        def to_row(value: Any) -> Any:
            if value is None:
                return None
            parts = [value[name] if own is None else own(value[name]) for name, own in zip(names, inner, strict=True)]
            return row_of(names, parts)

        return to_row
    if pa.types.is_map(kind):
        own_key, own = _nested(kind.key_type) or _same, _nested(kind.item_type) or _same
        return lambda value: None if value is None else {own_key(key): own(item) for key, item in value}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        element = _nested(kind.value_type)
        return None if element is None else lambda value: value and [element(item) for item in value]
    return None


def arrow_values(values: Sequence[Any], kind: pa.DataType) -> Sequence[Any]:
    """Return values of records as ``pyarrow.array`` takes them for this type: Rows within them as dicts. Raises what a
    Row raises that has names, and not those of the type's fields."""
    convert = _plain(kind)
    return values if convert is None else list(map(convert, values))


def _plain(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """Return what makes dicts of the Rows in a value of this type; None if it has none."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        names = [field.name for field in kind]
        inner = [_plain(field.type) or _same for field in kind]

        def to_dict(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: own(value.get(name)) for name, own in zip(names, inner, strict=True)}
            if isinstance(value, Row) and value.has_field_names():
                value = value.get_fields_by_names(names)
            elif not isinstance(value, Row | tuple) or len(value) != len(names):
                return value  # Arrow's to refuse
            return {name: own(part) for name, own, part in zip(names, inner, value, strict=True)}

        return to_dict
    if pa.types.is_map(kind):
        own_key, own = _plain(kind.key_type), _plain(kind.item_type)
        if own_key is None and own is None:
            return None
        as_key, as_item = own_key or _same, own or _same
        return lambda value: None if value is None else [(as_key(key), as_item(item)) for key, item in _pairs(value)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        element = _plain(kind.value_type)
        return None if element is None else lambda value: None if value is None else list(map(element, value))
    return None


def _pairs(value: Any) -> Any:
    return value.items() if isinstance(value, dict) else value


def _same(value: Any) -> Any:
    return value


def _rebuild_row(fields: tuple[str, ...] | None, values: list[Any], kind: RowKind) -> Row:
    row = Row(*values)
    row._fields = fields
    row._kind = kind
    return row
