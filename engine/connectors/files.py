"""Text files as a source: cut into byte ranges (``file_splits``), read ahead (``file_chunks``).

Files, folders (recursively, hidden ones left out) and globs on any FileSystem. A plain file is read in parallel; a
compressed one (by suffix), or one in UTF-16, by one reader. Not here: writing (``file_sinks``), PyFlink's builders
(``file_system``), where lines begin and end (``formats/text``).
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import final

from engine.connectors.file_chunks import Chunk, ChunkReader, opened_split, reaching, without_first
from engine.connectors.file_splits import FileEnumerator, FileSplit, split_size_of
from engine.connectors.source import Boundedness, Source, SourceReader, Split, SplitEnumerator, SplitOrder
from engine.core.fs import scheme_of
from engine.core.records import Batch, ColumnBatch, RowBatch
from engine.formats.compression import compression_of
from engine.formats.text import (
    UTF8_BOM,
    decode_lines,
    is_byte_newline_charset,
    lines_of_range,
    normal_charset,
    transcoded,
    undecodable,
)
from engine.operators.base import OperatorContext

__all__ = ["FileSplit", "TextFileSource", "absolute_path", "split_size_of"]


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
class _TextReader(SourceReader):
    """``poll`` turns chunks into batches; a thread finds them."""

    split_order = SplitOrder.ONE_BY_ONE

    def __init__(self, source: TextFileSource) -> None:
        self._source = source
        self._chunks = ChunkReader(self._chunks_of)
        self._chunk: Chunk | None = None  # the last one of the first split that poll has begun
        self._lines: list[str] = []  # of that chunk
        self._position = 0  # in the lines

    def open(self, ctx: OperatorContext) -> None:
        super().open(ctx)
        self._chunks.open(ctx)

    def add_split(self, split: Split) -> None:
        self._chunks.add_split(split)

    def wants_split(self) -> bool:
        return self._chunks.is_read()

    def is_drained(self) -> bool:
        return self._chunks.is_empty() and self._position >= len(self._lines)

    def poll(self, rows_max: int) -> Batch | None:
        while True:
            if self._position < len(self._lines):
                end = min(len(self._lines), self._position + rows_max)
                rows = self._lines if end - self._position == len(self._lines) else self._lines[self._position : end]
                self._position = end
                return RowBatch(rows)
            chunk = self._chunks.next()
            if chunk is None:
                return None
            self._lines, self._position = [], 0
            if isinstance(chunk, FileSplit):
                self._chunk = None
                self.end_split(chunk.split_id)
                continue
            self._chunk = chunk
            if self._source.raw_chunks or self._source.columnar:
                return self._columns(chunk)
            self._lines = self._decoded(chunk)

    def split_of_batch(self) -> str:
        return self._chunks.splits[0].split_id  # behind its last batch stands a mark that ends it

    def snapshot(self) -> list[Split]:
        splits = list(self._chunks.splits)
        chunk = self._chunk
        if chunk is not None:
            size = len(chunk.data)
            if self._position < len(self._lines):
                size -= len(chunk.data.split(b"\n", self._position)[self._position])
            splits[0] = replace(splits[0], start=chunk.offset + size)
        return [split for split in splits if split.end is None or split.start < split.end]

    def _decoded(self, chunk: Chunk) -> list[str]:
        try:
            return decode_lines(chunk.data, chunk.charset, self._source.errors)
        except UnicodeDecodeError as error:
            raise undecodable(chunk.path, chunk.offset + error.start, chunk.charset, error, chunk.unpacked) from error

    def _columns(self, chunk: Chunk) -> Batch:
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
        self._chunks.close()

    def _chunks_of(self, split: FileSplit, is_stopped: Callable[[], bool]) -> Iterator[Chunk]:
        codec = compression_of(split.path)
        charset = self._source.charset
        is_entered = split.end is not None
        before = max(split.start - 1, 0)  # the byte that says whether a line begins at the start
        stream, chunks = opened_split(split, before if is_entered else 0, is_stopped)
        with contextlib.closing(stream):
            if not is_byte_newline_charset(charset):
                chunks = transcoded(chunks, charset, self._source.errors, split.path)
                charset = "utf-8"
            if not is_entered:
                chunks = without_first(chunks, before)
            end = (1 << 62) if split.end is None else split.end
            for offset, data in lines_of_range(reaching(chunks, split, before), split.start, end):
                if offset == 0 and charset == "utf-8" and data.startswith(UTF8_BOM):
                    offset, data = 3, data[3:]
                yield Chunk(split.path, offset, data, charset, codec is not None)
