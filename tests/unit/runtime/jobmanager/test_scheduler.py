"""One job from submission to its end, whatever fails in between."""

from __future__ import annotations

import random

import pytest

from engine.core.ids import AllocationID, ExecutionAttemptID
from engine.graph.job_graph import JobGraph
from engine.graph.transformation import Partitioning, ShipStrategy
from engine.operators.base import JobOutcome
from engine.protocol.control import TaskMetrics
from engine.protocol.lifecycle import ExecutionState, JobStatus
from engine.runtime.jobmanager import scheduler as s
from engine.runtime.jobmanager.restart import FixedDelay
from tests.unit.graph.programs import HASH, build, join, op, sink, source, word_count
from tests.unit.runtime.jobmanager.cluster_of_scheduler import BROKEN, BUG, DIED, USER, World, grant

E = ExecutionState


def key(index: int, group: str = "default") -> s.SlotRequestKey:
    return s.SlotRequestKey(group, index)


def slot(index: int, request: int = 1) -> AllocationID:
    return grant(key(index), request).allocation_id


# --- the good way ---------------------------------------------------------------------------------------------------


def test_a_job_starts_its_coordinators_and_asks_for_slots_at_once() -> None:
    world = World(build(word_count(2)))
    assert world.send(s.StartScheduling()) == [
        s.JobStatusChanged(JobStatus.CREATED),
        s.StartCoordinators(),
        s.RequestSlots((key(0), key(1))),
    ]
    assert set(world.states().values()) == {"SCHEDULED"}


def test_a_slot_sharing_group_needs_as_many_slots_as_its_widest_vertex() -> None:
    wide = op("wide", (source(parallelism=1), HASH), parallelism=3, slot_sharing_group="b")
    world = World(build(sink("out", (wide, HASH), parallelism=2, slot_sharing_group="a")))
    world.send(s.StartScheduling())
    (request,) = world.all(s.RequestSlots)
    assert request.keys == (key(0, "a"), key(1, "a"), key(0, "b"), key(1, "b"), key(2, "b"), key(0))


@pytest.mark.parametrize("slots_first", [True, False])
def test_tasks_are_deployed_when_slots_and_coordinators_are_there(slots_first: bool) -> None:
    world = World(build(word_count(2)))
    world.send(s.StartScheduling())
    first, second = world.grants(), s.CoordinatorsStarted()
    if not slots_first:
        first, second = second, first  # type: ignore[assignment]
    assert world.send(first) == []
    commands = world.send(second)
    assert commands[0] == s.JobStatusChanged(JobStatus.RUNNING)
    assert len(commands) == 1 + 5
    assert all(isinstance(command, s.Deploy) for command in commands[1:])


def test_subtask_i_of_every_vertex_shares_slot_i() -> None:
    world = World(build(word_count(2))).run()
    assert {deploy.allocation_id for deploy in world.all(s.Deploy) if deploy.task.subtask_index == 1} == {slot(1)}


def test_a_deployment_says_where_its_inputs_are_and_what_it_produces() -> None:
    world = World(build(word_count(2))).run()
    tasks = {(d.task.vertex_name, d.task.subtask_index): d.task for d in world.all(s.Deploy)}
    lines, words, counts = tasks["Source: lines", 0], tasks["flat_map", 1], tasks["sum -> Sink: print", 1]
    assert lines.gates == ()
    assert counts.partitions == ()
    (partition,) = lines.partitions
    assert (partition.num_subpartitions, partition.blocking, partition.buffer_timeout_ms) == (2, False, 100)
    (gate,) = words.gates
    assert [(c.partition_id, c.subpartition_index) for c in gate.channels] == [(partition.partition_id, 1)]
    (gate,) = counts.gates
    assert [c.partition_id for c in gate.channels] == [
        tasks["flat_map", i].partitions[0].partition_id for i in range(2)
    ]
    assert [c.subpartition_index for c in gate.channels] == [1, 1]
    assert [c.address for c in gate.channels] == [grant(key(i)).address for i in range(2)]


