"""Sessions on columns that go to files: against those on rows, with crashes and without; memory, passes, checkpoints."""

from __future__ import annotations

import contextlib
import gc
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.checkpoint.column_tables import column_entries
from engine.core.clock import ManualClock
from engine.core.errors import UserCodeError
from engine.core.records import ColumnBatch, RowBatch
from engine.datastream.aggregates import count, count_distinct, first, last, max_, sum_
from engine.operators import memory_watch, spilling_sessions
from engine.operators.column_folds import shape_of_schema
from engine.operators.column_session import column_session
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.session_state import SessionState
from engine.operators.spilling_sessions import SpillingSessions
from engine.state.array_files import ArrayFile
from engine.time.windows import TIME_MAX_MS
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import Case, Rows
from tests.unit.operators.test_column_session import AGGREGATES, GAP_MS, PLAIN_STEP, REDUCES, SESSIONS, reduced
from tests.unit.operators.test_column_window import FLOATS, SCHEMA, STEP, _plain, built_in, columns
from tests.unit.operators.test_restore import FULL
from tests.unit.operators.test_restore_columns import PHASES, TIMED_SCRIPTS, disturbed, undisturbed


@pytest.fixture(params=["files", "waiting", "memory", "coming back"])
def little_memory(request, monkeypatch):
    """All is cut after the first batch. Then: a pass with each batch, all in files; records and the time wait for a
    barrier or the end; all partitions stay in memory; it comes back into memory again and again."""
    monkeypatch.setattr(spilling_sessions, "NUM_PARTITIONS", 4)
    monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: held_bytes > 0)
    is_waiting = request.param == "waiting"
    monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 1 << 20 if is_waiting else 100)
    monkeypatch.setattr(spilling_sessions, "_RESIDENT_SHARE", 1 << 20 if request.param == "memory" else 0)
    monkeypatch.setattr(spilling_sessions, "_RETURN_SHARE", 100 if request.param == "coming back" else -1)


def told(spec, steps, clock=None):
    """Return all results, late records, and which results came before each watermark."""
    with OperatorHarness(spec, name="Window", clock=clock) as harness:
        watermark_ms = None
        for step in [*steps, 10_000, TIME_MAX_MS]:
            if isinstance(step, int):
                watermark_ms = step if watermark_ms is None else max(watermark_ms, step)
                harness.watermark(watermark_ms)
            else:
                rows, stamps = zip(*step, strict=True)
                harness.process_batch(columns(rows, stamps))
        results, before = [], {}
        for told_ in harness.output.story:
            if isinstance(told_, int):
                before.setdefault(told_, Counter(results))
            else:
                plain = _plain(told_)
                results += [(repr(row), stamp) for row, stamp in zip(plain.rows, plain.timestamps_ms, strict=True)]
        late = [repr(row) for batch in harness.output.side.get("late", []) for row in _plain(batch).rows]
    return results, sorted(late), before


def check_told(spec, rows, steps):
    """Results are the same, those of a key in the same order, and none comes behind a watermark that it came before."""
    ours, late, before = told(spec, steps)
    theirs, expected_late, expected_before = told(rows, steps)
    assert by_key(ours) == by_key(theirs)
    assert late == expected_late
    for watermark_ms, results in before.items():
        assert not expected_before[watermark_ms] - results


def by_key(results):
    found: dict[str, list] = {}
    for row, stamp in results:
        found.setdefault(row.split(",")[0], []).append((row, stamp))
    return found


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("lateness_ms", [0, 9])
@pytest.mark.parametrize("late_tag", [None, "late"])
def test_sessions_in_files_give_what_those_of_rows_give(late_tag, lateness_ms):
    rows = built_in(SESSIONS, AGGREGATES, late_tag=late_tag, lateness_ms=lateness_ms)

    @settings(max_examples=15, deadline=None, phases=PHASES)
    @given(st.lists(STEP, max_size=8))
    @example([[((1, 1, 1.0, "a"), 0)], [((1, 2, 1.0, "a"), 12)], 4, [((1, 4, 1.0, "a"), 6)], 17, [((1, 8, 1.0, "b"), 14)]])
    def check(steps):
        check_told(column_session(rows), rows, steps)

    check()


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", ["sum of 2", "min_by of 2", "last of equals", "not by a float", "field by field"])
def test_records_of_sessions_in_files_are_those_of_rows(name):
    """Which of two sessions that become one was changed last is known in files, too."""
    rows = reduced(REDUCES[name], lateness_ms=4)

    @settings(max_examples=10, deadline=None, phases=PHASES)
    @given(st.lists(PLAIN_STEP, max_size=8), st.integers(0, 2))
    def check(steps, num_nulls):
        for step in [step for step in steps if isinstance(step, list)][-num_nulls:] if num_nulls else []:
            step[0] = ((step[0][0][0], None, None, None), step[0][1])
        try:
            expected = told(rows, steps)
        except UserCodeError:  # None + None
            with pytest.raises(UserCodeError):
                told(column_session(rows, shape_of_schema(SCHEMA)), steps)
            return
        assert expected
        check_told(column_session(rows, shape_of_schema(SCHEMA)), rows, steps)

    check()


@pytest.mark.usefixtures("little_memory")
def test_sums_that_may_leave_64_bits_go_on_as_python_integers():
    rows = built_in(SESSIONS, [sum_(1), count(), sum_(2), count_distinct(1)], late_tag="late", lateness_ms=3)
    large = st.one_of(st.none(), st.integers(-5, 5), st.sampled_from([2**63 - 1, -(2**63), 2**62, 2**60]))
    row = st.tuples(st.integers(0, 1), large, FLOATS, st.just("a"))
    step = st.one_of(st.lists(st.tuples(row, st.integers(-25, 45)), min_size=1, max_size=8), st.integers(-20, 60))

    @settings(max_examples=15, deadline=None, phases=PHASES)
    @given(st.lists(step, max_size=7))
    def check(steps):
        check_told(column_session(rows), rows, steps)

    check()


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("lateness_ms", [0, 12])
def test_after_any_script_with_crashes_and_other_parallelisms_results_are_those_of_rows(lateness_ms):
    """Sums beyond 64 bits, other types and rows among them."""
    key = ComposedKey((0, 1)) if lateness_ms else FieldKey(0)
    aggregates = [sum_(1), count(), max_(1), count_distinct(1), first(1), last(1)]
    rows = built_in(SESSIONS, aggregates, key, late_tag="late", lateness_ms=lateness_ms)

    @settings(max_examples=25, deadline=None, phases=PHASES)
    @given(TIMED_SCRIPTS)
    def check(script):
        assert disturbed(Case((column_session(rows),), script, (key,)), FULL) == undisturbed(
            Case((rows,), script, (key,))
        )

    check()


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", ["the last", "field by field 2"])
def test_records_after_any_script_are_those_of_rows(name):
    function = {"the last": REDUCES["the last"], "field by field 2": lambda a, b: (a[0], a[1] + b[1])}[name]
    rows = reduced(function, lateness_ms=5)
    spec = column_session(rows, shape_of_schema(pa.schema([("k", pa.int64()), ("v", pa.int64())])))

    @settings(max_examples=15, deadline=None, phases=PHASES)
    @given(TIMED_SCRIPTS)
    def check(script):
        try:
            expected = undisturbed(Case((rows,), script, (FieldKey(0),)))
        except UserCodeError:
            return
        assert disturbed(Case((spec,), script, (FieldKey(0),)), FULL) == expected

    check()
