"""Options of high availability (``engine/ha``). Part of ``core/options``, which says what holds for all of them."""

from __future__ import annotations

from typing import Final

from engine.core.config import ConfigOption, boolean, duration_ms, integer, string

__all__ = ["HaOptions"]

_POSITIVE_TIME = (lambda value: value >= 1, "a duration of at least 1 ms")


def _ha_type(text: str) -> str:
    """Flink's old word for no high availability is "standalone"."""
    known = {"none": "NONE", "standalone": "NONE", "zookeeper": "zookeeper", "filesystem": "filesystem"}
    try:
        return known[text.strip().lower()]
    except KeyError:
        raise ValueError("NONE, zookeeper or filesystem") from None


class HaOptions:
    TYPE: Final = ConfigOption(
        "high-availability.type",
        _ha_type,
        "NONE",
        "What elects the leading JobManager: NONE, zookeeper, or filesystem (JobManagers on one machine).",
        ("high-availability", "recovery.mode"),
    )
    STORAGE_DIR: Final = ConfigOption(
        "high-availability.storageDir",
        string,
        "",
        "Folder (file:// or hdfs://) for what the next leader needs: jobs and their files. All JobManagers see it.",
        ("high-availability.zookeeper.storageDir", "recovery.zookeeper.storageDir"),
    )
    CLUSTER_ID: Final = ConfigOption(
        "high-availability.cluster-id",
        string,
        "/default",
        "Names this cluster among others of one ZooKeeper or storage folder.",
        ("high-availability.zookeeper.path.namespace", "recovery.zookeeper.path.namespace"),
    )
    KEEP_TASKS: Final = ConfigOption(
        "high-availability.running-tasks.keep-timeout",
        duration_ms,
        90_000,
        "How long a TaskManager lets tasks run on after it has lost the leading JobManager; longer than the session "
        "timeout, or nobody can take them over. 0: they end at once.",
    )
    REPORT_TASKS: Final = ConfigOption(
        "high-availability.running-tasks.report-timeout",
        duration_ms,
        3_000,
        "How long a new leader waits until TaskManagers have reported all running tasks of a job; then it restarts the "
        "job from its newest checkpoint. 0: it never takes running tasks over.",
    )
    JOBMANAGER_PORT: Final = ConfigOption(
        "high-availability.jobmanager.port",
        string,
        "0",
        "Port or range (50000-50025) of a JobManager with high availability, in place of jobmanager.rpc.port; "
        "0 = any free one.",
        ("recovery.jobmanager.port",),
    )
    QUORUM: Final = ConfigOption(
        "high-availability.zookeeper.quorum",
        string,
        "",
        "ZooKeeper's servers: host:port,host:port.",
        ("recovery.zookeeper.quorum",),
    )
    PATH_ROOT: Final = ConfigOption(
        "high-availability.zookeeper.path.root",
        string,
        "/flink",
        "Node of ZooKeeper below which all clusters have theirs.",
        ("recovery.zookeeper.path.root",),
    )
    SESSION_TIMEOUT: Final = ConfigOption(
        "high-availability.zookeeper.client.session-timeout",
        duration_ms,
        60_000,
        "After so long without a sign of life another JobManager is elected (also with type filesystem). ZooKeeper's "
        "server keeps it between 2 and 20 of its ticks.",
        ("recovery.zookeeper.client.session-timeout",),
        check=_POSITIVE_TIME,
    )
    CONNECTION_TIMEOUT: Final = ConfigOption(
        "high-availability.zookeeper.client.connection-timeout",
        duration_ms,
        15_000,
        "How long to wait for ZooKeeper's answer, at the start and to each request.",
        ("recovery.zookeeper.client.connection-timeout",),
        check=_POSITIVE_TIME,
    )
    RETRY_WAIT: Final = ConfigOption(
        "high-availability.zookeeper.client.retry-wait",
        duration_ms,
        5_000,
        "How long a request waits for a lost connection to come back before it counts as one attempt.",
        ("recovery.zookeeper.client.retry-wait",),
        check=_POSITIVE_TIME,
    )
    MAX_RETRY_ATTEMPTS: Final = ConfigOption(
        "high-availability.zookeeper.client.max-retry-attempts",
        integer,
        3,
        "How often a request is tried again after the connection was lost.",
        ("recovery.zookeeper.client.max-retry-attempts",),
        check=(lambda value: value >= 0, "a whole number of at least 0"),
    )
    ACL: Final = ConfigOption(
        "high-availability.zookeeper.client.acl",
        string,
        "open",
        "Who may change the nodes: open (all) or creator (who has the same authorization).",
        check=(lambda value: value in ("open", "creator"), "open or creator"),
    )
    AUTHORIZATION: Final = ConfigOption(
        "high-availability.zookeeper.client.authorization",
        string,
        "",
        "Credentials, as scheme:credential, comma-separated; a credential with a colon in quotes: digest:'user:word'.",
    )
    TOLERATE_SUSPENDED: Final = ConfigOption(
        "high-availability.zookeeper.client.tolerate-suspended-connections",
        boolean,
        True,
        "A leader whose connection is lost goes on until its session is lost; false: it steps down at once, which is "
        "Flink's default.",
    )
