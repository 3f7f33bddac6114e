"""Writes state of tasks: chunks by key group into one file with places and checksums, lists, files of parts.

Blocks: for a forked child, an I/O thread, or memory only. What is small travels inside the handles. A file has a name
that was never used before and counts only when its handle was acknowledged, so a torn one is never taken for whole.
Not here: how it is read (``restored_state``), metadata and folders (``storage``).
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import IO, Final, final

from engine.core.errors import EngineError
from engine.core.fs import file_system_of, give_up
from engine.protocol.checkpoint import ChunkPlace, FileHandle, KeyedLayer

__all__ = [
    "ChunkWriter",
    "Chunks",
    "StateTooLargeError",
    "upload_file",
    "write_file",
]

_COPY_BYTES: Final = 1 << 20
#: Smaller chunks are written together: each write gives the interpreter lock away, and taking it back costs the task
#: two switches of threads. Larger ones are cut: 1 GB takes the kernel (6.18, ext4) 0.3 s of CPU time in pieces of up to
#: 2 MB, and 1 to 2 s in pieces of 8 MB.
_WRITE_BYTES: Final = 1 << 19
#: Python's ``crc32`` gives the lock away for more bytes than that: 2 us of work for the same price.
_CRC_PIECE_BYTES: Final = 5 << 10
#: Above this the other threads need not wait.
_CRC_HOLD_BYTES: Final = 256 << 10


class StateTooLargeError(EngineError):
    """State does not fit into the acknowledgement, and there is no folder for it."""

    @classmethod
    def of(cls, size_bytes: int, limit_bytes: int) -> StateTooLargeError:
        return cls(
            f"The state of the task has {size_bytes} bytes, and the JobManager keeps at most {limit_bytes} bytes of "
            "each task (execution.checkpointing.jobmanager.max-state-size). Set execution.checkpointing.storage to "
            "filesystem and execution.checkpointing.dir to a folder that all nodes reach."
        )


@dataclass(frozen=True, slots=True)
class Chunks:
    """What a part gave: its chunks, all of them or what changed."""

    by_key_group: Mapping[int, bytes]
    is_delta: bool = False

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.by_key_group.values()))


@final
class ChunkWriter:
    """Writes the chunks of several parts into one file; there is no file while they are not larger than
    ``inline_bytes_max``. ``path`` "": everything stays inline."""

    def __init__(self, path: str, inline_bytes_max: int) -> None:
        self._path = path
        self._inline_bytes_max = inline_bytes_max
        self._stream: IO[bytes] | None = None
        #: not written yet: all of it while there is no file, then what makes up the next write
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._size = 0
        self._crc = 0
        #: of each layer: where its bytes begin, the places of its chunks in the file, whether it is a delta
        self._layers: list[tuple[int, dict[int, ChunkPlace], bool]] = []

    def add_layer(self, chunks: Iterable[tuple[int, bytes]], *, is_delta: bool = False) -> None:
        """Write a layer. Chunks come in the order of their key groups, so that a range of them is one read."""
        places: dict[int, ChunkPlace] = {}
        self._layers.append((self._size, places, is_delta))
        for key_group, content in chunks:
            crc = _crc32(content)
            places[key_group] = (self._size, len(content), crc)
            self._crc = zlib.crc32(crc.to_bytes(4, "little"), self._crc)
            self._write(content)

    def _write(self, content: bytes) -> None:
        self._size += len(content)
        self._held.append(content)
        self._held_bytes += len(content)
        if self._stream is None and self._path and self._size > self._inline_bytes_max:
            self._stream = file_system_of(self._path).open_write(self._path)
        if self._stream is not None and self._held_bytes >= _WRITE_BYTES:
            self._flush(self._stream)

    def _flush(self, stream: IO[bytes]) -> None:
        held, self._held, self._held_bytes = self._held, [], 0
        content = held[0] if len(held) == 1 else b"".join(held)
        if len(content) <= 2 * _WRITE_BYTES:
            stream.write(content)
            return
        for start in range(0, len(content), _WRITE_BYTES):
            stream.write(content[start : start + _WRITE_BYTES])

    def finish(self) -> list[KeyedLayer]:
        """Make it durable and return the layers in the order in which they were added."""
        if self._stream is not None:
            if self._held:
                self._flush(self._stream)
            _close_durably(self._stream)
            handle = FileHandle(self._path, self._size, self._crc)
            return [KeyedLayer(handle, places, is_delta) for _, places, is_delta in self._layers]
        content = b"".join(self._held)
        ends = [*(start for start, _, _ in self._layers[1:]), len(content)]
        layers = []
        for (start, places, is_delta), end in zip(self._layers, ends):
            own = content[start:end]
            shifted = {group: (offset - start, size, crc) for group, (offset, size, crc) in places.items()}
            layers.append(KeyedLayer(FileHandle("", len(own), zlib.crc32(own), own), shifted, is_delta))
        return layers

    def abandon(self) -> None:
        """Close what is open after a failure; who knows the path deletes it."""
        if self._stream is not None:
            with contextlib.suppress(Exception):
                give_up(self._stream)


def _crc32(content: bytes) -> int:
    """``zlib.crc32``, which keeps the interpreter lock for a chunk of an increment."""
    if not _CRC_PIECE_BYTES < len(content) <= _CRC_HOLD_BYTES:
        return zlib.crc32(content)
    crc, view = 0, memoryview(content)
    for start in range(0, len(content), _CRC_PIECE_BYTES):
        crc = zlib.crc32(view[start : start + _CRC_PIECE_BYTES], crc)
    return crc


def write_file(content: bytes, path: str) -> FileHandle:
    """Write a file of its own; ``path`` "": nothing is written, the content travels inside the handle."""
    crc = zlib.crc32(content)
    if not path:
        return FileHandle("", len(content), crc, content)
    with contextlib.ExitStack() as stack:
        stream = file_system_of(path).open_write(path)
        stack.callback(stream.close)
        stream.write(content)
        stack.pop_all()
        _close_durably(stream)
    return FileHandle(path, len(content), crc)


def upload_file(local_path: str, path: str) -> FileHandle:
    """Copy a local file to ``path``, or into the handle if that is ""."""
    if not path:
        with open(local_path, "rb") as source:
            return write_file(source.read(), "")
    size = crc = 0
    with open(local_path, "rb") as source, contextlib.ExitStack() as stack:
        stream = file_system_of(path).open_write(path)
        stack.callback(stream.close)
        while content := source.read(_COPY_BYTES):
            stream.write(content)
            size += len(content)
            crc = zlib.crc32(content, crc)
        stack.pop_all()
        _close_durably(stream)
    return FileHandle(path, size, crc)


def _close_durably(stream: IO[bytes]) -> None:
    """A checkpoint that is acknowledged survives a power cut: HDFS says so when the file closes, a disk when asked."""
    try:
        stream.flush()
        with contextlib.suppress(AttributeError, OSError):
            os.fsync(stream.fileno())
    finally:
        stream.close()
