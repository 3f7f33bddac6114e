"""High availability on real YARN: a session whose job survives everything that can be killed, exactly once."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from collections.abc import Iterator

import pytest

from tests.hadoop.conftest import HadoopCluster
from tests.hadoop.yarn_commands import (
    HEARTBEAT_TIMEOUT_S,
    ROOT,
    SMALL,
    YarnUser,
    application_id_in,
    eventually,
    get,
    kill_process,
    processes_of,
)
from tests.hadoop.yarn_ha import (
    ExactJob,
    ha_user,
    java_master,
    job_id_in,
    job_state,
    jobmanager_process,
    node_manager_of,
    processes_on,
    rest,
    taskmanagers,
    zookeeper_nodes,
)
from tests.testing.patience import limit_once

pytestmark = [pytest.mark.hadoop, pytest.mark.timeout(500)]


@pytest.fixture(scope="module")
def user(hadoop: HadoopCluster, tmp_path_factory: pytest.TempPathFactory) -> YarnUser:
    return ha_user(hadoop, tmp_path_factory.mktemp("ha"))


def check_what_is_told(user: YarnUser, session: str) -> None:
    """Exceptions of before the failovers, and who has led, with containers and links to their logs."""
    (row,) = rest(user, session, "/jobs/overview")["jobs"]
    entries = rest(user, session, f"/jobs/{row['jid']}/exceptions")["exceptionHistory"]["entries"]
    leaders = rest(user, session, "/jobmanager/leaders")["leaders"]
    assert len(leaders) == 4, leaders
    assert (leaders[0]["until"], leaders[0]["reason"]) == (-1, "")
    reasons = [one["reason"] for one in leaders[1:]]
    assert reasons[2] == "Its process was ended by SIGKILL and was started again in its container."
    # It looks twice a second whether YARN's Java process is there, and says so if there is time.
    with_java = "YARN's ApplicationMaster (Java) has ended, and with it this JobManager."
    assert set(reasons[:2]) <= {with_java, "It ended without a word: killed, cut off, or its host was lost."}
    assert [int(one["container"].split("_")[-2]) for one in leaders] == [3, 2, 1, 1]
    before = [one for one in entries if one["timestamp"] < leaders[1]["since"]]
    assert before, entries
    # The first time only the JobManager's process was lost, and its successor has gone on with what ran.
    assert [one["exceptionName"] for one in entries].count("TasksTakenOver") == 1
    before = [one for one in before if one["exceptionName"] != "TasksTakenOver"]
    assert all(one["failureLabels"]["container"] == one["taskManagerId"] for one in before)
    command = f"yarn logs -applicationId {session} -containerId {before[0]['taskManagerId']}"
    assert before[0]["failureLabels"]["command"] == command
    assert all(one["taskManagerId"].startswith("container_") and one["endpoint"] for one in before)
    # The node shows the logs of containers that have ended as long as the application runs.
    for url in (before[0]["failureLabels"]["log"], leaders[0]["log"]):
        with urllib.request.urlopen(url, timeout=60) as answer:
            page = answer.read().decode()
        assert "manager.log" in page, (url, page[:500])


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
        assert attempts_of_tasks(user, session) == {0}, "tasks were restarted"

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
        check_what_is_told(user, session)
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


def test_a_job_survives_the_loss_of_nodes_and_services_and_is_exact(session, user, tmp_path):
    hadoop = user.hadoop
    job = ExactJob(user, tmp_path / "marks", "ha-nodes")
    done = user.flink("run", "-d", "-yid", session, *job.words)
    assert done.returncode == 0, done.stdout + done.stderr
    job_id = job_id_in(done.stdout)
    job.until_output()

    def restarts() -> int:
        return int(rest(user, session, f"/jobs/{job_id}")["timestamps"]["RESTARTING"])

    was, containers = restarts(), taskmanagers(session)
    hadoop.daemon("kill9", "rm")
    hadoop.daemon("start", "rm")
    seen = job.files()
    eventually("output without a ResourceManager's past", lambda: job.files() - seen)
    eventually("YARN knows the application again", lambda: yarn_state(user, session) == "RUNNING")
    assert restarts() == was, "the ResourceManager's loss has disturbed the job"
    assert taskmanagers(session) == containers
    job.survive(
        "kill -9 of a TaskManager after the ResourceManager's return",
        lambda: kill_process(min(containers)),
        15,
        noticed=lambda: restarts() != was,
    )
    assert len(taskmanagers(session) - {min(containers)}) == 2

    was = restarts()
    hadoop.daemon("kill9", "nn")
    time.sleep(20)
    hadoop.daemon("start", "nn")
    began, seen = time.monotonic(), job.files()
    eventually("output after the NameNode's return", lambda: job.files() - seen, 60)
    print(f"\nNameNode away for 20 s: output {time.monotonic() - began:.1f} s after its return")
    assert restarts() == was, "the NameNode's absence has disturbed the job"
    hadoop.daemon("kill9", "dn1")
    time.sleep(2)
    hadoop.daemon("start", "dn1")
    began, seen = time.monotonic(), job.files()
    eventually("output after the DataNode's return", lambda: len(job.files() - seen) > 4, 60)
    print(f"\nDataNode away for some s: output {time.monotonic() - began:.1f} s after its return")

    # Both TaskManagers' and the ApplicationMaster's containers are somewhere on two nodes.
    was_attempt, with_master = attempt(user, session), node_manager_of(hadoop, java_master(session))
    orphans = set(processes_of(session, "python")) & set(processes_on(hadoop, with_master))
    assert orphans
    taken_s = 0.0

    def lose_the_node() -> None:
        """Until its containers' processes have ended, too: their next leader tells TaskManagers to."""
        nonlocal taken_s
        hadoop.daemon("kill9", with_master)
        eventually(
            "the next attempt runs",
            lambda: attempt(user, session) > was_attempt and yarn_state(user, session) == "RUNNING",
            60,
        )
        began = time.monotonic()
        eventually("the orphans have ended", lambda: not orphans & set(processes_of(session)))
        taken_s = time.monotonic() - began

    job.survive(
        f"kill -9 of the NodeManager of the ApplicationMaster ({len(orphans)} Python processes stay)",
        lose_the_node,
        60,
        noticed=lambda: True,
    )
    print(f"\nthe orphans had ended {taken_s:.1f} s after the next attempt was running")
    assert taken_s < limit_once(HEARTBEAT_TIMEOUT_S)
    hadoop.daemon("start", with_master)
    job.hurry()
    eventually("the job has finished", lambda: job_state(user, session, job_id) == "FINISHED", 120)
    job.check_exact()


