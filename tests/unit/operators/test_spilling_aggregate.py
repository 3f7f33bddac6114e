"""Keyed aggregations whose state is more than their share of memory: partitions in files, and nobody notices."""

from __future__ import annotations

import contextlib
import gc
import os
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.clock import ManualClock
from engine.core.records import ColumnBatch
from engine.operators import held_rows, memory_watch
from engine.operators.aggregate import KeyedAggregateSpec
from engine.operators.column_aggregate import ColumnAggregateSpec
from engine.operators.held_part import HELD_PART
from engine.operators.keys import ComposedKey, FieldKey
from engine.state import spilling_slots
from engine.state.key_groups import key_group_of
from engine.state.parts import DeltaPart
from engine.state.slot_state import SlotState
from engine.state.spilling_slots import SpillingSlots
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import Case
from tests.unit.operators.test_restore import FULL, INCREMENTAL
from tests.unit.operators.test_restore_columns import PHASES, TIMED_SCRIPTS, disturbed, undisturbed

pytestmark = pytest.mark.usefixtures("few_partitions")
SUM = ColumnAggregateSpec(FieldKey(0), "sum", 1)


@pytest.fixture
def few_partitions(monkeypatch):
    """So that there are many keys in each, and tests are quick; little state is cut in many pieces, too, and few rows
    wait in many blocks."""
    monkeypatch.setattr(spilling_slots, "NUM_PARTITIONS", 6)
    monkeypatch.setattr(spilling_slots, "_PIECE_SLOTS", 16)
    monkeypatch.setattr(held_rows, "_BLOCK_ROWS", 5)


@pytest.mark.parametrize("config", [FULL, INCREMENTAL], ids=["full", "incremental"])
@pytest.mark.parametrize(("kind", "final"), [("sum", False), ("sum", True), ("min", False), ("max_by", False)])
@pytest.mark.parametrize(("key", "cut_per_row"), [(FieldKey(0), 8), (ComposedKey((0,)), 0)])
def test_after_any_script_results_are_those_of_rows(key, cut_per_row, kind, final, config, monkeypatch):
    monkeypatch.setattr(spilling_slots, "_PIECE_SLOTS", 2)
    monkeypatch.setattr(spilling_slots, "_CUT_PER_ROW", cut_per_row)
    monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 800)
    monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: held_bytes > 0)

    @settings(max_examples=6, deadline=None, phases=PHASES)
    @given(TIMED_SCRIPTS)
    def check(script):
        ours = disturbed(Case((ColumnAggregateSpec(key, kind, 1, final),), script, (key,)), config)
        assert ours == undisturbed(Case((KeyedAggregateSpec(key, kind, 1, final),), script, (key,)))

    check()


def batch_of(keys, values, *, texts: bool = False) -> ColumnBatch:
    column = pa.array(keys, pa.int64())
    if texts:
        column = pa.array([None if key == 7 else f"key {key}" for key in keys], pa.string())
    columns = pa.record_batch([column, pa.array(values, pa.int64()), pa.array(map(str, values))], names=["k", "v", "s"])
    return ColumnBatch(columns, np.array(values, np.int64))


@pytest.mark.parametrize("texts", [False, True])
@pytest.mark.parametrize("parallelism", [1, 128])
def test_results_and_watermarks_come_in_the_order_of_the_records(texts, parallelism, monkeypatch):
    """Also where a subtask has but one key group, or is sent keys of others."""
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 1)

    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=20), max_size=8), st.integers(1, 4))
    def check(keys_by_batch, every):
        harnesses = [
            OperatorHarness(SUM, memory_bytes=memory_bytes, clock=ManualClock(), parallelism=parallelism)
            for memory_bytes in (6000, 1 << 30)
        ]
        for harness in harnesses:
            with harness:
                value = 0
                for number, keys in enumerate(keys_by_batch):
                    harness.process_batch(batch_of(keys, list(range(value, value + len(keys))), texts=texts))
                    value += len(keys)
                    if number % every == 0:
                        harness.watermark(value)
                harness.end()
        stories = [
            [step if isinstance(step, int) else row for step in h.output.story for row in _rows_of(step)]
            for h in harnesses
        ]
        assert stories[0] == stories[1]
        assert harnesses[0].output.timestamps_ms == harnesses[1].output.timestamps_ms

    check()


def _rows_of(step):
    return [step] if isinstance(step, int) else step.to_rows().rows


