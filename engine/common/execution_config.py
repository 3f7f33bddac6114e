"""ExecutionConfig: the environment's settings under PyFlink's names; a view over a Configuration."""

from __future__ import annotations

from engine.common.restart_strategy import RestartStrategies, RestartStrategyConfiguration
from engine.core.config import Configuration
from engine.core.errors import ConfigError
from engine.core.options import JobOptions

__all__ = ["ExecutionConfig"]

#: Global job parameters live in the configuration under this prefix, so that they travel with the job.
PARAMETERS_PREFIX = "$internal.job-parameters."


class ExecutionConfig:
    """Reads and writes the environment's configuration. Setters return ``self``."""

    PARALLELISM_DEFAULT = -1

    def __init__(self, configuration: Configuration) -> None:
        self._config = configuration

    def get_parallelism(self) -> int:
        return self._config.get(JobOptions.PARALLELISM)

    def set_parallelism(self, parallelism: int) -> ExecutionConfig:
        self._config.set(JobOptions.PARALLELISM, parallelism)
        return self

    def get_max_parallelism(self) -> int:
        return self._config.get(JobOptions.MAX_PARALLELISM)

    def set_max_parallelism(self, max_parallelism: int) -> ExecutionConfig:
        self._config.set(JobOptions.MAX_PARALLELISM, max_parallelism)
        return self

    def set_auto_watermark_interval(self, interval: int) -> ExecutionConfig:
        self._config.set(JobOptions.AUTO_WATERMARK_INTERVAL, interval)
        return self

    def get_auto_watermark_interval(self) -> int:
        return self._config.get(JobOptions.AUTO_WATERMARK_INTERVAL)

    def enable_object_reuse(self) -> ExecutionConfig:
        """Let several consumers of one stream share its records; no function may change them then."""
        self._config.set(JobOptions.OBJECT_REUSE, True)
        return self

    def disable_object_reuse(self) -> ExecutionConfig:
        self._config.set(JobOptions.OBJECT_REUSE, False)
        return self

    def is_object_reuse_enabled(self) -> bool:
        return self._config.get(JobOptions.OBJECT_REUSE)

    def set_restart_strategy(self, restart_strategy_configuration: RestartStrategyConfiguration) -> ExecutionConfig:
        """Say what follows a failure; the same as setting the ``restart-strategy.*`` keys."""
        if not isinstance(restart_strategy_configuration, RestartStrategyConfiguration):
            raise ConfigError(
                f"set_restart_strategy({restart_strategy_configuration!r:.80}): expected one of RestartStrategies, "
                "e.g. RestartStrategies.fixed_delay_restart(3, 10_000)."
            )
        restart_strategy_configuration.write_to(self._config)
        return self

    def get_restart_strategy(self) -> RestartStrategyConfiguration:
        return RestartStrategies.read_from(self._config)

    def set_global_job_parameters(self, global_job_parameters_dict: dict[str, object]) -> ExecutionConfig:
        """Make parameters visible to all functions (``RuntimeContext.get_job_parameter``) and in the dashboard."""
        for key in [key for key in self._config.key_set() if key.startswith(PARAMETERS_PREFIX)]:
            self._config.remove_config(key)
        to_map = getattr(global_job_parameters_dict, "to_map", None)
        values = to_map() if to_map is not None else global_job_parameters_dict
        for key, value in values.items():
            self._config.set(PARAMETERS_PREFIX + str(key), value)
        return self

    def get_global_job_parameters(self) -> dict[str, str]:
        start = len(PARAMETERS_PREFIX)
        every = self._config.to_dict().items()
        return {key[start:]: value for key, value in every if key.startswith(PARAMETERS_PREFIX)}