def attempts_of_tasks(user: YarnUser, application_id: str) -> set[int]:
    (row,) = rest(user, application_id, "/jobs/overview")["jobs"]
    vertices = rest(user, application_id, f"/jobs/{row['jid']}")["vertices"]
    found = (rest(user, application_id, f"/jobs/{row['jid']}/vertices/{one['id']}") for one in vertices)
    return {subtask["attempt"] for vertex in found for subtask in vertex["subtasks"]}


def yarn_state(user: YarnUser, application_id: str) -> str:
    """ "" while the ResourceManager does not answer, or does not know yet."""
    try:
        return str(user.application(application_id)["state"])
    except OSError:
        return ""


def attempt(user: YarnUser, application_id: str) -> int:
    """The number of the application's attempts so far."""
    url = f"{user.hadoop.rm_url}/ws/v1/cluster/apps/{application_id}/appattempts"
    return len(get(url)["appAttempts"]["appAttempt"])


def test_a_stopped_session_leaves_nothing_for_a_next_leader(session, user):
    assert zookeeper_nodes(user.hadoop, f"/flink/{session}") != []
    assert user.hdfs.list("/ha") == [session]
    done = user.session("-id", session, stdin="stop\n")
    assert done.returncode == 0, done.stdout + done.stderr
    report = user.application(session)
    assert (report["state"], report["finalStatus"]) == ("FINISHED", "SUCCEEDED")
    eventually("no process is left", lambda: not processes_of(session))
    assert zookeeper_nodes(user.hadoop, f"/flink/{session}") == []
    assert user.hdfs.list("/ha") == []
    assert user.hdfs.status("/ha-checkpoints", strict=False) is None or user.hdfs.list("/ha-checkpoints") == []
