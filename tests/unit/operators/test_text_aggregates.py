"""Texts, bytes and truth values in keyed aggregations on columns: beside rows."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from engine.core.records import ColumnBatch
from engine.operators.aggregate import KeyedAggregateSpec
from engine.operators.column_aggregate import ColumnAggregateSpec
from engine.operators.keys import FieldKey
from engine.state import slot_columns
from engine.state.column_hash import groups_of_rows
from engine.state.key_groups import key_group_range
from engine.state.slot_columns import state_column
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.test_decimal_aggregates import batch_of, rows_of, run_rows

TEXTS = ["", "a", "ab", "a\0", "é", "z", "\U0001f600", "\uffff", "x" * 400, "x" * 399 + "y"]
KINDS = {
    "text": (pa.string(), TEXTS),
    "large": (pa.large_string(), TEXTS),
    "bytes": (pa.binary(), [text.encode() for text in TEXTS] + [b"\xff", b"\x80"]),
    "bool": (pa.bool_(), [False, True]),
}


def batches_of(seed, kind, values, num=3):
    rng = random.Random(seed)
    rows = [(rng.randrange(6), rng.choice(values), f"n{i}") for i in range(num * 30)]
    return [batch_of(rows[at : at + 30], kind) for at in range(0, num * 30, 30)]


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("aggregate", ["min", "max", "min_by", "max_by"])
@pytest.mark.parametrize("name", KINDS)
def test_texts_are_compared_on_columns_as_on_rows_and_restored_at_another_parallelism(name, aggregate, final):
    batches = batches_of(f"{name} {aggregate}", *KINDS[name])
    spec = ColumnAggregateSpec(FieldKey(0), aggregate, 1, final)
    with OperatorHarness(spec) as harness:
        for batch in batches[:2]:
            harness.process_batch(batch)
        taken, found = harness.snapshot(1), rows_of(harness)
    columns = batches[2].columns
    groups = groups_of_rows([columns.column(0)], 128, is_tuple=False)
    for index in range(2):
        mine = pa.array(np.isin(groups, list(key_group_range(index, 2, 128))))
        with OperatorHarness(spec, restored=[taken], subtask_index=index, parallelism=2) as harness:
            harness.process_batch(ColumnBatch(columns.filter(mine)))
            harness.end()
            assert all(isinstance(batch, ColumnBatch) for batch in harness.output.batches)
            found += rows_of(harness)
    assert sorted(found) == sorted(run_rows(aggregate, batches, final=final))


@pytest.mark.parametrize("aggregate", ["min", "max_by"])
@pytest.mark.parametrize("name", KINDS)
def test_rows_go_on_with_what_columns_held(name, aggregate):
    batches = batches_of(7, *KINDS[name])
    with OperatorHarness(ColumnAggregateSpec(FieldKey(0), aggregate, 1)) as harness:
        harness.process_batch(batches[0])
        taken = harness.snapshot(1)
        harness.process_batch(batches[1].to_rows())
        harness.process_batch(batches[2])
        assert rows_of(harness) == run_rows(aggregate, batches)
    with OperatorHarness(KeyedAggregateSpec(FieldKey(0), aggregate, 1), restored=[taken]) as harness:
        for batch in batches[1:]:
            harness.process_batch(batch.to_rows())
        assert rows_of(harness) == run_rows(aggregate, batches)[30:]


@pytest.mark.parametrize("aggregate", ["min", "max_by"])
def test_a_text_in_a_dictionary_is_a_text(aggregate):
    batches = batches_of(8, pa.string(), TEXTS)
    encoded = [
        ColumnBatch(batch.columns.set_column(1, "v", batch.columns.column(1).dictionary_encode())) for batch in batches
    ]
    with OperatorHarness(ColumnAggregateSpec(FieldKey(0), aggregate, 1)) as harness:
        for batch in encoded:
            harness.process_batch(batch)
        assert all(isinstance(batch, ColumnBatch) for batch in harness.output.batches)
        assert rows_of(harness) == run_rows(aggregate, batches)


def test_a_null_among_texts_is_what_it_is_on_rows():
    batches = [batch_of([(1, "b", "x"), (2, None, "y")], pa.string()), batch_of([(1, "a", "z")], pa.string())]
    with OperatorHarness(ColumnAggregateSpec(FieldKey(0), "min", 1)) as harness:
        for batch in batches:
            harness.process_batch(batch)
        assert rows_of(harness) == run_rows("min", batches)


def test_texts_that_nothing_holds_any_more_are_forgotten(monkeypatch):
    monkeypatch.setattr(slot_columns, "_RENEW_MIN", 10)
    column = state_column(pa.string())
    column.reserve(4)
    for number in range(1000):
        column.put(np.array([number % 3]), pa.array([f"text {number}"]))
    assert column.get(np.arange(3)).to_pylist() == ["text 999", "text 997", "text 998"]
    assert column._distinct.num_slots < 200
