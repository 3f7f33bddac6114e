"""Parquet, CSV and JSON files of FileSink: values as readers see them, and records that cannot be written."""

from __future__ import annotations

import datetime as dt
import decimal
import io
import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.core.errors import ConfigError, ProgramError, UserCodeError
from engine.core.records import ColumnBatch, Row, RowBatch
from engine.core.type_info import Types
from engine.datastream.formats.csv import CsvBulkWriters, CsvReaderFormat, CsvSchema
from engine.datastream.formats.json import JsonBulkWriters, JsonReaderFormat
from engine.datastream.formats.parquet import ParquetBulkWriters

PAIR = Types.ROW_NAMED(["number", "text"], [Types.LONG(), Types.STRING()])


class _Kept(io.BytesIO):
    def close(self) -> None:
        pass


def written(file_format, *batches) -> bytes:
    stream = _Kept()
    writer = pickle.loads(pickle.dumps(file_format)).create(stream, None)
    for batch in batches:
        writer.write(batch if isinstance(batch, ColumnBatch) else RowBatch(batch), "Sink")
    assert writer.num_bytes > 0
    writer.close()
    return stream.getvalue()


def table(data: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(data))


def test_parquet_takes_tuples_rows_and_dicts_and_nulls():
    rows = [(1, "a"), Row(2, "b"), Row(text="c", number=3), {"number": 4, "text": None}]
    found = table(written(ParquetBulkWriters.for_row_type(PAIR), rows[:1], rows[1:], []))
    assert found.schema == pa.schema([("number", pa.int64()), ("text", pa.string())])
    assert found.to_pylist() == [
        {"number": number, "text": text} for number, text in [(1, "a"), (2, "b"), (3, "c"), (4, None)]
    ]


def test_rows_within_records_are_written_to_parquet_as_their_columns_are():
    pair = Types.ROW_NAMED(["a", "b"], [Types.LONG(), Types.STRING()])
    typed = Types.ROW_NAMED(["k", "l", "m"], [pair, Types.LIST(pair), Types.MAP(Types.STRING(), pair)])
    values = {"k": [{"a": 1, "b": "x"}, None], "l": [[{"a": None, "b": "y"}, None], None]}
    values["m"] = [[("z", {"a": 2, "b": None}), ("w", None)], None]
    columns = pa.record_batch(values, schema=ParquetBulkWriters.for_row_type(typed).schema)
    of_columns = written(ParquetBulkWriters.for_row_type(typed), ColumnBatch(columns, named=True))
    assert table(of_columns).to_pylist() == columns.to_pylist()
    for named in (False, True):
        rows = ColumnBatch(columns, named=named).to_rows().rows
        assert rows[0][1][0] == Row(a=None, b="y")
        assert table(written(ParquetBulkWriters.for_row_type(typed), rows)).equals(table(of_columns))
    unnamed = [(Row(1, "x"), [Row(None, "y"), None], {"z": Row(2, None), "w": None}), (None, None, None)]
    assert table(written(ParquetBulkWriters.for_row_type(typed), unnamed)).equals(table(of_columns))


def test_columns_stay_columns_in_parquet():
    columns = pa.record_batch([pa.array([1, 2]), pa.array(["a", "b"])], names=["f0", "f1"])
    found = table(written(ParquetBulkWriters.for_row_type(PAIR), ColumnBatch(columns)))
    assert found.to_pydict() == {"number": [1, 2], "text": ["a", "b"]}
    other = pa.record_batch([pa.array([1, 2], pa.int8()), pa.array(["a", "b"])], names=["f0", "f1"])
    assert table(written(ParquetBulkWriters.for_row_type(PAIR), ColumnBatch(other))).schema.types[0] == pa.int64()


def test_columns_of_named_rows_are_written_by_name_as_rows_are():
    columns = pa.record_batch({"text": pa.array([7, 8]), "number": pa.array([1, 2]), "more": [None, None]})
    row_type = Types.ROW_NAMED(["number", "text"], [Types.LONG(), Types.LONG()])
    batch = ColumnBatch(columns, named=True)
    for given in (batch, batch.to_rows().rows):
        found = table(written(ParquetBulkWriters.for_row_type(row_type), given))
        assert found.to_pydict() == {"number": [1, 2], "text": [7, 8]}


def test_parquet_settings_are_those_of_hadoop_and_timestamps_may_be_utc():
    row_type = Types.ROW_NAMED(["at"], [Types.SQL_TIMESTAMP()])
    data = written(
        ParquetBulkWriters.for_row_type(row_type, {"parquet.compression": "ZSTD"}, True), [(dt.datetime(2024, 5, 1),)]
    )
    assert pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0).column(0).compression == "ZSTD"
    assert table(data).schema.field("at").type == pa.timestamp("us", tz="UTC")
    with pytest.raises(ConfigError, match=r"parquet\.compression is 'lzma'"):
        ParquetBulkWriters.for_row_type(row_type, {"parquet.compression": "lzma"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((1, 2, 3), "3 fields; the row type has 2: number, text"),
        (("one", "a"), "field 'number' cannot be written as int64"),
        ("word", "expected a tuple, Row or dict"),
    ],
)
def test_a_record_that_does_not_fit_is_named(row, message):
    with pytest.raises(UserCodeError, match=rf"{message}(.|\n)*in operator 'Sink' on record"):
        written(ParquetBulkWriters.for_row_type(PAIR), [(1, "good"), row])


