from __future__ import annotations

import contextlib
import datetime as dt
import math
import random
import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.errors import UserCodeError
from engine.core.records import ColumnBatch, RowBatch
from engine.operators.aggregate import KeyedAggregateSpec
from engine.operators.column_aggregate import ColumnAggregateSpec
from engine.operators.keys import ComposedKey, FieldKey
from engine.state.parts import OperatorStateRegistry
from tests.testing.operator_harness import OperatorHarness

SCHEMA = pa.schema([("k", pa.int64()), ("v", pa.int64()), ("x", pa.float64()), ("name", pa.string())])
FLOATS = st.one_of(st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf, 1.5]), st.floats(width=32))
ROW = st.tuples(
    st.one_of(st.none(), st.integers(-3, 3)),
    st.one_of(st.integers(-5, 5), st.integers(-(2**63), 2**63 - 1)),
    FLOATS,
    st.one_of(st.none(), st.sampled_from(["", "a", "é"])),
)


def columns(rows, schema=SCHEMA):
    arrays = [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(schema)]
    return ColumnBatch(pa.RecordBatch.from_arrays(arrays, schema=schema))


def run(spec, batches):
    """Return what comes out, and the error it ends with, if it does."""
    with OperatorHarness(spec, name="Agg") as harness:
        try:
            for batch in batches:
                harness.process_batch(batch)
            harness.end()
        except UserCodeError as error:
            return harness.output.rows, str(error)
    return harness.output.rows, None


def told_apart(rows):
    """NaN equals itself, 0.0 and -0.0 differ."""
    return [tuple(repr(value) for value in row) for row in rows]


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("kind", ["sum", "min", "max", "min_by", "max_by"])
@pytest.mark.parametrize("field", [1, 2])
@pytest.mark.parametrize("key", [FieldKey(0), FieldKey(2), FieldKey("name"), ComposedKey((0, 3))])
def test_results_are_those_of_the_row_operator(kind, field, key, final):
    if key == FieldKey("name"):
        key, row_key = FieldKey("name"), FieldKey(3)  # rows of columns are tuples without names
    else:
        row_key = key

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.lists(ROW, min_size=1, max_size=12), max_size=4))
    def check(batches):
        ours = run(ColumnAggregateSpec(key, kind, field, final), map(columns, batches)) if row_key is key else None
        if ours is None:
            ours = run(ColumnAggregateSpec(FieldKey(3), kind, field, final), map(columns, batches))
        theirs = run(KeyedAggregateSpec(row_key, kind, field, final), map(columns, batches))
        assert ours[1] == theirs[1]
        sort = sorted if final else list
        assert sort(told_apart(ours[0])) == sort(told_apart(theirs[0]))

    check()


def test_a_sum_beyond_64_bits_goes_on_as_a_python_integer():
    rows = [(1, 2**63 - 1, 0.0, "a"), (2, 5, 0.0, "b"), (1, 1, 0.0, "c"), (3, 1, 0.0, "d"), (2, 1, 0.0, "e")]
    out, error = run(ColumnAggregateSpec(FieldKey(0), "sum", 1), [columns(rows), columns([(3, 4, 0.0, "f")])])
    assert error is None
    assert [row[:2] for row in out] == [(1, 2**63 - 1), (2, 5), (1, 2**63), (3, 1), (2, 6), (3, 5)]


def test_a_null_fails_with_the_row_operators_words_after_what_came_before():
    batch = columns([(1, 1, 0.0, "a"), (1, None, 0.0, "b")])
    out, error = run(ColumnAggregateSpec(FieldKey(0), "sum", 1), [batch])
    assert [row[1] for row in out] == [1]
    assert error == run(KeyedAggregateSpec(FieldKey(0), "sum", 1), [batch])[1]


def test_the_first_of_equal_records_stays_whichever_batch_it_came_in():
    batches = [[(1, 5, 0.5, "a"), (1, 5, 0.5, "b")], [(1, 5, 0.5, "c"), (1, 6, 0.5, "d"), (1, 6, -0.0, None)]]
    out, _ = run(ColumnAggregateSpec(FieldKey(0), "max_by", 1), map(columns, batches))
    assert [row[3] for row in out] == ["a", "a", "a", "d", "d"]


@pytest.mark.parametrize("kind", ["min_by", "max_by"])
def test_a_null_to_be_compared_fails_with_the_row_operators_words(kind):
    batches = [columns([(1, 1, 0.0, "a"), (2, None, 0.0, "b")]), columns([(1, 4, 0.0, "c"), (2, 3, 0.0, "d")])]
    ours, theirs = (run(spec(FieldKey(0), kind, 1), batches) for spec in (ColumnAggregateSpec, KeyedAggregateSpec))
    assert ours == theirs
    assert "does not go with those before it" in ours[1]


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint32(), pa.float32()])
def test_narrow_numbers_are_chosen_by_and_keep_their_type(kind):
    schema = pa.schema([("k", pa.int64()), ("v", kind), ("t", pa.timestamp("us"))])
    batch = columns([(1, 3, None), (1, 5, 10), (1, 4, 11)], schema)
    with OperatorHarness(ColumnAggregateSpec(FieldKey(0), "max_by", 1)) as harness:
        harness.process_batch(batch)
        assert harness.output.batches[0].columns.schema.types == schema.types
        theirs = run(KeyedAggregateSpec(FieldKey(0), "max_by", 1), [batch])[0]
        assert harness.output.rows == theirs


def test_rows_among_the_columns_lose_nothing():
    batches = [columns([(1, 1, 0.0, "a")]), RowBatch([(1, 2, 0.0, "b")]), columns([(1, 3, 0.0, "c")])]
    assert [row[1] for row in run(ColumnAggregateSpec(FieldKey(0), "sum", 1), batches)[0]] == [1, 3, 6]


