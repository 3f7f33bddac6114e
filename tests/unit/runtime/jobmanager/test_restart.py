"""When a failed job is restarted, and when it is given up."""

from __future__ import annotations

import itertools
import random

import pytest

from engine.core.config import Configuration
from engine.core.errors import ConfigError
from engine.runtime.jobmanager.restart import ExponentialDelay, FailureRate, FixedDelay, NoRestart, restart_strategy


def delays(strategy, times):
    return [strategy.delay_ms(time) for time in times]


def test_without_a_strategy_a_job_is_never_restarted() -> None:
    assert delays(NoRestart(), range(3)) == [None] * 3


@pytest.mark.parametrize("attempts", range(4))
def test_a_fixed_delay_allows_so_many_restarts_however_far_apart(attempts: int) -> None:
    assert delays(FixedDelay(attempts, 7), range(0, 6 * 10**9, 10**9)) == [7] * attempts + [None] * (6 - attempts)


@pytest.mark.parametrize("failures_max", [1, 2, 3])
def test_a_failure_rate_gives_up_exactly_when_one_failure_too_many_is_in_the_interval(failures_max: int) -> None:
    interval = 10
    for gaps in itertools.product([0, 3, 5, 10, 11], repeat=5):
        times = list(itertools.accumulate(gaps))
        expected = []
        for i, now in enumerate(times):
            recent = [time for time in times[: i + 1] if now - time <= interval]
            expected.append(None if len(recent) > failures_max else 5)
        assert delays(FailureRate(failures_max, interval, 5), times) == expected, times


def exponential(jitter: float = 0.0, seed: int = 0, reset_after_ms: int = 1000) -> ExponentialDelay:
    return ExponentialDelay(
        initial_ms=10,
        max_ms=100,
        multiplier=2,
        jitter_factor=jitter,
        reset_after_ms=reset_after_ms,
        rng=random.Random(seed),
    )


def test_an_exponential_delay_grows_to_its_limit_and_never_gives_up() -> None:
    assert delays(exponential(), [0] * 7) == [10, 20, 40, 80, 100, 100, 100]


def test_an_exponential_delay_gives_up_after_so_many_restarts_in_a_row_if_it_is_told_to() -> None:
    key = "restart-strategy.exponential-delay.attempts-before-reset-backoff"
    config = {"restart-strategy.type": "exponential-delay", key: "2"}
    config["restart-strategy.exponential-delay.jitter-factor"] = "0"
    config["restart-strategy.exponential-delay.reset-backoff-threshold"] = "10 s"
    strategy = restart_strategy(Configuration(config))
    assert "At most 2 restarts in a row." in strategy.describe()
    assert [strategy.delay_ms(at) for at in (0, 1)] == [1000, 1500]
    assert [strategy.delay_ms(at) for at in (20_000, 20_001, 20_002)] == [1000, 1500, None]
    assert restart_strategy(Configuration(config).set(key, "1")).delay_ms(0, is_loss=True) == 0


def test_the_first_loss_of_a_process_is_not_waited_for_but_counts() -> None:
    strategy = exponential()
    assert [strategy.delay_ms(0, is_loss=True) for _ in range(3)] == [0, 20, 40]
    assert strategy.delay_ms(5000, is_loss=True) == 0
    assert exponential().delay_ms(0, is_loss=False) == 10
    assert FixedDelay(1, 7).delay_ms(0, is_loss=True) == 7


def test_a_quiet_time_resets_the_delay_and_waiting_for_the_restart_is_not_quiet_time() -> None:
    assert delays(exponential(), [0, 1009]) == [10, 20]
    assert delays(exponential(), [0, 1010]) == [10, 10]
    assert delays(exponential(), [0, 1, 1020, 2029]) == [10, 20, 40, 80]
    assert delays(exponential(), [0, 1, 1021, 1022]) == [10, 20, 10, 20]


