"""A failed job begins anew, gives up, or is cancelled in between; nothing of a former attempt is heard."""

from __future__ import annotations

import random

import pytest

from engine.graph.execution_graph import ATTEMPTS_MAX
from engine.operators.base import JobOutcome
from engine.protocol.control import TaskMetrics, TaskStateChanged
from engine.protocol.lifecycle import ExecutionState, JobStatus
from engine.runtime.jobmanager import scheduler as s
from engine.runtime.jobmanager.restart import ExponentialDelay, FixedDelay
from tests.unit.graph.programs import build, word_count
from tests.unit.runtime.jobmanager.cluster_of_scheduler import BROKEN, BUG, DIED, USER, World, grant

E = ExecutionState


def world(restarts: int = 2, *, parallelism: int = 2, delay_ms: int = 1000, batch: bool = False) -> World:
    return World(build(word_count(parallelism), batch=batch), FixedDelay(restarts, delay_ms))


def test_a_failed_job_waits_for_the_delay_and_then_begins_anew() -> None:
    job = world().run()
    commands = job.fail_attempt()
    assert commands == [
        s.JobStatusChanged(JobStatus.RESTARTING),
        s.RestartAfter(1, job.all(s.RestartAfter)[0].delay_ms),
    ]
    assert job.all(s.EndCoordinators) == [s.EndCoordinators(JobOutcome.FAILED)]
    assert (job.status, job.failure) == (JobStatus.RESTARTING, USER.message)
    assert job.restart() == [
        s.JobStatusChanged(JobStatus.CREATED),
        s.StartCoordinators(1),
        s.RequestSlots((s.SlotRequestKey("default", 0), s.SlotRequestKey("default", 1))),
    ]
    assert (job.status, job.failure) == (JobStatus.RUNNING, None)
    assert {d.task.attempt_number for d in job.all(s.Deploy)[5:]} == {1}
    assert len(job.live) == 5
    job.finish_all_live()
    assert job.end()[-1] == s.JobTerminated(JobStatus.FINISHED)


def test_the_time_that_the_end_of_the_attempt_took_is_part_of_the_delay() -> None:
    job = world(delay_ms=1000).run()
    job.report(next(iter(job.live)), E.FAILED, error=USER)
    job.confirm_cancels()
    job.now_ms += 400
    (_, after) = job.end()
    assert isinstance(after, s.RestartAfter)
    assert after.delay_ms < 600
    slow = world(delay_ms=1).run()
    slow.report(next(iter(slow.live)), E.FAILED, error=USER)
    slow.confirm_cancels()
    assert slow.end()[-1] == s.RestartAfter(1, 0)


def test_new_attempts_read_from_new_partitions_in_new_slots() -> None:
    job = world().run()
    job.fail_attempt()
    job.restart()
    tasks = [deploy for deploy in job.all(s.Deploy) if deploy.task.attempt_number == 1]
    channels = [c for d in tasks for gate in d.task.gates for c in gate.channels]
    assert {channel.partition_id.rpartition("_")[2] for channel in channels} == {"1"}
    assert {d.allocation_id for d in tasks} == {grant(s.SlotRequestKey("default", i), 2).allocation_id for i in (0, 1)}


def test_former_attempts_are_kept_with_their_ends() -> None:
    job = world().run()
    failed = next(iter(job.live))
    job.fail_attempt()
    job.restart()
    subtask, attempt = job.scheduler.graph.find_attempt(failed)  # type: ignore[misc]
    assert (attempt.state, attempt.error, attempt.attempt_number) == (E.FAILED, USER, 0)
    assert [one.attempt_number for one in subtask.attempts] == [0, 1]
    assert subtask.current.state is E.DEPLOYING
    assert [entry.error for entry in job.scheduler.graph.exceptions] == [USER]


