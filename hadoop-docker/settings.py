"""What one cluster is: its shape, ports and folders, and the configuration files that say so to Hadoop.

Pure apart from writing files: no process is started here, and no port is probed but for choosing them.
"""

from __future__ import annotations

import getpass
import os
import random
import shlex
import shutil
import socket
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from jars import HERE, ClusterError

# Below Linux's range for outgoing connections (32768 and up), so that nothing can sit on the port of a daemon
# that has just been killed and is about to be started again.
PORTS_FROM, PORTS_TO, BLOCK = 20_000, 32_700, 100
GUARD = BLOCK - 1  # The last port of a block is held while its cluster starts: two starts never share a block.
MAX_NODES = 9  # of each kind; what the offsets below leave room for

NODE_MEMORY_MB, NODE_VCORES = 8192, 8
NAMESERVICE = "hacluster"  # what paths call a pair of NameNodes

# What containers may inherit from the NodeManager, nothing more: neither HOME (user site-packages) nor anything
# that a virtual environment sets.
ENV_WHITELIST = "JAVA_HOME,HADOOP_CONF_DIR,HADOOP_HOME,LANG,TZ"


@dataclass(frozen=True)
class Shape:
    """What the cluster was asked to be."""

    datanodes: int = 2
    nodemanagers: int = 2
    zookeepers: int = 0
    yarn: bool = True
    hdfs: bool = True
    ha: bool = False  #: two NameNodes and their fail-over controllers instead of one NameNode; needs ZooKeeper
    block_size: int = 64 * 1024 * 1024
    replication: int = 1
    rm_ha: bool = False  #: two ResourceManagers, one active, instead of one; needs ZooKeeper
    apart: bool = False  #: each NodeManager under an address of its own: YARN tells hosts apart, not ports
    preemption: bool = False  #: a queue that lacks its share gets it from one that has more

    def daemons(self) -> list[str]:
        """Return the names of all daemons, in the order in which they are started."""
        names = [f"zk{i + 1}" for i in range(self.zookeepers)]
        if self.yarn:
            names += [*self.resourcemanagers(), *(f"nm{i + 1}" for i in range(self.nodemanagers))]
        if not self.hdfs:
            return names
        return [*names, *self.namenodes(), *self.controllers(), *(f"dn{i + 1}" for i in range(self.datanodes))]

    def on_request(self) -> list[str]:
        """Return the names of daemons that run only when they are started by name: what they do is seldom needed."""
        return ["ls"] if self.yarn and self.hdfs else []

    def namenodes(self) -> list[str]:
        return ["nn1", "nn2"] if self.ha else ["nn"]

    def resourcemanagers(self) -> list[str]:
        return ["rm1", "rm2"] if self.rm_ha else ["rm"]

    def controllers(self) -> list[str]:
        """Return the daemons that decide by ZooKeeper which NameNode is active, one beside each."""
        return ["fc1", "fc2"] if self.ha else []


