"""Decimals of up to 38 digits in windows on columns: beside rows, through barriers, crashes and files."""

from __future__ import annotations

import decimal
import re
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.records import ColumnBatch
from engine.operators import decimal_kernels, memory_watch, window_fields
from engine.operators.aggregate import FieldAggregate
from engine.operators.column_session import column_session
from engine.operators.column_window import column_window
from engine.operators.field_aggregates import avg, count, count_distinct, first, last, max_, min_, sum_
from engine.operators.keys import FieldKey
from engine.operators.window_contents import ReduceFold
from engine.state.short_decimals import lanes_of, of_units, sizes_of
from engine.time.windows import TIME_MAX_MS
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import MARK, Case, Rows, Watermark
from tests.unit.operators.test_column_session import SESSIONS
from tests.unit.operators.test_column_window import ASSIGNERS, built_in, windows
from tests.unit.operators.test_long_decimals import (
    ANY,
    EXACT,
    INTEGERS,
    ON_COLUMNS,
    OTHER_SCHEMA,
    SCHEMA,
    batches,
    scripts,
)
from tests.unit.operators.test_restore import FULL, INCREMENTAL, Run
from tests.unit.operators.test_restore_columns import PHASES, disturbed, undisturbed

KEY = FieldKey(0)
SUMS = [sum_(1), min_(1), count(1), avg(1)]
#: name → assigner, fold
WINDOWS = {
    "tumbling": ("tumbling", [*SUMS, first(1), count_distinct(1)]),
    "sliding": ("sliding", SUMS),
    "sliding, each by itself": ("sliding", [sum_(1), max_(1), last(1)]),
    "cumulating": ("cumulating", [sum_(1), count(1)]),
    "sessions": ("sessions", [*SUMS, last(1)]),
    "reduced": ("tumbling", ReduceFold(FieldAggregate("sum", 1))),
    "chosen": ("sessions", ReduceFold(FieldAggregate("max_by", 1))),
}


def specs_of(name, *, lateness_ms=0):
    """Return (on columns, on rows)."""
    kind, fold = WINDOWS[name]
    assigner = SESSIONS if kind == "sessions" else ASSIGNERS[kind]
    rows = (built_in if isinstance(fold, list) else windows)(assigner, fold, lateness_ms=lateness_ms)
    columns = (column_session if kind == "sessions" else column_window)(rows, None)
    assert columns is not None
    return columns, rows


def nulls(script):
    """Return the script with a null in the place of each value that is 0."""
    return [
        Rows([(k, v or None) for k, v in step.rows], step.stamps, schema=step.schema)
        if isinstance(step, Rows)
        else step
        for step in script
    ]


def ended(script):
    return [*script, Watermark(TIME_MAX_MS)]


@pytest.mark.parametrize("config", [FULL, INCREMENTAL], ids=["full", "incremental"])
@pytest.mark.parametrize("lateness_ms", [0, 9])
@pytest.mark.parametrize("name", WINDOWS)
def test_after_any_script_results_are_those_of_rows(name, lateness_ms, config):
    columns, rows = specs_of(name, lateness_ms=lateness_ms if "itself" not in name else 0)

    @settings(max_examples=7, deadline=None, phases=PHASES)
    @given(st.one_of(ANY, ON_COLUMNS).map(nulls if isinstance(WINDOWS[name][1], list) else list).map(ended))
    def check(script):
        assert disturbed(Case((columns,), script, (KEY,)), config) == undisturbed(Case((rows,), script, (KEY,)))

    check()


@pytest.mark.parametrize("name", ["tumbling", "sliding", "sliding, each by itself", "sessions", "reduced"])
def test_windows_in_files_have_long_decimals(name, monkeypatch):
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 1)
    monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 400)
    monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: held_bytes > 0)
    columns, rows = specs_of(name)

    @settings(max_examples=10, deadline=None, phases=PHASES)
    @given(st.one_of(ANY, ON_COLUMNS).map(ended))
    def check(script):
        assert disturbed(Case((columns,), script, (KEY,)), INCREMENTAL) == undisturbed(Case((rows,), script, (KEY,)))

    check()


LONG = [1, -(10**24), 7 * 10**17, 9 * 10**17, 10**25, 8 * 10**17, -(10**25), 9 * 10**17, 5]


