"""The dashboard served over a fake gateway, in a thread of its own, as a browser finds it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine.graph.job_graph import JobType
from engine.protocol.control import ErrorInfo
from engine.protocol.lifecycle import JobStatus
from engine.rest.server import RestHandle, create_app, serve
from tests.browser.webdriver import Browser
from tests.testing.fake_gateway import FakeGateway, end, taskmanager_view, word_count_job

TRACE = '  File "word_count.py", line 12, in <lambda>\n    return (word, 1 / len(word))\n'
ERROR = ErrorInfo(
    "ZeroDivisionError",
    "ZeroDivisionError: division by zero\n  in operator 'Map' on record: ('', 0)",
    "Traceback (most recent call last):\n" + TRACE,
    "user",
)


@dataclass
class Site:
    """A served dashboard. ``gateway`` may only be changed through ``call``, which runs on the server's loop."""

    gateway: FakeGateway
    address: str
    loop: asyncio.AbstractEventLoop

    def call(self, function: Callable[[], Any]) -> Any:
        async def on_loop() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(on_loop(), self.loop).result(120)


def filled_gateway(folder: Path) -> FakeGateway:
    """Return a cluster of two TaskManagers with running, finished, canceled and failed jobs."""
    now_ms = time.time_ns() // 1_000_000
    gateway = FakeGateway(str(folder), {"web.refresh-interval": "300 ms", "parallelism.default": "2"}, now_ms=now_ms)
    gateway.views = [taskmanager_view(1, now_ms=now_ms, slots_free=0), taskmanager_view(2, now_ms=now_ms)]
    gateway.taskmanager_logs = {
        "": b"2026-01-01 10:00:00 INFO  taskexecutor registered at the JobManager\n" * 40,
        "stdout": b"1> (hello,1)\n2> (world,1)\n",
        "taskexecutor.log": b"one file\n",
    }
    logs = folder / "logs"
    logs.mkdir()
    (logs / "jobmanager.log").write_text("2026-01-01 10:00:00 INFO  the JobManager is ready\n" * 30)
    (logs / "jobmanager.out").write_text("")
    gateway.log_dir = str(logs)
    for name, status in (("Nightly totals", JobStatus.FINISHED), ("Old counts", JobStatus.CANCELED)):
        graph = gateway.add_running_job(word_count_job(name, job_type=JobType.BATCH), age_ms=3_600_000)
        end(graph, status, graph.start_ms + 95_000)
    failed = gateway.add_running_job(word_count_job("Broken job"), age_ms=600_000)
    end(failed, JobStatus.FAILED, failed.start_ms + 4_000, ERROR)
    for view in gateway.views:
        view.slots_by_job.clear()
    gateway.add_running_job(word_count_job("WordCount"), age_ms=125_000)
    gateway.add_running_job(
        word_count_job("Word count with stop words", joined=True), age_ms=45_000, backpressured=True
    )
    return gateway


def served(gateway: FakeGateway, folder: Path) -> Iterator[Site]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def begin() -> RestHandle:
        app = create_app(gateway, upload_dir=str(folder / "upload"))
        return await serve(app, bind_address="127.0.0.1", port_range="0")

    handle = asyncio.run_coroutine_threadsafe(begin(), loop).result(120)
    try:
        yield Site(gateway, handle.address, loop)
    finally:
        asyncio.run_coroutine_threadsafe(handle.close(), loop).result(120)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.fixture
def site(tmp_path: Path, browser: Browser) -> Iterator[Site]:
    with contextlib.contextmanager(served)(filled_gateway(tmp_path), tmp_path) as opened:
        yield opened
        # No page may go on asking a server that is gone: that would be a console error of the next test.
        browser.open("about:blank")


@pytest.fixture
def empty_site(tmp_path: Path, browser: Browser) -> Iterator[Site]:
    now_ms = time.time_ns() // 1_000_000
    gateway = FakeGateway(str(tmp_path), {"web.refresh-interval": "300 ms"}, now_ms=now_ms)
    with contextlib.contextmanager(served)(gateway, tmp_path) as opened:
        yield opened
        browser.open("about:blank")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


@pytest.fixture(autouse=True)
def no_console_problems(browser: Browser) -> Iterator[None]:
    browser.console_problems()
    yield
    assert browser.console_problems() == []


def go(browser: Browser, address: str, path: str) -> None:
    # Away first: a change of the hash alone is no load, and tests should not depend on each other's pages.
    browser.open("about:blank")
    browser.open(f"{address}/#{path}")
    browser.wait_ready(path)
