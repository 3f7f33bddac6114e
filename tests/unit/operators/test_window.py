"""The window operator against a slow, obvious model; its triggers, evictors and failures by example."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.clock import ManualClock
from engine.core.errors import ProgramError, UserCodeError
from engine.operators.aggregate import FieldAggregate
from engine.operators.functions import AggregateFunction
from engine.operators.keys import FieldKey
from engine.operators.output_tag import OutputTag
from engine.operators.process_functions import ProcessWindowFunction, WindowFunction
from engine.operators.window import LATE_RECORDS_DROPPED, WindowSpec
from engine.operators.window_contents import AggregateFold, ReduceFold
from engine.operators.window_functions import CoGroupedFunction, JoinedFunction, window_call
from engine.state.descriptors import ReducingStateDescriptor, ValueStateDescriptor
from engine.time.assigners import (
    CountSlidingWindowAssigner,
    CountTumblingWindowAssigner,
    EventTimeSessionWindows,
    GlobalWindows,
    ProcessingTimeSessionWindows,
    SlidingEventTimeWindows,
    TumblingEventTimeWindows,
    TumblingProcessingTimeWindows,
    WindowAssigner,
)
from engine.time.evictors import CountEvictor, Evictor
from engine.time.triggers import (
    ContinuousEventTimeTrigger,
    ContinuousProcessingTimeTrigger,
    CountTrigger,
    DeltaTrigger,
    EventTimeTrigger,
    PurgingTrigger,
    Trigger,
    TriggerResult,
)
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS, TimeWindow
from tests.testing.operator_harness import OperatorHarness

KEY = FieldKey(0)
ALL_GROUPS = range(128)


class Collect(WindowFunction):
    def apply(self, key, window, inputs):
        yield key, window, list(inputs)


def spec_of(assigner, trigger=None, *, function=None, keys=(KEY,), **settings):
    trigger = trigger or assigner.get_default_trigger(None)
    return WindowSpec(keys, assigner, trigger, window_call(function), **settings)


def collecting(assigner, trigger=None, **settings):
    return spec_of(assigner, trigger, function=Collect(), **settings)


# --- the model --------------------------------------------------------------------------------------------------------


class Model:
    """Windows as lists. ``fired``: (key, start, end, sorted values); ``late``: records."""

    def __init__(self, lateness):
        self.lateness = lateness
        self.watermark = TIME_MIN_MS
        self.open: dict[tuple, list] = {}
        self.fired: list = []
        self.late: list = []

    def put(self, key, windows_and_values, record):
        dropped = True
        for (start, end), values in windows_and_values:
            if end - 1 + self.lateness > self.watermark:
                dropped = False
                self.open[key, start, end] = values
                if end - 1 <= self.watermark:
                    self.fire(key, start, end)
        if dropped and record[2] + self.lateness <= self.watermark:
            self.late.append(record)

    def fire(self, key, start, end):
        self.fired.append((key, start, end, sorted(self.open[key, start, end])))

    def advance(self, watermark):
        before, self.watermark = self.watermark, max(self.watermark, watermark)
        for key, start, end in list(self.open):
            if before < end - 1 <= self.watermark:
                self.fire(key, start, end)
            if end - 1 + self.lateness <= self.watermark:
                del self.open[key, start, end]


class SlidingModel(Model):
    def __init__(self, size, slide, offset, lateness):
        super().__init__(lateness)
        self.size, self.slide, self.offset = size, slide, offset

    def add(self, record):
        key, value, time = record
        starts = [s for s in range(time - self.size + 1, time + 1) if (s - self.offset) % self.slide == 0]
        spans = [(start, start + self.size) for start in starts]
        found = [(span, [*self.open.get((key, *span), []), value]) for span in spans]
        self.put(key, found, record)


class SessionModel(Model):
    def __init__(self, gap, lateness):
        super().__init__(lateness)
        self.gap = gap

    def add(self, record):
        key, value, time = record
        start, end, values = time, time + self.gap, [value]
        for other, other_start, other_end in sorted(self.open):
            if other == key and other_start <= end and other_end >= start:
                start, end = min(start, other_start), max(end, other_end)
                values = values + self.open.pop((other, other_start, other_end))
        self.put(key, [((start, end), values)], record)


TIMES = st.integers(-40, 40)
#: records (key, value, time) in batches, and watermarks between them
STEPS = st.lists(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9), TIMES), min_size=1, max_size=6) | TIMES, max_size=15
)


def check_against(model, spec, steps, *, restarts=False):
    """Run both; with ``restarts``, state and timers move to another operator at each watermark."""
    spec = replace(spec, late_tag="late")
    fired, late = [], []

    def collect(harness):
        fired.extend((key, w.start, w.end, sorted(r[1] for r in rows)) for key, w, rows in harness.output.rows)
        late.extend(row for batch in harness.output.side.get("late", []) for row in batch.rows)

    harness = OperatorHarness(spec).__enter__()
    for step in [*steps, TIME_MAX_MS]:
        if isinstance(step, list):
            harness.process(step, [time for _, _, time in step])
            for record in step:
                model.add(record)
            continue
        if restarts:
            collect(harness)
            harness.__exit__()
            state = [part.snapshot(ALL_GROUPS) for part in (harness.head.backend, harness.head.timers)]
            harness = OperatorHarness(spec).__enter__()
            harness.head.backend.restore(state[0])
            harness.head.timers.restore(state[1])
            harness.head.timers.current_watermark = model.watermark
        harness.watermark(step)
        model.advance(step)
    harness.end()
    collect(harness)
    # Nothing is left behind.
    assert harness.head.timers.num_timers() == 0
    assert not any(harness.head.backend.snapshot(ALL_GROUPS))
    harness.__exit__()
    assert sorted(fired) == sorted(model.fired)
    assert sorted(late) == sorted(model.late)


@settings(deadline=None)
@given(STEPS, st.integers(1, 20), st.integers(1, 20), st.integers(-5, 5), st.integers(0, 15), st.booleans())
def test_sliding_windows_give_what_the_model_gives(steps, size, slide, offset, lateness, restarts):
    offset = max(-slide + 1, min(slide - 1, offset))
    spec = collecting(SlidingEventTimeWindows(size, slide, offset), allowed_lateness_ms=lateness)
    check_against(SlidingModel(size, slide, offset, lateness), spec, steps, restarts=restarts)


@settings(deadline=None)
@given(STEPS, st.integers(1, 15), st.integers(0, 15), st.booleans())
def test_sessions_give_what_the_model_gives(steps, gap, lateness, restarts):
    spec = collecting(EventTimeSessionWindows(gap), allowed_lateness_ms=lateness)
    check_against(SessionModel(gap, lateness), spec, steps, restarts=restarts)


@settings(deadline=None)
@given(STEPS, st.integers(1, 20))
def test_taking_up_groups_is_the_same_as_one_by_one(steps, size):
    outputs = []
    for trigger in (EventTimeTrigger(), Slow(EventTimeTrigger())):
        with OperatorHarness(spec_of(TumblingEventTimeWindows(size, 0), trigger, fold=SUM())) as harness:
            for step in [*steps, TIME_MAX_MS]:
                if isinstance(step, list):
                    harness.process([(k, v) for k, v, _ in step], [t for _, _, t in step])
                else:
                    harness.watermark(step)
            outputs.append(sorted(zip(harness.output.rows, harness.output.timestamps_ms, strict=True)))
    assert outputs[0] == outputs[1]


class Slow(Trigger):
    """A trigger that the operator does not know."""

    def __init__(self, nested):
        self._nested = nested
        for name in ("on_element", "on_event_time", "on_processing_time"):
            setattr(self, name, getattr(nested, name))

    on_element = on_event_time = on_processing_time = None

    def clear(self, window, ctx):
        self._nested.clear(window, ctx)


def SUM():
    return ReduceFold(FieldAggregate("sum", 1))


# --- what is kept -----------------------------------------------------------------------------------------------------


class Mean(AggregateFunction):
    def create_accumulator(self):
        return 0, 0

    def add(self, value, accumulator):
        return accumulator[0] + value[1], accumulator[1] + 1

    def get_result(self, accumulator):
        return accumulator[0] / accumulator[1]

    def merge(self, acc_a, acc_b):
        return acc_a[0] + acc_b[0], acc_a[1] + acc_b[1]


REDUCED = {
    TumblingEventTimeWindows: [("a", 4), ("a", 8), ("b", 2)],
    EventTimeSessionWindows: [("a", 1), ("a", 3), ("a", 8), ("b", 2)],
}
MEANS = {TumblingEventTimeWindows: [2, 2, 8], EventTimeSessionWindows: [1, 2, 3, 8]}
ROWS = [("a", 1), ("b", 2), ("a", 3), ("a", 8)]
STAMPS = [1, 2, 4, 7]


def run(spec, rows=ROWS, stamps=STAMPS, watermark=TIME_MAX_MS):
    with OperatorHarness(spec) as harness:
        harness.process(rows, stamps)
        harness.watermark(watermark)
        harness.end()
    return harness.output.rows


@pytest.mark.parametrize("assigner", [TumblingEventTimeWindows(5, 0), EventTimeSessionWindows(2)], ids=repr)
@pytest.mark.parametrize("evictor", [None, CountEvictor.of(100)], ids=["incremental", "evictor"])
def test_reduce_and_aggregate_give_one_result_a_window(assigner, evictor):
    reduced = run(spec_of(assigner, fold=ReduceFold(lambda x, y: (x[0], x[1] + y[1])), evictor=evictor))
    assert sorted(reduced) == REDUCED[type(assigner)]
    means = run(spec_of(assigner, fold=AggregateFold(Mean()), evictor=evictor))
    assert sorted(means) == sorted(float(mean) for mean in MEANS[type(assigner)])


def test_a_reduced_window_keeps_one_value_and_results_have_the_end_of_the_window_as_time():
    with OperatorHarness(spec_of(TumblingEventTimeWindows(10, 0), fold=SUM())) as harness:
        for number in range(5):
            harness.process([("a", number)], [number])
        entry = harness.head.backend.value_state(ValueStateDescriptor("$window-contents"))
        harness.head.backend.set_current_key("a")
        entry.set_current_namespace(TimeWindow(0, 10))
        assert entry.value() == (("a", 10),)
        harness.watermark(9)
        assert (harness.output.rows, harness.output.timestamps_ms) == ([("a", 10)], [9])


def test_sessions_merge_their_accumulators_when_an_element_joins_them():
    spec = spec_of(EventTimeSessionWindows(5), fold=AggregateFold(Mean()))
    assert run(spec, [("a", 1), ("a", 4), ("a", 10)], [0, 8, 4]) == [5.0]


def test_none_is_a_value_of_a_reduce_like_any_other():
    spec = spec_of(TumblingEventTimeWindows(10, 0), fold=ReduceFold(lambda x, y: None))
    assert run(spec, [("a", 1), ("a", 2)], [1, 2]) == [None]


def test_nan_keys_are_one_key():
    spec = spec_of(TumblingEventTimeWindows(10, 0), fold=SUM())
    rows = run(spec, [(float("nan"), 1), (float("nan"), 2)], [1, 2])
    assert [row[1] for row in rows] == [3]


def test_a_window_without_a_key_holds_everything():
    assert [(k, len(rows)) for k, _, rows in run(collecting(TumblingEventTimeWindows(10, 0), keys=(None,)))] == [
        (None, 4)
    ]


# --- lateness ---------------------------------------------------------------------------------------------------------


def test_late_elements_are_counted_or_go_to_their_side_output():
    spec = collecting(TumblingEventTimeWindows(5, 0))
    for late_tag in (None, "late"):
        with OperatorHarness(replace(spec, late_tag=late_tag)) as harness:
            harness.watermark(4)
            harness.process([("a", 1), ("a", 2)], [4, 5])
            metrics = harness.runtime_context.get_metrics_group().snapshot()
            dropped = next(value for name, value in metrics.items() if LATE_RECORDS_DROPPED in str(name))
            sides = [(b.rows, b.timestamps_ms) for b in harness.output.side.get("late", [])]
            assert (dropped, sides) == ((1, []) if late_tag is None else (0, [([("a", 1)], [4])]))


def test_a_late_but_allowed_element_fires_again_at_once():
    with OperatorHarness(collecting(TumblingEventTimeWindows(5, 0), allowed_lateness_ms=3)) as harness:
        harness.process([("a", 1)], [1])
        harness.watermark(6)
        harness.process([("a", 2)], [3])
        harness.watermark(7)
        harness.process([("a", 3)], [3])
        assert [rows for _, _, rows in harness.output.rows] == [[("a", 1)], [("a", 1), ("a", 2)]]


# --- triggers ---------------------------------------------------------------------------------------------------------


def values(rows):
    return [[row[1] for row in found] for _, _, found in rows]


def test_count_windows_fire_when_full_and_leave_nothing_behind():
    tens = [("a", number) for number in range(7)]
    with OperatorHarness(collecting(CountTumblingWindowAssigner(3))) as harness:
        harness.process(tens)
        assert values(harness.output.rows) == [[0, 1, 2], [3, 4, 5]]
        harness.process([("a", 7), ("a", 8)])
        contents = ValueStateDescriptor("$window-element-count").get_name()
        assert list(harness.head.backend.keys(contents)) == ["a"]
    assert values(run(collecting(CountSlidingWindowAssigner(4, 2)), tens, None)) == [[0, 1, 2, 3], [2, 3, 4, 5]]


def test_a_count_trigger_fires_again_and_again_and_purging_drops_what_fired():
    five = [("a", number) for number in range(5)]
    assert values(run(collecting(GlobalWindows(), CountTrigger.of(2)), five, None)) == [[0, 1], [0, 1, 2, 3]]
    purging = collecting(GlobalWindows(), PurgingTrigger.of(CountTrigger.of(2)))
    assert values(run(purging, five, None)) == [[0, 1], [2, 3]]


def test_counts_are_added_when_sessions_merge():
    spec = collecting(EventTimeSessionWindows(5), CountTrigger.of(3))
    assert values(run(spec, [("a", 1), ("a", 2), ("a", 3)], [0, 8, 4], watermark=0)) == [[1, 2, 3]]


def test_a_continuous_trigger_fires_in_between_and_at_the_end():
    spec = collecting(TumblingEventTimeWindows(100, 0), ContinuousEventTimeTrigger(10))
    with OperatorHarness(spec) as harness:
        harness.process([("a", 1)], [5])
        harness.watermark(10)
        harness.process([("a", 2)], [12])
        harness.watermark(25)
        assert values(harness.output.rows) == [[1], [1, 2]]
        harness.watermark(TIME_MAX_MS)
        assert values(harness.output.rows)[-1] == [1, 2]
        assert harness.head.timers.num_timers() == 0


def test_a_continuous_trigger_over_everything_comes_to_an_end():
    assert values(run(collecting(GlobalWindows(), ContinuousEventTimeTrigger(1)), [("a", 1)], [5]))[-1] == [1]


def test_a_continuous_processing_time_trigger_fires_by_the_clock_and_stops_with_the_window():
    clock = ManualClock(1003)
    spec = collecting(TumblingProcessingTimeWindows(25, 0), ContinuousProcessingTimeTrigger(10))
    with OperatorHarness(spec, clock=clock) as harness:
        harness.process([("a", 1)])
        fired = []
        while (due := harness.head.next_timer_ms()) is not None:
            clock.advance(due - clock.now_ms())
            harness.head.on_timer(clock.now_ms())
            fired.append(clock.now_ms())
        assert fired == [1011, 1021, 1025]
        assert values(harness.output.rows) == [[1]] * 3


def test_a_delta_trigger_fires_when_the_value_has_moved_far():
    spec = collecting(GlobalWindows(), PurgingTrigger.of(DeltaTrigger.of(5, lambda old, new: new[1] - old[1])))
    assert values(run(spec, [("a", n) for n in (0, 3, 6, 8, 12)], None)) == [[0, 3, 6], [8, 12]]


def test_a_trigger_of_the_program_keeps_its_state_by_key_and_window():
    class AtSum(Trigger):
        total = ReducingStateDescriptor("total", lambda x, y: x + y)

        def on_element(self, element, timestamp, window, ctx):
            total = ctx.get_partitioned_state(self.total)
            total.add(element[1])
            return TriggerResult.FIRE_AND_PURGE if total.get() >= 10 else TriggerResult.CONTINUE

        def on_processing_time(self, time, window, ctx):
            return TriggerResult.CONTINUE

        def on_event_time(self, time, window, ctx):
            return TriggerResult.CONTINUE

        def can_merge(self):
            return True

        def on_merge(self, window, ctx):
            ctx.merge_partitioned_state(self.total)

        def clear(self, window, ctx):
            ctx.get_partitioned_state(self.total).clear()

    rows = [("a", 4), ("b", 9), ("a", 5), ("a", 1)]
    for assigner in (TumblingEventTimeWindows(50, 0), EventTimeSessionWindows(20)):
        assert values(run(collecting(assigner, AtSum()), rows, [0, 1, 15, 12])) == [[4, 5, 1]]


class Returns(Trigger):
    def __init__(self, result):
        self.result = result

    def on_element(self, element, timestamp, window, ctx):
        return self.result

    on_processing_time = on_event_time = clear = on_element


@pytest.mark.parametrize("result", [None, True, "FIRE"])
def test_a_trigger_that_returns_no_result_is_named_with_what_it_returned(result):
    message = rf"Returns returned {result!r}; expected a TriggerResult(.|\n)*GlobalWindow of key 'a'"
    with pytest.raises(UserCodeError, match=message):
        run(collecting(GlobalWindows(), Returns(result)), [("a", 1)], None)


@pytest.mark.parametrize("windows", [None, TimeWindow(0, 5), [(0, 5)], 7])
def test_an_assigner_that_returns_no_windows_is_named_with_what_it_returned(windows):
    class Assigns(WindowAssigner):
        def assign_windows(self, element, timestamp, context):
            return windows

        def get_default_trigger(self, env):
            return EventTimeTrigger()

        def is_event_time(self):
            return True

    message = r"Assigns.assign_windows\(\) returned .*; expected a list of Window objects(.|\n)*on record: \('a', 1\)"
    with pytest.raises(UserCodeError, match=message):
        run(collecting(Assigns()), [("a", 1)], [1])


@pytest.mark.parametrize("method", ["evict_before", "evict_after"])
@pytest.mark.parametrize("kept", [None, [("a", 1)]])
def test_an_evictor_that_returns_no_elements_is_named_with_what_it_returned(method, kept):
    evictor = type("Drops", (Evictor,), {method: lambda self, elements, size, window, ctx: kept})()
    spec = collecting(GlobalWindows(), CountTrigger.of(1), evictor=evictor)
    with pytest.raises(UserCodeError, match=rf"{method}\(\) returned .*; expected those of the given elements"):
        run(spec, [("a", 1)], None)


def test_an_evictor_drops_elements_before_the_function():
    spec = collecting(GlobalWindows(), CountTrigger.of(2), evictor=CountEvictor.of(3))
    assert values(run(spec, [("a", n) for n in range(6)], None)) == [[0, 1], [1, 2, 3], [3, 4, 5]]


# --- processing time --------------------------------------------------------------------------------------------------


def test_processing_time_windows_fire_when_their_last_millisecond_is_over():
    clock = ManualClock(12)
    with OperatorHarness(collecting(TumblingProcessingTimeWindows(10, 0)), clock=clock) as harness:
        harness.process([("a", 1)])
        assert harness.head.next_timer_ms() == 20
        clock.advance(7)
        harness.process([("a", 2)])  # at 19: the window's last
        clock.advance(1)
        harness.head.on_timer(clock.now_ms())
        assert harness.output.rows == [("a", TimeWindow(10, 20), [("a", 1), ("a", 2)])]
        assert harness.head.next_timer_ms() is None


def test_processing_time_sessions_are_prolonged_by_each_element():
    clock = ManualClock(0)
    with OperatorHarness(collecting(ProcessingTimeSessionWindows(10)), clock=clock) as harness:
        for value in (1, 2):
            harness.process([("a", value)])
            clock.advance(8)
        assert harness.head.next_timer_ms() == 18
        clock.advance(2)
        harness.head.on_timer(clock.now_ms())
        assert harness.output.rows == [("a", TimeWindow(0, 18), [("a", 1), ("a", 2)])]


def test_in_batch_processing_time_ends_with_the_input_and_in_streaming_it_does_not():
    spec = collecting(TumblingProcessingTimeWindows(10_000, 0))
    assert run(spec) == []
    assert sorted(values(run(replace(spec, batch=True)))) == [[1, 3, 8], [2]]


# --- functions --------------------------------------------------------------------------------------------------------


def test_a_process_function_sees_its_window_and_keeps_state_by_window_and_by_key():
    class Count(ProcessWindowFunction):
        def process(self, key, context, elements):
            fired = context.window_state().get_state(ValueStateDescriptor("fired"))
            fired.update((fired.value() or 0) + 1)
            total = context.global_state().get_state(ValueStateDescriptor("total"))
            total.update((total.value() or 0) + len(list(elements)))
            yield key, context.window().start, fired.value(), total.value(), context.current_watermark()
            yield OutputTag("side"), key

        def clear(self, context):
            context.window_state().get_state(ValueStateDescriptor("fired")).clear()

    spec = spec_of(TumblingEventTimeWindows(5, 0), function=Count(), allowed_lateness_ms=10)
    with OperatorHarness(spec) as harness:
        harness.process([("a", 1), ("a", 2)], [1, 6])
        harness.watermark(9)
        harness.process([("a", 3)], [2])
        assert harness.output.rows == [("a", 0, 1, 1, 9), ("a", 5, 1, 2, 9), ("a", 0, 2, 4, 9)]
        assert [row for batch in harness.output.side["side"] for row in batch.rows] == ["a"] * 3
        harness.watermark(TIME_MAX_MS)
        assert list(harness.head.backend.keys("fired", TimeWindow(0, 5))) == []
        assert list(harness.head.backend.keys("total")) == ["a"]


def test_the_state_of_a_session_is_refused():
    class Wrong(ProcessWindowFunction):
        def process(self, key, context, elements):
            context.window_state()

    with pytest.raises(ProgramError, match="global_state"):
        run(spec_of(EventTimeSessionWindows(5), function=Wrong()))


def test_join_and_co_group_see_both_inputs():
    joined = WindowSpec(
        (KEY, KEY), TumblingEventTimeWindows(10, 0), EventTimeTrigger(), JoinedFunction(lambda x, y: x[1] + y[1], False)
    )
    grouped = replace(joined, function=CoGroupedFunction(lambda first, second: [(len(first), len(second))]))
    for spec, expected in ((joined, ["1x", "1y"]), (grouped, [(1, 2), (1, 0)])):
        with OperatorHarness(spec) as harness:
            harness.process([("a", "1"), ("b", "2")], [1, 2])
            harness.process([("a", "x"), ("a", "y")], [3, 9], input_index=1)
            harness.watermark(TIME_MAX_MS)
            assert harness.output.rows == expected


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_failing_window_function_names_operator_window_and_key():
    class Wrong(WindowFunction):
        def apply(self, key, window, inputs):
            yield 1 / 0

    with pytest.raises(
        UserCodeError, match=r"ZeroDivisionError.*\n.*'Test' on TimeWindow\(start=0, end=5\) of key 'a'"
    ):
        run(spec_of(TumblingEventTimeWindows(5, 0), function=Wrong()))


def test_a_failing_reduce_names_the_record():
    spec = spec_of(TumblingEventTimeWindows(5, 0), fold=ReduceFold(lambda x, y: x / 0))
    with pytest.raises(UserCodeError, match=r"on record: \('a', 3\)"):
        run(spec)


def test_a_window_function_that_returns_a_single_value_is_told_to_yield():
    class Wrong(WindowFunction):
        def apply(self, key, window, inputs):
            return 5

    with pytest.raises(UserCodeError, match="expected an iterable of records"):
        run(spec_of(TumblingEventTimeWindows(5, 0), function=Wrong()))


def test_an_unhashable_key_is_named():
    with pytest.raises(UserCodeError, match=r"\['a'\] of type list cannot be a key(.|\n)*on record: "):
        run(spec_of(TumblingEventTimeWindows(5, 0), fold=SUM()), [(["a"], 1)], [1])


def test_records_without_timestamps_are_refused_by_event_time():
    with pytest.raises(ProgramError, match="assign_timestamps_and_watermarks"):
        run(spec_of(TumblingEventTimeWindows(5, 0), fold=SUM()), [("a", 1)], None)
