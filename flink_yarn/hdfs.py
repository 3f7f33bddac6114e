"""``hdfs://`` paths through WebHDFS: no JVM and no native library on the user's side.

Reading resumes at the same offset when a DataNode goes away; writing goes to where the caller says (sinks write to a
hidden name and rename). Importing this module registers the scheme with ``engine/core/fs``.
"""

from __future__ import annotations

import getpass
import io
import os
import posixpath
import time
from typing import IO, Any, Final, final
from urllib.parse import quote, urlsplit

import hdfs
import requests
from hdfs.util import HdfsError

from engine.core.errors import EngineError, ExternalError, InputError, OutputExistsError
from engine.core.fs import FileStatus, FileSystem, register_file_system
from flink_yarn.hadoop_conf import HadoopConf

__all__ = ["HdfsFileSystem"]

READ_RETRIES_MAX: Final = 6  # with doubling waits from 0.2 s: rides over a DataNode's loss and a NameNode's restart
CONNECT_TIMEOUT_S: Final = 10
READ_TIMEOUT_S: Final = 60


def hdfs_user() -> str:
    return os.environ.get("HADOOP_USER_NAME") or getpass.getuser()


@final
class HdfsFileSystem(FileSystem):
    """All HDFS clusters that paths name; one WebHDFS client each, made when first used."""

    def __init__(self, conf: HadoopConf | None = None) -> None:
        self._conf = conf or HadoopConf.load()
        self._clients: dict[str, Any] = {}

    # --- addresses --------------------------------------------------------------------------------------------------

    def _resolve(self, path: str) -> tuple[Any, str, str]:
        """Return (client, path on HDFS, prefix that the caller's paths carry)."""
        scheme, rest = path.split(":", 1)
        parts = urlsplit("hdfs:" + rest)
        authority = parts.netloc or self._conf.default_authority()
        prefix = f"{scheme}://{parts.netloc}" if rest.startswith("//") else f"{scheme}:"
        # urlsplit would cut at "?" and "#", which are ordinary characters in a file's name.
        plain = rest[2 + len(parts.netloc) :] if rest.startswith("//") else rest
        return self._client(authority), posixpath.normpath(plain or "/"), prefix

    def _client(self, authority: str) -> Any:
        if authority not in self._clients:
            urls = self._conf.name_nodes(authority).http_urls
            session = requests.Session()
            session.trust_env = False  # a proxy of the environment has no business between us and HDFS
            self._clients[authority] = hdfs.InsecureClient(
                ";".join(urls), user=hdfs_user(), session=session, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
            )
        return self._clients[authority]

    # --- FileSystem -------------------------------------------------------------------------------------------------

    def open_read(self, path: str, offset: int = 0) -> IO[bytes]:
        client, plain, _ = self._resolve(path)
        return io.BufferedReader(_ResumingReader(client, plain, path, offset), 1 << 20)  # type: ignore[return-value]

    def open_write(self, path: str, *, overwrite: bool = False) -> IO[bytes]:
        client, plain, _ = self._resolve(path)
        if not overwrite and self.status(path) is not None:
            raise OutputExistsError(f"{path} exists; choose another path or WriteMode.OVERWRITE.")
        return io.BufferedWriter(_Writer(client, plain, path, overwrite), 1 << 20)  # type: ignore[return-value]

    def status(self, path: str) -> FileStatus | None:
        client, plain, prefix = self._resolve(path)
        try:
            found = client.status(plain, strict=False)
        except Exception as error:
            raise _translated(error, path, "look at") from error
        return None if found is None else _file_status(prefix + plain, found)

    def list(self, path: str) -> list[FileStatus]:
        client, plain, prefix = self._resolve(path)
        try:
            children = client.list(plain, status=True)
        except Exception as error:
            raise _translated(error, path, "list") from error
        folder = prefix + plain.rstrip("/")
        return sorted((_file_status(f"{folder}/{name}", found) for name, found in children), key=lambda s: s.path)

    def make_dirs(self, path: str) -> None:
        client, plain, _ = self._resolve(path)
        try:
            client.makedirs(plain)
        except Exception as error:
            raise _translated(error, path, "make folder", writing=True) from error

    def rename(self, source: str, target: str, *, overwrite: bool = False) -> None:
        client, plain_source, _ = self._resolve(source)
        _, plain_target, _ = self._resolve(target)
        if self.status(target) is not None:
            if not overwrite:
                raise OutputExistsError(f"{target} exists; choose another path or WriteMode.OVERWRITE.")
            self.delete(target, recursive=True)
        try:
            client.makedirs(posixpath.dirname(plain_target) or "/")
            client.rename(plain_source, plain_target)
        except Exception as error:
            raise _translated(error, f"{source} to {target}", "rename", writing=True) from error

    def delete(self, path: str, *, recursive: bool = False) -> bool:
        client, plain, _ = self._resolve(path)
        try:
            return bool(client.delete(plain, recursive=recursive))
        except Exception as error:
            raise _translated(error, path, "delete", writing=True) from error

    def block_hosts(self, path: str, offset: int, length: int) -> tuple[str, ...]:
        client, plain, _ = self._resolve(path)
        answer = None
        for base in client._urls:
            url = f"{base}/webhdfs/v1{quote(plain)}"
            wanted = {"op": "GETFILEBLOCKLOCATIONS", "offset": offset, "length": length, "user.name": hdfs_user()}
            try:
                reply = client._session.get(url, params=wanted, timeout=CONNECT_TIMEOUT_S)
                if reply.ok:
                    answer = reply.json()
                    break
            except (requests.RequestException, ValueError):
                continue  # locality is a wish: without it the split goes to anyone
        blocks = ((answer or {}).get("BlockLocations") or {}).get("BlockLocation") or []
        bytes_by_host: dict[str, int] = {}
        for block in blocks:
            for host in block.get("hosts", []):
                bytes_by_host[host] = bytes_by_host.get(host, 0) + int(block.get("length", 0))
        return tuple(sorted(bytes_by_host, key=lambda host: (-bytes_by_host[host], host)))


