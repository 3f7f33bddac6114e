"""Sinks that users write, through barriers, lost notifications, crashes at each step and a committer that fails."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from engine.connectors.sink import Committer, Sink, SinkWriter, takes_checkpoints
from engine.core.clock import ManualClock
from engine.core.errors import ProgramError, UserCodeError
from tests.testing.checkpointed_job import CheckpointedJob

#: The outside world: transactions that were prepared, by id; the records that everybody sees; what to refuse.
PREPARED: dict[str, list[Any]] = {}
SEEN: list[Any] = []
REFUSED: set[str] = set()


@pytest.fixture(autouse=True)
def new_world():
    PREPARED.clear()
    SEEN.clear()
    REFUSED.clear()


@dataclass(frozen=True)
class Transactions(Sink):
    """Prepares transactions outside and commits their ids; a transaction that was committed is known."""

    with_committer: bool = True

    def create_writer(self, context):
        return Writer(0)

    def restore_writer(self, context, states):
        assert context.restored_states == len(states)
        return Writer(sum(states))

    def create_committer(self):
        return Commits() if self.with_committer else None


class Writer(SinkWriter):
    def __init__(self, count):
        self.rows = []
        self.count = count
        self.ended = False

    def write(self, element, context):
        if element == "bad":
            raise ValueError("bad element")
        self.rows.append(element)
        self.count += 1

    def flush(self, end_of_input):
        self.ended = end_of_input

    def prepare_commit(self):
        if not self.rows:
            return []
        name = f"transaction {len(PREPARED)}"
        PREPARED[name], self.rows = self.rows, []
        return [name]

    def snapshot_state(self, checkpoint_id):
        return [self.count]


class Commits(Committer):
    def commit(self, committables):
        later = []
        for name in committables:
            if name in REFUSED:
                later.append(name)
            elif PREPARED[name] is not None:
                SEEN.extend(PREPARED[name])
                PREPARED[name] = []
        return later


def job_of(sink=None, **kwargs) -> CheckpointedJob:
    job = CheckpointedJob((sink or Transactions()).to_spec(), **kwargs)
    job.start()
    return job


def test_nothing_is_committed_before_the_checkpoint_has_completed():
    job = job_of()
    job.harnesses[0].process(["a"])
    taken = job.checkpoint()
    assert SEEN == []
    job.notify(taken)
    assert SEEN == ["a"]


def test_a_later_notification_commits_what_earlier_checkpoints_prepared():
    job = job_of()
    for row in "abc":
        job.harnesses[0].process([row])
        taken = job.checkpoint()
    job.harnesses[0].process(["d"])
    job.notify(taken)
    assert SEEN == ["a", "b", "c"]


def test_what_an_aborted_checkpoint_had_comes_with_the_next_one():
    job = job_of()
    job.harnesses[0].process(["a"])
    aborted = job.checkpoint()
    job.harnesses[0].head.notify_checkpoint_aborted(aborted.checkpoint_id)
    job.harnesses[0].process(["b"])
    job.complete()
    assert SEEN == ["a", "b"]


@pytest.mark.parametrize("parallelism", [1, 2, 3])
@pytest.mark.parametrize("committed", [False, True])
def test_a_restart_commits_what_the_checkpoint_prepared_once(parallelism, committed):
    job = job_of(parallelism=2)
    job.harnesses[0].process(["a", "b"])
    job.harnesses[1].process(["c"])
    taken = job.checkpoint()
    if committed:
        job.notify(taken)
    job.harnesses[0].process(["lost"])
    job.checkpoint()
    job.kill()
    job.start(taken, parallelism=parallelism)
    assert Counter(SEEN) == Counter("abc")
    counts = [harness.head._writer.count for harness in job.harnesses.values()]
    assert sum(counts) == 3


def test_a_finished_sink_stays_until_a_checkpoint_has_its_last_records():
    job = job_of()
    job.harnesses[0].process(["a"])
    job.harnesses[0].end()
    sink = job.harnesses[0].head
    assert sink._writer.ended
    assert sink.holds_end()
    taken = job.checkpoint()
    assert sink.holds_end()
    job.notify(taken)
    assert (SEEN, sink.holds_end()) == (["a"], False)
    # A crash before the notification: the restored sink commits and has nothing to wait for.
    SEEN.clear()
    PREPARED["transaction 0"] = ["a"]
    job.kill()
    job.start(taken)
    job.harnesses[0].end()
    assert (SEEN, job.harnesses[0].head.holds_end()) == (["a"], False)


def test_where_no_checkpoint_will_come_the_end_commits():
    job = job_of(config={})
    job.harnesses[0].process(["a"])
    job.harnesses[0].end()
    assert SEEN == []
    job.harnesses[0].head.release_end()
    assert (SEEN, job.harnesses[0].head.holds_end()) == (["a"], False)


def test_what_the_committer_gives_back_is_tried_again_and_survives_a_restart(caplog):
    clock = ManualClock(1_000)
    job = job_of(clock=clock)
    job.harnesses[0].process(["a"])
    REFUSED.add("transaction 0")
    with caplog.at_level(logging.WARNING):
        job.complete()
    assert "retrying in 1000 ms" in caplog.text
    sink = job.harnesses[0].head
    assert sink.next_timer_ms() == 2_000
    clock.advance(1_000)
    sink.on_timer(clock.now_ms())
    assert sink.next_timer_ms() == 4_000  # it backs off
    taken = job.checkpoint()
    job.kill()
    REFUSED.clear()
    job.start(taken)
    assert SEEN == ["a"]


def test_a_committer_that_raises_fails_the_task_and_the_next_attempt_commits(monkeypatch):
    job = job_of()
    job.harnesses[0].process(["a"])
    taken = job.checkpoint()
    monkeypatch.setattr(Commits, "commit", lambda self, committables: 1 / 0)
    with pytest.raises(UserCodeError, match="ZeroDivisionError"):
        job.notify(taken)
    monkeypatch.undo()
    job.kill()
    job.start(taken)
    assert SEEN == ["a"]


def test_a_bad_record_is_named():
    job = job_of()
    with pytest.raises(UserCodeError, match=r"bad element(.|\n)*on record: 'bad'"):
        job.harnesses[0].process(["good", "bad"])


def test_committables_without_a_committer_are_a_mistake_that_is_told():
    job = job_of(Transactions(with_committer=False))
    job.harnesses[0].process(["a"])
    with pytest.raises(ProgramError, match=r"create_committer\(\) returned None"):
        job.complete()


@pytest.mark.parametrize(("value", "expected"), [("", False), ("0", False), ("10 s", True), ("200", True)])
def test_an_interval_makes_a_job_take_checkpoints(value, expected):
    assert takes_checkpoints({"execution.checkpointing.interval": value}) is expected
    assert not takes_checkpoints({})
