"""The Hadoop of hadoop-docker/ is a real one, can be hurt and healed, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.hadoop.conftest import CLUSTER_PY, HadoopCluster, run_cluster


def processes_under(folder: Path) -> list[int]:
    """Return the pids of all processes that work in the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            where = os.readlink(entry / "cwd") if entry.name.isdigit() else ""
        except OSError:
            continue
        if where.startswith(str(folder)):
            found.append(int(entry.name))
    return found


@pytest.fixture
def folder(tmp_path: Path, hadoop_jars: None) -> Iterator[Path]:
    """A folder for a cluster of the test's own, which is ended in any case."""
    yield tmp_path / "own"
    run_cluster("down", "--wipe", "--dir", str(tmp_path / "own"), check=False)


def test_a_file_written_by_webhdfs_is_read_back(hadoop: HadoopCluster) -> None:
    from hdfs import InsecureClient

    client = InsecureClient(hadoop.webhdfs_url, user=hadoop.user)
    path, content = f"/user/{hadoop.user}/{uuid.uuid4().hex}", os.urandom(3_000_000)
    client.write(path, content)
    with client.read(path) as stream:
        assert stream.read() == content
    client.delete(path)


def test_the_hdfs_command_sees_what_webhdfs_wrote(hadoop: HadoopCluster) -> None:
    from hdfs import InsecureClient

    name = uuid.uuid4().hex
    InsecureClient(hadoop.webhdfs_url, user=hadoop.user).write(f"/tmp/{name}", b"hello")
    command = ["hdfs", "dfs", "-cat", f"{hadoop.namenode_uri}/tmp/{name}"]
    assert subprocess.run(command, env=hadoop.env, capture_output=True, timeout=120).stdout == b"hello"


def test_the_resourcemanager_reports_two_running_nodes(hadoop: HadoopCluster) -> None:
    with urlopen(f"{hadoop.rm_url}/ws/v1/cluster/nodes", timeout=60) as answer:
        nodes = json.load(answer)["nodes"]["node"]
    assert [node["state"] for node in nodes] == ["RUNNING", "RUNNING"]


def test_yarn_classpath_names_the_conf_folder_and_every_jar_without_java(hadoop: HadoopCluster) -> None:
    env = {**hadoop.env, "JAVA_HOME": "/nonexistent"}
    done = subprocess.run(["yarn", "classpath", "--glob"], env=env, text=True, capture_output=True, timeout=120)
    conf, *jars = done.stdout.strip().split(":")
    assert conf == str(hadoop.conf_dir)
    assert len(jars) > 100
    assert all(Path(jar).is_file() for jar in jars)


def test_zookeeper_gives_back_what_was_created(hadoop: HadoopCluster) -> None:
    from kazoo.client import KazooClient

    client = KazooClient(hosts=hadoop.zookeeper)
    client.start(timeout=60)
    try:
        path = f"/{uuid.uuid4().hex}"
        client.create(path, b"value")
        assert client.get(path)[0] == b"value"
        client.delete(path)
    finally:
        client.stop()
        client.close()


def test_a_killed_datanode_comes_back_on_its_port_with_its_data(hadoop: HadoopCluster) -> None:
    from hdfs import InsecureClient

    client = InsecureClient(hadoop.webhdfs_url, user=hadoop.user)
    path = f"/tmp/{uuid.uuid4().hex}"
    client.write(path, b"kept")
    before = hadoop.daemons()["dn1"]
    hadoop.daemon("kill9", "dn1")
    assert before["pid"] not in processes_under(hadoop.dir)
    hadoop.daemon("start", "dn1")
    after = hadoop.daemons()["dn1"]
    assert after["ports"] == before["ports"]
    assert after["pid"] != before["pid"]
    with client.read(path) as stream:
        assert stream.read() == b"kept"


