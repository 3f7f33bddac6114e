"""Cancel is prompt whatever the job is doing, closes functions that can be closed, and leaves no process behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from engine.client.job_client import JobClient
from engine.cluster import LocalCluster
from engine.common import Configuration, WatermarkStrategy
from engine.core.errors import JobCancelledError
from engine.datastream import BufferTimeout, StreamExecutionEnvironment
from engine.datastream.connectors import DataGeneratorSource
from engine.datastream.functions import MapFunction, SourceFunction
from engine.protocol.lifecycle import JobStatus
from tests.process.cluster_jobs import ROOT, children_of, engine_processes, is_alive, until
from tests.process.script_cluster import ScriptCluster
from tests.testing.patience import best_of

SECONDS = 2.0
NO_WATERMARKS = WatermarkStrategy.no_watermarks()


@pytest.fixture(scope="module", autouse=True)
def no_cluster_is_left():
    yield
    LocalCluster.shared(Configuration()).close()


@pytest.fixture
def env():
    environment = StreamExecutionEnvironment.get_execution_environment(Configuration())
    return environment.set_parallelism(2)


def numbers(env, rate: float | None = None, count: int | None = None):
    return env.from_source(DataGeneratorSource(lambda i: i, count, rate), NO_WATERMARKS, "Numbers")


def cancel(client) -> float:
    """Cancel the job, wait for its end and the end of its slot processes; return the seconds that it took."""
    begun = time.monotonic()
    client.cancel().result()
    with pytest.raises(JobCancelledError):
        client.get_job_execution_result().result(120)
    took = time.monotonic() - begun
    until(lambda: len(slots()) == 0, "slot processes ended")
    return took


def cancel_in_time(begin: Callable[[], JobClient]) -> None:
    """Begin a job and cancel it, again if this was a moment in which the machine stood still."""
    best_of(lambda: cancel(begin()), SECONDS, "seconds until a cancelled job has ended")


def slots() -> list[int]:
    """Slot processes are children of the zygote, which is a child of this process."""
    import psutil

    ours = engine_processes()
    found = []
    for pid in ours:
        try:
            if psutil.Process(pid).ppid() in ours:
                found.append(pid)
        except psutil.NoSuchProcess:
            continue
    return found


# --- what user code may be doing ------------------------------------------------------------------------------------


def sleep(_):
    time.sleep(600)


def sleep_in_small_parts(_):
    while True:
        time.sleep(0.01)


def spin(_):
    while True:
        pass


def match_for_ever(_):
    re.match(r"(a+)+$", "a" * 60 + "b")


def wait_for_a_child(_):
    subprocess.run(["sleep", "600"], check=False)


def ignore_exceptions(_):
    while True:
        try:
            time.sleep(600)
        except BaseException:
            continue


def ignore_signals(_):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(600)


FUNCTIONS = [
    sleep,
    sleep_in_small_parts,
    spin,
    match_for_ever,
    wait_for_a_child,
    ignore_exceptions,
    ignore_signals,
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_a_function_that_never_returns_is_ended(env, tmp_path, function):
    def begin(value):
        (tmp_path / "begun").touch()
        return function(value)

    cancel_in_time(lambda: begun(env, tmp_path, env.from_collection([1]).map(begin)))


def begun(env, folder, stream):
    """Print the stream; return the job's client when the file "begun" is in the folder."""
    (folder / "begun").unlink(missing_ok=True)
    stream.print()
    client = env.execute_async()
    until((folder / "begun").exists, "the function runs")
    return client


class Closing(MapFunction):
    def __init__(self, path, map_function=None, close_function=None):
        self.path, self.map_function, self.close_function = path, map_function, close_function

    def map(self, value):
        (self.path / "begun").touch()
        return self.map_function(value) if self.map_function else value

    def close(self):
        (self.path / "closed").touch()
        if self.close_function:
            self.close_function(None)


def test_functions_are_closed_on_cancel(env, tmp_path):
    env.configure(Configuration({"task.cancellation.timeout": "1 min"}))  # else a busy machine may have no time for it
    cancel_in_time(lambda: begun(env, tmp_path, numbers(env).map(Closing(tmp_path)).filter(lambda _: False)))
    assert (tmp_path / "closed").exists()


