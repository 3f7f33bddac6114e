"""A nameservice: two real NameNodes, of which the active one is killed while files are read and written."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.core import fs
from engine.core.fs import FileSystem
from flink_yarn.hadoop_conf import HadoopConf
from flink_yarn.hdfs import HdfsFileSystem
from tests.contract.test_file_system import *  # noqa: F403 (its tests run here too)
from tests.hadoop.conftest import HadoopCluster, running_cluster
from tests.testing.patience import until

pytestmark = pytest.mark.hadoop
CHECKOUT = Path(__file__).resolve().parents[2]
PIECE = bytes(range(256)) * (4 << 10)  # 1 MiB


@pytest.fixture(scope="module")
def pair(hadoop_jars: None) -> Iterator[HadoopCluster]:
    with running_cluster("--ha", "--zookeeper", "1", "--datanodes", "1", "--no-yarn") as cluster:
        yield cluster


#: The libraries of the others look for the active NameNode themselves; two tests show that they do.
ALL_CLIENTS = pytest.mark.parametrize("hdfs", ["webhdfs", "libhdfs", "native"], indirect=True)


@pytest.fixture(params=["webhdfs"])
def hdfs(request: pytest.FixtureRequest, pair: HadoopCluster, monkeypatch: pytest.MonkeyPatch) -> FileSystem:
    environment = {"HADOOP_USER_NAME": pair.user, "HADOOP_CONF_DIR": str(pair.conf_dir)}
    if request.param == "libhdfs":
        # The JVM of this process may have been started for another cluster, whose class path it keeps.
        environment["ARROW_LIBHDFS_DIR"] = str(request.getfixturevalue("libhdfs_folder"))
        for key in ("HADOOP_HOME", "JAVA_HOME", "PATH", "CLASSPATH"):
            if key in pair.env:
                monkeypatch.setenv(key, pair.env[key])
        monkeypatch.delenv("CLASSPATH", raising=False)
        monkeypatch.delenv("LIBHDFS_OPTS", raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    return HdfsFileSystem(HadoopConf.load(), str(request.param))


@pytest.fixture
def file_systems(hdfs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> tuple[FileSystem, str]:
    monkeypatch.setitem(fs._instances, "hdfs", hdfs)
    folder = f"hdfs://hacluster/contract/{uuid.uuid4().hex}"
    hdfs.make_dirs(folder)
    return hdfs, folder


def state_of(pair: HadoopCluster, name: str) -> str:
    url = (
        f"http://localhost:{pair.daemons()[name]['ports']['http']}/jmx?qry=Hadoop:service=NameNode,name=NameNodeStatus"
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=30) as answer:
            return str(json.load(answer)["beans"][0]["State"])
    except (OSError, LookupError):
        return "down"


def kill_active(pair: HadoopCluster) -> str:
    """Kill -9 the active NameNode and return its name."""
    active = [name for name in ("nn1", "nn2") if state_of(pair, name) == "active"]
    assert len(active) == 1
    pair.daemon("kill9", active[0])
    return active[0]


@pytest.fixture
def failover(pair: HadoopCluster) -> Iterator[list[str]]:
    """A list into which a test puts the NameNode that it has killed; it is started again afterwards."""
    killed: list[str] = []
    yield killed
    for name in killed:
        pair.daemon("start", name)
    both = ["active", "standby"]
    until(lambda: sorted(state_of(pair, name) for name in ("nn1", "nn2")) == both, "active and standby", 120)


@ALL_CLIENTS
def test_reading_goes_on_at_the_standby(hdfs, pair, failover, file_systems):
    _, folder = file_systems
    with hdfs.open_write(f"{folder}/large") as stream:
        for _ in range(100):
            stream.write(PIECE)
    digest = hashlib.sha256()
    with hdfs.open_read(f"{folder}/large") as stream:
        digest.update(stream.read(1 << 20))
        failover.append(kill_active(pair))
        while piece := stream.read(1 << 20):
            digest.update(piece)
    assert digest.digest() == hashlib.sha256(PIECE * 100).digest()


def test_a_file_is_opened_at_the_standby_while_it_takes_over(hdfs, pair, failover, file_systems):
    _, folder = file_systems
    with hdfs.open_write(f"{folder}/file") as stream:
        stream.write(PIECE)
    failover.append(kill_active(pair))
    with hdfs.open_read(f"{folder}/file") as stream:
        assert stream.read() == PIECE


@ALL_CLIENTS
def test_writing_and_publishing_go_on_at_the_standby(hdfs, pair, failover, file_systems):
    _, folder = file_systems
    with hdfs.open_write(f"{folder}/.hidden") as stream:
        for number in range(150):  # more than a block: the standby is asked for the next ones
            stream.write(PIECE)
            stream.flush()
            if number == 40:
                failover.append(kill_active(pair))
    hdfs.rename(f"{folder}/.hidden", f"{folder}/published")
    assert [child.path for child in hdfs.list(folder)] == [f"{folder}/published"]
    found = hdfs.status(f"{folder}/published")
    assert found is not None
    assert found.size_bytes == 150 * len(PIECE)


def test_what_is_asked_just_after_the_loss_waits_for_the_standby(hdfs, pair, failover, file_systems):
    _, folder = file_systems
    with hdfs.open_write(f"{folder}/a") as stream:
        stream.write(b"1")
    failover.append(kill_active(pair))
    hdfs.rename(f"{folder}/a", f"{folder}/deep/b")
    hdfs.make_dirs(f"{folder}/c")
    with hdfs.open_write(f"{folder}/d") as stream:
        stream.write(b"2")
    assert hdfs.delete(f"{folder}/c") is True
    assert [child.path for child in hdfs.list(folder)] == [f"{folder}/d", f"{folder}/deep"]


def test_a_job_reads_and_writes_a_nameservice_whose_active_namenode_is_killed(pair, failover, monkeypatch, tmp_path):
    """The word count as a user runs it, with nothing but HADOOP_CONF_DIR."""

    monkeypatch.setenv("HADOOP_USER_NAME", pair.user)
    hdfs = HdfsFileSystem(HadoopConf.load({"HADOOP_CONF_DIR": str(pair.conf_dir)}))
    folder = f"hdfs://hacluster/job/{uuid.uuid4().hex}"
    lines = [f"to be or not to be {number % 11}" for number in range(200_000)]
    for part in range(3):
        with hdfs.open_write(f"{folder}/in/{part}") as stream:
            stream.write("\n".join(lines).encode())
    program = tmp_path / "count.py"
    program.write_text(
        """
