"""Records of sources of columns are Rows where a ROW type is declared of their stream."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.common import Types, WatermarkStrategy
from engine.connectors.parquet_source import ParquetSource
from engine.core.records import Row
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.connectors import DataGeneratorSource

TYPED = Types.ROW_NAMED(["k", "v"], [Types.LONG(), Types.LONG()])
NO_WATERMARKS = WatermarkStrategy.no_watermarks()


@pytest.fixture
def env():
    return StreamExecutionEnvironment.create_local_environment(1)


def columns_of(indexes):
    return {"k": indexes % 3, "v": indexes}


@pytest.fixture
def sources(tmp_path):
    pq.write_table(pa.table(columns_of(pa.array(range(20)).to_numpy())), tmp_path / "a.parquet")
    return [ParquetSource((str(tmp_path),)), DataGeneratorSource.of_columns(columns_of, 20)]


def test_streams_of_a_declared_row_type_carry_rows_whatever_source_they_come_from(env, sources):
    def results(stream):
        named = stream.map(lambda row: (type(row).__name__, row.k, row["v"], [0]))
        longest = stream.key_by(lambda row: row.k).reduce(lambda a, b: b if b.v > a.v else a)
        keyed = stream.key_by("k").sum("v")
        return [sorted(map(repr, one.execute_and_collect())) for one in (named, longest, keyed)]

    rows = [Row(k=i % 3, v=i) for i in range(20)]
    expected = results(env.from_collection([tuple(row) for row in rows], TYPED))
    assert repr(("Row", 1, 4, [0])) in expected[0]
    for source in sources:
        assert results(env.from_source(source, NO_WATERMARKS, "columns", TYPED)) == expected


def test_of_a_tuple_type_they_stay_tuples(env, sources):
    for source in sources:
        stream = env.from_source(source, NO_WATERMARKS, "columns", Types.TUPLE([Types.LONG(), Types.LONG()]))
        assert {type(record) for record in stream.execute_and_collect()} == {tuple}
