"""The cluster's nodes in ZooKeeper, and MetadataStore on them: each write is one transaction with a check of the fence.

Which nodes there are: ``zookeeper``.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any, Final, final

from kazoo.client import TransactionRequest
from kazoo.exceptions import NoAuthError, NodeExistsError, NoNodeError, NotEmptyError

from engine.core.errors import ExternalError
from engine.core.ids import FencingToken
from engine.ha.contracts import VALUE_BYTES_MAX, LeadershipLostError, check_name
from engine.ha.zookeeper_client import ZooKeeperConnection

__all__ = ["Nodes", "ZooKeeperMetadata", "failure_of"]

_TRANSACTION_MAX: Final = 500  # operations: a request may have 1 MiB
_CONFLICTS_MAX: Final = 10  # nodes changed under a delete: only a leader writes, so once or twice at most
_DEPOSED: Final = "This JobManager does not lead any more: another one was elected."


@final
class Nodes:
    def __init__(self, base: str) -> None:
        self.base = base
        self.latch = f"{base}/leader/latch"
        self.fence = f"{base}/leader/fence"
        self.leader = f"{base}/leader/connection_info"
        self.metadata = f"{base}/metadata"
        self.fingerprint = f"{base}/fingerprint"

    def made(self) -> list[str]:
        return [self.latch, self.fence, self.metadata]


def failure_of(results: list[Any]) -> Exception | None:
    """Return why a transaction was not done: operations beside the one that failed only say that they were undone."""
    failures = [result for result in results if isinstance(result, Exception)]
    told = [one for one in failures if type(one).__name__ not in ("RolledBackError", "RuntimeInconsistency")]
    return next(iter(told or failures), None)


@final
class ZooKeeperMetadata:
    def __init__(self, connection: ZooKeeperConnection, nodes: Nodes) -> None:
        self._connection = connection
        self._nodes = nodes

    def _path(self, name: str) -> str:
        return f"{self._nodes.metadata}/{check_name(name)}"

    def put(self, token: FencingToken, name: str, value: bytes) -> None:
        self.write(token, self._path(name), value)

    def get(self, name: str) -> bytes | None:
        try:
            value: bytes = self._connection.call("get", self._path(name))[0]
        except NoNodeError:
            return None
        return value or None  # nodes that only have others below them are empty

    def list(self, name: str) -> builtins.list[str]:
        return sorted(self._children(self._path(name) if name else self._nodes.metadata))

    def _children(self, path: str) -> builtins.list[str]:
        try:
            found: list[str] = self._connection.call("get_children", path)
        except NoNodeError:
            return []
        return found

    # --- fenced ------------------------------------------------------------------------------------------------------

    def commit(self, token: FencingToken, build: Callable[[TransactionRequest], None]) -> Exception | None:
        """Do what ``build`` puts into the transaction if the token is the granted one; return why it was not done.

        Raises: LeadershipLostError, ConfigError, ExternalError.
        """

        def fenced(transaction: TransactionRequest) -> None:
            transaction.check(f"{self._nodes.fence}/{token}", -1)
            build(transaction)

        results = self._connection.commit(fenced)
        if isinstance(results[0], NoNodeError):
            raise LeadershipLostError(_DEPOSED)
        failure = failure_of(results)
        if isinstance(failure, NoAuthError):
            raise self._connection.refused(failure)
        return failure

    def write(self, token: FencingToken, path: str, value: bytes) -> None:
        """Create or replace a node, with those above it."""
        assert 0 < len(value) <= VALUE_BYTES_MAX, f"{path} has {len(value)} bytes"
        for _ in range(_CONFLICTS_MAX):
            failure = self.commit(token, lambda transaction: transaction.set_data(path, value))
            if isinstance(failure, NoNodeError):
                missing = self._missing_above(path)

                def create(transaction: TransactionRequest, missing: builtins.list[str] = missing) -> None:
                    for folder in missing:
                        transaction.create(folder)
                    transaction.create(path, value)

                failure = self.commit(token, create)
            if failure is None:
                return
            if not isinstance(failure, NoNodeError | NodeExistsError):
                raise ExternalError(f"{self._connection}: {path} cannot be written: {failure!r}.")
        raise ExternalError(f"{self._connection}: {path} cannot be written: it is changed by others all the time.")

    def _missing_above(self, path: str) -> builtins.list[str]:
        missing = []
        while (path := path.rpartition("/")[0]) != self._nodes.base:
            if self._connection.call("exists", path) is not None:
                break
            missing.append(path)
        return missing[::-1]

    def delete(self, token: FencingToken, name: str) -> None:
        self.delete_nodes(token, [self._path(name)])

    def delete_nodes(self, token: FencingToken, tops: builtins.list[str]) -> None:
        """Delete nodes with all below them, and nodes above them that nothing is left in."""
        for _ in range(_CONFLICTS_MAX):
            paths = [path for top in tops for path in self._tree(top)]
            paths += [path for top in tops if top in paths for path in self._emptied_above(top)]
            failure = None
            for start in range(0, max(len(paths), 1), _TRANSACTION_MAX):

                def delete(transaction: TransactionRequest, start: int = start) -> None:
                    for path in paths[start : start + _TRANSACTION_MAX]:  # noqa: B023 - called within this turn
                        transaction.delete(path)

                failure = self.commit(token, delete)
                if failure is not None:
                    break
            if failure is None:
                return
            if not isinstance(failure, NoNodeError | NotEmptyError):
                raise ExternalError(f"{self._connection}: {tops} cannot be deleted: {failure!r}.")
        raise ExternalError(f"{self._connection}: {tops} cannot be deleted: they are changed by others all the time.")

    def _tree(self, top: str) -> builtins.list[str]:
        """Return the node and all below it, those first; [] when there is none."""
        if self._connection.call("exists", top) is None:
            return []
        return [path for child in self._children(top) for path in self._tree(f"{top}/{child}")] + [top]

    def _emptied_above(self, path: str) -> builtins.list[str]:
        emptied = []
        while (parent := path.rpartition("/")[0]).startswith(self._nodes.metadata + "/"):
            try:
                value, stat = self._connection.call("get", parent)
            except NoNodeError:
                break
            if value or stat.numChildren != 1:
                break
            emptied.append(parent)
            path = parent
        return emptied
