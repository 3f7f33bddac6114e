"""Whole DataStream programs in a local cluster: what comes out is what an obvious Python loop gives."""

from __future__ import annotations

import collections
import itertools
import socket
import threading

import pytest

from engine.common import Configuration, Encoder, Row, Types, WatermarkStrategy
from engine.core.errors import JobExecutionError, OutputExistsError, ProgramError
from engine.core.metrics import IntCounter
from engine.datastream import BufferTimeout, RuntimeExecutionMode, StreamExecutionEnvironment, WriteMode
from engine.datastream.connectors import DataGeneratorSource, NumberSequenceSource
from engine.datastream.connectors.file_system import FileSink, FileSource, OutputFileConfig, StreamFormat
from engine.datastream.functions import (
    CoMapFunction,
    FilterFunction,
    FlatMapFunction,
    KeySelector,
    MapFunction,
    Partitioner,
    ReduceFunction,
    SinkFunction,
    WordTokenizer,
)

LINES = ["to be or not to be", "that is the question", "", "whether tis nobler", "to be"]
COUNTS = collections.Counter(word for line in LINES for word in line.split())
PAIRS = Types.TUPLE([Types.STRING(), Types.INT()])
NO_WATERMARKS = WatermarkStrategy.no_watermarks()


@pytest.fixture
def env():
    environment = StreamExecutionEnvironment.get_execution_environment(Configuration())
    environment.set_parallelism(2)
    return environment


def collected(stream):
    with stream.execute_and_collect() as results:
        return list(results)


def split(line):
    return [(word, 1) for word in line.split()]


# --- one record at a time --------------------------------------------------------------------------


