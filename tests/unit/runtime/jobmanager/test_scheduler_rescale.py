"""A running job goes on at another parallelism, or as before when there are no slots for that."""

from __future__ import annotations

from engine.graph.rescale import rescaled, uniform_parallelism
from engine.operators.base import JobOutcome
from engine.protocol.lifecycle import ExecutionState, JobStatus
from engine.runtime.jobmanager import scheduler as s
from engine.runtime.jobmanager.restart import FixedDelay
from tests.unit.graph.programs import HASH, build, op, sink, source
from tests.unit.runtime.jobmanager.cluster_of_scheduler import BUG, DIED, USER, World, grant

E = ExecutionState


def job(restarts: int = 0) -> World:
    counts = op("counts", (source("in"), HASH))
    graph = build(sink("out", (counts, HASH)), parallelism__default=2)
    return World(graph, FixedDelay(restarts, 500)).run()


def rescale(world: World, parallelism: int) -> list[s.Command]:
    graph = world.scheduler.graph.job_graph
    return world.send(s.RescaleRequested(rescaled(graph, uniform_parallelism(graph, parallelism))))


def widths(world: World) -> set[int]:
    return {len(vertex.subtasks) for vertex in world.scheduler.graph.vertices.values()}


def begin(world: World, parallelism: int) -> None:
    rescale(world, parallelism)
    world.confirm_cancels()
    world.end()
    world.send(s.RestartDue(world.all(s.RestartAfter)[-1].attempt_number))


def test_the_next_attempt_has_the_new_parallelism_and_costs_no_restart() -> None:
    world = job(restarts=0)
    rescale(world, 3)
    assert len(world.all(s.Cancel)) == 6
    world.confirm_cancels()
    assert world.all(s.EndCoordinators) == [s.EndCoordinators(JobOutcome.FAILED)]
    assert world.end()[-1] == s.RestartAfter(1, 0)
    assert world.status is JobStatus.RESTARTING
    world.restart()
    assert world.all(s.RequestSlots)[-1].keys == tuple(s.SlotRequestKey("default", i) for i in range(3))
    assert (world.status, widths(world), len(world.live)) == (JobStatus.RUNNING, {3}, 9)
    assert not world.scheduler.graph.exceptions
    world.finish_all_live()
    assert world.end()[-1] == s.JobTerminated(JobStatus.FINISHED)


def test_fewer_subtasks_forget_the_others_and_later_ones_go_on_with_their_history() -> None:
    world = job()
    begin(world, 1)
    world.send(s.CoordinatorsStarted())
    world.send(world.grants())
    assert widths(world) == {1}
    assert [a.attempt_number for a in world.scheduler.graph.all_subtasks()[0].attempts] == [0, 1]
    begin(world, 2)
    assert [a.attempt_number for a in world.scheduler.graph.all_subtasks()[1].attempts] == [2]


def test_without_slots_for_it_the_job_goes_on_as_before_and_says_why() -> None:
    world = job(restarts=0)
    begin(world, 40)
    world.send(s.SlotsUnavailable(DIED))
    world.send(s.CoordinatorsStarted())
    world.end()
    world.restart()
    assert (world.status, widths(world)) == (JobStatus.RUNNING, {2})
    assert [entry.error for entry in world.scheduler.graph.exceptions] == [DIED]


def test_a_failure_meanwhile_goes_back_to_what_ran_before_and_counts() -> None:
    world = job(restarts=1)
    rescale(world, 3)
    world.report(next(iter(world.live)), E.FAILED, error=USER)
    world.confirm_cancels()
    assert world.end()[-1] == s.RestartAfter(1, max(0, 500 - (world.now_ms - world.scheduler._failed_ms)))
    world.restart()
    assert widths(world) == {2}


def test_a_failure_in_the_new_attempt_keeps_the_new_parallelism() -> None:
    world = job(restarts=1)
    begin(world, 3)
    world.send(s.CoordinatorsStarted())
    world.send(world.grants())
    world.fail_attempt(BUG)
    world.restart()
    assert widths(world) == {3}


def test_a_lost_slot_while_the_attempt_ends_is_a_failure() -> None:
    world = job(restarts=0)
    rescale(world, 3)
    lost = grant(s.SlotRequestKey("default", 1)).allocation_id
    world.live = {a: allocation for a, allocation in world.live.items() if allocation != lost}
    world.send(s.SlotsLost([lost], DIED))
    world.confirm_cancels()
    assert world.end()[-1] == s.JobTerminated(JobStatus.FAILED)


def test_a_cancel_meanwhile_cancels() -> None:
    world = job()
    rescale(world, 3)
    world.send(s.CancelRequested())
    world.confirm_cancels()
    assert world.end()[-1] == s.JobTerminated(JobStatus.CANCELED)


def test_a_job_that_does_not_run_is_not_rescaled() -> None:
    world = job()
    graph = rescaled(world.scheduler.graph.job_graph, {})
    world.finish_all_live()
    assert world.send(s.RescaleRequested(graph)) == []
