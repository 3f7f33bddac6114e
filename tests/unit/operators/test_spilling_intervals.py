"""Interval joins on columns whose records lie in files: what those in memory and those of rows give."""

from __future__ import annotations

import contextlib
import gc
import os
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.core.clock import ManualClock
from engine.core.records import rows_of
from engine.operators import column_interval_join as column_interval_join_module
from engine.operators import join_segments, memory_watch, spilling_intervals
from engine.operators.column_interval_join import column_interval_join
from engine.operators.join_kernels import pairs_of_codes
from engine.state.hash_partitions import HashPartitions
from engine.time.windows import TIME_MAX_MS
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import MARK, Case, Rows, Watermark
from tests.unit.operators.test_column_joins import (
    FUNCTIONS,
    INTERVALS,
    LARGE,
    LEFT,
    ORDERED,
    RIGHT,
    ROUTES,
    SCRIPTS,
    SHAPES,
    STEP,
    Paired,
    columns,
    interval,
)
from tests.unit.operators.test_restore import FULL, INCREMENTAL, ROCKSDB, Run, straight
from tests.unit.operators.test_restore_columns import PHASES, disturbed, subtask_of, undisturbed


@pytest.fixture(params=["passes", "waiting", "under way", "coming back", "few pairs"])
def little_memory(request, monkeypatch):
    """All goes to files after the first batch. Then: a pass with each batch; records and the time wait for a barrier or
    the end; a pass is under way whenever records and watermarks come; it comes back into memory again and again; pairs
    are found in the smallest portions."""
    is_waiting = request.param in ("waiting", "under way")
    monkeypatch.setattr(spilling_intervals, "NUM_PARTITIONS", 4)
    monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: held_bytes > 0)
    monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 1 << 20 if is_waiting else 100)
    monkeypatch.setattr(spilling_intervals, "_RETURN_SHARE", 1000 if request.param == "coming back" else -1)
    monkeypatch.setattr(spilling_intervals, "_STEP_ROWS", 3)
    if request.param == "under way":
        monkeypatch.setattr(column_interval_join_module._ColumnIntervalJoinOperator, "_hold", hold_and_step)
        monkeypatch.setattr(spilling_intervals, "_STEP_ROWS", 1)
    if request.param == "few pairs":
        monkeypatch.setattr(join_segments, "_PAIRS_MAX", 1)
        monkeypatch.setattr(spilling_intervals, "_SEGMENT_ROWS", 4)


def hold_and_step(self, side, columns, times_ms):
    self._state.hold(side, columns, times_ms)
    if self._state.is_passing:
        self._passes.step()
    else:
        self._passes.begin()


def told(spec, steps):
    """Return all results, late records, and which results came before each watermark."""
    with OperatorHarness(spec, name="Join") as harness:
        watermark_ms = None
        for step in [*steps, 10_000, TIME_MAX_MS]:
            if isinstance(step, int):
                watermark_ms = step if watermark_ms is None else max(watermark_ms, step)
                harness.watermark(watermark_ms)
            else:
                side, records = step
                rows, stamps = ([record[i] for record in records] for i in range(2))
                harness.process_batch(columns(rows, stamps, (LEFT, RIGHT)[side]), input_index=side)
        results, before = [], {}
        for told_ in harness.output.story:
            if isinstance(told_, int):
                before.setdefault(told_, Counter(results))
            else:
                batch = rows_of(told_)
                results += zip(map(repr, batch.rows), batch.timestamps_ms, strict=True)
        late = [repr(row) for batch in harness.output.side.get("late", []) for row in rows_of(batch).rows]
    return results, sorted(late), before


