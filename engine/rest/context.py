"""What every handler needs (``RestContext``) and the errors that become an HTTP status."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.requests import Request

from engine.core.clock import Clock, SystemClock
from engine.core.errors import JobNotFoundError
from engine.core.ids import JobID, JobVertexID, ResourceID
from engine.graph.execution_graph import ExecutionGraph, ExecutionJobVertex
from engine.runtime.jobmanager.gateway import DispatcherGateway, TaskManagerView

__all__ = [
    "BadRequest",
    "Forbidden",
    "NotFound",
    "RestContext",
    "RestError",
    "Unavailable",
    "context_of",
    "job_of",
    "json_body",
    "vertex_of",
]


BODY_MAX_BYTES: Final = 1 << 20


class RestError(Exception):
    """An answer other than success; ``str`` of it is what the client reads in ``errors``."""

    status = 500


class BadRequest(RestError):
    status = 400


class Forbidden(RestError):
    status = 403


class NotFound(RestError):
    status = 404


class Unavailable(RestError):
    status = 503


@dataclass
class RestContext:
    gateway: DispatcherGateway
    #: private to REST: uploaded programs, uploads under way, working folders of running programs
    upload_dir: str
    #: interpreter that runs uploaded programs
    python: str
    clock: Clock = field(default_factory=SystemClock)
    #: where this server listens, as a program on this machine reaches it; known once it serves
    host: str = "127.0.0.1"
    port: int = 0
    #: the URL for clients anywhere
    address: str = ""
    #: running programs, see ``programs``
    programs: Any = None
    #: checkpoints and savepoints that were asked for, see ``operations``
    operations: Any = None

    async def close(self) -> None:
        """End running programs. May be called again."""
        await self.programs.close()

    @property
    def programs_dir(self) -> str:
        return self.folder("programs")

    @property
    def incoming_dir(self) -> str:
        return self.folder("incoming")

    def folder(self, name: str) -> str:
        """Return a folder below ``upload_dir``, made if it is missing (someone may have cleaned /tmp)."""
        path = os.path.join(self.upload_dir, name)
        os.makedirs(path, mode=0o700, exist_ok=True)
        return path


def context_of(request: Request) -> RestContext:
    context: RestContext = request.app.state.rest
    return context


def job_of(request: Request) -> ExecutionGraph:
    """Return the job that the path names. Raises: ConfigError (400) for a malformed id, NotFound for an unknown one."""
    job_id = JobID.parse(request.path_params["jobid"])
    try:
        return context_of(request).gateway.job(job_id)
    except JobNotFoundError:
        raise NotFound(f"Job {job_id} not found") from None


def vertex_of(request: Request) -> ExecutionJobVertex:
    graph = job_of(request)
    vertex_id = JobVertexID.parse(request.path_params["vertexid"])
    vertex = graph.vertices.get(vertex_id)
    if vertex is None:
        raise NotFound(f"Job {graph.job_graph.job_id} has no vertex {vertex_id}")
    return vertex


def taskmanager_of(request: Request) -> TaskManagerView:
    resource_id = ResourceID(request.path_params["taskmanagerid"])
    try:
        return context_of(request).gateway.taskmanager(resource_id)
    except KeyError:
        raise NotFound(f"TaskManager {resource_id} not found") from None


def integer_parameter(request: Request, name: str, default: int, minimum: int) -> int:
    """Return a whole number of the query. Raises BadRequest that says name, value and expectation."""
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        value = int(text)
    except ValueError:
        value = minimum - 1
    if value < minimum:
        raise BadRequest(f"{name} is {text!r}; expected a whole number of at least {minimum}.")
    return value


async def json_body(request: Request) -> dict[str, Any]:
    """Return the JSON object that is the body, {} without one. Raises BadRequest."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > BODY_MAX_BYTES:
            raise BadRequest(f"The body has more than {BODY_MAX_BYTES} bytes; expected a small JSON object.")
    if not content.strip():
        return {}
    try:
        decoded = json.loads(bytes(content))
    except ValueError as error:
        raise BadRequest(f"The body is not JSON: {error}") from None
    if not isinstance(decoded, dict):
        raise BadRequest(f"The body is a JSON {type(decoded).__name__}; expected an object.")
    return decoded
