"""Parquet under PyFlink's names: Rows by the names and types that are declared, on columns as on rows."""

from __future__ import annotations

import datetime as dt
import decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.common import Types, WatermarkStrategy
from engine.core.errors import ConfigError, InputError, JobExecutionError
from engine.core.records import Row
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.connectors.file_system import FileSource
from engine.datastream.formats.parquet import ParquetColumnarRowInputFormat

NO_WATERMARKS = WatermarkStrategy.no_watermarks()
DAY = dt.date(2020, 2, 29)


@pytest.fixture
def path(tmp_path):
    table = pa.table(
        {
            "Id": pa.array(range(200), pa.int32()),
            "name": pa.array([f"n{i % 3}" for i in range(200)]).dictionary_encode(),
            "price": pa.array([decimal.Decimal(i) / 4 for i in range(200)], pa.decimal128(12, 2)),
            "day": pa.array([DAY] * 200),
            "ts": pa.array([dt.datetime(2020, 2, 29)] * 200, pa.timestamp("ms", tz="UTC")),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=64)
    return str(tmp_path)


def stream_of(path, names, types, **options):
    env = StreamExecutionEnvironment.create_local_environment(2)
    own = ParquetColumnarRowInputFormat(Types.ROW_NAMED(names, types), **options)
    source = FileSource.for_bulk_file_format(own, path).process_static_file_set().build()
    return env.from_source(source, NO_WATERMARKS, "parquet")


def test_the_declared_columns_come_by_name_in_the_declared_types(path):
    types = [Types.SQL_TIMESTAMP(), Types.BIG_DEC(), Types.STRING(), Types.LONG(), Types.SQL_DATE()]
    stream = stream_of(path, ["ts", "price", "name", "Id", "day"], types)
    rows = sorted(stream.execute_and_collect(), key=lambda row: row.Id)
    assert rows[5] == Row(ts=dt.datetime(2020, 2, 29), price=decimal.Decimal("1.25"), name="n2", Id=5, day=DAY)
    assert len(rows) == 200


def test_on_columns_as_on_rows(path):
    stream = stream_of(path, ["name", "id"], [Types.STRING(), Types.LONG()], is_case_sensitive=False)
    on_rows = stream.map(lambda row: row).key_by(lambda row: row.name).sum("id").execute_and_collect()
    last_of = [{row.name: row.id for row in results} for results in (_sums(stream), on_rows)]
    assert last_of[0] == last_of[1]
    graph, _ = _printed(stream.key_by("name").sum("id"))._build("plan")
    tiers = [one.tier for vertex in graph.vertices for one in vertex.operators if one.name == "Keyed Aggregation"]
    assert tiers == ["vectorised"]


def _sums(stream):
    return stream.key_by("name").sum("id").execute_and_collect()


def _printed(stream):
    stream.print()
    return stream.get_execution_environment()


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("id", Types.INT(), r"has no column \['id'\]; it has \['Id', "),
        ("name", Types.LONG(), r"column 'name' is dictionary.*declared type is int64: these are different things"),
        ("Id", Types.STRING(), r"column 'Id' is int32, its declared type is string"),
        ("Id", Types.BYTE(), r"column 'Id' is int32, its declared type is int8: Integer value [0-9]+ not in range"),
        ("day", Types.BIG_DEC(), r"column 'day' is date32\[day\], its declared type is a decimal"),
    ],
)
def test_columns_that_do_not_fit_are_told(path, name, kind, reason):
    with pytest.raises((InputError, JobExecutionError), match=reason):
        list(stream_of(path, [name], [kind]).execute_and_collect())


def test_what_cannot_be_read_is_refused_when_the_source_is_made(path):
    with pytest.raises(ConfigError, match=r"expected Types\.ROW_NAMED"):
        ParquetColumnarRowInputFormat(Types.TUPLE([Types.LONG()]))
    with pytest.raises(ConfigError, match="has a field twice: a, A"):
        ParquetColumnarRowInputFormat(Types.ROW_NAMED(["a", "A"], [Types.LONG()] * 2), is_case_sensitive=False)
    with pytest.raises(ConfigError, match=r"field 'a' of type .* has no columnar form"):
        ParquetColumnarRowInputFormat(Types.ROW_NAMED(["a"], [Types.PICKLED_BYTE_ARRAY()]))
    own = ParquetColumnarRowInputFormat(Types.ROW_NAMED(["a"], [Types.LONG()]))
    with pytest.raises(ConfigError, match="not there for Parquet"):
        FileSource.for_bulk_file_format(own, path).monitor_continuously(1000)
    with pytest.raises(ConfigError, match="at least one path"):
        FileSource.for_bulk_file_format(own)
    with pytest.raises(ConfigError, match=r"Parquet is read with for_bulk_file_format"):
        FileSource.for_record_stream_format(own, path)
    with pytest.raises(ConfigError, match=r"expected ParquetColumnarRowInputFormat"):
        FileSource.for_bulk_file_format("parquet", path)
