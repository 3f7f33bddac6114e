"""JobManagers that contend for leadership and TaskManagers that follow the leader, all on the loopback. Not a test."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.client.rest_client import RestClient
from engine.core.config import Configuration
from tests.process.cluster_jobs import Process, until

__all__ = ["HaCluster", "Master"]

KNOWS_LEADER_S = 120.0


class Master:
    def __init__(self, process: Process) -> None:
        self.process = process
        self.rest_url = process.find(r"Rest endpoint listening at (http://\S+)")[1]

    @property
    def pid(self) -> int:
        return self.process.popen.pid

    @property
    def leads(self) -> bool:
        """Whether it has said last that it leads."""
        return "this JobManager leads" in self._said_last

    @property
    def stands_by(self) -> bool:
        return "this JobManager stands by" in self._said_last

    @property
    def _said_last(self) -> str:
        """What it does: how it came to that may be told afterwards, by the election."""
        told = ("this JobManager leads:", "this JobManager stands by")
        return next((line for line in reversed(self.process.lines) if any(words in line for words in told)), "")

    def get(self, path: str) -> Any:
        """Return what it says, or the leader through it, as soon as it knows who that is."""
        deadline = time.monotonic() + KNOWS_LEADER_S
        while True:
            try:
                with urllib.request.urlopen(self.rest_url + path, timeout=60) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != 503 or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)


class HaCluster:
    """Elected through files below ``folder`` unless ``settings`` say otherwise."""

    def __init__(
        self,
        folder: Path,
        *,
        masters: int = 2,
        taskmanagers: int = 2,
        slots: int = 2,
        session_timeout: str = "4 s",
        settings: Mapping[str, str] | None = None,
        **config: str,
    ) -> None:
        self.folder = folder
        self.temp = folder / "tmp"
        self.temp.mkdir()
        self.config = {
            "io.tmp.dirs": str(self.temp),
            "taskmanager.numberOfTaskSlots": str(slots),
            "taskmanager.memory.process.size": "512m",
            "high-availability.type": "filesystem",
            "high-availability.storageDir": f"file://{folder}/ha",
            "high-availability.zookeeper.client.session-timeout": session_timeout,
            **{key.replace("__", "-").replace("_", "."): value for key, value in config.items()},
            **(settings or {}),
        }
        self.masters: list[Master] = []
        self.taskmanagers: list[Process] = []
        try:
            for _ in range(masters):
                self.add_master()
            for _ in range(taskmanagers):
                self.add_taskmanager()
            for taskmanager in self.taskmanagers:
                taskmanager.find("registered at")
        except BaseException:
            self.close()
            raise

    def _start(self, kind: str, extra: dict[str, str]) -> Process:
        properties = [f"-D{key}={value}" for key, value in {**self.config, **extra}.items()]
        return Process(kind, *properties, env={"TMPDIR": str(self.temp)})

    def add_master(self) -> Master:
        master = Master(self._start("jobmanager", {"rest.port": "0"}))
        self.masters.append(master)
        until(lambda: any(one.leads for one in self.masters), "somebody leads")
        return master

    def add_taskmanager(self) -> Process:
        self.taskmanagers.append(self._start("taskmanager", {}))
        return self.taskmanagers[-1]

    @property
    def leader(self) -> Master:
        return until(lambda: next((one for one in self.masters if one.leads), None), "somebody leads")

    @property
    def standby(self) -> Master:
        return next(one for one in self.masters if not one.leads)

    def client_config(self) -> Configuration:
        """What a program needs to find the leader by itself."""
        return Configuration({key: value for key, value in self.config.items() if key.startswith("high-availability")})

    def wait_for_slots(self, num_slots: int) -> float:
        """Wait until the leader has so many free slots; return how long that took."""
        begin = time.monotonic()

        def are_there() -> bool:
            with contextlib.suppress(OSError), contextlib.closing(RestClient(self.leader.rest_url)) as client:
                return client.overview()["slots-available"] == num_slots
            return False

        until(are_there, f"{num_slots} free slots")
        return time.monotonic() - begin

    def close(self) -> None:
        for process in (*self.taskmanagers, *(one.process for one in self.masters)):
            with contextlib.suppress(AssertionError):
                process.end()
