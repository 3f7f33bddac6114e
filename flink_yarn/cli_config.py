"""Command-line options → configuration, and where the cluster is: Flink's order of generic, YARN and default. Pure but
for ``read_yarn_properties``.

Later wins: configuration file, session properties file, ``-y*`` options, ``-yD``, ``-D``, the program's own options.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from engine.core.config import Configuration, parse_dynamic_properties
from engine.core.errors import ConfigError
from engine.core.options import (
    CheckpointingOptions,
    ClusterOptions,
    HaOptions,
    JobOptions,
    MemoryOptions,
    RestOptions,
    YarnOptions,
)
from flink_yarn.cli_options import ParsedOptions

__all__ = ["YarnProperties", "effective_config", "read_yarn_properties", "yarn_properties_path"]

TARGETS: Final = ("local", "remote", "yarn-session", "yarn-per-job", "yarn-application")
#: Options with a value that is passed on as it is: option name → key.
_PLAIN_KEYS: Final[Mapping[str, str]] = {
    "zookeeperNamespace": HaOptions.CLUSTER_ID.key,
    "yarnzookeeperNamespace": HaOptions.CLUSTER_ID.key,
    "yarncontainer": YarnOptions.NUM_CONTAINERS.key,
    "yarnslots": ClusterOptions.NUM_SLOTS.key,
    "yarnname": YarnOptions.NAME.key,
    "yarnqueue": YarnOptions.QUEUE.key,
    "yarnapplicationId": YarnOptions.ID.key,
    "yarnnodeLabel": YarnOptions.NODE_LABEL.key,
    "yarnapplicationType": YarnOptions.TYPE.key,
}
_MEMORY_KEYS: Final[Mapping[str, str]] = {
    "yarnjobManagerMemory": MemoryOptions.JM_PROCESS.key,
    "yarntaskManagerMemory": MemoryOptions.TM_PROCESS.key,
}


@dataclass(frozen=True, slots=True)
class YarnProperties:
    """What ``yarn-session.sh`` leaves for later commands."""

    path: str
    application_id: str
    dynamic_properties: dict[str, str] = field(default_factory=dict)


def yarn_properties_path(config: Configuration, user: str) -> str:
    """Return where the session's properties file of a user lies."""
    folder = config.get(YarnOptions.PROPERTIES_FILE_DIR) or tempfile.gettempdir()
    return os.path.join(folder, f".yarn-properties-{user}")


