"""The processes of a cluster: how each daemon is started, asked whether it is ready, and ended.

A process is known by its pid and its start time, so that a pid which the system has given to somebody else since
is never signalled. Reads /proc, thus Linux only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jars import ClusterError
from settings import Cluster, log_server_url, node_path, own_conf

GRACE_SECONDS = 10.0  # from SIGTERM to SIGKILL
POLL_SECONDS = 0.05
LOG_TAIL_LINES, LOG_CAUSE_LINES = 15, 10
#: What our own questions about readiness leave in the log of a daemon that is half up: never the cause.
OWN_NOISE = re.compile(r"JMXJsonServlet|javax\.management\.|NullPointerException: Cannot invoke|requests\.\w+: ")
COMPLAINT = re.compile(r" (ERROR|FATAL) |^\S*(Exception|Error): |^Caused by: |Exception: ")
MARK = "ENGINE_HADOOP_DIR"  # in the environment of every daemon, so that strays of this cluster are found again

CLASSES = {
    "nn": "org.apache.hadoop.hdfs.server.namenode.NameNode",
    "fc": "org.apache.hadoop.hdfs.tools.DFSZKFailoverController",
    "dn": "org.apache.hadoop.hdfs.server.datanode.DataNode",
    "rm": "org.apache.hadoop.yarn.server.resourcemanager.ResourceManager",
    "nm": "org.apache.hadoop.yarn.server.nodemanager.NodeManager",
    # Hadoop's other server for aggregated logs is MapReduce's JobHistoryServer; this one is among YARN's own jars.
    "ls": "org.apache.hadoop.yarn.server.applicationhistoryservice.ApplicationHistoryServer",
    "zk": "org.apache.zookeeper.server.quorum.QuorumPeerMain",
}

# Small and quick to start. No perf data: it would leave files in /tmp. ResourceManager and NodeManager (guice,
# cglib) need java.lang opened on Java 17; the others are what Hadoop's own launchers open.
JVM = [
    "-Xss512k",
    "-XX:MaxMetaspaceSize=160m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-Djava.net.preferIPv4Stack=true",
    *(
        f"--add-opens=java.base/{package}=ALL-UNNAMED"
        for package in (
            "java.lang",
            "java.io",
            "java.util",
            "java.net",
            "java.nio",
            "sun.nio.ch",
            "java.util.concurrent",
        )
    ),
]

OWN_MOUNTS = ["unshare", "--mount", "--propagation", "private"]

_no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))


# ---------------------------------------------------------------------------------------------- starting


def command(cluster: Cluster, name: str) -> list[str]:
    """Return the command line of one daemon."""
    folder, ports = cluster.data(name), cluster.ports(name)
    java = [str(cluster.java_home / "bin" / "java"), *JVM, f"-Djava.io.tmpdir={folder}/tmp"]
    if name.startswith("zk"):
        return [
            *java,
            "-Xmx128m",
            "-Dzookeeper.forceSync=no",  # quick; the data outlives a killed process, not a killed machine
            "-cp",
            f"{folder}:{cluster.jars}/zookeeper/*",
            CLASSES["zk"],
            f"{folder}/zoo.cfg",
        ]
    own: dict[str, object] = {}
    if name.startswith("dn"):
        own = {
            "dfs.datanode.data.dir": f"file://{folder}/blocks",
            "dfs.datanode.address": f"localhost:{ports['data']}",
            "dfs.datanode.http.address": f"localhost:{ports['http']}",
            "dfs.datanode.ipc.address": f"localhost:{ports['ipc']}",
            # It starts together with its NameNode: ask every 200 ms for 20 s before the first pause of 5 s.
            "ipc.client.connect.max.retries": 100,
        }
    elif name.startswith("nm"):
        host = cluster.node_host(name)
        own = {
            "yarn.nodemanager.local-dirs": f"{folder}/local",
            "yarn.nodemanager.log-dirs": f"{folder}/log",
            "yarn.nodemanager.recovery.dir": f"{folder}/recovery",
            "yarn.nodemanager.hostname": host,
            "yarn.nodemanager.bind-host": host,  # so that it is called so, and not as the address resolves to
            "yarn.nodemanager.address": f"{host}:{ports['rpc']}",
            "yarn.nodemanager.webapp.address": f"{host}:{ports['http']}",
            "yarn.nodemanager.localizer.address": f"{host}:{ports['localizer']}",
            "yarn.nodemanager.collector-service.address": f"{host}:{ports['collector']}",
            "yarn.resourcemanager.connect.max-wait.ms": 900_000,  # a node outlives a long absence of its master
        }
    elif name == "ls":
        own = {
            "yarn.timeline-service.bind-host": "localhost",
            "yarn.timeline-service.address": f"localhost:{ports['rpc']}",
            "yarn.timeline-service.webapp.address": f"localhost:{ports['http']}",
            "yarn.timeline-service.store-class": "org.apache.hadoop.yarn.server.timeline.MemoryTimelineStore",
        }
    elif cluster.shape.ha:
        own = _own_of_pair(cluster, name)
    first = own_conf(cluster, name) if cluster.shape.rm_ha and name.startswith("rm") else None
    return [*_hadoop_java(cluster, java, first), CLASSES[name[:2]], *_overrides(own)]


def _overrides(own: dict[str, object]) -> list[str]:
    return [word for key, value in own.items() for word in ("-D", f"{key}={value}")]


def _own_of_pair(cluster: Cluster, name: str) -> dict[str, object]:
    """Return what one NameNode of a pair, or its controller, must be told: on one host addresses do not tell them."""
    if name[:2] not in ("nn", "fc"):
        return {}
    namenode = f"nn{name[2:]}"
    return {
        "dfs.ha.namenode.id": namenode,
        "dfs.namenode.name.dir": f"file://{cluster.data(namenode)}/name",
    }


def _hadoop_java(cluster: Cluster, java: list[str], first: Path | None = None) -> list[str]:
    own = f"{first}:" if first else ""
    return [
        *java,
        "-Xmx256m",
        "-Dhadoop.root.logger=INFO,console",
        f"-Dhadoop.log.dir={cluster.dir}/logs",
        f"-Dhadoop.home.dir={cluster.home}",
        "-cp",
        f"{own}{cluster.conf}:{cluster.jars}/web:{cluster.jars}/hadoop/*",
    ]


def environment(cluster: Cluster) -> dict[str, str]:
    """Return the environment of daemons: chosen by name, so that nothing of ours reaches a container by accident."""
    kept = {key: os.environ[key] for key in ("HOME", "LANG", "LC_ALL", "TZ", "USER", "LOGNAME") if key in os.environ}
    return {
        **kept,
        "PATH": node_path(cluster),
        "JAVA_HOME": str(cluster.java_home),
        "HADOOP_HOME": str(cluster.home),
        "HADOOP_CONF_DIR": str(cluster.conf),
        MARK: str(cluster.dir),
    }


def start(cluster: Cluster, name: str, disk_mb: int = 0) -> Process:
    """Start one daemon and return at once; its port and log are those of its earlier starts.

    ``disk_mb``: a NodeManager's local dir is a disk of this size (in memory), if we may mount. Only the daemon and its
    containers see it (others through /proc/PID/root), and it goes with the last of them.
    """
    cluster.data(name).mkdir(parents=True, exist_ok=True)
    words = command(cluster, name)
    if disk_mb and may_mount():
        local = cluster.data(name) / "local"
        local.mkdir(exist_ok=True)
        mount = f'mount -t tmpfs -o size={disk_mb}m,mode=755 tmpfs "$0" && exec "$@"'
        words = [*OWN_MOUNTS, "sh", "-c", mount, str(local), *words]
    return _spawn(cluster, name, name, words)


def may_mount() -> bool:
    """Return whether this user may give a process mounts of its own."""
    try:
        done = subprocess.run([*OWN_MOUNTS, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


def start_format(cluster: Cluster) -> Process | None:
    """Start formatting the (first) NameNode's folder; None when it has been formatted before."""
    name = cluster.shape.namenodes()[0]
    folder = cluster.data(name)
    if (folder / "name" / "current").exists():
        return None
    own = _overrides(_own_of_pair(cluster, name)) if cluster.shape.ha else []
    return _spawn(cluster, "format", name, _tool(cluster, name, *own, "-format", "-force", "-nonInteractive"))


