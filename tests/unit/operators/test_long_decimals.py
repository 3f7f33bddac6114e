"""Decimals of up to 38 digits in keyed aggregations on columns: beside rows, through barriers, crashes and files."""

from __future__ import annotations

import decimal
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.core.clock import ManualClock
from engine.core.records import ColumnBatch
from engine.operators import column_layout, decimal_kernels, memory_watch
from engine.operators.aggregate import KeyedAggregateSpec
from engine.operators.column_aggregate import ColumnAggregateSpec
from engine.operators.keys import FieldKey
from engine.state import spilling_slots
from engine.state.short_decimals import lanes_of, lanes_of_int, of_units, short_kind
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import MARK, Case, Rows, Watermark
from tests.unit.operators.test_decimal_aggregates import KINDS, batch_of, rows_of, run_rows
from tests.unit.operators.test_restore import FULL, INCREMENTAL, Run
from tests.unit.operators.test_restore_columns import BARRIER, KEYS, PHASES, disturbed, in_order, undisturbed

EXACT = decimal.Context(prec=60)
SCHEMA = pa.schema([("k", pa.int64()), ("v", pa.decimal128(38, 3))])
OTHER_SCHEMA = pa.schema([("k", pa.int32()), ("v", pa.decimal128(38, 3))])
KEY = FieldKey(0)
EDGES = [10**18 - 1, 10**18, 2**63 - 1, 2**63, -(2**63), 2**64, 10**27, 10**28 - 1, 2**126, 10**38 - 1, 1 - 10**38]
INTEGERS = st.one_of(st.integers(-3, 3), st.integers(-(10**26), 10**26), st.sampled_from(EDGES))


def amounts(integers):
    return integers.map(lambda units: Decimal(units).scaleb(-3, EXACT))


@st.composite
def batches(draw, schemas, integers=INTEGERS) -> Rows:
    rows = draw(st.lists(st.tuples(KEYS, amounts(integers)), min_size=1, max_size=6))
    stamps = draw(st.lists(st.integers(-5, 50), min_size=len(rows), max_size=len(rows)))
    return Rows(rows, stamps, schema=draw(st.sampled_from(schemas)))


def scripts(schemas, integers=INTEGERS):
    own = batches(schemas, integers)
    return st.lists(st.one_of(own, own, own, BARRIER, st.integers(0, 55).map(Watermark)), max_size=12).map(in_order)


ANY = scripts([SCHEMA, SCHEMA, SCHEMA, OTHER_SCHEMA, None])
#: What stays on columns: 28 digits are exact.
ON_COLUMNS = scripts([SCHEMA], st.one_of(st.integers(-3, 3), st.integers(-(10**26), 10**26)))


@pytest.mark.parametrize("config", [FULL, INCREMENTAL], ids=["full", "incremental"])
@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_after_any_script_results_are_those_of_rows(kind, final, config):
    @settings(max_examples=8, deadline=None, phases=PHASES)
    @given(st.one_of(ANY, ON_COLUMNS))
    def check(script):
        ours = disturbed(Case((ColumnAggregateSpec(KEY, kind, 1, final),), script, (KEY,)), config)
        assert ours == undisturbed(Case((KeyedAggregateSpec(KEY, kind, 1, final),), script, (KEY,)))

    check()


