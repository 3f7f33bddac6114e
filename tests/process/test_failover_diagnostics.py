"""What people are told after a failover: the exceptions of before it, and who has led until when and why not longer."""

from __future__ import annotations

import os
import signal

import pytest

from engine.common import RestartStrategies, Types
from engine.core.ids import FencingToken
from engine.ha.history import LeaderHistory
from engine.ha.services import high_availability_services
from tests.process.cluster_jobs import until
from tests.process.ha_cluster import HaCluster
from tests.process.test_ha import environment


@pytest.fixture
def cluster(tmp_path):
    # Nobody is to be given up because the machine stands still: what is told here is counted.
    timeouts = {"session_timeout": "10 s", "heartbeat_timeout": "20000"}
    cluster = HaCluster(tmp_path, taskmanagers=1, heartbeat_interval="500", **timeouts)
    yield cluster
    cluster.close()


def kill_leader(cluster: HaCluster, number: int) -> None:
    leader = cluster.leader
    os.kill(leader.pid, number)
    leader.process.popen.wait(120)
    cluster.masters.remove(leader)
    cluster.add_master()


def all_entries_of(cluster: HaCluster, job_id: object) -> list[dict]:
    return cluster.leader.get(f"/jobs/{job_id}/exceptions")["exceptionHistory"]["entries"]


def entries_of(cluster: HaCluster, job_id: object) -> list[dict]:
    """Return those of failures: that another leader has gone on with running tasks is none."""
    return [one for one in all_entries_of(cluster, job_id) if one["exceptionName"] != "TasksTakenOver"]


def runs(cluster: HaCluster, job_id: object) -> bool:
    job = cluster.leader.get(f"/jobs/{job_id}")
    return job["state"] == "RUNNING" and job["status-counts"]["RUNNING"] == len(job["vertices"])


def test_exceptions_and_leaders_of_before_are_shown_by_the_next_leader(cluster, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()

    def fail_at_first(number: int) -> int:
        if number == 7 and len(list(marks.iterdir())) < 2:
            (marks / f"failed-{len(list(marks.iterdir()))}").touch()
            raise ValueError(f"failure {len(list(marks.iterdir()))}")
        return number

    env = environment(cluster, tmp_path, **{"web.exception-history-size": "5"})
    env.from_sequence(0, 10**9).map(fail_at_first, Types.LONG()).print()
    job_id = env.execute_async("fails twice").get_job_id()
    until(lambda: len(entries_of(cluster, job_id)) == 2, "both failures are shown")
    before = entries_of(cluster, job_id)
    (taskmanager,) = cluster.leader.get("/taskmanagers")["taskmanagers"]
    assert [one["stacktrace"].split("failure ")[1][0] for one in before] == ["2", "1"]
    assert {one["taskManagerId"] for one in before} == {taskmanager["id"]}
    assert all(one["endpoint"].startswith("localhost:") for one in before)
    first = cluster.leader.rest_url
    until(lambda: runs(cluster, job_id), "its third attempt runs")

    kill_leader(cluster, signal.SIGKILL)
    second = cluster.leader.rest_url
    assert entries_of(cluster, job_id) == before
    until(lambda: len(all_entries_of(cluster, job_id)) == len(before) + 1, "it is told that tasks run on")
    newest = all_entries_of(cluster, job_id)[0]
    assert (newest["exceptionName"], newest["taskName"]) == ("TasksTakenOver", None)
    assert "none was restarted" in newest["stacktrace"]
    kill_leader(cluster, signal.SIGTERM)
    assert entries_of(cluster, job_id) == before

    leaders = until(
        lambda: [one for one in [cluster.leader.get("/jobmanager/leaders")["leaders"]] if len(one) == 3],
        "the third leader is noted",
    )[0]
    assert [one["address"] for one in leaders] == [cluster.leader.rest_url, second, first]
    assert [one["reason"] for one in leaders] == [
        "",
        "It was told to end.",
        "It ended without a word: killed, cut off, or its host was lost.",
    ]
    assert leaders[0]["until"] == -1
    assert leaders[2]["since"] < leaders[2]["until"] <= leaders[1]["until"] <= leaders[0]["since"] + 1000


def test_the_exceptions_of_a_job_that_has_ended_are_shown_by_the_next_leader(cluster, tmp_path):
    def fail(number: int) -> int:
        raise ValueError("always")

    env = environment(cluster, tmp_path)
    env.set_restart_strategy(RestartStrategies.no_restart())
    env.from_sequence(0, 10).map(fail, Types.LONG()).print()
    job_id = env.execute_async("fails").get_job_id()
    until(lambda: cluster.leader.get(f"/jobs/{job_id}")["state"] == "FAILED", "it fails")
    before = entries_of(cluster, job_id)
    assert before[0]["exceptionName"] == "ValueError"
    services = high_availability_services(cluster.client_config())
    kept = LeaderHistory(services.metadata(), FencingToken("nobody's"))
    until(lambda: len(kept.exceptions(job_id)) == len(before), "they are written down")
    kill_leader(cluster, signal.SIGKILL)
    assert entries_of(cluster, job_id) == before
