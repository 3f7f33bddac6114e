"""Window joins on columns whose state is more than their share of memory, and late records: what rows give."""

from __future__ import annotations

import contextlib
import gc
import os
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.operators import memory_watch, slice_records, window_join_state
from engine.operators.column_interval_join import column_interval_join
from engine.operators.column_window_join import column_window_join
from engine.operators.slice_records import KeyIndex
from engine.operators.spilled_panes import in_pieces
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import Case
from tests.unit.operators.test_column_joins import (
    ASSIGNERS,
    FUNCTIONS,
    LARGE,
    LEFT,
    ORDERED,
    RIGHT,
    ROUTES,
    SCRIPTS,
    SHAPES,
    STEP,
    columns,
    interval,
    play,
    several,
    windowed,
)
from tests.unit.operators.test_restore import FULL, ROCKSDB
from tests.unit.operators.test_restore_columns import PHASES, disturbed, subtask_of, undisturbed


def late(kind, function, lateness_ms, keys="field", flat=False):
    return replace(windowed(kind, function, keys, flat), allowed_lateness_ms=lateness_ms)


def files_for_all(monkeypatch):
    """Slices go to files after every batch, and records wait for hardly any others."""
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 400)
    monkeypatch.setattr(window_join_state, "NUM_PARTITIONS", 4)
    monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: held_bytes > 0)
    monkeypatch.setattr(window_join_state, "_PANES_SHARE", 0)
    monkeypatch.setattr(window_join_state, "_LEFT_SHARE", 0)
    monkeypatch.setattr(window_join_state, "_PIECE_SHARE", 1 / 4)


def files_for_some(monkeypatch):
    """Slices go to files when there are several, those that fire last; records wait in memory for many."""
    monkeypatch.setattr(window_join_state, "NUM_PARTITIONS", 4)
    monkeypatch.setattr(window_join_state, "_WAITING_SHARE", 100)
    state = window_join_state.WindowJoinState
    monkeypatch.setattr(state, "has_too_much", lambda self: len(self.panes) > 1)
    monkeypatch.setattr(state, "make_room", lambda self, order: self.evict(sorted(self.panes, key=order)[1:]))


def indexes(monkeypatch):
    """All in memory, and every batch gets an index for late records."""
    monkeypatch.setattr(window_join_state, "_INDEXED_ROWS_MIN", 0)
    monkeypatch.setattr(slice_records, "_MERGED_ROWS_MAX", 4)


@pytest.fixture(params=[files_for_all, files_for_some, indexes])
def little_memory(request, monkeypatch):
    request.param(monkeypatch)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("lateness_ms", [0, 7])
@pytest.mark.parametrize("kind", ASSIGNERS)
def test_window_joins_in_files_give_what_those_of_rows_give(kind, lateness_ms):
    keys, flat = ("tuple", False) if lateness_ms else ("field", kind == "sliding")
    rows = late(kind, several if flat else FUNCTIONS["computed"], lateness_ms, keys, flat)
    spec = column_window_join(rows, SHAPES)

    @settings(max_examples=6, deadline=None, phases=PHASES)
    @given(st.lists(STEP, max_size=8))
    @example([(0, [((1, LARGE, "a"), 4)]), (1, [((1, 1.5, 1), 5)]), 12, (1, [((1, 2.5, 1), 5), ((1, 3.5, 2), 6)])])
    def check(steps):
        assert play(spec, steps, sorted) == play(rows, steps, sorted)

    check()


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("function", ["added", "aside"])
@pytest.mark.parametrize("kind", ["tumbling", "sliding"])
def test_pairs_of_a_key_come_in_the_order_of_the_row_operator_also_those_of_late_records(kind, function):
    rows = late(kind, FUNCTIONS[function], 11)
    spec = column_window_join(rows, SHAPES)

    @settings(max_examples=8, deadline=None, phases=PHASES)
    @given(st.lists(st.one_of(ORDERED, ORDERED, st.integers(-20, 60)), max_size=9))
    def check(steps):
        order = in_order_by_key if function == "added" else sorted
        assert play(spec, steps, order) == play(rows, steps, order)

    check()


def in_order_by_key(results):
    """The pairs of each key in the order in which they came, those of all its windows."""
    kept = {}
    for row, stamp in results:
        kept.setdefault(eval(row)[0], []).append((row, stamp))
    return kept


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("lateness_ms", [0, 9])
@pytest.mark.parametrize(("kind", "config"), [("tumbling", ROCKSDB), ("sliding", FULL), ("cumulating", FULL)])
def test_after_any_script_with_crashes_and_other_parallelisms_results_are_those_of_rows(kind, lateness_ms, config):
    """Rows and keys of other types among them."""
    rows = late(kind, FUNCTIONS["added" if lateness_ms else "called"], lateness_ms)
    spec = column_window_join(rows, SHAPES)

    @settings(max_examples=6, deadline=None, phases=PHASES)
    @given(SCRIPTS)
    def check(script):
        assert disturbed(Case((spec,), script, ROUTES), config) == undisturbed(Case((rows,), script, ROUTES))

    check()


