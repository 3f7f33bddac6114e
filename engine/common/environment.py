"""What the environments of both APIs have in common: where a program runs, and its settings.

Not here: sources, sinks and execution (``datastream/environment``, ``dataset/environment``).
"""

from __future__ import annotations

from typing import Any, Self

from engine.client.context import ClientContext
from engine.client.executors import prepare
from engine.common.execution_config import ExecutionConfig
from engine.common.restart_strategy import RestartStrategyConfiguration
from engine.core.config import Configuration
from engine.core.errors import ConfigError
from engine.core.options import JobOptions

__all__ = ["Environment"]


class Environment:
    """Holds the configuration of one program and the files that travel with it."""

    def __init__(self, configuration: Configuration | None = None) -> None:
        # Later wins: cluster files < command line (both by the context) < the program itself.
        self._config = Configuration(ClientContext.current().configuration)
        if configuration is not None:
            self._config.add_all(configuration)
        self._cached_files: list[tuple[str, str]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(f"cannot pickle '{type(self).__name__}' object")

    @classmethod
    def get_execution_environment(cls, configuration: Configuration | None = None) -> Self:
        """Return an environment for where the program runs: the cluster of ``flink run``, else this process."""
        env = cls(configuration)
        prepare(env._config)
        return env

    @classmethod
    def create_local_environment(
        cls, parallelism: int | None = None, configuration: Configuration | None = None
    ) -> Self:
        """Return an environment that runs in this process, whatever the context says."""
        env = cls(configuration)
        env._config.set(JobOptions.TARGET, "local")
        prepare(env._config)
        return env if parallelism is None else env.set_parallelism(parallelism)

    @classmethod
    def create_remote_environment(
        cls, host: str, port: int, *, parallelism: int | None = None, configuration: Configuration | None = None
    ) -> Self:
        """Return an environment that submits to the JobManager whose REST port is ``host:port``."""
        env = cls(configuration)
        env._config.set(JobOptions.TARGET, "remote").set("rest.address", host).set("rest.port", port)
        return env if parallelism is None else env.set_parallelism(parallelism)

    # --- settings ------------------------------------------------------------------------------------------------

    def get_config(self) -> ExecutionConfig:
        return ExecutionConfig(self._config)

    def configure(self, configuration: Configuration) -> None:
        self._config.add_all(configuration)

    def set_parallelism(self, parallelism: int) -> Self:
        if not isinstance(parallelism, int) or parallelism < 1:
            raise ConfigError(f"set_parallelism({parallelism!r}): expected a whole number of at least 1.")
        self._config.set(JobOptions.PARALLELISM, parallelism)
        return self

    def get_parallelism(self) -> int:
        return self._config.get(JobOptions.PARALLELISM)

    def set_default_local_parallelism(self, parallelism: int) -> None:
        self.set_parallelism(parallelism)

    def get_default_local_parallelism(self) -> int:
        return self.get_parallelism()

    def set_restart_strategy(self, restart_strategy_configuration: RestartStrategyConfiguration) -> None:
        """Say what follows a failure of the job, e.g. ``RestartStrategies.fixed_delay_restart(3, 10_000)``."""
        self.get_config().set_restart_strategy(restart_strategy_configuration)

    def get_restart_strategy(self) -> RestartStrategyConfiguration:
        return self.get_config().get_restart_strategy()

    # --- files that travel with the job --------------------------------------------------------------------------

    def register_cached_file(self, file_path: str, name: str, executable: bool = False) -> None:
        """Ship a file to all tasks; ``RuntimeContext.get_cached_file(name)`` gives its local path there."""
        self._cached_files.append((name, file_path))

    def add_python_file(self, file_path: str) -> None:
        """Ship a .py file, package folder, zip or wheel with the job; user functions can import it."""
        self._append(JobOptions.PYTHON_FILES.key, file_path)

    def set_python_requirements(self, requirements_file_path: str, requirements_cache_dir: str | None = None) -> None:
        cached = f"#{requirements_cache_dir}" if requirements_cache_dir else ""
        self._config.set(JobOptions.PYTHON_REQUIREMENTS, requirements_file_path + cached)

    def add_python_archive(self, archive_path: str, target_dir: str | None = None) -> None:
        self._append(JobOptions.PYTHON_ARCHIVES.key, archive_path + (f"#{target_dir}" if target_dir else ""))

    def set_python_executable(self, python_exec: str) -> None:
        self._config.set(JobOptions.PYTHON_EXECUTABLE, python_exec)

    def _append(self, key: str, value: str) -> None:
        known = self._config.get_string(key)
        self._config.set(key, f"{known},{value}" if known else value)
