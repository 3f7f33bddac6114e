"""``execution.checkpointing.storage: jobmanager`` on a real cluster: small state recovers, too large is told."""

from __future__ import annotations

import random
import re

import pytest

from engine.core.errors import JobExecutionError
from tests.process.cluster_jobs import StandaloneCluster, until
from tests.process.counting_jobs import (
    RESTORED_ONCE,
    CountOfKey,
    all_counts,
    checkpoints,
    client_of,
    completed,
    counting,
    environment,
    kill_slot,
    left_hidden,
    processes,
    state,
    totals_of,
    written,
)

LIMIT = 5 << 20
IN_MEMORY = {"execution.checkpointing.storage": "jobmanager", "execution.checkpointing.interval": "300 ms"}
#: keys and bytes of each: more than the limit in all of them
LARGE = {
    "written in place": ("hashmap", 1500, 6000),
    "written by a child": ("hashmap", 9000, 1000),
    "files of rocksdb": ("rocksdb", 9000, 1000),
}
TOLD = re.compile(
    r"task .*\(1/1\) declined: The state of the task has (\d+) bytes, and the JobManager keeps at most 5242880 bytes "
    r"of each task \(execution\.checkpointing\.jobmanager\.max-state-size\)\. "
    r"Set execution\.checkpointing\.storage to filesystem and execution\.checkpointing\.dir"
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = StandaloneCluster(tmp_path_factory.mktemp("cluster"), taskmanagers=1, heartbeat_interval="500")
    yield cluster
    cluster.close()


@pytest.fixture
def client(cluster):
    with client_of(cluster, 2) as client:
        yield client


def begin(cluster, tmp_path, marks, how: str, *, count: int | None, **settings: str):
    backend, num_keys, pad_bytes = LARGE[how]
    env = environment(cluster, 1, {**IN_MEMORY, "state.backend.type": backend, **settings})
    function = CountOfKey(marks, pad_bytes)
    return counting(
        env, function, tmp_path / "out", key_of=lambda number: number % num_keys, count=count, rate=num_keys / 2
    ), num_keys


@pytest.mark.parametrize("how", LARGE)
def test_state_that_is_too_large_fails_the_job_with_its_size_the_limit_and_what_to_change(
    how, cluster, client, marks, tmp_path
):
    settings = {"restart-strategy.type": "none"}
    job, _ = begin(cluster, tmp_path, marks, how, count=None, **settings)
    with pytest.raises(JobExecutionError) as raised:
        job.get_job_execution_result().result(120)
    message = str(raised.value)
    assert "Exceeded checkpoint tolerable failure threshold" in message
    assert message.count("bytes of each task") == 1
    told = TOLD.search(message)
    assert told, message
    assert LIMIT < int(told[1]) < 4 * LIMIT
    assert bool(processes(marks, "forks")) == (how == "written by a child")


@pytest.mark.parametrize("how", LARGE)
def test_a_job_whose_failed_checkpoints_are_tolerated_goes_on(how, cluster, client, marks, tmp_path):
    settings = {"execution.checkpointing.tolerable-failed-checkpoints": "1000"}
    total = LARGE[how][1] * 4
    job, num_keys = begin(cluster, tmp_path, marks, how, count=total, **settings)

    def failed() -> dict:
        return checkpoints(client, job)["latest"]["failed"]

    until(lambda: failed() and TOLD.search(failed()["failure_message"]), "it is told")
    was = checkpoints(client, job)["counts"]["failed"]

    def is_tried_again() -> bool:  # or the job has ended meanwhile, which has to go on as well
        return checkpoints(client, job)["counts"]["failed"] > was + 1 or state(client, job) == "FINISHED"

    until(is_tried_again, "it is tried again")
    assert state(client, job) in ("RUNNING", "FINISHED")
    # The last checkpoint is the coordinators' alone: small, so the files are committed.
    job.get_job_execution_result().result(120)
    assert written(tmp_path / "out") == all_counts(totals_of(range(total), lambda number: number % num_keys))


def test_the_limit_is_a_setting(cluster, client, marks, tmp_path):
    settings = {"execution.checkpointing.jobmanager.max-state-size": "64 mb"}
    job, _ = begin(cluster, tmp_path, marks, "written by a child", count=None, **settings)
    until(lambda: completed(client, job) >= 2, "two checkpoints")
    until(lambda: checkpoints(client, job)["latest"]["completed"]["state_size"] > LIMIT, "one with all keys")


def test_records_in_flight_count_too(cluster, client, marks, tmp_path):
    """An unaligned checkpoint takes in what waits before two slow subtasks; the state itself is small."""
    settings = {
        "execution.checkpointing.unaligned.enabled": "true",
        "execution.checkpointing.jobmanager.max-state-size": "100 kb",
        "restart-strategy.type": "none",
    }
    env = environment(cluster, 2, {**IN_MEMORY, **settings})
    job = counting(
        env,
        CountOfKey(marks, row_s=0.004),
        tmp_path / "out",
        key_of=lambda record: record[0] % 11,
        record_of=lambda number: (number, random.randbytes(2000)),
    )
    with pytest.raises(JobExecutionError) as raised:
        job.get_job_execution_result().result(120)
    message = str(raised.value)
    told = re.search(r"state of the task has (\d+) bytes, and the JobManager keeps at most 102400 bytes", message)
    assert told, message
    assert int(told[1]) > 102_400


@pytest.mark.parametrize("backend", ["hashmap", "rocksdb"])
def test_small_state_recovers(backend, cluster, client, marks, tmp_path):
    total = 10_000
    env = environment(cluster, 2, {**IN_MEMORY, "state.backend.type": backend})
    job = counting(env, CountOfKey(marks), tmp_path / "out", key_of=lambda n: n % 97, count=total, rate=1000)
    until(lambda: completed(client, job) >= 3, "three checkpoints")
    kill_slot(client, job, marks)
    job.get_job_execution_result().result(120)
    assert checkpoints(client, job)["counts"]["restored"] in RESTORED_ONCE
    assert written(tmp_path / "out") == all_counts(totals_of(range(total), lambda n: n % 97))
    assert left_hidden(tmp_path / "out") == []