@dataclass
class Cluster:
    """One cluster: everything that ``cluster.json`` holds."""

    dir: Path
    shape: Shape
    port_base: int
    jars: Path
    java_home: Path
    user: str = field(default_factory=getpass.getuser)
    processes: dict[str, tuple[int, int]] = field(default_factory=dict)  # name → pid, start time in clock ticks

    @property
    def conf(self) -> Path:
        return self.dir / "conf"

    @property
    def home(self) -> Path:
        return self.dir / "hadoop"

    def data(self, name: str) -> Path:
        """Return the folder of one daemon: its data and its working directory."""
        return self.dir / "data" / name

    def log(self, name: str) -> Path:
        return self.dir / "logs" / f"{name}.log"

    def ports(self, name: str) -> dict[str, int]:
        """Return the ports of one daemon by purpose; they follow from its name alone, so a restart keeps them."""
        kind, number = name[:2], int(name[2:] or 1) - 1
        first, purposes = {
            "nn": (2 * number, ("rpc", "http")),
            "fc": (4 + number, ("rpc",)),
            "rm": (10 + 5 * number, ("rpc", "scheduler", "tracker", "admin", "http")),
            "dn": (20 + 3 * number, ("data", "http", "ipc")),
            "nm": (50 + 4 * number, ("rpc", "http", "localizer", "collector")),
            "zk": (86 + 3 * number, ("client", "peer", "election")),
            "ls": (96, ("http", "rpc")),
        }[kind]
        return {purpose: self.port_base + first + i for i, purpose in enumerate(purposes)}

    @property
    def namenode_uri(self) -> str:
        return f"hdfs://{NAMESERVICE}" if self.shape.ha else f"hdfs://localhost:{self.ports('nn')['rpc']}"

    @property
    def webhdfs_urls(self) -> list[str]:
        return [f"http://localhost:{self.ports(name)['http']}" for name in self.shape.namenodes()]

    @property
    def rm_urls(self) -> list[str]:
        names = self.shape.resourcemanagers() if self.shape.yarn else []
        return [f"http://localhost:{self.ports(name)['http']}" for name in names]

    @property
    def rm_url(self) -> str | None:
        return self.rm_urls[0] if self.shape.yarn else None

    @property
    def excluded_nodes(self) -> Path:
        """The file with hosts that no container runs on once ``yarn rmadmin -refreshNodes`` was called."""
        return self.conf / "nodes.exclude"

    def node_host(self, name: str) -> str:
        """Return the host of a NodeManager, as YARN calls it; all of 127.0.0.0/8 is this machine."""
        return f"127.0.0.{name[2:]}" if self.shape.apart and name != "nm1" else "localhost"

    @property
    def zookeeper(self) -> str | None:
        hosts = [f"127.0.0.1:{self.ports(n)['client']}" for n in self.shape.daemons() if n.startswith("zk")]
        return ",".join(hosts) or None

    def environment(self) -> dict[str, str]:
        """Return what a client of this cluster sets; its ``PATH`` entry is only what goes in front."""
        return {
            "JAVA_HOME": str(self.java_home),
            "HADOOP_HOME": str(self.home),
            "HADOOP_CONF_DIR": str(self.conf),
            "YARN_CONF_DIR": str(self.conf),
            "HADOOP_CLASSPATH": f"{self.conf}:{self.home}/jars/*",
            "PATH": str(self.home / "bin"),
        }

    def as_json(self) -> dict[str, Any]:
        """Return the content of ``cluster.json``."""
        return {
            "dir": str(self.dir),
            "shape": asdict(self.shape),
            "port_base": self.port_base,
            "jars": str(self.jars),
            "java_home": str(self.java_home),
            "user": self.user,
            "conf_dir": str(self.conf),
            "env": self.environment(),
            "namenode_uri": self.namenode_uri,
            "webhdfs_url": self.webhdfs_urls[0],
            "webhdfs_urls": self.webhdfs_urls,
            "rm_url": self.rm_url,
            "rm_urls": self.rm_urls,
            "excluded_nodes": str(self.excluded_nodes),
            "zookeeper": self.zookeeper,
            "daemons": {
                name: {
                    "pid": self.processes.get(name, (None, None))[0],
                    "started": self.processes.get(name, (None, None))[1],
                    "ports": self.ports(name),
                    "log": str(self.log(name)),
                }
                for name in [*self.shape.daemons(), *self.shape.on_request()]
            },
        }

    @classmethod
    def from_json(cls, said: dict[str, Any], folder: Path) -> Cluster:
        """Return the cluster that ``as_json`` described."""
        return cls(
            dir=folder,
            shape=Shape(**said["shape"]),
            port_base=said["port_base"],
            jars=Path(said["jars"]),
            java_home=Path(said["java_home"]),
            user=said["user"],
            processes={n: (d["pid"], d["started"]) for n, d in said["daemons"].items() if d["pid"]},
        )


def reserve_ports(base: int | None = None) -> tuple[int, socket.socket]:
    """Return the first port of a block of which all ports are free, and the guard to hold until daemons have them."""
    bases = list(range(PORTS_FROM, PORTS_TO - BLOCK, BLOCK)) if base is None else [base]
    random.SystemRandom().shuffle(bases)
    for candidate in bases:
        guard = _listen(candidate + GUARD)
        if guard is None:
            continue
        if all(_is_free(candidate + offset) for offset in range(GUARD)):
            return candidate, guard
        guard.close()
    if base is None:
        raise ClusterError(f"from {PORTS_FROM} to {PORTS_TO} no {BLOCK} ports in a row are free; say a --port-base")
    taken = [port for port in range(base, base + BLOCK) if not _is_free(port)]
    raise ClusterError(
        f"of the cluster's ports {base} to {base + GUARD} are in use: {', '.join(map(str, taken)) or 'none now'}; "
        f"stop what holds them, or say another --port-base"
    )


