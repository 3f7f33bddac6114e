"""Functions with operator state: lists that are dealt out, lists that all get, and maps; after crashes, rescaled."""

from __future__ import annotations

import pytest

from engine.connectors.generator import DataGeneratorSpec
from engine.connectors.simple import FunctionSinkSpec
from engine.core.errors import UserCodeError
from engine.operators.checkpointed_function import CheckpointedFunction
from engine.operators.co_process import CoProcessSpec
from engine.operators.functions import CoMapFunction, FlatMapFunction, MapFunction, SinkFunction
from engine.operators.keys import FieldKey
from engine.operators.process import ProcessSpec
from engine.operators.process_functions import KeyedProcessFunction
from engine.operators.stateless import CoMapSpec, FlatMapSpec, MapSpec
from engine.state.descriptors import ListStateDescriptor, MapStateDescriptor, ValueStateDescriptor
from tests.testing.checkpointed_job import CheckpointedJob
from tests.testing.operator_harness import OperatorHarness


class InThrees(FlatMapFunction, CheckpointedFunction):
    """Holds records back until it has three."""

    def __init__(self):
        self.held = []

    def initialize_state(self, context):
        self.kept = context.get_operator_state_store().get_list_state(ListStateDescriptor("held"))
        self.held = self.kept.get() if context.is_restored() else []

    def snapshot_state(self, context):
        self.kept.update(self.held)

    def flat_map(self, value):
        self.held.append(value)
        if len(self.held) >= 3:
            yield tuple(self.held)
            self.held = []


def play(job, records):
    for number, record in enumerate(records):
        job.harnesses[number % job.parallelism].process([record])


@pytest.mark.parametrize("parallelisms", [[1], [1, 3, 2, 1], [3, 1, 3]])
def test_what_a_function_holds_back_survives_crashes_at_any_parallelism(parallelisms):
    job = CheckpointedJob(FlatMapSpec(InThrees()))
    emitted, taken = [], None
    for number, parallelism in enumerate(parallelisms * 3):
        job.start(taken, parallelism=parallelism)
        play(job, [f"{number}-{i}" for i in range(7)])
        taken = job.complete()
        emitted += job.rows()
        play(job, ["lost"] * 5)
        job.kill()
    job.start(taken, parallelism=1)
    play(job, ["x", "y", "z"])
    emitted += job.rows()
    seen = [record for group in emitted for record in group]
    left = job.checkpoint().subtasks[0].lists[0].states["held"][1]
    assert len(seen) + len(left) == 7 * len(parallelisms) * 3 + 3
    assert len(set(seen)) == len(seen)
    assert "lost" not in seen
    job.dispose()


def test_union_lists_go_to_all_and_maps_are_the_same_everywhere():
    class Offsets(MapFunction, CheckpointedFunction):
        def initialize_state(self, context):
            store = context.get_operator_state_store()
            self.union = store.get_union_list_state(ListStateDescriptor("offsets"))
            self.rules = store.get_broadcast_state(MapStateDescriptor("rules"))
            self.found = sorted(self.union.get()), sorted(self.rules.items())
            self.last = None

        def snapshot_state(self, context):
            self.union.update([(self.last, context.get_checkpoint_id())])
            self.rules.put("limit", 5)

        def map(self, value):
            self.last = value
            return self.found

    job = CheckpointedJob(MapSpec(Offsets()), parallelism=2)
    job.start()
    play(job, ["a", "b"])
    taken = job.complete()
    assert job.rows() == [([], [])] * 2
    job.kill()
    job.start(taken, parallelism=3)
    play(job, ["x", "y", "z"])
    assert job.rows() == [([("a", 1), ("b", 1)], [("limit", 5)])] * 3
    job.dispose()


class Noted(CheckpointedFunction):
    """Notes what is called."""

    calls: list

    def initialize_state(self, context):
        self.calls = ["initialize"]
        self.kept = context.get_operator_state_store().get_list_state(ListStateDescriptor("calls"))

    def snapshot_state(self, context):
        self.calls.append("snapshot")
        self.kept.update(self.calls)

    def open(self, runtime_context):
        self.calls.append("open")


class NotedSink(Noted, SinkFunction):
    def invoke(self, value):
        self.calls.append(value)


class NotedMap(Noted, MapFunction):
    def map(self, value):
        self.calls.append(value)
        return value


class NotedCoMap(Noted, CoMapFunction):
    def map1(self, value):
        self.calls.append(value)

    map2 = map1


class NotedProcess(Noted, KeyedProcessFunction):
    def process_element(self, value, ctx):
        self.calls.append(value)


@pytest.mark.parametrize(
    "spec",
    [
        MapSpec(NotedMap()),
        CoMapSpec(NotedCoMap()),
        CoProcessSpec(NotedCoMap(), (FieldKey(0), FieldKey(0)), None, "map"),
        ProcessSpec(NotedProcess(), FieldKey(0)),
        FunctionSinkSpec(NotedSink()),
    ],
    ids=lambda spec: type(spec).__name__,
)
def test_functions_of_every_kind_are_asked_once_before_open_and_at_each_checkpoint(spec):
    with OperatorHarness(spec) as harness:
        harness.process([("k",)])
        harness.snapshot(1)
        taken = harness.snapshot(2)
    with OperatorHarness(spec, restored=[taken]) as harness:
        kept = harness.contexts[0].state.operator_states().get_list_state(ListStateDescriptor("calls")).get()
        assert kept == ["initialize", "open", ("k",), "snapshot", "snapshot"]


def test_a_generator_function_has_its_state_beside_that_of_the_source():
    with OperatorHarness(DataGeneratorSpec(NotedMap(), 4)) as harness:
        harness.head.poll(3)
        taken = harness.snapshot(1)
    states = taken.lists[0].states
    assert (len(states["calls"][1]), len(states["GeneratorLanes"][1])) == (6, 1)  # initialize, open, 0, 1, 2, snapshot


def test_keyed_state_can_be_asked_for_where_there_are_keys():
    class Keyed(Noted, KeyedProcessFunction):
        def initialize_state(self, context):
            self.calls = []
            self.seen = context.get_keyed_state_store().get_state(ValueStateDescriptor("seen"))

        def snapshot_state(self, context):
            pass

        def process_element(self, value, ctx):
            self.seen.update((self.seen.value() or 0) + 1)
            yield self.seen.value()

    with OperatorHarness(ProcessSpec(Keyed(), FieldKey(0))) as harness:
        harness.process([("a",), ("b",), ("a",)])
        assert harness.output.rows == [1, 1, 2]

    class Unkeyed(Noted, MapFunction):
        def initialize_state(self, context):
            context.get_keyed_state_store()

        def map(self, value):
            return value

    with pytest.raises(UserCodeError, match="the stream is not keyed"), OperatorHarness(MapSpec(Unkeyed())):
        pass


@pytest.mark.parametrize("where", ["initialize_state", "snapshot_state"])
def test_failures_name_the_operator(where):
    class Wrong(NotedMap):
        pass

    def fail(self, context):
        raise KeyError("lost")

    setattr(Wrong, where, fail)
    with pytest.raises(UserCodeError, match=r"KeyError: 'lost'(.|\n)*Test"):  # noqa: SIM117
        with OperatorHarness(MapSpec(Wrong())) as harness:
            harness.snapshot(1)
