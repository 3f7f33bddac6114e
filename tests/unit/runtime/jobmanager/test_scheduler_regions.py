"""A failure in batch restarts only the regions that it concerns: finished stages are not computed again."""

from __future__ import annotations

import pytest

from engine.core.ids import AllocationID
from engine.graph.job_graph import JobGraph
from engine.operators.base import JobOutcome
from engine.protocol.lifecycle import ExecutionState, JobStatus
from engine.runtime.jobmanager import scheduler as s
from engine.runtime.jobmanager.failover import Regions
from engine.runtime.jobmanager.restart import FixedDelay
from tests.unit.graph.programs import HASH, build, op, sink, source
from tests.unit.runtime.jobmanager.cluster_of_scheduler import BROKEN, BUG, DIED, USER, World, grant

E = ExecutionState


def stages(parallelism: int = 2) -> JobGraph:
    """in → first → second → out, all over blocking exchanges."""
    node = source("in", parallelism=parallelism)
    for name in ("first", "second"):
        node = op(name, (node, HASH), parallelism=parallelism)
    return build(sink("out", (node, HASH), parallelism=parallelism), batch=True)


def world(restarts: int = 3) -> World:
    return World(stages(), FixedDelay(restarts, 500)).run()


def running(job: World) -> set[str]:
    return {job.scheduler.graph.find_attempt(a)[0].job_vertex.name for a in job.live}  # type: ignore[index]


def names_of(job: World, command: s.StartCoordinators) -> set[str]:
    return {job.scheduler.graph.vertices[vertex_id].job_vertex.name for vertex_id in command.vertices}


def attempt_numbers(job: World) -> dict[str, int]:
    graph = job.scheduler.graph
    return {v.job_vertex.name: v.subtasks[0].current.attempt_number for v in graph.vertices.values()}


def slot_of(index: int, request: int = 1) -> AllocationID:
    return grant(s.SlotRequestKey("default", index), request).allocation_id


def lose(job: World, allocation_id: AllocationID) -> list[s.Command]:
    job.live = {a: allocation for a, allocation in job.live.items() if allocation != allocation_id}
    return job.send(s.SlotsLost([allocation_id], DIED))


def in_third_stage() -> World:
    job = world()
    job.finish_all_live()
    job.finish_all_live()
    assert running(job) == {"second"}
    return job


def test_a_task_that_fails_restarts_its_stage_alone() -> None:
    job = in_third_stage()
    job.report(next(iter(job.live)), E.FAILED, error=USER)
    assert job.status is JobStatus.RUNNING
    assert job.all(s.RestartAfter) == [s.RestartAfter(1, 500)]
    assert not job.all(s.EndCoordinators)
    job.confirm_cancels()
    assert job.live == {}
    (start,) = [c for c in job.send(s.RestartDue(1)) if isinstance(c, s.StartCoordinators)]
    assert (start.attempt_number, names_of(job, start)) == (1, {"second"})
    assert len(job.all(s.RequestSlots)) == 1, "its slots were still there"
    job.send(s.CoordinatorsStarted())
    assert running(job) == {"second"}
    assert attempt_numbers(job) == {"Source: in": 0, "first": 0, "second": 1, "Sink: out": 0}
    job.finish_all_live()
    job.finish_all_live()
    assert job.end()[-1] == s.JobTerminated(JobStatus.FINISHED)


def test_the_restart_waits_for_the_last_task_of_the_stage_to_end() -> None:
    job = in_third_stage()
    job.report(next(iter(job.live)), E.FAILED, error=USER)
    assert job.send(s.RestartDue(1)) == []
    job.confirm_cancels()
    assert job.all(s.StartCoordinators)[-1].attempt_number == 1


def test_a_lost_slot_takes_the_results_in_it_and_their_producers_are_run_again() -> None:
    job = in_third_stage()
    lose(job, slot_of(1))
    job.confirm_cancels()
    commands = job.send(s.RestartDue(1))
    (start,) = [c for c in commands if isinstance(c, s.StartCoordinators)]
    # "second" failed, "first" had half of its results there, "in" those that "first" needs.
    assert names_of(job, start) == {"second", "first", "Source: in"}
    assert job.all(s.RequestSlots)[-1].keys == (s.SlotRequestKey("default", 1),)
    job.send(s.CoordinatorsStarted())
    assert job.live == {}, "the slot is still missing"
    job.send(job.grants())
    assert running(job) == {"Source: in"}
    for _ in range(4):
        job.finish_all_live()
    assert job.end()[-1] == s.JobTerminated(JobStatus.FINISHED)


