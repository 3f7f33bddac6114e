"""The simulated JobManagers, one leading after the other. Their code is the engine's; what runs it is here.

Without high availability the next one knows nothing of what the last one knew. With it they share a fenced store
(``engine.ha.memory``): jobs go on under the next leader; the last one may be alive and not know that it is replaced.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

from engine.core.config import Configuration
from engine.core.errors import EngineError, StaleLeaderError
from engine.core.ids import FencingToken
from engine.ha.job_store import FencedJobStore
from engine.protocol.control import AllocateSlot
from engine.runtime.jobmanager.dispatcher import Dispatcher
from engine.runtime.jobmanager.job_master import JobMaster
from tests.sim.loops import SimLoop
from tests.sim.network import ControlLink

if TYPE_CHECKING:
    from tests.sim.processes import Cluster, SimTaskManager

__all__ = ["SimJobManager"]

#: Seconds until a JobManager that could not take over is replaced.
_TRIES_AGAIN_S = 1.0


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
        cluster, jobmanager = self._cluster, self._jobmanager
        if self._world.is_over or jobmanager.loop.is_dead:
            return
        if jobmanager.loop.is_stopped or self._world.now < cluster.worker_hangs_until:
            self._world.after(0.05, self._end)
            return
        cluster.files.owner = jobmanager
        self._world.parts["acting leader"] = jobmanager.number
        self._is_busy = False
        self._calls.popleft()()
        self._begin()

    def close(self) -> None:
        pass


@final
class SimJobManager:
    """``number``: of the leader, 0 first. Each leadership is a process of its own. ``store``: what leaders leave to one
    another; None without high availability."""

    def __init__(
        self,
        cluster: Cluster,
        config: Configuration,
        number: int,
        token: FencingToken,
        store: FencedJobStore | None = None,
    ) -> None:
        self.world = cluster.world
        self.number = number
        self.name = f"jm-{number}" if number else "jm"
        self.loop = SimLoop(self.world, self.name)
        self.token = token
        #: It has taken over, and everybody knows where it is.
        self.is_ready = False
        self._links: list[ControlLink] = []
        self.cluster = cluster
        self.dispatcher: Dispatcher
        self._config = config
        self._store = store
        self._serving: set[asyncio.Task[None]] = set()
        self.loop.create_task(self._start())

    async def _start(self) -> None:
        cluster = self.cluster
        self.dispatcher = Dispatcher(
            self._config,
            clock=cluster.clock,
            temp_dir=str(cluster.temp_dir),
            new_worker=lambda name: _SimWorker(cluster, self),
            job_store=self._store,
        )
        start = self.dispatcher._start

        def watched(master: JobMaster) -> None:
            cluster.on_master(self, master)
            start(master)

        self.dispatcher._start = watched  # type: ignore[method-assign]
        try:
            await self.dispatcher.start()
        except EngineError as error:
            if self._store is None:
                raise
            self.world.tell(self.name, "cannot lead", str(error)[:80])
            await self.dispatcher.suspend()
            self.world.after(_TRIES_AGAIN_S, lambda: cluster.start_jobmanager(after=self))
            return
        if self._store is not None:
            self.world.tell(self.name, "leads", f"{len(self.dispatcher._jobs)} jobs go on")
        self.is_ready = True
        cluster.on_leader(self)

    def die(self, *, silently: bool) -> None:
        """What it has sent still arrives, some of it late. ``silently``: with its host, so no connection ends."""
        self.loop.kill()
        self.is_ready = False
        self.cluster.files.process_ended(self)
        self.world.tell(self.name, "dies", "its host is gone" if silently else "kill -9")
        for link in self._links:
            link.jobmanager_died(silently=silently)

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
        link = ControlLink(self.world, self.loop, taskmanager.loop, self.token, self._note_allocation)
        self._links.append(link)
        self._serving.add(task := self.loop.create_task(self._serve(link)))
        task.add_done_callback(self._serving.discard)
        return link

    def _note_allocation(self, message: Any) -> None:
        if isinstance(message, AllocateSlot):
            self.cluster.leader_of_allocation[message.allocation_id] = self.number

    async def _serve(self, link: ControlLink) -> None:
        end = link.jobmanager_end
        try:
            await self.dispatcher.resource_manager.handle_connection(end)
        except StaleLeaderError:
            pass
        finally:
            await end.close()
