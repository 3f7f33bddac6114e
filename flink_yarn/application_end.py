"""How an application on YARN ends: what the end of its job means for it, and what YARN is told."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Final

from engine.graph.execution_graph import ExecutionGraph
from engine.protocol.lifecycle import JobStatus
from engine.rest.views import container_logs_command
from flink_yarn.high_availability import Outcome
from flink_yarn.resource_driver import attempt_of
from flink_yarn.skein_driver import skein_module

__all__ = ["MAIN_LOG", "give_up", "outcome_of", "shut_down"]

MAIN_LOG: Final = "jobmanager.log"
DIAGNOSTICS_MAX: Final = 4000
LOG_TAIL_CHARACTERS: Final = 100_000
ERROR_LINES_MAX: Final = 40


def outcome_of(graph: ExecutionGraph) -> Outcome:
    """Return what the end of a job means for its application."""
    name = graph.job_graph.name
    match graph.status:
        case JobStatus.FINISHED:
            return Outcome("SUCCEEDED", f"Job {name!r} finished.")
        case JobStatus.CANCELED:
            return Outcome("KILLED", f"Job {name!r} was cancelled.")
    return Outcome("FAILED", graph.failure.message + _where(graph) if graph.failure else f"Job {name!r} failed.")


def _where(graph: ExecutionGraph) -> str:
    """Return a line on the container that the job failed in and its log, to which no page leads any more; "" if it was
    in none."""
    entry = graph.exceptions[-1] if graph.exceptions else None
    command = container_logs_command(entry.resource_id) if entry is not None and entry.resource_id else ""
    return f"\nThis was on {entry.endpoint} in {entry.resource_id}; its log: {command}" if entry and command else ""


def shut_down(application: Any, outcome: Outcome) -> None:
    """Unregister the application; all its containers end."""
    text = outcome.diagnostics
    if len(text) > DIAGNOSTICS_MAX:
        text = text[: DIAGNOSTICS_MAX // 2] + "\n…\n" + text[-DIAGNOSTICS_MAX // 2 :]
    application.shutdown(outcome.status, text)


def give_up(logs: str, code: str) -> int:
    """The JobManager has died too often. The attempt ends, and with the last one the application: say why."""
    attempts = int(os.environ.get("FLINK_YARN_ATTEMPTS", "1"))
    if attempt_of(os.environ.get("CONTAINER_ID", "")) >= attempts:
        died = f"by signal {int(code) - 128}" if int(code) > 128 else f"with exit code {code}"
        reason = f"The JobManager died too often, the last time {died}. {_last_error(logs)}".strip()
        with contextlib.suppress(Exception):  # then YARN only learns of the exit code
            shut_down(skein_module().ApplicationClient.from_current(), Outcome("FAILED", reason))
    return int(code)


def _last_error(logs: str) -> str:
    """Return the last error in the JobManager's log, "" when there is none."""
    try:
        with open(os.path.join(logs, MAIN_LOG), encoding="utf-8", errors="replace") as stream:
            lines = stream.read()[-LOG_TAIL_CHARACTERS:].splitlines()
    except OSError:
        return ""
    starts = [number for number, line in enumerate(lines) if " ERROR " in line]
    return "Its last error: " + "\n".join(lines[starts[-1] :][:ERROR_LINES_MAX]) if starts else ""
