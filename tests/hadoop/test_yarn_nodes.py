"""Nodes of a real YARN that go bad while a job runs: its tasks move, its output is exact, and it is said why."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hadoop.conftest import HadoopCluster
from tests.hadoop.yarn_commands import SMALL, YarnUser, application_id_in, eventually, get, kill_process
from tests.hadoop.yarn_ha import (
    ExactJob,
    ha_user,
    java_master,
    job_id_in,
    node_host_of,
    node_manager_of,
    rest,
    taskmanagers,
)

pytestmark = pytest.mark.hadoop
DISK_MB = 1024


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

    def decommission(self, user: YarnUser, excluded: bool) -> None:
        self.hadoop.excluded_nodes.write_text(f"{self.host}\n" if excluded else "")
        done = user.run_yarn("rmadmin", "-refreshNodes")
        assert done.returncode == 0, done.stdout + done.stderr

    def break_user_cache(self, user: str) -> None:
        """The node is healthy to YARN, but no container can be started there any more."""
        cache = self.local_dir / "usercache" / user
        cache.rename(cache.with_name(f"{user}.away"))
        cache.touch()


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


def test_a_job_leaves_nodes_that_are_full_decommissioned_or_broken_and_is_exact(session, user, tmp_path):
    application_id, node = session
    job = ExactJob(user, tmp_path / "marks", "nodes")
    done = user.flink("run", "-d", "-yid", application_id, *job.words)
    assert done.returncode == 0, done.stdout + done.stderr
    job_id = job_id_in(done.stdout)
    job.until_output()

    def restarts() -> int:
        return int(rest(user, application_id, f"/jobs/{job_id}")["timestamps"]["RESTARTING"])

    def exceptions() -> str:
        found = rest(user, application_id, f"/jobs/{job_id}/exceptions")
        return str(found["root-exception"]) + str(found["exceptionHistory"])

    def hosts() -> list[str]:
        return sorted(node_host_of(pid) for pid in taskmanagers(application_id))

    def is_running() -> bool:
        found = rest(user, application_id, f"/jobs/{job_id}")
        return bool(found and found["vertices"]) and all(row["status"] == "RUNNING" for row in found["vertices"])

    def log() -> str:
        return "".join(path.read_text() for path in user.hadoop.dir.glob("data/nm*/log/*/*/jobmanager.log"))

    def use_the_node() -> None:
        """YARN decides where containers are: ask until one is on the node."""
        for _ in range(10):
            eventually("the job runs", lambda: is_running() and len(taskmanagers(application_id)) == 2, 60)
            if node.host in hosts():
                return
            was = restarts()
            for pid in taskmanagers(application_id):
                kill_process(pid)
            eventually("the job restarts", lambda was=was: restarts() != was, 30)
        pytest.fail(f"no container was ever on {node.host}")

    use_the_node()
    was, words = restarts(), node.spoil_disk()
    job.survive(
        f"the disk of a node is full ({hosts()})",
        lambda: eventually("YARN sees it", lambda: node.state() == "UNHEALTHY"),
        30,
        noticed=lambda: restarts() != was,
    )
    assert node.host not in hosts()
    said = exceptions()
    assert f"Node {node.host}:" in said
    assert "is UNHEALTHY: " in said
    assert words in said
    node.mend_disk()
    eventually("the node is healthy", lambda: node.state() == "RUNNING")

    use_the_node()
    was = restarts()
    job.survive(
        f"a node is decommissioned ({hosts()})",
        lambda: node.decommission(user, True),
        30,
        noticed=lambda: restarts() != was,
    )
    assert node.host not in hosts()
    assert "DECOMMISSIONED" in exceptions()
    node.decommission(user, False)
    node.restart()

    use_the_node()
    node.break_user_cache(user.hadoop.user)
    avoided = f"node={node.host} is avoided: containers end there before they register"
    for _ in range(15):
        eventually("the job runs", lambda: is_running() and node.host not in hosts()[1:], 60)
        if avoided in log():
            break
        was = restarts()
        for pid in taskmanagers(application_id):
            kill_process(pid)
        eventually("the job restarts", lambda was=was: restarts() != was, 30)
    assert avoided in log()
    for _ in range(2):  # would be there now and then otherwise, as it is the idler one
        was = restarts()
        for pid in taskmanagers(application_id):
            kill_process(pid)
        eventually("the job restarts", lambda was=was: restarts() != was, 30)
        eventually("the job runs", is_running, 60)
        assert node.host not in hosts()
    assert log().count("Not able to initialize") <= 3
    job.hurry()
    eventually(
        "the job has finished", lambda: rest(user, application_id, f"/jobs/{job_id}")["state"] == "FINISHED", 120
    )
    job.check_exact()
