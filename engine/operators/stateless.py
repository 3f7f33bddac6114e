"""Operators on rows that remember nothing: map, flat_map, filter, project, and their two-input forms.

Specs; what runs the functions on rows is ``row_operator``. Records keep their event times. A columnar batch is turned
into rows at the entrance of the user's function, except where columns can be kept.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, final

from engine.core.late_dataclass import dataclass
from engine.core.records import Batch, ColumnBatch, RowBatch, rows_of
from engine.core.type_info import TypeInformation
from engine.operators.base import Operator, OperatorSpec
from engine.operators.bound_function import BoundFunction
from engine.operators.compile.tier import tier_of
from engine.operators.failure import user_error
from engine.operators.row_operator import RowOperator
from engine.operators.row_steps import StepKind
from engine.operators.without_kinds import check_has_no_kinds

__all__ = [
    "CoFlatMapSpec",
    "CoMapSpec",
    "FilterSpec",
    "FlatMapSpec",
    "MapSpec",
    "ProjectSpec",
]

_INTERPRETED = "interpreted"
_VECTORISED = "vectorised"


@final
@dataclass(frozen=True)
class MapSpec(OperatorSpec):
    """``function``: MapFunction or callable. ``input_type``: for ``describe`` only. ``tier``: what is known of the way
    that it will run, once it is known what comes in; "" = told by the input's type."""

    function: Any
    input_type: TypeInformation | None = None
    tier: str = ""

    def build(self) -> Operator:
        return RowOperator(StepKind.MAP, (BoundFunction(self.function, "map"),))

    def describe(self) -> str:
        return self.tier or tier_of(self.function, self.input_type, is_filter=False)


@final
@dataclass(frozen=True)
class CoMapSpec(OperatorSpec):
    """``function``: CoMapFunction."""

    function: Any
    num_inputs = 2

    def build(self) -> Operator:
        return RowOperator(StepKind.MAP, (BoundFunction(self.function, "map1"), BoundFunction(self.function, "map2")))

    def describe(self) -> str:
        return _INTERPRETED


@final
@dataclass(frozen=True)
class FlatMapSpec(OperatorSpec):
    """``function``: FlatMapFunction or callable; returns an iterable, or None for nothing. ``tier``: as in MapSpec."""

    function: Any
    tier: str = ""

    def build(self) -> Operator:
        return RowOperator(StepKind.FLAT_MAP, (BoundFunction(self.function, "flat_map"),))

    def describe(self) -> str:
        return self.tier or _INTERPRETED


@final
@dataclass(frozen=True)
class CoFlatMapSpec(OperatorSpec):
    """``function``: CoFlatMapFunction."""

    function: Any
    num_inputs = 2

    def build(self) -> Operator:
        functions = BoundFunction(self.function, "flat_map1"), BoundFunction(self.function, "flat_map2")
        return RowOperator(StepKind.FLAT_MAP, functions)

    def describe(self) -> str:
        return _INTERPRETED


@final
@dataclass(frozen=True)
class FilterSpec(OperatorSpec):
    """``function``: FilterFunction or callable. ``input_type``, ``tier``: as in MapSpec."""

    function: Any
    input_type: TypeInformation | None = None
    tier: str = ""

    def build(self) -> Operator:
        return RowOperator(StepKind.FILTER, (BoundFunction(self.function, "filter"),))

    def describe(self) -> str:
        return self.tier or tier_of(self.function, self.input_type, is_filter=True)


@final
@dataclass(frozen=True)
class ProjectSpec(OperatorSpec):
    """Keep the fields at ``indexes``, in that order; results are tuples. Columns stay columns."""

    indexes: tuple[int, ...]

    def build(self) -> Operator:
        return _ProjectOperator(self.indexes)

    def describe(self) -> str:
        return _VECTORISED


# ---------------------------------------------------------------------------------------------------------------------


def _failing(rows: list[Any], remaining: Iterator[Any]) -> Any:
    """Return the row that a loop over ``remaining = iter(rows)`` took last."""
    return rows[len(rows) - operator.length_hint(remaining) - 1]


@final
class _ProjectOperator(Operator):
    takes_kinds = True  # to refuse them

    def __init__(self, indexes: tuple[int, ...]) -> None:
        self._indexes = indexes
        self._get = operator.itemgetter(*indexes)

    def process_batch(self, input_index: int, batch: Batch) -> None:
        check_has_no_kinds(batch, "project()", "tuples")
        if isinstance(batch, ColumnBatch) and not batch.scalar:
            self.out.emit(ColumnBatch(batch.columns.select(list(self._indexes)), batch.timestamps_ms))
            return
        batch = rows_of(batch)
        get = self._get
        remaining = iter(batch.rows)
        try:
            rows = [get(row) for row in remaining] if len(self._indexes) > 1 else [(get(row),) for row in remaining]
        except Exception as error:
            row = _failing(batch.rows, remaining)
            seen = TypeError(f"project({', '.join(map(str, self._indexes))}) does not fit the record: {error}")
            raise user_error(seen, operator_name=self.ctx.operator_name, record=row) from error
        self.out.emit(RowBatch(rows, batch.timestamps_ms))