def test_a_close_that_never_returns_is_ended(env, tmp_path):
    def begin():
        closing = Closing(tmp_path, close_function=sleep)
        return begun(env, tmp_path, numbers(env).map(closing).filter(lambda _: False))

    def close_late() -> float:
        """Return how long the cancel took; too long where the slot was killed before it came to the close."""
        (tmp_path / "closed").unlink(missing_ok=True)
        took = cancel(begin())
        return took if (tmp_path / "closed").exists() else float("inf")

    best_of(close_late, SECONDS, "seconds until a job that does not close has ended")


# --- what the runtime may be doing ------------------------------------------------------------------------------------


def running(client):
    until(lambda: client.get_job_status().result() is JobStatus.RUNNING, "RUNNING")
    return client


@pytest.mark.parametrize("timeout", [0, 100, -1])
def test_an_endless_stream_is_ended(env, timeout):
    env.set_buffer_timeout(timeout)

    def begin():
        numbers(env).key_by(lambda n: n % 10).reduce(lambda a, b: a + b).filter(lambda _: False).print()
        return running(env.execute_async())

    cancel_in_time(begin)


def test_a_batch_exchange_that_still_spills_is_ended(env):
    env.set_buffer_timeout(BufferTimeout.INFINITE)

    def begin():
        env.from_sequence(1, 10**9).rebalance().map(lambda n: n).filter(lambda _: False).print()
        return running(env.execute_async())

    cancel_in_time(begin)


def test_a_socket_that_says_nothing_is_ended(env):
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as connections:

        def begin():
            env.socket_text_stream("127.0.0.1", server.getsockname()[1]).print()
            client = env.execute_async()
            connections.enter_context(server.accept()[0])
            return client

        cancel_in_time(begin)


def test_a_socket_that_is_tried_again_for_ever_is_ended(env):
    def begin():
        env.socket_text_stream("127.0.0.1", 1, max_retry=-1).print()
        return running(env.execute_async())

    cancel_in_time(begin)


class Stuck(SourceFunction):
    def __init__(self, path):
        self.path = path

    def run(self):
        self.path.touch()
        yield 1
        time.sleep(600)


def test_a_source_function_that_sleeps_is_ended(env, tmp_path):
    cancel_in_time(lambda: begun(env, tmp_path, env.add_source(Stuck(tmp_path / "begun"), "Stuck")))


def test_a_backpressured_job_is_ended(env, tmp_path):
    def begin():
        client = begun(env, tmp_path, numbers(env).rebalance().map(Closing(tmp_path, sleep)))
        time.sleep(0.3)  # let the buffers fill
        return client

    cancel_in_time(begin)


def test_a_job_that_nobody_collects_from_is_ended(env):
    def leave() -> float:
        results = numbers(env).execute_and_collect()
        next(results)
        begun = time.monotonic()
        results.close()
        took = time.monotonic() - begun
        until(lambda: len(slots()) == 0, "slot processes ended")
        return took

    best_of(leave, SECONDS, "seconds until results are closed")


def test_a_wide_job_is_ended(env):
    env.set_parallelism(8)

    def begin():
        stream = numbers(env)
        for _ in range(5):
            stream = stream.rebalance().map(lambda n: n)
        stream.filter(lambda _: False).print()
        return running(env.execute_async())

    cancel_in_time(begin)


def test_other_jobs_go_on_when_one_is_cancelled(env, tmp_path):
    slow = numbers(env, rate=200, count=200).rebalance().map(lambda n: n).execute_and_collect()
    next(slow)
    env.from_collection([1]).map(Closing(tmp_path, sleep)).print()
    client = env.execute_async()
    until((tmp_path / "begun").exists, "the function runs")
    client.cancel().result()
    with pytest.raises(JobCancelledError):
        client.get_job_execution_result().result(120)
    assert len(list(slow)) == 199


# --- ends that nobody asked for ---------------------------------------------------------------------------------------

