"""Another JobManager leads, and tasks run on: none is restarted where all of them are there. Real processes; elections
through files. ``test_ha`` has the same job where it is not looked at what becomes of its tasks."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from engine.common import Encoder
from engine.datastream.connectors import FileSink
from engine.datastream.functions import MapFunction
from tests.process.cluster_jobs import until
from tests.process.ha_cluster import HaCluster
from tests.process.test_exactly_once_files import CountsOfKey, expected, hidden, written
from tests.process.test_ha import environment, tell, text  # noqa: F401 (a fixture)

RESULT_S = 120.0


class Paced(MapFunction):
    """Slow until a file is there; notes in which process, and when, it was called."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.is_fast = False

    def open(self, runtime_context):
        self.notes = open(os.path.join(self.folder, str(os.getpid())), "a", buffering=1)

    def map(self, value):
        if not self.is_fast:
            self.is_fast = os.path.exists(os.path.join(self.folder, "fast"))
            self.notes.write(f"{time.time()}\n")
            time.sleep(0.01)
        return value


class Run:
    def __init__(self, cluster, env, lines, tmp_path):
        self.cluster = cluster
        self.output = tmp_path / "out"
        self.notes = tmp_path / "notes"
        self.notes.mkdir()
        sink = FileSink.for_row_format(str(self.output), Encoder.simple_string_encoder()).build()
        paced = env.read_text_file(lines).map(Paced(self.notes))
        paced.key_by(lambda line: line.split()[0]).process(CountsOfKey()).map(
            lambda pair: f"({pair[0]},{pair[1]})"
        ).sink_to(sink)
        self.job = env.execute_async("runs on")
        self.job_id = self.job.get_job_id()
        until(lambda: self.output.exists() and len(written(self.output)) > 100, "the first files are finished")

    def get(self, path=""):
        """What the leader says of the job; None while nobody answers."""
        with contextlib.suppress(OSError):
            return self.cluster.leader.get(f"/jobs/{self.job_id}{path}")
        return None

    def runs(self) -> bool:
        said = self.get()
        return (
            said is not None
            and said["state"] == "RUNNING"
            and said["status-counts"]["RUNNING"] == len(said["vertices"])
        )

    def attempts(self) -> set[int]:
        ids = [vertex["id"] for vertex in self.get()["vertices"]]
        return {one["attempt"] for id_ in ids for one in self.get(f"/vertices/{id_}")["subtasks"]}

    def exceptions(self) -> list[str]:
        return [one["exceptionName"] for one in self.get("/exceptions")["exceptionHistory"]["entries"]]

    def slots(self) -> set[str]:
        """The processes that have worked on the job."""
        return {path.name for path in self.notes.iterdir() if path.name.isdigit()}

    def calls(self) -> list[float]:
        """When a slot has worked on a record."""
        files = [path for path in self.notes.iterdir() if path.name.isdigit()]
        # The last line may not be whole yet.
        return sorted(float(line) for path in files for line in path.read_text().splitlines()[:-1])

    def kill_leader(self) -> None:
        leader = self.cluster.leader
        os.kill(leader.pid, signal.SIGKILL)
        self.cluster.masters.remove(leader)

    def kill_taskmanager(self) -> None:
        """One with tasks of the job."""
        ancestors = {process.pid for process in psutil.Process(int(next(iter(self.slots())))).parents()}
        taskmanager = next(one for one in self.cluster.taskmanagers if one.popen.pid in ancestors)
        os.kill(taskmanager.popen.pid, signal.SIGKILL)

    def check_result(self) -> None:
        (self.notes / "fast").touch()
        self.job.get_job_execution_result().result(RESULT_S)
        assert written(self.output) == expected()
        assert hidden(self.output) == []


@pytest.fixture
def run(tmp_path, text):  # noqa: F811
    # Nobody is to be given up because the machine stands still: attempts and exceptions are counted.
    cluster = HaCluster(tmp_path, session_timeout="8 s", heartbeat_interval="500", heartbeat_timeout="10000")
    try:
        yield Run(cluster, environment(cluster, tmp_path), text, tmp_path)
    finally:
        cluster.close()


def test_tasks_run_on_while_nobody_leads_and_under_the_next_leader(run):
    slots = run.slots()
    assert len(slots) == 2
    begin = time.time()
    run.kill_leader()
    until(run.runs, "the next leader says that the job runs")
    led = time.time()
    calls = [at for at in run.calls() if begin < at < led]
    assert calls, "nothing was done while nobody led"
    pauses = [later - at for at, later in itertools.pairwise([begin, *calls, led])]
    tell(
        f"kill -9 of the leader: {led - begin:.2f} s until the next one led; no record for at most {max(pauses):.3f} s"
    )
    assert run.slots() == slots
    assert run.attempts() == {0}
    assert run.exceptions() == ["TasksTakenOver"]
    seen = written(run.output)
    until(lambda: run.get("/checkpoints")["counts"]["completed"] >= 2, "checkpoints complete")
    until(lambda: written(run.output) - seen, "they are committed")
    assert run.attempts() == {0}
    # What was taken over can be restored, too.
    run.kill_taskmanager()
    # A neighbour may tell of its broken connection, and the job be restarted in vain, before the TaskManager is missed.
    until(lambda: run.runs() and min(run.attempts()) >= 1, "the job was restarted")
    run.check_result()


def test_a_taskmanager_that_is_lost_with_the_leader_has_all_tasks_restarted(run):
    run.kill_leader()
    run.kill_taskmanager()
    # A neighbour may tell of its broken connection, and the job be restarted in vain, before the TaskManager is missed.
    until(lambda: run.runs() and min(run.attempts()) >= 1, "the job was restarted")
    assert "TasksTakenOver" not in run.exceptions()
    run.check_result()