def test_a_partition_names_the_key_groups_of_its_consumer() -> None:
    world = World(build(op("sum", (source(parallelism=2), HASH), parallelism=2, max_parallelism=9))).run()
    (partition,) = {d.task.partitions[0].max_parallelism for d in world.all(s.Deploy) if d.task.partitions}
    assert partition == 9


def test_partitions_are_in_order_of_the_chains_exits() -> None:
    start = source("start")
    world = World(build(sink("a", (start, HASH), parallelism=3), sink("b", (start, HASH), parallelism=2))).run()
    (task,) = (deploy.task for deploy in world.all(s.Deploy) if deploy.task.partitions)
    edges = {edge.exit_index: edge.dataset_id for edge in world.scheduler.graph.job_graph.edges}
    assert [partition.dataset_id for partition in task.partitions] == [edges[0], edges[1]]
    assert [partition.num_subpartitions for partition in task.partitions] == [3, 2]


@pytest.mark.parametrize("strategy", [ShipStrategy.RESCALE, ShipStrategy.HASH])
@pytest.mark.parametrize(("producers", "consumers"), [(1, 3), (3, 1), (2, 3), (3, 2), (4, 2), (2, 4), (5, 5), (7, 3)])
def test_every_subpartition_has_exactly_one_reader(strategy: ShipStrategy, producers: int, consumers: int) -> None:
    out = sink("out", (source(parallelism=producers), Partitioning(strategy)), parallelism=consumers)
    world = World(build(out)).run()
    tasks = [deploy.task for deploy in world.all(s.Deploy)]
    offered = [(p.partition_id, i) for t in tasks for p in t.partitions for i in range(p.num_subpartitions)]
    read = [(c.partition_id, c.subpartition_index) for t in tasks for g in t.gates for c in g.channels]
    assert sorted(offered) == sorted(read)
    assert all(task.gates[0].channels for task in tasks if task.gates)


def test_a_job_finishes_when_all_tasks_have_and_its_coordinators_have_committed() -> None:
    world = World(build(word_count(2))).run()
    *others, last = world.live
    for attempt_id in others:
        world.report(attempt_id, E.FINISHED)
    commands = world.report(last, E.FINISHED)
    assert commands[1:] == [
        s.ReleaseSlots((slot(0), slot(1)), "the job has finished", 1000),
        s.EndCoordinators(JobOutcome.FINISHED),
    ]
    assert world.status is JobStatus.RUNNING
    assert world.end() == [s.JobStatusChanged(JobStatus.FINISHED), s.JobTerminated(JobStatus.FINISHED)]
    assert world.failure is None


def test_coordinators_hear_of_every_finished_subtask_before_the_end() -> None:
    world = World(build(word_count(2))).run()
    world.finish_all_live()
    assert len(world.all(s.NotifySubtaskFinished)) == 5
    assert isinstance(world.log[-1], s.EndCoordinators)


def test_reports_carry_metrics_and_accumulators() -> None:
    world = World(build(word_count(1))).run()
    attempt_id = world.attempts("sum")[0]
    world.send(s.MetricsReported({attempt_id: TaskMetrics(records_in=3), ExecutionAttemptID("x"): TaskMetrics()}))
    attempt = world.scheduler.graph.find_attempt(attempt_id)[1]  # type: ignore[index]
    assert attempt.metrics.records_in == 3
    world.report(attempt_id, E.FINISHED, metrics=TaskMetrics(records_in=5), accumulators=b"a")
    world.send(s.MetricsReported({attempt_id: TaskMetrics(records_in=4)}))
    assert (attempt.metrics.records_in, attempt.accumulators) == (5, b"a")
    assert attempt.timestamps[E.FINISHED] > attempt.timestamps[E.DEPLOYING] > 0


# --- stages ---------------------------------------------------------------------------------------------------------