@pytest.mark.parametrize("values", [LONG, [9 * 10**17] * 30], ids=["long values", "long sums"])
@pytest.mark.parametrize("name", WINDOWS)
def test_what_a_sum_may_have_stays_on_columns(name, values):
    """Also over a barrier, at another parallelism, and in increments of what was shorter."""
    columns, rows = specs_of(name)
    kind = pa.decimal128(38, 18) if values is LONG else pa.decimal128(18, 2)
    schema = pa.schema([("k", pa.int64()), ("v", kind)])
    steps = [
        Rows([(n % 3, Decimal(value).scaleb(-kind.scale, EXACT)) for n, value in enumerate(values)],
             [at + n % 5 for n in range(len(values))], schema=schema)
        for at in (0, 1, 2, 3, 30)
    ]  # fmt: skip
    run = Run(Case((columns,), steps), INCREMENTAL, None)
    run.start(2)
    run.play([Rows([(k, Decimal(k).scaleb(-kind.scale)) for k in range(4)], [0] * 4, schema=schema), MARK])
    for parallelism, step in zip((2, 2, 1, 3, 3), steps, strict=True):
        run.play([step, MARK])
        run.start(parallelism)
    run.play([Watermark(1000)])
    for harness in run.harnesses:
        assert not harness.head._is_on_rows
        if not any(own.kind == "avg" for own in harness.head._spec.aggregates):
            assert all(isinstance(batch, ColumnBatch) for batch in harness.output.batches)
    begun = Rows([(k, Decimal(k).scaleb(-kind.scale)) for k in range(4)], [0] * 4)
    assert run.finish() == undisturbed(Case((rows,), [begun, *steps, Watermark(1000)]))


#: shares of 10^precision, and times: no pane comes to 1, windows and sessions do
ROUNDED = {
    "one pane": [(0.9, 1), (0.9, 7), (-0.9, 8), (-0.9, 6)],
    "several panes": [(0.3, 0), (0.3, 2), (0.3, 4), (0.3, 6), (-0.3, 8), (-0.3, 9)],
    "sessions that become one": [(0.6, 0), (0.6, 15), (0.0, 10)],
}
BEFORE_ROWS_ROUND = [("several panes", "sliding"), ("sessions that become one", "sessions")]


@pytest.mark.parametrize("name", ["tumbling", "sliding", "sliding, each by itself", "cumulating", "sessions"])
@pytest.mark.parametrize("prec", [20, 28, 38])
@pytest.mark.parametrize("case", ROUNDED)
@pytest.mark.parametrize("restored", [False, True])
def test_sums_that_may_be_rounded_go_to_rows_whatever_the_order(restored, case, prec, name):
    """Values that annul each other, with something in the last place, which rows round away on the way."""
    columns, rows = specs_of(name)
    units = [(int(share * 10) * 10 ** (prec - 1) + 3, time) for share, time in ROUNDED[case]]
    steps = [
        Rows([(1, Decimal(value).scaleb(-3, EXACT)) for value, _ in some], [time for _, time in some], schema=SCHEMA)
        for some in ([(7, 1), (-(2**40), 3)], [(-(2**64), 5), (11, 2), *units[:1]], *([unit] for unit in units[1:]))
    ]
    with decimal.localcontext(prec=prec):
        run = Run(Case((columns,), steps, (KEY,)), FULL, None)
        run.start(1)
        run.play(steps[:2])
        if restored:
            run.play([MARK])
            run.start(1)
        run.play([*steps[2:], Watermark(1000)])
        if case == "one pane" or (case, name) in (
            ("several panes", "sliding"),
            ("sessions that become one", "sessions"),
        ):
            assert re.match(
                "on rows: (a sum of decimals that Python rounds|its state was)", run.harnesses[0].head.tier("")
            )
        assert run.finish() == undisturbed(Case((rows,), [*steps, Watermark(1000)], (KEY,)))


def test_short_sums_count_when_they_get_longer():
    columns, rows = specs_of("tumbling")
    values = [*[9 * 10**17 + 1] * 10, 95 * 10**18]
    steps = [Rows([(1, Decimal(value).scaleb(-3))], [1], schema=SCHEMA) for value in values]
    with decimal.localcontext(prec=20):
        ours = undisturbed(Case((columns,), [*steps, Watermark(1000)]))
        assert ours == undisturbed(Case((rows,), [*steps, Watermark(1000)]))


def test_sums_of_sessions_that_become_one_get_longer():
    columns, rows = specs_of("sessions")
    schema = pa.schema([("k", pa.int64()), ("v", pa.decimal128(18, 2))])
    amounts = [(1, Decimal(9 * 10**17 + n).scaleb(-2)) for n in range(6)]
    steps = [Rows(amounts, [0] * 6, schema=schema), Rows(amounts, [8] * 6, schema=schema)]
    steps += [Rows(amounts[:1], [5], schema=schema), Rows(amounts[:1], [9], schema=schema), Watermark(1000)]
    run = Run(Case((columns,), steps), FULL, None)
    run.start(1)
    run.play(steps)
    assert not run.harnesses[0].head._is_on_rows
    assert run.finish() == undisturbed(Case((rows,), steps))