def check_told(ours, theirs):
    """Results are the same, and none comes behind a watermark that it came before."""
    assert Counter(ours[0]) == Counter(theirs[0])
    assert ours[1] == theirs[1]
    for watermark_ms, results in ours[2].items():
        assert not theirs[2][watermark_ms] - results


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("function", ["added", "process"])
@pytest.mark.parametrize("bounds", INTERVALS)
def test_interval_joins_in_files_give_what_those_of_rows_give(bounds, function):
    keys = "tuple" if function == "process" else "field"
    rows = interval(bounds, Paired() if function == "process" else FUNCTIONS["computed"], keys)
    spec = column_interval_join(rows, SHAPES)

    @settings(max_examples=8, deadline=None, phases=PHASES)
    @given(st.lists(STEP, max_size=10))
    @example([(0, [((1, 1, "a"), 5)]), 5, (1, [((1, 1.5, 2), 5)]), (0, [((1, 2, "b"), 5)]), (1, [((1, 2.5, 2), 5)])])
    @example([(0, [((0, 1, "a"), 0)]), (0, [((1, 1, "a"), 5)]), 5, (1, [((1, 1.5, 2), 5)]), (0, [((1, 2, "b"), 5)])])
    @example([(0, [((1, LARGE, "a"), 0)]), 5, (1, [((1, 1.5, 2), 5)]), 5, (1, [((1, 2.5, 2), 5)])])
    def check(steps):
        check_told(told(spec, steps), told(rows, steps))

    check()


@pytest.mark.parametrize("bounds", INTERVALS[:3])
def test_pairs_of_a_key_come_in_the_order_of_those_in_memory(bounds, little_memory, monkeypatch):
    spec = column_interval_join(interval(bounds, FUNCTIONS["added"]), SHAPES)

    @settings(max_examples=12, deadline=None, phases=PHASES)
    @given(st.lists(st.one_of(ORDERED, ORDERED, st.integers(-20, 60)), max_size=12))
    def check(steps):
        ours = told(spec, steps)
        with monkeypatch.context() as patched:
            patched.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: False)
            theirs = told(spec, steps)
        assert by_key(ours[0]) == by_key(theirs[0])
        check_told(ours, theirs)

    check()


def by_key(results):
    found = {}
    for row, stamp in results:
        found.setdefault(eval(row)[0], []).append((row, stamp))
    return found


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("config", [FULL, INCREMENTAL, ROCKSDB], ids=["full", "incremental", "rocksdb"])
@pytest.mark.parametrize("bounds", [INTERVALS[0], INTERVALS[2]])
def test_after_any_script_with_crashes_and_other_parallelisms_results_are_those_of_rows(bounds, config):
    """Rows and keys of other types among them."""
    rows = interval(bounds, FUNCTIONS["added" if config is FULL else "called"])
    spec = column_interval_join(rows, SHAPES)

    @settings(max_examples=10, deadline=None, phases=PHASES)
    @given(SCRIPTS)
    def check(script):
        assert disturbed(Case((spec,), script, ROUTES), config) == undisturbed(Case((rows,), script, ROUTES))

    check()


BEFORE = [
    Rows([(key, 1, "a") for key in range(40)], [12] * 40, 0, LEFT),
    Rows([(key, 1.5, 1) for key in range(40)], [11] * 40, 1, RIGHT),
    Watermark(11),
    Rows([(key, 2.5, 2) for key in range(40)], [13] * 40, 1, RIGHT),
    Watermark(13),
]
AFTER = [
    Rows([(key, 2.5, 2) for key in range(40)], [15] * 40, 1, RIGHT),
    Rows([(key, 2, "b") for key in range(40)], [17] * 40, 0, LEFT),
    Watermark(TIME_MAX_MS),
]


