"""In which order a slot steps its tasks, and which of them lets its consumers go first. Pure.

Producers come before consumers, so that what a task emits is carried on in the same turn. A producer is held while a
consumer of it in this slot is behind: a slot that makes new records with half of its time, although old ones wait,
takes those of other slots too slowly. These then stand still until it has no more of its own, and when it has none they
have it idle: two slots that are alike would so take turns. A held task has its turn after ``HELD_MAX`` turns at the
latest: with skewed keys there is always something to catch up with, and event time must go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, TypeVar, final

from engine.protocol.control import TaskDeployment

__all__ = ["HELD_MAX", "StepOrder"]

#: Turns that a producer waits for consumers that are behind.
HELD_MAX: Final = 3


class Steppable(Protocol):
    """What is asked of a task."""

    @property
    def deployment(self) -> TaskDeployment: ...

    def is_runnable(self) -> bool: ...


T = TypeVar("T", bound=Steppable)


@final
class _Place:
    """A task among the others of its slot."""

    __slots__ = ("consumers", "held", "produced", "read", "task")

    def __init__(self, task: Steppable) -> None:
        deployment = task.deployment
        self.task = task
        self.produced = {partition.partition_id for partition in deployment.partitions}
        self.read = {channel.partition_id for gate in deployment.gates for channel in gate.channels}
        self.consumers: list[Steppable] = []
        self.held = 0  #: turns in a row

    def reads_from(self, producer: _Place) -> bool:
        return not self.read.isdisjoint(producer.produced)


@final
class StepOrder:
    """Says of each task of a slot whether it has to wait for its consumers."""

    def __init__(self) -> None:
        self._places: dict[int, _Place] = {}  #: by id() of the task

    def arrange(self, tasks: Sequence[T], added: T) -> list[T]:
        """Return the tasks with one more, in topological order: they are deployed in it; one that comes late goes
        before its consumers. A new list: others may be going through the old one."""
        place = _Place(added)
        known = [self._places[id(task)] for task in tasks]
        place.consumers = [other.task for other in known if other.reads_from(place)]
        at = next((index for index, other in enumerate(known) if other.reads_from(place)), len(tasks))
        for producer in known[:at]:  # what leads back to the begin of a loop does not count
            if place.reads_from(producer):
                producer.consumers.append(added)
        self._places[id(added)] = place
        return [*tasks[:at], added, *tasks[at:]]

    def forget(self, ended: T) -> None:
        del self._places[id(ended)]
        for place in self._places.values():
            if ended in place.consumers:
                place.consumers.remove(ended)

    def holds(self, task: Steppable) -> bool:
        """Whether the task, which could be stepped, lets its consumers go first this time."""
        place = self._places[id(task)]
        if place.held < HELD_MAX:
            for consumer in place.consumers:
                if consumer.is_runnable():
                    place.held += 1
                    return True
        place.held = 0
        return False
