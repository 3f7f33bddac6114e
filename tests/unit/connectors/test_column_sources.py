from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.connectors.column_generator import ColumnGeneratorSource
from engine.connectors.parquet_source import ParquetSource
from engine.connectors.source import SourceSpec
from engine.core.errors import InputError, UserCodeError
from engine.core.records import BATCH_ROWS_MAX, ColumnBatch, Row
from engine.core.type_info import Types
from tests.testing.operator_harness import OperatorHarness, start_coordinators


def read(source, *, parallelism=1, rows_max=1000):
    """Return the rows that each subtask reads; all batches are columns."""
    spec = SourceSpec(source)
    harnesses = [OperatorHarness(spec, subtask_index=i, parallelism=parallelism) for i in range(parallelism)]
    coordinators = start_coordinators(spec, parallelism=parallelism, harnesses=harnesses)
    rows = []
    for harness in harnesses:
        harness._coordinators = coordinators
        with harness:
            harness.run_source(rows_max=rows_max)
            assert all(isinstance(batch, ColumnBatch) for batch in harness.output.batches)
            rows.append(harness.output.rows)
    return rows


def resume(source, split, rows_max, polls):
    """Read ``polls`` batches of a split, go on from the snapshot with a new reader; return all rows."""
    rows = []
    reader = source.create_reader()
    reader.add_split(split)
    for _ in range(polls):
        rows += reader.poll(rows_max).to_rows().rows
    splits = reader.snapshot()
    reader.close()
    reader = source.create_reader()
    for split in splits:
        reader.add_split(split)
    while not reader.is_drained():
        batch = reader.poll(rows_max)
        rows += batch.to_rows().rows if batch is not None else []
    reader.close()
    return rows


def doubled(indexes):
    return {"i": indexes, "twice": indexes * 2}


@pytest.mark.parametrize("parallelism", [1, 3])
def test_the_generator_gives_every_index_once(parallelism):
    count = 5 * BATCH_ROWS_MAX + 17
    parts = read(ColumnGeneratorSource(doubled, count), parallelism=parallelism, rows_max=9999)
    assert sorted(row for part in parts for row in part) == [(i, 2 * i) for i in range(count)]


def test_the_generator_goes_on_exactly_where_its_snapshot_was():
    source = ColumnGeneratorSource(doubled, 3 * BATCH_ROWS_MAX)
    enumerator = source.create_enumerator()
    enumerator.start(2)
    split = enumerator.next_split(0, "h")
    rows = resume(source, split, 5000, 5)
    assert [i for i, _ in rows] == [*range(BATCH_ROWS_MAX), *range(2 * BATCH_ROWS_MAX, 3 * BATCH_ROWS_MAX)]
    fresh = source.create_enumerator()
    fresh.restore(enumerator.snapshot(), 2)
    assert fresh.next_split(0, "h").next == BATCH_ROWS_MAX
    assert fresh.next_split(0, "h") is None


def test_decimals_that_are_declared_keep_their_names_and_digits():
    typed = Types.ROW_NAMED(["i", "d"], [Types.INT(), Types.BIG_DEC()])
    kind = pa.decimal128(22, 2)
    source = ColumnGeneratorSource(lambda indexes: (indexes, pa.array(indexes).cast(kind)), 2, typed)
    assert read(source) == [[Row(i=0, d=Decimal("0.00")), Row(i=1, d=Decimal("1.00"))]]
    source = ColumnGeneratorSource(lambda indexes: (indexes, indexes), 2, typed)
    with pytest.raises(UserCodeError, match="column 'd' is int64; its declared type is a decimal"):
        read(source)


def test_types_name_and_cast_the_generated_columns():
    typed = Types.ROW_NAMED(["user", "amount"], [Types.LONG(), Types.DOUBLE()])
    source = ColumnGeneratorSource(lambda indexes: (indexes, indexes), 3, typed)
    with OperatorHarness(SourceSpec(source)) as harness:
        schema = harness.run_source().batches[0].columns.schema
    assert schema == pa.schema([("user", pa.int64()), ("amount", pa.float64())])


def test_a_generator_that_returns_too_few_records_is_told_so():
    with pytest.raises(UserCodeError, match="returned 1 records for 3 indexes"):
        read(ColumnGeneratorSource(lambda indexes: (np.zeros(1),), 3))


@pytest.fixture
def folder(tmp_path):
    for name, start in (("a.parquet", 0), ("b.parquet", 5000)):
        table = pa.table({"i": range(start, start + 5000), "name": [f"n{i}" for i in range(5000)]})
        pq.write_table(table, tmp_path / name, row_group_size=1500)
    (tmp_path / "_SUCCESS").write_text("")
    return str(tmp_path)


def test_parquet_files_are_read_by_row_group_once(folder):
    parts = read(ParquetSource((folder,)), parallelism=2, rows_max=700)
    assert sorted(row for part in parts for row in part) == [(i, f"n{i % 5000}") for i in range(10_000)]


def test_only_the_wanted_columns_come_in_their_order(folder):
    assert read(ParquetSource((folder + "/a.parquet",), ("name", "i")))[0][:2] == [("n0", 0), ("n1", 1)]
    with pytest.raises(InputError, match="has no column \\['x'\\]"):
        read(ParquetSource((folder,), ("x",)))


def test_parquet_of_a_row_type_gives_rows_of_the_columns_of_these_names(folder):
    swapped = Types.ROW_NAMED(["name", "i"], [Types.STRING(), Types.LONG()])
    rows = read(ParquetSource((folder + "/a.parquet",), row_type=swapped))[0]
    assert rows[:2] == [Row(name="n0", i=0), Row(name="n1", i=1)]


def test_parquet_of_a_row_type_with_names_of_its_own_names_the_columns_in_their_order(folder):
    typed = Types.ROW_NAMED(["id", "label"], [Types.LONG(), Types.STRING()])
    path = (folder + "/a.parquet",)
    assert read(ParquetSource(path, row_type=typed))[0][0] == Row(id=0, label="n0")
    assert read(ParquetSource(path, ("name", "i"), row_type=typed))[0][0] == Row(id="n0", label=0)
    assert read(ParquetSource(path, row_type=Types.ROW([Types.LONG(), Types.STRING()])))[0][0] == Row(f0=0, f1="n0")


def test_parquet_of_a_row_type_of_another_length_says_so(folder):
    with pytest.raises(InputError, match=r"has columns \['i', 'name'\]; the declared type has fields \['x'\]"):
        read(ParquetSource((folder,), row_type=Types.ROW_NAMED(["x"], [Types.LONG()])))


def test_parquet_goes_on_exactly_where_its_snapshot_was(folder):
    source = ParquetSource((folder + "/a.parquet",), ("i",))
    enumerator = source.create_enumerator()
    enumerator.start(1)
    rows = resume(source, enumerator.next_split(0, "h"), 400, 3)
    assert rows == [(i,) for i in range(1500)]


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    (tmp_path / "x.parquet").write_text("hello, this is text")
    with pytest.raises(InputError, match=r"x\.parquet is not a Parquet file"):
        read(ParquetSource((str(tmp_path),)))
