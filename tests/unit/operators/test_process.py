"""Process functions in one subtask: state, timers, side outputs, event times, and how failures read."""

from __future__ import annotations

import sys

import pytest

from engine.core.clock import ManualClock
from engine.core.errors import ProgramError, UserCodeError
from engine.core.records import BATCH_ROWS_MAX, Row, rows_of
from engine.core.type_info import Types
from engine.operators.co_process import CoProcessSpec
from engine.operators.functions import CoMapFunction, FilterFunction, FlatMapFunction, KeySelector, MapFunction
from engine.operators.keys import FieldKey
from engine.operators.output_tag import OutputTag
from engine.operators.process import ProcessSpec
from engine.operators.process_functions import (
    CoProcessFunction,
    KeyedCoProcessFunction,
    KeyedProcessFunction,
    ProcessFunction,
    TimeDomain,
)
from engine.protocol.stream import WATERMARK_MAX_MS
from engine.state.descriptors import ListStateDescriptor, MapStateDescriptor, ValueStateDescriptor
from engine.state.timers import NO_WATERMARK_MS
from tests.testing.operator_harness import OperatorHarness

LATE = OutputTag("late", Types.STRING())


def side(harness, tag=LATE):
    return [row for batch in harness.output.side.get(tag.tag_id, []) for row in rows_of(batch).rows]


# --- without keys -----------------------------------------------------------------------------------


class Describe(ProcessFunction):
    def process_element(self, value, ctx):
        timers = ctx.timer_service()
        yield value, ctx.timestamp(), timers.current_watermark(), timers.current_processing_time()


def test_a_process_function_sees_time_and_its_results_keep_the_records_time():
    with OperatorHarness(ProcessSpec(Describe()), clock=ManualClock(77)) as harness:
        harness.process(["a"])
        harness.watermark(3)
        harness.process(["b", "c"], [5, 4])
    assert harness.output.rows == [("a", None, NO_WATERMARK_MS, 77), ("b", 5, 3, 77), ("c", 4, 3, 77)]
    assert harness.output.timestamps_ms == [None, 5, 4]
    assert harness.output.watermarks_ms == [3]


class Split(ProcessFunction):
    def process_element(self, value, ctx):
        if value < 0:
            return None
        if value % 2:
            return [(LATE, f"odd {value}")]
        return [value, (value, "pair"), (LATE, f"even {value}")]


def test_values_with_a_tag_go_to_the_side_output_and_others_to_the_main_one():
    with OperatorHarness(ProcessSpec(Split())) as harness:
        harness.process([-1, 1, 2], [10, 11, 12])
    assert harness.output.rows == [2, (2, "pair")]
    assert harness.output.timestamps_ms == [12, 12]
    assert side(harness) == ["odd 1", "even 2"]
    assert harness.output.side["late"][0].timestamps_ms == [11, 12]


class Explode(ProcessFunction):
    def process_element(self, value, ctx):
        for number in range(value):
            yield (LATE, number) if number % 3 == 0 else number


def test_a_record_that_yields_very_many_is_handed_on_in_batches():
    count = 4 * BATCH_ROWS_MAX + 1
    with OperatorHarness(ProcessSpec(Explode())) as harness:
        harness.process([5, count], [1, 2])
    assert len(harness.output.rows) + len(side(harness)) == 5 + count
    assert harness.output.rows[3:] == [n for n in range(count) if n % 3]
    assert harness.output.timestamps_ms[:5] == [1, 1, 1, 2, 2]
    assert max(map(len, harness.output.batches)) <= BATCH_ROWS_MAX


def test_a_row_type_makes_rows_of_main_and_side_results():
    tag = OutputTag("rows", Types.ROW_NAMED(["x"], [Types.INT()]))

    class Pairs(ProcessFunction):
        def process_element(self, value, ctx):
            yield value, 1
            yield tag, (value,)

    spec = ProcessSpec(Pairs(), output_type=Types.ROW_NAMED(["a", "b"], [Types.INT(), Types.INT()]))
    with OperatorHarness(spec) as harness:
        harness.process([5])
    assert harness.output.rows == [Row(a=5, b=1)]
    assert side(harness, tag) == [Row(x=5)]


class WantsState(ProcessFunction):
    def open(self, runtime_context):
        runtime_context.get_state(ValueStateDescriptor("seen"))

    def process_element(self, value, ctx):
        yield value


def test_state_without_keys_is_refused_when_it_is_asked_for():
    with (
        pytest.raises(UserCodeError, match=r"Keyed state 'seen' was asked for.*call key_by\(\.\.\.\)"),
        OperatorHarness(ProcessSpec(WantsState())),
    ):
        pass


def test_timers_without_keys_are_refused():
    class Timed(ProcessFunction):
        def process_element(self, value, ctx):
            ctx.timer_service().register_event_time_timer(5)

    with OperatorHarness(ProcessSpec(Timed())) as harness, pytest.raises(UserCodeError, match="Timers need a keyed"):
        harness.process([1])


