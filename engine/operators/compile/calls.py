"""Python's own functions, called value by value in the midst of expressions over columns.

What columns have no exact form for (``round(x, 2)``, ``str()`` of a float, ``title()``, a format) is still what the
interpreter does, at its price for this one call; everything around it stays on columns. Only functions that depend on
nothing but their arguments. Rate: 50-200 ns a record and call.
"""

from __future__ import annotations

import ast
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from engine.core.late_dataclass import dataclass
from engine.core.records import record_values
from engine.operators.compile.errors import Doubt
from engine.operators.compile.expressions import Constant, Expression, Field, Frame, Kind, Mask, Value
from engine.operators.compile.lazy import LazyModule

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
else:
    np, pa = LazyModule("numpy"), LazyModule("pyarrow")

__all__ = ["ATTRIBUTES", "FUNCTIONS", "METHODS", "OF_TIMES", "Called", "formatted", "sliced"]

_TYPES: Final = {Kind.INT: int, Kind.FLOAT: float, Kind.BOOL: bool, Kind.STR: str}

#: function → what it gives of numbers, if it gives anything
FUNCTIONS: Final[dict[Any, Kind]] = {
    **dict.fromkeys((math.floor, math.ceil, math.trunc, math.gcd, ord), Kind.INT),
    **dict.fromkeys((math.isnan, math.isinf, math.isfinite, math.isclose), Kind.BOOL),
    **dict.fromkeys((math.exp, math.expm1, math.log, math.log2, math.log10, math.log1p, math.pow), Kind.FLOAT),
    **dict.fromkeys((math.sin, math.cos, math.tan, math.asin, math.acos, math.atan, math.atan2), Kind.FLOAT),
    **dict.fromkeys((math.sinh, math.cosh, math.tanh, math.degrees, math.radians), Kind.FLOAT),
    **dict.fromkeys((math.hypot, math.fabs, math.fmod, math.copysign), Kind.FLOAT),
    chr: Kind.STR,
}
#: method of str → what it gives
METHODS: Final[dict[str, Kind]] = {
    **dict.fromkeys(("find", "rfind", "index", "rindex", "count"), Kind.INT),
    **dict.fromkeys(("isdigit", "isdecimal", "isnumeric", "isalpha", "isalnum", "isspace", "isupper"), Kind.BOOL),
    **dict.fromkeys(("islower", "istitle", "isascii", "isidentifier", "startswith", "endswith"), Kind.BOOL),
    **dict.fromkeys(("strip", "lstrip", "rstrip", "lower", "upper", "title", "capitalize", "swapcase"), Kind.STR),
    **dict.fromkeys(("casefold", "zfill", "rjust", "ljust", "center", "removeprefix", "removesuffix"), Kind.STR),
    **dict.fromkeys(("replace", "expandtabs", "format"), Kind.STR),
}
#: field of dates and times of day, all of them numbers
ATTRIBUTES: Final = ("year", "month", "day", "hour", "minute", "second", "microsecond")
#: method of dates and times of day without arguments, or with a text → what it gives
OF_TIMES: Final[dict[str, Kind]] = {
    **dict.fromkeys(("weekday", "isoweekday", "toordinal"), Kind.INT),
    **dict.fromkeys(("isoformat", "strftime", "ctime"), Kind.STR),
}


@dataclass(frozen=True, eq=False)
class Called(Expression):
    """``function(*operands)``, which must give values of ``kind``: where it does not, or raises, it is in doubt."""

    function: Callable[..., Any]
    operands: tuple[Expression, ...]
    kind: Kind

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        given = [_listed(operand, frame, mask) for operand in self.operands]
        if all(isinstance(one, itertools.repeat) for one in given):
            return Constant(self._results([iter([next(one)]) for one in given])[0], self.kind).evaluate(frame, mask)
        results = self._results(given)
        if mask is not None:
            every = np.full(frame.num_rows, _TYPES[self.kind](), object)
            every[mask] = results
            results = every.tolist()
        return self._value(results)

    def _results(self, given: Sequence[Any]) -> list[Any]:
        try:
            results = list(map(self.function, *given))
        except Exception:
            raise Doubt from None
        if not {_TYPES[self.kind]}.issuperset(map(type, results)):
            raise Doubt
        return results

    def _value(self, results: list[Any]) -> Value:
        try:
            if self.kind is Kind.STR:
                return Value(pa.array(results, pa.string()))
            if self.kind is Kind.INT:
                return Value(np.array(results, np.int64), min(results), max(results))
        except (OverflowError, UnicodeEncodeError):
            raise Doubt from None
        return Value(np.array(results, np.float64 if self.kind is Kind.FLOAT else np.bool_))


def _listed(operand: Expression, frame: Frame, mask: Mask) -> Any:
    """Return the operand's values on the rows that count, or the one that it has on all of them, repeated."""
    if operand.kind is Kind.OPAQUE:
        assert isinstance(operand, Field)
        column = frame.columns[operand.index]
        return record_values(column if mask is None else column.filter(pa.array(mask)))
    if isinstance(operand, Constant):
        return itertools.repeat(operand.value)
    values = operand.evaluate(frame, mask).values
    if operand.kind is Kind.STR:
        if isinstance(values, pa.Scalar):
            return itertools.repeat(values.as_py())
        return (values if mask is None else values.filter(pa.array(mask))).to_pylist()
    if not np.ndim(values):
        return itertools.repeat(values.item())
    return (values if mask is None else values[mask]).tolist()


def sliced(text: Expression, node: ast.expr, bounds: Sequence[Expression | None]) -> Expression:
    """Return ``text[node]``, where ``bounds`` are the index, or those of a slice."""
    if not isinstance(node, ast.Slice):
        (index,) = bounds
        assert index is not None
        return Called(operator.getitem, (text, index), Kind.STR)
    given = [at for at, bound in enumerate(bounds) if bound is not None]

    def cut(value: str, *own: int) -> str:
        every: list[int | None] = [None, None, None]
        for at, bound in zip(given, own, strict=True):
            every[at] = bound
        return value[slice(*every)]

    if all(isinstance(bound, Constant) for bound in bounds if bound is not None):
        fixed = slice(*(None if bound is None else bound.value for bound in bounds))  # type: ignore[attr-defined]
        return Called(lambda value: value[fixed], (text,), Kind.STR)
    return Called(cut, (text, *(bound for bound in bounds if bound is not None)), Kind.STR)


def formatted(value: Expression, conversion: int, spec: str) -> Expression:
    """Return what stands in an f-string for ``{value!conversion:spec}``."""
    conversions: dict[int, Callable[[Any], Any]] = {115: str, 114: repr, 97: ascii}
    first = conversions.get(conversion)
    if first is None:
        return Called(lambda own: format(own, spec), (value,), Kind.STR)
    return Called(lambda own: format(first(own), spec), (value,), Kind.STR)
