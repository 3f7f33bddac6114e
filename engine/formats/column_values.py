"""What formats of columns have in common: their contract, and the error of a record that is malformed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from engine.core.type_info import RowTypeInfo

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ColumnFormat", "ColumnParser", "MalformedRecord"]


class MalformedRecord(Exception):
    """A record that is not what the schema says. ``offset``: of its first byte in what was parsed."""

    def __init__(self, offset: int, record: bytes, reason: str) -> None:
        super().__init__(reason)
        self.offset = offset
        self.record = record


class ColumnParser(Protocol):
    def parse(self, data: bytes, is_whole: bool) -> pa.RecordBatch:
        """Return the records as columns. ``is_whole``: False for the end of a file that does not end with a record's
        end. Raises: MalformedRecord, unless such are ignored."""
        ...


class ColumnFormat(Protocol):
    """Bytes → columns. Configuration: picklable; it decides nothing by what it has read."""

    @property
    def row_type(self) -> RowTypeInfo: ...

    @property
    def is_by_line(self) -> bool:
        """Whether every newline ends a record, so that a file may be cut into splits."""
        ...

    def records_of_stream(self, chunks: Iterable[bytes], start: int) -> Iterator[tuple[int, bytes, bool]]:
        """Yield (offset, whole records, is_whole) of a file from ``start`` on, where a record begins."""
        ...

    num_header_records: int  #: at the beginning of a file, that are no records

    def without_header(self, data: bytes, num_seen: int) -> tuple[bytes, int]:
        """Return the next whole records of a file's beginning without its header, and how much of the header was seen.

        Raises: MalformedRecord.
        """
        ...

    def create_parser(self) -> ColumnParser: ...
