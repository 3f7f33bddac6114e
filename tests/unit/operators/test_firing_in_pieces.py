"""A watermark whose results come in pieces: what it would have given at once, also with checkpoints in between, from
which subtasks go on in other parallelisms."""

from __future__ import annotations

import random

import pytest

from engine.core.records import RowBatch
from engine.operators import (
    column_session,
    column_window_operator,
    memory_watch,
    pace,
    spilled_panes,
    spilling_windows,
    window_firing,
)
from engine.operators.aggregate import FieldAggregate
from engine.operators.column_folds import shape_of_schema
from engine.operators.column_window import column_window
from engine.operators.field_aggregates import avg, count, sum_
from engine.operators.functions import RuntimeContext
from engine.operators.keys import FieldKey
from engine.operators.process import ProcessSpec
from engine.operators.process_functions import KeyedProcessFunction
from engine.operators.window_contents import ReduceFold
from engine.state.key_groups import key_group_of, subtask_of_key_group
from engine.time.assigners import EventTimeSessionWindows
from engine.time.watermarks import Time
from engine.time.windows import TIME_MAX_MS
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.test_column_window import AGGREGATES, ASSIGNERS, SCHEMA, built_in, columns, drive, windows

#: few: each chunk costs a millisecond here
NUM_GROUPS = 8
SESSIONS = EventTimeSessionWindows.with_gap(Time.milliseconds(5))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(window_firing, "BATCH_ROWS_MAX", 2)
    monkeypatch.setattr(column_window_operator, "_CALLS_MAX", 1)
    monkeypatch.setattr(column_session, "BATCH_ROWS_MAX", 2)
    monkeypatch.setattr(column_session, "_CALLS_MAX", 1)
    monkeypatch.setattr(pace, "_CALLS_MAX", 1)


@pytest.fixture
def in_files(monkeypatch):
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 1)
    monkeypatch.setattr(spilling_windows, "NUM_PARTITIONS", 4)
    monkeypatch.setattr(spilled_panes, "_RECORDS_MIN", 3)
    monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 400)
    monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: held_bytes > 0)


def row(rng, nulls, num_keys):
    name = rng.choice([*nulls, "", "a", "é"])
    return rng.choice([*nulls, *range(num_keys)]), rng.choice([*nulls, *range(-5, 5)]), 0.5, name


@pytest.fixture(params=["in memory", "in files"])
def in_some_files(request):
    if request.param == "in files":
        request.getfixturevalue("in_files")


def script(rng, nulls, num_keys):
    """Batches of (row, time), and rising watermarks that close several windows at once."""
    steps, watermark_ms = [], -30
    for _ in range(rng.randint(3, 6)):
        for _ in range(rng.randint(1, 2)):
            steps.append(
                [(row(rng, nulls, num_keys), watermark_ms + rng.randint(-12, 25)) for _ in range(rng.randint(1, 14))]
            )
        watermark_ms += rng.randint(0, 25)
        steps.append(watermark_ms)
    return [*steps, TIME_MAX_MS - 1]