def _listen(port: int) -> socket.socket | None:
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Java: what only waits out is not in use
    try:
        found.bind(("127.0.0.1", port))
        found.listen()
    except OSError:
        found.close()
        return None
    return found


def _is_free(port: int) -> bool:
    found = _listen(port)
    if found is not None:
        found.close()
    return found is not None


def node_path(cluster: Cluster) -> str:
    """Return the PATH of daemons, and so of containers: ours without virtual environments, as a node of its own has."""
    entries = [e for e in os.environ.get("PATH", os.defpath).split(os.pathsep) if e]
    outside = [e for e in entries if not (Path(e).parent / "pyvenv.cfg").exists() and "," not in e]
    return os.pathsep.join(dict.fromkeys([f"{cluster.home}/bin", *outside, f"{sys.base_prefix}/bin"]))


def write_files(cluster: Cluster) -> None:
    """Write configuration, launchers and ``env.sh`` of the cluster."""
    for folder in (cluster.conf, cluster.home / "bin", cluster.dir / "logs", cluster.data("home")):
        folder.mkdir(parents=True, exist_ok=True)
    for link, target in (("jars", "hadoop"), ("web", "web")):
        path = cluster.home / link
        path.unlink(missing_ok=True)
        path.symlink_to(cluster.jars / target)
    for name in ("hadoop", "hdfs", "yarn"):
        shutil.copy(HERE / "bin" / "hadoop-shim", cluster.home / "bin" / name)
    _write_xml(cluster.conf / "core-site.xml", _core_site(cluster))
    _write_xml(cluster.conf / "hdfs-site.xml", _hdfs_site(cluster))
    if cluster.shape.yarn:
        _write_xml(cluster.conf / "yarn-site.xml", _yarn_site(cluster))
        cluster.excluded_nodes.touch()
        for name in cluster.shape.resourcemanagers() if cluster.shape.rm_ha else []:
            own = own_conf(cluster, name)
            own.mkdir(parents=True, exist_ok=True)
            _write_xml(own / "yarn-site.xml", {**_yarn_site(cluster), "yarn.resourcemanager.ha.id": name})
        _write_xml(cluster.conf / "capacity-scheduler.xml", _capacity_scheduler())
    (cluster.conf / "log4j.properties").write_text(LOG4J)
    for name in [*cluster.shape.daemons(), *cluster.shape.on_request()]:
        (cluster.data(name) / "tmp").mkdir(parents=True, exist_ok=True)
        if name.startswith("zk"):
            _write_zookeeper(cluster, name)
    lines = [f"# Source this to use the cluster in {cluster.dir}"]
    for key, value in cluster.environment().items():
        tail = ":$PATH" if key == "PATH" else ""
        lines.append(f"export {key}={shlex.quote(value)}{tail}")
    (cluster.dir / "env.sh").write_text("\n".join(lines) + "\n")


def own_conf(cluster: Cluster, name: str) -> Path:
    """Return the folder with what one ResourceManager of a pair must be told alone: its proxy reads files only."""
    return cluster.data(name) / "conf"


def _write_xml(path: Path, entries: dict[str, object]) -> None:
    rows = [
        f"  <property><name>{name}</name><value>{escape(str(value))}</value></property>"
        for name, value in entries.items()
    ]
    path.write_text("\n".join(['<?xml version="1.0"?>', "<configuration>", *rows, "</configuration>", ""]))


def _core_site(cluster: Cluster) -> dict[str, object]:
    return {
        "fs.defaultFS": cluster.namenode_uri,
        "hadoop.tmp.dir": cluster.data("tmp"),
        "ipc.client.connect.max.retries": 10,
        "ipc.client.connect.retry.interval": 200,
        f"hadoop.proxyuser.{cluster.user}.hosts": "*",
        f"hadoop.proxyuser.{cluster.user}.groups": "*",
        "hadoop.http.staticuser.user": cluster.user,
        **(_failover(cluster) if cluster.shape.ha else {}),
    }


