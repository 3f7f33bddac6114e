"""kill -TERM of each process of a session on YARN: it ends by itself at once, and the session goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flink_yarn.master_log import MASTER_LOG
from tests.hadoop.conftest import HadoopCluster
from tests.hadoop.yarn_commands import ROOT, SMALL, eventually, processes_of
from tests.hadoop.yarn_ha import (
    environment_of,
    ha_user,
    java_master,
    jobmanager_process,
    rest,
    taskmanagers,
    zookeeper_nodes,
)
from tests.testing.patience import limit_once

pytestmark = pytest.mark.hadoop

TERM_S = 10.0
#: What a start alone writes into the log of YARN's Java process is more.
LOG_BYTES = 1024


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stream:
            return stream.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def terminate(name: str, pid: int) -> None:
    begin = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    eventually(f"{name} ends", lambda: not is_alive(pid))
    took = time.monotonic() - begin
    print(f"\nSIGTERM of {name}: ended after {took:.2f} s", flush=True)
    assert took < limit_once(TERM_S)


@pytest.mark.timeout(600)  # three attempts of an application, on a machine that has other things to do
def test_each_process_of_a_session_ends_at_sigterm_and_the_session_goes_on(hadoop: HadoopCluster, tmp_path):
    user = ha_user(hadoop, tmp_path)
    settings = ["-D", "yarn.application-attempts=4", "-D", f"env.log.max-size={LOG_BYTES}b", "-D", "env.log.max=2"]
    client = subprocess.Popen(
        [str(ROOT / "scripts" / "yarn-session.sh"), "-n", "1", "-s", "1", *SMALL, *settings],
        env=user.env,
        cwd=user.folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert client.stdout is not None
        lines: list[str] = []
        while not lines or "slots of 1 TaskManagers are registered" not in lines[-1]:
            lines.append(client.stdout.readline())
            assert lines[-1], lines
        (application_id,) = user.running_applications()

        def slots() -> int:
            said = rest(user, application_id, "/overview")  # None while nobody leads
            return 0 if said is None else int(said["slots-available"])

        def goes_on(is_another: Callable[[], bool]) -> None:
            begin = time.monotonic()
            eventually("another one is there, and its slot", lambda: is_another() and slots() == 1, 90)
            print(f"  the session has its slot again after {time.monotonic() - begin:.2f} s", flush=True)

        (taskmanager,) = taskmanagers(application_id)
        terminate("a TaskManager's container", taskmanager)
        goes_on(lambda: taskmanager not in taskmanagers(application_id))
        check_logs_of_java(Path(environment_of(java_master(application_id))["LOG_DIRS"].split(",")[0]))

        before = taskmanagers(application_id)
        base = f"/flink/{application_id}"
        for name, process in (("the JobManager", jobmanager_process), ("YARN's ApplicationMaster", java_master)):
            pid = process(application_id)
            # One that was replaced may stand there a moment longer than what is asked above needs.
            (place,) = eventually("one stands for election", lambda: only_one(contenders(hadoop, base)))
            begin = time.monotonic()
            terminate(name, pid)
            # Its place in the election goes with it: nobody waits for the end of its session, which is 60 s.
            eventually("its place is given back", lambda old=place: old not in contenders(hadoop, base))
            assert time.monotonic() - begin < 55
            goes_on(lambda old=pid: old not in processes_of(application_id))
            # The JobManager's process is started again in its container; no other one notices.
            assert (taskmanagers(application_id) == before) == (process is jobmanager_process)

        begin = time.monotonic()
        client.send_signal(signal.SIGTERM)
        said, _ = client.communicate(timeout=120)
        print(f"\nSIGTERM of the attached client: the session has ended after {time.monotonic() - begin:.2f} s")
        assert "Interrupted: the session is stopped." in said, said
        eventually("all processes end", lambda: not processes_of(application_id))
        assert user.application(application_id)["finalStatus"] == "SUCCEEDED"
        assert zookeeper_nodes(hadoop, f"/flink/{application_id}") == []
    finally:
        if client.poll() is None:
            client.kill()
            client.communicate()


def check_logs_of_java(folder: Path) -> None:
    """It has begun another file by now, and in none of them is more than fits and its last line."""
    logs = {path.name: path.read_text() for path in folder.glob(f"{MASTER_LOG}*")}
    assert {MASTER_LOG, f"{MASTER_LOG}.1"} <= logs.keys() <= {MASTER_LOG, f"{MASTER_LOG}.1", f"{MASTER_LOG}.2"}
    assert all(len(text.rpartition("\n")[0].rpartition("\n")[0]) < LOG_BYTES for text in logs.values()), logs
    assert "RUNNING: taskmanager_1 on" in logs[f"{MASTER_LOG}.1"] + logs[MASTER_LOG]


def only_one(found: list[str]) -> list[str]:
    return found if len(found) == 1 else []


def contenders(hadoop: HadoopCluster, base: str) -> list[str]:
    """Return the places of those who stand for election."""
    return zookeeper_nodes(hadoop, f"{base}/leader/latch")