def test_rows_wait_for_others_but_not_for_long(monkeypatch):
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 200_000)
    clock = ManualClock()
    with OperatorHarness(SUM, memory_bytes=1, clock=clock) as harness:
        assert harness.head.next_timer_ms() is None
        for start in range(0, 12_000, 2000):
            harness.process_batch(batch_of(range(start, start + 2000), range(2000)))
        assert harness.head._slots.is_spilled
        harness.head.process_idle(False)  # takes up all
        told = len(harness.output.rows)
        harness.process_batch(batch_of([5], [1]))
        harness.watermark(3)
        assert len(harness.output.rows) == told
        assert not harness.output.watermarks_ms
        clock.advance(50)
        assert harness.head.next_timer_ms() <= clock.now_ms()
        harness.head.on_timer(clock.now_ms())
        assert len(harness.output.rows) == told + 1
        assert harness.output.watermarks_ms == [3]
        assert harness.head.next_timer_ms() is None
        harness.watermark(4)
        assert harness.output.watermarks_ms == [3, 4]


def test_an_increment_of_state_on_disk_has_what_changed_and_a_child_reads_it_as_it_was(monkeypatch):
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 200_000)
    with OperatorHarness(SUM, memory_bytes=1) as harness:
        for start in range(0, 20_000, 2000):
            harness.process_batch(batch_of(range(start, start + 2000), [1] * 2000))
        harness.head.process_idle(False)
        full = harness.snapshot(1)
        slots = harness.head._slots
        assert slots.is_spilled
        assert slots.num_changed(1, 10) == 0
        harness.process_batch(batch_of(range(5), [10] * 5))
        harness.head.process_idle(False)
        second = harness.snapshot(2, since=full)
        part = second.layers[0]["slots"]
        assert len(part) == 2
        assert sum(map(len, part[1].values())) < sum(map(len, part[0].values())) / 20
        before = dict(slots.lazy_snapshot(range(128)))
        as_it_was = slots.lazy_snapshot(range(128))
        incoming, outgoing = os.pipe()
        child = os.fork()
        if not child:
            os.read(incoming, 1)  # until the parent has rewritten everything
            os._exit(0 if dict(as_it_was) == before else 1)
        for start in range(0, 20_000, 2000):
            harness.process_batch(batch_of(range(start, start + 2000), [1] * 2000))
        harness.head.process_idle(False)
        assert dict(slots.lazy_snapshot(range(128))) != before
        os.write(outgoing, b"x")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        os.close(incoming)
        os.close(outgoing)
    with OperatorHarness(SUM, restored=[second], memory_bytes=1) as restored:
        assert restored.head._slots.is_spilled  # it never was in memory as a whole
        restored.process_batch(batch_of([*range(10)], [0] * 10))
        restored.head.process_idle(False)
        assert [value for _, value, _ in restored.output.rows] == [11] * 5 + [1] * 5


def test_state_is_cut_between_batches_and_barriers_meanwhile_are_exact(monkeypatch):
    """None of the batches looks at more slots than it has to; counts work, as times are no claim on a busy machine."""
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 200_000)
    monkeypatch.setattr(spilling_slots, "_PIECE_SLOTS", 128)
    monkeypatch.setattr(spilling_slots, "_CUT_PER_ROW", 2)
    cut: list[int] = []
    add_piece = spilling_slots._CutSlots.add_piece

    def counted(self, partitions_of):
        before = self.num_slots
        add_piece(self, partitions_of)
        cut.append(self.num_slots - before)

    monkeypatch.setattr(spilling_slots._CutSlots, "add_piece", counted)
    rng = np.random.default_rng(7)
    sums: dict[int, int] = {}
    snapshots, expected, taken_while = [], [], []
    with OperatorHarness(SUM, memory_bytes=1, clock=ManualClock()) as harness:
        slots, number = harness.head._slots, 0
        while not slots.is_spilled or len(snapshots) < 40:
            is_early = not slots.is_being_cut and not slots.is_spilled
            size = 1000 if is_early else 100
            keys = np.arange(number * 1000, number * 1000 + size) if is_early else rng.integers(0, 6000, size)
            before = len(cut)
            harness.process_batch(batch_of(keys.tolist(), [1] * size))
            assert sum(cut[before:]) <= 2 * size + 128
            for key in keys.tolist():
                sums[key] = sums.get(key, 0) + 1
            number += 1
            if not is_early:
                since = snapshots[-1] if snapshots else None
                snapshots.append(harness.snapshot(number, since=since))
                expected.append(dict(sums))
                taken_while.append(slots.is_being_cut)
        assert sum(taken_while) > 5
        assert [snapshot.num_deltas for snapshot in snapshots[:5]] == [0, 1, 1, 1, 1]  # of the slots
    for at in (0, 3, sum(taken_while), len(snapshots) - 1):
        for parallelism, memory_bytes in ((1, 1), (3, 64 << 20)):
            found = {}
            for index in range(parallelism):
                restored = [snapshots[at]]
                with OperatorHarness(
                    SUM, restored=restored, subtask_index=index, parallelism=parallelism, memory_bytes=memory_bytes
                ) as again:
                    again.process_batch(batch_of([], []))
                    own = [key for key in expected[at] if key_group_of(key, 128) in groups(again)]
                    again.process_batch(batch_of(own, [0] * len(own)))
                    again.end()
                    found |= {key: value for key, value, _ in again.output.rows}
            assert found == expected[at]


