"""Records of text files for CSV: the first line of each file left out, or a record delimiter other than the newline.

Lines without these two wishes come from ``connectors/files`` as they are. Parsing a line is ``operators/csv_lines``.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import IO, Any, Final, final

from engine.connectors.files import FileSplit, TextFileSource
from engine.connectors.source import Source, SourceReader, Split, SplitEnumerator
from engine.core.errors import InputError
from engine.core.fs import file_system_of, list_input_files
from engine.core.records import Batch, RowBatch, rows_of

__all__ = ["DelimitedFileSource", "SkipFirstLineSource"]

_CHUNK_BYTES: Final = 256 << 10


@final
@dataclass(frozen=True)
class SkipFirstLineSource(Source):
    """Lines of text files without the first of each file."""

    lines: TextFileSource

    def create_enumerator(self) -> SplitEnumerator:
        return self.lines.create_enumerator()

    def create_reader(self) -> SourceReader:
        return _SkippingReader(self.lines.create_reader())


@final
class _SkippingReader(SourceReader):
    """Asks for a split only when the one before is read, so that it is known which split a batch is of."""

    def __init__(self, lines: SourceReader) -> None:
        self._lines = lines
        self._skip = False

    def open(self, ctx: Any) -> None:
        super().open(ctx)
        self._lines.open(ctx)

    def add_split(self, split: Split) -> None:
        assert isinstance(split, FileSplit)
        self._skip = split.start == 0
        self._lines.add_split(split)

    def poll(self, rows_max: int) -> Batch | None:
        batch = self._lines.poll(rows_max)
        if batch is None or not self._skip or not len(batch):
            return batch
        self._skip = False
        return rows_of(batch).slice(1, len(batch))

    def wants_split(self) -> bool:
        return self._lines.is_drained()

    def is_drained(self) -> bool:
        return self._lines.is_drained()

    def close(self) -> None:
        self._lines.close()


@final
@dataclass(frozen=True)
class DelimitedFileSource(Source):
    """Records that end with ``delimiter``; a file is read whole by one reader."""

    paths: tuple[str, ...]
    delimiter: str
    skip_first: bool = False
    charset: str = "utf-8"

    def create_enumerator(self) -> SplitEnumerator:
        return _WholeFiles(self.paths)

    def create_reader(self) -> SourceReader:
        return _DelimitedReader(self)


@final
class _WholeFiles(SplitEnumerator):
    def __init__(self, paths: tuple[str, ...]) -> None:
        self._paths = paths

    def start(self, parallelism: int) -> None:
        files = [file for path in self._paths for file in list_input_files(path)]
        self._files = deque(FileSplit(file.path, file.path, 0, None) for file in files if file.size_bytes)

    def next_split(self, subtask_index: int, host: str) -> Split | None:
        return self._files.popleft() if self._files else None


@final
class _DelimitedReader(SourceReader):
    def __init__(self, source: DelimitedFileSource) -> None:
        self._source = source
        self._delimiter = source.delimiter.encode(source.charset)
        self._stream: IO[bytes] | None = None
        self._path = ""
        self._rest = b""
        self._skip = False

    def add_split(self, split: Split) -> None:
        assert isinstance(split, FileSplit)
        self._path = split.path
        self._stream = file_system_of(split.path).open_read(split.path)
        self._rest = b""
        self._skip = self._source.skip_first

    def poll(self, rows_max: int) -> Batch | None:
        if self._stream is None:
            return None
        chunk = self._stream.read(_CHUNK_BYTES)
        if chunk:
            *records, self._rest = (self._rest + chunk).split(self._delimiter)
        else:
            records = [self._rest] if self._rest else []
            self._stream.close()
            self._stream = None
        if self._skip and records:
            self._skip = False
            del records[0]
        try:
            return RowBatch([record.decode(self._source.charset) for record in records])
        except UnicodeDecodeError as error:
            raise InputError(f"{self._path} is not {self._source.charset}: {error}.") from error

    def wants_split(self) -> bool:
        return self._stream is None

    def is_drained(self) -> bool:
        return self._stream is None

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