def test_jitter_is_within_its_part_of_the_delay_and_comes_from_the_given_random() -> None:
    for seed in range(300):
        rng = random.Random(seed)
        times = list(itertools.accumulate(rng.choice([0, 1, 500, 1500]) for _ in range(20)))
        plain, jittered = delays(exponential(), times), delays(exponential(0.25, seed), times)
        assert all(a is not None and b is not None for a, b in zip(plain, jittered, strict=True))
        assert all(10 <= b <= 100 and 0.75 * a - 1 <= b <= 1.25 * a + 1 for a, b in zip(plain, jittered, strict=True))
        assert jittered == delays(exponential(0.25, seed), times)
    assert len({exponential(0.25, seed).delay_ms(0) for seed in range(20)}) > 1


@pytest.mark.parametrize("name", ["none", "off", "disable", "OFF", ""])
def test_restarts_are_switched_off_by_several_names(name: str) -> None:
    assert isinstance(restart_strategy(Configuration({"restart-strategy.type": name})), NoRestart)


@pytest.mark.parametrize("key", ["restart-strategy", "restart-strategy.type"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [("fixed-delay", FixedDelay), ("failureRate", FailureRate), ("exponential-delay", ExponentialDelay)],
)
def test_a_strategy_is_chosen_by_its_key_and_the_older_one(key: str, name: str, kind: type) -> None:
    assert isinstance(restart_strategy(Configuration({key: name})), kind)


def test_the_default_is_no_restart_as_without_checkpoints_in_flink() -> None:
    assert isinstance(restart_strategy(Configuration()), NoRestart)


def test_the_keys_of_each_strategy_are_read() -> None:
    prefix = "restart-strategy."
    config = Configuration(
        {
            prefix + "fixed-delay.attempts": "3",
            prefix + "fixed-delay.delay": "2 s",
            prefix + "failure-rate.max-failures-per-interval": "4",
            prefix + "failure-rate.failure-rate-interval": "5 min",
            prefix + "failure-rate.delay": "6 s",
            prefix + "exponential-delay.initial-backoff": "7 s",
            prefix + "exponential-delay.max-backoff": "8 s",
            prefix + "exponential-delay.backoff-multiplier": "9",
            prefix + "exponential-delay.jitter-factor": "0.5",
            prefix + "exponential-delay.reset-backoff-threshold": "10 min",
        }
    )
    texts = {
        name: restart_strategy(Configuration(config).set(prefix + "type", name)).describe()
        for name in ("none", "fixed-delay", "failure-rate", "exponential-delay")
    }
    assert texts == {
        "none": "Restart deactivated.",
        "fixed-delay": "Restart with fixed delay (2000 ms). #3 restart attempts.",
        "failure-rate": "Failure rate restart with maximum of 4 failures within interval 300000 ms and fixed delay "
        "6000 ms.",
        "exponential-delay": "Restart with exponential delay: starting at 7000 ms, increasing by 9, with maximum 8000 "
        "ms. Delay resets after 600000 ms with jitter 0.5.",
    }


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"type": "sometimes"}, "expected none.*fixed-delay, failure-rate or exponential-delay"),
        ({"type": "fixed-delay", "fixed-delay.attempts": "-1"}, "fixed-delay.attempts.*at least 0"),
        ({"type": "failure-rate", "failure-rate.max-failures-per-interval": "0"}, "at least 1"),
        ({"type": "exponential-delay", "exponential-delay.jitter-factor": "2"}, "from 0 to 1"),
        ({"type": "exponential-delay", "exponential-delay.backoff-multiplier": "nan"}, "at least 1"),
        ({"type": "exponential-delay", "exponential-delay.max-backoff": "10 ms"}, "max-backoff is 10 ms.*1000 ms"),
    ],
)
def test_a_value_that_cannot_be_used_is_an_error_that_names_it(values: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        restart_strategy(Configuration({f"restart-strategy.{key}": value for key, value in values.items()}))
