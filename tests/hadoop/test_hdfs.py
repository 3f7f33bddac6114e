"""The file system contract on a real HDFS, and what only HDFS has: addresses, permissions, daemons that go away."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

from engine.core import fs
from engine.core.errors import ExternalError, InputError
from engine.core.fs import FileSystem
from flink_yarn.hadoop_conf import HadoopConf
from flink_yarn.hdfs import HdfsFileSystem
from tests.contract.test_file_system import *  # noqa: F403 (its tests run here too)
from tests.hadoop.conftest import HadoopCluster
from tests.hadoop.fault_jobs import read_on
from tests.testing.checkpointed_job import CheckpointedJob
from tests.testing.memory_fs import Crash, CrashPoints
from tests.testing.patience import until
from tests.unit.connectors.test_sink_crashes import EXPECTED, Place, World, count_records, play, text_spec, tuple_lines

pytestmark = pytest.mark.hadoop
CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["webhdfs", "libhdfs", "native"])
def client(request: pytest.FixtureRequest, hadoop: HadoopCluster, monkeypatch: pytest.MonkeyPatch) -> str:
    """The value of fs.hdfs.client, and the environment that it needs."""
    monkeypatch.setenv("HADOOP_USER_NAME", hadoop.user)
    if request.param == "libhdfs":
        # A JVM is never unloaded: what it has been started with stays for the process.
        environment = {**hadoop.env, "ARROW_LIBHDFS_DIR": str(request.getfixturevalue("libhdfs_folder"))}
        for key in ("ARROW_LIBHDFS_DIR", "CLASSPATH", "HADOOP_HOME", "JAVA_HOME", "LIBHDFS_OPTS", "PATH"):
            monkeypatch.setenv(key, environment.get(key, ""))
            if not environment.get(key):
                monkeypatch.delenv(key)
    return str(request.param)


@pytest.fixture
def hdfs(hadoop: HadoopCluster, client: str) -> FileSystem:
    return HdfsFileSystem(HadoopConf.load({"HADOOP_CONF_DIR": str(hadoop.conf_dir)}), client)


@pytest.fixture
def file_systems(hdfs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> tuple[FileSystem, str]:
    monkeypatch.setitem(fs._instances, "hdfs", hdfs)
    folder = f"hdfs:///contract/{uuid.uuid4().hex}"
    hdfs.make_dirs(folder)
    return hdfs, folder


def test_a_path_may_name_the_cluster_or_leave_it_to_the_configuration(hdfs, hadoop, file_systems):
    _, folder = file_systems
    plain = folder.removeprefix("hdfs://")
    with hdfs.open_write(f"{hadoop.namenode_uri}{plain}/a b#1?.txt") as stream:
        stream.write(b"x")
    for path in (f"hdfs://{plain}/a b#1?.txt", f"{hadoop.namenode_uri}{plain}/a b#1?.txt", f"hdfs:{plain}/a b#1?.txt"):
        found = hdfs.status(path)
        assert found is not None
        assert found.path == path


def test_blocks_have_hosts(hdfs, file_systems):
    _, folder = file_systems
    with hdfs.open_write(f"{folder}/a") as stream:
        stream.write(b"x" * 1000)
    assert hdfs.block_hosts(f"{folder}/a", 0, 1000) == ("localhost",)


def test_what_the_user_may_not_do_is_told_with_path_and_user(hdfs, hadoop, client, file_systems, monkeypatch):
    _, folder = file_systems
    monkeypatch.setenv("HADOOP_USER_NAME", "mallory")
    other = HdfsFileSystem(HadoopConf.load({"HADOOP_CONF_DIR": str(hadoop.conf_dir)}), client)
    with pytest.raises(ExternalError, match=r"Permission denied: user=mallory"):
        other.make_dirs(f"{folder}/of-mallory")

    def write() -> None:  # the refusal comes at the beginning or at the end, as the library has it
        with other.open_write(f"{folder}/x") as stream:
            stream.write(b"x")

    with pytest.raises(ExternalError, match=f"{folder}/x.*Permission denied: user=mallory"):
        write()
    assert hdfs.list(folder) == []


def test_a_cluster_that_is_not_there_is_told_at_once(hdfs):
    with pytest.raises(ExternalError, match="does not answer"):
        hdfs.status("hdfs://localhost:1/x")
    with pytest.raises(ExternalError, match="does not answer"):
        hdfs.open_read("hdfs://localhost:1/x")


def test_reading_goes_on_when_the_data_node_was_killed_meanwhile(hdfs, hadoop, client, file_systems):
    _, folder = file_systems
    data = bytes(range(256)) * (40 << 12)  # 40 MiB: more than any buffer on the way
    with hdfs.open_write(f"{folder}/large") as stream:
        stream.write(data)
    returned: list[float] = []

    def start() -> None:
        hadoop.daemon("start", "dn1")
        returned.append(time.monotonic())

    with hdfs.open_read(f"{folder}/large") as stream:
        first = stream.read(1 << 20)
        hadoop.daemon("kill9", "dn1")
        starter = threading.Thread(target=start)
        starter.start()
        try:
            rest, longest_s, over = read_on(stream)
        finally:
            starter.join()
    after_s = over - returned[0]
    print(
        f"\n{client}: the only DataNode killed: no bytes for {longest_s:.1f} s, until {after_s:.1f} s after its return"
    )
    assert first + rest == data


def test_a_name_node_that_restarts_is_waited_for(hdfs, hadoop, file_systems):
    _, folder = file_systems
    data = b"0123456789abcdef" * (2 << 16)
    with hdfs.open_write(f"{folder}/file") as stream:
        stream.write(data)
    reading = hdfs.open_read(f"{folder}/file")
    written = hdfs.open_write(f"{folder}/.written")
    written.write(data)
    written.flush()
    hadoop.daemon("kill9", "nn")
    starter = threading.Thread(target=hadoop.daemon, args=("start", "nn"))
    starter.start()
    try:
        begun = hdfs.open_write(f"{folder}/.begun", overwrite=True)
        for stream in (written, begun):
            stream.write(data)
            stream.flush()
        with reading:
            assert reading.read() == data
        for name, stream in (("written", written), ("begun", begun)):
            stream.close()
            hdfs.rename(f"{folder}/.{name}", f"{folder}/{name}")
    finally:
        starter.join()
    for name, times in (("written", 2), ("begun", 1)):
        with hdfs.open_read(f"{folder}/{name}") as stream:
            assert stream.read() == data * times
    assert [child.path for child in hdfs.list(folder)] == [f"{folder}/{name}" for name in ("begun", "file", "written")]


WRITER = """
import sys, time
from flink_yarn.hadoop_conf import HadoopConf
from flink_yarn.hdfs import HdfsFileSystem

