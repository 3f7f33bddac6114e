"""Functions as programs write them: each runs on columns, as in the interpreter, or says what is in the way."""

from __future__ import annotations

import datetime as dt

import pyarrow as pa
import pytest

from engine.core.records import ColumnBatch
from engine.operators.compile.column_steps import ColumnFunction
from tests.unit.operators.compile.programs_functions import COMPILED, REASONS

DAYS = [
    dt.datetime(2024, 2, 29, 23, 59, 58, 7),
    dt.datetime(1, 1, 1),
    dt.datetime(1969, 12, 31, 12),
    dt.datetime(9999, 12, 31),
]
COLUMNS = {
    "id": pa.array([1, 5, 7, 65]),
    "price": pa.array([2.5, 95.125, 0.0, 2.675]),
    "name": pa.array(["a", "b,c=ß", " de İ", "fr"]),
    "count": pa.array([3, 1, 2, 4], pa.int32()),
    "ok": pa.array([True, False, True, False]),
    "day": pa.array(DAYS, pa.timestamp("us")),
    "note": pa.array(["x", None, "yy", ""]),
}
BATCH = ColumnBatch(pa.RecordBatch.from_pydict(COLUMNS), named=True)


@pytest.mark.parametrize("function", COMPILED)
@pytest.mark.parametrize("is_filter", [False, True])
def test_what_runs_on_columns_gives_what_the_interpreter_gives(function, is_filter):
    compiled = ColumnFunction(function, is_filter=is_filter)
    num_compiled = 0
    for at in range(len(BATCH) + 1):  # each record, then all
        batch = BATCH if at == len(BATCH) else BATCH.slice(at, at + 1)
        result = compiled.apply(batch)
        rows = batch.to_rows().rows
        try:
            expected = [row for row in rows if function(row)] if is_filter else list(map(function, rows))
        except Exception:
            assert result is None
            continue
        if result is not None:
            num_compiled += 1
            assert repr(result.to_rows().rows) == repr(expected)
    assert num_compiled or is_filter, compiled.reason


@pytest.mark.parametrize(("function", "reason"), REASONS)
def test_what_does_not_says_what_is_in_the_way(function, reason):
    compiled = ColumnFunction(function, is_filter=False)
    assert compiled.apply(BATCH) is None
    assert reason in compiled.tier()
