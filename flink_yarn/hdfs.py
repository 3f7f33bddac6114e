"""``hdfs://`` paths: what the engine's file system contract means on HDFS, with the client of ``fs.hdfs.client``.

Reading resumes at the same offset when a DataNode goes away or another NameNode becomes active; what is asked of a
nameservice waits until one of its NameNodes is active. Writing goes to where the caller says (sinks write to a hidden
name and rename). Importing this module registers the schemes.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import IO, Any, Final, TypeVar, final

from engine.core.config import Configuration
from engine.core.errors import EngineError, ExternalError, InputError, OutputExistsError
from engine.core.fs import FileStatus, FileSystem, file_system_settings, register_file_system
from engine.core.options import YarnOptions
from flink_yarn.hadoop_conf import HadoopConf
from flink_yarn.hdfs_client import HdfsClient, ProblemKind, RawStatus, split_path

__all__ = ["HdfsFileSystem"]

#: How long a nameservice may be without an active NameNode (ZooKeeper's session, 10 s by default, and the take-over),
#: and how long reading waits without a byte: a NameNode that restarts on a busy host needs that.
PATIENCE_S: Final = 60.0
READ_WAIT_MAX_S: Final = 3.0
FAILOVER_POLL_S: Final = 0.5


def _webhdfs(authority: str, conf: HadoopConf) -> HdfsClient:
    from flink_yarn.hdfs_webhdfs import WebHdfsClient

    return WebHdfsClient(authority, conf)


def _libhdfs(authority: str, conf: HadoopConf) -> HdfsClient:
    from flink_yarn.hdfs_libhdfs import LibhdfsClient

    return LibhdfsClient(authority, conf)


def _native(authority: str, conf: HadoopConf) -> HdfsClient:
    from flink_yarn.hdfs_native import NativeClient

    return NativeClient(authority, conf)


_T = TypeVar("_T")
#: In these cases another NameNode, or the same one later, may answer.
_AWAY: Final = (ProblemKind.UNREACHABLE, ProblemKind.STANDBY)
_CLIENTS: Final[dict[str, Callable[[str, HadoopConf], HdfsClient]]] = {
    "webhdfs": _webhdfs,
    "libhdfs": _libhdfs,
    "native": _native,
}


@final
class _Cluster:
    """One client, and the patience that a nameservice needs."""

    def __init__(self, client: HdfsClient, is_nameservice: bool) -> None:
        self.client = client
        self._patience_s = PATIENCE_S if is_nameservice else 0.0

    def call(self, ask: Callable[[], _T], path: str, action: str, *, writing: bool = False) -> _T:
        """Return what ``ask`` returns. It is called again while no NameNode is active, so it may be done twice.

        Raises: our error for what the library raises.
        """
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return ask()
            except Exception as error:
                is_away = not isinstance(error, EngineError) and self.client.problem(error).kind in _AWAY
                if not is_away or time.monotonic() > deadline:
                    raise self.translated(error, path, action, writing=writing) from error
            time.sleep(FAILOVER_POLL_S)

    def translated(self, error: Exception, path: str, action: str, *, writing: bool = False) -> EngineError:
        """Return our error for one of the client's library: says path, cause and what to look at."""
        if isinstance(error, EngineError):
            return error
        problem = self.client.problem(error)
        match problem.kind:
            case ProblemKind.UNREACHABLE:
                return ExternalError(
                    f"Cannot {action} {path}: the NameNode or DataNode does not answer ({problem.text}). "
                    "Is HDFS up, and does HADOOP_CONF_DIR point to its configuration?"
                )
            case ProblemKind.STANDBY:
                return ExternalError(f"Cannot {action} {path}: no NameNode is active ({problem.text}).")
            case ProblemKind.MISSING:
                return InputError(f"Cannot {action} {path}: it does not exist.")
            case ProblemKind.DENIED:
                return ExternalError(f"Cannot {action} {path}: {problem.text}. Set HADOOP_USER_NAME to a user who may.")
        return (ExternalError if writing else InputError)(f"Cannot {action} {path}: {problem.text}")


