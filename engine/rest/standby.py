"""The web server of one of several JobManagers: answers itself while it leads, else passes requests on to the leader.

Plain ASGI around ``server.create_app``; bodies pass in pieces, in both directions. Not here: who leads (``engine/ha``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import types
import urllib.parse
from collections.abc import Callable
from typing import Any, Final, final

import h11
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.core.errors import ExternalError
from engine.ha.contracts import LeaderInformation, LeaderRetrieval
from engine.rest.server import create_app
from engine.runtime.jobmanager.gateway import DispatcherGateway

__all__ = ["NO_LEADER", "StandbyRest"]

logger = logging.getLogger(__name__)

#: Flink's sentence; the dashboard and clients know it.
NO_LEADER: Final = "Service temporarily unavailable due to an ongoing leader election. Please refresh."
#: Marks what was passed on once: two JobManagers that take each other for the leader must not play ball.
FORWARDED: Final = b"x-flink-forwarded"
CONNECT_TIMEOUT_S: Final = 3.0
#: How long one question after the next leader may take.
FOLLOW_S: Final = 60.0
PIECE_BYTES: Final = 64 << 10
#: Of one connection only (RFC 9110, 7.6.1).
_HOP_BY_HOP: Final = frozenset(
    {b"connection", b"keep-alive", b"te", b"trailer", b"upgrade", b"proxy-connection", b"expect"}
)


@final
class StandbyRest:
    """An ASGI application and its own ServedContext."""

    def __init__(self, retrieval: LeaderRetrieval, *, upload_dir: str) -> None:
        self.host, self.port, self.address = "127.0.0.1", 0, ""
        self.state = types.SimpleNamespace(rest=self)
        self._retrieval = retrieval
        self._upload_dir = upload_dir
        self._leading: ASGIApp | None = None
        self._context: Any = None
        self._leader: LeaderInformation | None = None
        self._following: asyncio.Task[None] | None = None
        #: Set, and made anew, when another leader is known.
        self._news = asyncio.Event()

    # --- who leads ---------------------------------------------------------------------------------------------------

    def lead(self, gateway: DispatcherGateway) -> None:
        """From now on requests are answered here."""
        app = create_app(gateway, upload_dir=self._upload_dir)
        self._context = app.state.rest
        self._context.host, self._context.port, self._context.address = self.host, self.port, self.address
        self._leading = app

    async def stand_by(self) -> None:
        """From now on requests are passed on; programs that run here are ended. May be called again."""
        context, self._context, self._leading = self._context, None, None
        if context is not None:
            context.operations.close()
            await context.close()

    async def close(self) -> None:
        await self.stand_by()
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self._retrieval.close()

    async def _follow(self) -> None:
        while True:
            known = self._leader.token if self._leader is not None else ""
            try:
                self._leader = await self._retrieval.leader(FOLLOW_S, other_than=known)
                self._news.set()
                self._news = asyncio.Event()
            except ExternalError as error:
                logger.debug("no other leader: %s", error)
                await asyncio.sleep(0.1)

    # --- requests ----------------------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._leading is not None:
            await self._leading(scope, receive, send)
        else:
            await self._forward(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._following = asyncio.get_running_loop().create_task(self._follow())
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        was_forwarded = any(name == FORWARDED for name, _ in scope["headers"])
        leader = self._leader
        is_begun = False

        async def send_on(message: Any) -> None:
            nonlocal is_begun
            is_begun = True
            await send(message)

        if leader is not None and leader.rest_address and leader.rest_address != self.address and not was_forwarded:
            address = urllib.parse.urlsplit(leader.rest_address)
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    streams = await asyncio.open_connection(address.hostname, address.port, limit=PIECE_BYTES)
                if await self._pass_on(_Passing(*streams), scope, receive, send_on, lambda: is_begun):
                    return
            except (OSError, TimeoutError, h11.ProtocolError) as error:
                logger.info("the leader at %s does not answer: %s", leader.rest_address, error)
                if is_begun:
                    raise
        await JSONResponse({"errors": [NO_LEADER]}, 503)(scope, receive, send)

    async def _pass_on(
        self, passing: _Passing, scope: Scope, receive: Receive, send: Send, is_begun: Callable[[], bool]
    ) -> bool:
        """Return whether there was an answer: a leader that is paused gives none, and one day has a successor."""
        news = asyncio.ensure_future(self._news.wait())
        running = asyncio.ensure_future(passing.run(scope, receive, send))
        try:
            await asyncio.wait({news, running}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done() and not is_begun():
                return False
            await running
            return True
        finally:
            news.cancel()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@final
class _Passing:
    """One request and its answer over one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT)

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises OSError, h11.ProtocolError when the leader is lost on the way."""
        path = scope.get("raw_path") or urllib.parse.quote(scope["path"]).encode()
        query = scope.get("query_string") or b""
        headers = [(name, value) for name, value in scope["headers"] if name.lower() not in _HOP_BY_HOP]
        headers += [(b"connection", b"close"), (FORWARDED, b"1")]
        target = path + (b"?" + query if query else b"")
        request = h11.Request(method=scope["method"], target=target, headers=headers)
        try:
            self._write(request)
            sending = asyncio.ensure_future(self._send_body(receive))
            try:
                await self._pass_answer(send)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        finally:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    def _write(self, event: Any) -> None:
        data = self._http.send(event)
        if data:
            self._writer.write(data)

    async def _send_body(self, receive: Receive) -> None:
        """Beside the answer, which may come before all is sent: a refusal."""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self._writer.close()
                return
            if message.get("body"):
                self._write(h11.Data(data=message["body"]))
            if not message.get("more_body"):
                self._write(h11.EndOfMessage())
                await self._writer.drain()
                break
            await self._writer.drain()
        while (await receive())["type"] != "http.disconnect":
            pass
        self._writer.close()  # nobody waits for the answer any more

    async def _pass_answer(self, send: Send) -> None:
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                data = await self._reader.read(PIECE_BYTES)
                self._http.receive_data(data)
                if not data and self._http.their_state is h11.SEND_RESPONSE:
                    raise ConnectionResetError("the connection ended before the answer")
            elif isinstance(event, h11.Response):
                hidden = _HOP_BY_HOP | {b"transfer-encoding", b"date"}
                headers = [(name, value) for name, value in event.headers if name not in hidden]
                await send({"type": "http.response.start", "status": event.status_code, "headers": headers})
            elif isinstance(event, h11.Data):
                await send({"type": "http.response.body", "body": bytes(event.data), "more_body": True})
            elif isinstance(event, h11.EndOfMessage):
                await send({"type": "http.response.body", "body": b""})
                return
            elif not isinstance(event, h11.InformationalResponse):
                raise ConnectionResetError("the connection ended before the answer")
