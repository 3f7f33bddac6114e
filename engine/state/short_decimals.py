"""Decimals of at most 18 digits as integers of 64 bits: Arrow's 128 bits without the upper half, which says nothing.

The integer is the value in units of the last place (Python: the coefficient with its sign). All values of a column have
one scale, so what is added or compared are these integers, exactly as Python's ``Decimal`` has it while no result has
more digits than the context's precision.
"""

from __future__ import annotations

import decimal
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from engine.state.arrow_views import valid_mask

if TYPE_CHECKING:
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

__all__ = [
    "DIGITS_MAX",
    "SUM_DIGITS_MAX",
    "adds_exactly",
    "first_long",
    "first_long_units",
    "is_short_decimal",
    "of_units",
    "short_kind",
    "units_of",
]

DIGITS_MAX: Final = 18
#: Of a sum that fits into 64 bits.
SUM_DIGITS_MAX: Final = 19
_UNITS_MAX: Final = 10**DIGITS_MAX - 1
#: More than the exponent of any decimal with a usual scale, which a context has to reach.
_EXPONENT_MAX: Final = 100


def is_short_decimal(kind: pa.DataType) -> bool:
    """Whether every value of the type is of so few digits."""
    import pyarrow as pa

    return bool(pa.types.is_decimal128(kind)) and kind.precision <= DIGITS_MAX


def short_kind(kind: pa.DataType) -> pa.DataType:
    """Return the type of that scale for values of so few digits."""
    import pyarrow as pa

    return pa.decimal128(DIGITS_MAX, kind.scale)


def _halves(column: pa.Array) -> Array:
    """Return the lower and the upper half of each value, int64 (rows, 2)."""
    buffer = column.buffers()[1]
    if buffer is None:
        return np.zeros((len(column), 2), np.int64)
    return np.frombuffer(buffer, np.int64).reshape(-1, 2)[column.offset : column.offset + len(column)]


def units_of(column: pa.Array) -> Array:
    """Return the integers, a copy; of values with more digits, and at nulls, they have no meaning."""
    return np.ascontiguousarray(_halves(column)[:, 0])


def first_long(column: pa.Array) -> int:
    """Return the first row whose value has more digits, as many as there are rows if none has."""
    if is_short_decimal(column.type):
        return len(column)
    halves = _halves(column)
    units = halves[:, 0]
    long = (units >> 63 != halves[:, 1]) | (units > _UNITS_MAX) | (units < -_UNITS_MAX)
    if column.null_count:
        long &= valid_mask(column)
    return int(np.argmax(long)) if long.any() else len(column)


def first_long_units(units: Array) -> int:
    """As ``first_long`` of integers that may have 19 digits."""
    long = (units > _UNITS_MAX) | (units < -_UNITS_MAX)
    return int(np.argmax(long)) if long.any() else units.size


def of_units(units: Array, kind: pa.DataType, *, mask: Array | None = None) -> pa.Array:
    """Return the decimals of that type with these integers; ``mask``: which are null."""
    import pyarrow as pa

    halves = np.empty((units.size, 2), np.int64)
    halves[:, 0] = units
    halves[:, 1] = units >> 63
    valid = None if mask is None else pa.py_buffer(np.packbits(~mask, bitorder="little"))
    return pa.Array.from_buffers(kind, units.size, [valid, pa.py_buffer(halves)])


def adds_exactly(scale: int) -> bool:
    """Whether Python's Decimal rounds no sum of 64 bits, in this thread: its context is the user's to set."""
    context = decimal.getcontext()
    return (
        context.prec >= SUM_DIGITS_MAX
        and min(context.Emax, -context.Emin) >= _EXPONENT_MAX
        and abs(scale) + SUM_DIGITS_MAX < _EXPONENT_MAX
    )