@pytest.mark.parametrize(
    ("result", "message"),
    [("text", "would be cut into characters"), (5, "expected an iterable of records"), ([(LATE, 1, 2)], "tag, value")],
)
def test_results_that_cannot_be_meant_are_named_with_the_record(result, message):
    class Odd(ProcessFunction):
        def process_element(self, value, ctx):
            return result

    with OperatorHarness(ProcessSpec(Odd()), name="Odd") as harness:
        with pytest.raises(UserCodeError, match=message) as caught:
            harness.process(["the record"])
        assert "in operator 'Odd' on record: 'the record'" in str(caught.value)


# --- with keys --------------------------------------------------------------------------------------


class CountAndRemind(KeyedProcessFunction):
    """Counts per key; reminds 10 ms after the first record of a key in event time."""

    def open(self, runtime_context):
        self.count = runtime_context.get_state(ValueStateDescriptor("count"))

    def process_element(self, value, ctx):
        count = (self.count.value() or 0) + 1
        self.count.update(count)
        if count == 1:
            ctx.timer_service().register_event_time_timer(ctx.timestamp() + 10)
        yield ctx.get_current_key(), count

    def on_timer(self, timestamp, ctx):
        yield ctx.get_current_key(), self.count.value(), timestamp, ctx.timestamp(), ctx.time_domain()
        yield LATE, ctx.get_current_key()
        self.count.clear()


def test_state_and_event_timers_are_those_of_the_key():
    with OperatorHarness(ProcessSpec(CountAndRemind(), FieldKey(0))) as harness:
        harness.process([("a", 1), ("b", 1), ("a", 2)], [1, 0, 5])
        harness.watermark(9)
        assert harness.output.rows == [("a", 1), ("b", 1), ("a", 2)]
        harness.watermark(11)
    assert harness.output.rows[3:] == [
        ("b", 1, 10, 10, TimeDomain.EVENT_TIME),
        ("a", 2, 11, 11, TimeDomain.EVENT_TIME),
    ]
    assert harness.output.timestamps_ms == [1, 0, 5, 10, 11]
    assert side(harness) == ["b", "a"]
    assert harness.output.watermarks_ms == [9, 11]


def test_the_last_watermark_fires_all_event_timers():
    with OperatorHarness(ProcessSpec(CountAndRemind(), FieldKey(0))) as harness:
        harness.process([("a", 1)], [-(10**15)])
        harness.watermark(WATERMARK_MAX_MS)
    assert harness.output.rows[1][:3] == ("a", 1, -(10**15) + 10)


def test_results_of_timers_go_out_before_the_watermark_that_fired_them():
    order = []
    with OperatorHarness(ProcessSpec(CountAndRemind(), FieldKey(0))) as harness:
        harness.process([("a", 1)], [1])
        harness.output.emit = lambda batch: order.append("batch")
        harness.output.emit_side = lambda tag, batch: order.append("side")
        harness.output.emit_watermark = lambda watermark_ms: order.append("watermark")
        harness.watermark(100)
    assert order == ["batch", "side", "watermark"]


class Timeout(KeyedProcessFunction):
    """Fires when nothing came for 100 ms: each record deletes the timer of the one before."""

    def open(self, runtime_context):
        self.timer = runtime_context.get_state(ValueStateDescriptor("timer"))

    def process_element(self, value, ctx):
        timers = ctx.timer_service()
        if self.timer.value() is not None:
            timers.delete_processing_time_timer(self.timer.value())
        self.timer.update(timers.current_processing_time() + 100)
        timers.register_processing_time_timer(self.timer.value())

    def on_timer(self, timestamp, ctx):
        return [(ctx.get_current_key(), timestamp, ctx.time_domain().name)]


def test_processing_timers_fire_by_the_clock_and_may_be_put_off():
    clock = ManualClock(1000)
    with OperatorHarness(ProcessSpec(Timeout(), FieldKey(0)), clock=clock) as harness:
        assert harness.head.next_timer_ms() is None
        harness.process([("a", 1), ("b", 1)], [5, 6])
        clock.advance(50)
        harness.process([("a", 2)], [7])
        assert harness.head.next_timer_ms() == 1100
        clock.advance(50)
        harness.head.on_timer(clock.now_ms())
        assert harness.output.rows == [("b", 1100, "PROCESSING_TIME")]
        assert harness.head.next_timer_ms() == 1150
        clock.advance(500)
        harness.head.on_timer(clock.now_ms())
    assert harness.output.rows[1:] == [("a", 1150, "PROCESSING_TIME")]
    assert harness.output.timestamps_ms == [None, None]  # not the event time of some record


