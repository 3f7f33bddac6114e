"""JobClient over a job whose end is scripted."""

from __future__ import annotations

import pickle

import pytest

from engine.client.job_client import CompletableFuture, JobClient, JobOutcomeView
from engine.connectors.collect import FetchedResults, FetchResults
from engine.core.errors import ExternalError, JobCancelledError, JobExecutionError, JobNotFoundError
from engine.core.ids import JobID
from engine.protocol.control import ErrorInfo
from engine.protocol.lifecycle import JobStatus

JOB = JobID.from_text("job")
FINISHED = JobOutcomeView(JobStatus.FINISHED, 12, {"rows": 3}, None)


class ScriptedJob:
    """A JobAccess: ``outcomes`` are given one by one, the last for ever; so are ``answers`` of the coordinator."""

    def __init__(self, *outcomes, answers=()):
        self.outcomes = list(outcomes)
        self.answers = list(answers)
        self.requests = []
        self.cancelled = 0

    def _next(self, values):
        return values.pop(0) if len(values) > 1 else values[0]

    def status(self, job_id):
        return JobStatus.RUNNING

    def cancel(self, job_id):
        self.cancelled += 1

    def outcome(self, job_id, timeout_s):
        return self._next(self.outcomes)

    def accumulators(self, job_id):
        return {"rows": 1}

    def coordinator_request(self, job_id, operator_id, request):
        self.requests.append(request)
        answer = self._next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_the_result_waits_until_the_job_has_ended():
    result = JobClient(JOB, ScriptedJob(None, None, FINISHED)).get_job_execution_result().result()
    assert (result.get_job_id(), result.get_net_runtime()) == (JOB, 12)
    assert result.get_all_accumulator_results() == {"rows": 3}
    assert result.get_accumulator_result("none") is None
    assert result.is_job_execution_result()


def test_the_result_of_a_failed_job_raises_its_root_cause():
    error = ErrorInfo("ZeroDivisionError", "division by zero\n  in operator 'map'", "user frames", "user")
    job = ScriptedJob(JobOutcomeView(JobStatus.FAILED, 1, {}, error))
    with pytest.raises(JobExecutionError) as caught:
        JobClient(JOB, job).get_job_execution_result().result()
    assert str(caught.value) == error.message
    assert not hasattr(caught.value, "__notes__")


def test_a_bug_of_ours_comes_with_its_stack():
    error = ErrorInfo("AssertionError", "broken", "our stack", "internal")
    job = ScriptedJob(JobOutcomeView(JobStatus.FAILED, 1, {}, error))
    with pytest.raises(JobExecutionError) as caught:
        JobClient(JOB, job).get_job_execution_result().result()
    assert caught.value.__notes__ == ["our stack"]


def test_the_result_of_a_cancelled_job_raises_that():
    job = ScriptedJob(JobOutcomeView(JobStatus.CANCELED, 1, {}, None))
    with pytest.raises(JobCancelledError, match=JOB):
        JobClient(JOB, job).get_job_execution_result().result()


def test_a_future_says_whether_it_is_done_without_waiting():
    future = JobClient(JOB, ScriptedJob(None, FINISHED)).get_job_execution_result()
    assert not future.done()
    assert future.done()


def test_a_future_times_out():
    with pytest.raises(TimeoutError):
        CompletableFuture(lambda timeout_s: None).result(0.01)


def test_a_futures_exception_is_returned_or_none():
    def fail(timeout_s):
        raise ExternalError("gone")

    assert str(CompletableFuture(fail).exception()) == "gone"
    assert CompletableFuture.completed(1).exception() is None


def test_collected_batches_come_once_each_in_order_until_finished():
    rows = [pickle.dumps([number]) for number in range(4)]
    answers = [
        JobNotFoundError("not started"),
        FetchedResults("v", 0),
        FetchedResults("v", 0, rows[:2]),
        FetchedResults("v", 0, rows[:3]),  # two again: the answer before was lost on its way
        FetchedResults("v", 3, rows[3:], True),
    ]
    job = ScriptedJob(None, FINISHED, answers=answers)
    assert list(JobClient(JOB, job).collect_batches("op")) == [[0], [1], [2], [3]]
    assert job.requests[-1] == FetchResults("v", 3)


