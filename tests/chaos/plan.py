"""What goes wrong when: a timeline of faults from a seed. Nothing here touches anything."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

__all__ = ["FAULTS", "Fault", "Step", "Strike", "timeline"]

#: Between two faults of the ApplicationMaster or the JobManager: the next one is to be there before it is hit, too.
MASTER_REST_S: Final = 12.0
GAP_S: Final = (2.0, 14.0)  #: between the beginnings of two faults
ACTIVE_MAX: Final = 2  #: faults at once, of those that last


@dataclass(frozen=True, slots=True)
class Fault:
    """``lasts_s``: from, to; (0, 0) = over at once. Two faults that touch the same thing do not overlap."""

    name: str
    touches: frozenset[str]
    weight: int
    lasts_s: tuple[float, float] = (0.0, 0.0)


def _fault(name: str, touches: str, weight: int, lasts_s: tuple[float, float] = (0.0, 0.0)) -> Fault:
    return Fault(name, frozenset(touches.split()), weight, lasts_s)


FAULTS: Final = (
    _fault("kill a slot", "slot", 3),
    _fault("kill a TaskManager", "slot", 4),
    _fault("kill all TaskManagers", "slot", 2),
    _fault("pause a TaskManager", "slot", 3, (1.0, 14.0)),  # heartbeat.timeout is 8 s
    _fault("kill the JobManager", "master", 3),
    _fault("pause the JobManager", "master", 2, (1.0, 12.0)),
    _fault("kill the ApplicationMaster", "master", 3),
    _fault("kill the ApplicationMaster and a TaskManager", "master slot", 2),
    _fault("stop a NodeManager", "master slot node", 2, (4.0, 15.0)),
    _fault("restart the ResourceManager", "rm", 2, (0.0, 5.0)),
    _fault("stop a ZooKeeper server", "zookeeper", 3, (1.0, 10.0)),
    _fault("stop ZooKeeper", "zookeeper", 1, (5.0, 5.0)),
    _fault("stop the NameNode", "namenode", 2, (2.0, 20.0)),
    _fault("stop a DataNode", "datanode", 3, (2.0, 10.0)),
)


@dataclass(frozen=True, slots=True)
class Strike:
    """``which``: a number from which to choose among equals, such as TaskManagers."""

    fault: Fault
    which: int


@dataclass(frozen=True, slots=True)
class Step:
    """At ``at_s`` after the begin a fault strikes, or what it broke is mended."""

    at_s: float
    strike: Strike
    mends: bool = False


def timeline(seed: int, seconds: float) -> Iterator[Step]:
    """Yield steps in the order of their time; all is mended at the end, perhaps later than ``seconds``."""
    rng = random.Random(seed)
    open_steps: list[Step] = []
    now_s, master_rests_until_s = 0.0, 0.0
    while True:
        now_s += rng.uniform(*GAP_S)
        while open_steps and (open_steps[0].at_s <= now_s or len(open_steps) >= ACTIVE_MAX or now_s >= seconds):
            mended = open_steps.pop(0)
            now_s = max(now_s, mended.at_s)
            yield mended
        if now_s >= seconds:
            return
        touched = {thing for step in open_steps for thing in step.strike.fault.touches}
        if now_s < master_rests_until_s:
            touched.add("master")
        possible = [fault for fault in FAULTS if not fault.touches & touched]
        fault = rng.choices(possible, [one.weight for one in possible])[0]
        lasts_s = rng.uniform(*fault.lasts_s)
        strike = Strike(fault, rng.randrange(1 << 16))
        yield Step(now_s, strike)
        if fault.lasts_s[1] > 0:
            open_steps.append(Step(now_s + lasts_s, strike, mends=True))
            open_steps.sort(key=lambda step: step.at_s)
        if "master" in fault.touches:
            master_rests_until_s = now_s + lasts_s + MASTER_REST_S
