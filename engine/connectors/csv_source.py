"""Records of text files for CSV: the first line of each file left out, or a record delimiter other than the newline.

Lines without these two wishes come from ``connectors/files`` as they are. Parsing a line is ``operators/csv_lines``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import IO, Any, Final, final

from engine.connectors.files import FileSplit, TextFileSource
from engine.connectors.source import (
    Source,
    SourceReader,
    Split,
    SplitEnumerator,
    SplitOrder,
    without_assigned,
)
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

    split_order = SplitOrder.ONE_BY_ONE

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

    def split_of_batch(self) -> str:
        return self._lines.split_of_batch()

    def take_ended(self) -> Collection[str]:
        return self._lines.take_ended()

    def snapshot(self) -> list[Split]:
        # A split whose first line was left out begins behind it, so nothing is left out again.
        return self._lines.snapshot()

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

    def snapshot(self) -> tuple[FileSplit, ...]:
        return tuple(self._files)

    def restore(self, state: object, parallelism: int) -> None:
        assert isinstance(state, tuple), state
        self._files = deque(state)

    def assigned(self, splits: Collection[Split]) -> None:
        self._files = deque(without_assigned(self._files, splits))


@final
class _DelimitedReader(SourceReader):
    split_order = SplitOrder.ONE_BY_ONE

    def __init__(self, source: DelimitedFileSource) -> None:
        self._source = source
        self._delimiter = source.delimiter.encode(source.charset)
        self._stream: IO[bytes] | None = None
        self._split = FileSplit("", "", 0, None)
        self._position = 0  # behind the last record that poll returned
        self._rest = b""
        self._skip = False

    def add_split(self, split: Split) -> None:
        assert isinstance(split, FileSplit)
        self._split = split
        self._stream = file_system_of(split.path).open_read(split.path, split.start)
        self._position = split.start
        self._rest = b""
        self._skip = self._source.skip_first and split.start == 0

    def split_of_batch(self) -> str:
        return self._split.split_id

    def snapshot(self) -> list[Split]:
        return [] if self._stream is None else [replace(self._split, start=self._position)]

    def poll(self, rows_max: int) -> Batch | None:
        if self._stream is None:
            return None
        chunk = self._stream.read(_CHUNK_BYTES)
        if chunk:
            data = self._rest + chunk
            *records, self._rest = data.split(self._delimiter)
            self._position += len(data) - len(self._rest)
        else:
            records = [self._rest] if self._rest else []
            self._stream.close()
            self._stream = None
            self.end_split(self._split.split_id)
        if self._skip and records:
            self._skip = False
            del records[0]
        try:
            return RowBatch([record.decode(self._source.charset) for record in records])
        except UnicodeDecodeError as error:
            raise InputError(f"{self._split.path} is not {self._source.charset}: {error}.") from error

    def wants_split(self) -> bool:
        return self._stream is None

    def is_drained(self) -> bool:
        return self._stream is None

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
