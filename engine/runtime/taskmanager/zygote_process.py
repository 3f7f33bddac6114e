"""The zygote: a small, warm, single-threaded process that forks slots.

``python -m engine.runtime.taskmanager.zygote_process FD MODULE… [--later MODULE…]`` imports what every slot needs once,
then forks at request: a slot is ready in milliseconds and shares the imported pages. What comes later it imports when
nobody has wanted anything for a while. It stays single-threaded: a fork copies but one thread. When its TaskManager
dies it kills its slots; when it dies the kernel kills them: no orphan is left.

Not here: the TaskManager's side (``zygote``), what a slot does (``slot_process``).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Final, final

__all__ = ["LATER", "NAMES_MAX", "die_with", "kill_slot", "main"]

LATER: Final = "--later"

#: Room for NAMES_MAX names of modules.
_MESSAGE_SIZE: Final = 4096
NAMES_MAX: Final = 15
_PR_SET_PDEATHSIG: Final = 1
#: What is loaded while a job waits for its slots gets this long. Kernels that numba's cache lacks take 20 s.
LOAD_S_MAX: Final = 60.0
#: Whoever wants a slot may have to wait for a module that is being imported (0.3 s): not soon after the start, when
#: slots of the first job are wanted, nor between two slots of a job.
IDLE_S: Final = 2.0


@final
class _Nursery:
    """The zygote's loop: fork when asked, report who ended, end with the TaskManager."""

    def __init__(self, control: socket.socket, later: Sequence[str]) -> None:
        self._control = control
        self._later = list(later)
        self._children: set[int] = set()
        self._signal_in, self._signal_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> Callable[[], int]:
        """Serve until the TaskManager is gone. Returns what to call next: in a forked slot that is the slot."""
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._signal_out, warn_on_full_buffer=False)
        selector = selectors.DefaultSelector()
        selector.register(self._control, selectors.EVENT_READ)
        selector.register(self._signal_in, selectors.EVENT_READ)
        try:
            self._control.send(b"ready")
        except ConnectionError:  # the program was over before it needed slots
            return self._end
        while True:
            if not selector.select(IDLE_S if self._later else None):
                _load_in_idle_time(self._later.pop(0))
                continue
            with contextlib.suppress(BlockingIOError):
                os.read(self._signal_in, 4096)
            self._reap()
            while True:
                try:
                    request, fds, _, _ = socket.recv_fds(self._control, _MESSAGE_SIZE, 1)
                except BlockingIOError:
                    break
                except ConnectionError:  # it was killed before it had read all that we told it
                    request = b""
                if not request:
                    selector.close()
                    return self._end
                if not fds:
                    _load_ahead(request.decode().split())
                    continue
                slot = self._fork(fds[0])
                if slot is not None:
                    selector.close()
                    return slot

    def _fork(self, fd: int) -> Callable[[], int] | None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(fd)
            self._control.send(f"forked {-(error.errno or 1)}".encode())
            return None
        if pid:
            os.close(fd)
            self._children.add(pid)
            self._control.send(f"forked {pid}".encode())
            return None
        # A group of its own: what a user function starts ends with the slot, and Ctrl-C reaches neither.
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        die_with(parent)
        for inherited in (self._control, self._signal_in, self._signal_out):
            os.close(inherited if isinstance(inherited, int) else inherited.detach())

        def run_slot() -> int:
            from engine.runtime.taskmanager.slot_process import slot_main

            return slot_main(socket.socket(fileno=fd))

        return run_slot

    def _reap(self) -> None:
        while self._children:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            # Until it is reaped its number is its group's: what its functions have started ends with it.
            kill_slot(ended.si_pid)
            pid, status = os.waitpid(ended.si_pid, 0)
            self._children.discard(pid)
            with contextlib.suppress(OSError):
                self._control.send(f"exited {pid} {os.waitstatus_to_exitcode(status)}".encode())

    def _end(self) -> int:
        for pid in self._children:
            kill_slot(pid)
        for pid in self._children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        return 0


def kill_slot(pid: int) -> None:
    """End a slot and what it started."""
    for kill in (os.killpg, os.kill):  # it may not have its group yet
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)
            return


def die_with(parent: int) -> None:
    """Let the kernel kill this process when its parent dies, however that happens."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died in between
        os._exit(1)


def _load(names: Sequence[str]) -> None:
    with _not_collected():
        for name in names:
            _load_one(name)


def _load_ahead(names: Sequence[str]) -> None:
    """Import for the slots to come; what goes wrong here will go wrong, and be told, in them."""
    former = signal.signal(signal.SIGALRM, _on_alarm)
    signal.setitimer(signal.ITIMER_REAL, LOAD_S_MAX)
    try:
        with contextlib.suppress(TimeoutError), _not_collected():
            for name in names:
                try:
                    _load_one(name)
                except TimeoutError:
                    raise
                except Exception:
                    continue
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def _load_in_idle_time(name: str) -> None:
    """As above, but kernels that are in no cache are left to the job that needs them: they take too long."""
    from engine.operators.warm_up.cached_code import forbid_compiling

    forbid_compiling(True)
    try:
        _load_ahead([name])
    finally:
        forbid_compiling(False)


def _load_one(name: str) -> None:
    module = importlib.import_module(name)
    if name == "numba":
        from engine.operators.warm_up.cached_code import quicken

        quicken()
    if hasattr(module, "warm_up"):
        module.warm_up()  # loads compiled kernels, once for all slots


@contextlib.contextmanager
def _not_collected() -> Iterator[None]:
    gc.disable()  # there is hardly any garbage (1750 objects of 400,000), and looking for it takes 0.1 s
    try:
        yield
    finally:
        gc.freeze()  # the collector must not touch, and so copy, pages that all slots share
        gc.enable()


def _on_alarm(number: int, frame: object) -> None:
    raise TimeoutError(f"not loaded within {LOAD_S_MAX:.0f} s")


def main(arguments: Sequence[str]) -> int:
    control = socket.socket(fileno=int(arguments[0]))
    control.setblocking(False)
    control.set_inheritable(False)
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal's signals reach us too; the client decides
        signal.signal(number, signal.SIG_IGN)
    at = arguments.index(LATER) if LATER in arguments else len(arguments)
    now, later = arguments[1:at], arguments[at + 1 :]
    # encodings.idna: the first connection of each slot asks for it.
    _load(("ctypes", "cloudpickle", "encodings.idna", "engine.runtime.taskmanager.slot_process", *now))
    return _Nursery(control, later).run()()


if __name__ == "__main__":
    try:
        exit_code = main(sys.argv[1:])
    except BaseException:
        import traceback

        traceback.print_exc()
        exit_code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    # Not sys.exit: threads of user code must not keep a slot alive, nor handlers of the zygote run in a fork.
    os._exit(exit_code)
