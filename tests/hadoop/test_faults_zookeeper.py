"""Three ZooKeeper servers and a running job: what happens to the servers does not concern it, and a leader that slept
through its session's end writes nothing when it wakes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kazoo.client import KazooClient

from engine.core.fs import LocalFileSystem
from engine.core.ids import FencingToken
from tests.hadoop.conftest import HadoopCluster, run_cluster, running_cluster
from tests.hadoop.fault_jobs import FaultJob
from tests.hadoop.test_zookeeper import mode_of
from tests.process.cluster_jobs import until
from tests.process.ha_cluster import HaCluster
from tests.process.test_exactly_once_files import expected, hidden, hurry, written
from tests.process.test_ha import Waiting, file_job, first_new_output_s, tell, text  # noqa: F401 (a fixture)

pytestmark = [pytest.mark.hadoop, pytest.mark.timeout(500)]

SERVERS = ("zk1", "zk2", "zk3")
AWAY_S = 5.0


@pytest.fixture(scope="module")
def zookeepers(hadoop_jars: None) -> Iterator[HadoopCluster]:
    with running_cluster("--only-zookeeper", "--zookeeper", "3") as found:
        yield found


def start_all(zookeepers: HadoopCluster) -> None:
    for name in SERVERS:  # one alone never becomes ready
        run_cluster("daemon", "start", name, "--no-wait", "--dir", str(zookeepers.dir))


@pytest.fixture
def cluster_with(zookeepers: HadoopCluster, tmp_path: Path) -> Iterator[Callable[[str], HaCluster]]:
    """Start two JobManagers and two TaskManagers with such a session timeout."""
    clusters = []

    def start(session_timeout: str) -> HaCluster:
        settings = {
            "high-availability.type": "zookeeper",
            "high-availability.zookeeper.quorum": zookeepers.zookeeper,
            "high-availability.cluster-id": f"/test-{FencingToken.generate()[:8]}",
        }
        timeouts = {"heartbeat_interval": "500", "heartbeat_timeout": "15000"}
        clusters.append(HaCluster(tmp_path, session_timeout=session_timeout, settings=settings, **timeouts))
        return clusters[-1]

    yield start
    for cluster in clusters:
        cluster.close()


def leaderships(cluster: HaCluster) -> list[int]:
    """How often each JobManager has begun to lead."""
    return [sum("this JobManager leads" in line for line in master.process.lines) for master in cluster.masters]


def test_a_running_job_is_not_concerned_by_servers_that_go_away(zookeepers, cluster_with, tmp_path):
    cluster = cluster_with("60 s")
    cluster.wait_for_slots(4)
    assert leaderships(cluster) == [1, 0]
    job = FaultJob(LocalFileSystem(), cluster.leader.rest_url, tmp_path, root=str(tmp_path / "job"))
    try:
        job.until_checkpoints(2, "at the beginning")

        follower = next(name for name in SERVERS if mode_of(zookeepers, name) == "follower")
        zookeepers.daemon("kill9", follower)
        print(f"\na follower killed: two checkpoints after {job.until_checkpoints(2, 'without it'):.1f} s")
        zookeepers.daemon("start", follower)

        leader = next(name for name in SERVERS if mode_of(zookeepers, name) == "leader")
        zookeepers.daemon("kill9", leader)
        print(f"\nthe leader killed: two checkpoints after {job.until_checkpoints(2, 'without it'):.1f} s")
        zookeepers.daemon("start", leader)

        for name in SERVERS:
            zookeepers.daemon("kill9", name)
        output = len(job.visible())
        time.sleep(AWAY_S)
        start_all(zookeepers)
        took_s = job.until_checkpoints(2, "after the return of all")
        print(f"\nall away for {AWAY_S:g} s: two checkpoints {took_s:.1f} s after their start")
        until(lambda: len(job.visible()) > output, "output")
        assert job.checkpoint_failures() == []
        job.finish()
        assert not job.was_restarted(), job.exceptions()
        job.check_exact()
    finally:
        job.close()
    assert leaderships(cluster) == [1, 0]


def nodes_of(zookeepers: HadoopCluster, base: str) -> dict[str, tuple[bytes, int]]:
    """Return content and transaction of the last change of all nodes but the contenders' own."""
    client = KazooClient(zookeepers.zookeeper)
    client.start(timeout=60)
    found: dict[str, tuple[bytes, int]] = {}
    try:
        waiting = [base]
        while waiting:
            path = waiting.pop()
            content, stat = client.get(path)
            found[path] = (content, stat.mzxid)
            if not path.endswith("/latch"):
                waiting += [f"{path}/{name}" for name in client.get_children(path)]
    finally:
        client.stop()
        client.close()
    return found


def files_of(*folders: Path) -> dict[str, tuple[int, int]]:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def test_a_leader_that_sleeps_through_its_session_changes_nothing_when_it_wakes(
    zookeepers,
    cluster_with,
    text,  # noqa: F811
    tmp_path,
):
    """Its job has ended under another one by then, so that whatever changes would be its doing."""
    cluster = cluster_with("4 s")
    job, output = file_job(cluster, text, tmp_path)
    waiting = Waiting(job)
    asleep = cluster.leader
    cluster.masters.remove(asleep)
    seen = written(output)
    os.kill(asleep.pid, signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        tell(f"SIGSTOP of the leader, three servers, session timeout 4 s: {first_new_output_s(output, seen)}")
        successor = cluster.leader
        assert successor is not asleep
        hurry(tmp_path / "pids")
        waiting.result()
        assert written(output) == expected()
        until(lambda: time.monotonic() >= stopped + 10, "ten seconds")
        base = f"/flink{cluster.config['high-availability.cluster-id']}"
        folders = (tmp_path / "ha", tmp_path / "checkpoints", output)
        nodes, files = nodes_of(zookeepers, base), files_of(*folders)
        assert f"{base}/leader/connection_info" in nodes
        said = len(asleep.process.lines)
    finally:
        os.kill(asleep.pid, signal.SIGCONT)
        woken_at = time.monotonic()
        cluster.masters.append(asleep)
    until(lambda: any("stands by" in line for line in asleep.process.lines[said:]), "it stands by")
    tell(f"on waking it stood by after {time.monotonic() - woken_at:.2f} s")
    # It answers by asking who leads, so it has done whatever it was about to do.
    until(lambda: asleep.get(f"/jobs/{job.get_job_id()}")["state"] == "FINISHED", "it passes requests on")
    assert nodes_of(zookeepers, base) == nodes
    assert files_of(*folders) == files
    assert hidden(output) == []
    assert leaderships(cluster) == [1, 1]
    woken = asleep.process.lines[said:]
    assert any("does not lead any more" in line for line in woken), woken
    assert not any("is complete" in line for line in woken), woken
    assert not any("does not lead any more" in line for line in successor.process.lines)
