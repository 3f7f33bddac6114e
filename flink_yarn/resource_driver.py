"""The ResourceManager's hands on YARN: asks skein for TaskManager containers, notices lost ones, gives idle ones back.

One task compares what is wanted with what YARN has, again and again; skein's blocking calls run in threads. Not here:
how many are wanted (``slot_manager``), what runs in a container (``taskmanager_container``).
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, final

from engine.core.errors import EngineError
from engine.core.ids import ResourceID
from engine.core.options import YarnOptions
from engine.runtime.jobmanager.resource_manager import WorkerEvents
from flink_yarn.bad_nodes import BadNodes
from flink_yarn.cluster_spec import SERVICE
from flink_yarn.container_ends import ContainerEnd, end_of
from flink_yarn.yarn_client import LeavingNodes

__all__ = ["SkeinApplication", "YarnResourceDriver", "attempt_of"]

logger = logging.getLogger(__name__)

POLL_S: Final = 0.5
#: A released TaskManager ends by itself; YARN kills it when it has not after this.
RELEASE_GRACE_S: Final = 3.0
#: So many containers in a row that end before they register: no use in going on quickly.
FAILURES_MAX: Final = 3
BACKOFF_MAX_S: Final = 30.0
LOG_TAIL_BYTES: Final = 2000
#: In which ``yarn.maximum-failed-containers-per-interval`` are counted.
FAILURES_INTERVAL_S: Final = 600.0
#: How often YARN is asked for nodes that are about to be decommissioned, and their containers with them.
LEAVING_LOOK_S: Final = 5.0
#: Ended containers whose processes may still run on a node that YARN has lost.
GONE_MAX: Final = 10_000
#: With which NodeManagers begin each line of their diagnostics.
_TIMES: Final = re.compile(r"^\[\d{4}-\d\d-\d\d [\d:.]+\]", re.MULTILINE)
_ACTIVE: Final = ("WAITING", "REQUESTED", "RUNNING")


class SkeinApplication(Protocol):
    """The part of ``skein.ApplicationClient`` that is used here."""

    def get_containers(self, services: Any = None, states: Any = None) -> list[Any]: ...

    def add_container(self, service: str, env: dict[str, str] | None = None) -> Any: ...

    def kill_container(self, id: str) -> None: ...


def _state(container: Any) -> str:
    return str(container.state)


def _host(container: Any) -> str:
    """Return the host of a container's node; "" when it has none yet."""
    return str(container.yarn_node_http_address or "").rpartition(":")[0]


def attempt_of(container_id: str) -> int:
    """Return the application attempt that a container belongs to (container_e17_<cluster>_<application>_<attempt>_<n>);
    0 if it is no id of YARN's."""
    match = re.fullmatch(r"container_(?:e\d+_)?\d+_\d+_(\d+)_\d+", container_id)
    return int(match[1]) if match else 0


