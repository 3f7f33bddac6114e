"""Wires between processes: control streams (messages) and data sockets (bytes), delayed, stalled, cut.

As with TCP, nothing is lost, repeated or reordered within a connection that lives; between connections anything goes.
A stalled wire is a network that drops packets for a while: all comes late, or the connection is cut first.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, final

from engine.core.errors import ExternalError
from engine.protocol.control import (
    Envelope,
    HeartbeatFromJobManager,
    HeartbeatFromTaskManager,
    SlotAddress,
)
from engine.rpc.codec import decode_envelope, encode
from engine.rpc.endpoint import Fence
from engine.runtime.exchange.connection import READ, WRITE
from tests.sim.loops import SimLoop
from tests.sim.telling import describe
from tests.sim.world import World

__all__ = ["ControlEnd", "ControlLink", "DataNetwork", "SimListener", "SimSocket"]

#: Delays of a wire in seconds: usual, and of one message in so many that is late.
_DELAY: Final = (0.00005, 0.002)
_LATE: Final = (0.02, 0.4)
_LATE_SHARE: Final = 0.02
_SILENT: Final = (HeartbeatFromJobManager, HeartbeatFromTaskManager)


def _delay(rng: random.Random) -> float:
    return rng.uniform(*(_LATE if rng.random() < _LATE_SHARE else _DELAY))


@final
class Wire:
    """One direction of a connection: what goes in comes out in order. The end of the stream travels as the last."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world = world
        self._rng = rng
        self._last = 0.0
        self._queue: deque[Callable[[], None]] = deque()
        self._num_due = 0
        self._resuming = False
        self._stalled_until = 0.0
        self.is_cut = False

    def carry(self, deliver: Callable[[], None]) -> None:
        self._queue.append(deliver)
        self._last = max(self._world.now + _delay(self._rng), self._last + 1e-9)
        self._world.at(self._last, self._come_due)

    def stall(self, seconds: float) -> None:
        self._stalled_until = max(self._stalled_until, self._world.now + seconds)

    def _come_due(self) -> None:
        self._num_due += 1
        self._drain()

    def _drain(self) -> None:
        if self._world.now < self._stalled_until:
            if not self._resuming:
                self._resuming = True
                self._world.at(self._stalled_until, self._resume)
            return
        while self._num_due:
            self._num_due -= 1
            deliver = self._queue.popleft()
            if not self.is_cut:
                deliver()

    def _resume(self) -> None:
        self._resuming = False
        self._drain()


# --- control ----------------------------------------------------------------------------------------------------------


@final
class ControlEnd:
    """A ``rpc.endpoint.JobManagerConnection``, at either end."""

    def __init__(self, link: ControlLink, fence: Fence, loop: SimLoop, name: str, peer: str) -> None:
        self._link = link
        self._fence = fence
        self._loop = loop
        self._name = name
        self._peer = peer
        self._inbox: deque[bytes | None] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._is_closed = False
        self.last_arrival = link.world.now
        self.other: ControlEnd
        self.wire: Wire  #: to the other end

    @property
    def peer(self) -> str:
        return self._peer

    @property
    def token(self) -> str:
        return self._fence.token

    def send_nowait(self, message: Any) -> None:
        if self._is_closed or self._link.is_cut or self._loop.is_dead or self._link.world.is_over:
            return
        if self is self._link.jobmanager_end:
            self._link.on_down(message)
        data = encode(Envelope(self._fence.token, message))
        if not isinstance(message, _SILENT):
            self._link.world.tell(self._name, "send", describe(message))
        self.wire.carry(lambda: self.other.arrive(data))

    def arrive(self, data: bytes | None) -> None:
        if self._is_closed or self._loop.is_dead or self._link.world.is_over:
            return
        self.last_arrival = self._link.world.now
        self._inbox.append(data)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> Any | None:
        while not self._inbox:
            if self._is_closed:
                return None
            self._waiter = self._loop.create_future()
            await self._waiter
        data = self._inbox.popleft()
        if data is None:
            self._is_closed = True
            return None
        envelope = decode_envelope(data)
        if not isinstance(envelope.message, _SILENT):
            self._link.world.tell(self._name, "receive", describe(envelope.message))
        return self._fence.admit(envelope)

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self.wire.carry(lambda: self.other.arrive(None))

    async def fetch_blob(self, sha256: str, target: str) -> None:
        raise ExternalError("The simulation has no files.")


