"""Texts of dates, times, timestamps and decimals → values: the slow, obvious way, for one value.

It takes what Arrow takes for a column, and gives what Arrow gives. Pure. Not here: numbers and booleans, which each
format reads in its own way.
"""

from __future__ import annotations

import datetime as dt
import decimal
import re
from collections.abc import Callable
from typing import Any, Final

from engine.core.type_info import SqlTimeTypeInfo

__all__ = ["decimal_of_text", "time_of_text"]

_TIME: Final = re.compile(r"([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]{0,6}))?)?")
_DECIMAL: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def time_of_text(kind: SqlTimeTypeInfo) -> Callable[[str], Any]:
    """Return what makes a date, time or datetime of its ISO form, to the microsecond. It raises ValueError."""
    import pyarrow as pa

    if kind.kind == "TIME":
        return _time_of_day
    data_type = kind.to_arrow()

    def time(text: str) -> Any:
        try:
            return pa.scalar(text).cast(data_type).as_py()
        except (pa.ArrowInvalid, OverflowError) as error:  # the year 0, too
            raise ValueError(f"{text!r:.80} is no {data_type}") from error

    return time


def _time_of_day(text: str) -> dt.time:
    found = _TIME.fullmatch(text)
    if found is not None:
        hour, minute, second, fraction = found.groups()
        try:
            return dt.time(int(hour), int(minute), int(second or 0), int((fraction or "").ljust(6, "0")))
        except ValueError:
            pass
    raise ValueError(f"{text!r:.80} is no time of day, as 23:59:59.999999 is")


def decimal_of_text(precision: int, scale: int) -> Callable[[str], decimal.Decimal]:
    """Return what makes a decimal with ``scale`` digits behind the point. It raises ValueError.

    Further digits are rounded half up, as Flink does; what has too many before the point is an error, where Flink
    makes a null of it.
    """
    context = decimal.Context(prec=precision, rounding=decimal.ROUND_HALF_UP)
    unit = decimal.Decimal((0, (1,), -scale))

    def number(text: str) -> decimal.Decimal:
        if _DECIMAL.fullmatch(text):
            try:
                return decimal.Decimal(text).quantize(unit, context=context)
            except decimal.InvalidOperation:
                pass
        raise ValueError(f"{text!r:.80} is no decimal number with {precision - scale} digits before the point")

    return number
