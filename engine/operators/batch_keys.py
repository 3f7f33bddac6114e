"""Keys of the DataSet API inside operators: fields by name, opening and closing of selectors, and what is told when a
record lacks its key.

Not here: how any keys compare (``batch_order``), which subtask they go to (``state/key_groups``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, final

from engine.core.errors import ProgramError
from engine.core.records import Row
from engine.core.user_code import describe_record
from engine.operators.base import OperatorContext
from engine.operators.bound_function import BoundFunction
from engine.operators.functions import Function
from engine.operators.keys import ComposedKey, FieldKey, field_of, key_function

__all__ = [
    "BoundKeys",
    "NamedFieldKey",
    "PositionKey",
    "key_error",
    "missing_field",
    "unhashable_key",
    "whole_record",
]

_FIELDS_TOLD_MAX: Final = 20


def whole_record(record: Any) -> Any:
    """The key is the record itself."""
    return record


@final
@dataclass(frozen=True, slots=True)
class NamedFieldKey:
    """The key is field ``f<position>`` of a tuple, as Java's field expressions say it, or a field of that name."""

    name: str
    position: int

    def __call__(self, record: Any) -> Any:
        return record[self.position] if type(record) is tuple else field_of(record, self.name)


@final
@dataclass(frozen=True, slots=True)
class PositionKey:
    """Several keys as a tuple, where one of them is a ``NamedFieldKey``."""

    parts: tuple[Callable[[Any], Any], ...]

    def __call__(self, record: Any) -> tuple[Any, ...]:
        return tuple([part(record) for part in self.parts])


@final
class BoundKeys:
    """The key selectors of one operator: KeySelector objects are opened when bound and closed together."""

    def __init__(self, ctx: OperatorContext) -> None:
        self._ctx = ctx
        self._opened = ExitStack()

    def bind(self, selector: Any) -> Callable[[Any], Any]:
        """Return record → key for a selector as the API made it."""
        if isinstance(selector, Function):
            function = BoundFunction(selector, "get_key")
            self._opened.callback(function.close)
            function.open(self._ctx)
        return key_function(selector)

    def bind_order(self, fields: Iterable[tuple[Any, bool]]) -> tuple[tuple[Callable[[Any], Any], bool], ...]:
        """Do the same for the (selector, ascending) pairs of a sort order."""
        return tuple((self.bind(selector), ascending) for selector, ascending in fields)

    def close(self) -> None:
        self._opened.close()


# --- what is told ----------------------------------------------------------------------------------------------------


def key_error(key: Any, row: Any, error: BaseException, what: str = "key") -> BaseException:
    """Return what to tell when ``key(row)`` raised ``error``: which field is missing, else the error itself."""
    if not isinstance(error, LookupError | AttributeError | TypeError):
        return error
    for field, get in _fields_of_key(key):
        try:
            get(row)
        except Exception:
            return missing_field(f"The {what} is field {field!r}, but", row)
    return error


def _fields_of_key(key: Any) -> list[tuple[int | str, Callable[[Any], Any]]]:
    match key:
        case itemgetter():
            return [(field, itemgetter(field)) for field in key.__reduce__()[1]]  # type: ignore[misc]
        case FieldKey(field):
            return [(field, key)]
        case ComposedKey(fields):
            return [(field, FieldKey(field)) for field in fields]
        case NamedFieldKey(name):
            return [(name, key)]
        case PositionKey(parts):
            return [found for part in parts for found in _fields_of_key(part)]
    return []  # a function of the user's: its own error says more


def missing_field(wanted: str, row: Any) -> ProgramError:
    """Return what to tell. ``wanted`` begins the sentence, e.g. "The key is field 7, but"."""
    return ProgramError(f"{wanted} the record has no such field; it is {_told(row)}.")


def _told(row: Any) -> str:
    kind = type(row).__name__
    names: list[Any] = []
    if isinstance(row, dict):
        names = list(row)
    elif isinstance(row, Row):
        names = list(getattr(row, "_fields", None) or ())
    elif isinstance(row, tuple):
        names = list(getattr(row, "_fields", ()))
    elif not isinstance(row, list):
        slots = getattr(type(row), "__slots__", ())
        names = [*getattr(row, "__dict__", ()), *((slots,) if isinstance(slots, str) else slots)]
    if names:
        told = ", ".join(describe_record(name, 40) for name in names[:_FIELDS_TOLD_MAX])
        return f"a {kind} with the fields {told}{', …' if len(names) > _FIELDS_TOLD_MAX else ''}"
    if isinstance(row, tuple | list | Row):
        match len(row):
            case 0:
                return f"a {kind} without fields"
            case 1:
                return f"a {kind} with field 0 only"
            case size:
                return f"a {kind} with the fields 0 to {size - 1}"
    return f"of type {kind}, which has no fields"


def unhashable_key(key: Any) -> TypeError:
    """Return what to tell when a key cannot be looked up (a list, a dict…)."""
    return TypeError(
        f"{describe_record(key, 80)} of type {type(key).__name__} cannot be a key: it is not hashable. "
        "Return a str, number, bytes or a tuple of these from the key selector."
    )
