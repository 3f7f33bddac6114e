"""Windows on columns whose state is more than their share of memory: slices in files, and nobody notices."""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.checkpoint.column_tables import column_entries
from engine.core.errors import UserCodeError
from engine.core.records import ColumnBatch
from engine.datastream.aggregates import avg, count, count_distinct, max_, sum_
from engine.operators import memory_watch, spilled_panes, spilling_windows, window_state
from engine.operators.aggregate import FieldAggregate
from engine.operators.column_folds import shape_of_schema
from engine.operators.column_window import column_window
from engine.operators.field_aggregates import WindowRecord
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.spilled_panes import SpilledPanes
from engine.operators.window import WindowSpec
from engine.operators.window_contents import AggregateFold, ReduceFold
from engine.operators.window_functions import window_call
from engine.operators.window_state import WindowState
from engine.time.assigners import TumblingEventTimeWindows
from engine.time.triggers import EventTimeTrigger
from engine.time.windows import TIME_MAX_MS
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators import test_column_window_folds
from tests.unit.operators.restore_cases import Case, Rows, Watermark
from tests.unit.operators.test_column_window import (
    AGGREGATES,
    ASSIGNERS,
    FLOATS,
    STEP,
    built_in,
    columns,
    play,
    windows,
)
from tests.unit.operators.test_restore import FULL
from tests.unit.operators.test_restore_columns import PHASES, TIMED_SCRIPTS, WINDOWS, disturbed, undisturbed

ALL = ("tumbling", "sliding", "gaps", "cumulating")


@pytest.fixture(params=["all", "in pieces", "some"])
def little_memory(request, monkeypatch):
    """Slices go to files after every batch, and records wait for hardly any others; or they go there key by key with
    further batches, or when there are several slices, and records wait in memory for many."""
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 1)
    monkeypatch.setattr(spilling_windows, "NUM_PARTITIONS", 4)
    monkeypatch.setattr(spilled_panes, "_RECORDS_MIN", 3)
    monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 400)
    if request.param == "in pieces":
        monkeypatch.setattr(spilling_windows, "_MOVED_BYTES_MAX", 1)
    if request.param != "some":
        monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: held_bytes > 0)
    else:
        monkeypatch.setattr(spilling_windows, "_WAITING_SHARE", 100)
        monkeypatch.setattr(spilling_windows.SpillingWindows, "has_too_much", lambda self: len(self.state.panes) > 1)
        monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: False)

        def make_room(self, order):
            self.evict(sorted(self.state.panes, key=order)[1:])

        monkeypatch.setattr(spilling_windows.SpillingWindows, "make_room", make_room)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("lateness_ms", [0, 7])
@pytest.mark.parametrize("kind", ALL)
def test_windows_in_files_give_what_those_of_rows_give(kind, lateness_ms):
    key = ComposedKey((0, 3)) if lateness_ms else FieldKey(0)
    aggregates = [a for a in AGGREGATES if kind == "tumbling" or a.kind not in ("first", "last")]
    if kind != "tumbling" and lateness_ms:
        aggregates = [a for a in aggregates if a.kind != "count_distinct"]
    rows = built_in(ASSIGNERS[kind], aggregates, key, lateness_ms=lateness_ms, late_tag="late")
    spec = column_window(rows)

    @settings(max_examples=7, deadline=None, phases=PHASES)
    @given(st.lists(STEP, max_size=7))
    def check(steps):
        assert play(spec, steps, zeros_alike=kind != "tumbling") == play(rows, steps, zeros_alike=kind != "tumbling")

    check()


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("lateness_ms", [0, 9])
@pytest.mark.parametrize("name", WINDOWS)
def test_after_any_script_with_crashes_and_other_parallelisms_results_are_those_of_rows(name, lateness_ms):
    """Sums beyond 64 bits, other types and rows among them; every second operator keeps its state in memory."""
    key = ComposedKey((0, 1)) if lateness_ms else FieldKey(0)
    assigner, fold = WINDOWS[name]
    function = None if isinstance(fold, ReduceFold) else WindowRecord(2 if lateness_ms else 1)
    rows = WindowSpec((key,), assigner, EventTimeTrigger(), window_call(function), fold, None, lateness_ms, "late")
    columnar = column_window(rows)
    if columnar is None:
        return

    @settings(max_examples=5, deadline=None, phases=PHASES)
    @given(TIMED_SCRIPTS)
    def check(script):
        assert disturbed(Case((columnar,), script, (key,)), FULL) == undisturbed(Case((rows,), script, (key,)))

    check()


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("field", [1, 2])
@pytest.mark.parametrize("kind", ["sum", "min", "max_by"])
def test_results_that_are_records_are_those_of_rows(kind, field):
    """A null in what is compared or added is left to rows, when it comes and not when the window fires."""
    rows = windows(ASSIGNERS["tumbling"], ReduceFold(FieldAggregate(kind, field)), lateness_ms=7)

    @settings(max_examples=7, deadline=None, phases=PHASES)
    @given(st.lists(STEP, max_size=6), st.booleans())
    def check(steps, has_nulls):
        if not has_nulls or kind == "sum":
            steps = [
                [((row[0], row[1] or 0, 0.0 if row[2] is None else row[2], row[3]), stamp) for row, stamp in step]
                if isinstance(step, list)
                else step
                for step in steps
            ]
        assert outcome(column_window(rows), steps) == outcome(rows, steps)

    check()


