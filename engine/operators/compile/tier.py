"""What ``explain`` says of a function on rows: what will run it, and why, as far as is known before it runs.

Told by what comes in where the whole program is known (``datastream/vectorise``), else by the declared type of the
input; types that are not declared by the annotations of the function.
"""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Any, Final

from engine.core.record_class import fields_of_class, why_not_plain
from engine.core.type_info import BasicType, BasicTypeInfo, RowTypeInfo, TupleTypeInfo, TypeInformation
from engine.operators.compile.errors import NotCompilable

if TYPE_CHECKING:
    from engine.operators.compile.expressions import Kind
    from engine.operators.compile.translate import Shape

__all__ = ["COMPILED", "IF_OPENED", "IF_TYPES_ALLOW", "ON_ROWS", "annotated_shape", "interpreted", "tier_of"]

COMPILED: Final = "compiled on columns, else interpreted"
#: of columns whose types are seen when they come
IF_TYPES_ALLOW: Final = "compiled on columns if their types allow it, else interpreted"
#: of an object with attributes that its ``open`` computes
IF_OPENED: Final = "compiled on columns if what its open() sets allows it, else interpreted"
ON_ROWS: Final = "interpreted (its input is rows)"


def interpreted(why: NotCompilable) -> str:
    return f"interpreted ({why})"


def tier_of(function: Any, input_type: TypeInformation | None, *, is_filter: bool) -> str:
    """Return "compiled on columns, else interpreted" or "interpreted (why)"."""
    if input_type is None:
        return "interpreted (its input has no type)"
    from engine.operators.compile.expressions import Kind
    from engine.operators.compile.translate import Shape, translate

    def kind_of(type_info: TypeInformation) -> Kind:
        if not isinstance(type_info, BasicTypeInfo):
            return Kind.OPAQUE
        match type_info.basic_type:
            case BasicType.BYTE | BasicType.SHORT | BasicType.INT | BasicType.LONG:
                return Kind.INT
            case BasicType.FLOAT | BasicType.DOUBLE:
                return Kind.FLOAT
            case BasicType.BOOLEAN:
                return Kind.BOOL
            case BasicType.STRING | BasicType.CHAR:
                return Kind.STR
        return Kind.OPAQUE

    if isinstance(input_type, TupleTypeInfo):
        names = tuple(input_type.get_field_names()) if isinstance(input_type, RowTypeInfo) else None
        shape = Shape(tuple(map(kind_of, input_type.get_field_types())), names=names)
    else:
        shape = Shape((kind_of(input_type),), is_scalar=True)
    try:
        translate(function, shape, as_condition=is_filter)
    except NotCompilable as error:
        return interpreted(error)
    return COMPILED


def annotated_shape(function: Any, method: str) -> Shape | None:
    """Return what records are by the annotation of the function's argument: int, float, bool, str, or a tuple or plain
    class of these and others; None = it says nothing of use. ``method``: of an object, the one that is called."""
    from engine.operators.compile.callee import callee_of
    from engine.operators.compile.expressions import Kind
    from engine.operators.compile.translate import Shape

    try:
        callee = callee_of(function, method)
        code = callee.function.__code__
        parameter = code.co_varnames[: code.co_argcount][-1]
        annotation = typing.get_type_hints(callee.function).get(parameter)
    except Exception:  # no such argument, or names in it that only a type checker knows
        return None
    kinds = {int: Kind.INT, float: Kind.FLOAT, bool: Kind.BOOL, str: Kind.STR}
    if annotation in kinds:
        return Shape((kinds[annotation],), is_scalar=True)
    if isinstance(annotation, type) and not why_not_plain(annotation):
        return _shape_of_class(annotation, kinds)
    fields = typing.get_args(annotation)
    if typing.get_origin(annotation) is not tuple or not fields or Ellipsis in fields:
        return None
    return Shape(tuple(kinds.get(field, Kind.OPAQUE) for field in fields))


def _shape_of_class(record: type, kinds: dict[Any, Kind]) -> Shape:
    from engine.operators.compile.expressions import Kind
    from engine.operators.compile.translate import Shape

    names = fields_of_class(record)
    hints = typing.get_type_hints(record)
    return Shape(tuple(kinds.get(hints.get(name), Kind.OPAQUE) for name in names), names=names, record=record)
