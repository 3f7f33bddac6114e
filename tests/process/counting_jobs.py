"""Jobs that count by key into finished files, and how exact what they wrote is. Not a test."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from engine.checkpoint.reader import SavepointReader
from engine.client.rest_client import RestClient
from engine.common import Configuration, Encoder, Types, WatermarkStrategy
from engine.datastream import KeyedProcessFunction, StreamExecutionEnvironment
from engine.datastream.connectors import DataGeneratorSource, FileSink
from engine.datastream.state import ValueStateDescriptor
from tests.process.cluster_jobs import StandaloneCluster, until

#: How often a job is restored whose slot was killed: a neighbour may tell of its broken connection, and the job be
#: restarted in vain, before the slot is missed.
RESTORED_ONCE = (1, 2)
COMMON = {
    "execution.runtime-mode": "STREAMING",
    "restart-strategy.type": "fixed-delay",
    "restart-strategy.fixed-delay.attempts": "20",
    "restart-strategy.fixed-delay.delay": "100 ms",
}


class CountOfKey(KeyedProcessFunction):
    """Yields "key total". ``pad_bytes``: random bytes kept for each key as well; ``row_s``: how long a record takes.
    ``marks``: a folder where each process that counts leaves a file, and another when it forks."""

    def __init__(self, marks: Path, pad_bytes: int = 0, row_s: float = 0.0) -> None:
        self._marks, self._pad_bytes, self._row_s = str(marks), pad_bytes, row_s

    def open(self, runtime_context):
        self._total = runtime_context.get_state(ValueStateDescriptor("total", Types.LONG()))
        self._pad = runtime_context.get_state(ValueStateDescriptor("pad", Types.PICKLED_BYTE_ARRAY()))
        pid, marks = os.getpid(), self._marks
        Path(marks, f"runs-{pid}").touch()
        os.register_at_fork(after_in_parent=lambda: Path(marks, f"forks-{pid}").touch())

    def process_element(self, value, ctx):
        if self._row_s:
            time.sleep(self._row_s)
        total = (self._total.value() or 0) + 1
        self._total.update(total)
        if self._pad_bytes and total == 1:
            self._pad.update(random.randbytes(self._pad_bytes))
        yield f"{ctx.get_current_key()} {total}"


def environment(cluster: StandaloneCluster, parallelism: int, settings: dict[str, str]) -> StreamExecutionEnvironment:
    address = urlsplit(cluster.rest_url)
    env = StreamExecutionEnvironment.create_remote_environment(address.hostname, address.port, parallelism=parallelism)
    env.configure(Configuration({**COMMON, **settings}))
    return env


def counting(
    env: StreamExecutionEnvironment,
    function: CountOfKey,
    target: Path,
    *,
    key_of: Callable[[Any], int],
    count: int | None = None,
    rate: float | None = None,
    record_of: Callable[[int], Any] = int,
) -> Any:
    """Begin numbers → counts → files; return the job's client. ``record_of``: what is made of each number."""
    source = DataGeneratorSource(record_of, count, rate)
    record_type = Types.LONG() if record_of is int else Types.PICKLED_BYTE_ARRAY()
    numbers = env.from_source(source, WatermarkStrategy.no_watermarks(), "numbers", record_type).uid("numbers")
    counted = numbers.key_by(key_of, Types.LONG()).process(function, Types.STRING()).uid("count")
    counted.sink_to(FileSink.for_row_format(str(target), Encoder.simple_string_encoder()).build()).uid("files")
    return env.execute_async("counts")


def is_hidden(path: Path, below: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(below).parts)


def written(*targets: Path) -> Counter[str]:
    """All lines of finished files."""
    files = [(path, target) for target in targets for path in target.rglob("*") if path.is_file()]
    return Counter(
        line for path, target in files if not is_hidden(path, target) for line in path.read_text().split("\n") if line
    )


def left_hidden(target: Path) -> list[str]:
    return [str(path) for path in target.rglob("*") if path.is_file() and is_hidden(path, target)]


def all_counts(totals: dict[int, int]) -> Counter[str]:
    """What is written when each key has been counted up to its total."""
    return Counter(f"{key} {number}" for key, total in totals.items() for number in range(1, total + 1))


def totals_of(numbers: Iterable[int], key_of: Callable[[int], int]) -> dict[int, int]:
    return dict(Counter(map(key_of, numbers)))


def totals_in(path: str) -> dict[int, int]:
    """What a savepoint or checkpoint holds, read without the program."""
    return {key: total for key, _, total in SavepointReader.read(path).keyed_state("count", "total").entries()}


def processes(marks: Path, kind: str = "runs") -> set[int]:
    return {int(path.name.partition("-")[2]) for path in marks.glob(f"{kind}-*")}


def kill_slot(client: RestClient, job: Any, marks: Path) -> int:
    """Kill -9 a slot process that counts, wait until the job runs in another one; return what was killed."""
    before = processes(marks)
    victim = sorted(pid for pid in before if psutil.pid_exists(pid))[0]
    os.kill(victim, signal.SIGKILL)
    until(lambda: processes(marks) - before, "another process counts")
    until(lambda: state(client, job) in ("RUNNING", "FINISHED"), "RUNNING again")
    return victim


def state(client: RestClient, job: Any) -> str:
    return str(client.job(job.get_job_id())["state"])


def checkpoints(client: RestClient, job: Any) -> dict[str, Any]:
    found: dict[str, Any] = client._json("GET", f"/jobs/{job.get_job_id()}/checkpoints")
    return found


def completed(client: RestClient, job: Any) -> int:
    return int(checkpoints(client, job)["counts"]["completed"])


@contextlib.contextmanager
def client_of(cluster, num_slots):
    """A client of a cluster that tests share, when all of its slots are free; ends what its test leaves running."""
    client = RestClient(cluster.rest_url)
    until(lambda: client.overview()["slots-available"] == num_slots, f"{num_slots} free slots")
    yield client
    end_all(client)


def end_all(client: RestClient) -> None:
    for job in client.jobs():
        if job["state"] not in ("FINISHED", "CANCELED", "FAILED"):
            client.cancel(job["jid"])
    client.close()