def outcome(spec, steps):
    try:
        return play(spec, steps)
    except UserCodeError as error:  # a None is compared
        return str(error)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("kind", ["tumbling", "sliding"])
def test_sums_that_may_leave_64_bits_go_on_as_python_integers(kind):
    rows = built_in(ASSIGNERS[kind], [sum_(1), count(), avg(1), sum_(2)], lateness_ms=7, late_tag="late")
    large = st.one_of(st.none(), st.integers(-5, 5), st.sampled_from([2**63 - 1, -(2**63), 2**62, 2**60]))
    row = st.tuples(st.one_of(st.none(), st.integers(0, 1)), large, FLOATS, st.just("a"))
    step = st.one_of(st.lists(st.tuples(row, st.integers(-25, 45)), min_size=1, max_size=8), st.integers(-20, 60))

    # A late record's windows are in memory, until the next one's take a slice of theirs to files.
    chained = [21, [((0, 1, 1.0, "a"), 20)], [((0, 1, 1.0, "a"), 11), ((0, 1, 1.0, "a"), 15)]]

    @settings(max_examples=10, deadline=None, phases=PHASES)
    @given(st.lists(step, max_size=7))
    @example(chained)
    def check(steps):
        assert play(column_window(rows), steps, zeros_alike=True) == play(rows, steps, zeros_alike=True)

    check()


