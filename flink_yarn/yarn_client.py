"""Asks YARN's ResourceManager over its REST: what the cluster has, how an application is doing. Starts no JVM.

Submitting and killing go through ``skein_driver``. Not here: what an application of ours needs (``cluster_spec``).
"""

from __future__ import annotations

import http.client
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NoReturn, final

from engine.core.errors import ConfigError, ExternalError
from flink_yarn.hadoop_conf import HadoopConf

__all__ = ["ApplicationReport", "LeavingNodes", "Node", "Queue", "YarnClient", "leaving_nodes", "node_health"]

CONNECT_TIMEOUT_S: Final = 5.0
#: A ResourceManager that is away for so long may be restarting, or another one takes over; nobody gives up on it.
RESTART_S: Final = 120.0
#: So long a question waits while ResourceManagers answer of which none is active: one takes over just now.
FAILOVER_S: Final = 30.0
POLL_S: Final = 0.3
ENDED_STATES: Final = ("FINISHED", "FAILED", "KILLED")


@dataclass(frozen=True)
class Node:
    node_id: str
    state: str
    memory_mb: int
    vcores: int
    used_memory_mb: int
    used_vcores: int
    containers: int
    health: str = ""  #: what is wrong with it, in YARN's words
    address: str = ""  #: of its page, host:port


@dataclass(frozen=True)
class Queue:
    name: str
    path: str
    is_leaf: bool
    state: str
    capacity: float
    used: float


@dataclass(frozen=True)
class ApplicationReport:
    application_id: str
    name: str
    state: str  #: NEW, ACCEPTED, RUNNING, FINISHED, FAILED, KILLED…
    final_status: str  #: UNDEFINED, SUCCEEDED, FAILED, KILLED
    diagnostics: str
    tracking_url: str
    user: str
    type: str
    queue: str

    @property
    def ended(self) -> bool:
        return self.state in ENDED_STATES

    @property
    def logs(self) -> str:
        """A line on how to read what its containers have logged."""
        return f"Its logs: yarn logs -applicationId {self.application_id}"


class _NoneActiveError(Exception):
    """ResourceManagers answer, but they only stand by."""


