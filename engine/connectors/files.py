"""Text files as a source: found and cut into byte ranges by the enumerator, read ahead by one thread a reader.

Files, folders (recursively, hidden ones left out) and globs on any FileSystem. A plain file is read in parallel; a
compressed one (by suffix), or one in UTF-16, by one reader. Not here: writing (``file_sinks``), PyFlink's builders
(``file_system``), where lines begin and end (``formats/text``).
"""

from __future__ import annotations

import contextlib
import glob
import os
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Final, final

from engine.connectors.source import Boundedness, Source, SourceReader, Split, SplitEnumerator
from engine.core.errors import EngineError, InputError
from engine.core.fs import FileStatus, file_system_of, list_input_files, scheme_of
from engine.core.records import Batch, ColumnBatch, RowBatch
from engine.formats.compression import compression_of, decompressed, read_errors
from engine.formats.text import (
    UTF8_BOM,
    decode_lines,
    is_byte_newline_charset,
    lines_of_range,
    normal_charset,
    transcoded,
    undecodable,
)

__all__ = ["FileSplit", "TextFileSource", "absolute_path", "split_size_of"]

SPLIT_BYTES_MIN: Final = 1 << 20
SPLIT_BYTES_MAX: Final = 64 << 20
#: Splits a reader should get on average, so that the last ones even out.
_SPLITS_PER_READER: Final = 4
_CHUNK_BYTES: Final = 1 << 20
#: Chunks that a thread reads ahead of the task.
_CHUNKS_AHEAD_MAX: Final = 3
#: Splits whose hosts are asked for; beyond, a listing would take longer than it saves.
_LOCATED_SPLITS_MAX: Final = 10_000


@final
@dataclass(frozen=True)
class TextFileSource(Source):
    """Lines of text files, as ``str``.

    ``errors``: as in ``bytes.decode``; with "strict" undecodable bytes are an InputError that names file and offset.
    ``monitor_interval_ms``: look for new files for ever (unbounded); each path is read once.
    ``columnar``: emit an Arrow string column of lines. ``raw_chunks``: emit a binary column of chunks of whole lines,
    UTF-8 whatever the charset was, which only ``operators/text`` understands.
    """

    paths: tuple[str, ...]
    charset: str = "utf-8"
    errors: str = "strict"
    monitor_interval_ms: int | None = None
    columnar: bool = False
    raw_chunks: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "charset", normal_charset(self.charset))
        object.__setattr__(self, "paths", tuple(absolute_path(path) for path in self.paths))

    @property
    def boundedness(self) -> Boundedness:  # type: ignore[override]
        return Boundedness.BOUNDED if self.monitor_interval_ms is None else Boundedness.CONTINUOUS_UNBOUNDED

    def create_enumerator(self) -> SplitEnumerator:
        return _FileEnumerator(self)

    def create_reader(self) -> SourceReader:
        return _TextReader(self)


def absolute_path(path: str) -> str:
    """Return a local path without scheme as an absolute one: tasks have another working folder than the program."""
    if scheme_of(path) != "file" or path.startswith("file:"):
        return path
    return os.path.abspath(path) + ("/" if path.endswith("/") and path != "/" else "")


# --- splits -----------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class FileSplit:
    """The lines that begin in bytes [start, end) of a file; ``end`` None = the whole file, whatever its size."""

    split_id: str
    path: str
    start: int
    end: int | None


@final
@dataclass(frozen=True, slots=True)
class NothingYet:
    """Instead of a split, when monitoring: ask again after the interval."""

    split_id: str
    interval_ms: int