def test_status_tells_a_killed_daemon_from_a_ready_one(hadoop: HadoopCluster) -> None:
    hadoop.daemon("kill9", "zk1")
    try:
        done = run_cluster("status", "--json", "--dir", str(hadoop.dir), check=False)
    finally:
        hadoop.daemon("start", "zk1")
    states = json.loads(done.stdout)["states"]
    assert (done.returncode, states["zk1"], states["nn"]) == (1, "down", "ready")


def test_a_second_cluster_stands_beside_the_first_and_down_leaves_no_process(
    hadoop: HadoopCluster, folder: Path
) -> None:
    run_cluster("up", "--no-yarn", "--datanodes", "1", "--block-size", "4k", "--dir", str(folder))
    assert HadoopCluster.of(folder).namenode_uri != hadoop.namenode_uri
    assert len(processes_under(folder)) == 2
    run_cluster("down", "--dir", str(folder))
    assert processes_under(folder) == []


def test_down_ends_a_container_whose_nodemanager_is_gone(hadoop: HadoopCluster, folder: Path) -> None:
    run_cluster("up", "--no-yarn", "--datanodes", "1", "--dir", str(folder))
    # A process as a killed NodeManager leaves it: where its container stood, and one that has moved away since.
    # The cluster is told of a NodeManager that it never had, for starting one here would only cost time.
    said = json.loads((folder / "cluster.json").read_text())
    said["shape"].update(yarn=True, nodemanagers=1)
    (folder / "cluster.json").write_text(json.dumps(said))
    container = folder / "data" / "nm1" / "local" / "usercache" / "container"
    container.mkdir(parents=True)
    stubborn = "trap '' TERM; echo up; while :; do sleep 0.1; done"
    stays = subprocess.Popen(["bash", "-c", stubborn], cwd=container, stdout=subprocess.PIPE)
    moved = subprocess.Popen(["sleep", "300"], cwd="/", env={**os.environ, "LOCAL_DIRS": str(container)})
    innocent = subprocess.Popen(["sleep", "300"], cwd=folder)
    try:
        assert stays.stdout is not None
        stays.stdout.readline()  # now it ignores SIGTERM
        run_cluster("down", "--dir", str(folder))
        assert (stays.wait(120), moved.wait(120)) == (-signal.SIGKILL, -signal.SIGTERM)
        assert innocent.poll() is None
        stays.stdout.close()
    finally:
        for process in (stays, moved, innocent):
            process.kill()
            process.wait()


def test_a_daemon_that_dies_at_start_is_told_at_once_with_its_log(folder: Path) -> None:
    run_cluster("up", "--no-yarn", "--datanodes", "1", "--dir", str(folder))
    run_cluster("daemon", "stop", "dn1", "--dir", str(folder))
    (version,) = (folder / "data" / "dn1" / "blocks" / "current").glob("VERSION")
    version.write_text(version.read_text().replace("clusterID=", "clusterID=another"))
    done = run_cluster("daemon", "start", "dn1", "--timeout", "120", "--dir", str(folder), check=False)
    assert done.returncode == 1
    assert "dn1 ended with exit code" in done.stdout
    assert "Incompatible clusterIDs" in done.stdout


def test_a_cluster_ends_when_the_program_that_holds_it_is_killed(folder: Path) -> None:
    words = ["up", "--no-yarn", "--datanodes", "1", "--until-eof", "--dir", str(folder)]
    keeper = subprocess.Popen(
        [sys.executable, str(CLUSTER_PY), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    assert any(line.startswith("ready after") for line in keeper.stdout)
    keeper.stdin.close()  # what the system does for a killed program
    assert keeper.wait(120) == 0
    keeper.stdout.close()
    assert processes_under(folder) == []


def test_missing_java_and_maven_are_one_clear_message(tmp_path: Path) -> None:
    env = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    command = [sys.executable, str(CLUSTER_PY), "install"]
    done = subprocess.run(command, env=env, text=True, capture_output=True, timeout=120)
    assert done.returncode == 3
    assert "no Java" in done.stderr
    assert "apt-get install" in done.stderr
    assert "Traceback" not in done.stderr
