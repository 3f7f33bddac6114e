"""One real Hadoop and ZooKeeper for all tests of this folder: the fixture ``hadoop``.

It is started at the first test that asks for it and ends with the session, also when pytest itself is killed. All
tests here are dealt to one worker (``tests/conftest.py``), so they share one cluster.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CLUSTER_PY = Path(__file__).resolve().parents[2] / "hadoop-docker" / "cluster.py"
LIBHDFS_PY = CLUSTER_PY.parent / "libhdfs.py"
TOOL_MISSING = 3  # cluster.py's exit code for "no Java or no Maven"
END_SECONDS = 300.0  # an hour of faults leaves a large folder, and it is removed


def run_cluster(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run ``cluster.py`` with these words; a failure shows what it said."""
    command = [sys.executable, str(CLUSTER_PY), *words]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)
    if check and done.returncode != 0:
        raise AssertionError(f"cluster.py {' '.join(words)} ended with {done.returncode}:\n{done.stdout}")
    return done


@dataclass(frozen=True)
class HadoopCluster:
    """Where the cluster is, and the way to hurt it."""

    dir: Path
    conf_dir: Path
    env: dict[str, str]  # for subprocesses: ours, with HADOOP_CONF_DIR, JAVA_HOME and the launchers in front
    webhdfs_url: str
    namenode_uri: str  # hdfs://localhost:PORT
    rm_urls: tuple[str, ...]
    excluded_nodes: Path  # hosts in it are decommissioned by ``yarn rmadmin -refreshNodes``
    zookeeper: str  # host:port,…
    user: str

    @classmethod
    def of(cls, folder: Path) -> HadoopCluster:
        """Return the cluster that ``up`` has made in the folder."""
        said: dict[str, Any] = json.loads((folder / "cluster.json").read_text())
        env = {**os.environ, **said["env"], "SKEIN_CONFIG": str(folder / "skein")}
        env["PATH"] = f"{said['env']['PATH']}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return cls(
            dir=folder,
            conf_dir=Path(said["conf_dir"]),
            env=env,
            webhdfs_url=said["webhdfs_url"],
            namenode_uri=said["namenode_uri"],
            rm_urls=tuple(said["rm_urls"]),
            excluded_nodes=Path(said["excluded_nodes"]),
            zookeeper=said["zookeeper"] or "",
            user=said["user"],
        )

    @property
    def rm_url(self) -> str:
        """Where the ResourceManager is, the active one of two; "" without YARN. OSError while there is none."""
        return self.rm_urls[self._active_index()] if self.rm_urls else ""

    @property
    def active_rm(self) -> str:
        """The daemon that is the active ResourceManager (rm, rm1, rm2). OSError while there is none."""
        return [name for name in self.daemons() if name.startswith("rm")][self._active_index()]

    def _active_index(self) -> int:
        if len(self.rm_urls) == 1:
            return 0
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for number, url in enumerate(self.rm_urls):
            with contextlib.suppress(OSError, ValueError), opener.open(f"{url}/ws/v1/cluster/info", timeout=30) as said:
                if json.load(said)["clusterInfo"]["haState"] == "ACTIVE":
                    return number
        raise ConnectionError(f"none of {', '.join(self.rm_urls)} is active now")

    def daemon(self, action: str, name: str, *words: str) -> None:
        """``start``, ``stop`` or ``kill9`` the daemon (nn, dn1, rm, nm1, nm2, zk1); returns when it is done. ``words``:
        --no-wait starts one that cannot become ready alone, as a ZooKeeper server of three."""
        run_cluster("daemon", action, name, *words, "--dir", str(self.dir))

    def daemons(self) -> dict[str, dict[str, Any]]:
        """Return pid, ports and log of every daemon by name, as they are now."""
        found: dict[str, dict[str, Any]] = json.loads((self.dir / "cluster.json").read_text())["daemons"]
        return found


@pytest.fixture(scope="session")
def hadoop_jars() -> None:
    """Java is here and the jars are fetched; a clear skip where they cannot be, a failure in CI."""
    done = run_cluster("install", check=False)
    if done.returncode == TOOL_MISSING and os.environ.get("CI", "").lower() not in ("true", "1"):
        pytest.skip(done.stdout.strip())
    if done.returncode != 0:
        pytest.fail(f"the jars of Hadoop cannot be installed: {done.stdout.strip()}", pytrace=False)


@pytest.fixture(scope="session")
def libhdfs_folder(hadoop_jars: None) -> Path:
    """A folder with libhdfs.so. A distribution of Hadoop has one; Maven has none, so it is compiled here, once."""
    words = [sys.executable, str(LIBHDFS_PY)]
    done = subprocess.run(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)
    if done.returncode == TOOL_MISSING and os.environ.get("CI", "").lower() not in ("true", "1"):
        pytest.skip(done.stdout.strip())
    if done.returncode != 0:
        pytest.fail(f"libhdfs cannot be built: {done.stdout.strip()}", pytrace=False)
    return Path(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def hadoop(hadoop_jars: None) -> Iterator[HadoopCluster]:
    """A cluster of one DataNode, two NodeManagers and one ZooKeeper."""
    with running_cluster("--datanodes", "1", "--nodemanagers", "2", "--zookeeper", "1") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def yarn_pair(hadoop_jars: None) -> Iterator[HadoopCluster]:
    """A cluster with two ResourceManagers; its two NodeManagers have hosts of their own, its queues get their share."""
    shape = ("--rm-ha", "--apart", "--preemption", "--zookeeper", "1", "--datanodes", "1", "--nodemanagers", "2")
    with running_cluster(*shape) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def zookeeper(hadoop_jars: None) -> Iterator[HadoopCluster]:
    """One ZooKeeper (zk1) and nothing else, which tests may kill as long as they start it again."""
    with running_cluster("--only-zookeeper", "--zookeeper", "1") as cluster:
        yield cluster


@contextlib.contextmanager
def running_cluster(*shape: str) -> Iterator[HadoopCluster]:
    """A cluster of the shape that ``cluster.py up`` is told with these words, for as long as the block runs."""
    folder = Path(tempfile.mkdtemp(prefix="hadoop-"))
    words = ["up", "--dir", str(folder), *shape, "--until-eof", "--wipe"]
    keeper = subprocess.Popen(
        [sys.executable, str(CLUSTER_PY), *words],
        stdin=subprocess.PIPE,  # It ends the cluster when this closes, however this process dies.
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    try:
        said = []
        for line in keeper.stdout:
            said.append(line)
            if line.startswith("ready after"):
                break
        else:
            pytest.fail(f"the Hadoop cluster did not come up:\n{''.join(said)}", pytrace=False)
        yield HadoopCluster.of(folder)
    finally:
        keeper.stdin.close()
        try:
            keeper.wait(END_SECONDS)
        finally:
            if keeper.poll() is None:
                keeper.kill()
                keeper.wait()
                run_cluster("down", "--dir", str(folder), check=False)
            keeper.stdout.close()
            shutil.rmtree(folder, ignore_errors=True)