@final
class HdfsFileSystem(FileSystem):
    """All HDFS clusters that paths name; one client each, made when first used."""

    def __init__(self, conf: HadoopConf | None = None, client: str = "webhdfs") -> None:
        self._conf = conf or HadoopConf.load()
        self._connect = _CLIENTS[client]
        self._clients: dict[str, _Cluster] = {}

    def _resolve(self, path: str) -> tuple[_Cluster, str, str]:
        """Return (cluster, path on HDFS, prefix that the caller's paths carry)."""
        found = split_path(path, self._conf)
        if found.authority not in self._clients:
            client = self._connect(found.authority, self._conf)
            self._clients[found.authority] = _Cluster(client, self._conf.is_nameservice(found.authority))
        return self._clients[found.authority], found.plain, found.prefix

    # --- FileSystem -------------------------------------------------------------------------------------------------

    def open_read(self, path: str, offset: int = 0) -> IO[bytes]:
        cluster, plain, _ = self._resolve(path)
        return io.BufferedReader(_ResumingReader(cluster, plain, path, offset), 1 << 20)  # type: ignore[return-value]

    def open_write(self, path: str, *, overwrite: bool = False) -> IO[bytes]:
        cluster, plain, _ = self._resolve(path)
        if not overwrite and self.status(path) is not None:
            raise OutputExistsError(f"{path} exists; choose another path or WriteMode.OVERWRITE.")
        return io.BufferedWriter(_Writer(cluster, plain, path, overwrite), 1 << 20)  # type: ignore[return-value]

    def status(self, path: str) -> FileStatus | None:
        cluster, plain, prefix = self._resolve(path)
        found = cluster.call(lambda: cluster.client.status(plain), path, "look at")
        return None if found is None else _file_status(prefix + plain, found)

    def list(self, path: str) -> list[FileStatus]:
        cluster, plain, prefix = self._resolve(path)
        children = cluster.call(lambda: cluster.client.children(plain), path, "list")
        folder = prefix + plain.rstrip("/")
        return sorted((_file_status(f"{folder}/{name}", found) for name, found in children), key=lambda s: s.path)

    def make_dirs(self, path: str) -> None:
        cluster, plain, _ = self._resolve(path)
        cluster.call(lambda: cluster.client.make_dirs(plain), path, "make folder", writing=True)

    def rename(self, source: str, target: str, *, overwrite: bool = False) -> None:
        cluster, plain_source, _ = self._resolve(source)
        _, plain_target, _ = self._resolve(target)
        if self.status(target) is not None:
            if not overwrite:
                raise OutputExistsError(f"{target} exists; choose another path or WriteMode.OVERWRITE.")
            self.delete(target, recursive=True)
        tried = False

        def move() -> None:
            nonlocal tried
            client = cluster.client
            # A NameNode may die between doing it and saying so; the target did not exist before.
            if tried and client.status(plain_source) is None and client.status(plain_target) is not None:
                return
            tried = True
            client.move(plain_source, plain_target)

        cluster.call(move, f"{source} to {target}", "rename", writing=True)

    def delete(self, path: str, *, recursive: bool = False) -> bool:
        cluster, plain, _ = self._resolve(path)
        return cluster.call(lambda: cluster.client.delete(plain, recursive), path, "delete", writing=True)

    def block_hosts(self, path: str, offset: int, length: int) -> tuple[str, ...]:
        cluster, plain, _ = self._resolve(path)
        bytes_by_host = cluster.client.hosts(plain, offset, length)
        return tuple(sorted(bytes_by_host, key=lambda host: (-bytes_by_host[host], host)))


def _file_status(path: str, found: RawStatus) -> FileStatus:
    return FileStatus(path, found.size_bytes, found.is_dir, found.modified_ms)


class _ResumingReader(io.RawIOBase):
    """Reads one file; when the connection breaks it opens the file again at the offset reached."""

    def __init__(self, cluster: _Cluster, plain: str, path: str, offset: int) -> None:
        self._cluster, self._plain, self._path = cluster, plain, path
        self._offset = offset
        self._failures = 0  #: since the last byte
        self._deadline = 0.0  #: of the attempts that followed them
        self._stream: Any = None
        self._size = self._find_size()

    def _find_size(self) -> int:
        found = self._cluster.call(lambda: self._cluster.client.status(self._plain), self._path, "read")
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
                if self._failures == 1:
                    self._deadline = time.monotonic() + PATIENCE_S
                is_final = self._cluster.client.problem(error).kind in (ProblemKind.MISSING, ProblemKind.DENIED)
                if is_final or time.monotonic() > self._deadline:
                    at = f"{self._path} at byte {self._offset}"
                    raise self._cluster.translated(error, at, "read") from error
                time.sleep(min(0.1 * 2**self._failures, READ_WAIT_MAX_S))
                continue
            self._failures = 0
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


class _Writer(io.RawIOBase):
    def __init__(self, cluster: _Cluster, plain: str, path: str, overwrite: bool) -> None:
        self._cluster, self._path = cluster, path
        self._stream: Any = cluster.call(lambda: cluster.client.create(plain, overwrite), path, "write", writing=True)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            self._stream.write(bytes(data))
        except Exception as error:
            raise self._cluster.translated(error, self._path, "write", writing=True) from error
        return len(data)

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        try:
            self._stream.close()
        except Exception as error:
            raise self._cluster.translated(error, self._path, "write", writing=True) from error


def _chosen() -> FileSystem:
    return HdfsFileSystem(client=Configuration(file_system_settings()).get(YarnOptions.HDFS_CLIENT))


register_file_system("hdfs", _chosen)
register_file_system("webhdfs", HdfsFileSystem)