def read_yarn_properties(path: str) -> YarnProperties | None:
    """Return the content of a properties file as Flink writes it; None if there is none.

    Raises: ConfigError when it holds no application id.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            lines = [line.strip() for line in stream]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"Cannot read the YARN properties file {path}: {error.strerror}.") from None
    values = {}
    for line in lines:
        if line and line[0] not in "#!":
            key, _, value = line.partition("=")
            values[key.strip()] = re.sub(r"\\(.)", r"\1", value.strip())
    application_id = values.get("applicationID", "")
    if not re.fullmatch(r"application_\d+_\d+", application_id):
        raise ConfigError(
            f"The YARN properties file {path} has applicationID={application_id!r}; expected "
            "application_<time>_<number>. Delete the file, or name the session with -yid."
        )
    dynamic = parse_dynamic_properties(part for part in values.get("dynamicPropertiesString", "").split("@@") if part)
    return YarnProperties(path, application_id, dynamic)


def effective_config(parsed: ParsedOptions, base: Configuration, properties: YarnProperties | None) -> Configuration:
    """Return the configuration of one command; ``execution.target`` is always set in it.

    ``properties``: the session's file; it counts only when nothing says otherwise.

    Raises: ConfigError for values that cannot be used.
    """
    config = Configuration(base)
    dynamic = parse_dynamic_properties([*parsed.all("yD"), *parsed.all("D")])
    target = _target(parsed, Configuration(base).add_all(dynamic), properties)
    if target == "yarn-session" and properties is not None and not parsed.has("yarnapplicationId"):
        config.add_all(properties.dynamic_properties).set(YarnOptions.ID, properties.application_id)
    _apply_yarn(parsed, config)
    jobmanager = parsed.get("jobmanager")
    if jobmanager and jobmanager != "yarn-cluster":
        host, port = _address(jobmanager)
        config.set(RestOptions.ADDRESS, host).set(RestOptions.PORT, port)
    if target == "local":
        # The file's port belongs to the cluster of this host, which may be running.
        for option in (RestOptions.PORT, RestOptions.BIND_PORT):
            for key in (option.key, *option.older_keys):
                config.remove_config(key)
    config.add_all(dynamic)
    config.set(JobOptions.TARGET, target)
    _apply_program(parsed, config, attached_is_set=JobOptions.ATTACHED.key in dynamic)
    _apply_savepoint(parsed, config)
    return config


def _target(parsed: ParsedOptions, config: Configuration, properties: YarnProperties | None) -> str:
    named = parsed.get("target") or parsed.get("executor") or config.get(JobOptions.TARGET)
    if named:
        if named not in TARGETS:
            hint = " Kubernetes comes later." if named.startswith("kubernetes") else ""
            raise ConfigError(f"{JobOptions.TARGET.key} is {named!r}; expected one of {', '.join(TARGETS)}.{hint}")
        return named
    jobmanager = parsed.get("jobmanager")
    if jobmanager and jobmanager != "yarn-cluster":
        return "remote"
    if parsed.has("yarnapplicationId") or config.get(YarnOptions.ID):
        return "yarn-session"
    if jobmanager == "yarn-cluster":
        return "yarn-per-job"
    return "remote" if properties is None else "yarn-session"


def _apply_yarn(parsed: ParsedOptions, config: Configuration) -> None:
    for name, key in _PLAIN_KEYS.items():
        if parsed.has(name):
            config.set(key, parsed.get(name))
    for name, key in _MEMORY_KEYS.items():
        if parsed.has(name):
            text = parsed.get(name)
            config.set(key, f"{text}m" if text.isdigit() else text)
    if parsed.has("yarnship"):
        config.set(YarnOptions.SHIP_FILES, ";".join(parsed.all("yarnship")))
    if parsed.has("yarnjar"):
        config.set("yarn.flink-dist-jar", parsed.get("yarnjar"))


def _address(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?:https?://)?\[?([^\[\]/]+?)\]?:(\d+)/?", text)
    if not match or int(match[2]) > 65535:
        raise ConfigError(f"-m is {text!r}; expected host:port of the JobManager's REST, or yarn-cluster.")
    return match[1], int(match[2])


def _apply_savepoint(parsed: ParsedOptions, config: Configuration) -> None:
    """``flink run -s … -n -cm …``; other actions have no such options, or give them another meaning."""
    path = parsed.get("fromSavepoint")
    if path:
        is_remote = "://" in path or path.startswith("hdfs:")
        config.set(CheckpointingOptions.RESTORE_PATH, path if is_remote else os.path.abspath(path))
    if parsed.has("allowNonRestoredState"):
        config.set(CheckpointingOptions.ALLOW_NON_RESTORED, True)
    mode = parsed.get("claimMode") or parsed.get("restoreMode")
    if mode:
        if mode.upper() == "LEGACY":
            raise ConfigError("The claim mode LEGACY is gone, as in Flink 2; expected no_claim or claim after -cm.")
        if mode.upper() not in ("CLAIM", "NO_CLAIM"):
            raise ConfigError(f"The claim mode is {mode!r}; expected no_claim or claim after -cm.")
        config.set(CheckpointingOptions.CLAIM_MODE, mode.upper())


def _apply_program(parsed: ParsedOptions, config: Configuration, *, attached_is_set: bool) -> None:
    if parsed.has("parallelism"):
        text = parsed.get("parallelism")
        if not text.isdigit() or int(text) < 1:
            raise ConfigError(f"The parallelism is {text!r}; expected a whole number of at least 1 after -p.")
        config.set(JobOptions.PARALLELISM, int(text))
    detached = parsed.has("detached") or parsed.has("yarndetached")
    if config.get(JobOptions.TARGET) == "local":
        config.set(JobOptions.ATTACHED, True)  # a local cluster ends with its program, so somebody must wait
    elif detached or not attached_is_set:
        config.set(JobOptions.ATTACHED, not detached)
    if parsed.has("shutdownOnAttachedExit"):
        config.set(JobOptions.SHUTDOWN_ON_ATTACHED_EXIT, True)
    for name, key in (
        ("pyFiles", JobOptions.PYTHON_FILES.key),
        ("pyArchives", JobOptions.PYTHON_ARCHIVES.key),
        ("pyRequirements", JobOptions.PYTHON_REQUIREMENTS.key),
        ("pyExecutable", JobOptions.PYTHON_EXECUTABLE.key),
        ("pyClientExecutable", JobOptions.PYTHON_CLIENT_EXECUTABLE.key),
        ("pyPythonPath", "python.pythonpath"),
    ):
        if parsed.has(name):
            config.set(key, ",".join(parsed.all(name)))
    if parsed.has("classpath"):
        listed = [config.get(JobOptions.PYTHON_FILES), *parsed.all("classpath")]
        config.set(JobOptions.PYTHON_FILES, ",".join(part for part in listed if part))
