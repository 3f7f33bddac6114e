"""Results of a declared ROW type become Rows, also when the program supplies tuples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.core.records import Row
from engine.core.type_info import RowTypeInfo, TypeInformation

__all__ = ["maker_of", "row_maker"]


def row_maker(row_type: RowTypeInfo) -> Callable[[Any], Any]:
    """Return value → Row for tuples and lists of the type's length; everything else passes as it is."""
    names = row_type.get_field_names()
    num_fields = len(names)

    def make(value: Any) -> Any:
        if isinstance(value, tuple | list) and len(value) == num_fields:
            row = Row(*value)
            row.set_field_names(names)
            return row
        if isinstance(value, Row) and len(value) == num_fields and not value.has_field_names():
            row = Row.of_kind(value.get_row_kind(), *value)
            row.set_field_names(names)
            return row
        return value

    return make


def maker_of(type_info: TypeInformation | None) -> Callable[[Any], Any] | None:
    """Return what is to be done to each result of that type, or None for nothing."""
    return row_maker(type_info) if isinstance(type_info, RowTypeInfo) else None
