from __future__ import annotations

import pytest

from engine.core.printing import format_record
from engine.core.records import Row, RowKind
from engine.core.type_info import Types

PAIR = Types.TUPLE([Types.STRING(), Types.INT()])


@pytest.mark.parametrize(
    ("value", "type_info", "text"),
    [
        (("hello", 1), PAIR, "(hello,1)"),
        (("hello", None), PAIR, "(hello,null)"),
        (("hello", True), Types.TUPLE([Types.STRING(), Types.BOOLEAN()]), "(hello,true)"),
        (("a", ("b", 1)), Types.TUPLE([Types.STRING(), PAIR]), "(a,(b,1))"),
        (Row("hello", 1), Types.ROW([Types.STRING(), Types.INT()]), "+I[hello, 1]"),
        (("hello", 1), Types.ROW([Types.STRING(), Types.INT()]), "+I[hello, 1]"),
        (Row.of_kind(RowKind.DELETE, "x"), Types.ROW([Types.STRING()]), "-D[x]"),
        (Row("hello", 1), None, "+I[hello, 1]"),
        (("hello", 1), None, "('hello', 1)"),
        ("hello", None, "hello"),
        ("hello", Types.STRING(), "hello"),
        (1.0, Types.DOUBLE(), "1.0"),
        (1e7, Types.DOUBLE(), "1.0E7"),
        (123456789.5, Types.DOUBLE(), "1.234567895E8"),
        (0.0001, Types.DOUBLE(), "1.0E-4"),
        (-1.5e-10, Types.DOUBLE(), "-1.5E-10"),
        (1e22, Types.DOUBLE(), "1.0E22"),
        (0.0, Types.DOUBLE(), "0.0"),
        (float("nan"), Types.DOUBLE(), "NaN"),
        (float("-inf"), Types.DOUBLE(), "-Infinity"),
        (1.0, None, "1.0"),
        (None, Types.STRING(), "null"),
        ([1, "a"], Types.LIST(Types.STRING()), "[1, a]"),
        ({"a": 1}, Types.MAP(Types.STRING(), Types.INT()), "{a=1}"),
        (b"\x01\xff", Types.PRIMITIVE_ARRAY(Types.BYTE()), "[1, -1]"),
    ],
)
def test_records_look_as_flink_prints_them(value, type_info, text):
    assert format_record(value, type_info) == text
