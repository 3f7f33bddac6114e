"""JobManagers elected by a real ZooKeeper: their leader is killed, paused, cut off, and a job goes on exactly once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from engine.client.leader_lookup import rest_client
from engine.core.ids import FencingToken
from tests.hadoop.conftest import HadoopCluster
from tests.process.cluster_jobs import until
from tests.process.ha_cluster import HaCluster
from tests.process.test_exactly_once_files import expected, hidden, hurry, written
from tests.process.test_ha import Waiting, file_job, first_new_output_s, tell, text  # noqa: F401 (a fixture)
from tests.testing.patience import limit_once

#: The aim: new output this soon after the leader was killed, at a session timeout of 4 s.
FAILOVER_S = 7.0
SESSION_S = 30.0  #: of a leader that says that it ends, so that nobody waits for it


@pytest.fixture
def cluster(zookeeper: HadoopCluster, tmp_path: Path, request: pytest.FixtureRequest):
    """With sessions of 4 s, or of what the test is parametrised with."""
    settings = {
        "high-availability.type": "zookeeper",
        "high-availability.zookeeper.quorum": zookeeper.zookeeper,
        "high-availability.cluster-id": f"/test-{FencingToken.generate()[:8]}",
    }
    timeouts = {"session_timeout": getattr(request, "param", "4 s"), "heartbeat_timeout": "10000"}
    cluster = HaCluster(tmp_path, heartbeat_interval="500", settings=settings, **timeouts)
    yield cluster
    cluster.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_job_goes_on_exactly_once_when_its_leader_is_lost(cluster, text, tmp_path, number):  # noqa: F811
    job, output = file_job(cluster, text, tmp_path)
    waiting = Waiting(job)
    lost = cluster.leader
    cluster.masters.remove(lost)
    seen = written(output)
    os.kill(lost.pid, number)
    begin = time.monotonic()
    try:
        tell(f"{number.name} of the leader, ZooKeeper, session timeout 4 s: {first_new_output_s(output, seen)}")
        assert time.monotonic() - begin < limit_once(FAILOVER_S + 3)  # others may keep this host busy
        time.sleep(max(0.0, begin + 10 - time.monotonic()) if number is signal.SIGSTOP else 0.0)
    finally:
        os.kill(lost.pid, signal.SIGCONT)
        cluster.masters.append(lost)
    hurry(tmp_path / "pids")
    waiting.result()
    assert written(output) == expected()
    assert hidden(output) == []
    if number is signal.SIGSTOP:
        until(lambda: lost.stands_by, "stands by")
        assert lost.get(f"/jobs/{job.get_job_id()}")["state"] == "FINISHED"


@pytest.mark.parametrize("cluster", [f"{SESSION_S:g} s"], indirect=True)
def test_sigterm_hands_over_at_once_and_a_shut_down_forgets_the_cluster(cluster, zookeeper):
    cluster.wait_for_slots(4)
    leader = cluster.leader
    cluster.masters.remove(leader)
    begin = time.monotonic()
    leader.process.popen.send_signal(signal.SIGTERM)
    successor = cluster.leader
    took = time.monotonic() - begin
    tell(f"SIGTERM of the leader, ZooKeeper: another one leads after {took:.2f} s")
    assert took < SESSION_S  # which need not expire
    assert leader.process.popen.wait(120) == 0
    rest_client(cluster.client_config()).shut_down()
    assert successor.process.popen.wait(120) == 0
    from kazoo.client import KazooClient

    client = KazooClient(zookeeper.zookeeper)
    client.start(timeout=60)
    try:
        base = f"/flink{cluster.config['high-availability.cluster-id']}"
        assert client.exists(base) is None
    finally:
        client.stop()
        client.close()
