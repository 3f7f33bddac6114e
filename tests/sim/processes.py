"""The simulated TaskManagers and the JobManager, and all that share a cluster. Their code is the engine's; what runs it
is here. Slots: ``slots``."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Any, final

from engine.core.clock import Clock
from engine.core.config import Configuration
from engine.core.errors import EngineError, ExternalError, StaleLeaderError
from engine.core.ids import FencingToken, ResourceID
from engine.ha.job_store import FencedJobStore
from engine.ha.memory import MemoryCluster, MemoryServices
from engine.protocol.control import InitializeSlot, SlotReady
from engine.runtime.jobmanager.dispatcher import Dispatcher
from engine.runtime.jobmanager.job_master import JobMaster
from engine.runtime.taskmanager.task_executor import TaskExecutor, TaskExecutorSettings
from tests.sim.loops import SimLoop
from tests.sim.network import ControlLink, DataNetwork
from tests.sim.slots import SIGKILL, SimSlot, SlotEnd
from tests.sim.storage import SimFileSystem
from tests.sim.world import SimClock, SimulationError, World

__all__ = ["Cluster", "SimJobManager", "SimTaskManager", "pick"]

# --- TaskManagers -----------------------------------------------------------------------------------------------------


@final
class _SlotHost:
    """``zygote.Zygote``."""

    def __init__(self, taskmanager: SimTaskManager) -> None:
        self._taskmanager = taskmanager
        self._ended: asyncio.Future[int] = taskmanager.loop.create_future()

    def kill(self) -> None:
        """Slots die with their zygote."""
        if not self._ended.done():
            self._ended.set_result(SIGKILL)
        for slot in self._taskmanager.slots():
            slot.kill("its zygote is gone", after=self._taskmanager.rng.uniform(0.0005, 0.01))

    async def fork_slot(self, init: InitializeSlot) -> SlotEnd:
        taskmanager = self._taskmanager
        await asyncio.sleep(taskmanager.rng.uniform(*taskmanager.cluster.fork_s))
        if self._ended.done():
            raise ExternalError("The process that starts slots is gone; no slot can be started.")
        if taskmanager.world.now < taskmanager.fork_fails_until:
            raise ExternalError("No slot process could be forked: Cannot allocate memory.")
        slot = SimSlot(taskmanager.cluster, taskmanager, init)
        slot.begin()
        try:
            answer = await slot.handle.receive()
        except BaseException:  # the caller gave up: as the real one does
            slot.handle.kill()
            raise
        if not isinstance(answer, SlotReady):
            slot.handle.kill()
            raise ExternalError("A slot process could not start: it ended.")
        slot.handle.address = answer.address
        return slot.handle

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    async def close(self) -> None:
        for slot in self._taskmanager.slots():
            slot.kill("its TaskManager ends")


@final
class SimTaskManager:
    """One TaskManager process on a host of its own."""

    def __init__(self, cluster: Cluster, number: int, num_slots: int, config: Configuration) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.name = f"tm-{number}"
        self.rng = self.world.rng(self.name)
        self.loop = SimLoop(self.world, self.name)
        self.num_slots = num_slots
        self.fork_fails_until = 0.0
        self.link: ControlLink | None = None
        self.zygote: _SlotHost | None = None
        self.resource_id = ResourceID(self.name)
        settings = TaskExecutorSettings(self.resource_id, self.name, "", num_slots, config)
        #: the one that it has connected to last
        self.jobmanager: SimJobManager | None = None
        self.executor = TaskExecutor(
            settings,
            connect=self._connect,
            slot_hosts=self._host,
            temp_dir=str(cluster.temp_dir),
            leader_replaced=None if cluster.elected is None else self._leader_replaced,
        )
        self.main = self.loop.create_task(self.executor.run())
        self.world.tell(self.name, "starts", f"{num_slots} slots")

    @property
    def is_dead(self) -> bool:
        return self.loop.is_dead

    def slots(self) -> list[SimSlot]:
        return [slot for slot in self.cluster.live_slots if slot.taskmanager is self]

    async def _host(self, python: str) -> Any:
        await asyncio.sleep(self.rng.uniform(0.05, 0.3))
        self.zygote = _SlotHost(self)
        return self.zygote

    async def _connect(self, timeout: float) -> Any:
        self.jobmanager = None
        await asyncio.sleep(self.rng.uniform(0.001, 0.02))
        if self.world.now < self.cluster.unreachable_until.get(self.name, 0.0):
            await asyncio.sleep(timeout)
            raise ExternalError(f"No JobManager answers within {timeout:g} s.")
        self.jobmanager = self.cluster.jobmanager
        if self.cluster.elected is not None and (self.jobmanager.loop.is_dead or not self.jobmanager.is_published):
            raise ExternalError("The connection is refused.")
        self.link = self.jobmanager.accept(self)
        return self.link.taskmanager_end

    async def _leader_replaced(self) -> None:
        while (leader := self.jobmanager) is None:
            await asyncio.sleep(0.01)
        while self.cluster.jobmanager is leader or not self.cluster.jobmanager.is_published:
            await asyncio.sleep(self.rng.uniform(0.01, 0.1))

    def kill(self, why: str, *, silently: bool) -> None:
        """``silently``: its whole host is gone, so nobody is told."""
        self.loop.kill()
        self.world.tell(self.name, "dies", why)
        self.cluster.files.process_ended(self)
        slots = self.slots()
        if silently:
            self.cluster.network.silence(self.name)
            for slot in slots:
                slot.kill("its host is gone", silently=True)
            return
        if self.link is not None:
            self.link.cut()
        delay = self.rng.choice((0.002, 0.02, 0.5))  # the zygote notices soon, or on a busy host not so soon
        for slot in slots:
            slot.kill("the zygote ends with its TaskManager", after=delay * self.rng.uniform(0.5, 1))


# --- the JobManager ---------------------------------------------------------------------------------------------------


@final
class _SimWorker:
    """``coordinators.CoordinatorThread`` in simulated time: one call after the other, each some time after the last."""

    def __init__(self, cluster: Cluster, jobmanager: SimJobManager) -> None:
        self._cluster = cluster
        self._jobmanager = jobmanager
        self._world = cluster.world
        self._rng = self._world.rng(f"worker {self._world.next_id('worker')}")
        self._slowness = self._rng.choice((0.001, 0.001, 0.03))
        self._calls: deque[Callable[[], object]] = deque()
        self._is_busy = False

    def submit(self, call: Callable[[], object]) -> None:
        self._calls.append(call)
        self._begin()

    def _begin(self) -> None:
        if not self._is_busy and self._calls:
            self._is_busy = True
            self._world.after(self._rng.uniform(0.1, 1) * self._slowness, self._end)

    def _end(self) -> None:
        cluster = self._cluster
        if self._world.is_over or self._jobmanager.loop.is_dead:
            return
        if self._jobmanager.loop.is_stopped or self._world.now < cluster.worker_hangs_until:
            self._world.after(0.05, self._end)
            return
        cluster.files.owner = self._jobmanager
        self._is_busy = False
        self._calls.popleft()()
        self._begin()

    def close(self) -> None:
        pass


@final
class SimJobManager:
    """With ``store`` the leader of several; each leadership is a process of its own."""

    def __init__(
        self, cluster: Cluster, config: Configuration, token: FencingToken, store: FencedJobStore | None = None
    ) -> None:
        self.world = cluster.world
        number = self.world.next_id("jobmanager")
        self.name = "jm" if number == 1 else f"jm-{number}"
        self.loop = SimLoop(self.world, self.name)
        self.token = token
        self._cluster = cluster
        self.dispatcher: Dispatcher
        self._config = config
        self._store = store
        #: It has taken over, and everybody knows where it is.
        self.is_published = False
        self._links: list[ControlLink] = []
        self._serving: set[asyncio.Task[None]] = set()
        self.loop.create_task(self._start())

    async def _start(self) -> None:
        cluster = self._cluster
        self.dispatcher = Dispatcher(
            self._config,
            clock=cluster.clock,
            temp_dir=str(cluster.temp_dir),
            new_worker=lambda name: _SimWorker(cluster, self),
            job_store=self._store,
        )
        start = self.dispatcher._start

        def watched(master: JobMaster) -> None:
            for called in cluster.on_master:
                called(master)
            start(master)

        self.dispatcher._start = watched  # type: ignore[method-assign]
        try:
            await self.dispatcher.start()
        except EngineError as error:
            if self._store is None:
                raise
            self.world.tell(self.name, "cannot lead", str(error)[:80])
            await self.dispatcher.suspend()
            self.world.after(1.0, lambda: cluster.elect(after=self))
            return
        if self._store is not None:
            self.world.tell(self.name, "leads", f"{len(self.dispatcher._jobs)} jobs go on")
        self.is_published = True

    def kill(self) -> None:
        self.loop.kill()
        self.world.tell(self.name, "dies")
        self._cluster.files.process_ended(self)
        for link in self._links:
            link.cut()

    def revoke(self) -> None:
        """It is told, at last, that another one leads."""
        if self.loop.is_dead or self.world.is_over:
            return

        async def suspend() -> None:
            self.world.tell(self.name, "is revoked")
            await self.dispatcher.suspend()
            for link in self._links:
                await link.jobmanager_end.close()

        self.loop.create_task(suspend())

    def accept(self, taskmanager: SimTaskManager) -> ControlLink:
        link = ControlLink(self.world, self.loop, taskmanager.loop, self.token)
        self._links.append(link)
        self._serving.add(task := self.loop.create_task(self._serve(link)))
        task.add_done_callback(self._serving.discard)
        return link

    async def _serve(self, link: ControlLink) -> None:
        end = link.jobmanager_end
        try:
            await self.dispatcher.resource_manager.handle_connection(end)
        except StaleLeaderError:
            pass
        finally:
            await end.close()


@final
class Cluster:
    """All processes. ``live_slots``: of all TaskManagers."""

    def __init__(
        self, world: World, temp_dir: str, jobmanager_config: Configuration, *, failover: bool = False
    ) -> None:
        self.world = world
        self.temp_dir = temp_dir
        self.clock: Clock = SimClock(world)
        self.network = DataNetwork(world)
        #: seconds that a slot process takes to be made
        self.fork_s = world.rng("fork").choice(((0.003, 0.08), (0.003, 0.08), (0.2, 1.5)))
        self.files = SimFileSystem(world)
        self.live_slots: list[SimSlot] = []
        self.taskmanagers: list[SimTaskManager] = []
        self.unreachable_until: dict[str, float] = {}
        self.worker_hangs_until = 0.0  #: the JobManager's file system does not answer
        #: called with each JobMaster before it starts
        self.on_master: list[Callable[[JobMaster], None]] = []
        #: called when another JobManager leads
        self.on_elected: list[Callable[[], None]] = []
        self._jobmanager_config = jobmanager_config
        #: the election and what leaders write down; None without high availability
        self.elected = MemoryCluster("sim://ha") if failover else None
        self._former: list[SimJobManager] = []
        self.jobmanager = self._new_jobmanager()

    def _new_jobmanager(self) -> SimJobManager:
        token = FencingToken.generate()
        if self.elected is None:
            return SimJobManager(self, self._jobmanager_config, token)
        self.elected.token = token
        store = FencedJobStore(MemoryServices(self.elected).metadata(), self.elected.storage_dir, token)
        return SimJobManager(self, self._jobmanager_config, token, store)

    def elect(self, *, after: SimJobManager) -> None:
        """From this moment on writes of the leader before are refused, whether it knows or not."""
        if self.jobmanager is not after or self.world.is_over:
            return
        self._former.append(after)
        self.jobmanager = self._new_jobmanager()
        self.world.tell("election", "elects", self.jobmanager.name)
        for called in self.on_elected:
            called()

    def add_taskmanager(self, num_slots: int, config: Configuration) -> SimTaskManager:
        made = SimTaskManager(self, len(self.taskmanagers) + 1, num_slots, config)
        self.taskmanagers.append(made)
        return made

    def live_taskmanagers(self) -> list[SimTaskManager]:
        return [one for one in self.taskmanagers if not one.is_dead]

    def slot_started(self, slot: SimSlot) -> None:
        for other in self.live_slots:
            if other.init.slot_id == slot.init.slot_id and not other.taskmanager.is_dead:
                raise SimulationError(f"slot {slot.init.slot_id} has two processes: {other.name} and {slot.name}")
            if other.init.allocation_id == slot.init.allocation_id:
                raise SimulationError(f"allocation {slot.init.allocation_id} was given twice")
        self.live_slots.append(slot)

    def slot_ended(self, slot: SimSlot) -> None:
        if slot in self.live_slots:
            self.live_slots.remove(slot)

    def close(self) -> None:
        """The world is over: let every coroutine end."""
        for loop in [
            *(one.loop for one in self._former),
            self.jobmanager.loop,
            *(one.loop for one in self.taskmanagers),
        ]:
            loop.unwind()


def pick(rng: random.Random, things: list[Any]) -> Any | None:
    return rng.choice(things) if things else None
