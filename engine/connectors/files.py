"""Text files as a source: cut into byte ranges (``file_splits``), read ahead by one thread a reader.

Files, folders (recursively, hidden ones left out) and globs on any FileSystem. A plain file is read in parallel; a
compressed one (by suffix), or one in UTF-16, by one reader. Not here: writing (``file_sinks``), PyFlink's builders
(``file_system``), where lines begin and end (``formats/text``).
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import IO, Any, Final, final

from engine.connectors.file_splits import FileEnumerator, FileSplit, NothingYet, split_size_of
from engine.connectors.source import Boundedness, Source, SourceReader, Split, SplitEnumerator, SplitOrder
from engine.core.errors import EngineError, InputError
from engine.core.fs import file_system_of, scheme_of
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

_CHUNK_BYTES: Final = 1 << 20
#: Chunks that a thread reads ahead of the task.
_CHUNKS_AHEAD_MAX: Final = 3


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
        return FileEnumerator(
            self.paths,
            splittable=is_byte_newline_charset(self.charset),
            monitor_interval_ms=self.monitor_interval_ms,
        )

    def create_reader(self) -> SourceReader:
        return _TextReader(self)


def absolute_path(path: str) -> str:
    """Return a local path without scheme as an absolute one: tasks have another working folder than the program."""
    if scheme_of(path) != "file" or path.startswith("file:"):
        return path
    return os.path.abspath(path) + ("/" if path.endswith("/") and path != "/" else "")


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
class _SplitEnd:
    """Stands in the queue behind the last chunk of a split."""


@final
class _TextReader(SourceReader):
    """``poll`` turns chunks into batches; the thread finds them. All that both touch is guarded by ``_lock``."""

    split_order = SplitOrder.ONE_BY_ONE

    def __init__(self, source: TextFileSource) -> None:
        self._source = source
        self._lock = threading.Condition()
        self._splits: deque[FileSplit | NothingYet] = deque()
        self._num_unread = 0  # splits that the thread has not read to their end
        self._chunks: deque[_Chunk | _SplitEnd] = deque()
        self._error: Exception | None = None
        self._stopped = False
        self._thread: threading.Thread | None = None
        #: Splits that poll has not come to the end of; it is in the first one. The task's thread alone touches these.
        self._open: deque[FileSplit] = deque()
        self._ended: list[str] = []
        self._chunk: _Chunk | None = None  # the last one of that split that poll has begun
        self._lines: list[str] = []  # of that chunk
        self._position = 0  # in the lines

    def add_split(self, split: Split) -> None:
        assert isinstance(split, (FileSplit, NothingYet)), split
        if isinstance(split, FileSplit):
            self._open.append(split)
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
            self._lines, self._position = [], 0
            if isinstance(chunk, _SplitEnd):
                self._chunk = None
                self._ended.append(self._open.popleft().split_id)
                continue
            self._chunk = chunk
            if self._source.raw_chunks or self._source.columnar:
                return self._columns(chunk)
            self._lines = self._decoded(chunk)

    def split_of_batch(self) -> str:
        return self._open[0].split_id  # behind its last batch stands a mark that ends it

    def take_ended(self) -> Collection[str]:
        if not self._ended:
            return ()
        ended, self._ended = self._ended, []
        return ended

    def snapshot(self) -> list[Split]:
        splits = list(self._open)
        chunk = self._chunk
        if chunk is not None:
            size = len(chunk.data)
            if self._position < len(self._lines):
                size -= len(chunk.data.split(b"\n", self._position)[self._position])
            splits[0] = replace(splits[0], start=chunk.offset + size)
        return [split for split in splits if split.end is None or split.start < split.end]

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
                    if isinstance(split, FileSplit):
                        self._chunks.append(_SplitEnd())
                self.ctx.wake()
        except Exception as error:
            with self._lock:
                self._error = error
            self.ctx.wake()

    def _read(self, split: FileSplit) -> None:
        codec = compression_of(split.path)
        charset = self._source.charset
        is_entered = split.end is not None
        before = max(split.start - 1, 0)  # the byte that says whether a line begins at the start
        try:
            stream = file_system_of(split.path).open_read(split.path, before if is_entered else 0)
        except InputError as error:
            raise InputError(f"{error} It was there when the job listed its input.") from error
        with contextlib.closing(stream):
            source: Any = stream if codec is None else decompressed(stream, codec, split.path)
            chunks = self._chunks_of(source, split.path, before if is_entered else 0, codec)
            if not is_byte_newline_charset(charset):
                chunks = transcoded(chunks, charset, self._source.errors, split.path)
                charset = "utf-8"
            if not is_entered:
                chunks = _without_first(chunks, before)
            end = (1 << 62) if split.end is None else split.end
            for offset, data in lines_of_range(_reaching(chunks, split, before), split.start, end):
                if offset == 0 and charset == "utf-8" and data.startswith(UTF8_BOM):
                    offset, data = 3, data[3:]
                if not self._hand_over(_Chunk(split.path, offset, data, charset, codec is not None)):
                    return

    def _chunks_of(self, stream: IO[bytes], path: str, position: int, codec: str | None) -> Iterator[bytes]:
        while not self._stopped:
            try:
                chunk = stream.read(_CHUNK_BYTES)
            except EngineError:
                raise
            except read_errors() as error:
                what = "Cannot read" if codec is None else f"Broken {codec} data in"
                raise InputError(f"{what} {path} at byte offset {position}: {error}.") from error
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


def _without_first(chunks: Iterable[bytes], num_bytes: int) -> Iterator[bytes]:
    for chunk in chunks:
        if num_bytes < len(chunk):
            yield chunk[num_bytes:]
        num_bytes = max(0, num_bytes - len(chunk))


def _reaching(chunks: Iterable[bytes], split: FileSplit, position: int) -> Iterator[bytes]:
    """Yield the chunks. Raises: InputError when they end before the split's start: nobody would notice that."""
    for chunk in chunks:
        position += len(chunk)
        yield chunk
    if position < split.start:
        raise InputError(
            f"{split.path} ends before byte {split.start}, from where the job was to read it: it has become shorter "
            "since it was listed, or since the checkpoint. Files must not change while a job reads them."
        )
