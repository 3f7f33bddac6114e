"""PyFlink's factories of restart strategies are configuration keys by another name."""

from __future__ import annotations

from datetime import timedelta

import pytest

from engine.common import Configuration, RestartStrategies
from engine.core.errors import ConfigError
from engine.core.option_warnings import key_warnings
from engine.dataset.environment import ExecutionEnvironment
from engine.datastream import StreamExecutionEnvironment
from engine.runtime.jobmanager.restart import restart_strategy

STRATEGIES = [
    RestartStrategies.no_restart(),
    RestartStrategies.fixed_delay_restart(3, 500),
    RestartStrategies.failure_rate_restart(2, timedelta(minutes=5), timedelta(seconds=1)),
    RestartStrategies.exponential_delay_restart(100, 1000, 2.5, timedelta(hours=1), 0.2),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: type(strategy).__name__)
def test_what_is_set_is_read_back_decides_and_has_an_effect(strategy):
    env = StreamExecutionEnvironment(Configuration({"restart-strategy": "fixed-delay"}))
    env.set_restart_strategy(strategy)
    assert env.get_restart_strategy() == strategy
    assert hash(env.get_restart_strategy()) == hash(strategy)
    values = env._config.to_dict()
    assert "restart-strategy" not in values
    assert restart_strategy(env._config).describe() == strategy.get_description()
    assert key_warnings(key for key in values if key.startswith("restart")) == []
    assert all(strategy != other for other in STRATEGIES if other is not strategy)


def test_the_fallback_leaves_the_decision_to_the_cluster():
    env = ExecutionEnvironment(Configuration())
    config = env.get_config()
    assert config.get_restart_strategy() == RestartStrategies.fall_back_restart()
    assert config.set_restart_strategy(STRATEGIES[1]) is config
    config.set_restart_strategy(RestartStrategies.fall_back_restart())
    assert not [key for key in env._config.key_set() if key.startswith("restart")]


def test_a_strategy_tells_what_it_was_made_of():
    fixed, rate = STRATEGIES[1:3]
    assert (fixed.get_restart_attempts(), fixed.get_delay_between_attempts_interval()) == (3, timedelta(seconds=0.5))
    assert (rate.get_max_failure_rate(), rate.get_failure_interval()) == (2, timedelta(minutes=5))
    assert rate.get_delay_between_attempts_interval() == timedelta(seconds=1)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: RestartStrategies.fixed_delay_restart(-1, 1), ConfigError, "attempts is '-1'; expected .*at least 0"),
        (lambda: RestartStrategies.fixed_delay_restart(1, -1), ConfigError, "no negative duration"),
        (lambda: RestartStrategies.fixed_delay_restart(1, "1 s"), TypeError, "milliseconds as an int"),
        (lambda: RestartStrategies.failure_rate_restart(0, 1, 1), ConfigError, "at least 1"),
        (lambda: RestartStrategies.failure_rate_restart(1, 1.5, 1), TypeError, "failure_interval is 1.5"),
    ],
)
def test_a_strategy_that_cannot_be_used_is_refused_where_it_is_made(make, error, words):
    with pytest.raises(error, match=words):
        make()
