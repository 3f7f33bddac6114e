"""HDFS through WebHDFS: no JVM and no native library on the user's side. The default; others in ``hdfs_client``."""

from __future__ import annotations

import posixpath
from typing import Any, Final, final
from urllib.parse import quote

import hdfs
import requests
from hdfs.util import HdfsError

from flink_yarn.hadoop_conf import HadoopConf
from flink_yarn.hdfs_client import CONNECT_TIMEOUT_S, Problem, ProblemKind, RawStatus, hdfs_user, is_standby

__all__ = ["WebHdfsClient"]

READ_TIMEOUT_S: Final = 60


@final
class WebHdfsClient:
    def __init__(self, authority: str, conf: HadoopConf) -> None:
        self._urls = conf.name_nodes(authority).http_urls
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy of the environment has no business between us and HDFS
        self._client: Any = hdfs.InsecureClient(
            ";".join(self._urls),
            user=hdfs_user(),
            session=self._session,
            timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
        )

    def status(self, path: str) -> RawStatus | None:
        found = self._client.status(path, strict=False)
        return None if found is None else _raw(found)

    def children(self, path: str) -> list[tuple[str, RawStatus]]:
        return [(name, _raw(found)) for name, found in self._client.list(path, status=True)]

    def make_dirs(self, path: str) -> None:
        self._client.makedirs(path)

    def move(self, source: str, target: str) -> None:
        self._client.makedirs(posixpath.dirname(target) or "/")
        self._client.rename(source, target)

    def delete(self, path: str, recursive: bool) -> bool:
        return bool(self._client.delete(path, recursive=recursive))

    def open(self, path: str, offset: int) -> Any:
        return _Response(self._client._open(path, offset=offset))

    def create(self, path: str, overwrite: bool) -> Any:
        return _Upload(self._client.write(path, overwrite=overwrite))

    def hosts(self, path: str, offset: int, length: int) -> dict[str, int]:
        answer = None
        for base in self._urls:
            url = f"{base}/webhdfs/v1{quote(path)}"
            wanted: dict[str, str | int] = {
                "op": "GETFILEBLOCKLOCATIONS",
                "offset": offset,
                "length": length,
                "user.name": hdfs_user(),
            }
            try:
                reply = self._session.get(url, params=wanted, timeout=CONNECT_TIMEOUT_S)
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
        return bytes_by_host

    def problem(self, error: Exception) -> Problem:
        text = str(error).strip().split("\n")[0]
        if isinstance(error, requests.RequestException):
            return Problem(ProblemKind.UNREACHABLE, type(error).__name__)
        if isinstance(error, HdfsError):
            if is_standby(text):
                return Problem(ProblemKind.STANDBY, text)
            if "does not exist" in text or "not found" in text.lower():
                return Problem(ProblemKind.MISSING, text)
            return Problem(ProblemKind.DENIED if "Permission denied" in text else ProblemKind.OTHER, text)
        return Problem(ProblemKind.OTHER, f"{type(error).__name__}: {text}")


def _raw(found: dict[str, Any]) -> RawStatus:
    return RawStatus(int(found["length"]), found["type"] == "DIRECTORY", int(found["modificationTime"]))


class _Response:
    def __init__(self, response: Any) -> None:
        self._response = response

    def read(self, size: int) -> bytes:
        data: bytes = self._response.raw.read(size)
        return data

    def close(self) -> None:
        self._response.close()


class _Upload:
    """The library's background uploader."""

    def __init__(self, upload: Any) -> None:
        self._upload = upload
        self._stream = upload.__enter__()

    def write(self, data: bytes) -> None:
        self._stream.write(data)

    def close(self) -> None:
        self._upload.__exit__(None, None, None)
