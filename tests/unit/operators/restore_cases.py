"""Every stateful operator with a script of what happens to it: material of ``test_restore``. Not a test module.

A script is a list of steps: ``Rows`` to an input (as columns, if they have a schema), ``Watermark``, ``Wait`` on the
wall clock, ``MARK`` where a barrier passes. Rows behind a watermark are late for it before a mark and after it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from engine.operators.aggregate import CombineAggregateSpec, FieldAggregate, KeyedAggregateSpec, KeyedReduceSpec
from engine.operators.base import OperatorSpec
from engine.operators.broadcast import BroadcastProcessSpec
from engine.operators.co_process import CoProcessSpec
from engine.operators.column_aggregate import ColumnAggregateSpec
from engine.operators.column_window import column_window
from engine.operators.field_aggregates import RowAggregates, WindowRecord, avg, count, sum_
from engine.operators.functions import AggregateFunction, FlatMapFunction
from engine.operators.interval_join import IntervalJoinSpec
from engine.operators.keys import FieldKey
from engine.operators.process import ProcessSpec
from engine.operators.process_functions import (
    BroadcastProcessFunction,
    KeyedBroadcastProcessFunction,
    KeyedCoProcessFunction,
    KeyedProcessFunction,
    ProcessWindowFunction,
    WindowFunction,
)
from engine.operators.text import WordCountSpec, WordTokenizer
from engine.operators.window import WindowSpec
from engine.operators.window_contents import AggregateFold, ReduceFold
from engine.operators.window_functions import CoGroupedFunction, JoinedFunction, window_call
from engine.state.descriptors import (
    AggregatingStateDescriptor,
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    StateTtlConfig,
    ValueStateDescriptor,
)
from engine.time.assigners import (
    CountSlidingWindowAssigner,
    CountTumblingWindowAssigner,
    DynamicEventTimeSessionWindows,
    EventTimeSessionWindows,
    GlobalWindows,
    ProcessingTimeSessionWindows,
    SlidingEventTimeWindows,
    TumblingEventTimeWindows,
    TumblingProcessingTimeWindows,
)
from engine.time.evictors import CountEvictor
from engine.time.triggers import (
    ContinuousEventTimeTrigger,
    CountTrigger,
    DeltaTrigger,
    EventTimeTrigger,
    NeverTrigger,
    PurgingTrigger,
)
from engine.time.watermarks import Duration
from engine.time.windows import TIME_MAX_MS


@dataclass(frozen=True)
class Rows:
    rows: list[Any]
    stamps: list[int] | None = None
    input_index: int = 0
    schema: pa.Schema | None = None


@dataclass(frozen=True)
class Watermark:
    time_ms: int


@dataclass(frozen=True)
class Wait:
    millis: int


MARK = "mark"

#: Rows of this input go to every subtask.
ToAll = object()


@dataclass(frozen=True)
class Case:
    specs: tuple[OperatorSpec, ...]
    script: list[Any]
    #: of each input: what decides the subtask; ToAll = every subtask
    keys: tuple[Any, ...] = (lambda row: row[0],)


NAN = float("nan")


def events() -> list[Any]:
    """Two keys and a NaN over 60 ms of event time, out of order, some late; five marks."""
    return [
        Rows([("a", 1), ("b", 2), ("a", 3)], [1, 2, 3]),
        MARK,
        Rows([(NAN, 10), ("a", 4), ("c", 5)], [14, 12, 11]),
        Watermark(9),
        MARK,
        Rows([("late", 6), ("b", 7), (float("nan"), 11)], [4, 16, 15]),
        MARK,
        Watermark(19),
        Rows([("b", 1), ("a", 9), ("d", 1)], [22, 31, 38]),
        Watermark(29),
        MARK,
        Rows([("a", 1), ("a", 1), ("b", 1)], [33, 41, 45]),
        Wait(10),
        MARK,
        Watermark(39),
        Rows([("e", 1), ("a", 1)], [60, 58]),
        Wait(10),
        Watermark(TIME_MAX_MS),
    ]


# --- functions --------------------------------------------------------------------------------------------------------


class Mean(AggregateFunction):
    def create_accumulator(self):
        return [0, 0]

    def add(self, value, accumulator):
        accumulator[0] += value[1]
        accumulator[1] += 1
        return accumulator  # the same list: changed in place

    def get_result(self, accumulator):
        return tuple(accumulator)

    def merge(self, acc_a, acc_b):
        return [acc_a[0] + acc_b[0], acc_a[1] + acc_b[1]]


class Everything(KeyedProcessFunction):
    """All kinds of state and timers of both times."""

    def open(self, runtime_context):
        self.value = runtime_context.get_state(ValueStateDescriptor("value"))
        self.box = runtime_context.get_state(ValueStateDescriptor("box"))
        self.list = runtime_context.get_list_state(ListStateDescriptor("list"))
        self.map = runtime_context.get_map_state(MapStateDescriptor("map"))
        self.sum = runtime_context.get_reducing_state(ReducingStateDescriptor("sum", lambda a, b: a + b))
        self.mean = runtime_context.get_aggregating_state(AggregatingStateDescriptor("mean", Mean()))

    def process_element(self, value, ctx):
        number = value[1]
        self.value.update((self.value.value() or 0) + 1)
        box = self.box.value()
        if box is None:
            self.box.update({"numbers": [number]})
        else:
            box["numbers"].append(number)  # in place, without update()
        self.list.add(number)
        self.map.put(number % 3, number)
        if number == 4:
            self.map.remove(1)
        self.sum.add(number)
        self.mean.add(value)
        timers = ctx.timer_service()
        timers.register_event_time_timer(ctx.timestamp() + 7)
        timers.register_processing_time_timer(timers.current_processing_time() + 15)
        if number == 7:
            timers.delete_event_time_timer(9)
        yield value[0], self.value.value(), self.list.get(), sorted(self.map.items()), self.sum.get(), self.mean.get()

    def on_timer(self, timestamp, ctx):
        yield "timer", ctx.get_current_key(), timestamp, ctx.time_domain().name, str(self.box.value()), self.sum.get()
        if self.sum.get() > 7:
            for state in (self.value, self.box, self.list, self.map, self.mean):
                state.clear()


class CountingMap(FlatMapFunction):
    def open(self, runtime_context):
        self.count = runtime_context.get_state(ValueStateDescriptor("count"))

    def flat_map(self, value):
        self.count.update((self.count.value() or 0) + 1)
        yield value[0], self.count.value()


class Expiring(KeyedProcessFunction):
    """Values of 15 ms: some die between the marks, some are prolonged."""

    def open(self, runtime_context):
        config = StateTtlConfig.new_builder(Duration.of_millis(15)).build()
        descriptors = [ValueStateDescriptor("v"), ListStateDescriptor("l"), MapStateDescriptor("m")]
        for descriptor in descriptors:
            descriptor.enable_time_to_live(config)
        self.value = runtime_context.get_state(descriptors[0])
        self.list = runtime_context.get_list_state(descriptors[1])
        self.map = runtime_context.get_map_state(descriptors[2])

    def process_element(self, value, ctx):
        before = self.value.value(), self.list.get(), sorted(self.map.items())
        self.value.update(value[1])
        self.list.add(value[1])
        self.map.put(value[1], True)
        yield value[0], before


class Both(KeyedCoProcessFunction):
    def open(self, runtime_context):
        self.left = runtime_context.get_list_state(ListStateDescriptor("left"))
        self.right = runtime_context.get_map_state(MapStateDescriptor("right"))

    def process_element1(self, value, ctx):
        self.left.add(value[1])
        ctx.timer_service().register_event_time_timer(ctx.timestamp() + 10)

    def process_element2(self, value, ctx):
        self.right.put(value[1], ctx.timestamp())
        yield value[0], self.left.get(), sorted(self.right.items())

    def on_timer(self, timestamp, ctx):
        yield timestamp, ctx.get_current_key(), self.left.get(), sorted(self.right.items())
        self.left.clear()


RULES = MapStateDescriptor("rules")


class Ruled(BroadcastProcessFunction):
    def process_element(self, value, ctx):
        yield value, sorted(ctx.get_broadcast_state(RULES).items())

    def process_broadcast_element(self, value, ctx):
        ctx.get_broadcast_state(RULES).put(value[0], value[1])


class KeyedRuled(KeyedBroadcastProcessFunction):
    def open(self, runtime_context):
        self.seen = runtime_context.get_list_state(ListStateDescriptor("seen"))

    def process_element(self, value, ctx):
        self.seen.add(value[1])
        ctx.timer_service().register_event_time_timer(ctx.timestamp() + 8)
        yield value, self.seen.get(), sorted(ctx.get_broadcast_state(RULES).items())

    def process_broadcast_element(self, value, ctx):
        ctx.get_broadcast_state(RULES).put(value[0], value[1])

    def on_timer(self, timestamp, ctx):
        yield timestamp, ctx.get_current_key(), self.seen.get(), sorted(ctx.get_broadcast_state(RULES).items())


class Collect(WindowFunction):
    def apply(self, key, window, inputs):
        yield key, repr(window), list(inputs)


class PerWindow(ProcessWindowFunction):
    """State of the window and of the key."""

    def process(self, key, context, elements):
        fired = context.window_state().get_state(ValueStateDescriptor("fired"))
        total = context.global_state().get_state(ValueStateDescriptor("total"))
        fired.update((fired.value() or 0) + 1)
        total.update((total.value() or 0) + len(list(elements)))
        yield key, context.window().start, fired.value(), total.value(), list(elements)

    def clear(self, context):
        context.window_state().get_state(ValueStateDescriptor("fired")).clear()


# --- cases ------------------------------------------------------------------------------------------------------------


KEY = FieldKey(0)


def windows(assigner, trigger=None, *, function=None, script=None, keys=(KEY,), **settings) -> Case:
    trigger = trigger or assigner.get_default_trigger(None)
    spec = WindowSpec(keys, assigner, trigger, window_call(function or Collect()), **settings)
    return Case((spec,), script or events())


def two_inputs() -> list[Any]:
    return [
        Rows([("a", 1), ("b", 2)], [1, 2]),
        Rows([("x", 1), ("a", 9)], [3, 4], 1),
        MARK,
        Rows([("a", 8), ("b", 8)], [6, 11], 1),
        Watermark(5),
        MARK,
        Rows([("a", 3), ("b", 4), ("c", 5)], [7, 12, 14]),
        MARK,
        Watermark(12),
        Rows([("b", 7), ("c", 7), ("a", 7)], [13, 15, 22], 1),
        MARK,
        Rows([("a", 6)], [24]),
        Watermark(TIME_MAX_MS),
    ]


def broadcast_events() -> list[Any]:
    script = two_inputs()
    return [Rows(s.rows, s.stamps, 1) if isinstance(s, Rows) and s.input_index else s for s in script]


def by_clock() -> list[Any]:
    return [
        Rows([("a", 1), ("b", 2)]),
        MARK,
        Wait(4),
        Rows([("a", 3), ("c", 3)]),
        MARK,
        Wait(8),
        Rows([("a", 5)]),
        MARK,
        Wait(3),
        Rows([("b", 6)]),
        Wait(30),
    ]


def pairs_of_words() -> list[Any]:
    return [
        Rows([("a", 1), ("b", 1), ("a", 1)]),
        MARK,
        Rows([("a", 1), (1, 1), (1.0, 2), (True, 3)]),
        MARK,
        Rows([("c", 1), ("b", 5), (NAN, 1)]),
        MARK,
        Rows([(float("nan"), 2), ("a", 1)]),
        Watermark(TIME_MAX_MS),
    ]


def pairs_then_triples() -> list[Any]:
    return [*pairs_of_words()[:-1], Rows([("a", 1, "x"), ("b", 2, "y")]), MARK, Rows([("a", 1, "z"), ("b", 1)])]


PAIRS = pa.schema([("k", pa.int64()), ("v", pa.int64())])


def columns_but(of_rows: int, spec: OperatorSpec) -> Case:
    """Columns, with step ``of_rows`` in rows: what the columns hold goes over. -1 = all of them are rows."""
    script: list[Any] = [
        Rows([(n, n + 1) for n in range(8)]),
        MARK,
        Rows([(n, 10) for n in range(0, 8, 2)]),
        MARK,
        Rows([(1, 100), (9, 100)]),
        MARK,
        MARK,
        Rows([(n, 1000) for n in range(0, 9, 3)]),
        MARK,
        Rows([(n, 10_000) for n in range(8)]),
    ]
    for index, step in enumerate(script):
        if step is not MARK and index != of_rows >= 0:
            script[index] = Rows(step.rows, schema=PAIRS)
    return Case((spec,), script)


def window_of_columns(of_rows: int, lateness_ms: int) -> Case:
    """Sums in overlapping windows of columns, some late; step ``of_rows`` is rows, -1 = all are, 99 = none is."""
    assigner = SlidingEventTimeWindows(20, 10, 0)
    fold = AggregateFold(RowAggregates([sum_(1), count(), avg(1)]))
    rows = windows(assigner, function=WindowRecord(1), fold=fold, allowed_lateness_ms=lateness_ms, late_tag="late")
    script: list[Any] = [
        Rows([(1, 1), (2, 2), (1, 3)], [1, 2, 3]),
        MARK,
        Rows([(7, 10), (1, 4), (3, 5)], [14, 12, 11]),
        Watermark(9),
        MARK,
        Rows([(8, 6), (2, 7), (None, 11)], [4, 16, 15]),
        MARK,
        Watermark(19),
        Rows([(2, 1), (1, 9), (4, 1)], [22, 31, 18]),
        MARK,
        Watermark(29),
        Rows([(1, 1), (1, 1), (2, 1)], [33, 41, 17]),
        MARK,
        Watermark(39),
        Rows([(5, 1), (1, 1)], [60, 58]),
        Watermark(TIME_MAX_MS),
    ]
    for index, step in enumerate(script):
        if isinstance(step, Rows) and index != of_rows >= 0:
            script[index] = Rows(step.rows, step.stamps, schema=PAIRS)
    (spec,) = rows.specs
    assert isinstance(spec, WindowSpec)
    columnar = column_window(spec)
    assert columnar is not None
    return Case((columnar,), script)


def added(a, b):
    return (a[0], a[1] + b[1])


def first_of(row):
    return row[0]


BROADCAST_KEYS = (first_of, ToAll)

CASES: dict[str, Callable[[], Case]] = {
    "reduce": lambda: Case((KeyedReduceSpec(KEY, added),), pairs_of_words()),
    "sum of pairs by field": lambda: Case((KeyedAggregateSpec(KEY, "sum", 1),), pairs_of_words()),
    "sum of pairs by lambda": lambda: Case(
        (KeyedAggregateSpec(lambda r: str(r[0]), "sum", 1),), pairs_of_words(), (lambda row: str(row[0]),)
    ),
    "sum of pairs, then of triples": lambda: Case((KeyedAggregateSpec(KEY, "sum", 1),), pairs_then_triples()),
    "min_by": lambda: Case((KeyedAggregateSpec(KEY, "min_by", 1),), pairs_of_words()),
    "pre-aggregation": lambda: Case(
        (CombineAggregateSpec(KEY, "sum", 1), KeyedAggregateSpec(KEY, "sum", 1, True)), pairs_of_words()
    ),
    "process": lambda: Case((ProcessSpec(Everything(), KEY),), events()),
    "flat_map with state": lambda: Case((ProcessSpec(CountingMap(), KEY, method="flat_map"),), events()),
    "state that expires": lambda: Case((ProcessSpec(Expiring(), KEY),), [*events(), Wait(3), *events()]),
    "two inputs": lambda: Case((CoProcessSpec(Both(), (KEY, KEY)),), two_inputs(), (first_of, first_of)),
    "broadcast": lambda: Case((BroadcastProcessSpec(Ruled(), (RULES,)),), broadcast_events(), BROADCAST_KEYS),
    "keyed broadcast": lambda: Case(
        (BroadcastProcessSpec(KeyedRuled(), (RULES,), KEY),), broadcast_events(), BROADCAST_KEYS
    ),
    "interval join": lambda: Case(
        (IntervalJoinSpec((KEY, KEY), -6, 8, lambda a, b: (a, b), ("late", "late")),),
        two_inputs(),
        (first_of, first_of),
    ),
    "tumbling, all elements": lambda: windows(TumblingEventTimeWindows(10, 0), late_tag="late"),
    "tumbling, reduced": lambda: windows(TumblingEventTimeWindows(10, 0), fold=ReduceFold(added), late_tag="late"),
    "sliding, aggregated": lambda: windows(SlidingEventTimeWindows(20, 10, 0), fold=AggregateFold(Mean())),
    "tumbling with lateness": lambda: windows(
        TumblingEventTimeWindows(10, 0), function=PerWindow(), allowed_lateness_ms=15, late_tag="late"
    ),
    "sessions": lambda: windows(EventTimeSessionWindows(8), late_tag="late"),
    "sessions, summed": lambda: windows(EventTimeSessionWindows(8), fold=ReduceFold(FieldAggregate("sum", 1))),
    "sessions with lateness and counts": lambda: windows(
        EventTimeSessionWindows(8), PurgingTrigger.of(CountTrigger.of(2)), allowed_lateness_ms=20
    ),
    "sessions of dynamic gap": lambda: windows(DynamicEventTimeSessionWindows(lambda row: 3 + row[1])),
    "continuous trigger": lambda: windows(SlidingEventTimeWindows(20, 10, 0), ContinuousEventTimeTrigger(7)),
    "continuous trigger of sessions": lambda: windows(EventTimeSessionWindows(12), ContinuousEventTimeTrigger(5)),
    "delta trigger": lambda: windows(GlobalWindows(), DeltaTrigger.of(2, lambda old, new: abs(new[1] - old[1]))),
    "evictor": lambda: windows(GlobalWindows(), CountTrigger.of(2), evictor=CountEvictor.of(3), function=Collect()),
    "counts": lambda: windows(CountTumblingWindowAssigner.of(2)),
    "sliding counts": lambda: windows(CountSlidingWindowAssigner.of(3, 2)),
    "no window fires": lambda: windows(GlobalWindows(), NeverTrigger()),
    "window_all": lambda: Case(
        (WindowSpec((None,), TumblingEventTimeWindows(10, 0), EventTimeTrigger(), window_call(Collect())),),
        events(),
        (lambda row: None,),
    ),
    "processing time": lambda: windows(TumblingProcessingTimeWindows(5, 0), script=by_clock()),
    "processing time, sessions": lambda: windows(ProcessingTimeSessionWindows(6), script=by_clock()),
    "window co-group": lambda: Case(
        (
            WindowSpec(
                (KEY, KEY),
                TumblingEventTimeWindows(10, 0),
                EventTimeTrigger(),
                CoGroupedFunction(lambda left, right: [(sorted(left), sorted(right))]),
            ),
        ),
        two_inputs(),
        (first_of, first_of),
    ),
    "window join": lambda: Case(
        (
            WindowSpec(
                (KEY, KEY),
                TumblingEventTimeWindows(10, 0),
                EventTimeTrigger(),
                JoinedFunction(lambda a, b: (a, b), False),
            ),
        ),
        two_inputs(),
        (first_of, first_of),
    ),
    **{
        f"columns, {kind}{', final' * final}, rows in step {step}": functools.partial(
            columns_but, step, ColumnAggregateSpec(KEY, kind, 1, final)
        )
        for kind, final in (("sum", False), ("sum", True), ("min", False), ("max", True), ("max_by", False))
        for step in (-1, 0, 2, 4, 7, 99)
    },
    **{
        f"windows of columns, lateness {lateness_ms}, rows in step {step}": functools.partial(
            window_of_columns, step, lateness_ms
        )
        for lateness_ms in (0, 12)
        for step in (-1, 0, 2, 5, 8, 11, 99)
    },
    "words counted ahead": lambda: Case(
        (WordCountSpec(WordTokenizer()), KeyedAggregateSpec(KEY, "sum", 1, True)),
        [Rows(["a b a"]), MARK, Rows(["b c", "a"]), MARK, MARK, Rows(["c c c"])],
        (lambda row: "one subtask",),
    ),
}
