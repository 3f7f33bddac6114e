"""How faults are done to a real cluster, and undone."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.chaos.plan import Strike
from tests.hadoop.conftest import HadoopCluster, run_cluster
from tests.hadoop.yarn_commands import eventually, processes_of
from tests.hadoop.yarn_ha import environment_of, java_master, jobmanager_process, node_manager_of, taskmanagers

__all__ = ["Hands"]

#: What is to be killed may be gone or not be there yet: it is waited for this long, then the fault is left out.
FIND_S: Final = 20.0


class Nothing(Exception):
    """What the fault would hit is not there."""


class Hands:
    def __init__(self, hadoop: HadoopCluster, application_id: str) -> None:
        self._hadoop = hadoop
        self._application_id = application_id
        #: Of strikes that last: what mends them.
        self._undo: dict[Strike, Callable[[], None]] = {}
        self._strikes: dict[str, Callable[[int], Callable[[], None] | None]] = {
            "kill a slot": self._kill_slot,
            "kill a TaskManager": lambda which: self._kill([self._taskmanager(which)]),
            "kill all TaskManagers": lambda which: self._kill(sorted(taskmanagers(application_id))),
            "pause a TaskManager": lambda which: self._pause(self._container_of(self._taskmanager(which))),
            "kill the JobManager": lambda which: self._kill([self._jobmanager()]),
            "pause the JobManager": lambda which: self._pause([self._jobmanager()]),
            "kill the ApplicationMaster": lambda which: self._kill([self._master()]),
            "kill the ApplicationMaster and a TaskManager": lambda which: self._kill(
                [self._taskmanager(which), self._master()]
            ),
            "stop a NodeManager": self._stop_node_manager,
            "restart the ResourceManager": lambda which: self._stop("rm"),
            "stop a ZooKeeper server": lambda which: self._stop(f"zk{which % 3 + 1}"),
            "stop ZooKeeper": lambda which: self._stop("zk1", "zk2", "zk3"),
            "stop the NameNode": lambda which: self._stop("nn"),
            "stop a DataNode": lambda which: self._stop(f"dn{which % 2 + 1}"),
        }

    def strike(self, strike: Strike) -> str:
        """Do it; return what was hit, "" when there was nothing to hit."""
        deadline = time.monotonic() + FIND_S
        while True:
            try:
                undo = self._strikes[strike.fault.name](strike.which)
                break
            except (Nothing, ValueError, KeyError, OSError):  # of processes that came or went while we looked
                if time.monotonic() > deadline:
                    return ""
                time.sleep(0.2)
        if undo is not None:
            self._undo[strike] = undo
        return strike.fault.name

    def mend(self, strike: Strike) -> None:
        undo = self._undo.pop(strike, None)
        if undo is not None:
            undo()

    def mend_all(self) -> None:
        """Mend what is open, and wait until every daemon is ready."""
        for strike in list(self._undo):
            self.mend(strike)
        folder = str(self._hadoop.dir)
        is_ready = lambda: run_cluster("status", "--dir", folder, check=False).returncode == 0  # noqa: E731
        eventually("every daemon is ready", is_ready, 180)

    # --- processes ---------------------------------------------------------------------------------------------------

    def _taskmanager(self, which: int) -> int:
        found = sorted(taskmanagers(self._application_id))
        if not found:
            raise Nothing
        return found[which % len(found)]

    def _jobmanager(self) -> int:
        return jobmanager_process(self._application_id)

    def _master(self) -> int:
        return java_master(self._application_id)

    def _container_of(self, pid: int) -> list[int]:
        """All processes of the container in which this one is."""
        name = _container_id(pid)
        return [other for other in processes_of(self._application_id) if _container_id(other) == name]

    def _kill_slot(self, which: int) -> None:
        container = self._container_of(self._taskmanager(which))
        slots = sorted(set(container) - taskmanagers(self._application_id))
        python = [pid for pid in slots if b"python" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]]
        if not python:
            raise Nothing
        os.kill(python[which % len(python)], signal.SIGKILL)

    def _kill(self, pids: list[int]) -> None:
        if not pids:
            raise Nothing
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _pause(self, pids: list[int]) -> Callable[[], None]:
        stopped = []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)

        def wake() -> None:
            for pid in processes_of(self._application_id):
                if pid in stopped:  # and is no other process that has its number now
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)

        return wake

    # --- daemons -----------------------------------------------------------------------------------------------------

    def _stop(self, *names: str) -> Callable[[], None]:
        for name in names:
            self._hadoop.daemon("kill9", name)

        def start() -> None:
            for name in names:
                # Ready is a DataNode when there is a NameNode, a ZooKeeper server when there is another: not awaited.
                self._hadoop.daemon("start", name, "--no-wait")

        return start

    def _stop_node_manager(self, which: int) -> Callable[[], None]:
        """The one of the ApplicationMaster, or that of a TaskManager."""
        pid = self._master() if which % 2 else self._taskmanager(which // 2)
        return self._stop(node_manager_of(self._hadoop, pid))


def _container_id(pid: int) -> str:
    return environment_of(pid).get("CONTAINER_ID", f"none of {pid}")
