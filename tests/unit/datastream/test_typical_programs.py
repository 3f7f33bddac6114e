"""Programs as people write them: what of each runs on columns, a true reason for what does not, the same results."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import NamedTuple

import pytest

from engine.common import Row, Time, Types, WatermarkStrategy
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.aggregates import avg, count, max_
from engine.datastream.connectors import DataGeneratorSource, DiscardingSink
from engine.datastream.window import CountTrigger, EventTimeSessionWindows, TumblingEventTimeWindows
from engine.operators.functions import AggregateFunction, MapFunction, ReduceFunction
from engine.operators.process_functions import ProcessWindowFunction

TYPED = Types.ROW_NAMED(["user", "value", "ts", "name"], [Types.LONG(), Types.DOUBLE(), Types.LONG(), Types.STRING()])
TIMES = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_field("ts")
TUMBLING = TumblingEventTimeWindows.of(Time.seconds(1))
SESSIONS = EventTimeSessionWindows.with_gap(Time.milliseconds(300))
COUNT = 60


@dataclasses.dataclass
class Reading:
    user: int
    value: float
    name: str


class Event(NamedTuple):
    user: int
    value: float


@dataclasses.dataclass
class Paired:
    user: int
    difference: float


class Average(AggregateFunction):
    def create_accumulator(self):
        return 0.0, 0

    def add(self, value, accumulator):
        return accumulator[0] + value.value, accumulator[1] + 1

    def get_result(self, accumulator):
        return accumulator[0] / accumulator[1]

    def merge(self, a, b):
        return a[0] + b[0], a[1] + b[1]


class Converted(MapFunction):
    def open(self, runtime_context):
        self.factor = 1.8

    def map(self, value):
        return value.user, value.value * self.factor


class Looked(MapFunction):
    def open(self, runtime_context):
        self.cities = {number: f"city {number}" for number in range(7)}

    def map(self, value):
        return self.cities[value.user], value.value


class Counted(MapFunction):
    def open(self, runtime_context):
        self.counter = runtime_context.get_metrics_group().counter("seen")

    def map(self, value):
        self.counter.inc()
        return value.user, value.value


class Sum(ReduceFunction):
    def open(self, runtime_context):
        self.weight = 2.0

    def reduce(self, value1, value2):
        return value1[0], value1[1] + value2[1] * self.weight


class Elements(ProcessWindowFunction):
    def process(self, key, context, elements):
        yield key, len(list(elements))


def fields_of(index):
    return index % 5, (index * 37 % 101) / 4, index * 100, f"n{index % 3}"


def batch_of(indexes):
    users, values, times, _ = fields_of(indexes)[0], (indexes * 37 % 101) / 4, indexes * 100, None
    return users, values, times, [f"n{index % 3}" for index in indexes.tolist()]


def stream_of(env, is_columns):
    if is_columns:
        source = DataGeneratorSource.of_columns(batch_of, COUNT, TYPED)
        stream = env.from_source(source, WatermarkStrategy.no_watermarks(), "gen")
    else:
        rows = [Row(**dict(zip(TYPED.get_field_names(), fields_of(index), strict=True))) for index in range(COUNT)]
        stream = env.from_collection(rows, TYPED)
    return stream.assign_timestamps_and_watermarks(TIMES)


def readings(s):
    return s.map(lambda r: Reading(r.user, r.value, r.name))


def events(s):
    return s.map(lambda r: Event(r.user, r.value))


def tuples(s):
    return s.map(lambda r: (r.user, r.value))


def user(record):
    return record.user


VECTORISED, COMPILED = "vectorised", "compiled on columns, else interpreted"
#: name → program, and what the plan says of its last operator; of what is on rows, how it ends
ON_COLUMNS = {
    "words": (
        lambda s: s.flat_map(lambda r: r.name.split("n")).map(lambda w: (w, 1)).key_by(lambda t: t[0]).sum(1),
        VECTORISED,
    ),
    "objects filtered": (lambda s: readings(s).filter(lambda o: o.value > 3), COMPILED),
    "map with an open": (lambda s: s.map(Converted()), COMPILED),
    "sum behind a map with an open": (lambda s: s.map(Converted()).key_by(0).sum(1), VECTORISED),
    "reduce of tuples": (lambda s: tuples(s).key_by(lambda t: t[0]).reduce(lambda a, b: (a[0], a[1] + b[1])), COMPILED),
    "reduce with an open": (lambda s: tuples(s).key_by(lambda t: t[0]).reduce(Sum()), COMPILED),
    "reduce of objects": (
        lambda s: readings(s).key_by(user).reduce(lambda a, b: Reading(a.user, max(a.value, b.value), b.name)),
        COMPILED,
    ),
    "reduce of Rows": (
        lambda s: s.key_by("user").reduce(lambda a, b: Row(user=a.user, value=a.value + b.value, ts=b.ts, name=b.name)),
        COMPILED,
    ),
    "reduce behind a sum": (lambda s: s.key_by("user").sum("value").key_by("user").reduce(lambda a, b: a), COMPILED),
    "windows": (lambda s: s.key_by(user).window(TUMBLING).aggregate(count(), avg("value"), max_("value")), VECTORISED),
    "an average of Rows": (lambda s: s.key_by(user).window(TUMBLING).aggregate(Average()), COMPILED),
    "an average of objects": (lambda s: readings(s).key_by(user).window(TUMBLING).aggregate(Average()), COMPILED),
    "sessions of objects": (lambda s: readings(s).key_by(user).window(SESSIONS).max_by("value"), VECTORISED),
    "join of objects": (
        lambda s: (
            readings(s)
            .join(events(s))
            .where(user)
            .equal_to(user)
            .window(TUMBLING)
            .apply(lambda a, b: Paired(a.user, a.value - b.value))
        ),
        VECTORISED,
    ),
    "join by texts": (
        lambda s: (
            s.join(s)
            .where(lambda r: r.name.upper())
            .equal_to(lambda r: r.name.upper())
            .window(TUMBLING)
            .apply(lambda a, b: (a.name, a.value, b.value))
        ),
        VECTORISED,
    ),
    "interval join": (
        lambda s: (
            tuples(s)
            .key_by(lambda t: t[0] % 2)
            .interval_join(events(s).key_by(lambda e: e.user % 2))
            .between(Time.milliseconds(-300), Time.milliseconds(300))
            .process(lambda a, b: (a[0], a[1] - b.value))
        ),
        VECTORISED,
    ),
    "enrichment": (
        lambda s: readings(s).regular_join(events(s), user, user, output=lambda a, b: (a.name, b.value)),
        VECTORISED,
    ),
    "the first of each": (lambda s: readings(s).key_by(lambda o: o.name).first_row(), VECTORISED),
    "top-N of named tuples": (lambda s: events(s).key_by(user).top_n(2, "value", False), VECTORISED),
}
ON_ROWS = {
    "looked up": (lambda s: s.map(Looked()), "compiled on columns if what its open() sets allows it, else interpreted"),
    "metrics": (lambda s: s.map(Counted()), "interpreted (it calls something for what that does, not for its value)"),
    "lists": (lambda s: s.map(lambda r: [r.user]).key_by(lambda x: x[0]).reduce(lambda a, b: b), ": its input is rows"),
    "values": (
        lambda s: s.map(lambda r: r.user).key_by(lambda x: x % 2).reduce(max),
        ": its function is not compiled (its records are bare values)",
    ),
    "a key changed": (
        lambda s: tuples(s).key_by(lambda t: t[0]).reduce(lambda a, b: (a[0] + b[0], a[1])),
        ": its function changes the key",
    ),
    "top-N of objects": (
        lambda s: readings(s).key_by(user).top_n(2, "value"),
        ": its results are Rows with objects of Reading in them",
    ),
    "windows of elements": (lambda s: s.key_by(user).window(TUMBLING).process(Elements()), "sees every record"),
    "windows without a key": (lambda s: s.window_all(TUMBLING).reduce(lambda a, b: a), ": it has no key"),
    "windows by count": (
        lambda s: s.key_by(user).window(TUMBLING).trigger(CountTrigger.of(3)).sum("value"),
        ": its trigger is CountTrigger",
    ),
    "windows that reduce objects": (
        lambda s: readings(s).key_by(user).window(TUMBLING).reduce(lambda a, b: dataclasses.replace(a, name=b.name)),
        "(windows do not hold objects or Rows that a reduce function makes)",
    ),
    "windows behind rows": (
        lambda s: s.map(lambda r: [r.user]).key_by(lambda x: x[0]).window(TUMBLING).reduce(lambda a, b: b),
        ": its input is rows",
    ),
    "sessions that average": (
        lambda s: s.key_by(user).window(SESSIONS).aggregate(Average()),
        ": merge() of its AggregateFunction is not compiled",
    ),
    "join with a key of rows": (
        lambda s: s.join(s.map(lambda r: [r.user])).where(user).equal_to(lambda x: x[0]).window(TUMBLING).apply(max),
        ": its second input is rows",
    ),
}


def last_tier(stream):
    stream.sink_to(DiscardingSink())
    graph, _ = stream.get_execution_environment()._build("plan")
    tiers = [info.tier for vertex in graph.vertices for info in vertex.operators if "Writer" not in info.name]
    return tiers[-1]


@pytest.mark.parametrize("name", [*ON_COLUMNS, *ON_ROWS])
def test_the_plan_says_what_runs_on_columns_and_why_something_does_not(name):
    stream = stream_of(StreamExecutionEnvironment.create_local_environment(1), True)
    program, told = (ON_COLUMNS | ON_ROWS)[name]
    tier = last_tier(program(stream))
    assert tier.startswith(told) if name in ON_COLUMNS else tier.endswith(told), tier


@pytest.mark.parametrize("name", [*ON_COLUMNS, "looked up"])
def test_results_are_those_of_rows(name):
    program, _ = (ON_COLUMNS | ON_ROWS)[name]
    found = []
    for is_columns in (True, False):
        stream = stream_of(StreamExecutionEnvironment.create_local_environment(1), is_columns)
        with program(stream).execute_and_collect() as results:
            found.append(Counter(map(repr, results)))
    assert found[0] == found[1]
    assert found[0].total() > 2
