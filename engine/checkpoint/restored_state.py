"""Reads state of tasks back: ``state/parts.RestoredState`` on top of the handles of a checkpoint. Blocks.

Only the chunks of the subtask's own key groups are read. Every byte is checked against its CRC before anybody sees it.
"""

from __future__ import annotations

import io
import os
import pickle
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Final, final

from engine.checkpoint.deferred_chunks import DeferredChunks
from engine.core.errors import CorruptStateError, InputError, ProgramError
from engine.core.fs import file_system_of
from engine.protocol.checkpoint import (
    ChunkPlace,
    FileHandle,
    KeyedLayer,
    KeyedStateHandle,
    ListStateHandle,
    OperatorRestore,
)
from engine.state.operator_state import OperatorStateSnapshot, redistribute

__all__ = ["HandleRestoredState", "read_chunks", "read_file"]

_COPY_BYTES: Final = 1 << 20
#: Files of one part that are fetched at a time: a part on disk has a hundred of them.
_DOWNLOADS: Final = 4
#: Chunks with less than this between them are read in one go.
_GAP_BYTES_MAX: Final = 256 << 10
#: After so many bytes their part takes them up, so that a large state is not in memory twice.
_READ_BYTES: Final = 32 << 20


@final
class HandleRestoredState:
    """What a checkpoint holds for one operator in one subtask. ``work_dir``: an empty local folder for downloads, made
    when it is needed. ``operator_name``: for messages."""

    def __init__(
        self,
        restore: OperatorRestore,
        *,
        operator_name: str,
        subtask_index: int,
        parallelism: int,
        key_groups: range,
        work_dir: str,
    ) -> None:
        self._restore = restore
        self._operator_name = operator_name
        self._subtask_index = subtask_index
        self._parallelism = parallelism
        self._key_groups = key_groups
        self._work_dir = work_dir
        self._file_parts: set[str] = set()  #: those that take up files of their own

    @property
    def watched_as(self) -> str:
        return self._restore.watched_as

    @property
    def told_as(self) -> str:
        return self._restore.told_as

    def part_names(self) -> Sequence[str]:
        return list(dict.fromkeys(handle.part for handle in self._restore.keyed))

    def keyed_layers(self, part: str) -> Iterator[Mapping[int, bytes]]:
        for handle in self._of_part(part):
            if handle.files and part not in self._file_parts:
                raise ProgramError(self._wrong_format(handle, "hashmap"))
            for layer in handle.layers:
                yield from read_chunks(layer, self._key_groups)

    def keyed_later(self, part: str) -> DeferredChunks | None:
        handles = self._of_part(part)
        if any(handle.files for handle in handles):
            return None
        return DeferredChunks.of([layer for handle in handles for layer in handle.layers], self._key_groups)

    def keyed_folders(self, part: str, format: str) -> Iterator[tuple[str, range]]:
        self._file_parts.add(part)
        for number, handle in enumerate(self._of_part(part)):
            if not handle.files:
                continue
            if handle.format != format:
                raise ProgramError(self._wrong_format(handle, format))
            folder = os.path.join(self._work_dir, f"{part}-{number}")
            os.makedirs(folder)
            with ThreadPoolExecutor(_DOWNLOADS, thread_name_prefix="download") as threads:
                names, files = zip(*handle.files, strict=True)
                list(threads.map(_download, files, (os.path.join(folder, name) for name in names)))
            own = self._key_groups
            yield folder, range(max(own.start, handle.key_group_start), min(own.stop, handle.key_group_end))

    def _wrong_format(self, handle: KeyedStateHandle, format: str) -> str:
        return (
            f"State {handle.part!r} of operator {self._operator_name!r} is in the format of state.backend.type "
            f"{handle.format}, the job uses {format}. A checkpoint can only be restored with the backend that wrote "
            "it; take a savepoint with that one to change the backend."
        )

    def _of_part(self, part: str) -> list[KeyedStateHandle]:
        own = self._key_groups
        return [
            handle
            for handle in self._restore.keyed
            if handle.part == part and handle.key_group_start < own.stop and own.start < handle.key_group_end
        ]

    def has_lists(self) -> bool:
        return bool(self._restore.lists)

    def lists(self) -> OperatorStateSnapshot | None:
        if not self._restore.lists:
            return None
        snapshots = [_load_lists(handle) for handle in self._restore.lists]
        if len(snapshots) == 1 and not self._restore.redistribute:
            return snapshots[0]
        return redistribute(snapshots, self._parallelism)[self._subtask_index]


