"""Every configuration option that this release reads: key, type, default, one sentence. Keys and defaults are Flink's.

The template in ``conf/`` and ``docs/CONFIGURATION.md`` are generated from this file; a test checks that they are fresh.
Keys of Flink that are known but not read yet are in ``KNOWN_UNREAD``: they warn as "not supported yet", not "unknown".
"""

from __future__ import annotations

from typing import Any, Final

from engine.core.checkpointing_options import CheckpointingOptions
from engine.core.config import (
    ConfigOption,
    boolean,
    duration_ms,
    integer,
    memory_bytes,
    number,
    string,
)
from engine.core.ha_options import HaOptions
from engine.core.log_options import LogOptions

_POSITIVE = (lambda value: value >= 1, "a whole number of at least 1")
_PORT = (lambda value: 0 <= value <= 65535, "a port from 0 (any free one) to 65535")


def _megabytes(text: str) -> int:
    return memory_bytes(text, "m")


def _infinite_or_duration(text: str) -> int:
    if text.strip().lower() == "infinite":
        return 2**63 - 1
    if text.strip() == "-1":
        return -1
    return duration_ms(text)


class JobOptions:
    PARALLELISM: Final = ConfigOption(
        "parallelism.default", integer, 1, "Parallelism of operators without their own.", check=_POSITIVE
    )
    MAX_PARALLELISM: Final = ConfigOption(
        "pipeline.max-parallelism", integer, -1, "Number of key groups; -1 = 128 or more as needed."
    )
    JOB_IDS_FROM: Final = ConfigOption(
        "$internal.pipeline.job-ids-from", string, "", "Ids of a program's jobs are made of this and their number."
    )
    NAME: Final = ConfigOption("pipeline.name", string, "", "Name of the job when execute() gets none.")
    CHAINING: Final = ConfigOption(
        "pipeline.operator-chaining.enabled",
        boolean,
        True,
        "Chain operators into one task.",
        ("pipeline.operator-chaining",),
    )
    OBJECT_REUSE: Final = ConfigOption(
        "pipeline.object-reuse",
        boolean,
        False,
        "Several consumers of one stream share its records; otherwise each but one gets copies.",
    )
    RUNTIME_MODE: Final = ConfigOption(
        "execution.runtime-mode",
        lambda t: t.strip().upper(),
        "STREAMING",
        "STREAMING, BATCH or AUTOMATIC.",
        check=(lambda v: v in ("STREAMING", "BATCH", "AUTOMATIC"), "STREAMING, BATCH or AUTOMATIC"),
    )
    BUFFER_TIMEOUT_ENABLED: Final = ConfigOption(
        "execution.buffer-timeout.enabled", boolean, True, "false: send only full buffers."
    )
    BUFFER_TIMEOUT: Final = ConfigOption(
        "execution.buffer-timeout.interval",
        _infinite_or_duration,
        100,
        "How long a record may wait in a buffer; 0 = not at all, -1 = until it is full, infinite = blocking exchange.",
        ("execution.buffer-timeout",),
    )
    TARGET: Final = ConfigOption(
        "execution.target", string, "", "local, remote, yarn-session, yarn-per-job, yarn-application."
    )
    ATTACHED: Final = ConfigOption("execution.attached", boolean, False, "Wait for the job's end.")
    SHUTDOWN_ON_ATTACHED_EXIT: Final = ConfigOption(
        "execution.shutdown-on-attached-exit",
        boolean,
        False,
        "Cancel the job when the attached client is interrupted.",
    )
    BATCH_SHUFFLE_MODE: Final = ConfigOption(
        "execution.batch-shuffle-mode",
        lambda t: t.strip().upper(),
        "ALL_EXCHANGES_BLOCKING",
        "ALL_EXCHANGES_BLOCKING or ALL_EXCHANGES_PIPELINED, for batch jobs.",
        check=(
            lambda v: v in ("ALL_EXCHANGES_BLOCKING", "ALL_EXCHANGES_PIPELINED"),
            "ALL_EXCHANGES_BLOCKING or ALL_EXCHANGES_PIPELINED",
        ),
    )
    PYTHON_FILES: Final = ConfigOption(
        "python.files", string, "", "Comma-separated files and folders put on the Python path of user code."
    )
    PYTHON_ARCHIVES: Final = ConfigOption(
        "python.archives", string, "", "Comma-separated archives (file#dir) extracted beside user code."
    )
    PYTHON_REQUIREMENTS: Final = ConfigOption(
        "python.requirements", string, "", "requirements.txt[#cached dir] installed for user code."
    )
    PYTHON_EXECUTABLE: Final = ConfigOption(
        "python.executable", string, "", "Interpreter of TaskManagers; default: the engine's own."
    )
    PYTHON_CLIENT_EXECUTABLE: Final = ConfigOption(
        "python.client.executable", string, "", "Interpreter that runs the program's main."
    )
    AUTO_WATERMARK_INTERVAL: Final = ConfigOption(
        "pipeline.auto-watermark-interval", duration_ms, 200, "How often watermarks are emitted."
    )
    ALLOW_UNALIGNED_SOURCE_SPLITS: Final = ConfigOption(
        "pipeline.watermark-alignment.allow-unaligned-source-splits",
        boolean,
        False,
        "Let splits run ahead of their group where a source cannot stop reading single ones; false: such a job fails.",
    )


