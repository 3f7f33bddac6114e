"""Log files of this process: which they are, and answers made of them. Paths from outside never leave the folder."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator
from typing import Any, Final

from starlette.responses import Response, StreamingResponse

from engine.rest.context import BadRequest, NotFound

__all__ = ["check_log_name", "file_answer", "list_logs", "own_log", "own_stdout", "text_answer"]

_CHUNK_BYTES: Final = 256 << 10
#: Programs that share a log folder with the JobManager when all run on one host.
_OTHERS: Final = ("taskexecutor", "taskmanager", "client", "yarn-session", "slot")


def check_log_name(name: str) -> str:
    """Return ``name`` if it is a plain file name. Raises BadRequest."""
    if not name or name.startswith(".") or any(c in name for c in ("/", "\\", "\0")):
        raise BadRequest(f"{name!r} is not the name of a log file; expected one that /logs lists.")
    return name


def list_logs(folder: str) -> list[dict[str, Any]]:
    """Return name, size and time of each plain file in ``folder``, newest first."""
    found: list[dict[str, Any]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False) and not entry.name.startswith("."):
                    status = entry.stat()
                    found.append({"name": entry.name, "mtime": int(status.st_mtime * 1000), "size": status.st_size})
    except FileNotFoundError:
        return []
    return sorted(found, key=lambda log: (-log["mtime"], log["name"]))


def own_log(folder: str) -> str:
    """Return the name of the file that this process logs to. Raises NotFound."""
    for handler in logging.getLogger().handlers:
        path = getattr(handler, "baseFilename", "")
        if path and os.path.dirname(os.path.realpath(path)) == os.path.realpath(folder):
            return os.path.basename(path)
    return _newest(folder, (".log",))


def own_stdout(folder: str) -> str:
    """Return the name of the file that standard output goes to. Raises NotFound."""
    try:
        target = os.readlink("/proc/self/fd/1")
    except OSError:
        target = ""
    if os.path.dirname(target) == os.path.realpath(folder):
        return os.path.basename(target)
    # It is a pipe where .out files are rolled; they have the name of the log.
    with contextlib.suppress(NotFound):
        name = f"{os.path.splitext(own_log(folder))[0]}.out"
        if os.path.isfile(os.path.join(folder, name)):
            return name
    return _newest(folder, (".out", ".stdout"))


def _newest(folder: str, suffixes: tuple[str, ...]) -> str:
    for log in list_logs(folder):
        name: str = log["name"]
        if name.endswith(suffixes) and not any(other in name for other in _OTHERS):
            return name
    raise NotFound(f"The JobManager has no {' or '.join(suffixes)} file in its log folder.")


def file_answer(folder: str, name: str, tail_bytes: int = 0) -> Response:
    """Stream a file of ``folder`` as it is now; ``tail_bytes`` > 0: only its end. Raises BadRequest, NotFound."""
    path = os.path.join(folder, check_log_name(name))
    try:
        # A link could lead out of the folder.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        raise NotFound(f"There is no log file {name}") from None
    stream = os.fdopen(descriptor, "rb")
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        stream.close()
        raise NotFound(f"There is no log file {name}")
    size = min(status.st_size, tail_bytes) if tail_bytes > 0 else status.st_size
    stream.seek(status.st_size - size)

    def chunks() -> Iterator[bytes]:
        # The file may grow meanwhile; what was announced as Content-Length must be what is sent.
        with stream:
            left = size
            while left > 0 and (chunk := stream.read(min(left, _CHUNK_BYTES))):
                left -= len(chunk)
                yield chunk

    return StreamingResponse(chunks(), media_type="text/plain; charset=utf-8", headers={"Content-Length": str(size)})


def text_answer(content: bytes) -> Response:
    return Response(content, media_type="text/plain; charset=utf-8")
