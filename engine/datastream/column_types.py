"""Why an operator stays on rows though its input is columns: told in the plan, by the types that are declared.

What is not declared is seen when records come; then the operator on columns hands over to rows by itself. pyarrow is
not loaded for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from engine.core.type_info import BasicType, BasicTypeInfo, TupleTypeInfo, TypeInformation
from engine.operators.aggregate import FieldAggregate, KeyedAggregateSpec, KeyedReduceSpec
from engine.operators.base import OperatorSpec
from engine.operators.column_fields import has_fields
from engine.operators.deduplicate import DeduplicateSpec
from engine.operators.group_aggregate import GroupAggregateSpec
from engine.operators.interval_join import IntervalJoinSpec
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.regular_join import RegularJoinSpec
from engine.operators.top_n import TopNSpec
from engine.operators.window import WindowSpec
from engine.operators.window_contents import ReduceFold
from engine.operators.window_functions import CoGroupedFunction
from engine.time.triggers import EventTimeTrigger

__all__ = ["why_no_fields", "why_not_objects", "why_rows"]

_FLOATS = (BasicType.FLOAT, BasicType.DOUBLE)


def why_rows(spec: OperatorSpec, types: Sequence[TypeInformation | None]) -> str:
    """Return why an operator cannot take columns of these records; "" = nothing that is declared is in the way.

    ``types``: of the records of each input, None where it is not known.
    """
    if isinstance(spec, WindowSpec) and (why := _why_of_window(spec)):
        return why
    for record, selector in zip(types, _selectors(spec), strict=False):
        if isinstance(record, TupleTypeInfo) and (why := _why_of_types(record, selector)):
            return why
    return ""


def why_not_objects(spec: OperatorSpec, record: type | None) -> str:
    """Return why an operator cannot take columns of objects of this class, None = of tuples or Rows; "" = it can."""
    match spec:
        case TopNSpec() | DeduplicateSpec(keeps="last") if record is not None and not issubclass(record, tuple):
            return f"its results are Rows with objects of {record.__name__} in them"
        case TopNSpec():
            fields: list[Any] = [*_fields(spec.key_selector), *(field for field, _ in spec.order)]
        case KeyedReduceSpec() | DeduplicateSpec():
            fields = [*_fields(spec.key_selector)]
        case KeyedAggregateSpec(selector, _, field):
            fields = [*_fields(selector), field]
        case WindowSpec():
            fold = spec.fold.given if isinstance(spec.fold, ReduceFold) else None
            fields = [field for own in (*spec.key_selectors, fold) for field in _fields(own)]
        case _:
            fields = []
    return _why_not_fields(record, fields)


def why_no_fields(record: type | None, selector: Any) -> str:
    """As ``why_not_objects``, of a key selector."""
    return _why_not_fields(record, _fields(selector))


def _why_not_fields(record: type | None, fields: Sequence[Any]) -> str:
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
        case KeyedAggregateSpec() | KeyedReduceSpec() | GroupAggregateSpec() | TopNSpec() | DeduplicateSpec():
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


def _why_of_types(record: TupleTypeInfo, selector: Any) -> str:
    for name, field in _keys_of(record, selector):
        if isinstance(field, TupleTypeInfo) and _has_float(field):  # what is no key at all is refused before
            return f"its key {name!r} is a Row with a float"
    return ""


def _keys_of(record: TupleTypeInfo, selector: Any) -> Iterator[tuple[str, TypeInformation]]:
    names, types = record.get_field_names(), record.get_field_types()
    fields = selector.fields if isinstance(selector, ComposedKey) else ()
    for field in (selector.field,) if isinstance(selector, FieldKey) else fields:
        place = names.index(field) if field in names else field
        if isinstance(place, int) and -len(names) <= place < len(names):
            yield names[place], types[place]


def _has_float(row: TupleTypeInfo) -> bool:
    return any(
        _has_float(field)
        if isinstance(field, TupleTypeInfo)
        else isinstance(field, BasicTypeInfo) and field.basic_type in _FLOATS
        for field in row.get_field_types()
    )
