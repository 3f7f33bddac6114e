"""Rows of a declared type that become columns before an operator on columns: which do, and that nobody can tell."""

from __future__ import annotations

import pytest

from engine.common import Time, Types, WatermarkStrategy
from engine.core.records import Row
from engine.datastream import StreamExecutionEnvironment, vectorise
from engine.datastream.aggregates import count, max_, sum_
from engine.datastream.connectors import DataGeneratorSource, DiscardingSink
from engine.datastream.functions import KeyedProcessFunction
from engine.datastream.window import TumblingEventTimeWindows
from engine.time.watermarks import TimestampAssigner

PAIRS = Types.TUPLE([Types.INT(), Types.LONG(), Types.DOUBLE()])
NAMED = Types.ROW_NAMED(["k", "v", "x"], [Types.STRING(), Types.LONG(), Types.DOUBLE()])
CONVERTED = "results as columns"


class Event:
    """A call that does not compile. ``odd_at``: a record that is not of its type."""

    def __init__(self, odd_at=None):
        self.odd_at = odd_at

    def __call__(self, i):
        return i % 7, i, i / 4 if i != self.odd_at else 10**30


class NamedEvent:
    def __call__(self, i):
        return f"key {i % 7}", i, i / 4


class OddNamedEvent:
    def __call__(self, i):
        return f"key {i % 7}", i, i / 4 if i < 150 else None if i % 2 else 10**30


class More(TimestampAssigner):
    def extract_timestamp(self, value, record_timestamp):
        return value[1] * 10 + len(str(value[1])) * 0


@pytest.fixture
def env(monkeypatch):
    monkeypatch.setattr(vectorise, "SEQUENCE_MIN", 1)
    return StreamExecutionEnvironment.create_local_environment(1)


def events(env, size=300, type_info=PAIRS, event=None):
    numbers = env.from_sequence(0, size - 1).set_parallelism(1)  # so that the order of each key's records is known
    return numbers.map(event or Event(), output_type=type_info).set_parallelism(1)


def tiers(*streams):
    """Return what the plan says of each operator, by name."""
    for stream in streams:
        stream.sink_to(DiscardingSink())
    graph, _ = streams[0].get_execution_environment()._build("plan")
    streams[0].get_execution_environment()._sinks.clear()
    return {info.name.removeprefix("Sink: "): info.tier for vertex in graph.vertices for info in vertex.operators}


def converted(*streams):
    return sorted(name for name, tier in tiers(*streams).items() if CONVERTED in tier)


def test_the_plan_says_whose_rows_become_columns(env):
    keyed = events(env).key_by(lambda e: e[0])
    told = tiers(keyed.sum(1))
    assert told["Map"] == "interpreted (its input is rows), results as columns"
    assert told["Keyed Aggregation"] == "vectorised, small batches come as rows"
    assert tiers(keyed.reduce(lambda a, b: (a[0], a[1] + b[1], b[2])))["Keyed Reduce"].startswith("compiled on columns")
    times = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(More())
    stamped = events(env).name("Events").assign_timestamps_and_watermarks(times).name("Times")
    told = tiers(stamped.key_by(0).window(TumblingEventTimeWindows.of(Time.seconds(1))).aggregate(count(), sum_(1)))
    assert told["TumblingEventTimeWindows"].startswith("vectorised")
    assert CONVERTED in told["Events"]
    assert CONVERTED not in told["Times"]


def test_functions_that_compile_run_on_columns_behind_the_conversion(env):
    kept = events(env).name("Events").filter(lambda e: e[1] > 3).name("Kept").key_by(0).sum(1)
    told = tiers(kept)
    assert told["Kept"].startswith("compiled on columns")
    assert CONVERTED in told["Events"]
    # One that does not compile wants rows: only the last of those before it is worth converting.
    twice = events(env).name("Events").map(Again(), output_type=PAIRS).name("Again")
    assert converted(twice.key_by(0).sum(1)) == ["Again"]


class Again:
    def __call__(self, e):
        return e


class Sees(KeyedProcessFunction):
    def process_element(self, value, ctx):
        yield value


def test_rows_stay_rows_where_nothing_is_gained(env, monkeypatch):
    assert not converted(events(env, type_info=None).key_by(0).sum(1))  # no type
    nested = Types.TUPLE([Types.INT(), Types.LONG(), Types.LIST(Types.DOUBLE())])
    assert not converted(events(env, type_info=nested).key_by(0).sum(1))
    assert not converted(events(env).key_by(0).process(Sees()))  # nobody wants columns
    both = events(env)
    assert not converted(both.key_by(0).sum(1), both.map(Again()).name("Other"))  # another one wants rows
    monkeypatch.setattr(vectorise, "SEQUENCE_MIN", 301)
    assert not converted(events(env).key_by(0).sum(1))  # too short for kernels to be loaded


