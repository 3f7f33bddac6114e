"""Sessions on columns that go to files: against those on rows, with crashes and without; memory, time, checkpoints."""

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
from engine.core.records import ColumnBatch
from engine.datastream.aggregates import count, count_distinct, first, last, max_, sum_
from engine.operators import held_rows, memory_watch, spilling_sessions
from engine.operators.column_folds import shape_of_schema
from engine.operators.column_session import column_session
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.session_state import SessionState
from engine.state.array_files import ArrayFile
from engine.time.windows import TIME_MAX_MS
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import Case
from tests.unit.operators.test_column_session import AGGREGATES, GAP_MS, PLAIN_STEP, REDUCES, SESSIONS, reduced
from tests.unit.operators.test_column_window import FLOATS, SCHEMA, STEP, _plain, built_in, columns
from tests.unit.operators.test_restore import FULL
from tests.unit.operators.test_restore_columns import PHASES, TIMED_SCRIPTS, disturbed, undisturbed


@pytest.fixture(params=["files", "waiting", "memory", "coming back"])
def little_memory(request, monkeypatch):
    """All is cut after the first batch. Then: a pass with each batch, all in files; records and the time wait for a
    barrier or the end; all partitions stay in memory; it comes back into memory again and again."""
    monkeypatch.setattr(spilling_sessions, "NUM_PARTITIONS", 4)
    monkeypatch.setattr(held_rows, "_BLOCK_ROWS", 5)
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
@pytest.mark.parametrize(("late_tag", "lateness_ms"), [(None, 0), ("late", 0), ("late", 9)])
def test_sessions_in_files_give_what_those_of_rows_give(late_tag, lateness_ms):
    rows = built_in(SESSIONS, AGGREGATES, late_tag=late_tag, lateness_ms=lateness_ms)

    @settings(max_examples=10, deadline=None, phases=PHASES)
    @given(st.lists(STEP, max_size=8))
    @example(
        [[((1, 1, 1.0, "a"), 0)], [((1, 2, 1.0, "a"), 12)], 4, [((1, 4, 1.0, "a"), 6)], 17, [((1, 8, 1.0, "b"), 14)]]
    )
    def check(steps):
        check_told(column_session(rows), rows, steps)

    check()


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", ["sum of 2", "min_by of 2", "last of equals", "not by a float", "field by field"])
def test_records_of_sessions_in_files_are_those_of_rows(name):
    """Which of two sessions that become one was changed last is known in files, too."""
    rows = reduced(REDUCES[name], lateness_ms=4)

    @settings(max_examples=5, deadline=None, phases=PHASES)
    @given(st.lists(PLAIN_STEP, max_size=8), st.integers(0, 2))
    @example([[((1, 1, 1.0, "a"), 12), ((1, 1, 2.0, "b"), 0)], [((1, 1, 3.0, "c"), 6)]], 0)
    @example([[((1, 1, 1.0, "a"), 0), ((1, 1, float("nan"), "b"), 12)], 3, [((1, 1, 3.0, "c"), 6)]], 0)
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

    @settings(max_examples=8, deadline=None, phases=PHASES)
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

    @settings(max_examples=12, deadline=None, phases=PHASES)
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

    @settings(max_examples=6, deadline=None, phases=PHASES)
    @given(TIMED_SCRIPTS)
    def check(script):
        try:
            expected = undisturbed(Case((rows,), script, (FieldKey(0),)))
        except UserCodeError:
            return
        assert disturbed(Case((spec,), script, (FieldKey(0),)), FULL) == expected

    check()


# --- how much memory, and when

BY_KEY = built_in(SESSIONS, [count(), sum_(1), max_(2), count_distinct(3), first(3)])


def many(number: int, size: int = 2000, time_ms: int = 500) -> ColumnBatch:
    """Records of keys by chance, whatever batches they come in."""
    keys = np.arange(number * size, (number + 1) * size) * 7919 % 20_011
    rows = [(int(key), 1, float(key), "ab"[key % 2]) for key in keys]
    return columns(rows, [time_ms] * size)


@pytest.fixture
def share_of_400_kb(monkeypatch):
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 400_000)
    monkeypatch.setattr(spilling_sessions, "NUM_PARTITIONS", 8)