@pytest.mark.parametrize(("kind", "seed"), [("sum", 1), ("min", 2), ("max_by", 3)])
def test_children_read_what_was_there_at_their_forks_while_pages_of_files_change(kind, seed, monkeypatch):
    """Keys come, texts and none, then the same ones change; values are any floats."""
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 300_000)
    rng = random.Random(seed)
    floats = [0.0, -0.0, float("nan"), float("inf"), *(rng.uniform(-9, 9) for _ in range(20))]
    kept = [None, "", "ä", "value"]
    children = []
    with (
        OperatorHarness(ColumnAggregateSpec(FieldKey(0), kind, 1), memory_bytes=1) as ours,
        OperatorHarness(KeyedAggregateSpec(FieldKey(0), kind, 1)) as model,
    ):
        slots = ours.head._slots
        for number in range(16):
            num_keys = min(12_000, 1500 * (number + 1))
            keys = [None if rng.random() < 0.01 else f"key {rng.randrange(num_keys)}" for _ in range(3000)]
            values = rng.choices(floats, k=3000)
            more = rng.choices(kept, k=3000)
            columns = pa.record_batch([pa.array(each) for each in (keys, values, more)], names=["f0", "f1", "f2"])
            for harness in (ours, model):
                harness.process_batch(ColumnBatch(columns))
            if number % 3 == 2:
                ours.head._take_up_all()
            if number in (5, 8, 9, 12):
                if number % 2:
                    slots.begin_epoch(number)  # else it is a savepoint, behind which nothing says that there was one
                before, as_it_was = dict(slots.lazy_snapshot(range(128))), slots.lazy_snapshot(range(128))
                incoming, outgoing = os.pipe()
                if not (child := os.fork()):
                    os.close(outgoing)
                    os.read(incoming, 1)  # until the parent has gone on
                    os._exit(0 if dict(as_it_was) == before else 1)
                children.append((child, incoming, outgoing))
        ours.head.process_idle(False)
        assert slots.is_spilled
        assert dict(slots.lazy_snapshot(range(128))) != before
        assert [*map(repr, ours.output.rows)] == [*map(repr, model.output.rows)]
    for child, incoming, outgoing in children:
        os.write(outgoing, b"x")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        os.close(incoming)
        os.close(outgoing)


def test_memory_and_files_stay_bounded(monkeypatch):
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 1 << 20)
    with OperatorHarness(SUM, memory_bytes=1) as harness:
        for start in range(0, 100_000, 10_000):
            harness.process_batch(batch_of(range(start, start + 10_000), range(10_000)))
        slots = harness.head._slots
        assert slots.num_entries() > 50_000
        assert slots.nbytes < 1 << 18
        assert not os.listdir(harness.contexts[0].work_dir)  # nothing is left behind, whatever becomes of the process
        assert 0 < _mapped() <= spilling_slots.NUM_PARTITIONS
    gc.collect()
    assert _mapped() == 0


@pytest.mark.parametrize(("num_fields", "number"), [(2, 128), (8, 64), (30, 32), (200, 32)])
def test_there_are_fewer_partitions_where_a_pass_has_fewer_rows(num_fields, number, monkeypatch):
    monkeypatch.setattr(spilling_slots, "NUM_PARTITIONS", 128)
    monkeypatch.setattr(spilling_slots, "_ROWS_PER_PARTITION", 32)
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 1 << 20)
    with OperatorHarness(SUM, memory_bytes=1) as harness:
        values = pa.array(range(4000))
        names = [f"f{index}" for index in range(num_fields)]
        for start in range(0, 60_000, 4000):
            keys = pa.array(range(start, start + 4000))
            batch = pa.RecordBatch.from_arrays([keys, *[values] * (num_fields - 1)], names=names)
            harness.process_batch(ColumnBatch(batch))
            if harness.head._slots.is_spilled:
                break
        harness.process_batch(ColumnBatch(batch))
        harness.head.process_idle(False)
        assert harness.head._slots.num_entries() == start + 4000
        assert len(harness.head._slots._partitions) == number
        assert {row[1] for row in harness.output.rows[-4000:]} == {2 * value for value in range(4000)}


