"""The web server of a JobManager that stands by, over real sockets: what it passes on, what it says with no leader."""

from __future__ import annotations

import asyncio
import contextlib
import os

import httpx
import pytest

from engine.core.ids import FencingToken
from engine.ha.contracts import LeaderInformation
from engine.ha.memory import MemoryCluster, MemoryRetrieval
from engine.rest.server import create_app, serve
from engine.rest.standby import FORWARDED, NO_LEADER, StandbyRest
from tests.testing.fake_gateway import FakeGateway


class Servers:
    def __init__(self, tmp_path):
        self.tmp_path = tmp_path
        self.elected = MemoryCluster(f"file://{tmp_path}/ha")
        self.stack = contextlib.AsyncExitStack()
        self.count = 0

    def folder(self):
        self.count += 1
        return str(self.tmp_path / f"upload-{self.count}")

    async def standby(self):
        """Return (application, its handle, a client of it)."""
        app = StandbyRest(MemoryRetrieval(self.elected), upload_dir=self.folder())
        handle = await serve(app, bind_address="127.0.0.1", port_range="0")
        self.stack.push_async_callback(handle.close)
        client = httpx.AsyncClient(base_url=handle.address, timeout=60)
        self.stack.push_async_callback(client.aclose)
        return app, handle, client

    async def jobmanager(self):
        """Return the handle of a JobManager that leads."""
        gateway = FakeGateway(self.folder())
        handle = await serve(create_app(gateway, upload_dir=self.folder()), bind_address="127.0.0.1", port_range="0")
        self.stack.push_async_callback(handle.close)
        return handle

    async def publish(self, rest_address):
        token = self.elected.token = FencingToken.generate()
        self.elected.publish(LeaderInformation(token, "localhost", 1, rest_address))
        await asyncio.sleep(0.01)


def serving(tmp_path, scenario):
    async def body():
        servers = Servers(tmp_path)
        async with servers.stack, asyncio.timeout(120):
            await scenario(servers)

    asyncio.run(body())


def unavailable(answer):
    return answer.status_code == 503 and answer.json() == {"errors": [NO_LEADER]}


def test_requests_answers_and_errors_pass_as_they_are(tmp_path):
    async def scenario(servers):
        leader = await servers.jobmanager()
        _, _, client = await servers.standby()
        await servers.publish(leader.address)
        async with httpx.AsyncClient(base_url=leader.address) as direct:
            for path in ("/overview", "/v1/jobs/overview", "/", "/web/app.js", "/jobs/nonsense?a=b%20c", "/nowhere"):
                here, there = await client.get(path), await direct.get(path)
                assert (here.status_code, here.content) == (there.status_code, there.content), path
                assert here.headers["content-type"] == there.headers["content-type"]
                assert here.headers["x-content-type-options"] == "nosniff"
        assert (await client.head("/overview")).status_code in (200, 405)

    serving(tmp_path, scenario)


def test_uploads_pass_in_pieces(tmp_path):
    async def scenario(servers):
        leader = await servers.jobmanager()
        _, _, client = await servers.standby()
        await servers.publish(leader.address)
        content = os.urandom(3 << 20).hex().encode()
        answer = await client.post("/jars/upload", files={"jarfile": ("p.py", content)})
        assert answer.status_code == 200, answer.text
        with open(answer.json()["filename"], "rb") as stream:
            assert stream.read() == content

        async def pieces():
            yield b'--b\r\nContent-Disposition: form-data; name="jarfile"; filename="q.py"\r\n\r\n'
            for _ in range(20):
                yield b"#" * 50_000 + b"\n"
            yield b"\r\n--b--\r\n"

        headers = {"content-type": "multipart/form-data; boundary=b"}  # of unknown length: in chunks
        answer = await client.post("/jars/upload", content=pieces(), headers=headers)
        assert answer.status_code == 200, answer.text
        assert os.path.getsize(answer.json()["filename"]) == 20 * 50_001

    serving(tmp_path, scenario)


def test_without_a_leader_and_with_a_dead_one_flinks_sentence_comes_at_once(tmp_path):
    async def scenario(servers):
        _, handle, client = await servers.standby()
        assert unavailable(await client.get("/overview"))
        await servers.publish("http://127.0.0.1:1")
        assert unavailable(await client.post("/jobs", content=b"x" * 100_000))
        await servers.publish(handle.address)  # it led itself, and does no more
        assert unavailable(await client.get("/overview"))

    serving(tmp_path, scenario)


def test_two_that_take_each_other_for_the_leader_pass_nothing_back(tmp_path):
    async def scenario(servers):
        _, first, client = await servers.standby()
        other = Servers(tmp_path / "other")  # of another opinion
        async with other.stack:
            _, second, _ = await other.standby()
            await servers.publish(second.address)
            await other.publish(first.address)
            answer = await client.get("/overview")
            assert unavailable(answer)
            assert unavailable(await client.get("/overview", headers={FORWARDED.decode(): "1"}))

    serving(tmp_path, scenario)


def test_a_leader_that_does_not_answer_is_given_up_when_another_one_is_known(tmp_path):
    async def scenario(servers):
        async def silent(reader, writer):
            await reader.read()
            writer.close()

        paused = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = paused.sockets[0].getsockname()[1]
        leader = await servers.jobmanager()
        _, _, client = await servers.standby()
        await servers.publish(f"http://127.0.0.1:{port}")
        asked = asyncio.ensure_future(client.get("/overview"))
        await asyncio.sleep(0.1)
        assert not asked.done()
        await servers.publish(leader.address)
        assert unavailable(await asked)
        assert (await client.get("/overview")).status_code == 200
        paused.close()

    serving(tmp_path, scenario)


def test_it_answers_itself_while_it_leads(tmp_path):
    async def scenario(servers):
        app, handle, client = await servers.standby()
        app.lead(FakeGateway(servers.folder()))
        await servers.publish(handle.address)
        assert (await client.get("/overview")).status_code == 200
        await app.stand_by()
        assert unavailable(await client.get("/overview"))

    serving(tmp_path, scenario)


@pytest.mark.parametrize("end", [b"", b"HTTP/1.1 200 OK\r\n", b"nonsense\r\n\r\n"])
def test_a_leader_that_dies_before_it_answers_is_no_leader(tmp_path, end):
    async def scenario(servers):
        async def dying(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(end)
            writer.close()

        server = await asyncio.start_server(dying, "127.0.0.1", 0)
        _, _, client = await servers.standby()
        await servers.publish(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        assert unavailable(await client.get("/overview"))
        server.close()

    serving(tmp_path, scenario)
