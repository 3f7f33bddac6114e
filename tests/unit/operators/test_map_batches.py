"""Functions of whole batches, in each library: what they get, what becomes of what they return."""

from __future__ import annotations

import importlib.util

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from engine.common import Configuration, Row, Types
from engine.core.errors import ProgramError, UserCodeError
from engine.core.records import ColumnBatch, RowBatch
from engine.datastream import StreamExecutionEnvironment
from engine.operators.map_batches import BATCH_FORMATS, MapBatchesSpec
from tests.testing.operator_harness import OperatorHarness

PAIR = Types.TUPLE([Types.STRING(), Types.LONG()])
NAMED = Types.ROW_NAMED(["word", "number"], [Types.STRING(), Types.LONG()])
KINDS = {"pyarrow": pa.RecordBatch, "pandas": pd.DataFrame, "polars": pl.DataFrame, "numpy": dict}


def with_number(columns, name, function):
    """The columns with column ``name`` changed, in the library that they came in."""
    match columns:
        case pa.RecordBatch():
            index = columns.schema.names.index(name)
            changed = pa.array(function(columns.column(index).to_numpy()))
            return columns.set_column(index, name, changed)
        case pl.DataFrame():
            return columns.with_columns(pl.Series(name, function(columns[name].to_numpy())))
        case pd.DataFrame():
            return columns.assign(**{name: function(columns[name].to_numpy())})
    return {**columns, name: function(columns[name])}


def run(spec, *batches):
    with OperatorHarness(spec, name="Batches") as harness:
        for batch in batches:
            harness.process_batch(batch)
    return harness.output


@pytest.mark.parametrize("batch_format", BATCH_FORMATS)
def test_a_function_has_columns_in_its_library_and_gives_them_back(batch_format):
    seen = []

    def function(columns):
        seen.append(type(columns))
        return with_number(columns, "f1", lambda numbers: numbers * 10)

    output = run(MapBatchesSpec(function, batch_format, PAIR, PAIR), RowBatch([("a", 1), ("b", 2)], [5, 6]))
    assert (output.rows, output.timestamps_ms) == ([("a", 10), ("b", 20)], [5, 6])
    assert seen == [KINDS[batch_format]]


@pytest.mark.parametrize("batch_format", BATCH_FORMATS)
@pytest.mark.parametrize("of_columns", [False, True])
def test_rows_with_names_are_columns_with_names(batch_format, of_columns):
    rows = [Row(word="a", number=1), Row(word="b", number=2)]
    batch = RowBatch(rows)
    if of_columns:
        batch = ColumnBatch(pa.record_batch({"word": ["a", "b"], "number": [1, 2]}), named=True)

    def function(columns):
        return with_number(columns, "number", lambda numbers: numbers / 2.0)

    halves = Types.ROW_NAMED(["number", "word"], [Types.DOUBLE(), Types.STRING()])
    output = run(MapBatchesSpec(function, batch_format, NAMED, halves), batch)
    assert output.rows == [Row(number=0.5, word="a"), Row(number=1.0, word="b")]


def test_numbers_that_compiled_functions_give_have_the_declared_types_as_those_of_rows_have():
    declared = Types.ROW_NAMED(["n", "x"], [Types.INT(), Types.DOUBLE()])
    columns = ColumnBatch(pa.record_batch({"n": [1, 2], "x": [3, 4]}), named=True)
    seen = []
    for batch in (columns, columns.to_rows()):
        run(MapBatchesSpec(lambda given: seen.append(given) or given, "pyarrow", declared, declared), batch)
    assert seen[0].schema.types == [pa.int32(), pa.float64()]
    assert seen[0].equals(seen[1])


def test_single_values_are_one_column_in_and_out():
    spec = MapBatchesSpec(lambda frame: frame[["f0"]] + 1, "pandas", Types.LONG(), Types.LONG())
    assert run(spec, RowBatch([1, 2, 3])).rows == [2, 3, 4]


