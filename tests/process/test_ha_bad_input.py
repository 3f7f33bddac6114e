"""Settings and folders of high availability that cannot work: the process ends with one message, or says what it does
without what is missing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
from collections.abc import Iterator

import pytest

from tests.process.cluster_jobs import Process, until
from tests.process.ha_cluster import HaCluster
from tests.process.test_rolling_replacement import Job


@pytest.fixture
def silent() -> Iterator[str]:
    """host:port of a server that takes connections and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"quorum": "127.0.0.1:1"},
            r"ZooKeeper at 127\.0\.0\.1:1 \(high-availability\.zookeeper\.quorum\) did not answer",
        ),
        (
            {"quorum": "{silent}"},
            r"ZooKeeper at {silent} \(high-availability\.zookeeper\.quorum\) did not answer within",
        ),
        ({"type": "filesystem", "storageDir": "{file}/below"}, r"\(high-availability\.storageDir\) cannot be written"),
        ({"type": "filesystem", "storageDir": ""}, r"high-availability\.storageDir is not set"),
    ],
    ids=["refused", "silent", "not-a-folder", "not-set"],
)
def test_a_jobmanager_that_cannot_contend_ends_with_one_message(silent, tmp_path, settings, said):
    (tmp_path / "file").touch()
    values = {
        "high-availability.type": settings.get("type", "zookeeper"),
        "high-availability.storageDir": settings.get("storageDir", f"file://{tmp_path}/ha"),
        "high-availability.zookeeper.quorum": settings.get("quorum", ""),
        "high-availability.zookeeper.client.connection-timeout": "2 s",
        "high-availability.zookeeper.client.retry-wait": "1 s",
        "io.tmp.dirs": str(tmp_path),
        "rest.port": "0",
    }
    places = {"{silent}": silent, "{file}": f"file://{tmp_path}/file"}
    for place, value in places.items():
        values = {key: text.replace(place, value) for key, text in values.items()}
        said = said.replace(place, re.escape(value))
    process = Process("jobmanager", *(f"-D{key}={value}" for key, value in values.items()))
    try:
        assert process.popen.wait(120) == 1
    finally:
        process.end()
    errors = [line for line in process.lines if " ERROR " in line]
    assert len(errors) == 1, process.output
    assert re.search(said, errors[0]), errors[0]
    assert "Traceback" not in process.output


@pytest.fixture
def cluster(tmp_path):
    timeouts = {"session_timeout": "8 s", "heartbeat_timeout": "20000"}  # exceptions are counted
    cluster = HaCluster(tmp_path, masters=1, heartbeat_interval="500", **timeouts)
    yield cluster
    cluster.close()


def lose_leader(cluster: HaCluster) -> None:
    leader = cluster.leader
    os.kill(leader.pid, signal.SIGKILL)
    leader.process.popen.wait(120)
    cluster.masters.remove(leader)


def test_a_job_whose_checkpoints_are_all_gone_fails_with_the_reason_and_does_not_begin_anew(cluster, tmp_path):
    job = Job(cluster, tmp_path)
    until(lambda: job.get("/checkpoints")["counts"]["completed"] >= 1, "a checkpoint")
    lose_leader(cluster)
    shutil.rmtree(tmp_path / "checkpoints")
    cluster.add_master()
    until(lambda: job.get()["state"] == "FAILED", "it fails")
    (entry,) = job.get("/exceptions")["exceptionHistory"]["entries"]
    assert "has no checkpoint that it could go on from: checkpoint " in entry["stacktrace"]
    assert str(tmp_path / "checkpoints") in entry["stacktrace"]
    cluster.wait_for_slots(4)


def test_a_next_leader_that_misses_the_newest_checkpoint_goes_on_from_the_one_before_and_says_so(cluster, tmp_path):
    job = Job(cluster, tmp_path, **{"execution.checkpointing.num-retained": "3"})
    until(lambda: job.get("/checkpoints")["counts"]["completed"] >= 4, "checkpoints")
    lose_leader(cluster)
    folders = sorted((tmp_path / "checkpoints").rglob("chk-*/_metadata"), key=lambda path: int(path.parent.name[4:]))
    newest, before = folders[-1].parent, folders[-2].parent
    shutil.rmtree(newest)
    cluster.add_master()
    said = cluster.leader.process.find(r"checkpoint=(\d+) cannot be used, falling back to the one before.*")
    assert said[1] == newest.name[4:]
    assert newest.name in said[0]
    until(job.runs, "the job goes on")
    restored = cluster.leader.process.find(r"goes on from checkpoint=(\d+) ")[1]
    assert restored == before.name[4:]
