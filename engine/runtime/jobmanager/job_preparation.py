"""Looks at a job before it is accepted, or taken over: can it be checkpointed and restored as its configuration says?

Not here: what follows while it runs (``checkpointing``), what a leader wrote down of it (``recovery``).
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from engine.checkpoint import storage
from engine.checkpoint.assignment import adopted_max_parallelism, assign_state
from engine.checkpoint.key_check import check_key_kinds, state_names
from engine.checkpoint.model import InputLayout, JobLayout, OperatorLayout, VertexLayout
from engine.checkpoint.settings import checkpoint_settings
from engine.checkpoint.store import StoredCheckpoint
from engine.core.config import Configuration
from engine.core.errors import ProgramError
from engine.core.ids import JobVertexID
from engine.core.options import CheckpointingOptions
from engine.graph.execution_graph import consumers_of_pointwise
from engine.graph.job_graph import JobEdge, JobGraph, JobType, JobVertex
from engine.graph.stream_graph import default_max_parallelism

__all__ = ["PreparedJob", "job_layout", "prepare_job"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PreparedJob:
    """A job that was looked at before it is accepted."""

    job_graph: JobGraph
    #: what it starts from, oldest first
    restored: tuple[StoredCheckpoint, ...] = ()
    #: the newest checkpoint id that was given out
    counter: int = 0
    #: ids of the checkpoints that the job store points to
    pointed: tuple[int, ...] = ()
    first_attempt: int = 0
    #: the one whose tasks may still run and be taken over, -1 = none
    running_attempt: int = -1


async def prepare_job(job_graph: JobGraph, cluster: Configuration) -> PreparedJob:
    """Look whether a job can be checkpointed and restored as its configuration says; read its savepoint.

    Vertices whose maximum parallelism nobody has set take over that of the savepoint. Raises: ConfigError, InputError,
    CorruptStateError, ProgramError, each with one clear message.
    """
    config = Configuration(cluster).add_all(job_graph.config)
    settings = checkpoint_settings(config)
    path = config.get(CheckpointingOptions.RESTORE_PATH)
    if job_graph.job_type is JobType.BATCH:
        if path:
            raise ProgramError(
                f"Job {job_graph.name!r} runs in BATCH mode and cannot start from {path}: batch jobs keep no state."
            )
        return PreparedJob(job_graph)
    if settings.is_periodic and any(edge.is_feedback for edge in job_graph.edges):
        raise ProgramError(f"Job {job_graph.name!r} has an iteration; jobs with iterations cannot take checkpoints.")
    root = config.get(CheckpointingOptions.CHECKPOINTS_DIR)
    if not path and not (root and settings.is_periodic):
        return PreparedJob(job_graph)
    return await asyncio.get_running_loop().run_in_executor(
        None, functools.partial(_prepare, job_graph, config, path, root if settings.is_periodic else "")
    )


def _prepare(job_graph: JobGraph, config: Configuration, path: str, root: str) -> PreparedJob:
    if root:
        folder = storage.absolute_folder(root)
        storage.check_writable(folder, CheckpointingOptions.CHECKPOINTS_DIR.key, job_graph.job_id)
    if not path:
        return PreparedJob(job_graph)
    restored = storage.read_checkpoint(path)
    layout = job_layout(job_graph)
    defaults = {v.vertex_id: default_max_parallelism(v.parallelism) for v in job_graph.vertices}
    adopted = adopted_max_parallelism(restored, layout, defaults)
    if adopted:
        vertices = tuple(_with_max_parallelism(vertex, adopted) for vertex in job_graph.vertices)
        job_graph = dataclasses.replace(job_graph, vertices=vertices)
    allow = config.get(CheckpointingOptions.ALLOW_NON_RESTORED)
    assign_state(restored, job_layout(job_graph), allow_non_restored=allow, state_names=state_names)
    check_key_kinds(restored, job_layout(job_graph))
    logger.info("job=%s starts from checkpoint=%d in %s", job_graph.job_id, restored.checkpoint_id, restored.folder)
    is_claimed = config.get(CheckpointingOptions.CLAIM_MODE) == "CLAIM"
    return PreparedJob(job_graph, (StoredCheckpoint(restored, is_claimed),), restored.checkpoint_id)


def _with_max_parallelism(vertex: JobVertex, adopted: Mapping[JobVertexID, int]) -> JobVertex:
    if vertex.vertex_id not in adopted:
        return vertex
    return dataclasses.replace(vertex, max_parallelism=adopted[vertex.vertex_id])


def job_layout(job_graph: JobGraph) -> JobLayout:
    """Return the job as checkpoints see it."""
    parallelism = {vertex.vertex_id: vertex.parallelism for vertex in job_graph.vertices}
    vertices = tuple(
        VertexLayout(
            vertex.vertex_id,
            vertex.name,
            vertex.parallelism,
            vertex.max_parallelism,
            tuple(OperatorLayout(one.operator_id, one.name, one.uid, one.key_kind) for one in vertex.operators),
            tuple(
                _input_layout(edge, parallelism)
                for edge in job_graph.edges
                if edge.target_id == vertex.vertex_id and not edge.is_feedback
            ),
        )
        for vertex in job_graph.vertices
    )
    return JobLayout(job_graph.job_id, vertices, any(vertex.coordinators for vertex in job_graph.vertices))


def _input_layout(edge: JobEdge, parallelism: Mapping[JobVertexID, int]) -> InputLayout:
    if not edge.ship_strategy.is_pointwise:
        return InputLayout(edge.source_id)
    num_producers, num_consumers = parallelism[edge.source_id], parallelism[edge.target_id]
    producers: list[list[int]] = [[] for _ in range(num_consumers)]
    for producer in range(num_producers):
        for consumer in consumers_of_pointwise(producer, num_producers, num_consumers):
            producers[consumer].append(producer)
    return InputLayout(edge.source_id, tuple(map(tuple, producers)))