@pytest.mark.usefixtures("little_memory")
def test_a_users_fold_is_folded_when_its_window_fires():
    schema = test_column_window_folds.SCHEMA
    rows = test_column_window_folds.spec_of(AggregateFold(test_column_window_folds.CountSumMax()))
    columnar = column_window(rows, shape_of_schema(schema))
    assert columnar.seeds is not None
    script = []
    for at in range(40):
        records = [(key, at, key * at / 2, "s") for key in range(at % 5 + 1)]
        script.append(Rows(records, [at // 2 + 3 * (at % 4)] * len(records), schema=schema))
        script += [Watermark(at // 2 - 4)] * (at % 3 == 0) + [2] * (at == 17) + [1] * (at == 29)
    script.append(Watermark(TIME_MAX_MS))
    assert disturbed(Case((columnar,), script), FULL) == undisturbed(Case((rows,), script))


# --- how much memory, and when

BY_KEY = built_in(TumblingEventTimeWindows(1000, 0), [count(), sum_(1), max_(2), count_distinct(3)])


def many(start: int, size: int, stamp: int) -> ColumnBatch:
    """Records of keys by chance, whatever batches they come in."""
    keys = np.arange(start, start + size) * 7919 % 20_011
    rows = [(int(key), 1, float(key), "ab"[key % 2]) for key in keys]
    return columns(rows, [stamp] * size)


@pytest.fixture
def share_of_200_kb(monkeypatch):
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 200_000)
    monkeypatch.setattr(spilling_windows, "NUM_PARTITIONS", 8)


@pytest.mark.usefixtures("share_of_200_kb")
def test_memory_stays_bounded_and_files_go_with_their_windows():
    with OperatorHarness(column_window(BY_KEY), memory_bytes=1) as harness, OperatorHarness(BY_KEY) as model:
        operator = harness.head
        for number in range(16):
            for own in (harness, model):
                own.process_batch(many(number * 2000, 2000, 500 + 1000 * (number % 2)))
            windows = operator._windows
            assert windows.nbytes < (300_000 if windows._moving else 200_000)  # others grow while slices leave
        assert operator._spilled.starts() == [0, 1000]
        assert operator._windows.num_entries() > 20_000
        assert not os.listdir(harness.contexts[0].work_dir)  # nothing is left behind, whatever becomes of the process
        assert _mapped() > 0
        for watermark_ms in (999, 5000):
            for own in (harness, model):
                own.watermark(watermark_ms)
            assert sorted(harness.output.rows) == sorted(model.output.rows)
        assert not operator._spilled
        assert operator._state.nbytes < 10_000
        gc.collect()
        assert _mapped() == 0
        harness.process_batch(many(0, 100, 7500))  # there is room again
        assert operator._state.panes
        assert not operator._spilled


def test_a_slice_that_is_folded_for_one_window_is_whole_for_the_next(monkeypatch):
    """Some of its records lie in files by then, some are in memory still, some come between the two windows."""
    monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 1 << 20)
    rows = built_in(ASSIGNERS["sliding"], [count(), sum_(1), count_distinct(3)])
    with OperatorHarness(column_window(rows)) as harness, OperatorHarness(rows) as model:
        windows_of = harness.head._windows
        for number in range(6):
            for own in (harness, model):
                own.process_batch(columns([(key, number, 0.5, f"{number}") for key in range(9)], [8] * 9))
            if number == 0:
                windows_of.evict([8])
            elif number in (1, 3):
                windows_of.spilled.flush()
            elif number in (2, 4):
                assert windows_of.spilled.has_records(8, range(128))
                assert windows_of.spilled.has_tail([8])
                for own in (harness, model):
                    own.watermark(9 if number == 2 else 13)
        for own in (harness, model):
            own.watermark(1000)
        assert harness.output.rows
        assert sorted(harness.output.rows) == sorted(model.output.rows)


@pytest.mark.parametrize("how", ["fires", "whole", "increment", "on rows"])
def test_records_of_a_slice_on_its_way_to_files_count_once(how, monkeypatch):
    """Some keys are in files, some still in memory; records of both are written before the rest of the slice is."""
    monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 1 << 20)
    monkeypatch.setattr(spilling_windows, "_MOVED_BYTES_MAX", 1)
    rows = built_in(ASSIGNERS["tumbling"], [count(), sum_(1), count_distinct(3)])
    with OperatorHarness(column_window(rows)) as harness, OperatorHarness(rows) as model:
        windows_of = harness.head._windows
        for number in range(5):
            for own in (harness, model):
                own.process_batch(columns([(key, number, 0.5, f"{number}") for key in range(20)], [8] * 20))
            if number == 0:
                full = harness.snapshot(1)
                windows_of.make_room(lambda start: start)
            windows_of.spilled.flush()
            assert windows_of._moving
        assert windows_of.num_entries() > 20
        if how == "on rows":
            harness.process([(3, 10, 0.5, "x")], [8])
            model.process([(3, 10, 0.5, "x")], [8])
        elif how != "fires":
            taken = harness.snapshot(2, since=full if how == "increment" else None)
            assert taken.num_deltas == (how == "increment")
            with OperatorHarness(column_window(rows), restored=[taken]) as restored:
                restored.watermark(1000)
                found = restored.output.rows
        for own in (harness, model):
            own.watermark(1000)
        assert len(model.output.rows) == 20
        assert sorted(harness.output.rows) == sorted(model.output.rows)
        if how in ("whole", "increment"):
            assert sorted(found) == sorted(model.output.rows)


def test_keys_stay_where_they_are_while_a_slice_goes_to_files(monkeypatch):
    monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 1 << 20)
    monkeypatch.setattr(spilling_windows, "_MOVED_BYTES_MAX", 1)
    monkeypatch.setattr(window_state, "_COMPACT_SLOTS_MIN", 1)
    rows = built_in(ASSIGNERS["tumbling"], [count(), sum_(1)])
    with OperatorHarness(column_window(rows)) as harness, OperatorHarness(rows) as model:
        for own in (harness, model):
            for begin, end, time_ms in ((0, 200, 8), (150, 210, 1008)):
                records = [(key, 1, 0.5, "") for key in range(begin, end)]
                own.process_batch(columns(records, [time_ms] * len(records)))
        windows_of = harness.head._windows
        windows_of.make_room(lambda start: start)
        windows_of.step()
        (moving,) = windows_of._moving
        assert moving > 1000 - 20
        num_keys = windows_of.state._table.num_slots
        for own in (harness, model):
            own.watermark(900)  # most keys are in no slice any more
        assert windows_of.state._table.num_slots == num_keys
        for own in (harness, model):
            own.watermark(5000)
        assert sorted(harness.output.rows) == sorted(model.output.rows)


def test_windows_that_fire_next_stay_in_memory(monkeypatch):
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 1_000_000)
    with OperatorHarness(column_window(BY_KEY), memory_bytes=1) as harness:
        for number in range(12):
            harness.process_batch(many(number * 1000, 1000, 1000 * number))
            assert 0 in harness.head._state.panes
        assert len(harness.head._spilled.starts()) > 3


