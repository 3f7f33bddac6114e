"""The cluster's REST from the client's side, over one kept-alive ``http.client`` connection. Blocking; one thread.

Answers with ``errors`` become exceptions that carry the cluster's own message.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import pickle
import secrets
import select
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, final

from engine.client.job_client import JobOutcomeView
from engine.core.errors import ExternalError, JobNotFoundError, ProgramError
from engine.core.ids import JobID
from engine.graph.job_graph import JobGraph
from engine.protocol.checkpoint import StopMode
from engine.protocol.control import ErrorInfo
from engine.protocol.lifecycle import JobStatus
from engine.rpc.codec import decode, encode

__all__ = ["Leader", "RestClient"]

TIMEOUT_S: Final = 60.0
#: A program that is run by the cluster builds its job first; it may read files and import much.
RUN_TIMEOUT_S: Final = 600.0
UPLOAD_CHUNK_BYTES: Final = 1 << 20
#: Between two looks for the leader while there may be none.
_FAILOVER_PAUSE_S: Final = 0.2
#: A leader that says nothing for so long may be paused: who asks looks for another one.
_ASK_TIMEOUT_S: Final = 5.0
#: What a JobManager answers with 503 when another one leads, or soon will.
_NO_LEADER: Final = (b"ongoing leader election", b"does not lead any more")
_STATUS: Final = {"SUCCEEDED": JobStatus.FINISHED, "CANCELED": JobStatus.CANCELED, "FAILED": JobStatus.FAILED}


class Leader(Protocol):
    """See ``leader_lookup``."""

    failover_s: float

    def address(self, timeout_s: float) -> str: ...


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes


def _is_closed_by_server(connection: http.client.HTTPConnection) -> bool:
    """Return whether a kept-alive connection has ended, so that nothing is sent into it that must not be repeated."""
    if connection.sock is None:
        return False
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


@final
class RestClient:
    """``base_url``: ``http://host:8081``, with or without a path in front of Flink's paths (YARN's proxy)."""

    def __init__(self, base_url: str, *, timeout_s: float = TIMEOUT_S, leader: Leader | None = None) -> None:
        """``leader``: where to ask again when nobody answers, or somebody who does not lead any more."""
        self._leader = leader
        self._timeout_s = timeout_s
        self._connection: http.client.HTTPConnection | None = None
        self._use(base_url)

    @property
    def follows_leader(self) -> bool:
        return self._leader is not None

    def _use(self, base_url: str) -> None:
        parts = urllib.parse.urlsplit(base_url if "://" in base_url else f"http://{base_url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ExternalError(f"{base_url!r} is not the address of a cluster; expected http://host:port.")
        self.base_url: str = parts.geturl().rstrip("/")
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._secure = parts.scheme == "https"
        self._prefix = parts.path.rstrip("/")

    # --- transport ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _request(
        self,
        method: str,
        path: str,
        body: bytes | Callable[[], Iterable[bytes]] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> _Answer:
        """Raises ExternalError when nobody answers; with high availability, when no JobManager leads within the time
        that an election may take."""
        deadline: float | None = None
        while True:
            try:
                if self._leader is not None and method == "GET" and timeout_s is None:
                    timeout_s = _ASK_TIMEOUT_S
                answer = self._request_once(method, path, body, headers, timeout_s=timeout_s)
                if self._leader is None or answer.status != 503 or not any(one in answer.body for one in _NO_LEADER):
                    return answer
            except ExternalError as error:
                # With high availability submitting a job twice is submitting it once.
                may_repeat = method != "POST" or path == "/jobs" or isinstance(error.__cause__, ConnectionRefusedError)
                if self._leader is None or not may_repeat:
                    raise
                answer = None
                if deadline is not None and time.monotonic() >= deadline:
                    raise
            deadline = deadline or time.monotonic() + self._leader.failover_s
            if time.monotonic() >= deadline:
                assert answer is not None
                return answer
            time.sleep(_FAILOVER_PAUSE_S)
            self.close()
            with contextlib.suppress(ExternalError):
                self._use(self._leader.address(1.0))

    def _request_once(
        self,
        method: str,
        path: str,
        body: bytes | Callable[[], Iterable[bytes]] | None,
        headers: Mapping[str, str] | None,
        *,
        timeout_s: float | None,
    ) -> _Answer:
        can_repeat = method == "GET" or (body is None and method == "PATCH")
        for attempt in (1, 2):
            fresh = self._connection is None
            try:
                connection = self._connect(timeout_s or self._timeout_s)
                content = body() if callable(body) else body
                connection.request(method, self._prefix + path, body=content, headers=dict(headers or {}))
                response = connection.getresponse()
                return _Answer(response.status, response.read())
            except (OSError, http.client.HTTPException) as error:
                self.close()
                # A kept-alive connection may have been closed by the server meanwhile: that says nothing.
                stale = not fresh and isinstance(error, (http.client.RemoteDisconnected, ConnectionError))
                if attempt == 1 and stale and (can_repeat or isinstance(body, bytes)):
                    continue
                raise ExternalError(
                    f"No cluster answers at {self.base_url}: {error}. Is it running? Check rest.address and rest.port, "
                    "or -m host:port."
                ) from error
            except BaseException:
                self.close()  # interrupted between request and answer: the next request needs a connection of its own
                raise
        raise AssertionError("unreachable")

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        if self._connection is not None and _is_closed_by_server(self._connection):
            self.close()
        if self._connection is None:
            kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
            self._connection = kind(self._host, self._port, timeout=timeout_s)
        self._connection.timeout = timeout_s
        if self._connection.sock is not None:
            self._connection.sock.settimeout(timeout_s)
        return self._connection

    def _json(self, method: str, path: str, body: Any = None, *, timeout_s: float | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        return self._decoded(self._request(method, path, data, headers, timeout_s=timeout_s), path)

    def _decoded(self, answer: _Answer, path: str) -> Any:
        try:
            tree = json.loads(answer.body) if answer.body else {}
        except ValueError:
            tree = None
        if answer.status < 300 and tree is not None:
            return tree
        errors = tree.get("errors") if isinstance(tree, dict) else None
        text = "\n".join(str(error) for error in errors) if errors else answer.body[:500].decode("utf-8", "replace")
        if answer.status == 404 and path.startswith("/jobs/"):
            raise JobNotFoundError(text)
        if answer.status in (400, 404, 409, 413):
            raise ProgramError(text)
        raise ExternalError(f"{self.base_url} answered {answer.status}: {text}")

    # --- cluster and jobs --------------------------------------------------------------------------------------------

    def overview(self) -> dict[str, Any]:
        return dict(self._json("GET", "/overview"))

    def config(self) -> dict[str, Any]:
        return dict(self._json("GET", "/config"))

    def taskmanagers(self) -> list[dict[str, Any]]:
        return list(self._json("GET", "/taskmanagers")["taskmanagers"])

    def shut_down(self) -> None:
        self._json("DELETE", "/cluster")

    def jobs(self) -> list[dict[str, Any]]:
        """Return the rows of /jobs/overview: jid, name, state, start-time…"""
        return list(self._json("GET", "/jobs/overview")["jobs"])

    def job(self, job_id: JobID | str) -> dict[str, Any]:
        """Raises JobNotFoundError."""
        return dict(self._json("GET", f"/jobs/{job_id}"))

    def submit(self, job_graph: JobGraph, files: Mapping[str, str]) -> JobID:
        """Submit with the files (sha256 → path) that the cluster does not have yet.

        Raises: ProgramError when the job is refused, ExternalError when the cluster does not answer.
        """
        missing = {sha256: path for sha256, path in files.items() if not self._has_blob(sha256)}
        parts: list[tuple[str, str, bytes | None]] = [("request", "", encode(job_graph))]
        parts += [(f"file_{sha256}", path, None) for sha256, path in missing.items()]
        answer = self._multipart("/jobs", parts)
        return JobID(answer.get("jobid") or job_graph.job_id)

    def _has_blob(self, sha256: str) -> bool:
        return self._request("GET", f"/blobs/{sha256}").status == 200

    def status(self, job_id: JobID) -> JobStatus:
        return JobStatus(self._json("GET", f"/jobs/{job_id}/status")["status"])

    def cancel(self, job_id: JobID) -> None:
        self._json("PATCH", f"/jobs/{job_id}?mode=cancel")

    def execution_result(self, job_id: JobID) -> JobOutcomeView | None:
        """Return how the job ended, None while it runs."""
        answer = self._json("GET", f"/jobs/{job_id}/execution-result")
        if answer["status"]["id"] != "COMPLETED":
            return None
        result = answer["job-execution-result"]
        accumulators = {name: _value(text) for name, text in (result.get("accumulator-results") or {}).items()}
        status = _STATUS.get(result["application-status"], JobStatus.FAILED)
        return JobOutcomeView(status, int(result["net-runtime"]), accumulators, _failure(result.get("failure-cause")))

    def outcome(self, job_id: JobID, timeout_s: float) -> JobOutcomeView | None:
        """Return how the job ended; asks once, and when it has not ended returns None after ``timeout_s``."""
        found = self.execution_result(job_id)
        if found is None and timeout_s:
            time.sleep(timeout_s)
        return found

    def accumulators(self, job_id: JobID) -> dict[str, Any]:
        """Return the values as they are shown: as text."""
        rows = self._json("GET", f"/jobs/{job_id}/accumulators")["user-task-accumulators"]
        return {row["name"]: row["value"] for row in rows}

    def operators(self, job_id: JobID | str, vertex_id: str) -> dict[str, Any]:
        """Return what the operators of a vertex did so far."""
        found: dict[str, Any] = self._json("GET", f"/jobs/{job_id}/vertices/{vertex_id}/operators")
        return found

    def flame_graph(
        self, job_id: JobID | str, vertex_id: str, num_samples: int, interval_ms: int, graph_type: str = "full"
    ) -> dict[str, Any]:
        """Return what the vertex is doing now; answers when all samples have been taken."""
        path = f"/jobs/{job_id}/vertices/{vertex_id}/flamegraph"
        query = f"type={graph_type}&samples={num_samples}&interval={interval_ms}"
        timeout_s = TIMEOUT_S + num_samples * interval_ms / 1000
        found: dict[str, Any] = self._json("GET", f"{path}?{query}", timeout_s=timeout_s)
        return found

    def coordinator_request(self, job_id: JobID, operator_id: str, request: object) -> object:
        path = f"/jobs/{job_id}/coordinators/{operator_id}"
        answer = self._request("POST", path, encode(request), {"Content-Type": "application/octet-stream"})
        if answer.status >= 300:
            return self._decoded(answer, path)
        return decode(answer.body, object)

    # --- checkpoints and savepoints -----------------------------------------------------------------------------------

    def trigger_savepoint(
        self, job_id: JobID, target: str | None, *, stop: StopMode = StopMode.NONE, cancel: bool = False
    ) -> str:
        """Ask for a savepoint in a folder, None = the configured one; return the trigger id for ``savepoint_result``.

        Raises: JobNotFoundError, ProgramError when it cannot be taken at all.
        """
        if stop is StopMode.NONE:
            body = {"target-directory": target, "cancel-job": cancel}
            return str(self._json("POST", f"/jobs/{job_id}/savepoints", body)["request-id"])
        body = {"targetDirectory": target, "drain": stop is StopMode.DRAIN}
        return str(self._json("POST", f"/jobs/{job_id}/stop", body)["request-id"])

    def savepoint_result(self, job_id: JobID, trigger_id: str, timeout_s: float) -> str | None:
        """Return where the savepoint is; asks once, and when it is not complete returns None after ``timeout_s``.

        Raises: ExternalError when it failed.
        """
        operation = self._operation(f"/jobs/{job_id}/savepoints/{trigger_id}", timeout_s)
        return None if operation is None else str(operation["location"])

    def trigger_checkpoint(self, job_id: JobID, kind: str = "CONFIGURED") -> str:
        """``kind``: CONFIGURED, FULL or INCREMENTAL; return the trigger id for ``checkpoint_result``."""
        return str(self._json("POST", f"/jobs/{job_id}/checkpoints", {"checkpointType": kind})["request-id"])

    def checkpoint_result(self, job_id: JobID, trigger_id: str, timeout_s: float) -> int | None:
        operation = self._operation(f"/jobs/{job_id}/checkpoints/{trigger_id}", timeout_s)
        return None if operation is None else int(operation["checkpointId"])

    def rescale(self, job_id: JobID, parallelism: int) -> None:
        """Give all vertices that follow the job's default another parallelism; return when the job runs so."""
        self._json("PUT", f"/jobs/{job_id}/resource-requirements", {"parallelism": parallelism})

    def trigger_disposal(self, path: str) -> str:
        return str(self._json("POST", "/savepoint-disposal", {"savepoint-path": path})["request-id"])

    def disposal_is_done(self, trigger_id: str, timeout_s: float) -> bool:
        """Raises ExternalError when the savepoint could not be disposed of."""
        return self._operation(f"/savepoint-disposal/{trigger_id}", timeout_s) is not None

    def _operation(self, path: str, timeout_s: float) -> dict[str, Any] | None:
        answer = self._json("GET", path)
        if answer["status"]["id"] != "COMPLETED":
            time.sleep(timeout_s)
            return None
        operation = dict(answer["operation"] or {})
        failure = _failure(operation.get("failure-cause") or operation.get("failureCause"))
        if failure is not None:
            raise ExternalError(failure.message)
        return operation

    # --- programs ----------------------------------------------------------------------------------------------------

    def upload_program(self, path: str, name: str | None = None) -> str:
        """Upload a program file; return its id for ``run_program``."""
        answer = self._multipart("/jars/upload", [("jarfile", path, None)], filename=name or os.path.basename(path))
        return str(answer["filename"]).rsplit("/", 1)[-1]

    def list_programs(self) -> list[dict[str, Any]]:
        return list(self._json("GET", "/jars")["files"])

    def run_program(self, program_id: str, body: Mapping[str, Any]) -> JobID:
        """Run an uploaded program on the cluster; ``body`` as Flink's JarRunRequestBody. Raises ProgramError."""
        path = f"/jars/{urllib.parse.quote(program_id)}/run"
        return JobID(self._json("POST", path, dict(body), timeout_s=RUN_TIMEOUT_S)["jobid"])

    def delete_program(self, program_id: str) -> None:
        self._json("DELETE", f"/jars/{urllib.parse.quote(program_id)}")

    def _multipart(self, path: str, parts: list[tuple[str, str, bytes | None]], filename: str = "") -> dict[str, Any]:
        """POST parts of (name, path of a file, or content). Files are streamed."""
        boundary = secrets.token_hex(16)
        heads = [_part_head(boundary, name, filename or name) for name, _, _ in parts]
        tail = f"--{boundary}--\r\n".encode()
        sizes = [len(content) if content is not None else os.path.getsize(file) for _, file, content in parts]
        length = sum(map(len, heads)) + sum(sizes) + 2 * len(parts) + len(tail)

        def body() -> Iterator[bytes]:
            for head, (_, file, content) in zip(heads, parts):
                yield head
                if content is not None:
                    yield content
                else:
                    with open(file, "rb") as stream:
                        while chunk := stream.read(UPLOAD_CHUNK_BYTES):
                            yield chunk
                yield b"\r\n"
            yield tail

        # A fresh connection: a streamed body cannot be sent again when a kept-alive one turns out to be dead.
        self.close()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Content-Length": str(length)}
        return dict(self._decoded(self._request("POST", path, body, headers), path))


def _part_head(boundary: str, name: str, filename: str) -> bytes:
    quoted = filename.replace("\\", "_").replace('"', "_").replace("\r", "_").replace("\n", "_")
    return (
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{quoted}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()


def _value(text: str) -> Any:
    # From the user's own cluster, about the user's own job: values may be of user classes.
    try:
        return pickle.loads(base64.b64decode(text))
    except Exception as error:
        return f"<value that cannot be read here: {error}>"


def _failure(cause: dict[str, Any] | None) -> ErrorInfo | None:
    if not cause:
        return None
    if cause.get("serialized-throwable"):
        try:
            return decode(base64.b64decode(cause["serialized-throwable"]), ErrorInfo)
        except (ExternalError, ValueError):
            pass
    text = str(cause.get("stack-trace", ""))
    return ErrorInfo(str(cause.get("class", "Error")), text, "")
