"""Jobs that restart by themselves on a real cluster: output is exact whatever was killed, a cancel is prompt."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from engine.client.rest_client import RestClient
from engine.common import Configuration, Encoder, RestartStrategies
from engine.core.errors import JobCancelledError, JobExecutionError
from engine.dataset import ExecutionEnvironment
from engine.datastream import RuntimeExecutionMode, StreamExecutionEnvironment
from engine.datastream.connectors import FileSink
from engine.datastream.functions import MapFunction
from engine.protocol.lifecycle import JobStatus
from tests.process.cluster_jobs import ROOT, StandaloneCluster, until
from tests.testing.patience import GIVE_UP_S, best_of

RESULT_S = 120.0
LINES = [f"line {i}" for i in range(20_000)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = StandaloneCluster(tmp_path_factory.mktemp("cluster"), heartbeat_interval="500", heartbeat_timeout="10000")
    yield cluster
    cluster.close()


@pytest.fixture
def client(cluster):
    client = RestClient(cluster.rest_url)
    until(lambda: client.overview()["slots-available"] == client.overview()["slots-total"] == 4, "4 free slots")
    yield client
    client.close()


@pytest.fixture
def env(cluster):
    address = urlsplit(cluster.rest_url)
    env = StreamExecutionEnvironment.create_remote_environment(address.hostname, address.port, parallelism=2)
    env.set_restart_strategy(RestartStrategies.fixed_delay_restart(2, 100))
    return env


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{line}\n" for line in LINES))
    return str(path)


class FailsInFirstAttempts(MapFunction):
    """Raises on the last line that it gets to see."""

    def __init__(self, attempts: int = 1) -> None:
        self.attempts = attempts

    def open(self, runtime_context):
        self.attempt = runtime_context.get_attempt_number()

    def map(self, value):
        if self.attempt < self.attempts and value == LINES[-1]:
            raise ValueError(f"not in attempt {self.attempt}")
        return value


class HangsInTheFirstAttempt(MapFunction):
    """Tells its process id in a file when it does."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def open(self, runtime_context):
        self.attempt = runtime_context.get_attempt_number()

    def map(self, value):
        if self.attempt == 0 and value == LINES[-1]:
            with open(self.marker + ".new", "w") as stream:
                stream.write(str(os.getpid()))
            os.rename(self.marker + ".new", self.marker)
            time.sleep(600)
        return value


def written(path: Path) -> Counter[str]:
    """All lines of a file or of all files under a folder; nothing hidden may be there."""
    files = [path] if path.is_file() else [child for child in path.rglob("*") if child.is_file()]
    assert not [file for file in files if file.name.startswith(".")], files
    return Counter(line for file in files for line in file.read_text().splitlines())


def no_leftovers(folder: Path) -> bool:
    return not list(folder.rglob(".*"))


def read(client, path: str):
    with urllib.request.urlopen(client.base_url + path, timeout=60) as answer:
        return json.load(answer)


def attempts_of(client, job) -> set[int]:
    detail = client.job(job.get_job_id())
    vertices = [vertex["id"] for vertex in detail["vertices"]]
    rows = [read(client, f"/jobs/{job.get_job_id()}/vertices/{vertex}")["subtasks"] for vertex in vertices]
    return {row["attempt"] for subtasks in rows for row in subtasks}


def three_sinks(env, text, function, folder: Path) -> None:
    lines = env.read_text_file(text).map(function)
    lines.write_as_text(str(folder / "text"))
    lines.map(lambda line: (line, 1)).write_as_csv(str(folder / "csv")).set_parallelism(1)
    sink = FileSink.for_row_format(str(folder / "parts"), Encoder.simple_string_encoder()).build()
    lines.sink_to(sink)


def assert_exact(folder: Path) -> None:
    assert written(folder / "text") == Counter(LINES)
    assert written(folder / "csv") == Counter(f"{line},1" for line in LINES)
    assert written(folder / "parts") == Counter(LINES)
    assert no_leftovers(folder)


def test_a_function_that_fails_in_its_first_attempts_succeeds_in_a_later_one(env, client, text, tmp_path):
    three_sinks(env, text, FailsInFirstAttempts(2), tmp_path / "out")
    job = env.execute_async()
    job.get_job_execution_result().result(RESULT_S)
    assert_exact(tmp_path / "out")
    assert attempts_of(client, job) == {2}
    history = read(client, f"/jobs/{job.get_job_id()}/exceptions")["exceptionHistory"]["entries"]
    assert [entry["exceptionName"] for entry in history] == ["ValueError", "ValueError"]
    assert "not in attempt 1" in history[0]["stacktrace"]
    assert client.job(job.get_job_id())["timestamps"]["RESTARTING"] > 0
    config = read(client, f"/jobs/{job.get_job_id()}/config")["execution-config"]
    assert config["restart-strategy"] == "Restart with fixed delay (100 ms). #2 restart attempts."


