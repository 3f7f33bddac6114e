"""Writes a zip file forward only, and deflates on all cores: the standard library's writer does neither.

Each member is cut into blocks that are compressed on their own and joined, as pigz does: what comes out is one ordinary
deflate stream. Sizes stand behind a member's bytes (a data descriptor) and in the directory at the end, so nothing is
written twice and whoever copies the file while it grows copies what it will be. Equal input gives equal bytes.
"""

from __future__ import annotations

import concurrent.futures
import io
import os
import struct
import types
import zlib
from collections import deque
from dataclasses import dataclass
from typing import IO, Final, final

from engine.core.errors import ConfigError

__all__ = ["ParallelZipWriter"]

BLOCK_BYTES: Final = 1 << 20
LEVEL: Final = 1  # level 6 is four times slower for a tenth less
THREADS_MAX: Final = 8
#: Blocks under way, per thread: enough that none waits for the file, and no more memory than that.
BLOCKS_PER_THREAD: Final = 4
MEMBERS_MAX, FILE_BYTES_MAX = 0xFFFF - 1, 0xFFFF_FFFF - 1  # of a zip file without its 64-bit extension
_DOS_TIME, _DOS_DATE = 0, (1 << 5) | 1  # 1980-01-01: the same content is the same file
_VERSION, _UNIX, _DEFLATED = 20, 3 << 8, 8
_FLAGS: Final = 0x0008 | 0x0800  # sizes follow the bytes; names are UTF-8


@dataclass(frozen=True, slots=True)
class _Begin:
    name: bytes


@dataclass(frozen=True, slots=True)
class _End:
    name: bytes
    mode: int
    crc: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Member:
    end: _End
    packed_bytes: int
    offset: int


def _deflate(block: bytes, is_last: bool) -> bytes:
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(block) + compressor.flush(zlib.Z_FINISH if is_last else zlib.Z_SYNC_FLUSH)


@final
class ParallelZipWriter:
    """Use as a context manager; the directory is written when the block ends without an error."""

    def __init__(self, stream: IO[bytes] | io.BufferedWriter, threads: int | None = None) -> None:
        threads = threads or min(THREADS_MAX, len(os.sched_getaffinity(0)))
        self._stream = stream
        self._pool = concurrent.futures.ThreadPoolExecutor(threads)
        self._backlog_max = threads * BLOCKS_PER_THREAD
        #: What is still to be written, in the order of the file; between a begin and its end are deflated blocks.
        self._pending: deque[_Begin | concurrent.futures.Future[bytes] | _End] = deque()
        self._members: list[_Member] = []
        self._offset = 0
        self._member_offset = 0  #: where the member that is being written begins
        self._packed_bytes = 0  #: of its blocks

    def __enter__(self) -> ParallelZipWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._write_pending(0)
                self._write_directory()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def add(self, name: str, source: IO[bytes] | io.BufferedIOBase, mode: int) -> None:
        """Append one file with what ``source`` has from where it stands."""
        encoded = name.encode()
        self._pending.append(_Begin(encoded))
        crc = size = 0
        block = source.read(BLOCK_BYTES)
        while True:
            following = source.read(BLOCK_BYTES) if block else b""
            crc, size = zlib.crc32(block, crc), size + len(block)
            self._pending.append(self._pool.submit(_deflate, block, not following))
            self._write_pending(self._backlog_max)
            if not following:
                break
            block = following
        self._pending.append(_End(encoded, mode, crc, size))

    def _write_pending(self, left: int) -> None:
        """Write from the front until no more than ``left`` parts wait."""
        while len(self._pending) > left:
            match self._pending.popleft():
                case _Begin(name):
                    self._member_offset, self._packed_bytes = self._offset, 0
                    head = (_VERSION, _FLAGS, _DEFLATED, _DOS_TIME, _DOS_DATE, 0, 0, 0, len(name), 0)
                    self._write(struct.pack("<4s5H3I2H", b"PK\3\4", *head) + name)
                case _End() as end:
                    self._members.append(_Member(end, self._packed_bytes, self._member_offset))
                    self._write(struct.pack("<4s3I", b"PK\7\10", end.crc, self._packed_bytes, end.size_bytes))
                case block:
                    packed = block.result()
                    self._packed_bytes += len(packed)
                    self._write(packed)

    def _write(self, part: bytes) -> None:
        self._offset += len(part)
        self._stream.write(part)

    def _write_directory(self) -> None:
        begin = self._offset
        if len(self._members) > MEMBERS_MAX or begin > FILE_BYTES_MAX:
            raise ConfigError(
                f"{len(self._members)} files of {begin} compressed bytes are more than a zip archive holds "
                f"({MEMBERS_MAX} files, {FILE_BYTES_MAX} bytes); install fewer packages beside the engine."
            )
        for member in self._members:
            end = member.end
            sizes = (end.crc, member.packed_bytes, end.size_bytes, len(end.name), 0, 0, 0, 0)
            entry = (_UNIX | _VERSION, _VERSION, _FLAGS, _DEFLATED, _DOS_TIME, _DOS_DATE, *sizes)
            attributes = (0o100000 | end.mode) << 16
            self._write(struct.pack("<4s6H3I5H2I", b"PK\1\2", *entry, attributes, member.offset) + end.name)
        count, size = len(self._members), self._offset - begin
        self._write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size, begin, 0))
