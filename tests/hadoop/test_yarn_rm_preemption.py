"""Two real queues: one that lacks its share takes a TaskManager from a job of the other, which gets it back later."""

from __future__ import annotations

import pytest

from tests.hadoop.conftest import HadoopCluster
from tests.hadoop.yarn_commands import YarnUser, application_id_in, eventually
from tests.hadoop.yarn_ha import ExactJob, ha_user, job_id_in, rest, taskmanagers

pytestmark = [pytest.mark.hadoop, pytest.mark.timeout(600)]
#: Two of them and an ApplicationMaster are more than half of two nodes of 8192 MB, and leave no room for a third one.
LARGE = ("-s", "1", "-jm", "768", "-tm", "5000")


@pytest.fixture
def user(yarn_pair: HadoopCluster, tmp_path) -> YarnUser:
    return ha_user(yarn_pair, tmp_path)


def test_a_preempted_taskmanager_is_no_failure_and_is_asked_for_again(user, tmp_path):
    """No container of the session may fail: a counted one would end it."""
    none_may_fail = ("-D", "yarn.maximum-failed-containers-per-interval=0")
    done = user.session("-n", "2", *LARGE, *none_may_fail, "-nm", "greedy", "-qu", "default", "-d")
    assert done.returncode == 0, done.stdout + done.stderr
    greedy = application_id_in(done.stdout)
    job = ExactJob(user, tmp_path / "marks", "greedy")
    done = user.flink("run", "-d", "-yid", greedy, *job.words)
    assert done.returncode == 0, done.stdout + done.stderr
    job_id = job_id_in(done.stdout)
    job.until_output()
    assert len(taskmanagers(greedy)) == 2

    done = user.session("-n", "1", *LARGE, "-nm", "poor", "-qu", "stream", "-d")
    assert done.returncode == 0, done.stdout + done.stderr
    poor = application_id_in(done.stdout)
    eventually("the poor queue has its share", lambda: rest(user, poor, "/overview")["slots-total"] == 1, 60)
    eventually("the other one has lost it", lambda: len(taskmanagers(greedy)) == 1, 60)
    said = "ended (preempted): YARN says: Container preempted by scheduler"
    eventually("it is said why", lambda: said in str(rest(user, greedy, "/jobmanager/log")))
    assert user.application(greedy)["state"] == "RUNNING"

    job.survive(
        "preemption, and the end of who has preempted",
        lambda: user.session("-id", poor, stdin="stop\n"),
        30,
        noticed=lambda: len(taskmanagers(greedy)) == 2,
    )
    job.hurry()
    eventually("the job has finished", lambda: rest(user, greedy, f"/jobs/{job_id}")["state"] == "FINISHED", 120)
    job.check_exact()
    stopped = user.session("-id", greedy, stdin="stop\n")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert user.application(greedy)["finalStatus"] == "SUCCEEDED"
