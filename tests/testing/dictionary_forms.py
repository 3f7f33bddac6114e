"""The same columns in dictionaries of all shapes: what pages of Parquet, pandas and polars give, and what nobody would.

A form says the numbers' type, where nulls stand (among the rows or among the values), whether a value comes twice or
has no row, and whether the column is a slice of a longer one.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

__all__ = ["FORMS", "Form", "encoded", "encoded_batch"]


@dataclass(frozen=True)
class Form:
    indices: pa.DataType
    null_value: bool = False
    twice: bool = False
    unused: bool = False
    sliced: bool = False


FORMS = {
    "tidy": Form(pa.int32()),
    "tidy, sliced, values twice and unused": Form(pa.int32(), twice=True, unused=True, sliced=True),
    "int8, null among the values": Form(pa.int8(), null_value=True),
    "int16, all of it": Form(pa.int16(), null_value=True, twice=True, unused=True, sliced=True),
    "uint32, unused": Form(pa.uint32(), unused=True),
    "int64": Form(pa.int64(), sliced=True),
}


def encoded(column: pa.Array, form: Form, seed: int = 0) -> pa.Array:
    """Return the column in a dictionary, and lists and structs with what is inside of them in dictionaries."""
    kind = column.type
    if pa.types.is_struct(kind):
        fields = [encoded(field, form, seed) for field in column.flatten()]
        return pa.StructArray.from_arrays(fields, names=[field.name for field in kind], mask=column.is_null())
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays(column.offsets, encoded(column.values, form, seed), mask=column.is_null())
    rng = random.Random(seed)
    given = column.to_pylist()
    bits = 8 if form.indices == pa.int8() else 16
    if len(set(map(repr, given))) * 2 + 8 > 1 << (bits - 1):
        form = Form(pa.int32(), form.null_value, form.twice, form.unused, form.sliced)
    values: list[Any] = list({repr(value): value for value in given if value is not None}.values())
    rng.shuffle(values)
    if form.twice:
        values += values[: len(values) // 2 + 1]
    if form.unused and values:
        values = [values[0], *values]
    if form.null_value:
        values.insert(len(values) // 2, None)
    places: dict[str, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(repr(value), []).append(place)
    indices = [
        None if value is None and (not form.null_value or rng.random() < 0.5) else rng.choice(places[repr(value)])
        for value in given
    ]
    ahead = 3 if form.sliced and values else 0
    found = pa.DictionaryArray.from_arrays(pa.array([0] * ahead + indices, form.indices), pa.array(values, kind))
    return found.slice(ahead)


def encoded_batch(columns: pa.RecordBatch, form: Form, places: Iterable[int] | None = None, seed: int = 0) -> Any:
    """Return the columns with those at ``places``, None = all, in dictionaries."""
    chosen = set(range(columns.num_columns) if places is None else places)
    arrays = [
        encoded(column, form, seed + place) if place in chosen else column
        for place, column in enumerate(columns.columns)
    ]
    return pa.RecordBatch.from_arrays(arrays, names=columns.schema.names)