def test_a_stage_is_deployed_when_the_one_before_has_finished() -> None:
    world = World(build(word_count(2), batch=True)).run()
    assert [deploy.task.vertex_name for deploy in world.all(s.Deploy)] == ["Source: lines"]
    assert world.states()["flat_map (1/2)"] == "CREATED"
    world.finish_all_live()
    assert world.states()["sum -> Sink: print (1/2)"] == "CREATED"
    first, second = world.attempts("flat_map")
    world.report(first, E.FINISHED)
    assert world.attempts("sum")[0] not in world.live
    world.report(second, E.FINISHED)
    assert world.attempts("sum")[0] in world.live
    world.finish_all_live()
    assert world.end()[-1] == s.JobTerminated(JobStatus.FINISHED)


def test_pipelined_neighbours_of_a_later_stage_start_together() -> None:
    start = op("start", (source(), HASH))
    end = join("end", (start, HASH), (source("other"), HASH))
    graph = build(end, sink("out", start), batch=True, execution__batch_shuffle_mode="ALL_EXCHANGES_PIPELINED")
    world = World(graph).run()
    assert len(world.live) == 4


def test_slots_are_kept_between_stages() -> None:
    world = World(build(word_count(2), batch=True)).run()
    world.finish_all_live()
    assert world.all(s.ReleaseSlots) == []
    assert len(world.all(s.RequestSlots)) == 1


def test_the_slot_of_a_finished_stage_that_is_lost_with_unread_output_fails_the_job() -> None:
    world = World(build(word_count(2), batch=True)).run()
    world.finish_all_live()
    world.send(s.SlotsLost([slot(0)], DIED))
    world.confirm_cancels()
    assert world.failure == DIED.message


def test_a_slot_without_further_work_is_needed_as_long_as_its_output_is_unread() -> None:
    first = source("first", slot_sharing_group="first")
    world = World(build(sink("last", (first, HASH), slot_sharing_group="last"), batch=True)).run()
    world.finish_all_live()
    world.send(s.SlotsLost([grant(key(0, "first")).allocation_id], DIED))
    assert world.status is JobStatus.FAILING


def test_the_slot_of_a_finished_subtask_whose_output_was_read_may_be_lost() -> None:
    first = source("first", parallelism=2)
    world = World(build(sink("last", (op("mid", (first, HASH), parallelism=1), HASH), parallelism=1), batch=True)).run()
    world.finish_all_live()
    assert world.states()["mid (1/1)"] == "DEPLOYING"
    world.report(world.attempts("mid")[0], E.FINISHED)
    assert world.send(s.SlotsLost([slot(1)], DIED)) == []
    world.finish_all_live()
    assert world.all(s.ReleaseSlots)[0].allocation_ids == (slot(0),)
    assert world.end()[-1] == s.JobTerminated(JobStatus.FINISHED)


# --- failures -------------------------------------------------------------------------------------------------------


def test_a_failed_task_cancels_the_others_first_then_the_job_fails() -> None:
    world = World(build(word_count(2))).run()
    attempt_id = world.attempts("sum")[0]
    commands = world.report(attempt_id, E.FAILED, error=USER)
    assert commands[0] == s.JobStatusChanged(JobStatus.FAILING)
    assert {c.attempt_id for c in commands[1:] if isinstance(c, s.Cancel)} == set(world.live)
    world.confirm_cancels()
    assert world.log[-1] == s.EndCoordinators(JobOutcome.FAILED)
    assert world.end()[-1] == s.JobTerminated(JobStatus.FAILED)
    assert world.failure == USER.message
    entry = world.scheduler.graph.exceptions[0]
    assert (entry.task_name, entry.endpoint, entry.resource_id) == ("sum -> Sink: print (1/2)", "h:1", "tm0")