@pytest.mark.parametrize("config", [FULL, INCREMENTAL], ids=["full", "incremental"])
@pytest.mark.parametrize("kind", ["sum", "min", "max_by"])
def test_state_in_files_has_long_decimals(kind, config, monkeypatch):
    monkeypatch.setattr(spilling_slots, "NUM_PARTITIONS", 4)
    monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 800)
    monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: held_bytes > 0)

    @settings(max_examples=8, deadline=None, phases=PHASES)
    @given(st.one_of(ANY, ON_COLUMNS))
    def check(script):
        ours = disturbed(Case((ColumnAggregateSpec(KEY, kind, 1),), script, (KEY,)), config)
        assert ours == undisturbed(Case((KeyedAggregateSpec(KEY, kind, 1),), script, (KEY,)))

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_sum_may_have_stays_on_columns_in_the_order_of_records(kind):
    values = [1, 10**18, -(10**27), 2**63, -(2**64), 7, 10**27, -(2**63), 10**28 - 2 * 10**27]
    rows = [(n % 2, Decimal(value).scaleb(-18, EXACT), f"n{n}") for n, value in enumerate(values * 3)]
    given = [batch_of(rows[at : at + 9], pa.decimal128(38, 18)) for at in range(0, 27, 9)]
    with OperatorHarness(ColumnAggregateSpec(KEY, kind, 1)) as harness:
        for batch in given[:1]:
            harness.process_batch(batch)
        assert all(isinstance(batch, ColumnBatch) for batch in harness.output.batches)
        assert harness.output.batches[0].columns.schema.types[1] == pa.decimal128(38, 18)
        for batch in given[1:]:
            harness.process_batch(batch)
        assert rows_of(harness) == run_rows(kind, given)


def test_sums_of_short_decimals_get_longer_in_the_middle_of_a_batch():
    rows = [(n % 3, Decimal(9 * 10**17 * (-1) ** (n % 3) + n).scaleb(-2), f"n{n}") for n in range(40)]
    given = [batch_of(rows[at : at + 20], pa.decimal128(18, 2)) for at in (0, 20)]
    with OperatorHarness(ColumnAggregateSpec(KEY, "sum", 1)) as harness:
        for batch in given:
            harness.process_batch(batch)
        assert {batch.columns.schema.types[1] for batch in harness.output.batches} == {pa.decimal128(38, 2)}
        assert rows_of(harness) == run_rows("sum", given)


@pytest.mark.parametrize("prec", [10, 19, 28, 38, 50])
def test_a_sum_goes_to_rows_where_the_context_of_the_users_would_round_it(prec):
    limit = 10 ** min(prec, 38)
    steps = [1, limit - 2, -5, 4, 1, 10]  # the fifth is the last one below it
    batch = batch_of([(1, Decimal(step).scaleb(-2, EXACT), "a") for step in steps], pa.decimal128(38, 2))
    with decimal.localcontext(prec=prec), OperatorHarness(ColumnAggregateSpec(KEY, "sum", 1)) as harness:
        harness.process_batch(batch)
        assert rows_of(harness) == run_rows("sum", [batch])
        told = harness.head.tier("planned")
        on_columns = [batch for batch in harness.output.batches if isinstance(batch, ColumnBatch)]
    assert told.startswith("on rows: a sum of decimals that Python rounds")
    assert sum(map(len, on_columns)) == (0 if prec < 19 else 5)


def test_sums_that_are_0_have_the_sign_that_the_context_of_the_users_gives():
    batch = batch_of([(1, Decimal("1.50"), "a"), (1, Decimal("-1.50"), "b")], pa.decimal128(9, 2))
    with decimal.localcontext(rounding=decimal.ROUND_FLOOR), OperatorHarness(ColumnAggregateSpec(KEY, "sum", 1)) as h:
        h.process_batch(batch)
        assert rows_of(h) == run_rows("sum", [batch])
        assert str(h.output.rows[-1][1]) == "-0.00"


@pytest.mark.parametrize("in_files", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_state_of_18_digits_of_former_versions_is_restored_and_goes_on(kind, in_files, monkeypatch):
    """It lies below an increment of today, too, and beside state of today."""
    if in_files:
        monkeypatch.setattr(spilling_slots, "NUM_PARTITIONS", 4)
        monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 800)
        monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: held_bytes > 0)
    own = column_layout.held_kind

    def former(layout, index):
        kind = own(layout, index)
        return short_kind(kind) if pa.types.is_decimal128(kind) and index in layout.folded else kind

    before = Rows([(n, Decimal(n).scaleb(-3)) for n in range(6)], schema=SCHEMA)
    longs = [Rows([(n, Decimal(n * 10**24 + n).scaleb(-3, EXACT)) for n in span], schema=SCHEMA) for span in
             (range(2, 8), range(5), range(3, 9))]  # fmt: skip
    case = Case((ColumnAggregateSpec(KEY, kind, 1),), [before, *longs], (KEY,))
    run = Run(case, INCREMENTAL, None)
    with monkeypatch.context() as patched:
        patched.setattr(column_layout, "held_kind", former)
        run.start(2)
        run.play([before, MARK])
    run.start(2)
    run.play([longs[0], MARK])
    run.start(1)
    run.play([longs[1], MARK])
    run.start(3)
    run.play([longs[2]])
    assert not any(harness.head._is_on_rows or harness.head._slots.has_others for harness in run.harnesses)
    assert run.finish() == undisturbed(Case((KeyedAggregateSpec(KEY, kind, 1),), [before, *longs], (KEY,)))


