"""How a record looks as text: in ``print``, in text files, on the command line. The forms are Flink's.

Typed values print as Java does (``(hello,1)``, ``+I[hello, 1]``, ``true``, ``null``, ``1.0E7``); untyped
ones as ``str``.
Not for reading back: CSV is ``formats/rows``.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
from typing import Any

from engine.core.records import Row
from engine.core.type_info import BasicType, BasicTypeInfo, PickledBytesTypeInfo, TupleTypeInfo, TypeInformation

__all__ = ["format_record", "record_formatter"]


def format_record(value: Any, type_info: TypeInformation | None = None) -> str:
    """Return the record as Flink prints it; see the module's docstring."""
    return record_formatter(type_info)(value)


def record_formatter(type_info: TypeInformation | None) -> Callable[[Any], str]:
    """Return the function that formats all records of a stream: the type is looked at once, not per record."""
    if type_info is None or isinstance(type_info, PickledBytesTypeInfo):
        return _format_untyped
    if isinstance(type_info, BasicTypeInfo) and type_info.basic_type is BasicType.STRING:
        return lambda value: value if type(value) is str else format_typed(value)
    if type(type_info) is TupleTypeInfo and not any(
        isinstance(field, TupleTypeInfo) for field in type_info.get_field_types()
    ):
        return _format_flat_tuple
    return lambda value: _format_as(value, type_info)


def _format_untyped(value: Any) -> str:
    if type(value) is str:
        return value
    if isinstance(value, Row):
        return format_typed(value)
    return str(value)


def _format_flat_tuple(value: Any) -> str:
    if type(value) is not tuple:
        return format_typed(value)
    parts = [v if type(v) is str else str(v) if type(v) is int else format_typed(v) for v in value]
    return "(" + ",".join(parts) + ")"


def _format_as(value: Any, type_info: TypeInformation) -> str:
    if isinstance(type_info, TupleTypeInfo) and isinstance(value, (tuple, list, Row)):
        types = type_info.get_field_types()
        if len(types) == len(value):
            parts = [_format_as(part, own) for part, own in zip(value, types, strict=True)]
            if type(type_info) is TupleTypeInfo and not isinstance(value, Row):
                return "(" + ",".join(parts) + ")"
            kind = value.get_row_kind() if isinstance(value, Row) else "+I"
            return f"{kind}[" + ", ".join(parts) + "]"
    return format_typed(value)


def format_typed(value: Any) -> str:
    """Return a value of a typed stream as Java's ``toString`` gives it."""
    match value:
        case str():
            return value
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return _format_double(value)
        case Row():
            return f"{value.get_row_kind()}[" + ", ".join(map(format_typed, value)) + "]"
        case tuple():
            return "(" + ",".join(map(format_typed, value)) + ")"
        case list():
            return "[" + ", ".join(map(format_typed, value)) + "]"
        case dict():
            return "{" + ", ".join(f"{format_typed(k)}={format_typed(v)}" for k, v in value.items()) + "}"
        case bytes() | bytearray():
            # Java's bytes are signed.
            return "[" + ", ".join(str(byte - 256 if byte > 127 else byte) for byte in value) + "]"
        case dt.datetime():
            return value.isoformat()
    return str(value)


def _format_double(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        text = repr(float(value))
        if "e" not in text:
            return text
    # Shortest digits as repr finds them, laid out as Java does: d.dddE±x.
    sign, digits, exponent = _digits_of(value)
    return f"{sign}{digits[0]}.{digits[1:] or '0'}E{exponent}"


def _digits_of(value: float) -> tuple[str, str, int]:
    text = repr(float(value))
    sign = "-" if text.startswith("-") else ""
    mantissa, _, exponent_text = text.lstrip("-").partition("e")
    whole, _, fraction = mantissa.partition(".")
    exponent = int(exponent_text or 0) + len(whole) - 1
    digits = whole + fraction
    stripped = digits.lstrip("0")
    exponent -= len(digits) - len(stripped)
    return sign, stripped.rstrip("0") or "0", exponent
