"""Lines made of columns are the bytes that rows of them are written as, whatever is in them."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import io
import math

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.connectors.bulk_writers import CsvFormat, CsvOptions, JsonFormat
from engine.connectors.part_writers import Encoder, LineWriter
from engine.core.errors import UserCodeError
from engine.core.records import ColumnBatch
from engine.core.type_info import Types
from engine.formats.column_lines import TypedCsvColumnLines
from engine.formats.rows import csv_line_formatter

NAMES = ("a", 'the "b"', "c\n")
FLOATS = st.one_of(
    st.floats(),
    st.integers(-(10**17), 10**17).map(float),
    st.sampled_from([0.0, -0.0, 1e-4, 9.999e-5, 1e10, 1e16, 1e7, 1e-3, 5e-324, math.inf, math.nan]),
    st.decimals(-1000, 1000, places=2).map(float),
)
TEXTS = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" ,;\"'\\\n\r\t\0\x7f|ü€")), max_size=8
)
TIMES = st.one_of(st.datetimes(), st.datetimes().map(lambda time: time.replace(microsecond=0)))
VALUES = {
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint8(): st.integers(0, 255),
    pa.float64(): FLOATS,
    pa.float32(): st.floats(width=32),
    pa.bool_(): st.booleans(),
    pa.string(): TEXTS,
    pa.large_string(): TEXTS,
    pa.date32(): st.dates(),
    pa.timestamp("us"): TIMES,
    pa.timestamp("s"): TIMES.map(lambda time: time.replace(microsecond=0)),
    pa.time64("us"): st.one_of(st.times(), st.times().map(lambda time: time.replace(microsecond=0))),
    pa.dictionary(pa.int8(), pa.string()): TEXTS,
    pa.list_(pa.float64()): st.lists(FLOATS, max_size=3),
    pa.struct([("x", pa.int64()), ("y", pa.string())]): st.fixed_dictionaries({"x": st.integers(0, 9), "y": TEXTS}),
    pa.decimal128(10, 2): st.decimals(-1000, 1000, places=2),
    pa.binary(): st.binary(max_size=4),
    pa.null(): st.none(),
}
TYPES = {
    pa.int64(): Types.LONG(),
    pa.float64(): Types.DOUBLE(),
    pa.string(): Types.STRING(),
    pa.bool_(): Types.BOOLEAN(),
    pa.struct([("x", pa.int64()), ("y", pa.string())]): Types.TUPLE([Types.LONG(), Types.STRING()]),
}
FORMATS = [
    CsvFormat(NAMES),
    CsvFormat(NAMES[:1]),
    CsvFormat(NAMES, CsvOptions("|", "\r\n", "'", null_value="'|'", array_separator="|", use_header=True)),
    CsvFormat(NAMES, CsvOptions(quote_char=None, null_value="null")),
    CsvFormat(NAMES, CsvOptions(quote_char=None, escape_char="\\")),
    CsvFormat(NAMES, CsvOptions(escape_char="\\")),
    CsvFormat(NAMES, CsvOptions("1")),
    CsvFormat(NAMES[:1], CsvOptions(null_value="x")),
    JsonFormat(NAMES),
    JsonFormat(),
    Encoder(),
    Encoder("latin-1"),
    Encoder("UTF-16"),
    TypedCsvColumnLines("|", "\n", False),
    TypedCsvColumnLines(", ", "\r\n", True),
]


class _Kept(io.BytesIO):
    def close(self) -> None:
        pass


def writer_of(file_format, stream, type_info=None) -> LineWriter:
    if isinstance(file_format, TypedCsvColumnLines):
        own = file_format
        line_of = csv_line_formatter(own.field_delimiter, own.row_delimiter, quote_strings=own.quotes_strings)
        return LineWriter(stream, line_of, columns=own)
    return file_format.create(stream, type_info)


def written(file_format, batch, type_info=None) -> bytes | str:
    """Return the bytes, or what the error says."""
    stream = _Kept()
    writer = writer_of(file_format, stream, type_info)
    try:
        writer.write(batch, "Sink")
    except (UserCodeError, OverflowError, ValueError) as error:
        return str(error)
    writer.close()
    return stream.getvalue()


def rows_written(file_format, batch, type_info=None) -> bytes | str:
    try:
        rows = batch.to_rows()
    except (OverflowError, ValueError) as error:
        return str(error)
    return written(file_format, rows, type_info)


def is_written_by_columns(file_format, batch, type_info=None) -> bool:
    writer = writer_of(file_format, _Kept(), type_info)
    return writer._columns is not None and writer._from_columns(writer._columns, batch) is not None


@st.composite
def batches(draw):
    size = draw(st.integers(0, 6)) + 1
    kinds = draw(st.lists(st.sampled_from(sorted(VALUES, key=str)), min_size=1, max_size=3))
    arrays = []
    for kind in kinds:
        values = draw(st.lists(st.one_of(st.none(), VALUES[kind], VALUES[kind]), min_size=size, max_size=size))
        if pa.types.is_dictionary(kind):
            array = pa.array(values, kind.value_type).dictionary_encode()
        else:
            array = pa.array(values, kind)
        arrays.append(array.slice(1))
    scalar = len(kinds) == 1 and draw(st.booleans())
    named = not scalar and draw(st.booleans())
    batch = ColumnBatch(pa.record_batch(arrays, names=NAMES[: len(kinds)]), None, scalar, named)
    if any(kind not in TYPES for kind in kinds) or draw(st.booleans()):
        return batch, None
    types = [TYPES[kind] for kind in kinds]
    if scalar:
        return batch, types[0]
    return batch, draw(st.sampled_from([Types.TUPLE(types), Types.ROW(types), Types.TUPLE(types[1:])]))


@given(batches(), st.sampled_from(FORMATS))
def test_columns_are_written_as_their_rows_are(given_batch, file_format):
    batch, type_info = given_batch
    if isinstance(file_format, CsvFormat) and len(file_format.names) == len(NAMES):
        file_format = dataclasses.replace(file_format, names=tuple(batch.columns.schema.names))
    assert written(file_format, batch, type_info) == rows_written(file_format, batch, type_info)


EDGES = [
    pa.array(
        [None, 0.0, -0.0, 1e-3, 9.99e-4, 1e-4, 9.99e-5, 9999999.0, 1e7, 1e10, 12345678901.5, 1e16, math.inf, math.nan]
    ),
    pa.array([None, 0.1, 2.0], pa.float32()),
    pa.array([None, "", " ", ",", "|", "'", '"', "\\", "\n", "\r", "\t", "\0", "\x1f", "\x7f", "é", "'\"", "null"]),
    pa.array([None, *"ab", '"']).dictionary_encode(),
    pa.array([None, True, False]),
    pa.array([None, -(2**63), 2**63 - 1]),
    pa.array([None, dt.datetime.min, dt.datetime.max, dt.datetime(1970, 1, 1)]),
    pa.array([None, dt.datetime(1969, 12, 31, 23, 59, 59)], pa.timestamp("s")),
    pa.array([None, dt.date.min, dt.date.max]),
    pa.array([None, dt.time.min, dt.time.max]),
    pa.array([None, 2**60], pa.timestamp("us")),  # beyond what Python can hold
    pa.array([None, {"x": 1, "y": "|"}], pa.struct([("x", pa.int64()), ("y", pa.string())])),
    pa.array([None, [], [1.5, None], [1e7]]),
]


@pytest.mark.parametrize("file_format", FORMATS, ids=str)
def test_values_at_the_edges_are_written_as_on_rows(file_format):
    names = getattr(file_format, "names", None) or NAMES[:1]
    for column in EDGES:
        own = TYPES.get(column.type, Types.STRING())
        for type_info in (None, own, Types.TUPLE([own] * len(names)), Types.ROW([own] * len(names))):
            for scalar, named in ((True, False), (False, False), (False, True)):
                for row in range(len(column)):
                    columns = pa.record_batch([column.slice(row, 1)] * len(names), names=names)
                    batch = ColumnBatch(columns, None, scalar, named)
                    assert written(file_format, batch, type_info) == rows_written(file_format, batch, type_info)


USUAL = ColumnBatch(
    pa.record_batch(
        [
            pa.array([1, None, -3]),
            pa.array([2.0, 2.5, None]),
            pa.array(['a "b", c\n', None, "ü\\"]),
            pa.array([True, False, None]),
            pa.array([dt.datetime(2024, 5, 1), dt.datetime(1, 1, 1, 1, 1, 1, 1), None]),
            pa.array([decimal.Decimal("1.50"), None, None]),
        ],
        names=list("abcdef"),
    ),
    named=True,
)
ALL, TWO = tuple("abcdef"), tuple("fa")
USUAL_FORMATS = [CsvFormat(ALL), CsvFormat(TWO), JsonFormat(ALL), JsonFormat(TWO), JsonFormat()]
USUAL_FORMATS += [Encoder(), Encoder("latin-1"), TypedCsvColumnLines(",", "\n", True)]


@pytest.mark.parametrize("file_format", USUAL_FORMATS, ids=str)
def test_usual_columns_need_no_rows(file_format):
    for named in (True, False):
        batch = ColumnBatch(USUAL.columns, named=named)
        assert written(file_format, batch) == written(file_format, batch.to_rows())
        fits = named or getattr(file_format, "names", None) != TWO
        assert is_written_by_columns(file_format, batch) == fits


def test_what_cannot_be_written_names_the_record():
    batch = ColumnBatch(pa.record_batch([pa.array(["a", "漢"])], names=["a"]), scalar=True)
    assert not is_written_by_columns(Encoder("latin-1"), batch)
    assert "on record: '漢'" in written(Encoder("latin-1"), batch)
    assert "on record: ('a,',)" in written(
        CsvFormat(("a",), CsvOptions(quote_char=None)), ColumnBatch(pa.record_batch([pa.array(["a,"])], names=["a"]))
    )


def test_texts_that_are_no_utf8_are_left_to_rows():
    column = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    assert not is_written_by_columns(JsonFormat(), ColumnBatch(pa.record_batch([column], names=["a"]), scalar=True))
