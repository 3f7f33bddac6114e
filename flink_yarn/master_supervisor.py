"""Runs the JobManager in the ApplicationMaster's container and starts it again when it dies.

The JobManager is forked from this process, which has loaded beforehand what a JobManager imports: on a busy machine
these imports take longer than all else between its death and the next output. Nothing else is done here: no thread, no
connection and no file is opened that a JobManager would inherit. Not here: what a JobManager does
(``application_master``); who starts this (the script of ``cluster_spec``).
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Final, final

__all__ = ["LAST_EXIT_VARIABLE", "RESTART_VARIABLE", "Supervisor", "main"]

#: Tells a JobManager how many in a row have died here before it, 0 = it is the first.
RESTART_VARIABLE: Final = "FLINK_RESTART"
#: The same, with which code the one before it ended; "" = there was none.
LAST_EXIT_VARIABLE: Final = "FLINK_LAST_EXIT"
#: A JobManager is started again so often, unless one has run for ``HEALTHY_S``.
CRASHES_MAX: Final = 5
HEALTHY_S: Final = 30.0
#: Before the second and later ones in a row.
PAUSE_S: Final = 0.2
#: What a JobManager on YARN with high availability imports until it leads, beside what its main does.
PRELOAD: Final = (
    "flink_yarn.application_master",
    "skein",
    "grpc.aio",
    "engine.ha.zookeeper",
    "engine.rest.server",
    "engine.rest.standby",
    "engine.connectors.files",
    "engine.connectors.file_commits",
    "flink_yarn.hdfs_client",
    "flink_yarn.hdfs_webhdfs",
)


@final
class Supervisor:
    """``give_up`` is called here with the last exit code, 128 + n for signal n, when JobManagers died too often."""

    def __init__(self, run: Callable[[], int], give_up: Callable[[int], object]) -> None:
        self._run = run
        self._give_up = give_up
        self._child = 0  #: pid; 0 = there is none
        self._is_told_to_end = False

    def supervise(self) -> int:
        """Return the exit code of this process: in the child, what the JobManager ends with."""
        signal.signal(signal.SIGTERM, self._on_sigterm)
        crashes, last = 0, ""
        while not self._is_told_to_end:
            began = time.monotonic()
            if not self._fork():
                os.environ[RESTART_VARIABLE], os.environ[LAST_EXIT_VARIABLE] = str(crashes), last
                return self._run()
            code = self._wait()
            if self._is_told_to_end:
                break
            if code <= 1:  # 0: it has ended the application; 1: there is no use in trying again
                return code
            last = str(code)
            crashes = 1 if time.monotonic() - began > HEALTHY_S else crashes + 1
            if crashes > CRASHES_MAX:
                print(f"The JobManager died too often (last exit code {code}).", flush=True)
                self._give_up(code)
                return code
            print(f"The JobManager died with exit code {code}; starting it again.", flush=True)
            if crashes > 1:
                time.sleep(PAUSE_S)
        return 128 + signal.SIGTERM

    def _fork(self) -> bool:
        """Return whether this is the parent. A signal comes before or after, and finds whom it is for."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        self._child = os.fork()
        if self._child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        elif self._is_told_to_end:  # a moment ago, when there was no child to be told
            os.kill(self._child, signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        return self._child != 0

    def _wait(self) -> int:
        """Return the child's exit code. Its pid is free for another process only when it is not signalled any more."""
        os.waitid(os.P_PID, self._child, os.WEXITED | os.WNOWAIT)
        child, self._child = self._child, 0
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        self._is_told_to_end = True
        if self._child:
            os.kill(self._child, signal.SIGTERM)


def _preload() -> None:
    for name in PRELOAD:
        try:
            importlib.import_module(name)
        except Exception as error:  # whoever needs it says what is wrong
            print(f"{name} cannot be loaded beforehand: {error!r}", flush=True)
    gc.collect()
    gc.freeze()  # pages that no collection touches stay shared


def main() -> int:
    _preload()
    from flink_yarn import application_end, application_master

    logs = os.environ.get("FLINK_LOGS") or "."
    return Supervisor(application_master.main, lambda code: application_end.give_up(logs, str(code))).supervise()


if __name__ == "__main__":
    sys.exit(main())
