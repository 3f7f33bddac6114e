"""What a program may say, and what it is told when it says it wrongly."""

from __future__ import annotations

import json
import sys
from typing import ClassVar

import pytest

from engine.core.errors import ConfigError, ProgramError, UserCodeError
from engine.core.records import Row
from engine.core.type_info import Types
from engine.dataset import ExecutionEnvironment, GroupReduceFunction, KeySelector, MapFunction, Order, WriteMode
from engine.dataset.vocabulary import INT, STRING
from engine.operators.text import WordTokenizer
from tests.testing.graph_runner import environment, run, source


def test_execute_without_sinks_says_so():
    with pytest.raises(ProgramError, match="No data sinks have been created yet"):
        environment().execute()


def test_execution_plan_shows_operators_and_strategies():
    env = environment(2)
    counts = env.from_elements("a b", "b").flat_map(lambda line: [(w, 1) for w in line.split()]).group_by(0).sum(1)
    counts.write_as_csv("/nowhere", write_mode=WriteMode.OVERWRITE).set_parallelism(1)
    nodes = json.loads(env.get_execution_plan())["nodes"]
    assert [node["parallelism"] for node in nodes] == [1, 2, 2, 2, 1]
    assert [node["predecessors"][0]["ship_strategy"] for node in nodes[1:]] == [
        "REBALANCE",
        "FORWARD",
        "HASH",
        "REBALANCE",
    ]


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (lambda d: d.group_by(), "group_by needs a key"),
        (lambda d: d.group_by(-1), "positions count from 0"),
        (lambda d: d.group_by(1.5), "is not a key"),
        (lambda d: d.group_by(lambda a, b: a), "takes 2 arguments"),
        (lambda d: d.group_by(0).aggregate("median", 1), "is not an aggregation"),
        (lambda d: d.sum(True), "is not a field"),
        (lambda d: d.map(3), "Expected a function"),
        (lambda d: d.project("a"), "expected field positions"),
        (lambda d: d.first(0), "at least 1"),
        (lambda d: d.sort_partition(0, "up"), "is not a direction"),
        (lambda d: d.sort_partition(0, Order.NONE), "is not a direction"),
        (lambda d: d.join(d).equal_to(0), r"say \.where"),
        (lambda d: d.co_group(d).using(lambda a, b: []), r"say \.where"),
        (lambda d: d.join([1]), "expected a DataSet"),
        (lambda d: d.union(environment().from_elements(1)), "different environments"),
        (lambda d: d.min_by(), "needs at least one field"),
        (lambda d: d.get_execution_environment().from_collection([]), "is empty"),
        (lambda d: d.get_execution_environment().generate_sequence(3, 1), "the smaller first"),
        (lambda d: d.with_broadcast_set(d, "x"), "is a source"),
    ],
)
def test_wrong_arguments_are_refused_where_they_stand(program, message):
    with pytest.raises(ProgramError, match=message):
        program(environment().from_elements((1, 2)))


def test_parallelism_must_be_positive():
    with pytest.raises(ConfigError, match="set_parallelism"):
        environment().from_elements(1).map(lambda x: x).set_parallelism(0)
    with pytest.raises(ConfigError, match="set_parallelism"):
        environment().set_parallelism(0)


def test_a_missing_field_is_an_error_that_shows_the_record():
    data = source(environment(2), [("a", 1), ("b",)])
    with pytest.raises(
        UserCodeError,
        match=r"sum\(1\): .* no such field.* field 0 only.*\n.*on record: \('b',\)",
    ):
        run(data.group_by(0).sum(1))
    with pytest.raises(UserCodeError, match=r"on record: \('b',\)"):
        run(data.group_by(1).reduce(lambda a, b: a))
    with pytest.raises(UserCodeError, match=r"on record: \('b',\)"):
        run(data.sort_partition(1))


def test_a_failing_function_names_operator_and_record():
    data = source(environment(2), [(1, 0), (1, 2)])
    with pytest.raises(UserCodeError, match=r"(?s)ZeroDivisionError.*'Divide' on record: <group of key 1>"):
        run(data.group_by(0).reduce_group(lambda values: [1 / min(v for _, v in values)]).name("Divide"))
    with pytest.raises(UserCodeError, match=r"(?s)ZeroDivisionError.*on record: \(\(1, \d\), \(1, \d\)\)"):
        run(data.join(data).where(0).equal_to(0).using(lambda a, b: a[1] / 0))
    with pytest.raises(UserCodeError, match=r"(?s)TypeError.*on record"):
        run(data.map(lambda row: [row]).distinct())


class AddBase(MapFunction):
    def open(self, runtime_context):
        self.base = sum(runtime_context.get_broadcast_variable("base"))

    def map(self, value):
        return value + self.base


