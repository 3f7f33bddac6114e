"""A simulated slot process: the engine's loop and tasks, turned whenever there is something to do."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import pickle
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.config import Configuration
from engine.core.errors import ExternalError
from engine.core.options import ClusterOptions
from engine.operators.row_loop import RowLoop
from engine.protocol.control import InitializeSlot, SlotAddress
from engine.runtime.exchange.partition import PartitionRegistry
from engine.runtime.exchange.transport import Transport
from engine.runtime.taskmanager.mailbox import Deadline
from engine.runtime.taskmanager.memory import SlotMemory
from engine.runtime.taskmanager.slot_environment import SlotEnvironment
from engine.runtime.taskmanager.slot_process import SlotProcess
from engine.runtime.taskmanager.stream_task import StreamTask
from engine.runtime.taskmanager.watchdog import Watchdog
from tests.sim.loops import SimLoop
from tests.sim.network import SimListener, Wire
from tests.sim.telling import describe
from tests.sim.world import SimulationError

if TYPE_CHECKING:
    from tests.sim.processes import Cluster, SimTaskManager

__all__ = ["SIGKILL", "SimSlot", "SlotEnd"]

#: exit code of a process that was killed
SIGKILL: Final = -9


@final
class SimMailbox:
    """``mailbox.Mailbox`` without a selector: sockets know themselves whether they are ready."""

    def __init__(self, slot: SimSlot) -> None:
        self._slot = slot
        self._world = slot.world
        self._watched: dict[Any, tuple[int, Callable[[int], None]]] = {}
        self._deadlines: list[tuple[float, int, Deadline]] = []
        self._sequence = itertools.count()
        #: What happened beside the loop and is to be told in it.
        self._posted: deque[Callable[[], None]] = deque()

    def post(self, call: Callable[[], None]) -> None:
        self._posted.append(call)
        self._slot.io_ready()

    def watch(self, file: Any, events: int, on_ready: Callable[[int], None]) -> None:
        if events:
            self._watched[file] = (events, on_ready)
        else:
            self._watched.pop(file, None)

    def call_at(self, when: float, action: Callable[[], None]) -> Deadline:
        deadline = Deadline(action)
        heapq.heappush(self._deadlines, (when, next(self._sequence), deadline))
        self._slot.schedule(when)
        return deadline

    def call_later(self, delay: float, action: Callable[[], None]) -> Deadline:
        return self.call_at(self._world.now + delay, action)

    def wake(self) -> None:
        self._slot.io_ready()

    def turn(self, timeout: float | None) -> None:
        assert timeout == 0.0, "a simulated slot never sleeps inside a step"
        for file, (events, on_ready) in list(self._watched.items()):
            ready = file.ready() & events
            if ready and file in self._watched:
                on_ready(ready)
        while self._posted:
            self._posted.popleft()()
        now = self._world.now
        while self._deadlines and self._deadlines[0][0] <= now:
            action = heapq.heappop(self._deadlines)[2].action
            if action is not None:
                action()

    def has_ready(self) -> bool:
        return bool(self._posted) or any(file.ready() & events for file, (events, _) in self._watched.items())

    def next_deadline(self) -> float | None:
        while self._deadlines and self._deadlines[0][2].action is None:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None


@final
class _Work:
    def __init__(self) -> None:
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


@final
class _SnapshotWorkers:
    """``snapshot_workers.SlotSnapshotWorkers``: threads that do their work at one instant, children that saw the memory
    as it was at their fork."""

    def __init__(self, slot: SimSlot) -> None:
        self._slot = slot
        self._rng = slot.world.rng(f"{slot.name} snapshots")
        self.fork_entries_min = self._rng.choice((0, 10_000))
        self.noted_entries_max = self._rng.choice((0, 60, 10_000))
        self._usual_s = self._rng.choice((0.002, 0.002, 0.05, 0.5))

    @property
    def _slowness_s(self) -> float:
        """All is well when the faults have ended for long: checkpoints that may not fail must not expire for ever."""
        return self._usual_s if self._is_restless() else 0.002

    def _is_restless(self) -> bool:
        world = self._slot.world
        return world.now < float(world.parts["faults until"]) + 20.0

    def run(self, work: Callable[[], Any], on_done: Any) -> Any:
        job = _Work()

        def do() -> None:
            if self._slot.is_dead or self._slot.world.is_over:
                return
            if self._slot._is_stopped:
                self._slot.world.after(0.05, do)
                return
            self._finish(job, work, on_done)

        self._slot.world.after(self._rng.uniform(0.1, 1) * self._slowness_s, do)
        return job

    def fork(self, work: Callable[[], Any], on_done: Any) -> Any:
        job = _Work()
        if self._rng.random() < 0.02 and self._is_restless():
            raise ExternalError("Cannot fork a process for a snapshot: Cannot allocate memory.")
        result, error = self._result(work)
        is_lost = self._rng.random() < 0.02 and self._is_restless()

        def end() -> None:
            if not self._slot.is_dead:
                lost = ExternalError("The process that wrote the snapshot was ended by SIGKILL.")
                self._slot.mailbox.post(lambda: on_done(None, lost) if is_lost else on_done(result, error))

        self._slot.world.after(self._rng.uniform(0.1, 1) * self._slowness_s, end)
        return job

    def expect_forks(self) -> None:
        pass

    def _finish(self, job: _Work, work: Callable[[], Any], on_done: Any) -> None:
        if job.is_cancelled:
            result, error = None, ExternalError("cancelled")
        else:
            result, error = self._result(work)
        self._slot.mailbox.post(lambda: on_done(result, error))

    def _result(self, work: Callable[[], Any]) -> tuple[Any, Any]:
        self._slot.cluster.files.owner = self._slot
        try:
            return work(), None
        except Exception as error:
            return None, error


@final
class _SlotControl:
    """``slot_control.ControlSocket``: the slot's end of the socket to its TaskManager."""

    def __init__(self, slot: SimSlot, wire: Wire) -> None:
        self.messages: deque[Any] = deque()
        self.is_closed = False
        self._slot = slot
        self._wire = wire

    def send(self, message: object) -> None:
        slot = self._slot
        if slot.is_dead or self.is_closed:
            return
        data = pickle.dumps(message, 5)
        self._wire.carry(lambda: slot.handle.arrive(data))