class ClusterOptions:
    RPC_ADDRESS: Final = ConfigOption("jobmanager.rpc.address", string, "localhost", "Host of the JobManager.")
    RPC_PORT: Final = ConfigOption(
        "jobmanager.rpc.port", integer, 6123, "Port of the JobManager for TaskManagers.", check=_PORT
    )
    JM_BIND_HOST: Final = ConfigOption(
        "jobmanager.bind-host",
        string,
        "",
        "Interface that the JobManager binds; default: jobmanager.rpc.address.",
    )
    TM_HOST: Final = ConfigOption(
        "taskmanager.host",
        string,
        "",
        "Address under which other hosts reach this TaskManager; default: the one that reaches the JobManager.",
    )
    TM_BIND_HOST: Final = ConfigOption(
        "taskmanager.bind-host",
        string,
        "",
        "Interface that the TaskManager binds; default: taskmanager.host.",
    )
    TM_DATA_PORT: Final = ConfigOption(
        "taskmanager.data.port",
        integer,
        0,
        "First port for data between slots (slot i uses port + i); 0 = any.",
        check=_PORT,
    )
    EXCHANGE_CODEC: Final = ConfigOption(
        "taskmanager.network.compression.codec",
        string,
        "NONE",
        "Compress records that go to another host, and those of blocking exchanges, which are files: LZ4 or ZSTD.",
        check=(lambda v: v.upper() in ("NONE", "LZ4", "ZSTD"), "NONE, LZ4 or ZSTD"),
    )
    TM_RESOURCE_ID: Final = ConfigOption(
        "taskmanager.resource-id", string, "", "Id of the TaskManager; default: made from host and pid."
    )
    NUM_SLOTS: Final = ConfigOption(
        "taskmanager.numberOfTaskSlots", integer, 1, "Slots of a TaskManager.", check=_POSITIVE
    )
    TMP_DIRS: Final = ConfigOption(
        "io.tmp.dirs",
        string,
        "",
        "Folders for spilled data, separated by , or :; default: the system's temporary folder.",
        ("taskmanager.tmp.dirs",),
    )
    SLOT_REQUEST_TIMEOUT: Final = ConfigOption(
        "slot.request.timeout", duration_ms, 300_000, "How long a job waits for its slots before it fails."
    )
    HEARTBEAT_INTERVAL: Final = ConfigOption(
        "heartbeat.interval", duration_ms, 10_000, "Time between heartbeats of JobManager and TaskManagers."
    )
    HEARTBEAT_TIMEOUT: Final = ConfigOption(
        "heartbeat.timeout", duration_ms, 50_000, "Silence after which a peer counts as lost."
    )
    CANCELLATION_TIMEOUT: Final = ConfigOption(
        "task.cancellation.timeout",
        duration_ms,
        1_000,
        "Time that a cancelled task gets before its slot process is killed (Flink: 180 s, then the whole TaskManager).",
    )
    REGISTRATION_TIMEOUT: Final = ConfigOption(
        "taskmanager.registration.timeout",
        duration_ms,
        300_000,
        "How long a TaskManager tries to register before it ends.",
    )
    DRAIN_TIMEOUT: Final = ConfigOption(
        "taskmanager.drain-timeout",
        duration_ms,
        5_000,
        "How long a TaskManager keeps its slots at SIGTERM while checkpoints of their jobs are taken; 0 = not at all.",
    )
    TASKMANAGER_TIMEOUT: Final = ConfigOption(
        "resourcemanager.taskmanager-timeout",
        duration_ms,
        30_000,
        "Idle time after which a TaskManager that was started on demand is released.",
    )
    SLOTS_MAX: Final = ConfigOption(
        "slotmanager.number-of-slots.max",
        integer,
        2147483647,
        "Most slots that the ResourceManager starts on demand.",
    )
    LOG_DIR: Final = ConfigOption("env.log.dir", string, "", "Folder of log and out files.")
    PID_DIR: Final = ConfigOption("env.pid.dir", string, "/tmp", "Folder of pid files.")
    SSH_OPTIONS: Final = ConfigOption("env.ssh.opts", string, "", "Options for ssh in start-cluster.sh.")


