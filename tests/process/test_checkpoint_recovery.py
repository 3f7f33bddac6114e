"""Jobs that take checkpoints on a real cluster: what was counted before a slot process was killed is counted on."""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from engine.client.rest_client import RestClient
from engine.common import Configuration, Encoder, Types, WatermarkStrategy
from engine.core.errors import JobExecutionError
from engine.datastream import (
    ExternalizedCheckpointRetention,
    FileSystemCheckpointStorage,
    KeyedProcessFunction,
    StreamExecutionEnvironment,
)
from engine.datastream.connectors import DataGeneratorSource, FileSink
from engine.datastream.state import ValueStateDescriptor
from tests.process.cluster_jobs import StandaloneCluster, until


class Count(KeyedProcessFunction):
    """Writes "key total" of each record to a file of its process."""

    def __init__(self, out: str) -> None:
        self._out = out

    def open(self, runtime_context):
        self._total = runtime_context.get_state(ValueStateDescriptor("total", Types.LONG()))
        self._file = open(f"{self._out}/{os.getpid()}", "a", buffering=1)

    def process_element(self, value, ctx):
        total = (self._total.value() or 0) + 1
        self._total.update(total)
        self._file.write(f"{ctx.get_current_key()} {total}\n")
        yield total

    def close(self):
        self._file.close()


class CountInText(Count):
    def process_element(self, value, ctx):
        for total in super().process_element(value, ctx):
            yield f"{ctx.get_current_key()} {total}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = StandaloneCluster(tmp_path_factory.mktemp("cluster"), heartbeat_interval="500", heartbeat_timeout="10000")
    yield cluster
    cluster.close()


@pytest.fixture
def client(cluster):
    client = RestClient(cluster.rest_url)
    until(lambda: client.overview()["slots-available"] == 4, "4 free slots")
    yield client
    for job in client.jobs():
        if job["state"] not in ("FINISHED", "CANCELED", "FAILED"):
            client.cancel(job["jid"])
    client.close()


