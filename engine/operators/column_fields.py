"""Small things that columnar operators share: fields of a schema or of a function, and whether
records are Rows or objects, which state and its checkpoints say in the metadata of schemas.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from engine.core.record_class import class_from, class_pickle
from engine.core.records import Named
from engine.time.watermarks import FieldTimestamps, TimestampAssigner

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "KEY_FIELDS",
    "KEY_NAME",
    "are_alike",
    "column_index",
    "has_fields",
    "is_named",
    "named_schema",
    "only_keys",
    "own_columns",
    "own_fields",
    "own_schema",
    "picked_timestamp_field",
]

#: In the metadata of a schema: records are Rows, not tuples.
_NAMED: Final = {b"records": b"rows"}
#: In the metadata of a schema: the class that records are objects of, pickled.
_CLASS: Final = b"class of records"
#: In the metadata of a schema in state: which columns the key is.
KEY_FIELDS: Final = b"key-fields"
#: Of the columns that a computed key has behind those of the records (``computed_keys``): in state, for good.
KEY_NAME: Final = "__key_{}__"
_KEY_PREFIX: Final = KEY_NAME.partition("{")[0]


def named_schema(schema: pa.Schema, named: Named) -> pa.Schema:
    """Return the schema with nothing in its metadata but whether the records are Rows, or objects of a class."""
    if isinstance(named, type):
        return schema.with_metadata({_CLASS: class_pickle(named)})
    return schema.with_metadata(_NAMED if named else None)


def is_named(schema: pa.Schema) -> Named:
    """Whether records of such a schema are Rows, or the class that they are objects of."""
    metadata = schema.metadata
    if not metadata:
        return False
    if _CLASS in metadata:
        return class_from(metadata[_CLASS])
    return _NAMED.items() <= metadata.items()


def column_index(schema: pa.Schema, field: int | str) -> int:
    """Return the column that a field names, by position (negative: from the end of the record) or name; -1 if there is
    none."""
    if isinstance(field, str):
        return int(schema.get_field_index(field))
    num_fields = own_fields(schema.names)
    index = field + num_fields if field < 0 else field
    return index if 0 <= index < num_fields else -1


def only_keys(schema: pa.Schema, keys: Iterable[int | str], values: Iterable[int | str | None]) -> frozenset[int]:
    """Return the columns that are read for nothing but the key: texts of them may stay in dictionaries."""
    read = {column_index(schema, field) for field in values if field is not None}
    return frozenset(column_index(schema, field) for field in keys) - read


def own_fields(names: Sequence[str]) -> int:
    """Return how many columns are the records' own: computed keys stand behind them."""
    num = len(names)
    while num and names[num - 1].startswith(_KEY_PREFIX):
        num -= 1
    return num


def own_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema of the records' own columns, with its metadata."""
    names = schema.names
    num = own_fields(names)
    if num == len(names):
        return schema
    import pyarrow as pa

    return pa.schema(list(schema)[:num], metadata=schema.metadata)


def own_columns(columns: pa.RecordBatch) -> pa.RecordBatch:
    """Return the records' own columns, without computed keys."""
    names = columns.schema.names
    num = own_fields(names)
    if num == len(names):
        return columns
    import pyarrow as pa

    return pa.RecordBatch.from_arrays(columns.columns[:num], schema=pa.schema(list(columns.schema)[:num]))


def has_fields(named: Named, fields: Iterable[int | str | None]) -> bool:
    """Whether such records have these fields as far as it is a matter of how they are asked for: objects that are no
    tuples have none by number."""
    return not isinstance(named, type) or issubclass(named, tuple) or not any(isinstance(own, int) for own in fields)


def are_alike(schema: pa.Schema, other: pa.Schema) -> bool:
    """Whether records of both are of the same types and names, and Rows, tuples or objects of one class."""
    if schema.equals(other):  # a look without lists of Python objects
        return is_named(schema) == is_named(other)
    return bool(schema.types == other.types and schema.names == other.names) and is_named(schema) == is_named(other)


def picked_timestamp_field(assigner: Any) -> int | str | None:
    """Return f if the assigner is FieldTimestamps(f), ``lambda row, t: row[f]`` or a method that does just that.

    Told by the byte code, so nothing is missed that such a function might do besides.
    """
    if isinstance(assigner, FieldTimestamps):
        return assigner.field
    if isinstance(assigner, TimestampAssigner):
        return _picked(type(assigner).extract_timestamp, _METHOD)
    return _picked(assigner, _FUNCTION)


def _picked(function: Any, template: Any) -> int | str | None:
    code = getattr(function, "__code__", None)
    if code is None or code.co_code != template.co_code or code.co_argcount != template.co_argcount:
        return None
    if code.co_flags & _CALLED_AS != template.co_flags & _CALLED_AS or code.co_freevars or code.co_cellvars:
        return None
    picked = code.co_consts[1] if len(code.co_consts) == 2 else None
    return picked if type(picked) in (int, str) else None


#: Flags that say how a function is called; not whether it is nested or what its file imports from ``__future__``.
_CALLED_AS = 0xFFFF & ~inspect.CO_NESTED


class _Template:
    def extract(self, value: Any, record_timestamp: int) -> Any:
        return value[0]


_FUNCTION = (lambda value, record_timestamp: value[0]).__code__
_METHOD = _Template.extract.__code__
