"""Whole programs with state, timers, side outputs and broadcast streams in a local cluster, against plain loops."""

from __future__ import annotations

import collections
import random
import re
import time

import pytest

from engine.common import Configuration, Duration, RestartStrategies, Row, Types, WatermarkStrategy
from engine.core.errors import JobExecutionError
from engine.datastream import (
    BroadcastProcessFunction,
    KeyedBroadcastProcessFunction,
    KeyedCoProcessFunction,
    KeyedProcessFunction,
    OutputTag,
    ProcessFunction,
    RuntimeExecutionMode,
    StreamExecutionEnvironment,
)
from engine.datastream.functions import AggregateFunction, CheckpointedFunction, FilterFunction, MapFunction
from engine.datastream.state import (
    AggregatingStateDescriptor,
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    StateTtlConfig,
    ValueStateDescriptor,
)

LATE = OutputTag("late", Types.STRING())
ROWS = [(f"k{number % 7}", number) for number in range(200)]


@pytest.fixture(params=[RuntimeExecutionMode.STREAMING, RuntimeExecutionMode.BATCH], ids=["streaming", "batch"])
def env(request):
    environment = StreamExecutionEnvironment.get_execution_environment(Configuration())
    environment.set_parallelism(2)
    environment.set_runtime_mode(request.param)
    return environment


def collected(stream):
    with stream.execute_and_collect() as results:
        return list(results)


class Spread(AggregateFunction):
    def create_accumulator(self):
        return None

    def add(self, value, accumulator):
        low, high = accumulator or (value, value)
        return min(low, value), max(high, value)

    def get_result(self, accumulator):
        return accumulator[1] - accumulator[0]

    def merge(self, acc_a, acc_b):
        return min(acc_a[0], acc_b[0]), max(acc_a[1], acc_b[1])


class AllStates(KeyedProcessFunction):
    """Keeps the same facts in every kind of state."""

    def open(self, runtime_context):
        ttl = StateTtlConfig.new_builder(Duration.of_hours(1)).build()
        value = ValueStateDescriptor("count", Types.INT())
        value.enable_time_to_live(ttl)
        self.count = runtime_context.get_state(value)
        self.elements = runtime_context.get_list_state(ListStateDescriptor("list", Types.INT()))
        self.parity = runtime_context.get_map_state(MapStateDescriptor("map", Types.INT(), Types.INT()))
        total = ReducingStateDescriptor("sum", lambda a, b: a + b, Types.INT())
        self.total = runtime_context.get_reducing_state(total)
        self.spread = runtime_context.get_aggregating_state(AggregatingStateDescriptor("spread", Spread(), None))

    def process_element(self, value, ctx):
        key, number = value
        assert key == ctx.get_current_key()
        self.count.update((self.count.value() or 0) + 1)
        self.elements.add(number)
        self.parity.put(number % 2, (self.parity.get(number % 2) or 0) + 1)
        self.total.add(number)
        self.spread.add(number)
        yield key, self.count.value(), sorted(self.elements.get()), dict(self.parity.items()), self.total.get()


def test_every_kind_of_state_is_kept_by_key(env):
    results = collected(env.from_collection(ROWS).key_by(0).process(AllStates()))
    last = {}
    for key, count, *facts in results:
        if count > last.get(key, (0,))[0]:
            last[key] = (count, *facts)
    numbers = collections.defaultdict(list)
    for key, number in ROWS:
        numbers[key].append(number)
    assert len(results) == len(ROWS)
    assert last == {
        key: (len(own), sorted(own), {p: sum(n % 2 == p for n in own) for p in (0, 1)}, sum(own))
        for key, own in numbers.items()
    }


class Distinct(FilterFunction):
    def open(self, runtime_context):
        self.seen = runtime_context.get_state(ValueStateDescriptor("seen", Types.BOOLEAN()))

    def filter(self, value):
        if self.seen.value():
            return False
        self.seen.update(True)
        return True


def test_a_filter_with_state_keeps_the_first_of_each_key(env):
    words = ["to", "be", "or", "not", "to", "be"] * 50
    stream = env.from_collection(words).rebalance().key_by(lambda word: word).filter(Distinct())
    assert sorted(collected(stream)) == ["be", "not", "or", "to"]


