"""PyFlink's state backends: where keyed state lives while a job runs. Each is a set of configuration keys.

Not to be confused with ``engine/state``, which keeps the state.
"""

from __future__ import annotations

import abc
import enum
from typing import final

from engine.core.config import Configuration
from engine.core.errors import ConfigError
from engine.core.options import CheckpointingOptions

__all__ = ["EmbeddedRocksDBStateBackend", "HashMapStateBackend", "PredefinedOptions", "StateBackend"]

_LOCAL_DIR = "state.backend.rocksdb.localdir"
_PREDEFINED = "state.backend.rocksdb.predefined-options"
_OPTIONS_FACTORY = "state.backend.rocksdb.options-factory"
_TRANSFER_THREADS = "state.backend.rocksdb.checkpoint.transfer.thread.num"
_TRANSFER_THREADS_DEFAULT = 4


class StateBackend(abc.ABC):
    @abc.abstractmethod
    def write_to(self, configuration: Configuration) -> None:
        """Say it in configuration keys."""


@final
class HashMapStateBackend(StateBackend):
    """State in memory, as Python objects: fast, and as large as the slot's memory."""

    def write_to(self, configuration: Configuration) -> None:
        _replace(configuration, "hashmap")


class PredefinedOptions(enum.Enum):
    DEFAULT = 0
    SPINNING_DISK_OPTIMIZED = 1
    SPINNING_DISK_OPTIMIZED_HIGH_MEM = 2
    FLASH_SSD_OPTIMIZED = 3


@final
class EmbeddedRocksDBStateBackend(StateBackend):
    """State on the local disk of each TaskManager: larger than memory. Without ``enable_incremental_checkpointing`` the
    configuration says whether checkpoints are incremental."""

    def __init__(self, enable_incremental_checkpointing: bool | None = None) -> None:
        self._incremental = enable_incremental_checkpointing
        self._paths: list[str] = []
        self._predefined: PredefinedOptions | None = None
        self._factory: str | None = None
        self._threads = _TRANSFER_THREADS_DEFAULT

    def write_to(self, configuration: Configuration) -> None:
        _replace(configuration, "rocksdb")
        if self._incremental is not None:
            configuration.set(CheckpointingOptions.INCREMENTAL, self._incremental)
        if self._paths:
            configuration.set(_LOCAL_DIR, ",".join(self._paths))
        if self._predefined is not None:
            configuration.set(_PREDEFINED, self._predefined.name)
        if self._factory is not None:
            configuration.set(_OPTIONS_FACTORY, self._factory)
        if self._threads != _TRANSFER_THREADS_DEFAULT:
            configuration.set(_TRANSFER_THREADS, self._threads)

    def is_incremental_checkpoints_enabled(self) -> bool:
        return bool(self._incremental)

    def set_db_storage_paths(self, *paths: str) -> None:
        """Set the local folders for the database; default: the TaskManager's temporary ones."""
        self._paths = list(paths)

    def get_db_storage_paths(self) -> list[str]:
        return list(self._paths)

    def set_predefined_options(self, options: PredefinedOptions) -> None:
        self._predefined = options

    def get_predefined_options(self) -> PredefinedOptions:
        return self._predefined or PredefinedOptions.DEFAULT

    def set_options(self, options_factory_class_name: str) -> None:
        self._factory = options_factory_class_name

    def get_options(self) -> str | None:
        return self._factory

    def set_number_of_transfer_threads(self, number_of_transfering_threads: int) -> None:
        if number_of_transfering_threads < 1:
            raise ConfigError(
                f"set_number_of_transfer_threads({number_of_transfering_threads!r}): expected a number of at least 1."
            )
        self._threads = number_of_transfering_threads

    def get_number_of_transfer_threads(self) -> int:
        return self._threads


def _replace(configuration: Configuration, name: str) -> None:
    for key in CheckpointingOptions.BACKEND.older_keys:
        configuration.remove_config(key)
    configuration.set(CheckpointingOptions.BACKEND, name)


def state_backend_of(configuration: Configuration) -> StateBackend:
    """Return what a configuration says."""
    if configuration.get(CheckpointingOptions.BACKEND) == "hashmap":
        return HashMapStateBackend()
    is_told = configuration.contains(CheckpointingOptions.INCREMENTAL)
    backend = EmbeddedRocksDBStateBackend(configuration.get(CheckpointingOptions.INCREMENTAL) if is_told else None)
    paths = configuration.get_string(_LOCAL_DIR)
    if paths:
        backend.set_db_storage_paths(*paths.split(","))
    return backend
