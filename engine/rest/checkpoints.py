"""Handlers of checkpoints and savepoints: statistics, triggers and their results."""

from __future__ import annotations

import base64
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engine.checkpoint.statistics import CheckpointRecord
from engine.core.config import Configuration
from engine.core.ids import JobID, JobVertexID
from engine.core.options import CheckpointingOptions
from engine.protocol.checkpoint import StopMode
from engine.protocol.control import ErrorInfo
from engine.rest import checkpoint_views, views
from engine.rest.context import BadRequest, NotFound, context_of, job_of, json_body
from engine.rest.operations import Operations
from engine.runtime.jobmanager.gateway import CheckpointsView, TakenCheckpoint

__all__ = ["ROUTES"]

_INCREMENTAL: Final = {"CONFIGURED": None, "FULL": False, "INCREMENTAL": True}


# --- statistics -------------------------------------------------------------------------------------------------------


def _view(request: Request) -> CheckpointsView:
    graph = job_of(request)
    view = context_of(request).gateway.checkpoints(graph.job_graph.job_id)
    if view.is_batch:
        raise NotFound("Checkpointing is not enabled for this job (batch job).")
    return view


async def get_checkpoints(request: Request) -> Response:
    return JSONResponse(checkpoint_views.checkpoints(_view(request), context_of(request).clock.now_ms()))


async def get_config(request: Request) -> Response:
    view = _view(request)
    effective = Configuration(context_of(request).gateway.config).add_all(job_of(request).job_graph.config)
    return JSONResponse(checkpoint_views.checkpoint_config(view, effective))


def _record(request: Request) -> CheckpointRecord:
    view = _view(request)
    text = request.path_params["checkpointid"]
    record = view.statistics.find(int(text)) if text.isdigit() else None
    if record is None:
        raise NotFound(f"Could not find checkpointing statistics for checkpoint {text}.")
    return record


async def get_details(request: Request) -> Response:
    return JSONResponse(checkpoint_views.checkpoint_details(_record(request), context_of(request).clock.now_ms()))


async def get_vertex_details(request: Request) -> Response:
    record = _record(request)
    vertex_id = JobVertexID.parse(request.path_params["vertexid"])
    if vertex_id not in record.parallelism:
        raise NotFound(f"There is no checkpoint statistics for task {vertex_id}.")
    return JSONResponse(checkpoint_views.vertex_checkpoint(record, vertex_id, context_of(request).clock.now_ms()))


# --- triggers ---------------------------------------------------------------------------------------------------------


def _operations(request: Request) -> Operations:
    operations: Operations = context_of(request).operations
    return operations


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if value is not None and not isinstance(value, bool):
        raise BadRequest(f"{name} is {value!r}; expected true or false.")
    return bool(value)


def _target(request: Request, body: dict[str, Any], name: str) -> str | None:
    """Return the folder for a savepoint; None = the configured one."""
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise BadRequest(f"{name} is {value!r}; expected a folder.")
    effective = Configuration(context_of(request).gateway.config).add_all(job_of(request).job_graph.config)
    if not value and not effective.get(CheckpointingOptions.SAVEPOINT_DIR):
        raise BadRequest(
            f"Config key [{CheckpointingOptions.SAVEPOINT_DIR.key}] is not set. Property [{name}] must be provided."
        )
    return value or None


def _check_format(body: dict[str, Any]) -> None:
    """Both are written in the one format that there is."""
    kind = body.get("formatType") or "CANONICAL"
    if str(kind).upper() not in ("CANONICAL", "NATIVE"):
        raise BadRequest(f"formatType is {kind!r}; expected CANONICAL or NATIVE.")


def _triggered(trigger_id: str) -> Response:
    return JSONResponse({"request-id": trigger_id}, status_code=202)


async def trigger_checkpoint(request: Request) -> Response:
    job_id, gateway = job_of(request).job_graph.job_id, context_of(request).gateway
    body = await json_body(request)
    kind = str(body.get("checkpointType") or "CONFIGURED").upper()
    if kind not in _INCREMENTAL:
        raise BadRequest(f"checkpointType is {kind!r}; expected CONFIGURED, FULL or INCREMENTAL.")
    incremental = _INCREMENTAL[kind]
    return _triggered(
        _operations(request).trigger(
            f"checkpoint {job_id}",
            body.get("triggerId"),
            lambda: gateway.trigger_checkpoint(job_id, incremental),
        )
    )