def test_a_value_of_another_type_than_declared_fails_the_task_by_state_operator_and_record():
    class Keep(KeyedProcessFunction):
        def open(self, runtime_context):
            self.state = runtime_context.get_state(ValueStateDescriptor("last", Types.INT()))

        def process_element(self, value, ctx):
            self.state.update(value[1])

    with OperatorHarness(ProcessSpec(Keep(), FieldKey(0)), name="Keep") as harness:
        harness.process([("a", 1)], [1])
        told = r"'last' is declared Integer.*'x' of type str(.|\n)*in operator 'Keep' on record: .*'b', 'x'"
        with pytest.raises(UserCodeError, match=told):
            harness.process([("b", "x")], [2])


def test_state_in_open_and_in_close_is_refused_for_there_is_no_key():
    class InClose(CountAndRemind):
        def close(self):
            self.count.value()

    harness = OperatorHarness(ProcessSpec(InClose(), FieldKey(0)), name="Count")
    harness.__enter__()
    harness.process([("a", 1)], [1])
    with pytest.raises(UserCodeError, match=r"no current key(.|\n)*in operator 'Count'"):
        harness.__exit__()
    harness._work_dir.cleanup()

    class InOpen(CountAndRemind):
        def open(self, runtime_context):
            runtime_context.get_list_state(ListStateDescriptor("l")).add(1)

    with pytest.raises(UserCodeError, match="no current key"), OperatorHarness(ProcessSpec(InOpen(), FieldKey(0))):
        pass


def test_a_failure_names_operator_and_record_and_that_of_a_timer_key_and_time():
    class Fails(KeyedProcessFunction):
        def process_element(self, value, ctx):
            ctx.timer_service().register_event_time_timer(5)
            yield 1 / value[1]

        def on_timer(self, timestamp, ctx):
            raise ValueError("too late")
            yield

    with OperatorHarness(ProcessSpec(Fails(), FieldKey(0)), name="Ratio") as harness:
        with pytest.raises(UserCodeError) as caught:
            harness.process([("a", 1), ("b", 0)])
        assert "ZeroDivisionError: division by zero\n  in operator 'Ratio' on record: ('b', 0)" in str(caught.value)
        with pytest.raises(UserCodeError) as caught:
            harness.watermark(10)
        assert "ValueError: too late\n  in operator 'Ratio' on event-time timer 5 of key 'a'" in str(caught.value)
        assert "yield 1 / value[1]" not in str(caught.value)


@pytest.mark.parametrize("where", ["record", "timer"])
def test_leaving_the_process_is_a_failure_like_any_other(where):
    class Leaves(KeyedProcessFunction):
        def process_element(self, value, ctx):
            ctx.timer_service().register_event_time_timer(5)
            if where == "record":
                sys.exit(3)

        def on_timer(self, timestamp, ctx):
            sys.exit(3)

    with OperatorHarness(ProcessSpec(Leaves(), FieldKey(0))) as harness, pytest.raises(UserCodeError) as caught:
        harness.process([("a", 1)])
        harness.watermark(10)
    assert "SystemExit: 3\n  in operator 'Test' on " in str(caught.value)


def test_a_timer_without_on_timer_and_a_time_that_is_no_int_are_explained():
    class NoHandler(ProcessFunction):
        def process_element(self, value, ctx):
            ctx.timer_service().register_event_time_timer(value[1])

    with OperatorHarness(ProcessSpec(NoHandler(), FieldKey(0))) as harness:
        with pytest.raises(UserCodeError, match=r"must be whole milliseconds \(int\), got 1\.5 of type float"):
            harness.process([("a", 1.5)])
        harness.process([("a", 1)])
        with pytest.raises(UserCodeError, match=r"NoHandler registers timers and has no on_timer\(\)"):
            harness.watermark(2)


@pytest.mark.parametrize("time", [1 << 63, -(1 << 63) - 1])
def test_a_timer_that_no_time_ever_reaches_is_refused(time):
    class Never(KeyedProcessFunction):
        def process_element(self, value, ctx):
            ctx.timer_service().register_event_time_timer(time)

    error = pytest.raises(UserCodeError, match=rf"must fit into 64 bits, got {time}")
    with OperatorHarness(ProcessSpec(Never(), FieldKey(0))) as harness, error:
        harness.process([("a", 1)])


def test_a_failing_key_selector_names_the_record():
    class ByName(KeySelector):
        def get_key(self, value):
            return value["name"]

    with (
        OperatorHarness(ProcessSpec(CountAndRemind(), ByName()), name="Count") as harness,
        pytest.raises(UserCodeError, match=r"KeyError: 'name'\n  in operator 'Count' on record: {'x': 1}"),
    ):
        harness.process([{"name": "a"}, {"x": 1}], [1, 1])


