"""One HDFS cluster as its callers see it: a client, patience while no NameNode answers, and errors that say what to do.

Who has once been answered in this process believes that the cluster is there, and waits for it
(``fs.hdfs.retry-timeout``) when a NameNode restarts, is in safe mode or hands over. So does a container for the cluster
from which YARN has just fetched its files. A cluster that nobody has ever reached is an error at once, unless it is a
nameservice, whose NameNodes may be about to take over.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, TypeVar, final

from engine.core.errors import EngineError, ExternalError, InputError
from engine.core.fs import may_wait
from flink_yarn.hdfs_client import HdfsClient, ProblemKind

__all__ = ["HdfsCluster", "Patience"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
#: Between two attempts.
POLL_S: Final = 0.5
#: How long a nameservice that has never answered may be without an active NameNode: ZooKeeper's session, 10 s by
#: default, and the take-over on a busy host.
TAKE_OVER_S: Final = 60.0
#: In these cases another NameNode, or the same one later, may answer.
AWAY: Final = (ProblemKind.UNREACHABLE, ProblemKind.STANDBY)
#: Clusters that have answered this process, or the one that it was forked from.
_answered: Final[set[str]] = set()


@final
class Patience:
    """How long one thing may be tried. ``None`` deadline: not tried in vain yet."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._deadline: float | None = None

    def is_over(self) -> bool:
        """Return whether to give up; the first call begins the time."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self.seconds
        return time.monotonic() >= self._deadline

    def restart(self) -> None:
        """It went on: the next failure is another one."""
        self._deadline = None


@final
class HdfsCluster:
    """``connect`` makes the client, when it is first needed. ``is_there``: known to be, though it has not answered."""

    def __init__(
        self,
        authority: str,
        connect: Callable[[], HdfsClient],
        *,
        retry_timeout_s: float,
        is_nameservice: bool,
        is_there: bool = False,
    ) -> None:
        self._authority = authority
        self._connect = connect
        self._client: HdfsClient | None = None
        self.retry_timeout_s = retry_timeout_s
        self._is_nameservice = is_nameservice
        self._is_there = is_there

    @property
    def is_known(self) -> bool:
        """Whether it is worth waiting for."""
        return self._is_nameservice or self._is_there or self._authority in _answered

    @property
    def client(self) -> HdfsClient:
        """Raises: ExternalError, ConfigError of a library that looks for the cluster before anything is asked."""
        if self._client is None:
            self._client = self._connect()
        return self._client

    def patience(self) -> Patience:
        if not may_wait():
            return Patience(0.0)
        if self._is_there or self._authority in _answered:
            return Patience(self.retry_timeout_s)
        return Patience(min(self.retry_timeout_s, TAKE_OVER_S) if self._is_nameservice else 0.0)

    def answered(self) -> None:
        _answered.add(self._authority)

    def call(self, ask: Callable[[HdfsClient], _T], path: str, action: str, *, writing: bool = False) -> _T:
        """Return what ``ask`` returns. It is called again while no NameNode is active, so it may be done twice.

        Raises: our error for what the library raises.
        """
        patience = self.patience()
        is_told = False
        while True:
            try:
                result = ask(self.client)
            except Exception as error:
                if not self.is_away(error) or patience.is_over():
                    raise self.translated(error, path, action, writing=writing) from error
                if not is_told:
                    self.tell_waiting(error, path, action)
                    is_told = True
            else:
                self.answered()
                return result
            time.sleep(POLL_S)

    def is_away(self, error: Exception) -> bool:
        """Return whether the cluster may do later what it did not do now."""
        if isinstance(error, EngineError):
            return self._client is None and isinstance(error, ExternalError)
        return self.client.problem(error).kind in AWAY

    def tell_waiting(self, error: Exception, path: str, action: str) -> None:
        text = str(error) if isinstance(error, EngineError) else self.client.problem(error).text
        logger.warning(
            "hdfs=%s: cannot %s %s now (%s); trying for %g s (fs.hdfs.retry-timeout)",
            self._authority,
            action,
            path,
            text,
            self.retry_timeout_s,
        )

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
                return ExternalError(f"Cannot {action} {path}: HDFS is not ready ({problem.text}).")
            case ProblemKind.MISSING:
                return InputError(f"Cannot {action} {path}: it does not exist.")
            case ProblemKind.DENIED:
                return ExternalError(f"Cannot {action} {path}: {problem.text}. Set HADOOP_USER_NAME to a user who may.")
            case ProblemKind.QUOTA:
                return ExternalError(
                    f"Cannot {action} {path}: {problem.text.rstrip('.')}. Delete what is not needed there, or have an "
                    "administrator raise the quota (hdfs dfsadmin -setQuota, -setSpaceQuota)."
                )
        return (ExternalError if writing else InputError)(f"Cannot {action} {path}: {problem.text}")
