"""Expressions over columns of numbers and truth values that give what Python gives, or raise ``Doubt``.

An integer column carries bounds of its values, so that most operations prove by four multiplications that nothing
overflows. ``mask`` says on which rows an expression would be evaluated by the interpreter (None: all): only these can
be in doubt. Texts are in ``texts``. Rate: 1-3 ns a row and operation in batches of 16384.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Callable
from dataclasses import field
from typing import TYPE_CHECKING, Any, Final

from engine.core.late_dataclass import dataclass
from engine.operators.compile.errors import Doubt, NotCompilable
from engine.operators.compile.lazy import LazyModule

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
else:
    np, pa, pc = LazyModule("numpy"), LazyModule("pyarrow"), LazyModule("pyarrow.compute")

__all__ = [
    "Abs",
    "Arithmetic",
    "Compare",
    "Constant",
    "Expression",
    "Field",
    "Frame",
    "If",
    "IsIn",
    "IsNull",
    "Kind",
    "Let",
    "Logic",
    "LowBits",
    "Negative",
    "Not",
    "Ref",
    "Root",
    "Rounded",
    "ToFloat",
    "ToInt",
    "Truth",
    "Value",
    "Wrapping",
]

INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**63 - 1
#: Integers up to here are floats exactly.
EXACT_MAX: Final = 2**53


class Kind(enum.Enum):
    """The Python type of each value of a column."""

    INT = "int"
    FLOAT = "float"
    BOOL = "bool"
    STR = "str"
    OPAQUE = "object"  #: can only be handed on


@dataclass(slots=True)
class Value:
    """``values``: numpy array or scalar (int64, float64, bool), for STR an Arrow array or scalar. ``low``/``high``:
    INT only, bounds of the values that count."""

    values: Any
    low: int = 0
    high: int = 0


Mask = Any  # numpy bool array, or None


@dataclass(slots=True)
class Frame:
    """One evaluation over one batch."""

    columns: list[pa.Array]
    num_rows: int
    leaves: dict[int, tuple[Value, Any]] = field(default_factory=dict)
    lets: dict[int, Value] = field(default_factory=dict)


class Expression:
    """``kind``: what it gives on every row."""

    kind: Kind

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        """Return a value per row (or one for all); it counts where ``mask`` is set.

        Raises: Doubt if the interpreter might give something else on a row of ``mask``, or raise.
        """
        raise NotImplementedError


def _and(mask: Mask, more: Any) -> Mask:
    return more if mask is None else mask & more


def doubt_where(bad: Any, mask: Mask) -> None:
    """Raise Doubt if ``bad`` is true on a row that counts."""
    if np.any(bad if mask is None else bad & mask):
        raise Doubt


def _ints(values: Any, low: int, high: int) -> Value:
    return Value(values, low, high)


def _fits(low: int, high: int) -> bool:
    return low >= INT_MIN and high <= INT_MAX


def _tightened(value: Value, frame: Frame, mask: Mask) -> Value:
    """Return the integers with the bounds that they really have on the rows that count."""
    values = np.broadcast_to(value.values, frame.num_rows)
    if mask is not None:
        values = values[mask]
    if not values.size:
        return Value(value.values, 0, 0)
    return Value(value.values, int(values.min()), int(values.max()))


def as_number(value: Value, kind: Kind) -> tuple[Value, Kind]:
    """A bool counts as 0 or 1 in arithmetic and comparisons."""
    if kind is Kind.BOOL:
        return Value(np.asarray(value.values).astype(np.int64), 0, 1), Kind.INT
    return value, kind


# --- leaves ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Field(Expression):
    """A column of the batch. Nulls are in doubt: None is not of its kind."""

    index: int
    kind: Kind

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        if self.kind is Kind.OPAQUE:
            raise NotCompilable("a field of this type can only be handed on")
        if self.index not in frame.leaves:
            frame.leaves[self.index] = _leaf(frame.columns[self.index], self.kind)
        value, nulls = frame.leaves[self.index]
        if nulls is not None:
            doubt_where(nulls, mask)
        return value


def _leaf(column: pa.Array, kind: Kind) -> tuple[Value, Any]:
    nulls = pc.is_null(column).to_numpy(zero_copy_only=False) if column.null_count else None
    if kind is Kind.STR:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        return Value(column), nulls
    if nulls is not None:
        column = pc.fill_null(column, False if kind is Kind.BOOL else 0)
    values = column.to_numpy(zero_copy_only=False)
    if kind is Kind.BOOL:
        return Value(values), nulls
    if kind is Kind.FLOAT:
        return Value(values.astype(np.float64, copy=False)), nulls
    low, high = int(values.min()), int(values.max())
    if not _fits(low, high):
        raise Doubt
    return _ints(values.astype(np.int64, copy=False), low, high), nulls


@dataclass(frozen=True, eq=False)
class Constant(Expression):
    value: Any
    kind: Kind

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        match self.kind:
            case Kind.INT:
                return _ints(np.int64(self.value), self.value, self.value)
            case Kind.FLOAT:
                return Value(np.float64(self.value))
            case Kind.BOOL:
                return Value(np.bool_(self.value))
        return Value(pa.scalar(self.value, pa.string()))


@dataclass(frozen=True, eq=False)
class IsNull(Expression):
    """``field is None``."""

    index: int
    negated: bool
    kind: Kind = Kind.BOOL

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        column = frame.columns[self.index]
        if not column.null_count:
            return Value(np.bool_(self.negated))
        nulls = pc.is_null(column).to_numpy(zero_copy_only=False)
        return Value(~nulls if self.negated else nulls)


# --- names and branches ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Let(Expression):
    """Evaluate ``value``, errors included, then ``body``, in which ``Ref(number)`` stands for it."""

    number: int
    value: Expression
    body: Expression

    @property
    def kind(self) -> Kind:  # type: ignore[override]
        return self.body.kind

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        frame.lets[self.number] = self.value.evaluate(frame, mask)
        return self.body.evaluate(frame, mask)


@dataclass(frozen=True, eq=False)
class Ref(Expression):
    number: int
    kind: Kind

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        return frame.lets[self.number]


@dataclass(frozen=True, eq=False)
class If(Expression):
    """``then if test else other``; each side is evaluated, and can be in doubt, only on its rows."""

    test: Expression
    then: Expression
    other: Expression

    def __post_init__(self) -> None:
        if self.then.kind is not self.other.kind:
            raise NotCompilable(f"its branches give {self.then.kind.value} and {self.other.kind.value}")

    @property
    def kind(self) -> Kind:  # type: ignore[override]
        return self.then.kind

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        test = np.broadcast_to(self.test.evaluate(frame, mask).values, frame.num_rows)
        on_then, on_other = _and(mask, test), _and(mask, ~test)
        if not on_other.any():
            return self.then.evaluate(frame, on_then)
        if not on_then.any():
            return self.other.evaluate(frame, on_other)
        then, other = self.then.evaluate(frame, on_then), self.other.evaluate(frame, on_other)
        if self.kind is Kind.STR:
            return Value(pc.if_else(pa.array(test), then.values, other.values))
        return Value(np.where(test, then.values, other.values), min(then.low, other.low), max(then.high, other.high))


# --- arithmetic -----------------------------------------------------------------------------------------------------


def _add(a: Value, b: Value) -> tuple[int, int]:
    return a.low + b.low, a.high + b.high


def _subtract(a: Value, b: Value) -> tuple[int, int]:
    return a.low - b.high, a.high - b.low


def _multiply(a: Value, b: Value) -> tuple[int, int]:
    corners = [a.low * b.low, a.low * b.high, a.high * b.low, a.high * b.high]
    return min(corners), max(corners)


_BOUNDED: Final[dict[str, tuple[str, Callable[[Value, Value], tuple[int, int]]]]] = {
    "+": ("add", _add),
    "-": ("subtract", _subtract),
    "*": ("multiply", _multiply),
}
_BITWISE: Final = {"&": operator.and_, "|": operator.or_, "^": operator.xor}


@dataclass(frozen=True, eq=False)
class Arithmetic(Expression):
    """``+ - * / // % & | ^`` of numbers."""

    sign: str
    left: Expression
    right: Expression
    kind: Kind = field(init=False)

    def __post_init__(self) -> None:
        kinds = {self.left.kind, self.right.kind}
        if not kinds <= {Kind.INT, Kind.FLOAT, Kind.BOOL}:
            raise NotCompilable(f"{self.left.kind.value} {self.sign} {self.right.kind.value}")
        if self.sign in _BITWISE:
            if Kind.FLOAT in kinds:
                raise NotCompilable(f"{self.sign} of floats")
            kind = Kind.BOOL if kinds == {Kind.BOOL} else Kind.INT
        elif self.sign in ("//", "%") and Kind.FLOAT in kinds:
            raise NotCompilable(f"{self.sign} of floats")
        else:
            kind = Kind.FLOAT if Kind.FLOAT in kinds or self.sign == "/" else Kind.INT
        object.__setattr__(self, "kind", kind)

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        left, right = self.left.evaluate(frame, mask), self.right.evaluate(frame, mask)
        if self.kind is Kind.BOOL:
            return Value(_BITWISE[self.sign](left.values, right.values))
        left, left_kind = as_number(left, self.left.kind)
        right, right_kind = as_number(right, self.right.kind)
        if self.kind is Kind.FLOAT:
            return self._floats(frame, mask, (left, left_kind), (right, right_kind))
        if self.sign in _BITWISE:
            return _tightened(Value(_BITWISE[self.sign](left.values, right.values)), frame, mask)
        if self.sign in ("//", "%"):
            return self._floor(frame, mask, left, right)
        compute, bounds = _BOUNDED[self.sign]
        low, high = bounds(left, right)
        if not _fits(low, high):
            low, high = bounds(_tightened(left, frame, mask), _tightened(right, frame, mask))
            if not _fits(low, high):
                raise Doubt
        return _ints(getattr(np, compute)(left.values, right.values), low, high)

    def _floats(self, frame: Frame, mask: Mask, left: tuple[Value, Kind], right: tuple[Value, Kind]) -> Value:
        if self.sign == "/":
            if left[1] is right[1] is Kind.INT:  # Python divides integers exactly and rounds once
                for value, _ in (left, right):
                    _require_exact(value, frame, mask)
            doubt_where(right[0].values == 0, mask)
        a, b = np.asarray(left[0].values, np.float64), np.asarray(right[0].values, np.float64)
        compute = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.true_divide}[self.sign]
        return Value(compute(a, b))

    def _floor(self, frame: Frame, mask: Mask, left: Value, right: Value) -> Value:
        zero = right.values == 0
        doubt_where(zero, mask)
        if left.low == INT_MIN and right.low <= -1 <= right.high:
            raise Doubt
        divisor = np.where(zero, 1, right.values) if np.any(zero) else right.values
        if self.sign == "%":
            # The result has the divisor's sign and is smaller than it.
            low, high = min(0, right.low + 1), max(0, right.high - 1)
            return _ints(np.remainder(left.values, divisor), low, high)
        bound = max(abs(left.low), abs(left.high))
        return _ints(np.floor_divide(left.values, divisor), max(-bound, INT_MIN), min(bound, INT_MAX))


