"""How a TaskManager finds the JobManager that was elected."""

from __future__ import annotations

import asyncio
from typing import Final, final

from engine.core.ids import FencingToken
from engine.ha.contracts import LeaderRetrieval
from engine.rpc.endpoint import JobManagerConnection, connect

__all__ = ["LeaderConnector"]

LOOK_S: Final = 5.0


@final
class LeaderConnector:
    """Connects to the leader that was published last; ``replaced`` says that another one has been published since."""

    def __init__(self, retrieval: LeaderRetrieval) -> None:
        self._retrieval = retrieval
        #: of the leader that the last call found, once it has
        self._token: FencingToken | None = None
        self._found = asyncio.Event()
        self._connection: JobManagerConnection | None = None

    async def __call__(self, timeout_s: float) -> JobManagerConnection:
        """Raises ExternalError when there is no leader, or it does not answer in time."""
        self._found.clear()
        self._connection = None
        leader = await self._retrieval.leader(timeout_s)
        self._token = leader.token
        self._found.set()
        self._connection = await connect(leader.rpc_host, leader.rpc_port, timeout_s)
        return self._connection

    async def leader_host(self, timeout_s: float) -> str:
        """Raises ExternalError when nobody leads within that time."""
        return (await self._retrieval.leader(timeout_s)).rpc_host

    async def replaced(self) -> None:
        """Return when another leader than the one of the last call has been published. While that call still looks for
        the leader, the one before does not count: it must be able to find the new one."""
        await self._found.wait()
        assert self._token is not None
        while True:
            await self._retrieval.replaced(self._token)
            connected = "" if self._connection is None else self._connection.token
            leader = await self._retrieval.leader(LOOK_S, other_than=self._token)
            if leader.token != connected:
                return
            # It listens where the one before did, and had not told yet that it leads.
            self._token = leader.token

    async def close(self) -> None:
        await self._retrieval.close()