@final
class ControlLink:
    """The stream between one TaskManager and the JobManager."""

    def __init__(
        self, world: World, jobmanager: SimLoop, taskmanager: SimLoop, token: Any, on_down: Callable[[Any], None]
    ) -> None:
        self.world = world
        self.on_down = on_down  #: called with what the JobManager sends
        self.is_cut = False
        self.jobmanager_end = ControlEnd(self, Fence(token), jobmanager, jobmanager.name, taskmanager.name)
        self.taskmanager_end = ControlEnd(self, Fence(), taskmanager, taskmanager.name, jobmanager.name)
        number = world.next_id(f"link {taskmanager.name}")
        self._ends = (self.jobmanager_end, self.taskmanager_end)
        for end, other in zip(self._ends, reversed(self._ends), strict=True):
            end.other = other
            end.wire = Wire(world, world.rng(f"link {taskmanager.name} {number} {end._name}"))

    def stall(self, seconds: float) -> None:
        for end in self._ends:
            end.wire.stall(seconds)

    def jobmanager_died(self, *, silently: bool) -> None:
        """What is under way arrives, and then the end, unless nobody is there to send it."""
        if not silently and not self.is_cut:
            self.jobmanager_end.wire.carry(lambda: self.taskmanager_end.arrive(None))

    def cut(self) -> None:
        """What is under way is lost; each end notices, not at one time."""
        if self.is_cut:
            return
        self.is_cut = True
        rng = self.world.rng("cuts")
        for end in self._ends:
            end.wire.is_cut = True
            self.world.after(rng.uniform(0.0001, 0.05), lambda end=end: end.arrive(None))  # type: ignore[misc]


# --- data -------------------------------------------------------------------------------------------------------------


class Waker(Protocol):
    """The process that owns a socket."""

    name: str

    def io_ready(self) -> None: ...


@final
class SimSocket:
    """A connected, non-blocking stream socket, as far as ``exchange/connection`` uses one."""

    family = socket.AF_UNIX

    def __init__(self, network: DataNetwork, owner: Waker, wire: Wire, capacity: int, rng: random.Random) -> None:
        self._network = network
        self.owner = owner
        self.wire = wire  #: to the peer
        self.peer: SimSocket | None = None
        self.is_connected = False
        self.is_closed = False
        self._rng = rng
        self._capacity = capacity
        self._under_way = 0  #: bytes sent and not read by the peer
        self._inbox = bytearray()
        self._has_ended = False
        self._error = 0

    # --- as the transport sees it

    def setblocking(self, blocking: bool) -> None:
        assert not blocking, "a slot never blocks"

    def setsockopt(self, *args: Any) -> None:
        pass

    def getsockopt(self, level: int, option: int) -> int:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR)
        return self._error

    def sendmsg(self, buffers: list[Any]) -> int:
        if self._error:
            raise OSError(self._error, os.strerror(self._error))
        peer = self.peer
        if peer is None or peer.is_closed:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        room = self._capacity - self._under_way
        if room <= 0:
            raise BlockingIOError
        data = b"".join(buffers)[:room]
        if self._rng.random() < 0.1:  # a short write
            data = data[: self._rng.randint(1, len(data))]
        self._under_way += len(data)
        self.wire.carry(lambda: peer._arrive(data))
        return len(data)

    def recv_into(self, view: memoryview) -> int:
        if self._inbox:
            size = min(len(view), len(self._inbox))
            view[:size] = self._inbox[:size]
            del self._inbox[:size]
            if self.peer is not None:
                self.peer._taken(size)
            return size
        if self._error:
            raise OSError(self._error, os.strerror(self._error))
        if self._has_ended:
            return 0
        raise BlockingIOError

    def close(self) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        peer = self.peer
        if peer is not None:
            self.wire.carry(peer._end)

    # --- as the network sees it

    def ready(self) -> int:
        if self._error:
            return READ | WRITE
        events = READ if self._inbox or self._has_ended else 0
        if self.is_connected and self._under_way < self._capacity:
            events |= WRITE
        return events

    def _arrive(self, data: bytes) -> None:
        if not self.is_closed:
            self._inbox += data
            self.owner.io_ready()

    def _taken(self, size: int) -> None:
        self._under_way -= size
        if not self.is_closed:
            self.owner.io_ready()

    def _end(self) -> None:
        self._has_ended = True
        self.owner.io_ready()

    def connected(self) -> None:
        self.is_connected = True
        self.owner.io_ready()

    def fail(self, code: int) -> None:
        if not self.is_closed and not self._error:
            self._error = code
            self._inbox.clear()
            self.owner.io_ready()


