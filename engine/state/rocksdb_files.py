"""Lays the files of an open RocksDB into a folder while it goes on: as its ``create_checkpoint`` does, without holding
the interpreter lock through a flush and several fsyncs.

The task begins the flush and goes on. Until the rows of before are in files, those of afterwards must not get into
files: the backend sees to it that they are too few for that. An I/O thread waits for the flush, links tables and files
of values (blobs) and copies the list of them (MANIFEST), which belong together if the tables have not changed
meanwhile: RocksDB adds and drops files of values together with tables only.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any, Final, final

from engine.core.errors import ExternalError

__all__ = ["FrozenFiles", "is_lasting", "payload_of"]

_POLL_S: Final = 0.002
#: RocksDB's log format: blocks of records with a header of checksum, length and kind.
_BLOCK: Final = 32 << 10
_HEADER: Final = 7
#: In front of each table in a MANIFEST: kind of entry, level, number.
_NEW_FILE: Final = 103
_LEVELS: Final = 7
#: In front of each file of values there: kind of entry (400 as a varint), number.
_NEW_BLOB_FILE: Final = b"\x90\x03"
_VARINT_BYTES_MAX: Final = 10


@final
class FrozenFiles:
    """``db``: an open Rdict in ``source`` whose flush has been begun. ``lasting_name``: of a table in checkpoints."""

    def __init__(self, db: Any, source: str, folder: str, lasting_name: Callable[[str], str]) -> None:
        self._db = db
        self._source = source
        self._folder = folder
        self._lasting_name = lasting_name
        self._lock = threading.Lock()
        self._error: Exception | None = None
        self.is_done = False

    def finish(self) -> None:
        """Wait until all is in the folder. Raises: ExternalError, OSError; also when it was abandoned."""
        self.settle()
        if self._error is not None:
            raise self._error

    def settle(self) -> None:
        """The same; what goes wrong is kept for ``finish``."""
        with self._lock:
            if self.is_done:
                return
            try:
                self._await_flush()
                self._lay_down()
            except Exception as error:
                self._error = error
            self.is_done = True

    def abandon(self) -> None:
        """Nobody wants it any more, or the database is about to be closed."""
        with self._lock:
            if not self.is_done:
                self.is_done = True
                self._error = ExternalError("The snapshot of RocksDB was given up.")

    def _await_flush(self) -> None:
        number = self._db.property_int_value
        while number("rocksdb.num-immutable-mem-table"):
            if number("rocksdb.background-errors"):
                raise ExternalError(f"RocksDB cannot write to {self._source}: is the disk full?")
            time.sleep(_POLL_S)

    def _lay_down(self) -> None:
        os.makedirs(self._folder)
        linked: set[str] = set()
        while True:
            live, current = self._live(), self._read("CURRENT")
            try:
                for name in sorted(live - linked):
                    self._link(name, linked)
                manifest = self._read(current.decode().strip())
                # A table may be in the list on disk a moment before RocksDB says so; it never tells files of values.
                for name in self._on_disk() - linked:
                    self._link(name, linked)
            except FileNotFoundError:
                continue  # merged into another one just now
            if live == self._live() and current == self._read("CURRENT"):
                break
        needed = _named_in(manifest, linked)
        for name in linked:
            path = os.path.join(self._folder, name)
            if name in live or name in needed:
                os.rename(path, os.path.join(self._folder, self._lasting_name(name)))
            else:
                os.unlink(path)
        self._write("CURRENT", current)
        self._write(current.decode().strip(), manifest)

    def _live(self) -> set[str]:
        return {file["name"].lstrip("/") for file in self._db.live_files()}

    def _on_disk(self) -> set[str]:
        return set(filter(is_lasting, os.listdir(self._source)))

    def _link(self, name: str, linked: set[str]) -> None:
        os.link(os.path.join(self._source, name), os.path.join(self._folder, name))
        linked.add(name)

    def _read(self, name: str) -> bytes:
        with open(os.path.join(self._source, name), "rb") as stream:
            return stream.read()

    def _write(self, name: str, content: bytes) -> None:
        with open(os.path.join(self._folder, name), "wb") as stream:
            stream.write(content)


def is_lasting(name: str) -> bool:
    """Whether a file of RocksDB never changes under its name: a table, or a file of values."""
    return name.endswith((".sst", ".blob"))


def _named_in(manifest: bytes, names: set[str]) -> set[str]:
    """Return the files that a MANIFEST has ever named, and perhaps some more."""
    entries = payload_of(manifest)
    tables = set[int]().union(*(_numbers_after(bytes((_NEW_FILE, level)), entries) for level in range(_LEVELS)))
    numbers = {".sst": tables, ".blob": _numbers_after(_NEW_BLOB_FILE, entries)}
    return {name for name in names for number, kind in [os.path.splitext(name)] if int(number) in numbers[kind]}


def _numbers_after(mark: bytes, entries: bytes) -> set[int]:
    """Return the varints that follow some bytes."""
    found = set()
    at = entries.find(mark)
    while at >= 0:
        at += len(mark)
        number = shift = 0
        for byte in entries[at : at + _VARINT_BYTES_MAX]:
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                found.add(number)
                break
        at = entries.find(mark, at)
    return found


def payload_of(log: bytes) -> bytes:
    """Return the contents of a log's records in one piece; a torn one at the end is left out, as RocksDB does."""
    parts = []
    for start in range(0, len(log), _BLOCK):
        block, at = memoryview(log)[start : start + _BLOCK], 0
        while at + _HEADER <= len(block):
            size = int.from_bytes(block[at + 4 : at + 6], "little")
            if at + _HEADER + size > len(block) or not block[at + 6]:
                break
            parts.append(block[at + _HEADER : at + _HEADER + size])
            at += _HEADER + size
    return b"".join(parts)
