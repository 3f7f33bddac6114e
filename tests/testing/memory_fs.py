"""A file system in memory that forgets as HDFS does: what was written to an open file is only safe once it is closed.

``CrashPoints`` counts what is asked of any file system and "kills the process" at a given one.
"""

from __future__ import annotations

import builtins
import io
from typing import IO, Any

from engine.core.errors import ExternalError, InputError, OutputExistsError
from engine.core.fs import FileStatus, FileSystem


class MemoryFileSystem(FileSystem):
    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.folders: set[str] = set()

    @staticmethod
    def _plain(path: str) -> str:
        return path.rstrip("/")

    def open_read(self, path: str, offset: int = 0) -> IO[bytes]:
        path = self._plain(path)
        if path not in self.files:
            raise InputError(f"Cannot read {path}: no such file.")
        stream = io.BytesIO(self.files[path])
        stream.seek(offset)
        return stream

    def open_write(self, path: str, *, overwrite: bool = False) -> IO[bytes]:
        path = self._plain(path)
        if path in self.files and not overwrite:
            raise OutputExistsError(f"{path} exists.")
        if path in self.folders or any(parent in self.files for parent in _parents(path)):
            raise ExternalError(f"Cannot write {path}: not a file.")
        self.make_dirs(path.rpartition("/")[0])
        self.files[path] = b""
        return _Writing(self, path)  # type: ignore[return-value]

    def status(self, path: str) -> FileStatus | None:
        path = self._plain(path)
        if path in self.files:
            return FileStatus(path, len(self.files[path]), False, 1_700_000_000_000)
        return FileStatus(path, 0, True, 1_700_000_000_000) if path in self.folders else None

    def list(self, path: str) -> builtins.list[FileStatus]:
        path = self._plain(path)
        if path not in self.folders:
            raise InputError(f"Cannot list {path}: no such folder.")
        names = {known for known in (*self.files, *self.folders) if known.rpartition("/")[0] == path}
        return [found for name in sorted(names) if (found := self.status(name)) is not None]

    def make_dirs(self, path: str) -> None:
        path = self._plain(path)
        for parent in (*_parents(path), path):
            if parent in self.files:
                raise ExternalError(f"Cannot make folder {path}: {parent} is a file.")
            self.folders.add(parent)

    def rename(self, source: str, target: str, *, overwrite: bool = False) -> None:
        source, target = self._plain(source), self._plain(target)
        if self.status(source) is None:
            raise ExternalError(f"Cannot rename {source} to {target}: the source does not exist.")
        if self.status(target) is not None:
            if not overwrite:
                raise OutputExistsError(f"{target} exists.")
            self.delete(target, recursive=True)
        self.make_dirs(target.rpartition("/")[0])

        def moved(path: str) -> str:
            return target + path[len(source) :] if path == source or path.startswith(source + "/") else path

        self.files = {moved(path): data for path, data in self.files.items()}
        self.folders = {moved(path) for path in self.folders}

    def delete(self, path: str, *, recursive: bool = False) -> bool:
        path = self._plain(path)
        if self.status(path) is None:
            return False
        inside = [known for known in (*self.files, *self.folders) if known.startswith(path + "/")]
        if inside and not recursive:
            raise ExternalError(f"Cannot delete {path}: the folder is not empty.")
        for known in (*inside, path):
            self.files.pop(known, None)
            self.folders.discard(known)
        return True


def _parents(path: str) -> builtins.list[str]:
    """Return the folders above, from below the scheme and authority on."""
    scheme, separator, rest = path.rpartition("://")
    parts = rest.split("/")
    return [scheme + separator + "/".join(parts[:end]) for end in range(1, len(parts)) if any(parts[:end])]


class _Writing(io.RawIOBase):
    """Nothing of it is in the file before it is closed: the worst that HDFS does."""

    def __init__(self, fs: MemoryFileSystem, path: str) -> None:
        self._fs = fs
        self._path = path
        self._data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._data += data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            if self._path in self._fs.files:
                self._fs.files[self._path] = bytes(self._data)

    def __del__(self) -> None:
        pass  # a killed process does not close its files


class Crash(BaseException):
    """The process is gone. Nothing of ours catches it."""


class CrashPoints(FileSystem):
    """Passes on what it is asked, and raises Crash instead of call number ``crash_at``, or right after it."""

    def __init__(self, inner: FileSystem) -> None:
        self.inner = inner
        self.num_calls = 0
        self.crash_at: int | None = None
        self.after = False

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        self.num_calls += 1
        crashes = self.num_calls == self.crash_at
        if crashes and not self.after:
            raise Crash(method)
        result = getattr(self.inner, method)(*args, **kwargs)
        if crashes:
            raise Crash(method)
        return result

    def open_read(self, path: str, offset: int = 0) -> IO[bytes]:
        return self._call("open_read", path, offset)

    def open_write(self, path: str, *, overwrite: bool = False) -> IO[bytes]:
        return self._call("open_write", path, overwrite=overwrite)

    def status(self, path: str) -> FileStatus | None:
        return self._call("status", path)

    def list(self, path: str) -> builtins.list[FileStatus]:
        return self._call("list", path)

    def make_dirs(self, path: str) -> None:
        self._call("make_dirs", path)

    def rename(self, source: str, target: str, *, overwrite: bool = False) -> None:
        self._call("rename", source, target, overwrite=overwrite)

    def delete(self, path: str, *, recursive: bool = False) -> bool:
        return self._call("delete", path, recursive=recursive)
