"""The wire between a TaskManager and its slot processes: length-prefixed pickles of protocol messages on a socket pair.

Both ends are one program of one user; nothing of a job's own classes is in these messages but opaque bytes.
"""

from __future__ import annotations

import pickle
import socket
import struct
from collections import deque
from typing import Any, Final, final

from engine.runtime.taskmanager.mailbox import READ, WRITE, Mailbox

__all__ = ["LENGTH", "ControlSocket", "pack_message"]

LENGTH: Final = struct.Struct("<I")


def pack_message(message: object) -> bytes:
    content = pickle.dumps(message, 5)
    return LENGTH.pack(len(content)) + content


@final
class ControlSocket:
    """The slot's end, in its loop. ``messages`` fills as they come; ``is_closed`` when the TaskManager is gone."""

    def __init__(self, sock: socket.socket, mailbox: Mailbox) -> None:
        self.messages: deque[Any] = deque()
        self.is_closed = False
        self._sock = sock
        self._mailbox = mailbox
        self._incoming = bytearray()
        self._outgoing = bytearray()
        sock.setblocking(False)
        mailbox.watch(sock, READ, self._on_ready)

    def send(self, message: object) -> None:
        """Queue a message and write what the socket takes."""
        if not self.is_closed:
            self._outgoing += pack_message(message)
            self._write()

    def drain(self) -> None:
        """Write all that is queued, waiting for the TaskManager if need be. For the end of the process."""
        if not self.is_closed:
            self._sock.settimeout(5)
            try:
                self._sock.sendall(self._outgoing)
            except OSError:
                self.is_closed = True

    def _on_ready(self, events: int) -> None:
        if events & WRITE:
            self._write()
        if events & READ:
            self._read()

    def _write(self) -> None:
        try:
            while self._outgoing:
                sent = self._sock.send(self._outgoing)
                del self._outgoing[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.is_closed = True
        if self.is_closed:
            self._mailbox.watch(self._sock, 0, self._on_ready)
        else:
            self._mailbox.watch(self._sock, READ | WRITE if self._outgoing else READ, self._on_ready)

    def _read(self) -> None:
        try:
            received = self._sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self.is_closed = True
            self._mailbox.watch(self._sock, 0, self._on_ready)
            return
        self._incoming += received
        while len(self._incoming) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(self._incoming)[0]
            if len(self._incoming) < end:
                break
            self.messages.append(pickle.loads(self._incoming[LENGTH.size : end]))
            del self._incoming[:end]
