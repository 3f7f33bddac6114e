"""Streams of files on HDFS that outlast daemons that go away: a reader that resumes, a writer that writes again.

A file on HDFS cannot be continued by somebody else before its writer's lease has ended, a minute later. So the writer
keeps what it has written until the file is closed; when the connection breaks or the NameNode is away, only that grows,
and the file is written anew when it is closed, or sooner when too much is kept. Nobody is blocked before that.
Not here: when to be patient (``hdfs_cluster``).
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
import time
from typing import IO, Any, Final, NoReturn, final

from engine.core.errors import EngineError, ExternalError, InputError
from flink_yarn.hdfs_client import ProblemKind
from flink_yarn.hdfs_cluster import POLL_S, HdfsCluster

__all__ = ["ResumingReader", "RewritingWriter"]

READ_WAIT_MAX_S: Final = 3.0
#: Of an open file: this much is kept in memory, and so much on the local disk (an unlinked file). A file that becomes
#: larger is not written again: state of that size is rather declined, and finished parts of sinks are smaller.
KEPT_IN_MEMORY_MAX: Final = 1 << 20
KEPT_MAX: Final = 1 << 30
_COPY_BYTES: Final = 1 << 20


@final
class ResumingReader(io.RawIOBase):
    """Reads one file; when the connection breaks it opens the file again at the offset reached."""

    def __init__(self, cluster: HdfsCluster, plain: str, path: str, offset: int) -> None:
        self._cluster, self._plain, self._path = cluster, plain, path
        self._offset = offset
        self._failures = 0  #: since the last byte
        self._stream: Any = None
        self._size = self._find_size()
        self._patience = cluster.patience()

    def _find_size(self) -> int:
        found = self._cluster.call(lambda client: client.status(self._plain), self._path, "read")
        if found is None:
            raise InputError(f"Cannot read {self._path}: it does not exist.")
        if found.is_dir:
            raise InputError(f"Cannot read {self._path}: it is a folder.")
        return found.size_bytes

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def readinto(self, buffer: Any) -> int:
        while self._offset < self._size:
            try:
                if self._stream is None:
                    self._stream = self._cluster.client.open(self._plain, self._offset)
                data = self._stream.read(min(len(buffer), self._size - self._offset))
                if not data:
                    raise ConnectionError(f"ended {self._size - self._offset} bytes early")
            except Exception as error:
                self._drop_connection()
                self._failures += 1
                is_final = self._cluster.client.problem(error).kind in (ProblemKind.MISSING, ProblemKind.DENIED)
                if is_final or self._patience.is_over():
                    at = f"{self._path} at byte {self._offset}"
                    raise self._cluster.translated(error, at, "read") from error
                time.sleep(min(0.1 * 2**self._failures, READ_WAIT_MAX_S))
                continue
            self._failures = 0
            self._patience.restart()
            self._offset += len(data)
            buffer[: len(data)] = data
            return len(data)
        return 0

    def _drop_connection(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                stream.close()
            except OSError:
                pass  # it is broken, and what was read is right

    def close(self) -> None:
        self._drop_connection()
        super().close()


@final
class RewritingWriter(io.RawIOBase):
    """Writes one file, which is complete when ``close`` has returned."""

    def __init__(
        self, cluster: HdfsCluster, plain: str, path: str, *, overwrite: bool, temp_dir: str | None = None
    ) -> None:
        """Unless ``overwrite`` the file does not exist. ``temp_dir``: None = the system's. Raises: our error, unless
        the cluster is only away for now."""
        self._cluster, self._plain, self._path = cluster, plain, path
        self._temp_dir = temp_dir
        self._size = 0
        #: None: too much was written to keep it
        self._kept: IO[bytes] | None = tempfile.SpooledTemporaryFile(max_size=KEPT_IN_MEMORY_MAX, dir=temp_dir)
        #: None: the file is to be written anew from what is kept
        self._stream: Any = None
        self._is_given_up = False
        self._failure: EngineError | None = None
        try:
            self._create(overwrite)
        except Exception as error:
            self._break(error)

    def _create(self, overwrite: bool) -> None:
        # Never what HDFS calls overwriting: a DataNode that was cut off may create the file late, and must not find the
        # one away that has been written since.
        if overwrite:
            self._cluster.client.delete(self._plain, False)
        self._stream = self._cluster.client.create(self._plain)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self._is_given_up:
            return len(data)
        if self._failure is not None:
            raise self._failure
        content = bytes(data)
        self._keep(content)
        self._size += len(content)
        if self._stream is not None:
            try:
                self._stream.write(content)
            except Exception as error:
                self._break(error)
        return len(content)

    def _keep(self, content: bytes) -> None:
        if self._kept is None:
            return
        if self._size + len(content) > KEPT_MAX:
            if self._stream is None:
                self._write_again(closing=False)
            self._forget()
            return
        try:
            self._kept.write(content)
        except OSError as error:  # no room on the local disk: then as without
            self._forget()
            if self._stream is None:
                self._fail(
                    ExternalError(
                        f"Cannot write {self._path}: HDFS is away, and what is to be written cannot be "
                        f"kept in {self._temp_dir or tempfile.gettempdir()} (io.tmp.dirs) meanwhile: {error}."
                    ),
                    error,
                )

    def _fail(self, failure: EngineError, cause: Exception) -> NoReturn:
        self._failure = failure
        self._drop_stream()
        self._forget()
        raise failure from cause

    def _break(self, error: Exception) -> None:
        """The file is not to be had this way; raise if it is not to be had at all."""
        cluster = self._cluster
        if self._kept is None or not cluster.is_known or not cluster.is_away(error):
            self._fail(cluster.translated(error, self._path, "write", writing=True), error)
        cluster.tell_waiting(error, self._path, "write")
        self._drop_stream()

    def _drop_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                stream.abandon() if hasattr(stream, "abandon") else stream.close()
            except Exception:  # libraries raise what they like; it is broken, and said so before
                pass

    def _write_again(self, *, closing: bool) -> None:
        """Write all that is kept to a new file, until that works or takes too long."""
        cluster, patience = self._cluster, self._cluster.patience()
        while True:
            try:
                self._write_kept()
                if closing:
                    self._close_stream()
                return
            except Exception as error:
                self._drop_stream()
                if not cluster.is_away(error) or patience.is_over():
                    self._fail(cluster.translated(error, self._path, "write", writing=True), error)
            time.sleep(POLL_S)

    def _write_kept(self) -> None:
        assert self._kept is not None
        self._create(overwrite=True)  # ours of before: the name is nobody else's
        self._kept.seek(0)
        shutil.copyfileobj(self._kept, self._stream, _COPY_BYTES)
        self._kept.seek(0, io.SEEK_END)

    def _close_stream(self) -> None:
        stream = self._stream
        stream.close()
        self._stream = None

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        try:
            if self._is_given_up:
                return
            if self._failure is not None:
                raise self._failure
            if self._stream is not None:
                try:
                    self._close_stream()
                    return
                except Exception as error:
                    self._break(error)
            self._write_again(closing=True)
        finally:
            self._forget()
        self._cluster.answered()

    def give_up(self) -> None:
        """Nobody wants the file any more: end without waiting for anything. The file may be there or not."""
        self._is_given_up = True
        self._drop_stream()
        self._forget()

    def _forget(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            with contextlib.suppress(OSError):
                kept.close()