@final
class YarnClient:
    """Asks the active ResourceManager, whichever that is: one that stands by points to it.

    Raises ExternalError with one clear line when no ResourceManager answers.
    """

    def __init__(self, conf: HadoopConf) -> None:
        if conf.conf_dir is None:
            raise ConfigError(
                "Neither HADOOP_CONF_DIR nor YARN_CONF_DIR is set; set one to the folder with the cluster's "
                "yarn-site.xml and core-site.xml."
            )
        self._conf = conf
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    # --- addresses --------------------------------------------------------------------------------------------------

    def web_urls(self) -> list[str]:
        """Return the web addresses of the ResourceManagers (several with high availability)."""
        secure = self._conf.get("yarn.http.policy", "HTTP_ONLY") == "HTTPS_ONLY"
        key, port = ("webapp.https.address", 8090) if secure else ("webapp.address", 8088)
        return [f"{'https' if secure else 'http'}://{address}" for address in self._addresses(key, port)]

    def _addresses(self, key: str, port: int) -> list[str]:
        suffixes = [f".{rm_id}" for rm_id in self._ids()] or [""]
        found = []
        for suffix in suffixes:
            host = self._conf.get(f"yarn.resourcemanager.hostname{suffix}", "0.0.0.0")
            address = self._conf.get(f"yarn.resourcemanager.{key}{suffix}") or f"{host}:{port}"
            found.append(address.replace("0.0.0.0:", "localhost:"))
        return found

    def _ids(self) -> list[str]:
        if self._conf.get("yarn.resourcemanager.ha.enabled", "true").lower() == "false":
            return []  # so that a configuration can be switched to one ResourceManager and back
        return [part.strip() for part in self._conf.get("yarn.resourcemanager.ha.rm-ids").split(",") if part.strip()]

    def check_reachable(self) -> None:
        """Hadoop's own client would try for many minutes; ask the ports first. Those that stand by have none open."""
        self._through_failover(self._connect)

    def _connect(self) -> None:
        problems = []
        for address in self._addresses("address", 8032):
            host, _, port = address.rpartition(":")
            try:
                with socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S):
                    return
            except (OSError, ValueError) as error:
                problems.append(f"{address}: {getattr(error, 'strerror', None) or error}")
        self._raise("; ".join(problems), len(self._ids()) > 1)

    def _through_failover(self, ask: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + FAILOVER_S
        while True:
            try:
                return ask()
            except _NoneActiveError as error:
                if time.monotonic() > deadline:
                    raise ExternalError(
                        f"No ResourceManager has become active within {FAILOVER_S:g} s ({error}). "
                        "`yarn rmadmin -getAllServiceState` shows their states; their logs, and ZooKeeper's, say why."
                    ) from None
            time.sleep(POLL_S)

    def _unreachable(self, problem: str) -> ExternalError:
        return ExternalError(
            f"The ResourceManager does not answer ({problem}). Is YARN up, and is {self._conf.conf_dir} "
            "(HADOOP_CONF_DIR) its configuration?"
        )

    # --- questions --------------------------------------------------------------------------------------------------

    def _get(self, path: str) -> Any:
        return self._through_failover(lambda: self._ask(path))

    def _ask(self, path: str) -> Any:
        problems, is_failing_over = [], len(self._ids()) > 1
        for base in self.web_urls():
            request = urllib.request.Request(f"{base}/ws/v1/cluster{path}", headers={"Accept": "application/json"})
            try:
                with self._opener.open(request, timeout=CONNECT_TIMEOUT_S) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                with error:
                    if error.code == 404 and self._state(base) == "ACTIVE":
                        raise KeyError(path) from None
                    problems.append(f"{base}: HTTP {error.code}")
                    # One that stands by, and knows of no active one, sends us round in circles.
                    is_failing_over = is_failing_over and error.code in (307, 404, 503)
            except (OSError, ValueError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", None) or error
                problems.append(f"{base}: {getattr(reason, 'strerror', None) or reason}")
        self._raise("; ".join(problems), is_failing_over)

    def _raise(self, problem: str, may_be_failing_over: bool) -> NoReturn:
        if may_be_failing_over and any(self._state(base) for base in self.web_urls()):
            raise _NoneActiveError(problem)
        raise self._unreachable(problem)

    def _state(self, base: str) -> str:
        """Return a ResourceManager's own word: ACTIVE, it knows all applications (one that has just started answers
        before it does), STANDBY, INITIALIZING; "" when it says nothing."""
        try:
            with self._opener.open(f"{base}/ws/v1/cluster/info", timeout=CONNECT_TIMEOUT_S) as answer:
                return str(json.load(answer)["clusterInfo"]["haState"])
        except (OSError, ValueError, KeyError, http.client.HTTPException):
            return ""

    def nodes(self, state: str = "") -> list[Node]:
        """Return all nodes, or those in a state of YARN's."""
        found = self._get(f"/nodes?states={state}" if state else "/nodes")
        rows = ((found.get("nodes") or {}).get("node")) or []
        return [
            Node(
                row["id"],
                row["state"],
                int(row["usedMemoryMB"]) + int(row["availMemoryMB"]),
                int(row["usedVirtualCores"]) + int(row["availableVirtualCores"]),
                int(row["usedMemoryMB"]),
                int(row["usedVirtualCores"]),
                int(row["numContainers"]),
                (row.get("healthReport") or "").strip(),
                row.get("nodeHTTPAddress") or "",
            )
            for row in sorted(rows, key=lambda row: row["id"])
        ]

    def queues(self) -> list[Queue]:
        """Return all queues below root; [] when the scheduler does not tell (it is neither capacity nor fair)."""
        info = (self._get("/scheduler").get("scheduler") or {}).get("schedulerInfo") or {}
        return list(_queues(info.get("rootQueue") or info))

    def largest_container(self) -> tuple[int, int]:
        """Return (MB, vcores) that a container can have: the largest node within the scheduler's limit; 0: unknown."""
        running = [node for node in self.nodes() if node.state == "RUNNING"]
        memory = max((node.memory_mb for node in running), default=0)
        vcores = max((node.vcores for node in running), default=0)
        limit_mb = int(self._conf.get("yarn.scheduler.maximum-allocation-mb", "0") or 0)
        limit_vcores = int(self._conf.get("yarn.scheduler.maximum-allocation-vcores", "0") or 0)
        return min(memory, limit_mb or memory), min(vcores, limit_vcores or vcores)

    def application(self, application_id: str) -> ApplicationReport:
        """Raises ExternalError when YARN knows no such application."""
        try:
            row = self._get(f"/apps/{application_id}")["app"]
        except KeyError:
            raise ExternalError(
                f"YARN knows no application {application_id}; `yarn application -list` shows those that run."
            ) from None
        return ApplicationReport(
            row["id"],
            row.get("name", ""),
            row["state"],
            row["finalStatus"],
            (row.get("diagnostics") or "").strip(),
            row.get("trackingUrl") or "",
            row.get("user", ""),
            row.get("applicationType", ""),
            row.get("queue", ""),
        )

    def has_ended(self, application_id: str) -> bool:
        """Whether it has ended; one that YARN does not remember has, too. Raises ExternalError."""
        try:
            return str(self._get(f"/apps/{application_id}")["app"]["state"]) in ENDED_STATES
        except KeyError:
            return True

    def wait_until_ended(self, application_id: str, timeout_s: float) -> ApplicationReport:
        """Return the report once the application has ended, the last one if it has not in time.

        Raises: ExternalError when YARN does not answer for longer than a ResourceManager takes to restart.
        """
        deadline, answered = time.monotonic() + timeout_s, time.monotonic()
        while True:
            try:
                report = self.application(application_id)
                answered = time.monotonic()
            except ExternalError:
                if time.monotonic() > answered + RESTART_S:
                    raise
            else:
                if report.ended or time.monotonic() > deadline:
                    return report
            time.sleep(0.2)


@dataclass(frozen=True)
class LeavingNodes:
    """What is to be known of nodes that are decommissioned as soon as their containers have ended, or time is up."""

    addresses: frozenset[str] = frozenset()  #: of their pages, host:port; as in skein's containers
    room_mb: tuple[int, ...] = ()  #: free memory of each node that stays; not asked for when none leaves


def leaving_nodes() -> LeavingNodes:
    """Ask YARN for them. Raises ExternalError."""
    conf = HadoopConf.load()
    if conf.conf_dir is None:
        return LeavingNodes()
    client = YarnClient(conf)
    leaving = client.nodes("DECOMMISSIONING")
    if not leaving:
        return LeavingNodes()
    staying = client.nodes("RUNNING")
    return LeavingNodes(
        frozenset(node.address for node in leaving), tuple(node.memory_mb - node.used_memory_mb for node in staying)
    )


def node_health(host: str) -> str:
    """Return a sentence on the nodes of a host that YARN does not count as running; "" when there are none, or nobody
    has told where the ResourceManager is. Raises ExternalError."""
    conf = HadoopConf.load()
    if conf.conf_dir is None:
        return ""
    bad = [
        node for node in YarnClient(conf).nodes() if node.node_id.rpartition(":")[0] == host and node.state != "RUNNING"
    ]
    return " ".join(
        f"Node {node.node_id} is {node.state}{': ' if node.health else ''}{node.health.rstrip(' ;.')}." for node in bad
    )


def _queues(node: dict[str, Any]) -> Iterator[Queue]:
    children = (node.get("queues") or {}).get("queue") or (node.get("childQueues") or {}).get("queue") or []
    for child in [children] if isinstance(children, dict) else children:
        path = child.get("queuePath") or child.get("queueName", "")
        below = list(_queues(child))
        yield Queue(
            path.rsplit(".", 1)[-1],
            path,
            not below,
            child.get("state") or "RUNNING",
            float(child.get("absoluteCapacity", 0) or 0),
            float(child.get("absoluteUsedCapacity", 0) or 0),
        )
        yield from below
