"""Ours: two streams with half of the events each, joined by key: EVENTS KEYS PARALLELISM join=interval|window [collect]
[plain] [reps=2]. ``interval``: within 5 s of each other; ``window``: in tumbling windows of 10 s; 5 s disorder.
``plain``: with a function that does not compile, so that it is called for each pair."""

import sys

import numpy as np

from engine.common import Duration, Time, Types, WatermarkStrategy
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.connectors import DataGeneratorSource, DiscardingSink
from engine.datastream.window import TumblingEventTimeWindows
from tests.bench.programs.events import times_ms, users_and_amounts
from tests.bench.programs.repeating import options_of, repeat

events, keys, parallelism = map(int, sys.argv[1:4])
options = options_of(sys.argv[4:])
#: Where the indexes of the second stream's events begin: other users and amounts at the same times.
SECOND = 1 << 40
TYPED = Types.ROW_NAMED(["user", "amount", "ts"], [Types.LONG(), Types.DOUBLE(), Types.LONG()])


def stream(env, name, first):
    def columns(indexes):
        return (*users_and_amounts(indexes + np.int64(first), keys), times_ms(indexes))

    source = DataGeneratorSource.of_columns(columns, events // 2, TYPED)
    times = WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_seconds(5)).with_timestamp_field("ts")
    return env.from_source(source, times, name)


def joined(left, right):
    return left[0], left[1] + right[1], left[2]


def called(left, right):
    return (left[0], sum((left[1], right[1])), left[2])


def joins_of(env):
    env.set_parallelism(parallelism)
    left, right = stream(env, "left", 0), stream(env, "right", SECOND)
    function = called if "plain" in options else joined
    if options["join"] == "interval":
        near = left.key_by("user").interval_join(right.key_by("user"))
        return near.between(Time.seconds(-5), Time.seconds(5)).process(function)
    windows = left.join(right).where("user").equal_to("user").window(TumblingEventTimeWindows.of(Time.seconds(10)))
    return windows.apply(function)


def execute():
    env = StreamExecutionEnvironment.get_execution_environment()
    joins_of(env).sink_to(DiscardingSink())
    env.execute("join")


if "collect" in options:
    with joins_of(StreamExecutionEnvironment.get_execution_environment()).execute_and_collect() as results:
        rows = list(results)
    print(f"RESULT rows={len(rows)} total={sum(row[1] for row in rows):.3f} users={sum(row[0] for row in rows)}")
else:
    repeat(execute, int(options.get("reps", 1)))
