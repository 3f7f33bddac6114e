from __future__ import annotations

import numpy as np
import pytest

from engine.common import Duration, Time, Types, WatermarkStrategy
from engine.connectors.source import SourceSpec
from engine.core.errors import ProgramError
from engine.core.printing import format_typed
from engine.core.records import Row
from engine.datastream import RuntimeExecutionMode, StreamExecutionEnvironment, vectorise
from engine.datastream.aggregates import count, count_distinct, first, last, max_, sum_
from engine.datastream.connectors import DataGeneratorSource, DiscardingSink
from engine.datastream.connectors.file_system import BucketAssigner, FileSink
from engine.datastream.formats.csv import CsvBulkWriters, CsvSchema
from engine.datastream.functions import WordTokenizer
from engine.datastream.lowering import lower, reachable
from engine.datastream.window import (
    CountTrigger,
    CumulatingEventTimeWindows,
    EventTimeSessionWindows,
    ProcessingTimeSessionWindows,
    SlidingEventTimeWindows,
    TumblingEventTimeWindows,
)
from engine.operators.functions import AggregateFunction, FilterFunction, JoinFunction, MapFunction
from engine.operators.process_functions import ProcessWindowFunction
from engine.operators.timestamps import TimestampsSpec
from engine.time.watermarks import FieldTimestamps, TimestampAssigner

TYPED = Types.ROW_NAMED(["k", "v", "ts"], [Types.LONG(), Types.LONG(), Types.LONG()])
CSV = CsvSchema.builder().add_number_column("k").add_number_column("v").add_number_column("ts").build()
#: What is told of an aggregation that rows come to.
BUILT_IN_ON_ROWS = "built-in on rows: its input is rows"
TUMBLING = TumblingEventTimeWindows.of(Time.seconds(1))


def generated(indexes):
    return indexes % 3, indexes, indexes * 100


def columns(env, count=100):
    source = DataGeneratorSource.of_columns(generated, count, TYPED)
    return env.from_source(source, WatermarkStrategy.no_watermarks(), "gen")


def tiers(stream):
    """Return what the plan says of each operator, by name."""
    stream.sink_to(DiscardingSink())
    graph, _ = stream.get_execution_environment()._build("plan")
    return {info.name.removeprefix("Sink: "): info.tier for vertex in graph.vertices for info in vertex.operators}


@pytest.fixture
def env():
    return StreamExecutionEnvironment.create_local_environment(1)


def test_the_plan_says_which_aggregations_are_vectorised(env):
    stream = columns(env)
    assert tiers(stream.key_by("k").sum("v"))["Keyed Aggregation"] == "vectorised"
    assert tiers(stream.key_by(lambda row: row[0]).max(1))["Keyed Aggregation"] == "vectorised"
    computed = "vectorised, its key computed on columns"
    assert tiers(stream.key_by(lambda row: row[0] % 2).max(1))["Keyed Aggregation"] == computed
    assert tiers(stream.key_by(lambda row: row.k).max(1))["Keyed Aggregation"] == "vectorised"
    assert tiers(stream.key_by(lambda row: (row["k"], row[1])).max(1))["Keyed Aggregation"] == "vectorised"
    chosen = tiers(stream.key_by(lambda row: row.k % 2).reduce(lambda a, b: b))["Keyed Reduce"]
    assert chosen == "compiled on columns, else interpreted, its key computed on columns"
    for keyed in (stream.key_by(lambda row: hash(row[0])), stream.key_by(hash)):
        for name, made in {
            "Keyed Aggregation": keyed.sum(1),
            "Keyed Reduce": keyed.reduce(lambda a, b: a),
            "Top N": keyed.top_n(1, "v"),
            "First Row": keyed.first_row(),
            "TumblingEventTimeWindows": keyed.window(TUMBLING).sum("v"),
        }.items():
            assert "on rows: its key is a function that is not compiled (" in tiers(made)[name]
    assert tiers(stream.key_by(0).max_by(1))["Keyed Aggregation"] == "vectorised"
    assert tiers(env.from_collection([(1, 2)], TYPED).key_by(0).sum(1))["Keyed Aggregation"] == BUILT_IN_ON_ROWS