def _load_lists(handle: ListStateHandle) -> OperatorStateSnapshot:
    snapshot = pickle.loads(read_file(handle.file))
    assert isinstance(snapshot, OperatorStateSnapshot), snapshot
    return snapshot


# --- files -----------------------------------------------------------------------------------------------------------


def read_file(file: FileHandle) -> bytes:
    """Return all bytes. Raises: CorruptStateError when they are not those that were written."""
    if not file.path:
        content = file.inline
    else:
        with _open(file, 0) as stream:
            content = _read_exactly(file, stream, file.size_bytes)
    if len(content) != file.size_bytes or zlib.crc32(content) != file.crc32:
        raise CorruptStateError(_damaged(file, "its checksum is wrong"))
    return content


def read_chunks(layer: KeyedLayer, key_groups: range) -> Iterator[dict[int, bytes]]:
    """Yield the chunks of these key groups, some at a time. Raises: CorruptStateError."""
    wanted = sorted((place, group) for group, place in layer.chunks.items() if group in key_groups)
    at = 0
    while at < len(wanted):
        first = wanted[at][0][0]
        until = at
        end = first
        while until < len(wanted) and wanted[until][0][0] - end <= _GAP_BYTES_MAX and end - first < _READ_BYTES:
            end = wanted[until][0][0] + wanted[until][0][1]
            until += 1
        chunks: dict[int, bytes] = {}
        for group, content in _read_places(layer.file, wanted[at:until]):
            chunks[group] = content
        yield chunks
        at = until


def _read_places(file: FileHandle, places: Sequence[tuple[ChunkPlace, int]]) -> Iterator[tuple[int, bytes]]:
    """Yield key group and chunk, in the order of the file; what is between them is small."""
    with _open(file, places[0][0][0]) as stream:
        at = places[0][0][0]
        for (offset, size, crc), group in places:
            _read_exactly(file, stream, offset - at)
            chunk = _read_exactly(file, stream, size)
            if zlib.crc32(chunk) != crc:
                raise CorruptStateError(_damaged(file, f"the checksum of key group {group} is wrong"))
            yield group, chunk
            at = offset + size


def _open(file: FileHandle, offset: int) -> IO[bytes]:
    if not file.path:
        return io.BytesIO(file.inline[offset:])
    try:
        return file_system_of(file.path).open_read(file.path, offset)
    except InputError as error:
        raise CorruptStateError(_damaged(file, str(error))) from error


def _read_exactly(file: FileHandle, stream: IO[bytes], size: int) -> bytes:
    if not size:
        return b""
    try:
        content = stream.read(size)
    except InputError as error:
        raise CorruptStateError(_damaged(file, str(error))) from error
    if len(content) != size:
        raise CorruptStateError(_damaged(file, f"it ends {size - len(content)} bytes early"))
    return content


def _download(file: FileHandle, local_path: str) -> None:
    size = crc = 0
    with open(local_path, "wb") as target:
        if not file.path:
            target.write(read_file(file))
            return
        try:
            with file_system_of(file.path).open_read(file.path) as stream:
                while content := stream.read(_COPY_BYTES):
                    target.write(content)
                    size += len(content)
                    crc = zlib.crc32(content, crc)
        except InputError as error:
            raise CorruptStateError(_damaged(file, str(error))) from error
    if (size, crc) != (file.size_bytes, file.crc32):
        raise CorruptStateError(
            _damaged(file, f"it has {size} bytes, expected {file.size_bytes} with another checksum")
        )


def _damaged(file: FileHandle, problem: str) -> str:
    name = file.path or "metadata (state that travelled inside it)"
    return f"State file {name} is damaged: {problem}. Restore from an older checkpoint or savepoint."
