"""Why an operator stays on rows though its input is columns: told in the plan, by the types that are declared.

What is not declared is seen when records come; then the operator on columns hands over to rows by itself. pyarrow is
not loaded for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from engine.core.type_info import (
    BasicArrayTypeInfo,
    BasicType,
    BasicTypeInfo,
    ListTypeInfo,
    MapTypeInfo,
    ObjectArrayTypeInfo,
    PrimitiveArrayTypeInfo,
    TupleTypeInfo,
    TypeInformation,
)
from engine.operators.aggregate import FieldAggregate, KeyedAggregateSpec, KeyedReduceSpec
from engine.operators.base import OperatorSpec
from engine.operators.column_fields import has_fields
from engine.operators.deduplicate import DeduplicateSpec
from engine.operators.interval_join import IntervalJoinSpec
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.regular_join import RegularJoinSpec
from engine.operators.top_n import TopNSpec
from engine.operators.window import WindowSpec
from engine.operators.window_contents import ReduceFold
from engine.operators.window_functions import CoGroupedFunction
from engine.time.triggers import EventTimeTrigger

__all__ = ["why_not_objects", "why_rows"]

_LISTS = (ListTypeInfo, PrimitiveArrayTypeInfo, BasicArrayTypeInfo, ObjectArrayTypeInfo)
_FLOATS = (BasicType.FLOAT, BasicType.DOUBLE)


def why_rows(spec: OperatorSpec, types: Sequence[TypeInformation | None]) -> str:
    """Return why an operator cannot take columns of these records; "" = nothing that is declared is in the way.

    ``types``: of the records of each input, None where it is not known.
    """
    if isinstance(spec, WindowSpec) and (why := _why_of_window(spec)):
        return why
    for record, selector in zip(types, _selectors(spec), strict=False):
        if isinstance(record, TupleTypeInfo) and (why := _why_of_types(spec, record, selector)):
            return why
    return ""


def why_not_objects(spec: OperatorSpec, record: type | None) -> str:
    """Return why an operator cannot take columns of objects of this class, None = of tuples or Rows; "" = it can."""
    match spec:
        case KeyedAggregateSpec(selector, _, field):
            fields: list[Any] = [*_fields(selector), field]
        case WindowSpec():
            fold = spec.fold.given if isinstance(spec.fold, ReduceFold) else None
            fields = [field for own in (*spec.key_selectors, fold) for field in _fields(own)]
        case _:
            fields = []
    if record is None or has_fields(record, fields):
        return ""
    return f"objects of {record.__name__} have no fields by number"


def _fields(selector: Any) -> Sequence[Any]:
    match selector:
        case ComposedKey(fields):
            return fields
        case FieldKey() | FieldAggregate():
            return (selector.field,)
    return ()


def _selectors(spec: OperatorSpec) -> Sequence[Any]:
    match spec:
        case KeyedAggregateSpec() | KeyedReduceSpec() | TopNSpec() | DeduplicateSpec():
            return (spec.key_selector,)
        case IntervalJoinSpec() | RegularJoinSpec() | WindowSpec():
            return spec.key_selectors
    return ()


def _why_of_window(spec: WindowSpec) -> str:
    if isinstance(spec.function, CoGroupedFunction):
        return "co_group gives its function all records of both sides"
    if spec.evictor is not None:
        return "it has an evictor"
    return "" if type(spec.trigger) is EventTimeTrigger else f"its trigger is {type(spec.trigger).__name__}"


def _why_of_types(spec: OperatorSpec, record: TupleTypeInfo, selector: Any) -> str:
    is_window = isinstance(spec, WindowSpec) and spec.num_inputs == 1
    for name, field in _keys_of(record, selector):
        if why := _in_the_way(field, rows_fit=not is_window, is_key=True):
            return f"its key {name!r} is {why}"
    if isinstance(spec, DeduplicateSpec | WindowSpec) and not _keeps_records(spec):
        return ""
    for name, field in zip(record.get_field_names(), record.get_field_types(), strict=True):
        if why := _in_the_way(field, rows_fit=not is_window):
            return f"it keeps {name!r}, which is {why}"
    return ""


def _keeps_records(spec: OperatorSpec) -> bool:
    """Whether a window keeps a record of its key, on columns field by field. Window joins keep batches as they are."""
    fold = spec.fold if isinstance(spec, WindowSpec) else None
    return isinstance(fold, ReduceFold) and isinstance(fold.given, FieldAggregate)


def _keys_of(record: TupleTypeInfo, selector: Any) -> Iterator[tuple[str, TypeInformation]]:
    names, types = record.get_field_names(), record.get_field_types()
    fields = selector.fields if isinstance(selector, ComposedKey) else ()
    for field in (selector.field,) if isinstance(selector, FieldKey) else fields:
        place = names.index(field) if field in names else field
        if isinstance(place, int) and -len(names) <= place < len(names):
            yield names[place], types[place]


def _in_the_way(field: TypeInformation, *, rows_fit: bool, is_key: bool = False, is_within: bool = False) -> str:
    if isinstance(field, _LISTS):
        return "a list"
    if isinstance(field, MapTypeInfo):
        return "a map"
    if isinstance(field, TupleTypeInfo):
        if not rows_fit:
            return "a Row"
        inner = (_in_the_way(one, rows_fit=True, is_key=is_key, is_within=True) for one in field.get_field_types())
        why = next(filter(None, inner), "")
        return why if why.startswith("a Row with") else f"a Row with {why}" if why else ""
    is_float = isinstance(field, BasicTypeInfo) and field.basic_type in _FLOATS
    return "a float" if is_key and is_within and is_float else ""
