"""One non-blocking socket that carries frames: queues what goes out, cuts what comes in. Meaning: ``transport``."""

from __future__ import annotations

import abc
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from engine.runtime.exchange.wire import HEADER, Buffer, FrameKind

__all__ = ["READ", "WRITE", "Connection", "EventLoop"]

READ: Final = 1
WRITE: Final = 2
_RECEIVE_SIZE: Final = 256 << 10
#: A payload of more bytes is received into memory of its own.
_LARGE_SIZE: Final = _RECEIVE_SIZE // 4
#: Read ahead while large payloads come, one behind the other: the heads between them, and what is copied of each.
_HEAD_SIZE: Final = 4 << 10
#: Buffers handed to one sendmsg; IOV_MAX is 1024.
_IOV_MAX: Final = 512


class EventLoop(Protocol):
    """What the transport needs of the slot's loop (``taskmanager/mailbox``)."""

    def watch(self, file: Any, events: int, on_ready: Callable[[int], None]) -> None: ...

    def call_later(self, delay: float, action: Callable[[], None]) -> Any: ...


class Connection(abc.ABC):
    """Frames in and out. Subclasses say what a frame means."""

    def __init__(self, loop: EventLoop, sock: socket.socket, greeting_size: int = 0) -> None:
        self._loop = loop
        self.sock = sock
        self._outgoing: deque[Buffer] = deque()
        self.outgoing_bytes = 0
        self._is_writable = True
        self.is_closed = False
        self._scratch = bytearray(_RECEIVE_SIZE)
        self._filled = 0  #: bytes of ``_scratch`` not parsed yet
        self._greeting_size = greeting_size
        #: a payload that is being received straight into its own memory: zero-copy for columns and large rows
        self._large: memoryview | None = None
        self._large_filled = 0
        self._ahead_size = _RECEIVE_SIZE
        self._large_head = (0, FrameKind.EVENT)

    def start(self) -> None:
        self._loop.watch(self.sock, READ, self._on_ready)

    # --- out

    def send(self, *buffers: Buffer) -> None:
        """Queue bytes; they leave at the next ``flush`` or as soon as the socket takes them."""
        for buffer in buffers:
            self._outgoing.append(buffer)
            self.outgoing_bytes += len(buffer)

    def flush(self) -> None:
        """Write as much as the socket takes now."""
        outgoing = self._outgoing
        if not self._is_writable or self.is_closed:
            return
        while outgoing:
            try:
                sent = self.sock.sendmsg([outgoing[i] for i in range(min(len(outgoing), _IOV_MAX))])
            except BlockingIOError:
                self._is_writable = False
                self._loop.watch(self.sock, READ | WRITE, self._on_ready)
                return
            except OSError as error:
                self.close(error.strerror or str(error))
                return
            self.outgoing_bytes -= sent
            while sent:
                first = outgoing[0]
                if len(first) <= sent:
                    sent -= len(first)
                    outgoing.popleft()
                else:
                    outgoing[0] = memoryview(first)[sent:]
                    break
            while outgoing and not outgoing[0]:
                outgoing.popleft()  # empty buffers

    # --- in

    def _on_ready(self, events: int) -> None:
        if events & WRITE:
            self._is_writable = True
            self._loop.watch(self.sock, READ, self._on_ready)
            self.flush()
            self.on_drained()
        if events & READ and not self.is_closed:
            try:
                self._receive()
            except BlockingIOError:
                pass
            except OSError as error:
                self.close(error.strerror or str(error))

    def _receive(self) -> None:
        large = self._large
        if large is None:
            end = max(self._ahead_size, self._filled + _HEAD_SIZE)
            received = self.sock.recv_into(memoryview(self._scratch)[self._filled : end])
        else:
            # What follows it comes along: most often the head of the next one.
            received, _, _, _ = self.sock.recvmsg_into(
                [large[self._large_filled :], memoryview(self._scratch)[:_HEAD_SIZE]]
            )
        if not received:
            self.close("end of stream")
            return
        if large is not None:
            received = self._fill_large(large, received)
        elif self._filled + received == end:
            self._ahead_size = _RECEIVE_SIZE  # small ones, and many
        self._filled += received
        if self._filled and not self.is_closed:
            self._parse()

    def _fill_large(self, large: memoryview, received: int) -> int:
        """Return how many bytes came that are not of the large payload."""
        missing = len(large) - self._large_filled
        self._large_filled += min(received, missing)
        if received < missing:
            return 0
        channel, kind = self._large_head
        self._large = None
        self.on_frame(kind, channel, large)
        return received - missing

    def _parse(self) -> None:
        view = memoryview(self._scratch)
        at, filled = 0, self._filled
        if self._greeting_size:
            if filled < self._greeting_size:
                return
            at, self._greeting_size = self._greeting_size, 0
            self.on_greeting(bytes(view[:at]))
        while not self.is_closed and filled - at >= HEADER.size:
            size, channel, kind_value = HEADER.unpack_from(view, at)
            start = at + HEADER.size
            try:
                kind = FrameKind(kind_value)
            except ValueError:
                self.close(f"frame of unknown kind {kind_value}")
                return
            if filled - start >= size:
                at = start + size
                self.on_frame(kind, channel, bytes(view[start:at]))
            elif HEADER.size + size > _LARGE_SIZE:
                self._large = _memory(kind, size)
                self._ahead_size = _HEAD_SIZE
                self._large_filled = filled - start
                self._large[: self._large_filled] = view[start:filled]
                self._large_head = (channel, kind)
                at = filled
                break
            else:
                break
        if at:
            self._filled = filled - at
            if self._filled:
                self._scratch[: self._filled] = view[at:filled].tobytes()

    # --- for subclasses

    def on_greeting(self, data: bytes) -> None:
        raise AssertionError("no greeting expected")

    @abc.abstractmethod
    def on_frame(self, kind: FrameKind, channel: int, payload: Buffer) -> None:
        """A whole frame has come; ``payload`` may be kept."""

    def on_drained(self) -> None:
        """The socket takes bytes again."""

    def on_closed(self, reason: str) -> None:
        pass

    def close(self, reason: str) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        self._loop.watch(self.sock, 0, self._on_ready)
        self.sock.close()
        self._outgoing.clear()
        self.outgoing_bytes = 0
        self.on_closed(reason)


def _memory(kind: FrameKind, size: int) -> memoryview:
    if kind is not FrameKind.COLUMNS:
        return memoryview(bytearray(size))
    import numpy as np

    return np.empty(size, np.uint8).data  # not zeroed; who receives columns has numpy
