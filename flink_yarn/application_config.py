"""The configuration of a JobManager in the ApplicationMaster's container: what the client has shipped, and this node's
addresses, ports and folders."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

from engine.core.config import Configuration, load_config_dir
from engine.core.options import ClusterOptions, RestOptions
from flink_yarn.cluster_spec import CONF_FOLDER, Mode
from flink_yarn.high_availability import with_cluster_id

__all__ = ["PORTS_FILE", "bind_host", "effective_config", "ports"]

PORTS_FILE: Final = "jobmanager.ports"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def ports(again: bool) -> tuple[int, int]:
    """Return the ports for TaskManagers and REST. A JobManager that was started again has the ones of before, so that
    those who knew it find it."""
    if again:
        with contextlib.suppress(OSError, ValueError), open(PORTS_FILE, encoding="utf-8") as stream:
            rpc, rest = map(int, stream.read().split())
            return rpc, rest
    rpc, rest = _free_port(), _free_port()
    with open(PORTS_FILE, "w", encoding="utf-8") as stream:
        stream.write(f"{rpc} {rest}")
    return rpc, rest


def bind_host(node: str) -> str:
    """Return what to bind so that other nodes reach us: everything, but for a node that is only known to itself."""
    with contextlib.suppress(OSError):
        if socket.gethostbyname(node).startswith("127."):
            return node
    return "0.0.0.0"


def effective_config(mode: Mode, again: bool) -> Configuration:
    """Return the configuration that was shipped, with this node's addresses and folders. ``again``: as of ``ports``.

    Raises: ConfigError.
    """
    config = load_config_dir(CONF_FOLDER)
    host = os.environ["NM_HOST"]
    rpc_port, rest_port = ports(again)
    config.set(ClusterOptions.RPC_ADDRESS, host).set(ClusterOptions.RPC_PORT, rpc_port)
    config.set(ClusterOptions.JM_BIND_HOST, bind_host(host))
    config.set(RestOptions.ADDRESS, host).set(RestOptions.PORT, rest_port)
    config.set(RestOptions.BIND_ADDRESS, bind_host(host))
    if not config.contains(RestOptions.BIND_PORT) or config.get(RestOptions.BIND_PORT) in ("8081", "0"):
        config.set(RestOptions.BIND_PORT, str(rest_port))
    config.set(ClusterOptions.TMP_DIRS, os.environ["TMPDIR"])
    config = with_cluster_id(config, os.environ["SKEIN_APPLICATION_ID"])
    if mode is not Mode.SESSION and not config.contains(RestOptions.SUBMIT_ENABLE):
        config.set(RestOptions.SUBMIT_ENABLE, mode is Mode.APPLICATION)
    return config
