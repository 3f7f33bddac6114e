"""Where keyed aggregations on columns find keys and values in a batch, and what they hold of them. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from engine.core.arrow_arrays import arrow_of, bools_of
from engine.core.records import Named
from engine.operators.after_columns import VALUE_COLUMN
from engine.operators.aggregate import KeyedAggregateSpec, KeyedReduceSpec
from engine.operators.column_fields import column_index, is_named
from engine.operators.keys import ComposedKey, FieldKey, key_fields
from engine.operators.record_choice import RecordChoice

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from engine.operators.column_folds import FoldedValues
    from engine.state.slot_state import SlotState

    Array = np.ndarray[Any, Any]

__all__ = [
    "Layout",
    "batch_of",
    "folded_of",
    "held_kind",
    "held_kinds",
    "layout_of",
    "numbers_of",
    "result",
    "result_kind",
    "rows_before_null",
]

_OF_DECIMALS: Final = ("sum", "min", "max", "compared")


@dataclass(frozen=True)
class Layout:
    """Where in a batch's columns the keys, the values and the rest are."""

    schema: pa.Schema
    keys: tuple[int, ...]
    #: column → sum, min, max, last, or compared: then records are chosen by it
    folded: dict[int, str]
    #: columns of which the first record's value is kept, or that of the record which was chosen
    kept: tuple[int, ...]
    #: there is one built-in aggregate
    is_built_in: bool
    #: what the folds of a function take of a record
    values: FoldedValues | None = None
    choice: RecordChoice | None = None

    @property
    def named(self) -> Named:
        """Whether records are Rows, or the class of them: said in the schema, so that it is in the state's note."""
        return is_named(self.schema)

    @property
    def sums_a_key(self) -> bool:
        """Whether results lack the key: then rows could not go on with them as state."""
        return any(self.folded.get(key) == "sum" for key in self.keys)

    # What follows is asked for each batch, however few records it has.

    @cached_property
    def only_keys(self) -> frozenset[int]:
        """Columns that nobody looks into but to find slots: texts of them may stay in dictionaries."""
        others = {*self.folded, *self.kept}
        return frozenset(self.keys if self.values is None else ()) - others

    @cached_property
    def types(self) -> list[pa.DataType]:
        kinds: list[pa.DataType] = self.schema.types
        return kinds

    @cached_property
    def names(self) -> list[str]:
        names: list[str] = self.schema.names
        return names

    @cached_property
    def _decimals(self) -> frozenset[int]:
        import pyarrow as pa

        return frozenset(index for index, kind in enumerate(self.types) if pa.types.is_decimal128(kind))

    @cached_property
    def _ranked(self) -> frozenset[int]:
        return frozenset(
            index
            for index, how in self.folded.items()
            if how in ("min", "max", "compared") and _is_text(self.types[index])
        )

    @cached_property
    def _state_names(self) -> list[str]:
        # With one aggregate its column is "value", as it was before there were several.
        return [VALUE_COLUMN if self.is_built_in and i in self.folded else f"c{i}" for i in range(len(self.types))]

    def is_decimal(self, index: int) -> bool:
        return index in self._decimals

    def is_ranked(self, index: int) -> bool:
        """Whether it is compared by ranks (``column_ranks``)."""
        return index in self._ranked

    def name_of(self, index: int) -> str:
        """Return the column of state that has it."""
        return self._state_names[index]


def layout_of(
    schema: pa.Schema, selector: FieldKey | ComposedKey, spec: KeyedAggregateSpec | KeyedReduceSpec
) -> Layout | None:
    """Return where things are, or None when columns of this schema cannot be aggregated here. ``selector``: of the
    key's columns, whatever it is on rows."""
    import pyarrow as pa

    from engine.state.arrow_views import is_int64_like
    from engine.state.slot_columns import can_be_kept
    from engine.state.struct_keys import can_be_row_key

    keys = tuple(column_index(schema, field) for field in key_fields(selector))
    if min(keys) < 0 or not all(can_be_row_key(schema.types[key]) for key in keys):
        return None
    values: FoldedValues | None = None
    choice = _choice_of(schema, spec)
    if choice is not None:
        folded = {column_index(schema, choice.field): "compared"}
    elif isinstance(spec, KeyedAggregateSpec):
        folded = {column_index(schema, spec.field): spec.kind}
    else:
        from engine.operators.column_folds import folded_values

        values = folded_values(spec.function, schema)
        if values is None or not values.leaves_as_it_is(keys):
            return None
        folded = {index: kind for index, kind in values.kinds.items() if index not in keys}
    if min(folded, default=0) < 0:
        return None
    for index, how in folded.items():
        kind = schema.types[index]
        is_number = (pa.types.is_integer(kind) or pa.types.is_floating(kind)) and kind not in (
            pa.uint64(),
            pa.float16(),
        )
        # Dates and times are ordered as the numbers that they are; nothing is added to them.
        is_time = how in ("min", "max", "compared") and is_int64_like(kind) and pa.types.is_temporal(kind)
        is_decimal = bool(pa.types.is_decimal128(kind)) and how in _OF_DECIMALS
        is_other = how in ("min", "max", "compared") and (_is_text(kind) or pa.types.is_boolean(kind))
        is_built_in = is_time or is_decimal or is_other  # of a function of the user's these are no folds
        if not (is_number or (is_built_in and values is None) or (how == "last" and can_be_kept(kind))):
            return None
    # A float key too: 0.0 and -0.0 are one key, and it is the first record's that results have.
    kept = tuple(
        index
        for index, own in enumerate(schema.types)
        if index not in folded and (index not in keys or pa.types.is_floating(own))
    )
    if not all(can_be_kept(schema.types[index]) for index in kept):
        return None
    return Layout(schema, keys, folded, kept, isinstance(spec, KeyedAggregateSpec), values, choice)


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    types = pa.types
    is_text = types.is_string(kind) or types.is_large_string(kind)
    return bool(is_text or types.is_binary(kind) or types.is_large_binary(kind))


