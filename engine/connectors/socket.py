"""Lines from a TCP server, as ``socket_text_stream``: one thread reads and reconnects, the task takes whole batches.

Parallelism 1. At-most-once after a restart: what was read is not sent again. Not here: how lines are told apart in
files (``files``).
"""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections import deque
from dataclasses import dataclass
from typing import Final, final

from engine.connectors.sink import takes_checkpoints
from engine.core.errors import ExternalError, InputError
from engine.core.records import RowBatch
from engine.formats.text import DelimiterCutter
from engine.operators.base import Operator, OperatorContext, OperatorSpec, Output, PollResult, SourceOperator

__all__ = ["SocketTextSpec"]

_log = logging.getLogger(__name__)

_RECEIVE_BYTES: Final = 1 << 16
_CONNECT_TIMEOUT_S: Final = 10.0
#: Lines that the thread may be ahead of the task; then it stops reading and TCP slows the server down.
_LINES_AHEAD_MAX: Final = 50_000


@final
@dataclass(frozen=True)
class SocketTextSpec(OperatorSpec):
    """``max_retries``: connections tried again in all, after a refusal or the server's end; -1 = for ever, 0 = none:
    the input ends with the connection. A carriage return before a newline belongs to the delimiter."""

    host: str
    port: int
    delimiter: str = "\n"
    max_retries: int = 0
    retry_interval_ms: int = 500
    charset: str = "utf-8"
    num_inputs = 0

    def __post_init__(self) -> None:
        if not self.delimiter:
            raise ValueError("The delimiter of a socket source is empty; give at least one character.")
        if not 0 < self.port < 65536:
            raise ValueError(f"Port {self.port} of a socket source is not between 1 and 65535.")

    def build(self) -> Operator:
        return _SocketTextOperator(self)

    def describe(self) -> str:
        return f"{self.host}:{self.port}, cannot be rewound after a failure"


@final
class _SocketTextOperator(SourceOperator):
    def __init__(self, spec: SocketTextSpec) -> None:
        self._spec = spec
        self._lines: deque[list[str]] = deque()
        self._num_waiting = 0
        self._lock = threading.Condition()
        self._stopped = threading.Event()
        self._ended = False
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._stop_read, self._stop_write = socket.socketpair()
        if ctx.runtime_context.get_index_of_this_subtask() != 0:
            self._ended = True
            return
        if takes_checkpoints(ctx.config):
            _log.warning(
                "socket %s:%d cannot be rewound: lines between the last checkpoint and a failure are lost.",
                self._spec.host,
                self._spec.port,
            )
        self._thread = threading.Thread(target=self._run, name=f"socket {self._spec.host}", daemon=True)
        self._thread.start()

    def poll(self, rows_max: int) -> PollResult:
        with self._lock:
            lines = self._lines.popleft() if self._lines else None
            if lines is not None:
                self._num_waiting -= len(lines)
                self._lock.notify()
            more = bool(self._lines)
            ended, error = self._ended, self._error
        if lines is not None:
            self.out.emit(RowBatch(lines))
            return PollResult.MORE if more or ended else PollResult.IDLE
        if not ended:
            return PollResult.IDLE
        if error is not None:
            raise error
        return PollResult.END

    def cancel(self) -> None:
        self._stop()

    def close(self) -> None:
        self._stop()
        if self._thread is not None:
            self._thread.join(1.0)
            if self._thread.is_alive():
                return  # in a name look-up that cannot be interrupted; the sockets are its own until then
        if hasattr(self, "_stop_read"):
            self._stop_read.close()
            self._stop_write.close()

    def _stop(self) -> None:
        if not self._stopped.is_set() and hasattr(self, "_stop_write"):
            self._stopped.set()
            self._stop_write.send(b"x")
            with self._lock:
                self._lock.notify_all()

    # --- the reading thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        spec = self._spec
        where = f"{spec.host}:{spec.port}"
        retries = 0
        try:
            while not self._stopped.is_set():
                try:
                    with self._connect() as connection:
                        self._read(connection)
                    failure = None
                except OSError as error:
                    failure = error
                if self._stopped.is_set():
                    return
                if spec.max_retries != -1 and retries >= spec.max_retries:
                    if failure is not None:
                        tried = f" after {retries + 1} attempts" if retries else ""
                        raise ExternalError(
                            f"Cannot read from socket {where}{tried}: {failure.strerror or failure}. "
                            f"Is a server listening there (for a test: nc -lk {spec.port})?"
                        ) from failure
                    return
                retries += 1
                limit = "" if spec.max_retries == -1 else f" of {spec.max_retries}"
                seen = "closed by the server" if failure is None else failure.strerror or failure
                _log.info("socket %s: %s; retry %d%s in %d ms", where, seen, retries, limit, spec.retry_interval_ms)
                self._stopped.wait(spec.retry_interval_ms / 1000)
        except Exception as error:
            self._error = error
        finally:
            with self._lock:
                self._ended = True
            self.ctx.wake()

    def _connect(self) -> socket.socket:
        """Return a connected non-blocking socket; raises OSError. Ends early (connected or not) when stopped."""
        spec = self._spec
        last: OSError | None = None
        for family, kind, protocol, _, address in socket.getaddrinfo(spec.host, spec.port, type=socket.SOCK_STREAM):
            connection = socket.socket(family, kind, protocol)
            try:
                connection.setblocking(False)
                code = connection.connect_ex(address)
                select.select([self._stop_read], [connection], [], _CONNECT_TIMEOUT_S)
                code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    import os

                    raise OSError(code, os.strerror(code))
                if not self._stopped.is_set():
                    connection.getpeername()  # raises when the time ran out before it was connected
                return connection
            except OSError as error:
                connection.close()
                last = error
        raise last or OSError(f"no address for {spec.host}")

    def _read(self, connection: socket.socket) -> None:
        """Read to the server's end (or a stop); a last line without delimiter counts."""
        cutter = DelimiterCutter(self._spec.delimiter.encode(self._spec.charset))
        while not self._stopped.is_set():
            readable, _, _ = select.select([connection, self._stop_read], [], [])
            if self._stop_read in readable:
                return
            chunk = connection.recv(_RECEIVE_BYTES)
            if not chunk:
                break
            if lines := cutter.feed(chunk):
                self._hand_over(lines)
        if (last := cutter.rest()) and not self._stopped.is_set():
            self._hand_over([last])

    def _hand_over(self, raw_lines: list[bytes]) -> None:
        spec = self._spec
        if spec.delimiter == "\n":
            raw_lines = [line[:-1] if line.endswith(b"\r") else line for line in raw_lines]
        try:
            lines = [line.decode(spec.charset) for line in raw_lines]
        except UnicodeDecodeError as error:
            raise InputError(
                f"Socket {spec.host}:{spec.port} sent bytes that are not {spec.charset}: {error.object[:40]!r} "
                f"({error.reason} at byte {error.start} of the line)."
            ) from error
        with self._lock:
            was_empty = not self._lines
            self._lines.append(lines)
            self._num_waiting += len(lines)
            while self._num_waiting > _LINES_AHEAD_MAX and not self._stopped.is_set():
                if was_empty:
                    self.ctx.wake()
                    was_empty = False
                self._lock.wait()
        if was_empty:
            self.ctx.wake()
