"""Reads splits of files ahead in a thread of its own, as chunks of whole records.

What a record is and where it ends is said by whoever makes the chunks of a split; what is in it by the reader that
takes them: ``files`` (lines), ``column_files`` (columns of CSV and JSON). Not here: which splits there are
(``file_splits``).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final, final

from engine.connectors.file_splits import FileSplit, NothingYet
from engine.connectors.source import Split
from engine.core.errors import EngineError, InputError
from engine.core.fs import file_system_of
from engine.formats.compression import compression_of, decompressed, read_errors

if TYPE_CHECKING:
    from engine.operators.base import OperatorContext

__all__ = ["Chunk", "ChunkReader", "opened_split", "reaching", "without_first"]

_CHUNK_BYTES: Final = 1 << 20
#: Chunks that a thread reads ahead of the task.
_CHUNKS_AHEAD_MAX: Final = 3


@final
@dataclass(slots=True)
class Chunk:
    """Whole records, and where they stood. ``charset`` may differ from the source's when the thread transcoded."""

    path: str
    offset: int  #: of the file, or of its text when it is unpacked
    data: bytes
    charset: str
    unpacked: bool
    is_whole: bool = True  #: False: the end of a file in which no record's end was found

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


@final
class _SplitEnd:
    """Stands in the queue behind the last chunk of a split."""


@final
class ChunkReader:
    """``next`` gives what the thread has found. All that both touch is guarded by ``_lock``."""

    def __init__(self, chunks_of: Callable[[FileSplit, Callable[[], bool]], Iterator[Chunk]]) -> None:
        """``chunks_of(split, is_stopped)``: read a split; called in the thread."""
        self._chunks_of = chunks_of
        self._lock = threading.Condition()
        self._splits: deque[FileSplit | NothingYet] = deque()
        self._num_unread = 0  # splits that the thread has not read to their end
        self._chunks: deque[Chunk | _SplitEnd] = deque()
        self._error: Exception | None = None
        self._stopped = False
        self._thread: threading.Thread | None = None
        #: Splits that ``next`` has not come to the end of; it is in the first one. The task's thread alone touches it.
        self.splits: deque[FileSplit] = deque()

    def open(self, ctx: OperatorContext) -> None:
        self._ctx = ctx

    def add_split(self, split: Split) -> None:
        assert isinstance(split, (FileSplit, NothingYet)), split
        if isinstance(split, FileSplit):
            self.splits.append(split)
        with self._lock:
            self._splits.append(split)
            self._num_unread += 1
            self._lock.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"files {self._ctx.operator_name}", daemon=True)
            self._thread.start()

    def is_read(self) -> bool:
        """Return whether the thread has read all that it was given."""
        return self._num_unread == 0

    def is_empty(self) -> bool:
        """Return whether ``next`` has, besides, returned all of it."""
        with self._lock:
            return not (self._num_unread or self._chunks or self._error)

    def next(self) -> Chunk | FileSplit | None:
        """Return a chunk of the first split, or the split itself when it has ended, or None: nothing is there yet.

        Raises: what the thread met with.
        """
        with self._lock:
            if not self._chunks:
                if self._error is not None:
                    raise self._error
                return None
            chunk = self._chunks.popleft()
            self._lock.notify()
        return self.splits.popleft() if isinstance(chunk, _SplitEnd) else chunk

    def close(self) -> None:
        with self._lock:
            self._stopped = True
            self._lock.notify_all()
        if self._thread is not None:
            self._thread.join(5.0)

    # --- the reading thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                with self._lock:
                    while not self._splits and not self._stopped:
                        self._lock.wait()
                    if self._stopped:
                        return
                    split = self._splits.popleft()
                if isinstance(split, NothingYet):
                    deadline = time.monotonic() + split.interval_ms / 1000
                    with self._lock:
                        while not self._stopped and (left := deadline - time.monotonic()) > 0:
                            self._lock.wait(left)
                else:
                    for chunk in self._chunks_of(split, lambda: self._stopped):
                        if not self._hand_over(chunk):
                            return
                with self._lock:
                    self._num_unread -= 1
                    if isinstance(split, FileSplit):
                        self._chunks.append(_SplitEnd())
                self._ctx.wake()
        except Exception as error:
            with self._lock:
                self._error = error
            self._ctx.wake()

    def _hand_over(self, chunk: Chunk) -> bool:
        """Queue a chunk when there is room; return False when the reader was closed."""
        with self._lock:
            while len(self._chunks) >= _CHUNKS_AHEAD_MAX and not self._stopped:
                self._lock.wait()
            if self._stopped:
                return False
            self._chunks.append(chunk)
            first = len(self._chunks) == 1
        if first:
            self._ctx.wake()
        return True


# --- bytes of a split -------------------------------------------------------------------------------------------------


def opened_split(split: FileSplit, start: int, is_stopped: Callable[[], bool]) -> tuple[IO[bytes], Iterator[bytes]]:
    """Open a split's file; return it and its bytes from ``start`` on, decompressed. A compressed one begins at 0.

    Raises: InputError, also later, when there is no such file, or it is broken.
    """
    codec = compression_of(split.path)
    try:
        stream = file_system_of(split.path).open_read(split.path, start)
    except InputError as error:
        raise InputError(f"{error} It was there when the job listed its input.") from error
    source: Any = stream if codec is None else decompressed(stream, codec, split.path)
    return stream, _chunks_of(source, split.path, start, codec, is_stopped)


def _chunks_of(
    stream: IO[bytes], path: str, position: int, codec: str | None, is_stopped: Callable[[], bool]
) -> Iterator[bytes]:
    while not is_stopped():
        try:
            chunk = stream.read(_CHUNK_BYTES)
        except EngineError:
            raise
        except read_errors() as error:
            what = "Cannot read" if codec is None else f"Broken {codec} data in"
            raise InputError(f"{what} {path} at byte offset {position}: {error}.") from error
        if not chunk:
            return
        yield chunk
        position += len(chunk)


def reaching(chunks: Iterable[bytes], split: FileSplit, position: int) -> Iterator[bytes]:
    """Yield the chunks. Raises: InputError when they end before the split's start: nobody would notice that."""
    for chunk in chunks:
        position += len(chunk)
        yield chunk
    if position < split.start:
        raise InputError(
            f"{split.path} ends before byte {split.start}, from where the job was to read it: it has become shorter "
            "since it was listed, or since the checkpoint. Files must not change while a job reads them."
        )


def without_first(chunks: Iterable[bytes], num_bytes: int) -> Iterator[bytes]:
    """Yield the chunks but for their first bytes."""
    for chunk in chunks:
        if num_bytes < len(chunk):
            yield chunk[num_bytes:]
        num_bytes = max(0, num_bytes - len(chunk))
