"""Coordinators run in a thread of their own, in order; one that hangs keeps no cancelled job from ending."""

from __future__ import annotations

import asyncio
import pickle
import threading

import pytest

from engine.core.errors import ExternalError, InputError, JobNotFoundError
from engine.core.ids import ExecutionAttemptID, JobID, JobVertexID, OperatorID
from engine.graph.job_graph import JobGraph, JobType, JobVertex
from engine.ha.contracts import LeadershipLostError
from engine.operators.base import CoordinatorSpec, JobOutcome, OperatorCoordinator
from engine.protocol.control import OperatorEventSent
from engine.runtime.jobmanager import coordinators as module
from engine.runtime.jobmanager.coordinators import JobCoordinators
from engine.runtime.jobmanager.scheduler import CoordinatorFailed, CoordinatorsStarted, GivenUpHandled, JobEndHandled

VERTEX, OPERATOR = JobVertexID.from_text("vertex"), OperatorID.from_text("operator")


class Recorder(OperatorCoordinator):
    hang = threading.Event()

    def start(self, ctx):
        super().start(ctx)
        self.calls = [threading.current_thread() is threading.main_thread()]
        mode = ctx.config.get("mode")
        if mode == "hang":
            self.hang.wait(600)
        if mode == "fail":
            raise InputError("Input path /none does not exist.")
        ctx.send_event(1, "hello")

    def handle_event(self, subtask_index, attempt_number, event):
        self.calls.append((subtask_index, attempt_number, event))

    def subtask_finished(self, subtask_index):
        self.calls.append(subtask_index)

    def handle_request(self, request):
        if request == "raise":
            raise ValueError("bad request")
        return self.calls

    def job_ended(self, outcome):
        if self.ctx.config.get("mode") == "fail at end":
            raise InputError("cannot commit")
        self.calls.append(outcome)

    def given_up(self, outcome):
        self.calls.append("given up")
        raise ExternalError("cannot clean up")

    def savepoint_taken(self, checkpoint_id, committables):
        self.calls.append((checkpoint_id, dict(committables)))
        if self.ctx.config.get("mode") == "no room":
            raise ExternalError("no room")


class Spec(CoordinatorSpec):
    def create(self):
        return Recorder()


@pytest.fixture
def hosted(monkeypatch):
    """Run a scenario(coordinators, next_event, sent) with the given mode."""
    monkeypatch.setattr(module, "decode", lambda data, expected: pickle.loads(data))
    monkeypatch.setattr(module, "STUCK_S", 0.05)
    Recorder.hang.clear()

    def run(scenario, mode="", vertices=None, fence=None, lost=None):
        async def main():
            events, sent = asyncio.Queue(), []
            vertex = JobVertex(VERTEX, "v", 2, 128, b"", (), "default", None, {OPERATOR: pickle.dumps(Spec())})
            graph = JobGraph(JobID.generate(), "job", JobType.BATCH, (vertex,) if vertices is None else vertices, ())
            coordinators = JobCoordinators(
                graph,
                {"mode": mode},
                post=events.put_nowait,
                send=lambda *message: sent.append(message),
                **({} if fence is None else {"fence": fence, "lost": lost}),
            )
            try:
                await asyncio.wait_for(scenario(coordinators, events.get, sent), 60)
            finally:
                Recorder.hang.set()
                coordinators.close()

        asyncio.run(main())

    return run


def test_calls_happen_in_order_and_outside_of_the_event_loop(hosted):
    async def scenario(coordinators, next_event, sent):
        coordinators.start()
        assert await next_event() == CoordinatorsStarted()
        attempt = ExecutionAttemptID.of(VERTEX, 1, 3)
        coordinators.handle_event(OperatorEventSent(JobID.generate(), attempt, OPERATOR, 1, pickle.dumps("event")))
        coordinators.subtask_finished(VERTEX, 1)
        coordinators.end(JobOutcome.FINISHED)
        assert await next_event() == JobEndHandled()
        assert await coordinators.request(OPERATOR, "") == [False, (1, 3, "event"), 1, JobOutcome.FINISHED]
        assert [message[:3] for message in sent] == [(VERTEX, OPERATOR, 1)]

    hosted(scenario)


