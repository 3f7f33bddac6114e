"""High availability within one process: for tests and the simulation. A crash is made with ``MemoryCluster.expire``."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
from typing import final

from engine.core.errors import ExternalError
from engine.core.ids import FencingToken
from engine.ha.contracts import VALUE_BYTES_MAX, ElectionListener, LeaderInformation, LeadershipLostError, check_name

__all__ = ["MemoryCluster", "MemoryServices"]


@final
class MemoryCluster:
    """What all services of one cluster share: the queue of contenders, the leader, the values. Thread-safe values;
    everything else belongs to one event loop."""

    def __init__(self, storage_dir: str) -> None:
        self.storage_dir = storage_dir
        self.lock = threading.Lock()
        self.values: dict[str, bytes] = {}
        self.token: FencingToken | None = None
        self.information: LeaderInformation | None = None
        self.changed = asyncio.Event()
        self._contenders: list[MemoryElection] = []

    def join(self, contender: MemoryElection) -> None:
        self._contenders.append(contender)
        self._elect()

    def leave(self, contender: MemoryElection, reason: str) -> None:
        """The contender is out; if it led it is told so, after another one has been granted: news travel slowly."""
        if contender not in self._contenders:
            return
        self._contenders.remove(contender)
        if self.token is None or contender.token != self.token:
            return
        with self.lock:
            self.token = None
        self._elect()
        contender.revoked(reason)

    def expire(self, contender: MemoryElection) -> None:
        """Its session is lost; it contends again, behind the others."""
        self.leave(contender, "its session has expired")
        self.join(contender)

    def _elect(self) -> None:
        if self.token is None and self._contenders:
            with self.lock:
                self.token = FencingToken.generate()
            self._contenders[0].granted(self.token)

    def publish(self, information: LeaderInformation) -> None:
        if information.token != self.token:
            raise LeadershipLostError("This JobManager does not lead any more: another one was elected.")
        self.information = information
        self.changed.set()
        self.changed = asyncio.Event()


@final
class MemoryElection:
    def __init__(self, cluster: MemoryCluster) -> None:
        self._cluster = cluster
        self._listener: ElectionListener | None = None
        self.token: FencingToken | None = None

    async def start(self, listener: ElectionListener) -> None:
        self._listener = listener
        self._cluster.join(self)

    def granted(self, token: FencingToken) -> None:
        self.token = token
        assert self._listener is not None
        self._listener.leadership_granted(token)

    def revoked(self, reason: str) -> None:
        self.token = None
        assert self._listener is not None
        self._listener.leadership_revoked(reason)

    async def publish(self, information: LeaderInformation) -> None:
        self._cluster.publish(information)

    async def close(self) -> None:
        self._cluster.leave(self, "it has left the election")


@final
class MemoryRetrieval:
    def __init__(self, cluster: MemoryCluster) -> None:
        self._cluster = cluster

    async def leader(self, timeout_s: float, *, other_than: FencingToken | str = "") -> LeaderInformation:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while True:
                    found = self._cluster.information
                    if found is not None and found.token != other_than:
                        return found
                    await self._cluster.changed.wait()
        raise ExternalError(f"No JobManager was elected within {timeout_s:g} s.")

    async def replaced(self, token: FencingToken) -> None:
        while self._cluster.information is None or self._cluster.information.token == token:
            await self._cluster.changed.wait()

    async def close(self) -> None:
        pass


@final
class MemoryMetadata:
    def __init__(self, cluster: MemoryCluster) -> None:
        self._cluster = cluster

    def _check(self, token: FencingToken) -> None:
        if token != self._cluster.token:
            raise LeadershipLostError("This JobManager does not lead any more: another one was elected.")

    def put(self, token: FencingToken, name: str, value: bytes) -> None:
        assert 0 < len(value) <= VALUE_BYTES_MAX, f"{name} has {len(value)} bytes"
        with self._cluster.lock:
            self._check(token)
            self._cluster.values[check_name(name)] = value

    def delete(self, token: FencingToken, name: str) -> None:
        with self._cluster.lock:
            self._check(token)
            for known in [one for one in self._cluster.values if one == name or one.startswith(name + "/")]:
                del self._cluster.values[known]

    def get(self, name: str) -> bytes | None:
        with self._cluster.lock:
            return self._cluster.values.get(name)

    def list(self, name: str) -> list[str]:
        with self._cluster.lock:
            prefix = name + "/" if name else ""
            below = [one[len(prefix) :] for one in self._cluster.values if one.startswith(prefix)]
            return sorted({one.partition("/")[0] for one in below})


@final
class MemoryServices:
    def __init__(self, cluster: MemoryCluster) -> None:
        self._cluster = cluster
        self._elections: list[MemoryElection] = []

    @property
    def storage_dir(self) -> str:
        return self._cluster.storage_dir

    def election(self) -> MemoryElection:
        self._elections.append(MemoryElection(self._cluster))
        return self._elections[-1]

    def retrieval(self) -> MemoryRetrieval:
        return MemoryRetrieval(self._cluster)

    def metadata(self) -> MemoryMetadata:
        return MemoryMetadata(self._cluster)

    def clean_up(self, token: FencingToken) -> None:
        with self._cluster.lock:
            if token != self._cluster.token:
                raise LeadershipLostError("This JobManager does not lead any more: another one was elected.")
            self._cluster.values.clear()
        shutil.rmtree(self._cluster.storage_dir.removeprefix("file://"), ignore_errors=True)

    async def close(self) -> None:
        for election in self._elections:
            await election.close()
