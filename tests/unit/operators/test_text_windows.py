"""Texts, bytes, truth values and times that windows compare on columns: beside rows."""

from __future__ import annotations

import datetime
import random

import numpy as np
import pyarrow as pa
import pytest

from engine.core.records import ColumnBatch
from engine.operators.aggregate import FieldAggregate
from engine.operators.code_order import CodeOrder
from engine.operators.column_folds import shape_of_schema
from engine.operators.column_session import column_session
from engine.operators.column_window import column_window
from engine.operators.field_aggregates import count, first, last, max_, min_
from engine.operators.window_contents import ReduceFold
from engine.operators.window_fields import field_of_kind
from engine.state.column_hash import groups_of_rows
from engine.state.key_groups import key_group_range
from engine.state.slot_table import SlotTable
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.test_column_session import SESSIONS
from tests.unit.operators.test_column_window import ASSIGNERS, windows
from tests.unit.operators.test_decimal_windows import found, play, run, spec_of
from tests.unit.operators.test_text_aggregates import TEXTS

UTC = datetime.UTC
KINDS = {
    "text": (pa.string(), TEXTS),
    "large": (pa.large_string(), TEXTS),
    "bytes": (pa.binary(), [text.encode() for text in TEXTS] + [b"\xff", b"\x80"]),
    "two bytes": (pa.binary(2), [b"ab", b"\x80a", b"\0\0"]),
    "bool": (pa.bool_(), [False, True]),
    "date": (pa.date32(), [datetime.date(1969, 1, day) for day in range(1, 5)]),
    "time": (pa.time64("us"), [datetime.time(1, 2, 3, micros) for micros in range(3)]),
    "instant": (pa.timestamp("us", "UTC"), [datetime.datetime(1960 + at, 1, 1, tzinfo=UTC) for at in range(30)]),
    "duration": (pa.duration("ms"), [datetime.timedelta(seconds=at) for at in range(-2, 3)]),
}
WINDOWS = {**ASSIGNERS, "sessions": SESSIONS}


def steps_of(seed, kind, values, *, nulls=True, num=3):
    """Batches, each with the watermark behind it."""
    rng, steps = random.Random(str(seed)), []
    for at in range(num):
        taken = [None if nulls and not rng.randrange(4) else rng.choice(values) for _ in range(25)]
        keys = pa.array([rng.randrange(4) for _ in taken], pa.int64())
        names = pa.array([f"n{at}-{i}" for i in range(25)], pa.string())
        batch = pa.RecordBatch.from_arrays([keys, pa.array(taken, kind), names], names=["k", "v", "name"])
        times_ms = np.array([rng.randrange(at * 15, at * 15 + 30) for _ in taken], np.int64)
        steps.append((ColumnBatch(batch, times_ms), at * 15 + 4))
    return steps


@pytest.mark.parametrize("assigner", ["tumbling", "sliding", "cumulating", "sessions"])
@pytest.mark.parametrize("name", KINDS)
def test_windows_compare_as_rows_do_and_are_restored_at_another_parallelism(name, assigner):
    order = [] if assigner == "sliding" else [first(1), last(1)]  # overlapping: each window by itself
    lateness_ms = 7 if assigner in ("cumulating", "sessions") else 0
    spec, rows = spec_of(WINDOWS[assigner], [min_(1), max_(1), count(1), *order], lateness_ms=lateness_ms)
    steps = steps_of(f"{name} {assigner}", *KINDS[name])
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
            harness.watermark(steps[1][1])
            play(harness, [(part, watermark_ms)])
            harness.watermark(10_000)
            assert all(isinstance(batch, ColumnBatch) for batch in harness.output.batches)
            seen += found(harness)
    assert sorted(seen) == expected


