"""JSON lines as columns: Arrow's way and the slow way agree, and what is malformed is told."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.type_info import Types
from engine.formats.column_values import MalformedRecord
from engine.formats.json_columns import JsonColumns

TYPES = [
    Types.LONG(),
    Types.BYTE(),
    Types.DOUBLE(),
    Types.FLOAT(),
    Types.BOOLEAN(),
    Types.STRING(),
    Types.SQL_TIMESTAMP(),
    Types.SQL_DATE(),
    Types.LIST(Types.LONG()),
    Types.LIST(Types.FLOAT()),
    Types.MAP(Types.STRING(), Types.LONG()),
    Types.ROW_NAMED(["x"], [Types.STRING()]),
    Types.LIST(Types.ROW_NAMED(["x"], [Types.LONG()])),
]
PLAIN = ["1", "-5", "300", "1.5", "1.0", "1e2", "NaN", "Infinity", "true", "null", "16777217", "0.1", "3.4e39", "1e999"]
TEXTS = ['"a"', '"1"', '" 2 "', '"\\ud800"', '"ü"', '"2024-05-01 12:30:00"', '"2024-05-01"', '"2024-05-01T12:30:00Z"']
NESTED = ["[1,2]", "[1.5,null]", "[]", '{"x":1}', '{"x":"a","y":[]}', "{}", '[{"x":1}]', "-0", "01", '"\x01"']
VALUE = st.one_of(
    st.sampled_from(PLAIN),
    st.sampled_from(TEXTS),
    st.sampled_from(NESTED),
    st.integers(-(2**63), 2**63).map(str),
    st.floats().map(json.dumps),
    st.text(max_size=3).map(json.dumps),
)
OBJECT = st.lists(st.tuples(st.sampled_from("abz"), VALUE), max_size=3).map(
    lambda fields: "{" + ",".join(f'"{name}":{value}' for name, value in fields) + "}"
)
LINE = OBJECT | st.sampled_from(["", "null", " ", '{"a":1}{"a":2}', "{}null", '{"a":', "1", "[1]", '{"a":1} x', "{}\r"])


@settings(max_examples=500, deadline=None)
@given(st.lists(LINE, max_size=4).map("\n".join), st.lists(st.sampled_from(TYPES), min_size=2, max_size=2))
def test_arrow_gives_the_columns_that_value_by_value_gives(text, types):
    parser = JsonColumns(Types.ROW_NAMED(["a", "b"], types)).create_parser()
    fast = parser._by_arrow(text.encode()) if parser._is_for_arrow else None
    if fast is not None:
        slow = parser._by_value(text.encode())
        assert fast.schema == slow.schema
        assert repr(fast.to_pydict()) == repr(slow.to_pydict())


def test_ordinary_lines_go_through_arrow():
    row_type = Types.ROW_NAMED(["n", "at", "r"], [Types.LONG(), Types.SQL_TIMESTAMP(), TYPES[-2]])
    data = b'{"n":1,"at":"2024-05-01 12:30:00","more":[1]}\n{"r":{"x":"a"}}'
    assert JsonColumns(row_type).create_parser()._by_arrow(data).num_rows == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"n":"x"}', "field 'n': \"x\" is no whole number"),
        (b'{"n":1.5}', "1.5 is no whole number"),
        (b'{"n":128}', "128 is not from -128 to 127"),
        (b'{"r":{"x":{}},"n":[]}', r"field 'n': \[\] is no whole number"),
        (b'{"r":1}', "field 'r': 1 is no object"),
        (b"[1]", "it is no JSON object"),
        (b"null", "it is no JSON object"),
        (b'{"n":1', "Expecting ',' delimiter"),
        (b'{"n":"\xff"}', "can't decode byte 0xff"),
    ],
)
def test_a_malformed_line_is_told_or_left_out(line, reason):
    own = JsonColumns(Types.ROW_NAMED(["n", "r"], [Types.BYTE(), TYPES[-2]]))
    data = b'{"n":1}\n' + line + b"\n"
    with pytest.raises(MalformedRecord, match=reason) as told:
        own.create_parser().parse(data, True)
    assert (told.value.offset, told.value.record) == (8, line)
    lenient = JsonColumns(own.row_type, ignores_errors=True).create_parser().parse(data, True)
    assert lenient.to_pylist() == [{"n": 1, "r": None}]


def test_values_are_those_of_flink():
    row_type = Types.ROW_NAMED(["n", "s", "b"], [Types.INT(), Types.STRING(), Types.BOOLEAN()])
    data = b'{"n":"7","s":1.50,"b":"TRUE"}\n{"n":1e3,"s":{"a":[1.0,"x"]},"b":false}\n'
    assert JsonColumns(row_type).create_parser().parse(data, True).to_pylist() == [
        {"n": 7, "s": "1.50", "b": True},
        {"n": 1000, "s": '{"a":[1.0,"x"]}', "b": False},
    ]
