from __future__ import annotations

import enum
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.common import Types
from engine.core.records import ColumnBatch, Row, RowBatch, RowKind, rows_of
from engine.operators.row_columns import RowColumns, column_kinds

ALL = [
    Types.LONG(),
    Types.INT(),
    Types.DOUBLE(),
    Types.FLOAT(),
    Types.STRING(),
    Types.BOOLEAN(),
]
VALUES = {
    "Long": st.integers(-(2**63), 2**63 - 1),
    "Integer": st.integers(-(2**63), 2**63 - 1),
    "Double": st.floats(),
    "Float": st.floats(),
    "String": st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    "Boolean": st.booleans(),
}


class Number(enum.IntEnum):
    ONE = 1


class Text(str):
    pass


class OwnTuple(tuple):
    pass


class OwnRow(Row):
    pass


def exact(value):
    """Return what two values have alike only if nobody can tell them apart."""
    if type(value) is float:
        return float, "nan" if math.isnan(value) else (value, math.copysign(1, value))
    if type(value) is Row:
        return Row, value._kind, value._fields, tuple(map(exact, value._values)), type(value._values)
    if type(value) is tuple:
        return tuple, tuple(map(exact, value))
    return type(value), value


#: Each is not exactly of some type that a field may be declared of.
ODD = st.sampled_from(
    [
        *(2**63, -(2**63) - 1, True, 1, 0.5, "1", b"1", "\ud800", Number.ONE, Text("a"), (1,), [1], {}),
        *(np.float64(1), np.int64(1), np.str_("a"), np.bool_(True)),
    ]
)


@st.composite
def typed_batches(draw):
    """Return a type, and a batch whose records are of it, but for one perhaps."""
    fields = draw(st.lists(st.sampled_from(ALL), min_size=1, max_size=4))
    named = draw(st.booleans())
    names = [f"n{i}" for i in range(len(fields))]
    values = [VALUES[repr(field)] for field in fields]
    values = [st.one_of(own, st.none()) if draw(st.booleans()) else own for own in values]
    rows = draw(st.lists(st.tuples(*values), min_size=1, max_size=8))
    is_odd = draw(st.booleans())
    if is_odd:
        at, field = draw(st.integers(0, len(rows) - 1)), draw(st.integers(0, len(fields) - 1))
        rows[at] = (*rows[at][:field], draw(ODD), *rows[at][field + 1 :])
    if named:
        made = Row(*names)
        rows = [made(*row) for row in rows]
    stamps = draw(
        st.one_of(st.none(), st.lists(st.integers(-(2**63), 2**63 - 1), min_size=len(rows), max_size=len(rows)))
    )
    return (Types.ROW_NAMED(names, fields) if named else Types.TUPLE(fields)), RowBatch(rows, stamps), is_odd


@settings(max_examples=300, deadline=None)
@given(typed_batches())
def test_columns_read_as_rows_are_the_records_that_pickle_would_give(case):
    type_info, batch, is_odd = case
    made = RowColumns(type_info).of(batch)
    if made is batch:
        assert is_odd  # records of the type never stay rows
        return
    assert isinstance(made, ColumnBatch)
    assert list(map(exact, rows_of(made).rows)) == list(map(exact, pickle.loads(pickle.dumps(batch.rows))))
    assert rows_of(made).timestamps_ms == batch.timestamps_ms


TUPLES = Types.TUPLE([Types.LONG(), Types.STRING()])
ROWS = Types.ROW_NAMED(["a", "b"], [Types.LONG(), Types.STRING()])


@pytest.mark.parametrize(
    ("type_info", "row"),
    [
        (TUPLES, (True, "a")),
        (TUPLES, (1.0, "a")),
        (TUPLES, (2**63, "a")),
        (TUPLES, (Number.ONE, "a")),
        (TUPLES, (np.int64(1), "a")),
        (TUPLES, (1, Text("a"))),
        (TUPLES, (1, b"a")),
        (TUPLES, (1, "\ud800")),
        (TUPLES, (1,)),
        (TUPLES, (1, "a", 2)),
        (TUPLES, [1, "a"]),
        (TUPLES, OwnTuple((1, "a"))),
        (TUPLES, Row(1, "a")),
        (TUPLES, None),
        (ROWS, (1, "a")),
        (ROWS, Row(1, "a")),
        (ROWS, Row(a=1, c="a")),
        (ROWS, Row(b=1, a="a")),
        (ROWS, OwnRow(a=1, b="a")),
        (ROWS, Row.of_kind(RowKind.DELETE, a=1, b="a")),
        (ROWS, Row(a=1, b=None, c=2)),
        (Types.TUPLE([Types.DOUBLE(), Types.STRING()]), (1, "a")),
        (Types.TUPLE([Types.DOUBLE(), Types.STRING()]), (np.float64(1), "a")),
        (Types.TUPLE([Types.BOOLEAN(), Types.STRING()]), (1, "a")),
    ],
)
def test_one_record_that_is_not_exactly_of_the_type_keeps_all_from_then_on_rows(type_info, row):
    first = {"Long": 5, "Double": 0.5, "Boolean": True}[repr(type_info.get_field_types()[0])]
    good = Row(a=first, b="x") if type_info is ROWS else (first, "x")
    columns = RowColumns(type_info)
    assert isinstance(columns.of(RowBatch([good] * 3)), ColumnBatch)
    odd = RowBatch([good, row, good])
    assert columns.of(odd) is odd
    after = RowBatch([good])
    assert columns.of(after) is after
    assert columns.is_over


def test_which_types_have_columns_here():
    assert column_kinds(TUPLES) == (int, str)
    assert column_kinds(ROWS) == (int, str)
    nested = Types.TUPLE([Types.LONG(), ROWS])
    for other in (
        None,
        Types.LONG(),
        Types.TUPLE([]),
        nested,
        Types.TUPLE([Types.BIG_DEC()]),
        Types.PICKLED_BYTE_ARRAY(),
    ):
        assert column_kinds(other) is None
    assert column_kinds(Types.ROW_NAMED(["a", "a"], [Types.LONG(), Types.LONG()])) is None


def test_tuples_of_a_row_type_are_columns_of_rows_and_rows_once_one_is_not_of_it():
    columns = RowColumns(ROWS, makes_rows=True)
    expected = [Row(a=1, b="x"), Row(a=2, b=None)]
    for batch in ([(1, "x"), (2, None)], [Row(1, "x"), (2, None)], [[1, "x"], Row(a=2, b=None)]):
        made = columns.of(RowBatch(batch, [5, 6]))
        assert isinstance(made, ColumnBatch)
        assert list(map(exact, rows_of(made).rows)) == list(map(exact, expected))
        assert rows_of(made).timestamps_ms == [5, 6]
    for batch in ([(1, "x"), (2**70, None)], [(1, "x")]):
        made = columns.of(RowBatch(batch, list(range(len(batch)))))
        assert list(map(exact, made.rows)) == [exact(Row("a", "b")(*row)) for row in batch]
        assert made.timestamps_ms == list(range(len(batch)))
