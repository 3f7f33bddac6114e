"""``flink stop``, ``savepoint``, ``checkpoint`` and ``cancel -s``, over the JobManager's REST."""

from __future__ import annotations

import os
import re
from typing import Final

from engine.client.rest_client import RestClient
from engine.core.config import Configuration
from engine.core.errors import ConfigError, ExternalError, JobNotFoundError, ProgramError
from engine.core.ids import JobID
from engine.core.options import CheckpointingOptions
from engine.protocol.checkpoint import StopMode
from flink_yarn.cli_options import ParsedOptions
from flink_yarn.cli_rest import connect

__all__ = ["cancel_with_savepoint", "checkpoint", "job_id_of", "modify", "path_for_cluster", "savepoint", "stop"]

_POLL_S: Final = 0.1
_FORMATS: Final = ("CANONICAL", "NATIVE")


def job_id_of(parsed: ParsedOptions, what_for: str) -> JobID:
    """Return the job that the first word names. Raises ProgramError."""
    if not parsed.arguments:
        raise ProgramError(f"Missing JobID. Specify a JobID to {what_for}.")
    job_id = parsed.arguments[0].lower()
    if not re.fullmatch(r"[0-9a-f]{32}", job_id):
        raise ProgramError(
            f"{parsed.arguments[0]!r} is not a valid JobID; expected 32 hexadecimal digits, as `flink list` shows."
        )
    return JobID(job_id)


def path_for_cluster(path: str) -> str:
    """Return a user's path so that it means the same to the cluster: a relative one is below this working folder."""
    return path if not path or "://" in path or path.startswith("hdfs:") else os.path.abspath(path)


def _format(parsed: ParsedOptions) -> str:
    kind = parsed.get("type", "canonical").upper()
    if kind not in _FORMATS:
        raise ConfigError(f"The type of the savepoint is {parsed.get('type')!r}; expected canonical or native.")
    return kind


def _folder(text: str) -> str | None:
    return path_for_cluster(text) or None


def _wait(client: RestClient, job_id: JobID, trigger_id: str) -> str:
    while (path := client.savepoint_result(job_id, trigger_id, _POLL_S)) is None:
        pass
    return path


def stop(parsed: ParsedOptions, config: Configuration) -> int:
    """End a job with a savepoint."""
    job_id = job_id_of(parsed, "stop a job")
    kind, folder = _format(parsed), _folder(parsed.get("savepointPath"))
    drain = parsed.has("drain")
    client = connect(config)
    print(f'{"Draining" if drain else "Suspending"} job "{job_id}" with a {kind} savepoint.')
    detached = parsed.has("detached")
    print(f"Triggering stop-with-savepoint{' in detached mode' if detached else ''} for job {job_id}.", flush=True)
    trigger_id = client.trigger_savepoint(job_id, folder, stop=StopMode.DRAIN if drain else StopMode.SUSPEND)
    if detached:
        print(f"Successfully trigger stop-with-savepoint in detached mode, triggerId: {trigger_id}")
        return 0
    print("Waiting for response...", flush=True)
    print(f"Savepoint completed. Path: {_wait(client, job_id, trigger_id)}")
    return 0


def savepoint(parsed: ParsedOptions, config: Configuration) -> int:
    """Take a savepoint of a job, or dispose of one."""
    if parsed.has("dispose"):
        return _dispose(path_for_cluster(parsed.get("dispose")), config)
    job_id = job_id_of(parsed, "trigger a savepoint")
    _format(parsed)
    if len(parsed.arguments) > 2:
        raise ProgramError(
            f"Too many words after the JobID: {' '.join(parsed.arguments[1:])}; expected one folder at most."
        )
    folder = _folder(parsed.arguments[1] if len(parsed.arguments) > 1 else "")
    client = connect(config)
    detached = parsed.has("detached")
    print(f"Triggering savepoint{' in detached mode' if detached else ''} for job {job_id}.", flush=True)
    trigger_id = client.trigger_savepoint(job_id, folder)
    if detached:
        print(f"Successfully trigger manual savepoint, triggerId: {trigger_id}")
        return 0
    print("Waiting for response...", flush=True)
    print(f"Savepoint completed. Path: {_wait(client, job_id, trigger_id)}")
    print("You can resume your program from this savepoint with the run command.")
    return 0


def _dispose(path: str, config: Configuration) -> int:
    if not path:
        raise ProgramError("Missing required argument: savepoint path. Usage: flink savepoint -d <savepoint-path>")
    client = connect(config)
    print(f"Disposing savepoint '{path}'.")
    print("Waiting for response...", flush=True)
    trigger_id = client.trigger_disposal(path)
    while not client.disposal_is_done(trigger_id, _POLL_S):
        pass
    print(f"Savepoint '{path}' disposed.")
    return 0


def checkpoint(parsed: ParsedOptions, config: Configuration) -> int:
    """Take a checkpoint of a job."""
    job_id = job_id_of(parsed, "trigger a checkpoint")
    full = parsed.has("full")
    client = connect(config)
    print(f"Triggering checkpoint for job {job_id}.", flush=True)
    trigger_id = client.trigger_checkpoint(job_id, "FULL" if full else "CONFIGURED")
    print("Waiting for response...", flush=True)
    while (number := client.checkpoint_result(job_id, trigger_id, _POLL_S)) is None:
        pass
    print(f"Checkpoint{'(FULL)' if full else ''} {number} for job {job_id} completed.")
    print("You can resume your program from this checkpoint with the run command.")
    return 0


def modify(parsed: ParsedOptions, config: Configuration) -> int:
    """Let a running job go on at another parallelism."""
    job_id = job_id_of(parsed, "modify a job")
    text = parsed.get("parallelism")
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"The new parallelism is {text!r}; expected -p with a whole number of at least 1.")
    client = connect(config)
    print(f"Modify job {job_id}.", flush=True)
    client.rescale(job_id, int(text))
    print(f"Rescaled job {job_id}. Its new parallelism is {int(text)}.")
    return 0


def cancel_with_savepoint(job_id: JobID, folder: str, client: RestClient, config: Configuration) -> int:
    """``flink cancel -s [folder]``."""
    print('DEPRECATION WARNING: Cancelling a job with savepoint is deprecated. Use "stop" instead.')
    target = _folder(folder)
    where = target or config.get(CheckpointingOptions.SAVEPOINT_DIR) or "default savepoint directory"
    print(f"Cancelling job {job_id} with CANONICAL savepoint to {where}.", flush=True)
    trigger_id = client.trigger_savepoint(job_id, target, cancel=True)
    try:
        path = _wait(client, job_id, trigger_id)
    except JobNotFoundError as error:
        raise ExternalError(f"The cluster has forgotten the savepoint of job {job_id}: {error}") from None
    print(f"Cancelled job {job_id}. Savepoint stored in {path}.")
    return 0