def test_the_plan_says_which_choices_of_records_run_on_columns(env):
    keyed = columns(env).key_by(0)
    compiled = "compiled on columns, else interpreted"
    for function in (lambda a, b: a, lambda a, b: b, lambda a, b: b if b[1] > a[1] else a):
        assert tiers(keyed.reduce(function))["Keyed Reduce"] == compiled
    told = tiers(keyed.reduce(lambda a, b: b if b[1] != a[1] else a))["Keyed Reduce"]
    why = "it does not pick one of both records by what is smaller or greater"
    assert told == f"interpreted, on rows: its function is not compiled ({why})"
    times = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_field(2)
    windows = columns(env).assign_timestamps_and_watermarks(times).key_by(0).window(TUMBLING)
    assert tiers(windows.max_by("v"))["TumblingEventTimeWindows"].startswith("vectorised")
    newest = windows.reduce(lambda a, b: a if a[2] > b[2] else b)
    assert tiers(newest)["TumblingEventTimeWindows"].startswith(compiled)


def test_records_that_columns_have_chosen_arrive_as_those_of_rows(env):
    times = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_field(2)
    rows = [(i % 3, i, i * 100) for i in range(100)]
    found = []
    for stream in (env.from_collection(rows), columns(env)):
        keyed = stream.assign_timestamps_and_watermarks(times).key_by(0)
        found.append(
            [
                sorted(map(tuple, made.execute_and_collect()))
                for made in (
                    keyed.min_by(1),
                    keyed.reduce(lambda a, b: b if b[1] > a[1] else a),
                    keyed.window(TUMBLING).max_by(1),
                    keyed.window(TUMBLING).reduce(lambda a, b: a).filter(lambda row: row[1] > 4),
                )
            ]
        )
    assert found[0] == found[1]
    assert set(found[0][0]) == {(0, 0, 0), (1, 1, 100), (2, 2, 200)}


