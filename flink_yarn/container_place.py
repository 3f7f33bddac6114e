"""What a process in a YARN container knows of its place: where its logs are shown, how the one before it ended."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping

from engine.jobmanager_process import LeaderPlace
from flink_yarn.master_supervisor import LAST_EXIT_VARIABLE

__all__ = ["container_log_url", "leader_place"]


def container_log_url(environ: Mapping[str, str]) -> str:
    """Return where the NodeManager shows this container's logs, "" when YARN has not told us where that is.

    When the application has ended it passes on to ``yarn.log.server.url``, where the aggregated logs are.
    """
    host, port, container = (environ.get(name, "") for name in ("NM_HOST", "NM_HTTP_PORT", "CONTAINER_ID"))
    if not (host and port and container):
        return ""
    user = environ.get("USER") or environ.get("HADOOP_USER_NAME", "")
    return f"http://{host}:{port}/node/containerlogs/{container}/{user}"


def leader_place(environ: Mapping[str, str], why_told: Callable[[], str]) -> LeaderPlace:
    """Return what the history of leaders tells of the JobManager in this container."""
    return LeaderPlace(environ.get("CONTAINER_ID", ""), container_log_url(environ), _former_end(environ), why_told)


def _former_end(environ: Mapping[str, str]) -> str:
    code = environ.get(LAST_EXIT_VARIABLE, "")
    if not code.isdigit():
        return ""
    if int(code) <= 128:
        return f"Its process ended with exit code {code} and was started again in its container."
    try:
        name = signal.Signals(int(code) - 128).name
    except ValueError:
        name = f"signal {int(code) - 128}"
    return f"Its process was ended by {name} and was started again in its container."
