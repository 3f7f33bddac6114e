"""Fields of records that windows over columns aggregate: what can be done with a type, and values of a batch.

Values that are no numbers are numbered in a table of the field's own; a pane has these codes in their place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import pyarrow as pa

from engine.operators.column_fields import is_named
from engine.operators.field_aggregates import FieldAggregateOf
from engine.operators.window_distinct import can_be_distinct
from engine.state.arrow_views import is_int64_like, is_text_like
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

    @property
    def is_float(self) -> bool:
        return self.codes is None and bool(pa.types.is_floating(self.kind))

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


def codes_for(kind: pa.DataType) -> SlotTable:
    """Return an empty table of values of that type."""
    return SlotTable([_BITS.get(kind, kind)])


def can_be_aggregated(aggregate: FieldAggregateOf, kind: pa.DataType) -> bool:
    """Whether kernels do that with values of this type as the row operator does with their Python objects."""
    is_number = (pa.types.is_integer(kind) and kind != pa.uint64()) or kind in (pa.float32(), pa.float64())
    match aggregate.kind:
        case "count":
            return aggregate.field is None or is_int64_like(kind) or is_text_like(kind)
        case "sum" | "avg":
            return is_number
        case "min" | "max":
            return is_number or (bool(pa.types.is_temporal(kind)) and is_int64_like(kind))
        case "first" | "last":
            return (is_int64_like(kind) and kind != pa.float16()) or is_text_like(kind)
        case "count_distinct":
            return can_be_distinct(kind)
    return False
