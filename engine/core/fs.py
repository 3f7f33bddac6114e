"""File systems by scheme: one contract for local disk and HDFS (``flink_yarn/hdfs`` registers ``hdfs``).

Paths are strings as users write them: ``/data/x``, ``file:///data/x``, ``hdfs://host:port/x``, ``hdfs:///x``. Reading
and writing block; call from an I/O thread or a coordinator.
"""

from __future__ import annotations

import abc
import builtins
import contextlib
import contextvars
import fnmatch
import glob
import importlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, final

from engine.core.errors import ConfigError, InputError

__all__ = [
    "FileStatus",
    "FileSystem",
    "LocalFileSystem",
    "configure_file_systems",
    "file_system_of",
    "file_system_settings",
    "forget_connections",
    "give_up",
    "list_input_files",
    "may_wait",
    "register_file_system",
    "scheme_of",
    "without_waiting",
]


@dataclass(frozen=True, slots=True)
class FileStatus:
    path: str  #: with scheme and authority where the caller's path had them
    size_bytes: int
    is_dir: bool
    modified_ms: int


class FileSystem(abc.ABC):
    """All methods raise InputError/ExternalError with the path in the message, never a bare OSError of a library."""

    @abc.abstractmethod
    def open_read(self, path: str, offset: int = 0) -> IO[bytes]:
        """Return a blocking binary stream that starts at ``offset``. Raises InputError if the file is missing."""

    @abc.abstractmethod
    def open_write(self, path: str, *, overwrite: bool = False) -> IO[bytes]:
        """Create a file, with its parent folders. Raises OutputExistsError if it exists and not ``overwrite``."""

    @abc.abstractmethod
    def status(self, path: str) -> FileStatus | None:
        """Return what is there, or None if nothing is."""

    @abc.abstractmethod
    def list(self, path: str) -> builtins.list[FileStatus]:
        """Return the children of a folder, sorted by path. Raises InputError if it is missing."""

    @abc.abstractmethod
    def make_dirs(self, path: str) -> None: ...

    @abc.abstractmethod
    def rename(self, source: str, target: str, *, overwrite: bool = False) -> None:
        """Move a file or folder within this file system. With ``overwrite`` an existing target is replaced."""

    @abc.abstractmethod
    def delete(self, path: str, *, recursive: bool = False) -> bool:
        """Return whether something was deleted."""

    def block_hosts(self, path: str, offset: int, length: int) -> tuple[str, ...]:
        """Return hosts that hold most of the range, best first; () when the file system does not know."""
        return ()

    def glob(self, pattern: str) -> builtins.list[FileStatus]:
        """Return what matches a pattern with ``*``, ``?`` and ``[…]`` in any component, sorted by path."""
        head, parts = _split_at_magic(pattern)
        found = [] if self.status(head) is None else list(self._expand(head, parts))
        return sorted(found, key=lambda status: status.path)

    def _expand(self, folder: str, parts: builtins.list[str]) -> Iterator[FileStatus]:
        if not parts:
            status = self.status(folder)
            if status is not None:
                yield status
            return
        status = self.status(folder)
        if status is None or not status.is_dir:
            return
        for child in self.list(folder):
            name = child.path.rstrip("/").rsplit("/", 1)[-1]
            if fnmatch.fnmatchcase(name, parts[0]):
                if len(parts) == 1:
                    yield child
                elif child.is_dir:
                    yield from self._expand(child.path, parts[1:])


def _split_at_magic(pattern: str) -> tuple[str, list[str]]:
    """Return the folder to begin in and the components from the first one with magic."""
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    if first == 0:
        return ".", parts
    return "/".join(parts[:first]) or "/", [part for part in parts[first:] if part]


def scheme_of(path: str) -> str:
    """Return the scheme of a path, "file" when it has none."""
    match = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*)://", path)
    if match:
        return match[1].lower()
    return "hdfs" if path.startswith("hdfs:") else "file"


