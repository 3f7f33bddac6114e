"""From files through keyed state into files on a real cluster, with checkpoints, while processes are killed at random
moments: a reader that looks at finished files only sees every result once, as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import time
import urllib.request
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from engine.client.rest_client import RestClient
from engine.common import Configuration, Encoder, RestartStrategies, Types
from engine.connectors.sink import Committer, Sink, SinkWriter
from engine.core.errors import ExternalError
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.connectors import FileSink
from engine.datastream.functions import KeyedProcessFunction, MapFunction
from engine.protocol.lifecycle import JobStatus
from engine.state.descriptors import ValueStateDescriptor
from tests.process.cluster_jobs import StandaloneCluster, is_alive, until

RESULT_S = 120.0
NUM_KEYS = 37
LINES = [f"k{number * 7919 % NUM_KEYS} {number}" for number in range(12_000)]


def expected() -> Counter[str]:
    """Per key the counts 1, 2, 3 …: whatever the order in which its records come."""
    by_key = Counter(line.split()[0] for line in LINES)
    return Counter(f"({key},{count})" for key, total in by_key.items() for count in range(1, total + 1))


class Slow(MapFunction):
    """So that there is time for checkpoints and crashes, until ``hurry`` is called; tells which process it runs in."""

    def __init__(self, pids: Path, row_s: float) -> None:
        self.pids, self.hurry, self.row_s = str(pids), str(pids.with_name("hurry")), row_s

    def open(self, runtime_context):
        Path(self.pids, str(os.getpid())).touch()

    def map(self, value):
        if self.row_s:
            time.sleep(self.row_s)
            self.row_s *= not os.path.exists(self.hurry)
        return value


def hurry(pids: Path) -> None:
    """Let a job of ``counts`` come to its end."""
    pids.with_name("hurry").touch()


class CountsOfKey(KeyedProcessFunction):
    def open(self, runtime_context):
        self.count = runtime_context.get_state(ValueStateDescriptor("count", Types.LONG()))

    def process_element(self, value, ctx):
        count = (self.count.value() or 0) + 1
        self.count.update(count)
        yield ctx.get_current_key(), count


@pytest.fixture
def cluster(tmp_path):
    cluster = StandaloneCluster(
        tmp_path,
        taskmanagers=2,
        heartbeat_interval="500",
        heartbeat_timeout="10000",
    )
    yield cluster
    cluster.close()


@pytest.fixture
def client(cluster):
    client = RestClient(cluster.rest_url)
    until(lambda: client.overview()["slots-available"] == 4, "4 free slots")
    yield client
    client.close()


@pytest.fixture
def env(cluster, tmp_path):
    address = urlsplit(cluster.rest_url)
    env = StreamExecutionEnvironment.create_remote_environment(address.hostname, address.port, parallelism=2)
    env.set_restart_strategy(RestartStrategies.fixed_delay_restart(50, 100))
    settings = {
        "execution.runtime-mode": "STREAMING",
        "execution.checkpointing.interval": "200 ms",
        "execution.checkpointing.dir": str(tmp_path / "checkpoints"),
        "execution.checkpointing.tolerable-failed-checkpoints": "100",
    }
    env.configure(Configuration(settings))
    return env


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        (folder / f"part-{number}").write_text("".join(f"{line}\n" for line in LINES[number::6]))
    return str(folder)


def counts(env, text: str, pids: Path, row_s: float = 0.008):
    """Count by key, in two subtasks that need 48 s for all lines unless they are told to ``hurry``."""
    pids.mkdir()
    pair = Types.TUPLE([Types.STRING(), Types.LONG()])
    lines = env.read_text_file(text).map(Slow(pids, row_s))
    return lines.key_by(lambda line: line.split()[0]).process(CountsOfKey(), pair)


def written(path: Path) -> Counter[str]:
    """All lines of visible files."""
    files = [path] if path.is_file() else [child for child in path.rglob("*") if child.is_file()]
    visible = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    return Counter(line for file in visible for line in file.read_text().splitlines())


def hidden(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob(".*")]


def checkpoints(client, job) -> dict[str, int]:
    with urllib.request.urlopen(f"{client.base_url}/jobs/{job.get_job_id()}/checkpoints", timeout=60) as answer:
        return json.load(answer)["counts"]


def kill_at_random(cluster, job, pids: Path, kills: list[str], seed: int) -> int:
    """Kill slots and TaskManagers while the job runs; return how many processes were killed."""
    rng = random.Random(seed)
    killed = 0
    for kind in kills:
        until(lambda: job.get_job_status().result() is JobStatus.RUNNING or _ended(job), "the job runs")
        time.sleep(rng.uniform(0.3, 1.6))
        if _ended(job):
            break
        slot = psutil.Process(rng.choice(until(lambda: living(pids), "a process counts")))
        if kind == "slot":
            slot.kill()
        else:
            ancestors = {process.pid for process in slot.parents()}
            (taskmanager,) = [one for one in cluster.taskmanagers if one.popen.pid in ancestors]
            cluster.add_taskmanager()
            cluster.taskmanagers.remove(taskmanager)
            taskmanager.end(signal.SIGKILL)
        killed += 1
    return killed


def living(pids: Path) -> list[int]:
    return sorted(int(path.name) for path in pids.iterdir() if is_alive(int(path.name)))


def _ended(job) -> bool:
    return job.get_job_status().result() in (JobStatus.FINISHED, JobStatus.FAILED, JobStatus.CANCELED)


@pytest.mark.parametrize("seed", range(2))
def test_files_hold_every_result_once_whatever_is_killed(env, cluster, client, text, tmp_path, seed):
    pids, output = tmp_path / "pids", tmp_path / "out"
    results = counts(env, text, pids)
    results.sink_to(FileSink.for_row_format(str(output / "parts"), Encoder.simple_string_encoder()).build())
    results.write_as_text(str(output / "text"))
    job = env.execute_async("exactly once")
    until(lambda: checkpoints(client, job)["completed"], "a checkpoint that can be restored")
    killed = kill_at_random(cluster, job, pids, ["slot", "taskmanager", "slot", "slot"], seed)
    hurry(pids)
    job.get_job_execution_result().result(RESULT_S)
    assert killed >= 3
    assert checkpoints(client, job)["restored"] >= 1
    assert written(output / "parts") == expected()
    assert written(output / "text") == expected()
    assert hidden(output) == []


def test_finished_files_appear_while_the_job_runs_and_never_hold_a_result_twice(env, cluster, client, text, tmp_path):
    pids, output = tmp_path / "pids", tmp_path / "out"
    counts(env, text, pids).sink_to(FileSink.for_row_format(str(output), Encoder.simple_string_encoder()).build())
    job = env.execute_async("visible")
    until(lambda: output.exists() and sum(written(output).values()) > 100, "the first files are finished")
    assert job.get_job_status().result() is JobStatus.RUNNING
    kill_at_random(cluster, job, pids, ["slot"], 7)
    seen = written(output)
    assert max(seen.values()) == 1
    job.cancel().result()
    until(lambda: _ended(job), "the job has ended")
    left = written(output)
    assert seen - left == Counter()  # nothing that was finished is taken away
    assert max(left.values()) == 1
    assert hidden(output) == []


class FailingFormat:
    """Lines; some files cannot be closed, as when a DataNode is lost: what was written to them is gone."""

    def __init__(self, marks: Path) -> None:
        self.lines = Encoder.simple_string_encoder()
        self.marks = str(marks)

    def create(self, stream, type_info):
        writer = self.lines.create(stream, type_info)
        close, marks = writer.close, self.marks

        def fail_sometimes():
            number = len(os.listdir(marks))
            Path(marks, f"{number}-{os.getpid()}").touch()
            if number in (8, 9, 20):
                writer.abandon()
                raise ExternalError("the file cannot be closed")
            close()

        return FailingWriter(writer, fail_sometimes)


class FailingWriter:
    def __init__(self, writer, close) -> None:
        self.write, self.abandon, self.close = writer.write, writer.abandon, close

    num_bytes = 0


def test_files_that_cannot_be_closed_at_a_checkpoint_are_not_lost(env, cluster, client, text, tmp_path):
    """A sink that fails there has let go of records that no checkpoint may claim to have."""
    pids, output, marks = tmp_path / "pids", tmp_path / "out", tmp_path / "marks"
    marks.mkdir()
    sink = FileSink.for_row_format(str(output), FailingFormat(marks)).build()
    counts(env, text, pids).sink_to(sink)
    job = env.execute_async("cannot close")
    until(lambda: len(os.listdir(marks)) > 20, "all that fail have failed")
    hurry(pids)
    job.get_job_execution_result().result(RESULT_S)
    assert checkpoints(client, job)["restored"] >= 1
    assert written(output) == expected()
    assert hidden(output) == []


class Ledger(Sink):
    """Commits by renaming files in a folder of its own: a user's sink, written in Python."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def create_writer(self, context):
        runtime = context.runtime_context
        return _LedgerWriter(
            self.folder, f"{runtime.get_index_of_this_subtask()}-{runtime.get_attempt_number()}-{os.getpid()}"
        )

    def create_committer(self):
        return _LedgerCommitter()