@pytest.mark.parametrize("after", ["columns", "rows"])
@pytest.mark.parametrize("parallelism", [1, 2, 3])
def test_pairs_that_were_not_sent_before_a_checkpoint_are_sent_by_whoever_goes_on(after, parallelism, monkeypatch):
    monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: held_bytes > 0)
    monkeypatch.setattr(spilling_intervals, "_RETURN_SHARE", -1)
    rows = interval((-15, 15), FUNCTIONS["called"])
    run = Run(Case((column_interval_join(rows, SHAPES),), [], ROUTES), FULL, None)
    run.start(1)
    run.play([*BEFORE, MARK])
    assert sum(run.results.values()) == 0
    assert sum(map(len, run.snapshots[0].layers[0]["join-pairs"])) > 20
    if after == "rows":
        run.case = Case((rows,), [], ROUTES)
    run.start(parallelism)
    run.play([MARK])  # sent before it, once
    assert sum(run.results.values()) == 80
    assert not run.snapshots[0].layers[0].get("join-pairs", [{}])[0]
    run.start(1)
    run.play(AFTER)
    assert run.finish() == straight(Case((rows,), [*BEFORE, *AFTER], ROUTES))


def test_pairs_that_were_not_sent_are_those_of_a_pass_under_way_and_of_what_waits_behind_it(monkeypatch):
    monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: held_bytes > 0)
    monkeypatch.setattr(spilling_intervals, "_RETURN_SHARE", -1)
    monkeypatch.setattr(spilling_intervals, "_STEP_ROWS", 10)
    rows = interval((-15, 15), FUNCTIONS["called"])
    spec = column_interval_join(rows, SHAPES)
    with OperatorHarness(spec) as harness, OperatorHarness(rows) as model:
        for own in (harness, model):
            for side, at in ((0, 1), (1, 2)):
                own.process_batch(batch(side, range(100), at), input_index=side)
        harness.head._passes.begin()
        for _ in range(3):
            harness.head._passes.step()
        for own in (harness, model):
            for side, at in ((0, 3), (1, 4)):
                own.process_batch(batch(side, range(0, 100, 3), at), input_index=side)
        assert harness.head._state.is_passing
        assert 0 < len(harness.output.rows) < 100
        taken = harness.snapshot(1)
        sent = list(harness.output.rows)
    with OperatorHarness(spec, restored=[taken]) as harness:
        for own in (harness, model):
            own.process_batch(batch(0, range(50), 5))
            own.watermark(TIME_MAX_MS)
        assert Counter(map(repr, sent + harness.output.rows)) == Counter(map(repr, model.output.rows))


def batch(side, keys, at):
    rows = [(int(key), 1, "a") if side == 0 else (int(key), 0.5, 1) for key in keys]
    return columns(rows, [at] * len(rows), (LEFT, RIGHT)[side])


# --- how much memory, and when


@pytest.fixture
def share_of_400_kb(monkeypatch):
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 400_000)
    monkeypatch.setattr(spilling_intervals, "NUM_PARTITIONS", 16)
    monkeypatch.setattr(spilling_intervals, "_SEGMENT_ROWS", 1 << 12)


