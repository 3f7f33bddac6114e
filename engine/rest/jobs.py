"""Handlers of jobs: lists, details, cancel, submit, blobs and operator coordinators."""

from __future__ import annotations

import asyncio
import base64
import re
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engine.core.errors import ExternalError, InternalError
from engine.core.ids import OperatorID
from engine.graph.execution_graph import ExecutionGraph
from engine.graph.job_graph import JobGraph
from engine.protocol.lifecycle import JobStatus
from engine.rest import views
from engine.rest.accumulators import job_accumulators
from engine.rest.context import BadRequest, NotFound, context_of, integer_parameter, job_of
from engine.rest.uploads import discard_parts, receive_parts

__all__ = ["ROUTES"]

#: A coordinator request is a small question; larger ones are a mistake.
COORDINATOR_REQUEST_MAX_BYTES = 64 << 20
_APPLICATION_STATUS = {JobStatus.FINISHED: "SUCCEEDED", JobStatus.CANCELED: "CANCELED", JobStatus.FAILED: "FAILED"}


async def list_jobs(request: Request) -> Response:
    rows = [{"id": graph.job_graph.job_id, "status": graph.status.name} for graph in context_of(request).gateway.jobs()]
    return JSONResponse({"jobs": rows})


async def jobs_overview(request: Request) -> Response:
    context = context_of(request)
    now_ms = context.clock.now_ms()
    return JSONResponse({"jobs": [views.job_overview(graph, now_ms) for graph in context.gateway.jobs()]})


async def get_job(request: Request) -> Response:
    return JSONResponse(views.job_details(job_of(request), context_of(request).clock.now_ms()))


async def cancel_job(request: Request) -> Response:
    mode = request.query_params.get("mode", "cancel")
    if mode != "cancel":
        raise BadRequest(f"mode is {mode!r}; expected cancel.")
    graph = job_of(request)
    await context_of(request).gateway.cancel_job(graph.job_graph.job_id)
    return JSONResponse({}, status_code=202)


async def get_status(request: Request) -> Response:
    return JSONResponse({"status": job_of(request).status.name})


async def get_plan(request: Request) -> Response:
    return JSONResponse({"plan": views.plan(job_of(request))})


async def get_config(request: Request) -> Response:
    return JSONResponse(views.job_config(job_of(request), context_of(request).gateway.config))


async def get_exceptions(request: Request) -> Response:
    return JSONResponse(views.exceptions(job_of(request), integer_parameter(request, "maxExceptions", 20, 0)))


async def get_accumulators(request: Request) -> Response:
    rows = job_accumulators(job_of(request))
    return JSONResponse(
        {"job-accumulators": [], "user-task-accumulators": rows, "serialized-user-task-accumulators": {}}
    )


async def get_execution_result(request: Request) -> Response:
    graph = job_of(request)
    if not graph.status.is_globally_terminal_state() or graph.is_result_pending:
        return JSONResponse({"status": {"id": "IN_PROGRESS"}, "job-execution-result": None})
    return JSONResponse({"status": {"id": "COMPLETED"}, "job-execution-result": _execution_result(graph)})


def _execution_result(graph: ExecutionGraph) -> dict[str, Any]:
    from engine.rpc import codec

    def encoded(value: object) -> str:
        return base64.b64encode(codec.encode(value)).decode("ascii")

    result: dict[str, Any] = {
        "id": graph.job_graph.job_id,
        "application-status": _APPLICATION_STATUS[graph.status],
        "net-runtime": graph.end_ms - graph.start_ms,
        "accumulator-results": {name: encoded(value) for name, (_, value) in graph.accumulator_results.items()},
    }
    if graph.failure is not None and graph.status is not JobStatus.FINISHED:
        result["failure-cause"] = {
            "class": graph.failure.type_name,
            "stack-trace": views.error_text(graph.failure),
            "serialized-throwable": encoded(graph.failure),
        }
    return result


