"""``flink list`` and ``flink cancel``, over the JobManager's REST."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from engine.core.config import Configuration
from engine.core.errors import ConfigError, ProgramError
from engine.core.ids import JobID
from flink_yarn.cli_options import ParsedOptions
from flink_yarn.cli_rest import connect

__all__ = ["cancel", "list_jobs"]

_SCHEDULED: Final = ("CREATED", "INITIALIZING")
_TERMINAL: Final = ("FINISHED", "CANCELED", "FAILED")
_LINE: Final = "--------------------------------------------------------------"
#: Cancelling is prompt, and a script that goes on wants the slots back; a job that hangs is still only told to end.
_CANCEL_WAIT_S: Final = 5.0


def list_jobs(parsed: ParsedOptions, config: Configuration) -> int:
    """Print running and scheduled jobs (without options both; -a adds ended ones)."""
    everything = parsed.has("all")
    running, scheduled = parsed.has("running"), parsed.has("scheduled")
    if not running and not scheduled:
        running = scheduled = True
    client = connect(config)
    print("Waiting for response...")
    jobs = client.jobs()
    if running or everything:
        live = [job for job in jobs if job["state"] not in (*_SCHEDULED, *_TERMINAL)]
        _print_jobs("------------------ Running/Restarting Jobs -------------------", live, "No running jobs.")
    if scheduled or everything:
        waiting = [job for job in jobs if job["state"] in _SCHEDULED]
        _print_jobs("----------------------- Scheduled Jobs -----------------------", waiting, "No scheduled jobs.")
    if everything:
        ended = [job for job in jobs if job["state"] in _TERMINAL]
        _print_jobs("---------------------- Terminated Jobs -----------------------", ended, "")
    return 0


def _print_jobs(title: str, jobs: Iterable[Mapping[str, Any]], if_none: str) -> None:
    rows = sorted(jobs, key=lambda job: (job["start-time"], job["jid"]))
    if not rows:
        if if_none:
            print(if_none)
        return
    print(title)
    for job in rows:
        start = datetime.fromtimestamp(job["start-time"] / 1000).strftime("%d.%m.%Y %H:%M:%S")
        print(f"{start} : {job['jid']} : {job['name']} ({job['state']})")
    print(_LINE)


def cancel(parsed: ParsedOptions, config: Configuration) -> int:
    """Cancel one job and wait, within reason, until it has ended."""
    if parsed.has("withSavepoint"):
        raise ConfigError("--withSavepoint is not supported yet: savepoints come with checkpointing. Leave it out.")
    if not parsed.arguments:
        raise ProgramError("Missing JobID. Specify a JobID to cancel a job.")
    job_id = parsed.arguments[0].lower()
    if not re.fullmatch(r"[0-9a-f]{32}", job_id):
        raise ProgramError(
            f"{parsed.arguments[0]!r} is not a valid JobID; expected 32 hexadecimal digits, as `flink list` shows."
        )
    client = connect(config)
    print(f"Cancelling job {job_id}.", flush=True)
    client.cancel(JobID(job_id))
    deadline = time.monotonic() + _CANCEL_WAIT_S
    while client.job(job_id)["state"] not in _TERMINAL and time.monotonic() < deadline:
        time.sleep(0.05)
    print(f"Cancelled job {job_id}.")
    return 0