@pytest.mark.parametrize("state", [E.DEPLOYING, E.INITIALIZING, E.RUNNING])
def test_a_task_may_fail_in_any_live_state(state: ExecutionState) -> None:
    world = World(build(word_count(2))).run()
    attempt_id = world.attempts("flat_map")[0]
    if state is not E.DEPLOYING:
        world.report(attempt_id, state)
    world.report(attempt_id, E.FAILED, error=USER)
    world.confirm_cancels()
    assert world.end()[-1] == s.JobTerminated(JobStatus.FAILED)


def test_tasks_that_finish_while_the_job_fails_do_not_save_it() -> None:
    world = World(build(word_count(1))).run()
    world.report(world.attempts("sum")[0], E.FAILED, error=USER)
    world.finish_all_live()
    assert world.log[-1] == s.EndCoordinators(JobOutcome.FAILED)
    assert world.end()[-1] == s.JobTerminated(JobStatus.FAILED)


def test_the_users_error_wins_over_a_neighbours_broken_connection_that_came_first() -> None:
    world = World(build(word_count(2))).run()
    world.report(world.attempts("sum")[0], E.FAILED, error=BROKEN)
    world.report(world.attempts("flat_map")[0], E.FAILED, error=USER)
    world.report(world.attempts("Source")[0], E.FAILED, error=BROKEN)
    assert world.failure == USER.message
    assert [entry.error for entry in world.scheduler.graph.exceptions] == [BROKEN, USER, BROKEN]


def test_the_users_error_is_not_replaced_by_what_follows() -> None:
    world = World(build(word_count(2))).run()
    world.report(world.attempts("flat_map")[0], E.FAILED, error=USER)
    world.report(world.attempts("sum")[0], E.FAILED, error=BUG)
    world.send(s.SlotsLost([slot(0)], DIED))
    assert world.failure == USER.message


def test_a_dead_slot_wins_over_a_neighbours_broken_connection_that_came_first() -> None:
    world = World(build(word_count(2))).run()
    world.report(world.attempts("sum")[0], E.FAILED, error=BROKEN)
    world.send(s.SlotsLost([slot(1)], DIED))
    assert world.failure == DIED.message


def test_a_slot_that_was_killed_because_it_did_not_cancel_is_not_the_cause() -> None:
    world = World(build(word_count(2))).run()
    world.report(world.attempts("sum")[0], E.FAILED, error=BROKEN)
    for attempt_id, allocation_id in list(world.live.items()):
        if allocation_id == slot(1):
            world.report(attempt_id, E.CANCELED)
    world.send(s.SlotsLost([slot(1)], DIED))
    assert world.failure == BROKEN.message


def test_a_lost_taskmanager_with_several_slots_fails_the_job_once() -> None:
    world = World(build(word_count(3))).run()
    world.send(s.SlotsLost([slot(0), slot(2)], DIED))
    assert {cancel.allocation_id for cancel in world.all(s.Cancel)} == {slot(1)}
    world.confirm_cancels()
    assert world.all(s.ReleaseSlots) == [s.ReleaseSlots((slot(1),), "the job has failed", 1000)]
    assert world.end()[-1] == s.JobTerminated(JobStatus.FAILED)


def test_a_slot_lost_before_deployment_fails_the_job() -> None:
    world = World(build(word_count(2)))
    world.send(s.StartScheduling())
    world.send(world.grants())
    world.send(s.SlotsLost([slot(0)], DIED))
    assert world.all(s.Deploy) == []
    assert world.log[-1] == s.EndCoordinators(JobOutcome.FAILED)


def test_the_loss_of_a_strange_slot_is_none_of_our_business() -> None:
    world = World(build(word_count(2))).run()
    assert world.send(s.SlotsLost([AllocationID.generate()], DIED)) == []


def test_a_coordinator_that_fails_at_start_fails_the_job_and_nothing_is_deployed() -> None:
    world = World(build(word_count(2)))
    world.send(s.StartScheduling())
    world.send(s.CoordinatorFailed(USER))
    assert world.send(world.grants()) == [s.ReleaseSlots((slot(0), slot(1)), "the job has ended", 1000)]
    assert world.end()[-1] == s.JobTerminated(JobStatus.FAILED)
    assert world.all(s.Deploy) == []
    assert world.failure == USER.message