class _LedgerWriter(SinkWriter):
    def __init__(self, folder: str, name: str) -> None:
        self.folder, self.name = folder, name
        self.rows: list[str] = []
        self.number = 0

    def write(self, element, context):
        self.rows.append(f"({element[0]},{element[1]})")

    def prepare_commit(self):
        if not self.rows:
            return []
        self.number += 1
        target = Path(self.folder, f"{self.name}-{self.number}")
        target.with_name("." + target.name).write_text("".join(f"{row}\n" for row in self.rows))
        self.rows = []
        return [str(target)]


class _LedgerCommitter(Committer):
    def commit(self, committables):
        for target in map(Path, committables):
            pending = target.with_name("." + target.name)
            if pending.exists():
                pending.rename(target)


def test_a_sink_that_a_user_wrote_commits_every_result_once(env, cluster, client, text, tmp_path):
    pids, output = tmp_path / "pids", tmp_path / "out"
    output.mkdir()
    counts(env, text, pids).sink_to(Ledger(output))
    job = env.execute_async("ledger")
    killed = kill_at_random(cluster, job, pids, ["slot", "slot"], 3)
    hurry(pids)
    job.get_job_execution_result().result(RESULT_S)
    assert killed
    assert written(output) == expected()


def test_who_collects_is_given_every_result_once(env, cluster, client, text, tmp_path):
    pids = tmp_path / "pids"
    results = counts(env, text, pids)
    with results.execute_and_collect() as rows:
        job = rows.get_job_client()
        first = next(rows)
        killed = kill_at_random(cluster, job, pids, ["slot", "slot"], 5)
        hurry(pids)
        collected = Counter(f"({key},{count})" for key, count in [first, *rows])
    assert killed
    assert collected == expected()
