"""Unaligned checkpoints under backpressure on a real cluster: done while aligned ones wait, and exact after a kill."""

from __future__ import annotations

import os
import random

import pytest

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

TOTAL = 8_000
ROW_S = 0.004  #: two subtasks need 16 s for all
NUM_KEYS = 101
MODES = {
    "at once": {"execution.checkpointing.unaligned.enabled": "true"},
    "after a timeout": {
        "execution.checkpointing.unaligned.enabled": "true",
        "execution.checkpointing.aligned-checkpoint-timeout": "300 ms",
    },
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = StandaloneCluster(tmp_path_factory.mktemp("cluster"), heartbeat_interval="500")
    yield cluster
    cluster.close()


@pytest.fixture
def client(cluster):
    with client_of(cluster, 4) as client:
        yield client


def backpressured(cluster, marks, tmp_path, settings):
    """A source at full speed, whose records soon fill all buffers; counts that take their time."""
    common = {
        "execution.checkpointing.interval": "500 ms",
        "execution.checkpointing.dir": str(tmp_path / "chk"),
        "execution.checkpointing.tolerable-failed-checkpoints": "100",
    }
    env = environment(cluster, 2, {**common, **settings})
    return counting(
        env,
        CountOfKey(marks, row_s=ROW_S),
        tmp_path / "out",
        key_of=lambda record: record[0] % NUM_KEYS,
        count=TOTAL,
        record_of=lambda number: (number, random.randbytes(500)),
    )


def history(client, job) -> list[dict]:
    return [one for one in checkpoints(client, job)["history"] if one["status"] == "COMPLETED"]


def test_an_aligned_checkpoint_waits_for_what_is_queued(cluster, client, marks, tmp_path):
    """What the next test is compared with: if this one is quick, that one proves nothing."""
    job = backpressured(cluster, marks, tmp_path, {})
    until(lambda: len(processes(marks)) == 2, "it counts")

    def num_slow() -> int:  # one that begins before buffers are full may be quick
        return sum(one["end_to_end_duration"] > 4000 for one in history(client, job))

    until(lambda: num_slow() or state(client, job) == "FINISHED", "one has waited", 60)
    print([(one["end_to_end_duration"], one["checkpoint_type"]) for one in history(client, job)])
    assert num_slow()
    job.cancel().result()


@pytest.mark.parametrize("mode", MODES)
def test_an_unaligned_one_overtakes_and_a_kill_costs_nothing(mode, cluster, client, marks, tmp_path):
    job = backpressured(cluster, marks, tmp_path, MODES[mode])
    until(lambda: completed(client, job) >= 4, "four checkpoints")

    def num_quick() -> int:
        return sum(one["end_to_end_duration"] < 3000 for one in history(client, job))

    until(lambda: num_quick() >= 3 or state(client, job) == "FINISHED", "three quick ones")
    found = history(client, job)
    print([(one["end_to_end_duration"], one["checkpoint_type"], one["state_size"]) for one in found])
    assert sum(one["end_to_end_duration"] < 3000 for one in found) >= 3
    assert any(one["checkpoint_type"] == "UNALIGNED_CHECKPOINT" for one in found)
    kill_slot(client, job, marks)
    was = completed(client, job)
    until(lambda: completed(client, job) > was + 1 or state(client, job) == "FINISHED", "checkpoints after the kill")
    assert checkpoints(client, job)["counts"]["restored"] in RESTORED_ONCE
    restored = checkpoints(client, job)["latest"]["restored"]
    assert restored["id"] >= 3
    job.get_job_execution_result().result(120)
    assert written(tmp_path / "out") == all_counts(totals_of(range(TOTAL), lambda number: number % NUM_KEYS))
    assert left_hidden(tmp_path / "out") == []
    until(lambda: os.listdir(tmp_path / "chk") == [], "no checkpoint is left")
