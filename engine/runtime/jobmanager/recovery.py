"""What a new leader makes of what the one before wrote down (``ha/job_store``): jobs to go on with, results to show.

Blocks: called in an I/O thread. Not here: when it is called (``dispatcher``), what the store holds and how
(``ha/job_store``).
"""

from __future__ import annotations

import logging
import os

from engine.checkpoint import storage
from engine.checkpoint.model import CheckpointFolders, CompletedCheckpoint
from engine.checkpoint.settings import checkpoint_settings
from engine.checkpoint.store import StoredCheckpoint
from engine.core.config import Configuration
from engine.core.errors import CorruptStateError, ExternalError, JobNotFoundError
from engine.core.ids import JobID
from engine.core.options import CheckpointingOptions, HaOptions
from engine.graph.execution_graph import ExecutionGraph
from engine.graph.job_graph import JobGraph, JobType
from engine.ha.job_store import JobResult, JobStore, RecoveredCheckpoints
from engine.operators.base import CoordinatorSpec
from engine.protocol.checkpoint import NO_CHECKPOINT, CheckpointKind
from engine.protocol.control import ErrorInfo
from engine.protocol.lifecycle import JobStatus
from engine.rpc.codec import decode
from engine.runtime.jobmanager.job_preparation import PreparedJob
from engine.runtime.jobmanager.takeover import Former, why_not

__all__ = ["fetch_files", "finish_clean_up", "graph_of", "prepare_recovered_job", "result_of"]

logger = logging.getLogger(__name__)


def result_of(graph: ExecutionGraph) -> JobResult:
    """Return how a job ended, for those who ask after its JobManager has gone."""
    message = "" if graph.failure is None or graph.status is JobStatus.FINISHED else graph.failure.message
    return JobResult(
        graph.job_graph.job_id, graph.job_graph.name, graph.status.value, message, graph.start_ms, graph.end_ms
    )


def graph_of(result: JobResult) -> ExecutionGraph:
    """Return a job that ended under another JobManager as it is shown: without vertices, which nobody remembers."""
    empty = JobGraph(result.job_id, result.name, JobType.STREAMING, (), ())
    graph = ExecutionGraph(empty, result.start_ms)
    graph.status = JobStatus(result.status)
    graph.status_timestamps[graph.status] = result.end_ms
    if graph.status is JobStatus.FAILED:
        graph.failure = ErrorInfo("JobExecutionException", result.message, "", "external")
    return graph


def prepare_recovered_job(store: JobStore, job_id: JobID, cluster: Configuration) -> PreparedJob:
    """Read a job that another leader has accepted, and what it goes on from.

    Raises: CorruptStateError when it cannot go on without harm, ExternalError when it can be tried again.
    """
    try:
        job_graph = store.job(job_id)
    except JobNotFoundError as error:  # it was listed a moment ago
        raise ExternalError(str(error)) from error
    config = Configuration(cluster).add_all(job_graph.config)
    attempt_number, has_published = store.last_attempt(job_id)
    settings = checkpoint_settings(config)
    is_streaming = job_graph.job_type is JobType.STREAMING
    if has_published and not (is_streaming and settings.is_periodic):
        # Without a checkpoint nobody knows how much of it is visible, and running again would show it twice.
        raise CorruptStateError(
            f"The JobManager was lost while job {job_graph.name!r} made its output visible; all of it may be there, or "
            "a part. The job takes no checkpoints, so it is not run again. Look at its output, remove it, and submit "
            "the job again."
        )
    if not is_streaming:
        return PreparedJob(job_graph, first_attempt=attempt_number + 1)
    found = store.checkpoints(job_id)
    if found.problems and not found.checkpoints:
        # Not from the beginning: what was committed since would be done twice.
        raise CorruptStateError(
            f"Job {job_graph.name!r} has no checkpoint that it could go on from: {'; '.join(found.problems)}"
        )
    restored = [StoredCheckpoint(one, _is_owned(one, job_graph, config)) for one in found.checkpoints]
    running_attempt = _running_attempt(job_graph, config, store, found)
    path = config.get(CheckpointingOptions.RESTORE_PATH)
    if not restored and path:
        first = storage.read_checkpoint(path)
        restored = [StoredCheckpoint(first, config.get(CheckpointingOptions.CLAIM_MODE) == "CLAIM")]
    return PreparedJob(
        job_graph,
        tuple(restored),
        found.counter,
        tuple(one.checkpoint_id for one in found.checkpoints) if not found.problems else (),
        attempt_number + 1,
        running_attempt,
    )