def _failover(cluster: Cluster) -> dict[str, object]:
    return {
        "ha.zookeeper.quorum": cluster.zookeeper or "",
        # A killed NameNode is noticed at once by the controller beside it. The session (10 s) is for one that hangs and
        # for a killed controller; shorter ones end by themselves on a busy machine, and the active one changes.
        "ha.health-monitor.check-interval.ms": 500,
        "ha.health-monitor.connect-retry-interval.ms": 500,
        "ha.health-monitor.sleep-after-disconnect.ms": 500,
        "ha.failover-controller.graceful-fence.connection.retries": 0,
        "ha.failover-controller.graceful-fence.rpc-timeout.ms": 1000,
    }


def _hdfs_site(cluster: Cluster) -> dict[str, object]:
    return {
        **(_two_namenodes(cluster) if cluster.shape.ha else _one_namenode(cluster)),
        "dfs.replication": cluster.shape.replication,
        "dfs.blocksize": cluster.shape.block_size,
        "dfs.namenode.fs-limits.min-block-size": 512,  # so that tests may ask for tiny blocks
        "dfs.webhdfs.enabled": "true",
        "dfs.namenode.safemode.extension": 0,
        "dfs.namenode.edits.noeditlogchannelflush": "true",  # no fsync: this data need not survive the machine
        # A lost DataNode is noticed after 2 x recheck + 10 x heartbeat = 12 s; Hadoop's own values make it 10 minutes.
        "dfs.heartbeat.interval": 1,
        "dfs.namenode.heartbeat.recheck-interval": 1000,
        "dfs.namenode.stale.datanode.interval": 5000,
        # Without it each small file costs 400 ms: the client asks too early whether the last block is complete.
        "dfs.client.block.write.locateFollowingBlock.initial.delay.ms": 10,
        "dfs.client.block.write.replace-datanode-on-failure.policy": "NEVER",
        "dfs.namenode.datanode.registration.ip-hostname-check": "false",
        "dfs.datanode.hostname": "localhost",
        "dfs.datanode.du.reserved": 0,
    }


def _one_namenode(cluster: Cluster) -> dict[str, object]:
    ports = cluster.ports("nn")
    return {
        "dfs.namenode.name.dir": f"file://{cluster.data('nn')}/name",
        "dfs.namenode.rpc-address": f"localhost:{ports['rpc']}",
        "dfs.namenode.http-address": f"localhost:{ports['http']}",
    }


def _two_namenodes(cluster: Cluster) -> dict[str, object]:
    """Both see one folder with the log of changes, as NameNodes with a shared disk do: no JournalNodes are needed.

    Where each keeps its own image is told to it alone (``daemons.command``).
    """
    names = cluster.shape.namenodes()
    addresses: dict[str, object] = {}
    for name, controller in zip(names, cluster.shape.controllers(), strict=True):
        ports = cluster.ports(name)
        addresses[f"dfs.namenode.rpc-address.{NAMESERVICE}.{name}"] = f"localhost:{ports['rpc']}"
        addresses[f"dfs.namenode.http-address.{NAMESERVICE}.{name}"] = f"localhost:{ports['http']}"
        addresses[f"dfs.ha.zkfc.port.{NAMESERVICE}.{name}"] = cluster.ports(controller)["rpc"]
    return {
        "dfs.nameservices": NAMESERVICE,
        f"dfs.ha.namenodes.{NAMESERVICE}": ",".join(names),
        **addresses,
        "dfs.namenode.shared.edits.dir": f"file://{cluster.data('edits')}",
        f"dfs.client.failover.proxy.provider.{NAMESERVICE}": (
            "org.apache.hadoop.hdfs.server.namenode.ha.ConfiguredFailoverProxyProvider"
        ),
        "dfs.client.failover.sleep.base.millis": 200,
        "dfs.client.failover.sleep.max.millis": 1000,
        "dfs.ha.automatic-failover.enabled": "true",
        "dfs.ha.fencing.methods": "shell(/bin/true)",  # what is killed here is dead
        "dfs.ha.tail-edits.period": "1s",
        "dfs.ha.log-roll.period": "5s",
    }


