"""The contract of the libraries that talk to HDFS, and the paths they are given. What a user sees is in ``hdfs``.

``fs.hdfs.client`` chooses one: ``hdfs_webhdfs`` (no JVM, no native code), ``hdfs_libhdfs`` (JNI), ``hdfs_native``
(Rust).
A client serves one cluster (host and port, or a nameservice), takes absolute paths without scheme, and raises whatever
its library raises; ``problem`` says what that means.
"""

from __future__ import annotations

import enum
import getpass
import os
import posixpath
import socket
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from engine.core.errors import ExternalError
from flink_yarn.hadoop_conf import HadoopConf

__all__ = [
    "CONNECT_TIMEOUT_S",
    "HdfsClient",
    "HdfsPath",
    "Problem",
    "ProblemKind",
    "RawStatus",
    "check_reachable",
    "hdfs_user",
    "is_standby",
    "kind_of",
    "split_path",
]

CONNECT_TIMEOUT_S: Final = 10


@dataclass(frozen=True, slots=True)
class RawStatus:
    size_bytes: int
    is_dir: bool
    modified_ms: int


class ProblemKind(enum.Enum):
    MISSING = "missing"  #: the NameNode says that there is no such path
    DENIED = "denied"  #: the user may not
    UNREACHABLE = "unreachable"  #: no NameNode or DataNode answers
    STANDBY = "standby"  #: a NameNode answers, but none is active (yet), or it has no DataNode (yet)
    QUOTA = "quota"  #: a folder may hold no more
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Problem:
    kind: ProblemKind
    text: str  #: one line


class HdfsClient(Protocol):
    def status(self, path: str) -> RawStatus | None:
        """Return what is there, or None."""

    def children(self, path: str) -> list[tuple[str, RawStatus]]:
        """Return name and status of what a folder holds, in any order."""

    def make_dirs(self, path: str) -> None: ...

    def move(self, source: str, target: str) -> None:
        """Rename onto what does not exist; the target's folder does."""

    def delete(self, path: str, recursive: bool) -> bool:
        """Return whether something was deleted; a folder that is not empty is an error unless ``recursive``."""

    def open(self, path: str, offset: int) -> Any:
        """Return something with ``read(n) -> bytes`` and ``close()`` that begins at the offset."""

    def create(self, path: str) -> Any:
        """Create what does not exist; return something with ``write(bytes)``, ``close()`` and perhaps ``abandon()``,
        which does not wait; parents are made. Errors may come only at close."""

    def hosts(self, path: str, offset: int, length: int) -> dict[str, int]:
        """Return how many of the bytes each host holds; {} when that is not known."""

    def problem(self, error: Exception) -> Problem:
        """Say what an error that this client has raised means."""


@dataclass(frozen=True, slots=True)
class HdfsPath:
    authority: str  #: host:port or nameservice
    plain: str  #: absolute, normal form
    prefix: str  #: what the caller's paths carry before it


def split_path(path: str, conf: HadoopConf) -> HdfsPath:
    scheme, rest = path.split(":", 1)
    parts = urlsplit("hdfs:" + rest)
    prefix = f"{scheme}://{parts.netloc}" if rest.startswith("//") else f"{scheme}:"
    # urlsplit would cut at "?" and "#", which are ordinary characters in a file's name.
    plain = rest[2 + len(parts.netloc) :] if rest.startswith("//") else rest
    return HdfsPath(parts.netloc or conf.default_authority(), posixpath.normpath(plain or "/"), prefix)


#: What a NameNode that is not active says, in Hadoop's protocol and over WebHDFS, and one that is just starting, also
#: before its DataNodes have found it.
_STANDBY_WORDS: Final = (
    "StandbyException",
    "not supported in state standby",
    "in safe mode",
    "Safe mode is",
    "in startup mode",
    "not started",
    "RetriableException",
    "still not started",
    "could only be written to 0",
    "Failed to find datanode",
    "No active nodes contain this block",
    "Unable to close file because",
    "are bad. Aborting",
)
#: What a DataNode, or a library, says when it was the NameNode that did not answer, or the DataNodes.
_UNREACHABLE_WORDS: Final = (
    "failed on connection exception",
    "Connection refused",
    "Connection reset",
    "ConnectException",
    "SocketTimeoutException",
    "NoRouteToHost",
    "End of File Exception",
    "failed on local exception",
    "failed on socket timeout",
    "Error connecting to",
    "RPC listener disconnected",
    "RPC listener error",
    "Timed out connecting to DataNode",
    "Timed out waiting for ack from DataNode",
    "Datanode connection closed",
)


def is_standby(text: str) -> bool:
    return any(word in text for word in _STANDBY_WORDS)


def kind_of(text: str) -> ProblemKind | None:
    """Return what Hadoop's words, which all libraries hand on, say of where the problem is; None: nothing of this."""
    if "Permission denied" in text:
        return None
    if "quota" in text.lower() and "exceeded" in text:
        return ProblemKind.QUOTA
    if is_standby(text):
        return ProblemKind.STANDBY
    return ProblemKind.UNREACHABLE if any(word in text for word in _UNREACHABLE_WORDS) else None


def hdfs_user() -> str:
    return os.environ.get("HADOOP_USER_NAME") or getpass.getuser()


def check_reachable(authority: str, conf: HadoopConf) -> None:
    """Ask the ports of the NameNodes: libraries that speak Hadoop's own protocol try a dead one for minutes.

    Raises: ExternalError when none answers.
    """
    problems = []
    for host, port in conf.rpc_addresses(authority):
        try:
            with socket.create_connection((host, port), CONNECT_TIMEOUT_S):
                return
        except OSError as error:
            problems.append(f"{host}:{port}: {error.strerror or error}")
    raise ExternalError(
        f"Cannot use hdfs://{authority}: the NameNode does not answer ({'; '.join(problems)}). Is HDFS up, and does "
        "HADOOP_CONF_DIR point to its configuration?"
    )
