"""Checkpoints through Dispatcher, JobMaster and real files: a scripted TaskManager stands for the tasks."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import pickle
import threading
import zlib

import pytest

from engine.checkpoint import storage
from engine.checkpoint.storage import read_checkpoint
from engine.core.config import Configuration
from engine.core.errors import ConfigError, CorruptStateError, ExternalError, InputError, ProgramError
from engine.core.ids import ExecutionAttemptID, JobID, OperatorID
from engine.graph.job_graph import JobType
from engine.operators.base import CoordinatorSpec, JobOutcome, OperatorCoordinator
from engine.protocol.checkpoint import (
    AcknowledgeCheckpoint,
    CheckpointKind,
    FileHandle,
    KeyedLayer,
    KeyedStateHandle,
    NotifyCheckpointComplete,
    OperatorStateHandles,
    StopMode,
    TriggerCheckpoint,
)
from engine.protocol.control import DeployTask, ErrorInfo, SendOperatorEvent, TaskStateChanged
from engine.protocol.lifecycle import ExecutionState, JobStatus
from engine.runtime.jobmanager import coordinators as coordinators_module
from tests.process.cluster_jobs import operator_id, program
from tests.unit.runtime.jobmanager.test_dispatcher import jobmanager, run

EVERY = {
    "execution.checkpointing.interval": "20 ms",
    "restart-strategy.type": "fixed-delay",
    "restart-strategy.fixed-delay.delay": "1 ms",
    "restart-strategy.fixed-delay.attempts": "5",
}


class Committer(OperatorCoordinator):
    """Remembers what it is told; ``fail`` names calls that raise once."""

    calls: list = []
    fail: set = set()

    def _call(self, name, *args):
        self.calls.append((name, *args))
        if name in self.fail:
            self.fail.discard(name)
            raise RuntimeError(f"{name} failed")

    def restore(self, state, committables):
        self._call("restore", state, dict(committables))

    def start(self, ctx):
        super().start(ctx)
        self._call("start")

    def snapshot(self, checkpoint_id):
        self._call("snapshot", checkpoint_id)
        self.ctx.send_event(0, f"after {checkpoint_id - 1}")
        return f"state {checkpoint_id}".encode()

    def checkpoint_completed(self, checkpoint_id, committables):
        self._call("completed", checkpoint_id, dict(committables))

    def checkpoint_aborted(self, checkpoint_id):
        self._call("aborted", checkpoint_id)

    def job_ended(self, outcome):
        self._call("ended", outcome)

    def given_up(self, outcome):
        self._call("given up", outcome)


class CommitterSpec(CoordinatorSpec):
    def create(self):
        return Committer()


@pytest.fixture(autouse=True)
def committer(monkeypatch):
    monkeypatch.setattr(coordinators_module, "decode", lambda data, expected: pickle.loads(data))
    monkeypatch.setattr(Committer, "calls", [])
    monkeypatch.setattr(Committer, "fail", set())
    return Committer


def job(**config):
    """source → map → sink with a coordinator, in streaming mode."""
    graph = program(abs)
    sink = OperatorID(operator_id(graph))
    vertices = tuple(
        dataclasses.replace(vertex, coordinators={sink: pickle.dumps(CommitterSpec())})
        if any(one.operator_id == sink for one in vertex.operators)
        else vertex
        for vertex in graph.vertices
    )
    settings = {key.replace("_", "."): value for key, value in config.items()}
    return dataclasses.replace(graph, vertices=vertices, config={**graph.config, **settings})


class Tasks:
    """Takes part in checkpoints for all tasks of the jobs on a scripted TaskManager."""

    def __init__(self, scripted) -> None:
        self.scripted = scripted
        self.seen = 0
        self.triggered: list[TriggerCheckpoint] = []
        self.completed: list[NotifyCheckpointComplete] = []
        self.deployed: dict[str, DeployTask] = {}
        self.acknowledge = True

    def send(self, message) -> None:
        self.scripted.connection.send_nowait(message)

    def finish_all(self) -> None:
        for attempt_id in list(self.deployed):
            self.report(attempt_id, ExecutionState.FINISHED)

    def report(self, attempt_id, state, error=None) -> None:
        deployed = self.deployed.pop(attempt_id)
        self.send(TaskStateChanged(deployed.task.job_id, attempt_id, state, error))

    async def run(self) -> None:
        while True:
            for message in self.scripted.seen[self.seen :]:
                self.seen += 1
                match message:
                    case DeployTask(_, task):
                        self.deployed[task.attempt_id] = message
                    case TriggerCheckpoint():
                        self.triggered.append(message)
                        if self.acknowledge:
                            for one in [d.task for d in self.deployed.values()]:
                                self.send(acknowledgement(one, message))
                    case NotifyCheckpointComplete():
                        self.completed.append(message)
                        stops = {t.checkpoint_id for t in self.triggered if t.options.stop is not StopMode.NONE}
                        if message.checkpoint_id in stops and message.attempt_id in self.deployed:
                            self.report(message.attempt_id, ExecutionState.FINISHED)
            await asyncio.sleep(0.001)


def acknowledgement(task, trigger):
    """Write a small file of state, as the task would."""
    operators = {}
    if "sink" in task.vertex_name:
        folder = trigger.options.exclusive_folder
        handle = FileHandle("", 5, zlib.crc32(b"state"), b"state")
        if folder:
            path = f"{folder}/{task.attempt_id}"
            local = path.removeprefix("file://")
            os.makedirs(os.path.dirname(local), exist_ok=True)
            with open(local, "wb") as stream:
                stream.write(b"state")
            handle = FileHandle(path, 5, zlib.crc32(b"state"))
        layer = KeyedLayer(handle, {0: (0, 5, 0)})
        keyed = KeyedStateHandle("keyed", 0, task.max_parallelism, (layer,))
        sink = OperatorID(operator_id(job()))
        operators[sink] = OperatorStateHandles((keyed,), committables=pickle.dumps(f"of {trigger.checkpoint_id}"))
    return AcknowledgeCheckpoint(task.job_id, task.attempt_id, trigger.checkpoint_id, operators)


@contextlib.asynccontextmanager
async def cluster(tmp_path, config=None):
    (tmp_path / "jm").mkdir()
    async with jobmanager(tmp_path / "jm", {**EVERY, **(config or {})}, finish=False) as (dispatcher, scripted):
        tasks = Tasks(scripted)
        running = asyncio.ensure_future(tasks.run())
        try:
            yield dispatcher, tasks
        finally:
            running.cancel()


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def calls(name):
    return [call[1:] for call in Committer.calls if call[0] == name]


def test_checkpoints_are_taken_completed_and_deleted_with_the_job(tmp_path):
    async def scenario():
        async with cluster(tmp_path, {"execution.checkpointing.dir": str(tmp_path / "chk")}) as (dispatcher, tasks):
            graph = job()
            job_id = await dispatcher.submit_job(graph)
            await until(lambda: len(calls("completed")) >= 3)
            folder = tmp_path / "chk" / job_id
            assert sum(name.startswith("chk-") for name in os.listdir(folder)) <= 3  # retained, being deleted, next
            numbers = [number for number, _ in calls("completed")]
            assert numbers == sorted(set(numbers))
            assert calls("completed")[0] == (1, {0: "of 1"})
            assert {m.checkpoint_id for m in tasks.completed} >= {1, 2}
            tasks.acknowledge = False
            await dispatcher.cancel_job(job_id)
            await dispatcher.job_result(job_id)

    run(scenario())
    assert os.listdir(tmp_path / "chk") == []


def test_what_a_coordinator_sends_after_its_snapshot_arrives_behind_the_trigger(tmp_path):
    async def scenario():
        async with cluster(tmp_path) as (dispatcher, tasks):
            await dispatcher.submit_job(job())
            await until(lambda: len(tasks.triggered) >= 3)
            order = [
                pickle.loads(m.event) if isinstance(m, SendOperatorEvent) else m.checkpoint_id
                for m in tasks.scripted.seen
                if isinstance(m, SendOperatorEvent | TriggerCheckpoint)
            ]
            # The first was sent before the first snapshot had returned: it is part of it.
            assert order[:4] == ["after 0", 1, "after 1", 2]

    run(scenario())


def test_what_a_coordinator_sends_while_others_give_their_state_waits_for_the_trigger(tmp_path, monkeypatch):
    graph = job()
    first, last = graph.vertices[0], graph.vertices[-1]
    early = dataclasses.replace(first, coordinators={first.operators[0].operator_id: pickle.dumps(CommitterSpec())})
    graph = dataclasses.replace(graph, vertices=(early, *graph.vertices[1:]))
    made: list[Committer] = []
    start, snapshot = Committer.start, Committer.snapshot

    def started(self, ctx):
        made.append(self)
        start(self, ctx)

    def snapshot_and_disturb(self, checkpoint_id):
        if self is made[-1]:
            made[0].ctx.send_event(0, f"behind {checkpoint_id}")  # whose state has been taken
        return snapshot(self, checkpoint_id)

    monkeypatch.setattr(Committer, "start", started)
    monkeypatch.setattr(Committer, "snapshot", snapshot_and_disturb)

    async def scenario():
        async with cluster(tmp_path) as (dispatcher, tasks):
            await dispatcher.submit_job(graph)
            await until(lambda: len(tasks.triggered) >= 2)
            seen = [
                pickle.loads(m.event) if isinstance(m, SendOperatorEvent) else m.checkpoint_id
                for m in tasks.scripted.seen
                if isinstance(m, SendOperatorEvent | TriggerCheckpoint)
            ]
            assert seen.index("behind 1") == seen.index(1) + 1
            assert last.vertex_id != first.vertex_id

    run(scenario())


def test_a_failed_job_goes_on_from_its_last_checkpoint(tmp_path):
    async def scenario():
        async with cluster(tmp_path, {"execution.checkpointing.dir": str(tmp_path / "chk")}) as (dispatcher, tasks):
            job_id = await dispatcher.submit_job(job())
            await until(lambda: calls("completed"))
            number = len(dispatcher.job(job_id).vertices)
            assert all(deploy.task.restore is None for deploy in tasks.deployed.values())
            tasks.acknowledge = False
            failing = next(iter(tasks.deployed))
            tasks.report(failing, ExecutionState.FAILED, ErrorInfo("ValueError", "wrong", "", "user"))
            tasks.deployed.clear()
            await until(lambda: len(tasks.deployed) == number)
            restores = [deploy.task.restore for deploy in tasks.deployed.values()]
            (last,) = {restore.checkpoint_id for restore in restores}
            # Perhaps one more: its metadata was being written when the task failed.
            assert last - calls("completed")[-1][0] in (0, 1)
            sink = OperatorID(operator_id(job()))
            (keyed,) = next(r.operators[sink].keyed for r in restores if sink in r.operators)
            assert keyed.layers[0].file.path.endswith("_0_0")
            assert calls("restore") == [(f"state {last}".encode(), {0: f"of {last}"})]
            names = [call[0] for call in Committer.calls]
            assert names.index("restore") < len(names) - 1 - names[::-1].index("start")

    run(scenario())


def test_a_commit_that_fails_at_the_end_is_made_again_from_the_last_checkpoint(tmp_path):
    async def scenario():
        async with cluster(tmp_path) as (dispatcher, tasks):
            Committer.fail = {"ended"}
            job_id = await dispatcher.submit_job(job())
            await until(lambda: calls("completed"))
            tasks.finish_all()
            number = len(dispatcher.job(job_id).vertices)
            await until(lambda: len(tasks.deployed) == number)
            assert all(deploy.task.restore.is_finished for deploy in tasks.deployed.values())
            tasks.finish_all()
            graph = await dispatcher.job_result(job_id)
            assert graph.status is JobStatus.FINISHED
            assert calls("ended") == [(JobOutcome.FINISHED,), (JobOutcome.FINISHED,)]
            assert len(calls("restore")) == 1

    run(scenario())


def test_a_commit_that_fails_in_between_restarts_the_job_which_commits_again(tmp_path):
    async def scenario():
        async with cluster(tmp_path) as (dispatcher, _):
            Committer.fail = {"completed"}
            await dispatcher.submit_job(job())
            await until(lambda: calls("restore"))
            assert calls("restore")[0] == (b"state 1", {0: "of 1"})

    run(scenario())


def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_this_is_told(tmp_path):
    async def scenario():
        settings = {"execution.checkpointing.num-retained": "2"}
        async with cluster(tmp_path, settings) as (dispatcher, tasks):
            job_id = await dispatcher.submit_job(job())
            await until(lambda: len(calls("completed")) >= 2)
            number = len(dispatcher.job(job_id).vertices)
            tasks.acknowledge = False
            wrong = ErrorInfo("ValueError", "wrong", "", "user")
            damaged = ErrorInfo(CorruptStateError.__name__, "torn", "", "external")
            found = []
            for error in (wrong, damaged, damaged):
                failing = next(iter(tasks.deployed))
                tasks.report(failing, ExecutionState.FAILED, error)
                tasks.deployed.clear()
                if len(found) == 2:
                    break
                await until(lambda: len(tasks.deployed) == number)
                found.append(next(iter(tasks.deployed.values())).task.restore.checkpoint_id)
            assert found[1] == found[0] - 1
            graph = await dispatcher.job_result(job_id)
            # Never from the beginning: it would commit again what is committed.
            assert graph.status is JobStatus.FAILED
            texts = [entry.error.message for entry in graph.exceptions]
            assert any(f"goes on from checkpoint {found[1]}" in text for text in texts)
            assert any("there is no older one" in text for text in texts)

    run(scenario())


def test_a_savepoint_can_be_taken_moved_and_started_from(tmp_path):
    async def scenario():
        async with cluster(tmp_path) as (dispatcher, tasks):
            job_id = await dispatcher.submit_job(job(execution_checkpointing_interval="0"))
            await until(lambda: len(tasks.deployed) == len(dispatcher.job(job_id).vertices))
            for attempt_id, deploy in tasks.deployed.items():
                tasks.send(TaskStateChanged(deploy.task.job_id, attempt_id, ExecutionState.RUNNING))
            taken = await dispatcher.trigger_savepoint(job_id, str(tmp_path / "sp"))
            assert os.path.basename(taken.folder).startswith(f"savepoint-{job_id[:6]}-")
            assert calls("completed") == []  # nothing is committed for it
            await dispatcher.cancel_job(job_id)
            await dispatcher.job_result(job_id)
            moved = str(tmp_path / "moved")
            os.rename(taken.folder.removeprefix("file://"), moved)
            tasks.deployed.clear()
            again = dataclasses.replace(job(**{"execution.state-recovery.path": moved}), job_id=JobID.generate())
            await dispatcher.submit_job(again)
            await until(lambda: len(tasks.deployed) == len(again.vertices))
            sink = OperatorID(operator_id(again))
            restores = [deploy.task.restore for deploy in tasks.deployed.values()]
            (keyed,) = next(r.operators[sink].keyed for r in restores if sink in r.operators)
            assert keyed.layers[0].file.path.startswith(f"file://{moved}/")
            assert os.path.exists(keyed.layers[0].file.path.removeprefix("file://"))
            await until(lambda: tasks.triggered[-1].checkpoint_id > 1 and calls("completed"))
            assert os.path.exists(moved + "/_metadata")  # NO_CLAIM: it is left alone

    run(scenario())


@pytest.mark.parametrize("stop", [StopMode.SUSPEND, StopMode.DRAIN])
def test_stop_with_savepoint_commits_and_answers_when_the_job_has_finished(tmp_path, stop):
    async def scenario():
        async with cluster(tmp_path) as (dispatcher, tasks):
            job_id = await dispatcher.submit_job(job())
            await until(lambda: calls("completed"))
            taken = await dispatcher.trigger_savepoint(job_id, str(tmp_path / "sp"), stop=stop)
            assert dispatcher.job(job_id).status is JobStatus.FINISHED
            assert taken.checkpoint_id in [number for number, _ in calls("completed")]
            assert read_checkpoint(taken.folder).kind is CheckpointKind.SAVEPOINT
            assert {t.options.stop for t in tasks.triggered if t.checkpoint_id == taken.checkpoint_id} == {stop}

    run(scenario())


def test_cancel_with_savepoint(tmp_path):
    async def scenario():
        async with cluster(tmp_path) as (dispatcher, _):
            job_id = await dispatcher.submit_job(job())
            await until(lambda: calls("completed"))
            taken = await dispatcher.trigger_savepoint(job_id, str(tmp_path / "sp"), cancel=True)
            assert (await dispatcher.job_result(job_id)).status is JobStatus.CANCELED
            assert read_checkpoint(taken.folder).checkpoint_id == taken.checkpoint_id
            await dispatcher.dispose_savepoint(taken.folder)

    run(scenario())
    assert os.listdir(tmp_path / "sp") == []


def test_checkpoints_are_retained_on_cancel_when_they_are_wanted(tmp_path):
    settings = {
        "execution.checkpointing.dir": str(tmp_path / "chk"),
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
    }

    async def scenario():
        async with cluster(tmp_path, settings) as (dispatcher, tasks):
            job_id = await dispatcher.submit_job(job())
            await until(lambda: calls("completed"))
            tasks.acknowledge = False  # a real task that is cancelled writes nothing any more
            await dispatcher.cancel_job(job_id)
            await dispatcher.job_result(job_id)

    run(scenario())
    (folder,) = (tmp_path / "chk").iterdir()
    (retained,) = folder.iterdir()
    checkpoint = read_checkpoint(str(retained))
    assert all(os.path.exists(path.removeprefix("file://")) for path in checkpoint.files())
    assert sorted(os.listdir(retained)) == sorted(
        ["_metadata", *(path.rpartition("/")[2] for path in checkpoint.files())]
    )


@pytest.mark.parametrize("is_written", [True, False], ids=["written", "failed"])
@pytest.mark.parametrize("ends", ["cancelled", "failed"])
def test_the_end_of_a_job_waits_until_it_is_known_what_becomes_of_the_checkpoint_being_written(
    ends, is_written, tmp_path, monkeypatch
):
    begun, go_on = threading.Event(), threading.Event()
    write_metadata = storage.write_metadata

    def slowly(checkpoint):
        begun.set()
        assert go_on.wait(60)
        if not is_written:
            raise ExternalError("the disk is full")
        return write_metadata(checkpoint)

    monkeypatch.setattr(storage, "write_metadata", slowly)
    settings = {"execution.checkpointing.dir": str(tmp_path / "chk"), "restart-strategy.type": "none"}

    async def scenario():
        async with cluster(tmp_path, settings) as (dispatcher, tasks):
            job_id = await dispatcher.submit_job(job())
            await until(begun.is_set)
            tasks.acknowledge = False
            if ends == "cancelled":
                await dispatcher.cancel_job(job_id)
            else:
                tasks.report(next(iter(tasks.deployed)), ExecutionState.FAILED, ErrorInfo("E", "gone", "", "user"))
            told = asyncio.ensure_future(dispatcher.job_result(job_id))
            await asyncio.sleep(0.2)
            assert not told.done()
            go_on.set()
            await told

    run(scenario())
    assert calls("completed") == ([(1, {0: "of 1"})] if is_written else [])
    assert calls("aborted") == ([] if is_written else [(1,)])
    known = ("completed", "aborted")
    order = [name for name, *_ in Committer.calls if name in (*known, "ended", "given up")]
    last = "ended" if ends == "cancelled" else "given up"
    assert order.index(last) > min(order.index(name) for name in known if name in order)


# --- bad input --------------------------------------------------------------------------------------------------------


def refused(tmp_path, graph, config=None):
    caught = []

    async def scenario():
        async with cluster(tmp_path, config) as (dispatcher, _):
            try:
                await dispatcher.submit_job(graph)
            except Exception as error:
                caught.append(error)
            assert dispatcher.jobs() == []

    run(scenario())
    (error,) = caught
    return error


def test_a_checkpoint_folder_that_cannot_be_written_is_told_at_submission(tmp_path):
    (tmp_path / "file").write_text("")
    error = refused(tmp_path, job(), {"execution.checkpointing.dir": str(tmp_path / "file" / "chk")})
    assert isinstance(error, ConfigError)
    assert f"Folder file://{tmp_path}/file/chk (execution.checkpointing.dir) cannot be written" in str(error)


def test_a_savepoint_that_is_missing_is_told_at_submission(tmp_path):
    error = refused(tmp_path, job(**{"execution.state-recovery.path": str(tmp_path / "none")}))
    assert isinstance(error, InputError)
    assert str(error) == f"Savepoint {tmp_path}/none does not exist."


def test_a_batch_job_cannot_start_from_a_savepoint(tmp_path):
    graph = dataclasses.replace(job(**{"execution.state-recovery.path": "/s"}), job_type=JobType.BATCH)
    error = refused(tmp_path, graph)
    assert isinstance(error, ProgramError)
    assert "runs in BATCH mode" in str(error)


def test_a_savepoint_needs_a_folder_that_can_be_written(tmp_path):
    async def scenario():
        async with cluster(tmp_path) as (dispatcher, _):
            job_id = await dispatcher.submit_job(job())
            await until(lambda: calls("completed"))
            with pytest.raises(ConfigError, match=r"set execution\.checkpointing\.savepoint-dir"):
                await dispatcher.trigger_savepoint(job_id, None)
            (tmp_path / "file").write_text("")
            with pytest.raises(ConfigError, match="cannot be written"):
                await dispatcher.trigger_savepoint(job_id, str(tmp_path / "file"), stop=StopMode.SUSPEND)
            assert dispatcher.job(job_id).status is JobStatus.RUNNING
            await dispatcher.cancel_job(job_id)
            await dispatcher.job_result(job_id)
            with pytest.raises(ExternalError, match="the job is not running"):
                await dispatcher.trigger_savepoint(job_id, str(tmp_path / "sp"))

    run(scenario())


def test_the_configuration_says_what_the_restart_strategy_is(tmp_path):
    from engine.runtime.jobmanager.restart import ExponentialDelay, NoRestart, restart_strategy

    assert isinstance(restart_strategy(Configuration(), takes_checkpoints=True), ExponentialDelay)
    assert isinstance(restart_strategy(Configuration(), takes_checkpoints=False), NoRestart)
    off = Configuration({"restart-strategy": "none"})
    assert isinstance(restart_strategy(off, takes_checkpoints=True), NoRestart)


def test_answers_for_unknown_jobs_are_ignored(tmp_path):
    async def scenario():
        async with cluster(tmp_path) as (dispatcher, tasks):
            job_id = await dispatcher.submit_job(job())
            await until(lambda: calls("completed"))
            tasks.send(AcknowledgeCheckpoint(JobID.generate(), ExecutionAttemptID("v_0_0"), 1, {}))
            tasks.send(AcknowledgeCheckpoint(job_id, ExecutionAttemptID(f"{'0' * 32}_7_0"), 1, {}))
            await until(lambda: len(calls("completed")) > 2)

    run(scenario())
