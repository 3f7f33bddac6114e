"""Every TaskManager and JobManager of a cluster is replaced, one after the other, under a job that must be exact."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from engine.common import Encoder, Types
from engine.datastream.connectors import FileSink
from engine.datastream.functions import MapFunction
from tests.process.cluster_jobs import Process, until
from tests.process.ha_cluster import HaCluster
from tests.process.test_exactly_once_files import CountsOfKey, written
from tests.process.test_ha import Waiting, environment

NUM_KEYS = 41
LINES = [f"k{number * 7919 % NUM_KEYS} {number}" for number in range(60_000)]


def expected() -> Counter[str]:
    by_key = Counter(line.split()[0] for line in LINES)
    return Counter(f"({key},{count})" for key, total in by_key.items() for count in range(1, total + 1))


class Slow(MapFunction):
    """Takes its time until the file "hurry" is there; each process writes down how many records it has seen."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def open(self, runtime_context):
        self.seen = open(f"{self.folder}/seen-{os.getpid()}-{runtime_context.get_index_of_this_subtask()}", "ab", 0)
        self.hurries = False

    def map(self, value):
        self.hurries = self.hurries or os.path.exists(f"{self.folder}/hurry")
        if not self.hurries:
            time.sleep(0.002)
        self.seen.write(b".")
        return value


class Job:
    def __init__(self, cluster: HaCluster, tmp_path: Path, **settings: str) -> None:
        self.cluster = cluster
        self.output, self.marks, source = tmp_path / "out", tmp_path / "marks", tmp_path / "in"
        self.marks.mkdir()
        source.mkdir()
        for number in range(4):
            (source / f"part-{number}").write_text("".join(f"{line}\n" for line in LINES[number::4]))
        env = environment(cluster, tmp_path, **settings)
        lines = env.read_text_file(str(source)).map(Slow(self.marks), Types.STRING())
        keys = lines.map(lambda line: line.split()[0], Types.STRING())
        counted = keys.key_by(lambda key: key, Types.STRING()).process(CountsOfKey())
        sink = FileSink.for_row_format(str(self.output), Encoder.simple_string_encoder()).build()
        counted.map(lambda pair: f"({pair[0]},{pair[1]})", Types.STRING()).sink_to(sink)
        self.client = env.execute_async("replaced")
        self.id = self.client.get_job_id()

    def num_seen(self) -> int:
        return sum(path.stat().st_size for path in self.marks.glob("seen-*"))

    def get(self, path: str = ""):
        return self.cluster.leader.get(f"/jobs/{self.id}{path}")

    def runs(self) -> bool:
        return self.get()["state"] == "RUNNING" and all(v["status"] == "RUNNING" for v in self.get()["vertices"])

    def finish(self) -> None:
        (self.marks / "hurry").touch()
        Waiting(self.client).result()
        assert written(self.output) == expected()


class Watch:
    """How long the longest time was in which no file of the output became visible."""

    def __init__(self, output: Path) -> None:
        self._output, self.longest_s, self._is_over = output, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        last, changed = 0, time.monotonic()
        while not self._is_over.wait(0.01):
            files = sum(1 for path in self._output.rglob("part-*") if not path.name.startswith("."))
            now = time.monotonic()
            self.longest_s = max(self.longest_s, now - changed)
            if files != last:
                last, changed = files, now

    def end(self) -> float:
        self._is_over.set()
        self._thread.join()
        return self.longest_s


@pytest.fixture
def cluster(tmp_path):
    # Nobody is to be given up because the machine stands still: what is done twice is counted.
    cluster = HaCluster(tmp_path, session_timeout="8 s", heartbeat_interval="500", heartbeat_timeout="15000")
    yield cluster
    cluster.close()


def replace_taskmanager(cluster: HaCluster, old: Process) -> None:
    cluster.add_taskmanager().find("registered at")
    assert old.end(signal.SIGTERM) == 0
    cluster.taskmanagers.remove(old)


def tell(what: str, job: Job, watch: Watch) -> None:
    timestamps = job.get()["timestamps"]
    entries = job.get("/exceptions")["exceptionHistory"]["entries"]
    print(
        f"\n{what}: longest time without output {watch.end():.2f} s, exceptions {len(entries)}, "
        f"restarted {'yes' if timestamps['RESTARTING'] else 'no'}",
        flush=True,
    )


def test_taskmanagers_and_jobmanagers_are_replaced_one_after_the_other(cluster, tmp_path):
    job = Job(cluster, tmp_path)
    until(lambda: len(written(job.output)) > 100, "output")
    for number, old in enumerate(list(cluster.taskmanagers)):
        watch, seen = Watch(job.output), written(job.output)
        replace_taskmanager(cluster, old)
        until(lambda: job.runs() and written(job.output) - seen, "the job goes on elsewhere")  # noqa: B023
        tell(f"TaskManager {number + 1} replaced", job, watch)
    for number, old in enumerate(list(cluster.masters)):
        watch, seen = Watch(job.output), written(job.output)
        cluster.add_master()
        assert old.process.end(signal.SIGTERM) == 0
        cluster.masters.remove(old)
        until(lambda: job.runs() and written(job.output) - seen, "the job goes on under another leader")  # noqa: B023
        tell(f"JobManager {number + 1} replaced", job, watch)
    job.finish()


def test_a_taskmanager_that_is_told_to_end_has_a_checkpoint_taken_first(cluster, tmp_path):
    """Checkpoints are an hour apart here: without one, all the work since the job's beginning would be done again."""
    job = Job(cluster, tmp_path, **{"execution.checkpointing.interval": "1 h"})
    until(lambda: job.num_seen() > 4000, "some work is done")
    assert job.get("/checkpoints")["counts"]["completed"] == 0
    used = {row["resource-id"] for row in subtasks(job)}
    old = next(one for one in cluster.taskmanagers if any(name in one.output for name in used))
    done = job.num_seen()
    replace_taskmanager(cluster, old)
    until(job.runs, "the job goes on")
    checkpoints = job.get("/checkpoints")
    assert checkpoints["counts"]["completed"] == 1
    assert checkpoints["latest"]["restored"]["id"] == checkpoints["latest"]["completed"]["id"]
    job.finish()
    again = job.num_seen() - len(LINES)
    print(f"\n{again} of {len(LINES)} records were done twice", flush=True)
    assert again < done


def subtasks(job: Job) -> list[dict]:
    vertices = [vertex["id"] for vertex in job.get()["vertices"]]
    found = [job.get(f"/vertices/{vertex}")["subtasks"] for vertex in vertices]
    return [{"resource-id": row["taskmanager-id"]} for rows in found for row in rows]