class Job:
    """Subtasks that fire piece by piece, take checkpoints whenever they can, and are lost now and then."""

    def __init__(self, spec, rng):
        self._spec, self._rng = spec, rng
        self._base = None
        self._number = self.num_pieces = self.num_between = 0
        self._late, self._seen = [], []
        self._begin(2, None)

    def _begin(self, parallelism, restored):
        self._base = None
        self.subtasks = []
        for index in range(parallelism):
            subtask = OperatorHarness(self._spec, subtask_index=index, parallelism=parallelism, restored=restored)
            subtask.runtime_context = RuntimeContext(
                task_name="Test", subtask_index=index, parallelism=parallelism, max_parallelism=NUM_GROUPS
            )
            self.subtasks.append(subtask.__enter__())

    def send(self, rows, stamps):
        num = len(self.subtasks)
        for index, subtask in enumerate(self.subtasks):
            groups = [subtask_of_key_group(key_group_of(row[0], NUM_GROUPS), num, NUM_GROUPS) for row in rows]
            own = [at for at, group in enumerate(groups) if group == index]
            if own:
                subtask.process_batch(columns([rows[at] for at in own], [stamps[at] for at in own]))

    def advance(self, watermark_ms):
        """Let the time go on, in all subtasks at once, in any order of their pieces; return False if they are lost."""
        under_way = {}
        for subtask in self.subtasks:
            pieces = subtask.head.advance_watermark(watermark_ms)
            if pieces is not None and next(pieces, "end") is None:  # the first piece is done at once
                under_way[subtask] = pieces
        while under_way:
            subtask = self._rng.choice(list(under_way))
            try:
                next(under_way[subtask])
                self.num_pieces += 1
            except StopIteration:
                del under_way[subtask]
            if all(one.head.can_snapshot_between() for one in under_way) and self._rng.random() < 0.4:
                self.num_between += bool(under_way)
                if self.checkpoint():
                    for pieces in under_way.values():
                        pieces.close()
                    return False
        return True

    def reach(self, watermark_ms):
        """Let the time go on, which comes again after each restore."""
        while not self.advance(watermark_ms):
            pass

    def checkpoint(self):
        """Return whether all subtasks were lost behind it."""
        self._number += 1
        base, number = self._base, self._number
        taken = [
            subtask.snapshot(number, since=None if base is None else base[i]) for i, subtask in enumerate(self.subtasks)
        ]
        self._base = taken
        if self._rng.random() < 0.5:
            return False
        self._collect()
        self.close()
        self._begin(self._rng.randint(1, 3), taken)
        return True

    def close(self):
        for subtask in self.subtasks:
            subtask.__exit__()

    def _collect(self):
        for subtask in self.subtasks:
            for batch in subtask.output.batches:
                rows = batch if isinstance(batch, RowBatch) else batch.to_rows()
                self._seen += zip(map(repr, rows.rows), rows.timestamps_ms, strict=True)
            subtask.output.batches.clear()
            for batch in subtask.output.side.pop("late", []):
                self._late += map(repr, (batch if isinstance(batch, RowBatch) else batch.to_rows()).rows)

    def play(self, steps):
        """Return what each step gave, sorted, and what came too late."""
        seen = []
        for step in steps:
            if isinstance(step, int):
                self.reach(step)
                while self._rng.random() < 0.3 and self.checkpoint():
                    self.reach(step)
            else:
                self.send(*zip(*step, strict=True))
            self._collect()
            seen.append(sorted((row.replace("-0.0", "0.0"), stamp) for row, stamp in self._seen))
            self._seen.clear()
        self.close()
        return seen, sorted(self._late)


def check(spec, rows, seeds=range(8), *, between=True, nulls=(None,), num_keys=8):
    """Whether the operator in pieces gives what that on rows gives at once."""
    num_pieces = num_between = 0
    for seed in seeds:
        rng = random.Random(seed)
        steps = script(rng, nulls, num_keys)
        with OperatorHarness(rows, name="Window") as harness:
            expected = drive(harness, steps, zeros_alike=True)[:2]
        job = Job(spec, rng)
        assert job.play(steps) == expected, seed
        num_pieces += job.num_pieces
        num_between += job.num_between
    assert num_pieces > 5 * len(seeds)
    assert bool(num_between) is between


def aggregates_of(kind, lateness_ms):
    simple = kind in ("tumbling", "offset")
    found = [one for one in AGGREGATES if simple or one.kind not in ("first", "last")]
    return [one for one in found if simple or not lateness_ms or one.kind != "count_distinct"]


@pytest.mark.parametrize("lateness_ms", [0, 7])
@pytest.mark.parametrize("kind", ASSIGNERS)
def test_windows_on_columns_fire_in_pieces_as_rows_do_at_once(kind, lateness_ms):
    rows = built_in(ASSIGNERS[kind], aggregates_of(kind, lateness_ms), lateness_ms=lateness_ms, late_tag="late")
    check(column_window(rows), rows)


