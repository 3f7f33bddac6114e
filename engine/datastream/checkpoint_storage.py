"""PyFlink's checkpoint storages: where snapshots go. Each is a set of configuration keys."""

from __future__ import annotations

import abc
from typing import Final, final

from engine.core.config import Configuration
from engine.core.errors import ConfigError
from engine.core.options import CheckpointingOptions

__all__ = ["CheckpointStorage", "FileSystemCheckpointStorage", "JobManagerCheckpointStorage"]

THRESHOLD_MAX: Final = 1 << 20


class CheckpointStorage(abc.ABC):
    @abc.abstractmethod
    def write_to(self, configuration: Configuration) -> None:
        """Say it in configuration keys."""


@final
class JobManagerCheckpointStorage(CheckpointStorage):
    """Snapshots in the JobManager's memory: for small state and for trying out. With a path the metadata, with all
    state in it, is also written there."""

    MAX_STATE_SIZE: int = CheckpointingOptions.MAX_STATE_SIZE.default

    def __init__(self, checkpoint_path: str | None = None, max_state_size: int | None = None) -> None:
        if max_state_size is not None and (not isinstance(max_state_size, int) or max_state_size < 1):
            raise ConfigError(f"max_state_size is {max_state_size!r:.80}; expected a number of bytes of at least 1.")
        self._path = checkpoint_path
        self._max_state_size = max_state_size

    def write_to(self, configuration: Configuration) -> None:
        _set(configuration, "jobmanager", self._path)
        if self._max_state_size is not None:
            configuration.set(CheckpointingOptions.MAX_STATE_SIZE, self._max_state_size)

    def get_checkpoint_path(self) -> str | None:
        return self._path

    def get_max_state_size(self) -> int:
        return self.MAX_STATE_SIZE if self._max_state_size is None else self._max_state_size

    def get_savepoint_path(self) -> str | None:
        return None


@final
class FileSystemCheckpointStorage(CheckpointStorage):
    """Snapshots in a folder that all nodes reach, e.g. ``hdfs:///flink/checkpoints``."""

    #: state that is not larger goes into the metadata
    MAX_FILE_STATE_THRESHOLD = THRESHOLD_MAX

    def __init__(
        self,
        checkpoint_path: str | None = None,
        file_state_size_threshold: int | None = None,
        write_buffer_size: int = -1,
    ) -> None:
        if not checkpoint_path or not isinstance(checkpoint_path, str):
            raise ConfigError("FileSystemCheckpointStorage needs a folder, e.g. 'hdfs:///flink/checkpoints'.")
        threshold = -1 if file_state_size_threshold is None else file_state_size_threshold
        if not isinstance(threshold, int) or not -1 <= threshold <= THRESHOLD_MAX:
            raise ConfigError(
                f"file_state_size_threshold is {file_state_size_threshold!r}; expected at most {THRESHOLD_MAX} bytes."
            )
        self._path = checkpoint_path
        self._threshold = None if file_state_size_threshold == -1 else file_state_size_threshold
        self._write_buffer_size = write_buffer_size

    def write_to(self, configuration: Configuration) -> None:
        _set(configuration, "filesystem", self._path)
        if self._threshold is not None:
            configuration.set(CheckpointingOptions.SMALL_FILE_THRESHOLD, self._threshold)

    def get_checkpoint_path(self) -> str:
        return self._path

    def get_savepoint_path(self) -> str | None:
        return None

    def get_min_file_size_threshold(self) -> int:
        return CheckpointingOptions.SMALL_FILE_THRESHOLD.default if self._threshold is None else self._threshold

    def get_write_buffer_size(self) -> int:
        """Accepted for compatibility."""
        return self._write_buffer_size


def _set(configuration: Configuration, storage: str, path: str | None) -> None:
    configuration.set(CheckpointingOptions.STORAGE, storage)
    if path:
        for key in CheckpointingOptions.CHECKPOINTS_DIR.older_keys:
            configuration.remove_config(key)
        configuration.set(CheckpointingOptions.CHECKPOINTS_DIR, path)


def checkpoint_storage_of(configuration: Configuration) -> CheckpointStorage | None:
    """Return what a configuration says; None if nothing."""
    storage = configuration.get(CheckpointingOptions.STORAGE)
    path = configuration.get(CheckpointingOptions.CHECKPOINTS_DIR)
    if storage == "jobmanager":
        return JobManagerCheckpointStorage(path or None, configuration.get(CheckpointingOptions.MAX_STATE_SIZE))
    return FileSystemCheckpointStorage(path) if path else None
