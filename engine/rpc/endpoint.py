"""The control connection between a TaskManager and its JobManager, over gRPC or in memory; both keep one contract.

One ordered two-way stream per TaskManager, opened by the TaskManager, and a blob fetch beside it. Every message carries
the leader's fencing token and both sides check it. Not here: what messages mean (``jobmanager``, ``taskmanager``), when
silence counts as loss (``rpc/heartbeat``). gRPC is imported when it is first used: a local run never pays for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Protocol, TypeAlias, final

from engine.core.errors import ExternalError, StaleLeaderError
from engine.core.ids import FencingToken
from engine.protocol.control import Envelope
from engine.rpc.codec import decode_envelope, encode

__all__ = [
    "BlobPath",
    "Connection",
    "ConnectionHandler",
    "Fence",
    "GrpcServer",
    "InMemoryServer",
    "JobManagerConnection",
    "connect",
]

CONNECT_TIMEOUT_S: Final = 10.0
BLOB_CHUNK_BYTES: Final = 1 << 20
#: A blob of 1 GB at 4 MB/s; a stuck fetch must end some day.
BLOB_TIMEOUT_S: Final = 300.0
SERVER_GRACE_S: Final = 0.2
#: Time for what is queued to leave before a closed connection is cut.
FLUSH_TIMEOUT_S: Final = 1.0

_SERVICE: Final = "engine.JobManager"
_OPTIONS: Final = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Two JobManagers on one port would share TaskManagers at random.
    ("grpc.so_reuseport", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Channels to one address would share one attempt to connect, and TCP waits ever longer before it sends again what
    # has got lost: 20 s after a network has healed nobody would have noticed.
    ("grpc.use_local_subchannel_pool", 1),
)


class Connection(Protocol):
    """One end of the stream. All methods on the event loop."""

    @property
    def peer(self) -> str:
        """Where the other end is, for logs."""
        ...

    def send_nowait(self, message: Any) -> None:
        """Queue a message; never blocks. Messages sent after the connection has ended are dropped."""
        ...

    async def receive(self) -> Any | None:
        """Return the next message, or None when the connection has ended.

        Raises: StaleLeaderError when the other end follows (or is) another leader; ExternalError on damaged bytes.
        """
        ...

    async def close(self) -> None:
        """Send what is queued (for at most a second), then end both directions. May be called again."""
        ...


class JobManagerConnection(Connection, Protocol):
    """The TaskManager's end."""

    @property
    def token(self) -> str:
        """The leader's, once it has said something; "" before."""
        ...

    async def fetch_blob(self, sha256: str, target: str) -> None:
        """Write the blob to the file ``target``. Raises ExternalError."""
        ...


ConnectionHandler: TypeAlias = Callable[[Connection], Awaitable[None]]
#: sha256 → path of the blob, None if it is unknown
BlobPath: TypeAlias = Callable[[str], str | None]


class Fence:
    """Checks the token of every received message. Pure; one per end of a connection.

    The JobManager's end knows its token; a TaskManager learns it from the first answer, and its own first message may
    carry none.
    """

    def __init__(self, token: FencingToken | str = "") -> None:
        self.token = token
        self._is_leader = bool(token)
        self._num_seen = 0

    def admit(self, envelope: Envelope) -> Any:
        """Return the message. Raises StaleLeaderError."""
        first = self._num_seen == 0
        self._num_seen += 1
        if self._is_leader and first and not envelope.token:
            return envelope.message
        if not self._is_leader and not self.token and envelope.token:
            self.token = envelope.token
        if not envelope.token or envelope.token != self.token:
            raise StaleLeaderError(
                f"{type(envelope.message).__name__} carries the fencing token {str(envelope.token)[:8] or 'none'}, but "
                f"the leader's is {str(self.token)[:8]}: the sender follows another JobManager leader."
            )
        return envelope.message


# --- in memory ------------------------------------------------------------------------------------------------------


@final
class _QueueConnection:
    """Half of an in-memory pair. Messages pass as objects: nothing is copied, nobody may change them."""

    def __init__(self, fence: Fence, peer: str) -> None:
        self._fence = fence
        self._peer = peer
        self._inbox: asyncio.Queue[Envelope | None] = asyncio.Queue()
        self._other: _QueueConnection | None = None
        self._closed = False

    @property
    def peer(self) -> str:
        return self._peer

    def send_nowait(self, message: Any) -> None:
        if not self._closed and self._other is not None and not self._other._closed:
            self._other._inbox.put_nowait(Envelope(self._fence.token, message))

    async def receive(self) -> Any | None:
        if self._closed and self._inbox.empty():
            return None
        envelope = await self._inbox.get()
        if envelope is None:
            self._closed = True
            return None
        return self._fence.admit(envelope)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._inbox.put_nowait(None)
        if self._other is not None:
            self._other._inbox.put_nowait(None)


