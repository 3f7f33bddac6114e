"""Functions of two records on columns: what is taken gives what the interpreter gives, the rest is refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from engine.core.records import ColumnBatch
from engine.operators.column_fields import named_schema
from engine.operators.compile.errors import NotCompilable
from engine.operators.compile.expressions import Kind
from engine.operators.compile.pairs import PairFunction, translate_pair
from engine.operators.compile.translate import Shape

LEFT = pa.record_batch({"k": [1, 2, 3], "v": [10, -20, 7]})
RIGHT = pa.record_batch({"k": [1, 2, 3], "x": [0.5, 1.5, -2.0], "name": ["a", "b", ""]})
SHAPES = Shape((Kind.INT, Kind.INT)), Shape((Kind.INT, Kind.FLOAT, Kind.STR))
FACTOR = 3


def unpacked(left, right):
    """Names for fields."""
    k, v = left
    _, x, name = right
    if x > 1.0:
        return k, v * FACTOR, name
    return k, -v, name + "!"


TAKEN = {
    "sum": lambda a, b: a[1] + b[1],
    "fields": lambda a, b: (a[0], b[-1], a[-1] * 2),
    "added": lambda a, b: a + b,
    "added twice": lambda a, b: a + (1, a[1]) + b + b,  # noqa: RUF005
    "starred": lambda a, b: (*b, *a),
    "nested": lambda first, second: (first[1] if second[1] < 1 else second[0], second[2]),
    "unpacked": unpacked,
    "default": lambda a, b=(1, 2), c=3: (a[0] * c, b[1]),
}


@pytest.mark.parametrize("name", TAKEN)
def test_functions_that_are_taken_give_what_the_interpreter_gives(name):
    function = TAKEN[name]
    left, right = (ColumnBatch(batch).to_rows().rows for batch in (LEFT, RIGHT))
    made = PairFunction(function).apply((LEFT.schema, RIGHT.schema), [*LEFT.columns, *RIGHT.columns], 3, np.arange(3))
    assert made is not None
    assert made.to_rows().rows == list(map(function, left, right))
    assert made.to_rows().timestamps_ms == [0, 1, 2]


OF_ROWS = {
    "by name": lambda a, b: (a["k"], b.name, a.v + b["k"]),
    "fields": TAKEN["fields"],
    "starred": TAKEN["starred"],
    "unpacked": unpacked,
}


@pytest.mark.parametrize("sides", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("name", OF_ROWS)
def test_functions_of_rows_that_are_taken_give_what_the_interpreter_gives(name, sides):
    function = OF_ROWS[name]
    batches = [
        batch.replace_schema_metadata(named_schema(batch.schema, is_row).metadata)
        for batch, is_row in zip((LEFT, RIGHT), sides, strict=True)
    ]
    given = [ColumnBatch(batch, named=is_row).to_rows().rows for batch, is_row in zip(batches, sides, strict=True)]
    made = PairFunction(function).apply(tuple(b.schema for b in batches), [*LEFT.columns, *RIGHT.columns], 3, None)
    if name == "by name" and not all(sides):
        assert made is None
        return
    assert made is not None
    assert made.to_rows().rows == list(map(function, *given))


@pytest.mark.parametrize("function", [lambda a, b: a + b, lambda a, b: (a.other, b[0]), lambda a, b: (a["no"], b[0])])
def test_functions_that_rows_do_not_bear_are_refused(function):
    kinds = (Kind.INT, Kind.INT), (Kind.INT, Kind.FLOAT, Kind.STR)
    with pytest.raises(NotCompilable):
        translate_pair(function, Shape(kinds[0], names=("k", "items")), Shape(kinds[1]))
    with pytest.raises(NotCompilable):
        translate_pair(lambda a, b: (a.as_dict, b[0]), Shape(kinds[0], names=("k", "as_dict")), Shape(kinds[1]))


def reassigned(a, b):
    a = (1, 2)
    return a[0], b[0]


REFUSED = {
    "whole": lambda a, b: (a, b),
    "one of them": lambda a, b: a,
    "length": lambda a, b: len(a),
    "by a field": lambda a, b: a[b[0]],
    "list": lambda a, b: [a[0]],
    "beyond": lambda a, b: a[2],
    "compared": lambda a, b: a == b,
    "in": lambda a, b: a[0] in b,
    "times": lambda a, b: a * 2,
    "more arguments": lambda a, b, c: a[0],
    "default": lambda a, b, c=(1, 2): c[0],
    "reassigned": reassigned,
    "captured": lambda a, b: (lambda: a[0])(),
    "not a function": max,
}


@pytest.mark.parametrize("name", REFUSED)
def test_functions_that_are_not_surely_the_same_are_refused(name):
    with pytest.raises(NotCompilable):
        translate_pair(REFUSED[name], *SHAPES)


def test_pairs_in_doubt_are_left_to_the_interpreter():
    function = PairFunction(lambda a, b: (a[1] // a[0], b[0]))
    columns = [pa.array([1, 0]), pa.array([4, 4]), *RIGHT.slice(0, 2).columns]
    assert function.apply((LEFT.schema, RIGHT.schema), columns, 2, np.arange(2)) is None
    assert "interpreter" in function.reason


def test_only_the_fields_that_a_function_reads_are_asked_for():
    class Asked(list):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)

    asked: list[int] = []
    PairFunction(lambda a, b: a[1] + b[0]).apply(
        (LEFT.schema, RIGHT.schema), Asked([*LEFT.columns, *RIGHT.columns]), 3, np.arange(3)
    )
    assert set(asked) == {1, 2}