@final
class YarnResourceDriver:
    """A ResourceDriver. ``fixed``: so many TaskManagers are always there; 0 = they come and go with the jobs.
    ``worker_mb``: of the container of one.

    ``attempt``: of the application; containers of others are told to end. ``failures_max``: so many containers may fail
    within ``FAILURES_INTERVAL_S``, then ``give_up`` is called with the reason; -1 = any number. ``avoid`` tells YARN on
    which hosts no containers are wanted, each time that changes. ``node_health`` says what YARN thinks of a host, "" if
    nothing. ``leaving_nodes`` says which nodes are being decommissioned. ``recall_nodes`` and ``keep_nodes`` pass on
    which hosts are avoided, and until when (ms since the epoch), from one JobManager to the next one. All of them may
    block; they are called in a thread and may raise OSError or EngineError.
    """

    workers_min = 0

    def __init__(
        self,
        application: SkeinApplication,
        *,
        fixed: int,
        user: str,
        worker_mb: int,
        attempt: int = 0,
        failures_max: int = -1,
        give_up: Callable[[str], None] = lambda reason: None,
        avoid: Callable[[frozenset[str]], None] = lambda hosts: None,
        node_health: Callable[[str], str] = lambda host: "",
        leaving_nodes: Callable[[], LeavingNodes] = LeavingNodes,
        recall_nodes: Callable[[], Mapping[str, int]] = dict,
        keep_nodes: Callable[[Mapping[str, int]], None] = lambda until_ms: None,
    ) -> None:
        self.on_demand = fixed == 0
        self._attempt = attempt
        self._failures_max = failures_max
        self._give_up = give_up
        self._failed_at: deque[float] = deque()
        self._gone: dict[ResourceID, str] = {}  # containers that have ended → why; the oldest are forgotten
        self._app = application
        self._fixed = fixed
        self._user = user
        self._worker_mb = worker_mb
        self._level = 0
        self._level_known = False  # containers that came with the master are kept until somebody says what is needed
        self._events: WorkerEvents | None = None
        self._active: dict[str, Any] = {}  # skein id → container, as of the last look
        self._registered: set[ResourceID] = set()
        self._just_registered: set[ResourceID] = set()  # until the next look tells on which node
        self._released: set[ResourceID] = set()
        self._disconnected: set[ResourceID] = set()  # of the registered: perhaps dead, YARN does not know it yet
        self._reasons: dict[ResourceID, str] = {}
        self._failures = 0
        self._failed_hosts: set[str] = set()  # of these failures
        self._avoid = avoid
        self._avoided: frozenset[str] | None = None  # what YARN was told
        self._bad_nodes = BadNodes()
        self._node_health = node_health
        self._leaving_nodes = leaving_nodes
        self._recall_nodes = recall_nodes
        self._keep_nodes = keep_nodes
        self._leaving: set[ResourceID] = set()  # told to end, as their node is decommissioned
        self._staying: frozenset[ResourceID] = frozenset()  # would be told, too, if there were room elsewhere
        self._wake = asyncio.Event()
        self._looked = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []
        self._kills: set[asyncio.Task[None]] = set()

    # --- ResourceDriver ---------------------------------------------------------------------------------------------

    async def start(self, events: WorkerEvents) -> None:
        self._events = events
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._run()), loop.create_task(self._watch_leaving_nodes())]

    def start_workers(self, num_workers: int) -> None:
        if num_workers != self._level or not self._level_known:
            self._level = num_workers
            self._level_known = True
            self._wake.set()

    def refuses(self, resource_id: ResourceID) -> str:
        attempt = attempt_of(resource_id)
        if self._attempt and attempt and attempt != self._attempt:
            return f"it belongs to attempt {attempt} of the application, and this is attempt {self._attempt}"
        # A NodeManager that died leaves its containers' processes behind.
        return f"YARN has ended its container: {self._gone[resource_id]}" if resource_id in self._gone else ""

    def worker_registered(self, resource_id: ResourceID) -> None:
        self._registered.add(resource_id)
        self._disconnected.discard(resource_id)
        self._failures = 0
        self._failed_hosts.clear()
        self._just_registered.add(resource_id)
        self._wake.set()

    def stop_worker(self, resource_id: ResourceID) -> None:
        self._released.add(resource_id)
        task = asyncio.get_running_loop().create_task(self._kill_later(resource_id))
        self._kills.add(task)
        task.add_done_callback(self._kills.discard)

    def workers(self) -> Sequence[ResourceID]:
        return tuple(ResourceID(c.yarn_container_id or c.id) for c in self._active.values())

    async def diagnose(self, resource_id: ResourceID) -> str:
        # Another one is asked for at once. Should this one come back, the request is taken back.
        self._disconnected.add(resource_id)
        async with self._looked:
            self._wake.set()
            while resource_id not in self._reasons:
                await self._looked.wait()
        return self._reasons[resource_id]

    async def stop(self) -> None:
        for task in [*self._kills, *self._tasks]:
            task.cancel()

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        pause = POLL_S
        await self._recall_bad_nodes()
        while True:
            try:
                self._wake.clear()
                await self._look()
                await self._avoid_bad_nodes()
                await self._adjust()
                pause = POLL_S if self._failures < FAILURES_MAX else min(pause * 2, BACKOFF_MAX_S)
            except Exception as error:  # YARN or skein is busy or restarting: the next look tells
                logger.warning("cannot ask YARN for containers now: %s", error)
            try:
                await asyncio.wait_for(self._wake.wait(), pause)
                await asyncio.sleep(0.02)  # several wishes at once are one
            except TimeoutError:
                pass

    async def _look(self) -> None:
        """Learn what YARN has; tell what is gone."""
        found = await asyncio.to_thread(self._app.get_containers, [SERVICE], list(_ACTIVE))
        active = {container.id: container for container in found}
        gone = [skein_id for skein_id in self._active if skein_id not in active]
        self._active = active
        for container in found:
            if container.yarn_container_id in self._just_registered:
                self._just_registered.discard(container.yarn_container_id)
                self._bad_nodes.registered(_host(container))
        if gone:
            ended = await asyncio.to_thread(self._app.get_containers, [SERVICE], ["SUCCEEDED", "FAILED", "KILLED"])
            for container in ended:
                if container.id in gone:
                    await self._ended(container)
        async with self._looked:
            self._looked.notify_all()

    async def _ended(self, container: Any) -> None:
        assert self._events is not None
        resource_id = ResourceID(container.yarn_container_id or container.id)
        if resource_id in self._released or _state(container) == "KILLED":
            self._reasons[resource_id] = "it was released"
            self._forget(resource_id, "it was released")
            return
        if resource_id in self._leaving:
            self._reasons[resource_id] = reason = f"its node {_host(container)} is being decommissioned"
            self._forget(resource_id, reason)
            self._events.worker_lost(resource_id, reason)
            return
        message = _TIMES.sub("", container.exit_message or "").strip() or f"it ended as {_state(container)}"
        end = end_of(message)
        reason = await asyncio.to_thread(self._story, container, message, end)
        self._reasons[resource_id] = reason
        logger.warning("container=%s ended (%s): %s", resource_id, end.value, reason)
        if resource_id not in self._registered:
            self._failed_to_start(container, end, reason)
        self._forget(resource_id, message)
        if end.is_own_fault:
            self._count_failure(reason)
        self._events.worker_lost(resource_id, reason)

    def _story(self, container: Any, message: str, end: ContainerEnd) -> str:
        """Return YARN's words, and what else can be learned: in a thread."""
        tail = self._log_tail(container) if end is ContainerEnd.FAILED else ""
        health = ""
        if end in (ContainerEnd.NODE_LOST, ContainerEnd.DISKS_FAILED):
            try:
                health = self._node_health(_host(container))
            except (OSError, EngineError) as error:
                logger.debug("YARN was not asked about %s: %s", _host(container), error)
        sentence = message if message.endswith((".", "!")) else f"{message}."
        return f"YARN says: {f'{sentence} {health}' if health else message}" + (
            f" Its last words: {tail}" if tail else ""
        )

    def _failed_to_start(self, container: Any, end: ContainerEnd, reason: str) -> None:
        assert self._events is not None
        if not end.is_own_fault:
            return  # it says nothing of the next one
        host, now = _host(container), time.monotonic()
        self._failures += 1
        self._failed_hosts.add(host)
        if host and end.speaks_against_its_node and self._bad_nodes.failed(host, now):
            logger.warning(
                "node=%s is avoided: containers end there before they register. The last one: %s", host, reason
            )
        if self._failures >= FAILURES_MAX and not self._bad_nodes.may_be_the_only_fault(self._failed_hosts, now):
            self._events.workers_failed(
                f"{self._failures} containers in a row ended before they registered. The last one: {reason}"
            )

    async def _avoid_bad_nodes(self) -> None:
        """Tell YARN which nodes are avoided, if that has changed."""
        now = time.monotonic()
        is_missing = any(not c.yarn_container_id for c in self._active.values())
        for host in sorted(self._bad_nodes.missing(is_missing, now)):
            logger.warning("node=%s is asked again: YARN has no container elsewhere", host)
        avoided = self._bad_nodes.avoided(now)
        if avoided != self._avoided:
            try:
                await asyncio.to_thread(self._avoid, avoided)
            except OSError as error:  # containers are asked for nevertheless
                logger.warning("YARN was not told which nodes to avoid, trying again: %s", error)
                return
            was_told, self._avoided = self._avoided, avoided
            if was_told is not None:
                await self._keep_bad_nodes()

    async def _keep_bad_nodes(self) -> None:
        now_s = time.time()
        until_ms = {
            host: int((now_s + left) * 1000) for host, left in self._bad_nodes.seconds_left(time.monotonic()).items()
        }
        try:
            await asyncio.to_thread(self._keep_nodes, until_ms)
        except EngineError as error:
            logger.warning("another JobManager would not know which nodes to avoid: %s", error)

    async def _recall_bad_nodes(self) -> None:
        try:
            until_ms = await asyncio.to_thread(self._recall_nodes)
        except EngineError as error:
            logger.warning("it is not known which nodes were avoided before: %s", error)
            return
        now_s = time.time()
        self._bad_nodes.recall({host: until / 1000 - now_s for host, until in until_ms.items()}, time.monotonic())
        for host in sorted(self._bad_nodes.avoided(time.monotonic())):
            logger.info("node=%s is avoided, as by the JobManager before", host)

    # --- nodes that are decommissioned gracefully ---------------------------------------------------------------------

    async def _watch_leaving_nodes(self) -> None:
        while True:
            await asyncio.sleep(LEAVING_LOOK_S)
            try:
                self._leave(await asyncio.to_thread(self._leaving_nodes))
            except (OSError, EngineError) as error:  # it is asked again
                logger.debug("YARN was not asked for nodes that are being decommissioned: %s", error)
            except Exception:
                logger.exception("looking for nodes that are being decommissioned failed")

    def _leave(self, nodes: LeavingNodes) -> None:
        """Let TaskManagers end on nodes that are being decommissioned: YARN waits for containers, but not for ever.

        Only if others have room; else they had better work as long as they may.
        """
        assert self._events is not None
        containers = {
            container.yarn_container_id: container
            for container in self._active.values()
            if container.yarn_node_http_address in nodes.addresses
            and container.yarn_container_id in self._registered - self._leaving
        }
        if not containers:
            return
        hosts = ", ".join(sorted({_host(container) for container in containers.values()}))
        if sum(free // self._worker_mb for free in nodes.room_mb) < len(containers):
            if frozenset(containers) != self._staying:
                self._staying = frozenset(containers)
                logger.warning(
                    "node=%s is being decommissioned, and other nodes have no room for its %d TaskManagers of %d MB: "
                    "they stay until there is room, or YARN ends them",
                    hosts,
                    len(containers),
                    self._worker_mb,
                )
            return
        self._leaving.update(containers)
        self._events.workers_leave(tuple(containers), f"the node {hosts} is being decommissioned")

    def _count_failure(self, reason: str) -> None:
        now = time.monotonic()
        self._failed_at.append(now)
        while self._failed_at[0] < now - FAILURES_INTERVAL_S:
            self._failed_at.popleft()
        if 0 <= self._failures_max < len(self._failed_at):
            self._give_up(
                f"{len(self._failed_at)} TaskManager containers have failed within {FAILURES_INTERVAL_S:g} s "
                f"({YarnOptions.FAILED_CONTAINERS_MAX.key}: {self._failures_max}). The last one: {reason}"
            )

    def _forget(self, resource_id: ResourceID, reason: str) -> None:
        self._gone[resource_id] = reason
        if len(self._gone) > GONE_MAX:
            del self._gone[next(iter(self._gone))]
        self._registered.discard(resource_id)
        self._just_registered.discard(resource_id)
        self._disconnected.discard(resource_id)
        self._released.discard(resource_id)
        self._leaving.discard(resource_id)

    def _log_tail(self, container: Any) -> str:
        """Return the last line that a failed container printed; "" when its node does not tell."""
        address, container_id = container.yarn_node_http_address, container.yarn_container_id
        if not address or not container_id:
            return ""
        url = f"http://{address}/ws/v1/node/containers/{container_id}/logs/taskmanager.out?size=-{LOG_TAIL_BYTES}"
        try:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"{url}&user.name={self._user}", timeout=2) as answer:
                text = answer.read(4 * LOG_TAIL_BYTES).decode("utf-8", "replace")
        except (OSError, ValueError):
            return ""
        return _last_line(text)

    async def _adjust(self) -> None:
        """Ask for what is missing, take back requests that are not needed any more."""
        pending = [c for c in self._active.values() if (c.yarn_container_id or c.id) not in self._registered]
        alive = len(self._active) - len(pending) - len(self._disconnected & self._registered)
        wanted = max(0, self._fixed - alive) if self._fixed else self._level
        if len(pending) < wanted and self._failures >= FAILURES_MAX and pending:
            return  # one at a time until one of them registers
        for _ in range(len(pending), wanted):
            container = await asyncio.to_thread(self._app.add_container, SERVICE)
            self._active[container.id] = container
            logger.info("asked YARN for container %s", container.id)
            if self._failures >= FAILURES_MAX:
                break
        surplus = len(pending) - wanted if self._fixed or self._level_known else 0
        for container in [c for c in pending if _state(c) != "RUNNING"][: max(0, surplus)]:
            logger.info("container request %s is not needed any more", container.id)
            await asyncio.to_thread(self._app.kill_container, container.id)
            self._active.pop(container.id, None)

    async def _kill_later(self, resource_id: ResourceID) -> None:
        await asyncio.sleep(RELEASE_GRACE_S)
        for container in list(self._active.values()):
            if container.yarn_container_id == resource_id:
                try:
                    await asyncio.to_thread(self._app.kill_container, container.id)
                except Exception as error:  # it ended meanwhile
                    logger.debug("killing %s: %s", container.id, error)
        self._wake.set()


def _last_line(text: str) -> str:
    """Return the last line of a log; the NodeManager's frame around it left out."""
    body = text.partition("LogContents:")[2] or text
    body = body.partition("\nEnd of LogType")[0]
    lines = [line.strip() for line in body.splitlines() if line.strip() and not line.startswith("*****")]
    return lines[-1] if lines else ""