def _yarn_site(cluster: Cluster) -> dict[str, object]:
    return {
        **(_two_resourcemanagers(cluster) if cluster.shape.rm_ha else _one_resourcemanager(cluster)),
        **(PREEMPTION if cluster.shape.preemption else {}),
        "yarn.resourcemanager.nodes.exclude-path": cluster.excluded_nodes,
        "yarn.resourcemanager.scheduler.class": (
            "org.apache.hadoop.yarn.server.resourcemanager.scheduler.capacity.CapacityScheduler"
        ),
        "yarn.scheduler.minimum-allocation-mb": 64,
        "yarn.scheduler.maximum-allocation-mb": NODE_MEMORY_MB,
        "yarn.scheduler.maximum-allocation-vcores": NODE_VCORES,
        "yarn.resourcemanager.am.max-attempts": 100,  # the limit of what applications may ask for
        "yarn.resourcemanager.nodemanagers.heartbeat-interval-ms": 200,
        # A NodeManager that starts first asks again after this time (30 s otherwise); a client gives up after the
        # second (15 minutes otherwise), which still outlasts a restart of the ResourceManager.
        "yarn.resourcemanager.connect.retry-interval.ms": 500,
        "yarn.resourcemanager.connect.max-wait.ms": 60_000,
        # Liveness: all 10 minutes otherwise. An ApplicationMaster's begins at its launch, before its files are fetched.
        "yarn.am.liveness-monitor.expiry-interval-ms": 45_000,
        "yarn.nm.liveness-monitor.expiry-interval-ms": 10_000,
        "yarn.resourcemanager.rm.container-allocation.expiry-interval-ms": 30_000,
        "yarn.resourcemanager.recovery.enabled": "true",
        "yarn.resourcemanager.work-preserving-recovery.enabled": "true",
        "yarn.resourcemanager.work-preserving-recovery.scheduling-wait-ms": 1000,
        # Both are in /tmp otherwise, where clusters side by side would share them.
        "yarn.node-labels.fs-store.root-dir": f"file://{cluster.data('rm')}/node-labels",
        "yarn.node-attribute.fs-store.root-dir": f"file://{cluster.data('rm')}/node-attributes",
        "yarn.nodemanager.hostname": "localhost",
        "yarn.nodemanager.resource.memory-mb": NODE_MEMORY_MB,
        "yarn.nodemanager.resource.cpu-vcores": NODE_VCORES,
        "yarn.nodemanager.pmem-check-enabled": "true",
        "yarn.nodemanager.vmem-check-enabled": "false",
        "yarn.nodemanager.container-monitor.interval-ms": 1000,
        "yarn.nodemanager.container-executor.class": (
            "org.apache.hadoop.yarn.server.nodemanager.DefaultContainerExecutor"
        ),
        "yarn.nodemanager.disk-health-checker.max-disk-utilization-per-disk-percentage": 99.5,
        "yarn.nodemanager.disk-health-checker.interval-ms": 2000,  # 2 minutes otherwise
        "yarn.nodemanager.recovery.enabled": "true",
        "yarn.nodemanager.delete.debug-delay-sec": 0,
        "yarn.nodemanager.sleep-delay-before-sigkill.ms": 2000,
        "yarn.nodemanager.env-whitelist": ENV_WHITELIST,
        # In the whitelist PATH is of no use: YARN only sets what is unset, and bash has its own PATH by then. Here it
        # comes after what an application asks for.
        "yarn.nodemanager.admin-env": f"PATH={node_path(cluster)}",
        "yarn.nodemanager.user-home-dir": cluster.data("home"),
        "yarn.log-aggregation-enable": "true",
        "yarn.nodemanager.remote-app-log-dir": "/tmp/logs",
        # Where a NodeManager sends whoever asks it for the logs of an application that has ended.
        "yarn.log.server.url": f"{log_server_url(cluster)}/applicationhistory/logs",
        "yarn.application.classpath": f"{cluster.conf},{cluster.home}/jars/*",
        "yarn.timeline-service.enabled": "false",
    }


def log_server_url(cluster: Cluster) -> str:
    return f"http://localhost:{cluster.ports('ls')['http']}"


def _addresses(cluster: Cluster, name: str, suffix: str = "") -> dict[str, object]:
    ports = cluster.ports(name)
    purposes = {
        "address": "rpc",
        "scheduler.address": "scheduler",
        "resource-tracker.address": "tracker",
        "admin.address": "admin",
        "webapp.address": "http",
    }
    return {
        f"yarn.resourcemanager.hostname{suffix}": "localhost",
        **{f"yarn.resourcemanager.{key}{suffix}": f"localhost:{ports[port]}" for key, port in purposes.items()},
    }


