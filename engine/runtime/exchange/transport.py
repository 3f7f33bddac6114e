"""Connections between slots: one per pair, all channels on it, a credit per channel, nothing blocks.

The consumer connects to the producer's slot (Unix socket on one host, else TCP), greets with the job's id, subscribes
to subpartitions and grants credit in batches of records. The producer sends a channel's elements in order while it has
credit and the connection's outgoing bytes are below a bound; what is not sent stays in the subpartition, which is how a
slow consumer slows its producer.

Not here: frames (``wire``), where elements come from (``partition``) and go to (``gate``).
"""

from __future__ import annotations

import errno
import os
import pickle
import socket
import stat
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol, final

from engine.core.errors import ConfigError, EngineError, ExternalError, UserCodeError
from engine.core.ids import JobID
from engine.protocol.control import SlotAddress
from engine.protocol.stream import Element, EndOfData, Records
from engine.runtime.exchange.connection import READ, WRITE, Connection, EventLoop
from engine.runtime.exchange.partition import PartitionRegistry, ResultPartition, SubpartitionView
from engine.runtime.exchange.wire import (
    HEADER,
    HELLO_SIZE,
    Buffer,
    Decoder,
    Encoder,
    Frame,
    FrameKind,
    RemoteError,
    Subscribe,
    check_hello,
    hello,
    pack_frame,
)

__all__ = ["PARTITION_WAIT_MS", "ChannelReceiver", "EventLoop", "Transport", "bind_data_sockets"]

#: How long a subscription may wait for its partition: the producer is deployed at about the same time.
PARTITION_WAIT_MS: Final = 60_000
CONNECT_TIMEOUT_MS: Final = 30_000
#: A greeting must come at once; who is silent is no slot.
HELLO_TIMEOUT_MS: Final = 10_000
#: Bytes that may wait in a connection before its channels are polled no more.
OUTGOING_MAX: Final = 1 << 20


class ChannelReceiver(Protocol):
    """A remote channel of a gate."""

    def receive(self, element: Element, size_bytes: int) -> None: ...

    def fail(self, error: EngineError) -> None: ...