def test_map_flat_map_and_filter_with_lambdas(env):
    stream = env.from_collection(range(10)).map(lambda x: x * 2).filter(lambda x: x % 3 == 0)
    assert sorted(collected(stream.flat_map(lambda x: [x] * (x // 6)))) == [6, 12, 12, 18, 18, 18]


class Scaled(MapFunction):
    def open(self, runtime_context):
        self.factor = int(runtime_context.get_job_parameter("factor", "1"))
        self.subtasks = runtime_context.get_number_of_parallel_subtasks()
        self.counter = IntCounter()
        runtime_context.add_accumulator("records", self.counter)

    def map(self, value):
        self.counter.add(1)
        return value * self.factor, self.subtasks


class Odd(FilterFunction):
    def filter(self, value):
        return value[0] % 2 == 1


class Repeat(FlatMapFunction):
    def flat_map(self, value):
        yield from itertools.repeat(value[0], 2)


def test_function_classes_see_their_context_and_count(env):
    env.get_config().set_global_job_parameters({"factor": "3"})
    stream = env.from_source(NumberSequenceSource(1, 100), NO_WATERMARKS, "numbers").map(Scaled()).filter(Odd())
    results = stream.flat_map(Repeat()).execute_and_collect()
    assert sorted(results) == sorted(x * 3 for x in range(1, 101, 2) for _ in range(2))
    result = results.get_job_client().get_job_execution_result().result()
    assert result.get_accumulator_result("records") == 100
    assert result.get_all_accumulator_results() == {"records": 100}


def test_project_keeps_the_fields_asked_for(env):
    stream = env.from_collection([("a", 1, True), ("b", 2, False)]).project(2, 0)
    assert sorted(collected(stream)) == [(False, "b"), (True, "a")]


# --- keyed -----------------------------------------------------------------------------------------


def test_streaming_sums_give_every_step(env):
    counts = collected(env.from_collection(LINES).flat_map(split, PAIRS).key_by(lambda pair: pair[0]).sum(1))
    assert len(counts) == sum(COUNTS.values())
    assert {word: max(n for w, n in counts if w == word) for word in COUNTS} == COUNTS
    assert sorted(counts) == sorted((word, n) for word, total in COUNTS.items() for n in range(1, total + 1))


@pytest.mark.parametrize("mode", [RuntimeExecutionMode.BATCH, RuntimeExecutionMode.AUTOMATIC])
def test_batch_sums_give_the_total_only(env, mode):
    env.set_runtime_mode(mode)
    counts = collected(env.from_collection(LINES).flat_map(split, PAIRS).key_by(0).sum(1))
    assert sorted(counts) == sorted(COUNTS.items())


ROWS = [("a", 3, 30), ("b", 1, 10), ("a", 1, 20), ("a", 1, 40), ("b", 2, 5)]


def newest(stream):
    """The last result per key."""
    return {row[0]: row for row in collected(stream)}


def test_min_max_and_their_by_forms(env):
    def keyed():
        return env.from_collection(ROWS).key_by(0)

    assert {k: row[1] for k, row in newest(keyed().min(1)).items()} == {"a": 1, "b": 1}
    assert {k: row[1] for k, row in newest(keyed().max(1)).items()} == {"a": 3, "b": 2}
    assert newest(keyed().min_by(1)) == {"a": ("a", 1, 20), "b": ("b", 1, 10)}
    assert newest(keyed().max_by(2)) == {"a": ("a", 1, 40), "b": ("b", 1, 10)}


class Longest(ReduceFunction):
    def reduce(self, value1, value2):
        return max(value1, value2, key=lambda row: row[2])


class FirstField(KeySelector):
    def get_key(self, value):
        return value[0]


def test_reduce_and_key_selector_objects(env):
    expected = {"a": ("a", 1, 40), "b": ("b", 1, 10)}
    assert newest(env.from_collection(ROWS).key_by(FirstField()).reduce(Longest())) == expected


def test_rows_keep_their_names(env):
    named = Types.ROW_NAMED(["word", "n"], [Types.STRING(), Types.INT()])
    rows = [Row(word="x", n=1), Row(word="x", n=2), Row(word="y", n=5)]
    env.set_runtime_mode(RuntimeExecutionMode.BATCH)
    summed = collected(env.from_collection(rows, named).key_by("word").sum("n"))
    assert sorted(row.n for row in summed) == [3, 5]
    assert {row.word for row in summed} == {"x", "y"}


def test_keys_of_every_kind_meet_their_equals(env):
    keys = [None, float("nan"), "ü€", "", b"x", 1, 1.0, True, -0.0, 0, (1, None), 2**70, "1"]
    env.set_runtime_mode(RuntimeExecutionMode.BATCH)
    counted = collected(env.from_collection([(k, 1) for k in keys * 3]).rebalance().key_by(0).sum(1))
    by_repr = sorted(n for _, n in counted)
    # 1, 1.0 and True are one key; -0.0 and 0 are one; every other stands alone.
    assert by_repr == sorted([9, 6, *[3] * 8])


# --- several streams, shipping ---------------------------------------------------------------------


def test_union_and_connect(env):
    class Tag(CoMapFunction):
        def map1(self, value):
            return "left", value

        def map2(self, value):
            return "right", value

    left, right = env.from_collection([1, 2]), env.from_collection([3])
    assert sorted(collected(left.union(right, env.from_collection([4])).map(lambda x: x))) == [1, 2, 3, 4]
    assert sorted(collected(left.connect(right).map(Tag()))) == [("left", 1), ("left", 2), ("right", 3)]


@pytest.mark.parametrize("ship", ["shuffle", "rebalance", "rescale", "global_"])
def test_every_shipping_delivers_each_record_once(env, ship):
    numbers = env.from_source(NumberSequenceSource(1, 5000), NO_WATERMARKS, "numbers")
    stream = getattr(numbers.map(lambda x: x), ship)().map(lambda x: -x).set_parallelism(3)
    assert sorted(collected(stream)) == list(range(-5000, 0))


def test_broadcast_delivers_to_every_subtask(env):
    stream = env.from_collection([1, 2]).broadcast().map(lambda x: x).set_parallelism(3)
    assert sorted(collected(stream)) == [1, 1, 1, 2, 2, 2]


class ByParity(Partitioner):
    def partition(self, key, num_partitions):
        return key % num_partitions


class Where(MapFunction):
    def open(self, runtime_context):
        self.index = runtime_context.get_index_of_this_subtask()

    def map(self, value):
        return value, self.index


def test_custom_partitioning_goes_where_it_says(env):
    stream = env.from_collection(range(20)).partition_custom(ByParity(), lambda x: x).map(Where())
    assert sorted(collected(stream)) == [(n, n % 2) for n in range(20)]


@pytest.mark.parametrize("timeout", [0, 1, 100, BufferTimeout.FULL_BUFFERS, BufferTimeout.INFINITE])
def test_no_buffer_timeout_loses_or_reorders(env, timeout):
    env.set_buffer_timeout(timeout)
    numbers = env.from_source(NumberSequenceSource(1, 20_000), NO_WATERMARKS, "numbers").set_parallelism(1)
    got = collected(numbers.map(lambda n: (n % 7, n)).set_parallelism(1).key_by(0).map(lambda pair: pair[1]))
    assert sorted(got) == list(range(1, 20_001))
    for key in range(7):
        mine = [n for n in got if n % 7 == key]
        assert mine == sorted(mine)


def test_a_record_larger_than_any_buffer_passes(env):
    big = "x" * 3_000_000
    stream = env.from_collection([("k", big), ("k", "y")]).rebalance().key_by(0).map(lambda pair: len(pair[1]))
    assert sorted(collected(stream)) == [1, 3_000_000]


def test_slot_sharing_groups_use_slots_of_their_own(env):
    stream = env.from_collection(range(5)).map(lambda x: x + 1).slot_sharing_group("own").map(lambda x: x)
    assert sorted(collected(stream)) == [1, 2, 3, 4, 5]


# --- sources and sinks -----------------------------------------------------------------------------


def test_a_generator_source_counts_over_its_subtasks(env):
    source = DataGeneratorSource(lambda index: index * index, 500)
    assert sorted(collected(env.from_source(source, NO_WATERMARKS, "squares"))) == [i * i for i in range(500)]


def test_text_is_read_from_folders_and_written_as_text(env, tmp_path):
    (tmp_path / "in").mkdir()
    for i, line in enumerate(LINES):
        (tmp_path / "in" / f"part-{i}.txt").write_text(line + "\n")
    (tmp_path / "in" / "_SUCCESS").write_text("not data\n")
    counts = env.read_text_file(str(tmp_path / "in")).flat_map(split, PAIRS).key_by(0).sum(1)
    counts.write_as_text(str(tmp_path / "out")).set_parallelism(1)
    env.set_runtime_mode(RuntimeExecutionMode.BATCH)
    env.execute()
    lines = (tmp_path / "out").read_text().splitlines()
    assert sorted(lines) == sorted(f"({word},{n})" for word, n in COUNTS.items())


def test_csv_goes_to_a_folder_when_the_sink_is_parallel(env, tmp_path):
    env.from_collection([("a", 1), ("b", 2), ("c", 3)]).rebalance().write_as_csv(str(tmp_path / "out"))
    env.execute()
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["1", "2"]
    lines = [line for name in files for line in (tmp_path / "out" / name).read_text().splitlines()]
    assert sorted(lines) == ["a,1", "b,2", "c,3"]


def test_an_existing_output_is_kept_unless_overwrite_is_asked(env, tmp_path):
    out = tmp_path / "out"
    out.write_text("precious\n")
    env.from_collection([1]).write_as_text(str(out)).set_parallelism(1)
    with pytest.raises(JobExecutionError, match="exists"):
        env.execute()
    assert out.read_text() == "precious\n"
    env.from_collection([1]).write_as_text(str(out), WriteMode.OVERWRITE).set_parallelism(1)
    env.execute()
    assert out.read_text() == "1\n"
    assert issubclass(OutputExistsError, Exception)


def test_file_source_and_file_sink_of_pyflink(env, tmp_path):
    (tmp_path / "in.txt").write_text("a\nb\n\nä\n")
    source = FileSource.for_record_stream_format(StreamFormat.text_line_format(), str(tmp_path / "in.txt")).build()
    sink = (
        FileSink.for_row_format(str(tmp_path / "out"), Encoder.simple_string_encoder())
        .with_output_file_config(OutputFileConfig.builder().with_part_prefix("p").with_part_suffix(".txt").build())
        .build()
    )
    env.from_source(source, NO_WATERMARKS, "file").map(str.upper, Types.STRING()).sink_to(sink)
    env.execute()
    parts = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert parts
    assert all(path.name.startswith("p") and path.name.endswith(".txt") for path in parts)
    assert sorted(line for path in parts for line in path.read_text().splitlines()) == ["", "A", "B", "Ä"]


def test_a_sink_function_gets_every_record(env, tmp_path):
    class Append(SinkFunction):
        def __init__(self, path):
            self.path = path

        def invoke(self, value):
            with open(self.path, "a", encoding="utf-8") as out:
                out.write(f"{value}\n")

    env.from_collection(range(5)).add_sink(Append(str(tmp_path / "seen")))
    env.execute()
    assert sorted((tmp_path / "seen").read_text().split()) == list("01234")


def test_lines_of_a_socket_are_counted_as_they_come(env):
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        connection, _ = server.accept()
        with connection:
            connection.sendall("to be\nor not\nto bé\nlast without end".encode())

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        lines = env.socket_text_stream("127.0.0.1", server.getsockname()[1])
        assert collected(lines) == ["to be", "or not", "to bé", "last without end"]
    finally:
        thread.join()
        server.close()


def test_vectorised_and_plain_word_counts_agree(env, tmp_path):
    text = "Ünïcode wörds  and\ttabs\r\nto be or\nnot to be\n\n" * 50 + "end"
    (tmp_path / "in").write_text(text)
    env.set_runtime_mode(RuntimeExecutionMode.BATCH)
    source = str(tmp_path / "in")
    fast = dict(collected(env.read_text_file(source).flat_map(WordTokenizer()).key_by(0).sum(1)))
    slow = dict(collected(env.read_text_file(source).flat_map(split).key_by(0).sum(1)))
    assert fast == slow == collections.Counter(text.split())


def test_execute_and_collect_with_a_limit_ends_the_job(env):
    endless = DataGeneratorSource(lambda index: index, None)
    rows = env.from_source(endless, NO_WATERMARKS, "endless").execute_and_collect(limit=10)
    assert len(rows) == 10


# --- failures --------------------------------------------------------------------------------------


def test_a_raising_lambda_shows_operator_record_and_own_frames_only(env):
    stream = env.from_collection([3, 0, 1]).map(lambda x: 6 // x).name("divide")
    with pytest.raises(JobExecutionError) as failure:
        collected(stream)
    message = str(failure.value)
    assert "ZeroDivisionError" in message
    assert "'divide'" in message
    assert "record: 0" in message
    assert "test_datastream_programs.py" in message
    assert "engine/operators" not in message


def test_a_function_that_cannot_travel_is_refused_before_anything_runs(env):
    lock = threading.Lock()
    env.from_collection([1]).map(lambda x: (x, lock)).print()
    with pytest.raises(ProgramError, match="lock"):
        env.execute()


def test_missing_input_is_named(env, tmp_path):
    env.read_text_file(str(tmp_path / "nowhere")).print()
    with pytest.raises(JobExecutionError, match="nowhere does not exist"):
        env.execute()


def test_undecodable_bytes_name_file_and_offset(env, tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"good\nbad \xff here\n")
    env.read_text_file(str(tmp_path / "bad.txt")).print()
    with pytest.raises(JobExecutionError, match=r"bad\.txt.*9"):
        env.execute()


def test_an_unstable_key_is_refused(env):
    class Plain:
        pass

    env.from_collection([1]).rebalance().key_by(lambda x: Plain()).map(lambda x: x).print()
    with pytest.raises(JobExecutionError, match="cannot be a key"):
        env.execute()


@pytest.mark.parametrize("object_reuse", [False, True])
@pytest.mark.parametrize("second", ["chained", "exchanged"])
def test_what_one_consumer_changes_in_a_record_another_does_not_see(second, object_reuse):
    env = StreamExecutionEnvironment.get_execution_environment(Configuration()).set_parallelism(1)
    if object_reuse:
        env.get_config().enable_object_reuse()

    def change(row):
        row.append("changed")
        return row

    lists = env.from_collection([1, 2, 3]).map(lambda number: [number])
    changed = lists.map(change)
    others = lists if second == "chained" else lists.rebalance()
    seen = others.map(lambda row: ["seen", *row])
    with changed.union(seen).execute_and_collect() as results:
        rows = sorted(map(str, results))
    expected = sorted(str([number, "changed"]) for number in (1, 2, 3)) + [f"['seen', {n}]" for n in (1, 2, 3)]
    if object_reuse:
        assert [row for row in rows if "seen" in row] != expected[3:]
    else:
        assert rows == sorted(expected)