def test_a_job_that_restarts_for_ever_does_not_remember_for_ever() -> None:
    job = world(restarts=100, parallelism=1).run()
    for _ in range(40):
        job.fail_attempt()
        job.restart()
    graph = job.scheduler.graph
    subtask = graph.all_subtasks()[0]
    assert len(subtask.attempts) == ATTEMPTS_MAX
    assert subtask.current.attempt_number == 40
    assert graph.find_attempt(subtask.current.attempt_id) == (subtask, subtask.current)
    assert subtask.find(40 - ATTEMPTS_MAX) is None
    assert subtask.find(41) is None
    assert len(graph.exceptions) <= 16


def test_when_the_attempts_are_used_up_the_job_fails_with_the_last_cause_and_a_history() -> None:
    job = world(restarts=1).run()
    job.fail_attempt(USER)
    job.restart()
    assert job.fail_attempt(BUG) == [
        s.GiveUpCoordinators(JobOutcome.FAILED),
        s.JobStatusChanged(JobStatus.FAILED),
        s.JobTerminated(JobStatus.FAILED),
    ]
    assert job.failure == BUG.message
    assert [entry.error for entry in job.scheduler.graph.exceptions] == [USER, BUG]


def test_nothing_of_a_former_attempt_is_heard() -> None:
    job = world().run()
    old = list(job.live)
    job.fail_attempt()
    late = [
        *(s.TaskStateReported(_state(job, attempt_id, state)) for attempt_id in old for state in E),
        s.CoordinatorFailed(BUG, True),
        s.CoordinatorsStarted(),
        s.SlotsLost([grant(s.SlotRequestKey("default", 0)).allocation_id], DIED),
        s.JobEndHandled(BUG),
        s.SlotsUnavailable(BROKEN),
        s.RestartDue(0),
        s.RestartDue(2),
    ]
    for event in late:
        assert job.send(event) == []
    assert [entry.error for entry in job.scheduler.graph.exceptions] == [USER]
    job.restart()
    for event in late:
        if not isinstance(event, s.CoordinatorFailed):  # the JobMaster stops those of former coordinators
            assert job.send(event) == []
    job.send(s.MetricsReported({old[0]: TaskMetrics(records_in=9)}))
    assert job.scheduler.graph.all_subtasks()[0].current.metrics.records_in == 0
    assert job.send(s.RestartDue(1)) == []
    assert job.status is JobStatus.RUNNING


def _state(job: World, attempt_id, state):  # type: ignore[no-untyped-def]
    return TaskStateChanged(job.scheduler.graph.job_graph.job_id, attempt_id, state, error=BUG)


def test_lost_slots_restart_the_job() -> None:
    job = world().run()
    lost = grant(s.SlotRequestKey("default", 1)).allocation_id
    job.send(s.SlotsLost([lost], DIED))
    job.live = {a: allocation for a, allocation in job.live.items() if allocation != lost}
    job.confirm_cancels()
    job.end()
    assert job.status is JobStatus.RESTARTING
    job.restart()
    job.finish_all_live()
    assert job.end()[-1] == s.JobTerminated(JobStatus.FINISHED)


def test_slots_that_cannot_be_had_count_as_a_failure() -> None:
    job = world(restarts=1)
    job.send(s.StartScheduling())
    job.send(s.CoordinatorsStarted())
    job.send(s.SlotsUnavailable(BROKEN))
    assert isinstance(job.end()[-1], s.RestartAfter)
    job.restart()
    assert job.status is JobStatus.RUNNING
    assert len(job.all(s.RequestSlots)) == 2


def test_a_request_that_is_still_open_is_not_sent_again() -> None:
    job = world()
    job.send(s.StartScheduling())
    job.send(s.CoordinatorFailed(BROKEN))
    job.end()
    job.send(s.RestartDue(1))
    job.send(s.CoordinatorsStarted())
    assert len(job.all(s.RequestSlots)) == 1
    job.send(job.grants())
    assert job.status is JobStatus.RUNNING


def test_slots_that_come_while_the_job_waits_for_its_restart_go_back() -> None:
    job = world()
    job.send(s.StartScheduling())
    job.send(s.CoordinatorFailed(BROKEN))
    job.end()
    assert isinstance(job.send(job.grants())[0], s.ReleaseSlots)
    job.restart()
    assert len(job.all(s.RequestSlots)) == 2
    assert job.status is JobStatus.RUNNING


