"""Writes records to one file, whatever the format: the contract, lines of text, and what makes a file durable.

Not here: which file (``file_sink``, ``file_sinks``), formats of columns (``bulk_writers``).
"""

from __future__ import annotations

import codecs
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, ClassVar, Final, Protocol, final

from engine.core.errors import ExternalError
from engine.core.fs import give_up
from engine.core.printing import record_formatter
from engine.core.records import Batch, ColumnBatch, rows_of
from engine.core.type_info import TypeInformation
from engine.formats.column_lines import ColumnLines, PrintedColumnLines
from engine.formats.text import normal_charset
from engine.operators.failure import user_error

__all__ = ["Encoder", "FileFormat", "LineWriter", "PartWriter", "make_durable"]

#: Bytes of whole lines that are gathered before a write.
_WRITE_BYTES: Final = 1 << 18


class PartWriter(Protocol):
    #: about how large the file would be if it were closed now
    num_bytes: int

    def write(self, batch: Batch, operator_name: str) -> None:
        """Raises: UserCodeError with the record that cannot be written; ExternalError."""
        ...

    def close(self) -> None:
        """Write what is pending; when this returns the file is complete and survives a power cut."""
        ...

    def abandon(self) -> None:
        """Give back the stream; what is in the file does not matter."""
        ...


class FileFormat(Protocol):
    """How records become files. Configuration: picklable. One that takes columns as they are says so by an attribute
    ``writes_columns`` that is true, and by ``writes_kinds`` that it writes those of a changelog too."""

    def create(self, stream: IO[bytes], type_info: TypeInformation | None) -> PartWriter: ...


def make_durable(stream: IO[bytes]) -> bool:
    """Bring what was written to the disk itself. Return False where that happens when it is closed only (HDFS)."""
    stream.flush()
    try:
        descriptor = stream.fileno()
    except (AttributeError, io.UnsupportedOperation):
        return False
    os.fsync(descriptor)
    return True


@final
@dataclass(frozen=True)
class Encoder:
    """How a record becomes bytes: its printed form and a newline."""

    charset: str = "utf-8"
    writes_columns: ClassVar = True
    writes_kinds: ClassVar = True

    @staticmethod
    def simple_string_encoder(charset_name: str = "UTF-8") -> Encoder:
        return Encoder(normal_charset(charset_name))

    def create(self, stream: IO[bytes], type_info: TypeInformation | None) -> PartWriter:
        line_of = record_formatter(type_info)
        columns = PrintedColumnLines(type_info)
        return LineWriter(stream, lambda record: line_of(record) + "\n", self.charset, columns=columns)


@final
class LineWriter:
    """Writes records as lines, always whole lines at a time, so that what is on disk ends with one."""

    def __init__(
        self,
        stream: IO[bytes],
        line_of: Callable[[Any], str],
        charset: str = "utf-8",
        header: str = "",
        columns: ColumnLines | None = None,
    ) -> None:
        """``columns``: gives the bytes that ``line_of`` would make of a batch of columns, if it can."""
        self._stream = stream
        self._line_of = line_of
        self._columns = columns
        self._charset = charset
        #: with a memory of what came before: the mark that UTF-16 begins with belongs at a file's beginning only
        self._encode = codecs.getincrementalencoder(charset)().encode
        self._pending: list[bytes] = [self._encode(header)] if header else []
        self._pending_bytes = self.num_bytes = sum(map(len, self._pending))

    def write(self, batch: Batch, operator_name: str) -> None:
        data = None
        if self._columns is not None and isinstance(batch, ColumnBatch):
            data = self._from_columns(self._columns, batch)
        if data is None:
            data = self._lines_of_rows(rows_of(batch).rows, operator_name)
        self._pending.append(data)
        self._pending_bytes += len(data)
        self.num_bytes += len(data)
        if self._pending_bytes >= _WRITE_BYTES:
            self.flush()

    def _from_columns(self, columns: ColumnLines, batch: ColumnBatch) -> bytes | None:
        data = columns.lines_of(batch)
        if data is None or self._charset == "utf-8":
            return data
        try:
            return self._encode(data.decode())
        except UnicodeEncodeError:
            return None  # rows say which record it is

    def _lines_of_rows(self, rows: list[Any], operator_name: str) -> bytes:
        lines: list[str] = []
        try:
            for row in rows:
                lines.append(self._line_of(row))
        except Exception as error:
            raise user_error(error, operator_name=operator_name, record=rows[len(lines)]) from error
        try:
            return self._encode("".join(lines))
        except UnicodeEncodeError as error:
            bad = next(row for row, line in zip(rows, lines, strict=True) if not _encodes(line, self._charset))
            raise user_error(error, operator_name=operator_name, record=bad) from error

    def flush(self) -> None:
        """Hand everything to the stream, and let the stream do so."""
        if self._pending:
            self._guarded(self._write_pending)

    def _write_pending(self) -> None:
        self._stream.write(b"".join(self._pending))
        self._stream.flush()
        self._pending = []
        self._pending_bytes = 0

    def sync(self) -> bool:
        """As ``flush``, down to the disk; return whether that is possible while the stream is open."""
        self.flush()
        return bool(self._guarded(lambda: make_durable(self._stream)))

    def close(self) -> None:
        try:
            self.sync()
        finally:
            self._guarded(self._stream.close)

    def abandon(self) -> None:
        self._pending = []
        self._guarded(lambda: give_up(self._stream))

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except OSError as error:
            raise ExternalError(f"Cannot write {getattr(self._stream, 'name', 'output')}: {error}.") from error


def _encodes(line: str, charset: str) -> bool:
    try:
        line.encode(charset)
    except UnicodeEncodeError:
        return False
    return True