def _file_status(path: str, found: dict[str, Any]) -> FileStatus:
    return FileStatus(path, int(found["length"]), found["type"] == "DIRECTORY", int(found["modificationTime"]))


def _translated(error: Exception, path: str, action: str, *, writing: bool = False) -> EngineError:
    """Return our error for one of the client library: says path, cause and what to look at."""
    if isinstance(error, EngineError):
        return error
    text = str(error).strip().split("\n")[0]
    if isinstance(error, requests.RequestException):
        return ExternalError(
            f"Cannot {action} {path}: the NameNode or DataNode does not answer ({type(error).__name__}). "
            "Is HDFS up, and does HADOOP_CONF_DIR point to its configuration?"
        )
    if isinstance(error, HdfsError):
        if "does not exist" in text or "not found" in text.lower():
            return InputError(f"Cannot {action} {path}: it does not exist.")
        if "Permission denied" in text:
            return ExternalError(f"Cannot {action} {path}: {text}. Set HADOOP_USER_NAME to a user who may.")
        return (ExternalError if writing else InputError)(f"Cannot {action} {path}: {text}")
    return ExternalError(f"Cannot {action} {path}: {type(error).__name__}: {text}")


def _is_final(error: Exception) -> bool:
    """The NameNode has answered, and will not answer otherwise."""
    text = str(error)
    return isinstance(error, HdfsError) and any(
        part in text for part in ("does not exist", "not found", "Permission denied")
    )


class _ResumingReader(io.RawIOBase):
    """Reads one file; when the connection breaks it opens the file again at the offset reached."""

    def __init__(self, client: Any, plain: str, path: str, offset: int) -> None:
        self._client, self._plain, self._path = client, plain, path
        self._offset = offset
        self._failures = 0
        self._response: Any = None
        self._size = self._find_size()

    def _find_size(self) -> int:
        try:
            found = self._client.status(self._plain, strict=False)
        except Exception as error:
            raise _translated(error, self._path, "read") from error
        if found is None:
            raise InputError(f"Cannot read {self._path}: it does not exist.")
        if found["type"] == "DIRECTORY":
            raise InputError(f"Cannot read {self._path}: it is a folder.")
        return int(found["length"])

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def readinto(self, buffer: Any) -> int:
        while self._offset < self._size:
            try:
                if self._response is None:
                    self._response = self._client._open(self._plain, offset=self._offset)
                data = self._response.raw.read(len(buffer))
                if not data:
                    raise requests.ConnectionError(f"ended {self._size - self._offset} bytes early")
            except Exception as error:
                self._drop_connection()
                self._failures += 1
                if self._failures > READ_RETRIES_MAX or _is_final(error):
                    raise _translated(error, f"{self._path} at byte {self._offset}", "read") from error
                time.sleep(0.1 * 2**self._failures)
                continue
            self._failures = 0
            self._offset += len(data)
            buffer[: len(data)] = data
            return len(data)
        return 0

    def _drop_connection(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None

    def close(self) -> None:
        self._drop_connection()
        super().close()


class _Writer(io.RawIOBase):
    """Writes one file through the client's background uploader."""

    def __init__(self, client: Any, plain: str, path: str, overwrite: bool) -> None:
        self._path = path
        self._upload = client.write(plain, overwrite=overwrite)
        self._stream = self._upload.__enter__()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            self._stream.write(bytes(data))
        except Exception as error:
            raise _translated(error, self._path, "write", writing=True) from error
        return len(data)

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        try:
            self._upload.__exit__(None, None, None)
        except Exception as error:
            raise _translated(error, self._path, "write", writing=True) from error


register_file_system("hdfs", HdfsFileSystem)
register_file_system("webhdfs", HdfsFileSystem)