@final
class SlotEnd:
    """``zygote.SlotHandle``: the TaskManager's end."""

    def __init__(self, slot: SimSlot, loop: SimLoop, wire: Wire) -> None:
        self.pid = 0  # /proc/0 does not exist
        self.address: SlotAddress
        self._slot = slot
        self._loop = loop
        self._wire = wire
        self._inbox: deque[bytes | None] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._exited: asyncio.Future[int] = loop.create_future()

    def send(self, message: object) -> None:
        if self._loop.is_dead or self._slot.world.is_over:
            return
        data = pickle.dumps(message, 5)
        self._wire.carry(lambda: self._slot.receive(data))

    def arrive(self, data: bytes | None) -> None:
        if self._loop.is_dead or self._slot.world.is_over:
            return
        self._inbox.append(data)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> Any | None:
        while not self._inbox:
            self._waiter = self._loop.create_future()
            await self._waiter
        data = self._inbox.popleft()
        return None if data is None else pickle.loads(data)

    def exited(self, code: int) -> None:
        if not self._loop.is_dead and not self._exited.done():
            self._exited.set_result(code)

    async def wait(self) -> int:
        return await asyncio.shield(self._exited)

    def kill(self) -> None:
        if not self._exited.done() and not self._slot.world.is_over:
            self._slot.kill("killed by its TaskManager", after=self._slot.rng.uniform(0.0005, 0.02))


