"""The TaskManager's handles on its zygote, the warm process that forks slots, and on the slots. On asyncio.

What runs in the zygote itself is ``zygote_process``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import socket
import subprocess
import threading
from collections.abc import Sequence
from typing import Any, Final, final

from engine.core.errors import ExternalError
from engine.protocol.control import ErrorInfo, InitializeSlot, SlotAddress, SlotReady
from engine.runtime.taskmanager.slot_control import LENGTH, pack_message
from engine.runtime.taskmanager.zygote_process import NAMES_MAX, kill_slot
from engine.runtime.taskmanager.zygote_start import ZYGOTE_MODULE, StartedZygote, start_zygote

__all__ = ["SlotHandle", "Zygote"]

#: How long a slot may take from fork to SlotReady; extracting large archives is the longest part.
_READY_TIMEOUT: Final = 120.0
_START_TIMEOUT: Final = 60.0
_MESSAGE_SIZE: Final = 256


@final
class SlotHandle:
    """A running slot process. All methods on the TaskManager's event loop."""

    def __init__(
        self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, exited: asyncio.Future[int]
    ) -> None:
        self.pid = pid
        self.address: SlotAddress
        self._reader = reader
        self._writer = writer
        self._exited = exited

    def send(self, message: object) -> None:
        """Queue a message; never blocks. Does nothing when the slot is gone."""
        if not self._writer.is_closing():
            self._writer.write(pack_message(message))

    async def receive(self) -> Any | None:
        """Return the slot's next message; None when it closed its control socket or died."""
        try:
            head = await self._reader.readexactly(LENGTH.size)
            return pickle.loads(await self._reader.readexactly(LENGTH.unpack(head)[0]))
        except (asyncio.IncompleteReadError, OSError):
            # Only now: a slot's last words may still be on their way when its end is known.
            self._writer.close()
            return None

    async def wait(self) -> int:
        """Return the exit code; negative = the signal that ended it."""
        return await asyncio.shield(self._exited)

    def kill(self) -> None:
        """End the process at once. Does nothing when it has ended: its pid may be another process by now."""
        if not self._exited.done():
            kill_slot(self.pid)


