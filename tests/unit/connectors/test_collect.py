from __future__ import annotations

import pickle

import pytest

from engine.connectors.collect import CollectSinkSpec, FetchedResults, FetchResults
from engine.operators.base import JobOutcome
from tests.testing.checkpointed_job import CheckpointedJob
from tests.testing.operator_harness import OperatorHarness, end_job, start_coordinators


def rows_of(fetched: FetchedResults) -> list:
    return [row for blob in fetched.blobs for row in pickle.loads(blob)]


def sinks(parallelism: int):
    harnesses: list[OperatorHarness] = []
    coordinators = start_coordinators(CollectSinkSpec(), parallelism=parallelism, harnesses=harnesses)
    for i in range(parallelism):
        harnesses.append(
            OperatorHarness(CollectSinkSpec(), subtask_index=i, parallelism=parallelism, coordinators=coordinators)
        )
        harnesses[-1].__enter__()
    return coordinators[0], harnesses


def test_a_client_fetches_rows_in_order_until_the_sink_has_finished():
    coordinator, [sink] = sinks(1)
    first = coordinator.handle_request(FetchResults("", 0))
    assert (first.offset, first.blobs, first.finished) == (0, [], False)
    sink.process([1, ("a", None)])
    second = coordinator.handle_request(FetchResults(first.version, 0))
    assert (rows_of(second), second.finished) == ([1, ("a", None)], False)
    sink.process([3])
    sink.end()
    coordinator.subtask_finished(0)
    third = coordinator.handle_request(FetchResults(first.version, 1))
    assert (third.offset, rows_of(third), third.finished) == (1, [3], True)
    sink.__exit__()


def test_an_answer_that_was_lost_is_given_again():
    coordinator, [sink] = sinks(1)
    sink.process([1])
    version = coordinator.handle_request(FetchResults("", 0)).version
    assert rows_of(coordinator.handle_request(FetchResults(version, 0))) == [1]
    assert rows_of(coordinator.handle_request(FetchResults(version, 0))) == [1]
    assert rows_of(coordinator.handle_request(FetchResults(version, 1))) == []
    sink.__exit__()


def test_the_sink_is_not_ready_while_the_client_is_slow():
    coordinator, [sink] = sinks(1)
    sent = 0
    while sink.head.is_ready():
        sink.process([sent])
        sent += 1
        assert sent < 1000
    answer = coordinator.handle_request(FetchResults("", 0))
    assert not sink.head.is_ready()
    sink.woken.clear()
    coordinator.handle_request(FetchResults(answer.version, 1))
    assert sink.head.is_ready()
    assert sink.woken.is_set()
    sink.__exit__()


def test_large_batches_fill_the_sink_by_bytes_and_answers_are_cut():
    coordinator, [sink] = sinks(1)
    sent = 0
    while sink.head.is_ready():
        sink.process([b"x" * (3 << 20)])
        sent += 1
    assert sent <= 6
    answer = coordinator.handle_request(FetchResults("", 0))
    assert 1 <= len(answer.blobs) < sent
    sink.__exit__()


def test_all_subtasks_must_finish_and_all_rows_be_fetched_before_the_end():
    coordinator, [one, two] = sinks(2)
    one.process(["one"])
    two.process(["two"])
    coordinator.subtask_finished(0)
    assert not coordinator.handle_request(FetchResults("", 0)).finished
    coordinator.subtask_finished(1)
    answer = coordinator.handle_request(FetchResults("", 0))
    assert (rows_of(answer), answer.finished) == (["one", "two"], True)
    end_job([coordinator], JobOutcome.FINISHED)
    assert rows_of(coordinator.handle_request(FetchResults("", 0))) == ["one", "two"]
    assert coordinator.handle_request(FetchResults("", 2)).finished
    one.__exit__()
    two.__exit__()


def test_a_failed_job_ends_the_stream_of_results():
    coordinator, [sink] = sinks(1)
    end_job([coordinator], JobOutcome.FAILED)
    assert coordinator.handle_request(FetchResults("", 0)).finished
    sink.__exit__()


def test_rows_of_classes_that_only_the_program_has_are_collected():
    class Local:
        pass

    coordinator, [sink] = sinks(1)
    sink.process([Local()])
    [row] = rows_of(coordinator.handle_request(FetchResults("", 0)))
    assert type(row).__name__ == "Local"
    sink.__exit__()


