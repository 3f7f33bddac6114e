"""A job that reads, checkpoints and writes on HDFS while its daemons are killed, closed and full: it goes on."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator

import pytest

from engine.client.rest_client import RestClient
from engine.core.fs import FileSystem
from flink_yarn.hadoop_conf import HadoopConf
from flink_yarn.hdfs import HdfsFileSystem
from tests.hadoop.conftest import HadoopCluster, running_cluster
from tests.hadoop.fault_jobs import FaultJob, read_on
from tests.process.cluster_jobs import StandaloneCluster, until
from tests.testing.patience import limit_once

pytestmark = [pytest.mark.hadoop, pytest.mark.timeout(500)]

AWAY_S = 20.0
#: A cancel does not wait for what is away; 2 s is promised on a host that has nothing else to do.
CANCEL_S = 10.0


@pytest.fixture(scope="module")
def hadoop(hadoop_jars: None) -> Iterator[HadoopCluster]:
    with running_cluster("--no-yarn", "--datanodes", "2", "--replication", "2") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def hdfs(hadoop: HadoopCluster) -> Iterator[FileSystem]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HADOOP_USER_NAME", hadoop.user)
        patch.setenv("HADOOP_CONF_DIR", str(hadoop.conf_dir))
        yield HdfsFileSystem(HadoopConf.load())


@pytest.fixture(scope="module")
def cluster(hdfs: FileSystem, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandaloneCluster]:
    cluster = StandaloneCluster(tmp_path_factory.mktemp("faults"), taskmanagers=2, slots=1)
    yield cluster
    cluster.close()


@pytest.fixture
def start(cluster, hdfs, tmp_path):
    """Start a job and return it when it takes checkpoints."""
    jobs = []
    with contextlib.closing(RestClient(cluster.rest_url)) as client:
        until(lambda: client.overview()["slots-available"] == 2, "two free slots")

    def start(**settings: str) -> FaultJob:
        jobs.append(FaultJob(hdfs, cluster.rest_url, tmp_path, **settings))
        jobs[-1].until_checkpoints(2, "at the beginning")
        return jobs[-1]

    yield start
    for job in jobs:
        job.close()


def admin(hadoop: HadoopCluster, *words: str) -> None:
    done = subprocess.run(["hdfs", "dfsadmin", *words], env=hadoop.env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def tell(text: str) -> None:
    print(f"\n{text}")


def test_a_name_node_that_is_away_or_in_safe_mode_restarts_no_job(start, hadoop):
    job = start()
    hadoop.daemon("kill9", "nn")
    time.sleep(AWAY_S)
    hadoop.daemon("start", "nn")
    tell(
        f"NameNode away for {AWAY_S:g} s: two checkpoints {job.until_checkpoints(2, 'after it'):.1f} s after its return"
    )
    assert not job.was_restarted(), job.exceptions()
    assert job.checkpoint_failures() == []

    admin(hadoop, "-safemode", "enter")
    before = job.checkpoints_completed()
    time.sleep(10)
    assert job.checkpoints_completed() <= before + 1  # whose metadata was being written
    admin(hadoop, "-safemode", "leave")
    tell(f"safe mode for 10 s: two checkpoints {job.until_checkpoints(2, 'after it'):.1f} s after its end")
    job.finish()
    assert not job.was_restarted(), job.exceptions()
    job.check_exact()


def test_a_data_node_that_is_killed_restarts_no_job(start, hadoop, hdfs):
    """Whichever it is: the input is read from one, checkpoints and part files go through one to both."""
    job = start(**{"state.storage.fs.memory-threshold": "0 b"})
    data = bytes(range(256)) * (40 << 12)  # 40 MiB: more than any buffer on the way
    with hdfs.open_write(f"{job.root}/large") as stream:
        stream.write(data)
    for name in ("dn1", "dn2"):
        with hdfs.open_read(f"{job.root}/large") as stream:
            first = stream.read(1 << 20)
            hadoop.daemon("kill9", name)
            rest, longest_s, _ = read_on(stream)
        tell(f"{name} killed while a file of 40 MiB is read: no bytes for {longest_s:.2f} s")
        assert first + rest == data
        tell(f"{name} killed: four checkpoints after {job.until_checkpoints(4, f'without {name}'):.1f} s")
        hadoop.daemon("start", name)
    job.finish()
    assert not job.was_restarted(), job.exceptions()
    job.check_exact()


def test_a_full_folder_is_named_and_nothing_is_torn(start, hadoop):
    settings = {
        "execution.checkpointing.tolerable-failed-checkpoints": "1000",
        "state.storage.fs.memory-threshold": "0 b",  # so that tasks write files, too
    }
    job = start(**settings)
    folder = job.checkpoints.removeprefix("hdfs://")
    admin(hadoop, "-setSpaceQuota", "1m", folder)
    (said,) = until(
        lambda: [text for text in job.checkpoint_failures() if "quota" in text][:1], "a declined checkpoint"
    )
    assert f"The DiskSpace quota of {folder} is exceeded: quota = 1048576 B" in said, said
    assert "hdfs dfsadmin" in said
    assert f"Cannot write {job.checkpoints}" in said
    admin(hadoop, "-clrSpaceQuota", folder)
    job.until_checkpoints(2, "after there is room for them")
    assert not job.was_restarted(), job.exceptions()

    folder = job.output.removeprefix("hdfs://")
    admin(hadoop, "-setQuota", "3", folder)
    until(job.was_restarted, "a sink that cannot write fails its job")
    assert f"quota (directories and files) of directory {folder} is exceeded: quota=3" in job.exceptions()
    admin(hadoop, "-clrQuota", folder)
    job.until_checkpoints(2, "after there is room for output")
    job.finish()
    job.check_exact()


def test_a_job_is_cancelled_while_there_is_no_name_node(start, hadoop):
    job = start()
    until(job.visible, "some output")
    hadoop.daemon("kill9", "nn")
    try:
        begin = time.monotonic()
        job.client.cancel(job.job_id)
        until(lambda: job.state() == "CANCELED", "cancelled")
        took = time.monotonic() - begin
        tell(f"cancelled without a NameNode after {took:.1f} s")
        assert took < limit_once(CANCEL_S)
    finally:
        hadoop.daemon("start", "nn")
    assert max(job.visible().values()) == 1
