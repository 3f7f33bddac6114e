"""Lines of text in bytes: which lines belong to a byte range, whole-line chunks, decoding with the place of an error.

Pure: bytes in, values out. Reading is ``connectors/files``; words are ``operators/text``. A line ends with ``\\n`` or
``\\r\\n``; the last one may lack it. Other separators that Unicode knows (NEL, U+2028, a lone ``\\r``) are data.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from typing import Final, final

from engine.core.errors import ConfigError, InputError

__all__ = [
    "DelimiterCutter",
    "decode_lines",
    "is_byte_newline_charset",
    "lines_of_range",
    "normal_charset",
    "transcoded",
]

UTF8_BOM: Final = codecs.BOM_UTF8


def normal_charset(charset: str) -> str:
    """Return Python's name of a charset; raises ConfigError with an example when it is unknown."""
    try:
        return codecs.lookup(charset).name
    except LookupError:
        raise ConfigError(f"Unknown charset {charset!r}; expected a name such as utf-8, latin-1 or gbk.") from None


def is_byte_newline_charset(charset: str) -> bool:
    """Return whether the byte 0x0A always is a newline, so that a file may be cut at any byte (not so in UTF-16,
    nor where bytes before switch what it means)."""
    name = codecs.lookup(charset).name
    return not name.startswith(("utf-16", "utf-32", "utf-7", "hz", "iso2022")) and "\n".encode(name) == b"\n"


def lines_of_range(chunks: Iterable[bytes], start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, whole lines) of the lines that begin in [start, end).

    ``chunks``: the file's bytes from ``max(start - 1, 0)`` on, cut anywhere; no more is taken than is needed. A line
    of any length comes in one piece.
    """
    position = max(start - 1, 0)  # of the current chunk's first byte
    # A line begins at ``start`` only if the byte before it is a newline: skip to behind the first one.
    skipping = start > 0
    pieces: list[bytes | memoryview] = []  # of a line that no chunk has ended yet
    pieces_offset = position
    for chunk in chunks:
        if not chunk:
            continue
        begin = 0
        if skipping:
            newline = chunk.find(b"\n")
            if newline < 0:
                position += len(chunk)
                pieces_offset = position
                if position >= end:
                    return
                continue
            skipping = False
            begin = newline + 1
            pieces_offset = position + begin
            if pieces_offset >= end:
                return
        # The last line is the one that holds byte end - 1, or ends with it.
        stop = chunk.find(b"\n", max(begin, end - 1 - position)) if position + len(chunk) >= end else -1
        if stop >= 0:
            pieces.append(memoryview(chunk)[begin : stop + 1])
            yield pieces_offset, b"".join(pieces)
            return
        cut = chunk.rfind(b"\n", begin) + 1
        if cut > begin:
            pieces.append(memoryview(chunk)[begin:cut])  # copied once, by the join
            yield pieces_offset, b"".join(pieces)
            pieces = []
            pieces_offset = position + cut
            begin = cut
        if begin < len(chunk):
            pieces.append(chunk[begin:])
        position += len(chunk)
    if pieces and not skipping:
        yield pieces_offset, b"".join(pieces)


@final
class DelimiterCutter:
    """Cuts a stream of bytes, arriving in any pieces, at a delimiter of one or more bytes. Linear in the bytes fed,
    however long a record is."""

    def __init__(self, delimiter: bytes) -> None:
        self._delimiter = delimiter
        self._pieces: list[bytes] = []  # of the unfinished record: joined once
        self._tail = b""  # the last bytes of the pieces, which may be the beginning of a delimiter

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the records that ``chunk`` ends, without their delimiters."""
        seam = self._tail + chunk
        self._pieces.append(chunk)
        if self._delimiter not in seam:
            self._tail = self._last_bytes(seam)
            return []
        *records, rest = b"".join(self._pieces).split(self._delimiter)
        self._pieces = [rest] if rest else []
        self._tail = self._last_bytes(rest)
        return records

    def rest(self) -> bytes:
        """Return the record that no delimiter has ended, b"" if there is none."""
        return b"".join(self._pieces)

    def _last_bytes(self, data: bytes) -> bytes:
        size = len(self._delimiter) - 1
        return data[-size:] if size else b""


def decode_lines(chunk: bytes, charset: str, errors: str = "strict") -> list[str]:
    """Return the lines of a chunk without their ends. Raises UnicodeDecodeError (offsets within the chunk)."""
    text = chunk.decode(charset, errors)
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    if "\r" in text:
        ended = len(lines) if text.endswith("\n") else len(lines) - 1  # a last line without \n keeps its \r
        for i in range(ended):
            if lines[i].endswith("\r"):
                lines[i] = lines[i][:-1]
    return lines


def transcoded(chunks: Iterable[bytes], charset: str, errors: str, path: str) -> Iterator[bytes]:
    """Yield UTF-8 chunks of a text in any charset; reads from the beginning. Raises InputError with the offset."""
    decoder = codecs.getincrementaldecoder(charset)(errors)
    position = 0
    for chunk in chunks:
        buffered = decoder.getstate()[0]
        before = len(buffered) if isinstance(buffered, bytes) else 0
        try:
            yield decoder.decode(chunk).encode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise undecodable(path, position - before + error.start, charset, error) from error
        position += len(chunk)
    try:
        yield decoder.decode(b"", True).encode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise undecodable(path, position - len(error.object) + error.start, charset, error) from error


def undecodable(path: str, offset: int, charset: str, error: UnicodeDecodeError, unpacked: bool = False) -> InputError:
    """Return the error for bytes that are not text in ``charset``. ``unpacked``: the offset is after decompression."""
    seen = error.object[error.start : error.start + 4]
    where = f"byte offset {offset}" + (" of the decompressed data" if unpacked else "")
    return InputError(
        f"{path}: bytes {seen!r} at {where} are not {charset} ({error.reason}). "
        "Give the file's charset (e.g. 'latin-1'), or errors='replace' or 'ignore'."
    )
