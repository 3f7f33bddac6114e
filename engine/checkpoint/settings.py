"""What a job's configuration says about its checkpoints, checked as a whole. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from engine.core.config import Configuration
from engine.core.errors import ConfigError
from engine.core.options import CheckpointingOptions as Options

__all__ = ["CheckpointSettings", "checkpoint_settings"]


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """Durations in milliseconds; see ``core/checkpointing_options``."""

    interval_ms: int = 0  #: 0 = none but those that are asked for
    min_pause_ms: int = 0
    timeout_ms: int = 600_000
    max_concurrent: int = 1
    tolerable_failures: int = 0
    at_least_once: bool = False
    unaligned: bool = False
    aligned_timeout_ms: int = 0
    incremental: bool = False
    #: state travels inside acknowledgements
    in_memory: bool = False
    inline_bytes_max: int = 20 << 10
    #: of one task, when it travels inside acknowledgements
    state_bytes_max: int = 5 << 20
    num_retained: int = 1
    after_tasks_finish: bool = True
    retention: str = "NO_EXTERNALIZED_CHECKPOINTS"
    history: int = 10

    @property
    def is_periodic(self) -> bool:
        return self.interval_ms > 0

    @property
    def retain_on_cancellation(self) -> bool:
        return self.retention == "RETAIN_ON_CANCELLATION"

    @property
    def retain_on_failure(self) -> bool:
        return self.retention != "NO_EXTERNALIZED_CHECKPOINTS"


def checkpoint_settings(config: Configuration) -> CheckpointSettings:
    """Raises ConfigError for values that cannot be used, or not with one another."""
    storage, folder = config.get(Options.STORAGE), config.get(Options.CHECKPOINTS_DIR)
    if storage == "filesystem" and not folder:
        raise ConfigError(
            f"{Options.STORAGE.key} is filesystem, but {Options.CHECKPOINTS_DIR.key} is not set: name a folder that "
            "all nodes reach, e.g. hdfs:///flink/checkpoints."
        )
    unaligned, max_concurrent = config.get(Options.UNALIGNED), config.get(Options.MAX_CONCURRENT)
    at_least_once = config.get(Options.MODE) == "AT_LEAST_ONCE"
    if unaligned and at_least_once:
        raise ConfigError(f"{Options.UNALIGNED.key} needs {Options.MODE.key} EXACTLY_ONCE, which is AT_LEAST_ONCE.")
    min_pause_ms = config.get(Options.MIN_PAUSE)
    if unaligned and max_concurrent > 1 and min_pause_ms == 0:
        raise ConfigError(
            f"{Options.MAX_CONCURRENT.key} is {max_concurrent}; unaligned checkpoints "
            f"({Options.UNALIGNED.key}) allow 1 at a time."
        )
    in_memory = storage == "jobmanager" or not folder
    return CheckpointSettings(
        interval_ms=config.get(Options.INTERVAL),
        min_pause_ms=min_pause_ms,
        timeout_ms=config.get(Options.TIMEOUT),
        max_concurrent=1 if min_pause_ms else max_concurrent,
        tolerable_failures=config.get(Options.TOLERABLE_FAILURES),
        at_least_once=at_least_once,
        unaligned=unaligned,
        aligned_timeout_ms=config.get(Options.ALIGNED_TIMEOUT) if unaligned else 0,
        incremental=config.get(Options.INCREMENTAL) and not in_memory,
        in_memory=in_memory,
        inline_bytes_max=config.get(Options.SMALL_FILE_THRESHOLD),
        state_bytes_max=config.get(Options.MAX_STATE_SIZE),
        num_retained=config.get(Options.NUM_RETAINED),
        after_tasks_finish=config.get(Options.AFTER_TASKS_FINISH),
        retention=config.get(Options.RETENTION),
        history=config.get(Options.HISTORY),
    )