fs = HdfsFileSystem(HadoopConf.load(), sys.argv[1])

def begun(path):
    while True:
        stream = fs.open_write(path, overwrite=True)
        stream.write(bytes(3 << 20))
        stream.flush()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if fs.status(path):  # an upload may just be beginning
                return stream
            time.sleep(0.01)
        stream.raw.give_up()  # the cluster was away for a moment: the file would be written when it is closed

streams = [begun(path) for path in sys.argv[2:]]
print("written", flush=True)
sys.stdin.read()
"""


def test_what_a_killed_writer_left_open_is_replaced_and_removed_at_once(hdfs, hadoop, client, file_systems):
    """Its lease lasts for a minute: nobody may append before, and nothing of ours wants to."""
    _, folder = file_systems
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, client, f"{folder}/replaced", f"{folder}/removed"],
        env={**os.environ, "HADOOP_CONF_DIR": str(hadoop.conf_dir)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=CHECKOUT,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        process.kill()
    for name in ("replaced", "removed"):
        # Its DataNode may be about to create it.
        until(lambda name=name: hdfs.status(f"{folder}/{name}"), "it is there")
    with hdfs.open_write(f"{folder}/replaced", overwrite=True) as stream:
        stream.write(b"whole")
    with hdfs.open_read(f"{folder}/replaced") as stream:
        assert stream.read() == b"whole"
    assert hdfs.delete(f"{folder}/removed") is True
    assert [child.path for child in hdfs.list(folder)] == [f"{folder}/replaced"]


def test_a_file_cut_short_is_an_error_and_not_less_data(hdfs, hadoop, file_systems):
    _, folder = file_systems
    with hdfs.open_write(f"{folder}/file") as stream:
        stream.write(b"x" * 100_000)
    stream = hdfs.open_read(f"{folder}/file")
    hdfs.delete(f"{folder}/file")
    with stream, pytest.raises(InputError, match=f"{folder}/file at byte 0"):
        stream.read()


def test_a_file_sink_is_exact_on_hdfs_wherever_it_is_killed(hdfs, file_systems, monkeypatch):
    _, folder = file_systems
    crashes = CrashPoints(hdfs)
    monkeypatch.setitem(fs._instances, "hdfs", crashes)
    for number, crash_at in enumerate((9, 17, 26, 35, 48)):
        place = Place(crashes, f"{folder}/{number}")
        hdfs.make_dirs(place.folder)
        job = CheckpointedJob(text_spec(place.folder), parallelism=2)
        world = World(place, job)
        crashes.num_calls, crashes.crash_at, crashes.after = 0, crash_at, bool(number % 2)
        with pytest.raises(Crash):
            play(world, 2)
        crashes.crash_at = None
        job.kill()
        play(world, 1 + number % 3)
        job.dispose()
        assert count_records(place.visible(), tuple_lines) == EXPECTED
        assert place.hidden() == []