@dataclass(frozen=True, eq=False)
class Wrapping(Expression):
    """``+ - * & | ^`` of integers, modulo 2^64: only ``LowBits`` may ask for it, which needs no more than that."""

    sign: str
    left: Expression
    right: Expression
    kind: Kind = Kind.INT

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        left, right = self.left.evaluate(frame, mask).values, self.right.evaluate(frame, mask).values
        bitwise = _BITWISE.get(self.sign)
        return Value(getattr(np, _BOUNDED[self.sign][0])(left, right) if bitwise is None else bitwise(left, right))


@dataclass(frozen=True, eq=False)
class LowBits(Expression):
    """``operand & bits``, where bits are at most 63: what the operand is beyond them makes no difference."""

    operand: Expression
    bits: int
    kind: Kind = Kind.INT

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        return _ints(self.operand.evaluate(frame, mask).values & np.int64(self.bits), 0, self.bits)


def _require_exact(value: Value, frame: Frame, mask: Mask) -> None:
    """Integers that are floats exactly, else Doubt."""
    if not (value.low >= -EXACT_MAX and value.high <= EXACT_MAX):
        tight = _tightened(value, frame, mask)
        if not (tight.low >= -EXACT_MAX and tight.high <= EXACT_MAX):
            raise Doubt


@dataclass(frozen=True, eq=False)
class Negative(Expression):
    operand: Expression
    kind: Kind = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", _number_kind(self.operand, "-"))

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        value, _ = as_number(self.operand.evaluate(frame, mask), self.operand.kind)
        if self.kind is Kind.FLOAT:
            return Value(np.negative(value.values))
        if value.low == INT_MIN:
            raise Doubt
        return _ints(np.negative(value.values), -value.high, -value.low)


