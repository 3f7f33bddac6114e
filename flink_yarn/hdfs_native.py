"""HDFS through the Rust library of the package ``hdfs-native``: quick, no JVM, speaks to DataNodes directly.

Its writer does not survive the loss of a DataNode: the write fails, and what calls it must write the whole file again,
as a restarted job does (sinks write to a hidden name).
"""

from __future__ import annotations

import posixpath
from typing import Any, final

from engine.core.errors import ConfigError
from flink_yarn.hadoop_conf import HadoopConf
from flink_yarn.hdfs_client import Problem, ProblemKind, RawStatus, check_reachable, hdfs_user, kind_of
from flink_yarn.hdfs_webhdfs import WebHdfsClient

__all__ = ["NativeClient"]


@final
class NativeClient:
    def __init__(self, authority: str, conf: HadoopConf) -> None:
        try:
            import hdfs_native
        except ImportError as error:
            raise ConfigError(
                f"fs.hdfs.client is native, but the package hdfs-native cannot be imported ({error}). "
                "Install it with: pip install '.[hdfs-native]' (or pip install hdfs-native), or set fs.hdfs.client to "
                "webhdfs."
            ) from None
        check_reachable(authority, conf)
        self._options: Any = hdfs_native.WriteOptions
        # The library takes the user from the environment at its first call.
        self._user = hdfs_user()
        self._client: Any = hdfs_native.Client(f"hdfs://{authority}", config_dir=conf.conf_dir)
        self._locations = WebHdfsClient(authority, conf)

    def status(self, path: str) -> RawStatus | None:
        try:
            return _raw(self._client.get_file_info(path))
        except FileNotFoundError:
            return None

    def children(self, path: str) -> list[tuple[str, RawStatus]]:
        found = self._client.list_status(path)
        return [(posixpath.basename(child.path.rstrip("/")), _raw(child)) for child in found]

    def make_dirs(self, path: str) -> None:
        self._client.mkdirs(path, create_parent=True)

    def move(self, source: str, target: str) -> None:
        self.make_dirs(posixpath.dirname(target) or "/")
        self._client.rename(source, target)

    def delete(self, path: str, recursive: bool) -> bool:
        return bool(self._client.delete(path, recursive=recursive))

    def open(self, path: str, offset: int) -> Any:
        stream = self._client.read(path)
        stream.seek(offset)
        return stream

    def create(self, path: str) -> Any:
        return self._client.create(path, self._options(overwrite=False, create_parent=True))

    def hosts(self, path: str, offset: int, length: int) -> dict[str, int]:
        return self._locations.hosts(path, offset, length)  # the library does not tell

    def problem(self, error: Exception) -> Problem:
        text = whole = str(error)
        if text.startswith("RPCError("):  # RPCError("java.Class", "message\n\tat …")
            text = text.split('", "', 1)[-1]
        text = text.split("\\n")[0].split("\n")[0].rstrip('")').replace('\\"', '"')
        if "Permission denied" in text:
            return Problem(ProblemKind.DENIED, text)
        if isinstance(error, FileNotFoundError):
            return Problem(ProblemKind.MISSING, text)
        kind = kind_of(whole)  # also by the name of the exception
        if kind is not None:
            return Problem(kind, text)
        if isinstance(error, ConnectionError) or "os error" in text or "lookup address" in text:
            return Problem(ProblemKind.UNREACHABLE, text)
        return Problem(ProblemKind.OTHER, text)


def _raw(found: Any) -> RawStatus:
    return RawStatus(0 if found.isdir else int(found.length), bool(found.isdir), int(found.modification_time))
