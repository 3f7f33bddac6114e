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
from tests.testing.operator_harness import OperatorHarness, SubtaskSnapshot
from tests.unit.operators.test_column_session import GAP_MS, REDUCES, SESSIONS, reduced
from tests.unit.operators.test_column_window import SCHEMA, built_in, columns
from tests.unit.operators.test_spilling_sessions import shown_entries
from tests.unit.operators.test_window_increments import NUM_GROUPS, Job, records

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


def in_files(monkeypatch, are_there, limit_bytes=400):
    monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: are_there and held_bytes > 0)
    monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", limit_bytes if are_there else 1 << 30)


@pytest.mark.usefixtures("files_of_little")
@pytest.mark.parametrize(
    ("name", "lateness_ms", "seed", "limit_bytes"),
    [
        *(("aggregates", 0, 1, 0), ("aggregates", 9, 2, 0), ("aggregates", 9, 3, 0)),
        *(("the last", 0, 4, 0), ("the last", 9, 5, 0)),
        # In files, where little or more waits at a barrier.
        *(("aggregates", 0, 6, 400), ("aggregates", 0, 7, 30_000), ("aggregates", 0, 8, 60_000)),
        *(("aggregates", 9, 9, 400), ("aggregates", 9, 10, 30_000), ("aggregates", 9, 11, 60_000)),
        *(("the last", 0, 12, 30_000), ("the last", 9, 13, 30_000)),
    ],
)
def test_each_checkpoint_has_the_sessions_of_its_barrier_whatever_it_builds_on(
    name, lateness_ms, seed, limit_bytes, tmp_path, monkeypatch
):
    monkeypatch.setattr(spilling_sessions, "_RETURN_SHARE", -1)
    monkeypatch.setattr(SessionJob, "takes_nulls", name == "aggregates")
    rng = random.Random(f"{name} {seed}")
    rows = spec_of(name, lateness_ms)
    spec = column_session(rows, shape_of_schema(SCHEMA))
    in_files(monkeypatch, limit_bytes > 0, limit_bytes)
    job = SessionJob(spec, rng.choice([1, 2]), tmp_path)
    taken, time_ms = [], 0
    ends = ["completed", "completed", "completed", "acknowledged", "aborted", "savepoint"]
    for number in range(14):
        for _ in range(rng.randrange(3) if number else 2):
            job.send(*records(rng, time_ms + rng.choice([0, 0, 40]), rng.choice([3, 10, 30] if number else [600])))
        if rng.random() < 0.4:
            time_ms += rng.randrange(4)
            job.advance(max(job.watermark_ms, time_ms - 15))
        if number == 8 and seed % 2 and not limit_bytes:
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


def test_an_increment_of_files_has_what_changed_and_what_waits(monkeypatch):
    monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: held_bytes > 0)
    monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 10_000)
    monkeypatch.setattr(spilling_sessions, "_RETURN_SHARE", -1)
    rows = built_in(SESSIONS, [count(), sum_(1)], FieldKey(0), late_tag="late")
    with OperatorHarness(column_session(rows)) as harness:
        part = harness.contexts[0].state.keyed["session-slots"]

        def send(keys, time_ms):
            harness.process_batch(columns([(key, 1, 0.5, "a") for key in keys], [time_ms] * len(keys)))

        send(range(298), 5)
        assert part.is_spilled
        send([298, 299], 6)
        harness.head._passes.take_up_all()
        assert part.snapshot_delta(range(128), 1) is None
        part.begin_epoch(1)
        assert part.num_changed(1, 1000) == 0
        assert part.snapshot_delta(range(128), 1) == {}
        assert part.note_delta(range(128), 1, 1000) is None
        send([7, 300], 6)
        assert part.is_waiting
        assert part.num_changed(1, 1000) == 2
        assert part.num_changed(1, 1) is None
        chunks = part.snapshot_delta(range(128), 1)
        assert 1 <= len(chunks) <= 2
        assert sorted(entry[0] for chunk in chunks.values() for entry in shown_entries(chunk)) == [7, 300]
        assert harness.head.next_timer_ms() is None
        part.begin_epoch(2)  # on which increments have all key groups, as something waits
        assert harness.head.next_timer_ms() is not None  # or the next increment would have it again
        harness.head._passes.take_up_all()
        assert part.num_changed(2, 1000) == part.num_changed(1, 1000) == 2
        part.begin_epoch(3)
        assert part.snapshot_delta(range(128), 3) == {}
        chunks = part.snapshot_delta(range(128), 2)
        assert len(chunks) == 128
        assert sorted(entry[0] for chunk in chunks.values() for entry in shown_entries(chunk)) == [7, 300]
        part.forget_epochs(3, (1,))
        send([8], 6)
        harness.head._passes.take_up_all()
        assert part.num_changed(3, 1000) == 1
        assert part.num_changed(2, 1000) is None
        chunks = part.snapshot_delta(range(128), 1)
        assert sorted(entry[0] for chunk in chunks.values() for entry in shown_entries(chunk)) == [7, 8, 300]
        harness.head._sessions.advance(GAP_MS + 4)  # those of before 6 are due; nobody has taken that up
        chunks = part.snapshot_delta(range(128), 3)
        gone = {key for chunk in chunks.values() for key in replaced_keys(chunk)}
        assert gone == set(range(298)) - {7} | {8}
        harness.head._passes.take_up_all()
        part.begin_epoch(4)
        part.forget_epochs(4)
        send([*set(range(298)) - {7, 8}], 5)  # late: partitions without sessions are looked at
        harness.head._passes.take_up_all()
        assert part.num_changed(4, 1000) == 0


