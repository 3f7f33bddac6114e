"""Real JobManager and TaskManager processes on the loopback, over gRPC: what happens when things go right and wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import sys
import time

import psutil
import pytest

from engine.client.job_client import JobClient
from engine.client.rest_client import RestClient
from engine.core.errors import JobCancelledError, JobExecutionError
from engine.core.metrics import IntCounter
from engine.operators.functions import MapFunction
from engine.protocol.control import UserFile
from engine.protocol.lifecycle import JobStatus
from tests.process.cluster_jobs import Process, StandaloneCluster, children_of, is_alive, operator_id, program, until
from tests.testing.patience import best_of

RESULT_S = 120.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = StandaloneCluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.close()


@pytest.fixture
def client(cluster):
    client = RestClient(cluster.rest_url)
    until(lambda: client.overview()["slots-available"] == client.overview()["slots-total"] == 4, "4 free slots")
    yield client
    client.close()


def submit(client, graph):
    return JobClient(client.submit(graph, {}), client)


def rows_of(job, graph):
    return sorted(row for rows in job.collect_batches(operator_id(graph)) for row in rows)


def running(client, job):
    """Wait until the map runs. (A function that never returns keeps the other tasks of its slot from going on.)"""

    def map_runs():
        detail = client.job(job.get_job_id())
        assert detail["state"] in ("CREATED", "INITIALIZING", "RUNNING"), detail["state"]
        return any("map" in vertex["name"] and vertex["tasks"]["RUNNING"] for vertex in detail["vertices"])

    until(map_runs, "the map runs")


class Sleeper(MapFunction):
    def map(self, value):
        time.sleep(600)
        return value


class Spinner(MapFunction):
    def map(self, value):
        while True:
            pass


class KillsItself(MapFunction):
    def map(self, value):
        os.kill(os.getpid(), signal.SIGKILL)


class Exits(MapFunction):
    def map(self, value):
        os._exit(7)


class Counts(MapFunction):
    def open(self, runtime_context):
        self.counter = IntCounter()
        runtime_context.add_accumulator("rows", self.counter)

    def map(self, value):
        self.counter.add(1)
        return value


def test_a_job_over_two_taskmanagers_gives_its_rows(client):
    graph = program(lambda n: n * 2, 1000, parallelism=4, collect=True)
    assert rows_of(submit(client, graph), graph) == [n * 2 for n in range(1, 1001)]


def test_slots_find_what_their_job_wants_loaded_imported_and_nothing_but_the_engines_own(client):
    """So kernels are loaded once in a TaskManager, not once a slot."""
    names = ("engine.core.options_docs", "this.is.no.module", "tabnanny")
    graph = program(lambda n: tuple(name in sys.modules for name in names), 100, parallelism=4, collect=True)
    source = graph.vertices[0]
    operators = (dataclasses.replace(source.operators[0], preload=names), *source.operators[1:])
    graph = dataclasses.replace(graph, vertices=(dataclasses.replace(source, operators=operators), *graph.vertices[1:]))
    assert set(rows_of(submit(client, graph), graph)) == {(True, False, False)}


def test_two_jobs_run_at_once(client):
    sleepers = [submit(client, program(Sleeper(), 100, parallelism=2)) for _ in range(2)]
    for job in sleepers:
        running(client, job)
    assert client.overview()["jobs-running"] == 2
    for job in sleepers:
        job.cancel()
    for job in sleepers:
        with pytest.raises(JobCancelledError):
            job.get_job_execution_result().result(RESULT_S)


@pytest.mark.parametrize("function", [Sleeper(), Spinner()], ids=["sleeps", "spins"])
def test_cancel_takes_less_than_two_seconds_whatever_the_function_does(client, function):
    def cancel() -> float:
        job = submit(client, program(function, 100, parallelism=2))
        running(client, job)
        start = time.monotonic()
        job.cancel()
        with pytest.raises(JobCancelledError, match=job.get_job_id()):
            job.get_job_execution_result().result(RESULT_S)
        return time.monotonic() - start

    best_of(cancel, 2.0, "seconds until a cancelled job has ended")


def test_accumulators_of_all_subtasks_are_merged(client):
    result = submit(client, program(Counts(), 1000, parallelism=4)).get_job_execution_result().result(RESULT_S)
    assert result.get_accumulator_result("rows") == 1000
    assert result.get_net_runtime() > 0


def test_a_failing_function_shows_its_operator_and_record_and_none_of_our_frames(client):
    job = submit(client, program(lambda n: 1 // (n - 7), 10))
    with pytest.raises(JobExecutionError) as caught:
        job.get_job_execution_result().result(RESULT_S)
    text = str(caught.value)
    assert "ZeroDivisionError" in text
    assert "'map'" in text
    assert "7" in text
    assert "engine/runtime" not in text
    assert job.get_job_status().result() is JobStatus.FAILED


@pytest.mark.parametrize(("function", "words"), [(KillsItself(), "SIGKILL.*memory"), (Exits(), "exit code 7")])
def test_a_slot_that_dies_fails_its_job_with_the_reason_and_a_later_job_runs(client, function, words):
    job = submit(client, program(function))
    with pytest.raises(JobExecutionError, match=words + r"(?s:.*) Running in it: .*map.* \(1/1\)"):
        job.get_job_execution_result().result(RESULT_S)
    graph = program(lambda n: n, 100, parallelism=4, collect=True)
    assert rows_of(submit(client, graph), graph) == list(range(1, 101))


def test_too_few_slots_fail_the_job_in_time_with_what_to_change_and_a_later_job_runs(client):
    graph = program(lambda n: n, 10, parallelism=5)
    graph.config["slot.request.timeout"] = "5 s"
    job = submit(client, graph)
    assert job.get_job_status().result() in (JobStatus.CREATED, JobStatus.INITIALIZING, JobStatus.RUNNING)
    with pytest.raises(JobExecutionError) as caught:
        job.get_job_execution_result().result(RESULT_S)
    for words in ("5", "4", "taskmanager.numberOfTaskSlots"):
        assert words in str(caught.value)
    graph = program(lambda n: n, 10, parallelism=4, collect=True)
    assert rows_of(submit(client, graph), graph) == list(range(1, 11))


def test_a_waiting_job_can_be_cancelled(client):
    job = submit(client, program(lambda n: n, 10, parallelism=5))
    job.cancel()
    with pytest.raises(JobCancelledError):
        job.get_job_execution_result().result(RESULT_S)


def test_a_session_starts_a_job_quickly(client):
    def start_one() -> float:
        graph = program(lambda n: n, collect=True)
        start = time.monotonic()
        next(iter(submit(client, graph).collect_batches(operator_id(graph))))
        return time.monotonic() - start

    best_of(start_one, 0.3, "seconds until the first result", times=60)


def test_files_are_fetched_by_taskmanagers_and_found_by_functions(client, tmp_path):
    source = tmp_path / "answer.py"
    source.write_text("ANSWER = 42\n" + "#" * 3_000_000)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()

    def look(n):
        import answer

        return answer.ANSWER

    for _ in range(2):  # the second time the cluster has it
        graph = program(look, 40, parallelism=4, collect=True)
        file = UserFile("answer.py", digest, source.stat().st_size, "module")
        graph = dataclasses.replace(graph, files=(file,))
        job = JobClient(client.submit(graph, {digest: str(source)}), client)
        assert rows_of(job, graph) == [42] * 40


def test_cancelling_at_any_moment_ends_the_job(client):
    for pause in (0.0, 0.01, 0.03, 0.06, 0.1, 0.15):
        job = submit(client, program(lambda n: n, 10**9, parallelism=2))
        time.sleep(pause)  # what is tested is the moment
        job.cancel()
        with pytest.raises(JobCancelledError):
            job.get_job_execution_result().result(RESULT_S)


def test_slots_are_given_back_and_their_processes_end(cluster, client):
    graph = program(lambda n: n, 10, parallelism=4, collect=True)
    rows_of(submit(client, graph), graph)
    # What stays: the zygote of each TaskManager.
    until(lambda: all(len(children_of(tm.popen.pid)) <= 1 for tm in cluster.taskmanagers), "slot processes ended")
    until(lambda: not list(cluster.temp.glob("flink-tm-*/tm-*/slots/*")), "their folders removed")


def test_logs_are_read_through_rest_and_only_from_the_log_folder(tmp_path):
    cluster = StandaloneCluster(tmp_path, taskmanagers=0)
    try:
        logs = tmp_path / "log"
        taskmanager = cluster.add_taskmanager("--log-file", str(logs / "tm.log"))
        client = RestClient(cluster.rest_url)
        taskmanager_id = until(client.taskmanagers, "a TaskManager")[0]["id"]
        assert b"registered at" in client._request("GET", f"/taskmanagers/{taskmanager_id}/log").body
        (tmp_path / "secret").write_text("secret")
        assert client._request("GET", f"/taskmanagers/{taskmanager_id}/logs/..%2Fsecret").status >= 400
        assert taskmanager.end() == 0
        client.close()
    finally:
        cluster.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_leaves_no_process_and_no_file(tmp_path, number):
    cluster = StandaloneCluster(tmp_path, taskmanagers=1)
    try:
        client = RestClient(cluster.rest_url)
        job = submit(client, program(Sleeper(), 100, parallelism=2))
        running(client, job)
        client.close()
        family = [pid for p in (*cluster.taskmanagers, cluster.jobmanager) for pid in children_of(p.popen.pid)]
        assert len(family) >= 3
        assert cluster.taskmanagers[0].end(number) == 0, cluster.taskmanagers[0].output
        assert cluster.jobmanager.end(number) == 0, cluster.jobmanager.output
        until(lambda: not any(is_alive(pid) for pid in family), "all children ended")
        assert list(cluster.temp.iterdir()) == []
    finally:
        cluster.close()


def test_a_killed_taskmanager_fails_its_jobs_and_the_cluster_goes_on(tmp_path):
    cluster = StandaloneCluster(tmp_path, taskmanagers=2)
    try:
        client = RestClient(cluster.rest_url)
        job = submit(client, program(Sleeper(), 100, parallelism=4))
        running(client, job)
        victim = cluster.taskmanagers[0]
        family = children_of(victim.popen.pid)
        victim.end(signal.SIGKILL)
        with pytest.raises(JobExecutionError, match=r"TaskManager .* was lost"):
            job.get_job_execution_result().result(RESULT_S)
        until(lambda: not any(is_alive(pid) for pid in family), "orphans of the killed TaskManager ended")
        graph = program(lambda n: n, 10, parallelism=2, collect=True)
        assert rows_of(submit(client, graph), graph) == list(range(1, 11))
        # A new TaskManager takes the lost one's place.
        cluster.add_taskmanager().find("registered at")
        graph = program(lambda n: n, 10, parallelism=4, collect=True)
        assert rows_of(submit(client, graph), graph) == list(range(1, 11))
        client.close()
    finally:
        cluster.close()


def test_a_taskmanager_survives_its_jobmanager_only_for_its_registration_timeout(tmp_path):
    cluster = StandaloneCluster(tmp_path, taskmanagers=1, taskmanager_registration_timeout="2 s")
    try:
        client = RestClient(cluster.rest_url)
        job = submit(client, program(Sleeper(), 100, parallelism=2))
        running(client, job)
        client.close()
        taskmanager = cluster.taskmanagers[0]
        slots = [pid for pid in children_of(taskmanager.popen.pid) if psutil.Process(pid).children() == []]
        cluster.jobmanager.end(signal.SIGKILL)
        until(lambda: not any(is_alive(pid) for pid in slots), "slots killed")
        assert taskmanager.popen.wait(120) == 1
        assert "taskmanager.registration.timeout" in taskmanager.output
    finally:
        cluster.close()


def test_a_stopped_taskmanager_is_given_up_and_comes_back(tmp_path):
    config = {"heartbeat_interval": "200 ms", "heartbeat_timeout": "8 s"}  # a busy machine may need some
    cluster = StandaloneCluster(tmp_path, taskmanagers=1, **config)
    try:
        client = RestClient(cluster.rest_url)
        job = submit(client, program(Sleeper(), 100, parallelism=2))
        running(client, job)
        taskmanager = cluster.taskmanagers[0].popen
        slots = [pid for pid in children_of(taskmanager.pid) if psutil.Process(pid).children() == []]
        os.kill(taskmanager.pid, signal.SIGSTOP)
        try:
            with pytest.raises(JobExecutionError, match=r"no heartbeat for 8000 ms"):
                job.get_job_execution_result().result(RESULT_S)
        finally:
            os.kill(taskmanager.pid, signal.SIGCONT)
        until(lambda: not any(is_alive(pid) for pid in slots), "slots of the lost job ended")
        graph = program(lambda n: n, 10, parallelism=2, collect=True)
        assert rows_of(submit(client, graph), graph) == list(range(1, 11))
        client.close()
    finally:
        cluster.close()


class WaitsFor(MapFunction):
    def __init__(self, mark):
        self.mark = mark

    def map(self, value):
        while not self.mark.exists():
            time.sleep(0.05)
        return value


def test_a_job_goes_on_when_the_whole_machine_was_stopped_for_longer_than_the_timeout(tmp_path):
    config = {"heartbeat_interval": "2 s", "heartbeat_timeout": "5 s"}
    cluster = StandaloneCluster(tmp_path, taskmanagers=1, **config)
    try:
        client = RestClient(cluster.rest_url)
        graph = program(WaitsFor(tmp_path / "mark"), 10, parallelism=2, collect=True)
        job = submit(client, graph)
        running(client, job)
        mains = [cluster.jobmanager.popen.pid, cluster.taskmanagers[0].popen.pid]
        pids = [*mains, *children_of(mains[1])]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(6)  # longer than the timeout, which is what this is about
        went_on_ms = time.time() * 1000
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        seen = "timeSinceLastHeartbeat"
        until(lambda: all(tm[seen] > went_on_ms for tm in client.taskmanagers()), "both have looked")
        (tmp_path / "mark").touch()
        assert rows_of(job, graph) == list(range(1, 11))  # of the one attempt that it has
        client.close()
    finally:
        cluster.close()


def test_a_stopped_jobmanager_costs_the_jobs_their_slots(tmp_path):
    config = {"heartbeat_interval": "200 ms", "heartbeat_timeout": "8 s"}  # a busy machine may need some
    cluster = StandaloneCluster(tmp_path, taskmanagers=1, **config)
    try:
        client = RestClient(cluster.rest_url)
        job = submit(client, program(Sleeper(), 100, parallelism=2))
        running(client, job)
        client.close()
        slots = [pid for pid in children_of(cluster.taskmanagers[0].popen.pid) if not psutil.Process(pid).children()]
        os.kill(cluster.jobmanager.popen.pid, signal.SIGSTOP)
        try:
            until(lambda: not any(is_alive(pid) for pid in slots), "slots killed")
        finally:
            os.kill(cluster.jobmanager.popen.pid, signal.SIGCONT)
        with pytest.raises(JobExecutionError, match=r"was lost"):
            job.get_job_execution_result().result(RESULT_S)
        until(lambda: client.overview()["slots-available"] == 2, "registered again")
        client.close()
    finally:
        cluster.close()


def test_a_port_in_use_is_one_message_and_exit_code_1(tmp_path):
    cluster = StandaloneCluster(tmp_path, taskmanagers=0)
    try:
        second = Process("jobmanager", f"-Djobmanager.rpc.port={cluster.rpc_port}", "-Drest.port=0")
        assert second.popen.wait(120) == 1
        second.end()
        assert f"{cluster.rpc_port}" in second.output
        assert "in use" in second.output
        assert "Traceback" not in second.output
    finally:
        cluster.close()


@pytest.mark.parametrize("kind", ["jobmanager", "taskmanager"])
def test_a_bad_value_says_key_value_and_expectation(kind):
    process = Process(kind, "-Dheartbeat.interval=soon", "-Djobmanager.rpc.port=0", "-Drest.port=0")
    assert process.popen.wait(120) == 1
    process.end()
    assert "heartbeat.interval is 'soon'; expected a duration" in process.output
    assert "Traceback" not in process.output


def test_an_unknown_key_warns_with_the_nearest(tmp_path):
    cluster = StandaloneCluster(tmp_path, taskmanagers=0, taskmanager_numberOfTaskSlot="2", rest_prot="8081")
    try:
        assert "Configuration key rest.prot is unknown and has no effect. Did you mean rest.port?" in (
            cluster.jobmanager.output
        )
        assert "Did you mean taskmanager.numberOfTaskSlots?" in cluster.jobmanager.output
    finally:
        cluster.close()