def test_each_attempt_has_a_version_of_its_own_and_gives_no_rows_to_the_one_before():
    coordinators = [
        start_coordinators(CollectSinkSpec(), parallelism=1, harnesses=[], attempt_number=attempt)[0]
        for attempt in (0, 1)
    ]
    first, second = (coordinator.handle_request(FetchResults("", 0)).version for coordinator in coordinators)
    assert first != second
    with OperatorHarness(CollectSinkSpec(), coordinators=[coordinators[1]]) as sink:
        sink.process([1])
        assert coordinators[1].handle_request(FetchResults(first, 0)) == FetchedResults(second, 0)
        assert rows_of(coordinators[1].handle_request(FetchResults(second, 0))) == [1]


# --- with checkpoints ------------------------------------------------------------------------------------------------


class Client:
    """Fetches as ``JobClient`` does; ``rows`` is what its user has been given."""

    def __init__(self) -> None:
        self.version = ""
        self.offset = 0
        self.held: dict[int, list] = {}
        self.rows: list = []

    def fetch(self, job: CheckpointedJob) -> None:
        answer = job.coordinators[0].handle_request(FetchResults(self.version, self.offset))
        if answer.version != self.version:
            is_first, self.version = self.version == "", answer.version
            if not is_first:
                self.held = {number: rows for number, rows in self.held.items() if number < answer.committed}
                self.offset = min(self.offset, answer.committed)
                return self.fetch(job)
        for number, blob in enumerate(answer.blobs, answer.offset):
            if number >= self.offset:
                self.offset = number + 1
                self.held[number] = pickle.loads(blob)
        for number in sorted(self.held):
            if number < answer.committed:
                self.rows += self.held.pop(number)
        return None


def test_rows_are_given_when_a_checkpoint_has_completed_behind_them():
    job, client = CheckpointedJob(CollectSinkSpec()), Client()
    job.start()
    job.harnesses[0].process([1])
    client.fetch(job)
    taken = job.checkpoint()
    job.harnesses[0].process([2])
    client.fetch(job)
    assert client.rows == []
    job.commit(taken)
    client.fetch(job)
    assert client.rows == [1]
    job.finish_all()
    job.end(JobOutcome.FINISHED)
    client.fetch(job)
    assert client.rows == [1, 2]


@pytest.mark.parametrize("fetched_before", range(6))
@pytest.mark.parametrize("fetched_after", range(4))
def test_each_row_is_given_once_wherever_the_job_restarts(fetched_before, fetched_after):
    """Batches 0-2 are in the checkpoint, 3 and 4 come differently after the restart."""
    job, client = CheckpointedJob(CollectSinkSpec()), Client()
    job.start()
    for number in range(5):
        if number == fetched_before:
            client.fetch(job)
        job.harnesses[0].process([number if number < 3 else f"lost {number}"])
        if number == 2:
            taken = job.checkpoint()
            if fetched_before % 2:
                job.commit(taken)
    if fetched_before == 5:
        client.fetch(job)
    job.kill()
    job.start(taken)
    for number in range(3, 6):
        if number - 3 == fetched_after:
            client.fetch(job)
        job.harnesses[0].process([number])
    job.finish_all()
    job.end(JobOutcome.FINISHED)
    client.fetch(job)
    assert client.rows == list(range(6))


@pytest.mark.parametrize("restarts", [1, 2, 3])
def test_a_client_may_sleep_through_several_restarts(restarts):
    job, client = CheckpointedJob(CollectSinkSpec()), Client()
    job.start()
    job.harnesses[0].process(["a"])
    taken = job.complete()
    job.harnesses[0].process(["lost"])
    client.fetch(job)
    for number in range(restarts):
        job.kill()
        job.start(taken)
        job.harnesses[0].process([f"b{number}"])
        taken = job.complete()
        job.harnesses[0].process(["lost too"])
    job.kill()
    job.start(taken)
    client.fetch(job)
    client.fetch(job)
    assert client.rows == ["a", *(f"b{number}" for number in range(restarts))]


def test_rows_of_a_sink_that_had_finished_are_still_there_after_a_restart():
    job, client = CheckpointedJob(CollectSinkSpec()), Client()
    job.start()
    job.harnesses[0].process([1])
    client.fetch(job)
    job.harnesses[0].process([2])
    job.finish_all()
    taken = job.complete()
    assert taken.subtasks == {}
    job.kill()
    job.start(taken)
    client.fetch(job)
    assert client.rows == [1, 2]
    assert job.coordinators[0].handle_request(FetchResults(client.version, 2)).finished


def test_rows_behind_the_last_checkpoint_of_a_failed_job_are_not_committed():
    job, client = CheckpointedJob(CollectSinkSpec()), Client()
    job.start()
    job.harnesses[0].process([1])
    job.complete()
    job.harnesses[0].process([2])
    job.fail()
    client.fetch(job)
    assert client.rows == [1]
