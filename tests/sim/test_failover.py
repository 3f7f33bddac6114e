"""Jobs go on whoever leads: with high availability JobManagers are killed, paused and deposed in the midst of all else.

Failed: ``python -m tests.sim --failover --seed N`` repeats it and prints its story.
"""

from __future__ import annotations

import pytest

from engine.connectors.file_commits import _PartsCoordinator
from engine.ha.job_store import FencedJobStore
from engine.ha.memory import MemoryMetadata
from engine.runtime.jobmanager.coordinators import JobCoordinators
from tests.sim.scenario import run_seed
from tests.sim.sources import _PacedEnumerator

SEEDS = 50
CHUNK = 25


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_record_counts_exactly_once_whoever_leads(first):
    for seed in range(first, first + CHUNK):
        outcome = run_seed(seed, failover=True)
        if outcome.error is not None:
            pytest.fail(outcome.report(), pytrace=False)


def test_a_history_with_leaders_that_are_lost_repeats_exactly():
    assert [run_seed(seed, failover=True).digest for seed in (4, 6)] == [
        run_seed(seed, failover=True).digest for seed in (4, 6)
    ]


def write_behind_no_fence(monkeypatch):
    monkeypatch.setattr(MemoryMetadata, "_check", lambda self, token: None)


def point_to_no_checkpoints(monkeypatch):
    monkeypatch.setattr(FencedJobStore, "put_checkpoint", lambda self, checkpoint, num_retained: None)


def start_coordinators_unfenced(monkeypatch):
    monkeypatch.setattr(JobCoordinators, "_is_fenced", lambda self, attempt_number, **told: True)


def number_checkpoints_anew(monkeypatch):
    monkeypatch.setattr(FencedJobStore, "begin_checkpoint", lambda self, job_id, checkpoint_id: None)


def forget_results(monkeypatch):
    monkeypatch.setattr(FencedJobStore, "put_result", lambda self, result: None)


def hand_out_again_what_was_assigned(monkeypatch):
    monkeypatch.setattr(_PacedEnumerator, "assigned", lambda self, splits: None)


def sweep_what_running_tasks_write(monkeypatch):
    monkeypatch.setattr(_PartsCoordinator, "resume", lambda self, ctx, reports: self.start(ctx))


@pytest.mark.parametrize(
    "break_it",
    [
        write_behind_no_fence,
        point_to_no_checkpoints,
        start_coordinators_unfenced,
        number_checkpoints_anew,
        forget_results,
        hand_out_again_what_was_assigned,
        sweep_what_running_tasks_write,
    ],
)
def test_a_leader_that_is_broken_is_found(break_it, monkeypatch):
    break_it(monkeypatch)
    for seed in range(300):
        if run_seed(seed, failover=True).error is not None:
            return
    pytest.fail("300 seeds found nothing wrong")