def _number_kind(operand: Expression, what: str) -> Kind:
    if operand.kind not in (Kind.INT, Kind.FLOAT, Kind.BOOL):
        raise NotCompilable(f"{what} of {operand.kind.value}")
    return Kind.FLOAT if operand.kind is Kind.FLOAT else Kind.INT


@dataclass(frozen=True, eq=False)
class Abs(Expression):
    operand: Expression
    kind: Kind = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", _number_kind(self.operand, "abs()"))

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        value, _ = as_number(self.operand.evaluate(frame, mask), self.operand.kind)
        if self.kind is Kind.FLOAT:
            return Value(np.abs(value.values))
        if value.low == INT_MIN:
            raise Doubt
        return _ints(np.abs(value.values), 0, max(abs(value.low), abs(value.high)))


@dataclass(frozen=True, eq=False)
class Root(Expression):
    """math.sqrt: IEEE demands the same of all."""

    operand: Expression
    kind: Kind = Kind.FLOAT

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        values = ToFloat(self.operand).evaluate(frame, mask).values
        doubt_where(values < 0, mask)
        return Value(np.sqrt(np.where(values < 0, 0.0, values)) if np.any(values < 0) else np.sqrt(values))


@dataclass(frozen=True, eq=False)
class Rounded(Expression):
    """The whole number nearest to a float, of two as near the even one; still a float."""

    operand: Expression
    kind: Kind = Kind.FLOAT

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        return Value(np.rint(self.operand.evaluate(frame, mask).values))


