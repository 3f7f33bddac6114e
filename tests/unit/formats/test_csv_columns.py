"""CSV as columns: Arrow's way, the slow way and the cutting of chunks agree, and what is malformed is told."""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.errors import InputError
from engine.core.type_info import BasicType, Types
from engine.formats import csv_records
from engine.formats.column_values import MalformedRecord
from engine.formats.csv_columns import CsvColumn, CsvColumns, DecimalKind
from engine.formats.csv_records import CsvDialect, records_in, records_of_stream, whole_records_end

KINDS = (
    BasicType.LONG,
    BasicType.BYTE,
    BasicType.DOUBLE,
    BasicType.FLOAT,
    BasicType.BOOLEAN,
    BasicType.STRING,
    DecimalKind(6, 2),
    Types.SQL_DATE(),
    Types.SQL_TIME(),
    Types.SQL_TIMESTAMP(),
)
NUMBERS = ["1", "-5", " 7", "+3", "300", "0x1F", "1.5", "nan", "inf", "nan(1)", "1e5", "+1.5", ".5", "1.", "1_0"]
ODD = ["", "NULL", "١", "1e999", "16777217", "3.4e39", "1\t", "-0", "true", "TRUE", "tRue", " true", "1;2", '"1;;2"']
QUOTED = ['"a"', '"a\nb"', '"a""b"', '"x', 'a"b', "#c", "\\,", '"3"z', '""', "ü"]
TIMES = ["2020-02-29", " 1969-12-31 ", "2019-02-29", "0000-01-01", "03:04", "23:59:59.1", "24:00", "03:04:05.", "3:4"]
MOMENTS = [
    "2020-02-29 03:04:05.123456",
    "2020-02-29T03",
    " 2020-02-29",
    "2020-02-29T03:04Z",
    "1969-12-31 23:59:59.1234567",
]
DECIMALS = [
    "1.50",
    "1.555",
    "9999.99",
    "9999.995",
    "10000",
    "1E+3",
    "1e-3",
    "1e",
    "-0.00",
    "1.5000",
    " 2.",
    "1e999999999",
]
CELL = st.one_of(
    st.sampled_from(TIMES + MOMENTS),
    st.sampled_from(DECIMALS),
    st.datetimes().map(str),
    st.times().map(str),
    st.decimals(-10000, 10000, places=2).map(str),
    st.sampled_from(NUMBERS),
    st.sampled_from(ODD),
    st.sampled_from(QUOTED),
    st.text(alphabet='a,"\n\r;1 #\\x', max_size=5),
    st.floats().map(repr),
    st.integers(-200, 200).map(str),
)
TEXT = st.lists(st.lists(CELL, min_size=1, max_size=3).map(",".join), max_size=5).map("\n".join)
COLUMNS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.sampled_from([None, None, ";", ""])), min_size=1, max_size=3
).map(lambda kinds: tuple(CsvColumn(f"c{i}", kind, separator) for i, (kind, separator) in enumerate(kinds)))
DIALECTS = st.builds(
    CsvDialect,
    separator=st.just(b","),
    quote=st.sampled_from([b'"', None]),
    escape=st.sampled_from([None, b"\\"]),
    comment=st.sampled_from([None, b"#"]),
)


@settings(max_examples=400, deadline=None)
@given(TEXT, COLUMNS, DIALECTS, st.sampled_from([None, "", "NULL", "a"]))
def test_arrow_gives_the_columns_that_value_by_value_gives(text, columns, dialect, null_value):
    data = text.encode()
    data = data[: whole_records_end(data, dialect)]
    parser = CsvColumns(columns, dialect, null_value).create_parser()
    fast = parser._by_arrow(data)
    if fast is not None:
        slow = parser._by_value(data)
        assert fast.schema == slow.schema
        assert repr(fast.to_pydict()) == repr(slow.to_pydict())


@pytest.mark.parametrize("cells", [["1", "2.5", "x"], ["-7", "nan", '"a,""b""\nc"'], [" 1", "1e3", ""]])
def test_ordinary_records_go_through_arrow(cells):
    columns = (CsvColumn("a", BasicType.INT), CsvColumn("b", BasicType.DOUBLE), CsvColumn("c", BasicType.STRING))
    assert CsvColumns(columns).create_parser()._by_arrow(",".join(cells).encode() + b"\n") is not None


