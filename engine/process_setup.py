"""What the process mains of JobManager and TaskManager begin with: checked configuration, logs, signals, addresses."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Collection, Iterator

from engine.core.config import Configuration
from engine.core.errors import ExternalError
from engine.core.option_warnings import check_values, key_warnings
from engine.core.options import ClusterOptions

__all__ = ["check_config", "configure_logging", "handled_signals", "reachable_host", "temp_dir"]

logger = logging.getLogger("engine.cluster")


def check_config(config: Configuration, told: Collection[str] = ()) -> None:
    """Log a warning per key without effect; raise ConfigError for the first bad value.

    ``told``: keys of which the user has been warned already.
    """
    for line in key_warnings(config.key_set().difference(told)):
        logger.warning(line)
    check_values(config)


def configure_logging(log_file: str | None) -> None:
    """Send all logs to a file, or to stderr. For process mains only."""
    handler: logging.Handler = logging.FileHandler(log_file) if log_file else logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-5s %(name)s - %(message)s"))
    level = os.environ.get("FLINK_LOG_LEVEL", "INFO").upper()
    logging.basicConfig(
        level=level if level in logging.getLevelNamesMapping() else "INFO", handlers=[handler], force=True
    )


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
