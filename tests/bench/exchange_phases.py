"""Where the CPU time of a slot goes, phase by phase: ``keyed_sum.py EVENTS KEYS PARALLELISM phases=FOLDER``.

The first call of the source's function in a slot puts timers around the engine's own functions (``install``); when
a task ends it writes what it has counted to a file of the folder. Times are of the slot's one thread, each function
without those it calls that are timed too. What the timers cost themselves is measured at first and taken out.

    python -m tests.bench.exchange_phases FOLDER EVENTS     prints the table of the slots together
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

__all__ = ["PHASES", "install", "table"]

#: phase → "module:owner.function" that are timed for it
PHASES: Final = {
    "make events": ["engine.connectors.column_generator:_Reader.poll"],
    "hash, cut": ["engine.runtime.exchange.partitioners:_Hash.split"],
    "into buffers": [
        "engine.runtime.taskmanager.task_exit:TaskExit.emit",
        "engine.runtime.exchange.partition:PipelinedPartition.add",
        "engine.runtime.exchange.partition:PipelinedPartition.flush",
    ],
    "serialise": ["engine.runtime.exchange.wire:Encoder.encode"],
    "send": [
        "engine.runtime.exchange.transport:Transport.pump",
        "engine.runtime.exchange.connection:Connection.flush",
    ],
    "receive": ["engine.runtime.exchange.connection:Connection._receive"],
    "parse": ["engine.runtime.exchange.wire:Decoder.decode"],
    "credit, queues": [
        "engine.runtime.exchange.transport:_ConsumerConnection.on_frame",
        "engine.runtime.exchange.gate:InputGate.next",
    ],
    "lookup": ["engine.state.slot_state:SlotState.find"],
    "sum": ["engine.operators.column_aggregate_operator:ColumnAggregateOperator._fold"],
    "mark changed": ["engine.state.slot_state:SlotState.mark"],
    "result": ["engine.operators.column_aggregate_operator:ColumnAggregateOperator._emit"],
    "rest of the sum": ["engine.operators.column_aggregate_operator:ColumnAggregateOperator.process_batch"],
    "times, watermarks": ["engine.operators.event_time:EventTime.process"],
    "window: slots": ["engine.operators.window_state:WindowState.slots_of"],
    "window: take up": ["engine.operators.window_state:WindowState.take_up"],
    "window: rest": ["engine.operators.column_window_operator:ColumnWindowOperator.process_batch"],
    "window: fire": ["engine.operators.column_window_operator:ColumnWindowOperator.process_watermark"],
    "select": ["selectors:EpollSelector.select"],
    "steps, chain, metrics": ["engine.runtime.taskmanager.slot_process:SlotProcess.turn_once"],
}
_LEFT: Final = "start and end"
_TIMERS: Final = "these timers"
_CALIBRATION: Final = 10_000
#: What is counted beside: name → function
_COUNTED: Final = {
    "turns": "engine.runtime.taskmanager.slot_process:SlotProcess.turn_once",
    "batches of the sum": "engine.operators.column_aggregate_operator:ColumnAggregateOperator.process_batch",
    "credit messages": "engine.runtime.exchange.transport:_ConsumerConnection.add_credit",
}


class _Timers:
    """Divides the thread's CPU time among phases: always one of them is running."""

    def __init__(self) -> None:
        self.spent_ns: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._current = _LEFT
        self._cost_ns = 0
        self._marked_ns = time.thread_time_ns()
        self._cost_ns = self._cost_of_enter_ns()

    def enter(self, phase: str) -> str:
        now_ns = time.thread_time_ns()
        before, self._current = self._current, phase
        self.spent_ns[before] += now_ns - self._marked_ns - self._cost_ns
        self.spent_ns[_TIMERS] += self._cost_ns
        self._marked_ns = now_ns
        return before

    def _cost_of_enter_ns(self) -> int:
        for _ in range(_CALIBRATION):
            self.enter(_LEFT)
        cost_ns = self.spent_ns.total() // _CALIBRATION
        self.spent_ns.clear()
        return cost_ns


def _owner(place: str) -> tuple[Any, str]:
    module, _, path = place.partition(":")
    __import__(module)
    owner: Any = sys.modules[module]
    *names, last = path.split(".")
    for name in names:
        owner = getattr(owner, name)
    return owner, last


def _timed(timers: _Timers, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        before = timers.enter(phase)
        try:
            return function(*args, **options)
        finally:
            timers.enter(before)

    return call


def _counted(timers: _Timers, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        timers.calls[name] += 1
        return function(*args, **options)

    return call


_installed: list[_Timers] = []


def install(folder: str) -> None:
    """Time this process from now on; it writes ``<pid>.json`` when a task ends. Called again: nothing."""
    if _installed:
        return
    timers = _Timers()
    _installed.append(timers)
    for phase, places in PHASES.items():
        for place in places:
            owner, name = _owner(place)
            setattr(owner, name, _timed(timers, phase, getattr(owner, name)))
    for counted, place in _COUNTED.items():
        owner, name = _owner(place)
        setattr(owner, name, _counted(timers, counted, getattr(owner, name)))
    begun = resource.getrusage(resource.RUSAGE_SELF)
    owner, name = _owner("engine.runtime.taskmanager.stream_task:StreamTask._enter")
    enter_state = getattr(owner, name)

    def write(task: Any, state: Any, *args: Any, **options: Any) -> None:
        if state.is_terminal():
            timers.enter(timers.enter(_LEFT))
            used = resource.getrusage(resource.RUSAGE_SELF)
            timers.calls["page faults"] = used.ru_minflt - begun.ru_minflt
            timers.calls["µs in the kernel"] = round((used.ru_stime - begun.ru_stime) * 1e6)
            found = {"spent_ns": timers.spent_ns, "calls": timers.calls}
            Path(folder, f"{os.getpid()}.json").write_text(json.dumps(found))
        enter_state(task, state, *args, **options)

    setattr(owner, name, write)


def table(folder: Path, events: int) -> list[str]:
    """Return lines: phase and ns an event, of all slots together."""
    spent: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for file in folder.glob("*.json"):
        found = json.loads(file.read_text())
        spent.update(found["spent_ns"])
        calls.update(found["calls"])
    lines = [f"{phase:24} {spent[phase] / events:6.2f}" for phase in (*PHASES, _LEFT)]
    lines.append(f"{'all but the timers':24} {(spent.total() - spent[_TIMERS]) / events:6.2f}")
    lines.append(f"{_TIMERS:24} {spent[_TIMERS] / events:6.2f}")
    return [*lines, *(f"{name:24} {count:6}" for name, count in calls.items())]


if __name__ == "__main__":
    print("\n".join(table(Path(sys.argv[1]), int(sys.argv[2]))))
