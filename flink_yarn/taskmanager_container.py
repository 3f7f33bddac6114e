"""The main of a TaskManager's container: finds the JobManager in skein's key-value store, or the elected one, and
serves it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import tempfile
from typing import Any, Final

from engine.cluster import bounded_output, configure_logging, run_taskmanager
from engine.core.config import Configuration, load_config_dir
from engine.core.errors import EngineError
from engine.core.options import ClusterOptions
from flink_yarn.application_config import bind_host
from flink_yarn.cluster_spec import ADDRESS_KEY, CONF_FOLDER
from flink_yarn.container_place import container_log_url
from flink_yarn.high_availability import is_highly_available, with_cluster_id
from flink_yarn.skein_driver import skein_module

__all__ = ["container_config", "main"]

logger = logging.getLogger("flink_yarn.taskmanager_container")

MAIN_LOG: Final = "taskmanager.log"
MAIN_OUT: Final = "taskmanager.out"  # the name that is in the container's script


def container_config(config: Configuration, address: dict[str, Any] | None, environ: dict[str, str]) -> Configuration:
    """Return the configuration of this container's TaskManager. ``address``: the JobManager's, None when it is to look
    for the elected one."""
    config = with_cluster_id(config, environ["SKEIN_APPLICATION_ID"])
    if address is not None:
        config.set(ClusterOptions.RPC_ADDRESS, address["host"]).set(ClusterOptions.RPC_PORT, address["port"])
    config.set(ClusterOptions.TM_RESOURCE_ID, environ["CONTAINER_ID"])
    host = environ.get("NM_HOST", "")
    if host:
        config.set(ClusterOptions.TM_HOST, host).set(ClusterOptions.TM_BIND_HOST, bind_host(host))
    # The container's own folder goes with it, whatever kills the TaskManager.
    config.set(ClusterOptions.TMP_DIRS, environ["TMPDIR"])
    return config


def _wait_for_address() -> dict[str, Any]:
    application = skein_module().ApplicationClient.from_current()
    address: dict[str, Any] = json.loads(application.kv.wait(ADDRESS_KEY))
    application.close()
    logger.info(
        "container %s: the JobManager is at %s:%d", os.environ["CONTAINER_ID"], address["host"], address["port"]
    )
    return address


def main() -> int:
    logs = os.environ.get("FLINK_LOGS") or "."
    configure_logging(os.path.join(logs, MAIN_LOG))
    logging.getLogger("hdfs").setLevel(logging.WARNING)
    # Containers' folders have names too long for a Unix socket; this is the same folder by a short name, which other
    # processes of this host can use as long as we live.
    tempfile.tempdir = f"/proc/{os.getpid()}/cwd/{os.path.basename(os.environ['TMPDIR'])}"
    try:
        config = load_config_dir(CONF_FOLDER)
        configure_logging(os.path.join(logs, MAIN_LOG), config)
        address = None if is_highly_available(config) else _wait_for_address()
        config = container_config(config, address, dict(os.environ))
        with bounded_output(os.path.join(logs, MAIN_OUT), config):
            asyncio.run(run_taskmanager(config, log_dir=logs, main_log=MAIN_LOG, log_url=container_log_url(os.environ)))
    except EngineError as error:
        logger.error("the TaskManager ends: %s", error)
        print(f"The TaskManager ends: {error}", file=sys.stderr)
        return 1
    except Exception:
        logger.exception("the TaskManager died")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