class MemoryOptions:
    JM_PROCESS: Final = ConfigOption(
        "jobmanager.memory.process.size",
        _megabytes,
        1600 << 20,
        "Memory of the JobManager process or container.",
        ("jobmanager.heap.size", "jobmanager.heap.mb"),
    )
    TM_PROCESS: Final = ConfigOption(
        "taskmanager.memory.process.size",
        _megabytes,
        1728 << 20,
        "Memory of the TaskManager with its slots, or of its container.",
        ("taskmanager.heap.size", "taskmanager.heap.mb"),
    )
    MANAGED: Final = ConfigOption(
        "taskmanager.memory.managed.size",
        _megabytes,
        0,
        "Memory for sorting and state tables in all slots; 0 = by fraction.",
        ("taskmanager.memory.size",),
    )
    MANAGED_FRACTION: Final = ConfigOption(
        "taskmanager.memory.managed.fraction",
        number,
        0.4,
        "Part of the process size that is managed memory.",
        check=(lambda v: 0 <= v <= 1, "a number from 0 to 1"),
    )
    SEGMENT_SIZE: Final = ConfigOption(
        "taskmanager.memory.segment-size",
        memory_bytes,
        32 << 10,
        "Size at which a buffer counts as full and is sent.",
    )


class RestOptions:
    PORT: Final = ConfigOption(
        "rest.port", integer, 8081, "Port of REST and dashboard that clients use.", ("web.port",), check=_PORT
    )
    BIND_PORT: Final = ConfigOption(
        "rest.bind-port",
        string,
        "",
        "Port or range (8081-8090) to bind; default: rest.port.",
        ("jobmanager.web.port",),
    )
    ADDRESS: Final = ConfigOption(
        "rest.address", string, "", "Address that clients use; default: jobmanager.rpc.address."
    )
    BIND_ADDRESS: Final = ConfigOption(
        "rest.bind-address",
        string,
        "",
        "Interface to bind; default: rest.address.",
        ("web.address", "jobmanager.web.address"),
    )
    SUBMIT_ENABLE: Final = ConfigOption(
        "web.submit.enable",
        boolean,
        True,
        "Allow upload and run of programs.",
        ("jobmanager.web.submit.enable",),
    )
    CANCEL_ENABLE: Final = ConfigOption("web.cancel.enable", boolean, True, "Show the cancel button.")
    REFRESH_INTERVAL: Final = ConfigOption(
        "web.refresh-interval",
        duration_ms,
        3_000,
        "How often the dashboard asks.",
        ("jobmanager.web.refresh-interval",),
    )
    UPLOAD_DIR: Final = ConfigOption(
        "web.upload.dir", string, "", "Where uploaded programs are kept.", ("jobmanager.web.upload.dir",)
    )
    TMP_DIR: Final = ConfigOption(
        "web.tmpdir", string, "", "Temporary folder of the JobManager.", ("jobmanager.web.tmpdir",)
    )
    ALLOW_ORIGIN: Final = ConfigOption(
        "web.access-control-allow-origin",
        string,
        "*",
        "CORS header.",
        ("jobmanager.web.access-control-allow-origin",),
    )
    HISTORY: Final = ConfigOption(
        "web.history", integer, 50, "Ended jobs that the JobManager remembers.", ("jobmanager.web.history",)
    )
    EXCEPTIONS: Final = ConfigOption(
        "web.exception-history-size",
        integer,
        16,
        "Exceptions of each job that are remembered, with high availability also by the next JobManager.",
        check=_POSITIVE,
    )
    FLAMEGRAPH_ENABLED: Final = ConfigOption(
        "rest.flamegraph.enabled",
        boolean,
        True,
        "Whether running subtasks may be sampled for flame graphs; Flink's default is false.",
    )
    FLAMEGRAPH_SAMPLES: Final = ConfigOption(
        "rest.flamegraph.num-samples",
        integer,
        100,
        "Samples of a flame graph, unless asked for others.",
        check=_POSITIVE,
    )
    FLAMEGRAPH_DELAY: Final = ConfigOption(
        "rest.flamegraph.delay-between-samples", duration_ms, 50, "Time between two samples.", check=_POSITIVE
    )
    ARCHIVE_DIR: Final = ConfigOption(
        "jobmanager.archive.fs.dir", string, "", "Folder (any file system) where ended jobs are archived."
    )


