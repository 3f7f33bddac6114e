"""HDFS through WebHDFS: no JVM and no native library on the user's side. The default; others in ``hdfs_client``."""

from __future__ import annotations

import posixpath
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, final
from urllib.parse import quote

import hdfs
import requests
import urllib3
from hdfs.client import _to_error
from hdfs.util import HdfsError

from flink_yarn.hadoop_conf import HadoopConf
from flink_yarn.hdfs_client import CONNECT_TIMEOUT_S, Problem, ProblemKind, RawStatus, hdfs_user, kind_of

__all__ = ["WebHdfsClient"]

READ_TIMEOUT_S: Final = 60
#: Pieces of a file that wait to be sent; one is what a caller writes at once, up to 1 MiB.
PIECES_MAX: Final = 8
#: Whoever gives a file up waits so long for what is under way, so that deleting it comes after creating it.
ABANDON_S: Final = 2.0


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

    def create(self, path: str) -> Any:
        # The NameNode says which DataNode takes the file; that one creates it when the bytes come.
        location = self._client._create(path, overwrite=False).headers["location"]
        return _Upload(lambda data: self._client._request(method="PUT", url=location, data=data))

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
        if isinstance(error, (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError)):
            return Problem(ProblemKind.UNREACHABLE, type(error).__name__)
        if isinstance(error, HdfsError):
            kind = kind_of(f"{error.exception}: {text}")
            if kind is not None:
                return Problem(kind, text)
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


@final
class _Upload:
    """Sends what is written as the body of one request, from a thread. An error shows at the next call.

    Not the library's own, which holds any number of pieces and tells of errors only at the end.
    """

    def __init__(self, put: Callable[[Iterator[bytes]], Any]) -> None:
        self._pieces: queue.Queue[bytes | None] = queue.Queue(PIECES_MAX)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(put,), name="hdfs upload", daemon=True)
        self._thread.start()

    def _run(self, put: Callable[[Iterator[bytes]], Any]) -> None:
        has_ended = False

        def body() -> Iterator[bytes]:
            nonlocal has_ended
            while (piece := self._pieces.get()) is not None:
                yield piece
            has_ended = True

        try:
            answer = put(body())
            if not answer:
                raise _to_error(answer)
            if not has_ended:
                raise ConnectionError("the DataNode has answered before it had everything")
        except Exception as error:
            self._error = error
        while not has_ended:  # whoever waits for room goes on
            has_ended = self._pieces.get() is None

    def write(self, data: bytes) -> int:
        if self._error is not None:
            raise self._error
        if data:  # an empty piece would end the request
            self._pieces.put(data)
        return len(data)

    def close(self) -> None:
        self._pieces.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        self._pieces.put(None)
        self._thread.join(ABANDON_S)
