"""High availability on YARN: which cluster id an application has, who stands for election, how its end is kept.

Elections and what leaders write down are ``engine/ha``; what a new attempt does is ``application_master``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from engine.core.config import Configuration
from engine.core.errors import ExternalError
from engine.core.ids import FencingToken
from engine.core.options import HaOptions, YarnOptions
from engine.ha.contracts import Contender, MetadataStore
from flink_yarn.hadoop_conf import HadoopConf
from flink_yarn.yarn_client import YarnClient

__all__ = [
    "Outcome",
    "contender_of",
    "is_highly_available",
    "keep_bad_nodes",
    "keep_outcome",
    "kept_bad_nodes",
    "kept_outcome",
    "with_cluster_id",
]

#: Name among the cluster's metadata; written before anything of an application that ends is deleted.
_OUTCOME: Final = "outcome"
#: The same: nodes that the next JobManager had better not try.
_BAD_NODES: Final = "bad-nodes"
#: How long to try to learn from YARN whether another application still runs; a ResourceManager may be restarting.
_ASK_S: Final = 60.0
_PAUSE_S: Final = 1.0


@dataclass(frozen=True)
class Outcome:
    """How the application ends: YARN's final status and its diagnostics."""

    status: str  #: SUCCEEDED, FAILED, KILLED
    diagnostics: str


def is_highly_available(config: Configuration) -> bool:
    return bool(config.get(HaOptions.TYPE) != "NONE")


def with_cluster_id(config: Configuration, application_id: str) -> Configuration:
    """Return the configuration of a process of the application: its cluster id is the application's, unless another one
    was chosen (``-z``)."""
    config = Configuration(config).set(YarnOptions.ID, application_id)
    if not config.contains(HaOptions.CLUSTER_ID):
        config.set(HaOptions.CLUSTER_ID, f"/{application_id}")
    return config


def contender_of(application_id: str, attempt: int) -> Contender:
    return Contender(application_id, attempt, _application_has_ended)


def _application_has_ended(application_id: str) -> bool:
    """Raises: ExternalError when YARN does not answer."""
    client = YarnClient(HadoopConf.load())
    deadline = time.monotonic() + _ASK_S
    while True:
        try:
            return client.has_ended(application_id)
        except ExternalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_S)


def keep_outcome(metadata: MetadataStore, token: FencingToken, application_id: str, outcome: Outcome) -> None:
    """Write down how the application ends, before YARN is told and anything is deleted: should this attempt be killed
    in between, the next one tells the same and runs nothing. Raises LeadershipLostError, ExternalError."""
    content = {"application": application_id, "status": outcome.status, "diagnostics": outcome.diagnostics}
    metadata.put(token, _OUTCOME, json.dumps(content).encode())


def kept_outcome(metadata: MetadataStore, application_id: str) -> Outcome | None:
    """Return how this application has ended under another attempt. Raises ExternalError."""
    value = metadata.get(_OUTCOME)
    if value is None:
        return None
    said = json.loads(value)
    if said["application"] != application_id:  # one that had the same cluster id
        return None
    return Outcome(str(said["status"]), str(said["diagnostics"]))


def keep_bad_nodes(metadata: MetadataStore, token: FencingToken, until_ms: Mapping[str, int]) -> None:
    """Write down which nodes are avoided, and until when. Raises LeadershipLostError, ExternalError."""
    metadata.put(token, _BAD_NODES, json.dumps(until_ms).encode())


def kept_bad_nodes(metadata: MetadataStore) -> dict[str, int]:
    """Return what a JobManager before this one has kept. Raises ExternalError."""
    value = metadata.get(_BAD_NODES)
    return {} if value is None else {str(host): int(until_ms) for host, until_ms in json.loads(value).items()}
