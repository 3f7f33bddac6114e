"""Handlers of the vertices of a job and of their subtasks."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engine.graph.execution_graph import Execution, ExecutionVertex
from engine.rest import views
from engine.rest.accumulators import attempt_accumulators, merged_accumulators
from engine.rest.context import BadRequest, NotFound, context_of, vertex_of

__all__ = ["ROUTES"]


async def get_vertex(request: Request) -> Response:
    return JSONResponse(views.vertex_details(vertex_of(request), context_of(request).clock.now_ms()))


async def get_subtask_times(request: Request) -> Response:
    return JSONResponse(views.vertex_subtask_times(vertex_of(request), context_of(request).clock.now_ms()))


async def get_taskmanagers(request: Request) -> Response:
    return JSONResponse(views.vertex_taskmanagers(vertex_of(request), context_of(request).clock.now_ms()))


async def get_accumulators(request: Request) -> Response:
    vertex = vertex_of(request)
    rows = merged_accumulators(subtask.current for subtask in vertex.subtasks)
    return JSONResponse({"id": vertex.job_vertex.vertex_id, "user-accumulators": rows})


async def get_subtasks_accumulators(request: Request) -> Response:
    vertex = vertex_of(request)
    rows = [
        {
            "subtask": owner.subtask_index,
            "attempt": owner.current.attempt_number,
            "endpoint": views.endpoint(owner.current),
            "user-accumulators": attempt_accumulators(owner.current),
        }
        for owner in vertex.subtasks
    ]
    return JSONResponse(
        {"id": vertex.job_vertex.vertex_id, "parallelism": vertex.job_vertex.parallelism, "subtasks": rows}
    )


def _index(request: Request, name: str) -> int:
    text = request.path_params[name]
    if not text.isdecimal():
        raise BadRequest(f"{name} is {text!r}; expected a whole number of at least 0.")
    return int(text)


def _subtask_of(request: Request) -> ExecutionVertex:
    vertex = vertex_of(request)
    index = _index(request, "subtaskindex")
    if index >= len(vertex.subtasks):
        raise NotFound(f"Vertex {vertex.job_vertex.vertex_id} has no subtask {index}; it has {len(vertex.subtasks)}.")
    return vertex.subtasks[index]


async def get_subtask(request: Request) -> Response:
    owner = _subtask_of(request)
    return JSONResponse(views.subtask(owner, owner.current, context_of(request).clock.now_ms()))


def _attempt_of(request: Request, owner: ExecutionVertex) -> Execution:
    number = _index(request, "attempt")
    for attempt in owner.attempts:
        if attempt.attempt_number == number:
            return attempt
    raise NotFound(f"{owner.name} has no attempt {number}; it has {len(owner.attempts)}.")


async def get_attempt(request: Request) -> Response:
    owner = _subtask_of(request)
    return JSONResponse(views.subtask(owner, _attempt_of(request, owner), context_of(request).clock.now_ms()))


async def get_attempt_accumulators(request: Request) -> Response:
    owner = _subtask_of(request)
    attempt = _attempt_of(request, owner)
    return JSONResponse(
        {
            "subtask": owner.subtask_index,
            "attempt": attempt.attempt_number,
            "id": attempt.attempt_id,
            "user-accumulators": attempt_accumulators(attempt),
        }
    )


_VERTEX = "/jobs/{jobid}/vertices/{vertexid}"
ROUTES = [
    Route(_VERTEX, get_vertex),
    Route(_VERTEX + "/subtasktimes", get_subtask_times),
    Route(_VERTEX + "/taskmanagers", get_taskmanagers),
    Route(_VERTEX + "/accumulators", get_accumulators),
    Route(_VERTEX + "/subtasks/accumulators", get_subtasks_accumulators),
    Route(_VERTEX + "/subtasks/{subtaskindex}", get_subtask),
    Route(_VERTEX + "/subtasks/{subtaskindex}/attempts/{attempt}", get_attempt),
    Route(_VERTEX + "/subtasks/{subtaskindex}/attempts/{attempt}/accumulators", get_attempt_accumulators),
]
