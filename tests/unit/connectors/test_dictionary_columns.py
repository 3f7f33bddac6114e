"""Dictionaries that come in or go out: Parquet files, functions of whole batches, sinks."""

from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.connectors.bulk_writers import CsvFormat, CsvOptions, JsonFormat, ParquetFormat
from engine.connectors.parquet_source import ParquetSource
from engine.core.dictionaries import is_tidy
from engine.core.records import ColumnBatch, RowBatch
from engine.core.type_info import Types
from engine.operators.map_batches import MapBatchesSpec
from tests.bench.text_keys import drained
from tests.testing.dictionary_forms import FORMS, encoded_batch
from tests.testing.operator_harness import OperatorHarness

PAIR = Types.TUPLE([Types.STRING(), Types.LONG()])
TEXTS = ["a", None, "b,\"c'", "a", "ü", "", "a", "b,\"c'"] * 3
COLUMNS = pa.record_batch([pa.array(TEXTS), pa.array(range(len(TEXTS)), pa.int64())], names=["f0", "f1"])
RECORDS = list(zip(TEXTS, range(len(TEXTS)), strict=True))


FUNCTIONS = {
    "pyarrow": lambda columns: pa.record_batch(
        [columns.column(0).dictionary_encode().cast(pa.dictionary(pa.int8(), pa.large_string())), columns.column(1)],
        names=["f0", "f1"],
    ),
    "null among the values": lambda columns: encoded_batch(columns, FORMS["int16, all of it"]),
    "pandas": lambda frame: frame.assign(f0=frame["f0"].astype("category")),
    "polars": lambda frame: frame.with_columns(pl.col("f0").cast(pl.Categorical)),
    "polars, enum": lambda frame: frame.with_columns(pl.col("f0").cast(pl.Enum([*sorted({t or "" for t in TEXTS})]))),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("declared", [PAIR, None])
def test_what_functions_return_in_dictionaries_is_what_they_return_without(name: str, declared: Any):
    library = name.partition(",")[0] if name in ("pandas", "polars, enum", "polars") else "pyarrow"
    spec = MapBatchesSpec(FUNCTIONS[name], library, PAIR, declared)
    seen: list[Any] = []
    again = MapBatchesSpec(lambda columns: seen.append(columns) or columns, "pyarrow", PAIR, PAIR)
    with OperatorHarness(spec) as harness:
        harness.process_batch(ColumnBatch(COLUMNS))
        harness.process_batch(RowBatch(RECORDS))
    assert harness.output.rows == RECORDS * 2
    texts = harness.output.batches[0].columns.column(0)  # type: ignore[union-attr]
    assert is_tidy(texts) is (name != "null among the values")
    with OperatorHarness(spec, again) as harness:
        harness.process_batch(ColumnBatch(COLUMNS))
    assert harness.output.rows == RECORDS
    assert not pa.types.is_dictionary(seen[0].schema.types[0])


@pytest.mark.parametrize("row_type", [None, Types.ROW_NAMED(["f0", "f1"], [Types.STRING(), Types.LONG()])])
@pytest.mark.parametrize("stored", [False, True])
def test_parquet_files_give_the_values_that_they_have(tmp_path: Any, row_type: Any, stored: bool):
    inner = pa.array([{"t": text} for text in TEXTS], pa.struct([("t", pa.string())]))
    columns = COLUMNS if row_type else pa.record_batch([*COLUMNS.columns, inner], names=["f0", "f1", "f2"])
    kept = pa.Table.from_batches([encoded_batch(columns, FORMS["tidy"]) if stored else columns])
    pq.write_table(kept, tmp_path / "a.parquet", row_group_size=10)
    for is_strict in (False, True) if row_type else (False,):
        source = ParquetSource((str(tmp_path),), row_type=row_type, is_strict=is_strict)
        rows = [row for batch in drained(source) for row in batch.to_rows().rows]  # type: ignore[union-attr]
        assert [tuple(row)[:2] for row in rows] == RECORDS
        assert row_type or [row[2].t for row in rows] == TEXTS


FORMATS = {
    "csv": (CsvFormat(("f0", "f1"), CsvOptions()), Types.ROW_NAMED(["f0", "f1"], [Types.STRING(), Types.LONG()])),
    "json": (JsonFormat(), None),
    "parquet": (ParquetFormat(COLUMNS.schema), None),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FORMATS)
def test_sinks_write_dictionaries_as_plain_columns_and_rows(name: str, form: str, tmp_path: Any):
    own, type_info = FORMATS[name]
    written = []
    for batch in (
        ColumnBatch(COLUMNS, named=True),
        ColumnBatch(encoded_batch(COLUMNS, FORMS[form]), named=True),
        ColumnBatch(COLUMNS, named=True).to_rows(),
    ):
        path = tmp_path / str(len(written))
        writer = own.create(path.open("wb"), type_info)
        writer.write(batch, "sink")
        writer.close()
        written.append(pq.read_table(path).to_pylist() if name == "parquet" else path.read_bytes())
    assert written[1] == written[0] == written[2]
