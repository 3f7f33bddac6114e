"""Fields of records that windows over columns aggregate: what can be done with a type, and values of a batch.

Values that are no numbers are numbered in a table of the field's own; a pane has these codes in their place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import pyarrow as pa

from engine.core.arrow_arrays import arrow_of
from engine.operators.column_fields import is_named
from engine.operators.field_aggregates import FieldAggregateOf
from engine.operators.window_distinct import can_be_distinct
from engine.state.arrow_views import as_int64, from_int64, is_int64_like, is_text_like, values_of
from engine.state.short_decimals import SUM_DIGITS_MAX, adds_exactly, first_long, of_units, units_of
from engine.state.slot_table import SlotTable

Array = np.ndarray[Any, Any]

__all__ = ["AggregatedField", "RecordLayout", "can_be_aggregated", "codes_for"]

#: Floats that are coded, by their bits: 0.0 and -0.0 are two values in a record, though they are one key.
_BITS: Final = {pa.float16(): pa.int16(), pa.float32(): pa.int32(), pa.float64(): pa.int64()}


@final
@dataclass(frozen=True)
class RecordLayout:
    """``schema``: of the records; ``keys``: the columns of their key."""

    schema: pa.Schema
    keys: tuple[int, ...]

    @property
    def named(self) -> bool:
        """Whether they are Rows."""
        return is_named(self.schema)


@final
@dataclass
class AggregatedField:
    """A field that is aggregated. ``present``: the column of panes that counts its values, 0 = that of records."""

    index: int
    kind: pa.DataType
    present: int
    codes: SlotTable | None
    values: Array | None = None
    valid: Array | None = None
    #: of a batch, in place of ``values``: only those of windows' first records are wanted, which are few
    column: pa.Array | None = None

    @property
    def is_float(self) -> bool:
        return self.codes is None and bool(pa.types.is_floating(self.kind))

    @property
    def is_decimal(self) -> bool:
        """Whether it is added or compared as integers (``state/short_decimals``)."""
        return self.codes is None and bool(pa.types.is_decimal128(self.kind))

    def has_long(self, column: pa.Array) -> bool:
        """Whether there are decimals which are no such integers."""
        return self.is_decimal and first_long(column) < len(column)

    @property
    def adds_exactly(self) -> bool:
        """Whether Python gives sums that panes hold as they are: it may round those of decimals."""
        return not self.is_decimal or adds_exactly(self.kind.scale)

    def ints_of(self, column: pa.Array) -> Array:
        """Return the values as they are held where they are no floats and not coded."""
        return units_of(column) if self.is_decimal else as_int64(column)

    def column_of_ints(self, kind: str, values: Array, valid: Array | None = None) -> pa.Array:
        """Return what an accumulator of that kind holds, as values. ``valid``: None = all."""
        mask = None if valid is None or valid.all() else ~valid
        if self.is_decimal:
            return of_units(values, self.kind if kind != "sum" else _sum_kind(self.kind), mask=mask)
        return arrow_of(values, mask=mask) if kind == "sum" else from_int64(values, self.kind, valid)

    def held_of(self, column: pa.Array) -> Array:
        """Return what a pane holds of a column of a checkpoint."""
        if self.codes is not None:
            return self.codes_of(column)
        return units_of(column) if self.is_decimal else values_of(column)

    def codes_of(self, column: pa.Array) -> Array:
        """Return a number for each value, int64; null is a value of its own."""
        assert self.codes is not None
        bits = _BITS.get(self.kind)
        return self.codes.slots_of([column if bits is None else column.view(bits)]).astype(np.int64)

    def decoded(self, codes: Array) -> pa.Array:
        assert self.codes is not None
        column = self.codes.keys_of(codes)[0]
        return column.view(self.kind) if self.kind in _BITS else column

    def forget_codes(self) -> None:
        self.codes = codes_for(self.kind)


def _sum_kind(kind: pa.DataType) -> pa.DataType:
    return pa.decimal128(max(kind.precision, SUM_DIGITS_MAX), kind.scale)


def codes_for(kind: pa.DataType) -> SlotTable:
    """Return an empty table of values of that type."""
    return SlotTable([_BITS.get(kind, kind)])


def can_be_aggregated(aggregate: FieldAggregateOf, kind: pa.DataType) -> bool:
    """Whether kernels do that with values of this type as the row operator does with their Python objects."""
    is_number = (pa.types.is_integer(kind) and kind != pa.uint64()) or kind in (pa.float32(), pa.float64())
    is_decimal = bool(pa.types.is_decimal128(kind))
    match aggregate.kind:
        case "count":
            return aggregate.field is None or is_int64_like(kind) or is_text_like(kind)
        case "sum":
            return is_number or is_decimal
        case "avg":
            return is_number  # of decimals: each one has as many places as it needs
        case "min" | "max":
            return is_number or is_decimal or (bool(pa.types.is_temporal(kind)) and is_int64_like(kind))
        case "first" | "last":
            return (is_int64_like(kind) and kind != pa.float16()) or is_text_like(kind)
        case "count_distinct":
            return can_be_distinct(kind)
    return False
