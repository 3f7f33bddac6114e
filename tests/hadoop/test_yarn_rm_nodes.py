"""Nodes of a real YARN that go bad while a job runs: its tasks move, its output is exact, and it is said why."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hadoop.conftest import HadoopCluster
from tests.hadoop.yarn_commands import (
    HEARTBEAT_TIMEOUT_S,
    SMALL,
    YarnUser,
    application_id_in,
    eventually,
    get,
    kill_process,
    processes_of,
)
from tests.hadoop.yarn_ha import (
    ExactJob,
    ha_user,
    java_master,
    job_id_in,
    jobmanager_process,
    node_host_of,
    node_manager_of,
    rest,
    taskmanagers,
)
from tests.testing.patience import limit_once

pytestmark = [pytest.mark.hadoop, pytest.mark.timeout(500)]
DISK_MB = 1024
#: What the NodeManager says of a user's folder that is none.
NOT_STARTED = "ended (failed): YARN says: Not able to initialize user directories"


@pytest.fixture(scope="module")
def user(yarn_pair: HadoopCluster, tmp_path_factory: pytest.TempPathFactory) -> YarnUser:
    return ha_user(yarn_pair, tmp_path_factory.mktemp("nodes"))


@dataclass(frozen=True)
class OtherNode:
    """The NodeManager on which the ApplicationMaster is not."""

    hadoop: HadoopCluster
    name: str

    @property
    def host(self) -> str:
        return "localhost" if self.name == "nm1" else f"127.0.0.{self.name[2:]}"

    @property
    def local_dir(self) -> Path:
        """As the node sees it: it may have a disk of its own there."""
        return Path(f"/proc/{self.hadoop.daemons()[self.name]['pid']}/root{self.hadoop.dir}/data/{self.name}/local")

    def restart(self) -> None:
        """With an empty disk of its own, if it can have one."""
        self.hadoop.daemon("kill9", self.name)
        self.hadoop.daemon("start", self.name, "--disk-mb", str(DISK_MB))

    def state(self) -> str:
        nodes = get(f"{self.hadoop.rm_url}/ws/v1/cluster/nodes")["nodes"]["node"]
        (state,) = [node["state"] for node in nodes if node["id"].startswith(f"{self.host}:")]
        return str(state)

    def spoil_disk(self) -> str:
        """Fill the disk; return what YARN will say of it. Where nobody may mount it is no disk of its own: it goes."""
        local = self.local_dir
        if os.path.ismount(local):
            with open(local / "filler", "wb", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
                while True:
                    filler.write(bytes(1 << 20))
            return "usable space"
        local.rename(local.with_name("local.away"))
        local.touch()
        return "local-dirs"

    def mend_disk(self) -> None:
        local = self.local_dir
        if os.path.ismount(local):
            (local / "filler").unlink()
        else:
            local.unlink()
            local.with_name("local.away").rename(local)

    def decommission(self, user: YarnUser, excluded: bool, *how: str) -> None:
        self.hadoop.excluded_nodes.write_text(f"{self.host}\n" if excluded else "")
        done = user.run_yarn("rmadmin", "-refreshNodes", *how)
        assert done.returncode == 0, done.stdout + done.stderr

    def break_user_cache(self, user: str) -> None:
        """The node is healthy to YARN, but no container can be started there any more."""
        cache = self.local_dir / "usercache" / user
        if cache.exists():
            cache.rename(cache.with_name(f"{user}.away"))
        cache.touch()

    def mend(self, user: str) -> None:
        """As it was before all: other tests use this cluster, too."""
        self.hadoop.daemon("kill9", self.name)  # with its own disk, if it had one
        cache = self.hadoop.dir / "data" / self.name / "local" / "usercache" / user
        if cache.is_file():
            cache.unlink()
        self.hadoop.daemon("start", self.name)


@pytest.fixture(scope="module")
def session(user: YarnUser) -> Iterator[tuple[str, OtherNode]]:
    """TaskManagers with a slot each, on demand."""
    done = user.session("-s", "1", *SMALL, "-nm", "nodes", "-d")
    assert done.returncode == 0, done.stdout + done.stderr
    application_id = application_id_in(done.stdout)
    (other,) = {"nm1", "nm2"} - {node_manager_of(user.hadoop, java_master(application_id))}
    node = OtherNode(user.hadoop, other)
    node.restart()
    yield application_id, node
    user.session("-id", application_id, stdin="stop\n")
    node.mend(user.hadoop.user)


@dataclass(frozen=True)
class Running:
    """A job in the session, and what it is asked."""

    user: YarnUser
    application_id: str
    node: OtherNode
    job: ExactJob
    job_id: str

    @classmethod
    def start(cls, user: YarnUser, application_id: str, node: OtherNode, job: ExactJob) -> Running:
        done = user.flink("run", "-d", "-yid", application_id, *job.words)
        assert done.returncode == 0, done.stdout + done.stderr
        job.until_output()
        return cls(user, application_id, node, job, job_id_in(done.stdout))

    def restarts(self) -> int:
        return int(rest(self.user, self.application_id, f"/jobs/{self.job_id}")["timestamps"]["RESTARTING"])

    def is_running(self) -> bool:
        found = rest(self.user, self.application_id, f"/jobs/{self.job_id}")
        return bool(found and found["vertices"]) and all(row["status"] == "RUNNING" for row in found["vertices"])

    def log(self) -> str:
        """What the JobManager has said, as the dashboard shows it; "" while it does not answer."""
        return str(rest(self.user, self.application_id, "/jobmanager/log") or "")

    def hosts(self) -> list[str]:
        return sorted(node_host_of(pid) for pid in taskmanagers(self.application_id))

    def lose_all_containers(self) -> None:
        was = self.restarts()
        for pid in taskmanagers(self.application_id):
            kill_process(pid)
        eventually("the job restarts", lambda: self.restarts() != was)
        eventually("the job runs", lambda: self.is_running() and len(taskmanagers(self.application_id)) == 2, 60)

    def use_the_node(self) -> None:
        """YARN decides where containers are: ask until one is on the node."""
        eventually("the job runs", lambda: self.is_running() and len(taskmanagers(self.application_id)) == 2, 60)
        for _ in range(10):
            if self.node.host in self.hosts():
                return
            self.lose_all_containers()
        pytest.fail(f"no container was ever on {self.node.host}")

    def finish(self) -> None:
        self.job.hurry()
        url = f"/jobs/{self.job_id}"
        eventually("it has finished", lambda: rest(self.user, self.application_id, url)["state"] == "FINISHED", 120)
        self.job.check_exact()


def test_a_job_leaves_nodes_that_are_full_decommissioned_or_dead_and_is_exact(session, user, tmp_path):
    application_id, node = session
    running = Running.start(user, application_id, node, ExactJob(user, tmp_path / "marks", "leaves-nodes"))
    running.use_the_node()
    was, words = running.restarts(), node.spoil_disk()
    running.job.survive(
        f"the disk of a node is full ({running.hosts()})",
        lambda: eventually("YARN sees it", lambda: node.state() == "UNHEALTHY"),
        30,
        noticed=lambda: running.restarts() != was,
    )
    assert node.host not in running.hosts()
    told = rf"YARN says: .*Node {node.host}:.* is UNHEALTHY: .*{words}.*"
    print(eventually("it is said why", lambda: re.search(told, running.log()))[0])
    node.mend_disk()
    eventually("the node is healthy", lambda: node.state() == "RUNNING")

    running.use_the_node()
    was = running.restarts()
    running.job.survive(
        f"a node is decommissioned ({running.hosts()})",
        lambda: node.decommission(user, True),
        30,
        noticed=lambda: running.restarts() != was,
    )
    assert node.host not in running.hosts()
    told = rf"YARN says: .*Node {node.host}:.* is DECOMMISSIONED"
    eventually("it is said why", lambda: re.search(told, running.log()))
    node.decommission(user, False)
    node.restart()

    running.use_the_node()
    was = running.restarts()
    running.job.survive(
        f"a node is decommissioned gracefully ({running.hosts()})",
        lambda: node.decommission(user, True, "-g", "300", "-server"),
        30,
        noticed=lambda: running.restarts() != was,
    )
    assert node.host not in running.hosts()
    assert node.state() != "DECOMMISSIONED", "YARN has ended nothing yet"
    assert f"the node {node.host} is being decommissioned" in running.log()
    node.decommission(user, False)
    eventually("the node is back", lambda: node.state() == "RUNNING")

    running.use_the_node()
    was = running.restarts()
    orphans = {pid for pid in processes_of(application_id) if node_host_of(pid) == node.host}
    assert orphans
    taken_s = 0.0

    def lose_the_node() -> None:
        """Until what it leaves behind has ended. YARN takes its time to notice, they must not."""
        nonlocal taken_s
        user.hadoop.daemon("kill9", node.name)
        eventually("YARN gives the node up", lambda: node.state() == "LOST", 60)
        began = time.monotonic()
        eventually("the orphans have ended", lambda: not orphans & set(processes_of(application_id)))
        taken_s = time.monotonic() - began

    running.job.survive(
        f"kill -9 of a NodeManager ({len(orphans)} processes stay)",
        lose_the_node,
        40,
        noticed=lambda: running.restarts() != was,
    )
    print(f"\nthe orphans had ended {taken_s:.1f} s after YARN had given their node up")
    assert taken_s < limit_once(HEARTBEAT_TIMEOUT_S)
    node.restart()
    running.finish()


def test_a_node_on_which_no_container_starts_is_not_asked_any_more(session, user, tmp_path):
    application_id, node = session
    running = Running.start(user, application_id, node, ExactJob(user, tmp_path / "marks", "broken-node"))
    node.break_user_cache(user.hadoop.user)
    avoided = f"node={node.host} is avoided: containers end there before they register"
    for _ in range(10):  # until YARN has tried the node often enough
        running.lose_all_containers()
        assert node.host not in running.hosts()
        if avoided in running.log():
            break
    assert avoided in running.log()
    failures = running.log().count(NOT_STARTED)
    for _ in range(3):  # it would be tried again, as it is the idler one
        running.lose_all_containers()
    assert running.log().count(NOT_STARTED) == failures
    assert failures <= 3  # one may have been on its way

    kill_process(jobmanager_process(application_id))
    known = f"node={node.host} is avoided, as by the JobManager before"
    eventually("the next JobManager knows it, too", lambda: known in running.log())
    eventually("the job runs", lambda: running.is_running() and len(taskmanagers(application_id)) == 2, 60)
    running.lose_all_containers()
    assert running.log().count(NOT_STARTED) == failures
    running.finish()