def test_keys_that_are_functions_give_the_same_on_columns_and_on_rows(env):
    times = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_field(2)
    rows = [Row(k=i % 3, v=i, ts=i * 100) for i in range(100)]
    found = []
    for stream in (env.from_collection(rows, TYPED), columns(env)):
        stamped = stream.assign_timestamps_and_watermarks(times)
        made = [
            made
            for keyed in (stamped.key_by(lambda r: r.v % 7), stamped.key_by(lambda r: (r.k, r.v // 10)))
            for made in (
                keyed.sum("v"),
                keyed.last_row(),
                keyed.window(TUMBLING).aggregate(count(), sum_("v")),
                keyed.window(GAP).max_by("v"),
            )
        ]
        found.append([sorted(map(repr, one.execute_and_collect())) for one in made])
    assert found[0] == found[1]


class ByField(TimestampAssigner):
    def extract_timestamp(self, value, record_timestamp):
        return value[2]


class ByMore(TimestampAssigner):
    def extract_timestamp(self, value, record_timestamp):
        return value[2] + 1


@pytest.mark.parametrize(
    "assigner",
    [lambda row, at: row[2], ByField(), FieldTimestamps("ts"), ByMore(), lambda row, at: at, lambda row, at: hash(row)],
)
def test_windows_are_vectorised_whatever_the_event_time_is(env, assigner):
    times = WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_seconds(1)).with_timestamp_assigner(assigner)
    stamped = columns(env).assign_timestamps_and_watermarks(times)
    tier = tiers(stamped.key_by("k").window(TUMBLING).aggregate(count(), sum_("v")))["TumblingEventTimeWindows"]
    assert tier.startswith("vectorised")
    by_trigger = stamped.key_by("k").window(TUMBLING).trigger(CountTrigger.of(2)).aggregate(count())
    assert not tiers(by_trigger)["TumblingEventTimeWindows"].startswith("vectorised")


def test_records_that_nobody_wants_as_columns_stay_the_rows_that_the_assigner_has_seen(env):
    def keeps_columns(assigner, then):
        times = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(assigner)
        stamped = columns(env).assign_timestamps_and_watermarks(times)
        then(stamped).sink_to(DiscardingSink())
        lowered = lower(reachable(env._sinks[-1:]), batch=False)
        return [node.spec.keeps_columns for node in lowered if isinstance(node.spec, TimestampsSpec)]

    def called(row, at):
        return hash(row)

    assert keeps_columns(called, lambda stream: stream.key_by(0).sum(1)) == [True]
    assert keeps_columns(called, lambda stream: stream.map(repr)) == [False]


class Opened(JoinFunction):
    def open(self, runtime_context):
        self.subtask = runtime_context.get_index_of_this_subtask()

    def join(self, left, right):
        return [*left, *right, self.subtask]


class Stateful(Opened):
    def open(self, runtime_context):
        self.context, self.subtask = runtime_context, 0


def test_joins_call_functions_that_were_opened_for_pairs_of_columns_unless_they_may_keep_state(env):
    def results(function, first, second):
        joined = first.join(second).where("k").equal_to("k").window(TUMBLING).apply(function)
        tier = tiers(joined)["Window Join"]
        with joined.execute_and_collect() as pairs:
            return tier.split(",")[0], sorted(pairs)

    times = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_field(2)
    first, second = (columns(env).assign_timestamps_and_watermarks(times) for _ in range(2))
    on_columns, found = results(Opened(), first, second)
    on_rows, wanted = results(Stateful(), first, second)
    assert (on_columns, on_rows) == ("vectorised", "TumblingEventTimeWindows(1000")
    assert found == wanted
    assert len(found) > 100


def test_aggregates_of_windows_give_the_same_on_columns_and_on_rows(env):
    times = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_field(2)
    aggregates = [count(), sum_(1), max_(1)]
    rows = [(i % 3, i, i * 100) for i in range(100)]
    of_rows = env.from_collection(rows).assign_timestamps_and_watermarks(times)
    of_columns = columns(env).assign_timestamps_and_watermarks(times)
    found = [
        sorted(stream.key_by(0).window(TUMBLING).aggregate(*aggregates).execute_and_collect())
        for stream in (of_rows, of_columns)
    ]
    assert found[0] == found[1]
    assert sum(row[3] for row in found[0]) == 100
    assert found[0][0] == (0, 0, 1000, 4, 0 + 3 + 6 + 9, 9)


def test_count_distinct_runs_on_columns(env):
    times = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_field(2)
    stamped = columns(env).assign_timestamps_and_watermarks(times)
    counts = stamped.key_by(0).window(TUMBLING).aggregate(count_distinct(0), count().alias("n"))
    assert tiers(counts)["TumblingEventTimeWindows"].startswith("vectorised")
    assert {row[3:] for row in counts.execute_and_collect()} == {(1, 3), (1, 4)}


def test_running_sums_of_columns_arrive_as_those_of_rows(env):
    sums = columns(env).key_by("k").sum("v").execute_and_collect()
    totals = {}
    expected = []
    for i in range(100):
        first = totals.setdefault(i % 3, [0, i * 100])
        first[0] += i
        expected.append((i % 3, *first))
    found = list(sums)
    assert list(map(tuple, found)) == expected
    assert {type(record) for record in found} == {Row}


def test_built_in_aggregates_need_a_key_and_a_field(env):
    with pytest.raises(ProgramError, match="keyed windows"):
        columns(env).window_all(TUMBLING).aggregate(count())
    with pytest.raises(ProgramError, match=r"sum\(None\)"):
        sum_(None)


def plan_of_sinks(env):
    """Return what the plan says of each sink of a program, without its path, by name."""
    graph, _ = env._build("plan")
    env._sinks.clear()
    infos = [info for vertex in graph.vertices for info in vertex.operators]
    return {info.name.removeprefix("Sink: "): info.tier.rpartition(" ")[0] for info in infos if "/out" in info.tier}


def test_the_plan_says_which_file_sinks_write_columns(env, tmp_path):
    class ByKey(BucketAssigner):
        def get_bucket_id(self, element, context):
            return str(element[0])

    rows = env.from_collection([(1, 2, 3)], TYPED)
    csv = FileSink.for_bulk_format(f"{tmp_path}/out", CsvBulkWriters.for_schema(CSV))
    for stream, tier in ((columns(env), "vectorised,"), (rows, "")):
        stream.write_as_text(f"{tmp_path}/out1")
        stream.write_as_csv(f"{tmp_path}/out2")
        stream.sink_to(csv.build()).name("Rolling")
        stream.sink_to(csv.with_bucket_assigner(ByKey()).build()).name("Buckets")
        named = {"Text Sink": tier, "CSV Sink": tier, "Rolling": tier, "Buckets": tier}
        assert plan_of_sinks(env) == named


@pytest.mark.usefixtures("short_ones_too")
def test_columns_are_written_as_the_lines_of_rows(env, tmp_path):
    pairs = env.from_sequence(0, 99).map(lambda i: (i, i / 7, "odd" if i % 2 else "even"))
    pairs.write_as_csv(f"{tmp_path}/out")
    assert plan_of_sinks(env) == {"CSV Sink": "vectorised,"}
    pairs.write_as_csv(f"{tmp_path}/out")
    env.execute()
    expected = "".join(f"{i},{format_typed(i / 7)},{'odd' if i % 2 else 'even'}\n" for i in range(100))
    assert (tmp_path / "out").read_text() == expected


@pytest.fixture
def short_ones_too(monkeypatch):
    monkeypatch.setattr(vectorise, "SEQUENCE_MIN", 1)


def test_only_a_long_sequence_becomes_columns(env):
    """Loading the kernels takes longer than a short one."""
    for size, is_columnar in ((vectorise.SEQUENCE_MIN, True), (vectorise.SEQUENCE_MIN - 1, False)):
        summed = env.from_sequence(1, size).map(lambda i: (i % 3, i)).key_by(0).sum(1)
        assert sources(summed) == [is_columnar]


@pytest.mark.usefixtures("short_ones_too")
def test_a_sequence_becomes_columns_where_functions_that_compile_lead_to_a_fold_of_fields(env):
    pairs = env.from_sequence(0, 99).map(lambda i: (i % 3, i)).filter(lambda pair: pair[1] > 5)
    summed = pairs.key_by(lambda pair: pair[0]).reduce(lambda a, b: (a[0], a[1] + b[1]))
    assert tiers(summed)["Keyed Reduce"] == "compiled on columns, else interpreted"
    assert sources(summed) == [True]
    assert sources(pairs.key_by(lambda pair: pair[0]).sum(1)) == [True]
    assert sources(pairs) == [False]  # nothing gains by it
    assert sources(pairs.key_by(lambda pair: pair[0]).reduce(lambda a, b: (a[0], a[1] * b[1]))) == [False]
    by_text = env.from_sequence(0, 99).map(lambda i: (oct(i), i)).key_by(lambda pair: pair[0])
    assert sources(by_text.reduce(lambda a, b: (a[0], a[1] + b[1]))) == [False]


def sources(stream):
    """Return whether each sequence behind a stream gives columns when it runs."""
    found = lower([stream._members[0].node], batch=False)
    return [node.spec.source.columnar for node in reachable(found) if isinstance(node.spec, SourceSpec)]


@pytest.mark.usefixtures("short_ones_too")
@pytest.mark.parametrize("mode", [RuntimeExecutionMode.STREAMING, RuntimeExecutionMode.BATCH])
def test_a_fold_of_compiled_records_arrives_as_that_of_rows(env, mode):
    env.set_runtime_mode(mode)
    env.set_parallelism(2)
    streams = [
        env.from_sequence(0, 999).map(lambda i: (i % 7, i, i / 2.0)),
        env.from_collection([(i % 7, i, i / 2.0) for i in range(1000)]),
    ]
    found = []
    for stream in streams:
        folded = stream.key_by(lambda row: row[0]).reduce(lambda a, b: (a[0], a[1] + b[1], max(a[2], b[2])))
        last = {}
        for row in folded.execute_and_collect():
            last[row[0]] = max(last.get(row[0], row), row)
        found.append(last)
    assert found[0] == found[1]
    assert len(found[0]) == 7


class CountAndSum(AggregateFunction):
    def create_accumulator(self):
        return 0, 0

    def add(self, value, accumulator):
        return accumulator[0] + 1, accumulator[1] + value[1]

    def get_result(self, accumulator):
        return accumulator

    def merge(self, acc_a, acc_b):
        return acc_a[0] + acc_b[0], acc_a[1] + acc_b[1]


class WithKey(ProcessWindowFunction):
    def process(self, key, context, elements):
        yield key, context.window().start, *next(iter(elements))


@pytest.mark.usefixtures("short_ones_too")
def test_windows_with_a_fold_of_ones_own_give_the_same_on_columns_and_on_rows(env):
    times = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(ByField())
    streams = [
        env.from_sequence(0, 199).map(lambda i: (i % 3, i, i * 100)),
        env.from_collection([(i % 3, i, i * 100) for i in range(200)]),
    ]
    found = []
    for stream in streams:
        keyed = stream.assign_timestamps_and_watermarks(times).key_by(lambda row: row[0])
        windows = keyed.window(TUMBLING).aggregate(CountAndSum(), WithKey())
        found.append((sources(windows), sorted(windows.execute_and_collect())))
    assert [of_columns for of_columns, _ in found] == [[True], []]
    assert found[0][1] == found[1][1]
    assert sum(row[2] for row in found[0][1]) == 200


def joined(left, right):
    return left[0], left[1] + right[1]


def listed(left, right):
    return [left, right]


def test_the_plan_says_which_joins_are_vectorised(env):
    first, second, rows = columns(env), columns(env), env.from_collection([(1, 2, 3)], TYPED)

    def windows(left, right, function):
        return left.join(right).where("k").equal_to(lambda row: row[0]).window(TUMBLING).apply(function)

    def near(left, right, function):
        return left.key_by(0).interval_join(right.key_by(0)).between(Time.seconds(0), Time.seconds(1)).process(function)

    for join, name in ((windows, "Window Join"), (near, "Interval Join")):
        assert tiers(join(first, second, joined))[name].startswith("vectorised")
        assert "function compiled" in tiers(join(first, second, joined))[name]
        assert "function called for each pair" in tiers(join(first, second, listed))[name]
        assert "vectorised" not in tiers(join(first, rows, joined))[name]
    assert tiers(near(first, second, joined).key_by(0).sum(1))["Keyed Aggregation"] == "vectorised"
    assert tiers(near(first, second, listed).key_by(0).sum(1))["Keyed Aggregation"] == BUILT_IN_ON_ROWS


def by_name(left, right):
    return [left["k"], left.v, right["v"], type(right).__name__]


@pytest.mark.parametrize("join", ["interval", "window", "regular"])
def test_functions_that_do_not_compile_get_rows_where_records_are_rows(env, join):
    times = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_field("ts")
    source = DataGeneratorSource.of_columns(generated, 60, TYPED)
    records = list(zip(*(column.tolist() for column in generated(np.arange(60))), strict=True))
    found = []
    for stream in (env.from_source(source, times, "gen"), env.from_collection(records, TYPED)):
        stamped = stream.assign_timestamps_and_watermarks(times)
        left, right = stamped.key_by("k"), stamped.filter(lambda row: row[1] % 2 == 0).key_by("k")
        if join == "interval":
            pairs = left.interval_join(right).between(Time.seconds(-1), Time.seconds(1)).process(by_name)
        elif join == "window":
            pairs = stamped.join(stamped).where("k").equal_to("k").window(TUMBLING).apply(by_name)
        else:
            pairs = stamped.regular_join(stamped, "v", "v", output=by_name)
        found.append(sorted(map(list, pairs.execute_and_collect())))
    assert found[0] == found[1]
    assert {record[3] for record in found[0]} == {"Row"}


def test_records_of_a_generator_of_named_rows_are_rows_for_every_function(env):
    stream = columns(env, 30)
    named = stream.map(lambda row: (row.k, row["v"], type(row).__name__, [1]))
    assert set(map(repr, named.execute_and_collect())) == {repr((i % 3, i, "Row", [1])) for i in range(30)}
    longest = stream.key_by(lambda row: row["k"] + 1).reduce(lambda a, b: b if b.v > a.v else a)
    assert {type(record).__name__ for record in longest.execute_and_collect()} == {"Row"}
    pairs = stream.key_by("k").reduce(lambda a, b: a if len(str(a["v"])) > 5 else b)
    assert sorted(record.v for record in pairs.execute_and_collect()) == list(range(30))


def test_results_of_joins_of_columns_are_those_of_rows(env):
    def pairs(stream):
        other = stream.filter(lambda row: row[1] % 2 == 0)
        near = stream.key_by(0).interval_join(other.key_by(0)).between(Time.milliseconds(-500), Time.milliseconds(500))
        windows = stream.join(other).where(lambda row: row[0]).equal_to(lambda row: row[0]).window(TUMBLING)
        return near.process(joined), windows.apply(joined)

    times = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_field("ts")
    source = DataGeneratorSource.of_columns(generated, 100, TYPED)
    expected = list(zip(*(column.tolist() for column in generated(np.arange(100))), strict=True))
    for index in range(2):
        found = []
        for stream in (env.from_source(source, times, "gen"), env.from_collection(expected, TYPED)):
            stamped = stream.assign_timestamps_and_watermarks(times)
            found.append(sorted(map(tuple, pairs(stamped)[index].execute_and_collect())))
        assert found[0] == found[1]
        assert len(found[0]) > 50


def test_the_plan_says_which_sessions_are_vectorised(env):
    sessions = columns(env).key_by("k").window(EventTimeSessionWindows.with_gap(Time.seconds(1)))
    stream = sessions.aggregate(count(), sum_("v"), max_("v"))
    assert tiers(stream)["EventTimeSessionWindows"].startswith("vectorised")
    assert tiers(stream.key_by(0).sum(3))["Keyed Aggregation"] == "vectorised"
    assert tiers(sessions.aggregate(count_distinct("v")))["EventTimeSessionWindows"].startswith("vectorised")
    assert tiers(sessions.aggregate(first("v")))["EventTimeSessionWindows"].startswith("vectorised")
    named = "EventTimeSessionWindows"
    for reduced in (sessions.max_by("v"), sessions.sum("v")):
        assert tiers(reduced)[named].startswith("vectorised")
    by_index = columns(env).key_by(0).window(EventTimeSessionWindows.with_gap(Time.seconds(1)))
    assert tiers(by_index.reduce(lambda a, b: b if b[1] > a[1] else a))[named].startswith("compiled on columns")
    assert "columns" not in tiers(by_index.reduce(lambda a, b: (*a[:1], 7, *b[2:])))[named]


GAP = EventTimeSessionWindows.with_gap(Time.seconds(1))
DYNAMIC = EventTimeSessionWindows.with_dynamic_gap(lambda row: 5)
BY_CLOCK = ProcessingTimeSessionWindows.with_gap(Time.seconds(1))
NOT_VECTORISED = {
    "its key is a function": lambda env: columns(env).key_by(lambda row: hash(row[0])).window(GAP).sum(1),
    "its gap is not fixed": lambda env: columns(env).key_by("k").window(DYNAMIC).sum(1),
    "its time is the clock's": lambda env: columns(env).key_by("k").window(BY_CLOCK).sum(1),
    "its trigger is CountTrigger": lambda env: columns(env).key_by(0).window(GAP).trigger(CountTrigger.of(1)).sum(1),
    "its function sees every record": lambda env: columns(env).key_by(0).window(GAP).process(WithKey()),
    "its function is not compiled (": lambda env: (
        columns(env).key_by(0).window(GAP).reduce(lambda a, b: (a[0], 7, 8, 9))
    ),
    "its input is rows": lambda env: env.from_collection([(1, 2)]).key_by(0).window(GAP).sum(1),
    "its input is rows, of no": lambda env: env.from_collection([(1, 2)]).key_by(0).window(GAP).reduce(max),
}


@pytest.mark.parametrize("reason", NOT_VECTORISED)
def test_the_plan_says_why_sessions_are_not_vectorised(env, reason):
    (tier,) = [tier for name, tier in tiers(NOT_VECTORISED[reason](env)).items() if "SessionWindows" in name]
    assert f"on rows: {reason}" in tier


def test_the_plan_says_that_sessions_with_late_records_are_vectorised(env):
    sessions = columns(env).key_by("k").window(EventTimeSessionWindows.with_gap(Time.seconds(1)))
    late = sessions.allowed_lateness(5).aggregate(count())
    assert tiers(late)["EventTimeSessionWindows"].startswith("vectorised")


def test_records_that_sessions_choose_are_those_of_rows(env):
    gap = EventTimeSessionWindows.with_gap(Time.milliseconds(1))
    times = WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_millis(40)).with_timestamp_field("ts")
    source = DataGeneratorSource.of_columns(generated, 100, TYPED)
    expected = list(zip(*(column.tolist() for column in generated(np.arange(100))), strict=True))
    found = []
    for stream in (env.from_source(source, times, "gen"), env.from_collection(expected, TYPED)):
        sessions = stream.assign_timestamps_and_watermarks(times).key_by(0).window(gap)
        found.append(sorted(map(tuple, sessions.min_by(1).execute_and_collect())))
        found.append(sorted(map(tuple, sessions.reduce(lambda a, b: b if b[1] >= a[1] else a).execute_and_collect())))
    assert found[:2] == found[2:]
    assert len(found[0]) > 5


@pytest.mark.parametrize("mode", [RuntimeExecutionMode.STREAMING, RuntimeExecutionMode.BATCH])
def test_overlapping_windows_of_columns_are_those_of_rows(env, mode):
    env.set_runtime_mode(mode)
    times = WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_millis(40)).with_timestamp_field("ts")
    source = DataGeneratorSource.of_columns(generated, 100, TYPED)
    expected = list(zip(*(column.tolist() for column in generated(np.arange(100))), strict=True))
    sliding = SlidingEventTimeWindows.of(Time.seconds(2), Time.milliseconds(700))
    growing = CumulatingEventTimeWindows.of(Time.seconds(3), Time.seconds(1))
    found = []
    for stream in (env.from_source(source, times, "gen"), env.from_collection(expected, TYPED)):
        for assigner in (sliding, growing):
            windows = stream.assign_timestamps_and_watermarks(times).key_by(0).window(assigner)
            results = [
                windows.aggregate(first("v"), last("v"), sum_("v")),
                windows.sum(1),
                windows.max_by(1),
                windows.reduce(lambda a, b: b if b[1] >= a[1] else a),
            ]
            found += [sorted(map(tuple, result.execute_and_collect())) for result in results]
    assert found[:8] == found[8:]
    assert min(map(len, found)) > 20


