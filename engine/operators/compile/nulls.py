"""What the interpreter does with None in a field without more ado: it is not true, and equals nothing but None."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.core.late_dataclass import dataclass
from engine.operators.compile.expressions import Compare, Expression, Field, Frame, Kind, Mask, Truth, Value
from engine.operators.compile.lazy import LazyModule

if TYPE_CHECKING:
    import numpy as np
    import pyarrow.compute as pc
else:
    np, pc = LazyModule("numpy"), LazyModule("pyarrow.compute")

__all__ = ["Equality", "FieldTruth"]


def _nulls_of(expression: Expression, frame: Frame) -> Any:
    """Return where a field is None, or None if it never is."""
    if not isinstance(expression, Field) or not frame.columns[expression.index].null_count:
        return None
    return pc.is_null(frame.columns[expression.index]).to_numpy(zero_copy_only=False)


@dataclass(frozen=True, eq=False)
class FieldTruth(Expression):
    """bool() of a field."""

    operand: Field
    kind: Kind = Kind.BOOL

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        nulls = _nulls_of(self.operand, frame)
        if nulls is None:
            return Truth(self.operand).evaluate(frame, mask)
        there = ~nulls if mask is None else mask & ~nulls
        if not there.any():
            return Value(np.zeros(frame.num_rows, np.bool_))
        return Value(Truth(self.operand).evaluate(frame, there).values & there)


@dataclass(frozen=True, eq=False)
class Equality(Expression):
    """``==`` or ``!=``, ``compared`` where neither side is None."""

    compared: Compare
    kind: Kind = Kind.BOOL

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        one, two = _nulls_of(self.compared.left, frame), _nulls_of(self.compared.right, frame)
        if one is None and two is None:
            return self.compared.evaluate(frame, mask)
        for side in (self.compared.left, self.compared.right):
            if not isinstance(side, Field):  # computed beside None too, errors included
                side.evaluate(frame, mask)
        nulls = two if one is None else (one if two is None else one | two)
        differ = self.compared.sign == "!="
        both = np.zeros(frame.num_rows, np.bool_) if one is None or two is None else one & two
        of_nulls = ~both if differ else both
        there = ~nulls if mask is None else mask & ~nulls
        if not there.any():
            return Value(of_nulls)
        return Value(np.where(there, self.compared.evaluate(frame, there).values, of_nulls))
