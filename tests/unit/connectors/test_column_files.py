"""Programs that read CSV and JSON lines: the same records on columns as on rows, types, and what is malformed."""

from __future__ import annotations

import datetime as dt
import gzip
import json

import pyarrow as pa
import pytest

from engine.common import Duration, Time, WatermarkStrategy
from engine.connectors.source import SourceSpec
from engine.core.errors import ConfigError, InputError, JobExecutionError, ProgramError
from engine.core.records import ColumnBatch, Row
from engine.core.type_info import Types
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.aggregates import count, sum_
from engine.datastream.connectors.file_system import FileSource
from engine.datastream.formats.csv import CsvReaderFormat, CsvSchema
from engine.datastream.formats.json import JsonReaderFormat
from engine.datastream.window import TumblingEventTimeWindows
from tests.testing.operator_harness import OperatorHarness

ROW_TYPE = Types.ROW_NAMED(["user", "amount", "ts"], [Types.STRING(), Types.LONG(), Types.LONG()])
ROWS = [Row(user=f"u{i % 3}", amount=i, ts=i * 100) for i in range(100)]
NO_WATERMARKS = WatermarkStrategy.no_watermarks()


def schema() -> CsvSchema:
    builder = CsvSchema.builder().add_string_column("user").add_number_column("amount").add_number_column("ts")
    return builder.build()


@pytest.fixture
def env():
    return StreamExecutionEnvironment.create_local_environment(1)


@pytest.fixture(params=["csv", "csv.gz", "json"])
def source(request, tmp_path):
    path = tmp_path / f"in.{request.param}"
    if request.param == "json":
        path.write_text("\n".join(json.dumps(row.as_dict()) for row in ROWS))
        return FileSource.for_record_stream_format(JsonReaderFormat.for_row_type(ROW_TYPE), str(path)).build()
    data = "".join(f"{row.user},{row.amount},{row.ts}\n" for row in ROWS).encode()
    path.write_bytes(gzip.compress(data) if request.param == "csv.gz" else data)
    return FileSource.for_record_stream_format(CsvReaderFormat.for_schema(schema()), str(path)).build()


def test_records_are_rows_with_the_schemas_names_and_types(env, source):
    stream = env.from_source(source, NO_WATERMARKS, "in")
    assert stream.get_type() == ROW_TYPE
    assert list(stream.execute_and_collect()) == ROWS
    with OperatorHarness(SourceSpec(source)) as harness:
        harness.run_source()
        assert all(isinstance(batch, ColumnBatch) for batch in harness.output.batches)


@pytest.mark.parametrize(
    "program",
    [
        lambda rows: rows.filter(lambda row: row.amount % 7 == 3),
        lambda rows: rows.filter(lambda row: row["user"] == "u1").map(lambda row: (row.user, row[1] * 2)),
        lambda rows: rows.map(lambda row: Row(row.amount, row.user)),
        lambda rows: rows.key_by("user").sum("amount"),
        lambda rows: rows.key_by(lambda row: row[0]).min("amount"),
        lambda rows: rows.key_by("user").sum("amount").filter(lambda row: row.amount > 50),
        lambda rows: rows.key_by("user").reduce(lambda a, b: Row(user=a.user, amount=a.amount + b.amount, ts=0)),
        lambda rows: (
            rows.key_by("user").window(TumblingEventTimeWindows.of(Time.seconds(1))).aggregate(count(), sum_(1))
        ),
        lambda rows: rows.key_by("user").window(TumblingEventTimeWindows.of(Time.seconds(1))).sum("amount"),
        lambda rows: rows.rebalance().map(lambda row: row.as_dict()),
    ],
)
def test_a_program_gives_on_columns_what_it_gives_on_rows(env, source, program):
    times = WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_seconds(1)).with_timestamp_field("ts")
    of_rows = env.from_collection(ROWS, ROW_TYPE).assign_timestamps_and_watermarks(times)
    of_columns = env.from_source(source, times, "in")
    on_rows, on_columns = (sorted(map(repr, program(s).execute_and_collect())) for s in (of_rows, of_columns))
    assert on_columns == on_rows
    assert on_rows


def test_sums_of_rows_are_vectorised_and_stay_rows(env, source):
    stream = env.from_source(source, NO_WATERMARKS, "in").key_by("user").sum("amount")
    graph, _ = _with_sink(stream)._build("plan")
    assert [
        info.tier for vertex in graph.vertices for info in vertex.operators if info.name == "Keyed Aggregation"
    ] == ["vectorised"]


def _with_sink(stream):
    stream.print()
    return stream.get_execution_environment()


