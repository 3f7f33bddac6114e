"""``flink run`` and ``flink info``: the program runs in a child interpreter, this process tells what becomes of it."""

from __future__ import annotations

import signal
import sys
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from engine.client.job_client import JobOutcomeView
from engine.client.rest_client import RestClient
from engine.core.config import Configuration
from engine.core.errors import EngineError, ProgramError
from engine.core.ids import JobID
from engine.core.options import CheckpointingOptions, JobOptions, RestOptions
from engine.protocol.lifecycle import JobStatus
from flink_yarn.cli_options import ParsedOptions
from flink_yarn.cli_rest import connect, session_client
from flink_yarn.cli_signals import exit_code, raise_on_signals, say
from flink_yarn.program import Program, ProgramRun, locate_program, uploaded_id

__all__ = ["info", "run"]

_NO_JOB: Final = (
    "The program didn't contain a Flink job. Perhaps you forgot to call execute() on the execution environment."
)
_POLL_S: Final = 0.2
#: How long the program of a per-job cluster may take to cancel its job and see the cluster end.
_CANCEL_GRACE_S: Final = 20.0


class _ProgramFailed(EngineError):
    """The program's own error, already one clear message."""


def _program(parsed: ParsedOptions, config: Configuration) -> Program:
    arguments = [*parsed.all("arguments"), *parsed.arguments]
    module = parsed.get("pyModule")
    path = parsed.get("python") or parsed.get("jarfile")
    if not path and not module:
        if not arguments:
            raise ProgramError(
                "The program is missing; expected a .py file, a .zip, .whl or .pyz with -c package.module, or -pym."
            )
        path, arguments = (parsed.arguments[0], [*parsed.all("arguments"), *parsed.arguments[1:]])
    return locate_program(path=path, entry=parsed.get("class"), module=module, arguments=arguments, config=config)


def _ship_program(program: Program, config: Configuration) -> None:
    """Modules of an archive may be imported late, in a slot: it travels as a file too."""
    if program.is_archive:
        listed = [program.path, config.get(JobOptions.PYTHON_FILES)]
        config.set(JobOptions.PYTHON_FILES, ",".join(part for part in listed if part))


def info(parsed: ParsedOptions, config: Configuration) -> int:
    """Print the plan of a program as JSON; nothing runs."""
    program = _program(parsed, config)
    with ProgramRun(program, config, mode="plan") as child:
        code = child.wait()
        _check_end(child, code)
        if not child.plan:
            return code or _no_job()
    print("----------------------- Execution Plan -----------------------")
    print(child.plan)
    print("--------------------------------------------------------------")
    print()
    print("No description provided.")
    return 0


def run(parsed: ParsedOptions, config: Configuration) -> int:
    """Run a program on the target; attached, this lasts as long as its jobs."""
    if parsed.has("yarnquery"):
        session_client().print_resources(config)
        return 0
    words = parsed.arguments
    uploaded = uploaded_id(parsed.get("jarfile") or (words[0] if words else ""))
    if uploaded and not (parsed.has("python") or parsed.has("pyModule")):
        return _run_uploaded(uploaded, parsed, config)
    program = _program(parsed, config)
    target = config.get(JobOptions.TARGET)
    if target == "yarn-application":
        return int(session_client().deploy_application(config, program))
    if target == "yarn-per-job":
        session_client()  # its lack is told before the program runs
    if target in ("remote", "yarn-session"):
        client = connect(config)
        if target == "remote" or not client.follows_leader:
            # The program reaches the session as any other cluster.
            address = urllib.parse.urlsplit(client.base_url)
            config.set(JobOptions.TARGET, "remote")
            config.set(RestOptions.ADDRESS, address.hostname).set(RestOptions.PORT, address.port)
    _ship_program(program, config)
    raise_on_signals()
    with ProgramRun(program, config) as child:
        try:
            code = child.wait(_print_submission, _print_result)
        except KeyboardInterrupt as interrupt:
            _interrupted(child.job_ids, config, lambda: child.end(_CANCEL_GRACE_S))
            return exit_code(interrupt)
        _check_end(child, code)
        if not child.job_ids:
            return code or _no_job()
        if target in ("remote", "yarn-session") and config.get(JobOptions.ATTACHED):
            _print_missing_results(child, connect(config))
        return code


def _check_end(child: ProgramRun, code: int) -> None:
    if child.error:
        raise _ProgramFailed(child.error)
    if code < 0:
        raise _ProgramFailed(f"The interpreter of the program was ended by signal {signal.Signals(-code).name}.")