@pytest.mark.usefixtures("files_of_little")
@pytest.mark.parametrize("name", ["aggregates", "the last"])
def test_what_was_to_be_sent_is_sent_once_whatever_the_last_increment_has(name, tmp_path, monkeypatch):
    """What lower layers had to send has been sent when the next barrier comes, or is there again."""
    in_files(monkeypatch, True, 100_000)
    monkeypatch.setattr(spilling_sessions, "_RETURN_SHARE", -1)
    rows = spec_of(name, 0)
    spec = column_session(rows, shape_of_schema(SCHEMA))
    job = SessionJob(spec, 1, tmp_path)
    job.send([(key, 1, 0.5, "a") for key in range(1, 900)], [100] * 899)
    job.advance(40)
    job.send([(key, 1, 0.5, "a") for key in range(2000, 2010)], [20] * 10)  # late
    job.send([(key, 1, 0.5, "a") for key in range(3000, 3010)], [41] * 10)
    job.advance(60)  # these are due
    assert job.harnesses[0].head._sessions.is_waiting
    taken = [job.checkpoint("completed")]
    sent = [job.results()]
    for number in range(3):
        if number == 1:
            job.harnesses[0].head._passes.take_up_all()
        job.send([(1 + number, 1, 0.5, "a")], [101])
        taken.append(job.checkpoint("completed"))
        sent.append(job.results())
    job.advance(TIME_MAX_MS)
    every = job.results()
    job.close()
    assert all(made.deltas[0] for made in taken[1:])
    for made, before in zip(taken, sent, strict=True):
        for where in ("files", "memory", *(["rows"] if name == "the last" else [])):
            in_files(monkeypatch, where == "files")
            life = SessionJob(rows if where == "rows" else spec, 1, tmp_path, restored=made.snapshots)
            life.advance(60)
            more = [(1 + number, 1, 0.5, "a") for number in range(taken.index(made), 3)]
            if more:
                life.send(more, [101] * len(more))
            life.advance(TIME_MAX_MS)
            assert sorted([*before, *life.results()]) == every
            life.close()


@pytest.mark.usefixtures("files_of_little")
@pytest.mark.parametrize("where", ["files", "memory"])
def test_what_was_restored_to_be_sent_is_not_in_what_builds_on_it(where, tmp_path, monkeypatch):
    in_files(monkeypatch, True, 100_000)
    monkeypatch.setattr(spilling_sessions, "_RETURN_SHARE", -1)
    spec = column_session(spec_of("aggregates", 0))
    job = SessionJob(spec, 1, tmp_path)
    job.send([(key, 1, 0.5, "a") for key in range(1, 900)], [100] * 899)
    job.advance(40)
    job.send([(key, 1, 0.5, "a") for key in range(2000, 2010)], [20] * 10)  # late
    job.send([(key, 1, 0.5, "a") for key in range(3000, 3010)], [41] * 10)
    job.advance(60)  # these are due
    (full,) = job.checkpoint("completed").snapshots
    job.close()
    in_files(monkeypatch, where == "files")
    life = SessionJob(spec, 1, tmp_path, restored=[full])
    part = life.harnesses[0].contexts[0].state.keyed["session-slots"]
    assert part.is_spilled == (where == "files")
    part.begin_epoch(1)
    life.advance(60)
    life.send([(5, 1, 0.5, "a")], [101])
    sent = life.results()
    assert len(sent) == 20
    noted = part.note_delta(range(NUM_GROUPS), 1, 1_000_000)
    assert (noted is None) == (where == "files")
    delta = part.snapshot_delta(range(NUM_GROUPS), 1)
    assert noted is None or noted.chunks() == delta
    assert len(delta) == NUM_GROUPS
    life.advance(TIME_MAX_MS)
    every = life.results()
    life.close()
    layers = [*full.layers[0]["session-slots"], delta]
    life = SessionJob(spec, 1, tmp_path, restored=[SubtaskSnapshot(2, [{"session-slots": layers}], [None])])
    life.advance(60)
    life.advance(TIME_MAX_MS)
    assert sorted([*sent, *life.results()]) == every
    life.close()


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
