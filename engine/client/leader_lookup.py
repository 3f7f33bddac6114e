"""How clients find the JobManager that leads, when high availability is configured. Blocking."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from typing import Final, final

from engine.client.rest_client import RestClient
from engine.core.config import Configuration
from engine.core.errors import ExternalError
from engine.core.options import ClusterOptions, HaOptions, RestOptions, YarnOptions
from engine.ha.contracts import LeaderInformation

__all__ = ["LeaderLookup", "leader_lookup", "rest_client", "rest_url"]

#: A cluster that elects gets this long beyond the time after which a leader that says nothing is deposed.
ELECTION_S: Final = 30.0
_PAUSE_S: Final = 0.2


def rest_url(config: Configuration) -> str:
    """Return where clients reach the cluster, without high availability."""
    host = config.get(RestOptions.ADDRESS) or config.get(ClusterOptions.RPC_ADDRESS)
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http://{host}:{config.get(RestOptions.PORT)}"


def leader_lookup(config: Configuration) -> LeaderLookup | None:
    """Return how to find the leader of the cluster; None without high availability. YARN's sessions have addresses of
    their own."""
    if config.get(HaOptions.TYPE) == "NONE" or config.get(YarnOptions.ID):
        return None
    return LeaderLookup(config)


def rest_client(config: Configuration, *, wait_s: float | None = None) -> RestClient:
    """Return a client of the cluster that the configuration names; it follows the leader from one to the next.

    ``wait_s``: how long to wait for a leader. Raises ConfigError, ExternalError when there is none in time.
    """
    lookup = leader_lookup(config)
    if lookup is None:
        return RestClient(rest_url(config))
    return RestClient(lookup.address(lookup.failover_s if wait_s is None else wait_s), leader=lookup)


@final
class LeaderLookup:
    def __init__(self, config: Configuration) -> None:
        self._config = config
        #: how long a change of the leader may take
        self.failover_s = config.get(HaOptions.SESSION_TIMEOUT) / 1000 + ELECTION_S

    def address(self, timeout_s: float) -> str:
        """Return the URL of the leader's REST, perhaps of one that is dead and has no successor yet.

        Raises: ConfigError, ExternalError when nobody has led within that time.
        """
        deadline = time.monotonic() + timeout_s
        while not (address := self._ask(max(0.1, deadline - time.monotonic())).rest_address):
            if time.monotonic() >= deadline:
                raise ExternalError("The leading JobManager has no REST endpoint.")
            time.sleep(_PAUSE_S)
        return address

    def _ask(self, timeout_s: float) -> LeaderInformation:
        # In a thread of its own: the caller may be in an event loop, as notebooks are.
        with concurrent.futures.ThreadPoolExecutor(1, "leader-lookup") as thread:
            return thread.submit(asyncio.run, self._leader(timeout_s)).result()

    async def _leader(self, timeout_s: float) -> LeaderInformation:
        from engine.ha.services import high_availability_services

        services = high_availability_services(self._config)
        assert services is not None
        retrieval = services.retrieval()
        try:
            return await retrieval.leader(timeout_s)
        finally:
            await retrieval.close()
            await services.close()
