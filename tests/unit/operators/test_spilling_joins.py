"""Window joins on columns whose state is more than their share of memory, and late records: what rows give."""

from __future__ import annotations

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
from engine.time.windows import TIME_MAX_MS
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import MARK, Case, Rows, Watermark
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
    by_key,
    called,
    columns,
    interval,
    play,
    several,
    windowed,
)
from tests.unit.operators.test_restore import FULL, ROCKSDB, Run, straight
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
@pytest.mark.parametrize("config", [FULL, ROCKSDB], ids=["full", "rocksdb"])
@pytest.mark.parametrize("lateness_ms", [0, 9])
@pytest.mark.parametrize("kind", ["tumbling", "sliding", "cumulating"])
def test_after_any_script_with_crashes_and_other_parallelisms_results_are_those_of_rows(kind, lateness_ms, config):
    """Rows and keys of other types among them."""
    rows = late(kind, FUNCTIONS["added" if lateness_ms else "called"], lateness_ms)
    spec = column_window_join(rows, SHAPES)

    @settings(max_examples=6, deadline=None, phases=PHASES)
    @given(SCRIPTS)
    def check(script):
        assert disturbed(Case((spec,), script, ROUTES), config) == undisturbed(Case((rows,), script, ROUTES))

    check()
