"""Keyed aggregations that forget keys: on columns as on rows, through crashes, on the disk, and out of memory."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.core.clock import ManualClock
from engine.core.records import ColumnBatch
from engine.operators import memory_watch
from engine.operators.aggregate import KeyedAggregateSpec, KeyedReduceSpec
from engine.operators.column_aggregate import ColumnAggregateSpec, ColumnReduceSpec
from engine.operators.column_aggregate_operator import ColumnAggregateOperator
from engine.operators.keys import ComposedKey, FieldKey
from engine.state import slot_state, spilling_slots
from engine.state.slot_expiry import Expiry
from engine.state.slot_state import SlotState
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import MARK, Case, Rows, Wait
from tests.unit.operators.test_restore import FULL, INCREMENTAL, ROCKSDB
from tests.unit.operators.test_restore_columns import PHASES, disturbed, undisturbed

TTL_MS = 30
SCHEMA = pa.schema([("k", pa.int64()), ("v", pa.int64())])
#: Eight slots share a mark "changed", so more keys.
KEYS = st.one_of(st.none(), st.integers(0, 4), st.integers(0, 40))
ROWS = st.lists(st.tuples(KEYS, st.integers(-3, 3)), min_size=1, max_size=30)
STEPS = st.one_of(
    ROWS.map(lambda rows: Rows(rows, schema=SCHEMA)),
    st.sampled_from([1, 10, TTL_MS - 1, TTL_MS, TTL_MS + 1]).map(Wait),
    st.one_of(st.none(), st.integers(1, 3)),  # a barrier, perhaps a crash
)
SCRIPTS = st.lists(STEPS, max_size=20)
#: Most of the keys, when some of them have been cut.
EXPIRED_MEANWHILE = [
    Rows([(key, key) for key in range(40)], schema=SCHEMA),
    Wait(TTL_MS),
    Rows([(key, 1) for key in (9, 14, 50)], schema=SCHEMA),
    MARK,
    *(Rows([(key, 1) for key in (9, 14, 50)], schema=SCHEMA) for _ in range(5)),
]


@pytest.mark.parametrize("config", [FULL, INCREMENTAL], ids=["full", "incremental"])
@pytest.mark.parametrize("kind", ["sum", "min", "max_by"])
@pytest.mark.parametrize("key", [FieldKey(0), ComposedKey((0,))])
def test_a_key_without_records_begins_anew_as_on_rows(key, kind, config, monkeypatch):
    monkeypatch.setattr(slot_state, "_LOOK_MIN", 2)  # look for what has expired all the time

    @settings(max_examples=10, deadline=None, phases=PHASES)
    @given(SCRIPTS)
    def check(script):
        ours = disturbed(Case((ColumnAggregateSpec(key, kind, 1, ttl_ms=TTL_MS),), script, (key,)), config)
        rows = Case((KeyedAggregateSpec(key, kind, 1, ttl_ms=TTL_MS),), script, (key,))
        assert ours == undisturbed(rows)
        assert ours == modelled(kind, script)
        assert ours == disturbed(rows, config)

    check()


def modelled(kind: str, script: list) -> Counter[str]:
    """The obvious law: key → (record so far, time)."""
    held: dict = {}
    now_ms = 0
    out: Counter[str] = Counter()
    for step in script:
        if isinstance(step, Wait):
            now_ms += step.millis
        for key, value in step.rows if isinstance(step, Rows) else ():
            so_far, written_ms = held.get(key, (None, 0))
            if key not in held or written_ms + TTL_MS <= now_ms:
                so_far = value
            elif kind == "sum":
                so_far += value
            else:
                so_far = min(so_far, value) if kind == "min" else max(so_far, value)
            held[key] = so_far, now_ms
            out[f" {(key, so_far)} at None"] += 1
    return out


@pytest.mark.parametrize(("config", "cut_per_row"), [(FULL, 0), (FULL, 8), (INCREMENTAL, 0)])
def test_keys_on_disk_are_forgotten_too(config, cut_per_row, monkeypatch):
    """And those on their way there: with few slots cut for each row, barriers come before it is over."""
    monkeypatch.setattr(spilling_slots, "_PIECE_SLOTS", 8)
    monkeypatch.setattr(spilling_slots, "_CUT_PER_ROW", cut_per_row)
    monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 800)
    monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: held_bytes > 0)
    monkeypatch.setattr(slot_state, "_LOOK_MIN", 2)
    monkeypatch.setattr(spilling_slots, "NUM_PARTITIONS", 4)
    operator = ColumnAggregateOperator
    own = operator.prepare_snapshot

    def prepare_snapshot(self, checkpoint_id):
        self._take_up_all()
        own(self, checkpoint_id)

    monkeypatch.setattr(operator, "prepare_snapshot", prepare_snapshot)

    @settings(max_examples=15, deadline=None, phases=PHASES)
    @given(SCRIPTS)
    @example(EXPIRED_MEANWHILE)
    def check(script):
        # Rows that wait for others are written when they are taken up: here, at a barrier before the time goes on.
        script = [part for step in script for part in ([MARK, step] if isinstance(step, Wait) else [step])]
        ours = disturbed(Case((ColumnAggregateSpec(FieldKey(0), "sum", 1, ttl_ms=TTL_MS),), script), config)
        assert ours == modelled("sum", script)

    check()


@pytest.mark.parametrize("kind", ["sum", "max_by"])
def test_an_increment_has_a_record_that_changes_but_the_time(kind):
    script = [
        Rows([(1, 5)], schema=SCHEMA),
        None,
        Wait(20),
        Rows([(1, 0)], schema=SCHEMA),
        1,  # goes on from the increment
        Wait(15),
        Rows([(1, 0)], schema=SCHEMA),
    ]
    case = Case((ColumnAggregateSpec(FieldKey(0), kind, 1, ttl_ms=TTL_MS),), script)
    assert disturbed(case, INCREMENTAL) == Counter({" (1, 5) at None": 3})


def test_what_changed_is_known_of_slots_that_have_got_other_numbers():
    clock = ManualClock(1000)
    state = SlotState(128, is_tuple=False, expiry=Expiry(10, clock))
    state.define([pa.int64()], {"value": pa.int64()})
    for start, end in ((0, 100), (100, 190)):
        clock.advance(10)
        keys = pa.array(np.arange(start, end))
        slots, first = state.find([keys])
        state.touch(slots, first)
        state.columns["value"].put(slots, keys)
    state.begin_epoch(1)
    clock.advance(5)
    for epoch, key in ((2, 100), (3, 170)):
        slots, first = state.find([pa.array([key])])
        state.touch(slots, first)
        state.mark(slots)
        state.begin_epoch(epoch)
    assert state.give_back_expired(is_epoch_over=True)
    assert state.num_slots == 90
    for since, keys in ((1, {100, 170}), (2, {170}), (3, set())):
        changed = state.table.keys_of(state.changed_since(since))[0].to_pylist()
        assert keys <= set(changed)
        assert len(changed) <= 16 * len(keys)  # eight share a mark, then two times eight


def test_a_reduce_of_users_forgets_too_on_rocksdb_as_in_memory():
    def add(so_far, record):
        return (so_far[0], so_far[1] + record[1])

    script = [Rows([(1, 2), (1, 3)], schema=SCHEMA), Wait(TTL_MS), Rows([(1, 5), (2, 1)], schema=SCHEMA)]
    expected = Counter(f" {row} at None" for row in [(1, 2), (1, 5), (1, 5), (2, 1)])
    for spec in (KeyedReduceSpec(FieldKey(0), add, ttl_ms=TTL_MS), ColumnReduceSpec(FieldKey(0), add, ttl_ms=TTL_MS)):
        for config in (FULL, ROCKSDB):
            assert disturbed(Case((spec,), script), config) == expected


def test_expired_slots_give_back_their_memory_and_are_in_no_snapshot():
    clock = ManualClock(1000)
    spec = ColumnAggregateSpec(FieldKey(0), "sum", 1, ttl_ms=TTL_MS)
    with OperatorHarness(spec, clock=clock, config=INCREMENTAL) as harness:
        full = harness.snapshot(1)
        for start in range(0, 1_000_000, 50_000):
            keys = np.arange(start, start + 50_000)
            harness.process_batch(ColumnBatch(pa.record_batch([pa.array(keys), pa.array(keys)], schema=SCHEMA)))
            clock.advance(TTL_MS // 3)
        state = harness.contexts[0].state.keyed["slots"]
        assert state.num_entries() <= 400_000  # three batches live at a time; looked at when it has doubled
        clock.advance(TTL_MS)
        second = harness.snapshot(2, since=full)
        assert state.num_entries() == 0
        assert not any(layer for layers in second.layers[0].values() for layer in layers)


def test_state_without_times_counts_as_written_when_it_is_restored_and_the_other_way_round():
    clock = ManualClock(1000)
    rows = pa.record_batch([pa.array([1, 2]), pa.array([5, 6])], schema=SCHEMA)
    plain, expiring = ColumnAggregateSpec(FieldKey(0), "sum", 1), ColumnAggregateSpec(FieldKey(0), "sum", 1, ttl_ms=9)
    for before, after, wait_ms in ((plain, expiring, 0), (expiring, plain, 100)):
        with OperatorHarness(before, clock=clock) as harness:
            harness.process_batch(ColumnBatch(rows))
            taken = harness.snapshot(1)
        clock.advance(100)
        with OperatorHarness(after, clock=clock, restored=[taken]) as harness:
            clock.advance(wait_ms)
            harness.process_batch(ColumnBatch(rows))
            assert harness.output.rows == [(1, 10), (2, 12)]
