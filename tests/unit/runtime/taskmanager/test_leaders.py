"""A TaskManager and the JobManagers that lead one after the other, in one loop."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from engine.core.config import Configuration
from engine.core.errors import ExternalError
from engine.core.ids import FencingToken, ResourceID
from engine.ha.contracts import LeaderInformation
from engine.ha.memory import MemoryCluster, MemoryRetrieval
from engine.protocol.control import AcceptRegistration, TaskManagerRegistered
from engine.rpc.endpoint import InMemoryServer
from engine.runtime.taskmanager import leader_connector
from engine.runtime.taskmanager.leader_connector import LeaderConnector
from engine.runtime.taskmanager.task_executor import TaskExecutor, TaskExecutorSettings


class Host:
    """A zygote that is never asked for a slot."""

    def __init__(self):
        self.is_closed = False

    async def wait(self):
        return await asyncio.get_running_loop().create_future()

    async def close(self):
        self.is_closed = True


class Leaders:
    def __init__(self, monkeypatch):
        self.elected = MemoryCluster("file:///nowhere")
        self.servers = {}
        self.registered = asyncio.Queue()
        self.hosts = []
        monkeypatch.setattr(leader_connector, "connect", self.connect)

    async def connect(self, host, port, timeout_s):
        if port == 666:  # packets vanish
            await asyncio.sleep(timeout_s)
            raise ExternalError("silence")
        if port not in self.servers:
            raise ExternalError(f"nobody at {port}")
        return await self.servers[port].connect()

    def lead(self, port, *, is_up=True, interval_ms=100, timeout_ms=60_000):
        token = self.elected.token = FencingToken.generate()

        async def serve(connection):
            assert isinstance(await connection.receive(), TaskManagerRegistered)
            connection.send_nowait(AcceptRegistration("rm", interval_ms, timeout_ms))
            self.registered.put_nowait((port, connection))
            while await connection.receive() is not None:
                pass
            self.registered.put_nowait((port, None))

        if is_up:
            self.servers[port] = InMemoryServer(token, serve, lambda sha256: None)
        self.elected.publish(LeaderInformation(token, "host", port))

    async def slot_host(self, python):
        self.hosts.append(Host())
        return self.hosts[-1]


class SlowRetrieval:
    """As ZooKeeper's: an answer takes its time."""

    def __init__(self, cluster):
        self._retrieval = MemoryRetrieval(cluster)
        self.replaced = self._retrieval.replaced

    async def leader(self, timeout_s):
        await asyncio.sleep(0.02)
        return await self._retrieval.leader(timeout_s)


@contextlib.asynccontextmanager
async def following(tmp_path, monkeypatch):
    leaders = Leaders(monkeypatch)
    connector = LeaderConnector(SlowRetrieval(leaders.elected))
    settings = TaskExecutorSettings(ResourceID("tm"), "host", "host", 1, Configuration())
    executor = TaskExecutor(
        settings,
        connect=connector,
        slot_hosts=leaders.slot_host,
        temp_dir=str(tmp_path),
        leader_replaced=connector.replaced,
    )
    running = asyncio.ensure_future(executor.run())
    async with asyncio.timeout(60):
        yield leaders
        executor.stop()
        await running
    for server in leaders.servers.values():
        await server.close()


@pytest.fixture
def scenario(tmp_path, monkeypatch):
    def run(body):
        async def whole():
            async with following(tmp_path, monkeypatch) as leaders:
                await body(leaders)

        asyncio.run(whole())

    return run


def test_a_taskmanager_leaves_a_leader_that_was_replaced_though_it_still_answers(scenario):
    async def body(leaders):
        leaders.lead(1)
        assert (await leaders.registered.get())[0] == 1
        leaders.lead(2)
        seen = [await leaders.registered.get(), await leaders.registered.get()]
        assert [(port, connection is None) for port, connection in seen] == [(1, True), (2, False)]
        assert len(leaders.hosts) == 1  # its zygote stays warm
        assert not leaders.hosts[0].is_closed

    scenario(body)


def test_a_new_leader_ends_the_pause_between_two_attempts_at_a_dead_one(scenario, monkeypatch):
    monkeypatch.setattr("engine.runtime.taskmanager.task_executor.BACKOFF_FIRST_S", 100.0)

    async def body(leaders):
        leaders.lead(1, is_up=False)
        await asyncio.sleep(0.05)
        leaders.lead(2)
        assert (await leaders.registered.get())[0] == 2

    scenario(body)


def test_a_new_leader_ends_an_attempt_that_nobody_answers(scenario, monkeypatch):
    monkeypatch.setattr("engine.runtime.taskmanager.task_executor.CONNECT_ATTEMPT_S", 100.0)

    async def body(leaders):
        leaders.lead(666, is_up=False)
        await asyncio.sleep(0.05)
        leaders.lead(2)
        assert (await leaders.registered.get())[0] == 2

    scenario(body)


def test_before_anybody_leads_a_taskmanager_waits(scenario):
    async def body(leaders):
        await asyncio.sleep(0.05)
        leaders.lead(1)
        assert (await leaders.registered.get())[0] == 1

    scenario(body)