@pytest.mark.parametrize("after_restart", [False, True])
def test_what_would_fail_again_fails_at_once(after_restart: bool) -> None:
    job = world()
    job.send(s.StartScheduling())
    if after_restart:
        job.send(s.CoordinatorFailed(BROKEN))
        job.end()
        job.send(s.RestartDue(1))
    job.send(s.CoordinatorFailed(USER, is_final=True))
    assert job.end()[-1] == s.JobTerminated(JobStatus.FAILED)
    assert job.failure == USER.message


def test_slots_refused_for_the_jobs_own_fault_fail_it_at_once() -> None:
    job = world()
    job.send(s.StartScheduling())
    job.send(s.SlotsUnavailable(USER))
    assert job.end()[-1] == s.JobTerminated(JobStatus.FAILED)


@pytest.mark.parametrize("event", [s.JobEndHandled(BROKEN), s.CoordinatorFailed(BROKEN)])
def test_a_commit_that_fails_is_not_followed_by_a_second_one(event: s.Event) -> None:
    job = world().run()
    job.finish_all_live()
    job.send(event)
    job.end()
    assert job.status is JobStatus.FAILED
    assert job.failure == BROKEN.message


def test_a_clean_up_that_fails_does_not_keep_the_job_from_its_restart() -> None:
    job = world().run()
    job.report(next(iter(job.live)), E.FAILED, error=USER)
    job.confirm_cancels()
    job.end(BROKEN)
    assert job.status is JobStatus.RESTARTING


def test_a_job_is_cancelled_while_it_waits_for_its_restart() -> None:
    job = world().run()
    job.fail_attempt()
    assert job.send(s.CancelRequested()) == [
        s.JobStatusChanged(JobStatus.CANCELLING),
        s.GiveUpCoordinators(JobOutcome.CANCELED),
        s.JobStatusChanged(JobStatus.CANCELED),
        s.JobTerminated(JobStatus.CANCELED),
    ]
    assert job.send(s.RestartDue(1)) == []
    assert job.failure is None


@pytest.mark.parametrize(("restarts", "status"), [(1, JobStatus.CANCELED), (0, JobStatus.FAILED)])
def test_a_job_that_is_cancelled_while_it_fails_is_not_restarted(restarts: int, status: JobStatus) -> None:
    job = world(restarts=restarts).run()
    job.report(next(iter(job.live)), E.FAILED, error=USER)
    job.send(s.CancelRequested())
    job.confirm_cancels()
    assert job.end()[-1] == s.JobTerminated(status)


def test_a_new_attempt_is_cancelled_like_the_first() -> None:
    job = world().run()
    job.fail_attempt()
    job.restart()
    job.send(s.CancelRequested())
    job.confirm_cancels()
    assert job.all(s.EndCoordinators)[-1] == s.EndCoordinators(JobOutcome.CANCELED)
    assert job.end()[-1] == s.JobTerminated(JobStatus.CANCELED)


def test_a_lost_slot_restarts_at_once_a_failing_function_after_the_delay() -> None:
    def job() -> World:
        return World(build(word_count(2)), _exponential()).run()

    lost = grant(s.SlotRequestKey("default", 1)).allocation_id
    one = job()
    # The neighbour's broken connection is often told first.
    one.report(one.attempts("Source")[0], ExecutionState.FAILED, error=BROKEN)
    one.live = {a: allocation for a, allocation in one.live.items() if allocation != lost}
    one.send(s.SlotsLost([lost], DIED))
    one.confirm_cancels()
    assert one.end()[-1] == s.RestartAfter(1, 0)
    other = job()
    other.fail_attempt(BUG)
    assert 900 < other.all(s.RestartAfter)[-1].delay_ms <= 1000


def _exponential() -> ExponentialDelay:
    rng = random.Random(1)
    return ExponentialDelay(initial_ms=1000, max_ms=9000, multiplier=2, jitter_factor=0, reset_after_ms=60_000, rng=rng)
