"""Increments of sessions on columns: whatever a checkpoint builds on, it holds what a full one of its barrier would."""

from __future__ import annotations

import random

import pytest

from engine.checkpoint.column_tables import column_entries, replaced_keys
from engine.operators import memory_watch, session_changes, session_keys, session_state, spilling_sessions
from engine.operators.column_folds import shape_of_schema
from engine.operators.column_session import column_session
from engine.operators.field_aggregates import count, count_distinct, first, last, max_, sum_
from engine.operators.keys import FieldKey
from engine.time.windows import TIME_MAX_MS
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.test_column_session import REDUCES, SESSIONS, reduced
from tests.unit.operators.test_column_window import SCHEMA, built_in, columns
from tests.unit.operators.test_spilling_sessions import shown_entries
from tests.unit.operators.test_window_increments import Job, records

AGGREGATES = [count(), sum_(1), sum_(2), max_(1), first(3), last(1), count_distinct(3)]


class SessionJob(Job):
    part = "session-slots"
    takes_nulls = True

    def send(self, rows, stamps):
        if not self.takes_nulls:  # a function that picks a record may not see any on columns
            rows = [(key or 0, value or 0, amount or 0.0, name or "") for key, value, amount, name in rows]
        super().send(rows, stamps)

    def pending(self, harness):
        return set()

    def held(self):
        """Return what all subtasks hold; of a key in the order of its changes."""
        found: dict[str, list[str]] = {}
        for harness, groups in zip(self.harnesses, self.groups, strict=True):
            chunks = harness.contexts[0].state.keyed[self.part].snapshot(groups)
            for chunk in chunks.values():
                for entry in shown_entries(chunk):
                    found.setdefault(repr(entry[0]), []).append(repr(entry))
        return found


def spec_of(name, lateness_ms):
    if name == "aggregates":
        return built_in(SESSIONS, AGGREGATES, FieldKey(0), late_tag="late", lateness_ms=lateness_ms)
    return reduced(REDUCES[name], lateness_ms=lateness_ms)


@pytest.fixture
def files_of_little(monkeypatch):
    monkeypatch.setattr(spilling_sessions, "NUM_PARTITIONS", 4)
    monkeypatch.setattr(session_state, "_COMPACT_MIN", 16)
    monkeypatch.setattr(session_keys, "_RENEWED_MIN", 3)  # keys are forgotten bit by bit
    monkeypatch.setattr(session_keys, "_RENEWED_PER_ROW", 0)


def in_files(monkeypatch, are_there):
    monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: are_there and held_bytes > 0)
    monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 400 if are_there else 1 << 30)


@pytest.mark.usefixtures("files_of_little")
@pytest.mark.parametrize(
    ("name", "lateness_ms", "seed"),
    [("aggregates", 0, 1), ("aggregates", 9, 2), ("aggregates", 9, 3), ("the last", 0, 4), ("the last", 9, 5)],
)
def test_each_checkpoint_has_the_sessions_of_its_barrier_whatever_it_builds_on(
    name, lateness_ms, seed, tmp_path, monkeypatch
):
    monkeypatch.setattr(SessionJob, "takes_nulls", name == "aggregates")
    rng = random.Random(f"{name} {seed}")
    rows = spec_of(name, lateness_ms)
    spec = column_session(rows, shape_of_schema(SCHEMA))
    in_files(monkeypatch, False)
    job = SessionJob(spec, rng.choice([1, 2]), tmp_path)
    taken, time_ms = [], 0
    ends = ["completed", "completed", "completed", "acknowledged", "aborted", "savepoint"]
    for number in range(14):
        for _ in range(rng.randrange(3) if number else 2):
            job.send(*records(rng, time_ms + rng.choice([0, 0, 40]), rng.choice([3, 10, 30] if number else [600])))
        if rng.random() < 0.4:
            time_ms += rng.randrange(4)
            job.advance(max(job.watermark_ms, time_ms - 15))
        if number == 8 and seed % 2:
            in_files(monkeypatch, True)  # and back: there are full ones then
            job.send(*records(rng, time_ms, 3))
            in_files(monkeypatch, False)
        more = records(rng, time_ms, 20)
        made = job.checkpoint(rng.choice(ends) if number else "completed", lambda more=more: job.send(*more))
        if made.snapshots:
            taken.append(made)
        assert not any(harness.head._is_on_rows for harness in job.harnesses)
    job.close()
    assert sum(map(sum, (made.deltas for made in taken))) > 2
    with_layers = sorted(taken, key=lambda made: -max(made.deltas))[:3]
    for made in [*with_layers, rng.choice(taken)]:
        in_files(monkeypatch, is_in_files := rng.random() < 0.5)
        parallelism = rng.randrange(1, 4)
        goes_to_rows = rng.random() < 0.3
        starts_on_rows = name == "the last" and (made is with_layers[0] or rng.random() < 0.4)
        lives = [
            SessionJob(rows if starts_on_rows else spec, parallelism, tmp_path, restored=s)
            for s in (made.snapshots, made.full)
        ]
        if not starts_on_rows:
            assert lives[0].held() == lives[1].held()
            assert any(h.head._sessions.is_spilled for h in lives[0].harnesses) == is_in_files
        steps = [records(rng, time_ms, 40) for _ in range(2)]
        for life in lives:
            life.advance(made.watermark_ms)
            for step in steps:
                life.send(*step)
            if goes_to_rows and not starts_on_rows:
                for harness in life.harnesses:
                    harness.head._hand_over()
            life.send(*steps[0])
            life.advance(TIME_MAX_MS)
        assert lives[0].results() == lives[1].results()
        assert lives[0].results()
        for life in lives:
            life.close()