# --- late records and restores

LATENESS_MS = 100
BEFORE = [(0, [((1, 1, "a"), 4), ((2, 1, "a"), 4)]), (1, [((1, 0.5, 1), 5)])]


def feed(harness, steps):
    """Return the results of each step."""
    seen = []
    for step in steps:
        if isinstance(step, int):
            harness.watermark(step)
        else:
            side, records = step
            rows, stamps = ([record[i] for record in records] for i in range(2))
            batch = columns(rows, stamps, (LEFT, RIGHT)[side])
            harness.process_batch(batch, input_index=side)
        seen.append(sorted(zip(map(repr, harness.output.rows), harness.output.timestamps_ms, strict=True)))
        harness.output.batches.clear()
    return seen


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("kind", ["tumbling", "sliding"])
@pytest.mark.parametrize("then", ["watermark first", "records first"])
def test_after_a_restore_windows_that_fired_fire_again_for_the_keys_that_have_something_new(kind, then):
    """The watermark is not restored: a record may come before it, for a window that had fired."""
    rows = late(kind, FUNCTIONS["added"], LATENESS_MS)
    more = [(1, [((2, 1.5, 2), 6), ((3, 2.5, 3), 4)]), (0, [((3, 3, "c"), 4)])]
    after = [25, *more, 50] if then == "watermark first" else [*more, 5, 25, *more, 50]
    seen = []
    for spec in (column_window_join(rows, SHAPES), rows):
        with OperatorHarness(spec) as harness:
            feed(harness, [*BEFORE, 20])
            taken = harness.snapshot(1)
        with OperatorHarness(spec, restored=[taken]) as harness:
            seen.append(feed(harness, after))
    assert seen[0] == seen[1]
    assert sum(map(len, seen[0])) >= 2


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("kind", ["tumbling", "sliding"])
@pytest.mark.parametrize("way", ["handed over", "restored"])
def test_rows_go_on_with_windows_that_have_fired_as_columns_would(kind, way):
    rows = late(kind, FUNCTIONS["added"], LATENESS_MS)
    spec = column_window_join(rows, SHAPES)
    after = [25, (1, [((1, 1.5, 2), 4), ((2, 2.5, 3), 5)]), (0, [((1, 3, "c"), 5)]), 200]
    seen = []
    for first, second in ((spec, rows), (rows, rows)):
        with OperatorHarness(first) as harness:
            feed(harness, [*BEFORE, 20])
            if way == "handed over":
                harness.process([(9, 9, "row")], [30])
                seen.append(feed(harness, after))
                continue
            taken = harness.snapshot(1)
        with OperatorHarness(second, restored=[taken]) as harness:
            seen.append(feed(harness, after))
    assert seen[0] == seen[1]


# --- how much memory, and when

SUMS = windowed("tumbling", FUNCTIONS["added"])


@pytest.fixture
def share_of_400_kb(monkeypatch):
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 400_000)
    monkeypatch.setattr(window_join_state, "NUM_PARTITIONS", 16)


def many(number, side):
    keys = (number * 1000 + np.arange(1000)) * 7919 % 20_011
    rows = [(int(key), 1, "a") if side == 0 else (int(key), 0.5, 1) for key in keys]
    return columns(rows, [4 + 10 * (number % 2)] * 1000, (LEFT, RIGHT)[side])


@pytest.mark.usefixtures("share_of_400_kb")
def test_memory_stays_bounded_and_files_go_with_their_windows():
    spec = column_window_join(SUMS, SHAPES)
    gc.collect()
    num_open = len(os.listdir("/proc/self/fd"))
    results = []
    with OperatorHarness(spec, memory_bytes=1) as harness, OperatorHarness(spec, memory_bytes=1 << 30) as model:
        state = harness.head._state
        for number in range(12):
            for side in range(2):
                for own in (harness, model):
                    own.process_batch(many(number, side), input_index=side)
                assert state.nbytes < 400_000
        assert state.spilled.starts() == [3, 13]
        assert model.head._state.nbytes > 600_000
        assert state.num_entries() == model.head._state.num_entries() == 24_000
        for own in (harness, model):
            own.watermark(12)
            own.watermark(100)
            results.append(Counter(zip(own.output.rows, own.output.timestamps_ms, strict=True)))
        assert results[0] == results[1]
        assert results[0].total() == 12_000
        assert max(map(len, harness.output.batches)) < 5_000  # a window is joined in pieces
        assert state.num_entries() == state.nbytes == 0
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == num_open