@dataclass(frozen=True, eq=False)
class ToFloat(Expression):
    """float() of a number."""

    operand: Expression
    kind: Kind = Kind.FLOAT

    def __post_init__(self) -> None:
        _number_kind(self.operand, "float()")

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        value, _ = as_number(self.operand.evaluate(frame, mask), self.operand.kind)
        return Value(np.asarray(value.values, np.float64))


@dataclass(frozen=True, eq=False)
class ToInt(Expression):
    """int() of a number."""

    operand: Expression
    kind: Kind = Kind.INT

    def __post_init__(self) -> None:
        _number_kind(self.operand, "int()")

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        value, kind = as_number(self.operand.evaluate(frame, mask), self.operand.kind)
        if kind is Kind.INT:
            return value
        out = ~(np.abs(value.values) < 2.0**63)  # nan and infinities too
        doubt_where(out, mask)
        whole = np.where(out, 0.0, value.values) if np.any(out) else value.values
        return _tightened(Value(np.asarray(whole).astype(np.int64)), frame, mask)


# --- truth ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Truth(Expression):
    """bool() of anything."""

    operand: Expression
    kind: Kind = Kind.BOOL

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        values = self.operand.evaluate(frame, mask).values
        match self.operand.kind:
            case Kind.BOOL:
                return Value(values)
            case Kind.STR:
                return Value(bools(pc.not_equal(pc.binary_length(values), 0)))
        return Value(values != 0)


def bools(values: Any) -> Any:
    """Return an Arrow result as numpy truth values; null, which counts nowhere, becomes False."""
    if isinstance(values, pa.Scalar):
        return np.bool_(bool(values.as_py()))
    return pc.fill_null(values, False).to_numpy(zero_copy_only=False)


@dataclass(frozen=True, eq=False)
class Not(Expression):
    """``not`` of truth values."""

    operand: Expression
    kind: Kind = Kind.BOOL

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        return Value(np.logical_not(self.operand.evaluate(frame, mask).values))


@dataclass(frozen=True, eq=False)
class Logic(Expression):
    """``and``/``or`` of truth values; the right side counts only where the left one leaves it open."""

    is_and: bool
    left: Expression
    right: Expression
    kind: Kind = Kind.BOOL

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        left = np.broadcast_to(self.left.evaluate(frame, mask).values, frame.num_rows)
        open_rows = _and(mask, left if self.is_and else ~left)
        if not open_rows.any():
            return Value(left)
        right = self.right.evaluate(frame, open_rows).values
        return Value(left & right if self.is_and else left | right)


_COMPARISONS: Final[dict[str, tuple[Callable[[Any, Any], Any], str]]] = {
    "<": (operator.lt, "less"),
    "<=": (operator.le, "less_equal"),
    ">": (operator.gt, "greater"),
    ">=": (operator.ge, "greater_equal"),
    "==": (operator.eq, "equal"),
    "!=": (operator.ne, "not_equal"),
}


@dataclass(frozen=True, eq=False)
class Compare(Expression):
    sign: str
    left: Expression
    right: Expression
    kind: Kind = Kind.BOOL

    def __post_init__(self) -> None:
        kinds = {self.left.kind, self.right.kind}
        if Kind.OPAQUE in kinds or (Kind.STR in kinds and len(kinds) > 1):
            raise NotCompilable(f"{self.left.kind.value} {self.sign} {self.right.kind.value}")

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        compare, compare_texts = _COMPARISONS[self.sign]
        left, right = self.left.evaluate(frame, mask), self.right.evaluate(frame, mask)
        if self.left.kind is Kind.STR:  # Arrow compares UTF-8 bytes: the order of code points, as Python's
            return Value(bools(getattr(pc, compare_texts)(left.values, right.values)))
        left, left_kind = as_number(left, self.left.kind)
        right, right_kind = as_number(right, self.right.kind)
        if left_kind is not right_kind:  # Python compares exactly
            _require_exact(left if left_kind is Kind.INT else right, frame, mask)
        return Value(compare(left.values, right.values))


@dataclass(frozen=True, eq=False)
class IsIn(Expression):
    """``operand in (constants of its kind)``."""

    operand: Expression
    choices: tuple[Any, ...]
    kind: Kind = Kind.BOOL

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        values = self.operand.evaluate(frame, mask).values
        if self.operand.kind is Kind.STR:
            if isinstance(values, pa.Scalar):
                return Value(np.bool_(values.as_py() in self.choices))
            return Value(bools(pc.is_in(values, pa.array(self.choices, values.type))))
        return Value(np.isin(values, np.array(self.choices, np.int64)))
