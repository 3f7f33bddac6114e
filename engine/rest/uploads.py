"""Multipart bodies, streamed to disk part by part: a body's size never matters to the JobManager's memory."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from typing import IO

from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from engine.rest.context import BadRequest

__all__ = ["Part", "receive_parts"]

#: More parts than any job has files; a limit so that a client cannot open files without end.
PARTS_MAX = 10_000


@dataclass
class Part:
    """One received part; its content is the file at ``path``, which belongs to the caller."""

    name: str
    filename: str
    path: str
    size_bytes: int = 0


class _Receiver:
    """Callbacks of the parser: collects the headers of a part, writes its content to a file of its own."""

    def __init__(self, folder: str) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._folder = folder
        self._stream: IO[bytes] | None = None
        self._headers: dict[bytes, bytes] = {}
        self._field = b""
        self._value = b""

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._headers.clear,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self.close,
            "on_end": self._on_end,
        }

    def _on_header_field(self, chunk: bytes, start: int, end: int) -> None:
        self._field += chunk[start:end]

    def _on_header_value(self, chunk: bytes, start: int, end: int) -> None:
        self._value += chunk[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name")
        if name is None:
            raise BadRequest(
                "A part of the multipart body has no name; expected Content-Disposition: form-data; name=…."
            )
        if len(self.parts) >= PARTS_MAX:
            raise BadRequest(f"The multipart body has more than {PARTS_MAX} parts.")
        # The name on disk is ours: nothing that a client says becomes a path.
        path = os.path.join(self._folder, secrets.token_hex(16))
        filename = options.get(b"filename", b"").decode("utf-8", "replace")
        self._stream = open(path, "wb")
        self.parts.append(Part(name.decode("utf-8", "replace"), filename, path))

    def _on_part_data(self, chunk: bytes, start: int, end: int) -> None:
        assert self._stream is not None
        self._stream.write(chunk[start:end])
        self.parts[-1].size_bytes += end - start

    def _on_end(self) -> None:
        self.ended = True

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def discard(self) -> None:
        self.close()
        for part in self.parts:
            if os.path.exists(part.path):
                os.unlink(part.path)


async def receive_parts(request: Request, folder: str) -> list[Part]:
    """Return the parts of a multipart body, stored in ``folder``; nothing stays there if it fails.

    Raises: BadRequest when the body is not multipart or is cut off.
    """
    from python_multipart.exceptions import FormParserError

    content_type, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if content_type != b"multipart/form-data" or not boundary:
        raise BadRequest(
            f"Content-Type is {request.headers.get('content-type', '')!r}; "
            "expected multipart/form-data with a boundary."
        )
    receiver = _Receiver(folder)
    parser = MultipartParser(boundary, receiver.callbacks())  # type: ignore[arg-type]
    try:
        async for chunk in request.stream():
            if chunk:
                parser.write(chunk)
        parser.finalize()
        if not receiver.ended:
            raise BadRequest("The multipart body is cut off.")
    except FormParserError as error:
        receiver.discard()
        raise BadRequest(f"The multipart body is malformed: {error}") from None
    except BaseException:
        receiver.discard()
        raise
    return receiver.parts


def discard_parts(parts: list[Part]) -> None:
    """Remove what is left of the parts' files."""
    for part in parts:
        if os.path.exists(part.path):
            os.unlink(part.path)
