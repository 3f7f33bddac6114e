"""Handlers of TaskManagers: list, details, logs."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engine.core.errors import ExternalError
from engine.rest import cluster_views
from engine.rest.context import NotFound, context_of, taskmanager_of
from engine.rest.logs import check_log_name, text_answer

__all__ = ["ROUTES"]


async def list_taskmanagers(request: Request) -> Response:
    gateway = context_of(request).gateway
    rows = []
    for view in gateway.taskmanagers():
        tasks = cluster_views.assigned_tasks(gateway.jobs(), view.registration.resource_id)
        rows.append(cluster_views.taskmanager(view, sum(tasks.values())))
    return JSONResponse({"taskmanagers": rows})


async def get_taskmanager(request: Request) -> Response:
    view = taskmanager_of(request)
    tasks = cluster_views.assigned_tasks(context_of(request).gateway.jobs(), view.registration.resource_id)
    return JSONResponse(cluster_views.taskmanager_details(view, tasks))


async def _read_log(request: Request, name: str) -> Response:
    resource_id = taskmanager_of(request).registration.resource_id
    try:
        return text_answer(await context_of(request).gateway.read_taskmanager_log(resource_id, name))
    except KeyError:
        # Also when the TaskManager went away between the two questions.
        raise NotFound(f"TaskManager {resource_id} has no log file {name or 'of its own'}") from None
    except ExternalError as error:
        # What the TaskManager itself says: no such file, or it writes none.
        raise NotFound(f"TaskManager {resource_id}: {error}") from None


async def get_log(request: Request) -> Response:
    return await _read_log(request, "")


async def get_stdout(request: Request) -> Response:
    return await _read_log(request, "stdout")


async def get_log_file(request: Request) -> Response:
    return await _read_log(request, check_log_name(request.path_params["filename"]))


async def list_log_files(request: Request) -> Response:
    resource_id = taskmanager_of(request).registration.resource_id
    try:
        files = await context_of(request).gateway.list_taskmanager_logs(resource_id)
    except KeyError:
        raise NotFound(f"TaskManager {resource_id} not found") from None
    return JSONResponse({"logs": [{"name": name, "size": size, "mtime": mtime} for name, size, mtime in files]})


ROUTES = [
    Route("/taskmanagers", list_taskmanagers),
    Route("/taskmanagers/{taskmanagerid}", get_taskmanager),
    Route("/taskmanagers/{taskmanagerid}/log", get_log),
    Route("/taskmanagers/{taskmanagerid}/stdout", get_stdout),
    Route("/taskmanagers/{taskmanagerid}/logs", list_log_files),
    Route("/taskmanagers/{taskmanagerid}/logs/{filename}", get_log_file),
]
