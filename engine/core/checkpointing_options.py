"""Options of checkpoints, savepoints and state backends; part of ``core/options``, which is what others import."""

from __future__ import annotations

from typing import Any, Final

from engine.core.config import ConfigOption, boolean, duration_ms, integer, memory_bytes, string

__all__ = ["CheckpointingOptions"]

_POSITIVE = (lambda value: value >= 1, "a whole number of at least 1")


def _choice(*names: str) -> tuple[Any, tuple[Any, str]]:
    """Return how an option reads one of ``names`` (any case), and its check."""
    return (
        lambda text: text.strip().upper(),
        (lambda value: value in names, " or ".join((", ".join(names[:-1]), names[-1])) if names[1:] else names[0]),
    )


_MODE, _ONE_OF_MODES = _choice("EXACTLY_ONCE", "AT_LEAST_ONCE")
_RETENTION, _ONE_OF_RETENTIONS = _choice(
    "RETAIN_ON_CANCELLATION", "DELETE_ON_CANCELLATION", "NO_EXTERNALIZED_CHECKPOINTS"
)
_CLAIM, _ONE_OF_CLAIMS = _choice("NO_CLAIM", "CLAIM")
_TIMERS, _ONE_OF_TIMERS = _choice("ROCKSDB", "HEAP")
_FROM_10_MS = (lambda value: value == 0 or value >= 10, "a duration of at least 10 ms, or 0 for no checkpoints")
_BACKENDS: Final = {
    **dict.fromkeys(("hashmap", "jobmanager", "filesystem"), "hashmap"),
    **dict.fromkeys(("rocksdb", "forst"), "rocksdb"),
}


def _backend(text: str) -> str:
    name = text.strip().lower()
    if name.endswith(("hashmapstatebackend", "hashmapstatebackendfactory")):
        return "hashmap"
    if name.endswith(("embeddedrocksdbstatebackend", "embeddedrocksdbstatebackendfactory")):
        return "rocksdb"
    try:
        return _BACKENDS[name]
    except KeyError:
        raise ValueError("hashmap or rocksdb") from None


