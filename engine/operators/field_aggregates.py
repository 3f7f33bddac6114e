"""Built-in aggregates of windows: ``windowed.aggregate(count(), sum_("amount"), max_("amount"))``.

Each is a value that says what to compute; on columns ``column_window`` does it with kernels, on rows the
AggregateFunction here does. A null (None) takes no part, as in SQL: of a window without a value the result is None, or
0 for counts. A NaN makes sum, min, max and avg NaN. What is aggregated are numbers; ``first``, ``last`` and
``count_distinct`` take any value.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from engine.core.errors import ProgramError
from engine.core.records import Row
from engine.operators.functions import AggregateFunction
from engine.operators.keys import canonical_key, field_of
from engine.operators.process_functions import ProcessWindowFunction
from engine.operators.without_kinds import NOT_TAKEN_BACK, check_is_plain

__all__ = [
    "FieldAggregateOf",
    "RowAggregates",
    "WindowRecord",
    "avg",
    "count",
    "count_distinct",
    "first",
    "last",
    "max_",
    "min_",
    "sum_",
]

_ADDED: Final = ("sum", "avg")
_KINDS: Final = ("count", "sum", "min", "max", "avg", "first", "last", "count_distinct")


@final
@dataclass(frozen=True, slots=True)
class FieldAggregateOf:
    """``kind`` of ``field``; field None = of the record, for count only. ``name``: of the column of results."""

    kind: str
    field: int | str | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ProgramError(f"Unknown aggregate {self.kind!r}; expected one of {', '.join(_KINDS)}.")
        field = self.field
        if (
            isinstance(field, bool)
            or not isinstance(field, int | str | None)
            or (field is None and self.kind != "count")
        ):
            raise ProgramError(f"{self.kind}({field!r}): expected a field's index or name.")

    def alias(self, name: str) -> FieldAggregateOf:
        """Name the column of results."""
        return FieldAggregateOf(self.kind, self.field, name)

    @property
    def column_name(self) -> str:
        return self.name or (self.kind if self.field is None else f"{self.kind}_{self.field}")


def count(field: int | str | None = None) -> FieldAggregateOf:
    """Count the records, or those whose field is not None."""
    return FieldAggregateOf("count", field)


def sum_(field: int | str) -> FieldAggregateOf:
    return FieldAggregateOf("sum", field)


def min_(field: int | str) -> FieldAggregateOf:
    return FieldAggregateOf("min", field)


def max_(field: int | str) -> FieldAggregateOf:
    return FieldAggregateOf("max", field)


def avg(field: int | str) -> FieldAggregateOf:
    return FieldAggregateOf("avg", field)


def first(field: int | str) -> FieldAggregateOf:
    """The value of the record that came first (not that of the earliest event time)."""
    return FieldAggregateOf("first", field)


def last(field: int | str) -> FieldAggregateOf:
    """The value of the record that came last."""
    return FieldAggregateOf("last", field)


def count_distinct(field: int | str) -> FieldAggregateOf:
    return FieldAggregateOf("count_distinct", field)


# --- on rows ----------------------------------------------------------------------------------------------------------


@final
class RowAggregates(AggregateFunction):
    """The aggregates on rows: an accumulator is a list of one value each, None before the first one."""

    def __init__(self, aggregates: Sequence[FieldAggregateOf]) -> None:
        self.aggregates = self._aggregates = tuple(aggregates)

    def create_accumulator(self) -> list[Any]:
        made: list[Any] = []
        for aggregate in self._aggregates:
            match aggregate.kind:
                case "count":
                    made.append(0)
                case "count_distinct":
                    made.append(set())
                case "avg":
                    made.append((None, 0))
                case _:
                    made.append(None)
        return made

    def add(self, value: Any, accumulator: list[Any]) -> list[Any]:
        if isinstance(value, Row):
            check_is_plain(value, "aggregate()", NOT_TAKEN_BACK)
        result = list(accumulator)
        for i, aggregate in enumerate(self._aggregates):
            if aggregate.field is None:
                result[i] += 1
                continue
            item = field_of(value, aggregate.field)
            if item is not None:
                if aggregate.kind in _ADDED and not isinstance(item, numbers.Number):
                    raise TypeError(
                        f"{aggregate.kind} on field {aggregate.field!r}: value {item!r:.80} is not a number"
                    )
                result[i] = _taken_up(aggregate.kind, result[i], item)
        return result

    def get_result(self, accumulator: list[Any]) -> tuple[Any, ...]:
        results = []
        for aggregate, so_far in zip(self._aggregates, accumulator, strict=True):
            if aggregate.kind == "avg":
                total, num = so_far
                results.append(None if not num else total / num)
            else:
                results.append(len(so_far) if aggregate.kind == "count_distinct" else so_far)
        return tuple(results)

    def merge(self, acc_a: list[Any], acc_b: list[Any]) -> list[Any]:
        return [_merged(aggregate.kind, a, b) for aggregate, a, b in zip(self._aggregates, acc_a, acc_b, strict=True)]


def _taken_up(kind: str, so_far: Any, item: Any) -> Any:
    match kind:
        case "count":
            return so_far + 1
        case "count_distinct":
            item = canonical_key(item)
            return so_far if item in so_far else so_far | {item}  # a new one: others may hold the set, too
        case "avg":
            total, num = so_far
            return (item if total is None else total + item, num + 1)
    if so_far is None:
        return int(item) if kind == "sum" and isinstance(item, bool) else item
    match kind:
        case "sum":
            return so_far + item
        case "min":
            return item if item < so_far or item != item else so_far
        case "max":
            return item if item > so_far or item != item else so_far
        case "last":
            return item
    return so_far


def _merged(kind: str, a: Any, b: Any) -> Any:
    match kind:
        case "count":
            return a + b
        case "count_distinct":
            return a | b
        case "avg":
            if a[0] is None or b[0] is None:
                return b if a[0] is None else a
            return (a[0] + b[0], a[1] + b[1])
    if a is None or b is None:
        return b if a is None else a
    return _taken_up(kind, a, b)


@final
class WindowRecord(ProcessWindowFunction):
    """(key fields…, window start, window end, results…): the record of one key and window."""

    def __init__(self, num_keys: int) -> None:
        self._num_keys = num_keys  #: fields of the key; 1 = it is no tuple

    def process(self, key: Any, context: Any, elements: Iterable[Any]) -> Iterable[Any]:
        window = context.window()
        keys = tuple(key) if self._num_keys > 1 else (key,)
        for results in elements:
            yield (*keys, window.start, window.end, *results)