@final
class Zygote:
    """A running zygote process. Made by ``start``."""

    def __init__(self, started: StartedZygote) -> None:
        self._process = started.process
        self._socket = started.socket
        self._forked: asyncio.Queue[int] = asyncio.Queue()
        self._fork_lock = asyncio.Lock()
        self._exited: dict[int, asyncio.Future[int]] = {}
        self._is_closed = False
        self._loaded: set[str] = set()
        self._ready = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(self._socket, self._on_message)
        self._ended = _end_of(self._process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def start(
        cls,
        python: str,
        env: dict[str, str],
        stdout_path: str | None,
        preload: Sequence[str],
        later: Sequence[str] = (),
    ) -> Zygote:
        """Start the process.

        ``env``: its whole environment. ``stdout_path``: file that gets what it and its slots print, None = inherit.
        ``preload``: modules to import before forking; ``warm_up()`` of those that have one is called. ``later``: the
        same once nobody wants anything; kernels that would have to be compiled are left out.

        Raises: ExternalError when the interpreter cannot be started or a preloaded module cannot be imported.
        """
        try:
            started = start_zygote(python, env, stdout_path, preload, later)
        except OSError as error:
            raise ExternalError(
                f"Cannot start {python} for slots: {error.strerror}. Set python.executable to an interpreter here."
            ) from error
        return await cls.adopt(started, python, stdout_path)

    @classmethod
    async def adopt(cls, started: StartedZygote, python: str, stdout_path: str | None = None) -> Zygote:
        """Wait until a process that was started is ready. Raises: ExternalError if it does not get there."""
        zygote = cls(started)
        try:
            await asyncio.wait_for(asyncio.shield(zygote._ready), _START_TIMEOUT)
        except (TimeoutError, ExternalError):
            await zygote.close()
            raise ExternalError(
                f"The process that forks slots ({python} -m {ZYGOTE_MODULE}) did not come up; "
                f"exit code {zygote._process.returncode}. Its output says why: {stdout_path or 'see standard error'}."
            ) from None
        return zygote

    async def fork_slot(self, init: InitializeSlot) -> SlotHandle:
        """Fork a slot, initialise it and wait until it is ready.

        Raises: ExternalError with the slot's reason when it cannot start; its process is gone then.
        """
        # The answer to a fork is taken even when nobody waits any more: the next would take it for its own.
        forking = asyncio.ensure_future(self._fork())
        try:
            pid, ours = await asyncio.shield(forking)
        except asyncio.CancelledError:
            forking.add_done_callback(self._leave_no_process)
            raise
        try:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
        except BaseException:
            self._leave_no_process(forking)
            raise
        handle = SlotHandle(pid, reader, writer, self._exited[pid])
        handle.send(init)
        try:
            answer = await asyncio.wait_for(handle.receive(), _READY_TIMEOUT)
        except BaseException as error:  # also when the caller gave up: leave no process behind
            handle.kill()
            if isinstance(error, TimeoutError):
                raise ExternalError(f"A slot process was not ready within {_READY_TIMEOUT:.0f} s.") from error
            raise
        if isinstance(answer, SlotReady):
            handle.address = answer.address
            return handle
        handle.kill()
        code = await handle.wait()
        reason = answer.message if isinstance(answer, ErrorInfo) else f"it ended with exit code {code}"
        raise ExternalError(f"A slot process could not start: {reason}")

    async def _fork(self) -> tuple[int, socket.socket]:
        """Return a new process and our end of its socket. Raises: ExternalError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        async with self._fork_lock:  # answers come in order
            try:
                if self._is_closed:
                    raise BrokenPipeError
                socket.send_fds(self._socket, [b"fork"], [theirs.fileno()])
            except OSError as error:
                ours.close()
                raise ExternalError("The process that starts slots is gone; no slot can be started.") from error
            finally:
                theirs.close()
            pid = await self._forked.get()
        if pid <= 0:
            ours.close()
            raise ExternalError(
                "No slot process could be forked: " + ("the zygote ended." if pid == 0 else os.strerror(-pid) + ".")
            )
        return pid, ours

    def _leave_no_process(self, forking: asyncio.Future[tuple[int, socket.socket]]) -> None:
        if not forking.cancelled() and forking.exception() is None:
            pid, ours = forking.result()
            ours.close()
            if pid in self._exited:
                kill_slot(pid)

    def load(self, modules: Sequence[str]) -> None:
        """Have it import modules, once, before it forks the next slot; ``warm_up()`` is called as in ``start``. What
        fails or takes longer than a minute is left to the slots."""
        wanted = [module for module in modules if module not in self._loaded]
        if not wanted or self._is_closed:
            return
        self._loaded.update(wanted)
        with contextlib.suppress(OSError):  # that it is gone is told to whoever wants a slot
            for start in range(0, len(wanted), NAMES_MAX):
                self._socket.send(" ".join(wanted[start : start + NAMES_MAX]).encode())

    async def wait(self) -> int:
        """Return the zygote's exit code when it has ended."""
        return await asyncio.shield(self._ended)

    async def close(self) -> None:
        """End the zygote and all its slots; returns when they are gone."""
        self._lose()
        try:
            await asyncio.wait_for(self.wait(), 5)
        except TimeoutError:
            self._process.kill()
            await self.wait()

    def _on_message(self) -> None:
        try:
            message = self._socket.recv(_MESSAGE_SIZE).decode()
        except BlockingIOError:
            return
        except OSError:
            message = ""
        match message.split():
            case ["ready"]:
                self._ready.set_result(None)
            case ["forked", pid]:
                if int(pid) > 0:
                    self._exited[int(pid)] = asyncio.get_running_loop().create_future()
                self._forked.put_nowait(int(pid))
            case ["exited", pid, code]:
                exited = self._exited.pop(int(pid), None)
                if exited is not None and not exited.done():
                    exited.set_result(int(code))
            case _:
                self._lose()

    def _lose(self) -> None:
        """The zygote is gone or shall go: its slots die with it (it kills them, or the kernel does)."""
        if self._is_closed:
            return
        self._is_closed = True
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._forked.put_nowait(0)
        if not self._ready.done():
            self._ready.set_exception(ExternalError("the zygote ended"))
            self._ready.exception()  # seen
        for pid, exited in self._exited.items():
            kill_slot(pid)
            if not exited.done():
                exited.set_result(-signal.SIGKILL)
        self._exited.clear()


def _end_of(process: subprocess.Popen[bytes]) -> asyncio.Future[int]:
    """Return the exit code to come. A thread waits for it: the loop may be in any thread, and be closed before."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def set_code(code: int) -> None:
        if not ended.done():
            ended.set_result(code)

    def wait() -> None:
        code = process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(set_code, code)

    threading.Thread(target=wait, name="zygote-wait", daemon=True).start()
    return ended
