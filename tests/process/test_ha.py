"""JobManagers that contend, TaskManagers and clients that follow the leader, all real processes: the leader is killed,
paused, ended, and nothing is lost, done twice, or left waiting. Elections through files; ``tests/hadoop`` has the same
with a real ZooKeeper."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from engine.client.leader_lookup import LeaderLookup, rest_client
from engine.common import Configuration, Encoder, RestartStrategies
from engine.core.errors import JobNotFoundError
from engine.datastream import RuntimeExecutionMode, StreamExecutionEnvironment
from engine.datastream.connectors import FileSink
from engine.protocol.lifecycle import JobStatus
from tests.process.cluster_jobs import ROOT, Process, is_alive, program, until
from tests.process.ha_cluster import HaCluster
from tests.process.test_exactly_once_files import LINES, counts, expected, hidden, hurry, written
from tests.testing.patience import best_of

RESULT_S = 120.0
SESSION_S = 4.0


@pytest.fixture
def cluster(tmp_path):
    cluster = HaCluster(
        tmp_path, session_timeout=f"{SESSION_S:g} s", heartbeat_interval="500", heartbeat_timeout="10000"
    )
    yield cluster
    cluster.close()


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        (folder / f"part-{number}").write_text("".join(f"{line}\n" for line in LINES[number::6]))
    return str(folder)


def environment(cluster, tmp_path, **more: str) -> StreamExecutionEnvironment:
    env = StreamExecutionEnvironment.create_remote_environment("localhost", 1, parallelism=2)  # nobody is there
    env.set_restart_strategy(RestartStrategies.fixed_delay_restart(50, 100))
    settings = {
        "execution.runtime-mode": "STREAMING",
        "execution.checkpointing.interval": "200 ms",
        "execution.checkpointing.dir": str(tmp_path / "checkpoints"),
        "execution.checkpointing.tolerable-failed-checkpoints": "100",
        **cluster.client_config().to_dict(),
        **more,
    }
    env.configure(Configuration(settings))
    return env


class Waiting:
    """Somebody waits for the job's result in a thread of his own, through whatever happens."""

    def __init__(self, job) -> None:
        self.outcome = None
        self._thread = threading.Thread(target=self._wait, args=(job,), daemon=True)
        self._thread.start()

    def _wait(self, job) -> None:
        try:
            self.outcome = job.get_job_execution_result().result(RESULT_S)
        except Exception as error:
            self.outcome = error

    def result(self):
        self._thread.join(RESULT_S)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        assert self.outcome is not None, "nobody has told that the job has ended"
        return self.outcome


def file_job(cluster, text, tmp_path, **more: str):
    """Return (the job, where its files appear); some of them are there."""
    output = tmp_path / "out"
    env = environment(cluster, tmp_path, **more)
    sink = FileSink.for_row_format(str(output), Encoder.simple_string_encoder()).build()
    counts(env, text, tmp_path / "pids").sink_to(sink)
    job = env.execute_async("exactly once")
    until(lambda: output.exists() and len(written(output)) > 100, "the first files are finished")
    return job, output


def first_new_output_s(output: Path, before: Counter[str]) -> str:
    """Wait for what the new leader commits first, then for what is made under it: nothing is, if the tasks ran on and
    were at the end of their input before anybody led again."""
    begin = time.monotonic()
    until(lambda: written(output) - before or before == expected(), "new output")
    committed, seen = time.monotonic(), written(output)
    until(lambda: written(output) - seen or seen == expected(), "output under the new leader")
    return f"committed after {committed - begin:.2f} s, made after {time.monotonic() - begin:.2f} s"


def tell(line: str) -> None:
    print(f"\n{line}", flush=True)


@pytest.mark.parametrize("storage", ["filesystem", "jobmanager"])
def test_a_job_goes_on_exactly_once_when_its_leader_is_killed(cluster, text, tmp_path, storage):
    job, output = file_job(cluster, text, tmp_path, **{"execution.checkpointing.storage": storage})
    waiting = Waiting(job)
    for _ in range(2):
        leader = cluster.leader
        seen = written(output)
        os.kill(leader.pid, signal.SIGKILL)
        cluster.masters.remove(leader)
        tell(f"kill -9 of the leader ({storage}): first new output {first_new_output_s(output, seen)}")
        assert max(written(output).values()) == 1
        cluster.add_master()
    hurry(tmp_path / "pids")
    assert waiting.result().get_job_id() == job.get_job_id()
    assert written(output) == expected()
    assert hidden(output) == []
    until(lambda: not os.listdir(tmp_path / "checkpoints"), "checkpoints of the ended job are gone")


