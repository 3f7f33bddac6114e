"""Runs jobs of a program on YARN: in a session, or each in a cluster of its own (``yarn-per-job``).

Called by ``engine/client/executors`` by name, in the process that runs the program's main.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, Final, final

from engine.client.context import ClientContext
from engine.client.executors import submit_to_session
from engine.client.job_client import JobClient, JobOutcomeView
from engine.client.rest_client import RestClient
from engine.core.config import Configuration
from engine.core.errors import ConfigError, EngineError, ExternalError
from engine.core.ids import JobID
from engine.core.options import JobOptions
from engine.graph.job_graph import JobGraph
from engine.protocol.checkpoint import StopMode
from engine.protocol.lifecycle import JobStatus
from engine.rpc.codec import encode
from flink_yarn.application_leader import ApplicationEndedError
from flink_yarn.cluster_spec import Mode
from flink_yarn.session_client import deploy, find_session, kill, yarn_client
from flink_yarn.yarn_client import YarnClient

__all__ = ["execute_async"]

#: How long to wait for YARN to agree that the application has ended.
_END_TIMEOUT_S: Final = 20.0
_CANCEL_WAIT_S: Final = 5.0


def execute_async(job_graph: JobGraph, files: Mapping[str, str], config: Configuration) -> JobClient:
    """Submit a job to the YARN target of the configuration."""
    match config.get(JobOptions.TARGET):
        case "yarn-session":
            return _execute_in_session(job_graph, files, config)
        case "yarn-per-job":
            return _execute_per_job(job_graph, files, config)
    raise ConfigError(
        "With yarn-application the program's main runs on YARN: start it with `flink run -t yarn-application …`."
    )


def _execute_in_session(job_graph: JobGraph, files: Mapping[str, str], config: Configuration) -> JobClient:
    return submit_to_session(find_session(config), job_graph, files, config)


def _execute_per_job(job_graph: JobGraph, files: Mapping[str, str], config: Configuration) -> JobClient:
    shipped: dict[str, str | bytes] = {"job-graph": encode(job_graph)}
    shipped.update({sha256: os.fspath(path) for sha256, path in files.items()})
    cancel = config.get(JobOptions.SHUTDOWN_ON_ATTACHED_EXIT)
    submitted: list[str] = []
    try:
        deployment = deploy(
            config, Mode.PER_JOB, job_files=shipped, slots_needed=_slots_of(job_graph), submitted=submitted
        )
        print(f"JobManager Web Interface: {deployment.address}", flush=True)
        access = _PerJobAccess(deployment.application_id, deployment.rest, yarn_client())
        if cancel and config.get(JobOptions.ATTACHED):
            # However this process ends, between any two lines of the program: the job goes with it.
            atexit.register(access.cancel_at_exit, job_graph.job_id)
    except BaseException:
        for started in submitted:  # interrupted before anybody knew of it
            kill(started, config)
        raise
    return JobClient(job_graph.job_id, access, cancel_on_interrupt=cancel)


def _slots_of(job_graph: JobGraph) -> int:
    """Return how many slots the job needs: of each slot sharing group as many as its widest vertex has subtasks."""
    widest: dict[str, int] = {}
    for vertex in job_graph.vertices:
        widest[vertex.slot_sharing_group] = max(widest.get(vertex.slot_sharing_group, 0), vertex.parallelism)
    return sum(widest.values())


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | bool | None) else str(value)


@final
class _PerJobAccess:
    """JobAccess to a cluster that ends with its job: once the outcome is known here, the cluster may go."""

    def __init__(self, application_id: str, rest: RestClient, yarn: YarnClient) -> None:
        self._application_id = application_id
        self._rest = rest
        self.base_url: str = rest.base_url
        self._yarn = yarn
        self._outcome: JobOutcomeView | None = None

    def status(self, job_id: JobID) -> JobStatus:
        return (
            self._outcome.status if self._outcome is not None else self._ask(lambda: self._rest.status(job_id), job_id)
        )

    def cancel(self, job_id: JobID) -> None:
        """Cancel and wait a moment for the end, so that the cluster goes with this process, too."""
        if self._outcome is None:
            self._rest.cancel(job_id)
            deadline = time.monotonic() + _CANCEL_WAIT_S
            while self.outcome(job_id, 0.1) is None and time.monotonic() < deadline:
                pass

    def cancel_at_exit(self, job_id: JobID) -> None:
        with contextlib.suppress(EngineError):
            self.cancel(job_id)

    def outcome(self, job_id: JobID, timeout_s: float) -> JobOutcomeView | None:
        if self._outcome is None:
            found = self._ask(lambda: self._rest.outcome(job_id, timeout_s), job_id)
            if found is not None:
                self._outcome = found
                self._record(job_id, found)
                self._release()
        return self._outcome

    def accumulators(self, job_id: JobID) -> dict[str, Any]:
        if self._outcome is not None:
            return self._outcome.accumulators
        return dict(self._rest.accumulators(job_id))

    def coordinator_request(self, job_id: JobID, operator_id: str, request: object) -> object:
        return self._ask(lambda: self._rest.coordinator_request(job_id, operator_id, request), job_id)

    def trigger_savepoint(
        self, job_id: JobID, target: str | None, *, stop: StopMode = StopMode.NONE, cancel: bool = False
    ) -> str:
        return self._rest.trigger_savepoint(job_id, target, stop=stop, cancel=cancel)

    def savepoint_result(self, job_id: JobID, trigger_id: str, timeout_s: float) -> str | None:
        return self._rest.savepoint_result(job_id, trigger_id, timeout_s)

    def _ask(self, question: Any, job_id: JobID) -> Any:
        """A JobManager that is gone has taken its job along; YARN knows why."""
        try:
            return question()
        except (ExternalError, ApplicationEndedError) as error:
            report = self._yarn.wait_until_ended(self._application_id, 5.0)
            if not report.ended:
                raise
            raise ExternalError(
                f"The YARN application {self._application_id} of job {job_id} ended as {report.state} "
                f"({report.final_status}): {report.diagnostics or error}\n{report.logs}"
            ) from None

    @staticmethod
    def _record(job_id: JobID, outcome: JobOutcomeView) -> None:
        """Tell ``flink run``: the cluster that could be asked is about to go."""
        ClientContext.current().record_result(
            {
                "job_id": str(job_id),
                "status": outcome.status.value,
                "net_runtime_ms": outcome.net_runtime_ms,
                "accumulators": {name: _plain(value) for name, value in outcome.accumulators.items()},
            }
        )

    def _release(self) -> None:
        """Let the application end and wait for it, so that YARN shows what we say."""
        with contextlib.suppress(EngineError):
            self._rest.shut_down()
        self._rest.close()
        try:
            report = self._yarn.wait_until_ended(self._application_id, _END_TIMEOUT_S)
        except EngineError as error:
            print(f"Cannot ask YARN how {self._application_id} ended: {error}", file=sys.stderr)
            return
        if not report.ended:
            print(f"Application {self._application_id} is still {report.state}.", file=sys.stderr)