@settings(max_examples=400, deadline=None)
@given(TEXT, DIALECTS)
def test_a_cut_falls_between_records(text, dialect):
    data = text.encode()
    every = list(records_in(data, dialect))
    end = whole_records_end(data, dialect)
    assert list(records_in(data[:end], dialect)) == [found for found in every if found[0].end < end]
    newlines = [record for record, has_end in every if has_end and data[record.end : record.end + 1] == b"\n"]
    assert end or not newlines


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.text(alphabet='a,"\n\r ', max_size=6), min_size=2, max_size=3), max_size=6), st.integers(1, 9)
)
def test_a_stream_in_any_pieces_gives_what_was_written(rows, size):
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    data = b"xyz" + text.getvalue().encode()
    pieces = [data[at : at + size] for at in range(3, len(data), size)]
    found = []
    for offset, records, _ in records_of_stream(pieces, 3, CsvDialect()):
        assert data[offset : offset + len(records)] == records
        found += [[field.decode() for field in record.fields] for record, _ in records_in(records, CsvDialect())]
    assert found == rows


def test_a_quote_that_nothing_closes_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(csv_records, "RECORD_BYTES_MAX", 1000)
    stream = records_of_stream([b'1,"a\n', *[b"b,c\n"] * 1000], 70, CsvDialect())
    with pytest.raises(
        InputError, match=r"record at byte offset 70 does not end within 1000 bytes.*disable_quote_char"
    ):
        list(stream)


@pytest.mark.parametrize(
    ("data", "offset", "reason"),
    [
        (b"1,a\nx,b\n", 4, "column 'n': 'x' is no whole number from -128 to 127"),
        (b"1,a\n\n128,b\n", 5, "'128' is no whole number"),
        (b"1,a\n2\n", 4, "it has 1 fields, the schema has 2 columns"),
        (b"1,a\n2,b,c\n", 4, "it has 3 fields"),
        (b'1,a\n2,"b\n', 4, "a quoted value does not end"),
        (b"1,\xff\n", 0, "column 's': 'utf-8' codec can't decode"),
        (b",a\n", 0, "'' is no whole number"),
    ],
)
def test_a_malformed_record_is_told_or_left_out(data, offset, reason):
    columns = (CsvColumn("n", BasicType.BYTE), CsvColumn("s", BasicType.STRING))
    with pytest.raises(MalformedRecord, match=reason) as told:
        CsvColumns(columns).create_parser().parse(data, False)
    assert told.value.offset == offset
    parsed = CsvColumns(columns, ignores_errors=True).create_parser().parse(data, False)
    assert parsed.to_pylist() == ([] if offset == 0 else [{"n": 1, "s": "a"}])


def test_decimals_and_times_are_those_of_python_rounded_half_up():
    kinds = (DecimalKind(6, 2), Types.SQL_DATE(), Types.SQL_TIME(), Types.SQL_TIMESTAMP())
    parser = CsvColumns(tuple(CsvColumn(f"c{i}", kind) for i, kind in enumerate(kinds)), null_value="").create_parser()
    data = b"1.5,2020-02-29,03:04:05.6,2020-02-29 03:04:05.6\n,,,\n"
    moment = dt.datetime(2020, 2, 29, 3, 4, 5, 600000)
    expected = [decimal.Decimal("1.50"), moment.date(), moment.time(), moment]
    fast = parser._by_arrow(data)
    assert fast is not None
    assert fast.equals(parser._by_value(data))
    assert [column.to_pylist() for column in fast.columns] == [[value, None] for value in expected]
    rounded = parser.parse(b"-1.005,2020-02-29,03:04,2020-02-29\n", True)
    assert rounded.column(0).to_pylist() == [decimal.Decimal("-1.01")]


@pytest.mark.parametrize(
    ("kind", "cell", "reason"),
    [
        (DecimalKind(6, 2), "9999.995", "no decimal number with 4 digits before the point"),
        (DecimalKind(6, 2), "nan", "no decimal number"),
        (Types.SQL_DATE(), "0000-01-01", r"no date32\[day\]"),
        (Types.SQL_TIME(), "24:00", "no time of day"),
        (Types.SQL_TIMESTAMP(), "2020-02-29T03:04Z", r"no timestamp\[us\]"),
    ],
)
def test_decimals_and_times_that_are_none_are_malformed(kind, cell, reason):
    with pytest.raises(MalformedRecord, match=f"column 'c': '{cell}' is {reason}"):
        CsvColumns((CsvColumn("c", kind),)).create_parser().parse(cell.encode() + b"\n", True)


def test_a_quoted_value_that_the_end_of_the_file_ends_is_malformed():
    columns = (CsvColumn("n", BasicType.BYTE), CsvColumn("s", BasicType.STRING))
    [(offset, data, is_whole)] = records_of_stream([b'1,"a'], 0, CsvDialect())
    with pytest.raises(MalformedRecord, match="does not end"):
        CsvColumns(columns).create_parser().parse(data, is_whole)
    assert offset == 0
