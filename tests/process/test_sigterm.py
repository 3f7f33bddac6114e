"""kill -TERM of any process: it ends by itself within ten seconds, and what it started with it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator

import psutil
import pytest

from engine.client.leader_lookup import rest_client
from engine.client.rest_client import RestClient
from engine.protocol.lifecycle import JobStatus
from tests.process.cluster_jobs import Process, StandaloneCluster, is_alive, program, until
from tests.process.ha_cluster import HaCluster
from tests.testing.patience import GIVE_UP_S, limit_once

TERM_S = 10.0


def stuck(number: int) -> int:
    """A function that does not notice that its task is cancelled, or that its slot is to end."""
    time.sleep(600)
    return number


@pytest.fixture
def ha(tmp_path) -> Iterator[HaCluster]:
    cluster = HaCluster(tmp_path, heartbeat_interval="500", heartbeat_timeout="10000")
    with_job(rest_client(cluster.client_config()))
    yield cluster
    cluster.close()


@pytest.fixture
def alone(tmp_path) -> Iterator[StandaloneCluster]:
    cluster = StandaloneCluster(tmp_path)
    with_job(RestClient(cluster.rest_url))
    yield cluster
    cluster.close()


def with_job(client: RestClient) -> None:
    """Run one job whose functions hang on two TaskManagers."""
    until(lambda: client.overview()["slots-total"] == 4, "slots")
    config = {
        "restart-strategy.type": "fixed-delay",
        "restart-strategy.fixed-delay.attempts": "100",
        # A TaskManager that is to end asks for one, which never completes here.
        "execution.checkpointing.interval": "1 h",
    }
    graph = program(stuck, range(40), parallelism=3)
    graph.config.update(config)
    job_id = client.submit(graph, {})
    until(lambda: client.status(job_id) is JobStatus.RUNNING, "the job runs")


def terminate(name: str, process: Process) -> None:
    """End it by SIGTERM; all that it started ends, too."""
    started = psutil.Process(process.popen.pid).children(recursive=True)
    begin = time.monotonic()
    process.popen.send_signal(signal.SIGTERM)
    code = process.popen.wait(GIVE_UP_S)
    took = time.monotonic() - begin
    print(f"\nSIGTERM of {name}: ended after {took:.2f} s, exit code {code}", flush=True)
    assert code == 0, process.output
    assert took < limit_once(TERM_S)
    until(lambda: not any(map(psutil.Process.is_running, started)), f"what {name} has started ends")


def processes_named(taskmanager: Process, name: str) -> list[int]:
    """Return the TaskManager's slots ("slot-") or its zygote ("zygote")."""
    found = []
    for child in psutil.Process(taskmanager.popen.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            command, title = " ".join(child.cmdline()), child.name()
            if title.startswith(name) or (name == "zygote" and "zygote_process" in command):
                found.append((child.pid, title))
    return [pid for pid, title in found if name != "zygote" or not title.startswith("slot-")]


def test_the_jobmanager_of_a_cluster_without_high_availability(alone):
    terminate("the JobManager", alone.jobmanager)


@pytest.mark.parametrize("who", ["leader", "standby"])
def test_a_jobmanager_of_several(ha, who):
    master = getattr(ha, who)
    terminate(f"the {who}", master.process)
    ha.masters.remove(master)
    assert "this JobManager leads" in ha.leader.process.output


def test_a_taskmanager_with_slots_that_hang(ha):
    terminate("a TaskManager", ha.taskmanagers.pop())


@pytest.mark.parametrize("name", ["slot-", "zygote"])
def test_a_slot_and_a_zygote(ha, name):
    """The TaskManager replaces them, and the job goes on."""
    taskmanager = next(one for one in ha.taskmanagers if processes_named(one, "slot-"))
    pid = processes_named(taskmanager, name)[0]
    begin = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    until(lambda: not is_alive(pid), "it ends")
    print(f"\nSIGTERM of a {name}: ended after {time.monotonic() - begin:.2f} s", flush=True)
    (job,) = ha.leader.get("/jobs/overview")["jobs"]
    until(lambda: pid not in processes_named(taskmanager, name), "it is gone")
    until(lambda: restarts(ha, job["jid"]) > 0 and state(ha, job["jid"]) == "RUNNING", "the job has restarted")
    # A neighbour may have told of its broken connection before.
    until(lambda: any("ended by SIG" in text for text in failures(ha, job["jid"])), "the history says how it ended")
    assert taskmanager.popen.poll() is None


def failures(cluster: HaCluster, job_id: str) -> list[str]:
    entries = cluster.leader.get(f"/jobs/{job_id}/exceptions")["exceptionHistory"]["entries"]
    return [entry["stacktrace"] for entry in entries]


def restarts(cluster: HaCluster, job_id: str) -> int:
    return int(cluster.leader.get(f"/jobs/{job_id}")["timestamps"]["RESTARTING"])


def state(cluster: HaCluster, job_id: str) -> str:
    return str(cluster.leader.get(f"/jobs/{job_id}")["state"])


@pytest.fixture
def silent() -> Iterator[str]:
    """host:port of a server that takes connections and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def zookeeper(quorum: str, tmp_path) -> list[str]:
    return [
        "-Dhigh-availability.type=zookeeper",
        f"-Dhigh-availability.zookeeper.quorum={quorum}",
        f"-Dhigh-availability.storageDir=file://{tmp_path}/ha",
        f"-Dio.tmp.dirs={tmp_path}",
        "-Drest.port=0",
    ]


@pytest.mark.parametrize("kind", ["jobmanager", "taskmanager"])
def test_a_process_that_waits_for_zookeepers_answer(silent, tmp_path, kind):
    process = Process(kind, *zookeeper(silent, tmp_path))
    began = {"jobmanager": r"Rest endpoint listening", "taskmanager": r"."}[kind]
    if kind == "jobmanager":
        process.find(began)
    else:
        until(lambda: is_handling_sigterm(process.popen.pid), "it has begun")
    terminate(f"a {kind} that waits for ZooKeeper", process)
    process.end()


def test_a_taskmanager_that_finds_no_jobmanager(tmp_path):
    process = Process("taskmanager", "-Djobmanager.rpc.port=1", f"-Dio.tmp.dirs={tmp_path}")
    process.find("cannot register yet")
    terminate("a TaskManager that finds no JobManager", process)
    process.end()


def is_handling_sigterm(pid: int) -> bool:
    """Return whether it has a handler for the signal."""
    with open(f"/proc/{pid}/status", encoding="ascii") as stream:
        caught = next(line for line in stream if line.startswith("SigCgt:")).split()[1]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)
