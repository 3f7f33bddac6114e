"""Compiled functions on columnar batches: compile by schema, run, and leave a batch to the interpreter on doubt.

One object per function and operator. Nothing here calls the user's function.
"""

from __future__ import annotations

import dataclasses
from typing import Any, final

import numpy as np
import pyarrow as pa

from engine.core.record_class import fields_of_class
from engine.core.records import ColumnBatch, Row
from engine.operators.compile.distinct import OfValues, with_values_once
from engine.operators.compile.errors import NotCompilable
from engine.operators.compile.expressions import Expression, Field, Frame, Kind, Value
from engine.operators.compile.flat import FlatTranslation, translate_flat
from engine.operators.compile.flat_steps import ARROW_TYPES, flattened
from engine.operators.compile.guarded import Guarded
from engine.operators.compile.texts import array_of
from engine.operators.compile.translate import Fields, Shape, Translation, WholeRecord, translate

__all__ = ["ColumnFunction", "shape_of"]


@final
class ColumnFunction:
    """A map function or filter condition, or a flat_map function. ``reason``: why it was left to the interpreter, last
    time or for good. ``method``: as in ``translate``."""

    def __init__(self, function: Any, *, is_filter: bool, is_flat: bool = False, method: str = "") -> None:
        self._function = function
        self._is_flat = is_flat
        self._method = method
        self._is_filter = is_filter
        self._guarded = Guarded(self._translated)
        #: a translation, and the same for columns of which those at these places are in dictionaries
        self._of_values: tuple[Translation, tuple[int, ...], Translation] | None = None
        self.num_compiled = 0  #: batches
        self.num_interpreted = 0

    def apply(self, batch: ColumnBatch) -> ColumnBatch | None:
        """Return what the function makes of a batch that is not empty; None = ask the interpreter."""
        frame = Frame(batch.columns.columns, batch.columns.num_rows)
        result = self._guarded.run(batch, lambda translation: self._result(batch, translation, frame))
        if result is None:
            self.num_interpreted += 1
        else:
            self.num_compiled += 1
        return result

    @property
    def reason(self) -> str:
        return self._guarded.reason

    def tier(self) -> str:
        """Return what ran the function so far."""
        if not self.num_compiled:
            return f"interpreted ({self.reason or 'no columns came'})"
        if not self.num_interpreted:
            return "compiled"
        num = self.num_compiled + self.num_interpreted
        return f"compiled; {self.num_interpreted} of {num} batches interpreted ({self.reason})"

    def _result(self, batch: ColumnBatch, translation: Translation | FlatTranslation, frame: Frame) -> ColumnBatch:
        if isinstance(translation, FlatTranslation):
            return flattened(batch, translation, frame)
        translation = self._with_values_once(translation, frame)
        return self._filtered(batch, translation, frame) if self._is_filter else _mapped(batch, translation, frame)

    def _with_values_once(self, translation: Translation, frame: Frame) -> Translation:
        places = tuple(at for at, own in enumerate(frame.columns) if isinstance(own, pa.DictionaryArray))
        if not places:
            return translation
        if self._of_values is None or self._of_values[0] is not translation or self._of_values[1] != places:
            result = translation.result
            if isinstance(result, Expression):
                result = with_values_once(result, places)
            elif isinstance(result, Fields):
                items = tuple(with_values_once(item, places) for item in result.items)
                result = dataclasses.replace(result, items=items)
            self._of_values = translation, places, dataclasses.replace(translation, result=result)
        return self._of_values[2]

    def _translated(self, batch: ColumnBatch) -> Translation | FlatTranslation:
        if not self._is_flat:
            return translate(self._function, shape_of(batch), as_condition=self._is_filter, method=self._method)
        if batch.kinds is not None:
            raise NotCompilable("its input is a changelog")
        return translate_flat(self._function, shape_of(batch))

    @staticmethod
    def _filtered(batch: ColumnBatch, translation: Translation, frame: Frame) -> ColumnBatch:
        condition = translation.result
        assert isinstance(condition, Expression)
        keep = np.broadcast_to(condition.evaluate(frame, None).values, frame.num_rows)
        if keep.all():
            return batch
        stamps, kinds = batch.timestamps_ms, batch.kinds
        return dataclasses.replace(
            batch,
            columns=batch.columns.filter(pa.array(keep)),
            timestamps_ms=None if stamps is None else stamps[keep],
            kinds=None if kinds is None else kinds[keep],
        )


def _mapped(batch: ColumnBatch, translation: Translation, frame: Frame) -> ColumnBatch:
    """Kinds stay where the function gives its very record; what it makes of one is a new record, as on rows."""
    match translation.result:
        case WholeRecord():
            return batch
        case Fields(items, _, names, record):
            arrays = [_array(item, frame) for item in items]
            columns = pa.RecordBatch.from_arrays(
                arrays, names=[f"f{index}" for index in range(len(arrays))] if names is None else list(names)
            )
            return ColumnBatch(columns, batch.timestamps_ms, named=record or names is not None)
        case Expression() as value:
            return ColumnBatch(
                pa.RecordBatch.from_arrays([_array(value, frame)], names=["f0"]), batch.timestamps_ms, scalar=True
            )


def _array(expression: Expression, frame: Frame) -> pa.Array:
    if isinstance(expression, Field):
        return frame.columns[expression.index]  # as it is, nulls included
    if isinstance(expression, OfValues) and (encoded := expression.encoded(frame)) is not None:
        return encoded
    value: Value = expression.evaluate(frame, None)
    if expression.kind is Kind.STR:
        return array_of(value, frame.num_rows)
    return pa.array(np.broadcast_to(value.values, frame.num_rows), ARROW_TYPES[expression.kind])


# --- what records are -----------------------------------------------------------------------------------------------


def shape_of(batch: ColumnBatch) -> Shape:
    """Return what the interpreter would see of a batch that is not empty: asked of the batch itself."""
    kinds = tuple(_kind_of(field.type) for field in batch.columns.schema)
    record = batch.slice(0, 1).to_rows().rows[0]
    if batch.scalar:
        return Shape(kinds, is_scalar=True)
    if isinstance(batch.named, type) and type(record) is batch.named:
        return Shape(kinds, names=fields_of_class(batch.named), record=batch.named)
    if type(record) is tuple:
        return Shape(kinds)
    if type(record) is Row:
        names = tuple(batch.columns.schema.names)
        if not record.has_field_names():  # neither a tuple nor a Row with names, and rare
            raise NotCompilable("its records are Rows without names")
        if tuple(record.as_dict()) != names:
            raise NotCompilable("two of its records' fields have the same name")
        return Shape(kinds, names=names)
    raise NotCompilable(f"its records are of type {type(record).__name__}")


def _kind_of(data_type: pa.DataType) -> Kind:
    types = pa.types
    if types.is_dictionary(data_type):
        data_type = data_type.value_type
        return Kind.STR if types.is_string(data_type) else Kind.OPAQUE
    if types.is_boolean(data_type):
        return Kind.BOOL
    if types.is_integer(data_type):
        return Kind.INT
    if types.is_float32(data_type) or types.is_float64(data_type):
        return Kind.FLOAT
    return Kind.STR if types.is_string(data_type) else Kind.OPAQUE
