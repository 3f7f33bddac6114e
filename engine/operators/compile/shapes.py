"""What the compiler speaks of: what records are, what a function gives, and what it names outside of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias, final

from engine.core.late_dataclass import dataclass
from engine.operators.compile.errors import NotCompilable
from engine.operators.compile.expressions import INT_MAX, INT_MIN, Constant, Expression, Kind, Let
from engine.operators.compile.texts import encodable

__all__ = [
    "Fields",
    "Names",
    "Outside",
    "Record",
    "Shape",
    "Translation",
    "WholeRecord",
    "constant",
    "known",
    "refuse",
    "with_let",
]


def refuse(what: str) -> NoReturn:
    raise NotCompilable(what)


@final
@dataclass(frozen=True, slots=True)
class Shape:
    """What records are. ``names``: of a Row's fields, or of an object's; ``is_scalar``: the record is the only field's
    value; ``record``: the class that records are objects of, None = tuples or Rows."""

    kinds: tuple[Kind, ...]
    is_scalar: bool = False
    names: tuple[str, ...] | None = None
    record: type | None = None

    @property
    def has_places(self) -> bool:
        """Whether a record has its fields by number, too."""
        return not self.is_scalar and (self.record is None or issubclass(self.record, tuple))

    @property
    def is_tuple(self) -> bool:
        return self.has_places and (self.names is None or self.record is not None)


@final
@dataclass(frozen=True, slots=True)
class WholeRecord:
    """The record itself is the result."""


@final
@dataclass(frozen=True, slots=True)
class Fields:
    """The result is a tuple of these, or a Row, which may have ``names``, or an object of the class ``record`` with
    these names."""

    items: tuple[Expression, ...]
    is_row: bool = False
    names: tuple[str, ...] | None = None
    record: type | None = None

    def of(self, items: tuple[Expression, ...]) -> Fields:
        """Return the same of other items."""
        return Fields(items, self.is_row, self.names, self.record)

    def is_like(self, other: Fields) -> bool:
        one, two = ((len(own.items), own.is_row, own.names, own.record) for own in (self, other))
        return one == two


Record: TypeAlias = Expression | Fields | WholeRecord


@final
@dataclass(frozen=True, slots=True)
class Outside:
    """A name from outside the function: it counts as a constant as long as ``read`` gives this very object."""

    read: Callable[[], Any]
    value: Any


@final
@dataclass(frozen=True, slots=True)
class Translation:
    result: Record
    outside: tuple[Outside, ...]


#: What the names that a function gives stand for.
Names: TypeAlias = dict[str, Expression]


def known(expression: Expression) -> Expression:
    if expression.kind is Kind.OPAQUE:
        refuse("it uses a field of a type that can only be handed on")
    return expression


def constant(value: Any) -> Constant:
    match value:
        case bool():
            return Constant(value, Kind.BOOL)
        case int() if type(value) is int:
            if not INT_MIN <= value <= INT_MAX:
                refuse("it has an integer beyond 64 bits")
            return Constant(value, Kind.INT)
        case float() if type(value) is float:
            return Constant(value, Kind.FLOAT)
        case str() if type(value) is str:
            return Constant(encodable(value), Kind.STR)
    refuse(f"it uses a {type(value).__name__}")


def with_let(number: int, value: Expression, result: Record) -> Record:
    if isinstance(result, Fields):  # evaluated with the first field; the others may refer to it too
        first, *others = result.items
        return result.of((Let(number, known(value), known(first)), *others))
    if isinstance(result, WholeRecord):
        refuse("it computes something and returns the record")
    return Let(number, known(value), result)
