"""Fields of records that windows over columns aggregate: what can be done with a type, and values of a batch.

Values that are no numbers are numbered in a table of the field's own, lists, maps and structs in an arena; a pane has
these codes in their place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.core.arrow_arrays import arrow_of
from engine.core.records import Named
from engine.operators.code_order import CodeOrder
from engine.operators.column_fields import is_named
from engine.operators.field_aggregates import FieldAggregateOf
from engine.operators.window_distinct import can_be_distinct
from engine.state.arrow_views import as_int64, from_int64, is_int64_like, is_text_like, values_of
from engine.state.short_decimals import first_long, long_kind, of_units, units_of
from engine.state.slot_columns import can_be_kept
from engine.state.slot_table import SlotTable
from engine.state.value_arena import ValueArena

Array = np.ndarray[Any, Any]
#: columns of panes with the slots that have something there
Places = list[tuple[Array, Array]]

__all__ = ["AggregatedField", "RecordLayout", "averages", "can_be_aggregated", "codes_for", "field_of_kind"]

#: Fewer codes are not worth to be looked through; of numbers, which take little room.
_RENEW_MIN: Final = 1 << 16
_RENEW_NUMBERS_MIN: Final = 1 << 20
#: Codes by those that panes have: to make a table anew takes as long as some records of each value that stays.
_RENEW_SHARE: Final = 4
#: Floats that are coded, by their bits: 0.0 and -0.0 are two values in a record, though they are one key.
_BITS: Final = {pa.float16(): pa.int16(), pa.float32(): pa.int32(), pa.float64(): pa.int64()}


@final
@dataclass(frozen=True)
class RecordLayout:
    """``schema``: of the records; ``keys``: the columns of their key."""

    schema: pa.Schema
    keys: tuple[int, ...]

    @property
    def named(self) -> Named:
        """Whether they are Rows, or their class."""
        return is_named(self.schema)


@final
@dataclass
class AggregatedField:
    """A field that is aggregated. ``present``: the column of panes that counts its values, 0 = that of records;
    ``order``: of codes that are compared."""

    index: int
    kind: pa.DataType
    present: int
    codes: SlotTable | ValueArena | None
    values: Array | None = None
    valid: Array | None = None
    #: of a batch, in place of ``values``: only those of windows' first records are wanted, which are few
    column: pa.Array | None = None
    order: CodeOrder | None = None
    #: values of a batch that are added to sums in lanes (``window_sums``)
    lanes: Array | None = None
    #: with so many codes those that no pane has any more are forgotten
    renew_at: int = field(init=False)

    def __post_init__(self) -> None:
        self.renew_at = self._renew_min

    @property
    def _renew_min(self) -> int:
        return _RENEW_NUMBERS_MIN if is_int64_like(self.kind) else _RENEW_MIN

    @property
    def is_only_kept(self) -> bool:
        """Whether it is coded, and never compared: in a record null is a value of its own then."""
        return self.codes is not None and self.order is None

    @property
    def nbytes(self) -> int:
        """Bytes of codes."""
        held = 0 if self.codes is None else self.codes.nbytes
        return held if self.order is None else held + self.order.nbytes

    @property
    def is_float(self) -> bool:
        return self.codes is None and bool(pa.types.is_floating(self.kind))

    @property
    def of_decimals(self) -> bool:
        return bool(pa.types.is_decimal128(self.kind))

    @property
    def is_decimal(self) -> bool:
        """Whether it is compared as integers (``state/short_decimals``)."""
        return self.codes is None and self.of_decimals

    def has_long(self, column: pa.Array) -> bool:
        """Whether there are decimals which are no such integers."""
        return self.is_decimal and first_long(column) < len(column)

    def code_decimals(self, places: Places) -> None:
        """Decimals have come that are no integers of 64 bits: hold those that are compared by number, and compare them
        by rank."""
        held = [self.column_of_ints("min", np.ascontiguousarray(column[slots])) for column, slots in places]
        self.codes = codes_for(self.kind)
        self.order = _order_of(self.codes)
        for (column, slots), values in zip(places, held, strict=True):
            column[slots] = self.codes_of(values)

    def ints_of(self, column: pa.Array) -> Array:
        """Return the values as they are held where they are no floats and not coded."""
        return units_of(column) if self.is_decimal else as_int64(column)

    def column_of_ints(self, kind: str, values: Array, valid: Array | None = None) -> pa.Array:
        """Return what an accumulator of that kind holds, as values. ``valid``: None = all."""
        mask = None if valid is None or valid.all() else ~valid
        if self.of_decimals:
            return of_units(values, self.kind if kind != "sum" else long_kind(self.kind), mask=mask)
        return arrow_of(values, mask=mask) if kind == "sum" else from_int64(values, self.kind, valid)

    def column_of(self, kind: str, values: Array, valid: Array) -> pa.Array:
        """Return what an accumulator of that kind holds, integers, floats or codes, as values."""
        mask = None if valid.all() else ~valid
        if self.codes is not None:
            column = self.decoded(values)
            return column if mask is None else pc.if_else(arrow_of(mask), pa.scalar(None, column.type), column)
        if self.is_float:
            made = arrow_of(values, mask=mask)
            return made if kind == "sum" else made.cast(self.kind)
        return self.column_of_ints(kind, values, valid)

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

    def renew_codes(self, places: Places) -> None:
        """Forget the values that are in no pane; several accumulators may have codes of one table."""
        held = [column[slots] for column, slots in places]
        used = np.unique(np.concatenate([np.zeros(0, np.int64), *held]))
        values = self.decoded(used)
        self.codes = codes_for(self.kind)
        if self.order is not None:
            self.order = _order_of(self.codes)
        fresh = self.codes_of(values)
        for (column, slots), codes in zip(places, held, strict=True):
            column[slots] = fresh[np.searchsorted(used, codes)]
        self.renew_at = max(self._renew_min, _RENEW_SHARE * self.codes.num_slots)

    def forget_batch(self) -> None:
        """Give back what can be had again."""
        self.values = self.valid = self.column = self.lanes = None
        if self.codes is not None:
            self.codes.trim()
            if self.order is not None:
                self.order = _order_of(self.codes)

    def comparable(self, values: Array, others: Array) -> tuple[Array, Array]:
        """Return numbers in the order of these values, which are as panes hold them."""
        if self.order is None:
            return values, others
        ranks = self.order.ranks(values, others)
        return ranks[values], ranks[others]


def field_of_kind(index: int, kind: pa.DataType, is_compared: bool) -> AggregatedField:
    """``is_compared``: or added; else it is only kept."""
    if is_compared and is_compared_by_rank(kind):
        codes = codes_for(kind)
        return AggregatedField(index, kind, 0, codes, order=_order_of(codes))
    return AggregatedField(index, kind, 0, None if is_compared or is_int64_like(kind) else codes_for(kind))


def is_compared_by_rank(kind: pa.DataType) -> bool:
    """Whether it is text or bytes."""
    return is_text_like(kind) and not pa.types.is_decimal(kind)


def codes_for(kind: pa.DataType) -> SlotTable | ValueArena:
    """Return an empty table of values of that type."""
    return ValueArena(kind) if kind.num_fields else SlotTable([_BITS.get(kind, kind)])


def _order_of(codes: SlotTable | ValueArena) -> CodeOrder:
    assert isinstance(codes, SlotTable), "values in an arena are not compared"
    return CodeOrder(codes)


def can_be_aggregated(aggregate: FieldAggregateOf, kind: pa.DataType) -> bool:
    """Whether kernels do that with values of this type as the row operator does with their Python objects."""
    is_number = (pa.types.is_integer(kind) and kind != pa.uint64()) or kind in (pa.float32(), pa.float64())
    is_decimal = bool(pa.types.is_decimal128(kind))
    match aggregate.kind:
        case "count":
            return aggregate.field is None or can_be_kept(kind)
        case "sum" | "avg":
            return is_number or is_decimal
        case "min" | "max":
            is_other = pa.types.is_temporal(kind) or pa.types.is_boolean(kind)
            return is_number or is_decimal or (is_other and is_int64_like(kind)) or is_compared_by_rank(kind)
        case "first" | "last":
            return kind != pa.float16() and can_be_kept(kind)
        case "count_distinct":
            return can_be_distinct(kind)
    return False


def averages(sums: Array, nums: Array) -> pa.Array:
    """Return each sum, of integers or floats, by the number of its values, as Python divides; null where that is 0."""
    present = nums > 0
    made = np.divide(sums, nums, out=np.zeros(nums.size), where=present)
    if sums.dtype != np.float64:
        for large in np.flatnonzero(np.abs(sums) > 1 << 53).tolist():
            made[large] = int(sums[large]) / int(nums[large])  # exact to the last digit, as on rows
    return arrow_of(made, mask=None if present.all() else ~present)
