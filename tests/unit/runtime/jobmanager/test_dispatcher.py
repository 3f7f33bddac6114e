"""The Dispatcher with its shells in one loop: a scripted TaskManager stands for slots, the deciders are real."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os

import pytest

from engine.core.clock import SystemClock
from engine.core.config import Configuration
from engine.core.errors import ExternalError, JobNotFoundError, ProgramError
from engine.core.ids import FencingToken, JobID, ResourceID
from engine.core.metrics import IntCounter
from engine.graph.job_graph import JobGraph
from engine.protocol.control import (
    AcceptRegistration,
    AllocateSlot,
    CancelTask,
    DeployTask,
    FreeSlot,
    ListLogs,
    LogRead,
    LogsListed,
    ReadLog,
    ShutDownTaskManager,
    SlotAddress,
    SlotAllocated,
    SlotFreed,
    TaskManagerDraining,
    TaskManagerRegistered,
    TaskStateChanged,
    UserFile,
)
from engine.protocol.lifecycle import ExecutionState, JobStatus
from engine.rpc.codec import encode
from engine.rpc.endpoint import InMemoryServer
from engine.runtime.jobmanager.dispatcher import Dispatcher
from engine.runtime.jobmanager.job_master import merged_accumulators
from tests.process.cluster_jobs import program

TIMEOUT_S = 60
TM = ResourceID("tm-1")


class ScriptedTaskManager:
    """Grants every slot; tasks finish at once, or stay running until they are cancelled."""

    def __init__(self, connection, *, num_slots=4, finish=True, accumulators=b""):
        self.connection = connection
        self.finish = finish
        self.accumulators = accumulators
        self.num_slots = num_slots
        self.seen = []

    def allocation(self, allocation_id):
        return next(m for m in self.seen if isinstance(m, AllocateSlot) and m.allocation_id == allocation_id)

    async def run(self):
        send = self.connection.send_nowait
        send(TaskManagerRegistered(TM, "host", self.num_slots, 1, 1, 1, 1, "", 1, 0))
        while (message := await self.connection.receive()) is not None:
            self.seen.append(message)
            match message:
                case AllocateSlot(allocation_id, slot_id):
                    send(SlotAllocated(allocation_id, slot_id, SlotAddress(TM, "host", 1, "")))
                case DeployTask(_, task):
                    state = ExecutionState.FINISHED if self.finish else ExecutionState.RUNNING
                    done = self.accumulators if self.finish else b""
                    send(TaskStateChanged(task.job_id, task.attempt_id, state, None, done))
                case CancelTask(allocation_id, attempt_id):
                    job_id = self.allocation(allocation_id).job.job_id
                    send(TaskStateChanged(job_id, attempt_id, ExecutionState.CANCELED))
                case FreeSlot(allocation_id):
                    send(SlotFreed(allocation_id, self.allocation(allocation_id).slot_id))
                case ReadLog(request_id, name):
                    send(LogRead(request_id, name.encode(), 1, "" if name else "There is no log file."))
                case ListLogs(request_id):
                    send(LogsListed(request_id, (("a.log", 1, 2),)))


@contextlib.asynccontextmanager
async def jobmanager(tmp_path, config=None, **taskmanager):
    dispatcher = Dispatcher(Configuration(config or {}), clock=SystemClock(), temp_dir=str(tmp_path))
    server = InMemoryServer(
        FencingToken.generate(), dispatcher.resource_manager.handle_connection, dispatcher.blobs.path
    )
    await dispatcher.start()
    scripted = ScriptedTaskManager(await server.connect(), **taskmanager)
    running = asyncio.ensure_future(scripted.run())
    while not dispatcher.taskmanagers():
        await asyncio.sleep(0)
    try:
        yield dispatcher, scripted
    finally:
        await dispatcher.close()
        await server.close()
        running.cancel()


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario, TIMEOUT_S))


def test_a_job_runs_to_its_end_and_gives_its_slots_back(tmp_path):
    async def scenario():
        async with jobmanager(tmp_path) as (dispatcher, scripted):
            job_id = await dispatcher.submit_job(program(abs, parallelism=2))
            graph = await dispatcher.job_result(job_id)
            assert graph.status is JobStatus.FINISHED
            while dispatcher.overview().slots_available != 4:
                await asyncio.sleep(0.001)
            assert dispatcher.overview().jobs_finished == 1
            assert isinstance(scripted.seen[0], AcceptRegistration)

    run(scenario())
    assert list(tmp_path.iterdir()) == []


def test_a_taskmanager_that_is_to_end_may_go_at_once_when_no_job_there_takes_checkpoints(tmp_path):
    async def scenario():
        async with jobmanager(tmp_path, finish=False) as (dispatcher, scripted):
            job_id = await dispatcher.submit_job(program(abs))
            while dispatcher.job(job_id).status is not JobStatus.RUNNING:
                await asyncio.sleep(0.001)
            scripted.connection.send_nowait(TaskManagerDraining(TM, "SIGTERM received"))
            while ShutDownTaskManager("SIGTERM received") not in scripted.seen:
                await asyncio.sleep(0.001)
            assert dispatcher.job(job_id).status is JobStatus.RUNNING, "it has not gone yet"

    run(scenario())


def test_a_worker_that_had_better_leave_is_told_to_end_and_one_that_has_gone_is_no_matter(tmp_path):
    async def scenario():
        async with jobmanager(tmp_path, finish=False) as (dispatcher, scripted):
            dispatcher.resource_manager.workers_leave((TM, ResourceID("gone")), "its node is decommissioned")
            while ShutDownTaskManager("its node is decommissioned") not in scripted.seen:
                await asyncio.sleep(0.001)

    run(scenario())


def test_files_go_when_their_job_has_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.runtime.jobmanager.dispatcher.SWEEP_S", 0.01)
    monkeypatch.setattr("engine.runtime.jobmanager.blob_store.UNREFERENCED_KEPT_MS", -1)

    async def scenario():
        async with jobmanager(tmp_path, finish=False) as (dispatcher, _):
            (tmp_path / "incoming").write_bytes(b"content")
            file = UserFile("a.py", dispatcher.put_blob(str(tmp_path / "incoming")), 7, "module")
            job_id = await dispatcher.submit_job(dataclasses.replace(program(abs), files=(file,)))
            await asyncio.sleep(0.05)
            assert os.listdir(dispatcher.blobs.folder) == [file.sha256]
            await dispatcher.cancel_job(job_id)
            await dispatcher.job_result(job_id)
            while os.listdir(dispatcher.blobs.folder):
                await asyncio.sleep(0.001)

    run(scenario())


def test_slots_in_use_are_shown_by_job(tmp_path):
    async def scenario():
        async with jobmanager(tmp_path, finish=False) as (dispatcher, _):
            job_id = await dispatcher.submit_job(program(abs, parallelism=2))
            while dispatcher.taskmanager(TM).slots_by_job != {job_id: 2}:
                await asyncio.sleep(0.001)
            assert dispatcher.taskmanager(TM).slots_free == 2

    run(scenario())


def test_an_exception_in_a_jobmaster_fails_that_job_only(tmp_path, monkeypatch):
    async def scenario():
        async with jobmanager(tmp_path, finish=False) as (dispatcher, _):
            healthy = await dispatcher.submit_job(program(abs))
            broken = await dispatcher.submit_job(program(abs))
            while dispatcher.job(broken).status is not JobStatus.RUNNING:
                await asyncio.sleep(0.001)

            def raise_bug(event, now_ms):
                raise RuntimeError("a bug")

            master = dispatcher._jobs[broken]
            monkeypatch.setattr(master._scheduler, "handle", raise_bug)
            await dispatcher.cancel_job(broken)
            graph = await dispatcher.job_result(broken)
            assert graph.status is JobStatus.FAILED
            assert "Internal error in the JobMaster" in graph.failure.message
            while dispatcher.taskmanager(TM).slots_by_job != {healthy: 1}:
                await asyncio.sleep(0.001)
            await dispatcher.cancel_job(healthy)
            assert (await dispatcher.job_result(healthy)).status is JobStatus.CANCELED

    run(scenario())


def test_refused_submissions_say_why(tmp_path):
    async def scenario():
        async with jobmanager(tmp_path) as (dispatcher, _):
            graph = program(abs)
            await dispatcher.submit_job(graph)
            with pytest.raises(ProgramError, match="submitted before"):
                await dispatcher.submit_job(graph)
            with pytest.raises(ProgramError, match="no operators"):
                await dispatcher.submit_job(JobGraph(JobID.generate(), "x", graph.job_type, (), ()))
            with pytest.raises(JobNotFoundError):
                dispatcher.job(JobID.generate())

    run(scenario())


def test_only_so_many_ended_jobs_are_remembered(tmp_path):
    async def scenario():
        async with jobmanager(tmp_path, {"web.history": "2"}) as (dispatcher, _):
            jobs = []
            for _ in range(4):
                jobs.append(await dispatcher.submit_job(program(abs)))
                await dispatcher.job_result(jobs[-1])
            assert [graph.job_graph.job_id for graph in dispatcher.jobs()] == jobs[:1:-1]

    run(scenario())


def test_an_ended_job_is_archived_whole(tmp_path):
    archive = tmp_path / "archive"

    async def scenario():
        async with jobmanager(tmp_path, {"jobmanager.archive.fs.dir": f"file://{archive}"}) as (dispatcher, _):
            job_id = await dispatcher.submit_job(program(abs))
            await dispatcher.job_result(job_id)
            return job_id

    job_id = asyncio.run(asyncio.wait_for(scenario(), TIMEOUT_S))
    assert [path.name for path in archive.iterdir()] == [job_id]
    entries = {
        entry["path"]: json.loads(entry["json"]) for entry in json.loads((archive / job_id).read_text())["archive"]
    }
    assert entries[f"/jobs/{job_id}"]["state"] == "FINISHED"


def test_logs_are_asked_of_the_taskmanager(tmp_path):
    async def scenario():
        async with jobmanager(tmp_path) as (dispatcher, _):
            assert await dispatcher.read_taskmanager_log(TM, "a.log") == b"a.log"
            assert await dispatcher.list_taskmanager_logs(TM) == (("a.log", 1, 2),)
            with pytest.raises(ExternalError, match="no log file"):
                await dispatcher.read_taskmanager_log(TM, "")
            with pytest.raises(KeyError):
                await dispatcher.read_taskmanager_log(ResourceID("other"), "a.log")

    run(scenario())


def test_workers_that_cannot_be_started_fail_the_jobs_that_wait_for_them(tmp_path):
    async def scenario():
        async with jobmanager(tmp_path, num_slots=1) as (dispatcher, _):
            job_id = await dispatcher.submit_job(program(abs, parallelism=3))
            await asyncio.sleep(0)
            dispatcher.resource_manager.workers_failed("queue 'root.none' does not exist")
            graph = await dispatcher.job_result(job_id)
            assert graph.status is JobStatus.FAILED
            assert "queue 'root.none'" in graph.failure.message

    run(scenario())


def test_a_silent_taskmanager_is_lost_after_the_heartbeat_timeout(tmp_path):
    config = {"heartbeat.interval": "50 ms", "heartbeat.timeout": "300 ms"}

    async def scenario():
        async with jobmanager(tmp_path, config, finish=False) as (dispatcher, _):
            job_id = await dispatcher.submit_job(program(abs))
            graph = await dispatcher.job_result(job_id)
            assert "no heartbeat for 300 ms" in graph.failure.message
            assert dispatcher.taskmanagers() == []

    run(scenario())


def test_accumulators_are_merged_and_their_errors_shown(tmp_path):
    first = IntCounter()
    first.add(2)
    accumulators = encode({"n": first})

    async def scenario():
        async with jobmanager(tmp_path, accumulators=accumulators) as (dispatcher, _):
            job_id = await dispatcher.submit_job(program(abs, parallelism=1))
            graph = await dispatcher.job_result(job_id)
            count = len(graph.all_subtasks())
            assert graph.accumulator_results == {"n": ("IntCounter", 2 * count)}
            for subtask in graph.all_subtasks():
                subtask.current.accumulators = b"garbage"
            assert all("cannot be read" in value for _, value in merged_accumulators(graph).values())

    run(scenario())
