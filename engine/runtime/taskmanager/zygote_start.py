"""Starts a zygote's process: ``start_zygote``; or ahead of time, before there is anybody to talk to it: ``prepare``.

A program in a local cluster needs a zygote once it executes, and a zygote needs a quarter of a second until it is warm:
as long as the program needs for what comes between. One that nobody takes ends with the program. Imports little, as
every program does it. Not here: the handle on a zygote that is at work (``zygote``), what it does (``zygote_process``).
"""

from __future__ import annotations

import atexit
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from engine.runtime.taskmanager.huge_pages import MALLOC_HUGE, with_huge_malloc
from engine.runtime.taskmanager.zygote_process import LATER

__all__ = [
    "LOCAL_PRELOAD",
    "PREPARED",
    "ZYGOTE_MODULE",
    "Prepared",
    "StartedZygote",
    "child_environment",
    "start_zygote",
]

ZYGOTE_MODULE: Final = "engine.runtime.taskmanager.zygote_process"
#: Imported once by the zygote of a local cluster, so that no slot has to.
LOCAL_PRELOAD: Final = ("numpy", "pyarrow")
#: Numeric libraries must not start threads before the fork.
_SINGLE_THREADED: Final = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "ARROW_IO_THREADS": "1",
}
_LIMITS: Final = tuple(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))


class StartedZygote(NamedTuple):
    """A process that loads, and our end of its socket, on which it will say that it is ready."""

    process: subprocess.Popen[bytes]
    socket: socket.socket


def start_zygote(
    python: str, env: Mapping[str, str], stdout_path: str | None, preload: Sequence[str], later: Sequence[str]
) -> StartedZygote:
    """Start the process; see ``Zygote.start``. Raises: OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    output = None
    try:
        if stdout_path is not None:
            output = os.open(stdout_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        process = subprocess.Popen(
            [python, "-m", ZYGOTE_MODULE, str(theirs.fileno()), *preload, LATER, *later],
            env={**env, **_SINGLE_THREADED, MALLOC_HUGE: with_huge_malloc(env.get(MALLOC_HUGE, ""))},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(theirs.fileno(),),
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
        if output is not None:
            os.close(output)
    ours.setblocking(False)
    return StartedZygote(process, ours)


def child_environment() -> dict[str, str]:
    """Return this process's environment, in which child interpreters find the engine too."""
    import engine

    home = os.path.dirname(os.path.dirname(os.path.abspath(engine.__file__)))
    environment = dict(os.environ)
    # An installed engine is found by itself, and site-packages in front of the standard library would shadow it.
    if os.path.basename(home) not in ("site-packages", "dist-packages"):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (home, environment.get("PYTHONPATH"))))
    return environment


class Prepared:
    """At most one zygote that was started ahead. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started: StartedZygote | None = None
        self._wish: tuple[Any, ...] = ()
        self._place: tuple[Any, ...] = ()

    def start(self) -> None:
        """Start one for slots with this interpreter, unless there is one. If it cannot be started, whoever wants a
        zygote will be told."""
        with self._lock:
            if self._started is not None and self._place[0] == os.getpid():
                return
            environment = child_environment()
            try:
                self._started = start_zygote(sys.executable, environment, None, LOCAL_PRELOAD, ())
            except OSError:
                return
            self._wish, self._place = (sys.executable, environment), _place()
            atexit.register(self.discard)

    def take(self, python: str) -> StartedZygote | None:
        """Return it, if one that is started now would be the same. Otherwise it ends."""
        with self._lock:
            started, self._started = self._started, None
            wish, place = self._wish, self._place
        if started is None or place[0] != os.getpid():  # a fork's parent has it
            return None
        atexit.unregister(self.discard)
        if wish == (python, child_environment()) and place == _place() and started.process.poll() is None:
            return started
        _end(started)
        return None

    def discard(self) -> None:
        """End it, if there is one; returns when it is gone."""
        self.take("")


def _place() -> tuple[Any, ...]:
    """What a child of this process inherits beside its environment, as far as it matters to slots."""
    outputs = []
    for fd in (1, 2):
        try:
            found = os.fstat(fd)
            outputs.append((found.st_dev, found.st_ino))
        except OSError:
            outputs.append((-1, -1))
    limits = tuple(resource.getrlimit(limit) for limit in _LIMITS)
    who = os.getresuid(), os.getresgid(), os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0)
    return os.getpid(), os.getcwd(), _umask(), *outputs, *limits, *who


def _umask() -> str:
    with open("/proc/self/status", encoding="ascii", errors="replace") as stream:
        return next((line for line in stream if line.startswith("Umask:")), "")


def _end(started: StartedZygote) -> None:
    started.socket.close()
    started.process.kill()  # it has no slots
    started.process.wait()


PREPARED: Final = Prepared()