_RESTART_STRATEGIES: Final = {
    **dict.fromkeys(("", "none", "off", "disable"), "none"),
    **dict.fromkeys(("fixed-delay", "fixeddelay"), "fixed-delay"),
    **dict.fromkeys(("failure-rate", "failurerate"), "failure-rate"),
    **dict.fromkeys(("exponential-delay", "exponentialdelay"), "exponential-delay"),
}


def _restart_strategy(text: str) -> str:
    try:
        return _RESTART_STRATEGIES[text.strip().lower()]
    except KeyError:
        raise ValueError("none (off, disable), fixed-delay, failure-rate or exponential-delay") from None


class RestartOptions:
    TYPE: Final = ConfigOption(
        "restart-strategy.type",
        _restart_strategy,
        "none",
        "What follows a failure: none (off, disable) fails the job; fixed-delay, failure-rate and exponential-delay "
        "restart it from its last checkpoint, or from its beginning. When periodic checkpoints are on, the default is "
        "exponential-delay.",
        ("restart-strategy",),
    )
    FIXED_ATTEMPTS: Final = ConfigOption(
        "restart-strategy.fixed-delay.attempts",
        integer,
        1,
        "Restarts before the job is failed.",
        check=(lambda value: value >= 0, "a whole number of at least 0"),
    )
    FIXED_DELAY: Final = ConfigOption(
        "restart-strategy.fixed-delay.delay", duration_ms, 1_000, "From a failure to the restart."
    )
    RATE_MAX: Final = ConfigOption(
        "restart-strategy.failure-rate.max-failures-per-interval",
        integer,
        1,
        "Failures within the interval that are answered by a restart; one more fails the job.",
        check=_POSITIVE,
    )
    RATE_INTERVAL: Final = ConfigOption(
        "restart-strategy.failure-rate.failure-rate-interval", duration_ms, 60_000, "The interval of failures counted."
    )
    RATE_DELAY: Final = ConfigOption(
        "restart-strategy.failure-rate.delay", duration_ms, 1_000, "From a failure to the restart."
    )
    INITIAL_BACKOFF: Final = ConfigOption(
        "restart-strategy.exponential-delay.initial-backoff",
        duration_ms,
        1_000,
        "From the first failure to the restart.",
        check=(lambda value: value >= 1, "a duration of at least 1 ms"),
    )
    MAX_BACKOFF: Final = ConfigOption(
        "restart-strategy.exponential-delay.max-backoff",
        duration_ms,
        60_000,
        "Longest time from a failure to the restart; at least the initial one.",
        check=(lambda value: value >= 1, "a duration of at least 1 ms"),
    )
    BACKOFF_MULTIPLIER: Final = ConfigOption(
        "restart-strategy.exponential-delay.backoff-multiplier",
        number,
        1.5,
        "Growth of the delay with each failure.",
        check=(lambda value: 1 <= value < float("inf"), "a number of at least 1"),
    )
    JITTER_FACTOR: Final = ConfigOption(
        "restart-strategy.exponential-delay.jitter-factor",
        number,
        0.1,
        "The delay is longer or shorter by up to this part of it, so that jobs do not restart all at once.",
        check=(lambda value: 0 <= value <= 1, "a number from 0 to 1"),
    )
    RESET_THRESHOLD: Final = ConfigOption(
        "restart-strategy.exponential-delay.reset-backoff-threshold",
        duration_ms,
        3_600_000,
        "After so long a time without a failure the delay begins at the initial one again.",
        check=(lambda value: value >= 1, "a duration of at least 1 ms"),
    )
    BACKOFF_ATTEMPTS: Final = ConfigOption(
        "restart-strategy.exponential-delay.attempts-before-reset-backoff",
        integer,
        2**31 - 1,
        "So many restarts, without that time in between, before the job fails; by default there is no end.",
        check=(lambda value: value >= 1, "a whole number of at least 1"),
    )


