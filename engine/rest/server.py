"""The JobManager's web server: ``create_app`` puts routes, errors and the dashboard together, ``serve`` listens.

What the endpoints answer is in one file per noun: ``cluster``, ``jobs``, ``checkpoints``, ``vertices``
and so on.
Every path is served bare and under ``/v1``. Everything runs on the JobManager's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final, Protocol, final

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.core.errors import ConfigError, CorruptStateError, Domain, EngineError, JobNotFoundError
from engine.core.options import RestOptions
from engine.rest import checkpoints, cluster, jobs, profiling, programs, rescaling, taskmanagers, vertices
from engine.rest.context import NotFound, RestContext, RestError
from engine.rest.operations import Operations
from engine.runtime.jobmanager.gateway import DispatcherGateway

__all__ = ["RestHandle", "ServedContext", "create_app", "ports_of", "serve"]

_LOGGER = logging.getLogger(__name__)
WEB_DIR: Final = os.path.join(os.path.dirname(os.path.abspath(__file__)), "web")
_MEDIA_TYPES: Final = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".html": "text/html; charset=utf-8",
}
#: How long requests that run at shutdown may go on.
SHUTDOWN_GRACE_S: Final = 1


# --- the application --------------------------------------------------------------------------------------------------


def create_app(gateway: DispatcherGateway, *, upload_dir: str, python: str | None = None) -> Starlette:
    """Return the ASGI application.

    ``upload_dir``: private folder of REST, made if missing; uploaded programs survive in it.
    ``python``: interpreter for uploaded programs, by default the one that runs the JobManager.
    """
    os.makedirs(upload_dir, mode=0o700, exist_ok=True)
    context = RestContext(gateway, os.path.abspath(upload_dir), python or sys.executable)
    context.programs = programs.ProgramRunner(context)
    context.operations = Operations(context.clock)
    api = [
        *cluster.ROUTES,
        *jobs.ROUTES,
        *checkpoints.ROUTES,
        *rescaling.ROUTES,
        *vertices.ROUTES,
        *profiling.ROUTES,
        *taskmanagers.ROUTES,
        *programs.ROUTES,
    ]

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            context.operations.close()
            await context.programs.close()

    app = Starlette(
        routes=[
            Route("/", get_index),
            Route("/index.html", get_index),
            Route("/web/{name}", get_web_file),
            Mount("/v1", routes=api),
            *api,
        ],
        exception_handlers={
            RestError: _on_rest_error,
            EngineError: _on_engine_error,
            HTTPException: _on_http_exception,
            Exception: _on_unexpected_error,
        },
        middleware=[Middleware(_Headers, allow_origin=gateway.config.get(RestOptions.ALLOW_ORIGIN))],
        lifespan=lifespan,
    )
    app.state.rest = context
    return app


@final
class _Headers:
    """Adds the headers that every answer has. Plain ASGI: bodies pass untouched."""

    def __init__(self, app: ASGIApp, *, allow_origin: str) -> None:
        self._app = app
        self._headers = [(b"x-content-type-options", b"nosniff")]
        if allow_origin:
            self._headers.append((b"access-control-allow-origin", allow_origin.encode("latin-1")))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                if not any(name.lower() == b"cache-control" for name, _ in headers):
                    # Every answer is a state of this moment.
                    headers.append((b"cache-control", b"no-store"))
                message = {**message, "headers": headers + self._headers}
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _errors(status: int, *messages: str) -> Response:
    return JSONResponse({"errors": list(messages)}, status_code=status)


async def _on_rest_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RestError)
    return _errors(error.status, str(error))


async def _on_engine_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EngineError)
    if isinstance(error, JobNotFoundError):
        return _errors(404, str(error))
    if error.domain is Domain.USER or isinstance(error, CorruptStateError):  # which the user has named
        return _errors(400, str(error))
    if error.domain is Domain.EXTERNAL:
        return _errors(503, str(error))
    return await _on_unexpected_error(request, error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _errors(404, f"Not found: {request.url.path}")
    if error.status_code == 405:
        return _errors(405, f"{request.method} is not possible on {request.url.path}")
    return _errors(error.status_code, str(error.detail))


async def _on_unexpected_error(request: Request, error: Exception) -> Response:
    _LOGGER.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _errors(
        500, f"Internal server error: {type(error).__name__}: {error}. The JobManager's log has the details."
    )


# --- the dashboard ----------------------------------------------------------------------------------------------------


def _web_file(name: str) -> Response:
    path = os.path.join(WEB_DIR, name)
    suffix = os.path.splitext(name)[1]
    if name.startswith(".") or os.path.basename(name) != name or suffix not in _MEDIA_TYPES or not os.path.isfile(path):
        raise NotFound(f"Not found: {name}")
    headers = {"Cache-Control": "no-cache"}
    if suffix == ".html":
        headers["Content-Security-Policy"] = "default-src 'self'; img-src 'self' data:; object-src 'none'"
    # Types are ours: what a machine's mime.types says of .js may be refused by browsers.
    return FileResponse(path, headers=headers, media_type=_MEDIA_TYPES[suffix])


async def get_index(_: Request) -> Response:
    return _web_file("index.html")


async def get_web_file(request: Request) -> Response:
    return _web_file(request.path_params["name"])


# --- listening --------------------------------------------------------------------------------------------------------


class _Server(uvicorn.Server):
    """A server that leaves signals to the process that it runs in."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def install_signal_handlers(self) -> None:  # uvicorn before 0.29
        pass