@pytest.fixture
def out(tmp_path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def counting(cluster, out: Path, checkpoints: Path, *, interval: int = 100) -> StreamExecutionEnvironment:
    address = urlsplit(cluster.rest_url)
    env = StreamExecutionEnvironment.create_remote_environment(address.hostname, address.port, parallelism=2)
    env.enable_checkpointing(interval)
    env.get_checkpoint_config().set_checkpoint_storage(FileSystemCheckpointStorage(f"file://{checkpoints}", 0))
    source = DataGeneratorSource(lambda i: i % 10, None, 500)
    numbers = env.from_source(source, WatermarkStrategy.no_watermarks(), "numbers").uid("numbers")
    counted = numbers.key_by(lambda number: number).process(Count(str(out)), Types.LONG()).uid("count")
    counted.print()
    return env


def counts(out: Path) -> dict[str, dict[str, list[int]]]:
    """Return process → key → counts, in order."""
    found: dict[str, dict[str, list[int]]] = {}
    for path in out.iterdir():
        by_key = found[path.name] = defaultdict(list)
        for line in path.read_text().splitlines():
            key, _, total = line.partition(" ")
            if total:
                by_key[key].append(int(total))
    return found


def completed(client: RestClient, job_id) -> int:
    return int(client._json("GET", f"/jobs/{job_id}/checkpoints")["counts"]["completed"])


def kill_one_that_counts(client: RestClient, job_id, out: Path) -> None:
    """Wait for some checkpoints, kill a slot process, wait until the job runs again; nothing if it has finished."""

    def state() -> str:
        return str(client.job(job_id)["state"])

    seen, was = set(counts(out)), completed(client, job_id)
    until(lambda: completed(client, job_id) > was + 3 or state() == "FINISHED", "progress")
    living = [int(name) for name in counts(out) if psutil.pid_exists(int(name))]
    if state() == "RUNNING" and living:
        psutil.Process(living[0]).send_signal(signal.SIGKILL)
        until(lambda: state() != "RUNNING" or set(counts(out)) > seen, "the loss is noticed")
        until(lambda: state() in ("RUNNING", "FINISHED"), "RUNNING again")


def test_a_killed_slot_process_costs_nothing_that_was_checkpointed(cluster, client, out, tmp_path):
    job = counting(cluster, out, tmp_path / "chk").execute_async("counts")
    job_id = job.get_job_id()
    until(lambda: completed(client, job_id) >= 3 and len(counts(out)) == 2, "three checkpoints")
    before = set(counts(out))
    victim = psutil.Process(int(next(iter(before))))
    victim.send_signal(signal.SIGKILL)
    until(lambda: len({name for name, seen in counts(out).items() if seen} - before) >= 2, "new processes that count")
    after = counts(out)
    highest = {key: max(totals) for name in before for key, totals in after[name].items()}
    lowest: dict[str, int] = {}
    for name in set(after) - before:
        for key, totals in after[name].items():
            lowest[key] = min(totals[0], lowest.get(key, totals[0]))
    assert lowest
    for key, total in lowest.items():
        assert 1 < total <= highest[key] + 1, "it goes on from a checkpoint: not from the beginning, and without a gap"
    restored = client._json("GET", f"/jobs/{job_id}/checkpoints")["latest"]["restored"]
    assert restored["id"] >= 3
    was = completed(client, job_id)
    until(lambda: completed(client, job_id) > was, "checkpoints after the restart")
    job.cancel()
    until(lambda: client.job(job_id)["state"] == "CANCELED", "CANCELED")
    until(lambda: os.listdir(tmp_path / "chk") == [], "nothing left over")


def test_finished_files_hold_each_record_once_whatever_is_killed_when(cluster, client, out, tmp_path):
    address = urlsplit(cluster.rest_url)
    env = StreamExecutionEnvironment.create_remote_environment(address.hostname, address.port, parallelism=2)
    env.enable_checkpointing(50)
    env.get_checkpoint_config().set_checkpoint_storage(FileSystemCheckpointStorage(f"file://{tmp_path}/chk"))
    env.configure(Configuration({"restart-strategy.exponential-delay.initial-backoff": "10 ms"}))
    total = 6000
    source = DataGeneratorSource(lambda i: i, total, 1000)
    numbers = env.from_source(source, WatermarkStrategy.no_watermarks(), "numbers").uid("numbers")
    counted = numbers.key_by(lambda number: number % 10).process(CountInText(str(out))).uid("count")
    sink = FileSink.for_row_format(str(tmp_path / "files"), Encoder.simple_string_encoder()).build()
    counted.sink_to(sink).uid("files")
    job = env.execute_async("exact")
    job_id = job.get_job_id()
    for _ in range(3):
        kill_one_that_counts(client, job_id, out)
    job.get_job_execution_result().result(120)
    found = [
        line for path in (tmp_path / "files").rglob("*") if path.is_file() for line in path.read_text().split("\n")
    ]
    expected = [f"{key} {number}" for key in range(10) for number in range(1, total // 10 + 1)]
    assert sorted(filter(None, found)) == sorted(expected)
    assert len(client._json("GET", f"/jobs/{job_id}/exceptions")["exceptionHistory"]["entries"]) >= 1
    until(lambda: os.listdir(tmp_path / "chk") == [], "nothing left over")


def test_a_retained_checkpoint_starts_another_job_and_is_left_alone(cluster, client, out, tmp_path):
    env = counting(cluster, out, tmp_path / "chk")
    env.get_checkpoint_config().set_externalized_checkpoint_retention(
        ExternalizedCheckpointRetention.RETAIN_ON_CANCELLATION
    )
    job = env.execute_async("counts")
    until(lambda: completed(client, job.get_job_id()) >= 2, "two checkpoints")
    job.cancel()
    until(lambda: client.job(job.get_job_id())["state"] == "CANCELED", "CANCELED")
    (retained,) = until(lambda: [p for p in (tmp_path / "chk").glob("*/chk-*") if (p / "_metadata").exists()], "it")
    (tmp_path / "again").mkdir()
    env = counting(cluster, tmp_path / "again", tmp_path / "chk")
    env._config.set("execution.state-recovery.path", str(retained))
    again = env.execute_async("counts again")
    until(lambda: completed(client, again.get_job_id()) >= 1, "a checkpoint of its own")
    assert min(totals[0] for by_key in counts(tmp_path / "again").values() for totals in by_key.values()) > 1
    again.cancel()
    until(lambda: client.job(again.get_job_id())["state"] == "CANCELED", "CANCELED")
    until(lambda: [p.name for p in (tmp_path / "chk").iterdir()] == [job.get_job_id()], "only the first is retained")
    assert (retained / "_metadata").exists()


def test_a_folder_that_cannot_be_written_is_told_at_submission(cluster, client, out, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match=r"execution\.checkpointing\.dir.*cannot be written"):
        counting(cluster, out, tmp_path / "file" / "chk").execute_async("counts")
    assert all(job["name"] != "counts" or job["state"] == "CANCELED" for job in client.jobs())


def test_a_stop_of_a_local_job_has_the_savepoint_as_its_result(tmp_path, out):
    env = StreamExecutionEnvironment.create_local_environment(parallelism=1)
    env.set_default_savepoint_directory(str(tmp_path / "sp"))
    source = DataGeneratorSource(lambda i: i % 10, None, 500)
    numbers = env.from_source(source, WatermarkStrategy.no_watermarks(), "numbers")
    numbers.key_by(lambda number: number).process(Count(str(out)), Types.LONG()).print()
    job = env.execute_async("local")
    until(lambda: counts(out), "counts")
    first = job.trigger_savepoint().result(120)
    last = job.stop_with_savepoint(False).result(120)
    assert first != last
    assert all(os.path.exists(path.removeprefix("file://") + "/_metadata") for path in (first, last))
    job.get_job_execution_result().result(120)
    with pytest.raises(Exception, match="the job is not running"):
        job.trigger_savepoint().result(120)


def test_a_job_whose_checkpoints_cannot_be_written_fails_and_says_so(cluster, client, out, tmp_path):
    folder = tmp_path / "chk"
    env = counting(cluster, out, folder)
    env._config.set("restart-strategy.type", "none")
    job = env.execute_async("counts")
    until(lambda: completed(client, job.get_job_id()) >= 1, "a checkpoint")
    for path in folder.iterdir():
        path.rename(tmp_path / "gone")
        path.write_text("no folder any more")
    with pytest.raises(JobExecutionError, match="Exceeded checkpoint tolerable failure threshold"):
        job.get_job_execution_result().result(120)