def spilled_with(num_held: int, *, steps: int = 0) -> OperatorHarness:
    """6000 keys in files, then records that wait, the first of them perhaps taken up in part."""
    harness = OperatorHarness(SUM, memory_bytes=1, clock=ManualClock())
    with contextlib.ExitStack() as stack:
        stack.enter_context(harness)
        for start in range(0, 6000, 1000):
            harness.process_batch(batch_of(range(start, start + 1000), [1] * 1000))
        harness.head.process_idle(False)
        harness.process_batch(batch_of(range(num_held), range(num_held)))
        if steps and harness.head._run is None:
            harness.head._begin_run()
        for _ in range(steps):
            harness.head._step()
        stack.pop_all()
    return harness


@pytest.mark.parametrize("steps", [0, 2])
def test_a_barrier_takes_up_nothing_however_much_is_held(steps, monkeypatch):
    """Counts work, as times are no claim on a busy machine."""
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 200_000)
    done = []
    for owner, name in ((SlotState, "find"), (SlotState, "pieces"), (SpillingSlots, "load"), (SpillingSlots, "_read")):
        own = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, _own=own, _name=name, **k: (done.append(_name), _own(*a, **k))[1])
    for num_held in (10, 2000):
        harness = spilled_with(num_held, steps=steps)
        assert harness.head._num_waiting() == num_held
        emitted = len(harness.output.rows)
        done.clear()
        harness.head.prepare_snapshot(2)
        harness.head.snapshot_state(2)
        for part in harness.contexts[0].state.keyed.values():
            part.num_entries()
            if isinstance(part, DeltaPart):
                part.num_changed(1, 1 << 30)
                part.begin_epoch(2)
                part.forget_epochs(2)
        assert not done
        assert len(harness.output.rows) == emitted
        harness.__exit__()


@pytest.mark.parametrize("steps", [0, 2, 6, 7])
@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("memory_bytes", [1, 64 << 20])
def test_what_waited_at_a_barrier_is_sent_and_taken_up_once(steps, parallelism, memory_bytes, monkeypatch):
    """Whatever of it had been taken up and sent on; by subtasks that keep all in memory, too."""
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 100_000)
    harness = spilled_with(500, steps=steps)
    sent = harness.output.rows[6000:]
    snapshot = harness.snapshot(1)
    harness.__exit__()
    for index in range(parallelism):
        with OperatorHarness(
            SUM, restored=[snapshot], subtask_index=index, parallelism=parallelism, memory_bytes=memory_bytes
        ) as restored:
            again = restored.snapshot(2)  # before anything has come
            assert again.layers[0][HELD_PART] == [
                {group: chunk for group, chunk in snapshot.layers[0][HELD_PART][0].items() if group in groups(restored)}
            ]
            if snapshot.layers[0][HELD_PART] != [{}]:
                assert restored.head.next_timer_ms() is not None
                restored.head.on_timer(0)
            assert not restored.head._held_part.is_restored
            restored.end()
            sent += restored.output.rows
    assert sorted(sent) == sorted((key, 1 + key, "1") for key in range(500))


def groups(harness) -> range:
    return harness._key_groups()


def test_rows_go_on_with_what_waited_on_columns(monkeypatch):
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 100_000)
    harness = spilled_with(500, steps=3)
    sent = harness.output.rows[6000:]
    snapshot = harness.snapshot(1)
    harness.__exit__()
    with OperatorHarness(KeyedAggregateSpec(FieldKey(0), "sum", 1), restored=[snapshot]) as rows:
        rows.head.on_timer(rows.head.next_timer_ms())
        assert rows.head.next_timer_ms() is None
        rows.process([(3, 10, "x")])
        *waited, last = rows.output.rows
    assert sorted([*sent, *waited]) == sorted((key, 1 + key, "1") for key in range(500))
    assert last == (3, 14, "1")


def _mapped() -> int:
    return sum("slots-" in line or "/#" in line for line in Path("/proc/self/maps").read_text().splitlines())