def _choice_of(schema: pa.Schema, spec: KeyedAggregateSpec | KeyedReduceSpec) -> RecordChoice | None:
    """Return by what records are chosen, or None when they are folded."""
    if isinstance(spec, KeyedAggregateSpec):
        return RecordChoice.of_kind(spec.kind, spec.field) if spec.kind in ("min_by", "max_by") else None
    from engine.operators.column_folds import choice_of

    return choice_of(spec.function, schema)


def held_kinds(layout: Layout) -> dict[str, pa.DataType]:
    """Return the columns of state."""
    return {layout.name_of(index): held_kind(layout, index) for index in (*layout.folded, *layout.kept)}


def held_kind(layout: Layout, index: int) -> pa.DataType:
    import pyarrow as pa

    own = layout.schema.types[index]
    if layout.folded.get(index, "last") == "last" or layout.is_ranked(index):
        return own
    if pa.types.is_decimal128(own):
        from engine.state.short_decimals import long_kind

        return long_kind(own)
    return pa.float64() if pa.types.is_floating(own) else pa.int64()


def rows_before_null(layout: Layout, columns: pa.RecordBatch) -> int:
    """Return how many rows come before the first one that is for rows: with a null that is to be added or compared;
    none, if sums of decimals are rounded otherwise."""
    import numpy as np

    from engine.state.arrow_views import valid_mask
    from engine.state.short_decimals import adds_exactly

    num_rows: int = columns.num_rows
    if layout.values is None:
        for index, how in layout.folded.items():
            column = columns.column(index)
            if column.null_count:
                num_rows = min(num_rows, int(np.argmin(valid_mask(column))))
            if how == "sum" and layout.is_decimal(index) and not adds_exactly(column.type.scale):
                num_rows = 0
    return num_rows


def folded_of(layout: Layout, columns: pa.RecordBatch, state: SlotState | None) -> dict[int, Any] | None:
    """Return by column what is folded: numpy arrays, or Arrow's where they are only handed on; None = ask the rows.
    ``state``: gets room for it; None = of a function of the user's."""
    if layout.values is None:
        assert state is not None
        return {
            index: columns.column(index) if layout.is_ranked(index) else _numbers(layout, index, columns, state)
            for index in layout.folded
        }
    return layout.values.of(columns, layout.folded)


def _numbers(layout: Layout, index: int, columns: pa.RecordBatch, state: SlotState) -> Array:
    if not layout.is_decimal(index):
        return numbers_of(columns.column(index))
    from engine.operators.decimal_folds import values_for

    held: Any = state.columns[layout.name_of(index)]
    return values_for(held, columns.column(index))


def numbers_of(column: pa.Array) -> Array:
    """Return values as they are held, but for decimals, so that kernels are compiled for no other types."""
    import numpy as np
    import pyarrow as pa

    from engine.state.arrow_views import values_of

    if pa.types.is_boolean(column.type):
        return bools_of(column).astype(np.int64)
    values = values_of(column)
    return values.astype(np.float64 if values.dtype.kind == "f" else np.int64, copy=False)


def result_kind(kind: str, own: pa.DataType) -> pa.DataType:
    """Return the type of results of a column of records that is folded like this."""
    import pyarrow as pa

    if kind != "sum":
        return own
    if pa.types.is_decimal128(own):
        from engine.state.short_decimals import long_kind

        return long_kind(own)
    return pa.float64() if pa.types.is_floating(own) else pa.int64()


def result(kind: str, values: Any, own: pa.DataType) -> pa.Array:
    import pyarrow as pa

    if isinstance(values, pa.Array):
        return values
    if pa.types.is_decimal128(own):
        from engine.state.short_decimals import of_units

        return of_units(values, result_kind(kind, own))
    made = arrow_of(values)
    if pa.types.is_temporal(own) and own.bit_width == 32:
        made = made.cast(pa.int32())
    # A minimum fits its own type; a sum may not.
    return made if kind == "sum" or made.type == own else made.cast(own)


def batch_of(arrays: list[pa.Array], names: list[str]) -> pa.RecordBatch:
    import pyarrow as pa

    return pa.RecordBatch.from_arrays(arrays, names=names)
