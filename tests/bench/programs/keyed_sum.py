"""Ours: keyed running sum of a typed stream, one result an event: EVENTS KEYS PARALLELISM [collect] [OPTION=VALUE …].

``reps=2``: execute it twice, see ``repeating``. ``backend=rocksdb``: state on disk. ``sources=16``: the events come
from so many sources, each with PARALLELISM subtasks in the same slots: so many times more channels into each sum.
``values=14``: so many further fields of 8 bytes, of which the sum keeps a key's first. ``memory=128m``: managed memory
of both slots. ``files``: say how much of the state lay in files, which is looked at
as the events are made. ``phases=FOLDER``: each slot writes there where its time went, see ``exchange_phases``.
"""

import functools
import sys

from engine.common import Configuration, Types, WatermarkStrategy
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.connectors import DataGeneratorSource, DiscardingSink
from tests.bench.exchange_phases import install
from tests.bench.programs.events import further_values, users_and_amounts
from tests.bench.programs.repeating import options_of, repeat
from tests.bench.state_files import WatchedGenerator

events, keys, parallelism = map(int, sys.argv[1:4])
options = options_of(sys.argv[4:])
sources = int(options.get("sources", 1))
values = int(options.get("values", 0))


def made(indexes, first):
    if "phases" in options:
        install(options["phases"])
    indexes = indexes + first
    return (*users_and_amounts(indexes, keys), *further_values(indexes, values))


def sums_of(env):
    env.set_parallelism(parallelism)
    if "backend" in options:
        settings = Configuration()
        settings.set_string("state.backend.type", options["backend"])
        if "memory" in options:
            settings.set_string("taskmanager.memory.managed.size", options["memory"])
        env.configure(settings)
    typed = Types.TUPLE([Types.LONG(), Types.DOUBLE(), *[Types.LONG()] * values])
    streams = []
    for number in range(sources):
        first, end = events * number // sources, events * (number + 1) // sources
        function = functools.partial(made, first=first)
        generator = WatchedGenerator(function) if "files" in options else function
        source = DataGeneratorSource.of_columns(generator, end - first, typed)
        streams.append(env.from_source(source, WatermarkStrategy.no_watermarks(), f"gen {number}"))
    united = streams[0].union(*streams[1:]) if sources > 1 else streams[0]
    return united.key_by(0).sum(1)


def execute():
    env = StreamExecutionEnvironment.get_execution_environment()
    sums_of(env).sink_to(DiscardingSink())
    result = env.execute("keyed sum")
    if "files" in options:
        print(f"RESULT state in files, MB: {result.get_accumulator_result(WatchedGenerator.NAME) // 1_000_000}")


if "collect" in options:
    with sums_of(StreamExecutionEnvironment.get_execution_environment()).execute_and_collect() as results:
        largest = {}
        for user, total, *_ in results:
            largest[user] = max(largest.get(user, 0.0), total)
    print(f"RESULT keys={len(largest)} total={sum(largest.values()):.3f}")
else:
    repeat(execute, int(options.get("reps", 1)))