def _duration_or_never(text: str) -> int:
    return -1 if text.strip() == "-1" else duration_ms(text)


class YarnOptions:
    NAME: Final = ConfigOption(
        "yarn.application.name", string, "Flink session cluster", "Name of the YARN application."
    )
    QUEUE: Final = ConfigOption("yarn.application.queue", string, "default", "YARN queue.")
    TYPE: Final = ConfigOption("yarn.application.type", string, "Apache Flink", "Application type that YARN shows.")
    NODE_LABEL: Final = ConfigOption("yarn.application.node-label", string, "", "Node label of all containers.")
    ID: Final = ConfigOption("yarn.application.id", string, "", "The application to attach to.")
    ATTEMPTS: Final = ConfigOption(
        "yarn.application-attempts",
        integer,
        1,
        "Attempts of the ApplicationMaster; 2 with high-availability.type if nothing is said.",
    )
    ATTEMPTS_VALIDITY: Final = ConfigOption(
        "yarn.application-attempt-failures-validity-interval",
        _duration_or_never,
        10_000,
        "Attempts that failed longer ago do not count; -1 = all count.",
    )
    FAILED_CONTAINERS_MAX: Final = ConfigOption(
        "yarn.maximum-failed-containers-per-interval",
        integer,
        100,
        "After so many TaskManager containers have failed within ten minutes the application ends; -1 = never.",
        ("yarn.maximum-failed-containers",),
    )
    JM_VCORES: Final = ConfigOption("yarn.appmaster.vcores", integer, 1, "Virtual cores of the ApplicationMaster.")
    TM_VCORES: Final = ConfigOption(
        "yarn.containers.vcores", integer, -1, "Virtual cores of a TaskManager container; -1 = its slots."
    )
    SHIP_FILES: Final = ConfigOption(
        "yarn.ship-files",
        string,
        "",
        "Files and folders shipped to all containers, separated by ;.",
        ("yarn.ship-directories",),
    )
    SHIP_ARCHIVES: Final = ConfigOption(
        "yarn.ship-archives", string, "", "Archives shipped and extracted, separated by ;."
    )
    STAGING_DIR: Final = ConfigOption(
        "yarn.staging-directory", string, "", "HDFS folder for shipped files; default: the user's home."
    )
    ARCHIVES_RETENTION: Final = ConfigOption(
        "yarn.archives.retention",
        duration_ms,
        30 * 86_400_000,
        "A deployment removes archives of the engine on HDFS that none has used for so long; 0 = never.",
    )
    TAGS: Final = ConfigOption("yarn.tags", string, "", "Comma-separated YARN application tags.")
    PROPERTIES_FILE_DIR: Final = ConfigOption(
        "yarn.properties-file.location",
        string,
        "",
        "Folder of .yarn-properties-$USER; default: the temporary folder.",
    )
    NUM_CONTAINERS: Final = ConfigOption(
        "$internal.yarn.num-taskmanagers", integer, 0, "TaskManagers kept from the start (-n); 0 = on demand."
    )
    HDFS_CLIENT: Final = ConfigOption(
        "fs.hdfs.client",
        string,
        "webhdfs",
        "HDFS client: webhdfs, libhdfs (Hadoop's own, needs Java) or native (package hdfs-native).",
        check=(lambda v: v in ("webhdfs", "libhdfs", "native"), "webhdfs, libhdfs or native"),
    )
    HDFS_RETRY_TIMEOUT: Final = ConfigOption(
        "fs.hdfs.retry-timeout",
        duration_ms,
        120_000,
        "How long reading, writing and checkpoints wait for an HDFS that has answered before; 0 = not at all.",
    )