def _no_job() -> int:
    print(f"\n{_NO_JOB}", file=sys.stderr)
    return 1


def _print_submission(job_id: str) -> None:
    print(f"Job has been submitted with JobID {job_id}", flush=True)


def _print_result(result: Mapping[str, Any]) -> None:
    """Print how a job ended well; one that did not is told by the program's error."""
    if result["status"] != "FINISHED":
        return
    accumulators = result.get("accumulators") or {}
    lines = ["Program execution finished", f"Job with JobID {result['job_id']} has finished."]
    lines.append(f"Job Runtime: {result.get('net_runtime_ms', 0)} ms")
    if accumulators:
        lines.append("Accumulator Results: ")
        lines += [f"- {name} ({type(value).__name__}): {value}" for name, value in sorted(accumulators.items())]
    print("\n".join(lines), flush=True)


def _print_missing_results(child: ProgramRun, client: RestClient) -> None:
    """Print the ends of jobs that the program did not report itself, in order of their submission."""
    reported = {str(result["job_id"]) for result in child.results}
    for job_id in child.job_ids:
        if job_id in reported:
            continue
        try:
            outcome = client.execution_result(JobID(job_id))
        except EngineError:
            continue  # forgotten meanwhile (web.history), which is no failure of the program
        if outcome is not None:
            _print_result(_result_of(job_id, outcome))


def _result_of(job_id: str, outcome: JobOutcomeView) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "status": outcome.status.value,
        "net_runtime_ms": outcome.net_runtime_ms,
        "accumulators": outcome.accumulators,
    }


def _interrupted(job_ids: Sequence[str], config: Configuration, end_program: Callable[[], None]) -> None:
    """Cancel what was submitted if -sae asked for it, else say that it goes on; then end the program."""
    for number in (signal.SIGINT, signal.SIGHUP):  # shell and kernel both tell of a closed terminal
        signal.signal(number, signal.SIG_IGN)
    target = config.get(JobOptions.TARGET)
    if target == "local" or not job_ids:
        say("Interrupted.", sys.stderr)
    elif not config.get(JobOptions.SHUTDOWN_ON_ATTACHED_EXIT):
        where = " -yid <application id>" if target == "yarn-per-job" else ""
        for job_id in job_ids:
            say(f"Interrupted. Job {job_id} goes on; end it with: flink cancel{where} {job_id}", sys.stderr)
    elif target == "yarn-per-job":
        # Only the program knows its cluster; interrupted, it cancels the job itself.
        say(f"Cancelling job {job_ids[-1]}.")
        end_program()
        say(f"Cancelled job {job_ids[-1]}.")
    else:
        for job_id in job_ids:
            _cancel(job_id, config)
    end_program()


def _cancel(job_id: str, config: Configuration) -> None:
    say(f"Cancelling job {job_id}.")
    try:
        connect(config).cancel(JobID(job_id))
        say(f"Cancelled job {job_id}.")
    except EngineError as error:
        say(f"Job {job_id} may still run: {error}", sys.stderr)


def _run_uploaded(program_id: str, parsed: ParsedOptions, config: Configuration) -> int:
    """Run a program that lies on the cluster already; its main runs there."""
    client = connect(config)
    words = parsed.arguments if parsed.has("jarfile") else parsed.arguments[1:]
    body: dict[str, Any] = {"programArgsList": [*parsed.all("arguments"), *words]}
    if parsed.has("class"):
        body["entryClass"] = parsed.get("class")
    if parsed.has("parallelism"):
        body["parallelism"] = config.get(JobOptions.PARALLELISM)
    if config.get(CheckpointingOptions.RESTORE_PATH):
        body["savepointPath"] = config.get(CheckpointingOptions.RESTORE_PATH)
        body["allowNonRestoredState"] = config.get(CheckpointingOptions.ALLOW_NON_RESTORED)
        body["claimMode"] = config.get(CheckpointingOptions.CLAIM_MODE)
    job_id = client.run_program(program_id, body)
    _print_submission(str(job_id))
    if not config.get(JobOptions.ATTACHED):
        return 0
    raise_on_signals()
    try:
        while (outcome := client.outcome(job_id, _POLL_S)) is None:
            pass
    except KeyboardInterrupt as interrupt:
        _interrupted([str(job_id)], config, lambda: None)
        return exit_code(interrupt)
    if outcome.status is not JobStatus.FINISHED:
        told = f"Job {job_id} ended as {outcome.status.value}."
        raise _ProgramFailed(outcome.failure.message if outcome.failure is not None else told)
    _print_result(_result_of(str(job_id), outcome))
    return 0
