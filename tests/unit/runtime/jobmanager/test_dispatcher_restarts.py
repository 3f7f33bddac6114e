"""A job that restarts, through JobMaster and ResourceManager: slots change hands, the former attempt is not heard."""

from __future__ import annotations

import asyncio
import logging
import pickle
import re

import pytest

from engine.connectors.collect import FetchResults, RowsCollected
from engine.core.errors import ConfigError
from engine.protocol.control import DeployTask, ErrorInfo, OperatorEventSent, SendOperatorEvent, TaskStateChanged
from engine.protocol.lifecycle import ExecutionState, JobStatus
from engine.rpc.codec import encode
from engine.runtime.jobmanager.coordinators import JobCoordinators
from tests.process.cluster_jobs import operator_id, program
from tests.unit.runtime.jobmanager.test_dispatcher import jobmanager, run

WRONG = ErrorInfo("ValueError", "wrong", "", "user")
RESTARTS = {"restart-strategy.type": "fixed-delay", "restart-strategy.fixed-delay.delay": "1 ms"}


def deployed(scripted, attempt):
    messages = [message for message in scripted.seen if isinstance(message, DeployTask)]
    return [message.task for message in messages if message.task.attempt_number == attempt]


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def fail(scripted, task):
    report = TaskStateChanged(task.job_id, task.attempt_id, ExecutionState.FAILED, WRONG)
    scripted.connection.send_nowait(report)


def test_a_failed_job_is_deployed_anew_and_hears_nothing_of_its_former_attempt(tmp_path, caplog):
    caplog.set_level(logging.INFO)

    async def scenario():
        async with jobmanager(tmp_path, RESTARTS, finish=False) as (dispatcher, scripted):
            graph = program(abs, collect=True)
            collect = operator_id(graph)
            job_id = await dispatcher.submit_job(graph)
            await until(lambda: deployed(scripted, 0))
            total = len(graph.vertices)
            await until(lambda: len(deployed(scripted, 0)) == total)
            old = next(task for task in deployed(scripted, 0) if "sink" in task.vertex_name)

            def say(task, row):
                event = encode(RowsCollected(pickle.dumps([row])))
                message = OperatorEventSent(job_id, task.attempt_id, collect, 0, event)
                scripted.connection.send_nowait(message)

            say(old, "old")
            fail(scripted, old)
            await until(lambda: len(deployed(scripted, 1)) == total)
            new = next(task for task in deployed(scripted, 1) if "sink" in task.vertex_name)
            say(old, "late")
            say(new, "new")
            answer = None
            while answer is None or not answer.blobs:
                answer = await dispatcher.coordinator_request(job_id, collect, FetchResults("", 0))
            assert [pickle.loads(blob) for blob in answer.blobs] == [["new"]]
            fail(scripted, new)
            ended = await dispatcher.job_result(job_id)
            assert (ended.status, ended.failure) == (JobStatus.FAILED, WRONG)
            assert [entry.error for entry in ended.exceptions] == [WRONG, WRONG]
            await until(lambda: dispatcher.overview().slots_available == 4)

    run(scenario())
    why = "attempt=1 follows in [01] ms: wrong Restart with fixed delay \\(1 ms\\)"
    assert re.search(why, caplog.text), caplog.text


def test_what_coordinators_send_at_their_start_goes_to_the_attempt_that_is_not_deployed_yet(tmp_path, monkeypatch):
    start = JobCoordinators.start

    def send_then_start(self):
        hosted = self._hosted[0]
        self._send(hosted.vertex_id, hosted.operator_id, 0, b"early", 0)
        start(self)

    monkeypatch.setattr(JobCoordinators, "start", send_then_start)

    async def scenario():
        async with jobmanager(tmp_path, RESTARTS, finish=False) as (dispatcher, scripted):
            job_id = await dispatcher.submit_job(program(abs, collect=True))
            await until(lambda: deployed(scripted, 0))
            fail(scripted, deployed(scripted, 0)[0])
            await until(lambda: dispatcher.job(job_id).status is JobStatus.RUNNING and deployed(scripted, 1))
            await until(lambda: sum(isinstance(message, SendOperatorEvent) for message in scripted.seen) == 2)
            sent = [message.attempt_id for message in scripted.seen if isinstance(message, SendOperatorEvent)]
            assert [attempt_id.rpartition("_")[2] for attempt_id in sent] == ["0", "1"]

    run(scenario())


def test_a_cluster_that_closes_does_not_wait_for_a_restart(tmp_path):
    async def scenario():
        config = {**RESTARTS, "restart-strategy.fixed-delay.delay": "1 h"}
        async with jobmanager(tmp_path, config, finish=False) as (dispatcher, scripted):
            job_id = await dispatcher.submit_job(program(abs))
            await until(lambda: deployed(scripted, 0))
            fail(scripted, deployed(scripted, 0)[0])
            await until(lambda: dispatcher.job(job_id).status is JobStatus.RESTARTING)
        assert dispatcher.job(job_id).status is JobStatus.CANCELED

    run(scenario())


def test_a_job_says_itself_how_it_restarts_and_a_bad_strategy_is_refused(tmp_path):
    async def scenario():
        async with jobmanager(tmp_path, RESTARTS, finish=False) as (dispatcher, scripted):
            graph = program(abs)
            graph.config["restart-strategy.type"] = "off"
            job_id = await dispatcher.submit_job(graph)
            await until(lambda: deployed(scripted, 0))
            fail(scripted, deployed(scripted, 0)[0])
            assert (await dispatcher.job_result(job_id)).status is JobStatus.FAILED
            other = program(abs)
            other.config["restart-strategy.type"] = "sometimes"
            with pytest.raises(ConfigError, match="sometimes"):
                await dispatcher.submit_job(other)
            assert len(dispatcher.jobs()) == 1

    run(scenario())