class AtTheEndOfEachMinute(KeyedProcessFunction):
    """Counts by minute with event timers, as a tumbling window would; what is late goes to the side."""

    def open(self, runtime_context):
        self.counts = runtime_context.get_map_state(MapStateDescriptor("counts", Types.LONG(), Types.INT()))

    def process_element(self, value, ctx):
        end = ctx.timestamp() // 60_000 * 60_000 + 59_999
        if end <= ctx.timer_service().current_watermark():
            yield LATE, f"{value[0]}@{value[1]}"
        else:
            self.counts.put(end, (self.counts.get(end) or 0) + 1)
            ctx.timer_service().register_event_time_timer(end)

    def on_timer(self, timestamp, ctx):
        yield Row(key=ctx.get_current_key(), end=timestamp, count=self.counts.get(timestamp))
        self.counts.remove(timestamp)


def test_event_timers_fire_across_subtasks_and_at_the_end_and_nothing_is_lost(env):
    shuffled = [(f"k{number % 5}", number * 7919 % 600_000 - 300_000) for number in range(1000)]  # also before 1970
    random.Random(1).shuffle(shuffled)
    strategy = WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_seconds(600)).with_timestamp_assigner(
        lambda value, _: value[1]
    )
    stream = env.from_collection(shuffled).assign_timestamps_and_watermarks(strategy)
    results = collected(stream.key_by(0).process(AtTheEndOfEachMinute()))
    expected = collections.Counter((key, at // 60_000 * 60_000 + 59_999) for key, at in shuffled)
    assert {(row.key, row.end): row.count for row in results} == dict(expected)


def test_a_side_output_is_a_stream_of_its_own():
    env = StreamExecutionEnvironment.get_execution_environment(Configuration())
    env.set_parallelism(2)

    class Sort(ProcessFunction):
        def process_element(self, value, ctx):
            if value % 10 == 0:
                yield LATE, f"ten {value}"
            yield value

    main = env.from_collection(range(100)).rebalance().process(Sort(), Types.INT())
    tens = main.get_side_output(LATE)
    together = tens.map(lambda text: text.upper()).union(main.filter(lambda n: n > 97).map(str))
    keyed = tens.key_by(lambda text: text[-1]).map(lambda text: f"keyed {text}")
    found = collected(together.union(keyed))
    tens_expected = [f"{way} {n}" for n in range(0, 100, 10) for way in ("TEN", "keyed ten")]
    assert sorted(found) == sorted(["98", "99", *tens_expected])


class Enriched(BroadcastProcessFunction):
    RULES = MapStateDescriptor("rules", Types.STRING(), Types.STRING())

    def process_element(self, value, ctx):
        if value == "wait":
            return
        name = ctx.get_broadcast_state(self.RULES).get(value)
        yield (value, name)

    def process_broadcast_element(self, value, ctx):
        state = ctx.get_broadcast_state(self.RULES)
        state.put(*value)
        yield ("rule", value[0])


def test_every_subtask_gets_every_broadcast_element(env):
    rules = env.from_collection([("de", "Germany"), ("fr", "France")])
    stream = env.from_collection(["wait"] * 10).rebalance()
    results = collected(stream.connect(rules.broadcast(Enriched.RULES)).process(Enriched()))
    assert sorted(results) == sorted([("rule", "de"), ("rule", "fr")] * 2)


class Alerts(KeyedBroadcastProcessFunction):
    LIMITS = MapStateDescriptor("limits", Types.STRING(), Types.INT())

    def open(self, runtime_context):
        self.total = runtime_context.get_state(ValueStateDescriptor("total", Types.INT()))

    def process_element(self, value, ctx):
        self.total.update((self.total.value() or 0) + value[1])
        ctx.timer_service().register_event_time_timer(2**62)
        return ()

    def process_broadcast_element(self, value, ctx):
        ctx.get_broadcast_state(self.LIMITS).put("limit", value)

    def on_timer(self, timestamp, ctx):
        # At the end of all input, so both inputs have been read, in whatever order.
        if self.total.value() > ctx.get_broadcast_state(self.LIMITS).get("limit"):
            yield ctx.get_current_key(), self.total.value()


def test_keyed_state_beside_broadcast_state(env):
    limits = env.from_collection([1, 2800]).broadcast(Alerts.LIMITS)
    results = collected(env.from_collection(ROWS).key_by(0).connect(limits).process(Alerts()))
    totals = collections.Counter()
    for key, number in ROWS:
        totals[key] += number
    assert sorted(results) == sorted((key, total) for key, total in totals.items() if total > 2800)


class Join(KeyedCoProcessFunction):
    def open(self, runtime_context):
        self.left = runtime_context.get_list_state(ListStateDescriptor("left", Types.INT()))
        self.right = runtime_context.get_list_state(ListStateDescriptor("right", Types.INT()))

    def process_element1(self, value, ctx):
        self.left.add(value[1])
        for other in self.right:
            yield value[0], value[1], other

    def process_element2(self, value, ctx):
        self.right.add(value[1])
        for other in self.left:
            yield value[0], other, value[1]


def test_a_join_in_keyed_state_finds_every_pair(env):
    left = [(number % 5, number) for number in range(30)]
    right = [(number % 5, -number) for number in range(20)]
    streams = env.from_collection(left).connect(env.from_collection(right))
    results = collected(streams.key_by(lambda pair: pair[0], lambda pair: pair[0]).process(Join()))
    assert sorted(results) == sorted((k, a, b) for k, a in left for other, b in right if k == other)


class Reminder(KeyedProcessFunction):
    def process_element(self, value, ctx):
        now_ms = ctx.timer_service().current_processing_time()
        ctx.timer_service().register_processing_time_timer(now_ms + 20)
        ctx.timer_service().register_processing_time_timer(now_ms + 20)

    def on_timer(self, timestamp, ctx):
        yield ctx.get_current_key(), ctx.timer_service().current_processing_time() >= timestamp, ctx.time_domain().name


def test_processing_timers_fire_while_no_record_comes():
    env = StreamExecutionEnvironment.get_execution_environment(Configuration())
    env.set_parallelism(1)
    source = env.add_source(_waiting_source())
    with source.key_by(lambda value: value).process(Reminder()).execute_and_collect() as results:
        # The source gives no more: only the clock can make these.
        assert {next(results), next(results)} == {("a", True, "PROCESSING_TIME"), ("b", True, "PROCESSING_TIME")}


def _waiting_source():
    from engine.datastream.functions import SourceFunction

    class Waiting(SourceFunction):
        def __init__(self):
            self.cancelled = False

        def run(self):
            import time

            yield "a"
            yield "b"
            while not self.cancelled:
                time.sleep(0.01)

        def cancel(self):
            self.cancelled = True

    return Waiting()


class FailsInTimer(KeyedProcessFunction):
    def process_element(self, value, ctx):
        ctx.timer_service().register_event_time_timer(17)

    def on_timer(self, timestamp, ctx):
        raise ValueError("the user's error")


def test_a_failing_timer_fails_the_job_with_key_and_time(env):
    with pytest.raises(JobExecutionError) as caught:
        collected(env.from_collection([("a", 1)]).key_by(0).process(FailsInTimer()).name("Fails"))
    assert "ValueError: the user's error" in str(caught.value)
    told = r"in operator 'Fails' on event-time timer 17 of key 'a'\n  in subtask [12] of 2\n"
    assert re.search(told, str(caught.value)), caught.value


class CountsWithoutKey(MapFunction):
    def open(self, runtime_context):
        self.count = runtime_context.get_state(ValueStateDescriptor("count"))

    def map(self, value):
        return value


def test_state_without_a_key_fails_the_job_and_says_what_to_do(env):
    with pytest.raises(JobExecutionError, match=r"'count' was asked for.*call key_by\(\.\.\.\) before it"):
        collected(env.from_collection([1]).map(CountsWithoutKey()))


class Numbered(MapFunction, CheckpointedFunction):
    """Numbers its records, in operator state."""

    def initialize_state(self, context):
        self.kept = context.get_operator_state_store().get_list_state(ListStateDescriptor("number"))
        self.number = max(self.kept.get(), default=0)

    def snapshot_state(self, context):
        self.kept.update([self.number])

    def map(self, value):
        self.number += 1
        return self.number


class FailsOnce(MapFunction):
    def __init__(self, mark):
        self.mark = mark

    def map(self, value):
        time.sleep(0.001)
        if value == 300 and not self.mark.exists():
            self.mark.touch()
            raise RuntimeError("as planned")
        return value


def test_operator_state_goes_on_where_the_checkpoint_was(tmp_path):
    env = StreamExecutionEnvironment.get_execution_environment(Configuration()).set_parallelism(1)
    env.set_runtime_mode(RuntimeExecutionMode.STREAMING)
    env.enable_checkpointing(20)
    env.set_restart_strategy(RestartStrategies.fixed_delay_restart(3, 10))
    numbers = env.from_sequence(1, 500).map(Numbered()).rebalance().map(FailsOnce(tmp_path / "failed"))
    assert sorted(collected(numbers)) == list(range(1, 501))
    assert (tmp_path / "failed").exists()