def test_timestamps_stay_with_their_results():
    batch = columns([(1, 1, 0.0, "a"), (1, 2, 0.0, "b")])
    batch.timestamps_ms = np.array([7, 9])
    with OperatorHarness(ColumnAggregateSpec(FieldKey(0), "sum", 1)) as harness:
        harness.process_batch(batch)
        assert harness.output.timestamps_ms == [7, 9]
        assert isinstance(harness.output.batches[0], ColumnBatch)


class Restored:
    watched_as = told_as = ""

    def __init__(self, chunks):
        self._chunks = chunks

    def keyed_later(self, part):
        return None

    def keyed_layers(self, part):
        return iter([self._chunks[part]] if part in self._chunks else [])

    def keyed_folders(self, part, format):
        return iter(())

    def lists(self):
        return None

    def part_names(self):
        return list(self._chunks)


def harness_with(spec, restored=None):
    harness = OperatorHarness(spec, name="Agg")
    context = harness._context

    def with_state(index):
        made = context(index)
        made.state = OperatorStateRegistry(restored)
        harness.registry = made.state
        return made

    harness._context = with_state
    return harness


@pytest.mark.parametrize("final", [False, True])
def test_state_goes_on_from_a_snapshot(final):
    spec = ColumnAggregateSpec(FieldKey(3), "sum", 1, final)
    first, second = columns([(1, 1, 0.5, "a"), (2, 5, 1.5, None)]), columns([(9, 2, 9.0, None), (9, 3, 9.0, "a")])
    straight, _ = run(spec, [first, second])
    with harness_with(spec) as harness:
        harness.process_batch(first)
        part = harness.registry.keyed["slots"]
        chunks = {"slots": part.snapshot(range(128))}
    with harness_with(spec, Restored(chunks)) as harness:
        harness.process_batch(second)
        harness.end()
        rows = harness.output.rows
    assert sorted(map(repr, rows)) == sorted(map(repr, straight if final else straight[2:]))


TIMES = {
    "timestamp": (pa.timestamp("us"), lambda n: dt.datetime(2024, 1, 1) + dt.timedelta(microseconds=n)),
    "moment": (pa.timestamp("ms", "UTC"), lambda n: dt.datetime(1969, 12, 31, 23, 59, 59, n % 9 * 1000, dt.UTC)),
    "date": (pa.date32(), lambda n: dt.date(1970, 1, 1) + dt.timedelta(days=n)),
    "time": (pa.time64("us"), lambda n: dt.time(1, 2, 3, n % 10)),
    "duration": (pa.duration("ms"), lambda n: dt.timedelta(milliseconds=n)),
}


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("kind", ["min", "max", "min_by", "max_by"])
@pytest.mark.parametrize("type_name", TIMES)
def test_dates_and_times_are_compared_on_columns_as_on_rows(type_name, kind, final):
    arrow_type, value_of = TIMES[type_name]
    schema = SCHEMA.set(1, pa.field("v", arrow_type))
    rng = random.Random(type_name + kind)
    rows = [(rng.randrange(5), value_of(rng.randrange(-40, 40)), i / 2, f"n{i}") for i in range(60)]
    batches = [columns(rows[at : at + 20], schema) for at in range(0, 60, 20)]
    expected = run(KeyedAggregateSpec(FieldKey(0), kind, 1, final), [batch.to_rows() for batch in batches])
    with OperatorHarness(ColumnAggregateSpec(FieldKey(0), kind, 1, final)) as harness:
        for batch in batches[:2]:
            harness.process_batch(batch)
        taken = harness.snapshot(1)
        first = harness.output.rows
        assert harness.head.tier("vectorised") == "vectorised"
    with OperatorHarness(ColumnAggregateSpec(FieldKey(0), kind, 1, final), restored=[taken]) as harness:
        harness.process_batch(batches[2])
        harness.end()
        assert all(isinstance(batch, ColumnBatch) for batch in harness.output.batches)
        found = first + harness.output.rows
    assert sorted(told_apart(found)) == sorted(told_apart(expected[0]))


def test_an_operator_that_went_on_on_rows_says_so():
    with OperatorHarness(ColumnAggregateSpec(FieldKey(0), "sum", 1)) as harness:
        harness.process_batch(columns([(1, 2**63 - 1, 0.5, "a"), (1, 1, 0.5, "a")]))
        assert harness.head.tier("vectorised") == "on rows: an integer sum beyond 64 bits (planned: vectorised)"
        taken = harness.snapshot(1)
    with OperatorHarness(ColumnAggregateSpec(FieldKey(0), "sum", 1), restored=[taken]) as harness:
        assert harness.head.tier("") == "on rows: its state was restored from rows or other types (planned: )"
    batch = columns([(1, 1, 0.5, "a")])
    others = [
        (batch.to_rows(), "rows came"),
        (ColumnBatch(batch.columns.select([1]), scalar=True), "single values came, not records"),
        (ColumnBatch(batch.columns.select([2, 1])), "records whose types .* not beside those before .* double, "),
    ]
    for other, reason in others:
        with OperatorHarness(ColumnAggregateSpec(FieldKey(0), "sum", 1)) as harness:
            harness.process_batch(batch)
            with contextlib.suppress(Exception):  # a value that is no record
                harness.process_batch(other)
            assert re.match(f"on rows: {reason}", harness.head.tier("vectorised"))


def test_a_null_that_ends_the_columns_is_told():
    with OperatorHarness(ColumnAggregateSpec(FieldKey(0), "sum", 1)) as harness:
        with pytest.raises(Exception, match="None"):
            harness.process_batch(columns([(1, 1, 0.5, "a"), (1, None, 0.5, "a")]))
        assert harness.head.tier("").startswith("on rows: a null where a value is needed")