class CheckpointingOptions:
    """Flink's CheckpointingOptions, StateRecoveryOptions and StateBackendOptions."""

    INTERVAL: Final = ConfigOption(
        "execution.checkpointing.interval",
        duration_ms,
        0,
        "Time from one checkpoint to the next; 0 = no periodic checkpoints.",
        check=_FROM_10_MS,
    )
    MODE: Final = ConfigOption(
        "execution.checkpointing.mode",
        _MODE,
        "EXACTLY_ONCE",
        "EXACTLY_ONCE, or AT_LEAST_ONCE: barriers hold nothing up, records may count twice after a failure.",
        check=_ONE_OF_MODES,
    )
    TIMEOUT: Final = ConfigOption(
        "execution.checkpointing.timeout",
        duration_ms,
        600_000,
        "A checkpoint that takes longer is aborted.",
        check=(lambda value: value >= 10, "a duration of at least 10 ms"),
    )
    MIN_PAUSE: Final = ConfigOption(
        "execution.checkpointing.min-pause",
        duration_ms,
        0,
        "Least time from the end of one checkpoint to the begin of the next; with it only one is under way.",
    )
    MAX_CONCURRENT: Final = ConfigOption(
        "execution.checkpointing.max-concurrent-checkpoints",
        integer,
        1,
        "Periodic checkpoints under way at the same time; unaligned ones allow 1 only.",
        check=_POSITIVE,
    )
    TOLERABLE_FAILURES: Final = ConfigOption(
        "execution.checkpointing.tolerable-failed-checkpoints",
        integer,
        0,
        "Checkpoints that may fail one after another before the job fails.",
        check=(lambda value: value >= 0, "a whole number of at least 0"),
    )
    UNALIGNED: Final = ConfigOption(
        "execution.checkpointing.unaligned.enabled",
        boolean,
        False,
        "Barriers overtake records, which become part of the checkpoint: fast under backpressure.",
        ("execution.checkpointing.unaligned",),
    )
    ALIGNED_TIMEOUT: Final = ConfigOption(
        "execution.checkpointing.aligned-checkpoint-timeout",
        duration_ms,
        0,
        "With unaligned checkpoints: begin aligned and let barriers overtake when that takes longer; 0 = at once.",
        ("execution.checkpointing.alignment-timeout",),
    )
    RETENTION: Final = ConfigOption(
        "execution.checkpointing.externalized-checkpoint-retention",
        _RETENTION,
        "NO_EXTERNALIZED_CHECKPOINTS",
        "What becomes of the last checkpoints: RETAIN_ON_CANCELLATION keeps them when the job is cancelled or fails, "
        "DELETE_ON_CANCELLATION when it fails, NO_EXTERNALIZED_CHECKPOINTS never.",
        check=_ONE_OF_RETENTIONS,
    )
    STORAGE: Final = ConfigOption(
        "execution.checkpointing.storage",
        lambda text: text.strip().lower(),
        "",
        "filesystem, or jobmanager: small state, kept in the JobManager's memory. Default: filesystem if "
        "execution.checkpointing.dir is set.",
        ("state.checkpoint-storage",),
        check=(lambda value: value in ("", "filesystem", "jobmanager"), "filesystem or jobmanager"),
    )
    MAX_STATE_SIZE: Final = ConfigOption(
        "execution.checkpointing.jobmanager.max-state-size",
        memory_bytes,
        5 << 20,
        "With execution.checkpointing.storage jobmanager: what the state of one task may have, with the records in "
        "flight to it. All of it is kept in the JobManager's memory.",
        check=(lambda value: 1 <= value <= 1 << 30, "a size of at most 1 gb"),
    )
    CHECKPOINTS_DIR: Final = ConfigOption(
        "execution.checkpointing.dir",
        string,
        "",
        "Folder of checkpoints that all nodes reach, e.g. hdfs:///flink/checkpoints; each job has its own inside.",
        ("state.checkpoints.dir", "state.backend.fs.checkpointdir"),
    )
    SAVEPOINT_DIR: Final = ConfigOption(
        "execution.checkpointing.savepoint-dir",
        string,
        "",
        "Folder of savepoints for which none is given.",
        ("state.savepoints.dir", "savepoints.state.backend.fs.dir"),
    )
    NUM_RETAINED: Final = ConfigOption(
        "execution.checkpointing.num-retained",
        integer,
        1,
        "Completed checkpoints that are kept.",
        ("state.checkpoints.num-retained",),
        check=_POSITIVE,
    )
    INCREMENTAL: Final = ConfigOption(
        "execution.checkpointing.incremental",
        boolean,
        False,
        "A checkpoint writes only what has changed since the one before.",
        ("state.backend.incremental",),
    )
    AFTER_TASKS_FINISH: Final = ConfigOption(
        "execution.checkpointing.checkpoints-after-tasks-finish",
        boolean,
        True,
        "Go on with checkpoints when some tasks have finished.",
        ("execution.checkpointing.checkpoints-after-tasks-finish.enabled",),
    )
    SMALL_FILE_THRESHOLD: Final = ConfigOption(
        "execution.checkpointing.data-inline-threshold",
        memory_bytes,
        20 << 10,
        "State of a task that is not larger is kept in the metadata instead of a file of its own.",
        (
            "state.storage.fs.memory-threshold",
            "state.backend.fs.memory-threshold",
        ),
        check=(lambda value: 0 <= value <= 1 << 20, "a size of at most 1 mb"),
    )
    HISTORY: Final = ConfigOption(
        "web.checkpoints.history",
        integer,
        10,
        "Checkpoints that REST and dashboard remember of each job.",
        ("jobmanager.web.checkpoints.history",),
        check=(lambda value: value >= 0, "a whole number of at least 0"),
    )
    BACKEND: Final = ConfigOption(
        "state.backend.type",
        _backend,
        "hashmap",
        "Where keyed state lives: hashmap (memory) or rocksdb (local disk).",
        ("state.backend",),
    )
    ROCKSDB_LOCAL_DIR: Final = ConfigOption(
        "state.backend.rocksdb.localdir",
        string,
        "",
        "Folder on a fast local disk for the files of the rocksdb backend; default: where operators spill.",
    )
    ROCKSDB_TIMERS: Final = ConfigOption(
        "state.backend.rocksdb.timer-service.factory",
        _TIMERS,
        "ROCKSDB",
        "Where timers live with the rocksdb backend: ROCKSDB (on the disk, with the keyed state) or HEAP (in memory, "
        "some 300 bytes each besides the key).",
        check=_ONE_OF_TIMERS,
    )
    RESTORE_PATH: Final = ConfigOption(
        "execution.state-recovery.path",
        string,
        "",
        "Savepoint or retained checkpoint that the job starts from (flink run -s).",
        ("execution.savepoint.path",),
    )
    ALLOW_NON_RESTORED: Final = ConfigOption(
        "execution.state-recovery.ignore-unclaimed-state",
        boolean,
        False,
        "Leave out state of the savepoint whose operator the program has no more (flink run -n).",
        ("execution.savepoint.ignore-unclaimed-state",),
    )
    CLAIM_MODE: Final = ConfigOption(
        "execution.state-recovery.claim-mode",
        _CLAIM,
        "NO_CLAIM",
        "NO_CLAIM leaves the savepoint alone; CLAIM gives its files to the job, which deletes them when they are "
        "subsumed.",
        ("execution.savepoint-restore-mode",),
        check=_ONE_OF_CLAIMS,
    )
