"""The simulated TaskManagers, and all that share a cluster. Their code is the engine's; what runs it is here. Slots:
``slots``, JobManagers: ``leaders``."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, final

from engine.core.clock import Clock
from engine.core.config import Configuration
from engine.core.errors import ExternalError
from engine.core.ids import FencingToken, ResourceID
from engine.ha.job_store import FencedJobStore
from engine.ha.memory import MemoryCluster, MemoryServices
from engine.protocol.control import InitializeSlot, SlotReady
from engine.runtime.jobmanager.job_master import JobMaster
from engine.runtime.taskmanager.task_executor import TaskExecutor, TaskExecutorSettings
from tests.sim.leaders import SimJobManager
from tests.sim.loops import SimLoop
from tests.sim.network import ControlLink, DataNetwork
from tests.sim.slots import SIGKILL, SimSlot, SlotEnd
from tests.sim.storage import SimFileSystem
from tests.sim.world import SimClock, SimulationError, World

__all__ = ["Cluster", "SimTaskManager", "pick"]

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
        jobmanager = self.cluster.jobmanager
        if not jobmanager.is_ready:
            raise ExternalError("No JobManager is there.")
        self.jobmanager, self.link = jobmanager, jobmanager.accept(self)
        return self.link.taskmanager_end

    async def _leader_replaced(self) -> None:
        while (leader := self.jobmanager) is None:
            await asyncio.sleep(0.01)
        while self.cluster.jobmanager is leader or not self.cluster.jobmanager.is_ready:
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
        #: which leader has asked for a slot, by its allocation
        self.leader_of_allocation: dict[str, int] = {}
        #: called with each JobMaster before it starts
        self.on_master: Callable[[SimJobManager, JobMaster], None] = lambda jobmanager, master: None
        #: called whenever a JobManager is ready
        self.on_leader: Callable[[SimJobManager], None] = lambda jobmanager: None
        self._jobmanager_config = jobmanager_config
        #: the election and what leaders write down; None without high availability
        self.elected = MemoryCluster("sim://ha") if failover else None
        self.jobmanagers: list[SimJobManager] = []
        self.start_jobmanager()

    @property
    def jobmanager(self) -> SimJobManager:
        """The newest; it may be dead. Older ones may live, and believe that they lead."""
        return self.jobmanagers[-1]

    def start_jobmanager(self, *, after: SimJobManager | None = None) -> None:
        """Another one leads, unless somebody has come ``after`` that one already. From this moment on writes of the
        leader before are refused, whether it knows or not."""
        if self.world.is_over or (after is not None and after is not self.jobmanager):
            return
        token, store = FencingToken.generate(), None
        if self.elected is not None:
            self.elected.token = token
            store = FencedJobStore(MemoryServices(self.elected).metadata(), self.elected.storage_dir, token)
        number = len(self.jobmanagers)
        self.jobmanagers.append(SimJobManager(self, self._jobmanager_config, number, token, store))
        if after is not None:
            self.world.tell("election", "elects", self.jobmanager.name)

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
        for loop in [*(one.loop for one in self.jobmanagers), *(one.loop for one in self.taskmanagers)]:
            loop.unwind()


def pick(rng: random.Random, things: list[Any]) -> Any | None:
    return rng.choice(things) if things else None
