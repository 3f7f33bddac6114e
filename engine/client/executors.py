"""Sends a job where the configuration says: this process, a cluster's REST, or a deployment of ``flink_yarn``.

``execution.target``: "" or ``local`` (a cluster in this process, reused by further jobs), ``remote`` (``rest.address``,
``rest.port``, or with high availability whoever leads), ``yarn-session``, ``yarn-per-job``, ``yarn-application``.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import secrets
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, final

from engine.client.context import ClientContext, ProgramAbort
from engine.client.job_client import JobClient, JobOutcomeView
from engine.core.config import Configuration
from engine.core.errors import ConfigError
from engine.core.ids import JobID
from engine.core.options import JobOptions
from engine.graph.job_graph import JobGraph
from engine.protocol.checkpoint import StopMode
from engine.protocol.lifecycle import JobStatus
from engine.runtime.taskmanager.zygote_start import PREPARED

if TYPE_CHECKING:
    from engine.client.rest_client import RestClient
    from engine.cluster import LocalCluster
    from engine.runtime.jobmanager.gateway import TakenCheckpoint

__all__ = ["execute_async", "prepare", "submit_to_session", "warm_up"]

_YARN_TARGETS: Final = ("yarn-session", "yarn-per-job", "yarn-application")


def execute_async(job_graph: JobGraph, files: Mapping[str, str], config: Configuration) -> JobClient:
    """Submit a job; ``files``: sha256 → path of every file that the job names.

    Raises: ConfigError for an unknown target, ProgramError when the job is refused, ExternalError when the cluster does
    not answer. In a program of which only the plan is wanted, ProgramAbort ends it here.
    """
    context = ClientContext.current()
    if context.mode == "plan":
        context.record_plan(job_graph.plan)
        raise ProgramAbort()
    target = config.get(JobOptions.TARGET)
    if target in ("", "local"):
        client = _execute_local(job_graph, files, config)
    elif target == "remote":
        client = _execute_remote(job_graph, files, config)
    elif target in _YARN_TARGETS:
        # Found by name: the engine never imports its deployments.
        client = importlib.import_module("flink_yarn.executors").execute_async(job_graph, files, config)
    else:
        raise ConfigError(f"{JobOptions.TARGET.key} is {target!r}; expected local, remote, {', '.join(_YARN_TARGETS)}.")
    try:
        context.record_submission(client.get_job_id())
    except KeyboardInterrupt:
        client.on_interrupt()
        raise
    return client


def prepare(config: Configuration) -> None:
    """Begin to start the process that a local cluster forks its slots from, if ``config`` says local; returns at once.

    Before it is known how that cluster will be configured: no setting reaches this process.
    """
    if config.get(JobOptions.TARGET) in ("", "local") and ClientContext.current().mode != "plan":
        cluster = sys.modules.get("engine.cluster")
        if cluster is None or not cluster.LocalCluster.is_there():
            PREPARED.start()


def warm_up(config: Configuration) -> None:
    """Begin to start the local cluster if ``config`` says local; returns at once. Saves time while the program goes on
    to build its job."""
    if config.get(JobOptions.TARGET) in ("", "local") and ClientContext.current().mode != "plan":
        _local_cluster(config)


# --- this process ---------------------------------------------------------------------------------------------------


def _local_cluster(config: Configuration) -> LocalCluster:
    from engine.cluster import LocalCluster

    # ``flink run`` warns of keys that have no effect before it starts the program.
    return LocalCluster.shared(config, ClientContext.current().configuration.key_set())


def _execute_local(job_graph: JobGraph, files: Mapping[str, str], config: Configuration) -> JobClient:
    cluster = _local_cluster(config)
    job_id = cluster.submit(job_graph, files)
    return JobClient(job_id, _LocalAccess(cluster), cancel_on_interrupt=True)


@final
class _LocalAccess:
    """JobAccess through the event loop of the cluster in this process."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._told = False
        self._savepoints: dict[str, concurrent.futures.Future[TakenCheckpoint]] = {}

    @property
    def base_url(self) -> str:
        return self._cluster.rest_address

    def status(self, job_id: JobID) -> JobStatus:
        return self._cluster.job_status(job_id)

    def cancel(self, job_id: JobID) -> None:
        self._cluster.cancel(job_id)

    def outcome(self, job_id: JobID, timeout_s: float) -> JobOutcomeView | None:
        graph = self._cluster.result(job_id, timeout_s)
        if graph is None:
            return None
        accumulators = {name: value for name, (_, value) in graph.accumulator_results.items()}
        outcome = JobOutcomeView(graph.status, graph.end_ms - graph.start_ms, accumulators, graph.failure)
        if not self._told:
            # ``flink run`` has no cluster to ask: this one goes with the program.
            self._told = True
            ClientContext.current().record_outcome(str(job_id), outcome)
        return outcome

    def accumulators(self, job_id: JobID) -> dict[str, Any]:
        return self._cluster.accumulators(job_id)

    def coordinator_request(self, job_id: JobID, operator_id: str, request: object) -> object:
        return self._cluster.coordinator_request(job_id, operator_id, request)

    def trigger_savepoint(
        self, job_id: JobID, target: str | None, *, stop: StopMode = StopMode.NONE, cancel: bool = False
    ) -> str:
        trigger_id = secrets.token_hex(16)
        self._savepoints[trigger_id] = self._cluster.trigger_savepoint(job_id, target, stop=stop, cancel=cancel)
        return trigger_id

    def savepoint_result(self, job_id: JobID, trigger_id: str, timeout_s: float) -> str | None:
        try:
            return self._savepoints[trigger_id].result(timeout_s).folder
        except TimeoutError:
            return None


# --- a cluster's REST -----------------------------------------------------------------------------------------------


def _execute_remote(job_graph: JobGraph, files: Mapping[str, str], config: Configuration) -> JobClient:
    from engine.client.leader_lookup import rest_client

    client = rest_client(config)
    return submit_to_session(client, job_graph, files, config)


def submit_to_session(
    client: RestClient, job_graph: JobGraph, files: Mapping[str, str], config: Configuration
) -> JobClient:
    """Submit to a cluster that runs already. With -sae the job goes with the client that waits for it, also with one
    that is interrupted before the cluster has answered."""
    handle = JobClient(job_graph.job_id, client, cancel_on_interrupt=config.get(JobOptions.SHUTDOWN_ON_ATTACHED_EXIT))
    try:
        client.submit(job_graph, files)
    except KeyboardInterrupt:
        handle.on_interrupt()
        raise
    return handle
