"""Small programs and real processes for tests of the control plane. Not a test."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from engine.connectors.simple import CollectionSpec, CollectSinkSpec, DiscardSpec, SequenceSource
from engine.connectors.source import SourceSpec
from engine.core.config import Configuration
from engine.graph.job_graph import JobGraph
from engine.graph.stream_graph import build_job_graph
from engine.graph.transformation import Edge, Partitioning, ShipStrategy, Transformation
from engine.operators.stateless import MapSpec
from tests.testing.patience import until as until  # also for those who import it from here

ROOT = str(Path(__file__).resolve().parents[2])


def forward(source: Transformation) -> list[Edge]:
    return [Edge(source, Partitioning(ShipStrategy.FORWARD))]


def rebalance(source: Transformation) -> list[Edge]:
    return [Edge(source, Partitioning(ShipStrategy.REBALANCE))]


def program(function: Any, rows: Any = (1, 2, 3), *, parallelism: int = 1, collect: bool = False) -> JobGraph:
    """source → map(function) → discard, or collect with uid "collect"."""
    spec = CollectionSpec(tuple(rows)) if not isinstance(rows, int) else SourceSpec(SequenceSource(1, rows))
    source = Transformation("numbers", spec, parallelism=parallelism if isinstance(rows, int) else 1, kind="Source")
    mapped = Transformation("map", MapSpec(function), rebalance(source), parallelism=parallelism)
    end = CollectSinkSpec() if collect else DiscardSpec()
    sink_parallelism = 1 if collect else parallelism
    sink = Transformation("sink", end, rebalance(mapped), parallelism=sink_parallelism, uid="collect", is_sink=True)
    return build_job_graph([sink], job_name="test job", config=Configuration())


def operator_id(graph: JobGraph, uid: str = "collect") -> str:
    return next(op.operator_id for vertex in graph.vertices for op in vertex.operators if op.uid == uid)


class Process:
    """A process main of the engine with its log; ``lines`` are read by a thread."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        environment = {**os.environ, "PYTHONPATH": ROOT, **(env or {})}
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "engine.cluster", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        with contextlib.suppress(ValueError):  # closed by ``end``: a process that was left behind holds the other side
            for line in self.popen.stdout:
                self.lines.append(line.rstrip("\n"))

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def find(self, pattern: str) -> re.Match[str]:
        """Wait for a line that matches."""

        def look() -> re.Match[str] | None:
            found = re.search(pattern, self.output)
            assert found or self.popen.poll() is None, f"ended without {pattern!r}:\n{self.output}"
            return found

        return until(look, pattern)

    def end(self, number: int = signal.SIGTERM, timeout_s: float = 60.0) -> int:
        """Send a signal and wait; returns the exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        try:
            return self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            raise AssertionError(f"did not end within {timeout_s} s:\n{self.output}") from None
        finally:
            self._reader.join(5)
            assert self.popen.stdout is not None
            self.popen.stdout.close()


class StandaloneCluster:
    """A JobManager with REST and TaskManagers on random ports of the loopback."""

    def __init__(self, folder: Path, *, taskmanagers: int = 2, slots: int = 2, **config: str) -> None:
        self.folder = folder
        self.temp = folder / "tmp"
        self.temp.mkdir()
        self.config = {
            "io.tmp.dirs": str(self.temp),
            "taskmanager.numberOfTaskSlots": str(slots),
            "taskmanager.memory.process.size": "512m",
            **{key.replace("__", "-").replace("_", "."): value for key, value in config.items()},
        }
        self.taskmanagers: list[Process] = []
        self.jobmanager = self._start("jobmanager", {"jobmanager.rpc.port": "0", "rest.port": "0"})
        try:
            self.rpc_port = self.jobmanager.find(r"listens for TaskManagers at localhost:(\d+)")[1]
            self.rest_url = self.jobmanager.find(r"Rest endpoint listening at (http://\S+)")[1]
            for _ in range(taskmanagers):
                self.add_taskmanager()
            for taskmanager in self.taskmanagers:
                taskmanager.find(r"registered at")
        except BaseException:
            self.close()
            raise

    def _start(self, kind: str, extra: dict[str, str], *arguments: str) -> Process:
        properties = [f"-D{key}={value}" for key, value in {**self.config, **extra}.items()]
        return Process(kind, *properties, *arguments, env={"TMPDIR": str(self.temp)})

    def add_taskmanager(self, *arguments: str) -> Process:
        taskmanager = self._start("taskmanager", {"jobmanager.rpc.port": self.rpc_port}, *arguments)
        self.taskmanagers.append(taskmanager)
        return taskmanager

    def close(self) -> None:
        for process in (*self.taskmanagers, self.jobmanager):
            with contextlib.suppress(AssertionError):
                process.end()


def children_of(pid: int) -> list[int]:
    """All descendants that live now."""
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def engine_processes() -> list[int]:
    """Zygotes and slots that this process has started. Its other descendants, a test's Hadoop say, do not count."""
    import psutil

    found = []
    for pid in children_of(os.getpid()):
        try:
            process = psutil.Process(pid)
            ours = any("zygote_process" in word for word in process.cmdline())
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
        except psutil.NoSuchProcess:
            continue
    return found


def is_alive(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