async def submit_job(request: Request) -> Response:
    """Take the parts ``request`` (an encoded JobGraph) and ``file_<sha256>``; all files are needed."""
    from engine.rpc import codec

    context = context_of(request)
    parts = await receive_parts(request, context.incoming_dir)
    try:
        graph: JobGraph | None = None
        for part in parts:
            if part.name == "request":
                with open(part.path, "rb") as stream:
                    encoded = stream.read()
                try:
                    graph = codec.decode(encoded, JobGraph)
                except ExternalError as error:
                    raise BadRequest(f"The part 'request': {error}") from None
            elif re.fullmatch(r"file_[0-9a-f]{64}", part.name):
                sha256 = context.gateway.put_blob(part.path)
                if sha256 != part.name.removeprefix("file_"):
                    raise BadRequest(f"The part {part.name!r} arrived with sha256 {sha256}: damaged on the way.")
            else:
                raise BadRequest(f"Unexpected part {part.name!r}; expected 'request' and 'file_<sha256>'.")
    finally:
        discard_parts(parts)
    if graph is None:
        raise BadRequest("The body has no part 'request' that holds a JobGraph.")
    missing = [file.name for file in graph.files if not context.gateway.has_blob(file.sha256)]
    if missing:
        raise BadRequest(f"The job needs files that were not sent: {', '.join(missing)}.")
    job_id = await context.gateway.submit_job(graph)
    return JSONResponse({"jobUrl": f"/jobs/{job_id}", "jobid": job_id}, status_code=202)


async def get_blob(request: Request) -> Response:
    """Say whether the JobManager has a file already, so that clients need not send it again."""
    sha256 = request.path_params["sha256"]
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise BadRequest(f"{sha256!r} is not a SHA-256; expected 64 hexadecimal digits.")
    if not context_of(request).gateway.has_blob(sha256):
        raise NotFound(f"Blob {sha256} not found")
    return JSONResponse({})


async def coordinator_request(request: Request) -> Response:
    from engine.rpc import codec

    graph = job_of(request)
    operator_id = OperatorID.parse(request.path_params["operatorid"])
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > COORDINATOR_REQUEST_MAX_BYTES:
            raise BadRequest(f"The request has more than {COORDINATOR_REQUEST_MAX_BYTES} bytes.")
    try:
        question = codec.decode(bytes(body), object)
    except ExternalError as error:
        raise BadRequest(str(error)) from None
    try:
        answer = await context_of(request).gateway.coordinator_request(graph.job_graph.job_id, operator_id, question)
    except KeyError:
        raise NotFound(f"Job {graph.job_graph.job_id} has no coordinator for operator {operator_id}") from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise InternalError(f"Job {graph.job_graph.job_id} ended before its coordinator answered.") from None
    return Response(codec.encode(answer), media_type="application/octet-stream")


ROUTES = [
    Route("/jobs", list_jobs, methods=["GET"]),
    Route("/jobs", submit_job, methods=["POST"]),
    Route("/jobs/overview", jobs_overview),
    Route("/jobs/{jobid}", get_job, methods=["GET"]),
    Route("/jobs/{jobid}", cancel_job, methods=["PATCH"]),
    Route("/jobs/{jobid}/yarn-cancel", cancel_job, methods=["GET"]),
    Route("/jobs/{jobid}/status", get_status),
    Route("/jobs/{jobid}/plan", get_plan),
    Route("/jobs/{jobid}/config", get_config),
    Route("/jobs/{jobid}/exceptions", get_exceptions),
    Route("/jobs/{jobid}/accumulators", get_accumulators),
    Route("/jobs/{jobid}/execution-result", get_execution_result),
    Route("/jobs/{jobid}/coordinators/{operatorid}", coordinator_request, methods=["POST"]),
    Route("/blobs/{sha256}", get_blob, methods=["GET"]),
]
