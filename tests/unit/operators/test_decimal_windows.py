"""Decimals in windows on columns: beside rows, to the last digit and exponent."""

from __future__ import annotations

import decimal
import random
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from engine.core.records import ColumnBatch
from engine.operators.aggregate import FieldAggregate
from engine.operators.column_session import column_session
from engine.operators.column_window import column_window
from engine.operators.field_aggregates import avg, count, count_distinct, first, last, max_, min_, sum_
from engine.operators.window_contents import ReduceFold
from engine.state.column_hash import groups_of_rows
from engine.state.key_groups import key_group_range
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.test_column_session import SESSIONS
from tests.unit.operators.test_column_window import ASSIGNERS, built_in, windows

PLAIN = [count(1), sum_(1), min_(1), max_(1), count_distinct(1)]
KIND = pa.decimal128(38, 3)


def steps_of(seed, kind, largest, *, nulls=True, begin=0, num=3):
    """Batches, each with the watermark behind it; half of the values are small."""
    rng, steps = random.Random(seed), []
    for at in range(begin, begin + num):
        values = [rng.choice([0, 1, None if nulls else 2, rng.randint(-largest, largest)]) for _ in range(25)]
        columns = [
            pa.array([rng.randrange(4) for _ in values], pa.int64()),
            pa.array([None if v is None else Decimal(v).scaleb(-kind.scale) for v in values], kind),
            pa.array([f"n{at}-{i}" for i in range(25)], pa.string()),
        ]
        batch = pa.RecordBatch.from_arrays(columns, names=["k", "v", "name"])
        times_ms = np.array([rng.randrange(at * 15, at * 15 + 30) for _ in values], np.int64)
        steps.append((ColumnBatch(batch, times_ms), at * 15 + 4))
    return steps


def play(harness, steps, *, on_rows=False):
    for batch, watermark_ms in steps:
        harness.process_batch(batch.to_rows() if on_rows else batch)
        harness.watermark(watermark_ms)


def found(harness):
    return sorted(tuple(map(repr, row)) for row in harness.output.rows)


def run(spec, steps, *, on_rows=False):
    with OperatorHarness(spec, name="Window") as harness:
        play(harness, steps, on_rows=on_rows)
        harness.watermark(10_000)
        return found(harness), all(isinstance(batch, ColumnBatch) for batch in harness.output.batches)


def spec_of(assigner, fold, **settings):
    """Return (windows on columns, the same on rows)."""
    rows = built_in(assigner, fold, **settings) if isinstance(fold, list) else windows(assigner, fold, **settings)
    return (column_session if assigner is SESSIONS else column_window)(rows, None), rows


@pytest.mark.parametrize("name", ["tumbling", "sliding", "sliding, by slice", "sessions"])
@pytest.mark.parametrize("kind", [pa.decimal128(10, 2), pa.decimal128(38, 20), pa.decimal128(5, -2)], ids=str)
def test_decimals_in_windows_are_what_they_are_on_rows_and_restored_at_another_parallelism(name, kind):
    order = [] if name == "sliding, by slice" else [first(1), last(1)]  # overlapping: each window by itself
    spec, rows = spec_of(ASSIGNERS.get(name.split(",")[0], SESSIONS), [*PLAIN, *order])
    steps = steps_of(f"{name} {kind}", kind, 99_999)
    expected, _ = run(rows, steps, on_rows=True)
    assert run(spec, steps) == (expected, True)
    with OperatorHarness(spec) as harness:
        play(harness, steps[:2])
        taken, seen = harness.snapshot(1), found(harness)
    (batch, watermark_ms) = steps[2]
    groups = groups_of_rows([batch.columns.column(0)], 128, is_tuple=False)
    for index in range(2):
        mine = np.isin(groups, list(key_group_range(index, 2, 128)))
        part = ColumnBatch(batch.columns.filter(pa.array(mine)), batch.timestamps_ms[mine])
        with OperatorHarness(spec, restored=[taken], subtask_index=index, parallelism=2) as harness:
            play(harness, [(part, watermark_ms)])
            harness.watermark(10_000)
            assert all(isinstance(batch, ColumnBatch) for batch in harness.output.batches)
            seen += found(harness)
    assert sorted(seen) == expected


@pytest.mark.parametrize("name", ["tumbling", "sliding", "sliding, by slice", "sessions"])
@pytest.mark.parametrize("largest", [10**18 - 1, 10**19, 10**28])
def test_decimals_in_windows_of_more_digits_go_on_on_rows(name, largest):
    order = [first(1), last(1)] if name == "sliding" else []
    spec, rows = spec_of(ASSIGNERS.get(name.split(",")[0], SESSIONS), [*PLAIN, *order])
    steps = steps_of(1, KIND, 1000)
    with decimal.localcontext(prec=50):
        steps = [*steps, *steps_of(name, KIND, largest, begin=3)]
    assert run(spec, steps)[0] == run(rows, steps, on_rows=True)[0]


@pytest.mark.parametrize("name", ["tumbling", "sliding", "sessions"])
@pytest.mark.parametrize("aggregate", ["sum", "min", "max", "min_by", "max_by"])
def test_records_of_windows_with_decimals_are_those_of_rows(name, aggregate):
    spec, rows = spec_of(ASSIGNERS.get(name, SESSIONS), ReduceFold(FieldAggregate(aggregate, 1)))
    steps = steps_of(aggregate, pa.decimal128(9, 2), 300, nulls=False)
    assert run(spec, steps) == (run(rows, steps, on_rows=True)[0], True)


def test_averages_of_decimals_are_left_to_rows():
    spec, rows = spec_of(ASSIGNERS["tumbling"], [avg(1), sum_(1)])
    steps = steps_of(3, pa.decimal128(9, 2), 300)
    assert run(spec, steps) == (run(rows, steps, on_rows=True)[0], False)


def test_sums_of_windows_are_rounded_by_the_context_of_the_users():
    spec, rows = spec_of(ASSIGNERS["tumbling"], [sum_(1)])
    steps = steps_of(4, pa.decimal128(9, 2), 10**8)
    with decimal.localcontext(prec=4):
        assert run(spec, steps) == (run(rows, steps, on_rows=True)[0], False)


def test_windows_in_files_have_decimals():
    spec, rows = spec_of(ASSIGNERS["sliding"], PLAIN)
    steps = steps_of(5, pa.decimal128(12, 2), 10**11, num=5)
    with OperatorHarness(spec) as harness:
        play(harness, steps[:2])
        harness.head._windows.evict(list(harness.head._state.panes))
        assert harness.head._spilled
        play(harness, steps[2:4])
        taken, seen = harness.snapshot(1), found(harness)
    with OperatorHarness(spec, restored=[taken]) as harness:
        play(harness, steps[4:])
        harness.watermark(10_000)
        assert sorted(seen + found(harness)) == run(rows, steps, on_rows=True)[0]