async def trigger_savepoint(request: Request) -> Response:
    job_id = job_of(request).job_graph.job_id
    body = await json_body(request)
    _check_format(body)
    target, cancel = _target(request, body, "target-directory"), _flag(body, "cancel-job")
    return _trigger_savepoint(request, job_id, body, target, StopMode.NONE, cancel)


async def stop_with_savepoint(request: Request) -> Response:
    job_id = job_of(request).job_graph.job_id
    body = await json_body(request)
    _check_format(body)
    stop = StopMode.DRAIN if _flag(body, "drain") else StopMode.SUSPEND
    return _trigger_savepoint(request, job_id, body, _target(request, body, "targetDirectory"), stop, False)


def _trigger_savepoint(
    request: Request, job_id: JobID, body: dict[str, Any], target: str | None, stop: StopMode, cancel: bool
) -> Response:
    gateway = context_of(request).gateway
    return _triggered(
        _operations(request).trigger(
            f"savepoint {job_id}",
            body.get("triggerId"),
            lambda: gateway.trigger_savepoint(job_id, target, stop=stop, cancel=cancel),
        )
    )


async def dispose_savepoint(request: Request) -> Response:
    body = await json_body(request)
    path = body.get("savepoint-path")
    if not isinstance(path, str) or not path.strip():
        raise BadRequest("savepoint-path is missing; expected the folder of a savepoint.")
    gateway = context_of(request).gateway
    trigger_id = _operations(request).trigger(
        "disposal", body.get("triggerId"), lambda: gateway.dispose_savepoint(path)
    )
    return _triggered(trigger_id)


# --- results ----------------------------------------------------------------------------------------------------------


def _throwable(error: ErrorInfo) -> dict[str, Any]:
    from engine.rpc import codec

    encoded = base64.b64encode(codec.encode(error)).decode("ascii")
    return {"class": error.type_name, "stack-trace": views.error_text(error), "serialized-throwable": encoded}


async def get_checkpoint_result(request: Request) -> Response:
    def shown(taken: TakenCheckpoint) -> dict[str, Any]:
        return {"checkpointId": taken.checkpoint_id, "failureCause": None}

    def failed(error: ErrorInfo) -> dict[str, Any]:
        return {"checkpointId": None, "failureCause": _throwable(error)}

    scope = f"checkpoint {JobID.parse(request.path_params['jobid'])}"
    return JSONResponse(_operations(request).result(scope, request.path_params["triggerid"], shown, failed))


async def get_savepoint_result(request: Request) -> Response:
    scope = f"savepoint {JobID.parse(request.path_params['jobid'])}"
    result = _operations(request).result(
        scope,
        request.path_params["triggerid"],
        lambda taken: {"location": taken.folder},
        lambda error: {"failure-cause": _throwable(error)},
    )
    return JSONResponse(result)


async def get_disposal_result(request: Request) -> Response:
    result = _operations(request).result(
        "disposal", request.path_params["triggerid"], lambda _: {}, lambda error: {"failure-cause": _throwable(error)}
    )
    return JSONResponse(result)


_JOB: Final = "/jobs/{jobid}"
ROUTES = [
    Route(f"{_JOB}/checkpoints", get_checkpoints, methods=["GET"]),
    Route(f"{_JOB}/checkpoints", trigger_checkpoint, methods=["POST"]),
    Route(f"{_JOB}/checkpoints/config", get_config),
    Route(f"{_JOB}/checkpoints/details/{{checkpointid}}", get_details),
    Route(f"{_JOB}/checkpoints/details/{{checkpointid}}/subtasks/{{vertexid}}", get_vertex_details),
    Route(f"{_JOB}/checkpoints/{{triggerid}}", get_checkpoint_result),
    Route(f"{_JOB}/savepoints", trigger_savepoint, methods=["POST"]),
    Route(f"{_JOB}/savepoints/{{triggerid}}", get_savepoint_result),
    Route(f"{_JOB}/stop", stop_with_savepoint, methods=["POST"]),
    Route("/savepoint-disposal", dispose_savepoint, methods=["POST"]),
    Route("/savepoint-disposal/{triggerid}", get_disposal_result),
]