@pytest.mark.parametrize("kind", ["sliding", "cumulating"])
def test_windows_of_slices_that_are_merged_range_by_range_give_what_those_of_rows_give(kind):
    few = [one for one in AGGREGATES if one.kind not in ("first", "last", "count_distinct")]
    rows = built_in(ASSIGNERS[kind], few, late_tag="late")
    check(column_window(rows), rows)


@pytest.mark.usefixtures("in_files")
@pytest.mark.parametrize("lateness_ms", [0, 7])
@pytest.mark.parametrize("kind", ["tumbling", "sliding"])
def test_windows_in_files_fire_in_pieces(kind, lateness_ms):
    rows = built_in(ASSIGNERS[kind], [count(), sum_(1)], lateness_ms=lateness_ms, late_tag="late")
    check(column_window(rows), rows)


@pytest.mark.usefixtures("in_files")
@pytest.mark.parametrize("kind", ["tumbling", "sliding"])
def test_windows_fire_in_pieces_while_slices_are_on_their_way_to_files(kind, monkeypatch):
    rng = random.Random(7)
    monkeypatch.setattr(spilling_windows, "_MOVED_BYTES_MAX", 1)
    monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: rng.random() < 0.5)
    rows = built_in(ASSIGNERS[kind], [count(), sum_(1)], late_tag="late")
    check(column_window(rows), rows, num_keys=20)


@pytest.mark.usefixtures("in_files")
def test_a_checkpoint_between_pieces_lets_the_rest_of_another_slice_go_and_slots_keep_their_numbers(monkeypatch):
    """The keys of the slice that leaves have the lower slots, which are not needed any more then."""
    monkeypatch.setattr(spilling_windows, "_MOVED_BYTES_MAX", 1)
    spec = column_window(built_in(ASSIGNERS["tumbling"], [count(), sum_(1)]))
    keys = [*range(40), 200, 201, *range(100, 110)]
    times_ms = [35] * 40 + [15, 25] + [5] * 10
    with OperatorHarness(spec) as harness:
        harness.process_batch(columns([(key, key, 0.5, "a") for key in keys], times_ms))
        state = harness.head._state
        assert harness.head._windows.spilled.starts() == [30]
        assert set(state.panes) == {0, 10, 20, 30}
        pieces = harness.head.advance_watermark(12)
        next(pieces)
        next(pieces)
        assert harness.head.can_snapshot_between()
        snapshot = harness.snapshot(1)
        assert set(state.panes) == {0, 10, 20}
        assert results_of(harness) == [(key, 0, 10, 1, key) for key in range(100, 104)]
        for _ in pieces:
            pass
        rest = [(key, 0, 10, 1, key) for key in range(104, 110)]
        assert results_of(harness) == rest
        assert state._table.num_slots == 2  # memory is given back then
    with OperatorHarness(spec, restored=[snapshot]) as harness:
        harness.watermark(12)
        assert sorted(results_of(harness)) == rest
        harness.watermark(TIME_MAX_MS - 1)
        later = [(200, 10, 20, 1, 200), (201, 20, 30, 1, 201), *((key, 30, 40, 1, key) for key in range(40))]
        assert sorted(results_of(harness)) == sorted(later)


def results_of(harness):
    found = [row for batch in harness.output.batches for row in batch.to_rows().rows]
    harness.output.batches.clear()
    return found


@pytest.mark.parametrize("lateness_ms", [0, 7])
def test_windows_whose_results_a_function_makes_fire_in_pieces(lateness_ms):
    fold = ReduceFold(lambda a, b: (a[0], b[1], a[2], a[3]))
    rows = windows(ASSIGNERS["tumbling"], fold, lateness_ms=lateness_ms, late_tag="late")
    spec = column_window(rows, shape_of_schema(SCHEMA))
    check(spec, rows, nulls=())


