"""Key selectors as values: what ``key_by(0)``, ``group_by("word")`` and ``key_by(lambda r: …)`` become.

Not here: which subtask a key goes to (``state/key_groups``).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from engine.core.errors import ProgramError
from engine.core.late_dataclass import dataclass
from engine.core.records import Row
from engine.operators.functions import callable_of
from engine.state.key_groups import NAN, canonical_key

__all__ = [
    "NAN",
    "ComposedKey",
    "FieldKey",
    "canonical_key",
    "field_of",
    "key_error",
    "key_fields",
    "key_function",
    "key_name",
]


def field_of(record: Any, field: int | str) -> Any:
    """Return a field of a tuple, list, Row or dict, or an attribute (by name) of any other object."""
    if isinstance(field, str) and not isinstance(record, (Row, dict)):
        return getattr(record, field)
    return record[field]


@dataclass(frozen=True, slots=True)
class FieldKey:
    """The key is one field, by position or by name. Vectorised operators and the exchange look inside."""

    field: int | str

    def __call__(self, record: Any) -> Any:
        return field_of(record, self.field)


@dataclass(frozen=True, slots=True)
class ComposedKey:
    """The key is a tuple of several fields."""

    fields: tuple[int | str, ...]

    def __call__(self, record: Any) -> tuple[Any, ...]:
        return tuple(field_of(record, field) for field in self.fields)


def key_fields(selector: Any) -> tuple[int | str, ...]:
    """Return the fields that the key is; none for a function."""
    match selector:
        case FieldKey(field):
            return (field,)
        case ComposedKey(fields):
            return fields
    return ()


def key_function(selector: Any) -> Callable[[Any], Any]:
    """Return record → key at the best speed: C where positions are known, the user's function otherwise.

    ``selector``: FieldKey, ComposedKey, a KeySelector object, or a callable. The caller opens and closes KeySelectors.
    """
    match selector:
        case FieldKey(int(field)):
            return operator.itemgetter(field)
        case ComposedKey(fields) if len(fields) > 1 and all(isinstance(field, int) for field in fields):
            return operator.itemgetter(*fields)
        case FieldKey() | ComposedKey():
            return selector
    return callable_of(selector, "get_key")


def key_error(error: BaseException, selector: Any, record: Any) -> BaseException:
    """Return what to tell when ``selector`` raised ``error`` on ``record``: clearer, if a field is missing."""
    for field in key_fields(selector):
        try:
            field_of(record, field)
        except Exception:
            return ProgramError(f"key field {field!r}: {_fields_seen(record, field)}")
    return error


def _fields_seen(record: Any, field: int | str) -> str:
    names: Any = ()
    if isinstance(record, dict):
        names = list(record)
    elif isinstance(record, Row) and record.has_field_names():
        names = list(record.as_dict())
    elif isinstance(field, str):
        names = getattr(record, "_fields", ()) or list(getattr(record, "__dict__", ()))
    if names and not isinstance(field, int):
        shown = ", ".join(map(repr, names[:20])) + (", …" if len(names) > 20 else "")
        return f"the record has fields {shown}"
    if isinstance(record, (tuple, list, Row)):
        has = f"fields 0 to {len(record) - 1}" if len(record) > 1 else ("only field 0" if len(record) else "no fields")
        return f"the record has {has}" + (", without names" if isinstance(field, str) and len(record) else "")
    return f"the record is a value of type {type(record).__name__} and has no such field"


def key_name(selector: Any) -> str:
    """Return how plans and messages name the key."""
    match selector:
        case FieldKey(field):
            return f"field {field!r}"
        case ComposedKey(fields):
            return f"fields {fields!r}"
    return getattr(selector, "__name__", type(selector).__name__)