def test_broadcast_sets_are_complete_when_a_function_is_opened():
    env = environment(3)
    base = source(env, [100, 200])
    assert sorted(run(source(env, range(5)).map(AddBase()).with_broadcast_set(base, "base"))) == [
        300,
        301,
        302,
        303,
        304,
    ]
    # The set made of the very data that it is given to.
    data = source(env, [1, 2])
    assert sorted(run(data.map(AddBase()).with_broadcast_set(data, "base"), memory_bytes=100)) == [4, 5]
    with pytest.raises(ProgramError, match="already has a broadcast set"):
        data.map(AddBase()).with_broadcast_set(base, "base").with_broadcast_set(base, "base")


class SumAndCombine(GroupReduceFunction):
    def reduce(self, values):
        values = list(values)
        return [(values[0][0], sum(v for _, v in values))]

    def combine(self, values):
        values = list(values)
        return [(values[0][0], sum(v for _, v in values))]


def test_old_python_names_work():
    env = environment(2)
    data = source(env, [("a", 1), ("a", 2), ("b", 3)])
    assert sorted(run(data.group_by(0).group_reduce(SumAndCombine()))) == [("a", 3), ("b", 3)]
    assert sorted(run(data.group_by(0).reduce_group(SumAndCombine(), combinable=True))) == [("a", 3), ("b", 3)]
    assert env.set_degree_of_parallelism(2).get_degree_of_parallelism() == 2


def test_a_dataset_may_be_run_again_and_with_another_parallelism():
    env = environment(2)
    data = source(env, range(10)).map(lambda x: x + 1)
    assert sorted(run(data)) == list(range(1, 11))
    env.set_parallelism(3)
    assert sorted(run(data)) == list(range(1, 11))


def lines(env: ExecutionEnvironment, text: str):
    return source(env, text.splitlines())


def parsed(text: str, **options):
    """The tuples that read_csv makes of these lines, without reading a file."""
    env = environment(1)
    data = env.read_csv("/nowhere", **options)
    parse = data._ports[0].node.spec.function
    return run(lines(env, text).flat_map(parse))


def test_csv_lines_become_typed_tuples():
    assert parsed("1,a,2.5\n\n-3,,1e3", types=[int, str, float]) == [(1, "a", 2.5), (-3, "", 1000.0)]
    assert parsed("1|a", types=[INT, STRING], field_delimiter="|") == [(1, "a")]
    assert parsed("1,x,true", types=[Types.INT(), Types.BOOLEAN()], include_fields="101") == [(1, True)]
    assert parsed("a,b,c", include_fields=[0, 2]) == [("a", "c")]
    assert parsed("a,b\nc,d") == [("a", "b"), ("c", "d")]
    assert parsed('"a,b",2', types=[str, int], quote_character='"') == [("a,b", 2)]
    assert parsed("# no\n1", types=[int], comment_prefix="#") == [(1,)]


def test_bad_csv_lines_are_errors_unless_lenient():
    with pytest.raises(UserCodeError, match=r"field 0 is 'x', expected int.*\n.*on record: 'x,1'"):
        parsed("x,1", types=[int, int])
    with pytest.raises(UserCodeError, match="has 1 fields, field 1 is wanted"):
        parsed("1", types=[int, int])
    assert parsed("x,1\n2,3\n4", types=[int, int], lenient=True) == [(2, 3)]
    with pytest.raises(ProgramError, match="2 types for 1 included"):
        environment().read_csv("/x", types=[int, int], include_fields="010")
    with pytest.raises(ProgramError, match="is not a column type"):
        environment().read_csv("/x", types=[dict])


# --- errors of functions and keys ------------------------------------------------------------------------------------


def leave(*_):
    sys.exit(2)


@pytest.mark.parametrize(
    "program",
    [
        lambda d: d.map_partition(leave),
        lambda d: d.group_by(0).reduce_group(leave),
        lambda d: d.group_by(0).combine_group(leave),
        lambda d: d.group_by(0).reduce(leave),
        lambda d: d.reduce(leave),
        lambda d: d.distinct(leave),
        lambda d: d.group_by(0).sort_group(leave).first(1),
        lambda d: d.sort_partition(leave),
        lambda d: d.join(d).where(0).equal_to(0).using(leave),
        lambda d: d.cross(d).using(leave),
        lambda d: d.co_group(d).where(0).equal_to(0).using(leave),
    ],
)
def test_a_function_that_exits_is_told_with_operator_and_line(program):
    data = source(environment(1), [("a", 1), ("a", 2)])
    with pytest.raises(UserCodeError, match=r"SystemExit: 2\n  in operator '.*' on record: ") as caught:
        run(program(data).name("Leaving"))
    assert "    sys.exit(2)" in str(caught.value)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, GeneratorExit])
def test_exceptions_outside_of_exception_are_the_functions_too(raised):
    def fail(values):
        raise raised("mine")

    with pytest.raises(UserCodeError, match=f"{raised.__name__}.*\n  in operator 'MapPartition'"):
        run(source(environment(1), [1]).map_partition(fail))