@pytest.mark.usefixtures("share_of_400_kb")
@pytest.mark.parametrize("after", ["files", "memory", "rows"])
def test_a_checkpoint_of_files_goes_to_files_to_memory_and_to_rows(after):
    spec = column_window_join(SUMS, SHAPES)
    taken = []
    for index in range(2):
        with OperatorHarness(spec, memory_bytes=1, subtask_index=index, parallelism=2) as harness:
            for number in range(10):
                for side in range(2):
                    batch = many(number, side)
                    mine = [subtask_of(key, 2) == index for key in batch.columns.column(0).to_pylist()]
                    harness.process_batch(only(batch, mine), input_index=side)
            assert harness.head._state.spilled
            taken.append(harness.snapshot(1))
    with OperatorHarness(
        SUMS if after == "rows" else spec, restored=taken, memory_bytes=1 if after == "files" else 1 << 30
    ) as harness:
        assert after == "rows" or bool(harness.head._state.spilled) is (after == "files")
        harness.watermark(100)
        assert len(set(harness.output.rows)) == len(harness.output.rows) == 10_000


@pytest.mark.usefixtures("share_of_400_kb")
def test_a_forked_child_reads_the_files_as_they_were():
    """Whatever the parent writes, joins and forgets meanwhile."""
    with OperatorHarness(column_window_join(SUMS, SHAPES), memory_bytes=1) as harness:
        state = harness.head._state
        for number in range(12):
            harness.process_batch(many(number, 0))
        harness.process_batch(many(12, 0).slice(0, 50))
        assert state.spilled.nbytes  # what waits in memory
        before, as_it_was = dict(state.lazy_snapshot(range(128))), state.lazy_snapshot(range(128))
        incoming, outgoing = os.pipe()
        child = os.fork()
        if not child:
            for descriptor in range(3, 256):  # as a child of a snapshot does
                if descriptor != incoming:
                    with contextlib.suppress(OSError):
                        os.close(descriptor)
            os.read(incoming, 1)  # until the parent has gone on
            os._exit(0 if dict(as_it_was) == before else 1)
        for number in range(12):
            harness.process_batch(many(number, 1), input_index=1)
        harness.watermark(100)
        assert not state.num_entries()
        gc.collect()
        os.write(outgoing, b"x")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        os.close(incoming)
        os.close(outgoing)


def only(batch, mine):
    return replace(
        batch, columns=batch.columns.filter(pa.array(mine)), timestamps_ms=batch.timestamps_ms[np.array(mine)]
    )


def test_a_window_that_is_most_of_the_memory_is_joined_in_pieces(monkeypatch):
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 300_000)
    with OperatorHarness(column_window_join(SUMS, SHAPES), memory_bytes=1) as harness:
        for number in (0, 2):
            for side in range(2):
                harness.process_batch(many(number, side), input_index=side)
        assert not harness.head._state.spilled
        harness.watermark(100)
        assert len(harness.output.rows) == 2000
        assert len(harness.output.batches) > 1


def test_window_joins_stay_on_columns_with_rocksdb(monkeypatch):
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 60_000)
    with OperatorHarness(column_window_join(SUMS, SHAPES), memory_bytes=1, config=ROCKSDB) as harness:
        for number in range(6):
            harness.process_batch(many(number, 0))
        assert not harness.head._is_on_rows
        assert harness.head._state.spilled


# --- parts


@given(st.lists(st.integers(0, 9), max_size=30), st.lists(st.integers(0, 12), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_an_index_finds_the_rows_of_keys(of_rows, wanted):
    index = KeyIndex([pa.int64()], [pa.array(of_rows, pa.int64())])
    for _ in range(2):
        found = index.rows_of([pa.array(wanted, pa.int64())])
        assert found.tolist() == [row for row, key in enumerate(of_rows) if key in wanted]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_pieces_have_all_partitions_with_content_once(sizes, size_max):
    pieces = in_pieces(np.array(sizes), size_max, range(len(sizes)))
    inside = [partition for piece in pieces for partition in piece]
    assert inside == sorted(set(inside))
    assert {partition for partition, size in enumerate(sizes) if size} <= set(inside)
    for piece in pieces:
        having = [sizes[partition] for partition in piece if sizes[partition]]
        assert len(having) == 1 or sum(having) <= size_max


@pytest.mark.parametrize("kind", ["window", "interval"])
def test_after_a_restore_of_rocksdbs_own_files_columns_go_on(kind, tmp_path):
    """The files are never empty, as they describe themselves."""
    spec = column_window_join(SUMS, SHAPES)
    if kind == "interval":
        spec = column_interval_join(interval((-5, 5), FUNCTIONS["added"]), SHAPES)
    with OperatorHarness(spec, config=ROCKSDB) as harness:
        harness.process_batch(many(0, 0))
        taken = harness.snapshot(1, folder=str(tmp_path))
    with OperatorHarness(spec, config=ROCKSDB, restored=[taken]) as harness:
        harness.process_batch(many(0, 1), input_index=1)
        assert not harness.head._is_on_rows
        harness.watermark(100)
        assert len(harness.output.rows) == 1000
