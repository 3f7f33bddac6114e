"""CheckpointConfig: PyFlink's view of the checkpointing keys of an environment. Every setter is a configuration key."""

from __future__ import annotations

import enum
from datetime import timedelta
from typing import Any, Final, TypeVar, final

from engine.core.config import ConfigOption, Configuration
from engine.core.errors import ConfigError
from engine.core.options import CheckpointingOptions
from engine.datastream.checkpoint_storage import (
    CheckpointStorage,
    FileSystemCheckpointStorage,
    checkpoint_storage_of,
)
from engine.datastream.checkpointing_mode import CheckpointingMode
from engine.datastream.externalized_checkpoint_retention import ExternalizedCheckpointRetention
from engine.time.watermarks import Duration, Time, span_ms

__all__ = ["CheckpointConfig", "ExternalizedCheckpointCleanup"]

#: The name that PyFlink had for it before 2.0.
ExternalizedCheckpointCleanup = ExternalizedCheckpointRetention

Kind = TypeVar("Kind", bound=enum.Enum)
_FORCE_UNALIGNED: Final = "execution.checkpointing.unaligned.forced"


@final
class CheckpointConfig:
    DEFAULT_MODE = CheckpointingMode.EXACTLY_ONCE
    DEFAULT_TIMEOUT = CheckpointingOptions.TIMEOUT.default
    DEFAULT_MIN_PAUSE_BETWEEN_CHECKPOINTS = CheckpointingOptions.MIN_PAUSE.default
    DEFAULT_MAX_CONCURRENT_CHECKPOINTS = CheckpointingOptions.MAX_CONCURRENT.default

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration

    def _set(self, option: ConfigOption[Any], value: Any, setter: str) -> CheckpointConfig:
        """Raises ConfigError that names the setter when the value cannot be used."""
        probe = Configuration().set(option, value)
        try:
            probe.get(option)
        except ConfigError as error:
            raise ConfigError(f"{setter}({value!r}): {error}") from None
        for key in option.older_keys:
            self._configuration.remove_config(key)
        self._configuration.set(option, value)
        return self

    # --- period and mode ---------------------------------------------------------------------------------------------

    def is_checkpointing_enabled(self) -> bool:
        return self._configuration.get(CheckpointingOptions.INTERVAL) > 0

    def get_checkpointing_mode(self) -> CheckpointingMode:
        return CheckpointingMode[self._configuration.get(CheckpointingOptions.MODE)]

    def set_checkpointing_mode(self, checkpointing_mode: CheckpointingMode) -> CheckpointConfig:
        mode = _member(CheckpointingMode, checkpointing_mode, "set_checkpointing_mode")
        return self._set(CheckpointingOptions.MODE, mode.name, "set_checkpointing_mode")

    def get_checkpointing_consistency_mode(self) -> CheckpointingMode:
        return self.get_checkpointing_mode()

    def set_checkpointing_consistency_mode(self, checkpointing_mode: CheckpointingMode) -> CheckpointConfig:
        return self.set_checkpointing_mode(checkpointing_mode)

    def get_checkpoint_interval(self) -> int:
        """Return milliseconds; -1 = no periodic checkpoints."""
        return self._configuration.get(CheckpointingOptions.INTERVAL) or -1

    def set_checkpoint_interval(self, checkpoint_interval: int) -> CheckpointConfig:
        return self._set(CheckpointingOptions.INTERVAL, _milliseconds(checkpoint_interval), "set_checkpoint_interval")

    def get_checkpoint_timeout(self) -> int:
        return self._configuration.get(CheckpointingOptions.TIMEOUT)

    def set_checkpoint_timeout(self, checkpoint_timeout: int | timedelta | Duration) -> CheckpointConfig:
        return self._set(CheckpointingOptions.TIMEOUT, _milliseconds(checkpoint_timeout), "set_checkpoint_timeout")

    def get_min_pause_between_checkpoints(self) -> int:
        return self._configuration.get(CheckpointingOptions.MIN_PAUSE)

    def set_min_pause_between_checkpoints(self, min_pause_between_checkpoints: int) -> CheckpointConfig:
        pause_ms = _milliseconds(min_pause_between_checkpoints)
        return self._set(CheckpointingOptions.MIN_PAUSE, pause_ms, "set_min_pause_between_checkpoints")

    def get_max_concurrent_checkpoints(self) -> int:
        return self._configuration.get(CheckpointingOptions.MAX_CONCURRENT)

    def set_max_concurrent_checkpoints(self, max_concurrent_checkpoints: int) -> CheckpointConfig:
        return self._set(
            CheckpointingOptions.MAX_CONCURRENT, max_concurrent_checkpoints, "set_max_concurrent_checkpoints"
        )

    # --- failure -----------------------------------------------------------------------------------------------------

    def is_fail_on_checkpointing_errors(self) -> bool:
        return self.get_tolerable_checkpoint_failure_number() == 0

    def set_fail_on_checkpointing_errors(self, fail_on_checkpointing_errors: bool) -> CheckpointConfig:
        """Deprecated: True = no failure is tolerated, False = any number."""
        return self.set_tolerable_checkpoint_failure_number(0 if fail_on_checkpointing_errors else (1 << 31) - 1)

    def get_tolerable_checkpoint_failure_number(self) -> int:
        return self._configuration.get(CheckpointingOptions.TOLERABLE_FAILURES)

    def set_tolerable_checkpoint_failure_number(self, tolerable_checkpoint_failure_number: int) -> CheckpointConfig:
        return self._set(
            CheckpointingOptions.TOLERABLE_FAILURES,
            tolerable_checkpoint_failure_number,
            "set_tolerable_checkpoint_failure_number",
        )

    # --- what is kept ------------------------------------------------------------------------------------------------

    def is_externalized_checkpoints_enabled(self) -> bool:
        retention = self.get_externalized_checkpoint_retention()
        return retention is not ExternalizedCheckpointRetention.NO_EXTERNALIZED_CHECKPOINTS

    def get_externalized_checkpoint_retention(self) -> ExternalizedCheckpointRetention:
        return ExternalizedCheckpointRetention[self._configuration.get(CheckpointingOptions.RETENTION)]

    def set_externalized_checkpoint_retention(
        self, retention_mode: ExternalizedCheckpointRetention
    ) -> CheckpointConfig:
        retention = _member(ExternalizedCheckpointRetention, retention_mode, "set_externalized_checkpoint_retention")
        return self._set(CheckpointingOptions.RETENTION, retention.name, "set_externalized_checkpoint_retention")

    def get_externalized_checkpoint_cleanup(self) -> ExternalizedCheckpointRetention:
        """The name before 2.0."""
        return self.get_externalized_checkpoint_retention()

    def set_externalized_checkpoint_cleanup(self, cleanup_mode: ExternalizedCheckpointRetention) -> CheckpointConfig:
        return self.set_externalized_checkpoint_retention(cleanup_mode)

    def enable_externalized_checkpoints(self, cleanup_mode: ExternalizedCheckpointRetention) -> CheckpointConfig:
        return self.set_externalized_checkpoint_retention(cleanup_mode)

    def set_checkpoint_storage(self, storage: CheckpointStorage) -> CheckpointConfig:
        if not isinstance(storage, CheckpointStorage):
            raise ConfigError(
                f"set_checkpoint_storage({storage!r:.80}): expected FileSystemCheckpointStorage(path) or "
                "JobManagerCheckpointStorage(); set_checkpoint_storage_dir(path) takes a folder."
            )
        storage.write_to(self._configuration)
        return self

    def set_checkpoint_storage_dir(self, checkpoint_path: str) -> CheckpointConfig:
        return self.set_checkpoint_storage(FileSystemCheckpointStorage(checkpoint_path))

    def get_checkpoint_storage(self) -> CheckpointStorage | None:
        return checkpoint_storage_of(self._configuration)

    # --- unaligned ---------------------------------------------------------------------------------------------------

    def is_unaligned_checkpoints_enabled(self) -> bool:
        return self._configuration.get(CheckpointingOptions.UNALIGNED)

    def enable_unaligned_checkpoints(self, enabled: bool = True) -> CheckpointConfig:
        """Barriers overtake records, which become part of the checkpoint: for jobs under backpressure."""
        return self._set(CheckpointingOptions.UNALIGNED, enabled, "enable_unaligned_checkpoints")

    def disable_unaligned_checkpoints(self) -> CheckpointConfig:
        return self.enable_unaligned_checkpoints(False)

    def set_aligned_checkpoint_timeout(self, alignment_timeout: timedelta | Duration | int) -> CheckpointConfig:
        """With unaligned checkpoints: begin aligned, and overtake when that takes longer."""
        return self._set(
            CheckpointingOptions.ALIGNED_TIMEOUT,
            _milliseconds(alignment_timeout),
            "set_aligned_checkpoint_timeout",
        )

    def get_aligned_checkpoint_timeout(self) -> timedelta:
        return timedelta(milliseconds=self._configuration.get(CheckpointingOptions.ALIGNED_TIMEOUT))

    def set_alignment_timeout(self, alignment_timeout: timedelta | Duration | int) -> CheckpointConfig:
        return self.set_aligned_checkpoint_timeout(alignment_timeout)

    def get_alignment_timeout(self) -> timedelta:
        return self.get_aligned_checkpoint_timeout()

    def set_force_unaligned_checkpoints(self, force_unaligned_checkpoints: bool = True) -> CheckpointConfig:
        """Kept for compatibility; it has no effect."""
        self._configuration.set(_FORCE_UNALIGNED, force_unaligned_checkpoints)
        return self

    def is_force_unaligned_checkpoints(self) -> bool:
        return self._configuration.get_boolean(_FORCE_UNALIGNED, False)


def _milliseconds(value: timedelta | Duration | Time | int) -> int:
    return value if not isinstance(value, timedelta | Duration | Time) else span_ms(value, "a duration")


def _member(kind: type[Kind], given: Any, setter: str) -> Kind:
    """Return a member of an enum. Raises ConfigError for another value, such as its name."""
    if isinstance(given, kind):
        return given
    known = ", ".join(f"{kind.__name__}.{member.name}" for member in kind)
    raise ConfigError(f"{setter}({given!r:.80}): expected one of {known}.")
