"""A file system in memory that all processes share, with faults: writes refused, files torn when their writer dies.

What was written and closed stays for good. A file that its writer had open when it died ends anywhere.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import IO, Any, Final, final

from engine.core import fs
from engine.core.errors import ExternalError, InputError, OutputExistsError
from engine.core.fs import FileStatus, FileSystem
from tests.sim.world import World

__all__ = ["SCHEME", "SimFileSystem"]

SCHEME: Final = "sim"


@final
class _OutputStream(io.RawIOBase):
    def __init__(self, files: SimFileSystem, path: str, owner: object) -> None:
        super().__init__()
        self.name = path
        self.owner = owner
        self.content = bytearray()
        self._files = files

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._files.before_write(self.name)
        self.content += data
        self._files.store(self.name, bytes(self.content))
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._files.forget(self)
        super().close()


@final
class SimFileSystem(FileSystem):
    """``owner``: the process whose code runs, set by whoever runs it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.rng("storage")
        self.files: dict[str, bytes] = {}
        self._folders: dict[str, None] = {}
        self._open: list[_OutputStream] = []
        self.owner: object = None
        self.refuses_until = 0.0  #: the disk is full: no bytes can be written; names can be changed as ever
        self.refuse_share = 1.0
        #: called with each path that goes away
        self.on_delete: list[Any] = []
        #: called with each path and what is there now; None = nothing any more
        self.on_change: Callable[[str, bytes | None], None] = lambda path, content: None
        fs._instances[SCHEME] = self

    # --- faults

    def before_write(self, path: str) -> None:
        if self._world.now < self.refuses_until and self._rng.random() < self.refuse_share:
            self._world.tell("storage", "refused", path[-60:])
            raise ExternalError(f"Cannot write {path}: No space left on device.")

    def process_ended(self, owner: object) -> None:
        """Tear what the process was writing."""
        for stream in [stream for stream in self._open if stream.owner is owner]:
            if stream.name in self.files:
                torn = self._rng.randint(0, len(stream.content))
                self.files[stream.name] = bytes(stream.content[:torn])
            self._open.remove(stream)

    def forget(self, stream: _OutputStream) -> None:
        if stream in self._open:
            self._open.remove(stream)

    def store(self, path: str, content: bytes) -> None:
        if path in self.files:  # else it was deleted or renamed meanwhile, as a file that is open may be
            self.files[path] = content
            self.on_change(path, content)

    # --- the contract

    def open_read(self, path: str, offset: int = 0) -> IO[bytes]:
        if path not in self.files:
            raise InputError(f"Cannot read {path}: No such file or directory.")
        stream = io.BytesIO(self.files[path])
        stream.seek(offset)
        return stream

    def open_write(self, path: str, *, overwrite: bool = False) -> IO[bytes]:
        self.before_write(path)
        if path in self.files and not overwrite:
            raise OutputExistsError(f"{path} exists; choose another path or WriteMode.OVERWRITE.")
        self._make_parents(path)
        self.files[path] = b""
        stream = _OutputStream(self, path, self.owner)
        self._open.append(stream)
        return stream  # type: ignore[return-value]

    def _make_parents(self, path: str) -> None:
        folder = path.rpartition("/")[0]
        while folder and not folder.endswith(":/") and folder not in self._folders:
            self._folders[folder] = None
            folder = folder.rpartition("/")[0]

    def status(self, path: str) -> FileStatus | None:
        path = path.rstrip("/")
        if path in self.files:
            return FileStatus(path, len(self.files[path]), False, int(self._world.now * 1000))
        return FileStatus(path, 0, True, int(self._world.now * 1000)) if path in self._folders else None

    def list(self, path: str) -> list[FileStatus]:
        path = path.rstrip("/")
        if path not in self._folders:
            raise InputError(f"Cannot list {path}: No such file or directory.")
        names = [name for name in (*self.files, *self._folders) if name.rpartition("/")[0] == path]
        return [found for name in sorted(names) if (found := self.status(name)) is not None]

    def make_dirs(self, path: str) -> None:
        self._make_parents(path.rstrip("/") + "/x")

    def rename(self, source: str, target: str, *, overwrite: bool = False) -> None:
        source, target = source.rstrip("/"), target.rstrip("/")
        if self.status(source) is None:
            raise ExternalError(f"Cannot rename {source} to {target}: the source does not exist.")
        if self.status(target) is not None:
            if not overwrite:
                raise OutputExistsError(f"{target} exists; choose another path or WriteMode.OVERWRITE.")
            self.delete(target, recursive=True)
        self._make_parents(target)
        for name in [name for name in self.files if name == source or name.startswith(source + "/")]:
            content = self.files[target + name[len(source) :]] = self.files.pop(name)
            self.on_change(name, None)
            self.on_change(target + name[len(source) :], content)
        for name in [name for name in self._folders if name == source or name.startswith(source + "/")]:
            del self._folders[name]
            self._folders[target + name[len(source) :]] = None

    def delete(self, path: str, *, recursive: bool = False) -> bool:
        path = path.rstrip("/")
        files = [name for name in self.files if name == path or (recursive and name.startswith(path + "/"))]
        folders = [name for name in self._folders if name == path or (recursive and name.startswith(path + "/"))]
        for name in files:
            for called in self.on_delete:
                called(name)
            del self.files[name]
            self.on_change(name, None)
        for name in folders:
            del self._folders[name]
        return bool(files or folders)