def test_a_coordinator_that_fails_later_fails_the_job() -> None:
    world = World(build(word_count(1))).run()
    world.send(s.CoordinatorFailed(USER))
    world.confirm_cancels()
    assert world.end()[-1] == s.JobTerminated(JobStatus.FAILED)


def test_a_commit_that_fails_fails_the_job() -> None:
    world = World(build(word_count(1))).run()
    world.finish_all_live()
    assert world.end(USER)[-1] == s.JobTerminated(JobStatus.FAILED)
    assert world.failure == USER.message


def test_a_coordinator_that_fails_before_its_commit_fails_the_job() -> None:
    world = World(build(word_count(1))).run()
    world.finish_all_live()
    world.send(s.CoordinatorFailed(USER))
    assert world.end()[-1] == s.JobTerminated(JobStatus.FAILED)


def test_a_job_without_slots_fails_with_the_reason() -> None:
    world = World(build(word_count(2)))
    world.send(s.StartScheduling())
    world.send(s.CoordinatorsStarted())
    world.send(s.SlotsUnavailable(BROKEN))
    assert world.end()[-1] == s.JobTerminated(JobStatus.FAILED)
    assert world.failure == BROKEN.message
    assert set(world.states().values()) == {"CANCELED"}


def test_a_refusal_of_slots_that_nobody_asked_for_changes_nothing() -> None:
    world = World(build(word_count(1))).run()
    assert world.send(s.SlotsUnavailable(BROKEN)) == []


def test_a_task_that_says_cancelled_unasked_fails_the_job() -> None:
    world = World(build(word_count(1))).run()
    world.report(world.attempts("sum")[0], E.CANCELED)
    assert "nobody asked" in str(world.failure)


def test_many_failures_at_once_keep_the_first_in_the_history() -> None:
    world = World(build(word_count(20))).run()
    for i, attempt_id in enumerate(list(world.live)):
        world.report(attempt_id, E.FAILED, error=USER if i == 0 else BROKEN)
    assert world.scheduler.graph.exceptions[0].error is USER
    assert world.failure == USER.message


# --- cancel ---------------------------------------------------------------------------------------------------------


def test_a_job_is_cancelled_before_it_starts() -> None:
    world = World(build(word_count(1)))
    assert world.send(s.CancelRequested())[-1] == s.JobTerminated(JobStatus.CANCELED)
    assert world.send(s.StartScheduling()) == []


def test_a_job_is_cancelled_while_it_waits_for_slots() -> None:
    world = World(build(word_count(2)))
    world.send(s.StartScheduling())
    world.send(s.CoordinatorsStarted())
    assert world.send(s.CancelRequested()) == [
        s.JobStatusChanged(JobStatus.CANCELLING),
        s.EndCoordinators(JobOutcome.CANCELED),
    ]
    assert isinstance(world.send(world.grants())[0], s.ReleaseSlots)
    assert world.end()[-1] == s.JobTerminated(JobStatus.CANCELED)


def test_a_job_is_cancelled_while_its_coordinators_start() -> None:
    world = World(build(word_count(2)))
    world.send(s.StartScheduling())
    world.send(world.grants())
    commands = world.send(s.CancelRequested())
    assert isinstance(commands[1], s.ReleaseSlots)
    assert world.send(s.CoordinatorsStarted()) == []
    assert world.end()[-1] == s.JobTerminated(JobStatus.CANCELED)
    assert world.all(s.Deploy) == []


def test_a_running_job_is_cancelled_when_all_its_tasks_are() -> None:
    world = World(build(word_count(2))).run()
    world.send(s.CancelRequested())
    assert len(world.all(s.Cancel)) == 5
    assert world.send(s.CancelRequested()) == []
    *others, last = world.live
    for attempt_id in others:
        world.report(attempt_id, E.CANCELED)
    assert world.status is JobStatus.CANCELLING
    world.report(last, E.CANCELED)
    assert world.end()[-1] == s.JobTerminated(JobStatus.CANCELED)