@pytest.mark.parametrize("victim", ["slot", "taskmanager"])
def test_a_killed_process_restarts_the_job_and_its_output_is_exact(env, cluster, client, text, tmp_path, victim):
    marker = tmp_path / "pid"
    three_sinks(env, text, HangsInTheFirstAttempt(marker), tmp_path / "out")
    job = env.execute_async()
    until(marker.exists, "the function hangs")
    slot = psutil.Process(int(marker.read_text()))
    if victim == "slot":
        slot.kill()
    else:
        ancestors = {process.pid for process in slot.parents()}
        (taskmanager,) = [one for one in cluster.taskmanagers if one.popen.pid in ancestors]
        spare = cluster.add_taskmanager()
        spare.find(r"registered at")
        cluster.taskmanagers.remove(taskmanager)
        taskmanager.end(signal.SIGKILL)
    job.get_job_execution_result().result(RESULT_S)
    assert_exact(tmp_path / "out")
    # A neighbour may tell of its broken connection, and the job be restarted in vain, before the process is missed.
    assert attempts_of(client, job) in ({1}, {2})
    history = read(client, f"/jobs/{job.get_job_id()}/exceptions")["exceptionHistory"]["entries"]
    assert history


def test_when_the_attempts_are_used_up_the_job_fails_with_the_last_cause(env, client, text, tmp_path):
    three_sinks(env, text, FailsInFirstAttempts(9), tmp_path / "out")
    job = env.execute_async()
    with pytest.raises(JobExecutionError, match="ValueError: not in attempt 2"):
        job.get_job_execution_result().result(RESULT_S)
    history = read(client, f"/jobs/{job.get_job_id()}/exceptions")["exceptionHistory"]["entries"]
    assert [entry["stacktrace"].splitlines()[0] for entry in history] == [
        f"ValueError: not in attempt {i}" for i in (2, 1, 0)
    ]
    assert no_leftovers(tmp_path / "out")
    assert not (tmp_path / "out" / "text").exists()