def test_collecting_from_a_failed_job_raises_after_its_rows():
    error = JobOutcomeView(JobStatus.FAILED, 1, {}, ErrorInfo("E", "why", "", "user"))
    job = ScriptedJob(error, answers=[FetchedResults("v", 0, [pickle.dumps([1])], True)])
    batches = JobClient(JOB, job).collect_batches("op")
    assert next(batches) == [1]
    with pytest.raises(JobExecutionError, match="why"):
        next(batches)


def test_collecting_from_a_job_that_ended_before_it_began_raises_its_error():
    error = JobOutcomeView(JobStatus.FAILED, 1, {}, ErrorInfo("E", "no slots", "", "external"))
    job = ScriptedJob(error, answers=[JobNotFoundError("never started")])
    with pytest.raises(JobExecutionError, match="no slots"):
        list(JobClient(JOB, job).collect_batches("op"))


@pytest.mark.parametrize(("asked", "times"), [(True, 1), (False, 0)])
def test_an_interrupt_cancels_the_job_only_when_that_was_asked_for(asked, times):
    job = ScriptedJob(FINISHED)
    JobClient(JOB, job, cancel_on_interrupt=asked).on_interrupt()
    assert job.cancelled == times


def test_a_restart_before_the_first_rows_is_not_noticed():
    answers = [
        FetchedResults("v", 0),
        FetchedResults("v", 0, [], True),  # the failed attempt has ended
        JobNotFoundError("the next one has not started"),
        FetchedResults("w", 0),
        FetchedResults("w", 0, [pickle.dumps([1])], True),
    ]
    job = ScriptedJob(None, None, None, FINISHED, answers=answers)
    assert list(JobClient(JOB, job).collect_batches("op")) == [[1]]
    assert job.cancelled == 0


def test_a_restart_after_the_first_rows_cancels_the_job_and_says_why():
    answers = [FetchedResults("v", 0, [pickle.dumps([1])]), FetchedResults("w", 0)]
    job = ScriptedJob(None, answers=answers)
    batches = JobClient(JOB, job).collect_batches("op")
    assert next(batches) == [1]
    with pytest.raises(JobExecutionError, match=r"restarted after rows.*without checkpoints"):
        next(batches)
    assert job.cancelled == 1


def test_with_checkpoints_rows_are_given_when_committed_and_a_restart_is_not_noticed():
    one, two, lost, three = (pickle.dumps([value]) for value in (1, 2, "lost", 3))
    answers = [
        FetchedResults("v", 0, [one], committed=0),
        FetchedResults("v", 1, [two, lost], committed=1),
        FetchedResults("w", 2, committed=2),  # restarted: batch 1 is in the checkpoint, batch 2 comes differently
        FetchedResults("w", 1, [two, three], committed=2),
        FetchedResults("w", 3, [], True, committed=2),
        FetchedResults("w", 3, [], True, committed=3),
    ]
    job = ScriptedJob(FINISHED, answers=answers)
    assert list(JobClient(JOB, job).collect_batches("op")) == [[1], [2], [3]]
    assert [request.offset for request in job.requests] == [0, 1, 3, 2, 3, 3]
    assert job.cancelled == 0


def test_what_was_never_committed_of_a_failed_job_is_not_given():
    error = JobOutcomeView(JobStatus.FAILED, 1, {}, ErrorInfo("E", "why", "", "user"))
    job = ScriptedJob(error, answers=[FetchedResults("v", 0, [pickle.dumps([1]), pickle.dumps([2])], True, 1)])
    batches = JobClient(JOB, job).collect_batches("op")
    assert next(batches) == [1]
    with pytest.raises(JobExecutionError, match="why"):
        next(batches)


def test_who_collects_everything_at_once_gets_the_rows_of_the_last_attempt_only():
    answers = [
        FetchedResults("v", 0, [pickle.dumps([1]), pickle.dumps([2])]),
        FetchedResults("w", 0),
        FetchedResults("w", 0, [pickle.dumps([2])]),
        FetchedResults("w", 1, [pickle.dumps([1])], True),
    ]
    job = ScriptedJob(FINISHED, answers=answers)
    assert JobClient(JOB, job).collect_all("op") == [2, 1]
    assert (job.cancelled, job.requests[-1]) == (0, FetchResults("w", 1))