PROGRAM = """
from engine.common import WatermarkStrategy
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.connectors import DataGeneratorSource

env = StreamExecutionEnvironment.get_execution_environment()
source = DataGeneratorSource(lambda i: i, None, 100)
env.from_source(source, WatermarkStrategy.no_watermarks(), "numbers").print()
env.execute("endless")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_local_program_that_is_told_to_end_leaves_nothing(tmp_path, number):
    (tmp_path / "program.py").write_text(PROGRAM.replace(".print()", ".write_as_text('out')"))
    (tmp_path / "tmp").mkdir()
    program = subprocess.Popen(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ROOT, "TMPDIR": str(tmp_path / "tmp")},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    until(lambda: any(path.suffix == ".inprogress" for path in tmp_path.iterdir()), "the sink writes")
    family = children_of(program.pid)
    os.killpg(program.pid, number)
    program.communicate(timeout=120)
    assert program.returncode == -number
    until(lambda: not any(is_alive(pid) for pid in family), "children ended")
    assert not any(path.suffix == ".inprogress" for path in tmp_path.iterdir())
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with ScriptCluster(tmp_path_factory.mktemp("cancel")) as found:
        found.start()
        yield found


def start(cluster, tmp_path, *options: str):
    """Start an attached ``flink run``; return its process and the id of its running job."""
    (tmp_path / "job.py").write_text(PROGRAM)
    process = cluster.popen("flink", "run", *options, tmp_path / "job.py")
    line = process.stdout.readline()
    assert "JobID" in line, process.communicate(timeout=120)
    job_id = line.split()[-1]
    until(lambda: cluster.client().job(job_id)["state"] == "RUNNING", "RUNNING")
    return process, job_id


def test_with_sae_the_job_of_a_killed_client_is_cancelled(cluster, tmp_path):
    process, job_id = start(cluster, tmp_path, "-sae")
    process.kill()
    process.communicate(timeout=120)
    until(lambda: cluster.client().job(job_id)["state"] == "CANCELED", "CANCELED")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_with_sae_the_job_ends_with_its_client(cluster, tmp_path, number):
    process, job_id = start(cluster, tmp_path, "-sae")
    os.killpg(process.pid, number)
    process.communicate(timeout=120)
    assert process.returncode == 128 + number
    until(lambda: cluster.client().job(job_id)["state"] == "CANCELED", "CANCELED")


def test_a_killed_slot_process_is_told_and_the_next_job_runs(cluster, tmp_path):
    (taskmanager,) = cluster.pids("taskexecutor")
    before = set(children_of(taskmanager))
    process, _ = start(cluster, tmp_path)
    for pid in set(children_of(taskmanager)) - before:
        os.kill(pid, signal.SIGKILL)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "ended by SIGKILL" in error
    until(lambda: set(children_of(taskmanager)) == before, "slot processes ended")
    process, job_id = start(cluster, tmp_path)
    assert cluster.flink("cancel", job_id).returncode == 0
    assert process.wait(120) == 1
    process.communicate()


def test_a_killed_taskmanager_and_a_killed_jobmanager_are_told(cluster, tmp_path):
    """The last test of the cluster: it ends it, daemon by daemon."""
    (taskmanager,) = cluster.pids("taskexecutor")
    (jobmanager,) = cluster.pids("standalonesession")
    process, _ = start(cluster, tmp_path)
    family = children_of(taskmanager)
    os.kill(taskmanager, signal.SIGKILL)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert re.search(r"TaskManager \S+ on host \S+ was lost", error)
    until(lambda: not any(is_alive(pid) for pid in family), "slots and zygote ended")

    assert cluster.run("taskmanager.sh", "start").returncode == 0
    until(lambda: cluster.client().overview()["taskmanagers"] == 1, "the new TaskManager")
    process, _ = start(cluster, tmp_path)
    slot_pids = children_of(cluster.pids("taskexecutor")[-1])
    os.kill(jobmanager, signal.SIGKILL)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "No cluster answers at" in error
    # The zygote and who writes the .out file stay with their TaskManager, which looks for a JobManager; tasks do not
    # outlive theirs.
    until(lambda: sum(map(is_alive, slot_pids)) <= 2, "slot processes ended")