def test_columns_are_cast_to_the_declared_types():
    spec = MapBatchesSpec(lambda columns: {"n": np.array([1.0, 2.0])}, "numpy", None, Types.LONG())
    output = run(spec, RowBatch([("a", 1), ("b", 2)]))
    assert output.rows == [1, 2]
    assert output.batches[0].columns.schema.types == [pa.int64()]


@pytest.mark.parametrize("batch_format", ["pandas", "polars"])
def test_fewer_or_more_records_have_no_event_times_and_nothing_is_nothing(batch_format):
    def positive(frame):
        if len(frame) == 1:
            return None
        return frame[frame["f1"] > 0] if batch_format == "pandas" else frame.filter(pl.col("f1") > 0)

    spec = MapBatchesSpec(positive, batch_format, PAIR, PAIR)
    output = run(spec, RowBatch([("a", 1), ("b", -2), ("c", 3)], [1, 2, 3]), RowBatch([("d", 9)], [4]))
    assert (output.rows, output.timestamps_ms) == ([("a", 1), ("c", 3)], [None, None])


def test_nulls_of_each_library_are_none():
    batch = RowBatch([("a", 1), (None, None)])
    for batch_format in ("pyarrow", "pandas", "polars"):
        assert run(MapBatchesSpec(lambda columns: columns, batch_format, PAIR, PAIR), batch).rows == batch.rows


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda columns: [1], "returned a list; expected a pyarrow RecordBatch or Table, a pandas or polars DataFrame"),
        (lambda columns: {"word": ["x"]}, "returned the columns word; its output type has 2: word, number"),
        (lambda columns: {"word": ["x"], "number": ["y"]}, "string in column number, which is no int64"),
        (lambda columns: {"word": ["x"], "number": [1.5]}, "double in column number, which is no int64"),
        (lambda columns: 1 / 0, "division by zero"),
    ],
)
def test_a_wrong_result_is_told_with_the_operator(function, told):
    with pytest.raises(UserCodeError, match=f"'Batches'(.|\n)*a batch of 1 records(.|\n)*{told}|{told}"):
        run(MapBatchesSpec(function, "pyarrow", None, NAMED), RowBatch([("a", 1)]))


def test_wrong_formats_are_refused_when_the_program_is_written(monkeypatch):
    env = StreamExecutionEnvironment.get_execution_environment(Configuration())
    stream = env.from_collection([("a", 1)], PAIR)
    with pytest.raises(ProgramError, match=r"'arrow'.*expected one of 'pyarrow', 'pandas', 'polars', 'numpy'"):
        stream.map_batches(lambda columns: columns, PAIR, batch_format="arrow")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ProgramError, match="needs polars, which is not installed: pip install polars"):
        stream.map_batches(lambda columns: columns, PAIR, batch_format="polars")


def test_a_whole_program_filters_in_polars_and_sums_on():
    env = StreamExecutionEnvironment.get_execution_environment(Configuration())
    env.set_parallelism(1)
    stream = env.from_collection([("a", 1), ("b", -5), ("a", 2)], PAIR)
    kept = stream.map_batches(lambda frame: frame.filter(pl.col("f1") > 0), PAIR, batch_format="polars")
    with kept.key_by(lambda pair: pair[0]).sum(1).execute_and_collect() as results:
        assert list(results)[-1] == ("a", 3)


@pytest.mark.parametrize("batch_format", BATCH_FORMATS)
def test_large_integers_among_nulls_stay_what_they_are(batch_format):
    rows = [("a", 2**53 + 1), ("b", None), (None, -(2**63) + 1)]
    columns = [pa.array([row[i] for row in rows]) for i in range(2)]
    batch = ColumnBatch(pa.RecordBatch.from_arrays(columns, names=["word", "number"]))
    assert run(MapBatchesSpec(lambda columns: columns, batch_format, PAIR, PAIR), batch).rows == rows
