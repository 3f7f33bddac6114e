"""``hdfs://`` paths: what the engine's file system contract means on HDFS, with the client of ``fs.hdfs.client``.

What is asked waits, up to ``fs.hdfs.retry-timeout``, while NameNodes are away (``hdfs_cluster``); reading resumes and
writing begins again when daemons go away (``hdfs_streams``). Writing goes to where the caller says (sinks write to a
hidden name and rename). Importing this module registers the schemes.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable
from typing import IO, Final, final

from engine.core.config import Configuration
from engine.core.errors import ConfigError, OutputExistsError
from engine.core.fs import FileStatus, FileSystem, file_system_settings, register_file_system
from engine.core.options import ClusterOptions, YarnOptions
from flink_yarn.hadoop_conf import HadoopConf
from flink_yarn.hdfs_client import HdfsClient, RawStatus, split_path
from flink_yarn.hdfs_cluster import HdfsCluster
from flink_yarn.hdfs_streams import ResumingReader, RewritingWriter

__all__ = ["HdfsFileSystem"]

RETRY_TIMEOUT_S: Final = YarnOptions.HDFS_RETRY_TIMEOUT.default / 1000


def _webhdfs(authority: str, conf: HadoopConf) -> HdfsClient:
    from flink_yarn.hdfs_webhdfs import WebHdfsClient

    return WebHdfsClient(authority, conf)


def _libhdfs(authority: str, conf: HadoopConf) -> HdfsClient:
    from flink_yarn.hdfs_libhdfs import LibhdfsClient

    return LibhdfsClient(authority, conf)


def _native(authority: str, conf: HadoopConf) -> HdfsClient:
    from flink_yarn.hdfs_native import NativeClient

    return NativeClient(authority, conf)


_CLIENTS: Final[dict[str, Callable[[str, HadoopConf], HdfsClient]]] = {
    "webhdfs": _webhdfs,
    "libhdfs": _libhdfs,
    "native": _native,
}


@final
class HdfsFileSystem(FileSystem):
    """All HDFS clusters that paths name; one client each, made when first used.

    ``temp_dir``: where large files are kept until they are closed; None = where the system has its temporary files.
    """

    def __init__(
        self,
        conf: HadoopConf | None = None,
        client: str = "webhdfs",
        *,
        retry_timeout_s: float = RETRY_TIMEOUT_S,
        temp_dir: str | None = None,
    ) -> None:
        self._temp_dir = temp_dir
        self._conf = conf or HadoopConf.load()
        self._connect = _CLIENTS[client]
        self._retry_timeout_s = retry_timeout_s
        self._clusters: dict[str, HdfsCluster] = {}

    def _resolve(self, path: str) -> tuple[HdfsCluster, str, str]:
        """Return (cluster, path on HDFS, prefix that the caller's paths carry)."""
        found = split_path(path, self._conf)
        if found.authority not in self._clusters:
            self._clusters[found.authority] = HdfsCluster(
                found.authority,
                lambda: self._connect(found.authority, self._conf),
                retry_timeout_s=self._retry_timeout_s,
                is_nameservice=self._conf.is_nameservice(found.authority),
                is_there=self._has_started_us(found.authority),
            )
        return self._clusters[found.authority], found.plain, found.prefix

    def _has_started_us(self, authority: str) -> bool:
        """Return whether YARN has fetched this process's files from there."""
        if "CONTAINER_ID" not in os.environ:
            return False
        with contextlib.suppress(ConfigError):
            return authority == self._conf.default_authority()
        return False

    # --- FileSystem -------------------------------------------------------------------------------------------------

    def open_read(self, path: str, offset: int = 0) -> IO[bytes]:
        cluster, plain, _ = self._resolve(path)
        return io.BufferedReader(ResumingReader(cluster, plain, path, offset), 1 << 20)  # type: ignore[return-value]

    def open_write(self, path: str, *, overwrite: bool = False) -> IO[bytes]:
        cluster, plain, _ = self._resolve(path)
        if not overwrite and self.status(path) is not None:
            raise OutputExistsError(f"{path} exists; choose another path or WriteMode.OVERWRITE.")
        raw = RewritingWriter(cluster, plain, path, overwrite=overwrite, temp_dir=self._temp_dir)
        return io.BufferedWriter(raw, 1 << 20)  # type: ignore[return-value]

    def status(self, path: str) -> FileStatus | None:
        cluster, plain, prefix = self._resolve(path)
        found = cluster.call(lambda client: client.status(plain), path, "look at")
        return None if found is None else _file_status(prefix + plain, found)

    def list(self, path: str) -> list[FileStatus]:
        cluster, plain, prefix = self._resolve(path)
        children = cluster.call(lambda client: client.children(plain), path, "list")
        folder = prefix + plain.rstrip("/")
        return sorted((_file_status(f"{folder}/{name}", found) for name, found in children), key=lambda s: s.path)

    def make_dirs(self, path: str) -> None:
        cluster, plain, _ = self._resolve(path)
        cluster.call(lambda client: client.make_dirs(plain), path, "make folder", writing=True)

    def rename(self, source: str, target: str, *, overwrite: bool = False) -> None:
        cluster, plain_source, _ = self._resolve(source)
        _, plain_target, _ = self._resolve(target)
        if self.status(target) is not None:
            if not overwrite:
                raise OutputExistsError(f"{target} exists; choose another path or WriteMode.OVERWRITE.")
            self.delete(target, recursive=True)
        tried = False

        def move(client: HdfsClient) -> None:
            nonlocal tried
            # A NameNode may die between doing it and saying so; the target did not exist before.
            if tried and client.status(plain_source) is None and client.status(plain_target) is not None:
                return
            tried = True
            client.move(plain_source, plain_target)

        cluster.call(move, f"{source} to {target}", "rename", writing=True)

    def delete(self, path: str, *, recursive: bool = False) -> bool:
        cluster, plain, _ = self._resolve(path)
        return cluster.call(lambda client: client.delete(plain, recursive), path, "delete", writing=True)

    def block_hosts(self, path: str, offset: int, length: int) -> tuple[str, ...]:
        cluster, plain, _ = self._resolve(path)
        bytes_by_host = cluster.client.hosts(plain, offset, length)
        return tuple(sorted(bytes_by_host, key=lambda host: (-bytes_by_host[host], host)))


def _file_status(path: str, found: RawStatus) -> FileStatus:
    return FileStatus(path, found.size_bytes, found.is_dir, found.modified_ms)


def _chosen(client: str | None = None) -> FileSystem:
    config = Configuration(file_system_settings())
    return HdfsFileSystem(
        client=client or config.get(YarnOptions.HDFS_CLIENT),
        retry_timeout_s=config.get(YarnOptions.HDFS_RETRY_TIMEOUT) / 1000,
        temp_dir=_temp_dir(config),
    )


def _temp_dir(config: Configuration) -> str | None:
    """Return the first folder of io.tmp.dirs if this host has it: a client need not have the cluster's folders."""
    folder = re.split("[,:]", config.get(ClusterOptions.TMP_DIRS))[0].strip()
    return folder if os.path.isdir(folder) else None


register_file_system("hdfs", _chosen)
register_file_system("webhdfs", lambda: _chosen("webhdfs"))