@pytest.mark.parametrize("nulls", [False, True])
@pytest.mark.parametrize("assigner", ["tumbling", "sliding", "sessions"])
@pytest.mark.parametrize("aggregate", ["min", "max", "min_by", "max_by"])
@pytest.mark.parametrize("name", ["text", "bytes", "bool", "instant"])
def test_records_are_chosen_as_on_rows(name, aggregate, assigner, nulls):
    """A null that would be compared is for rows to refuse."""
    spec, rows = spec_of(WINDOWS[assigner], ReduceFold(FieldAggregate(aggregate, 1)))
    steps = steps_of(f"{name} {aggregate}", *KINDS[name], nulls=nulls)
    expected = outcome(rows, steps, on_rows=True)
    assert outcome(spec, steps) == (expected if nulls else (expected[0], True))


def outcome(spec, steps, *, on_rows=False):
    try:
        return run(spec, steps, on_rows=on_rows)
    except Exception as error:
        return str(error)


@pytest.mark.parametrize("plan", [column_window, column_session])
def test_functions_that_pick_by_a_text_are_understood(plan):
    steps = steps_of(3, *KINDS["text"], nulls=False)
    shape = shape_of_schema(steps[0][0].columns.schema)
    for function in (lambda a, b: b if b[1] >= a[1] else a, lambda a, b: a if b[1] > a[1] else b):
        rows = windows(WINDOWS["sessions" if plan is column_session else "tumbling"], ReduceFold(function))
        assert run(plan(rows, shape), steps) == (run(rows, steps, on_rows=True)[0], True)


@pytest.mark.parametrize("assigner", ["tumbling", "sliding"])
def test_windows_in_files_compare_texts(assigner):
    spec, rows = spec_of(WINDOWS[assigner], [min_(1), max_(1)])
    steps = steps_of(5, *KINDS["text"], num=5)
    with OperatorHarness(spec) as harness:
        play(harness, steps[:2])
        harness.head._windows.evict(list(harness.head._state.panes))
        assert harness.head._spilled
        play(harness, steps[2:])
        harness.watermark(10_000)
        assert found(harness) == run(rows, steps, on_rows=True)[0]


def test_rows_go_on_with_texts_that_sessions_have_compared():
    spec, rows = spec_of(SESSIONS, [min_(1), max_(1)])
    steps = steps_of(9, *KINDS["text"])
    with OperatorHarness(spec, name="Window") as harness:
        play(harness, steps[:1])
        play(harness, steps[1:2], on_rows=True)
        play(harness, steps[2:])
        harness.watermark(10_000)
        assert found(harness) == run(rows, steps, on_rows=True)[0]


@pytest.mark.parametrize("num_compared", [3, 300])
def test_ranks_are_in_the_order_of_values_while_their_table_grows(num_compared):
    rng = random.Random(num_compared)
    codes = SlotTable([pa.string()])
    order = CodeOrder(codes)
    for at in range(40):
        codes.slots_of([pa.array([f"{rng.randrange(10**6)}" for _ in range(20 if at < 20 else 0)], pa.string())])
        one, other = (np.array(rng.choices(range(codes.num_slots), k=num_compared)) for _ in range(2))
        ranks, texts = order.ranks(one, other), codes.keys_of(np.arange(codes.num_slots))[0].to_pylist()
        expected = [texts[a] < texts[b] for a, b in zip(one, other, strict=True)]
        assert (ranks[one] < ranks[other]).tolist() == expected
    assert order.nbytes >= 4 * codes.num_slots


@pytest.mark.parametrize("forgets", [True, False])
def test_ranks_are_not_those_of_values_that_have_been_forgotten(forgets):
    field = field_of_kind(0, pa.string(), is_compared=True)
    codes = field.codes_of(pa.array(["x", "a", "b"]))
    field.comparable(codes[1:2], codes[:1])
    if forgets:
        held = codes[1:].copy()
        field.renew_codes([(held, np.arange(2))])
        codes = held
        texts = ["a", "b"]
    else:
        field.forget_batch()
        texts = ["x", "a", "b"]
    for one, text in zip(codes, texts, strict=True):
        for other, its in zip(codes, texts, strict=True):
            before, after = field.comparable(np.array([one]), np.array([other]))
            assert (before < after).tolist() == [text < its]