@final
class _InMemoryClient:
    """A TaskManager's end: the queue pair and the server's blobs."""

    def __init__(self, half: _QueueConnection, blob_path: BlobPath) -> None:
        self._half = half
        self._blob_path = blob_path

    @property
    def peer(self) -> str:
        return self._half.peer

    @property
    def token(self) -> str:
        return self._half._fence.token

    def send_nowait(self, message: Any) -> None:
        self._half.send_nowait(message)

    async def receive(self) -> Any | None:
        return await self._half.receive()

    async def close(self) -> None:
        await self._half.close()

    async def fetch_blob(self, sha256: str, target: str) -> None:
        source = self._blob_path(sha256)
        if source is None:
            raise ExternalError(f"The JobManager has no file with sha256 {sha256}.")
        await asyncio.get_running_loop().run_in_executor(None, _link_or_copy, source, target)


def _link_or_copy(source: str, target: str) -> None:
    import shutil

    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


@final
class InMemoryServer:
    """The JobManager's side inside one process and one event loop."""

    def __init__(self, token: FencingToken, handler: ConnectionHandler, blob_path: BlobPath) -> None:
        self._token = token
        self._handler = handler
        self._blob_path = blob_path
        self._tasks: set[asyncio.Task[None]] = set()
        self._halves: list[_QueueConnection] = []

    async def connect(self) -> JobManagerConnection:
        """Open a connection to this server."""
        ours, theirs = _QueueConnection(Fence(self._token), "local"), _QueueConnection(Fence(), "local")
        ours._other, theirs._other = theirs, ours
        self._halves.append(ours)
        task = asyncio.get_running_loop().create_task(self._serve(ours))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return _InMemoryClient(theirs, self._blob_path)

    async def _serve(self, half: _QueueConnection) -> None:
        try:
            await self._handler(half)
        except StaleLeaderError:
            pass  # the refusal is the closed connection
        finally:
            await half.close()
            self._halves.remove(half)

    async def close(self) -> None:
        for half in list(self._halves):
            await half.close()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=FLUSH_TIMEOUT_S)
        for task in list(self._tasks):
            task.cancel()


# --- gRPC -----------------------------------------------------------------------------------------------------------


class _Outbox:
    """Queued envelopes and the task that writes them, in order."""

    def __init__(self, write: Callable[[bytes], Awaitable[Any]], fence: Fence) -> None:
        self._write = write
        self._fence = fence
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._ended = False
        self.task = asyncio.get_running_loop().create_task(self._run())

    def put(self, message: Any) -> None:
        if not self._ended:
            # Encoded here, so that an object that cannot be pickled fails in the caller.
            self._queue.put_nowait(encode(Envelope(self._fence.token, message)))

    async def _run(self) -> None:
        while (data := await self._queue.get()) is not None:
            try:
                await self._write(data)
            except Exception:  # the stream is gone; the reader says so
                break
        self._ended = True

    async def flush(self) -> None:
        self._ended = True
        self._queue.put_nowait(None)
        await asyncio.wait({self.task}, timeout=FLUSH_TIMEOUT_S)
        self.task.cancel()


