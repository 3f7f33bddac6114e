"""Parquet files as columns: a split is one row group, a position in it is a number of rows.

Reading is done in the task's thread, a batch at a time, out of row groups that are fetched whole. Not here: text, CSV.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any, Final, final

from engine.connectors.source import (
    Boundedness,
    Source,
    SourceReader,
    Split,
    SplitEnumerator,
    SplitOrder,
    without_assigned,
)
from engine.core.errors import InputError
from engine.core.fs import FileStatus, file_system_of, list_input_files
from engine.core.records import BATCH_ROWS_MAX, Batch, ColumnBatch
from engine.core.type_info import RowTypeInfo

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["ParquetSource"]

_READ_AHEAD_BYTES: Final = 1 << 20


@final
@dataclass(frozen=True, slots=True)
class RowGroupSplit:
    """The rows from ``row`` on of one row group."""

    split_id: str
    path: str
    size_bytes: int
    row_group: int
    row: int = 0


@final
@dataclass(frozen=True)
class ParquetSource(Source):
    """``paths``: files, folders or globs; ``columns``: their names, in that order, None = all.

    ``row_type``: the records are Rows of these fields, not tuples: of the columns of those names where the files have
    them all, else of the columns in their order.
    """

    paths: tuple[str, ...]
    columns: tuple[str, ...] | None = None
    row_type: RowTypeInfo | None = None
    boundedness = Boundedness.BOUNDED
    emits_columns = True

    def create_enumerator(self) -> SplitEnumerator:
        return _Enumerator(self.paths)

    def create_reader(self) -> SourceReader:
        return _Reader(self.columns, None if self.row_type is None else self.row_type.get_field_names())


@final
class _Enumerator(SplitEnumerator):
    def __init__(self, paths: tuple[str, ...]) -> None:
        self._paths = paths
        self._splits: list[RowGroupSplit] = []

    def start(self, parallelism: int) -> None:
        for path in self._paths:
            for file in list_input_files(path):
                self._splits += _splits_of(file)

    def next_split(self, subtask_index: int, host: str) -> Split | None:
        return self._splits.pop(0) if self._splits else None

    def snapshot(self) -> object:
        return list(self._splits)

    def restore(self, state: object, parallelism: int) -> None:
        assert isinstance(state, list)
        self._splits = list(state)

    def assigned(self, splits: Collection[Split]) -> None:
        self._splits = without_assigned(self._splits, splits)


def _splits_of(file: FileStatus) -> list[RowGroupSplit]:
    with _opened(file.path, file.size_bytes) as parquet:
        groups = range(parquet.num_row_groups)
        return [RowGroupSplit(f"{file.path}#{group}", file.path, file.size_bytes, group) for group in groups]


def _opened(path: str, size_bytes: int) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BufferedReader(_SeekableFile(path, size_bytes), _READ_AHEAD_BYTES)
    try:
        return pq.ParquetFile(pa.PythonFile(stream, mode="r"))
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not a Parquet file: {error}.") from error


@final
class _Reader(SourceReader):
    split_order = SplitOrder.ONE_BY_ONE

    def __init__(self, columns: tuple[str, ...] | None, names: list[str] | None) -> None:
        self._columns = columns
        self._names = names  #: of the fields of Rows; None = tuples
        self._splits: list[RowGroupSplit] = []
        self._file: pq.ParquetFile | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._rest: pa.RecordBatch | None = None  #: read, not emitted yet

    def add_split(self, split: Split) -> None:
        assert isinstance(split, RowGroupSplit)
        self._splits.append(split)

    def poll(self, rows_max: int) -> Batch | None:
        if not self._splits:
            return None
        split = self._splits[0]
        if self._file is None:
            self._open(split)
        if self._rest is None or not self._rest.num_rows:
            self._rest = next(self._batches, None)
        if self._rest is None:
            self._end_split()
            return None
        batch, self._rest = self._rest.slice(0, rows_max), self._rest.slice(rows_max)
        self._splits[0] = replace(split, row=split.row + batch.num_rows)
        return ColumnBatch(batch, named=self._names is not None)

    def _open(self, split: RowGroupSplit) -> None:
        parquet = self._file = _opened(split.path, split.size_bytes)
        there = parquet.schema_arrow.names
        columns = None if self._columns is None else list(self._columns)
        missing = set(columns or ()) - set(there)
        if missing:
            raise InputError(f"{split.path} has no column {sorted(missing)}; it has {there}.")
        if self._names is not None:
            if columns is None and set(self._names) <= set(there):
                columns = self._names
            if len(self._names) != len(there if columns is None else columns):
                raise InputError(f"{split.path} has columns {there}; the declared type has fields {self._names}.")
        skip = split.row
        batches = parquet.iter_batches(BATCH_ROWS_MAX, row_groups=[split.row_group], columns=columns, use_threads=False)
        self._batches = _without(batches, skip, columns, self._names)

    def _end_split(self) -> None:
        self.end_split(self._splits.pop(0).split_id)
        self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._batches, self._rest = None, iter(()), None

    def split_of_batch(self) -> str:
        return self._splits[0].split_id  # it ends when nothing is found, not with its last batch

    def wants_split(self) -> bool:
        return not self._splits

    def is_drained(self) -> bool:
        return not self._splits

    def snapshot(self) -> list[Split]:
        return list(self._splits)

    def close(self) -> None:
        self._close_file()


def _without(
    batches: Iterator[pa.RecordBatch], skip: int, columns: list[str] | None, names: list[str] | None
) -> Iterator[pa.RecordBatch]:
    """Leave out the first ``skip`` rows; give the columns their order, and names."""
    for batch in batches:
        if skip >= batch.num_rows:
            skip -= batch.num_rows
            continue
        kept = batch.slice(skip)
        skip = 0
        ordered = kept if columns is None else kept.select(columns)
        yield ordered if names is None else ordered.rename_columns(names)


@final
class _SeekableFile(io.RawIOBase):
    """A file of any file system that can be read from anywhere: it is opened anew where one seeks to."""

    def __init__(self, path: str, size_bytes: int) -> None:
        self._path = path
        self._size = size_bytes
        self._at = 0
        self._stream: IO[bytes] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        target = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence] + offset
        if target != self._at:
            self._close_stream()
            self._at = target
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if self._at >= self._size or not len(view):
            return 0
        if self._stream is None:
            self._stream = file_system_of(self._path).open_read(self._path, self._at)
        data = self._stream.read(len(view))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def close(self) -> None:
        self._close_stream()
        super().close()
