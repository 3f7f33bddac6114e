"""Work beside the tasks of a slot: in a forked child, which sees memory as it was at the fork, or in an I/O thread.

Results come back in the slot's loop. A child ends with its result, when it is cancelled, and with its slot, however
that ends: the kernel kills it then. Not here: what the work is (``snapshot_capture``).
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import struct
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol, TypeAlias, final

from engine.checkpoint.state_files import StateTooLargeError
from engine.core.errors import EngineError, ExternalError
from engine.core.fs import forget_connections
from engine.runtime.taskmanager.huge_pages import HugePages
from engine.runtime.taskmanager.mailbox import READ, Mailbox
from engine.runtime.taskmanager.zygote_process import die_with

__all__ = ["Job", "OnDone", "SlotSnapshotWorkers", "SnapshotWorkers"]

#: Uploads wait for the network, not for the interpreter.
_THREADS: Final = 4
#: How long such a thread may keep the interpreter lock. Python's 5 ms would be added to each hop of a record.
_SWITCH_INTERVAL: Final = 0.0005
_LENGTH: Final = struct.Struct("<Q")
_READ_BYTES: Final = 1 << 20
_REAP_INTERVAL: Final = 0.005
#: Generations of the collector: never the oldest one.
_NO_FULL_COLLECTION: Final = 1 << 30

#: Called once, in the slot's loop, with the result or with what went wrong; also after a cancel, when it has ended.
OnDone: TypeAlias = Callable[[Any, BaseException | None], None]


class Job(Protocol):
    """Work under way."""

    def cancel(self) -> None:
        """Its result is not wanted any more. May be called at any time."""
        ...


class SnapshotWorkers(Protocol):
    """How the tasks of a slot work beside themselves."""

    #: State with more entries is captured in a child,
    fork_entries_min: int
    #: but for increments with at most so many.
    noted_entries_max: int

    def fork(self, work: Callable[[], Any], on_done: OnDone) -> Job:
        """Run ``work`` in a child of this process; its result is picklable. Raises: ExternalError."""
        ...

    def run(self, work: Callable[[], Any], on_done: OnDone) -> Job:
        """Run ``work`` in an I/O thread."""
        ...

    def expect_forks(self) -> None:
        """There is a task with much state, or whose state may grow before its next checkpoint."""
        ...


@final
class SlotSnapshotWorkers:
    """The workers of a slot process. All but ``run``'s work happens in its loop's thread."""

    #: Measured with rows of 400 bytes, in CPU time: 5 000 entries are captured in place in 7 ms, 10 000 in 16 ms and
    #: 20 000 in 36 ms; a fork takes 2 to 4 ms, whatever there is to capture.
    fork_entries_min = 5_000
    #: Noting takes 1 to 2 µs an entry, of which most is waiting for memory.
    noted_entries_max = 6_000

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._threads: ThreadPoolExecutor | None = None
        self._done: deque[Callable[[], None]] = deque()
        self._done_fd = -1
        self._children = 0
        self._huge_pages = HugePages()
        self._thresholds = gc.get_threshold()

    # --- threads -----------------------------------------------------------------------------------------------------

    def run(self, work: Callable[[], Any], on_done: OnDone) -> Job:
        job = _ThreadJob()
        self._executor().submit(self._run, work, job, on_done)
        return job

    def _executor(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="snapshot")
            self._done_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._mailbox.watch(self._done_fd, READ, self._on_thread_done)
            sys.setswitchinterval(min(_SWITCH_INTERVAL, sys.getswitchinterval()))
        return self._threads

    def _run(self, work: Callable[[], Any], job: _ThreadJob, on_done: OnDone) -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            if job.is_cancelled:
                raise SnapshotLost("cancelled")
            result = work()
        except BaseException as raised:
            error = raised
        self._done.append(lambda: on_done(result, error))
        os.eventfd_write(self._done_fd, 1)

    def _on_thread_done(self, events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._done_fd)
        while self._done:
            self._done.popleft()()

    # --- children ----------------------------------------------------------------------------------------------------

    def fork(self, work: Callable[[], Any], on_done: OnDone) -> Job:
        parent = os.getpid()
        incoming, outgoing = os.pipe2(os.O_CLOEXEC)
        self._huge_pages.pause()  # they would only be torn apart
        try:
            pid = os.fork()
        except OSError as error:
            self._huge_pages.resume()
            os.close(incoming)
            os.close(outgoing)
            raise ExternalError(
                f"Cannot fork a process for a snapshot: {error.strerror}. Leave memory and processes free for it."
            ) from error
        if not pid:
            _be_child(parent, outgoing, work)
        os.close(outgoing)
        os.set_blocking(incoming, False)
        self._count_child(1)
        return _ChildJob(self._mailbox, pid, incoming, on_done, lambda: self._count_child(-1))

    def expect_forks(self) -> None:
        self._huge_pages.start()

    def _count_child(self, change: int) -> None:
        """While a child lives, the collector must not look through the old objects: it writes into each of them, and
        so every page that child and slot share would be copied."""
        if not self._children:
            self._thresholds = gc.get_threshold()
        self._children += change
        if not self._children:
            self._huge_pages.start()
            self._huge_pages.resume()
        young, middle, _ = self._thresholds
        gc.set_threshold(*((young, middle, _NO_FULL_COLLECTION) if self._children else self._thresholds))


@final
class _ThreadJob:
    def __init__(self) -> None:
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


# --- a child ---------------------------------------------------------------------------------------------------------


def _be_child(parent: int, outgoing: int, work: Callable[[], Any]) -> None:
    """Do the work and end. Nothing of the parent's stack is ever unwound."""
    code = 1
    try:
        gc.disable()  # a collection would copy every page
        die_with(parent)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        # Sockets of the slot: whoever waits for their end must not wait for the child.
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) != outgoing:
                with contextlib.suppress(OSError):
                    os.close(int(name))
        forget_connections()
        try:
            content = pickle.dumps((True, work()), 5)
        except BaseException as error:
            content = pickle.dumps((False, _described(error)), 5)
        view = memoryview(_LENGTH.pack(len(content)) + content)
        while view:
            view = view[os.write(outgoing, view) :]
        code = 0
    finally:
        os._exit(code)