@final
class SimSlot:
    """A slot process: the real loop, turned whenever there is something to do."""

    def __init__(self, cluster: Cluster, taskmanager: SimTaskManager, init: InitializeSlot) -> None:
        self.world = world = cluster.world
        self.cluster = self._cluster = cluster
        self.taskmanager = taskmanager
        self.init = init
        number = world.next_id(f"{taskmanager.name} slots")
        self.name = f"{taskmanager.name}/{init.slot_index}.{number}"
        self.leader = cluster.leader_of_allocation[init.allocation_id]
        self.rng = world.rng(self.name)
        self.is_dead = False
        self._is_stopped = False
        self._is_hanging = False
        self._scheduled_at: float | None = None
        self._turn_timer: Any = None
        self._spent_s = 0.0  #: simulated time that this turn took beyond the usual
        self._busy_until = 0.0
        self._inside = 0
        #: Seconds that one turn takes.
        self.turn_s = self.rng.choice((0.0002, 0.001, 0.001, 0.005))
        self.mailbox = SimMailbox(self)
        self.control = _SlotControl(self, Wire(world, world.rng(f"{self.name} up")))
        self.handle = SlotEnd(self, taskmanager.loop, Wire(world, world.rng(f"{self.name} down")))
        self.process = SlotProcess(self.control, self.mailbox)  # type: ignore[arg-type]
        self._listener: SimListener | None = None
        self.address = SlotAddress(init.resource_id, init.data_host, 10_000 + number, init.unix_path)

    # --- life

    def begin(self) -> None:
        init, network = self.init, self._cluster.network
        registry = PartitionRegistry()
        transport = Transport(
            self.mailbox,
            init.job.job_id,
            registry,
            self.address,
            open_socket=lambda address: network.connect(self, address),  # type: ignore[return-value,arg-type]
        )
        self._listener = network.listen(self.address, self)
        transport.listen(self._listener)  # type: ignore[arg-type]
        config = Configuration(init.config)
        slot_shared: dict[str, Any] = {"sim": self}
        self.watchdog = Watchdog(RowLoop.of(slot_shared))  # not started: its thread would know of real time only
        env = SlotEnvironment(
            init=init,
            mailbox=self.mailbox,  # type: ignore[arg-type]
            registry=registry,
            transport=transport,
            clock=self._cluster.clock,
            memory=SlotMemory.divide(init.memory_bytes, config.get(ClusterOptions.NUM_SLOTS), config),
            send=self.control.send,
            watchdog=self.watchdog,
            let_others_work=self._let_others_work,
            slot_shared=slot_shared,
            now_ns=self._now_ns,
            snapshot_workers=_SnapshotWorkers(self),
        )
        self.env = env
        self.process.begin(env)
        self.world.tell(self.name, "starts", f"{init.allocation_id[:6]} {init.slot_id}")
        self._cluster.slot_started(self)
        self.io_ready()

    def _now_ns(self) -> int:
        return 1 + int((self.world.now + self._spent_s) * 1e9)

    def spend(self, seconds: float) -> None:
        """Code of this slot that runs now takes so long."""
        self._spent_s += seconds
        if self._spent_s > 0.1:
            self.watchdog.is_late = True

    @property
    def tasks(self) -> list[StreamTask]:
        return self.process._tasks

    # --- turns

    def io_ready(self) -> None:
        self.schedule(self.world.now + 0.00002)

    def schedule(self, when: float) -> None:
        if self.is_dead or self._inside or self.world.is_over:
            return
        when = max(when, self._busy_until)
        if self._scheduled_at is not None:
            if self._scheduled_at <= when:
                return
            self._turn_timer.cancel()
        self._scheduled_at = when
        self._turn_timer = self.world.at(when, self._turn)

    def _turn(self) -> None:
        self._scheduled_at = None
        if self.is_dead or self._is_stopped:
            return
        process = self.process
        self._spent_s = 0.0
        self._inside += 1
        self._cluster.files.owner = self
        try:
            if not process._must_end():
                process.turn_once(0.0)
            ends = process._must_end()
            if ends:
                process._end()
        except Exception as error:
            self.world.tell(self.name, "CRASHED", repr(error))
            raise SimulationError(f"slot {self.name} crashed at {self.world.now:.6f}: {error!r}") from error
        finally:
            self._inside -= 1
        if ends:
            self._exit(0, "ends")
            return
        timeout = process._sleep(self.tasks)
        self._busy_until = self.world.now + self.turn_s + self._spent_s
        nexts = [] if timeout is None else [self.world.now + timeout]
        if self.mailbox.has_ready() or self.control.messages:
            nexts.append(self.world.now)
        deadline = self.mailbox.next_deadline()
        if deadline is not None:
            nexts.append(deadline)
        if nexts:
            self.schedule(min(nexts))

    def _let_others_work(self, inside: StreamTask, is_enough: Callable[[], bool]) -> None:
        """One round of ``SlotProcess._let_others_work``. It does not wait for other slots: they cannot run inside of
        this event. So the bound of memory is not kept here, everything else is."""
        process = self.process
        process._turn(0.0)
        if process._must_end():
            for task in self.tasks:
                task.cancel()
            return
        if not inside.is_interrupted:
            process._work(self.tasks[self.tasks.index(inside) + 1 :])

    def receive(self, data: bytes | None) -> None:
        if self.is_dead:
            return
        if data is None:
            self.control.is_closed = True
        else:
            message = pickle.loads(data)
            self.world.tell(self.name, "told", describe(message))
            self.control.messages.append(message)
        self.io_ready()

    # --- what may happen to it

    def stop(self) -> None:
        self._is_stopped = True

    def continue_(self) -> None:
        self._is_stopped = self._is_hanging
        self.io_ready()

    def hang(self) -> None:
        """A function that never returns: the loop does not turn any more."""
        self._is_stopped = True
        self._is_hanging = True

    def come_back(self) -> None:
        self._is_hanging = False
        self.continue_()

    def kill(self, why: str, *, after: float = 0.0, silently: bool = False) -> None:
        def die() -> None:
            if not self.is_dead:
                self._exit(SIGKILL, why, silently=silently)

        if after:
            self.world.after(after, die)
        else:
            die()

    def _exit(self, code: int, why: str, *, silently: bool = False) -> None:
        self.is_dead = True
        self.world.tell(self.name, "exits", f"{code}: {why}")
        cluster = self._cluster
        cluster.files.process_ended(self)
        cluster.network.stop_listening(self.address)
        cluster.network.process_ended(self, silently=silently)
        cluster.slot_ended(self)
        if not silently:
            self.control._wire.carry(lambda: self.handle.arrive(None))
            self.world.after(self.rng.uniform(0.0001, 0.01), lambda: self.handle.exited(code))