def _one_resourcemanager(cluster: Cluster) -> dict[str, object]:
    return {
        **_addresses(cluster, "rm"),
        "yarn.resourcemanager.store.class": (
            "org.apache.hadoop.yarn.server.resourcemanager.recovery.FileSystemRMStateStore"
        ),
        "yarn.resourcemanager.fs.state-store.uri": f"file://{cluster.data('rm')}/store",
    }


def _two_resourcemanagers(cluster: Cluster) -> dict[str, object]:
    names = cluster.shape.resourcemanagers()
    addresses = {key: value for name in names for key, value in _addresses(cluster, name, f".{name}").items()}
    return {
        "yarn.resourcemanager.ha.enabled": "true",
        "yarn.resourcemanager.ha.rm-ids": ",".join(names),
        "yarn.resourcemanager.cluster-id": "yarn-ha",
        **addresses,
        "yarn.resourcemanager.store.class": ("org.apache.hadoop.yarn.server.resourcemanager.recovery.ZKRMStateStore"),
        "hadoop.zk.address": cluster.zookeeper or "",
        # How late the other one notices a killed one.
        "hadoop.zk.timeout-ms": 4000,
        "yarn.resourcemanager.ha.automatic-failover.zk-timeout": 4000,
        "yarn.client.failover-sleep-base-ms": 200,
        "yarn.client.failover-sleep-max-ms": 1000,
    }


PREEMPTION: dict[str, object] = {
    "yarn.resourcemanager.scheduler.monitor.enable": "true",
    "yarn.resourcemanager.monitor.capacity.preemption.monitoring_interval": 500,
    "yarn.resourcemanager.monitor.capacity.preemption.max_wait_before_kill": 1000,
    "yarn.resourcemanager.monitor.capacity.preemption.total_preemption_per_round": 1.0,
    "yarn.resourcemanager.monitor.capacity.preemption.natural_termination_factor": 1.0,
    "yarn.resourcemanager.monitor.capacity.preemption.max_ignored_over_capacity": 0.0,
}


def _capacity_scheduler() -> dict[str, object]:
    prefix = "yarn.scheduler.capacity"
    entries: dict[str, object] = {
        f"{prefix}.resource-calculator": "org.apache.hadoop.yarn.util.resource.DominantResourceCalculator",
        f"{prefix}.maximum-am-resource-percent": 0.5,
        f"{prefix}.node-locality-delay": -1,
        f"{prefix}.root.queues": "default,stream",
    }
    for queue in ("default", "stream"):
        entries[f"{prefix}.root.{queue}.capacity"] = 50
        entries[f"{prefix}.root.{queue}.maximum-capacity"] = 100
        entries[f"{prefix}.root.{queue}.user-limit-factor"] = 4
    return entries


def _write_zookeeper(cluster: Cluster, name: str) -> None:
    folder = cluster.data(name)
    lines = [
        "tickTime=500",  # the shortest session is two ticks: fail-over tests want short ones
        "initLimit=10",
        "syncLimit=5",
        "maxSessionTimeout=60000",
        f"dataDir={folder}/data",
        f"clientPort={cluster.ports(name)['client']}",
        "clientPortAddress=127.0.0.1",
        "admin.enableServer=false",
        "4lw.commands.whitelist=*",
        "maxClientCnxns=0",
    ]
    (folder / "data").mkdir(exist_ok=True)
    if cluster.shape.zookeepers > 1:
        (folder / "data" / "myid").write_text(name[2:])
        for number in range(1, cluster.shape.zookeepers + 1):
            ports = cluster.ports(f"zk{number}")
            lines.append(f"server.{number}=127.0.0.1:{ports['peer']}:{ports['election']}")
    (folder / "zoo.cfg").write_text("\n".join(lines) + "\n")
    (folder / "logback.xml").write_text(LOGBACK)


LOG4J = """\
hadoop.root.logger=INFO,console
log4j.rootLogger=${hadoop.root.logger}
log4j.appender.console=org.apache.log4j.ConsoleAppender
log4j.appender.console.target=System.err
log4j.appender.console.layout=org.apache.log4j.PatternLayout
log4j.appender.console.layout.ConversionPattern=%d{ISO8601} %p %c{2}: %m%n
log4j.logger.org.apache.hadoop.util.NativeCodeLoader=ERROR
"""

LOGBACK = """\
<configuration>
  <appender name="console" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%d %p %c{1} %m%n</pattern></encoder>
  </appender>
  <root level="INFO"><appender-ref ref="console"/></root>
</configuration>
"""
