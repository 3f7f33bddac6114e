"""Prints what the shell scripts need of the configuration, as assignments for ``eval``.

Used by ``scripts/config.sh`` only: it keeps YAML, host files and value checks out of the shell. Warnings go to stderr.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping
from typing import Final

from engine.core.config import Configuration, find_config_dir, load_config_dir, parse_dynamic_properties
from engine.core.errors import ConfigError
from engine.core.option_warnings import check_values, key_warnings
from engine.core.options import ClusterOptions, HaOptions, LogOptions, RestOptions

__all__ = ["hosts_of", "log_level", "main", "masters_of", "settings"]

_LEVELS: Final = ("DEBUG", "INFO", "WARN", "ERROR", "FATAL", "OFF", "TRACE")
#: In Flink's own log4j.properties: the level comes from env.log.level.
_FROM_CONFIG: Final = "${env:ROOT_LOG_LEVEL}"


def _read_lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as stream:
            lines = [line.split("#", 1)[0].strip() for line in stream]
    except FileNotFoundError:
        return []
    return [line for line in lines if line]


def hosts_of(config_dir: str | None, *names: str) -> list[str]:
    """Return the hosts of the first file of these names that lists any, else localhost.

    A line is ``host`` or ``host:webui-port``; # starts a comment. A host may be listed more than once.
    """
    for name in names if config_dir is not None else ():
        lines = _read_lines(os.path.join(config_dir or "", name))
        if lines:
            return lines
    return ["localhost"]


def masters_of(config_dir: str | None, config: Configuration) -> list[str]:
    """Return the lines of conf/masters. With high availability each has its web port, ``host:port``: those of one host
    that name none get ports of their own, from rest.port upwards."""
    lines = hosts_of(config_dir, "masters")
    if config.get(HaOptions.TYPE) == "NONE":
        return lines
    taken = set(lines)
    named = []
    for line in lines:
        if re.fullmatch(r".*:\d+", line) is None:
            port = config.get(RestOptions.PORT)
            while f"{line}:{port}" in taken:
                port += 1
            line = f"{line}:{port}"
            taken.add(line)
        named.append(line)
    return named


def log_level(config_dir: str | None) -> str:
    """Return rootLogger.level of log.properties (or of Flink's log4j.properties), else INFO.

    Raises: ConfigError when it is no level.
    """
    for name in ("log.properties", "log4j.properties") if config_dir is not None else ():
        path = os.path.join(config_dir or "", name)
        for line in _read_lines(path):
            key, _, value = line.partition("=")
            if key.strip() == "rootLogger.level":
                level = value.strip().upper()
                if level == _FROM_CONFIG.upper():
                    continue
                if level not in _LEVELS:
                    raise ConfigError(f"{path}: rootLogger.level is {value.strip()!r}; expected {', '.join(_LEVELS)}.")
                return level
    return "INFO"


def settings(config_dir: str | None, config: Configuration, environ: Mapping[str, str]) -> dict[str, list[str]]:
    """Return variable → words. Folders named by environment variables win over the configuration."""
    level = config.get(LogOptions.LEVEL) if config.contains(LogOptions.LEVEL) else log_level(config_dir)
    return {
        "FLINK_EFFECTIVE_CONF_DIR": [config_dir or ""],
        "FLINK_LOG_DIR": [environ.get("FLINK_LOG_DIR") or config.get(ClusterOptions.LOG_DIR)],
        "FLINK_PID_DIR": [environ.get("FLINK_PID_DIR") or config.get(ClusterOptions.PID_DIR)],
        "FLINK_LOG_LEVEL": [environ.get("FLINK_LOG_LEVEL") or level],
        "FLINK_LOG_MAX": [str(config.get(LogOptions.BACKUPS_MAX))],
        "FLINK_SSH_OPTS": (environ.get("FLINK_SSH_OPTS") or config.get(ClusterOptions.SSH_OPTIONS)).split(),
        "FLINK_HIGH_AVAILABILITY": [config.get(HaOptions.TYPE)],
        "FLINK_MASTERS": masters_of(config_dir, config),
        "FLINK_WORKERS": hosts_of(config_dir, "workers", "slaves"),
    }


def main(arguments: list[str] | None = None) -> int:
    """Arguments: the dynamic properties of the daemon (``-D key=value`` without the -D)."""
    try:
        config_dir = find_config_dir()
        config = load_config_dir(config_dir)
        config.add_all(parse_dynamic_properties(sys.argv[1:] if arguments is None else arguments))
        check_values(config)
        found = settings(config_dir, config, os.environ)
    except ConfigError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1
    for line in key_warnings(config.key_set()):
        print(f"WARNING: {line}", file=sys.stderr)
    for name, words in found.items():
        quoted = " ".join(shlex.quote(word) for word in words)
        print(
            f"{name}=({quoted})" if name in ("FLINK_SSH_OPTS", "FLINK_MASTERS", "FLINK_WORKERS") else f"{name}={quoted}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
