"""Runs uploaded programs in child interpreters and waits for what they submit.

REST must not import the public API, so a program gets its context (configuration, mode, result file) as a JSON file
named by ``_FLINK_CLIENT_CONTEXT``; ``engine/client/context`` reads it. The child starts in ``program_main``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final, final

from starlette.requests import Request

from engine.rest.context import BadRequest, RestContext, RestError, Unavailable

__all__ = ["ProgramRequest", "ProgramRunner", "watch_disconnect"]

_LOGGER = logging.getLogger(__name__)
#: How often the result file is looked at while a program builds its job.
POLL_S: Final = 0.02
#: How much of a failed program's output is shown to its user.
OUTPUT_MAX_BYTES: Final = 16 << 10
#: Programs that build their jobs at the same time: each is an interpreter with its own imports. Those that have
#: submitted do not count: they may wait for an endless job.
CONCURRENT_MAX: Final = 16


@dataclass(frozen=True)
class ProgramRequest:
    path: str
    name: str
    #: "package.module", "package.module:function" or ""
    entry: str
    arguments: list[str]
    #: laid over the cluster's configuration
    configuration: dict[str, str]
    #: "run" or "plan"
    mode: str


@dataclass(eq=False)
class _Child:
    process: asyncio.subprocess.Process
    folder: str
    name: str
    watcher: asyncio.Task[None] | None = None

    @property
    def result_path(self) -> str:
        return os.path.join(self.folder, "result.jsonl")

    @property
    def output_path(self) -> str:
        return os.path.join(self.folder, "output.txt")

    def kill(self) -> None:
        """Kill the child with all that it started: it leads a process group of its own."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


@final
class ProgramRunner:
    """Owns the child interpreters of one web server."""

    def __init__(self, context: RestContext) -> None:
        self._context = context
        self._children: set[_Child] = set()
        self._closed = False

    async def run(self, program: ProgramRequest) -> dict[str, Any]:
        """Return the first result of the program: {"job_id": …} or {"plan": …}. Cancelling this kills the child.

        Raises: BadRequest with the program's own error when it ends or fails before that.
        """
        if self._closed:
            raise Unavailable("The cluster is shutting down and runs no more programs.")
        if sum(child.watcher is None for child in self._children) >= CONCURRENT_MAX:
            raise Unavailable(f"{CONCURRENT_MAX} programs are building their jobs here already; try again in a moment.")
        child = await self._start(program)
        try:
            result = await self._first_result(child, program)
        except BaseException:
            child.kill()
            await self._forget(child)
            raise
        if program.mode == "plan":
            child.kill()
            await self._forget(child)
            return result
        # The program may go on: it may submit more jobs or clean up after itself.
        child.watcher = asyncio.ensure_future(self._watch(child))
        return result

    async def close(self) -> None:
        """Kill all programs and remove their folders."""
        self._closed = True
        for child in list(self._children):
            child.kill()
        for child in list(self._children):
            await self._forget(child)

    async def _start(self, program: ProgramRequest) -> _Child:
        folder = os.path.join(self._context.folder("runs"), secrets.token_hex(8))
        os.mkdir(folder, 0o700)
        try:
            context_path = os.path.join(folder, "context.json")
            with open(context_path, "w", encoding="utf-8") as stream:
                json.dump(self._client_context(program, os.path.join(folder, "result.jsonl")), stream)
            command = [self._context.python, "-m", "engine.rest.program_main"]
            command += [program.path, program.name, program.entry, *program.arguments]
            with open(os.path.join(folder, "output.txt"), "wb") as output:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=folder,
                    env=self._environment(context_path),
                    start_new_session=True,
                )
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise RestError(f"Cannot start {self._context.python} for {program.name}: {error}") from None
            raise
        child = _Child(process, folder, program.name)
        self._children.add(child)
        return child

    def _client_context(self, program: ProgramRequest, result_path: str) -> dict[str, Any]:
        configuration = {
            **self._context.gateway.config.to_dict(),
            **program.configuration,
            "execution.target": "remote",
            "execution.attached": "false",
            "rest.address": self._context.host,
            "rest.port": str(self._context.port),
        }
        return {"configuration": configuration, "mode": program.mode, "result_file": result_path}

    def _environment(self, context_path: str) -> dict[str, str]:
        environment = {**os.environ, "_FLINK_CLIENT_CONTEXT": context_path, "PYTHONUNBUFFERED": "1"}
        import engine

        home = os.path.dirname(os.path.dirname(os.path.abspath(engine.__file__)))
        # An installed engine is found by itself, and site-packages in front of the standard library would shadow it.
        if os.path.basename(home) not in ("site-packages", "dist-packages"):
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, (home, environment.get("PYTHONPATH"))))
        return environment

    async def _first_result(self, child: _Child, program: ProgramRequest) -> dict[str, Any]:
        wanted = "plan" if program.mode == "plan" else "job_id"
        ended = asyncio.ensure_future(child.process.wait())
        try:
            while True:
                has_ended = ended.done()  # before reading: what it wrote last must be seen
                for line in _read_results(child.result_path):
                    if wanted in line:
                        return line
                    if "error" in line:
                        raise BadRequest(_failure(program, str(line["error"])))
                if has_ended and self._closed:
                    raise Unavailable(
                        f"The cluster is shutting down; {program.name} was ended before it submitted a job."
                    )
                if has_ended:
                    raise BadRequest(_failure(program, _why_it_ended(child)))
                await asyncio.wait([ended], timeout=POLL_S)
        finally:
            ended.cancel()

    async def _watch(self, child: _Child) -> None:
        """Wait for the end of a program that has submitted its job."""
        code = await child.process.wait()
        if code != 0 and not self._closed:
            _LOGGER.warning("Program %s failed after it had submitted: %s", child.name, _why_it_ended(child))
        child.watcher = None
        await self._forget(child)

    async def _forget(self, child: _Child) -> None:
        self._children.discard(child)
        if child.watcher is not None:
            child.watcher.cancel()
            await asyncio.gather(child.watcher, return_exceptions=True)
        await child.process.wait()
        # What the program left in its process group ends with it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.process.pid, signal.SIGKILL)
        shutil.rmtree(child.folder, ignore_errors=True)


def _read_results(path: str) -> list[dict[str, Any]]:
    """Return the complete lines of a result file; a line still being written is left for the next look."""
    try:
        with open(path, "rb") as stream:
            text = stream.read()
    except FileNotFoundError:
        return []
    lines = []
    for line in text.split(b"\n")[:-1]:
        with contextlib.suppress(ValueError):
            decoded = json.loads(line)
            if isinstance(decoded, dict):
                lines.append(decoded)
    return lines


def _why_it_ended(child: _Child) -> str:
    with open(child.output_path, "rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - OUTPUT_MAX_BYTES))
        output = stream.read().decode("utf-8", "replace").strip()
    code = child.process.returncode
    if code == 0:
        text = "it ended without submitting a job. Does it call execute()?"
    elif code is not None and code < 0:
        text = f"it was ended by signal {signal.Signals(-code).name}."
    else:
        text = f"it ended with exit code {code}."
    return f"{text}\n{output}" if output else text


def _failure(program: ProgramRequest, reason: str) -> str:
    return f"The program {program.name} failed before it submitted a job: {reason}"


async def watch_disconnect(request: Request, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """Return the result of ``work``; cancel it when the client that asked for it goes away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise RestError("The client closed its connection before the program submitted a job.")
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
