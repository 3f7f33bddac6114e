"""What the process mains of JobManager and TaskManager begin with: checked configuration, logs, signals, addresses."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Final, final

from engine.core import rolling_file
from engine.core.config import Configuration
from engine.core.errors import ExternalError
from engine.core.log_options import LogOptions, python_log_level
from engine.core.option_warnings import check_values, key_warnings
from engine.core.options import ClusterOptions
from engine.core.rolling_file import RollingFile

__all__ = [
    "RollingHandler",
    "bounded_output",
    "check_config",
    "configure_logging",
    "handled_signals",
    "reachable_host",
    "temp_dir",
]

logger = logging.getLogger("engine.cluster")

#: between the end of an output writer that was killed and the start of the next one
WRITER_PAUSE_S: Final = 0.2
#: for an output writer to write what it still has
WRITER_CLOSE_S: Final = 2.0


def check_config(config: Configuration, told: Collection[str] = ()) -> None:
    """Log a warning per key without effect; raise ConfigError for the first bad value.

    ``told``: keys of which the user has been warned already.
    """
    for line in key_warnings(config.key_set().difference(told)):
        logger.warning(line)
    check_values(config)


@final
class RollingHandler(logging.Handler):
    """Writes records into a file that is rolled at a bound; several processes may share it."""

    def __init__(self, path: str, *, size_bytes_max: int, backups_max: int) -> None:
        super().__init__()
        self._file = RollingFile(path, size_bytes_max=size_bytes_max, backups_max=backups_max)
        self.baseFilename = self._file.path  #: as logging.FileHandler calls it
        self._file.write(b"")

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._file.write((self.format(record) + "\n").encode(errors="backslashreplace"))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._file.close()
        super().close()


def configure_logging(log_file: str | None, config: Configuration | None = None) -> None:
    """Send all logs to a file, or to stderr. For process mains only: at once, and again when ``config`` is known.

    Raises: OSError when the file cannot be written.
    """
    config = config or Configuration()
    handler: logging.Handler = logging.StreamHandler()
    if log_file:
        handler = RollingHandler(
            log_file, size_bytes_max=config.get(LogOptions.SIZE_MAX), backups_max=config.get(LogOptions.BACKUPS_MAX)
        )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-5s %(name)s - %(message)s"))
    level = python_log_level(os.environ.get("FLINK_LOG_LEVEL") or config.get(LogOptions.LEVEL))
    logging.basicConfig(level=level, handlers=[handler], force=True)


@final
class _OutputWriter:
    """The process through which everything goes that this one, its slots and users' functions print."""

    def __init__(self, path: str, config: Configuration) -> None:
        bounds = (str(config.get(LogOptions.SIZE_MAX)), str(config.get(LogOptions.BACKUPS_MAX)))
        self._command = [sys.executable, "-I", "-S", rolling_file.__file__, path, *bounds]
        # Also kept open here: while a writer that was killed is replaced, whoever prints waits and does not fail.
        self._reading, self._writing = os.pipe()
        self._is_closing = False
        self._process = self._start()
        threading.Thread(target=self._keep_up, name="output-writer", daemon=True).start()

    def _start(self) -> subprocess.Popen[bytes]:
        null = subprocess.DEVNULL
        return subprocess.Popen(self._command, stdin=self._reading, stdout=null, stderr=null)

    def take(self, descriptor: int) -> None:
        os.dup2(self._writing, descriptor)

    def _keep_up(self) -> None:
        while True:
            self._process.wait()
            if self._is_closing:
                return
            time.sleep(WRITER_PAUSE_S)
            with contextlib.suppress(OSError):
                self._process = self._start()

    def close(self) -> None:
        """Let the last words be written; they are still to come when somebody else can print."""
        self._is_closing = True
        os.close(self._writing)
        os.close(self._reading)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(WRITER_CLOSE_S)


@contextlib.contextmanager
def bounded_output(path: str | None, config: Configuration) -> Iterator[None]:
    """While the block runs, what is printed to the file ``path`` goes into one that is rolled at a bound.

    Does nothing for what is printed elsewhere: to a terminal, a pipe, a file of another name. For process mains only.
    """
    streams = (sys.stdout, sys.stderr)
    taken = [number for number in (1, 2) if path and _prints_to(number, path)]
    if not taken or path is None:
        yield
        return
    for stream in streams:
        stream.flush()
    writer = _OutputWriter(path, config)
    for number in taken:
        writer.take(number)
    try:
        yield
    finally:
        for stream in streams:
            stream.flush()
        # Not what was there before: to keep that open would keep the space of a file that has long been deleted.
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        for number in taken:
            os.dup2(descriptor, number)
        os.close(descriptor)
        writer.close()


def _prints_to(descriptor: int, path: str) -> bool:
    """Return whether what is printed goes to this file, or to one that was it before it was rolled."""
    try:
        folder, name = os.path.split(os.readlink(f"/proc/self/fd/{descriptor}"))
    except OSError:
        return False
    return folder == os.path.realpath(os.path.dirname(path)) and name.startswith(os.path.basename(path))


def reachable_host(rpc_address: str, rpc_port: int) -> tuple[str, str]:
    """Return (address of this host for others, interface to bind), as the way to the JobManager tells.

    Raises: ExternalError when the JobManager's host has no address.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(rpc_address, rpc_port or 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # sends nothing: asks the kernel for the route
            host = str(probe.getsockname()[0])
    except OSError as error:
        raise ExternalError(
            f"jobmanager.rpc.address is {rpc_address!r}, which cannot be reached from here: {error}."
        ) from None
    if not host.startswith("127.") and host != "::1":
        return host, host
    if rpc_address == "localhost" or rpc_address.startswith("127.") or rpc_address == "::1":
        return "localhost", "localhost"
    # The JobManager's own host, whose name stands for a loopback address in its hosts file, as Debian has it.
    return rpc_address, "0.0.0.0"


def temp_dir(config: Configuration) -> str | None:
    """Return the first folder of io.tmp.dirs, made if it is missing; None = the system's."""
    text = config.get(ClusterOptions.TMP_DIRS).replace(",", os.pathsep)
    folders = [part.strip() for part in text.split(os.pathsep) if part.strip()]
    if not folders:
        return None
    os.makedirs(folders[0], exist_ok=True)
    return folders[0]


@contextlib.contextmanager
def handled_signals(loop: asyncio.AbstractEventLoop, handler: Callable[[int], None]) -> Iterator[None]:
    """SIGTERM, SIGINT and SIGHUP call ``handler`` on the loop; does nothing outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # under nohup it shall outlive its terminal
        numbers.append(signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, handler, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
