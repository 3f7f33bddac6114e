"""A standalone cluster of the real scripts in a folder of its own, on free ports; leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.testing.patience import DEADLINE_S, GIVE_UP_S, until

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens at. None of them is one that the kernel may give to a connection before they are
    taken: other tests make many."""
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as stream:
        first_given = int(stream.read().split()[0])
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(10_000, min(first_given, 21_000)) if first_given > 11_000 else 0
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            if one.getsockname()[1] not in found:
                found.append(one.getsockname()[1])
    return found


def wait_until(condition: Callable[[], object], what: str, seconds: float = DEADLINE_S) -> None:
    until(condition, what, seconds, pause_s=0.05)


class ScriptCluster:
    """Use as a context manager. Nothing is started by itself."""

    def __init__(self, folder: Path, config: Mapping[str, object] | None = None, workers: str = "localhost\n") -> None:
        self.folder = folder
        self.rpc_port, self.rest_port = free_ports(2)
        self.conf = folder / "conf"
        self.log = folder / "log"
        self.pid = folder / "pid"
        self.conf.mkdir(parents=True)
        values = {
            "jobmanager.rpc.address": "localhost",
            "jobmanager.rpc.port": self.rpc_port,
            "rest.port": self.rest_port,
            "taskmanager.numberOfTaskSlots": 2,
            "io.tmp.dirs": folder / "tmp",
            **(config or {}),
        }
        (folder / "tmp").mkdir()
        (self.conf / "flink-conf.yaml").write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
        (self.conf / "workers").write_text(workers)
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("FLINK_", "_FLINK", "PYTHON"))},
            "FLINK_CONF_DIR": str(self.conf),
            "FLINK_LOG_DIR": str(self.log),
            "FLINK_PID_DIR": str(self.pid),
            "FLINK_IDENT_STRING": "test",
            "FLINK_PYTHON": sys.executable,
            "TMPDIR": str(folder / "tmp"),
        }

    def __enter__(self) -> ScriptCluster:
        return self

    def __exit__(self, *_: object) -> None:
        for daemon in ("taskexecutor", "standalonesession"):
            for pid in self.pids(daemon):
                end_group(pid)

    def run(
        self, script: str, *arguments: object, timeout: float = GIVE_UP_S, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a script to its end; stdout and stderr are kept apart."""
        return subprocess.run(
            [str(SCRIPTS / script), *map(str, arguments)],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            cwd=self.folder,
        )

    def start(self) -> None:
        """Start the cluster and wait until all its TaskManagers are there."""
        started = self.run("start-cluster.sh")
        assert started.returncode == 0, started.stdout + started.stderr + self.logs()
        workers = len((self.conf / "workers").read_text().split())
        client = self.client()
        wait_until(lambda: client.overview()["taskmanagers"] == workers, f"{workers} TaskManagers\n{self.logs()}")

    def client(self):
        from engine.client.rest_client import RestClient

        return RestClient(f"http://localhost:{self.rest_port}")

    def get(self, path: str) -> Any:
        """Return the JSON that the JobManager's REST endpoint answers."""
        with urllib.request.urlopen(f"http://localhost:{self.rest_port}{path}", timeout=GIVE_UP_S) as answer:
            return json.load(answer)

    def flink(self, *arguments: object, timeout: float = GIVE_UP_S) -> subprocess.CompletedProcess[str]:
        return self.run("flink", *arguments, timeout=timeout)

    def popen(self, script: str, *arguments: object) -> subprocess.Popen[str]:
        """Start a script as the leader of its own process group, as a terminal does."""
        return subprocess.Popen(
            [str(SCRIPTS / script), *map(str, arguments)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            stdin=subprocess.DEVNULL,
            cwd=self.folder,
            start_new_session=True,
        )

    def pid_file(self, daemon: str) -> Path:
        return self.pid / f"flink-test-{daemon}.pid"

    def pids(self, daemon: str) -> list[int]:
        path = self.pid_file(daemon)
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def out(self, daemon: str = "taskexecutor") -> str:
        return "".join(path.read_text() for path in sorted(self.log.glob(f"flink-test-{daemon}-*.out")))

    def logs(self) -> str:
        """Return the ends of all log and out files, for messages of failed tests."""
        paths = sorted(self.log.glob("*.log")) + sorted(self.log.glob("*.out"))
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in paths)


def end_group(pid: int) -> None:
    """End a daemon and what it started; daemons lead sessions of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + 20
        while alive(pid) and time.monotonic() < deadline:
            time.sleep(0.02)


def alive(pid: int) -> bool:
    """Return whether a process runs; one that ended but was not waited for counts as ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stream:
            return stream.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
