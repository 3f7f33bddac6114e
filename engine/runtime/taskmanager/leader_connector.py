"""How a TaskManager finds the JobManager that was elected."""

from __future__ import annotations

import asyncio
from typing import final

from engine.core.ids import FencingToken
from engine.ha.contracts import LeaderRetrieval
from engine.rpc.endpoint import JobManagerConnection, connect

__all__ = ["LeaderConnector"]


@final
class LeaderConnector:
    """Connects to the leader that was published last; ``replaced`` says that another one has been published since."""

    def __init__(self, retrieval: LeaderRetrieval) -> None:
        self._retrieval = retrieval
        self._token: FencingToken | str = ""

    async def __call__(self, timeout_s: float) -> JobManagerConnection:
        """Raises ExternalError when there is no leader, or it does not answer in time."""
        leader = await self._retrieval.leader(timeout_s)
        self._token = leader.token
        return await connect(leader.rpc_host, leader.rpc_port, timeout_s)

    async def leader_host(self, timeout_s: float) -> str:
        """Raises ExternalError when nobody leads within that time."""
        return (await self._retrieval.leader(timeout_s)).rpc_host

    async def replaced(self) -> None:
        """Return when another leader than the one of the last call has been published."""
        if self._token:
            await self._retrieval.replaced(FencingToken(self._token))
        else:
            await asyncio.get_running_loop().create_future()  # the next call waits for the first leader itself

    async def close(self) -> None:
        await self._retrieval.close()