class ServedContext(Protocol):
    """What is told where it is reached; see ``RestContext``."""

    host: str
    port: int
    address: str

    async def close(self) -> None: ...


@final
class RestHandle:
    """A listening server. ``address`` is the URL for clients, without a slash at its end."""

    def __init__(self, server: _Server, task: asyncio.Task[None], host: str, port: int, context: ServedContext) -> None:
        self._server = server
        self._task = task
        self._context = context
        self.host = host
        self.port = port

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    async def close(self) -> None:
        """End running programs, then the server. Can be called twice."""
        await self._context.close()
        self._server.should_exit = True
        await asyncio.gather(self._task, return_exceptions=True)


async def serve(app: Any, *, bind_address: str = "", port_range: str = "0", advertised_address: str = "") -> RestHandle:
    """Listen on the first free port of ``port_range`` ("8081", "8081-8090,9000", "0") in the running event loop.

    ``app``: of ``create_app``, or another ASGI application whose ``state.rest`` is a ServedContext.
    ``bind_address`` "" = all interfaces. ``advertised_address``: the host in ``handle.address``.

    Raises: ConfigError when no port of the range is free or the address is not of this host.
    """
    listening = _bind(bind_address, ports_of(port_range), port_range)
    port = listening.getsockname()[1]
    anywhere = bind_address in ("", "0.0.0.0", "::")
    context: ServedContext = app.state.rest
    context.host = "127.0.0.1" if anywhere else bind_address
    context.port = port
    config = uvicorn.Config(
        app,
        loop="none",
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_GRACE_S,
    )
    server = _Server(config)
    task = asyncio.ensure_future(server.serve(sockets=[listening]))
    try:
        while not server.started:
            if task.done():
                await task
                raise ConfigError(f"The web server on port {port} ended while it started; its log says why.")
            await asyncio.sleep(0.005)
    except BaseException:
        listening.close()
        raise
    handle = RestHandle(server, task, advertised_address or context.host, port, context)
    context.address = handle.address
    return handle


def ports_of(port_range: str, key: str = "rest.bind-port") -> list[int]:
    """Return the ports of "8081", "50100-50200" or a list of those. Raises ConfigError that names the ``key``."""
    ports: list[int] = []
    for part in str(port_range).split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigError(f"{key} is {port_range!r}; expected a port, a range such as 8081-8090, or 0.")
        start, end = int(first), int(last or first)
        if not 0 <= start <= end <= 65535:
            raise ConfigError(f"{key} is {port_range!r}; expected ports from 0 to 65535, lower one first.")
        ports.extend(range(start, end + 1))
    return ports


def _bind(bind_address: str, ports: Sequence[int], port_range: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in bind_address else socket.AF_INET
    problem: OSError | None = None
    for port in ports:
        # With the protocol named, asyncio switches Nagle's algorithm off: 40 ms less for each request.
        candidate = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((bind_address, port))
            candidate.listen(1024)
        except OSError as error:
            candidate.close()
            problem = error
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                break
            continue
        candidate.setblocking(False)
        candidate.set_inheritable(False)
        return candidate
    where = bind_address or "0.0.0.0"
    if problem is not None and problem.errno == errno.EADDRINUSE:
        raise ConfigError(
            f"Port {port_range} on {where} is already in use, maybe by another cluster; the web server cannot start. "
            f"Stop that one, or set rest.port or rest.bind-port to a free port, a range such as 8081-8090, or 0."
        )
    raise ConfigError(
        f"The web server cannot listen on {where}:{port_range}: {problem}. Set rest.bind-address to an address of this "
        f"host (0.0.0.0 = all) and rest.bind-port to a port that this user may open."
    )