def test_streams_without_end_are_long(env, monkeypatch):
    monkeypatch.setattr(vectorise, "SEQUENCE_MIN", 1001)
    for num_records, worth in ((None, True), (1001, True), (1000, False)):
        source = DataGeneratorSource(Event(), num_records)
        generated = env.from_source(source, WatermarkStrategy.no_watermarks(), "Generated", PAIRS)
        assert bool(converted(generated.key_by(0).sum(1))) is worth


def test_long_files_and_collections_are_worth_it(env, tmp_path, monkeypatch):
    from engine.datastream import typed_rows

    monkeypatch.setattr(typed_rows, "_FILES_MIN", 100)
    for size, worth in ((99, False), (100, True)):
        (tmp_path / "lines").write_text("x" * size)
        lines = env.read_text_file(f"{tmp_path}/lines").map(Event(), output_type=PAIRS)
        assert bool(converted(lines.key_by(0).sum(1))) is worth
    elsewhere = env.read_text_file("hdfs://nowhere/lines").map(Event(), output_type=PAIRS)
    assert converted(elsewhere.key_by(0).sum(1)) == ["Map"]
    monkeypatch.setattr(vectorise, "SEQUENCE_MIN", 3)
    for rows, worth in (([(1, 2, 0.5)] * 2, False), ([(1, 2, 0.5)] * 3, True)):
        assert bool(converted(env.from_collection(rows, PAIRS).key_by(0).sum(1))) is worth


def by_key(results):
    found = {}
    for result in results:
        found.setdefault(result[0], []).append((type(result), repr(result)))
    return found


@pytest.mark.parametrize("parallelism", [1, 2])
@pytest.mark.parametrize(
    "case", ["sum", "reduce", "max_by", "window", "named", "odd named", "odd sum", "odd reduce", "odd window"]
)
def test_results_are_those_of_rows(env, monkeypatch, case, parallelism):
    env.set_parallelism(parallelism)

    def results(type_info):
        event = Event(150 if case.startswith("odd") else None)
        if case.endswith("named"):
            event = OddNamedEvent() if case.startswith("odd") else NamedEvent()
        stream = events(env, type_info=type_info, event=event)
        if case.endswith("window"):
            times = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(More())
            windows = stream.assign_timestamps_and_watermarks(times).set_parallelism(1).key_by(0)
            return windows.window(TumblingEventTimeWindows.of(Time.seconds(1))).aggregate(count(), sum_(1), max_(2))
        keyed = stream.key_by(0)
        match case.rpartition(" ")[2]:
            case "reduce":
                return keyed.reduce(lambda a, b: (a[0], a[1] + b[1], b[2]))
            case "max_by":
                return keyed.max_by(1)
            case "named":
                return keyed.sum("v")
        return keyed.sum(2 if case.startswith("odd") else 1)

    declared = NAMED if case.endswith("named") else PAIRS
    assert converted(results(declared))
    found = by_key(results(declared).execute_and_collect())
    on_rows = NAMED if case.endswith("named") else None
    if on_rows is not None:
        monkeypatch.setattr(vectorise, "SEQUENCE_MIN", 10**6)
    expected = by_key(results(on_rows).execute_and_collect())
    assert found == expected
    assert sum(map(len, found.values())) >= 3
    if case.endswith("named"):
        assert {kind for records in found.values() for kind, _ in records} == {Row}


class Spotty:
    def __call__(self, i):
        return None if i % 5 == 1 else i % 2 == 0, None if i % 7 == 1 else f"é{i},", None if i % 3 == 1 else i / 3


@pytest.mark.parametrize("make", [Types.TUPLE, Types.ROW])
def test_files_have_the_lines_of_rows(env, tmp_path, monkeypatch, make):
    spotty = make([Types.BOOLEAN(), Types.STRING(), Types.DOUBLE()])

    def lines(name):
        stream = env.from_sequence(0, 99).map(Spotty(), output_type=spotty)
        assert bool(converted_before(stream, tmp_path / "none")) is (name == "columns")
        stream.write_as_text(f"{tmp_path}/{name}")
        env.execute()
        return sorted((tmp_path / name).read_text().splitlines())

    found = lines("columns")
    monkeypatch.setattr(vectorise, "SEQUENCE_MIN", 1000)
    assert found == lines("rows")
    assert len(found) == 100


def converted_before(stream, path):
    """Return what the plan converts where the stream is written to a file."""
    env = stream.get_execution_environment()
    stream.write_as_text(str(path))
    graph, _ = env._build("plan")
    env._sinks.clear()
    return [info.name for vertex in graph.vertices for info in vertex.operators if CONVERTED in info.tier]
