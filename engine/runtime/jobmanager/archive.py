"""Archives of ended jobs: one JSON file a job, on any file system, for people and the history server.

The form is Flink's: ``{"archive": [{"path": "/jobs/<id>", "json": "…"}]}``. Which REST answers go in is the caller's
choice (``render``); without one a short summary is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeAlias

from engine.core.fs import file_system_of
from engine.graph.execution_graph import ExecutionGraph

__all__ = ["ArchiveRenderer", "archive_job", "summary"]

#: graph → REST path → JSON object
ArchiveRenderer: TypeAlias = Callable[[ExecutionGraph], dict[str, Any]]


def summary(graph: ExecutionGraph) -> dict[str, Any]:
    """Return what is always known of an ended job, by REST path."""
    job = graph.job_graph
    overview = {
        "jid": job.job_id,
        "name": job.name,
        "state": graph.status.value,
        "start-time": graph.start_ms,
        "end-time": graph.end_ms,
        "duration": graph.end_ms - graph.start_ms,
        "last-modification": graph.end_ms,
    }
    vertices = [
        {
            "id": vertex.job_vertex.vertex_id,
            "name": vertex.job_vertex.name,
            "parallelism": vertex.job_vertex.parallelism,
            "maxParallelism": vertex.job_vertex.max_parallelism,
            "status": vertex.aggregate_state().value,
        }
        for vertex in graph.vertices.values()
    ]
    detail = overview | {
        "timestamps": {status.value: at for status, at in graph.status_timestamps.items()},
        "vertices": vertices,
        "plan": job.plan,
        "root-exception": None if graph.failure is None else graph.failure.message,
    }
    return {"/jobs/overview": {"jobs": [overview]}, f"/jobs/{job.job_id}": detail}


def archive_job(graph: ExecutionGraph, folder: str, render: ArchiveRenderer = summary) -> str:
    """Write the archive of an ended job; return its path. Blocks.

    Readers never see half a file: it is written under a temporary name and renamed.
    Raises: EngineError with the path when the folder cannot be written.
    """
    entries = [{"path": path, "json": json.dumps(body, default=str)} for path, body in render(graph).items()]
    fs = file_system_of(folder)
    target = f"{folder.rstrip('/')}/{graph.job_graph.job_id}"
    temporary = f"{folder.rstrip('/')}/.{graph.job_graph.job_id}.inprogress"
    with fs.open_write(temporary, overwrite=True) as stream:
        stream.write(json.dumps({"archive": entries}).encode())
    fs.rename(temporary, target, overwrite=True)
    return target
