"""Where records of CSV begin and end, in bytes, and what their fields are: exact, with quotes, escapes and comments.

A quote begins a quoted value only as the first byte of a field; within one, two quotes are one, and behind its end the
field goes on as it is. An escape character makes a literal of the next byte, whatever that is. A record ends with
``\\n``, ``\\r\\n`` or ``\\r``. Pure: bytes in, values out. Not here: values of columns (``csv_columns``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, final

from engine.core.errors import InputError

__all__ = ["CsvDialect", "CsvRecord", "records_in", "records_of_stream", "whole_records_end"]

#: A record of more bytes is taken for a quote that nothing closes. It would be held in memory whole.
RECORD_BYTES_MAX: Final = 64 << 20
_NEWLINE, _RETURN = 10, 13


@final
@dataclass(frozen=True, slots=True)
class CsvDialect:
    """Each a single byte, or None. ``comment``: begins a line that is no record."""

    separator: bytes = b","
    quote: bytes | None = b'"'
    escape: bytes | None = None
    comment: bytes | None = None

    @property
    def is_by_line(self) -> bool:
        """Return whether a newline always ends a record."""
        return self.quote is None and self.escape is None

    def may_have_comments(self, data: bytes) -> bool:
        mark = self.comment
        return mark is not None and (data.startswith(mark) or b"\n" + mark in data or b"\r" + mark in data)


@final
@dataclass(frozen=True, slots=True)
class CsvRecord:
    """Bytes [start, end) without the line end. ``is_closed``: its quoted values end within it."""

    start: int
    end: int
    fields: list[bytes]
    is_closed: bool = True


def records_in(data: bytes, dialect: CsvDialect) -> Iterator[tuple[CsvRecord, bool]]:
    """Yield each record with whether its line end is there; comments and empty lines are left out.

    ``data`` begins with a record. The slow, obvious way: some 10 MB/s.
    """
    in_field = _any_of(dialect.separator, b"\n", b"\r", dialect.escape)
    in_quotes = _any_of(dialect.quote, dialect.escape)
    position, size = 0, len(data)
    while position < size:
        if data[position] in (_NEWLINE, _RETURN):
            position += 1
            continue
        if dialect.comment is not None and data.startswith(dialect.comment, position):
            position = _line_end(data, position)
            continue
        start, fields, closed = position, [], True
        while True:
            field, position, closed = _field(data, position, dialect, in_field, in_quotes)
            fields.append(field)
            if position < size and data.startswith(dialect.separator, position):
                position += 1
                continue
            break
        yield CsvRecord(start, position, fields, closed), position < size
        position += 1


def _any_of(*marks: bytes | None) -> re.Pattern[bytes]:
    return re.compile(b"|".join(re.escape(mark) for mark in marks if mark is not None) or b"(?!)")


def _field(
    data: bytes, position: int, dialect: CsvDialect, in_field: re.Pattern[bytes], in_quotes: re.Pattern[bytes]
) -> tuple[bytes, int, bool]:
    """Return a field, where it ends, and whether its quotes are closed."""
    size = len(data)
    parts: list[bytes] = []
    if dialect.quote is not None and data.startswith(dialect.quote, position):
        position += 1
        while True:
            found = in_quotes.search(data, position)
            if found is None:
                return b"".join([*parts, data[position:]]), size, False
            at = found.start()
            parts.append(data[position:at])
            if found[0] != dialect.quote or data.startswith(dialect.quote, at + 1):
                parts.append(data[at + 1 : at + 2])
                position = at + 2
                continue
            position = at + 1
            break
    while True:
        found = in_field.search(data, position)
        at = size if found is None else found.start()
        parts.append(data[position:at])
        if found is None or found[0] != dialect.escape:
            return b"".join(parts), at, True
        parts.append(data[at + 1 : at + 2])
        position = min(at + 2, size)


def _line_end(data: bytes, position: int) -> int:
    ends = [end for end in (data.find(b"\n", position), data.find(b"\r", position)) if end >= 0]
    return min(ends, default=len(data))


# --- cutting a stream -------------------------------------------------------------------------------------------------


def whole_records_end(data: bytes, dialect: CsvDialect) -> int:
    """Return where the last record ends whose line end is in ``data``, behind that; 0 if there is none.

    A ``\\r`` as the last byte is not taken for an end: a newline may follow. 1 GB/s where quotes stand as they should.
    """
    quote, escape = dialect.quote, dialect.escape
    if (escape is not None and escape in data) or (quote is not None and quote in data):
        if (escape is None or escape not in data) and not dialect.may_have_comments(data):
            ends = _end_by_parity(data, dialect)
            if ends is not None:
                return ends
        return _end_by_records(data, dialect)
    return data.rfind(b"\n") + 1 or data.rfind(b"\r", 0, len(data) - 1) + 1


def _end_by_parity(data: bytes, dialect: CsvDialect) -> int | None:
    """Return the end by counting quotes, or None where that is no proof.

    Every other quote, from the first on, must begin a field or stand right behind the one before: then, by induction,
    exactly what lies between an odd and an even one is quoted (two in a row end and begin again, which comes to the
    same as an escaped quote).
    """
    import numpy as np

    assert dialect.quote is not None
    array = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(array == dialect.quote[0])
    opening = quotes[::2]
    before = array[opening[opening > 0] - 1]
    allowed = (before == dialect.quote[0]) | (before == dialect.separator[0])
    if not (allowed | (before == _NEWLINE) | (before == _RETURN)).all():
        return None
    for mark, stop in ((b"\n", len(data)), (b"\r", len(data) - 1)):
        while (at := data.rfind(mark, 0, max(stop, 0))) >= 0:
            num_before = int(np.searchsorted(quotes, at))
            if num_before % 2 == 0:
                return at + 1
            stop = int(quotes[num_before - 1])
    return 0


def _end_by_records(data: bytes, dialect: CsvDialect) -> int:
    end = 0
    for record, has_end in records_in(data, dialect):
        if has_end and not (record.end == len(data) - 1 and data[record.end] == _RETURN):
            end = record.end + 1
            if data[record.end] == _RETURN and data[end : end + 1] == b"\n":
                end += 1
    return end


def records_of_stream(chunks: Iterable[bytes], start: int, dialect: CsvDialect) -> Iterator[tuple[int, bytes, bool]]:
    """Yield (offset, whole records, True), and at last what has no line end with False. A record begins at ``start``.

    Raises: InputError when a record does not end within ``RECORD_BYTES_MAX``.
    """
    pieces: list[bytes] = []
    num_bytes, looked_at = 0, 0
    for chunk in chunks:
        pieces.append(chunk)
        num_bytes += len(chunk)
        if num_bytes < 2 * looked_at:
            continue  # a long record is not looked through anew for each chunk of it
        data = b"".join(pieces)
        end = whole_records_end(data, dialect)
        if end:
            yield start, data[:end], True
            start += end
            data = data[end:]
        pieces, num_bytes, looked_at = [data], len(data), 0 if end else len(data)
        if num_bytes > RECORD_BYTES_MAX:
            raise InputError(
                f"the record at byte offset {start} does not end within {RECORD_BYTES_MAX} bytes; it begins "
                f"{data[:80]!r}. A quote that is not closed? If quotes mean nothing, say disable_quote_char()."
            )
    if num_bytes:
        yield start, b"".join(pieces), False
