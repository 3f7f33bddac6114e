"""RestartStrategies: PyFlink's factories for what follows a failure of a job; each is a set of configuration keys.

Not to be confused with ``runtime/jobmanager/restart``, which decides while the job runs.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from engine.core.config import Configuration
from engine.core.errors import ConfigError
from engine.core.options import RestartOptions

__all__ = ["RestartStrategies", "RestartStrategyConfiguration"]

_KEYS: Final = ("restart-strategy", "restart-strategy.")


class RestartStrategyConfiguration:
    """What is to happen after a failure. Compares by value."""

    def __init__(self, description: str, values: dict[str, Any]) -> None:
        self._description = description
        self._configuration = Configuration(values)
        for option in vars(RestartOptions).values():
            if getattr(option, "key", None) in values:
                self._configuration.get(option)  # a bad value is told here, where it was given

    def get_description(self) -> str:
        return self._description

    def write_to(self, configuration: Configuration) -> None:
        """Replace what ``configuration`` says about restarts."""
        for key in configuration.key_set():
            if key == _KEYS[0] or key.startswith(_KEYS[1]):
                configuration.remove_config(key)
        configuration.add_all(self._configuration)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._configuration == other._configuration  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((type(self), self._configuration))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._description!r})"


def _milliseconds(name: str, interval: timedelta | int) -> int:
    if isinstance(interval, bool) or not isinstance(interval, timedelta | int):
        raise TypeError(f"{name} is {interval!r}; expected milliseconds as an int, or a datetime.timedelta.")
    milliseconds = interval if isinstance(interval, int) else interval // timedelta(milliseconds=1)
    if milliseconds < 0:
        raise ConfigError(f"{name} is {interval!r}; expected no negative duration.")
    return milliseconds


class RestartStrategies:
    """Make one of these and give it to ``env.set_restart_strategy``."""

    class NoRestartStrategyConfiguration(RestartStrategyConfiguration):
        def __init__(self) -> None:
            super().__init__("Restart deactivated.", {RestartOptions.TYPE.key: "none"})

    class FixedDelayRestartStrategyConfiguration(RestartStrategyConfiguration):
        def __init__(self, restart_attempts: int, delay_between_attempts_interval: timedelta | int) -> None:
            delay_ms = _milliseconds("delay_between_attempts_interval", delay_between_attempts_interval)
            self._restart_attempts, self._delay_ms = restart_attempts, delay_ms
            super().__init__(
                f"Restart with fixed delay ({delay_ms} ms). #{restart_attempts} restart attempts.",
                {
                    RestartOptions.TYPE.key: "fixed-delay",
                    RestartOptions.FIXED_ATTEMPTS.key: restart_attempts,
                    RestartOptions.FIXED_DELAY.key: f"{delay_ms} ms",
                },
            )

        def get_restart_attempts(self) -> int:
            return self._restart_attempts

        def get_delay_between_attempts_interval(self) -> timedelta:
            return timedelta(milliseconds=self._delay_ms)

    class FailureRateRestartStrategyConfiguration(RestartStrategyConfiguration):
        def __init__(
            self,
            max_failure_rate: int,
            failure_interval: timedelta | int,
            delay_between_attempts_interval: timedelta | int,
        ) -> None:
            interval_ms = _milliseconds("failure_interval", failure_interval)
            delay_ms = _milliseconds("delay_between_attempts_interval", delay_between_attempts_interval)
            self._max_failure_rate, self._interval_ms, self._delay_ms = max_failure_rate, interval_ms, delay_ms
            super().__init__(
                f"Failure rate restart with maximum of {max_failure_rate} failures within interval {interval_ms} ms "
                f"and fixed delay {delay_ms} ms.",
                {
                    RestartOptions.TYPE.key: "failure-rate",
                    RestartOptions.RATE_MAX.key: max_failure_rate,
                    RestartOptions.RATE_INTERVAL.key: f"{interval_ms} ms",
                    RestartOptions.RATE_DELAY.key: f"{delay_ms} ms",
                },
            )

        def get_max_failure_rate(self) -> int:
            return self._max_failure_rate

        def get_failure_interval(self) -> timedelta:
            return timedelta(milliseconds=self._interval_ms)

        def get_delay_between_attempts_interval(self) -> timedelta:
            return timedelta(milliseconds=self._delay_ms)

    class ExponentialDelayRestartStrategyConfiguration(RestartStrategyConfiguration):
        def __init__(
            self,
            initial_backoff: timedelta | int,
            max_backoff: timedelta | int,
            backoff_multiplier: float,
            reset_backoff_threshold: timedelta | int,
            jitter_factor: float,
        ) -> None:
            initial_ms = _milliseconds("initial_backoff", initial_backoff)
            max_ms = _milliseconds("max_backoff", max_backoff)
            reset_ms = _milliseconds("reset_backoff_threshold", reset_backoff_threshold)
            super().__init__(
                f"Restart with exponential delay: starting at {initial_ms} ms, increasing by {backoff_multiplier}, "
                f"with maximum {max_ms} ms. Delay resets after {reset_ms} ms with jitter {jitter_factor}.",
                {
                    RestartOptions.TYPE.key: "exponential-delay",
                    RestartOptions.INITIAL_BACKOFF.key: f"{initial_ms} ms",
                    RestartOptions.MAX_BACKOFF.key: f"{max_ms} ms",
                    RestartOptions.BACKOFF_MULTIPLIER.key: backoff_multiplier,
                    RestartOptions.RESET_THRESHOLD.key: f"{reset_ms} ms",
                    RestartOptions.JITTER_FACTOR.key: jitter_factor,
                },
            )

    class FallbackRestartStrategyConfiguration(RestartStrategyConfiguration):
        """As the cluster's configuration says."""

        def __init__(self) -> None:
            super().__init__("Cluster level default restart strategy", {})

    @staticmethod
    def no_restart() -> RestartStrategyConfiguration:
        return RestartStrategies.NoRestartStrategyConfiguration()

    @staticmethod
    def fall_back_restart() -> RestartStrategyConfiguration:
        return RestartStrategies.FallbackRestartStrategyConfiguration()

    @staticmethod
    def fixed_delay_restart(
        restart_attempts: int, delay_between_attempts: timedelta | int
    ) -> RestartStrategies.FixedDelayRestartStrategyConfiguration:
        """Restart up to ``restart_attempts`` times, each ``delay_between_attempts`` (milliseconds or timedelta) after
        the failure."""
        return RestartStrategies.FixedDelayRestartStrategyConfiguration(restart_attempts, delay_between_attempts)

    @staticmethod
    def failure_rate_restart(
        failure_rate: int, failure_interval: timedelta | int, delay_interval: timedelta | int
    ) -> RestartStrategies.FailureRateRestartStrategyConfiguration:
        """Restart unless there were more than ``failure_rate`` failures within ``failure_interval``."""
        return RestartStrategies.FailureRateRestartStrategyConfiguration(failure_rate, failure_interval, delay_interval)

    @staticmethod
    def exponential_delay_restart(
        initial_backoff: timedelta | int,
        max_backoff: timedelta | int,
        backoff_multiplier: float,
        reset_backoff_threshold: timedelta | int,
        jitter_factor: float,
    ) -> RestartStrategies.ExponentialDelayRestartStrategyConfiguration:
        """Restart for ever, after a time that grows with each failure. Flink has this in Java only."""
        return RestartStrategies.ExponentialDelayRestartStrategyConfiguration(
            initial_backoff, max_backoff, backoff_multiplier, reset_backoff_threshold, jitter_factor
        )

    @staticmethod
    def read_from(configuration: Configuration) -> RestartStrategyConfiguration:
        """Return what ``configuration`` says, the fallback if it says nothing."""
        get = configuration.get
        if not configuration.contains(RestartOptions.TYPE):
            return RestartStrategies.fall_back_restart()
        match get(RestartOptions.TYPE):
            case "fixed-delay":
                return RestartStrategies.fixed_delay_restart(
                    get(RestartOptions.FIXED_ATTEMPTS), get(RestartOptions.FIXED_DELAY)
                )
            case "failure-rate":
                return RestartStrategies.failure_rate_restart(
                    get(RestartOptions.RATE_MAX), get(RestartOptions.RATE_INTERVAL), get(RestartOptions.RATE_DELAY)
                )
            case "exponential-delay":
                return RestartStrategies.exponential_delay_restart(
                    get(RestartOptions.INITIAL_BACKOFF),
                    get(RestartOptions.MAX_BACKOFF),
                    get(RestartOptions.BACKOFF_MULTIPLIER),
                    get(RestartOptions.RESET_THRESHOLD),
                    get(RestartOptions.JITTER_FACTOR),
                )
        return RestartStrategies.no_restart()
