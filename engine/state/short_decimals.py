"""Decimals as integers: of at most 18 digits in 64 bits, of up to 38 in two lanes of 64 bits, as Arrow has them.

The integer is the value in units of the last place (Python: the coefficient with its sign). All values of a column have
one scale, so what is added or compared are these integers, exactly as Python's ``Decimal`` has it while no result has
more digits than the context's precision. Lanes: int64 (rows, 2), the lower one first, which has no sign of its own.
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
    "LONG_DIGITS_MAX",
    "SUM_DIGITS_MAX",
    "adds_exactly",
    "digits_added_exactly",
    "first_long",
    "first_long_units",
    "is_short_decimal",
    "is_short_for",
    "lanes_of",
    "lanes_of_int",
    "lanes_of_units",
    "long_kind",
    "of_units",
    "short_kind",
    "sizes_of",
    "sum_size_max",
    "units_of",
]

DIGITS_MAX: Final = 18
LONG_DIGITS_MAX: Final = 38
#: Of a sum that fits into 64 bits.
SUM_DIGITS_MAX: Final = 19
_UNITS_MAX: Final = 10**DIGITS_MAX - 1
#: Floats of 2^40 values that are added are off by less.
_BELOW: Final = 0.999
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


def long_kind(kind: pa.DataType) -> pa.DataType:
    """Return the type of that scale for values of any digits."""
    import pyarrow as pa

    return pa.decimal128(LONG_DIGITS_MAX, kind.scale)


def is_short_for(kind: pa.DataType, other: pa.DataType) -> bool:
    """Whether they are the ``short_kind`` and the ``long_kind`` of one scale."""
    import pyarrow as pa

    if not (pa.types.is_decimal128(kind) and pa.types.is_decimal128(other)):
        return False
    return (kind.precision, other.precision, kind.scale) == (DIGITS_MAX, LONG_DIGITS_MAX, other.scale)


def _halves(column: pa.Array) -> Array:
    """Return the lower and the upper half of each value, int64 (rows, 2)."""
    buffer = column.buffers()[1]
    if buffer is None:
        return np.zeros((len(column), 2), np.int64)
    return np.frombuffer(buffer, np.int64).reshape(-1, 2)[column.offset : column.offset + len(column)]


def units_of(column: pa.Array) -> Array:
    """Return the integers, a copy; of values with more digits, and at nulls, they have no meaning."""
    return np.ascontiguousarray(_halves(column)[:, 0])


def lanes_of(column: pa.Array) -> Array:
    """Return the values in lanes, a copy; at nulls they have no meaning."""
    return np.array(_halves(column))


def lanes_of_units(units: Array) -> Array:
    """Return integers of 64 bits in lanes."""
    lanes = np.empty((units.size, 2), np.int64)
    lanes[:, 0] = units
    lanes[:, 1] = units >> 63
    return lanes


def lanes_of_int(value: int) -> tuple[np.int64, np.int64]:
    """Return (lower, upper lane) of an integer of 128 bits."""
    lower, upper = np.frombuffer(value.to_bytes(16, "little", signed=True), np.int64)
    return lower, upper


def sizes_of(lanes: Array) -> Array:
    """Return the values without their signs, float64."""
    is_negative = lanes[:, 1] < 0
    lower = np.where(is_negative, -lanes[:, 0], lanes[:, 0])
    upper = np.where(is_negative, ~lanes[:, 1] + (lanes[:, 0] == 0), lanes[:, 1])
    made: Array = upper * 2.0**64 + lower.astype(np.uint64)
    return made


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
    """Return the decimals of that type with these integers or lanes, which are not copied; ``mask``: which are
    null."""
    import pyarrow as pa

    lanes = lanes_of_units(units) if units.ndim == 1 else np.ascontiguousarray(units)
    valid = None if mask is None else pa.py_buffer(np.packbits(~mask, bitorder="little"))
    return pa.Array.from_buffers(kind, lanes.shape[0], [valid, pa.py_buffer(lanes)])


def adds_exactly(scale: int) -> bool:
    """Whether Python's Decimal rounds no sum of 64 bits, in this thread: its context is the user's to set."""
    context = decimal.getcontext()
    return (
        context.prec >= SUM_DIGITS_MAX
        and min(context.Emax, -context.Emin) >= _EXPONENT_MAX
        and abs(scale) + LONG_DIGITS_MAX < _EXPONENT_MAX
        and context.rounding != decimal.ROUND_FLOOR  # there 1 - 1 is -0
    )


def digits_added_exactly() -> int:
    """Return how many digits a sum may have that Python's Decimal does not round, in this thread, nor Arrow's; where
    ``adds_exactly``."""
    return min(decimal.getcontext().prec, LONG_DIGITS_MAX)


def sum_size_max() -> float:
    """Return what a sum has to stay below that has so few digits, reckoned with floats, which are rounded."""
    return _BELOW * 10.0 ** digits_added_exactly()
