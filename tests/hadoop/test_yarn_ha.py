"""High availability on real YARN: a session whose job survives everything that can be killed, exactly once."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.hadoop.conftest import HadoopCluster
from tests.hadoop.yarn_commands import (
    ROOT,
    SMALL,
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
    jobmanager_process,
    rest,
    taskmanagers,
    zookeeper_nodes,
)

pytestmark = pytest.mark.hadoop


@pytest.fixture(scope="module")
def user(hadoop: HadoopCluster, tmp_path_factory: pytest.TempPathFactory) -> YarnUser:
    return ha_user(hadoop, tmp_path_factory.mktemp("ha"))


@pytest.fixture(scope="module")
def session(user: YarnUser) -> Iterator[str]:
    """Two containers with a slot each."""
    done = user.session("-n", "2", "-s", "1", *SMALL, "-nm", "ha", "-d", "-D", "yarn.application-attempts=3")
    assert done.returncode == 0, done.stdout + done.stderr
    application_id = application_id_in(done.stdout)
    yield application_id
    if application_id in user.running_applications():
        user.session("-id", application_id, stdin="stop\n")


def test_a_job_survives_the_loss_of_each_process_and_is_exact(session, user, tmp_path):
    job = ExactJob(user, tmp_path / "marks", "ha-session")
    client = subprocess.Popen(
        [str(ROOT / "scripts" / "flink"), "run", "-yid", session, *job.words],
        env=user.env,
        cwd=user.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        job.until_output()
        before = taskmanagers(session)
        assert len(before) == 2

        job.survive(
            "kill -9 of the JobManager's Python process",
            lambda: kill_process(jobmanager_process(session)),
            5,
            noticed=lambda: True,
        )
        assert taskmanagers(session) == before
        assert user.application(session)["runningContainers"] == 3

        def restarts() -> int:
            rows = rest(user, session, "/jobs/overview")
            job_id = rows["jobs"][0]["jid"]
            return int(rest(user, session, f"/jobs/{job_id}")["timestamps"]["RESTARTING"])

        was = restarts()
        job.survive(
            "kill -9 of a TaskManager",
            lambda: kill_process(min(taskmanagers(session))),
            10,
            noticed=lambda: restarts() != was,
        )
        was = restarts()
        job.survive(
            "kill -9 of all TaskManagers",
            lambda: [kill_process(pid) for pid in taskmanagers(session)],
            15,
            noticed=lambda: restarts() != was,
        )
        job.survive(
            "kill -9 of the Java ApplicationMaster",
            lambda: kill_process(java_master(session)),
            20,
            noticed=lambda: True,
        )
        assert len(taskmanagers(session)) == 2
        job.survive(
            "kill -9 of the Java ApplicationMaster and a TaskManager",
            lambda: [kill_process(pid) for pid in (min(taskmanagers(session)), java_master(session))],
            20,
            noticed=lambda: True,
        )
        assert user.application(session)["state"] == "RUNNING"
        listed = user.flink("list", "-yid", session)
        assert " : ha-session (RUNNING)" in listed.stdout, listed.stdout + listed.stderr
        job.hurry()
        said, _ = client.communicate(timeout=240)
    finally:
        if client.poll() is None:
            client.kill()
            client.communicate()
    assert client.returncode == 0, said
    assert "Program execution finished" in said
    job.check_exact()
    assert job.num_mains() == 1


def test_a_stopped_session_leaves_nothing_for_a_next_leader(session, user):
    assert zookeeper_nodes(user.hadoop, f"/flink/{session}") != []
    assert user.hdfs.list("/ha") == [session]
    done = user.session("-id", session, stdin="stop\n")
    assert done.returncode == 0, done.stdout + done.stderr
    report = user.application(session)
    assert (report["state"], report["finalStatus"]) == ("FINISHED", "SUCCEEDED")
    eventually("no process is left", lambda: not processes_of(session), 15)
    assert zookeeper_nodes(user.hadoop, f"/flink/{session}") == []
    assert user.hdfs.list("/ha") == []
    assert user.hdfs.list("/ha-checkpoints") == []
