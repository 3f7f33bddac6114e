"""Expressions over columns of texts that give what Python's str gives, or raise ``Doubt``.

Arrow counts code points and compares bytes of UTF-8, which orders as Python does. Where Unicode makes them differ
(case, white space, digits) everything but ASCII is Python's to do, text by text.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from engine.core.late_dataclass import dataclass
from engine.operators.compile.calls import Called
from engine.operators.compile.errors import NotCompilable
from engine.operators.compile.expressions import (
    Expression,
    Frame,
    Kind,
    Mask,
    Value,
    bools,
    doubt_where,
)
from engine.operators.compile.lazy import LazyModule

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
else:
    np, pa, pc = LazyModule("numpy"), LazyModule("pyarrow"), LazyModule("pyarrow.compute")

__all__ = [
    "Concat",
    "Length",
    "Matches",
    "ParseFloat",
    "ParseInt",
    "SplitPart",
    "ToText",
    "Transformed",
    "array_of",
    "encodable",
    "text_method",
]

_WHITE_SPACE: Final = "\t\n\v\f\r \x1c\x1d\x1e\x1f"  # str.strip()'s, of ASCII
_INTEGER: Final = r"^-?[0-9]{1,18}$"
_NUMBER: Final = r"^-?[0-9]{1,15}(\.[0-9]{1,30})?$"


def require_text(operand: Expression, what: str) -> None:
    if operand.kind is not Kind.STR:
        raise NotCompilable(f"{what} of {operand.kind.value}")


def array_of(value: Value, num_rows: int) -> Any:
    """Return a text per row."""
    values = value.values
    return pa.repeat(values, num_rows) if isinstance(values, pa.Scalar) else values


@dataclass(frozen=True, eq=False)
class Length(Expression):
    operand: Expression
    kind: Kind = Kind.INT

    def __post_init__(self) -> None:
        require_text(self.operand, "len()")

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        values = self.operand.evaluate(frame, mask).values
        if isinstance(values, pa.Scalar):
            length = len(values.as_py())
            return Value(np.int64(length), length, length)
        lengths = pc.fill_null(pc.utf8_length(values), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        return Value(lengths, 0, int(lengths.max()))


@dataclass(frozen=True, eq=False)
class Concat(Expression):
    left: Expression
    right: Expression
    kind: Kind = Kind.STR

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        left, right = self.left.evaluate(frame, mask).values, self.right.evaluate(frame, mask).values
        return Value(pc.binary_join_element_wise(left, right, ""))


@dataclass(frozen=True, eq=False)
class Matches(Expression):
    """``startswith``, ``endswith`` or "contains" a constant."""

    how: str
    operand: Expression
    pattern: str
    kind: Kind = Kind.BOOL

    def __post_init__(self) -> None:
        require_text(self.operand, self.how)

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        compute = {"startswith": pc.starts_with, "endswith": pc.ends_with, "contains": pc.match_substring}[self.how]
        return Value(bools(compute(self.operand.evaluate(frame, mask).values, pattern=self.pattern)))


@dataclass(frozen=True, eq=False)
class Transformed(Expression):
    """``lower``, ``upper``, ``strip``, or ``replace`` of one constant by another."""

    how: str
    operand: Expression
    arguments: tuple[str, ...] = ()
    kind: Kind = Kind.STR

    def __post_init__(self) -> None:
        require_text(self.operand, self.how)

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        values = self.operand.evaluate(frame, mask).values
        if isinstance(values, pa.Scalar):
            values = pa.repeat(values, frame.num_rows)
        if self.how == "replace":
            old, new = self.arguments
            return Value(pc.replace_substring(values, pattern=old, replacement=new))
        if not pc.all(pc.string_is_ascii(values), min_count=0).as_py():
            return Called(getattr(str, self.how), (self.operand,), Kind.STR).evaluate(frame, mask)
        if self.how == "strip":
            return Value(pc.utf8_trim(values, characters=_WHITE_SPACE))
        return Value(pc.ascii_lower(values) if self.how == "lower" else pc.ascii_upper(values))


@dataclass(frozen=True, eq=False)
class ToText(Expression):
    """str() of an integer."""

    operand: Expression
    kind: Kind = Kind.STR

    def __post_init__(self) -> None:
        if self.operand.kind is not Kind.INT:
            raise NotCompilable(f"str() of {self.operand.kind.value}")

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        values = np.broadcast_to(self.operand.evaluate(frame, mask).values, frame.num_rows)
        return Value(pc.cast(pa.array(values), pa.string()))


@dataclass(frozen=True, eq=False)
class ParseInt(Expression):
    """int() of a text: of plain digits at once, else (spaces, underscores, many digits) one by one."""

    operand: Expression
    kind: Kind = Kind.INT

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        texts = _plain(self.operand, _INTEGER, frame, mask)
        if texts is None:
            return Called(int, (self.operand,), Kind.INT).evaluate(frame, mask)
        values = pc.cast(texts, pa.int64()).to_numpy(zero_copy_only=False)
        return Value(values, int(values.min()), int(values.max()))


@dataclass(frozen=True, eq=False)
class ParseFloat(Expression):
    """float() of a text: of plain digits with a point at once, as both round correctly, else one by one."""

    operand: Expression
    kind: Kind = Kind.FLOAT

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        texts = _plain(self.operand, _NUMBER, frame, mask)
        if texts is None:
            return Called(float, (self.operand,), Kind.FLOAT).evaluate(frame, mask)
        return Value(pc.cast(texts, pa.float64()).to_numpy(zero_copy_only=False))


def _plain(operand: Expression, pattern: str, frame: Frame, mask: Mask) -> pa.Array | None:
    """Return the texts; "0" on rows that do not count; None if there are others."""
    texts = array_of(operand.evaluate(frame, mask), frame.num_rows)
    matching = bools(pc.match_substring_regex(texts, pattern=pattern))
    # Arrow's $ is the very end, but nothing is left to chance.
    matching = matching & ~bools(pc.match_substring(texts, pattern="\n"))
    if np.any(~matching if mask is None else ~matching & mask):
        return None
    if matching.all():
        return texts
    return pc.if_else(pa.array(matching), texts, pa.scalar("0"))


@dataclass(frozen=True, eq=False)
class SplitPart(Expression):
    """``text.split(separator)[index]``; ``num_parts``: there must be exactly so many, or 0 for enough."""

    operand: Expression
    separator: str
    index: int
    num_parts: int = 0
    kind: Kind = Kind.STR

    def __post_init__(self) -> None:
        require_text(self.operand, "split()")

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        texts = array_of(self.operand.evaluate(frame, mask), frame.num_rows)
        parts = pc.split_pattern(texts, pattern=self.separator)
        counts = pc.fill_null(pc.list_value_length(parts), 0).to_numpy(zero_copy_only=False)
        wrong = counts != self.num_parts if self.num_parts else counts <= self.index
        doubt_where(wrong, mask)
        if np.any(counts <= self.index):
            parts = pc.if_else(pa.array(counts > self.index), parts, pa.scalar([""] * (self.index + 1), parts.type))
        return Value(pc.list_element(parts, self.index))


def text_method(text: Expression, method: str, arguments: Sequence[ast.expr]) -> Expression:
    """Return ``text.method(arguments)``. Raises: NotCompilable."""
    constants = [argument.value for argument in arguments if isinstance(argument, ast.Constant)]
    texts = [constant for constant in constants if type(constant) is str]
    if len(texts) != len(arguments):
        raise NotCompilable(f"it calls .{method}() with something else than constants")
    match method, texts:
        case (("startswith" | "endswith"), [pattern]):
            return Matches(method, text, encodable(pattern))
        case (("lower" | "upper" | "strip"), []):
            return Transformed(method, text)
        case "replace", [old, new] if old:
            return Transformed(method, text, (encodable(old), encodable(new)))
    raise NotCompilable(f"it calls .{method}()")


def encodable(text: str) -> str:
    """Return the text, which Arrow can hold. Raises: NotCompilable."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NotCompilable("it has a text with a surrogate") from None
    return text
