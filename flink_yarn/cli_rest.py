"""Finding the JobManager of a command and asking its REST: what ``list``, ``cancel`` and ``run`` need.

YARN sessions are looked up through ``flink_yarn.session_client``, imported only for them.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Final

from engine.client.leader_lookup import leader_lookup
from engine.client.rest_client import RestClient
from engine.core.config import Configuration
from engine.core.errors import ConfigError, ExternalError
from engine.core.options import ClusterOptions, JobOptions, RestOptions, YarnOptions

#: A cluster that is there answers at once; an address behind a silent firewall must not hang a command for long.
_FIRST_ANSWER_S: Final = 10.0

__all__ = ["cluster_address", "connect", "session_client"]


def session_client() -> ModuleType:
    """Return the module that talks to YARN."""
    try:
        return importlib.import_module("flink_yarn.session_client")
    except ModuleNotFoundError as error:
        if error.name != "flink_yarn.session_client":
            raise
        raise ConfigError("YARN targets are not supported by this release; use -t remote or -t local.") from None


def cluster_address(config: Configuration) -> str:
    """Return the URL of the JobManager's REST.

    Raises: ConfigError when the target has no cluster that could be asked.
    """
    match config.get(JobOptions.TARGET):
        case "remote":
            lookup = leader_lookup(config)
            if lookup is not None:
                return lookup.address(_FIRST_ANSWER_S)
            host = config.get(RestOptions.ADDRESS) or config.get(ClusterOptions.RPC_ADDRESS)
            return f"http://{f'[{host}]' if ':' in host else host}:{_port(config)}"
        case "yarn-session":
            return str(session_client().find_session(config).base_url)
        case "local":
            raise ConfigError("A local run has no cluster that could be asked; use -m host:port or -t remote.")
        case _ if config.get(YarnOptions.ID):
            return cluster_address(Configuration(config).set(JobOptions.TARGET, "yarn-session"))
    raise ConfigError("Which YARN application? Name it with -yid <application id> or -Dyarn.application.id=<id>.")


def _port(config: Configuration) -> int:
    if not config.contains(RestOptions.PORT):
        first = config.get(RestOptions.BIND_PORT).partition("-")[0].partition(",")[0]
        if first.isdigit() and first != "0":
            return int(first)
    return config.get(RestOptions.PORT)


def connect(config: Configuration) -> RestClient:
    """Return a client whose cluster has answered.

    Raises: ExternalError that names the address when nobody answers.
    """
    if config.get(JobOptions.TARGET) not in ("remote", "local") and config.get(YarnOptions.ID):
        client: RestClient = session_client().find_session(config)
        client.overview()
        return client
    address = cluster_address(config)
    leader = leader_lookup(config) if config.get(JobOptions.TARGET) == "remote" else None
    try:
        RestClient(address, timeout_s=_FIRST_ANSWER_S, leader=leader).overview()
    except ExternalError as error:
        raise ExternalError(f"{error} Start one with scripts/start-cluster.sh.") from None
    return RestClient(address, leader=leader)
