"""Which tasks of a slot let their consumers go first."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from engine.runtime.taskmanager.step_order import HELD_MAX, StepOrder


@dataclass(eq=False)
class Task:
    """Reads from and writes to partitions of these names."""

    reads: str = ""
    writes: str = ""
    is_behind: bool = False
    deployment: SimpleNamespace = field(init=False)

    def __post_init__(self):
        self.deployment = SimpleNamespace(
            partitions=[SimpleNamespace(partition_id=name) for name in self.writes],
            gates=[SimpleNamespace(channels=[SimpleNamespace(partition_id=name) for name in self.reads])],
        )

    def is_runnable(self):
        return self.is_behind


def arranged(order, *tasks):
    placed = []
    for task in tasks:
        placed = order.arrange(placed, task)
    return placed


def test_a_producer_waits_while_its_consumer_is_behind_but_not_forever():
    order, source, consumer = StepOrder(), Task(writes="a"), Task(reads="a")
    arranged(order, source, consumer)
    assert not order.holds(source)
    consumer.is_behind = True
    assert [order.holds(source) for _ in range(2 * HELD_MAX + 2)] == ([True] * HELD_MAX + [False]) * 2
    assert not order.holds(consumer)  # it has none itself


def test_the_count_begins_anew_when_the_consumer_has_caught_up():
    order, source, consumer = StepOrder(), Task(writes="a"), Task(reads="a", is_behind=True)
    arranged(order, source, consumer)
    assert order.holds(source)
    consumer.is_behind = False
    assert not order.holds(source)
    consumer.is_behind = True
    assert [order.holds(source) for _ in range(HELD_MAX + 1)] == [True] * HELD_MAX + [False]


def test_only_consumers_of_the_task_itself_count():
    order = StepOrder()
    one, two = Task(writes="a"), Task(writes="b")
    busy = Task(reads="b", writes="c", is_behind=True)
    arranged(order, one, two, Task(reads="a"), busy, Task(reads="c"))
    assert not order.holds(one)  # another pipeline in the same slot has much to do
    assert order.holds(two)
    assert not order.holds(busy)


def test_consumers_that_have_ended_are_forgotten():
    order, source, consumer = StepOrder(), Task(writes="a"), Task(reads="a", is_behind=True)
    arranged(order, source, consumer)
    order.forget(consumer)
    assert not order.holds(source)


@pytest.mark.parametrize("late", range(3))
def test_tasks_are_in_topological_order_whichever_comes_late(late):
    tasks = [Task(writes="a"), Task(reads="a", writes="b"), Task(reads="b")]
    deployed = [task for index, task in enumerate(tasks) if index != late]
    assert arranged(StepOrder(), *deployed, tasks[late]) == tasks


def test_of_the_tasks_of_a_loop_only_one_waits_for_the_other():
    order = StepOrder()
    head, body = Task(reads="ab", writes="c", is_behind=True), Task(reads="c", writes="b", is_behind=True)
    arranged(order, Task(writes="a"), head, body)
    assert order.holds(body)
    assert not order.holds(head)