RATE = "restart-strategy.failure-rate."
EXPONENTIAL = "restart-strategy.exponential-delay."
STRATEGIES = {
    "none": ({}, 1),
    "failure-rate": ({RATE + "max-failures-per-interval": "2", RATE + "delay": "50 ms"}, 3),
    "exponential-delay": (
        {EXPONENTIAL + "attempts-before-reset-backoff": "3", EXPONENTIAL + "initial-backoff": "50 ms"},
        4,
    ),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_each_strategy_gives_up_in_its_way_and_the_history_has_every_cause(env, client, text, tmp_path, name):
    settings, num_failures = STRATEGIES[name]
    env.configure(Configuration({"restart-strategy.type": name, **settings}))
    three_sinks(env, text, FailsInFirstAttempts(99), tmp_path / "out")
    job = env.execute_async()
    with pytest.raises(JobExecutionError, match=f"ValueError: not in attempt {num_failures - 1}"):
        job.get_job_execution_result().result(RESULT_S)
    history = read(client, f"/jobs/{job.get_job_id()}/exceptions")["exceptionHistory"]["entries"]
    assert len(history) == num_failures
    assert no_leftovers(tmp_path / "out")


def test_a_job_that_waits_for_its_restart_is_listed_and_cancelled_at_once(env, cluster, client, text, tmp_path):
    env.set_restart_strategy(RestartStrategies.fixed_delay_restart(2, 600_000))
    address = cluster.rest_url.removeprefix("http://")
    command = [sys.executable, "-m", "flink_yarn.cli", "list", "-m", address]
    folders = itertools.count()

    def cancel() -> float:
        three_sinks(env, text, FailsInFirstAttempts(9), tmp_path / f"out-{next(folders)}")
        job = env.execute_async("waiting")
        until(lambda: job.get_job_status().result() is JobStatus.RESTARTING, "it waits")
        python = {**os.environ, "PYTHONPATH": ROOT}
        listed = subprocess.run(command, env=python, text=True, capture_output=True, timeout=GIVE_UP_S)
        assert "waiting (RESTARTING)" in listed.stdout, listed
        until(lambda: client.overview()["slots-available"] == 4, "it holds no slot")
        begun = time.monotonic()
        job.cancel()
        with pytest.raises(JobCancelledError):
            job.get_job_execution_result().result(RESULT_S)
        return time.monotonic() - begun

    best_of(cancel, 2.0, "seconds until a waiting job is cancelled")


def test_an_input_that_is_not_there_is_not_waited_for(env, tmp_path):
    env.set_restart_strategy(RestartStrategies.fixed_delay_restart(2, 600_000))
    env.read_text_file(str(tmp_path / "missing")).print()
    with pytest.raises(JobExecutionError, match="missing"):
        env.execute_async().get_job_execution_result().result(RESULT_S)


def test_a_restart_before_the_first_row_is_not_seen_by_who_collects(env):
    class FailsAtOnce(MapFunction):
        def open(self, runtime_context):
            if runtime_context.get_attempt_number() == 0:
                raise ValueError("not yet")

        def map(self, value):
            return value

    with env.from_collection([1, 2, 3]).map(FailsAtOnce()).execute_and_collect() as rows:
        assert sorted(rows) == [1, 2, 3]


def test_a_restart_after_the_first_rows_is_an_error_for_who_collects_and_no_row_comes_twice(env, client, tmp_path):
    class FailsWhenSeen(MapFunction):
        def __init__(self, marker):
            self.marker = marker

        def map(self, value):
            while value == 2 and not os.path.exists(self.marker):
                time.sleep(0.01)
            if value == 2:
                raise ValueError("later")
            return value

    env.set_parallelism(1)
    env.configure(Configuration({"execution.buffer-timeout": "1 ms", "execution.runtime-mode": "STREAMING"}))
    numbers = env.from_sequence(1, 2).map(FailsWhenSeen(str(tmp_path / "seen")))
    with numbers.execute_and_collect() as rows:
        assert next(rows) == 1
        (tmp_path / "seen").touch()
        with pytest.raises(JobExecutionError, match="restarted after rows of it had been given"):
            next(rows)
    until(lambda: client.jobs()[0]["state"] == "CANCELED", "the job is cancelled")


def test_a_data_set_is_collected_whole_whatever_its_first_attempt_gave(cluster):
    address = urlsplit(cluster.rest_url)
    env = ExecutionEnvironment.create_remote_environment(address.hostname, address.port, parallelism=2)
    env.set_restart_strategy(RestartStrategies.fixed_delay_restart(2, 100))
    assert sorted(env.from_collection(LINES).map(FailsInFirstAttempts(2)).collect()) == sorted(LINES)


def test_a_strategy_that_does_not_exist_is_refused_at_submission(env):
    env.configure(Configuration({"restart-strategy.type": "sometimes"}))
    env.from_collection([1]).print()
    with pytest.raises(Exception, match=r"restart-strategy.type is 'sometimes'; expected none"):
        env.execute()


# --- batch: only the regions that a failure concerns -----------------------------------------------------------------


class Notes(MapFunction):
    """Leaves a file for each attempt of each of its subtasks."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def open(self, runtime_context):
        index, attempt = runtime_context.get_index_of_this_subtask(), runtime_context.get_attempt_number()
        Path(self.folder, f"{index}-{attempt}").touch()

    def map(self, value):
        return value


class FailsInTheFirstAttempt(MapFunction):
    def open(self, runtime_context):
        self.attempt = runtime_context.get_attempt_number()

    def map(self, value):
        if self.attempt == 0:
            raise ValueError("not in attempt 0")
        return value


def two_stages(env, text: str, first: Path, function: MapFunction, output: Path) -> None:
    """Lines are noted, shuffled over a blocking exchange, and go through ``function`` into a file."""
    first.mkdir()
    env.set_runtime_mode(RuntimeExecutionMode.BATCH)
    noted = env.read_text_file(text).map(Notes(first))
    noted.key_by(lambda line: line).reduce(lambda one, other: one).map(function).write_as_text(str(output))


def test_a_function_that_fails_restarts_its_stage_alone(env, client, text, tmp_path):
    two_stages(env, text, tmp_path / "notes", FailsInTheFirstAttempt(), tmp_path / "out")
    job = env.execute_async()
    job.get_job_execution_result().result(RESULT_S)
    assert written(tmp_path / "out") == Counter(LINES)
    assert no_leftovers(tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "notes")) == ["0-0", "1-0"], "the first stage ran again"
    assert 0 in attempts_of(client, job)
    assert max(attempts_of(client, job)) >= 1
    history = read(client, f"/jobs/{job.get_job_id()}/exceptions")["exceptionHistory"]["entries"]
    assert {entry["exceptionName"] for entry in history} == {"ValueError"}
    assert client.job(job.get_job_id())["timestamps"]["RESTARTING"] == 0


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_slot_takes_its_results_with_it_and_the_output_is_exact(env, client, text, tmp_path, seed):
    marker = tmp_path / "pid"
    two_stages(env, text, tmp_path / "notes", HangsInTheFirstAttempt(marker), tmp_path / "out")
    job = env.execute_async()
    until(marker.exists, "the second stage hangs")
    os.kill(int(marker.read_text()), signal.SIGKILL)
    job.get_job_execution_result().result(RESULT_S)
    assert written(tmp_path / "out") == Counter(LINES)
    assert no_leftovers(tmp_path / "out")
    noted = os.listdir(tmp_path / "notes")
    assert {name.partition("-")[2] for name in noted} >= {"0", "1"}, "what was lost was not written again"
