"""Decimals in keyed aggregations on columns: beside rows, to the last digit and exponent."""

from __future__ import annotations

import datetime as dt
import decimal
import random
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from engine.core.records import ColumnBatch
from engine.operators.aggregate import KeyedAggregateSpec
from engine.operators.column_aggregate import ColumnAggregateSpec
from engine.operators.keys import FieldKey
from engine.state.column_hash import groups_of_rows
from engine.state.key_groups import key_group_range
from tests.testing.operator_harness import OperatorHarness

KINDS = ["sum", "min", "max", "min_by", "max_by"]


def batch_of(rows, kind):
    keys, values, names = (list(field) for field in zip(*rows, strict=True))
    arrays = [pa.array(keys, pa.int64()), pa.array(values, kind), pa.array(names, pa.string())]
    return ColumnBatch(pa.RecordBatch.from_arrays(arrays, names=["k", "v", "name"]))


def rows_of(harness):
    return [tuple(map(repr, row)) for row in harness.output.rows]


def run_rows(kind, batches, *, final=False):
    with OperatorHarness(KeyedAggregateSpec(FieldKey(0), kind, 1, final), name="Agg") as harness:
        for batch in batches:
            harness.process_batch(batch.to_rows())
        harness.end()
        return rows_of(harness)


def random_batches(seed, kind, largest):
    rng = random.Random(seed)
    values = [rng.choice([0, 1, -1, rng.randint(-largest, largest)]) for _ in range(90)]
    rows = [(rng.randrange(4), Decimal(v).scaleb(-kind.scale), f"n{i}") for i, v in enumerate(values)]
    return [batch_of(rows[at : at + 30], kind) for at in range(0, 90, 30)]


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("aggregate", KINDS)
@pytest.mark.parametrize("kind", [pa.decimal128(10, 2), pa.decimal128(38, 20), pa.decimal128(5, -2)], ids=str)
def test_decimals_are_aggregated_on_columns_as_on_rows_and_restored_at_another_parallelism(aggregate, kind, final):
    batches = random_batches(f"{aggregate} {kind}", kind, 99_999)
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


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("aggregate", KINDS)
@pytest.mark.parametrize("largest", [10**18 - 1, 10**19, 10**27, 10**37])
def test_decimals_of_more_digits_are_those_of_rows(aggregate, largest, final):
    """Sums of more than 28 digits are rounded there; 19 digits fit into 64 bits, or not. (More: test_long_decimals.)"""
    kind = pa.decimal128(38, 3)
    batches = [batch_of([(1, Decimal("1.100"), "a"), (2, Decimal("2.000"), "b")], kind)]
    with decimal.localcontext(prec=50):
        batches += random_batches(f"{aggregate} {largest}", kind, largest)
    with OperatorHarness(ColumnAggregateSpec(FieldKey(0), aggregate, 1, final)) as harness:
        for batch in batches:
            harness.process_batch(batch)
        harness.end()
        found = rows_of(harness)
    assert sorted(found) == sorted(run_rows(aggregate, batches, final=final))


def test_sums_are_rounded_by_the_context_of_the_users():
    batches = random_batches(1, pa.decimal128(9, 2), 10**8)
    with decimal.localcontext(prec=4), OperatorHarness(ColumnAggregateSpec(FieldKey(0), "sum", 1)) as harness:
        for batch in batches:
            harness.process_batch(batch)
        assert rows_of(harness) == run_rows("sum", batches)
        assert harness.head.tier("vectorised").startswith("on rows")


def test_subtasks_with_other_scales_are_restored_beside_each_other():
    """Amounts of 1.5 and 1.500 are 15 and 1500 units: they are not one column."""
    spec, taken = ColumnAggregateSpec(FieldKey(0), "sum", 1), []
    for key, kind in ((1, pa.decimal128(9, 1)), (2, pa.decimal128(9, 3))):
        with OperatorHarness(spec) as harness:
            harness.process_batch(batch_of([(key, Decimal("1.5").quantize(Decimal(1).scaleb(-kind.scale)), "a")], kind))
            taken.append(harness.snapshot(1))
    with OperatorHarness(spec, restored=taken) as harness:
        harness.process_batch(batch_of([(1, Decimal("1.5"), "b"), (2, Decimal("1.5"), "b")], pa.decimal128(9, 1)))
        assert [row[1] for row in harness.output.rows] == [Decimal("3.0"), Decimal("3.000")]


@pytest.mark.parametrize("aggregate", ["min", "max_by"])
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.decimal128(9, 2), [Decimal("1.50"), Decimal("-2.00"), Decimal("7.25")]),
        (pa.date32(), [dt.date(2024, 1, 2), dt.date(1969, 1, 1), dt.date(2030, 1, 1)]),
        (pa.timestamp("us"), [dt.datetime(2024, 1, 2), dt.datetime(1969, 1, 1), dt.datetime(2030, 1, 1)]),
    ],
    ids=["decimal", "date", "timestamp"],
)
def test_rows_go_on_with_the_values_that_columns_held(aggregate, kind, values):
    batches = [batch_of([(1, value, f"n{i}")], kind) for i, value in enumerate(values)]
    with OperatorHarness(ColumnAggregateSpec(FieldKey(0), aggregate, 1)) as harness:
        harness.process_batch(batches[0])
        taken, found = harness.snapshot(1), rows_of(harness)
    with OperatorHarness(KeyedAggregateSpec(FieldKey(0), aggregate, 1), restored=[taken]) as harness:
        for batch in batches[1:]:
            harness.process_batch(batch.to_rows())
        assert found + rows_of(harness) == run_rows(aggregate, batches)
