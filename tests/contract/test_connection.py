"""One suite for both control connections: gRPC on the loopback, and in memory."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib

import pytest

from engine.core.errors import ExternalError, StaleLeaderError
from engine.core.ids import AllocationID, FencingToken, ResourceID
from engine.protocol.control import (
    AcceptRegistration,
    FreeSlot,
    HeartbeatFromJobManager,
    ReadLog,
    TaskManagerUnregistered,
)
from engine.rpc.endpoint import GrpcServer, InMemoryServer, connect

TIMEOUT_S = 60
TOKEN = FencingToken.from_text("leader")
HELLO = TaskManagerUnregistered(ResourceID("tm"), "hello")
ACCEPT = AcceptRegistration("jm", 100, 1000)


@pytest.fixture(params=["memory", "grpc"])
def kind(request):
    return request.param


@contextlib.asynccontextmanager
async def serving(kind, handler, blob_path=lambda sha256: None):
    """Yield (open a connection, server)."""
    if kind == "memory":
        server = InMemoryServer(TOKEN, handler, blob_path)
        opener = server.connect
    else:
        server = GrpcServer(TOKEN, handler, blob_path)
        await server.start("127.0.0.1", 0)

        async def opener():
            return await connect("127.0.0.1", server.port, 5.0)

    try:
        yield opener, server
    finally:
        await server.close()


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario, TIMEOUT_S))


async def echo(connection):
    while (message := await connection.receive()) is not None:
        connection.send_nowait(message)


def test_messages_arrive_whole_and_in_order_both_ways(kind):
    async def scenario():
        async with serving(kind, echo) as (opener, _):
            client = await opener()
            client.send_nowait(HELLO)
            assert await client.receive() == HELLO
            sent = [ReadLog(number, "x" * number) for number in range(500)]
            for message in sent:
                client.send_nowait(message)
            assert [await client.receive() for _ in sent] == sent
            await client.close()

    run(scenario())


def test_a_large_message_passes(kind):
    async def scenario():
        async with serving(kind, echo) as (opener, _):
            client = await opener()
            message = FreeSlot(AllocationID.generate(), "r" * (20 << 20))
            client.send_nowait(message)
            assert await client.receive() == message
            await client.close()

    run(scenario())


def test_the_server_sees_the_end_when_the_client_closes(kind):
    async def scenario():
        ended = asyncio.Event()

        async def handler(connection):
            connection.send_nowait(ACCEPT)
            while await connection.receive() is not None:
                pass
            ended.set()

        async with serving(kind, handler) as (opener, _):
            client = await opener()
            client.send_nowait(HELLO)
            await client.receive()
            await client.close()
            await ended.wait()
            assert await client.receive() is None

    run(scenario())


def test_what_was_sent_before_closing_arrives(kind):
    async def scenario():
        received = asyncio.get_running_loop().create_future()

        async def handler(connection):
            connection.send_nowait(ACCEPT)
            messages = []
            while (message := await connection.receive()) is not None:
                messages.append(message)
            received.set_result(messages)

        async with serving(kind, handler) as (opener, _):
            client = await opener()
            client.send_nowait(HELLO)
            await client.receive()
            client.send_nowait(ReadLog(1, "a"))
            client.send_nowait(ReadLog(2, "b"))
            await client.close()
            assert await received == [HELLO, ReadLog(1, "a"), ReadLog(2, "b")]

    run(scenario())


def test_the_client_sees_the_end_when_the_server_closes(kind):
    async def scenario():
        async def handler(connection):
            await connection.receive()
            connection.send_nowait(ACCEPT)

        async with serving(kind, handler) as (opener, _):
            client = await opener()
            client.send_nowait(HELLO)
            assert await client.receive() == ACCEPT
            assert await client.receive() is None
            client.send_nowait(HELLO)  # dropped, not an error
            await client.close()

    run(scenario())


def test_a_client_with_another_leaders_token_is_refused(kind, monkeypatch):
    stale = FencingToken.from_text("old leader")
    handled = []

    async def handler(connection):
        handled.append(await connection.receive())

    async def scenario():
        async with serving(kind, handler) as (opener, _):
            client = await opener()
            half = client._half if kind == "memory" else client
            half._fence.token = stale
            client.send_nowait(HELLO)
            with contextlib.suppress(StaleLeaderError):
                assert await client.receive() is None
            await client.close()

    run(scenario())
    assert handled == []


def test_a_message_of_another_leader_raises_at_the_client(kind, monkeypatch):
    async def handler(connection):
        await connection.receive()
        connection.send_nowait(ACCEPT)
        connection._fence.token = FencingToken.from_text("impostor")
        connection.send_nowait(HeartbeatFromJobManager())
        await connection.receive()

    async def scenario():
        async with serving(kind, handler) as (opener, _):
            client = await opener()
            client.send_nowait(HELLO)
            assert await client.receive() == ACCEPT
            with pytest.raises(StaleLeaderError):
                await client.receive()
            await client.close()

    run(scenario())


def test_a_blob_is_fetched_whole(kind, tmp_path):
    content = bytes(range(256)) * 20_000
    source = tmp_path / "blob"
    source.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    paths = {sha256: str(source)}

    async def scenario():
        async with serving(kind, echo, paths.get) as (opener, _):
            client = await opener()
            await client.fetch_blob(sha256, str(tmp_path / "target"))
            await client.close()

    run(scenario())
    assert (tmp_path / "target").read_bytes() == content


def test_an_unknown_blob_is_an_error_that_names_it(kind, tmp_path):
    async def scenario():
        async with serving(kind, echo) as (opener, _):
            client = await opener()
            with pytest.raises(ExternalError, match="abcd"):
                await client.fetch_blob("abcd", str(tmp_path / "target"))
            await client.close()

    run(scenario())


def test_connecting_to_nobody_says_where():
    async def scenario():
        with pytest.raises(ExternalError, match=r"127\.0\.0\.1:1 within 0\.3 s"):
            await connect("127.0.0.1", 1, 0.3)

    run(scenario())


def test_a_port_in_use_says_which():
    async def scenario():
        async with serving("grpc", echo) as (_, server):
            second = GrpcServer(TOKEN, echo, lambda sha256: None)
            with pytest.raises(ExternalError, match=f"{server.port}.*in use"):
                await second.start("127.0.0.1", server.port)

    run(scenario())
