"""Parquet files as columns: a split is one row group, a position in it is a number of rows.

Reading is done in the task's thread, a batch at a time, out of row groups that are fetched whole. Not here: text, CSV.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
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
from engine.core.dictionaries import Tidying, is_text, plain_column
from engine.core.errors import InputError
from engine.core.fs import FileStatus, file_system_of, list_input_files
from engine.core.records import BATCH_ROWS_MAX, Batch, ColumnBatch
from engine.core.type_info import RowTypeInfo, TypeInformation

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["ParquetSource"]

_READ_AHEAD_BYTES: Final = 1 << 20
#: Pages of dictionaries that are kept, as they lie in the file: of few values, each of which comes many times. Larger
#: ones may have been left by the writer half way, and Arrow would look up all values behind them.
_DICTIONARY_BYTES_MAX: Final = 1 << 19
_DICTIONARY_BYTES_A_ROW: Final = 2


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
    #: with ``row_type``: its names say which columns are read, and its types what their values become
    is_strict: bool = False
    is_case_sensitive: bool = True
    boundedness = Boundedness.BOUNDED
    emits_columns = True

    @property
    def produced_type(self) -> RowTypeInfo | None:
        return self.row_type

    def create_enumerator(self) -> SplitEnumerator:
        return _Enumerator(self.paths)

    def create_reader(self) -> SourceReader:
        return _Reader(self)


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


def _opened(
    path: str, size_bytes: int, metadata: pq.FileMetaData | None = None, encoded: Sequence[str] = ()
) -> pq.ParquetFile:
    """``metadata``: of the file, if it is known; ``encoded``: columns that are to stay in their dictionaries."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BufferedReader(_SeekableFile(path, size_bytes), _READ_AHEAD_BYTES)
    try:
        return pq.ParquetFile(
            pa.PythonFile(stream, mode="r"), metadata=metadata, read_dictionary=list(encoded) if encoded else None
        )
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not a Parquet file: {error}.") from error


@final
class _Reader(SourceReader):
    split_order = SplitOrder.ONE_BY_ONE

    def __init__(self, source: ParquetSource) -> None:
        self._source = source
        own = source.row_type
        self._columns = source.columns
        self._names = None if own is None else own.get_field_names()  #: of the fields of Rows; None = tuples
        self._types = own.get_field_types() if own is not None and source.is_strict else None
        self._splits: list[RowGroupSplit] = []
        self._file: pq.ParquetFile | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._rest: pa.RecordBatch | None = None  #: read, not emitted yet
        self._tidying = Tidying()

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
        if self._types is not None and self._names is not None:
            columns = _places_of(split.path, there, self._names, is_exact=self._source.is_case_sensitive)
        missing = set(columns or ()) - set(there)
        if missing:
            raise InputError(f"{split.path} has no column {sorted(missing)}; it has {there}.")
        if self._names is not None:
            if columns is None and set(self._names) <= set(there):
                columns = self._names
            if len(self._names) != len(there if columns is None else columns):
                raise InputError(f"{split.path} has columns {there}; the declared type has fields {self._names}.")
        skip = split.row
        encoded = _encoded_columns(parquet, split.row_group, columns)
        if encoded:
            metadata = parquet.metadata
            parquet.close()
            parquet = self._file = _opened(split.path, split.size_bytes, metadata, encoded)
        batches = parquet.iter_batches(BATCH_ROWS_MAX, row_groups=[split.row_group], columns=columns, use_threads=False)
        self._batches = _without(batches, skip, columns, self._names)
        if self._types is not None:
            self._batches = _of_types(split.path, self._batches, self._types)
        self._batches = map(self._tidying.of, self._batches)

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


def _encoded_columns(parquet: pq.ParquetFile, row_group: int, columns: Collection[str] | None) -> list[str]:
    """Return the columns of texts that this row group has in a dictionary small enough to be worth keeping: it is read
    in a quarter of the time, and what follows has less to do."""
    import pyarrow as pa

    texts = {field.name for field in parquet.schema_arrow if pa.types.is_string(field.type)}
    wanted = texts if columns is None else texts & set(columns)
    group, found = parquet.metadata.row_group(row_group), []
    for place in range(group.num_columns) if wanted else ():
        chunk = group.column(place)
        if chunk.path_in_schema in wanted and chunk.has_dictionary_page and chunk.dictionary_page_offset is not None:
            page_bytes = chunk.data_page_offset - chunk.dictionary_page_offset
            if 0 < page_bytes <= min(_DICTIONARY_BYTES_MAX, chunk.num_values * _DICTIONARY_BYTES_A_ROW):
                found.append(chunk.path_in_schema)
    return found


def _places_of(path: str, there: list[str], names: list[str], *, is_exact: bool) -> list[str]:
    """Return the file's own names of these columns, as they are if there is none. Raises: InputError."""
    if is_exact:
        return names
    found = []
    for name in names:
        alike = [own for own in there if own.lower() == name.lower()]
        if len(alike) > 1:
            raise InputError(f"{path} has columns {alike}; which of them is {name!r}? Read it with is_case_sensitive.")
        found.append(alike[0] if alike else name)
    return found


def _of_types(path: str, batches: Iterator[pa.RecordBatch], types: list[TypeInformation]) -> Iterator[pa.RecordBatch]:
    """Give the columns the declared types. Raises: InputError where that would change a value."""
    import pyarrow as pa

    wanted = [kind.to_arrow() for kind in types]
    for batch in batches:
        arrays = []
        for name, array, kind in zip(batch.schema.names, batch.columns, wanted, strict=True):
            try:
                arrays.append(_cast(array, kind))
            except (pa.ArrowException, ValueError) as error:
                declared = "a decimal" if kind is None else str(kind)
                raise InputError(
                    f"{path}: column {name!r} is {array.type}, its declared type is {declared}: {error}"
                ) from error
        yield pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def _cast(array: pa.Array, kind: pa.DataType | None) -> pa.Array:
    """Return the column as this type, None = decimals of any digits. Raises: ValueError, ArrowException."""
    import pyarrow as pa

    own = array.type
    if own == kind or (kind is None and pa.types.is_decimal(own)):
        return array
    if pa.types.is_dictionary(own):
        values = _cast(array.dictionary, kind) if is_text(own.value_type) else None
        return (
            _cast(plain_column(array), kind)
            if values is None
            else pa.DictionaryArray.from_arrays(array.indices, values, safe=False)
        )
    # Arrow would read texts as numbers, and write numbers as texts.
    if kind is None or _is_text(own) != _is_text(kind) or pa.types.is_boolean(own) != pa.types.is_boolean(kind):
        raise ValueError("these are different things.")
    return array.cast(kind)


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


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