@pytest.mark.usefixtures("share_of_200_kb")
def test_records_that_are_many_beside_their_keys_are_folded_before_the_window_fires(monkeypatch):
    monkeypatch.setattr(spilled_panes, "_RECORDS_MIN", 10_000)
    with OperatorHarness(column_window(BY_KEY), memory_bytes=1) as harness:
        for number in range(100):
            harness.process_batch(many(number * 2000, 2000, 500))
            assert harness.head._spilled.num_rows < 8 * 20_011
        assert harness.head._spilled
        assert len(harness.head._spilled._panes[0].segments) < 100  # what was folded is not kept
        harness.watermark(999)
        assert len(harness.output.rows) == 20_011
        assert sum(row[3] for row in harness.output.rows) == 200_000


@pytest.mark.usefixtures("share_of_200_kb")
def test_a_barrier_reads_writes_and_folds_nothing_and_a_child_reads_the_windows_as_they_were(monkeypatch):
    with OperatorHarness(column_window(BY_KEY), memory_bytes=1) as harness:
        for number in range(8):
            harness.process_batch(many(number * 2000, 2000, 500 + 1000 * (number % 2)))
        part = harness.contexts[0].state.keyed["window-slots"]
        assert part.spilled
        done = []
        for owner in (SpilledPanes, WindowState):
            for name, own in list(vars(owner).items()):
                if callable(own) and name in ("rows_of", "_written", "take_up", "_rows_of", "drop"):
                    monkeypatch.setattr(
                        owner, name, lambda *a, _own=own, _name=name, **k: (done.append(_name), _own(*a, **k))[1]
                    )
        harness.head.prepare_snapshot(1)
        harness.head.snapshot_state(1)
        assert part.num_entries() > 10_000
        assert not done
        before = dict(part.lazy_snapshot(range(128)))
        as_it_was = part.lazy_snapshot(range(128))
        incoming, outgoing = os.pipe()
        child = os.fork()
        if not child:
            for descriptor in range(3, 256):  # as a child of a snapshot does
                if descriptor != incoming:
                    with contextlib.suppress(OSError):
                        os.close(descriptor)
            os.read(incoming, 1)  # until the parent has gone on
            os._exit(0 if dict(as_it_was) == before else 1)
        for number in range(8):
            harness.process_batch(many(number * 2000, 2000, 500 + 1000 * (number % 3)))
        harness.watermark(1500)
        gc.collect()
        os.write(outgoing, b"x")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        os.close(incoming)
        os.close(outgoing)


@pytest.mark.usefixtures("share_of_200_kb")
def test_a_checkpoint_is_that_of_windows_in_memory_and_restores_without_being_in_memory():
    taken = []
    for memory_bytes in (1, 64 << 20):
        with OperatorHarness(column_window(BY_KEY), memory_bytes=memory_bytes) as harness:
            harness.watermark(-5)
            for number in range(8):
                harness.process_batch(many(number * 2000, 2000, 500 + 1000 * (number % 2)))
            assert bool(harness.head._spilled) == (memory_bytes == 1)
            taken.append(harness.snapshot(1))
    shown = [
        {repr(entry) for chunk in snapshot.layers[0]["window-slots"][0].values() for entry in shown_entries(chunk)}
        for snapshot in taken
    ]
    assert len(shown[0]) > 15_000
    assert shown[0] == shown[1]
    with OperatorHarness(column_window(BY_KEY), restored=[taken[1]], memory_bytes=1) as harness:
        assert harness.head._windows.nbytes < 200_000
        harness.watermark(5000)
        assert sum(row[3] for row in harness.output.rows) == 16_000


def shown_entries(chunk: bytes):
    """Distinct values have no order."""
    for key, start, values in column_entries("window-slots", chunk):
        yield key, start, {name: sorted(v) if isinstance(v, list) else v for name, v in values.items()}


def _mapped() -> int:
    return sum("panes-" in line or "/#" in line for line in Path("/proc/self/maps").read_text().splitlines())
