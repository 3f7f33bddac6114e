"""More of what ``restore_cases`` has: kinds of state, triggers and windows that differ from those in what they keep.

Material of ``test_restore``; not a test module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from engine.core.records import RowKind, kind_of, row_of_kind
from engine.operators.base import OperatorSpec
from engine.operators.co_process import CoProcessSpec
from engine.operators.deduplicate import FIRST, LAST, DeduplicateSpec
from engine.operators.field_aggregates import avg, count, max_, min_, sum_
from engine.operators.functions import CoFlatMapFunction
from engine.operators.group_aggregate import GroupAggregateSpec
from engine.operators.process import ProcessSpec
from engine.operators.process_functions import KeyedProcessFunction
from engine.operators.regular_join import Beside, RegularJoinSpec
from engine.operators.stateless import MapSpec
from engine.operators.top_n import TopNSpec
from engine.operators.window import WindowSpec
from engine.operators.window_contents import AggregateFold
from engine.operators.window_functions import CoGroupedFunction, window_call
from engine.state.descriptors import (
    AggregatingStateDescriptor,
    ReducingStateDescriptor,
    StateTtlConfig,
    ValueStateDescriptor,
)
from engine.time.assigners import (
    CountTumblingWindowAssigner,
    DynamicProcessingTimeSessionWindows,
    EventTimeSessionWindows,
    GlobalWindows,
    SlidingProcessingTimeWindows,
    TumblingEventTimeWindows,
    WindowAssigner,
)
from engine.time.cumulating_windows import CumulatingEventTimeWindows
from engine.time.triggers import (
    ContinuousProcessingTimeTrigger,
    CountTrigger,
    EventTimeTrigger,
    PurgingTrigger,
    Trigger,
    TriggerResult,
)
from engine.time.watermarks import Duration
from engine.time.windows import TimeWindow
from tests.unit.operators.restore_cases import (
    KEY,
    Case,
    Collect,
    Mean,
    Rows,
    by_clock,
    events,
    first_of,
    two_inputs,
    windows,
)

__all__ = ["VARIANTS"]


class ExpiringFolds(KeyedProcessFunction):
    """Reducing and aggregating state of 15 ms, prolonged by each reading."""

    def open(self, runtime_context):
        config = StateTtlConfig.new_builder(Duration.of_millis(15)).update_ttl_on_read_and_write().build()
        total = ReducingStateDescriptor("total", lambda a, b: a + b)
        mean = AggregatingStateDescriptor("mean", Mean())
        for descriptor in (total, mean):
            descriptor.enable_time_to_live(config)
        self.total = runtime_context.get_reducing_state(total)
        self.mean = runtime_context.get_aggregating_state(mean)

    def process_element(self, value, ctx):
        self.mean.add(value)
        if value[1] % 2:
            self.total.add(value[1])
        yield value[0], self.total.get(), self.mean.get()


class Counting(CoFlatMapFunction):
    def open(self, runtime_context):
        self.seen = runtime_context.get_state(ValueStateDescriptor("seen"))

    def flat_map1(self, value):
        self.seen.update((self.seen.value() or 0) + 1)

    def flat_map2(self, value):
        yield value, self.seen.value()


class AtSum(Trigger):
    """Keeps a state of its own by key and window, which is merged with the windows."""

    total = ReducingStateDescriptor("trigger-total", lambda a, b: a + b)

    def on_element(self, element, timestamp, window, ctx):
        total = ctx.get_partitioned_state(self.total)
        total.add(element[1])
        if total.get() < 8:
            return TriggerResult.CONTINUE
        total.clear()
        return TriggerResult.FIRE

    def on_processing_time(self, time, window, ctx):
        return TriggerResult.CONTINUE

    def on_event_time(self, time, window, ctx):
        return TriggerResult.FIRE if time == window.max_timestamp() else TriggerResult.CONTINUE

    def can_merge(self):
        return True

    def on_merge(self, window, ctx):
        ctx.merge_partitioned_state(self.total)

    def clear(self, window, ctx):
        ctx.get_partitioned_state(self.total).clear()


class Widening(WindowAssigner):
    """Windows of a key become longer with each of its elements: the number is keyed state of the assigner."""

    def assign_windows(self, element, timestamp, context):
        seen = context.get_runtime_context().get_state(ValueStateDescriptor("assigner-seen"))
        number = (seen.value() or 0) + 1
        seen.update(number)
        size = 5 * number
        start = timestamp - timestamp % size
        return [TimeWindow(start, start + size)]

    def get_default_trigger(self, env):
        return EventTimeTrigger()

    def is_event_time(self):
        return True


def counted_together() -> Case:
    trigger = PurgingTrigger.of(CountTrigger.of(3))
    return Case(
        (WindowSpec((None,), CountTumblingWindowAssigner.of(3), trigger, window_call(Collect())),),
        events(),
        (lambda row: None,),
    )


def late_co_group() -> Case:
    function = CoGroupedFunction(lambda left, right: [(sorted(left), sorted(right))])
    spec = WindowSpec(
        (KEY, KEY),
        TumblingEventTimeWindows(10, 0),
        EventTimeTrigger(),
        function,
        allowed_lateness_ms=6,
        late_tag="late",
    )
    return Case((spec,), two_inputs(), (first_of, first_of))


def with_kind(row: Any) -> Any:
    """What ``repr`` does not say of a Row."""
    return str(kind_of(row)), row


def changes() -> list[Any]:
    """The records of ``events``, and most of them taken back some steps later."""
    script: list[Any] = []
    gone: list[Any] = []
    for step in events():
        if isinstance(step, Rows):
            former, gone = gone, [row_of_kind(RowKind.DELETE, row) for row in step.rows[::-1][:3]]
            rows = [row_of_kind(RowKind.INSERT, row) for row in step.rows] + former
            step = replace(step, rows=rows, stamps=None if step.stamps is None else (step.stamps * 3)[: len(rows)])
        script.append(step)
    return script


def of_one_input(spec: OperatorSpec) -> Case:
    return Case((spec, MapSpec(with_kind)), events())


VARIANTS: dict[str, Callable[[], Case]] = {
    "full join": lambda: Case(
        (RegularJoinSpec((KEY, KEY), "full", Beside((2, 2))), MapSpec(with_kind)), two_inputs(), (first_of, first_of)
    ),
    "inner join of records that expire": lambda: Case(
        (RegularJoinSpec((KEY, KEY), "inner", Beside((2, 2)), ttl_ms=15),), two_inputs(), (first_of, first_of)
    ),
    "top 2": lambda: of_one_input(TopNSpec(KEY, 2, ((1, False),), with_rank=True)),
    "top 2 of a changelog": lambda: Case(
        (TopNSpec(KEY, 2, ((1, False),), with_rank=True, retracts=True), MapSpec(with_kind)), changes()
    ),
    "aggregates of a changelog": lambda: Case(
        (GroupAggregateSpec(KEY, (sum_(1), min_(1), max_(1))), MapSpec(with_kind)), changes()
    ),
    "first row": lambda: of_one_input(DeduplicateSpec(KEY, FIRST)),
    "last row": lambda: of_one_input(DeduplicateSpec(KEY, LAST)),
    "aggregates of what is there": lambda: of_one_input(
        GroupAggregateSpec(KEY, (count(), sum_(1), avg(1), min_(1), max_(1)))
    ),
    "folds that expire": lambda: Case((ProcessSpec(ExpiringFolds(), KEY),), [*events(), *events()]),
    "co-flat-map with state": lambda: Case(
        (CoProcessSpec(Counting(), (KEY, KEY), None, "flat_map"),), two_inputs(), (first_of, first_of)
    ),
    "trigger with state": lambda: windows(TumblingEventTimeWindows(20, 0), AtSum()),
    "trigger with state, sessions": lambda: windows(EventTimeSessionWindows(8), AtSum()),
    "assigner with state": lambda: windows(Widening()),
    "cumulating windows": lambda: windows(CumulatingEventTimeWindows(30, 10, 0), fold=AggregateFold(Mean())),
    "processing time, sliding": lambda: windows(SlidingProcessingTimeWindows(9, 3, 0), script=by_clock()),
    "processing time, sessions of dynamic gap": lambda: windows(
        DynamicProcessingTimeSessionWindows(lambda row: 2 + row[1]), script=by_clock()
    ),
    "continuous trigger of the clock": lambda: windows(
        GlobalWindows(), ContinuousProcessingTimeTrigger(5), script=by_clock()
    ),
    "counts without a key": counted_together,
    "window co-group with lateness": late_co_group,
}
