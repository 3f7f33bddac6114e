"""Listening: ports, ranges, errors, closing; and clients that give up."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.core.errors import ConfigError
from engine.rest.server import create_app, serve
from tests.testing.fake_gateway import FakeGateway


def app_in(folder: Path) -> Any:
    return create_app(FakeGateway(str(folder)), upload_dir=str(folder / "upload"))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def test_it_serves_on_a_free_port_inside_the_running_loop_and_closes(tmp_path: Path):
    async def scenario() -> None:
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        handle = await serve(app_in(tmp_path), bind_address="127.0.0.1", port_range="0")
        assert handle.port > 0
        assert handle.address == f"http://127.0.0.1:{handle.port}"
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
        async with httpx.AsyncClient(base_url=handle.address) as client:
            assert (await client.get("/v1/overview")).status_code == 200
            assert (await client.get("/jars")).json()["address"] == handle.address
        await handle.close()
        await handle.close()
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", handle.port)) != 0

    asyncio.run(scenario())


def test_a_port_in_use_is_an_error_that_says_what_to_change(tmp_path: Path):
    async def scenario() -> None:
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            holder.listen()
            port = holder.getsockname()[1]
            with pytest.raises(ConfigError, match=rf"(?s)Port {port} .*in use.*rest\.bind-port"):
                await serve(app_in(tmp_path), bind_address="127.0.0.1", port_range=str(port))
            handle = await serve(app_in(tmp_path), bind_address="127.0.0.1", port_range=f"{port},0")
            assert handle.port != port
            await handle.close()

    asyncio.run(scenario())


def test_an_address_of_another_host_is_an_error_that_names_the_key(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"rest\.bind-address"):
        asyncio.run(serve(app_in(tmp_path), bind_address="192.0.2.1", port_range="0"))


@pytest.mark.parametrize("text", ["", "x", "80-", "90-80", "70000", "-5", "1-2-3"])
def test_a_malformed_range_is_an_error(tmp_path: Path, text: str):
    with pytest.raises(ConfigError, match=r"rest\.bind-port"):
        asyncio.run(serve(app_in(tmp_path), bind_address="127.0.0.1", port_range=text))


def test_a_program_is_killed_when_the_client_that_asked_for_it_goes_away(tmp_path: Path):
    marker = tmp_path / "pid"
    program = f"import os, time\nopen({str(marker)!r} + '.new', 'w').write(str(os.getpid()))\n"
    program += f"os.rename({str(marker)!r} + '.new', {str(marker)!r})\ntime.sleep(600)\n"

    async def scenario() -> None:
        handle = await serve(app_in(tmp_path), bind_address="127.0.0.1", port_range="0")
        try:
            async with httpx.AsyncClient(base_url=handle.address, timeout=120) as client:
                answer = await client.post("/jars/upload", files={"jarfile": ("p.py", program)})
                name = answer.json()["filename"].rsplit("/", 1)[1]
                asked = asyncio.ensure_future(client.post(f"/jars/{name}/run"))
                await until(marker.exists)
                os.kill(int(marker.read_text()), 0)
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)
            await until(lambda: os.listdir(tmp_path / "upload" / "runs") == [])
            with pytest.raises(ProcessLookupError):
                os.kill(int(marker.read_text()), 0)
        finally:
            await handle.close()

    asyncio.run(scenario())


def test_closing_answers_a_run_that_still_waits_and_kills_its_program(tmp_path: Path):
    marker = tmp_path / "started"

    async def scenario() -> None:
        handle = await serve(app_in(tmp_path), bind_address="127.0.0.1", port_range="0")
        async with httpx.AsyncClient(base_url=handle.address, timeout=120) as client:
            text = f"import time\nopen({str(marker)!r}, 'w').close()\ntime.sleep(600)\n"
            answer = await client.post("/jars/upload", files={"jarfile": ("p.py", text)})
            name = answer.json()["filename"].rsplit("/", 1)[1]
            asked = asyncio.ensure_future(client.post(f"/jars/{name}/run"))
            await until(marker.exists)
            async with asyncio.timeout(60):
                await handle.close()
            answer = await asked
            assert answer.status_code == 503
            assert "shutting down" in answer.json()["errors"][0]
        assert os.listdir(tmp_path / "upload" / "runs") == []

    asyncio.run(scenario())


def test_a_large_upload_goes_to_disk_and_not_to_memory(tmp_path: Path):
    size_bytes = 96 << 20
    line = b"#" * 65535 + b"\n"

    async def body() -> Any:
        yield b'--b\r\nContent-Disposition: form-data; name="jarfile"; filename="big.py"\r\n\r\n'
        for _ in range(size_bytes // len(line)):
            yield line
        yield b"\r\n--b--\r\n"

    async def scenario() -> None:
        import tracemalloc

        handle = await serve(app_in(tmp_path), bind_address="127.0.0.1", port_range="0")
        async with httpx.AsyncClient(base_url=handle.address, timeout=60) as client:
            tracemalloc.start()
            try:
                headers = {"content-type": "multipart/form-data; boundary=b"}
                answer = await client.post("/jars/upload", content=body(), headers=headers)
                peak_bytes = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        await handle.close()
        assert answer.status_code == 200, answer.text
        assert os.path.getsize(answer.json()["filename"]) == size_bytes
        assert peak_bytes < 16 << 20

    asyncio.run(scenario())
