"""What an expression makes of one column of texts in a dictionary, made once for each value.

The largest parts of an expression that read nothing but such a column are evaluated on its values, and the results
given to the rows by their numbers: the same results, as an expression sees one row only. Where a value is in doubt,
which need not be that of any row, or where there are nulls, the rows decide as they do without a dictionary.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any, Final, final

import numpy as np
import pyarrow as pa

from engine.core.dictionaries import is_tidy, same_values
from engine.operators.compile.calls import Called
from engine.operators.compile.errors import Doubt
from engine.operators.compile.expressions import (
    Abs,
    Arithmetic,
    Compare,
    Constant,
    Expression,
    Field,
    Frame,
    If,
    IsIn,
    Kind,
    Logic,
    Mask,
    Negative,
    Not,
    Rounded,
    ToFloat,
    ToInt,
    Truth,
    Value,
)
from engine.operators.compile.nulls import Equality, FieldTruth
from engine.operators.compile.texts import (
    Concat,
    Length,
    Matches,
    ParseFloat,
    ParseInt,
    SplitPart,
    ToText,
    Transformed,
)
from engine.state.arrow_views import values_of

__all__ = ["OfValues", "with_values_once"]

#: Expressions whose parts are all found in their attributes.
_KNOWN: Final = (
    *(Abs, Arithmetic, Called, Compare, Concat, Constant, Equality, Field, FieldTruth, If, IsIn, Length, Logic),
    *(Matches, Negative, Not, ParseFloat, ParseInt, Rounded, SplitPart, ToFloat, ToInt, ToText, Transformed, Truth),
)
#: Those that look at what kind of expression a part is: they are taken as a whole or not at all.
_WHOLE: Final = (Equality, FieldTruth, Called)


@final
class OfValues(Expression):
    """``inner``, which reads but the column at ``index``. Remembers the last dictionary, and what came of it."""

    def __init__(self, inner: Expression, index: int) -> None:
        self.inner, self.index, self.kind = inner, index, inner.kind
        self._values: pa.Array | None = None
        self._made: Value | None = None

    def evaluate(self, frame: Frame, mask: Mask) -> Value:
        made = self._of_values(frame)
        if made is None:
            return self.inner.evaluate(frame, mask)
        values, indices = made.values, frame.columns[self.index].indices
        if isinstance(values, pa.Scalar) or not np.ndim(values):
            return made
        taken = values.take(indices) if self.kind is Kind.STR else values[values_of(indices)]
        return Value(taken, made.low, made.high)

    def encoded(self, frame: Frame) -> pa.Array | None:
        """Return texts in a dictionary, or None if they are not made from one."""
        made = self._of_values(frame)
        if made is None or self.kind is not Kind.STR or isinstance(made.values, pa.Scalar):
            return None
        return pa.DictionaryArray.from_arrays(frame.columns[self.index].indices, made.values, safe=False)

    def _of_values(self, frame: Frame) -> Value | None:
        column = frame.columns[self.index]
        if not is_tidy(column) or column.null_count:
            return None
        values = column.dictionary
        if self._values is not None and same_values(values, self._values):
            return self._made
        if not 0 < len(values) <= frame.num_rows:
            return None
        columns = list(frame.columns)
        columns[self.index] = values
        try:
            self._made = self.inner.evaluate(Frame(columns, len(values)), None)
        except Doubt:
            self._made = None
        self._values = values
        return self._made


def with_values_once(expression: Expression, places: Collection[int]) -> Expression:
    """Return the expression with its parts that read but one column of ``places`` evaluated once a value."""
    read = _read(expression)
    if read is not None and len(read) == 1 and not isinstance(expression, Field):
        (index,) = read
        if index in places:
            return OfValues(expression, index)
    if not isinstance(expression, _KNOWN) or isinstance(expression, _WHOLE):
        return expression
    changed: dict[str, Any] = {}
    for name, part in vars(expression).items():
        own: Any = part
        if isinstance(part, Expression):
            own = with_values_once(part, places)
        if own is not part:
            changed[name] = own
    if not changed:
        return expression
    made = copy.copy(expression)
    for name, own in changed.items():
        object.__setattr__(made, name, own)
    return made


def _read(expression: Expression) -> set[int] | None:
    """Return the columns that an expression reads, None if nobody knows."""
    if isinstance(expression, Field):
        return {expression.index}
    if not isinstance(expression, _KNOWN):
        return None
    found: set[int] = set()
    for part in vars(expression).values():
        for one in part if isinstance(part, tuple) else (part,):
            if isinstance(one, Expression):
                read = _read(one)
                if read is None:
                    return None
                found |= read
    return found
