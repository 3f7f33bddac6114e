"""A standalone cluster of Flink 2.3 on the loopback, from the files of its Python package: for recovery, and on disk.

Has the same methods as ``StandaloneCluster`` of the tests, which is ours: what is done to both is written once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from tests.bench.flink_peer import OPENS, FlinkPeer

__all__ = ["TUNED", "FlinkCluster", "conf_text"]

#: Notices a loss sooner and does not wait before it restarts: what a user who reads the documentation would set.
TUNED = {
    "heartbeat.interval": "500 ms",
    "heartbeat.timeout": "3 s",
    "restart-strategy.type": "fixed-delay",
    "restart-strategy.fixed-delay.attempts": "10",
    "restart-strategy.fixed-delay.delay": "100 ms",
}
_START_TIMEOUT_S = 180.0  # a JVM comes up in 5, but took more than 60 on a machine with load 30
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def conf_text(settings: Mapping[str, object]) -> str:
    """Return ``config.yaml`` of flat keys. Values are quoted: Flink reads YAML 1.2, where nothing else is safe."""
    return "".join(f'{key}: "{value}"\n' for key, value in settings.items())


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class FlinkCluster:
    """A JobManager and TaskManagers, each a process group of its own; ``close`` ends them, however far it came."""

    def __init__(
        self, flink: FlinkPeer, folder: Path, *, taskmanagers: int, slots: int, memory: str, settings: Mapping[str, str]
    ) -> None:
        self._flink = flink
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._logs: list[IO[bytes]] = []
        self.taskmanagers: list[subprocess.Popen[bytes]] = []
        for name in ("conf", "log", "tmp", "pid"):
            (folder / name).mkdir()
        for path in (flink.home / "conf").iterdir():
            if path.is_file():
                shutil.copy(path, folder / "conf")
        port = _free_port()
        self.rest_url = f"http://localhost:{port}"
        self._configure(port, slots, memory, settings)
        try:
            self._start("jobmanager")
            for _ in range(taskmanagers):
                self.add_taskmanager()
            self._wait_for_registration(taskmanagers)
        except BaseException:
            self.close()
            raise

    def _configure(self, port: int, slots: int, memory: str, settings: Mapping[str, str]) -> None:
        conf = {
            "env.java.opts.all": " ".join(OPENS),
            "jobmanager.bind-host": "localhost",
            "jobmanager.rpc.address": "localhost",
            "jobmanager.rpc.port": _free_port(),
            "jobmanager.memory.process.size": "1600m",
            "taskmanager.bind-host": "localhost",
            "taskmanager.host": "localhost",
            "taskmanager.numberOfTaskSlots": slots,
            "taskmanager.memory.process.size": memory,
            "rest.address": "localhost",
            "rest.bind-address": "localhost",
            "rest.port": port,
            "io.tmp.dirs": self._folder / "tmp",
            **settings,
        }
        (self._folder / "conf" / "config.yaml").write_text(conf_text(conf))
        java = os.path.realpath(shutil.which("java") or "java")
        self._env = {name: value for name, value in os.environ.items() if not name.startswith(("HADOOP_", "PYTHON"))}
        self._env |= {
            "FLINK_HOME": str(self._flink.home),
            "_FLINK_HOME_DETERMINED": "1",
            "FLINK_CONF_DIR": str(self._folder / "conf"),
            "FLINK_LOG_DIR": str(self._folder / "log"),
            "FLINK_PID_DIR": str(self._folder / "pid"),
            "JAVA_HOME": str(Path(java).parents[1]),
        }

    def _start(self, kind: str) -> subprocess.Popen[bytes]:
        log = (self._folder / "log" / f"{kind}-{len(self._processes)}.out").open("wb")
        self._logs.append(log)
        script = str(self._flink.home / "bin" / f"{kind}.sh")
        process = subprocess.Popen(
            ["bash", script, "start-foreground"],
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # also when this process is killed and cannot ``close``
        )
        self._processes.append(process)
        return process

    def _wait_for_registration(self, count: int) -> None:
        end = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"{self.rest_url}/taskmanagers", timeout=10) as answer:
                    if answer.read().count(b'"id"') >= count:
                        return
            except (urllib.error.URLError, ConnectionError):
                pass  # not up yet
            time.sleep(0.1)
        raise RuntimeError(f"Flink's {count} TaskManagers did not register: {self.output()[-3000:]}")

    def add_taskmanager(self) -> None:
        self.taskmanagers.append(self._start("taskmanager"))

    def kill_taskmanager(self, index: int) -> None:
        os.killpg(self.taskmanagers[index].pid, signal.SIGKILL)

    def submit(self, main: str, words: Mapping[str, object]) -> str:
        """Run a program of ours for Flink, which starts its job and leaves; return the job's id."""
        command = ["bash", str(self._flink.home / "bin" / "flink"), "run", "-d", "-c", main, str(self._flink.jar)]
        command += [f"{name}={value}" for name, value in words.items()]
        done = subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=120)
        job = [line.split()[-1] for line in done.stdout.splitlines() if "JobID" in line or line.startswith("JOB ")]
        if done.returncode or not job:
            raise RuntimeError(f"flink run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return job[-1]

    def output(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted((self._folder / "log").iterdir()))

    def close(self) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self._processes:
            process.wait()
        for log in self._logs:
            log.close()
