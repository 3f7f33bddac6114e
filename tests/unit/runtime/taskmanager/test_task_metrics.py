"""Times, user metrics, accumulators and memory of a task."""

from __future__ import annotations

import pytest

from engine.core import user_code
from engine.core.config import Configuration
from engine.core.errors import UserCodeError
from engine.core.metrics import AverageAccumulator, IntCounter
from engine.operators.functions import RuntimeContext
from engine.runtime.taskmanager.memory import SlotMemory
from engine.runtime.taskmanager.task_metrics import TaskClock, merged_accumulators, user_metrics


def context_with(name: str, value: object) -> RuntimeContext:
    context = RuntimeContext(task_name="t")
    context.add_accumulator(name, value)
    return context


def counted(n: int) -> IntCounter:
    counter = IntCounter()
    counter.add(n)
    return counter


def test_time_is_divided_by_what_the_task_waits_for():
    now_ms = [100]
    clock = TaskClock(lambda: now_ms[0] * 1_000_000)
    assert clock.milliseconds() == (0, 0, 0)
    clock.start()
    clock.begin(110_000_000)  # idle before
    clock.end(140_000_000)  # busy
    now_ms[0] = 145  # nobody has said yet why it waits: idle
    clock.wait(backpressured=True)
    now_ms[0] = 165
    clock.wait(backpressured=True)
    now_ms[0] = 170
    assert clock.milliseconds() == (30, 15, 25)


def test_accumulators_of_a_chain_are_merged_by_name():
    contexts = [("a", context_with("n", counted(2))), ("b", context_with("n", counted(3)))]
    assert user_code.loads(merged_accumulators(contexts))["n"].get_local_value() == 5
    assert merged_accumulators([]) == b""


def test_accumulators_of_two_kinds_under_one_name_are_an_error():
    contexts = [("a", context_with("n", counted(2))), ("b", context_with("n", AverageAccumulator()))]
    with pytest.raises(UserCodeError, match="'n' is a AverageAccumulator in operator 'b' but a IntCounter"):
        merged_accumulators(contexts)


def test_metrics_are_named_by_operator_and_a_broken_gauge_is_left_out():
    good, bad = RuntimeContext(task_name="t"), RuntimeContext(task_name="t")
    good.get_metrics_group().add_group("g").counter("n").inc(4)
    good.get_metrics_group().gauge("odd", lambda: object)
    bad.get_metrics_group().gauge("x", lambda: 1 / 0)
    found = user_metrics([("Map", good), ("Filter", bad)])
    assert found == {"Map.g.n": 4, "Map.odd": str(object)}


def test_memory_is_divided_by_configuration():
    config = Configuration({"taskmanager.memory.managed.fraction": "0.5", "taskmanager.memory.segment-size": "64kb"})
    memory = SlotMemory.divide(100 << 20, 2, config)
    assert (memory.managed_bytes, memory.segment_bytes) == (50 << 20, 64 << 10)
    assert memory.operator_bytes(0) == memory.operator_bytes(1) == 25 << 20
    assert memory.operator_bytes(5) == 5 << 20
    assert memory.operator_bytes(1000) == 4 << 20
    fixed = SlotMemory.divide(100 << 20, 2, Configuration({"taskmanager.memory.managed.size": "40m"}))
    assert fixed.managed_bytes == 20 << 20