def test_an_increment_has_the_keys_that_changed_and_those_that_are_gone(tmp_path):
    rows = built_in(SESSIONS, [count(), sum_(1)])
    with OperatorHarness(column_session(rows)) as harness:
        part = harness.contexts[0].state.keyed["session-slots"]
        harness.process_batch(
            columns([(key, 1, 0.5, "a") for key in range(300)], [5 + key // 299 for key in range(300)])
        )
        part.begin_epoch(1)
        assert part.num_changed(1, 1000) == 0
        harness.process_batch(columns([(7, 1, 0.5, "b"), (8, 1, 0.5, "b")], [40, 6]))
        chunks = part.snapshot_delta(range(128), 1)
        shown = sorted((key, window.start) for chunk in chunks.values() for key, window, _ in shown_entries(chunk))
        assert shown == [(7, 5), (7, 40), (8, 5)]
        assert part.num_changed(1, 1000) == 2
        part.begin_epoch(2)
        assert part.snapshot_delta(range(128), 2) == {}
        harness.watermark(10)
        assert part.num_changed(2, 1000) == 298
        assert part.num_changed(2, 100) is None
        chunks = part.snapshot_delta(range(128), 2)
        assert sorted(key for chunk in chunks.values() for key in replaced_keys(chunk)) == [
            key for key in range(300) if key not in (8, 299)
        ]
        assert [e[0] for chunk in chunks.values() for e in column_entries("session-slots", chunk)] == [7]


def test_rows_that_follow_have_nothing_of_keys_that_are_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(SessionJob, "takes_nulls", False)
    rows = spec_of("the last", 0)
    job = SessionJob(column_session(rows, shape_of_schema(SCHEMA)), 1, tmp_path)
    job.send([(key, 1, 0.5, "a") for key in range(900)], [5] * 20 + [60] * 880)
    job.checkpoint("completed")
    job.advance(50)  # those of twenty keys fire
    job.send([(7, 2, 0.5, "c")], [70])
    made = job.checkpoint("completed")
    job.close()
    assert any(made.deltas)
    life = SessionJob(rows, 1, tmp_path, restored=made.snapshots)
    life.advance(TIME_MAX_MS)
    assert len(life.results()) == 881  # with that of key 7
    life.close()


def test_a_key_that_is_gone_is_known_until_the_checkpoint_is_complete(monkeypatch):
    monkeypatch.setattr(session_state, "_COMPACT_MIN", 16)
    rows = built_in(SESSIONS, [count(), sum_(1)])
    with OperatorHarness(column_session(rows)) as harness:
        part = harness.contexts[0].state.keyed["session-slots"]
        harness.process_batch(columns([(key, 1, 0.5, "a") for key in range(100)], [5] * 100))
        part.begin_epoch(1)
        for number in range(10):
            at = 20 + 10 * number
            harness.process_batch(columns([(1000 + 100 * number + key, 1, 0.5, "a") for key in range(100)], [at] * 100))
            harness.watermark(at)
        gone = {key for chunk in part.snapshot_delta(range(128), 1).values() for key in replaced_keys(chunk)}
        assert set(range(100)) <= gone
        for number in range(40):  # keys that nobody needs are forgotten again
            part.begin_epoch(2 + number)
            part.forget_epochs(2 + number)
            at = 200 + 10 * number
            harness.process_batch(columns([(5000 + 100 * number + key, 1, 0.5, "a") for key in range(100)], [at] * 100))
            harness.watermark(at)
        assert part.state.num_keys < 3000
        assert part.num_changed(41, 1000) == 200
        monkeypatch.setattr(session_changes, "_MARKED_MIN", 0)
        for number in range(40):
            at = 1000 + 10 * number
            harness.process_batch(columns([(9000 + 100 * number + key, 1, 0.5, "a") for key in range(100)], [at] * 100))
            harness.watermark(at)
        assert part.state.num_keys < 3000
        assert part.num_changed(41, 10_000) is None


def test_sessions_in_files_are_written_whole(monkeypatch):
    monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: held_bytes > 0)
    with OperatorHarness(column_session(built_in(SESSIONS, [count()])), memory_bytes=1) as harness:
        part = harness.contexts[0].state.keyed["session-slots"]
        harness.process_batch(columns([(1, 1, 0.5, "a")], [5]))
        assert part.is_spilled
        part.begin_epoch(1)
        assert part.num_changed(1, 1000) is None
        assert part.snapshot_delta(range(128), 1) is None
        assert part.note_delta(range(128), 1, 1000) is None


def test_keys_whose_sessions_fire_are_marked_and_stay_so_under_other_numbers():
    rows = built_in(SESSIONS, [count()], lateness_ms=20)
    with OperatorHarness(column_session(rows)) as harness:
        part = harness.contexts[0].state.keyed["session-slots"]
        harness.process_batch(columns([(key, 1, 0.5, "a") for key in range(100)], [5] * 100))
        harness.process_batch(columns([(key, 1, 0.5, "a") for key in (200, 201)], [60, 90]))
        harness.watermark(50)
        part.begin_epoch(1)
        harness.watermark(70)
        assert [entry[0] for entry in _entries(part, 1)] == [200]
        before = part.state.num_keys
        part.state._compact()
        assert part.state.num_keys < before
        assert [entry[0] for entry in _entries(part, 1)] == [200]


def _entries(part, since):
    return [e for chunk in part.snapshot_delta(range(128), since).values() for e in shown_entries(chunk)]
