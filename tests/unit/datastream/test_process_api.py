"""What process(), broadcast() and side outputs refuse while the program is built, and what they put into the plan."""

from __future__ import annotations

import json

import pytest

from engine.common import Configuration, Types
from engine.core.errors import ProgramError
from engine.datastream import (
    BroadcastProcessFunction,
    BroadcastStream,
    CoProcessFunction,
    KeyedBroadcastProcessFunction,
    KeyedCoProcessFunction,
    KeyedProcessFunction,
    OutputTag,
    ProcessFunction,
    StreamExecutionEnvironment,
)
from engine.datastream.functions import MapFunction
from engine.datastream.state import (
    AggregatingStateDescriptor,
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    StateTtlConfig,
    ValueStateDescriptor,
)
from engine.datastream.time_domain import TimeDomain
from engine.datastream.timerservice import TimerService
from engine.operators.process import ProcessSpec
from engine.operators.stateless import MapSpec

RULES = MapStateDescriptor("rules", Types.STRING(), Types.INT())


@pytest.fixture
def env():
    return StreamExecutionEnvironment.get_execution_environment(Configuration())


@pytest.fixture
def stream(env):
    return env.from_collection([("a", 1)], Types.TUPLE([Types.STRING(), Types.INT()]))


class Process(ProcessFunction):
    def process_element(self, value, ctx):
        yield value


class Keyed(KeyedProcessFunction):
    def process_element(self, value, ctx):
        yield value


class Co(CoProcessFunction):
    def process_element1(self, value, ctx):
        yield value

    def process_element2(self, value, ctx):
        yield value


class KeyedCo(Co, KeyedCoProcessFunction):
    pass


class Broadcast(BroadcastProcessFunction):
    def process_element(self, value, ctx):
        yield value

    def process_broadcast_element(self, value, ctx):
        yield value


class KeyedBroadcast(KeyedBroadcastProcessFunction):
    process_element = Broadcast.process_element
    process_broadcast_element = Broadcast.process_broadcast_element


def test_functions_of_the_wrong_kind_are_named_with_the_one_expected(stream):
    keyed = stream.key_by(0)
    with_rules = stream.broadcast(RULES)
    for build, message in (
        (lambda: stream.process(Keyed()), r"process\(Keyed\(\)\): a KeyedProcessFunction needs key_by"),
        (lambda: stream.process(Process), r"got a class; pass an object of it: Process\(\)"),
        (lambda: stream.process(lambda value, ctx: [value]), "expected a ProcessFunction object"),
        (lambda: keyed.process(Co()), "expected a KeyedProcessFunction or ProcessFunction object"),
        (lambda: stream.connect(stream).process(Keyed()), "expected a CoProcessFunction or KeyedCoProcessFunction"),
        (lambda: keyed.connect(with_rules).process(Broadcast()), "is keyed; expected a KeyedBroadcastProcessFunction"),
        (lambda: stream.connect(with_rules).process(KeyedBroadcast()), "is not keyed; expected a BroadcastProcess"),
        (lambda: stream.connect(with_rules).process(Process()), "expected a BroadcastProcessFunction or Keyed"),
        (lambda: stream.connect(5), "expected a DataStream or a BroadcastStream"),
        (lambda: stream.broadcast(ValueStateDescriptor("v")), "expected MapStateDescriptors"),
        (lambda: stream.broadcast(RULES, RULES), "two of the descriptors have one name"),
        (lambda: stream.get_side_output("late"), "expected an OutputTag"),
        (lambda: stream.map(str).get_side_output(OutputTag("late")), "'Map' has no side outputs. They come from"),
    ):
        with pytest.raises(ProgramError, match=message):
            build()

    class Async(ProcessFunction):
        async def process_element(self, value, ctx):
            yield value

    with pytest.raises(ProgramError, match=r"process\(Async\(\)\): process_element is async"):
        stream.process(Async())

    class OnlyKeyedCo(KeyedCoProcessFunction):
        process_element1 = process_element2 = Co.process_element1

    with pytest.raises(ProgramError, match="needs both streams keyed"):
        stream.connect(stream).process(OnlyKeyedCo())


def test_descriptors_refuse_what_cannot_work():
    for make, message in (
        (lambda: ValueStateDescriptor(""), "expected a name"),
        (lambda: ValueStateDescriptor("v", "INT"), "expected a type such as Types.INT"),
        (lambda: ListStateDescriptor("l", int), "expected a type such as Types.INT"),
        (lambda: MapStateDescriptor("m", Types.STRING(), int), "expected a type such as Types.INT"),
        (lambda: ReducingStateDescriptor("sum", 5), "neither a function of two values"),
        (lambda: AggregatingStateDescriptor("mean", Process()), "has no create_accumulator, add, get_result, merge"),
    ):
        with pytest.raises(ProgramError, match=message):
            make()
    assert ListStateDescriptor("l", Types.INT()).type_info == Types.LIST(Types.INT())
    assert RULES.type_info == Types.MAP(Types.STRING(), Types.INT())
    assert StateTtlConfig.__name__ == "StateTtlConfig"


def test_a_side_output_has_its_own_type_and_no_settings(stream):
    tag = OutputTag("late", Types.STRING())
    late = stream.process(Process(), Types.INT()).get_side_output(tag)
    assert late.get_type() == Types.STRING()
    assert late.rebalance().get_type() == Types.STRING()
    with pytest.raises(ProgramError, match="A side output has no settings of its own"):
        late.set_parallelism(2)


def test_only_functions_that_can_ask_for_state_pay_for_it(stream):
    class Plain(MapFunction):
        def map(self, value):
            return value

    class Opened(Plain):
        def open(self, runtime_context):
            self.subtask = runtime_context.get_index_of_this_subtask()

    class Stateful(Plain):
        def open(self, runtime_context):
            self.context = runtime_context

    keyed = stream.key_by(0)
    assert isinstance(keyed.map(lambda value: value)._node.spec, MapSpec)
    assert isinstance(keyed.map(Plain())._node.spec, MapSpec)
    assert isinstance(keyed.map(Opened())._node.spec, MapSpec)
    assert isinstance(keyed.map(Stateful())._node.spec, ProcessSpec)
    assert isinstance(stream.map(Stateful())._node.spec, MapSpec)


def test_names_and_ways_in_the_plan(env, stream):
    keyed = stream.key_by(0)
    assert isinstance(stream.broadcast(RULES), BroadcastStream)
    stream.process(Process()).print()
    keyed.process(Keyed()).print()
    keyed.connect(keyed).process(KeyedCo()).print()
    keyed.connect(stream.broadcast(RULES)).process(KeyedBroadcast()).print()
    nodes = {node["type"]: node for node in json.loads(env.get_execution_plan())["nodes"]}
    ways = {name: [p["ship_strategy"] for p in node.get("predecessors", [])] for name, node in nodes.items()}
    assert ways["KeyedProcess"] == ["HASH"]
    assert ways["Co-Keyed-Process"] == ["HASH", "HASH"]
    assert ways["Co-Process-Broadcast-Keyed"] == ["HASH", "BROADCAST"]
    assert "Process" in ways


def test_time_domain_and_timer_service_are_where_pyflink_has_them():
    assert [domain.name for domain in TimeDomain] == ["EVENT_TIME", "PROCESSING_TIME"]
    assert TimerService.__abstractmethods__ >= {"current_watermark", "register_event_time_timer"}