def some_of_3000(number):
    return [key % 3000 for key in range(number // 2 * 500, number // 2 * 500 + 500)]


def many(number, side, at=None):
    return batch(side, (number * 500 + np.arange(500)) * 7919 % 20_011, number if at is None else at)


@pytest.mark.usefixtures("share_of_400_kb")
@pytest.mark.parametrize("config", [FULL, ROCKSDB], ids=["hashmap", "rocksdb"])
def test_memory_stays_bounded_and_files_go_when_the_time_has_passed_them(config):
    spec = column_interval_join(interval((-30, 30), FUNCTIONS["added"]), SHAPES)
    gc.collect()
    num_open, results = len(os.listdir("/proc/self/fd")), []
    with (
        OperatorHarness(spec, memory_bytes=1, config=config) as harness,
        OperatorHarness(spec, memory_bytes=1 << 30) as model,
    ):
        state, most = harness.head._state, 0
        for number in range(90):
            for own in (harness, model):
                for side in range(2):
                    own.process_batch(many(number, side), input_index=side)
                own.watermark(number)
            assert state.nbytes < 400_000
            most = max(most, sum(segment.num_rows for side in state.segments for segment in side))
        assert state.is_spilled
        assert not model.head._state.is_spilled
        assert not harness.head._is_on_rows
        assert 30_000 < most < 45_000  # of 90 000
        for own in (harness, model):
            own.watermark(1000)
            own.watermark(TIME_MAX_MS)
            results.append(Counter(zip(own.output.rows, own.output.timestamps_ms, strict=True)))
        assert results[0] == results[1]
        assert results[0].total() == 45_000
        assert not state.is_spilled  # there is room again
        gc.collect()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= num_open + (8 if config is ROCKSDB else 0)


@pytest.mark.usefixtures("share_of_400_kb")
def test_records_far_ahead_do_not_keep_those_beside_them(monkeypatch):
    monkeypatch.setattr(spilling_intervals, "_SEGMENT_ROWS", 1)  # no segments become one
    with OperatorHarness(
        column_interval_join(interval((-5, 5), FUNCTIONS["added"]), SHAPES), memory_bytes=1
    ) as harness:
        for number in range(150):
            rows = many(number, number % 2)
            rows.timestamps_ms[-1] = 10_000
            harness.process_batch(rows, input_index=number % 2)
            harness.watermark(number)
        harness.head._passes.take_up_all()
        state = harness.head._state
        assert sum(segment.num_rows for side in state.segments for segment in side) < 20_000


@pytest.mark.usefixtures("share_of_400_kb")
def test_records_and_the_time_wait_for_a_while_and_not_longer():
    clock = ManualClock(1000)
    spec = column_interval_join(interval((-30, 30), FUNCTIONS["added"]), SHAPES)
    with OperatorHarness(spec, memory_bytes=1, clock=clock) as harness:
        head, number = harness.head, 0
        while not head._state.is_spilled:
            harness.process_batch(many(number, number % 2), input_index=number % 2)
            number += 1
        harness.watermark(2)
        assert harness.output.watermarks_ms == [2]  # nothing waits
        assert head.next_timer_ms() is None
        harness.process_batch(many(0, 1, at=3), input_index=1)
        sent = len(harness.output.rows)
        harness.watermark(3)
        assert harness.output.watermarks_ms == [2]
        assert 1000 < head.next_timer_ms() <= 1100
        while (due_ms := head.next_timer_ms()) is not None:
            clock.advance(due_ms - clock.now_ms())
            head.on_timer(clock.now_ms())
        assert harness.output.watermarks_ms == [2, 3]
        assert len(harness.output.rows) == sent + 500


@pytest.mark.usefixtures("share_of_400_kb")
@pytest.mark.parametrize("after", ["files", "memory", "rows"])
def test_a_checkpoint_of_files_goes_to_files_to_memory_and_to_rows(after):
    rows = interval((-100, 100), FUNCTIONS["added"])
    spec = column_interval_join(rows, SHAPES)
    taken, num_sent = [], 0
    for index in range(2):
        with OperatorHarness(spec, memory_bytes=1, subtask_index=index, parallelism=2) as harness:
            for number in range(24):
                keys = [key for key in some_of_3000(number) if subtask_of(key, 2) == index]
                harness.process_batch(batch(number % 2, keys, number), input_index=number % 2)
            assert harness.head._state.is_spilled
            taken.append(harness.snapshot(1))
            num_sent += len(harness.output.rows)
    with OperatorHarness(rows) as model:
        for number in range(24):
            model.process_batch(batch(number % 2, some_of_3000(number), number), input_index=number % 2)
        before = len(model.output.rows)
        model.process_batch(batch(0, range(3000), 30))
        with OperatorHarness(
            rows if after == "rows" else spec, restored=taken, memory_bytes=1 if after == "files" else 1 << 30
        ) as harness:
            assert after == "rows" or harness.head._state.is_spilled is (after == "files")
            harness.process_batch(batch(0, range(3000), 30))
            harness.watermark(TIME_MAX_MS)
            assert num_sent + len(harness.output.rows) == len(model.output.rows) > before


@pytest.mark.usefixtures("share_of_400_kb")
def test_a_forked_child_reads_the_files_as_they_were():
    """Whatever the parent writes, joins and forgets meanwhile."""
    with OperatorHarness(
        column_interval_join(interval((-9, 9), FUNCTIONS["added"]), SHAPES), memory_bytes=1
    ) as harness:
        for number in range(24):
            harness.process_batch(many(number // 2, number % 2), input_index=number % 2)
        parts = harness.contexts[0].state.keyed
        state, unsent = parts["join-records"], parts["join-pairs"]
        assert unsent.num_entries()
        before = dict(state.lazy_snapshot(range(128))), dict(unsent.lazy_snapshot(range(128)))
        as_it_was = state.lazy_snapshot(range(128)), unsent.lazy_snapshot(range(128))
        incoming, outgoing = os.pipe()
        child = os.fork()
        if not child:
            for descriptor in range(3, 256):  # as a child of a snapshot does
                if descriptor != incoming:
                    with contextlib.suppress(OSError):
                        os.close(descriptor)
            os.read(incoming, 1)  # until the parent has gone on
            os._exit(0 if (dict(as_it_was[0]), dict(as_it_was[1])) == before else 1)
        for number in range(24, 48):
            harness.process_batch(many(number // 2, number % 2), input_index=number % 2)
            harness.watermark(number // 2)
        harness.watermark(TIME_MAX_MS)
        gc.collect()
        os.write(outgoing, b"x")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        os.close(incoming)
        os.close(outgoing)


# --- parts

NUMBERS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 30)), max_size=25, unique_by=lambda r: r[2]
)


@given(
    NUMBERS, NUMBERS, st.integers(1, 7), st.integers(-3, 0), st.integers(0, 3), st.integers(0, 30), st.integers(0, 9)
)
@settings(max_examples=80, deadline=None)
def test_pairs_of_codes_are_those_within_the_bounds_that_came_before(rows, partners, size, lower, upper, mark, floor):
    def arrays(some):
        codes, *rest = zip(*sorted(some), strict=True) if some else ((), (), ())
        return np.array(codes, np.uint64), *(np.array(own, np.int64) for own in rest)

    mine, others = arrays(rows), arrays(partners)
    gone = np.full(len(rows), mark, np.int64), np.full(len(rows), floor, np.int64)
    out = np.empty(size, np.int64), np.empty(size, np.int64)
    found, at = [], (0, 0, -1)
    while at[0] < len(rows):
        *reached, num = pairs_of_codes((*mine, *gone), others, at, (lower, upper), (5, 28), 1, *out)
        at = tuple(reached)
        found += zip(out[0][:num].tolist(), out[1][:num].tolist(), strict=True)
    expected = [
        (row, partner)
        for row, (code, time, arrival) in enumerate(sorted(rows))
        for partner, (other, other_time, other_arrival) in enumerate(sorted(partners))
        if code == other
        and 5 <= arrival < 28
        and time + lower <= other_time <= time + upper
        and other_time > 1
        and other_arrival < arrival
        and (other_arrival >= mark or other_time > floor)
    ]
    assert found == expected


def test_keys_with_the_same_code_are_told_apart(monkeypatch):
    """All keys have it; the hash of one of two million is another's by chance."""
    monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: held_bytes > 0)
    monkeypatch.setattr(spilling_intervals, "_RETURN_SHARE", -1)
    monkeypatch.setattr(HashPartitions, "codes_of_rows", lambda self, keys: np.zeros(len(keys[0]), np.uint64))
    monkeypatch.setattr(join_segments, "_PAIRS_MAX", 50)
    rows = interval((-9, 9), FUNCTIONS["added"])
    steps = [
        (side, [((key % 10, 1, "a") if side == 0 else (key % 10, 0.5, 1), 5) for key in range(30)]) for side in (0, 1)
    ]
    check_told(told(column_interval_join(rows, SHAPES), steps), told(rows, steps))