def test_the_plan_says_which_overlapping_windows_are_vectorised(env):
    times = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_field(2)
    keyed = columns(env).assign_timestamps_and_watermarks(times).key_by(0)
    for size, where in ((64, "accumulators by slot and window"), (65, "on rows: a record is in more than 64 windows")):
        windows = keyed.window(SlidingEventTimeWindows.of(Time.seconds(size), Time.seconds(1)))
        latest = windows.reduce(lambda a, b: b if b[1] > a[1] else a)
        for stream in (windows.aggregate(last("v")), windows.min_by(1), latest):
            assert where in tiers(stream)["SlidingEventTimeWindows"]
        assert tiers(windows.aggregate(sum_("v")))["SlidingEventTimeWindows"].endswith("accumulators by slot")


def test_words_of_a_text_file_are_columns_where_somebody_works_on_columns(env, tmp_path):
    def words(tokenizer=WordTokenizer()):
        return env.read_text_file(str(tmp_path)).flat_map(tokenizer)

    assert tiers(words().key_by(0).sum(1)) == {
        "Source: Text File Source": "",
        "Flat Map": "vectorised",
        "Keyed Aggregation": "vectorised",
        "Writer": "",
    }
    one = words(WordTokenizer(pairs=False)).filter(lambda word: len(word) > 3).map(lambda word: (word, 1))
    assert tiers(one.key_by(0).sum(1))["Keyed Aggregation"] == "vectorised"
    # Nobody gains here: making rows of columns costs more than cutting lines on rows.
    assert tiers(words().map(print))["Flat Map"] == "interpreted"
    assert tiers(words(lambda line: [(word, 1) for word in line.split()]).key_by(0).sum(1))["Flat Map"] == "vectorised"
    by_comma = words(lambda line: [(word, 1) for word in line.split(",")])
    assert tiers(by_comma.key_by(0).sum(1))["Flat Map"] == "interpreted (its input is rows)"
    lines = env.read_text_file(str(tmp_path))
    lines.map(len).sink_to(DiscardingSink())  # another reader of the lines
    assert tiers(lines.flat_map(WordTokenizer()).key_by(0).sum(1))["Flat Map"] == "interpreted (its input is rows)"


