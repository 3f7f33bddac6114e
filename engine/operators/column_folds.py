"""A user's fold over columns: which column is folded how, and the values that go into it, a batch at a time.

Made from the function when the types of its records are known (``compile/folds``). Not here: what holds the results
(``column_aggregate_operator``, ``column_window_operator``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
import pyarrow as pa

from engine.core.records import ColumnBatch
from engine.operators.aggregate import FieldAggregate
from engine.operators.column_fields import is_named, own_fields
from engine.operators.compile.column_steps import shape_of
from engine.operators.compile.errors import Doubt, NotCompilable
from engine.operators.compile.expressions import Field, Frame, Kind
from engine.operators.compile.folds import (
    FieldFold,
    FoldTranslation,
    hands_on,
    is_choice,
    is_count,
    translate_aggregate,
    translate_choice,
    translate_reduce,
)
from engine.operators.compile.translate import Shape
from engine.operators.field_aggregates import FieldAggregateOf
from engine.operators.record_choice import RecordChoice
from engine.operators.window_contents import AggregateFold, ReduceFold
from engine.state.arrow_views import kernel_view

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

__all__ = [
    "FoldedValues",
    "WindowFolds",
    "choice_of",
    "folded_values",
    "shape_of_schema",
    "why_no_window_folds",
    "window_choice",
    "window_folds",
]

#: What windows of a user's reduce function hold: a checkpoint has values of other types as numbers.
_HELD: Final = frozenset((Kind.INT, Kind.FLOAT, Kind.STR))
_NUMPY: dict[Kind, Any] = {Kind.INT: np.int64, Kind.FLOAT: np.float64}


@final
class FoldedValues:
    """``kinds``: by field, how it is folded."""

    def __init__(self, translation: FoldTranslation) -> None:
        self._translation = translation
        self.folds = translation.folds
        self.kinds = {index: fold.kind for index, fold in enumerate(translation.folds) if fold.kind != "first"}

    def leaves_as_it_is(self, keys: Iterable[int]) -> bool:
        """Whether each of these columns, as far as they are fields, is handed on."""
        return hands_on(self._translation, [key for key in keys if key < len(self.folds)])

    def is_computed(self, index: int) -> bool:
        """Whether the values are something else than the field itself."""
        return not _is_field(self.folds[index], index)

    def of(self, columns: pa.RecordBatch, indexes: Iterable[int]) -> dict[int, Any] | None:
        """Return the values that go into these folds: arrays of int64 or float64, or a column that is handed on as it
        is. None where the interpreter might give something else, or fail."""
        if any(name.read() is not name.value for name in self._translation.outside):
            return None
        if any(columns.column(index).null_count for index in self._translation.required):
            return None
        frame = Frame(columns.columns, columns.num_rows)
        try:
            with np.errstate(all="ignore"):
                return {index: self._value(self.folds[index], index, frame) for index in indexes}
        except (Doubt, pa.ArrowException):
            return None

    def _value(self, fold: FieldFold, index: int, frame: Frame) -> Any:
        assert fold.value is not None
        if fold.kind == "last" and isinstance(fold.value, Field) and fold.seed is None and _is_field(fold, index):
            return frame.columns[index]
        values = fold.value.evaluate(frame, None).values
        kind = _NUMPY[fold.value.kind]
        if _is_field(fold, index):
            return kernel_view(np.asarray(values, kind))
        return np.array(np.broadcast_to(values, frame.num_rows), kind)  # of its own: it may be written to


@final
class WindowFolds:
    """A fold over windows as aggregates of columns that are made for it: the key, then the values that are folded.

    ``aggregates``: by field of what the windows hold, over those columns; ``seeds``: what each begins with, or None
    when that is the first record's own value.
    """

    def __init__(self, translation: FoldTranslation, key: int) -> None:
        self._values = FoldedValues(translation)
        self._key = key
        #: columns that are made, each once, by the fold that they are made for
        self._columns: list[int] = []
        found: dict[str, int] = {}
        aggregates = []
        for index, fold in enumerate(translation.folds):
            if is_count(fold):
                aggregates.append(FieldAggregateOf("count", None))
                continue
            kind = None if fold.value is None else fold.value.kind
            text = f"{fold.text or index} {kind}"
            if text not in found:
                self._columns.append(index)
                found[text] = len(self._columns)
            aggregates.append(FieldAggregateOf(fold.kind, found[text]))
        self.aggregates = tuple(aggregates)
        self.seeds = tuple(fold.seed for fold in translation.folds)

    def derived(self, columns: pa.RecordBatch) -> pa.RecordBatch | None:
        """Return the columns that the aggregates want; None where the interpreter might give something else."""
        firsts = [index for index in self._columns if self._values.folds[index].kind == "first"]
        values = self._values.of(columns, [index for index in self._columns if index not in firsts])
        if values is None:
            return None
        arrays = [columns.column(self._key)]
        for index in self._columns:
            value = columns.column(index) if index in firsts else values[index]
            arrays.append(value if isinstance(value, pa.Array) else pa.array(value))
        return pa.RecordBatch.from_arrays(arrays, names=["key", *(f"value{at}" for at in range(1, len(arrays)))])


def window_folds(fold: Any, shape: Shape, key: int) -> WindowFolds | None:
    """Return how a fold of windows is made of columns of these kinds, or None when that is not known for sure."""
    try:
        if isinstance(fold, AggregateFold):
            return WindowFolds(translate_aggregate(fold.given, shape), key)
        if not isinstance(fold, ReduceFold) or isinstance(fold.given, FieldAggregate):
            return None
        folds = WindowFolds(translate_reduce(fold.given, shape), key)
    except NotCompilable:
        return None
    if not set(shape.kinds) <= _HELD or shape.names is not None:
        return None
    # The first record of a window is what it begins with: it would have to be known which one that is.
    return None if any(map(folds._values.is_computed, folds._values.kinds)) else folds


def why_no_window_folds(fold: Any, shape: Shape) -> str:
    """Return why there is no such fold, nor choice, of windows."""
    try:
        if isinstance(fold, AggregateFold):
            translate_aggregate(fold.given, shape)
            return "it folds in a way that windows do not know"
        if is_choice(fold.given):
            translate_choice(fold.given, shape)
        translate_reduce(fold.given, shape)
    except NotCompilable as error:
        return str(error)
    if shape.names is not None:
        return "windows do not hold objects or Rows that a reduce function makes"
    if not set(shape.kinds) <= _HELD:
        return "its records have fields that are no numbers and no texts"
    return "it computes what the first record of a window would have to be known for"


def window_choice(fold: ReduceFold, shape: Shape) -> RecordChoice | None:
    """Return how a fold of windows picks one of two records, or None when that is not known for sure."""
    try:
        return translate_choice(fold.given, shape)
    except NotCompilable:
        return None


def _is_field(fold: FieldFold, index: int) -> bool:
    return isinstance(fold.value, Field) and fold.value.index == index


def folded_values(function: Any, schema: pa.Schema) -> FoldedValues | None:
    """Return how a reduce function folds records of these types, or None when that is not known for sure."""
    shape = shape_of_schema(schema)
    try:
        return None if shape is None else FoldedValues(translate_reduce(function, shape))
    except NotCompilable:
        return None


def choice_of(function: Any, schema: pa.Schema) -> RecordChoice | None:
    """Return how a reduce function picks one of two such records, or None when that is not known for sure."""
    shape = shape_of_schema(schema)
    try:
        return None if shape is None else translate_choice(function, shape)
    except NotCompilable:
        return None


def shape_of_schema(schema: pa.Schema) -> Shape | None:
    """Return the shape of records in columns of these types, computed keys behind them left out; OPAQUE what is not
    kept as the interpreter computes."""
    num_fields = own_fields(schema.names)
    arrays = [pa.nulls(1, kind) for kind in schema.types[:num_fields]]
    try:
        records = pa.RecordBatch.from_arrays(arrays, names=schema.names[:num_fields])
        shape = shape_of(ColumnBatch(records, named=is_named(schema)))
    except (NotCompilable, pa.ArrowException):
        return None
    # Only what is kept in 64 bits is folded to what the interpreter has: a float32 that is summed is another one.
    exact = {Kind.INT: pa.int64(), Kind.FLOAT: pa.float64()}
    kinds = tuple(
        kind if exact.get(kind, own) == own else Kind.OPAQUE
        for kind, own in zip(shape.kinds, schema.types[:num_fields], strict=True)
    )
    return Shape(kinds, names=shape.names, record=shape.record)