def test_time_domain_outside_a_timer_is_refused_also_after_one_has_fired():
    class Asks(KeyedProcessFunction):
        def process_element(self, value, ctx):
            if value[1]:
                ctx.time_domain()
            ctx.timer_service().register_event_time_timer(1)

    with OperatorHarness(ProcessSpec(Asks(), FieldKey(0))) as harness:
        harness.process([("a", False)])
        harness.watermark(1)
        with pytest.raises(UserCodeError, match=r"time_domain\(\) is for on_timer\(\)"):
            harness.process([("a", True)])


# --- map, flat_map and filter with state ------------------------------------------------------------


class Distinct(FilterFunction):
    def open(self, runtime_context):
        self.seen = runtime_context.get_map_state(MapStateDescriptor("seen"))

    def filter(self, value):
        if value in self.seen:
            return False
        self.seen.put(value, True)
        return True


class Numbered(MapFunction):
    def open(self, runtime_context):
        self.number = runtime_context.get_state(ValueStateDescriptor("number"))

    def map(self, value):
        self.number.update((self.number.value() or 0) + 1)
        return (*value, self.number.value())


class InPairs(FlatMapFunction):
    def open(self, runtime_context):
        self.waiting = runtime_context.get_state(ValueStateDescriptor("waiting"))

    def flat_map(self, value):
        before = self.waiting.value()
        if before is None:
            self.waiting.update(value)
        else:
            self.waiting.clear()
            yield before, value


@pytest.mark.parametrize(
    ("function", "method", "expected"),
    [
        (Distinct(), "filter", [("a", 1), ("b", 1), ("a", 2)]),
        (Numbered(), "map", [("a", 1, 1), ("b", 1, 1), ("a", 1, 2), ("a", 2, 3)]),
        (InPairs(), "flat_map", [(("a", 1), ("a", 1))]),
    ],
)
def test_functions_of_one_record_may_keep_keyed_state(function, method, expected):
    with OperatorHarness(ProcessSpec(function, FieldKey(0), method=method)) as harness:
        harness.process([("a", 1), ("b", 1)], [1, 2])
        harness.process([("a", 1), ("a", 2)], [3, 4])
    assert harness.output.rows == expected
    assert len(harness.output.timestamps_ms) == len(expected)


# --- two inputs -------------------------------------------------------------------------------------


class MatchOrGiveUp(KeyedCoProcessFunction):
    """Joins an order with its payment; an order unpaid after 10 ms goes to the side."""

    def open(self, runtime_context):
        self.order = runtime_context.get_state(ValueStateDescriptor("order"))

    def process_element1(self, value, ctx):
        self.order.update(value)
        ctx.timer_service().register_event_time_timer(ctx.timestamp() + 10)

    def process_element2(self, value, ctx):
        order = self.order.value()
        if order is not None:
            ctx.timer_service().delete_event_time_timer(order[1] + 10)
            self.order.clear()
            yield order, value

    def on_timer(self, timestamp, ctx):
        yield LATE, self.order.value()


def test_two_keyed_inputs_share_state_and_timers_of_a_key():
    spec = CoProcessSpec(MatchOrGiveUp(), (FieldKey(0), lambda payment: payment["order"]))
    with OperatorHarness(spec) as harness:
        harness.process([("o1", 1), ("o2", 2)], [1, 2])
        harness.process([{"order": "o2"}, {"order": "o3"}], [3, 3], input_index=1)
        harness.watermark(100)
    assert harness.output.rows == [(("o2", 2), {"order": "o2"})]
    assert harness.output.timestamps_ms == [3]
    assert side(harness) == [("o1", 1)]


def test_two_inputs_without_keys():
    class Both(CoProcessFunction):
        def process_element1(self, value, ctx):
            yield "first", value, ctx.timestamp()

        def process_element2(self, value, ctx):
            yield "second", value, ctx.timestamp()

    with OperatorHarness(CoProcessSpec(Both())) as harness:
        harness.process([1], [5])
        harness.process([2], input_index=1)
    assert harness.output.rows == [("first", 1, 5), ("second", 2, None)]


def test_co_map_with_state_on_keyed_inputs():
    class Toggle(CoMapFunction):
        def open(self, runtime_context):
            self.on = runtime_context.get_state(ValueStateDescriptor("on"))

        def map1(self, value):
            self.on.update(value[1])
            return "switch", value

        def map2(self, value):
            return value, self.on.value()

    with OperatorHarness(CoProcessSpec(Toggle(), (FieldKey(0), FieldKey(0)), None, "map")) as harness:
        harness.process([("a", True)])
        harness.process([("a", 1), ("b", 1)], input_index=1)
    assert harness.output.rows == [("switch", ("a", True)), (("a", 1), True), (("b", 1), None)]


def test_output_tags_need_a_name():
    for tag_id in ("", None, 5):
        with pytest.raises(ProgramError, match="not empty"):
            OutputTag(tag_id)
