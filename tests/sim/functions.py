"""What happens to records between source and sink: disturbances, counts, timers, windows.

What comes out is (key, number, id), with the numbers of a key 1, 2, 3…; of windows it is (key, start, ids).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, final

from engine.core.records import Batch, rows_of
from engine.operators.base import Operator, OperatorSpec
from engine.operators.functions import RuntimeContext
from engine.operators.process_functions import KeyedCoProcessFunction, KeyedProcessFunction
from engine.operators.window import WindowSpec
from engine.operators.window_functions import BoundWindowFunction
from engine.state.descriptors import ListStateDescriptor, ValueStateDescriptor
from engine.time.assigners import (
    EventTimeSessionWindows,
    SlidingEventTimeWindows,
    TumblingEventTimeWindows,
    WindowAssigner,
)
from engine.time.triggers import EventTimeTrigger
from engine.time.watermarks import Time
from engine.time.windows import TIME_MAX_MS
from tests.sim import generations
from tests.sim.world import current

__all__ = ["CountBoth", "CountByKey", "Disturb", "Hold", "expected_windows", "key_of", "window_spec"]

#: In event time, which goes on by 1 with each id.
WINDOW: Final = 12
SLIDE: Final = 4
#: Below the hole in time between two splits, above the distance of two ids of a key.
SESSION_GAP: Final = 6


def key_of(row: tuple[int, int, int]) -> int:
    return row[2]


@dataclass(frozen=True)
class Disturb(OperatorSpec):
    """Hands records on; checks that they are of its own attempt, unless a result that was kept may come from another;
    fails or is slow when the faults say so."""

    one_attempt: bool = True

    def build(self) -> Operator:
        return _Disturb(self.one_attempt)


@final
class _Disturb(Operator):
    def __init__(self, one_attempt: bool) -> None:
        self._one_attempt = one_attempt

    def open(self, ctx: Any, out: Any) -> None:
        super().open(ctx, out)
        self._generation = generations.of_task(ctx)
        self._slot = ctx.slot_shared["sim"]
        self._rng = current().rng(f"disturb {self._slot.name}")

    def process_batch(self, input_index: int, batch: Batch) -> None:
        world = current()
        disturbance = world.parts["disturbance"]
        if self._one_attempt:
            for generation, _, _ in rows_of(batch).rows:
                if generation > self._generation or not world.parts["keeps records"]:
                    generations.check_same("records", generation, self._generation)
        if disturbance.poisons and self._rng.random() < 0.2:
            disturbance.poisons -= 1
            world.tell(self._slot.name, "FAULT", "a user function raises")
            raise ValueError("poisoned record")
        if world.now < disturbance.slow_until and self._rng.random() < 0.3:
            self._slot.spend(self._rng.choice((0.002, 0.02, 0.15)))
        self.out.emit(batch)


# --- counts -----------------------------------------------------------------------------------------------------------


class CountByKey(KeyedProcessFunction):
    def open(self, runtime_context: RuntimeContext) -> None:
        self._count = runtime_context.get_state(ValueStateDescriptor("count"))

    def process_element(self, value: Any, ctx: Any) -> Iterable[Any]:
        _, row_id, key = value
        count = (self._count.value() or 0) + 1
        self._count.update(count)
        yield (key, count, row_id)


class CountBoth(KeyedCoProcessFunction):
    """Two inputs, one count."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self._count = runtime_context.get_state(ValueStateDescriptor("count"))

    def process_element1(self, value: Any, ctx: Any) -> Iterable[Any]:
        _, row_id, key = value
        count = (self._count.value() or 0) + 1
        self._count.update(count)
        yield (key, count, row_id)

    process_element2 = process_element1


class Hold(KeyedProcessFunction):
    """Keeps records until a timer of processing time, or at the end one of event time, lets them go."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self._count = runtime_context.get_state(ValueStateDescriptor("count"))
        self._held = runtime_context.get_list_state(ListStateDescriptor("held"))

    def process_element(self, value: Any, ctx: Any) -> Iterator[Any]:
        self._held.add(value[1])
        timers = ctx.timer_service()
        timers.register_processing_time_timer(timers.current_processing_time() + 20 + 7 * (value[1] % 10))
        timers.register_event_time_timer(TIME_MAX_MS - 1)
        return iter(())

    def on_timer(self, timestamp: int, ctx: Any) -> Iterator[Any]:
        count = self._count.value() or 0
        for row_id in self._held.get():
            count += 1
            yield (ctx.get_current_key(), count, row_id)
        self._count.update(count)
        self._held.clear()


# --- windows ----------------------------------------------------------------------------------------------------------


def gather(key: int, window: Any, rows: Iterable[tuple[int, int, int]]) -> list[Any]:
    return [(key, window.start, tuple(sorted(row[1] for row in rows)))]


def window_spec(kind: str) -> WindowSpec:
    assigners: dict[str, WindowAssigner] = {
        "tumbling": TumblingEventTimeWindows.of(Time.milliseconds(WINDOW)),
        "sliding": SlidingEventTimeWindows.of(Time.milliseconds(WINDOW), Time.milliseconds(SLIDE)),
        "session": EventTimeSessionWindows.with_gap(Time.milliseconds(SESSION_GAP)),
    }
    return WindowSpec((key_of,), assigners[kind], EventTimeTrigger(), BoundWindowFunction(gather))


def expected_windows(kind: str, time_of_id: dict[int, int], num_keys: int) -> set[tuple[int, int, tuple[int, ...]]]:
    """Return what the windows of a kind must give, the slow obvious way."""
    found: dict[tuple[int, int], list[int]] = {}
    for key in range(num_keys):
        ids = sorted((row_id for row_id in time_of_id if row_id % num_keys == key), key=lambda i: (time_of_id[i], i))
        if kind == "session":
            start = last = None
            for row_id in ids:
                at = time_of_id[row_id]
                if last is None or at > last + SESSION_GAP:
                    start = at
                last = at
                found.setdefault((key, start), []).append(row_id)  # type: ignore[arg-type]
            continue
        slide = SLIDE if kind == "sliding" else WINDOW
        for row_id in ids:
            at = time_of_id[row_id]
            for start in range(at // slide * slide, at - WINDOW, -slide):
                found.setdefault((key, start), []).append(row_id)
    return {(key, start, tuple(sorted(ids))) for (key, start), ids in found.items()}
