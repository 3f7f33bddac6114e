"""Dispatchers one after the other over one job store: what a new leader takes over, what a deposed one must not do."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import threading

import pytest

from engine.core.clock import SystemClock
from engine.core.config import Configuration
from engine.core.errors import ExternalError, ProgramError
from engine.core.ids import FencingToken
from engine.graph.job_graph import JobType
from engine.ha.job_store import FencedJobStore
from engine.ha.memory import MemoryCluster, MemoryServices
from engine.operators.base import JobOutcome
from engine.protocol.control import ErrorInfo, UserFile
from engine.protocol.lifecycle import ExecutionState, JobStatus
from engine.rpc.endpoint import InMemoryServer
from engine.runtime.jobmanager.dispatcher import Dispatcher
from tests.unit.runtime.jobmanager.test_checkpointing import (  # noqa: F401 (a fixture)
    EVERY,
    Committer,
    Tasks,
    calls,
    committer,
    job,
    until,
)
from tests.unit.runtime.jobmanager.test_dispatcher import ScriptedTaskManager, run


class Contender:
    """Notes what it is told and does nothing: it is as slow as a deposed leader can be."""

    def __init__(self):
        self.token = None

    def leadership_granted(self, token):
        self.token = token

    def leadership_revoked(self, reason):
        pass


class Leaders:
    """``lead`` gives a Dispatcher of a new leader; those before are not told of it."""

    def __init__(self, tmp_path, config):
        self.tmp_path = tmp_path
        self.config = {**EVERY, "execution.checkpointing.dir": str(tmp_path / "chk"), **config}
        self.services = MemoryServices(MemoryCluster(f"file://{tmp_path}/ha"))
        self.number = 0
        self._leaving = None
        self._stack = contextlib.AsyncExitStack()

    async def depose(self):
        """Let somebody else lead, for whom this class has no Dispatcher."""
        if self._leaving is not None:
            await self._leaving.close()
        contender, election = Contender(), self.services.election()
        await election.start(contender)
        self._leaving = election
        return contender.token

    async def store(self):
        return FencedJobStore(self.services.metadata(), self.services.storage_dir, await self.depose())

    async def lead(self, store=None, *, starts=True):
        self.number += 1
        folder = self.tmp_path / f"jm-{self.number}"
        folder.mkdir()
        dispatcher = Dispatcher(
            Configuration(self.config),
            clock=SystemClock(),
            temp_dir=str(folder),
            job_store=store or await self.store(),
        )
        server = InMemoryServer(
            FencingToken.generate(), dispatcher.resource_manager.handle_connection, dispatcher.blobs.path
        )
        self._stack.push_async_callback(server.close)
        self._stack.push_async_callback(dispatcher.suspend)
        scripted = ScriptedTaskManager(await server.connect(), finish=False)
        tasks = Tasks(scripted)
        for work in (scripted.run(), tasks.run()):
            self._stack.callback(asyncio.ensure_future(work).cancel)
        if starts:
            await dispatcher.start()
        return dispatcher, tasks

    async def close(self):
        await self._stack.aclose()


def leading(tmp_path, scenario, **config):
    async def body():
        leaders = Leaders(tmp_path, {key.replace("_", "."): value for key, value in config.items()})
        try:
            await scenario(leaders)
        finally:
            await leaders.close()

    run(body())


def deployed(dispatcher, tasks, job_id):
    return len(tasks.deployed) == len(dispatcher.job(job_id).vertices)


def folders_of(tmp_path, job_id):
    return sorted(name for name in os.listdir(tmp_path / "chk" / job_id) if name.startswith("chk-"))


@pytest.mark.parametrize("storage", ["filesystem", "jobmanager"])
def test_a_new_leader_goes_on_from_the_newest_checkpoint_with_numbers_that_were_never_used(tmp_path, storage):
    async def scenario(leaders):
        first, tasks = await leaders.lead()
        job_id = await first.submit_job(job(execution_checkpointing_storage=storage))
        await until(lambda: len(calls("completed")) >= 2)
        given_out = max(trigger.checkpoint_id for trigger in tasks.triggered)
        Committer.calls.clear()
        second, tasks = await leaders.lead()
        await until(lambda: deployed(second, tasks, job_id))
        restores = {deploy.task.restore.checkpoint_id for deploy in tasks.deployed.values()}
        attempts = {deploy.task.attempt_id.rsplit("_", 1)[1] for deploy in tasks.deployed.values()}
        (restored,) = restores
        assert restored >= 2
        assert attempts == {"1"}
        assert (f"state {restored}".encode(), {0: f"of {restored}"}) in calls("restore")
        await until(lambda: tasks.triggered)
        assert tasks.triggered[0].checkpoint_id > given_out

    leading(tmp_path, scenario)


def test_the_number_of_a_checkpoint_that_was_under_way_is_not_given_out_again(tmp_path):
    async def scenario(leaders):
        first, tasks = await leaders.lead()
        tasks.acknowledge = False
        job_id = await first.submit_job(job())
        await until(lambda: tasks.triggered)
        assert tasks.triggered[0].checkpoint_id == 1
        second, tasks = await leaders.lead()
        await until(lambda: tasks.triggered)
        assert tasks.triggered[0].checkpoint_id == 2
        assert second.job(job_id).status is JobStatus.RUNNING

    leading(tmp_path, scenario)


def test_a_store_that_is_away_puts_checkpoints_off_and_fails_no_job(tmp_path, monkeypatch):
    """Though no failed checkpoint is tolerated: as in Flink, only what comes behind the trigger counts."""
    refused = []
    begin = FencedJobStore.begin_checkpoint

    def begin_checkpoint(self, job_id, checkpoint_id):
        if len(refused) < 3:
            refused.append(checkpoint_id)
            raise ExternalError("ZooKeeper does not answer.")
        begin(self, job_id, checkpoint_id)

    monkeypatch.setattr(FencedJobStore, "begin_checkpoint", begin_checkpoint)

    async def scenario(leaders):
        leader, tasks = await leaders.lead()
        job_id = await leader.submit_job(job())
        await until(lambda: len(calls("completed")) >= 2)
        assert refused == [1, 2, 3]
        assert tasks.triggered[0].checkpoint_id == 4
        assert leader.job(job_id).status is JobStatus.RUNNING
        assert deployed(leader, tasks, job_id), "once"

    leading(tmp_path, scenario)


def test_a_deposed_leader_that_gives_up_a_checkpoint_does_not_delete_that_of_the_same_number(tmp_path, monkeypatch):
    held = []
    begin = FencedJobStore.begin_checkpoint

    def begin_checkpoint(self, job_id, checkpoint_id):
        while not held:
            pass  # in the I/O thread: the leader is slow, and another one is elected meanwhile
        begin(self, job_id, checkpoint_id)

    monkeypatch.setattr(FencedJobStore, "begin_checkpoint", begin_checkpoint)
    # Nobody else tells it before.
    monkeypatch.setattr(FencedJobStore, "begin_attempt", lambda self, job_id, attempt_number, **told: None)

    async def scenario(leaders):
        first, tasks = await leaders.lead()
        job_id = await first.submit_job(job())
        await until(lambda: first.job(job_id).status is JobStatus.RUNNING and deployed(first, tasks, job_id))
        await asyncio.sleep(0.05)  # its first checkpoint is due
        await leaders.depose()
        theirs = tmp_path / "chk" / job_id / "chk-1"
        theirs.mkdir(parents=True)
        tasks.report(next(iter(tasks.deployed)), ExecutionState.FAILED, ErrorInfo("ValueError", "wrong", "", "user"))
        await asyncio.sleep(0.02)
        held.append(True)
        await asyncio.wait_for(first.leadership_lost.wait(), 60)
        await asyncio.sleep(0.05)
        assert theirs.exists()

    leading(tmp_path, scenario)


def test_a_deposed_leader_commits_and_deletes_nothing_and_suspends_the_job(tmp_path):
    async def scenario(leaders):
        first, tasks = await leaders.lead()
        job_id = await first.submit_job(job())
        await until(lambda: len(calls("completed")) >= 2)
        waiting = asyncio.ensure_future(first.job_result(job_id))
        await leaders.depose()
        await asyncio.sleep(0.2)  # a commit that was decided before may still come
        Committer.calls.clear()
        await asyncio.wait_for(first.leadership_lost.wait(), 60)
        assert first.job(job_id).status is JobStatus.SUSPENDED
        with pytest.raises(ExternalError, match="suspended"):
            await waiting
        left = folders_of(tmp_path, job_id)
        tasks.report(next(iter(tasks.deployed)), ExecutionState.FAILED, ErrorInfo("ValueError", "wrong", "", "user"))
        await asyncio.sleep(0.1)
        assert {call[0] for call in Committer.calls} <= {"snapshot"}
        assert folders_of(tmp_path, job_id) == left

    leading(tmp_path, scenario)


def test_a_deposed_leader_whose_job_fails_or_ends_cleans_nothing_up(tmp_path):
    async def scenario(leaders):
        first, tasks = await leaders.lead()
        job_id = await first.submit_job(job(execution_checkpointing_interval="1 h"))
        await until(lambda: deployed(first, tasks, job_id))
        await first.trigger_checkpoint(job_id, None)
        await until(lambda: calls("completed"))
        await leaders.depose()
        Committer.calls.clear()
        tasks.report(next(iter(tasks.deployed)), ExecutionState.FAILED, ErrorInfo("ValueError", "wrong", "", "user"))
        await asyncio.wait_for(first.leadership_lost.wait(), 60)
        assert Committer.calls == []
        assert folders_of(tmp_path, job_id) == ["chk-1"]

    leading(tmp_path, scenario)


def test_a_job_that_has_ended_is_shown_by_later_leaders_and_never_runs_again(tmp_path):
    async def scenario(leaders):
        first, tasks = await leaders.lead()
        graph = job()
        job_id = await first.submit_job(graph)
        await until(lambda: calls("completed"))
        tasks.finish_all()
        assert (await first.job_result(job_id)).status is JobStatus.FINISHED
        await until(lambda: not (tmp_path / "chk" / job_id).exists())
        second, tasks = await leaders.lead()
        assert await second.submit_job(graph) == job_id
        found = await second.job_result(job_id)
        assert (found.status, found.job_graph.name) == (JobStatus.FINISHED, graph.name)
        assert [one.job_graph.job_id for one in second.jobs()] == [job_id]
        assert second.overview().jobs_finished == 1
        await second.cancel_job(job_id)
        assert second.checkpoints(job_id).statistics.num_completed == 0
        await asyncio.sleep(0.05)
        assert tasks.deployed == {}

    leading(tmp_path, scenario)


def test_nobody_is_told_of_an_end_that_is_not_written_down(tmp_path, monkeypatch):
    failing = [ExternalError("no answer")] * 3
    put = FencedJobStore.put_result

    def put_result(self, result):
        if failing:
            raise failing.pop()
        put(self, result)

    monkeypatch.setattr(FencedJobStore, "put_result", put_result)
    monkeypatch.setattr("engine.runtime.jobmanager.checkpointing.STORE_RETRY_S", 0.02)

    async def scenario(leaders):
        first, tasks = await leaders.lead()
        job_id = await first.submit_job(job(execution_checkpointing_interval="1 h"))
        await until(lambda: deployed(first, tasks, job_id))
        await first.trigger_checkpoint(job_id, None)
        tasks.finish_all()
        await until(lambda: first.job(job_id).is_result_pending)
        assert (tmp_path / "chk" / job_id).exists()
        assert not first._master(job_id).has_ended
        await first.job_result(job_id)
        assert not failing
        assert not first.job(job_id).is_result_pending

    leading(tmp_path, scenario)


def test_a_submission_that_is_repeated_because_its_answer_was_lost_succeeds(tmp_path):
    async def scenario(leaders):
        first, _ = await leaders.lead()
        graph = job()
        both = await asyncio.gather(first.submit_job(graph), first.submit_job(graph))
        assert both == [graph.job_id] * 2
        second, _ = await leaders.lead()
        assert await second.submit_job(graph) == graph.job_id
        assert len(second.jobs()) == 1

    leading(tmp_path, scenario)


def test_a_job_that_cannot_be_kept_is_not_accepted(tmp_path, monkeypatch):
    async def scenario(leaders):
        first, _ = await leaders.lead()
        await leaders.depose()
        with pytest.raises(ExternalError, match="not accepted"):
            await first.submit_job(job())
        assert first.leadership_lost.is_set()
        assert first.jobs() == []

    leading(tmp_path, scenario)


def test_files_of_a_job_are_found_by_the_next_leader(tmp_path):
    async def scenario(leaders):
        first, _ = await leaders.lead()
        (tmp_path / "incoming").write_bytes(b"content")
        file = UserFile("a.py", first.put_blob(str(tmp_path / "incoming")), 7, "module")
        job_id = await first.submit_job(dataclasses.replace(job(), files=(file,)))
        second, tasks = await leaders.lead()
        with open(second.blobs.path(file.sha256), "rb") as stream:
            assert stream.read() == b"content"
        await until(lambda: deployed(second, tasks, job_id))

    leading(tmp_path, scenario)


def test_a_checkpoint_whose_pointer_was_not_written_is_declined_its_files_stay_and_the_job_goes_on(
    tmp_path, monkeypatch
):
    fail = []
    put = FencedJobStore.put_checkpoint

    def put_checkpoint(self, checkpoint, num_retained):
        put(self, checkpoint, num_retained)  # the answer is lost, not the write
        if fail:
            raise fail.pop()

    monkeypatch.setattr(FencedJobStore, "put_checkpoint", put_checkpoint)

    async def scenario(leaders):
        first, tasks = await leaders.lead()
        settings = {
            "execution_checkpointing_interval": "1 h",
            "execution_checkpointing_tolerable-failed-checkpoints": "5",
        }
        job_id = await first.submit_job(job(**settings))
        await until(lambda: deployed(first, tasks, job_id))
        await first.trigger_checkpoint(job_id, None)
        fail.append(ExternalError("no answer"))
        with pytest.raises(ExternalError, match="no answer"):
            await first.trigger_checkpoint(job_id, None)
        await asyncio.sleep(0.05)
        assert folders_of(tmp_path, job_id) == ["chk-1", "chk-2"]
        assert [number for number, _ in calls("completed")] == [1]
        # Another leader would go on from it, all of it is there.
        found = (await leaders.store()).checkpoints(job_id)
        assert ([one.checkpoint_id for one in found.checkpoints], found.problems) == ([2], ())

    leading(tmp_path, scenario)


def test_files_that_were_kept_in_doubt_go_when_the_next_pointer_is_written(tmp_path, monkeypatch):
    fail = []
    put = FencedJobStore.put_checkpoint

    def put_checkpoint(self, checkpoint, num_retained):
        if fail:
            raise fail.pop()
        put(self, checkpoint, num_retained)

    monkeypatch.setattr(FencedJobStore, "put_checkpoint", put_checkpoint)

    async def scenario(leaders):
        first, tasks = await leaders.lead()
        settings = {
            "execution_checkpointing_interval": "1 h",
            "execution_checkpointing_tolerable-failed-checkpoints": "5",
        }
        job_id = await first.submit_job(job(**settings))
        await until(lambda: deployed(first, tasks, job_id))
        fail.append(ExternalError("no answer"))
        with pytest.raises(ExternalError, match="no answer"):
            await first.trigger_checkpoint(job_id, None)
        await first.trigger_checkpoint(job_id, None)
        await until(lambda: folders_of(tmp_path, job_id) == ["chk-2"])

    leading(tmp_path, scenario)


def test_a_checkpoint_that_is_given_up_while_it_is_written_is_not_pointed_to(tmp_path, monkeypatch):
    held = []
    put = FencedJobStore.put_checkpoint
    order = []

    def put_checkpoint(self, checkpoint, num_retained):
        put(self, checkpoint, num_retained)
        if checkpoint.checkpoint_id == 2:
            while not held:
                pass  # in the I/O thread

    put_all = FencedJobStore.put_checkpoints

    def put_checkpoints(self, job_id, checkpoints):
        order.append([one.checkpoint_id for one in checkpoints])
        put_all(self, job_id, checkpoints)

    monkeypatch.setattr(FencedJobStore, "put_checkpoint", put_checkpoint)
    monkeypatch.setattr(FencedJobStore, "put_checkpoints", put_checkpoints)

    async def scenario(leaders):
        first, tasks = await leaders.lead()
        job_id = await first.submit_job(job(execution_checkpointing_interval="1 h"))
        await until(lambda: deployed(first, tasks, job_id))
        await first.trigger_checkpoint(job_id, None)
        taking = asyncio.ensure_future(first.trigger_checkpoint(job_id, None))

        def pointed():
            services, reader = leaders.services, FencingToken("reads only")
            found = FencedJobStore(services.metadata(), services.storage_dir, reader).checkpoints(job_id)
            return [one.checkpoint_id for one in found.checkpoints]

        await until(lambda: pointed() == [2])
        starts = len(calls("start"))
        tasks.report(next(iter(tasks.deployed)), ExecutionState.FAILED, ErrorInfo("ValueError", "wrong", "", "user"))
        tasks.deployed.clear()
        await until(lambda: first.job(job_id).status is JobStatus.CREATED)
        await asyncio.sleep(0.05)
        assert len(calls("start")) == starts  # its sinks would remove what checkpoint 2 has
        held.append(True)
        await until(lambda: deployed(first, tasks, job_id))
        assert order == [[1]]
        assert pointed() == [1]
        assert {deploy.task.restore.checkpoint_id for deploy in tasks.deployed.values()} == {1}
        with pytest.raises(ExternalError):
            await taking

    leading(tmp_path, scenario)


def test_a_suspended_leader_tells_coordinators_of_no_end(tmp_path):
    async def scenario(leaders):
        first, _ = await leaders.lead()
        job_id = await first.submit_job(job())
        await until(lambda: calls("completed"))
        await first.suspend()
        await asyncio.sleep(0.2)  # a call that had begun before may still come
        assert calls("ended") == []
        Committer.calls.clear()
        await asyncio.sleep(0.05)
        assert Committer.calls == []
        assert folders_of(tmp_path, job_id)
        with pytest.raises(ExternalError, match="lead"):
            await first.submit_job(job())

    leading(tmp_path, scenario)


def test_a_suspended_leader_does_nothing_of_what_it_had_begun(tmp_path, monkeypatch):
    """It may still lead, e.g. while its process ends: no fence keeps from the commit what waits behind another call."""
    entered, go_on = threading.Event(), threading.Event()

    def hang(self, checkpoint_id, committables):
        self._call("completed", checkpoint_id, dict(committables))
        entered.set()
        go_on.wait(60)

    monkeypatch.setattr(Committer, "checkpoint_completed", hang)

    async def scenario(leaders):
        first, tasks = await leaders.lead()
        job_id = await first.submit_job(job(execution_checkpointing_interval="1 h"))
        await until(lambda: deployed(first, tasks, job_id))
        await first.trigger_checkpoint(job_id, None)
        await until(entered.is_set)
        tasks.finish_all()
        vertices = first.job(job_id).vertices.values()
        await until(lambda: all(one.current.state is ExecutionState.FINISHED for v in vertices for one in v.subtasks))
        await first.suspend()
        go_on.set()
        thread = f"coordinators-{job_id[:8]}"
        await until(lambda: calls("ended") or thread not in {one.name for one in threading.enumerate()})
        assert calls("ended") == []

    leading(tmp_path, scenario)


def batch_job():
    return dataclasses.replace(job(), job_type=JobType.BATCH)


def test_a_batch_job_runs_again_from_the_beginning(tmp_path):
    async def scenario(leaders):
        first, tasks = await leaders.lead()
        job_id = await first.submit_job(batch_job())
        await until(lambda: tasks.deployed)
        second, tasks = await leaders.lead()
        await until(lambda: tasks.deployed)
        assert {deploy.task.restore for deploy in tasks.deployed.values()} == {None}
        assert {deploy.task.attempt_id.rsplit("_", 1)[1] for deploy in tasks.deployed.values()} == {"1"}
        while not second._master(job_id).has_ended:
            tasks.finish_all()
            await asyncio.sleep(0.001)
        assert calls("ended") == [(JobOutcome.FINISHED,)]

    leading(tmp_path, scenario)


def test_a_deposed_leader_does_not_publish_what_a_batch_job_has_written(tmp_path):
    async def scenario(leaders):
        first, tasks = await leaders.lead()
        await first.submit_job(batch_job())
        await until(lambda: tasks.deployed)
        await leaders.depose()
        while not first.leadership_lost.is_set():
            tasks.finish_all()
            await asyncio.sleep(0.001)
        assert calls("ended") == []

    leading(tmp_path, scenario)


def test_a_batch_job_whose_leader_was_lost_while_it_published_is_not_run_again(tmp_path, monkeypatch):
    def ends_never(self, outcome):
        self._call("ended", outcome)
        while len(Committer.calls) < 1000:
            pass

    monkeypatch.setattr(Committer, "job_ended", ends_never)

    async def scenario(leaders):
        first, tasks = await leaders.lead()
        job_id = await first.submit_job(batch_job())
        while not calls("ended"):
            tasks.finish_all()
            await asyncio.sleep(0.001)
        second, _ = await leaders.lead()
        found = await second.job_result(job_id)
        assert found.status is JobStatus.FAILED
        assert "made its output visible" in found.failure.message
        third, tasks = await leaders.lead()
        assert (await third.job_result(job_id)).status is JobStatus.FAILED
        assert tasks.deployed == {}
        Committer.calls.extend([("done",)] * 1000)

    leading(tmp_path, scenario)


def test_what_a_leader_that_died_did_not_delete_goes_with_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr(FencedJobStore, "remove_job", lambda self, job_id: None)
    monkeypatch.setattr("engine.checkpoint.storage.remove_job_folder", lambda folder, retained: None)

    async def scenario(leaders):
        first, tasks = await leaders.lead()
        job_id = await first.submit_job(job(execution_checkpointing_interval="1 h"))
        await until(lambda: deployed(first, tasks, job_id))
        await first.trigger_checkpoint(job_id, None)
        (tmp_path / "chk" / job_id / "chk-2").mkdir()
        tasks.finish_all()
        await first.job_result(job_id)
        monkeypatch.undo()
        store = await leaders.store()
        assert store.job_ids() == [job_id]
        await leaders.lead(store)
        assert store.job_ids() == []
        assert not (tmp_path / "chk" / job_id).exists()

    leading(tmp_path, scenario)


def test_without_a_job_store_a_second_submission_is_refused(tmp_path):
    async def scenario():
        dispatcher = Dispatcher(Configuration(EVERY), clock=SystemClock(), temp_dir=str(tmp_path))
        await dispatcher.start()
        graph = job()
        await dispatcher.submit_job(graph)
        with pytest.raises(ProgramError, match="submitted before"):
            await dispatcher.submit_job(graph)
        await dispatcher.close()

    run(scenario())