@pytest.mark.usefixtures("share_of_400_kb")
def test_memory_stays_bounded_and_files_go_with_their_sessions():
    spec = column_session(BY_KEY)
    with OperatorHarness(spec, memory_bytes=1) as harness, OperatorHarness(BY_KEY) as model:
        sessions = harness.head._sessions
        for number in range(8):
            for own in (harness, model):
                own.process_batch(many(number))
            assert sessions.nbytes < 400_000
            assert sessions.filled < 2
        assert sessions.is_spilled
        assert sessions.num_entries() > 15_000
        assert not os.listdir(harness.contexts[0].work_dir)  # nothing is left behind, whatever becomes of the process
        assert 0 < _mapped() <= 8
        for own in (harness, model):
            own.process_batch(many(0, time_ms=700))
            own.watermark(600)
            own.watermark(5000)
        harness.head._passes.take_up_all()
        assert sorted(harness.output.rows) == sorted(model.output.rows)
        assert not sessions.is_spilled  # nothing is left, and there is room again
        gc.collect()
        assert _mapped() == 0
        harness.process_batch(many(0, 100, time_ms=7500))
        assert sessions.state.num_sessions == 100


@pytest.mark.usefixtures("share_of_400_kb")
def test_the_time_waits_for_a_pass_only_where_a_session_may_be_due():
    clock = ManualClock(1000)
    with OperatorHarness(column_session(BY_KEY), memory_bytes=1, clock=clock) as harness:
        for number in range(8):
            harness.process_batch(many(number))
        head = harness.head
        head._passes.take_up_all()
        assert head._sessions.is_spilled
        harness.watermark(400)
        assert harness.output.watermarks_ms == [400]
        harness.watermark(500 + GAP_MS - 1)
        assert harness.output.watermarks_ms == [400]
        assert head.next_timer_ms() > clock.now_ms()
        while (due_ms := head.next_timer_ms()) is not None:
            clock.advance(due_ms - clock.now_ms())
            head.on_timer(clock.now_ms())
        assert harness.output.watermarks_ms == [400, 505]
        assert sum(row[3] for row in harness.output.rows) == 16_000


@pytest.mark.usefixtures("share_of_400_kb")
def test_values_that_no_session_has_any_more_are_forgotten():
    rows = built_in(SESSIONS, [first(3), count_distinct(3)])
    with OperatorHarness(column_session(rows), memory_bytes=1) as harness:
        harness.process_batch(columns([(at, 1, 1.0, f"long {at:90}") for at in range(2000)], [10_000_000] * 2000))
        sessions = harness.head._sessions
        assert sessions.is_spilled
        before = sum(part.num_bytes for part in sessions._partitions)
        for number in range(30):
            texts = [(at, 1, 1.0, f"{number} {at:90}") for at in range(500)]
            harness.process_batch(columns(texts, [number * 100] * 500))
            harness.watermark(number * 100 - 10)
            harness.head._passes.take_up_all()
        assert sum(part.num_bytes for part in sessions._partitions) < 2 * before


@pytest.mark.usefixtures("share_of_400_kb")
def test_a_barrier_takes_up_nothing_and_a_child_reads_the_sessions_as_they_were(monkeypatch):
    with OperatorHarness(column_session(BY_KEY), memory_bytes=1) as harness:
        for number in range(7):
            harness.process_batch(many(number))
        harness.process_batch(many(140, 100))
        part = harness.contexts[0].state.keyed["session-slots"]
        assert part.filled > 0
        done = []
        for owner in (ArrayFile, SessionState):
            for name, own in list(vars(owner).items()):
                if callable(own) and name in ("read", "take_up", "rows_of", "trim"):
                    monkeypatch.setattr(
                        owner, name, lambda *a, _own=own, _name=name, **k: (done.append(_name), _own(*a, **k))[1]
                    )
        harness.head.prepare_snapshot(1)
        harness.head.snapshot_state(1)
        assert part.num_entries() > 10_000
        assert not done
        before = dict(part.lazy_snapshot(range(128)))
        assert "take_up" in done
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
            harness.process_batch(many(number))
        harness.watermark(1500)
        harness.head._passes.take_up_all()
        gc.collect()
        os.write(outgoing, b"x")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        os.close(incoming)
        os.close(outgoing)