def test_a_job_without_coordinators_starts_and_ends_at_once(hosted):
    async def scenario(coordinators, next_event, sent):
        coordinators.start()
        assert await next_event() == CoordinatorsStarted()
        coordinators.end(JobOutcome.FINISHED)
        assert await next_event() == JobEndHandled()

    hosted(scenario, vertices=())


def test_a_coordinator_that_cannot_start_fails_with_its_own_words(hosted):
    async def scenario(coordinators, next_event, sent):
        coordinators.start()
        event = await next_event()
        assert isinstance(event, CoordinatorFailed)
        assert event.error.message == "Input path /none does not exist."
        assert event.error.domain == "user"

    hosted(scenario, "fail")


def test_an_error_at_the_end_is_told(hosted):
    async def scenario(coordinators, next_event, sent):
        coordinators.start()
        await next_event()
        coordinators.end(JobOutcome.FINISHED)
        assert (await next_event()).error.message == "cannot commit"

    hosted(scenario, "fail at end")


def test_who_is_given_up_is_told_after_the_end_and_its_errors_are_logged_only(hosted, caplog):
    async def scenario(coordinators, next_event, sent):
        coordinators.start()
        await next_event()
        coordinators.end(JobOutcome.FAILED)
        assert await next_event() == JobEndHandled()
        coordinators.give_up(JobOutcome.FAILED)
        assert await next_event() == GivenUpHandled()
        assert await coordinators.request(OPERATOR, "") == [False, JobOutcome.FAILED, "given up"]

    hosted(scenario)
    assert "cannot clean up" in caplog.text


def test_who_is_deposed_between_the_end_and_the_clean_up_cleans_nothing_up(hosted):
    """What would be removed may be what the next leader's attempt is about to commit."""
    asked, lost = [], []

    def fence(attempt_number, publishes, is_over):
        asked.append(publishes)
        if len(asked) > 2:  # the start and the end went well
            raise LeadershipLostError("another one leads")

    async def scenario(coordinators, next_event, sent):
        coordinators.start()
        assert await next_event() == CoordinatorsStarted()
        coordinators.end(JobOutcome.FAILED)
        assert await next_event() == JobEndHandled()
        coordinators.give_up(JobOutcome.FAILED)
        assert await coordinators.request(OPERATOR, "") == [False, JobOutcome.FAILED]  # behind it in the thread
        assert len(asked) == 3
        assert [type(error) for error in lost] == [LeadershipLostError]

    hosted(scenario, fence=fence, lost=lost.append)


def test_a_hanging_coordinator_does_not_keep_a_job_from_being_given_up(hosted):
    async def scenario(coordinators, next_event, sent):
        coordinators.start()
        coordinators.give_up(JobOutcome.FAILED)
        assert await next_event() == GivenUpHandled()
        await asyncio.sleep(0.1)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(next_event(), 0.1)

    hosted(scenario, "hang")


@pytest.mark.parametrize("mode", ["", "no room", "abandoned"])
def test_a_savepoint_is_told_and_answered_whatever_happens(hosted, mode):
    async def scenario(coordinators, next_event, sent):
        coordinators.start()
        await next_event()
        if mode == "abandoned":
            coordinators._abandoned = True
        answer = asyncio.get_running_loop().create_future()
        coordinators.savepoint_taken(7, {OPERATOR: {1: pickle.dumps(b"parts")}}, answer.set_result)
        error = await answer
        assert (error is None) == (mode == "")
        coordinators._abandoned = False
        calls = await coordinators.request(OPERATOR, "")
        assert calls == [False] + [(7, {1: b"parts"})] * (mode != "abandoned")

    hosted(scenario, mode)


def test_a_hanging_coordinator_does_not_keep_a_cancelled_job(hosted):
    async def scenario(coordinators, next_event, sent):
        coordinators.start()
        coordinators.end(JobOutcome.CANCELED)
        assert await next_event() == JobEndHandled()

    hosted(scenario, "hang")


def test_a_clients_request_gets_the_answer_or_the_error(hosted):
    async def scenario(coordinators, next_event, sent):
        coordinators.start()
        await next_event()
        with pytest.raises(ValueError, match="bad request"):
            await coordinators.request(OPERATOR, "raise")
        with pytest.raises(JobNotFoundError, match="no operator"):
            await coordinators.request(OperatorID.from_text("other"), "")

    hosted(scenario)


