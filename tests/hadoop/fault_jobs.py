"""A job from HDFS through keyed state into FileSink on HDFS, slow until it is told to hurry. Not a test."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from engine.client.rest_client import RestClient
from engine.common import Configuration, Encoder, Types
from engine.core.fs import FileSystem
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.connectors import FileSink
from engine.datastream.connectors.file_system import BucketAssigner
from engine.datastream.functions import KeyedProcessFunction, MapFunction
from engine.state.descriptors import ValueStateDescriptor
from tests.process.cluster_jobs import until

__all__ = ["FaultJob", "read_on"]

NUM_KEYS = 37
NUM_LINES = 60_000
RESULT_S = 240.0


def read_on(stream: BinaryIO) -> tuple[bytes, float, float]:
    """Return what is left, the longest time without any of it in s, and when that was over (monotonic)."""
    pieces, longest_s, over, before = [], 0.0, 0.0, time.monotonic()
    while piece := stream.read(1 << 20):
        pieces.append(piece)
        now = time.monotonic()
        if now - before > longest_s:
            longest_s, over = now - before, now
        before = now
    return b"".join(pieces), longest_s, over


class Slow(MapFunction):
    """So that there is time for faults, six minutes at most, until the file ``hurry`` is there."""

    def __init__(self, hurry: Path) -> None:
        self.hurry = str(hurry)
        self.is_slow = True

    def map(self, value):
        if self.is_slow:
            time.sleep(0.012)
            self.is_slow = not os.path.exists(self.hurry)
        return value.split()[0]


class Count(KeyedProcessFunction):
    def open(self, runtime_context):
        self.count = runtime_context.get_state(ValueStateDescriptor("count", Types.LONG()))

    def process_element(self, value, ctx):
        count = (self.count.value() or 0) + 1
        self.count.update(count)
        yield f"{ctx.get_current_key()} {count}"


class FaultJob:
    """``rest_url``: of a cluster with two free slots. Its folders are below ``root`` of ``hdfs``."""

    def __init__(self, hdfs: FileSystem, rest_url: str, marks: Path, root: str | None = None, **settings: str) -> None:
        self.hdfs = hdfs
        self.root = root or f"hdfs:///faults/{uuid.uuid4().hex}"
        self.output, self.checkpoints = f"{self.root}/out", f"{self.root}/checkpoints"
        self.hurry_file = marks / f"hurry-{uuid.uuid4().hex}"
        self.client = RestClient(rest_url)
        lines = [f"k{number * 7919 % NUM_KEYS} {'x' * 400}\n" for number in range(NUM_LINES)]
        self.expected = Counter[str]()
        for key, total in Counter(line.split()[0] for line in lines).items():
            self.expected.update(f"{key} {count}" for count in range(1, total + 1))
        for number in range(4):
            with hdfs.open_write(f"{self.root}/in/{number}.txt") as stream:
                stream.write("".join(lines[number::4]).encode())
        address = urlsplit(rest_url)
        env = StreamExecutionEnvironment.create_remote_environment(address.hostname, address.port, parallelism=2)
        env.configure(
            Configuration(
                {
                    "execution.runtime-mode": "STREAMING",
                    "execution.checkpointing.interval": "1 s",
                    "execution.checkpointing.dir": self.checkpoints,
                    "restart-strategy.type": "fixed-delay",
                    "restart-strategy.fixed-delay.attempts": "100",
                    "restart-strategy.fixed-delay.delay": "200 ms",
                    **settings,
                }
            )
        )
        counted = (
            env.read_text_file(f"{self.root}/in")
            .map(Slow(self.hurry_file), Types.STRING())
            .key_by(lambda key: key)
            .process(Count(), Types.STRING())
        )
        sink = FileSink.for_row_format(self.output, Encoder.simple_string_encoder())
        counted.sink_to(sink.with_bucket_assigner(BucketAssigner.base_path_bucket_assigner()).build())
        self.handle = env.execute_async("faults")
        self.job_id = str(self.handle.get_job_id())

    # --- what it is like ---------------------------------------------------------------------------------------------

    def checkpoints_completed(self) -> int:
        return int(self._get(f"/jobs/{self.job_id}/checkpoints")["counts"]["completed"])

    def checkpoint_failures(self) -> list[str]:
        history = self._get(f"/jobs/{self.job_id}/checkpoints")["history"]
        return [str(row.get("failure_message", "")) for row in history if row["status"] == "FAILED"]

    def was_restarted(self) -> bool:
        return bool(self._get(f"/jobs/{self.job_id}")["timestamps"]["RESTARTING"])

    def exceptions(self) -> str:
        return str(self._get(f"/jobs/{self.job_id}/exceptions"))

    def state(self) -> str:
        return str(self._get(f"/jobs/{self.job_id}")["state"])

    def _get(self, path: str) -> Any:
        return self.client._json("GET", path)

    def until_checkpoints(self, more: int, what: str, deadline_s: float = 90.0) -> float:
        """Wait until so many more have completed; return how long that took."""
        goal, begin = self.checkpoints_completed() + more, time.monotonic()

        def are_there() -> bool:
            assert self.state() in ("RUNNING", "RESTARTING", "CREATED", "INITIALIZING"), self.exceptions()
            return self.checkpoints_completed() >= goal

        until(are_there, f"{more} checkpoints {what}", deadline_s)
        return time.monotonic() - begin

    # --- its end -----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        self.hurry_file.touch()
        self.handle.get_job_execution_result().result(RESULT_S)

    def visible(self) -> Counter[str]:
        """All lines of finished files."""
        found: Counter[str] = Counter()
        for child in self.hdfs.list(self.output):
            if not child.path.rpartition("/")[2].startswith("."):
                with self.hdfs.open_read(child.path) as stream:
                    found.update(stream.read().decode().splitlines())
        return found

    def hidden(self) -> list[str]:
        names = [child.path.rpartition("/")[2] for child in self.hdfs.list(self.output)]
        return [name for name in names if name.startswith(".")]

    def check_exact(self) -> None:
        found = self.visible()
        assert found == self.expected, (
            list((found - self.expected).items())[:5],
            list((self.expected - found).items())[:5],
        )
        assert self.hidden() == []

    def close(self) -> None:
        with contextlib.suppress(Exception):
            if self.state() not in ("FINISHED", "FAILED", "CANCELED"):
                self.client.cancel(self.job_id)
                until(lambda: self.state() == "CANCELED", "cancelled")
        self.client.close()