def copy_image(cluster: Cluster) -> None:
    """Give the second NameNode of a pair what the first was formatted with, as -bootstrapStandby would."""
    first, second = (cluster.data(name) / "name" for name in cluster.shape.namenodes())
    if not (second / "current").exists():
        shutil.copytree(first / "current", second / "current")


def start_format_zookeeper(cluster: Cluster) -> Process:
    """Start making the place in ZooKeeper where the controllers agree; it needs ZooKeeper to be ready."""
    name = cluster.shape.controllers()[0]
    own = _overrides(_own_of_pair(cluster, name))
    return _spawn(cluster, "format", name, _tool(cluster, name, *own, "-formatZK", "-force", "-nonInteractive"))


def _tool(cluster: Cluster, name: str, *words: str) -> list[str]:
    java = [str(cluster.java_home / "bin" / "java"), *JVM, f"-Djava.io.tmpdir={cluster.data(name)}/tmp"]
    return [*_hadoop_java(cluster, java), CLASSES[name[:2]], *words]


def _spawn(cluster: Cluster, name: str, owner: str, words: list[str]) -> Process:
    log = cluster.log(name)
    log_from = log.stat().st_size if log.exists() else 0
    with open(log, "ab") as out:
        popen = subprocess.Popen(
            words,
            cwd=cluster.data(owner),
            env=environment(cluster),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Process(name, popen, log, log_from)


class Process:
    """A daemon that this very program has started."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], log: Path, log_from: int) -> None:
        self.name = name
        self.popen = popen
        self.since_ms = time.time() * 1000
        self._log = log
        self._log_from = log_from  # earlier lives have written into the same file

    def log_tail(self) -> str:
        """Return what the log of this life says of its trouble."""
        return log_tail(self._log, self._log_from)

    @property
    def identity(self) -> tuple[int, int]:
        return self.popen.pid, start_ticks(self.popen.pid) or 0

    def death(self) -> str | None:
        """Return the story of its end, or None while it runs."""
        code = self.popen.poll()
        if code is None:
            return None
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"{self.name} {how} instead of getting ready. {self.log_tail()}"


def log_tail(log: Path, since: int = 0) -> str:
    """Return what a log complains of after byte ``since``, and its last lines, indented, under its name."""
    try:
        with open(log, "rb") as source:
            source.seek(since)
            lines = source.read().decode(errors="replace").splitlines()
    except OSError as error:
        return f"Its log cannot be read: {error}"
    lines = [line for line in lines if not OWN_NOISE.search(line)]
    tail = lines[-LOG_TAIL_LINES:]
    # Hadoop says the cause early and then a long farewell, so the end alone often tells nothing.
    causes = [line for line in lines[:-LOG_TAIL_LINES] if COMPLAINT.search(line)][:LOG_CAUSE_LINES]
    shown = [*causes, "...", *tail] if causes else tail
    return "\n".join([f"From {log}:", *(f"  {line[:400]}" for line in shown)])


# ---------------------------------------------------------------------------------------------- readiness


def is_ready(cluster: Cluster, name: str, since_ms: float = 0.0) -> bool:
    """Return whether the daemon serves: it answers itself, and its master counts it as alive.

    ``since_ms`` is when it was started: what a master still believes of an earlier life does not count.
    """
    probe: Callable[[Cluster, str, float], bool] = {
        "nn": _namenode_ready,
        "fc": _controller_ready,
        "dn": _datanode_ready,
        "rm": _resourcemanager_ready,
        "nm": _nodemanager_ready,
        "ls": _log_server_ready,
        "zk": _zookeeper_ready,
    }[name[:2]]
    try:
        return probe(cluster, name, since_ms)
    except (OSError, ValueError, LookupError, TypeError):
        return False  # Refused, half an answer, no such bean yet: all of them mean "not yet".


def _get(url: str) -> Any:
    with _no_proxy.open(url, timeout=2) as answer:
        return json.load(answer)


def _bean(url: str, which: str) -> dict[str, Any]:
    bean: dict[str, Any] = _get(f"{url}/jmx?qry=Hadoop:service={which}")["beans"][0]
    return bean


def _web(cluster: Cluster, name: str) -> str:
    return f"http://localhost:{cluster.ports(name)['http']}"


def _namenode_ready(cluster: Cluster, name: str, since_ms: float) -> bool:
    return bool(_bean(_web(cluster, name), "NameNode,name=NameNodeInfo")["Safemode"] == "")


def active_namenode(cluster: Cluster) -> str | None:
    """Return the name of the NameNode that is active, None while there is none."""
    for name in cluster.shape.namenodes():
        try:
            if _bean(_web(cluster, name), "NameNode,name=NameNodeStatus")["State"] == "active":
                return name
        except (OSError, ValueError, LookupError):
            continue
    return None


def _controller_ready(cluster: Cluster, name: str, since_ms: float) -> bool:
    with socket.create_connection(("localhost", cluster.ports(name)["rpc"]), timeout=2):
        return active_namenode(cluster) is not None


def _datanode_ready(cluster: Cluster, name: str, since_ms: float) -> bool:
    ports = cluster.ports(name)
    own = _bean(f"http://localhost:{ports['http']}", "DataNode,name=DataNodeInfo")
    actors = json.loads(own["BPServiceActorInfo"])
    if not any(actor["ActorState"] == "RUNNING" and actor["BlockPoolID"] for actor in actors):
        return False
    active = active_namenode(cluster)
    if active is None:
        return False
    live = json.loads(_bean(_web(cluster, active), "NameNode,name=NameNodeInfo")["LiveNodes"])
    return any(node["xferaddr"].endswith(f":{ports['data']}") for node in live.values())


def _resourcemanager_ready(cluster: Cluster, name: str, since_ms: float) -> bool:
    # One that stands by answers this question itself, and passes others on to the active one.
    info = _get(f"{_web(cluster, name)}/ws/v1/cluster/info")["clusterInfo"]
    return bool(info["state"] == "STARTED") and active_resourcemanager(cluster) is not None


def active_resourcemanager(cluster: Cluster) -> str | None:
    """Return the name of the ResourceManager that is active, None while there is none."""
    for name in cluster.shape.resourcemanagers():
        try:
            if _get(f"{_web(cluster, name)}/ws/v1/cluster/info")["clusterInfo"]["haState"] == "ACTIVE":
                return name
        except (OSError, ValueError, LookupError):
            continue
    return None


def _nodemanager_ready(cluster: Cluster, name: str, since_ms: float) -> bool:
    ports = cluster.ports(name)
    host, active = cluster.node_host(name), active_resourcemanager(cluster)
    if active is None or not _get(f"http://{host}:{ports['http']}/ws/v1/node/info")["nodeInfo"]["nodeHealthy"]:
        return False
    nodes = (_get(f"{_web(cluster, active)}/ws/v1/cluster/nodes")["nodes"] or {}).get("node", [])
    return any(
        node["id"] == f"{host}:{ports['rpc']}" and node["state"] == "RUNNING" and node["lastHealthUpdate"] >= since_ms
        for node in nodes
    )


def _log_server_ready(cluster: Cluster, name: str, since_ms: float) -> bool:
    with _no_proxy.open(f"{log_server_url(cluster)}/applicationhistory/about", timeout=2) as answer:
        return bool(answer.status == 200)


def _zookeeper_ready(cluster: Cluster, name: str, since_ms: float) -> bool:
    with socket.create_connection(("127.0.0.1", cluster.ports(name)["client"]), timeout=2) as wire:
        wire.settimeout(2)
        wire.sendall(b"srvr")
        answer = b""
        while chunk := wire.recv(4096):
            answer += chunk
    return b"Mode: " in answer  # standalone, leader or follower; a peer without a quorum says it serves nobody


def wait_ready(cluster: Cluster, waiting: list[Process], seconds: float, on_ready: Callable[[str], None]) -> None:
    """Return when all are ready; one that dies, or takes longer than ``seconds``, is an error with its log."""
    deadline = time.monotonic() + seconds
    waiting = list(waiting)
    while waiting:
        for process in list(waiting):
            if story := process.death():
                raise ClusterError(story)
            if is_ready(cluster, process.name, process.since_ms):
                waiting.remove(process)
                on_ready(process.name)
        if waiting and time.monotonic() > deadline:
            slow = waiting[0]
            raise ClusterError(
                f"{', '.join(p.name for p in waiting)} not ready after {seconds:.0f} s. {slow.log_tail()}"
            )
        if waiting:
            time.sleep(POLL_SECONDS)


# ---------------------------------------------------------------------------------------------- ending


def start_ticks(pid: int) -> int | None:
    """Return when the process began, in clock ticks since boot; None when there is none, or only its zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def is_alive(identity: tuple[int, int] | None) -> bool:
    """Return whether this very process still runs."""
    return identity is not None and start_ticks(identity[0]) == identity[1]


def end(processes: Iterable[tuple[int, int]], grace: float = GRACE_SECONDS) -> None:
    """End the processes and return when none is left: SIGTERM, and SIGKILL for those that outlive the grace."""
    remaining = [identity for identity in processes if is_alive(identity)]
    for how, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, GRACE_SECONDS)):
        if how is signal.SIGTERM and grace <= 0:
            continue
        for identity in remaining:
            _signal(identity, how)
        deadline = time.monotonic() + seconds
        while (remaining := [i for i in remaining if is_alive(i)]) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
    if remaining:
        raise ClusterError(f"processes {[pid for pid, _ in remaining]} do not end, not even by SIGKILL")


def _signal(identity: tuple[int, int], how: signal.Signals) -> None:
    if is_alive(identity):
        try:
            os.kill(identity[0], how)
        except ProcessLookupError:
            pass


def strays(cluster: Cluster) -> list[tuple[int, int]]:
    """Return the processes of this cluster that no daemon answers for: containers of a killed NodeManager, mostly.

    Known by what they stand in, never by name: a working directory among the containers' folders of this cluster,
    or the folder that YARN told them as theirs (some change directory).
    """
    roots = [str(cluster.data(name) / "local") + "/" for name in cluster.shape.daemons() if name.startswith("nm")]
    marks = [f"{MARK}={cluster.dir}".encode(), *(f"LOCAL_DIRS={root}".encode() for root in roots)]
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            where = os.readlink(entry / "cwd") + "/"
            told = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # ended meanwhile, or another user's
        ticks = start_ticks(int(entry.name))
        if ticks is None:
            continue
        if where.startswith(tuple(roots)) or any(
            row == mark or (mark.startswith(b"LOCAL_DIRS") and row.startswith(mark)) for row in told for mark in marks
        ):
            found.append((int(entry.name), ticks))
    return found