def test_a_slot_lost_while_cancelling_counts_as_cancelled() -> None:
    world = World(build(word_count(1))).run()
    world.send(s.CancelRequested())
    world.send(s.SlotsLost([slot(0)], DIED))
    assert set(world.states().values()) == {"CANCELED"}
    assert world.end()[-1] == s.JobTerminated(JobStatus.CANCELED)
    assert world.failure is None


def test_a_task_that_fails_while_cancelling_does_not_fail_the_job() -> None:
    world = World(build(word_count(1))).run()
    world.send(s.CancelRequested())
    for attempt_id in list(world.live):
        world.report(attempt_id, E.FAILED, error=USER)
    assert world.end(BUG)[-1] == s.JobTerminated(JobStatus.CANCELED)


def test_cancel_is_too_late_when_only_the_commit_is_left() -> None:
    world = World(build(word_count(1))).run()
    world.finish_all_live()
    assert world.send(s.CancelRequested()) == []
    assert world.end()[-1] == s.JobTerminated(JobStatus.FINISHED)


def test_a_running_report_that_crosses_a_cancel_is_ignored() -> None:
    world = World(build(word_count(1))).run()
    world.send(s.CancelRequested())
    assert world.report(world.attempts("sum")[0], E.RUNNING) == []
    assert world.states()["sum -> Sink: print (1/1)"] == "CANCELING"


def test_late_and_strange_reports_change_nothing() -> None:
    world = World(build(word_count(1))).run()
    for strange in ("", "x", "x_1_2", "x_y_z", f"{world.attempts('sum')[0][:-1]}9", f"{'0' * 32}_0_0"):
        assert world.report(ExecutionAttemptID(strange), E.FAILED, error=USER) == []
    attempt_id = world.attempts("sum")[0]
    world.finish_all_live()
    assert world.report(attempt_id, E.FAILED, error=USER) == []
    world.end()
    for event in (s.CancelRequested(), s.JobEndHandled(BUG), s.CoordinatorFailed(BUG), s.SlotsLost([slot(0)], DIED)):
        assert world.send(event) == []
    assert world.status is JobStatus.FINISHED


# --- everything, in any order ---------------------------------------------------------------------------------------


def diamond() -> JobGraph:
    start = op("start", (source("a", parallelism=1), HASH), parallelism=2)
    side = op("side", (start, HASH), parallelism=3, slot_sharing_group="side")
    return build(sink("out", join("join", (start, HASH), (side, HASH), parallelism=2), parallelism=1), batch=True)


GRAPHS = {
    "stream": lambda: build(word_count(2)),
    "batch": lambda: build(word_count(2), batch=True),
    "diamond": diamond,
    "single": lambda: build(sink("out", source())),
}


def random_event(world: World, rng: random.Random, chaos: float) -> s.Event | tuple[str, ExecutionState]:
    """Return what the world may say next; with probability ``chaos`` something that goes wrong."""
    if rng.random() < chaos:
        n = max(1, len(world.all(s.RequestSlots)))
        return rng.choice(
            [
                s.CancelRequested(),
                s.CoordinatorFailed(rng.choice([USER, BUG]), rng.random() < 0.1),
                s.SlotsLost([slot(rng.randrange(3), rng.randrange(1, 4))], DIED),
                s.SlotsLost([slot(0, n), slot(1, n), grant(key(0, "side"), n).allocation_id], DIED),
                s.SlotsUnavailable(BROKEN),
                s.JobEndHandled(rng.choice([None, BUG])),
                s.RestartDue(rng.randrange(4)),
                (rng.choice(world.attempts("")), rng.choice(list(E))),
            ]
        )
    choices: list[s.Event | tuple[str, ExecutionState]] = [s.StartScheduling()]
    if world.all(s.StartCoordinators):
        choices.append(s.CoordinatorsStarted())
    if world.all(s.RequestSlots):
        choices.append(world.grants())
    if world.all(s.EndCoordinators):
        choices.append(s.JobEndHandled())
    choices += [s.RestartDue(restart.attempt_number) for restart in world.all(s.RestartAfter)]
    cancelled = {cancel.attempt_id for cancel in world.all(s.Cancel)}
    for attempt_id in world.live:
        good = [E.CANCELED] if attempt_id in cancelled else [E.INITIALIZING, E.RUNNING, E.FINISHED]
        choices += [(attempt_id, rng.choice(good))] * 2
    return rng.choice(choices)