@pytest.mark.parametrize("lateness_ms", [0, 7])
def test_records_of_windows_come_in_pieces(lateness_ms):
    fold = ReduceFold(FieldAggregate("min_by", 0))
    rows = windows(ASSIGNERS["tumbling"], fold, FieldKey(0), lateness_ms=lateness_ms, late_tag="late")
    check(column_window(rows), rows, nulls=())


@pytest.mark.parametrize("lateness_ms", [0, 7])
@pytest.mark.parametrize("kind", ["tumbling", "sliding"])
def test_windows_on_rows_fire_in_pieces(kind, lateness_ms):
    rows = built_in(ASSIGNERS[kind], [count(), sum_(1)], lateness_ms=lateness_ms, late_tag="late")
    check(rows, rows, between=lateness_ms > 0)  # else windows go as a whole


@pytest.mark.parametrize("lateness_ms", [0, 7])
def test_sessions_fire_in_pieces(lateness_ms):
    rows = built_in(SESSIONS, [count(), sum_(1)], lateness_ms=lateness_ms, late_tag="late")
    check(column_session.column_session(rows), rows, between=False)
    check(rows, rows)


class Alarms(KeyedProcessFunction):
    """Has two timers for each record, of which some register another when they fire."""

    def process_element(self, value, ctx):
        ctx.timer_service().register_event_time_timer(ctx.timestamp() + 3)
        ctx.timer_service().register_event_time_timer(ctx.timestamp() // 10 * 10)

    def on_timer(self, timestamp, ctx):
        if timestamp % 5 == 0:
            ctx.timer_service().register_event_time_timer(timestamp + 1)
        yield ctx.get_current_key(), timestamp


def test_timers_fire_in_pieces():
    spec = ProcessSpec(Alarms(), FieldKey(0))
    check(spec, spec)


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize(("kind", "lateness_ms"), [("sliding", 0), ("tumbling", 7), ("cumulating", 0)])
def test_subtasks_with_other_times_come_together(kind, lateness_ms, is_first, in_some_files):
    """Barriers that overtake records find one subtask at a time at which the other has not been yet."""
    rows = built_in(ASSIGNERS[kind], [count(), avg(1)], lateness_ms=lateness_ms)
    found = []
    for spec in (rows, column_window(rows)):
        job = Job(spec, random.Random(1))
        job.send([(key, 1, 0.5, "a") for key in range(9)], [5] * 9)
        job.subtasks[not is_first].watermark(12)
        for number, parallelism in enumerate((3, 2, 1)):  # each checkpoint tells it again
            job._collect()
            taken = [subtask.snapshot(number + 1) for subtask in job.subtasks]
            job.close()
            job._begin(parallelism, taken)
        job.reach(TIME_MAX_MS - 1)
        job._collect()
        job.close()
        found.append(sorted(job._seen))
    assert found[0] == found[1]
    assert len(set(found[0])) == len(found[0])


@pytest.mark.parametrize("is_first", [True, False])
def test_rows_go_on_with_windows_of_subtasks_with_other_times(is_first):
    rows = built_in(ASSIGNERS["sliding"], [count()])
    found = []
    for spec in (rows, column_window(rows)):
        job = Job(spec, random.Random(1))
        job.send([(key, 1, 0.5, "a") for key in range(9)], [5] * 9)
        job.subtasks[not is_first].watermark(12)
        job._collect()
        taken = [subtask.snapshot(1) for subtask in job.subtasks]
        job.close()
        job._begin(1, taken)
        (subtask,) = job.subtasks
        subtask.process([(20, 1, 0.5, "a")], [30])
        subtask.watermark(TIME_MAX_MS - 1)
        job._collect()
        job.close()
        found.append(sorted(job._seen))
    assert found[0] == found[1]
