"""Windows with evictors, of processing time above all: more material of ``test_restore``. Not a test module.

Each evictor before and after the window's function, in each sort of window; the triggers fire a window more than once,
so that what an evictor has left behind is seen again, before a mark and after it.
"""

from __future__ import annotations

import functools
from typing import Any

from engine.time.assigners import (
    DynamicProcessingTimeSessionWindows,
    EventTimeSessionWindows,
    GlobalWindows,
    ProcessingTimeSessionWindows,
    SlidingProcessingTimeWindows,
    TumblingEventTimeWindows,
    TumblingProcessingTimeWindows,
    WindowAssigner,
)
from engine.time.evictors import CountEvictor, DeltaEvictor, Evictor, TimeEvictor
from engine.time.triggers import ContinuousProcessingTimeTrigger, CountTrigger, Trigger
from engine.time.watermarks import Time
from tests.unit.operators.restore_cases import MARK, Case, Rows, Wait, events, windows

__all__ = ["EVICTORS", "EVICTOR_CASES", "WINDOWS", "without_evictor"]


def by_clock_with_stamps() -> list[Any]:
    """Two keys for 60 ms of the wall clock, their event times out of order, marks while windows are open."""
    return [
        Rows([("a", 1), ("b", 2), ("a", 5)], [100, 101, 103]),
        MARK,
        Wait(3),
        Rows([("a", 2), ("b", 9)], [101, 110]),
        Wait(2),
        MARK,
        Rows([("a", 9), ("c", 3)], [120, 90]),
        MARK,
        Wait(4),
        Rows([("a", 8), ("b", 8), ("c", 4)], [119, 112, 99]),
        MARK,
        Wait(2),
        Rows([("b", 1), ("a", 7)], [111, 140]),
        Wait(9),
        Rows([("a", 6), ("c", 20)], [139, 130]),
        MARK,
        Wait(40),
    ]


def _away(first: Any, last: Any) -> float:
    return float(abs(first[1] - last[1]))


EVICTORS: dict[str, Evictor] = {
    f"{name} evictor{', after' * after}": evictor
    for after in (False, True)
    for name, evictor in (
        ("time", TimeEvictor.of(Time.milliseconds(3), after)),
        ("delta", DeltaEvictor.of(2, _away, after)),
        ("count", CountEvictor.of(1, after)),
    )
}

#: name → assigner, trigger (None = its own), whether the wall clock decides
WINDOWS: dict[str, tuple[WindowAssigner, Trigger | None, bool]] = {
    "tumbling, by count": (TumblingProcessingTimeWindows(15, 0), CountTrigger.of(1), True),
    "tumbling, continuous": (TumblingProcessingTimeWindows(30, 0), ContinuousProcessingTimeTrigger(4), True),
    "sliding": (SlidingProcessingTimeWindows(12, 4, 0), None, True),
    "sessions": (ProcessingTimeSessionWindows(6), None, True),
    "sessions, by count": (ProcessingTimeSessionWindows(6), CountTrigger.of(1), True),
    "sessions of dynamic gap": (DynamicProcessingTimeSessionWindows(lambda row: 3 + row[1] % 4), None, True),
    "one window, continuous": (GlobalWindows(), ContinuousProcessingTimeTrigger(5), True),
    "event time, tumbling": (TumblingEventTimeWindows(40, 0), CountTrigger.of(1), False),
    "event time, sessions": (EventTimeSessionWindows(12), None, False),
}


def _case(assigner: WindowAssigner, trigger: Trigger | None, by_clock: bool, evictor: Evictor | None) -> Case:
    settings = {} if evictor is None else {"evictor": evictor}
    return windows(assigner, trigger, script=by_clock_with_stamps() if by_clock else events(), **settings)


def without_evictor(window: str) -> Case:
    return _case(*WINDOWS[window], None)


EVICTOR_CASES = {
    f"{window}, {name}": functools.partial(_case, *settings, evictor)
    for window, settings in WINDOWS.items()
    for name, evictor in EVICTORS.items()
}
