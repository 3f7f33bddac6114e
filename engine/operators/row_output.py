"""Results of a declared ROW type become Rows, also when the program supplies tuples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from engine.core.records import Row, row_of, row_of_kind
from engine.core.type_info import RowTypeInfo, TypeInformation
from engine.operators.functions import Function, RuntimeContext, callable_of

__all__ = ["RowMap", "RowOutput", "maker_of", "row_maker"]


def row_maker(row_type: RowTypeInfo) -> Callable[[Any], Any]:
    """Return value → Row for tuples and lists of the type's length; everything else passes as it is."""
    names = tuple(row_type.get_field_names())
    num_fields = len(names)

    def make(value: Any) -> Any:
        if isinstance(value, tuple | list) and len(value) == num_fields:
            return row_of(names, list(value))
        if isinstance(value, Row) and len(value) == num_fields and not value.has_field_names():
            return row_of_kind(value.get_row_kind(), value, names)
        return value

    return make


def maker_of(type_info: TypeInformation | None) -> Callable[[Any], Any] | None:
    """Return what is to be done to each result of that type, or None for nothing."""
    return row_maker(type_info) if isinstance(type_info, RowTypeInfo) else None


class RowOutput(Function):
    """``function``: as the user gave it; its results are made Rows of ``output_type``."""

    def __init__(self, function: Any, output_type: RowTypeInfo) -> None:
        self.function = function
        self.output_type = output_type

    def open(self, runtime_context: RuntimeContext) -> None:
        self._make = row_maker(self.output_type)
        if isinstance(self.function, Function):
            self.function.open(runtime_context)

    def close(self) -> None:
        if isinstance(self.function, Function):
            self.function.close()


@final
class RowMap(RowOutput):
    """The compiler (``compile/callee``) looks inside."""

    def open(self, runtime_context: RuntimeContext) -> None:
        super().open(runtime_context)
        self._call = callable_of(self.function, "map")

    def map(self, value: Any) -> Any:
        return self._make(self._call(value))