def bind_data_sockets(unix_path: str, bind_host: str, port: int) -> tuple[socket.socket, socket.socket]:
    """Return the listening Unix and TCP sockets of a slot.

    Raises: ConfigError when the path is too long for a socket or the port is taken.
    """
    if len(os.fsencode(unix_path)) > 107:
        raise ConfigError(
            f"{unix_path} is longer than 107 bytes, too long for a socket. Set io.tmp.dirs to a short path."
        )
    try:
        if stat.S_ISSOCK(os.stat(unix_path).st_mode):
            os.unlink(unix_path)
    except FileNotFoundError:
        pass
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        unix.bind(unix_path)
        os.chmod(unix_path, 0o600)
        unix.listen(128)
    except OSError as error:
        unix.close()
        raise ExternalError(f"Cannot bind the data socket {unix_path}: {error.strerror}.") from error
    try:
        family, _, _, _, where = socket.getaddrinfo(
            bind_host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        tcp = socket.socket(family, socket.SOCK_STREAM)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind(where)
        tcp.listen(128)
    except OSError as error:
        unix.close()
        raise ConfigError(
            f"Cannot bind the data port {bind_host}:{port}: {error.strerror}. "
            "Set taskmanager.bind-host to an address of this host and taskmanager.data.port to free ports (0 = any)."
        ) from error
    unix.setblocking(False)
    tcp.setblocking(False)
    return unix, tcp


# --- producer side -------------------------------------------------------------------------------------------------


@final
class _Sender:
    """One subscribed channel at the producer."""

    def __init__(self, connection: _ProducerConnection, channel: int, credit: int) -> None:
        self.connection = connection
        self.channel = channel
        self.credit = credit
        self.view: SubpartitionView | None = None
        self.partition: ResultPartition | None = None
        self._encoder: Encoder
        self._is_scheduled = False

    def attach(self, partition: ResultPartition) -> None:
        self.partition = partition
        # On one host bytes are copied, which is quicker than any codec.
        codec = self.connection.transport.codec
        if codec and self.connection.sock.family == socket.AF_UNIX:
            codec = ""
        self._encoder = Encoder(partition.operator_name, codec)

    def on_data(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self.connection.transport.schedule(self)

    def pump(self) -> None:
        """Move what may go now from the subpartition to the connection."""
        self._is_scheduled = False
        view, connection = self.view, self.connection
        if view is None or connection.is_closed:
            return
        while view.has_next():
            if connection.outgoing_bytes >= OUTGOING_MAX:
                connection.stalled.append(self)
                return
            if view.needs_credit():
                if self.credit <= 0:
                    return
                self.credit -= 1
            assert self.partition is not None
            try:
                item = view.poll()
                assert item is not None
                frames = [item] if isinstance(item, Frame) else self._encoder.encode(item)
            except Exception as error:  # a record cannot be pickled, a spilled file cannot be read
                if not self.partition.on_error(error):
                    is_user_error = isinstance(error, UserCodeError)
                    message = pickle.dumps(RemoteError(str(error), is_user_error), 5)
                    self.connection.send(pack_frame(FrameKind.ERROR, self.channel, message))
                return
            for frame in frames:
                self.connection.send(HEADER.pack(frame.size_bytes, self.channel, frame.kind), *frame.buffers)
                if type(item) is Records:
                    self.partition.bytes_out += frame.size_bytes
                    if frame.kind is FrameKind.ROWS:
                        view.observe(len(item.batch), frame.size_bytes)
            if type(item) is EndOfData:
                self.close()
                return

    def close(self) -> None:
        self.connection.senders.pop(self.channel, None)
        if self.view is not None:
            self.view.close()
            self.view = None


@final
class _ProducerConnection(Connection):
    """A consumer's slot connected to us."""

    def __init__(self, transport: Transport, sock: socket.socket) -> None:
        super().__init__(transport.loop, sock, HELLO_SIZE)
        self.transport = transport
        self.senders: dict[int, _Sender] = {}
        self.stalled: deque[_Sender] = deque()
        self._waiting: dict[int, tuple[str, Callable[[ResultPartition], None]]] = {}
        self._is_welcome = False
        self.start()
        transport.loop.call_later(HELLO_TIMEOUT_MS / 1000, self._check_greeted)

    def _check_greeted(self) -> None:
        if not self._is_welcome:
            self.close("no greeting")

    def on_greeting(self, data: bytes) -> None:
        refusal = check_hello(data, self.transport.job_id)
        if refusal:
            self.send(pack_frame(FrameKind.REFUSED, 0, refusal.encode()))
            self.flush()
            self.close(refusal)
            return
        self._is_welcome = True
        self.send(pack_frame(FrameKind.WELCOME, 0))
        self.flush()

    def on_frame(self, kind: FrameKind, channel: int, payload: Buffer) -> None:
        match kind:
            case FrameKind.ADD_CREDIT:
                sender = self.senders.get(channel)
                if sender is not None:
                    sender.credit += int.from_bytes(payload, "little")
                    sender.on_data()
            case FrameKind.SUBSCRIBE:
                request = pickle.loads(payload)
                assert isinstance(request, Subscribe), request
                self._subscribe(channel, request)
            case FrameKind.UNSUBSCRIBE:
                self._forget(channel)
            case _:
                self.close(f"a consumer sent a frame of kind {kind.name}")

    def _subscribe(self, channel: int, request: Subscribe) -> None:
        sender = _Sender(self, channel, request.credit)
        self.senders[channel] = sender
        registry = self.transport.registry

        def found(partition: ResultPartition) -> None:
            self._waiting.pop(channel, None)
            if not 0 <= request.subpartition_index < partition.descriptor.num_subpartitions:
                self._refuse(
                    channel, f"partition {request.partition_id} has no subpartition {request.subpartition_index}"
                )
                return
            sender.attach(partition)
            sender.view = partition.open_view(request.subpartition_index, sender.on_data)
            sender.on_data()

        def give_up() -> None:
            if channel in self._waiting and self._waiting[channel][1] is found:
                self._forget(channel)
                self._refuse(
                    channel,
                    f"partition {request.partition_id} was not produced within {PARTITION_WAIT_MS // 1000} s: "
                    "its task never started in this slot",
                )

        partition = registry.find(request.partition_id)
        if partition is not None:
            found(partition)
            return
        self._waiting[channel] = (request.partition_id, found)
        registry.wait_for(request.partition_id, found)
        self.transport.loop.call_later(PARTITION_WAIT_MS / 1000, give_up)

    def _refuse(self, channel: int, message: str) -> None:
        self.senders.pop(channel, None)
        if not self.is_closed:
            self.send(pack_frame(FrameKind.ERROR, channel, pickle.dumps(RemoteError(message), 5)))
            self.flush()

    def _forget(self, channel: int) -> None:
        waiting = self._waiting.pop(channel, None)
        if waiting is not None:
            self.transport.registry.stop_waiting(*waiting)
        sender = self.senders.get(channel)
        if sender is not None:
            sender.close()

    def on_drained(self) -> None:
        while self.stalled and self.outgoing_bytes < OUTGOING_MAX:
            self.stalled.popleft().on_data()

    def on_closed(self, reason: str) -> None:
        for channel in list(self._waiting):
            self._forget(channel)
        for sender in list(self.senders.values()):
            sender.close()
        self.transport.forget(self)


# --- consumer side -------------------------------------------------------------------------------------------------


@final
class _ConsumerConnection(Connection):
    """Our connection to one producer slot. Frames may be queued before it is established."""

    def __init__(self, transport: Transport, sock: socket.socket, address: SlotAddress) -> None:
        super().__init__(transport.loop, sock)
        self._transport = transport
        self._address = address
        self._receivers: dict[int, tuple[ChannelReceiver, Decoder]] = {}
        self._next_channel = 0
        self._is_welcome = False
        self._refusal = ""
        self._is_writable = False  # until connected
        transport.loop.watch(sock, WRITE, self._on_connected)
        self._deadline = transport.loop.call_later(CONNECT_TIMEOUT_MS / 1000, self._give_up)
        self.send(hello(transport.job_id))

    def _on_connected(self, events: int) -> None:
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self.close(os.strerror(code))
            return
        self._is_writable = True
        self.start()
        self.flush()

    def _give_up(self) -> None:
        if not self._is_welcome:
            self.close(f"no answer within {CONNECT_TIMEOUT_MS // 1000} s")

    def open_channel(self, request: Subscribe, receiver: ChannelReceiver) -> int:
        channel = self._next_channel
        self._next_channel += 1
        self._receivers[channel] = (receiver, Decoder())
        self.send(pack_frame(FrameKind.SUBSCRIBE, channel, pickle.dumps(request, 5)))
        self.flush()
        return channel

    def add_credit(self, channel: int, credit: int) -> None:
        if not self.is_closed:
            self.send(pack_frame(FrameKind.ADD_CREDIT, channel, credit.to_bytes(4, "little")))
            self._transport.schedule_flush(self)

    def close_channel(self, channel: int) -> None:
        if self._receivers.pop(channel, None) is not None and not self.is_closed:
            self.send(pack_frame(FrameKind.UNSUBSCRIBE, channel))
            self.flush()

    def on_frame(self, kind: FrameKind, channel: int, payload: Buffer) -> None:
        if kind is FrameKind.WELCOME:
            self._is_welcome = True
            self._deadline.cancel()
            return
        if kind is FrameKind.REFUSED:
            self._refusal = bytes(payload).decode("utf-8", "replace")
            self.close("refused")
            return
        found = self._receivers.get(channel)
        if found is None:
            return  # sent before the producer knew that the channel is closed
        receiver, decoder = found
        try:
            element = decoder.decode(kind, payload)
        except Exception as error:
            self.close_channel(channel)
            receiver.fail(_undecodable(error))
            return
        if element is None:
            return
        if isinstance(element, RemoteError):
            self._receivers.pop(channel)
            if element.is_user_error:
                receiver.fail(UserCodeError(element.message))
            else:
                receiver.fail(ExternalError(f"Slot of TaskManager {self._address.resource_id}: {element.message}."))
            return
        if type(element) is EndOfData:
            self._receivers.pop(channel)
        receiver.receive(element, len(payload))

    def on_closed(self, reason: str) -> None:
        self._deadline.cancel()
        self._transport.forget_peer(self._address, self)
        slot = f"slot of TaskManager {self._address.resource_id} at {self._address.host}:{self._address.port}"
        if self._refusal:
            text = f"The {slot} refused the connection: {self._refusal}."
        elif self._is_welcome:
            text = f"The connection to the {slot} was lost ({reason})."
        else:
            text = f"Cannot connect to the {slot}: {reason}."
        receivers, self._receivers = self._receivers, {}
        for receiver, _ in receivers.values():
            receiver.fail(ExternalError(text))


def _undecodable(error: Exception) -> EngineError:
    failure = UserCodeError(
        f"Records could not be unpickled after the exchange: {type(error).__name__}: {error}. "
        "Classes of records must be importable by, or shipped to, every TaskManager."
    )
    failure.__cause__ = error
    return failure


# --- all connections of a slot ---------------------------------------------------------------------------------------


@final
class Transport:
    """Everything of a slot that touches data sockets. ``codec``: see ``Encoder``; of what goes to other hosts."""

    def __init__(
        self,
        loop: EventLoop,
        job_id: JobID,
        registry: PartitionRegistry,
        address: SlotAddress,
        open_socket: Callable[[SlotAddress], socket.socket] | None = None,
        codec: str = "",
    ) -> None:
        self.loop = loop
        self.codec = codec
        self._open_socket = open_socket or self._open
        self.job_id = job_id
        self.registry = registry
        self.address = address
        self._listening: list[socket.socket] = []
        self._producers: set[_ProducerConnection] = set()
        self._peers: dict[SlotAddress, _ConsumerConnection] = {}
        self._ready: list[_Sender] = []
        self._to_flush: list[Connection] = []

    def listen(self, *sockets: socket.socket) -> None:
        for sock in sockets:
            self._listening.append(sock)
            self.loop.watch(sock, READ, lambda events, sock=sock: self._accept(sock))  # type: ignore[misc]

    def _accept(self, listening: socket.socket) -> None:
        try:
            sock, _ = listening.accept()
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ECONNABORTED, errno.EINTR):
                return
            raise ExternalError(
                f"Cannot accept data connections: {error.strerror}. Raise the limit of open files."
            ) from error
        _configure(sock)
        self._producers.add(_ProducerConnection(self, sock))

    def schedule(self, sender: _Sender) -> None:
        self._ready.append(sender)

    def schedule_flush(self, connection: Connection) -> None:
        self._to_flush.append(connection)

    def pump(self) -> None:
        """Send what tasks produced. Called once per turn of the loop, after the steps."""
        touched: dict[Connection, None] = {}
        while self._ready:
            ready, self._ready = self._ready, []
            for sender in ready:
                sender.pump()
                touched[sender.connection] = None
            for connection in touched:
                connection.flush()
                connection.on_drained()  # may schedule stalled senders: hence the loop
        if self._to_flush:
            for connection in dict.fromkeys(self._to_flush):
                connection.flush()
            self._to_flush.clear()

    def connect(self, address: SlotAddress) -> _ConsumerConnection:
        """Return the connection to a producer's slot, made at the first call."""
        connection = self._peers.get(address)
        if connection is None:
            connection = _ConsumerConnection(self, self._open_socket(address), address)
            self._peers[address] = connection
        return connection

    def _open(self, address: SlotAddress) -> socket.socket:
        """Begin to connect; failures show when the socket becomes writable."""
        if address.host == self.address.host and address.unix_path:
            unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            unix.setblocking(False)
            if unix.connect_ex(address.unix_path) == 0:
                _configure(unix)
                return unix
            unix.close()  # the same host, but not the same file system: containers
        try:
            family, _, _, _, where = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        except OSError as error:
            raise ExternalError(
                f"The host {address.host} of TaskManager {address.resource_id} cannot be resolved: {error.strerror}. "
                "Set taskmanager.host there to a name or address that this host knows."
            ) from error
        tcp = socket.socket(family, socket.SOCK_STREAM)
        tcp.setblocking(False)
        _configure(tcp)
        tcp.connect_ex(where)
        return tcp

    def forget(self, connection: _ProducerConnection) -> None:
        self._producers.discard(connection)

    def forget_peer(self, address: SlotAddress, connection: _ConsumerConnection) -> None:
        if self._peers.get(address) is connection:
            del self._peers[address]

    def close(self) -> None:
        for sock in self._listening:
            self.loop.watch(sock, 0, lambda events: None)
            sock.close()
        for connection in [*self._producers, *self._peers.values()]:
            connection.close("this slot ends")
        try:
            os.unlink(self.address.unix_path)
        except OSError:
            pass  # never bound, or the folder is gone


def _configure(sock: socket.socket) -> None:
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    else:
        # Linux' 208 kB make two slots take turns at every few frames.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
