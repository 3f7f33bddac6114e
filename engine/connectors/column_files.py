"""Files of records that are columns: CSV and JSON lines, as the format's parser makes them of chunks of whole records.

A file is cut into splits where every newline ends a record; else, or when it is compressed, one reader reads it whole.
Not here: the formats (``formats/csv_columns``, ``formats/json_columns``), reading ahead (``file_chunks``), Parquet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, final

from engine.connectors.file_chunks import Chunk, ChunkReader, opened_split, reaching, without_first
from engine.connectors.file_splits import FileEnumerator, FileSplit
from engine.connectors.files import absolute_path
from engine.connectors.source import Boundedness, Source, SourceReader, Split, SplitEnumerator, SplitOrder
from engine.core.errors import InputError
from engine.core.late_dataclass import dataclass
from engine.core.records import Batch, ColumnBatch
from engine.core.type_info import RowTypeInfo
from engine.formats.column_values import ColumnFormat, MalformedRecord
from engine.formats.compression import compression_of
from engine.formats.text import UTF8_BOM, lines_of_range
from engine.operators.base import OperatorContext

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ColumnFileSource"]

#: Of a record that is malformed, what an error shows.
_SHOWN_BYTES_MAX = 200


@final
@dataclass(frozen=True)
class ColumnFileSource(Source):
    """``monitor_interval_ms``: look for new files for ever (unbounded); each path is read once."""

    paths: tuple[str, ...]
    format: ColumnFormat
    monitor_interval_ms: int | None = None
    emits_columns = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", tuple(absolute_path(path) for path in self.paths))

    @property
    def boundedness(self) -> Boundedness:  # type: ignore[override]
        return Boundedness.BOUNDED if self.monitor_interval_ms is None else Boundedness.CONTINUOUS_UNBOUNDED

    @property
    def produced_type(self) -> RowTypeInfo:
        return self.format.row_type

    def create_enumerator(self) -> SplitEnumerator:
        return FileEnumerator(
            self.paths, splittable=self.format.is_by_line, monitor_interval_ms=self.monitor_interval_ms
        )

    def create_reader(self) -> SourceReader:
        return _Reader(self.format)


@final
@dataclass(frozen=True, slots=True)
class PartlyReadSplit:
    """A split whose first ``num_read`` records from its start on have been read."""

    split: FileSplit
    num_read: int

    @property
    def split_id(self) -> str:
        return self.split.split_id


@final
class _Reader(SourceReader):
    split_order = SplitOrder.ONE_BY_ONE

    def __init__(self, own: ColumnFormat) -> None:
        self._format = own
        self._parser = own.create_parser()
        self._chunks = ChunkReader(self._chunks_of)
        self._chunk: Chunk | None = None  # the last one of the first split that poll has begun
        self._columns: pa.RecordBatch | None = None  # of that chunk
        self._position = 0  # in these
        #: by split, records that the splits' restored positions are behind of
        self._num_read_of: dict[str, int] = {}

    def open(self, ctx: OperatorContext) -> None:
        super().open(ctx)
        self._chunks.open(ctx)

    def add_split(self, split: Split) -> None:
        if isinstance(split, PartlyReadSplit):
            self._num_read_of[split.split_id] = split.num_read
            split = split.split
        self._chunks.add_split(split)

    def wants_split(self) -> bool:
        return self._chunks.is_read()

    def is_drained(self) -> bool:
        return self._chunks.is_empty() and not self._num_left()

    def _num_left(self) -> int:
        return 0 if self._columns is None else int(self._columns.num_rows) - self._position

    def split_of_batch(self) -> str:
        return self._chunks.splits[0].split_id  # behind its last batch stands a mark that ends it

    def poll(self, rows_max: int) -> Batch | None:
        while not self._num_left():
            chunk = self._chunks.next()
            if chunk is None:
                return None
            self._columns, self._position = None, 0
            if isinstance(chunk, FileSplit):
                self._chunk = None
                self._num_read_of.pop(chunk.split_id, None)
                self.end_split(chunk.split_id)
                continue
            self._chunk = chunk
            self._columns = self._parsed(chunk)
            self._skip_read(self._chunks.splits[0].split_id)
        assert self._columns is not None
        batch = self._columns.slice(self._position, rows_max)
        self._position += batch.num_rows
        return ColumnBatch(batch, named=True)

    def _skip_read(self, split_id: str) -> None:
        left = self._num_read_of.get(split_id, 0)
        if left:
            self._position = min(left, self._num_left())
            self._num_read_of[split_id] = left - self._position

    def snapshot(self) -> list[Split]:
        splits: list[Split] = []
        for place, split in enumerate(self._chunks.splits):
            num_read = self._num_read_of.get(split.split_id, 0)
            if place == 0 and self._chunk is not None:
                if self._num_left():
                    assert not num_read
                    split, num_read = replace(split, start=self._chunk.offset), self._position
                else:
                    split = replace(split, start=self._chunk.end)
            if split.end is None or split.start < split.end:
                splits.append(PartlyReadSplit(split, num_read) if num_read else split)
        return splits

    def _parsed(self, chunk: Chunk) -> pa.RecordBatch:
        try:
            return self._parser.parse(chunk.data, chunk.is_whole)
        except MalformedRecord as error:
            raise _input_error(chunk.path, chunk.offset, error, chunk.unpacked) from error

    def close(self) -> None:
        self._chunks.close()

    # --- in the reading thread ----------------------------------------------------------------------------------------

    def _chunks_of(self, split: FileSplit, is_stopped: Callable[[], bool]) -> Iterator[Chunk]:
        unpacked = compression_of(split.path) is not None
        num_seen = 0 if split.start == 0 else self._format.num_header_records
        for offset, data, is_whole in self._records_of(split, unpacked, is_stopped):
            if offset == 0 and data.startswith(UTF8_BOM):
                offset, data = len(UTF8_BOM), data[len(UTF8_BOM) :]
            if num_seen < self._format.num_header_records:
                try:
                    rest, num_seen = self._format.without_header(data, num_seen)
                except MalformedRecord as error:
                    raise _input_error(split.path, offset, error, unpacked) from error
                offset, data = offset + len(data) - len(rest), rest
            yield Chunk(split.path, offset, data, "utf-8", unpacked, is_whole)

    def _records_of(
        self, split: FileSplit, unpacked: bool, is_stopped: Callable[[], bool]
    ) -> Iterator[tuple[int, bytes, bool]]:
        # The byte before says whether a line begins at the start; a file that is not cut is entered at a record.
        before = max(split.start - 1, 0)
        stream, chunks = opened_split(split, 0 if unpacked else before, is_stopped)
        with contextlib.closing(stream):
            if unpacked:
                chunks = without_first(chunks, before)
            chunks = reaching(chunks, split, before)
            if split.end is not None:
                for offset, data in lines_of_range(chunks, split.start, split.end):
                    yield offset, data, True
                return
            if split.start:
                chunks = without_first(chunks, 1)
            try:
                yield from self._format.records_of_stream(chunks, split.start)
            except InputError as error:
                raise InputError(f"{split.path}: {error}") from error


def _input_error(path: str, offset: int, error: MalformedRecord, unpacked: bool) -> InputError:
    where = f"byte offset {offset + error.offset}" + (" of the decompressed data" if unpacked else "")
    shown = error.record[:_SHOWN_BYTES_MAX].decode("utf-8", "replace")
    more = "…" if len(error.record) > _SHOWN_BYTES_MAX else ""
    return InputError(
        f"{path}: the record at {where} is malformed: {error}. It is {shown!r}{more}. "
        "Correct it, or leave such records out: with_ignore_parse_errors()."
    )