@final
class _ServerConnection:
    def __init__(self, context: Any, fence: Fence) -> None:
        self._context = context
        self._fence = fence
        self._outbox = _Outbox(context.write, fence)
        self._closed = asyncio.Event()

    @property
    def peer(self) -> str:
        return str(self._context.peer())

    def send_nowait(self, message: Any) -> None:
        self._outbox.put(message)

    async def receive(self) -> Any | None:
        import grpc

        if self._closed.is_set():
            return None
        reading = asyncio.ensure_future(self._context.read())
        closing = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait({reading, closing}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                return None
            try:
                data = reading.result()
            except (Exception, asyncio.CancelledError):  # the peer is gone
                return None
            if data is grpc.aio.EOF:
                return None
            return self._fence.admit(decode_envelope(data))
        finally:
            closing.cancel()
            if not reading.done():
                reading.cancel()

    def lost(self) -> None:
        """The peer is gone: the next ``receive`` says so."""
        self._outbox.task.cancel()
        self._closed.set()

    async def close(self) -> None:
        if not self._closed.is_set():
            await self._outbox.flush()
            self._closed.set()


def _is_free(host: str, port: int) -> bool:
    """Whether nobody listens on any address of the name. gRPC is content when one of them is free, and then who
    connects to the name may find somebody else on another: localhost is 127.0.0.1 and ::1."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return True  # gRPC says what is wrong with the name
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind(address)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return False
    return True


@final
class GrpcServer:
    """Listens for TaskManagers. ``port`` is known after ``start``."""

    def __init__(self, token: FencingToken, handler: ConnectionHandler, blob_path: BlobPath) -> None:
        self._token = token
        self._handler = handler
        self._blob_path = blob_path
        self._server: Any = None
        self._connections: set[_ServerConnection] = set()
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Bind and listen; port 0 takes any free one. Raises ExternalError when the port is taken."""
        import grpc

        server = grpc.aio.server(options=_OPTIONS)
        handlers = {
            "Connect": grpc.stream_stream_rpc_method_handler(self._connect),
            "FetchBlob": grpc.unary_stream_rpc_method_handler(self._fetch_blob),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
        self.port = 0
        if port == 0 or await asyncio.to_thread(_is_free, host, port):
            with contextlib.suppress(RuntimeError):
                self.port = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        if self.port == 0:
            raise ExternalError(
                f"Cannot listen on {host}:{port} (jobmanager.rpc.address, jobmanager.rpc.port): the port is in use or "
                "the address is not of this host. Stop the other JobManager or choose another port."
            )
        await server.start()
        self._server = server

    async def _connect(self, _requests: AsyncIterator[bytes], context: Any) -> None:
        import grpc

        connection = _ServerConnection(context, Fence(self._token))
        self._connections.add(connection)
        # A task of its own: gRPC cancels this one when the peer is gone, the handler shall see an ended connection.
        serving = asyncio.ensure_future(self._handler(connection))
        try:
            await asyncio.shield(serving)
        except StaleLeaderError as error:
            await connection.close()
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except ExternalError as error:
            await connection.close()
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except asyncio.CancelledError:
            connection.lost()
            await asyncio.gather(serving, return_exceptions=True)
            raise
        finally:
            self._connections.discard(connection)
            await connection.close()

    async def _fetch_blob(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        import grpc

        sha256 = request.decode("ascii", "replace")
        path = self._blob_path(sha256)
        if path is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"The JobManager has no file with sha256 {sha256}.")
            return
        loop = asyncio.get_running_loop()
        with open(path, "rb") as stream:
            while chunk := await loop.run_in_executor(None, stream.read, BLOB_CHUNK_BYTES):
                yield chunk

    async def close(self) -> None:
        await asyncio.gather(*(connection.close() for connection in list(self._connections)))
        if self._server is not None:
            await self._server.stop(SERVER_GRACE_S)


@final
class _GrpcClient:
    def __init__(self, channel: Any, address: str) -> None:
        self._channel = channel
        self._address = address
        self._fence = Fence()
        self._call = channel.stream_stream(f"/{_SERVICE}/Connect")()
        self._outbox = _Outbox(self._call.write, self._fence)
        #: What was read: bytes, then None or the error that ended the stream.
        self._inbox: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        # A task of its own, because gRPC ends the whole call when one read is cancelled.
        self._reader = asyncio.get_running_loop().create_task(self._read())
        self._closed = False

    @property
    def peer(self) -> str:
        return self._address

    @property
    def token(self) -> str:
        return self._fence.token

    def send_nowait(self, message: Any) -> None:
        self._outbox.put(message)

    async def receive(self) -> Any | None:
        if self._closed:
            return None
        data = await self._inbox.get()
        if isinstance(data, bytes):
            return self._fence.admit(decode_envelope(data))
        self._inbox.put_nowait(data)  # whoever asks again is told again
        if data is None:
            return None
        raise data

    async def _read(self) -> None:
        import grpc

        end: Exception | None = None
        try:
            while (data := await self._call.read()) is not grpc.aio.EOF:
                self._inbox.put_nowait(data)
            end = _refusal(await self._call.code(), await self._call.details())
        except grpc.aio.AioRpcError as error:
            end = _refusal(error.code(), error.details())
        finally:
            self._inbox.put_nowait(end)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._outbox.flush()
        # A cancelled call drops what is under way: say that nothing follows, and wait until the server has ended too.
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._call.done_writing(), FLUSH_TIMEOUT_S)
        await asyncio.wait({self._reader}, timeout=FLUSH_TIMEOUT_S)
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._channel.close()

    async def fetch_blob(self, sha256: str, target: str) -> None:
        import grpc

        fetch = self._channel.unary_stream(f"/{_SERVICE}/FetchBlob")
        try:
            with open(target, "wb") as stream:
                async for chunk in fetch(sha256.encode("ascii"), timeout=BLOB_TIMEOUT_S):
                    stream.write(chunk)
        except grpc.aio.AioRpcError as error:
            raise ExternalError(f"Cannot fetch file {sha256} from {self._address}: {error.details()}") from error


def _refusal(code: Any, details: str | None) -> Exception | None:
    """Return what the server's status means, None for an ordinary end."""
    import grpc

    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return StaleLeaderError(details or "The JobManager refused the fencing token.")
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return ExternalError(details or "The JobManager could not read a message.")
    return None


async def connect(host: str, port: int, timeout_s: float = CONNECT_TIMEOUT_S) -> JobManagerConnection:
    """Open a connection to the JobManager at ``host:port``.

    Raises: ExternalError when nobody answers there within ``timeout_s``.
    """
    import grpc

    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
    try:
        await asyncio.wait_for(channel.channel_ready(), timeout_s)
    except (TimeoutError, grpc.aio.AioRpcError) as error:
        await channel.close()
        raise ExternalError(f"No JobManager answers at {address} within {timeout_s:g} s.") from error
    except BaseException:
        await channel.close()
        raise
    return _GrpcClient(channel, address)