def split_size_of(total_bytes: int, parallelism: int) -> int:
    return max(SPLIT_BYTES_MIN, min(SPLIT_BYTES_MAX, -(-total_bytes // (_SPLITS_PER_READER * parallelism))))


def _cut(file: FileStatus, split_size: int, splittable: bool) -> list[FileSplit]:
    if not splittable or compression_of(file.path) is not None:
        return [FileSplit(file.path, file.path, 0, None)]
    size = file.size_bytes
    starts = range(0, size, split_size)
    return [FileSplit(f"{file.path}:{start}", file.path, start, min(start + split_size, size)) for start in starts]


@final
class _FileEnumerator(SplitEnumerator):
    def __init__(self, source: TextFileSource) -> None:
        self._source = source
        self._seen: set[str] = set()
        #: not handed out yet, in order of the files; a dict because one from the middle is taken when it is local
        self._splits: dict[str, FileSplit] = {}
        self._ids_by_host: dict[str, deque[str]] = {}
        self._own_names: set[str] = set()
        self._listed_s = 0.0

    def start(self, parallelism: int) -> None:
        self._parallelism = parallelism
        self._own_names = {"localhost", "127.0.0.1", "::1", socket.gethostname().lower()}
        self._find()

    def _find(self) -> None:
        listed = {file.path: file for path in self._source.paths for file in self._list(path)}
        files = [file for file in listed.values() if file.path not in self._seen]
        self._listed_s = time.monotonic()
        self._seen.update(file.path for file in files)
        size = split_size_of(sum(file.size_bytes for file in files), self._parallelism)
        splittable = is_byte_newline_charset(self._source.charset)
        for file in files:
            if file.size_bytes:
                self._splits.update((split.split_id, split) for split in _cut(file, size, splittable))
        self._locate()

    def _list(self, path: str) -> list[FileStatus]:
        if self._source.monitor_interval_ms is None or not glob.has_magic(path):
            return list_input_files(path)
        try:
            return list_input_files(path)
        except InputError:
            return []  # nothing matches yet

    def _locate(self) -> None:
        """Ask where the splits lie, unless the file system says of the first one that it does not know."""
        for number, split in enumerate(self._splits.values()):
            if number >= _LOCATED_SPLITS_MAX:
                return
            length = (split.end or split.start + 1) - split.start
            try:
                hosts = file_system_of(split.path).block_hosts(split.path, split.start, length)
            except EngineError:
                return  # only a hint is lost; reading says what is wrong
            if not hosts and number == 0:
                return
            for host in hosts:
                self._ids_by_host.setdefault(self._plain(host), deque()).append(split.split_id)

    def _plain(self, host: str) -> str:
        host = host.lower().rstrip(".")
        if host in self._own_names:
            return "localhost"
        # node7 and node7.example.org are one host; addresses stay whole.
        return host if host.replace(".", "").isdigit() or ":" in host else host.split(".")[0]

    def next_split(self, subtask_index: int, host: str) -> Split | None:
        interval_ms = self._source.monitor_interval_ms
        if not self._splits and interval_ms is not None:
            if (time.monotonic() - self._listed_s) * 1000 >= interval_ms:
                self._find()
            if not self._splits:
                return NothingYet("", interval_ms)
        local = self._ids_by_host.get(self._plain(host))
        while local:
            split = self._splits.pop(local.popleft(), None)
            if split is not None:
                return split
        if not self._splits:
            return None
        return self._splits.pop(next(iter(self._splits)))


# --- reading ----------------------------------------------------------------------------------------------------------


@final
@dataclass(slots=True)
class _Chunk:
    """Whole lines, and where they stood. ``charset`` may differ from the source's when the thread transcoded."""

    path: str
    offset: int
    data: bytes
    charset: str
    unpacked: bool


@final
class _TextReader(SourceReader):
    """``poll`` turns chunks into batches; the thread finds them. All that both touch is guarded by ``_lock``."""

    def __init__(self, source: TextFileSource) -> None:
        self._source = source
        self._lock = threading.Condition()
        self._splits: deque[FileSplit | NothingYet] = deque()
        self._num_unread = 0  # splits that the thread has not read to their end
        self._chunks: deque[_Chunk] = deque()
        self._error: Exception | None = None
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._lines: list[str] = []  # of the chunk that poll is at
        self._position = 0

    def add_split(self, split: Split) -> None:
        assert isinstance(split, (FileSplit, NothingYet)), split
        with self._lock:
            self._splits.append(split)
            self._num_unread += 1
            self._lock.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"files {self.ctx.operator_name}", daemon=True)
            self._thread.start()

    def wants_split(self) -> bool:
        return self._num_unread == 0

    def is_drained(self) -> bool:
        with self._lock:
            return not (self._num_unread or self._chunks or self._error or self._position < len(self._lines))

    def poll(self, rows_max: int) -> Batch | None:
        while True:
            if self._position < len(self._lines):
                end = min(len(self._lines), self._position + rows_max)
                rows = self._lines if end - self._position == len(self._lines) else self._lines[self._position : end]
                self._position = end
                return RowBatch(rows)
            with self._lock:
                if not self._chunks:
                    if self._error is not None:
                        raise self._error
                    return None
                chunk = self._chunks.popleft()
                self._lock.notify()
            if self._source.raw_chunks or self._source.columnar:
                return self._columns(chunk)
            self._lines = self._decoded(chunk)
            self._position = 0

    def _decoded(self, chunk: _Chunk) -> list[str]:
        try:
            return decode_lines(chunk.data, chunk.charset, self._source.errors)
        except UnicodeDecodeError as error:
            raise undecodable(chunk.path, chunk.offset + error.start, chunk.charset, error, chunk.unpacked) from error

    def _columns(self, chunk: _Chunk) -> Batch:
        import pyarrow as pa

        if not self._source.raw_chunks:
            lines = pa.array(self._decoded(chunk), type=pa.string())
            return ColumnBatch(pa.RecordBatch.from_arrays([lines], names=["f0"]), scalar=True)
        data = chunk.data
        if not data.isascii():
            try:
                text = data.decode(chunk.charset, self._source.errors)
            except UnicodeDecodeError as error:
                raise undecodable(
                    chunk.path, chunk.offset + error.start, chunk.charset, error, chunk.unpacked
                ) from error
            if chunk.charset != "utf-8" or self._source.errors != "strict":
                data = text.encode("utf-8", "surrogatepass")
        # One value that is the chunk itself: nothing is copied.
        offsets = pa.py_buffer(struct.pack("<ii", 0, len(data)))
        value = pa.Array.from_buffers(pa.binary(), 1, [None, offsets, pa.py_buffer(data)])
        return ColumnBatch(pa.RecordBatch.from_arrays([value], names=["chunk"]), scalar=True)

    def close(self) -> None:
        with self._lock:
            self._stopped = True
            self._lock.notify_all()
        if self._thread is not None:
            self._thread.join(5.0)

    # --- the reading thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                with self._lock:
                    while not self._splits and not self._stopped:
                        self._lock.wait()
                    if self._stopped:
                        return
                    split = self._splits.popleft()
                if isinstance(split, NothingYet):
                    deadline = time.monotonic() + split.interval_ms / 1000
                    with self._lock:
                        while not self._stopped and (left := deadline - time.monotonic()) > 0:
                            self._lock.wait(left)
                else:
                    self._read(split)
                with self._lock:
                    self._num_unread -= 1
                self.ctx.wake()
        except Exception as error:
            with self._lock:
                self._error = error
            self.ctx.wake()

    def _read(self, split: FileSplit) -> None:
        codec = compression_of(split.path)
        charset = self._source.charset
        whole = split.end is None
        try:
            stream = file_system_of(split.path).open_read(split.path, max(split.start - 1, 0))
        except InputError as error:
            raise InputError(f"{error} It was there when the job listed its input.") from error
        with contextlib.closing(stream):
            source: Any = stream if codec is None else decompressed(stream, codec, split.path)
            chunks = self._chunks_of(source, split, codec)
            if not is_byte_newline_charset(charset):
                chunks = transcoded(chunks, charset, self._source.errors, split.path)
                charset = "utf-8"
            end = (1 << 62) if whole else split.end
            assert end is not None
            for offset, data in lines_of_range(chunks, split.start, end):
                if offset == 0 and charset == "utf-8" and data.startswith(UTF8_BOM):
                    offset, data = 3, data[3:]
                if not self._hand_over(_Chunk(split.path, offset, data, charset, codec is not None)):
                    return

    def _chunks_of(self, stream: IO[bytes], split: FileSplit, codec: str | None) -> Iterator[bytes]:
        position = max(split.start - 1, 0)
        while not self._stopped:
            try:
                chunk = stream.read(_CHUNK_BYTES)
            except EngineError:
                raise
            except read_errors() as error:
                what = "Cannot read" if codec is None else f"Broken {codec} data in"
                raise InputError(f"{what} {split.path} at byte offset {position}: {error}.") from error
            if not chunk:
                return
            yield chunk
            position += len(chunk)

    def _hand_over(self, chunk: _Chunk) -> bool:
        """Queue a chunk when there is room; return False when the reader was closed."""
        with self._lock:
            while len(self._chunks) >= _CHUNKS_AHEAD_MAX and not self._stopped:
                self._lock.wait()
            if self._stopped:
                return False
            self._chunks.append(chunk)
            first = len(self._chunks) == 1
        if first:
            self.ctx.wake()
        return True