@pytest.mark.parametrize("kind", [pa.int32(), pa.float32(), pa.decimal128(10, 2)], ids=str)
def test_records_and_sums_that_wait_at_a_barrier_are_in_one_chunk_whatever_their_types(kind, monkeypatch):
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 100_000)
    spec = ColumnAggregateSpec(KEY, "sum", 1)

    def batch(numbers):
        values = pa.array([Decimal(n) if pa.types.is_decimal(kind) else n for n in numbers], kind)
        return ColumnBatch(pa.record_batch([pa.array(numbers, pa.int64()), values], names=["k", "v"]))

    with OperatorHarness(spec, memory_bytes=1, clock=ManualClock()) as harness:
        for start in range(0, 6000, 1000):
            harness.process_batch(batch(range(start, start + 1000)))
        harness.head.process_idle(False)
        assert harness.head._slots.is_spilled
        num_sent = len(harness.output.rows)
        harness.process_batch(batch(range(200)))
        if harness.head._run is None:
            harness.head._begin_run()
        for _ in range(5):
            harness.head._step()
        harness.process_batch(batch(range(100)))
        taken, found = harness.snapshot(1), harness.output.rows[num_sent:]
    with OperatorHarness(spec, restored=[taken]) as harness:
        harness.head.on_timer(0)
        harness.end()
        assert all(isinstance(batch, ColumnBatch) for batch in harness.output.batches)
        found += harness.output.rows
    assert sorted(found) == sorted([(n, 2 * n) for n in range(200)] + [(n, 3 * n) for n in range(100)])


# --- kernels ----------------------------------------------------------------------------------------------------------


def ints_of(lanes):
    return [int(value.as_py()) for value in of_units(np.asarray(lanes), pa.decimal128(38, 0))]


@given(st.lists(st.tuples(st.integers(0, 2), INTEGERS), max_size=20), st.sampled_from([10**19, 10**28, 10**38]))
@example([(0, 10**38 - 1), (0, 10**38 - 1)], 10**38)
@example([(0, 2**126), (0, 2**126)], 10**38)
@example([(0, 1 - 10**38), (0, 1 - 10**38)], 10**38)
@example([(1, 1 - 2**70), (1, -1)], 2**70)
@settings(max_examples=60, deadline=None)
def test_lanes_are_added_and_compared_as_integers_are(rows, limit):
    slots = np.array([slot for slot, _ in rows], np.int32)
    with decimal.localcontext(prec=60):
        values = lanes_of(pa.array([Decimal(value) for _, value in rows], pa.decimal128(38, 0)))
    sums, after = np.zeros((3, 2), np.int64), np.empty((len(rows), 2), np.int64)
    done = decimal_kernels.running_sum_of_lanes(slots, values, lanes_of_int(limit), sums, after)
    expected, so_far = [], [0, 0, 0]
    for slot, value in rows:
        if abs(so_far[slot] + value) >= limit:
            break
        so_far[slot] += value
        expected.append(so_far[slot])
    assert (ints_of(after[:done]), ints_of(sums)) == (expected, so_far)
    for kernel, of in ((decimal_kernels.running_min_of_lanes, min), (decimal_kernels.running_max_of_lanes, max)):
        held = np.zeros((3, 2), np.int64)
        kernel(slots, values, held, after)
        assert ints_of(held) == [of([0, *(value for own, value in rows if own == slot)]) for slot in range(3)]