class Failing(GroupReduceFunction):
    def reduce(self, values):
        return []

    def close(self):
        sys.exit(3)


def test_a_function_that_exits_in_close_is_told():
    with pytest.raises(UserCodeError, match="SystemExit: 3\n  in operator 'GroupReduce'"):
        run(source(environment(1), [(1, 2)]).group_by(0).reduce_group(Failing()))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (lambda d: d.group_by(7).sum(1), "The key is field 7, but .* a tuple with the fields 0 to 1"),
        (lambda d: d.group_by("word").sum(1), "The key is field 'word', but .* a tuple with the fields 0 to 1"),
        (lambda d: d.group_by(0, 5).sum(1), "The key is field 5, but"),
        (lambda d: d.group_by("f4").sum(1), "The key is field 'f4', but"),
        (lambda d: d.group_by(0, "f9").sum(1), "The key is field 'f9', but"),
        (lambda d: d.distinct(3), "The key is field 3, but"),
        (lambda d: d.sort_partition(0).sort_partition(4), "The sort key is field 4, but"),
        (lambda d: d.group_by(0).sum(2), r"sum\(2\): .* a tuple with the fields 0 to 1"),
        (lambda d: d.map(list).group_by("word").sum(1), "a list with the fields 0 to 1"),
        (lambda d: d.map(lambda r: {"a": 1}).group_by("b").sum(1), "a dict with the fields 'a'"),
        (lambda d: d.map(lambda r: Row(w="a", n=1)).group_by("b").sum("n"), "a Row with the fields 'w', 'n'"),
        (lambda d: d.map(lambda r: 5).group_by(0).sum(1), "of type int, which has no fields"),
        (lambda d: d.map(lambda r: ([1], 2)).group_by(0).sum(1), r"\[1\] of type list cannot be a key: it is not hash"),
        (lambda d: d.map(lambda r: [r]).distinct(), "of type list cannot be a key"),
        (lambda d: d.join(d).where(0).equal_to(0).project_first(5), r"project_first\(5\): .* fields 0 to 1"),
    ],
)
def test_a_record_without_its_key_is_told_with_the_fields_there_are(program, message):
    with pytest.raises(UserCodeError, match=f"(?s){message}.*\n  in operator .* on record: "):
        run(program(source(environment(1), [("a", 1)])))


class Counted(KeySelector):
    opened: ClassVar[list[str]] = []

    def open(self, runtime_context):
        self.opened.append("open")

    def get_key(self, value):
        return value[0]

    def close(self):
        self.opened.append("close")


@pytest.mark.parametrize(
    "program",
    [
        lambda d: d.group_by(Counted()).sum(1),
        lambda d: d.group_by(Counted()).reduce_group(list),
        lambda d: d.group_by(Counted()).combine_group(list),
        lambda d: d.group_by(Counted()).first(1),
        lambda d: d.group_by(0).sort_group(Counted()).first(1),
        lambda d: d.sort_partition(Counted()),
        lambda d: d.join(d).where(Counted()).equal_to(Counted()),
        lambda d: d.co_group(d).where(Counted()).equal_to(Counted()).using(lambda a, b: []),
    ],
)
@pytest.mark.parametrize("memory_bytes", [1, 1 << 20])
def test_every_key_selector_is_opened_once_and_closed(program, memory_bytes):
    Counted.opened.clear()
    run(program(source(environment(1), [("a", 1), ("b", 2), ("a", 3)])), memory_bytes=memory_bytes)
    assert Counted.opened.count("open") == Counted.opened.count("close") > 0
    assert Counted.opened.count("open") <= 4


# --- the vectorised word count ---------------------------------------------------------------------------------------


def names_of(env, sink_of):
    sink_of.output_to_nothing()
    plan = json.loads(env.get_execution_plan())["nodes"]
    return [node["type"] for node in plan]


def test_a_word_count_with_the_built_in_tokenizer_is_vectorised_unless_its_parts_have_other_readers(tmp_path):
    env = environment(2)
    text = env.read_text_file(str(tmp_path))
    counts = text.flat_map(WordTokenizer()).group_by(0).sum(1)
    assert any("Tokenize and count" in name for name in names_of(env, counts.map(str)))

    env = environment(2)
    words = env.read_text_file(str(tmp_path)).flat_map(WordTokenizer())
    for program in (
        words.group_by(0).min(1),
        words.group_by(1).sum(1),
        words.group_by(0).sum(1).and_max(0),
        words.rebalance().group_by(0).sum(1),
    ):
        env._sinks.clear()
        assert not any("Tokenize and count" in name for name in names_of(env, program))
    env._sinks.clear()
    words.output_to_nothing()
    assert not any("Tokenize and count" in name for name in names_of(env, words.group_by(0).sum(1)))
