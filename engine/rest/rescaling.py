"""``/jobs/:jobid/resource-requirements``: the parallelism of each vertex, and to change it while the job runs.

The job goes on from a checkpoint that is taken for it; the answer comes when it runs again. Of the bounds that Flink
has only the upper one counts: the job waits for its slots, or stays as it was.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engine.core.ids import JobVertexID
from engine.rest.context import BadRequest, context_of, job_of, json_body

__all__ = ["ROUTES"]


async def get_requirements(request: Request) -> Response:
    return JSONResponse(
        {
            str(vertex.vertex_id): {"parallelism": {"lowerBound": 1, "upperBound": vertex.parallelism}}
            for vertex in job_of(request).job_graph.vertices
        }
    )


def _whole_number(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadRequest(f"{what} is {value!r}; expected a whole number of at least 1.")
    return value


def _upper_bound(vertex_id: str, requirements: Any) -> int:
    bounds = requirements.get("parallelism") if isinstance(requirements, dict) else None
    if not isinstance(bounds, dict):
        raise BadRequest(
            f'{vertex_id} has {requirements!r}; expected {{"parallelism": {{"lowerBound": 1, "upperBound": N}}}}.'
        )
    return _whole_number(bounds.get("upperBound"), f"upperBound of {vertex_id}")


async def put_requirements(request: Request) -> Response:
    """Body: as ``get_requirements`` answers, or {"parallelism": N} for all vertices that follow the job's default."""
    gateway, job_id = context_of(request).gateway, job_of(request).job_graph.job_id
    body = await json_body(request)
    if not body:
        raise BadRequest("The body is empty; expected the parallelism of at least one vertex.")
    if "parallelism" in body:
        await gateway.rescale_job(job_id, _whole_number(body["parallelism"], "parallelism"))
    else:
        await gateway.rescale_job(job_id, {JobVertexID(key): _upper_bound(key, value) for key, value in body.items()})
    return JSONResponse({})


ROUTES = [
    Route("/jobs/{jobid}/resource-requirements", get_requirements, methods=["GET"]),
    Route("/jobs/{jobid}/resource-requirements", put_requirements, methods=["PUT"]),
]