def test_an_error_of_the_users_at_the_start_is_final_and_one_of_the_world_is_not(hosted, monkeypatch):
    async def scenario(coordinators, next_event, sent):
        coordinators.start()
        event = await next_event()
        assert (event.is_final, event.error.type_name) == (True, "InputError")

    hosted(scenario, "fail")

    async def scenario_2(coordinators, next_event, sent):
        coordinators.start()
        event = await next_event()
        assert (event.is_final, event.error.type_name) == (False, "ExternalError")

    monkeypatch.setattr(Recorder, "start", lambda self, ctx: _raise(ExternalError("no answer")))
    hosted(scenario_2)


def _raise(error):
    raise error


def test_coordinators_that_were_replaced_do_no_clean_up_any_more(hosted, monkeypatch):
    outcomes = []
    monkeypatch.setattr(Recorder, "job_ended", lambda self, outcome: outcomes.append(outcome))

    async def scenario(coordinators, next_event, sent):
        coordinators.start()
        coordinators.end(JobOutcome.FAILED)
        thread = coordinators._worker.thread
        assert await next_event() == JobEndHandled()  # given up: it hangs
        coordinators.abandon()
        Recorder.hang.set()
        await asyncio.get_running_loop().run_in_executor(None, thread.join, 5)
        assert not thread.is_alive()
        assert outcomes == []

    hosted(scenario, "hang")


class Sink(OperatorCoordinator):
    """Shows its output at the end, unless its mode says that it cannot."""

    def __init__(self, name, calls):
        self.name, self.calls, self.shown = name, calls, []

    def mode(self):
        return self.ctx.config["mode"].split(",")

    def check_end(self, outcome):
        self.calls.append(("check", self.name, outcome))
        if f"check {self.name}" in self.mode():
            raise InputError(f"{self.name} cannot be shown.")

    def job_ended(self, outcome):
        self.calls.append(("end", self.name, outcome))
        if outcome is JobOutcome.FINISHED:
            if f"end {self.name}" in self.mode():
                raise InputError(f"{self.name} was not renamed.")
            self.shown.append(f"/out/{self.name}")

    def published(self):
        return self.shown


@pytest.fixture
def three_sinks(hosted, monkeypatch):
    """Return (calls, error or None) of the end of a job with the sinks a, b and c."""

    def run(mode, outcome=JobOutcome.FINISHED):
        calls, found = [], []
        sinks = {OperatorID.from_text(name): Sink(name, calls) for name in "abc"}
        specs = {operator_id: str(operator_id).encode() for operator_id in sinks}

        class SpecOf(CoordinatorSpec):
            def __init__(self, operator_id):
                self.operator_id = operator_id

            def create(self):
                return sinks[self.operator_id]

        monkeypatch.setattr(module, "decode", lambda data, expected: SpecOf(OperatorID(data.decode())))
        vertex = JobVertex(VERTEX, "v", 2, 128, b"", (), "default", None, specs)

        async def scenario(coordinators, next_event, sent):
            coordinators.start()
            assert await next_event() == CoordinatorsStarted()
            coordinators.end(outcome)
            found.append((await next_event()).error)

        hosted(scenario, mode, vertices=(vertex,))
        return calls, found[0]

    return run


def test_no_output_is_shown_before_all_have_found_that_they_can(three_sinks):
    calls, error = three_sinks("")
    assert error is None
    assert calls == [(step, name, JobOutcome.FINISHED) for step in ("check", "end") for name in "abc"]


def test_when_one_output_cannot_be_shown_none_is(three_sinks):
    calls, error = three_sinks("check b")
    assert error.message == "b cannot be shown."
    assert [call for call in calls if call[0] == "end"] == [("end", name, JobOutcome.FAILED) for name in "abc"]


def test_a_failure_amid_the_commit_says_what_is_shown_and_cleans_up_the_rest(three_sinks):
    calls, error = three_sinks("end b")
    assert error.message == "b was not renamed. Published before that, and left: /out/a; nothing else."
    assert calls[3:] == [
        ("end", "a", JobOutcome.FINISHED), ("end", "b", JobOutcome.FINISHED), ("end", "c", JobOutcome.FAILED)
    ]  # fmt: skip


def test_a_failed_job_checks_nothing(three_sinks):
    calls, error = three_sinks("check a", JobOutcome.FAILED)
    assert (error, [call[0] for call in calls]) == (None, ["end"] * 3)
