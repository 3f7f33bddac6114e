"""Decides whether a failed job is restarted and after how long: none, fixed delay, failure rate, exponential delay.

Pure: the time of a failure in, a delay or None out. A restart is of the whole job from its last checkpoint, or
else from its beginning, where sources start anew and what file sinks had not published is thrown away; in batch it may
be of some regions only (``failover``). Not here: which failures are asked about at all, and what a restart does
(``scheduler``). Source: Flink's RestartBackoffTimeStrategy.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Final, Protocol, final

from engine.core.config import Configuration
from engine.core.errors import ConfigError
from engine.core.options import RestartOptions

__all__ = ["ExponentialDelay", "FailureRate", "FixedDelay", "NoRestart", "RestartStrategy", "restart_strategy"]


class RestartStrategy(Protocol):
    """Remembers the failures of one job."""

    def delay_ms(self, failed_ms: int, *, is_loss: bool = False) -> int | None:
        """Take note of a failure; return how long after it the job is to be restarted, None to give up.

        ``is_loss``: a process of ours was lost, so the next attempt need not fail in the same way.
        """
        ...

    def describe(self) -> str:
        """One phrase for REST."""
        ...


@final
class NoRestart:
    def delay_ms(self, failed_ms: int, *, is_loss: bool = False) -> int | None:
        return None

    def describe(self) -> str:
        return "Restart deactivated."


@final
class FixedDelay:
    def __init__(self, attempts: int, delay_ms: int) -> None:
        self._attempts = attempts
        self._delay_ms = delay_ms
        self._num_failures = 0

    def delay_ms(self, failed_ms: int, *, is_loss: bool = False) -> int | None:
        self._num_failures += 1
        return self._delay_ms if self._num_failures <= self._attempts else None

    def describe(self) -> str:
        return f"Restart with fixed delay ({self._delay_ms} ms). #{self._attempts} restart attempts."


#: Flink's number for "there is no end".
ATTEMPTS_UNLIMITED: Final = 2**31 - 1


@final
class FailureRate:
    """Gives up at one failure more than ``failures_max`` within ``interval_ms``."""

    def __init__(self, failures_max: int, interval_ms: int, delay_ms: int) -> None:
        self._failures_max = failures_max
        self._interval_ms = interval_ms
        self._delay_ms = delay_ms
        #: The last failures, oldest first; more are never needed.
        self._failures: deque[int] = deque(maxlen=failures_max + 1)

    def delay_ms(self, failed_ms: int, *, is_loss: bool = False) -> int | None:
        self._failures.append(failed_ms)
        too_many = len(self._failures) > self._failures_max and failed_ms - self._failures[0] <= self._interval_ms
        return None if too_many else self._delay_ms

    def describe(self) -> str:
        return (
            f"Failure rate restart with maximum of {self._failures_max} failures within interval {self._interval_ms} "
            f"ms and fixed delay {self._delay_ms} ms."
        )


@final
class ExponentialDelay:
    """Waits longer with each failure, up to a limit, until there was none for a while; gives up at more than
    ``attempts_max`` in a row.

    The first loss of a process is not waited for: the delay is there to spare others a failure that repeats itself.
    """

    def __init__(
        self,
        *,
        initial_ms: int,
        max_ms: int,
        multiplier: float,
        jitter_factor: float,
        reset_after_ms: int,
        rng: random.Random,
        attempts_max: int = ATTEMPTS_UNLIMITED,
    ) -> None:
        self._attempts_max = attempts_max
        self._num_in_a_row = 0
        self._initial_ms = initial_ms
        self._max_ms = max_ms
        self._multiplier = multiplier
        self._jitter_factor = jitter_factor
        self._reset_after_ms = reset_after_ms
        self._rng = rng
        self._backoff_ms = float(initial_ms)
        self._last_failed_ms: int | None = None

    def delay_ms(self, failed_ms: int, *, is_loss: bool = False) -> int | None:
        last, self._last_failed_ms = self._last_failed_ms, failed_ms
        # The time that the job waited for its restart is not time that it ran well.
        if last is None or failed_ms - last >= self._reset_after_ms + self._backoff_ms:
            self._backoff_ms = float(self._initial_ms)
            self._num_in_a_row = 1
            if is_loss:
                return 0
        else:
            self._backoff_ms = min(self._max_ms, self._backoff_ms * self._multiplier)
            self._num_in_a_row += 1
        if self._num_in_a_row > self._attempts_max:
            return None
        jitter = self._rng.uniform(-1, 1) * self._jitter_factor * self._backoff_ms
        return round(min(self._max_ms, max(self._initial_ms, self._backoff_ms + jitter)))

    def describe(self) -> str:
        return (
            f"Restart with exponential delay: starting at {self._initial_ms} ms, increasing by {self._multiplier:g}, "
            f"with maximum {self._max_ms} ms. Delay resets after {self._reset_after_ms} ms with jitter "
            f"{self._jitter_factor:g}."
            + (f" At most {self._attempts_max} restarts in a row." * (self._attempts_max < ATTEMPTS_UNLIMITED))
        )


def restart_strategy(
    config: Configuration, rng: random.Random | None = None, *, takes_checkpoints: bool = False
) -> RestartStrategy:
    """Return what a job's effective configuration asks for; a job that takes checkpoints and asks for nothing is
    restarted with exponential delay. Raises ConfigError."""
    kind = config.get(RestartOptions.TYPE)
    if takes_checkpoints and not config.contains(RestartOptions.TYPE):
        kind = "exponential-delay"
    match kind:
        case "fixed-delay":
            return FixedDelay(config.get(RestartOptions.FIXED_ATTEMPTS), config.get(RestartOptions.FIXED_DELAY))
        case "failure-rate":
            return FailureRate(
                config.get(RestartOptions.RATE_MAX),
                config.get(RestartOptions.RATE_INTERVAL),
                config.get(RestartOptions.RATE_DELAY),
            )
        case "exponential-delay":
            return _exponential_delay(config, rng or random.Random())
    return NoRestart()


def _exponential_delay(config: Configuration, rng: random.Random) -> ExponentialDelay:
    initial_ms, max_ms = config.get(RestartOptions.INITIAL_BACKOFF), config.get(RestartOptions.MAX_BACKOFF)
    if initial_ms > max_ms:
        raise ConfigError(
            f"{RestartOptions.MAX_BACKOFF.key} is {max_ms} ms; expected at least "
            f"{RestartOptions.INITIAL_BACKOFF.key}, which is {initial_ms} ms."
        )
    return ExponentialDelay(
        initial_ms=initial_ms,
        max_ms=max_ms,
        multiplier=config.get(RestartOptions.BACKOFF_MULTIPLIER),
        jitter_factor=config.get(RestartOptions.JITTER_FACTOR),
        reset_after_ms=config.get(RestartOptions.RESET_THRESHOLD),
        rng=rng,
        attempts_max=config.get(RestartOptions.BACKOFF_ATTEMPTS),
    )