class Weighed(MapFunction):
    def __init__(self, weight):
        self.weight = weight

    def map(self, value):
        return Row(k=value[0] + 10, v=_halved(value[1]) * self.weight, text=f"{value[2]}!")


def _halved(number):
    return number // 2 if number % 2 == 0 else -number


class Late(FilterFunction):
    def filter(self, value):
        return value.v > -60


@pytest.mark.parametrize("mode", [RuntimeExecutionMode.STREAMING, RuntimeExecutionMode.BATCH])
def test_objects_helpers_rows_and_computed_keys_give_the_same_on_columns_and_on_rows(mode):
    expected = list(zip(*(column.tolist() for column in generated(np.arange(100))), strict=True))
    found = []
    for is_columns in (True, False):
        env = StreamExecutionEnvironment.create_local_environment(2)
        env.set_runtime_mode(mode)
        source = columns(env) if is_columns else env.from_collection(expected, TYPED)
        made = source.map(Weighed(3)).filter(Late())
        keyed = made.key_by(lambda row: row.k % 2).sum("v").set_parallelism(2)
        found.append([sorted(map(repr, made.execute_and_collect())), _last_by_key(keyed.execute_and_collect())])
    assert found[0] == found[1]
    assert len(found[0][0]) > 50


def _last_by_key(rows):
    """Return the last sum of each key, which the order of records says nothing of."""
    last = {}
    for row in rows:
        last[row.k % 2] = row.v
    return last