import sys
from engine.datastream import RuntimeExecutionMode, StreamExecutionEnvironment

def words(line):
    if line.endswith(" 7"):
        open(sys.argv[3], "a").close()  # the job reads
    return [(word, 1) for word in line.split()]

env = StreamExecutionEnvironment.get_execution_environment()
env.set_parallelism(2)
env.set_runtime_mode(RuntimeExecutionMode.BATCH)
counts = env.read_text_file(sys.argv[1]).flat_map(words).key_by(lambda pair: pair[0]).sum(1)
counts.map(lambda pair: f"{pair[0]} {pair[1]}").write_as_text(sys.argv[2])
env.execute("count")
"""
    )
    marker = tmp_path / "reads"
    environment = {**pair.env, "HADOOP_USER_NAME": pair.user, "PYTHONPATH": str(CHECKOUT)}
    process = subprocess.Popen(
        [sys.executable, str(program), f"{folder}/in", f"{folder}/out", str(marker)],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        until(lambda: marker.exists() or process.poll() is not None, "the job reads", pause_s=0.01)
        failover.append(kill_active(pair))
        said, _ = process.communicate(timeout=240)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, said
    counted: Counter[str] = Counter()
    for child in hdfs.list(f"{folder}/out"):
        with hdfs.open_read(child.path) as stream:
            for line in stream.read().decode().splitlines():
                word, count = line.split()
                counted[word] += int(count)
    assert counted == Counter(word for line in lines for word in line.split() for _ in range(3))