def test_a_type_without_a_column_is_refused_when_the_sink_is_made():
    with pytest.raises(ProgramError, match=r"Field 'x' of type .* has no columnar form"):
        ParquetBulkWriters.for_row_type(Types.ROW_NAMED(["x"], [Types.PICKLED_BYTE_ARRAY()]))
    with pytest.raises(ProgramError, match="is no row type"):
        ParquetBulkWriters.for_row_type(Types.LONG())


def test_csv_quotes_where_it_must_and_writes_the_header_of_each_file():
    schema = CsvSchema.builder().add_number_column("n").add_string_column("s").add_boolean_column("b")
    schema = schema.add_array_column("l").set_use_header().set_null_value("NULL").build()
    rows = [(1, "plain", True, [1, 2]), (2, 'say "a,b"\n', False, []), (None, None, None, None)]
    assert written(CsvBulkWriters.for_schema(schema), rows).decode() == (
        'n,s,b,l\n1,plain,true,1;2\n2,"say ""a,b""\n",false,\nNULL,NULL,NULL,NULL\n'
    )
    assert schema.size() == 4


def test_csv_that_is_written_is_read_as_it_was():
    schema = CsvSchema.builder().add_number_column("n").add_string_column("s").add_array_column("l", "|", Types.LONG())
    schema = schema.add_array_column("texts").set_null_value("-").set_line_separator("\n").build()
    rows = [(1, "a\rb", [1, 2], ["x"]), (None, 'a,"\n', [], ["y", "z"]), (3, "", None, None)]
    data = written(CsvBulkWriters.for_schema(schema), rows)
    parsed = CsvReaderFormat.for_schema(schema).columns.create_parser().parse(data, True)
    assert ColumnBatch(parsed).to_rows().rows == rows


def test_csv_separators_are_the_schemas():
    builder = CsvSchema.builder().add_string_column("a").add_string_column("b").set_column_separator("|")
    schema = builder.set_line_separator("\r\n").disable_quote_char().set_escape_char("\\").build()
    assert written(CsvBulkWriters.for_schema(schema), [("x|y", "z")]) == b"x\\|y|z\r\n"
    with pytest.raises(ConfigError, match="expected one character"):
        builder.set_column_separator("||")
    with pytest.raises(ConfigError, match="no columns"):
        CsvSchema.builder().build()


def test_json_lines_are_objects_of_the_row_type_or_records_as_they_are():
    row = (1, "ü")
    assert written(JsonBulkWriters.for_row_type(PAIR), [row]).decode() == '{"number":1,"text":"ü"}\n'
    values = [
        {"a": [1, None]},
        (1, 2),
        Row(x=decimal.Decimal("1.5"), y=dt.date(2024, 5, 1)),
        dt.datetime(2024, 5, 1, 12, 30),
        b"\x00\xff",
    ]
    lines = written(JsonBulkWriters.for_row_type(), values).decode().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"a": [1, None]},
        [1, 2],
        {"x": 1.5, "y": "2024-05-01"},
        "2024-05-01 12:30:00",
        "AP8=",
    ]


def test_json_lines_are_json_whatever_the_numbers_and_no_digit_is_lost():
    nan, infinity = float("nan"), float("inf")
    values = [
        [nan, {"a": -infinity, "b": (infinity, Row(nan, "x"))}],
        {
            "exact": decimal.Decimal("1.23456789012345678901"),
            "near": decimal.Decimal("0.10"),
            "whole": decimal.Decimal(5),
        },
        [decimal.Decimal("1E-30"), decimal.Decimal("NaN")],
    ]
    lines = written(JsonBulkWriters.for_row_type(), values).decode().splitlines()
    assert lines == [
        '["NaN",{"a":"-Infinity","b":["Infinity",["NaN","x"]]}]',
        '{"exact":1.23456789012345678901,"near":0.1,"whole":5}',
        '[1e-30,"NaN"]',
    ]
    row_type = Types.ROW_NAMED(["f"], [Types.DOUBLE()])
    data = written(JsonBulkWriters.for_row_type(row_type), [(nan,), (infinity,)])
    parsed = JsonReaderFormat.for_row_type(row_type).columns.create_parser().parse(data, True)
    assert repr([row[0] for row in ColumnBatch(parsed).to_rows().rows]) == "[nan, inf]"


def test_csv_has_bytes_in_base64():
    schema = CsvSchema.builder().add_string_column("b").build()
    assert written(CsvBulkWriters.for_schema(schema), [(b"\x00\xff",), (bytearray(b"a"),)]) == b"AP8=\nYQ==\n"


def test_what_json_cannot_hold_names_the_record():
    with pytest.raises(UserCodeError, match=r"a complex cannot be written as JSON(.|\n)*on record"):
        written(JsonBulkWriters.for_row_type(), [1j])
