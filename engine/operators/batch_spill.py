"""Rows that may not fit into memory: sizes, run files, and a list that continues on disk.

Files are private to the process that wrote them: pickled blocks of rows in the operator's work folder, deleted on
close. Not here: in which order rows are spilled (``batch_sort``, ``batch_group``, ``batch_join``).
"""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO, Any, Final, final

from engine.core import user_code
from engine.core.records import Row

__all__ = [
    "CHUNK_ROWS",
    "MEMORY_BYTES_DEFAULT",
    "Run",
    "SpillableRows",
    "chunks_of",
    "memory_budget",
    "rows_bytes",
    "write_run",
]

#: Rows handed on at once by an operator that produces many; large enough to hide the cost per batch.
CHUNK_ROWS: Final = 4096
#: Used when the runtime names no budget.
MEMORY_BYTES_DEFAULT: Final = 32 << 20
_SAMPLE_ROWS: Final = 16
_DEPTH_MAX: Final = 4
#: A block is what a reader of a run holds in memory: small, as many runs are read at once.
_BLOCK_BYTES: Final = 128 << 10
_BLOCK_ROWS_MAX: Final = 1024


def memory_budget(memory_bytes: int) -> int:
    """Return the bytes that an operator may hold, whatever the runtime said."""
    return memory_bytes if memory_bytes > 0 else MEMORY_BYTES_DEFAULT


def _deep_bytes(value: Any, depth: int) -> int:
    size = sys.getsizeof(value, 64)
    if depth == 0:
        return size
    kind = type(value)
    if kind is str or kind is int or kind is float:
        return size
    if isinstance(value, tuple | list | set | frozenset | Row):
        items = list(islice(value, 64))
        inner = sum(_deep_bytes(item, depth - 1) for item in items)
        return size + (inner * len(value) // len(items) if items else 0)
    if isinstance(value, dict):
        pairs = list(islice(value.items(), 64))
        inner = sum(_deep_bytes(k, depth - 1) + _deep_bytes(v, depth - 1) for k, v in pairs)
        return size + (inner * len(value) // len(pairs) if pairs else 0)
    attributes = getattr(value, "__dict__", None)
    return size + (_deep_bytes(attributes, depth - 1) if attributes else 0)


def rows_bytes(rows: list[Any]) -> int:
    """Estimate what the rows take in memory, from a few of them."""
    count = len(rows)
    if count == 0:
        return 0
    step = max(1, count // _SAMPLE_ROWS)
    sample = rows[::step]
    return sum(_deep_bytes(row, _DEPTH_MAX) + 8 for row in sample) * count // len(sample)


def chunks_of(rows: Iterable[Any], size: int = CHUNK_ROWS) -> Iterator[list[Any]]:
    """Cut any iterable into lists of at most ``size`` rows, lazily."""
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _blocks_of(rows: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(rows)
    head = list(islice(iterator, _SAMPLE_ROWS))
    size = max(1, min(_BLOCK_ROWS_MAX, _BLOCK_BYTES * len(head) // max(1, rows_bytes(head)))) if head else 1
    yield from chunks_of(head, size)
    yield from chunks_of(iterator, size)


def _pickle(block: list[Any]) -> bytes:
    try:
        return pickle.dumps(block, protocol=5)
    except Exception:
        # Objects of classes that only the user's program has; costs too much to be done for every block.
        return user_code.dumps(block, "a spilled record")


@final
class Run:
    """Rows in a file, in the order in which they were written. May be read several times, also at once."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __iter__(self) -> Iterator[Any]:
        with open(self.path, "rb") as stream:
            while True:
                try:
                    block = pickle.load(stream)
                except EOFError:
                    return
                yield from block

    def delete(self) -> None:
        try:
            os.remove(self.path)
        except FileNotFoundError:
            pass


def _new_file(work_dir: str, prefix: str) -> tuple[IO[bytes], str]:
    os.makedirs(work_dir, exist_ok=True)
    handle, path = tempfile.mkstemp(prefix=prefix + "-", suffix=".run", dir=work_dir)
    return os.fdopen(handle, "wb", buffering=1 << 16), path


def write_run(work_dir: str, prefix: str, rows: Iterable[Any]) -> Run:
    """Write rows to a new file. On failure (disk full, a row that cannot be pickled) nothing is left."""
    stream, path = _new_file(work_dir, prefix)
    try:
        with stream:
            for block in _blocks_of(rows):
                stream.write(_pickle(block))
    except BaseException:
        Run(path).delete()
        raise
    return Run(path)


@final
class SpillableRows:
    """A list of rows in arrival order, the oldest on disk once the memory budget is used up; may be read many times."""

    def __init__(self, work_dir: str, memory_bytes: int, prefix: str = "rows") -> None:
        self._work_dir = work_dir
        self._budget = memory_budget(memory_bytes)
        self._prefix = prefix
        self._rows: list[Any] = []
        self._bytes = 0
        self._stream: IO[bytes] | None = None
        self._run: Run | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def is_spilled(self) -> bool:
        return self._run is not None

    def extend(self, rows: list[Any]) -> None:
        self._rows.extend(rows)
        self._count += len(rows)
        self._bytes += rows_bytes(rows)
        if self._bytes > self._budget:
            self.spill()

    def spill(self) -> None:
        """Move what is in memory to disk."""
        if self._stream is None:
            self._stream, path = _new_file(self._work_dir, self._prefix)
            self._run = Run(path)
        for block in _blocks_of(self._rows):
            self._stream.write(_pickle(block))
        self._rows = []
        self._bytes = 0

    def __iter__(self) -> Iterator[Any]:
        if self._run is not None:
            assert self._stream is not None
            self._stream.flush()
            yield from self._run
        yield from self._rows

    def clear(self) -> None:
        """Forget all rows and delete the file. The list may be used again."""
        if self._stream is not None:
            self._stream.close()
        if self._run is not None:
            self._run.delete()
        self._stream, self._run = None, None
        self._rows, self._bytes, self._count = [], 0, 0