def _running_attempt(job_graph: JobGraph, config: Configuration, store: JobStore, found: RecoveredCheckpoints) -> int:
    """Return the attempt whose tasks may be taken over, -1 if there is none."""
    if not config.get(HaOptions.REPORT_TASKS):
        return -1
    attempt_number, has_published = store.last_attempt(job_graph.job_id)
    newest = found.checkpoints[-1] if found.checkpoints else None
    path = config.get(CheckpointingOptions.RESTORE_PATH)
    coordinators = [(vertex.name, spec) for vertex in job_graph.vertices for spec in vertex.coordinators.values()]
    former = Former(
        attempt_number=attempt_number,
        has_published=has_published,
        is_over=store.is_attempt_over(job_graph.job_id),
        takes_checkpoints=checkpoint_settings(config).is_periodic,
        has_blocking_edges=any(edge.blocking for edge in job_graph.edges),
        counter=found.counter,
        newest_checkpoint=NO_CHECKPOINT if newest is None else newest.checkpoint_id,
        is_savepoint=bool(path) if newest is None else newest.kind is CheckpointKind.SAVEPOINT,
        has_problems=bool(found.problems),
        coordinators=tuple((name, _can_resume(spec)) for name, spec in coordinators),
    )
    reason = why_not(former)
    if reason:
        logger.info("job=%s is restarted, its running tasks cannot be taken over: %s", job_graph.job_id, reason)
    return -1 if reason else former.attempt_number


def _can_resume(encoded: bytes) -> bool:
    try:
        spec = decode(encoded, object)
    except ExternalError:  # its start will say what is wrong
        return False
    return isinstance(spec, CoordinatorSpec) and spec.can_resume


def _is_owned(checkpoint: CompletedCheckpoint, job_graph: JobGraph, config: Configuration) -> bool:
    """Whether its files go when it is subsumed: checkpoints of the job, and what it claimed; never savepoints."""
    root = config.get(CheckpointingOptions.CHECKPOINTS_DIR)
    folders = CheckpointFolders(storage.absolute_folder(root) if root else "", job_graph.job_id)
    if not checkpoint.folder or (folders.job and checkpoint.folder.startswith(folders.job + "/")):
        return checkpoint.kind is CheckpointKind.CHECKPOINT
    path = config.get(CheckpointingOptions.RESTORE_PATH)
    is_claimed = bool(path) and config.get(CheckpointingOptions.CLAIM_MODE) == "CLAIM"
    return is_claimed and checkpoint.folder.startswith(storage.absolute_folder(path))


def fetch_files(store: JobStore, job_graph: JobGraph, known: set[str], folder: str) -> list[str]:
    """Copy the job's files that are not ``known`` into a local folder; return their paths.

    Raises: ExternalError, CorruptStateError.
    """
    paths = []
    for sha256 in sorted({file.sha256 for file in job_graph.files} - known):
        path = os.path.join(folder, f".{sha256}.fetched")
        store.fetch_blob(sha256, path)
        paths.append(path)
    return paths


def finish_clean_up(store: JobStore, result: JobResult, cluster: Configuration) -> None:
    """The JobManager was lost between the end of a job and its clean-up: delete what it would have deleted.

    Raises: LeadershipLostError, ExternalError.
    """
    try:
        job_graph = store.job(result.job_id)
    except (CorruptStateError, JobNotFoundError) as error:
        logger.warning("job=%s: its checkpoints, if it had any, are left behind: %s", result.job_id, error)
        store.remove_job(result.job_id)
        return
    config = Configuration(cluster).add_all(job_graph.config)
    settings, status = checkpoint_settings(config), JobStatus(result.status)
    is_retained = (status is JobStatus.CANCELED and settings.retain_on_cancellation) or (
        status is JobStatus.FAILED and settings.retain_on_failure
    )
    root = config.get(CheckpointingOptions.CHECKPOINTS_DIR)
    if root and job_graph.job_type is JobType.STREAMING:
        retained: list[str] = []
        found = store.checkpoints(result.job_id)
        if is_retained:
            for checkpoint in found.checkpoints:
                retained += [checkpoint.folder, *sorted(checkpoint.files())]
        # Without what could not be read nobody knows which files are retained. Where none are, some are gone already.
        if not (is_retained and found.problems):
            folders = CheckpointFolders(storage.absolute_folder(root), result.job_id)
            storage.remove_job_folder(folders.job, [path for path in retained if path])
    store.remove_job(result.job_id)
