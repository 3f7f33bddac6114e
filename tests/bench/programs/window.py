"""Ours: 10 s tumbling event-time windows, count + sum + max by key, 5 s disorder: EVENTS KEYS PARALLELISM [collect]
[reps=2]. ``reps``: execute it so many times, see ``repeating``. ``phases=FOLDER``: as of ``keyed_sum``."""

import sys

from engine.common import Duration, Time, Types, WatermarkStrategy
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.aggregates import count, max_, sum_
from engine.datastream.connectors import DataGeneratorSource, DiscardingSink
from engine.datastream.window import TumblingEventTimeWindows
from tests.bench.exchange_phases import install
from tests.bench.programs.events import times_ms, users_and_amounts
from tests.bench.programs.repeating import options_of, repeat

events, keys, parallelism = map(int, sys.argv[1:4])
options = options_of(sys.argv[4:])


def made(indexes):
    if "phases" in options:
        install(options["phases"])
    return (*users_and_amounts(indexes, keys), times_ms(indexes))


def windows_of(env):
    env.set_parallelism(parallelism)
    typed = Types.ROW_NAMED(["user", "amount", "ts"], [Types.LONG(), Types.DOUBLE(), Types.LONG()])
    source = DataGeneratorSource.of_columns(made, events, typed)
    times = WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_seconds(5)).with_timestamp_field("ts")
    return (
        env.from_source(source, times, "gen")
        .key_by("user")
        .window(TumblingEventTimeWindows.of(Time.seconds(10)))
        .aggregate(count(), sum_("amount"), max_("amount"))
    )


def execute():
    env = StreamExecutionEnvironment.get_execution_environment()
    windows_of(env).sink_to(DiscardingSink())
    env.execute("window")


if "collect" in options:
    with windows_of(StreamExecutionEnvironment.get_execution_environment()).execute_and_collect() as results:
        rows = list(results)
    print(f"RESULT rows={len(rows)} events={sum(row[3] for row in rows)} total={sum(row[4] for row in rows):.3f}")
else:
    repeat(execute, int(options.get("reps", 1)))