def play(world: World, rng: random.Random, chaos: float) -> None:
    answered = 0  # requests for slots
    for step in range(600):
        if world.all(s.JobTerminated) and step % 7:
            break
        event = random_event(world, rng, chaos if step < 60 else 0.0)
        match event:
            case (str() as attempt_id, ExecutionState() as state):
                error = rng.choice([USER, BROKEN, BUG]) if state is E.FAILED else None
                world.report(ExecutionAttemptID(attempt_id), state, error=error)
            case s.SlotsGranted():
                if answered < len(world.all(s.RequestSlots)):
                    answered = len(world.all(s.RequestSlots))
                    world.send(event)
            case s.SlotsUnavailable():
                if answered < len(world.all(s.RequestSlots)):
                    answered = len(world.all(s.RequestSlots))
                    world.send(event)
            case s.SlotsLost(allocation_ids):
                for attempt in [a for a, allocation in world.live.items() if allocation in allocation_ids]:
                    del world.live[attempt]
                world.send(event)
            case _:
                world.send(event)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("chaos", [0.0, 0.03, 0.3])
@pytest.mark.parametrize("restarts", [0, 3])
def test_every_history_ends_with_each_slot_given_back_once(name: str, chaos: float, restarts: int) -> None:
    graph = GRAPHS[name]()
    outcomes = set()
    num_restarts = 0
    for seed in range(200):
        world = World(graph, FixedDelay(restarts, 0))
        play(world, random.Random(f"{name}{chaos}{seed}"), chaos)
        (terminated,) = world.all(s.JobTerminated)
        outcomes.add(terminated.status)
        starts = [command.attempt_number for command in world.all(s.StartCoordinators)]
        assert starts == list(range(len(starts))), seed
        assert len(starts) <= 1 + restarts, seed
        num_restarts += max(0, len(starts) - 1)
        assert len(world.all(s.EndCoordinators)) <= len(starts), seed
        # Each failure costs one request at most, and one more when an answer of before did not bring all.
        assert len(world.all(s.RequestSlots)) <= 2 * (1 + restarts), seed
        (*former, last) = [command.outcome for command in world.all(s.EndCoordinators)] or [JobOutcome.CANCELED]
        assert set(former) <= {JobOutcome.FAILED}, seed
        assert terminated.status is not JobStatus.FINISHED or last is JobOutcome.FINISHED, seed
        released = [allocation for release in world.all(s.ReleaseSlots) for allocation in release.allocation_ids]
        assert len(set(released)) == len(released), seed
        deployed = [deploy.task.attempt_id for deploy in world.all(s.Deploy)]
        assert len(set(deployed)) == len(deployed), seed
        statuses = [command.status for command in world.all(s.JobStatusChanged)]
        whole = [command for command in world.all(s.StartCoordinators) if not command.vertices]
        assert statuses.count(JobStatus.CREATED) == len(whole), seed
        assert JobStatus.RESTARTING in statuses or len(set(statuses)) == len(statuses), seed
        assert (world.failure is not None) is (terminated.status is JobStatus.FAILED), seed
    assert outcomes == ({JobStatus.FINISHED} if chaos == 0 else outcomes)
    assert chaos == 0 or len(outcomes) >= 2
    assert (num_restarts > 0) == (chaos > 0 and restarts > 0)
