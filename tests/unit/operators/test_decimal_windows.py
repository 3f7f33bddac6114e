"""Decimals in windows on columns: beside rows, to the last digit and exponent."""

from __future__ import annotations

import decimal
import random
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from engine.core.records import ColumnBatch
from engine.operators import memory_watch
from engine.operators.aggregate import FieldAggregate
from engine.operators.column_session import column_session
from engine.operators.column_window import column_window
from engine.operators.field_aggregates import avg, count, count_distinct, first, last, max_, min_, sum_
from engine.operators.window_contents import ReduceFold
from engine.state.column_hash import groups_of_rows
from engine.state.key_groups import key_group_range
from engine.time.windows import TIME_MAX_MS
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


def growing(seed, *, nulls=True):
    """First of few digits, then of up to 37."""
    steps = steps_of(seed, KIND, 1000, nulls=nulls, num=2)
    with decimal.localcontext(prec=50):
        return [*steps, *steps_of(seed, KIND, 10**37, nulls=nulls, begin=2, num=4)]


@pytest.mark.parametrize("in_files", [False, True])
@pytest.mark.parametrize("name", ["tumbling", "sliding", "sliding, by slice", "sessions"])
def test_decimals_of_many_digits_that_are_only_compared_stay_on_columns(name, in_files, monkeypatch):
    if in_files:
        monkeypatch.setattr(memory_watch, "_BYTES_MIN", 1)
        monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 400)
        monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: held_bytes > 0)
    order = [] if name == "sliding, by slice" else [first(1), last(1)]
    spec, rows = spec_of(
        ASSIGNERS.get(name.split(",")[0], SESSIONS), [min_(1), max_(1), count(1), count_distinct(1), *order]
    )
    steps = growing(name)
    expected, seen, taken = run(rows, steps, on_rows=True)[0], [], None
    for part in (steps[:3], steps[3:4], steps[4:]):
        with OperatorHarness(spec, restored=[] if taken is None else [taken]) as harness:
            play(harness, part)
            taken = harness.snapshot(1)
            if part[-1] is steps[-1]:
                harness.watermark(TIME_MAX_MS)
            assert all(isinstance(batch, ColumnBatch) for batch in harness.output.batches)
            assert not harness.head._is_on_rows
            seen += found(harness)
    assert sorted(seen) == expected


@pytest.mark.parametrize("name", ["tumbling", "sliding", "sessions"])
@pytest.mark.parametrize("aggregate", ["min", "max", "min_by", "max_by"])
def test_records_are_chosen_by_decimals_of_many_digits(name, aggregate):
    spec, rows = spec_of(ASSIGNERS.get(name, SESSIONS), ReduceFold(FieldAggregate(aggregate, 1)))
    steps = growing(aggregate, nulls=False)
    assert run(spec, steps) == (run(rows, steps, on_rows=True)[0], True)


@pytest.mark.parametrize("name", ["tumbling", "sliding", "sessions"])
@pytest.mark.parametrize("aggregate", ["sum", "min", "max", "min_by", "max_by"])
def test_records_of_windows_with_decimals_are_those_of_rows(name, aggregate):
    spec, rows = spec_of(ASSIGNERS.get(name, SESSIONS), ReduceFold(FieldAggregate(aggregate, 1)))
    steps = steps_of(aggregate, pa.decimal128(9, 2), 300, nulls=False)
    assert run(spec, steps) == (run(rows, steps, on_rows=True)[0], True)


@pytest.mark.parametrize("name", ["tumbling", "sliding", "cumulating", "sessions"])
@pytest.mark.parametrize("lateness_ms", [0, 20])
def test_averages_of_decimals_are_those_of_rows_and_state_stays_on_columns(name, lateness_ms):
    """Results are rows: each has as many places as it needs."""
    order = [count_distinct(1)] if name in ("tumbling", "sessions") else []
    spec, rows = spec_of(ASSIGNERS.get(name, SESSIONS), [avg(1), *PLAIN[:4], *order], lateness_ms=lateness_ms)
    steps = steps_of(f"avg {name}", pa.decimal128(9, 2), 300)
    with OperatorHarness(spec, name="Window") as harness:
        play(harness, steps[:2])
        assert not harness.head._is_on_rows
        taken, seen = harness.snapshot(1), found(harness)
    with OperatorHarness(spec, restored=[taken]) as harness:
        harness.watermark(steps[1][1])
        play(harness, steps[2:])
        assert not harness.head._is_on_rows
        harness.watermark(10_000)
        assert sorted(seen + found(harness)) == run(rows, steps, on_rows=True)[0]


def test_sums_of_windows_are_rounded_by_the_context_of_the_users():
    spec, rows = spec_of(ASSIGNERS["tumbling"], [sum_(1), avg(1)])
    steps = steps_of(4, pa.decimal128(9, 2), 10**8)
    with decimal.localcontext(prec=4):
        assert run(spec, steps) == (run(rows, steps, on_rows=True)[0], False)


def test_windows_in_files_have_decimals():
    spec, rows = spec_of(ASSIGNERS["sliding"], [*PLAIN, avg(1)])
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