@final
class SimListener:
    def __init__(self, owner: Waker) -> None:
        self.owner = owner
        self._waiting: deque[SimSocket] = deque()

    def accept(self) -> tuple[SimSocket, None]:
        if not self._waiting:
            raise BlockingIOError(errno.EAGAIN, "nobody")
        return self._waiting.popleft(), None

    def offer(self, sock: SimSocket) -> None:
        self._waiting.append(sock)
        self.owner.io_ready()

    def ready(self) -> int:
        return READ if self._waiting else 0

    def close(self) -> None:
        pass


@final
class DataNetwork:
    """Who listens where, and all data connections."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._listening: dict[SlotAddress, SimListener] = {}
        self._sockets: list[tuple[SimSocket, SimSocket]] = []
        #: TaskManagers whose hosts answer nothing any more: not even that a port is closed.
        self._silent_hosts: set[str] = set()
        self._capacity = world.rng("sockets").choice((700, 5_000, 64_000))

    def listen(self, address: SlotAddress, owner: Waker) -> SimListener:
        listener = self._listening[address] = SimListener(owner)
        return listener

    def stop_listening(self, address: SlotAddress) -> None:
        self._listening.pop(address, None)

    def silence(self, host: str) -> None:
        self._silent_hosts.add(host)

    def connect(self, owner: Waker, address: SlotAddress) -> SimSocket:
        rng = self._world.rng(f"data {owner.name} {self._world.next_id('data ' + owner.name)}")
        sock = SimSocket(self, owner, Wire(self._world, rng), self._capacity, rng)

        def reach() -> None:
            if sock.is_closed or address.host in self._silent_hosts:
                return
            listener = self._listening.get(address)
            if listener is None:
                sock.fail(errno.ECONNREFUSED)
                return
            other = SimSocket(self, listener.owner, Wire(self._world, rng), self._capacity, rng)
            sock.peer, other.peer = other, sock
            other.is_connected = True
            self._sockets.append((sock, other))
            listener.offer(other)
            sock.connected()

        self._world.after(_delay(rng), reach)
        return sock

    def process_ended(self, owner: Waker, *, silently: bool) -> None:
        """The kernel closes the sockets of a process; a host that is gone closes nothing."""
        for pair in self._sockets:
            for sock in pair:
                if sock.owner is owner:
                    if silently:
                        sock.is_closed = sock.wire.is_cut = True
                    else:
                        sock.close()
        self._sockets = [pair for pair in self._sockets if not (pair[0].is_closed and pair[1].is_closed)]

    def live_pairs(self) -> list[tuple[SimSocket, SimSocket]]:
        return [pair for pair in self._sockets if not pair[0].is_closed and not pair[1].is_closed]

    def cut(self, pair: tuple[SimSocket, SimSocket]) -> None:
        rng = self._world.rng("cuts")
        for sock in pair:
            sock.wire.is_cut = True
            self._world.after(
                rng.uniform(0.0001, 0.05),
                lambda sock=sock: sock.fail(errno.ECONNRESET),  # type: ignore[misc]
            )

    def stall(self, pair: tuple[SimSocket, SimSocket], seconds: float) -> None:
        for sock in pair:
            sock.wire.stall(seconds)
