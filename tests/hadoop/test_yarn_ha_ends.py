"""Applications with high availability come to the right end, once: jobs and programs that are run again by a new
attempt, JobManagers and containers that die too often, two clusters with one id."""

from __future__ import annotations

import contextlib
import subprocess
import time

import pytest

from tests.hadoop.conftest import HadoopCluster
from tests.hadoop.yarn_commands import (
    ROOT,
    SMALL,
    SMALL_JOB,
    YarnUser,
    application_id_in,
    eventually,
    kill_process,
    processes_of,
)
from tests.hadoop.yarn_ha import (
    ExactJob,
    ha_user,
    java_master,
    job_state,
    jobmanager_process,
    jobmanager_processes,
    rest,
    taskmanagers,
    zookeeper_nodes,
)
from tests.testing.patience import patience

pytestmark = [pytest.mark.hadoop, pytest.mark.timeout(500)]


@pytest.fixture
def user(hadoop: HadoopCluster, tmp_path) -> YarnUser:
    return ha_user(hadoop, tmp_path)


def ended(user: YarnUser, application_id: str) -> dict | None:
    report = user.application(application_id)
    return report if report["state"] in ("FINISHED", "FAILED", "KILLED") else None


def nothing_is_left(user: YarnUser, application_id: str, cluster_id: str = "") -> None:
    eventually("no process is left", lambda: not processes_of(application_id))
    assert zookeeper_nodes(user.hadoop, f"/flink/{cluster_id or application_id}") == []
    assert (cluster_id or application_id) not in user.hdfs.list("/ha")
    assert application_id not in user.hdfs.list(f"/user/{user.hadoop.user}/.skein")


def test_a_finished_job_never_runs_again_whatever_dies_before_its_application_has_ended(user, tmp_path):
    job = ExactJob(user, tmp_path / "marks", "ha-per-job")
    words = ["-m", "yarn-cluster", *SMALL_JOB, "-ynm", "ha-per-job", "-yD", "yarn.application-attempts=3"]
    client = subprocess.Popen(
        [str(ROOT / "scripts" / "flink"), "run", *words, *job.words],
        env=user.env,
        cwd=user.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        job.until_output()
        application_id = user.application_named("ha-per-job")["id"]
        job.survive(
            "per-job, kill -9 of the Java ApplicationMaster",
            lambda: kill_process(java_master(application_id)),
            20,
            noticed=lambda: True,
        )
        (row,) = rest(user, application_id, "/jobs/overview")["jobs"]
    finally:
        client.kill()  # so that nobody asks for the result, for which the application waits a while
        client.wait()
    job.hurry()

    eventually("the job has finished", lambda: job_state(user, application_id, row["jid"]) == "FINISHED", 60)
    written = job.files()
    kill_process(java_master(application_id))
    report = eventually("the application has ended", lambda: ended(user, application_id), 60)
    assert (report["state"], report["finalStatus"]) == ("FINISHED", "SUCCEEDED")
    assert report["diagnostics"] == "Job 'ha-per-job' finished."
    assert job.files() == written
    job.check_exact()
    nothing_is_left(user, application_id)


def test_a_program_that_a_new_attempt_runs_again_finds_its_job(user, tmp_path):
    job = ExactJob(user, tmp_path / "marks", "ha-application")
    done = user.flink(
        "run", "-d", "-t", "yarn-application", *SMALL_JOB, "-ynm", "ha-application", *job.words
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    application_id = application_id_in(done.stdout)
    job.until_output()
    job.survive(
        "application, kill -9 of the JobManager's Python process",
        lambda: kill_process(jobmanager_process(application_id)),
        5,
        noticed=lambda: True,
    )
    eventually("main is run again", lambda: job.num_mains() == 2)  # the job goes on sooner than a program starts
    job.survive(
        "application, kill -9 of the Java ApplicationMaster",
        lambda: kill_process(java_master(application_id)),
        20,
        noticed=lambda: True,
    )
    eventually("main is run a third time", lambda: job.num_mains() == 3)
    (row,) = rest(user, application_id, "/jobs/overview")["jobs"]
    assert row["state"] == "RUNNING"
    job.hurry()
    report = eventually("the application has ended", lambda: ended(user, application_id), 60)
    assert (report["state"], report["finalStatus"]) == ("FINISHED", "SUCCEEDED")
    assert report["diagnostics"] == "Job 'ha-application' finished."
    job.check_exact()
    nothing_is_left(user, application_id)


def test_a_jobmanager_that_dies_again_and_again_ends_its_attempts_and_the_application_says_so(user):
    done = user.session(*SMALL, "-nm", "crashing", "-d")
    assert done.returncode == 0, done.stdout + done.stderr
    application_id = application_id_in(done.stdout)
    began, killed = time.monotonic(), 0
    while not ended(user, application_id):
        assert time.monotonic() - began < 120 * patience()
        for pid in jobmanager_processes(application_id):
            with contextlib.suppress(ProcessLookupError):  # it ended with its attempt
                kill_process(pid)
                killed += 1
        time.sleep(0.05)
    report = user.application(application_id)
    assert (report["state"], report["finalStatus"]) == ("FINISHED", "FAILED")
    assert report["diagnostics"].startswith("The JobManager died too often, the last time by signal 9.")
    assert killed >= 12  # six times in each of two attempts
    eventually("no process is left", lambda: not processes_of(application_id))


def test_two_clusters_with_one_id_and_containers_that_fail_too_often_are_clear_errors(user):
    shared = ("-z", "ha-shared", *SMALL)
    limit = ("-D", "yarn.maximum-failed-containers-per-interval=1")
    done = user.session("-n", "1", *shared, *limit, "-nm", "first", "-d")
    assert done.returncode == 0, done.stdout + done.stderr
    first = application_id_in(done.stdout)
    other = user.session(*shared, "-nm", "second", "-d")
    assert other.returncode == 1
    assert f"belongs to {first}, which runs" in other.stderr
    assert "high-availability.cluster-id" in other.stderr
    assert "/flink/ha-shared" in other.stderr
    (victim,) = taskmanagers(first)
    kill_process(victim)
    (victim,) = eventually("it is replaced", lambda: taskmanagers(first) - {victim})
    eventually("it is registered", lambda: rest(user, first, "/overview")["slots-total"] == 1)
    kill_process(victim)
    report = eventually("the application has ended", lambda: ended(user, first))
    assert (report["state"], report["finalStatus"]) == ("FINISHED", "FAILED")
    assert report["diagnostics"].startswith("2 TaskManager containers have failed within 600 s")
    assert "yarn.maximum-failed-containers-per-interval: 1" in report["diagnostics"]
    nothing_is_left(user, first, "ha-shared")
