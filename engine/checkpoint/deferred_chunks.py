"""Chunks of a restored part that are read when they are asked for: ``state/parts.ChunkSource``.

Local files are open all along, so it does not matter when they are deleted. Files elsewhere (HDFS) are opened for each
chunk, while the task waits or, if it was told before what comes next, in a thread beside it. They are there as long as
something of them is left to read: a checkpoint that would subsume theirs reads it all first. Only who deletes a
savepoint before the first checkpoint behind it makes the job fail, as in Flink. What is read is checked against its
CRC, as in ``restored_state``.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, final

from engine.core.errors import CorruptStateError, InputError
from engine.core.fs import LocalFileSystem, file_system_of, scheme_of
from engine.protocol.checkpoint import KeyedLayer

__all__ = ["DeferredChunks"]

#: With less than this there is nothing to gain.
DEFERRED_BYTES_MIN: Final = 32 << 20
_FILES_MAX: Final = 128
_PEEK_BYTES: Final = 16 << 10
#: Beginnings of chunks that are read at a time where each takes some round trips.
_PEEK_THREADS: Final = 16
#: Instead of a descriptor.
_INLINE: Final = -1
_REMOTE: Final = -2


@final
class DeferredChunks:
    """``layers``: oldest first. Raises (``read``): CorruptStateError, ExternalError."""

    def __init__(self, layers: Sequence[KeyedLayer], key_groups: range) -> None:
        self._layers = layers
        self._files: list[int] = []
        self._ahead: _ReadAhead | None = None
        self._key_groups = sorted({group for layer in layers for group in layer.chunks if group in key_groups})

    @classmethod
    def of(cls, layers: Sequence[KeyedLayer], key_groups: range) -> DeferredChunks | None:
        """None: too little for that, or too many files."""
        sizes = [size for layer in layers for group, (_, size, _) in layer.chunks.items() if group in key_groups]
        if sum(sizes) < DEFERRED_BYTES_MIN or len(layers) > _FILES_MAX:
            return None
        chunks = cls(layers, key_groups)
        try:
            for layer in layers:
                chunks._files.append(_opened(layer.file.path))
        except OSError:
            chunks.close()
            return None  # who reads it at once will tell
        return chunks

    @property
    def key_groups(self) -> Sequence[int]:
        return self._key_groups

    def peek(self) -> Iterator[tuple[int, bytes]]:
        """Yield the beginnings of all chunks with their key groups, oldest layer first; not checked."""
        with ThreadPoolExecutor(_PEEK_THREADS, "peek") as pool:
            for layer, file in zip(self._layers, self._files, strict=True):
                groups = [group for group in self._key_groups if group in layer.chunks]

                def beginning(group: int, layer: KeyedLayer = layer, file: int = file) -> bytes:
                    offset, size, _ = layer.chunks[group]
                    return _read(layer, file, offset, min(size, _PEEK_BYTES))

                each = pool.map(beginning, groups) if file == _REMOTE else map(beginning, groups)
                yield from zip(groups, each, strict=True)

    def read_ahead(self, key_group: int) -> None:
        """This key group will be asked for next, probably: read it beside the task where reading takes long."""
        # Not with descriptors, which may be closed while the thread reads.
        if self._ahead is None and _REMOTE in self._files and max(self._files) < 0:
            self._ahead = _ReadAhead(self, key_group)

    def read(self, key_group: int) -> Iterator[bytes]:
        """Yield the chunks of a key group, oldest layer first."""
        ahead = self._ahead
        if ahead is not None and ahead.key_group == key_group:
            self._ahead = None
            return iter(ahead.wait())
        return self.read_now(key_group)

    def read_now(self, key_group: int) -> Iterator[bytes]:
        for layer, file in zip(self._layers, self._files, strict=True):
            if key_group not in layer.chunks:
                continue
            offset, size, crc = layer.chunks[key_group]
            content = _read(layer, file, offset, size)
            if len(content) != size or zlib.crc32(content) != crc:
                raise CorruptStateError(
                    f"State file {layer.file.path or 'metadata'} is damaged: the checksum of key group {key_group} is "
                    "wrong. Restore from an older checkpoint or savepoint."
                )
            yield content

    def close(self) -> None:
        files, self._files = self._files, []
        for file in files:
            if file >= 0:
                os.close(file)

    __del__ = close


@final
class _ReadAhead:
    """A key group that is being read in a thread of its own."""

    def __init__(self, chunks: DeferredChunks, key_group: int) -> None:
        self.key_group = key_group
        self._chunks = chunks
        self._found: list[bytes] = []
        self._error: Exception | None = None
        # Ends with its file system's patience at the latest; nobody waits for it when the task is cancelled.
        self._thread = threading.Thread(target=self._read, name="restore-ahead", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            self._found = list(self._chunks.read_now(self.key_group))
        except Exception as error:
            self._error = error

    def wait(self) -> list[bytes]:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._found


def _opened(path: str) -> int:
    if not path:
        return _INLINE
    if scheme_of(path) != "file":
        return _REMOTE
    return os.open(LocalFileSystem.local(path), os.O_RDONLY | os.O_CLOEXEC)


def _read(layer: KeyedLayer, file: int, offset: int, size: int) -> bytes:
    if file == _INLINE:
        return layer.file.inline[offset : offset + size]
    if file != _REMOTE:
        return os.pread(file, size, offset)
    try:
        with file_system_of(layer.file.path).open_read(layer.file.path, offset) as stream:
            return stream.read(size) if size > _PEEK_BYTES else _read_little(stream, size)
    except InputError as error:
        raise CorruptStateError(
            f"State file {layer.file.path} is not there any more, and not all of it had been restored: {error} "
            "Restore from another checkpoint or savepoint."
        ) from error


def _read_little(stream: Any, size: int) -> bytes:
    """Read no more than that, as far as the file system lets: buffers would fetch a megabyte."""
    read = getattr(stream, "read1", stream.read)
    content = b""
    while len(content) < size and (more := read(size - len(content))):
        content += more
    return content