def test_nested_values_are_rows_lists_and_dicts(env, tmp_path):
    inner = Types.ROW_NAMED(["x"], [Types.INT()])
    row_type = Types.ROW_NAMED(["r", "l", "m"], [inner, Types.LIST(inner), Types.MAP(Types.STRING(), Types.INT())])
    (tmp_path / "a.json").write_text('{"r":{"x":1},"l":[{"x":2},null],"m":{"k":3}}\n{}\n')
    source = FileSource.for_record_stream_format(JsonReaderFormat.for_row_type(row_type), str(tmp_path)).build()
    assert list(env.from_source(source, NO_WATERMARKS, "in").execute_and_collect()) == [
        Row(r=Row(x=1), l=[Row(x=2), None], m={"k": 3}),
        Row(r=None, l=None, m=None),
    ]


def test_a_malformed_record_is_an_error_with_its_place_or_left_out(env, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("user,amount,ts\nu0,1,1\nu1,much,2\nu2,3,3\n")
    builder = CsvSchema.builder().add_columns_from(schema()).set_use_header().set_strict_headers()
    csv_format = CsvReaderFormat.for_schema(builder.build())

    def rows(own):
        source = FileSource.for_record_stream_format(own, str(path)).build()
        return list(env.from_source(source, NO_WATERMARKS, "in").execute_and_collect())

    with pytest.raises((InputError, JobExecutionError)) as told:
        rows(csv_format)
    assert f"{path}: the record at byte offset 22 is malformed: column 'amount': 'much' is no whole" in str(told.value)
    assert "'u1,much,2'" in str(told.value)
    assert [row.user for row in rows(csv_format.with_ignore_parse_errors())] == ["u0", "u2"]
    path.write_text("amount,user,ts\n1,u0,1\n")
    with pytest.raises((InputError, JobExecutionError), match="must name the columns user, amount, ts"):
        rows(csv_format)


def test_decimals_and_times_of_csv_and_json_are_values_of_python(env, tmp_path):
    builder = (
        CsvSchema.builder().add_number_column("price", pa.decimal128(12, 2)).add_number_column("n", Types.BIG_DEC())
    )
    for name, kind in (("day", Types.SQL_DATE()), ("at", Types.SQL_TIME()), ("ts", Types.SQL_TIMESTAMP())):
        builder = builder.add_temporal_column(name, kind)
    (tmp_path / "a.csv").write_text(
        "1.5,2,2020-02-29,03:04:05,2020-02-29 03:04:05\n1.505,-2,2020-02-29,03:04,2020-03-01\n"
    )
    (tmp_path / "a.json").write_text('{"at":"03:04:05.5","day":"2020-02-29"}\n')
    own = CsvReaderFormat.for_schema(builder.build())
    source = FileSource.for_record_stream_format(own, str(tmp_path / "a.csv")).build()
    rows = env.from_source(source, NO_WATERMARKS, "in")
    assert [type(value).__name__ for value in next(iter(rows.execute_and_collect()))] == [
        "Decimal",
        "Decimal",
        "date",
        "time",
        "datetime",
    ]
    on_rows = rows.map(lambda row: row).key_by(lambda row: row.day).max("price").execute_and_collect()
    on_columns = rows.key_by("day").max("price").execute_and_collect()
    assert list(on_columns) == list(on_rows)
    row_type = Types.ROW_NAMED(["day", "at"], [Types.SQL_DATE(), Types.SQL_TIME()])
    of_json = FileSource.for_record_stream_format(JsonReaderFormat.for_row_type(row_type), str(tmp_path / "a.json"))
    assert list(env.from_source(of_json.build(), NO_WATERMARKS, "in").execute_and_collect()) == [
        Row(day=dt.date(2020, 2, 29), at=dt.time(3, 4, 5, 500000))
    ]


def test_what_cannot_be_read_is_refused_when_the_format_is_made():
    with pytest.raises(ConfigError, match=r"at most 38 digits"):
        CsvSchema.builder().add_number_column("n", pa.decimal256(76, 2))
    with pytest.raises(ConfigError, match=r"expected one of Types\.SQL_DATE"):
        CsvSchema.builder().add_temporal_column("n", Types.STRING())
    with pytest.raises(ConfigError, match=r"expected one of Types\.BYTE"):
        CsvSchema.builder().add_number_column("n", Types.STRING())
    with pytest.raises(ConfigError, match="one ASCII character"):
        CsvReaderFormat.for_schema(CsvSchema.builder().add_string_column("s").set_quote_char("«").build())
    with pytest.raises(ConfigError, match="different characters"):
        CsvReaderFormat.for_schema(CsvSchema.builder().add_string_column("s").set_column_separator('"').build())
    with pytest.raises(ProgramError, match="no columnar form"):
        JsonReaderFormat.for_row_type(Types.ROW_NAMED(["x"], [Types.PICKLED_BYTE_ARRAY()]))
    with pytest.raises(ConfigError, match="is no format"):
        FileSource.for_record_stream_format("csv", "/data")
