"""Chunks of a restored part that are read when they are asked for: ``state/parts.ChunkSource`` on local files.

The files are open all along, so it does not matter when they are deleted. What is read is checked against its CRC, as
in ``restored_state``.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from typing import Final, final

from engine.core.errors import CorruptStateError
from engine.core.fs import LocalFileSystem, scheme_of
from engine.protocol.checkpoint import KeyedLayer

__all__ = ["DeferredChunks"]

#: With less than this there is nothing to gain.
DEFERRED_BYTES_MIN: Final = 32 << 20
_FILES_MAX: Final = 128
_PEEK_BYTES: Final = 16 << 10


@final
class DeferredChunks:
    """``layers``: oldest first. Raises (``read``): CorruptStateError."""

    def __init__(self, layers: Sequence[KeyedLayer], key_groups: range) -> None:
        self._layers = layers
        self._files: list[int] = []
        self._key_groups = sorted({group for layer in layers for group in layer.chunks if group in key_groups})

    @classmethod
    def of(cls, layers: Sequence[KeyedLayer], key_groups: range) -> DeferredChunks | None:
        """None: too little for that, too many files, or files that are not local."""
        sizes = [size for layer in layers for group, (_, size, _) in layer.chunks.items() if group in key_groups]
        is_local = all(not layer.file.path or scheme_of(layer.file.path) == "file" for layer in layers)
        if sum(sizes) < DEFERRED_BYTES_MIN or len(layers) > _FILES_MAX or not is_local:
            return None
        chunks = cls(layers, key_groups)
        try:
            for layer in layers:
                path = layer.file.path
                chunks._files.append(os.open(LocalFileSystem.local(path), os.O_RDONLY | os.O_CLOEXEC) if path else -1)
        except OSError:
            chunks.close()
            return None  # who reads it at once will tell
        return chunks

    @property
    def key_groups(self) -> Sequence[int]:
        return self._key_groups

    def peek(self) -> Iterator[tuple[int, bytes]]:
        """Yield the beginnings of all chunks with their key groups, oldest layer first; not checked."""
        for layer, file in zip(self._layers, self._files, strict=True):
            for group in self._key_groups:
                if group in layer.chunks:
                    offset, size, _ = layer.chunks[group]
                    yield group, _read(layer, file, offset, min(size, _PEEK_BYTES))

    def read(self, key_group: int) -> Iterator[bytes]:
        """Yield the chunks of a key group, oldest layer first."""
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


def _read(layer: KeyedLayer, file: int, offset: int, size: int) -> bytes:
    if file < 0:
        return layer.file.inline[offset : offset + size]
    return os.pread(file, size, offset)