def _described(error: BaseException) -> tuple[type[EngineError], str]:
    """Return what went wrong and what to say; classes of the user's program must not travel."""
    text = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
    if isinstance(error, StateTooLargeError):
        return StateTooLargeError, text
    return ExternalError if isinstance(error, (OSError, ExternalError)) else SnapshotLost, text


@final
class _ChildJob:
    def __init__(
        self, mailbox: Mailbox, pid: int, incoming: int, on_done: OnDone, on_ended: Callable[[], None]
    ) -> None:
        self.pid = pid
        self._mailbox = mailbox
        self._incoming = incoming
        self._on_done = on_done
        self._on_ended = on_ended
        self._content = bytearray()
        mailbox.watch(incoming, READ, self._on_ready)

    def cancel(self) -> None:
        if self._incoming >= 0:
            self._content.clear()
            # It is ours until it is waited for, so the number is its.
            os.kill(self.pid, signal.SIGKILL)
            self._stop_reading()
            self._reap()

    def _on_ready(self, events: int) -> None:
        while self._incoming >= 0:
            try:
                part = os.read(self._incoming, _READ_BYTES)
            except BlockingIOError:
                return
            self._content += part
            if not part:  # it has closed its end: it is gone, or nearly
                self._stop_reading()
                self._reap()

    def _stop_reading(self) -> None:
        self._mailbox.watch(self._incoming, 0, self._on_ready)
        os.close(self._incoming)
        self._incoming = -1

    def _reap(self) -> None:
        """A child with much memory takes a while to go; the loop does not wait for that."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            self._mailbox.call_later(_REAP_INTERVAL, self._reap)
            return
        self._on_ended()
        on_done = self._on_done
        size = _LENGTH.size
        if len(self._content) < size or len(self._content) < size + _LENGTH.unpack_from(self._content)[0]:
            on_done(None, SnapshotLost(_why_lost(os.waitstatus_to_exitcode(status))))
            return
        is_well, result = pickle.loads(memoryview(self._content)[size:])
        if is_well:
            on_done(result, None)
        else:
            kind, message = result
            on_done(None, kind(message))


class SnapshotLost(EngineError):
    """A snapshot could not be taken in its child process."""


def _why_lost(code: int) -> str:
    if code >= 0:
        return f"The process that wrote the snapshot ended with code {code}; see the TaskManager's .out file."
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " Perhaps there was not enough memory for a copy of what changes meanwhile." if name == "SIGKILL" else ""
    return f"The process that wrote the snapshot was ended by {name}.{hint}"