#: Flink's keys that this release does not act on yet, by prefix; they warn as such instead of as unknown.
KNOWN_UNREAD: Final[tuple[str, ...]] = (
    "execution.checkpointing.",
    "execution.state-recovery.",
    "execution.savepoint.",
    "execution.savepoint-restore-mode",
    "state.",
    "high-availability",
    "recovery.",
    "metrics.",
    "security.",
    "kubernetes.",
    "table.",
    "historyserver.",
    "s3.",
    "fs.s3a.",
    "rest.profiling",
    "sql-client.",
    "sql-gateway.",
    "traces.",
    "events.",
    "external-resource",
    "scheduler-mode",
    "jobmanager.scheduler",
    "jobmanager.execution.failover-strategy",
    "slotmanager.redundant-taskmanager-num",
    "taskmanager.load-balance.mode",
    "cluster.evenly-spread-out-slots",
    "classloader.",
    "jobmanager.memory.",
    "taskmanager.memory.",
    "taskmanager.network.",
    "taskmanager.rpc.port",
    "pipeline.",
    "python.",
    "yarn.",
    "web.",
    "rest.",
)
#: Free-form families of keys that are always accepted.
FREE_PREFIXES: Final[tuple[str, ...]] = (
    "$internal.",
    "env.",
    "containerized.",
    "flink.hadoop.",
    "metrics.reporter.",
)


def all_options() -> list[ConfigOption[Any]]:
    """Return every option above, in order of the file."""
    groups = (
        JobOptions,
        CheckpointingOptions,
        RestartOptions,
        ClusterOptions,
        LogOptions,
        MemoryOptions,
        RestOptions,
        YarnOptions,
        HaOptions,
    )
    return [value for group in groups for value in vars(group).values() if isinstance(value, ConfigOption)]


def known_keys() -> set[str]:
    return {key for option in all_options() for key in (option.key, *option.older_keys)}