def test_results_that_nobody_has_to_read_any_more_may_be_lost() -> None:
    regions = Regions(stages())
    (in_, first, second, out) = [vertices[0] for vertices in regions.vertices.values()]
    restarted = regions.to_restart([out], started=[in_, first, second, out], incomplete=[out], lost=[in_, first])
    assert restarted == {out}
    restarted = regions.to_restart([out], started=[in_, first, second, out], incomplete=[out], lost=[first, second])
    assert restarted == {out, second, first}


def test_a_started_consumer_restarts_with_its_producer() -> None:
    regions = Regions(stages())
    (in_, first, second, out) = [vertices[0] for vertices in regions.vertices.values()]
    everything = [in_, first, second, out]
    restarted = regions.to_restart([], started=everything[:3], incomplete=[second, out], lost=[first])
    assert restarted == {first, second}
    assert regions.to_restart([first], started=everything, incomplete=[out], lost=[]) == {first, second, out}


def test_a_slot_without_tasks_is_replaced_and_nothing_restarts() -> None:
    # Only the first of two slots is used by the stage that runs.
    narrow = source("in", parallelism=1)
    graph = build(sink("out", (op("wide", (narrow, HASH), parallelism=2), HASH), parallelism=2), batch=True)
    job = World(graph, FixedDelay(3, 0)).run()
    lose(job, slot_of(1))
    job.send(s.RestartDue(1))
    assert running(job) == {"Source: in"}
    assert job.all(s.RequestSlots)[-1].keys == (s.SlotRequestKey("default", 1),)
    job.finish_all_live()
    assert job.live == {}
    job.send(job.grants())
    assert running(job) == {"wide"}


def test_a_second_failure_meanwhile_widens_the_restart_or_counts_as_the_same() -> None:
    job = in_third_stage()
    one, other = list(job.live)
    job.report(one, E.FAILED, error=USER)
    job.report(other, E.FAILED, error=BUG)  # crossed its cancel
    assert len(job.all(s.RestartAfter)) == 1
    assert [entry.error for entry in job.scheduler.graph.exceptions] == [USER, BUG]
    lose(job, slot_of(0))
    job.send(s.RestartDue(1))
    assert names_of(job, job.all(s.StartCoordinators)[-1]) == {"second", "first", "Source: in"}


def test_when_the_attempts_are_used_up_the_job_fails_with_the_last_error() -> None:
    job = World(stages(), FixedDelay(1, 0)).run()
    job.finish_all_live()
    for _ in range(2):
        job.report(next(iter(job.live)), E.FAILED, error=USER)
        job.confirm_cancels()
        job.send(s.RestartDue(1))
        job.send(s.CoordinatorsStarted())
    assert job.status is JobStatus.FAILING
    assert job.end()[-1] == s.JobTerminated(JobStatus.FAILED)
    assert job.failure == USER.message


@pytest.mark.parametrize("due", [False, True])
def test_a_cancel_meanwhile_ends_the_job(due: bool) -> None:
    job = in_third_stage()
    job.report(next(iter(job.live)), E.FAILED, error=USER)
    job.confirm_cancels()
    if due:
        job.send(s.RestartDue(1))
    job.send(s.CancelRequested())
    assert job.status is JobStatus.CANCELLING
    assert job.all(s.EndCoordinators) == [s.EndCoordinators(JobOutcome.CANCELED)]
    assert job.end()[-1] == s.JobTerminated(JobStatus.CANCELED)


def test_a_coordinator_that_fails_meanwhile_restarts_everything() -> None:
    job = in_third_stage()
    job.report(next(iter(job.live)), E.FAILED, error=USER)
    job.send(s.CoordinatorFailed(BROKEN))
    assert job.status is JobStatus.FAILING
    job.confirm_cancels()
    job.end()
    assert job.status is JobStatus.RESTARTING
    job.send(s.RestartDue(1))
    assert job.all(s.StartCoordinators)[-1] == s.StartCoordinators(1)


def test_a_failure_while_regions_start_restarts_everything_and_asks_for_what_is_missing() -> None:
    job = in_third_stage()
    lose(job, slot_of(1))
    job.confirm_cancels()
    job.send(s.RestartDue(1))
    job.send(s.CoordinatorFailed(BROKEN))
    job.end()
    job.send(s.RestartDue(2))
    job.send(s.CoordinatorsStarted())
    # The request for the one slot is still open; its answer is not enough for an attempt of everything.
    job.send(job.grants())
    assert job.all(s.RequestSlots)[-1].keys == (s.SlotRequestKey("default", 0),)
    job.send(job.grants())
    assert running(job) == {"Source: in"}
