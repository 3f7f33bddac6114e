"""What keyed aggregations on columns are: running sum, min, max, min_by, max_by, and reduce with a function that folds
field by field or picks a record. What runs them is ``column_aggregate_operator``.
"""

from __future__ import annotations

from typing import Any, Final, final

from engine.core.late_dataclass import dataclass
from engine.operators.aggregate import KeyedAggregateSpec, KeyedReduceSpec
from engine.operators.base import Operator, OperatorSpec
from engine.operators.computed_keys import KeyFunction
from engine.operators.keys import ComposedKey, FieldKey, key_fields

__all__ = ["COLUMN_KINDS", "ColumnAggregateSpec", "ColumnReduceSpec", "fields_of", "row_spec"]

COLUMN_KINDS: Final = ("sum", "min", "max", "min_by", "max_by")


@final
@dataclass(frozen=True)
class ColumnAggregateSpec(OperatorSpec):
    """``key_selector``: FieldKey or ComposedKey; ``kind``: one of COLUMN_KINDS; ``field``: position or name;
    ``ttl_ms``: as in KeyedAggregateSpec; ``key``: the function that ``key_selector`` stands for, if it does."""

    key_selector: FieldKey | ComposedKey
    kind: str
    field: int | str
    emit_final: bool = False
    ttl_ms: int = 0
    key: KeyFunction | None = None
    #: nobody behind wants columns: of a few rows that come as rows results may be rows, too
    rows_behind: bool = False
    #: what comes out are columns, if what goes in is
    emits_columns = True
    preload = ("engine.operators.warm_up.keyed",)

    @property
    def blocks(self) -> bool:  # type: ignore[override]
        return self.emit_final

    def build(self) -> Operator:
        from engine.operators.column_aggregate_operator import ColumnAggregateOperator

        return ColumnAggregateOperator(self)

    def describe(self) -> str:
        return "vectorised" + ("" if self.key is None else self.key.describe())


@final
@dataclass(frozen=True)
class ColumnReduceSpec(OperatorSpec):
    """``function``: as in KeyedReduceSpec; what it does with columns is found out when their types are known. ``key``:
    and ``rows_behind``: as in ColumnAggregateSpec."""

    key_selector: FieldKey | ComposedKey
    function: Any
    emit_final: bool = False
    ttl_ms: int = 0
    key: KeyFunction | None = None
    rows_behind: bool = False
    emits_columns = True
    preload = ("engine.operators.warm_up.keyed",)

    @property
    def blocks(self) -> bool:  # type: ignore[override]
        return self.emit_final

    def build(self) -> Operator:
        from engine.operators.column_aggregate_operator import ColumnAggregateOperator

        return ColumnAggregateOperator(self)

    def describe(self) -> str:
        return "compiled on columns, else interpreted" + ("" if self.key is None else self.key.describe())


def row_spec(spec: ColumnAggregateSpec | ColumnReduceSpec) -> KeyedAggregateSpec | KeyedReduceSpec:
    selector = spec.key_selector if spec.key is None else spec.key.given
    if isinstance(spec, ColumnReduceSpec):
        return KeyedReduceSpec(selector, spec.function, spec.emit_final, spec.ttl_ms)
    return KeyedAggregateSpec(selector, spec.kind, spec.field, spec.emit_final, spec.ttl_ms)


def fields_of(spec: ColumnAggregateSpec | ColumnReduceSpec) -> tuple[int | str, ...]:
    """Return the fields that it asks records for, but for those that a function does."""
    keys = key_fields(spec.key_selector) if spec.key is None else ()
    return (*keys, spec.field) if isinstance(spec, ColumnAggregateSpec) else keys