@pytest.mark.usefixtures("share_of_400_kb")
def test_a_checkpoint_is_that_of_sessions_in_memory_and_restores_without_being_in_memory():
    taken = []
    for memory_bytes in (1, 64 << 20):
        with OperatorHarness(column_session(BY_KEY), memory_bytes=memory_bytes) as harness:
            for number in range(8):
                harness.process_batch(many(number))
            harness.process_batch(many(160, 100))
            assert harness.head._sessions.is_spilled == (memory_bytes == 1)
            taken.append(harness.snapshot(1))
    shown = [
        {repr(entry) for chunk in snapshot.layers[0]["session-slots"][0].values() for entry in shown_entries(chunk)}
        for snapshot in taken
    ]
    assert len(shown[0]) > 15_000
    assert shown[0] == shown[1]
    with OperatorHarness(column_session(BY_KEY), restored=[taken[1]], memory_bytes=1) as harness:
        assert harness.head._sessions.is_spilled
        assert harness.head._sessions.nbytes < 400_000
        harness.watermark(TIME_MAX_MS)
        assert sum(row[3] for row in harness.output.rows) == 16_100


def shown_entries(chunk: bytes):
    """Distinct values have no order."""
    for key, window, values in column_entries("session-slots", chunk):
        yield key, window, {name: sorted(v) if isinstance(v, list) else v for name, v in values.items()}


@pytest.mark.usefixtures("share_of_400_kb")
@pytest.mark.parametrize("memory_bytes", [1, 64 << 20])
@pytest.mark.parametrize("lateness_ms", [0, 10])
def test_what_was_due_or_late_at_a_barrier_is_sent_after_a_restore(lateness_ms, memory_bytes):
    """The records and the time had to wait; the watermark does not come again before the end."""
    rows = built_in(SESSIONS, [count(), first(3)], late_tag="late", lateness_ms=lateness_ms)
    expected, ours = [], []
    steps = [many(number) for number in range(6)]
    steps += [505, many(7, 10), 600, many(6, 10), many(8, 5, 600), columns([(None, 1, 1.0, "x")], [1])]
    for spec, seen in ((rows, expected), (column_session(rows), ours)):
        with OperatorHarness(spec, memory_bytes=1) as harness:
            for step in steps:
                harness.watermark(step) if isinstance(step, int) else harness.process_batch(step)
            if spec is not rows:
                assert harness.head._sessions.is_spilled
                assert harness.output.watermarks_ms[-1:] != [600]
            taken = harness.snapshot(1)
            outputs = [harness.output]
        with OperatorHarness(spec, restored=[taken], memory_bytes=memory_bytes) as harness:
            assert spec is rows or harness.head.next_timer_ms() is not None
            harness.process_batch(many(9, 10))  # late, were it not that nobody knows the time
            harness.watermark(TIME_MAX_MS)
            outputs.append(harness.output)
        seen.append(sorted(row for output in outputs for row in output.rows))
        seen.append(sorted(repr(row) for o in outputs for b in o.side.get("late", []) for row in _plain(b).rows))
    assert ours == expected
    assert expected[1]


@pytest.mark.usefixtures("share_of_400_kb")
def test_what_was_due_or_late_is_sent_by_rows_too_if_the_function_no_longer_compiles(monkeypatch):
    monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: True)
    rows = reduced(REDUCES["the last"])
    steps = [[((1, at, 1.0, "a"), 12), ((2, at, 0.5, "c"), 30)] for at in range(3)]
    steps += [25, [((1, 9, 1.0, "late"), 12), ((2, 9, 1.0, "d"), 33)]]
    seen = []
    for columnar in (False, True):
        spec = column_session(rows, shape_of_schema(SCHEMA)) if columnar else rows
        with OperatorHarness(spec) as harness:
            for step in steps:
                if isinstance(step, int):
                    harness.watermark(step)
                else:
                    harness.process_batch(columns(*zip(*step, strict=True)))
            outputs, taken = [harness.output], harness.snapshot(1)
            assert not columnar or not harness.output.rows
        with OperatorHarness(rows, restored=[taken]) as harness:
            harness.watermark(1000)
            outputs.append(harness.output)
        late = [row for output in outputs for batch in output.side.get("late", []) for row in _plain(batch).rows]
        seen.append((sorted(row for output in outputs for row in output.rows), late))
    assert seen[0] == seen[1]
    assert seen[0][1] == [(1, 9, 1.0, "late")]
    assert len(seen[0][0]) == 2


def _mapped() -> int:
    return sum("slots-" in line or "/#" in line for line in Path("/proc/self/maps").read_text().splitlines())