@final
class LocalFileSystem(FileSystem):
    @staticmethod
    def local(path: str) -> str:
        """Return the plain path of ``file://`` and schemeless forms."""
        if path.startswith("file://"):
            path = path[len("file://") :]
        elif path.startswith("file:"):
            path = path[len("file:") :]
        return path

    def open_read(self, path: str, offset: int = 0) -> IO[bytes]:
        try:
            stream = open(self.local(path), "rb")
        except OSError as error:
            raise InputError(f"Cannot read {path}: {error.strerror}.") from error
        stream.seek(offset)
        return stream

    def open_write(self, path: str, *, overwrite: bool = False) -> IO[bytes]:
        from engine.core.errors import ExternalError, OutputExistsError

        local = self.local(path)
        self.make_dirs(os.path.dirname(local) or ".")
        try:
            return open(local, "wb" if overwrite else "xb")
        except FileExistsError as error:
            raise OutputExistsError(f"{path} exists; choose another path or WriteMode.OVERWRITE.") from error
        except OSError as error:
            raise ExternalError(f"Cannot write {path}: {error.strerror}.") from error

    def status(self, path: str) -> FileStatus | None:
        try:
            found = os.stat(self.local(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise InputError(f"Cannot look at {path}: {error.strerror}.") from error
        is_dir = os.path.isdir(self.local(path))
        return FileStatus(path, 0 if is_dir else found.st_size, is_dir, found.st_mtime_ns // 1_000_000)

    def list(self, path: str) -> builtins.list[FileStatus]:
        try:
            names = sorted(os.listdir(self.local(path)))
        except OSError as error:
            raise InputError(f"Cannot list {path}: {error.strerror}.") from error
        children = (self.status(path.rstrip("/") + "/" + name) for name in names)
        return [child for child in children if child is not None]

    def make_dirs(self, path: str) -> None:
        from engine.core.errors import ExternalError

        try:
            os.makedirs(self.local(path), exist_ok=True)
        except OSError as error:
            raise ExternalError(f"Cannot make folder {path}: {error.strerror}.") from error

    def rename(self, source: str, target: str, *, overwrite: bool = False) -> None:
        from engine.core.errors import ExternalError, OutputExistsError

        to = self.local(target)
        if not os.path.lexists(self.local(source)):  # before the target is removed
            raise ExternalError(f"Cannot rename {source} to {target}: the source does not exist.")
        if os.path.exists(to):
            if not overwrite:
                raise OutputExistsError(f"{target} exists; choose another path or WriteMode.OVERWRITE.")
            if os.path.isdir(to):
                shutil.rmtree(to)
        try:
            os.makedirs(os.path.dirname(to) or ".", exist_ok=True)
            os.replace(self.local(source), to)
            _sync_folder(os.path.dirname(to) or ".")
        except OSError as error:
            raise ExternalError(f"Cannot rename {source} to {target}: {error.strerror}.") from error

    def delete(self, path: str, *, recursive: bool = False) -> bool:
        from engine.core.errors import ExternalError

        local = self.local(path)
        try:
            if os.path.isdir(local) and not os.path.islink(local):
                shutil.rmtree(local) if recursive else os.rmdir(local)
            else:
                os.remove(local)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise ExternalError(f"Cannot delete {path}: {error.strerror}.") from error
        return True


def _sync_folder(path: str) -> None:
    """Make a rename survive a power cut. Not every file system can; those that cannot need no help from us."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


_factories: dict[str, Callable[[], FileSystem]] = {"file": LocalFileSystem}
#: Schemes whose module registers itself when imported; keeps hdfs out of programs that do not use it.
_modules: dict[str, str] = {"hdfs": "flink_yarn.hdfs", "webhdfs": "flink_yarn.hdfs"}
_instances: dict[str, FileSystem] = {}
#: Options of this process for its file systems: those that begin with ``fs.``.
_settings: dict[str, str] = {}


_waits: contextvars.ContextVar[bool] = contextvars.ContextVar("waits for file systems", default=True)


def configure_file_systems(options: Mapping[str, str]) -> None:
    """Give this process's file systems their ``fs.*`` options, and the folders for temporary files (``io.tmp.dirs``);
    called where a process, a program or a job begins.

    File systems that were made with other options are made anew when they are next asked for.
    """
    chosen = {key: value for key, value in options.items() if key.startswith("fs.") or key == "io.tmp.dirs"}
    if chosen != _settings:
        _settings.clear()
        _settings.update(chosen)
        _instances.clear()


def file_system_settings() -> dict[str, str]:
    return dict(_settings)


def register_file_system(scheme: str, factory: Callable[[], FileSystem]) -> None:
    _factories[scheme] = factory


def file_system_of(path: str) -> FileSystem:
    """Return the file system of a path's scheme. Raises ConfigError for an unknown scheme."""
    scheme = scheme_of(path)
    if scheme not in _instances:
        if scheme not in _factories and scheme in _modules:
            importlib.import_module(_modules[scheme])
        if scheme not in _factories:
            known = ", ".join(sorted({*_factories, *_modules}))
            raise ConfigError(f"{path}: no file system for scheme {scheme!r}; known schemes: {known}.")
        _instances[scheme] = _factories[scheme]()
    return _instances[scheme]


def list_input_files(path: str) -> list[FileStatus]:
    """Return the files behind a user's input path: a file, a folder (recursively) or a glob, sorted by path.

    Files and folders whose name begins with ``.`` or ``_`` are left out inside folders and by wildcards, as Flink and
    Hadoop do. A file whose name holds ``[`` or ``*`` itself is found by its name.
    Raises InputError when nothing is there or nothing matches.
    """
    fs = file_system_of(path)
    status = fs.status(path)
    if status is not None:
        roots = [status]
    elif glob.has_magic(path):
        last = path.rstrip("/").rsplit("/", 1)[-1]
        roots = [root for root in fs.glob(path) if not _is_hidden(root.path) or last[:1] in (".", "_")]
        if not roots:
            raise InputError(f"Input pattern {path} matches nothing.")
    else:
        raise InputError(f"Input path {path} does not exist.")
    files: list[FileStatus] = []
    pending = list(reversed(roots))
    while pending:
        status = pending.pop()
        if not status.is_dir:
            files.append(status)
            continue
        children = fs.list(status.path)
        pending.extend(child for child in reversed(children) if not _is_hidden(child.path))
    return files


def _is_hidden(path: str) -> bool:
    return path.rstrip("/").rsplit("/", 1)[-1].startswith((".", "_"))


@contextlib.contextmanager
def without_waiting() -> Iterator[None]:
    """In this block, in this thread, a file system that is away is not waited for: clean-up must not hold up an end."""
    token = _waits.set(False)
    try:
        yield
    finally:
        _waits.reset(token)


def may_wait() -> bool:
    """Whether a file system may wait for its servers; asked by those that do."""
    return _waits.get()


def give_up(stream: IO[bytes]) -> None:
    """Close a stream that writes a file which nobody wants any more: without waiting for a file system that is away."""
    end = getattr(getattr(stream, "raw", None), "give_up", None)
    if end is not None:
        end()
    stream.close()


def forget_connections() -> None:
    """Begin anew with every file system: after a fork their connections belong to the parent."""
    _instances.clear()
