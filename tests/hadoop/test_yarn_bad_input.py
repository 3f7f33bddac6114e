"""What goes wrong before an application starts: one clear line, exit code 1, within seconds, nothing left behind."""

from __future__ import annotations

import re
import time

import pytest

from tests.hadoop.conftest import HadoopCluster
from tests.hadoop.yarn_commands import DIVISION, SMALL, YarnUser, eventually, processes_of, skein_drivers
from tests.hadoop.yarn_ha import zookeeper_nodes
from tests.testing.patience import limit_once

pytestmark = pytest.mark.hadoop
QUICK_S = 15.0


@pytest.fixture
def user(hadoop: HadoopCluster, tmp_path) -> YarnUser:
    return YarnUser.create(hadoop, tmp_path)


def refused(user: YarnUser, *words: str, **env: str) -> str:
    """Run a yarn-session.sh that must fail at once; return its one message."""
    before = user.running_applications() if env.pop("ask", "yes") == "yes" else None
    started = time.monotonic()
    done = user.session("-d", *words, **env)
    assert time.monotonic() - started < limit_once(QUICK_S)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    if before is not None:
        assert user.running_applications() == before
    assert skein_drivers(str(user.folder)) == []
    return done.stderr.strip()


def test_without_a_hadoop_configuration(user):
    said = refused(user, HADOOP_CONF_DIR="", YARN_CONF_DIR="")
    assert said.count("\n") == 0
    assert "Neither HADOOP_CONF_DIR nor YARN_CONF_DIR is set" in said
    done = user.flink(
        "run", "-m", "yarn-cluster", user.write("division.py", DIVISION), HADOOP_CONF_DIR="", YARN_CONF_DIR=""
    )
    assert done.returncode == 1
    assert "Neither HADOOP_CONF_DIR nor YARN_CONF_DIR is set" in done.stderr


def test_a_queue_that_does_not_exist(user):
    said = refused(user, "-qu", "nowhere", *SMALL)
    assert "YARN has no queue 'nowhere'" in said
    assert "default, stream" in said


@pytest.mark.parametrize(("option", "least"), [("-jm", "512"), ("-tm", "256")])
def test_too_little_memory_names_the_least_that_works(user, option, least):
    said = refused(user, option, "100")
    assert "has 100 MB; expected at least" in said
    assert least in said


def test_more_memory_than_the_largest_container_has(user):
    said = refused(user, "-tm", "9000")
    assert "is to have 9000 MB, but the largest container of this YARN cluster has 8192 MB" in said


def test_options_that_make_no_sense(user):
    assert "Unrecognized option: -bogus" in refused(user, "-bogus")
    assert "-n is 'many'" in refused(user, "-n", "many")
    assert "taskmanager.numberOfTaskSlots is 'x'" in refused(user, "-s", "x")
    assert "does not exist" in refused(user, *SMALL, "-t", "/nowhere/at/all")


def test_an_application_that_nobody_knows(user):
    assert "YARN knows no application application_1_0001" in refused(user, "-id", "application_1_0001")


@pytest.mark.parametrize(
    ("quorum", "storage", "said"),
    [
        (
            "127.0.0.1:1",
            "/ha",
            r"ZooKeeper at 127\.0\.0\.1:1 \(high-availability\.zookeeper\.quorum\) did not answer within",
        ),
        (
            "",
            "/ha-of-others",
            r"Folder hdfs:///ha-of-others/kept \(high-availability\.storageDir\) cannot be written: .*"
            r"Permission denied: user=alice, access=WRITE, inode=\"/ha-of-others/kept\"",
        ),
    ],
    ids=["quorum", "storageDir"],
)
def test_high_availability_that_cannot_work_ends_the_application_with_the_reason(user, hadoop, quorum, storage, said):
    """It is found in the ApplicationMaster; whoever waits for it is told the same, without trying for minutes. What
    another user has in the folder of that cluster stays, and nobody else takes the cluster's place in ZooKeeper."""
    user.put("/ha-of-others/kept/graph", "of a job")
    user.hdfs.makedirs("/user/alice")
    user.hdfs.set_owner("/user/alice", owner="alice")
    settings = {
        "high-availability.type": "zookeeper",
        "high-availability.zookeeper.quorum": quorum or hadoop.zookeeper,
        "high-availability.storageDir": f"hdfs://{storage}",
        "high-availability.zookeeper.client.connection-timeout": "2 s",
    }
    words = [word for key, value in settings.items() for word in ("-D", f"{key}={value}")]
    named = ("-z", "kept", "-nm", f"bad {storage}")
    done = user.session("-d", *SMALL, *named, *words, HADOOP_USER_NAME="alice")
    assert done.returncode == 1, done.stdout
    report = user.application_named(f"bad {storage}")
    assert (report["state"], report["finalStatus"]) == ("FINISHED", "FAILED")
    for text in (done.stderr, report["diagnostics"]):
        assert re.search(said, text), text
    assert "Traceback" not in done.stderr
    assert f"yarn logs -applicationId {report['id']}" in done.stderr
    assert not (user.folder / ".yarn-properties-alice").exists()
    eventually("no process is left", lambda: not processes_of(report["id"]))
    assert report["id"] not in user.hdfs.list("/user/alice/.skein")
    assert zookeeper_nodes(hadoop, "/flink/kept") == []
    assert user.lines("/ha-of-others/kept/graph") == ["of a job"]
    assert user.hdfs.list("/ha-of-others/kept") == ["graph"]


def test_the_resource_manager_is_down(user, hadoop):
    hadoop.daemon("stop", "rm")
    try:
        said = refused(user, *SMALL, ask="no")
        assert "The ResourceManager does not answer" in said
        assert "Connection refused" in said
        assert said.count("\n") == 0
    finally:
        hadoop.daemon("start", "rm")
    eventually("both nodes are back", lambda: "NodeManagers in the ClusterClient 2" in user.session("-q").stdout)


def test_the_name_node_is_down(user, hadoop):
    hadoop.daemon("stop", "nn")
    try:
        said = refused(user, *SMALL)
        assert "the NameNode or DataNode does not answer" in said
    finally:
        hadoop.daemon("start", "nn")
