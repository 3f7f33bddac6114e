"""Decides which pipelined regions restart after a failure, so that blocking results of the others are used again.

Pure. A region is a set of vertices that run at the same time; between regions lie blocking exchanges, whose results
stay in the producers' slots. Not here: whether and when there is a restart (``restart``), doing it (``scheduler``).
Source: Flink's RestartPipelinedRegionFailoverStrategy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from engine.core.ids import JobVertexID
from engine.graph.job_graph import JobGraph

__all__ = ["RegionRestart", "Regions", "pipelined_regions"]


@dataclass(slots=True)
class RegionRestart:
    """Some regions are on their way to their next attempt: cancelled, then due, then starting."""

    regions: set[JobVertexID]
    is_due: bool = False  #: the delay of the restart strategy is over
    is_starting: bool = False  #: all tasks had ended; new attempts wait for coordinators and slots


def pipelined_regions(job_graph: JobGraph) -> dict[JobVertexID, JobVertexID]:
    """Return for each vertex the first vertex of its region: vertices joined by exchanges that are not blocking, which
    must run at the same time."""
    region = {vertex.vertex_id: vertex.vertex_id for vertex in job_graph.vertices}
    for edge in job_graph.edges:
        one, other = region[edge.source_id], region[edge.target_id]
        if not edge.blocking and one != other:
            region = {vertex_id: one if value == other else value for vertex_id, value in region.items()}
    return region


@final
class Regions:
    """The regions of a job, named by their first vertices, and which of them read from which."""

    def __init__(self, job_graph: JobGraph) -> None:
        self.of_vertex: Mapping[JobVertexID, JobVertexID] = pipelined_regions(job_graph)
        #: in topological order of their first vertices
        self.vertices: dict[JobVertexID, list[JobVertexID]] = {}
        for vertex in job_graph.vertices:
            self.vertices.setdefault(self.of_vertex[vertex.vertex_id], []).append(vertex.vertex_id)
        #: producing vertex → consuming vertices, over blocking exchanges between regions
        self._consumers: dict[JobVertexID, list[JobVertexID]] = {}
        for edge in job_graph.edges:
            if edge.blocking:
                self._consumers.setdefault(edge.source_id, []).append(edge.target_id)

    def __len__(self) -> int:
        return len(self.vertices)

    def vertices_of(self, regions: Iterable[JobVertexID]) -> list[JobVertexID]:
        wanted = set(regions)
        return [vertex for region, vertices in self.vertices.items() if region in wanted for vertex in vertices]

    def to_restart(
        self,
        failed: Iterable[JobVertexID],
        *,
        started: Sequence[JobVertexID],
        incomplete: Sequence[JobVertexID],
        lost: Sequence[JobVertexID],
    ) -> set[JobVertexID]:
        """Return the regions that have to run again. All arguments are vertices.

        ``failed``: a task of them failed. ``started``: have left CREATED and SCHEDULED. ``incomplete``: not all of
        their subtasks have finished. ``lost``: have finished, but (part of) what they wrote is gone.

        - the regions of failed vertices;
        - all that read from a restarted region and have started: they read what is written anew, and another attempt
          may write it in another order;
        - a region whose results are lost, if somebody still has to read them.
        """
        regions = {self.of_vertex[vertex] for vertex in failed}
        while True:
            before = len(regions)
            for producer, consumers in self._consumers.items():
                source = self.of_vertex[producer]
                for consumer in consumers:
                    target = self.of_vertex[consumer]
                    if source in regions and consumer in started:
                        regions.add(target)
                    if producer in lost and (consumer in incomplete or target in regions):
                        regions.add(source)
            if len(regions) == before:
                return regions