@pytest.mark.parametrize("in_files", [False, True])
@pytest.mark.parametrize("name", ["tumbling", "sliding", "sessions"])
def test_state_of_18_digits_of_former_versions_is_restored_and_goes_on(name, in_files, monkeypatch):
    """It lies below an increment of today, too."""
    if in_files:
        monkeypatch.setattr(memory_watch, "_BYTES_MIN", 1)
        monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 400)
        monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: held_bytes > 0)
    columns, rows = specs_of(name)
    before = Rows([(n, Decimal(n).scaleb(-3)) for n in range(6)], list(range(6)), schema=SCHEMA)
    longs = [
        Rows([(n, Decimal(n * 10**22 + n).scaleb(-3, EXACT)) for n in span], [n % 9 for n in span], schema=SCHEMA)
        for span in (range(2, 8), range(5), range(3, 9))
    ]
    run = Run(Case((columns,), [before, *longs], (KEY,)), INCREMENTAL, None)
    with monkeypatch.context() as patched:  # as chunks were: sums in the type of the values
        patched.setattr(window_fields, "long_kind", lambda kind: kind)
        run.start(2)
        run.play([before, MARK])
    run.start(2)
    run.play([longs[0], MARK])
    run.start(1)
    run.play([longs[1], MARK])
    run.start(3)
    run.play([longs[2], Watermark(TIME_MAX_MS)])
    assert not any(harness.head._is_on_rows for harness in run.harnesses)
    steps = [before, *longs, Watermark(TIME_MAX_MS)]
    assert run.finish() == undisturbed(Case((rows,), steps, (KEY,)))


def test_windows_of_other_types_come_together():
    columns, rows = specs_of("tumbling")

    @settings(max_examples=15, deadline=None, phases=PHASES)
    @given(scripts([SCHEMA, OTHER_SCHEMA], st.integers(-(10**20), 10**20)).map(ended))
    def check(script):
        assert disturbed(Case((columns,), script, (KEY,)), FULL) == undisturbed(Case((rows,), script, (KEY,)))

    check()


def test_a_batch_of_nothing_and_of_nulls_changes_nothing():
    columns, _ = specs_of("sliding")
    empty = pa.record_batch([pa.array([], pa.int64()), pa.array([], pa.decimal128(38, 3))], names=["k", "v"])
    null = pa.record_batch([pa.array([1]), pa.array([None], pa.decimal128(38, 3))], names=["k", "v"])
    long = pa.record_batch([pa.array([1]), pa.array([Decimal(10**22)], pa.decimal128(38, 3))], names=["k", "v"])
    with OperatorHarness(columns) as harness:
        for batch in (long, empty, null):
            harness.process_batch(ColumnBatch(batch, np.zeros(batch.num_rows, np.int64)))
        harness.watermark(TIME_MAX_MS)
        assert {row[3:6] for row in harness.output.rows} == {(Decimal("10000000000000000000000.000"),) * 2 + (1,)}


@given(batches([SCHEMA], INTEGERS), st.sampled_from([1e19, 1e28]))
@settings(max_examples=40, deadline=None)
def test_lanes_are_added_until_their_sizes_reach_the_limit(given_rows, limit):
    with decimal.localcontext(prec=60):
        integers = [int(value.scaleb(3)) for _, value in given_rows.rows]
    values = lanes_of(pa.array([value for _, value in given_rows.rows], pa.decimal128(38, 3)))
    slots = np.array([(key or 0) % 3 for key, _ in given_rows.rows], np.int32)
    columns = np.zeros((3, 3), np.int64)
    rows = np.arange(slots.size, dtype=np.int32)
    pane = columns[:, 0], columns[:, 1], columns[:, 2].view(np.float64)
    done = decimal_kernels.add_lanes(rows, slots, values, limit, *pane)
    sums, sizes = [0, 0, 0], [0, 0, 0]
    for slot, integer in zip(slots[:done].tolist(), integers[:done], strict=True):
        sums[slot] += integer
        sizes[slot] += abs(integer)
    assert [int(value) for value in of_units(columns[:, :2], pa.decimal128(38, 0)).to_pylist()] == sums
    assert np.allclose(pane[2], np.array(sizes, float))
    assert np.allclose(sizes_of(values), np.array([abs(integer) for integer in integers], float))
    if done < slots.size:
        assert sizes[slots[done]] + abs(integers[done]) >= limit * 0.999