def test_a_leader_that_was_paused_writes_nothing_when_it_wakes(cluster, text, tmp_path):
    job, output = file_job(cluster, text, tmp_path)
    paused = cluster.leader
    cluster.masters.remove(paused)
    seen = written(output)
    os.kill(paused.pid, signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        took = first_new_output_s(output, seen)
        tell(f"SIGSTOP of the leader (session timeout {SESSION_S:g} s): first new output {took}")
        time.sleep(max(0.0, stopped + 10 - time.monotonic()))
    finally:
        os.kill(paused.pid, signal.SIGCONT)
    cluster.masters.append(paused)
    until(lambda: paused.stands_by, "it stands by")
    until(lambda: paused.get("/overview")["taskmanagers"] == 2, "it says what the leader says")
    hurry(tmp_path / "pids")
    job.get_job_execution_result().result(RESULT_S)
    assert written(output) == expected()
    assert hidden(output) == []
    assert paused.get(f"/jobs/{job.get_job_id()}")["state"] == "FINISHED"


def test_sigterm_hands_the_job_over_within_seconds_and_leaves_nothing(cluster, text, tmp_path):
    job, output = file_job(cluster, text, tmp_path)
    waiting = Waiting(job)
    leader = cluster.leader
    seen = written(output)
    begin = time.monotonic()
    leader.process.popen.send_signal(signal.SIGTERM)
    assert leader.process.popen.wait(120) == 0
    tell(f"SIGTERM of the leader: it ended after {time.monotonic() - begin:.2f} s")
    took = first_new_output_s(output, seen)
    tell(f"SIGTERM of the leader: first new output {took}")
    assert "SUSPENDED" in leader.process.output
    hurry(tmp_path / "pids")
    waiting.result()
    assert written(output) == expected()
    assert hidden(output) == []


def test_a_job_that_has_ended_is_known_to_the_next_leader_and_does_not_run_again(cluster, tmp_path):
    client = rest_client(cluster.client_config())
    graph = program(lambda n: n, 100, parallelism=2)
    job_id = client.submit(graph, {})
    until(lambda: client.execution_result(job_id), "the job ends")
    leader = cluster.leader
    os.kill(leader.pid, signal.SIGKILL)
    cluster.masters.remove(leader)
    outcome = client.execution_result(job_id)
    assert outcome.status is JobStatus.FINISHED
    assert [(job["jid"], job["state"]) for job in client.jobs()] == [(job_id, "FINISHED")]
    assert client.submit(graph, {}) == job_id
    assert client.overview()["jobs-running"] == 0
    for path in ("", "/config", "/plan", "/exceptions", "/accumulators", "/checkpoints", "/execution-result"):
        cluster.leader.get(f"/jobs/{job_id}{path}")
    client.close()


def test_leaders_take_the_ports_that_they_are_given(tmp_path):
    """A range with one port for each: the first is taken by somebody else."""
    first = next(port for port in range(21_000, 32_000, 3) if all(map(is_free, range(port, port + 3))))
    with socket.socket() as taken:
        taken.bind(("localhost", first))
        taken.listen()
        ports = {"high-availability.jobmanager.port": f"{first}-{first + 2}"}
        cluster = HaCluster(tmp_path, session_timeout="4 s", taskmanagers=1, settings=ports)
        try:
            leader = cluster.leader
            assert leader.process.find(r"listens for TaskManagers at localhost:(\d+)")[1] == str(first + 1)
            cluster.wait_for_slots(2)
            os.kill(leader.pid, signal.SIGSTOP)  # it keeps its port, and is deposed
            cluster.masters.remove(leader)
            try:
                successor = cluster.leader
                assert successor.process.find(r"listens for TaskManagers at localhost:(\d+)")[1] == str(first + 2)
                cluster.wait_for_slots(2)
            finally:
                leader.process.end(signal.SIGKILL)
        finally:
            cluster.close()


@pytest.mark.parametrize("ports", ["some", "50010-50000"])
def test_ports_that_are_none_are_told_when_the_process_starts(tmp_path, ports):
    settings = {
        "high-availability.type": "filesystem",
        "high-availability.storageDir": f"file://{tmp_path}/ha",
        "high-availability.jobmanager.port": ports,
        "rest.port": "0",
    }
    process = Process("jobmanager", *[f"-D{key}={value}" for key, value in settings.items()])
    try:
        assert process.popen.wait(120) == 1
        assert f"high-availability.jobmanager.port is '{ports}'; expected" in process.output
        assert not any("is elected" in line for line in process.lines)
    finally:
        process.end()


def is_free(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("localhost", port)) != 0


def test_a_standby_passes_everything_on(cluster, tmp_path):
    cluster.wait_for_slots(4)
    standby = cluster.standby
    assert standby.get("/overview")["slots-total"] == 4
    with urllib.request.urlopen(standby.rest_url + "/", timeout=60) as answer:
        assert b"<html" in answer.read().lower()
    from engine.client.rest_client import RestClient

    client = RestClient(standby.rest_url)  # without high availability of its own
    large = tmp_path / "large.py"
    large.write_bytes(b"#" * (8 << 20) + b"\n")
    uploaded = client.upload_program(str(large))
    assert uploaded in [one["id"] for one in client.list_programs()]
    client.delete_program(uploaded)
    with pytest.raises(JobNotFoundError):
        client.job("0" * 32)
    job_id = client.submit(program(lambda n: n, 100, parallelism=2), {})
    until(lambda: client.execution_result(job_id), "the job ends")
    client.close()


def test_a_batch_job_runs_again_and_its_output_is_exact(cluster, text, tmp_path):
    env = environment(cluster, tmp_path, **{"execution.runtime-mode": "BATCH"})
    env.set_runtime_mode(RuntimeExecutionMode.BATCH)
    output = tmp_path / "out"
    counts(env, text, tmp_path / "pids").sink_to(
        FileSink.for_row_format(str(output), Encoder.simple_string_encoder()).build()
    )
    job = env.execute_async("batch")
    waiting = Waiting(job)
    until(lambda: len(os.listdir(tmp_path / "pids")) >= 2, "the job runs")
    time.sleep(1)
    leader = cluster.leader
    os.kill(leader.pid, signal.SIGKILL)
    cluster.masters.remove(leader)
    hurry(tmp_path / "pids")
    waiting.result()
    assert written(output) == expected()
    assert hidden(output) == []


def test_shutting_the_cluster_down_ends_all_and_forgets_it(tmp_path):
    cluster = HaCluster(tmp_path, masters=1)
    try:
        client = rest_client(cluster.client_config())
        client.submit(program(lambda n: time.sleep(60), 10), {})
        pids = [one.popen.pid for one in cluster.taskmanagers]
        client.shut_down()
        assert cluster.masters[0].process.popen.wait(120) == 0
        until(lambda: not any(map(is_alive, pids)), "TaskManagers end")
        left = [path for path in (tmp_path / "ha").rglob("*") if path.is_file()]
        assert left == []
    finally:
        cluster.close()


def test_slots_are_killed_and_registered_anew_soon_after_another_leader_is_known(cluster, tmp_path):
    cluster.wait_for_slots(4)
    zygotes = {one.popen.pid for one in cluster.taskmanagers}

    def lose_leader() -> float:
        """Return how long after the new leader was published all slots were there."""
        if len(cluster.masters) == 1:
            cluster.add_master()
        leader = cluster.leader
        os.kill(leader.pid, signal.SIGKILL)
        cluster.masters.remove(leader)
        cluster.leader  # noqa: B018 (waits for it)
        return cluster.wait_for_slots(4)

    best_of(lose_leader, 2, "seconds until all TaskManagers are registered at a new leader")
    assert all(map(is_alive, zygotes))
    assert LeaderLookup(cluster.client_config()).address(5) == cluster.leader.rest_url


PROGRAM = """
import os, sys, time
from engine.datastream import StreamExecutionEnvironment

out, hurry = sys.argv[1:]

def slow(n):
    if not os.path.exists(hurry):
        time.sleep(0.02)
    return str(n)

env = StreamExecutionEnvironment.get_execution_environment()
env.from_sequence(1, 3000).map(slow).write_as_text(out)
env.execute("slow")
"""


def test_flink_run_waits_through_the_loss_of_the_leader(cluster, tmp_path):
    conf = tmp_path / "conf"
    conf.mkdir()
    settings = {**cluster.client_config().to_dict(), "execution.checkpointing.interval": "200 ms"}
    settings["execution.checkpointing.dir"] = str(tmp_path / "checkpoints")
    (conf / "flink-conf.yaml").write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    output = tmp_path / "out"
    run = subprocess.Popen(
        [f"{ROOT}/scripts/flink", "run", "-py", str(program), str(output), str(tmp_path / "hurry")],
        env={**os.environ, "FLINK_CONF_DIR": str(conf), "FLINK_PYTHON": sys.executable, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        client = rest_client(cluster.client_config())
        until(lambda: any(job["state"] == "RUNNING" for job in client.jobs()), "the job runs")
        time.sleep(2)
        assert run.poll() is None
        leader = cluster.leader
        os.kill(leader.pid, signal.SIGKILL)
        cluster.masters.remove(leader)
        (tmp_path / "hurry").touch()
        said, _ = run.communicate(timeout=RESULT_S)
        client.close()
    finally:
        run.kill()
        run.wait()
    assert run.returncode == 0, said
    assert "has finished." in said
    assert written(output) == Counter(str(n) for n in range(1, 3001))
