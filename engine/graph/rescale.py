"""The same job at another parallelism: which vertices may change, and the JobGraph that results.

Pure. Not here: taking the state along (``checkpoint/store``), when a running job changes over
(``jobmanager/scheduler``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from engine.core.errors import ProgramError
from engine.core.ids import JobVertexID
from engine.graph.job_graph import JobGraph, JobVertex
from engine.graph.plan import job_plan
from engine.graph.transformation import ShipStrategy

__all__ = ["rescaled", "uniform_parallelism"]


def uniform_parallelism(job_graph: JobGraph, parallelism: int) -> dict[JobVertexID, int]:
    """Return the new parallelism of every vertex that took the job's default, as ``-p`` would have set it.

    Raises: ProgramError when there is no such vertex.
    """
    found = {vertex.vertex_id: parallelism for vertex in job_graph.vertices if vertex.follows_default}
    if not found:
        raise ProgramError(
            f"Job {job_graph.name!r} has no operator that follows its default parallelism: each one's is set in the "
            "program. Change single vertices over REST (/jobs/:jobid/resource-requirements)."
        )
    return found


def rescaled(job_graph: JobGraph, parallelism: Mapping[JobVertexID, int]) -> JobGraph:
    """Return the JobGraph with the parallelism of some vertices changed; all else, ids above all, stays.

    Raises: ProgramError that names the vertex for an unknown one, one that cannot run in parallel, a parallelism above
    its maximum, and for a forward edge whose ends would differ.
    """
    known = {vertex.vertex_id for vertex in job_graph.vertices}
    for vertex_id in parallelism:
        if vertex_id not in known:
            raise ProgramError(f"Job {job_graph.name!r} has no vertex {vertex_id}; it has {', '.join(sorted(known))}.")
    vertices = tuple(_changed(vertex, parallelism.get(vertex.vertex_id)) for vertex in job_graph.vertices)
    changed = replace(job_graph, vertices=vertices)
    for edge in changed.edges:
        source, target = changed.vertex(edge.source_id), changed.vertex(edge.target_id)
        if edge.ship_strategy is ShipStrategy.FORWARD and source.parallelism != target.parallelism:
            raise ProgramError(
                f"{source.name!r} (parallelism {source.parallelism}) hands its records forward to {target.name!r} "
                f"(parallelism {target.parallelism}): give both the same parallelism."
            )
    plan = job_plan(changed)
    return replace(changed, plan={**job_graph.plan, **plan}) if job_graph.plan else changed


def _changed(vertex: JobVertex, parallelism: int | None) -> JobVertex:
    if parallelism is None or parallelism == vertex.parallelism:
        return vertex
    if not vertex.is_parallel:
        raise ProgramError(f"{vertex.name!r} cannot run in parallel; its parallelism stays 1, not {parallelism}.")
    if not 1 <= parallelism <= vertex.max_parallelism:
        raise ProgramError(
            f"{vertex.name!r} cannot have parallelism {parallelism}; expected 1 to {vertex.max_parallelism}, its "
            "maximum parallelism (set_max_parallelism, pipeline.max-parallelism), fixed for as long as its state lives."
        )
    return replace(vertex, parallelism=parallelism)
