"""What the DataStream API refuses while the program is built, and what it puts into the plan."""

from __future__ import annotations

import json

import pytest

from engine.common import Configuration, Types, WatermarkStrategy
from engine.core.errors import ConfigError, ProgramError
from engine.datastream import BufferTimeout, RuntimeExecutionMode, StreamExecutionEnvironment
from engine.datastream.connectors import DataGeneratorSource, NumberSequenceSource
from engine.datastream.functions import MapFunction, WordTokenizer
from engine.graph.transformation import ShipStrategy


@pytest.fixture
def env():
    return StreamExecutionEnvironment.get_execution_environment(Configuration())


def plan(env):
    return json.loads(env.get_execution_plan())["nodes"]


PAIRS = Types.TUPLE([Types.STRING(), Types.INT()])


def test_execute_without_a_sink_says_what_is_missing(env):
    env.from_collection([1]).map(lambda x: x)
    with pytest.raises(ProgramError, match="No operators defined in streaming topology"):
        env.execute()


@pytest.mark.parametrize("value", [0, -1, 1.5, "2"])
def test_a_bad_parallelism_is_refused(env, value):
    with pytest.raises(ConfigError, match="expected a whole number of at least 1"):
        env.set_parallelism(value)


def test_a_collection_source_cannot_be_parallel(env):
    with pytest.raises(ProgramError, match="must be 1"):
        env.from_collection([1, 2]).set_parallelism(2)


@pytest.mark.parametrize("value", [-2, 1.5])
def test_a_bad_buffer_timeout_is_refused(env, value):
    with pytest.raises(ConfigError, match=r"BufferTimeout\.INFINITE"):
        env.set_buffer_timeout(value)


def test_buffer_timeouts_are_kept(env):
    for value in (0, 5, BufferTimeout.FULL_BUFFERS, BufferTimeout.INFINITE):
        assert env.set_buffer_timeout(value).get_buffer_timeout() == value


def test_a_class_instead_of_an_object_is_named(env):
    class Double(MapFunction):
        def map(self, value):
            return value * 2

    with pytest.raises(ProgramError, match=r"map\(Double\): got a class; pass an object of it: Double\(\)"):
        env.from_collection([1]).map(Double)


def test_a_field_that_is_not_there_is_named(env):
    keyed = env.from_collection([("a", 1)], PAIRS).key_by(0)
    with pytest.raises(ProgramError, match="fields 0 to 1"):
        keyed.sum(2)
    with pytest.raises(ProgramError, match="fields 0 to 1"):
        env.from_collection([("a", 1)], PAIRS).project(3)


def test_settings_after_key_by_are_refused(env):
    with pytest.raises(ProgramError, match="before key_by"):
        env.from_collection([("a", 1)]).key_by(0).set_parallelism(2)


def test_java_is_refused_with_the_way_out(env):
    with pytest.raises(ProgramError, match="runs no Java"):
        env.add_jars("file:///x.jar")


def test_unbounded_input_with_a_blocking_exchange_is_refused(env):
    env.set_buffer_timeout(BufferTimeout.INFINITE)
    source = DataGeneratorSource(lambda i: (i, 1), None)
    env.from_source(source, WatermarkStrategy.no_watermarks(), "endless").key_by(0).sum(1).print()
    with pytest.raises(ProgramError, match=r"(?i)unbounded"):
        env.execute()


def test_batch_mode_with_unbounded_input_is_refused(env):
    env.set_runtime_mode(RuntimeExecutionMode.BATCH)
    env.socket_text_stream("localhost", 1).print()
    with pytest.raises(ProgramError, match=r"(?i)unbounded"):
        env.execute()


def test_a_duplicate_uid_is_refused(env):
    stream = env.from_collection([1]).map(lambda x: x).uid("same").map(lambda x: x).uid("same")
    stream.print()
    with pytest.raises(ProgramError, match="same"):
        env.execute()


def test_the_plan_shows_ship_strategies_and_parallelism(env):
    env.set_parallelism(3)
    numbers = env.from_source(NumberSequenceSource(1, 9), WatermarkStrategy.no_watermarks(), "numbers")
    numbers.map(lambda n: (n % 2, n)).key_by(0).sum(1).rebalance().map(str).set_parallelism(2).print()
    nodes = plan(env)
    ships = [edge["ship_strategy"] for node in nodes for edge in node.get("predecessors", [])]
    assert ShipStrategy.HASH.value in ships
    assert ShipStrategy.REBALANCE.value in ships
    assert [node["parallelism"] for node in nodes][:2] == [3, 3]


def test_automatic_mode_runs_bounded_input_as_batch(env):
    env.set_runtime_mode(RuntimeExecutionMode.AUTOMATIC)
    env.from_collection([("a", 1)]).key_by(0).sum(1).print()
    job_graph, _ = env._build("job")
    assert job_graph.job_type.value == "BATCH"
    assert any(edge.blocking for edge in job_graph.edges)


def test_streaming_mode_never_blocks(env):
    env.from_collection([("a", 1)]).key_by(0).sum(1).print()
    job_graph, _ = env._build("job")
    assert job_graph.job_type.value == "STREAMING"
    assert not any(edge.blocking for edge in job_graph.edges)


def test_a_word_tokenizer_in_batch_is_vectorised(env, tmp_path):
    (tmp_path / "in").write_text("a b")
    env.set_runtime_mode(RuntimeExecutionMode.BATCH)
    env.read_text_file(str(tmp_path / "in")).flat_map(WordTokenizer()).key_by(lambda pair: pair[0]).sum(1).print()
    job_graph, _ = env._build("job")
    assert any("Tokenize and count" in vertex.name for vertex in job_graph.vertices)


def test_a_shared_tokenizer_is_not_vectorised(env, tmp_path):
    (tmp_path / "in").write_text("a b")
    env.set_runtime_mode(RuntimeExecutionMode.BATCH)
    words = env.read_text_file(str(tmp_path / "in")).flat_map(WordTokenizer())
    words.key_by(0).sum(1).print()
    words.print()
    job_graph, _ = env._build("job")
    assert not any("Tokenize and count" in vertex.name for vertex in job_graph.vertices)


def test_the_same_program_gives_the_same_ids(env):
    def ids():
        env.from_collection([("a", 1)]).key_by(0).sum(1).print()
        job_graph, _ = env._build("job")
        env._sinks.clear()
        return [vertex.vertex_id for vertex in job_graph.vertices]

    assert ids() == ids()


@pytest.mark.parametrize("strategy", [None, "monotonous", WatermarkStrategy])
def test_what_is_no_watermark_strategy_is_refused(env, strategy):
    with pytest.raises(ProgramError, match="WatermarkStrategy"):
        env.from_source(NumberSequenceSource(1, 5), strategy, "Numbers")
    with pytest.raises(ProgramError, match="expected a WatermarkStrategy"):
        env.from_collection([1]).assign_timestamps_and_watermarks(strategy)


def test_settings_behind_from_source_are_those_of_the_source(env):
    strategy = WatermarkStrategy.for_monotonous_timestamps()
    stream = env.from_source(NumberSequenceSource(1, 5), strategy, "Numbers").set_parallelism(3).uid("numbers")
    stream.print()
    assert next((node["type"], node["parallelism"]) for node in plan(env)) == ("Source: Numbers", 3)
    assert stream._node.uid == "numbers"
