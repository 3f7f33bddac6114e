"""What fits a declared type and what does not, and how that reads."""

from __future__ import annotations

import datetime as dt
import decimal

import numpy as np
import pytest

from engine.core.records import Row
from engine.core.type_info import PickledBytesTypeInfo, TypeInformation, Types
from engine.state.declared_types import ELEMENTS_MAX, misfit
from engine.time.watermarks import Instant

PAIR = Types.TUPLE([Types.INT(), Types.STRING()])
NAMED = Types.ROW_NAMED(["id", "name"], [Types.LONG(), Types.STRING()])

FITTING = [
    (Types.STRING(), "x"),
    (Types.CHAR(), "x"),
    (Types.BOOLEAN(), True),
    (Types.BOOLEAN(), np.bool_(False)),
    (Types.BOOLEAN(), 1),  # as Flink's serializer takes it
    (Types.BYTE(), -128),
    (Types.SHORT(), 32767),
    (Types.INT(), -(2**31)),
    (Types.INT(), True),
    (Types.INT(), np.int64(7)),
    (Types.LONG(), 2**63 - 1),
    (Types.BIG_INT(), 2**200),
    (Types.FLOAT(), 1),
    (Types.DOUBLE(), float("nan")),
    (Types.DOUBLE(), np.float32(1.5)),
    (Types.BIG_DEC(), decimal.Decimal("1.50")),
    (Types.INSTANT(), Instant(1, 0)),
    (Types.SQL_DATE(), dt.date(2024, 1, 1)),
    (Types.SQL_TIME(), dt.time(1)),
    (Types.SQL_TIMESTAMP(), dt.datetime(2024, 1, 1)),
    (PAIR, (1, "x")),
    (PAIR, Row(1, "x")),
    (NAMED, Row(id=1, name="x")),
    (NAMED, Row(1, None)),
    (NAMED, (1, "x")),
    (Types.LIST(Types.INT()), [1, None, 2]),
    (Types.LIST(Types.INT()), ()),
    (Types.PRIMITIVE_ARRAY(Types.DOUBLE()), np.array([1.0, 2.0])),
    (Types.PRIMITIVE_ARRAY(Types.BYTE()), b"\xff"),
    (Types.MAP(Types.STRING(), Types.LIST(Types.INT())), {"a": [1], "b": None}),
    (Types.PICKLED_BYTE_ARRAY(), object()),
    (PickledBytesTypeInfo(), None),
    (None, object()),
]


@pytest.mark.parametrize(("declared", "value"), FITTING)
def test_what_a_serializer_would_take_fits(declared, value):
    assert misfit(declared, value) is None


def test_a_type_of_the_users_own_takes_everything():
    class Own(TypeInformation):
        pass

    assert misfit(Own(), object()) is None


NOT_FITTING = [
    (Types.STRING(), 1, "1 of type int, expected String (str)"),
    (Types.STRING(), b"x", "b'x' of type bytes, expected String (str)"),
    (Types.BOOLEAN(), 2, "2 of type int, expected Boolean (bool)"),
    (Types.INT(), "x", "'x' of type str, expected Integer (int of 32 bits)"),
    (Types.INT(), 1.0, "1.0 of type float, expected Integer (int of 32 bits)"),
    (Types.INT(), None, "None of type NoneType, expected Integer (int of 32 bits)"),
    (Types.INT(), 2**31, "2147483648, which is out of the range of Integer (int of 32 bits); Types.LONG() takes it"),
    (Types.BYTE(), 128, "128, which is out of the range of Byte (int of 8 bits); Types.LONG() takes it"),
    (Types.LONG(), -(2**63) - 1, "Types.BIG_INT() takes it"),
    (Types.BIG_INT(), 1.5, "1.5 of type float, expected BigInteger (int)"),
    (Types.DOUBLE(), "1.5", "'1.5' of type str, expected Double (float)"),
    (Types.BIG_DEC(), 1.5, "1.5 of type float, expected BigDecimal (decimal.Decimal)"),
    (Types.INSTANT(), 5, "5 of type int, expected Instant (Instant)"),
    (Types.SQL_DATE(), "2024-01-01", "expected datetime.date"),
    (PAIR, (1, 2), "a tuple whose field f1 is 2 of type int, expected String (str)"),
    (PAIR, (1, None), "a tuple's fields cannot be None, a Types.ROW's can"),
    (PAIR, (1,), "(1,) with 1 fields, expected 2"),
    (PAIR, "1x", "'1x' of type str, expected a tuple of 2 fields"),
    (NAMED, Row(id="1", name="x"), "a Row whose field id is '1' of type str, expected Long (int of 64 bits)"),
    (Types.LIST(Types.INT()), [1, "x"], "a list whose element is 'x' of type str"),
    (Types.LIST(Types.STRING()), "abc", "'abc' of type str, expected a list"),
    (Types.LIST(Types.STRING()), b"abc", "b'abc' of type bytes, expected a list"),
    (Types.MAP(Types.STRING(), Types.INT()), {"a": 1.5}, "a map with value 1.5 of type float"),
    (Types.MAP(Types.STRING(), Types.INT()), {1: 1}, "a map with key 1 of type int, expected String (str)"),
    (Types.MAP(Types.STRING(), Types.INT()), [("a", 1)], "expected a dict"),
    (Types.LIST(Types.TUPLE([Types.LIST(Types.INT())])), [([1.5],)], "1.5 of type float"),
]


@pytest.mark.parametrize(("declared", "value", "told"), NOT_FITTING, ids=str)
def test_what_does_not_fit_is_told_with_value_type_and_expectation(declared, value, told):
    found = misfit(declared, value)
    assert found is not None
    assert told in found


def test_of_long_lists_within_a_value_the_first_elements_are_looked_at():
    declared = Types.LIST(Types.INT())
    assert misfit(declared, [0] * (ELEMENTS_MAX - 1) + ["x"]) is not None
    assert misfit(declared, [0] * ELEMENTS_MAX + ["x"]) is None
