"""``flink list`` and ``flink cancel``, over the JobManager's REST."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from engine.core.config import Configuration
from flink_yarn.cli_options import ParsedOptions
from flink_yarn.cli_rest import connect
from flink_yarn.cli_savepoints import cancel_with_savepoint, job_id_of

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
    folder = parsed.get("withSavepoint")
    if parsed.has("withSavepoint") and not parsed.arguments and re.fullmatch("[0-9a-fA-F]{32}", folder):
        # "cancel -s <job id>": the folder was left out.
        parsed.arguments, folder = [folder], ""
    job_id = job_id_of(parsed, "cancel a job")
    client = connect(config)
    if parsed.has("withSavepoint"):
        return cancel_with_savepoint(job_id, folder, client, config)
    print(f"Cancelling job {job_id}.", flush=True)
    client.cancel(job_id)
    deadline = time.monotonic() + _CANCEL_WAIT_S
    while client.job(job_id)["state"] not in _TERMINAL and time.monotonic() < deadline:
        time.sleep(0.05)
    print(f"Cancelled job {job_id}.")
    return 0
