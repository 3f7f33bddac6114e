"""What ``explain`` says of a function on rows: what will run it, and why, as far as is known before it runs.

Told by the declared type of its input; whether columns come is seen when they come (a source may read rows).
"""

from __future__ import annotations

from typing import Any

from engine.core.type_info import BasicType, BasicTypeInfo, RowTypeInfo, TupleTypeInfo, TypeInformation
from engine.operators.functions import Function

__all__ = ["tier_of"]


def tier_of(function: Any, input_type: TypeInformation | None, *, is_filter: bool) -> str:
    """Return "compiled on columns, else interpreted" or "interpreted (why)"."""
    if input_type is None:
        return "interpreted (its input has no type)"
    if isinstance(function, Function):
        return f"interpreted ({type(function).__name__.lstrip('_')} is an object, not a plain function)"
    from engine.operators.compile.errors import NotCompilable
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
        return f"interpreted ({error})"
    return "compiled on columns, else interpreted"
