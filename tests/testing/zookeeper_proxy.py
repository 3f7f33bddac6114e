"""A wire between a client and ZooKeeper that can be cut, muted, or made to lose or delay one request."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable

CREATE, MULTI = 1, 14  # ZooKeeper's numbers of operations


class ZooKeeperProxy:
    def __init__(self, target: str) -> None:
        host, _, port = target.partition(":")
        self._target = (host, int(port))
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self._open = asyncio.Event()
        self._open.set()
        self._lose_answer_of: int | None = None
        self._hold: int | None = None
        self.held = asyncio.Event()
        self._released = asyncio.Event()

    async def start(self) -> ZooKeeperProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    # --- what can go wrong -------------------------------------------------------------------------------------------

    def mute(self) -> None:
        """Nothing comes through any more, but the connections stay: a partition."""
        self._open.clear()

    def unmute(self) -> None:
        self._open.set()

    def cut(self) -> None:
        """Close all connections; new ones are welcome."""
        for writer in list(self._writers):
            writer.close()

    def lose_answer_of(self, operation: int) -> None:
        """The next such request reaches the server, then the connection breaks."""
        self._lose_answer_of = operation

    @property
    def has_lost(self) -> bool:
        return self._lose_answer_of is None

    def hold(self, operation: int) -> None:
        """Keep the next such request, and all after it, back until ``release``; ``held`` is set once there is one."""
        self._hold = operation

    def release(self) -> None:
        self._released.set()

    # --- the wire ----------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, server_writer}
        lost_xids: set[int] = set()
        both = [
            asyncio.create_task(self._pump(reader, server_writer, self._on_request, lost_xids)),
            asyncio.create_task(self._pump(server_reader, writer, self._on_answer, lost_xids)),
        ]
        self._tasks.update(both)
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in both:
            task.cancel()
        for one in (writer, server_writer):
            one.close()
            self._writers.discard(one)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        look: Callable[[bytes, set[int]], bool],
        lost_xids: set[int],
    ) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            is_first = True
            while True:
                head = await reader.readexactly(4)
                frame = await reader.readexactly(struct.unpack(">i", head)[0])
                await self._open.wait()
                if not is_first and len(frame) >= 8:
                    if look == self._on_request and self._hold == struct.unpack_from(">i", frame, 4)[0]:
                        self._hold = None
                        self.held.set()
                        await self._released.wait()
                    if not look(frame, lost_xids):
                        return
                is_first = False
                writer.write(head + frame)
                await writer.drain()

    def _on_request(self, frame: bytes, lost_xids: set[int]) -> bool:
        xid, operation = struct.unpack_from(">ii", frame)
        if operation == self._lose_answer_of:
            lost_xids.add(xid)
        return True

    def _on_answer(self, frame: bytes, lost_xids: set[int]) -> bool:
        if struct.unpack_from(">i", frame)[0] in lost_xids:
            self._lose_answer_of = None
            return False
        return True

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self._released.set()
        self._open.set()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
