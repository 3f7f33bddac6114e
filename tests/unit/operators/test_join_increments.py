"""Increments of interval and window joins on columns: chains of them say what full snapshots say."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.checkpoint.column_tables import column_entries, gone_by
from engine.operators import memory_watch, spilling_intervals
from engine.operators.column_interval_join import column_interval_join
from engine.operators.column_window_join import column_window_join
from engine.operators.join_marks import JoinMarks
from engine.operators.join_state import layer_of, told_of
from engine.time.windows import TIME_MAX_MS
from tests.testing.operator_harness import OperatorHarness, SubtaskSnapshot
from tests.unit.operators.restore_cases import MARK, Case, Rows, Watermark
from tests.unit.operators.test_column_joins import FUNCTIONS, LEFT, RIGHT, ROUTES, SHAPES, batches, interval
from tests.unit.operators.test_restore import INCREMENTAL, Run, straight
from tests.unit.operators.test_restore_columns import PHASES, in_order
from tests.unit.operators.test_spilling_intervals import batch
from tests.unit.operators.test_spilling_joins import files_for_all, files_for_some, late

GROUPS = range(128)
JOINS = ("interval", "before", "tumbling", "sliding", "late")


def joined(name):
    """Return a join on rows, and the same on columns."""
    if name in ("interval", "before"):
        rows = interval((-5, 5) if name == "interval" else (-9, -2), FUNCTIONS["called"])
        return rows, column_interval_join(rows, SHAPES)
    rows = late("sliding" if name == "late" else name, FUNCTIONS["called"], 7 if name == "late" else 0)
    return rows, column_window_join(rows, SHAPES)


@pytest.fixture(params=["memory", "files", "some in files"])
def place(request, monkeypatch):
    if request.param != "memory":
        (files_for_all if request.param == "files" else files_for_some)(monkeypatch)
        monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: held_bytes > 0)
        monkeypatch.setattr(spilling_intervals, "NUM_PARTITIONS", 4)
        monkeypatch.setattr(spilling_intervals, "_SEGMENT_ROWS", 4)
        monkeypatch.setattr(spilling_intervals, "_RETURN_SHARE", -1 if request.param == "files" else 1000)
        monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 1 << 20 if request.param == "files" else 400)
    return request.param


STEPS = st.lists(st.one_of(batches(), batches(), st.just(MARK), st.integers(0, 55).map(Watermark)), max_size=12).map(
    in_order
)


@pytest.mark.parametrize("name", JOINS)
@pytest.mark.parametrize("after", ["columns", "rows"])
def test_whoever_goes_on_with_a_chain_of_increments_gives_what_rows_give(name, after, place):
    rows, spec = joined(name)

    @settings(max_examples=10, deadline=None, phases=PHASES)
    @given(STEPS, STEPS, st.integers(1, 2), st.integers(1, 3))
    def check(steps, more, first, second):
        more = [*(step for step in more if not isinstance(step, Watermark)), Watermark(TIME_MAX_MS)]
        run = Run(Case((spec,), [], ROUTES), INCREMENTAL, None)
        run.start(first)
        run.play([*steps, MARK])
        if after == "rows":
            run.case = Case((rows,), [], ROUTES)
        run.start(second)
        run.play(more)
        assert run.finish() == straight(Case((rows,), [*steps, *more], ROUTES))

    check()


@pytest.mark.parametrize("name", JOINS)
def test_increments_build_on_each_other_and_on_those_before_a_restore(name, place):
    rows, spec = joined(name)
    script = [
        step
        for at in range(8)
        for step in (
            Rows([(key, at, "a") for key in range(at, at + 30)], [5 * at + 1] * 30, 0, LEFT),
            Rows([(key, 0.5, at) for key in range(at, at + 30)], [5 * at + 3] * 30, 1, RIGHT),
            MARK,
            Watermark(5 * at),
        )
    ]
    run = Run(Case((spec,), [], ROUTES), INCREMENTAL, None)
    run.start(2)
    run.play(script[:16])
    assert run.num_deltas > 4
    run.start(2)
    run.play(script[16:24])
    assert run.num_deltas > 8
    assert len(run.snapshots[0].layers[0]["join-records"]) > 4
    run.start(1)
    run.play([*script[24:], Watermark(TIME_MAX_MS)])
    assert run.finish() == straight(Case((rows,), [*script, Watermark(TIME_MAX_MS)], ROUTES))


def contents(harness):
    """What full snapshots, and readers of these, see."""
    layers = harness.head._state.snapshot(GROUPS).values()
    return sorted(
        (records.side, row, stamp)
        for chunk in layers
        for records in layer_of(chunk)[1]
        for row, stamp in zip(*records.rows(), strict=True)
    )


@pytest.mark.parametrize("name", JOINS)
def test_what_a_checkpoint_had_that_failed_is_in_the_next(name, place):
    _, spec = joined(name)
    with OperatorHarness(spec) as harness:
        state = harness.head._state

        def play(at):
            for side in range(2):
                harness.process_batch(batch(side, range(at, at + 30), 3 * at), input_index=side)
            harness.watermark(3 * at - 4)
            harness.process_batch(batch(0, range(at), 3 * at + 1))

        play(1)
        full = dict(state.snapshot(GROUPS))
        state.begin_epoch(1)
        play(3)
        failed = state.snapshot_delta(GROUPS, 1)
        noted = state.note_delta(GROUPS, 1, 10_000)
        assert noted is None or noted.chunks() == failed
        assert noted is not None or place != "memory"
        state.begin_epoch(2)
        play(4)
        state.begin_epoch(3)
        state.forget_epochs(1)
        play(5)
        on_full, on_failed = state.snapshot_delta(GROUPS, 1), state.snapshot_delta(GROUPS, 2)
        assert sum(map(len, on_failed.values())) < sum(map(len, on_full.values()))
        assert state.num_changed(2, 1 << 40) < state.num_changed(1, 1 << 40)
        assert state.num_changed(1, 10) is None
        expected = contents(harness)
        state.forget_epochs(3)
        assert state.snapshot_delta(GROUPS, 1) is None
    for layers in ([full, on_full], [full, failed, on_failed]):
        taken = SubtaskSnapshot(3, [{"join-records": layers}], [None])
        with OperatorHarness(spec, restored=[taken]) as harness:
            assert contents(harness) == expected
        cells = {}
        for chunk in (layer.get(group, b"") for group in GROUPS for layer in layers):
            if is_gone := gone_by("join-records", chunk):
                for place_ in [place_ for place_, entry in cells.items() if is_gone(entry)]:
                    del cells[place_]
            for key, side, record in column_entries("join-records", chunk):
                cells[key, side, record["k"]] = (key, side, record)
        assert len(cells) == len(expected)


@pytest.mark.parametrize("name", ["interval", "tumbling"])
def test_an_increment_is_as_large_as_what_has_come(name):
    _, spec = joined(name)
    with OperatorHarness(spec) as harness:
        state = harness.head._state
        for side in range(2):
            harness.process_batch(batch(side, range(20_000), 5), input_index=side)
        state.begin_epoch(1)
        harness.process_batch(batch(0, range(200), 6))
        harness.watermark(4)
        full, increment = state.snapshot(GROUPS), state.snapshot_delta(GROUPS, 1)
        sizes = [sum(map(len, chunks.values())) for chunks in (full, increment)]
        assert sizes[1] < sizes[0] / 8  # of which most is what each chunk has besides
        assert sum(records.times_ms.size for chunk in increment.values() for records in layer_of(chunk)[1]) == 200
        assert len(increment) == 128
        assert all(told_of(chunk).watermark_ms == 4 for chunk in increment.values())
        assert 190 < state.num_changed(1, 1 << 40) < 210


def test_slices_that_are_gone_are_forgotten_with_the_barriers_that_could_ask():
    marks = JoinMarks()
    marks.note_gone(1)
    for number in range(1, 5):
        marks.begin(number, (0, 0), 0)
        marks.note_gone(10 * number)
    assert marks.gone_since(marks.of(1)) == (10, 20, 30, 40)
    marks.forget(3, (2,))
    assert marks.of(1) is None
    assert marks.gone_since(marks.of(2)) == (20, 30, 40)
    assert len(marks._gone) == 3
    for number in range(5, 50):
        marks.begin(number, (0, 0), 0)
        marks.note_gone(10 * number)
    assert len(marks._gone) == 32
    assert marks.gone_since(marks.of(49)) == (490,)
