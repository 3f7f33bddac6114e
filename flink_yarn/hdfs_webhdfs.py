"""HDFS through WebHDFS: no JVM and no native library on the user's side. The default; others in ``hdfs_client``."""

from __future__ import annotations

import contextlib
import posixpath
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, final
from urllib.parse import quote, urlsplit

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
#: A DataNode that did not answer is not asked for so long, if there are others.
AVOID_S: Final = 60.0
#: Whoever gives a file up waits so long for what is under way, so that deleting it comes after creating it.
ABANDON_S: Final = 2.0


@final
class WebHdfsClient:
    def __init__(self, authority: str, conf: HadoopConf) -> None:
        self._urls = conf.name_nodes(authority).http_urls
        #: DataNodes that did not answer: host → when to try it again. Replaced as a whole: uploads have threads.
        self._avoided: dict[str, float] = {}
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
        with self._avoiding() as excluded:
            return _Response(self._client._open(path, offset=offset, **excluded), self._avoiding)

    def create(self, path: str) -> Any:
        # The NameNode says which DataNode takes the file; that one creates it when the bytes come.
        with self._avoiding() as excluded:
            location = self._client._create(path, overwrite=False, **excluded).headers["location"]

        def put(data: Iterator[bytes]) -> Any:
            with self._avoiding(location):
                return self._client._request(method="PUT", url=location, data=data)

        return _Upload(put)

    @contextlib.contextmanager
    def _avoiding(self, url: str = "") -> Iterator[dict[str, str]]:
        """Give the parameter that keeps the NameNode from naming DataNodes that were just seen not to answer, and note
        which one does not now. It would name the nearest one, dead or not, for ten minutes.

        ``url``: where to, if the error does not say it.
        """
        now = time.monotonic()
        self._avoided = {host: until for host, until in self._avoided.items() if until > now}
        try:
            yield {"excludedatanodes": ",".join(sorted(self._avoided))} if self._avoided else {}
        except (requests.ConnectionError, urllib3.exceptions.HTTPError, OSError) as error:
            asked = url or str(getattr(getattr(error, "request", None), "url", ""))
            parts = urlsplit(asked)
            if parts.hostname and not any(urlsplit(name_node).netloc == parts.netloc for name_node in self._urls):
                self._avoided = {**self._avoided, parts.hostname: now + AVOID_S}
            raise
        except HdfsError:
            self._avoided = {}  # there may be no other one, and the one may be back
            raise

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
    def __init__(self, response: Any, avoiding: Callable[[str], contextlib.AbstractContextManager[object]]) -> None:
        self._response = response
        self._avoiding = avoiding

    def read(self, size: int) -> bytes:
        with self._avoiding(self._response.url):
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
        while True:  # a DataNode that hangs takes no more pieces, and nobody wants them
            try:
                self._pieces.put_nowait(None)
                break
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    self._pieces.get_nowait()
        self._thread.join(ABANDON_S)
