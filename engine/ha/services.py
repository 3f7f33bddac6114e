"""High-availability services from a configuration. The one place that knows all implementations."""

from __future__ import annotations

import re
from typing import Final

from engine.core.config import Configuration
from engine.core.errors import ConfigError
from engine.core.fs import scheme_of
from engine.core.options import HaOptions, YarnOptions
from engine.ha.contracts import Contender, HighAvailabilityServices

__all__ = ["cluster_storage_dir", "high_availability_services"]

_CLUSTER_ID_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def high_availability_services(
    config: Configuration, contender: Contender | None = None
) -> HighAvailabilityServices | None:
    """Return the services of the configured type, None for NONE. Connects to nothing yet, and writes nothing.

    ``contender``: who takes part in the election, for deployments that have one JobManager at a time.

    Raises: ConfigError with key, value and expectation.
    """
    match config.get(HaOptions.TYPE):
        case "zookeeper":
            from engine.ha.zookeeper import ZooKeeperServices  # kazoo takes time to import, and few need it
            from engine.ha.zookeeper_client import zookeeper_settings

            return ZooKeeperServices(
                zookeeper_settings(config, _cluster_id(config)),
                cluster_storage_dir(config),
                deployment="yarn" if config.get(YarnOptions.ID) else "standalone",
                contender=contender,
            )
        case "filesystem":
            from engine.ha.files import FileServices

            storage_dir = cluster_storage_dir(config)
            if scheme_of(storage_dir) != "file":
                raise ConfigError(
                    f"{HaOptions.STORAGE_DIR.key} is {config.get(HaOptions.STORAGE_DIR)!r}; with "
                    f"{HaOptions.TYPE.key}: filesystem expected a folder of this machine (file://). For HDFS elect "
                    f"with zookeeper."
                )
            return FileServices(storage_dir, session_timeout_s=config.get(HaOptions.SESSION_TIMEOUT) / 1000)
    return None


def cluster_storage_dir(config: Configuration) -> str:
    """Return the URI of the cluster's folder. Raises ConfigError when no storage folder is set."""
    storage_dir = config.get(HaOptions.STORAGE_DIR).strip().rstrip("/")
    if not storage_dir:
        raise ConfigError(
            f"{HaOptions.STORAGE_DIR.key} is not set; {HaOptions.TYPE.key}: {config.get(HaOptions.TYPE)} needs a "
            f"folder that all JobManagers see, such as hdfs:///flink/ha."
        )
    if storage_dir.startswith("file:") and not storage_dir.startswith("file://"):
        storage_dir = "file://" + storage_dir.removeprefix("file:")
    if scheme_of(storage_dir) == "file" and not storage_dir.removeprefix("file://").startswith("/"):
        raise ConfigError(
            f"{HaOptions.STORAGE_DIR.key} is {storage_dir!r}; expected an absolute path or a URI, so that it means the "
            f"same to every JobManager."
        )
    if scheme_of(storage_dir) == "file" and not storage_dir.startswith("file://"):
        storage_dir = "file://" + storage_dir
    return f"{storage_dir}/{_cluster_id(config)}"


def _cluster_id(config: Configuration) -> str:
    """Return the id as a relative path."""
    text = config.get(HaOptions.CLUSTER_ID)
    parts = [part for part in text.strip().split("/") if part]
    if not parts or not all(_CLUSTER_ID_PART.fullmatch(part) for part in parts):
        raise ConfigError(
            f"{HaOptions.CLUSTER_ID.key} is {text!r}; expected a name of letters, digits, '_', '-' and '.', or several "
            f"of them with slashes between."
        )
    return "/".join(parts)
