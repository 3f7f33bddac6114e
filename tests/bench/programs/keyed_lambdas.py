"""Ours: a keyed running sum with untyped lambdas, one result per event: EVENTS KEYS PARALLELISM [rows] [count]
[reps=2].

With ``rows`` events are made by an object, which does not compile: all is interpreted. With ``count`` the events that
came out are counted, by a slower filter, and printed. ``reps``: execute it so many times, see ``repeating``.
"""

import sys

from engine.datastream import StreamExecutionEnvironment
from engine.datastream.functions import FilterFunction
from tests.bench.programs.repeating import options_of, repeat

num_events, num_keys, parallelism = map(int, sys.argv[1:4])
options = options_of(sys.argv[4:])


def event(i):
    mixed = i * 2654435761 & 0xFFFFFFFF
    return mixed % num_keys, (mixed & 0xFFFFF) / 1000.0, i


class Event:
    def __call__(self, i):
        return event(i)


class Counting(FilterFunction):
    def open(self, runtime_context):
        from engine.core.metrics import IntCounter

        self.seen = IntCounter()
        runtime_context.add_accumulator("events", self.seen)

    def filter(self, value):
        self.seen.add(1)
        return False


def execute():
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(parallelism)
    events = env.from_sequence(0, num_events - 1).map(Event() if "rows" in options else event)
    sums = events.key_by(lambda e: e[0]).reduce(lambda so_far, e: (e[0], so_far[1] + e[1], e[2]))
    sums.filter(Counting() if "count" in options else lambda e: e[2] < 0).print()
    result = env.execute("keyed running sum, lambdas")
    if "count" in options:
        print("events", result.get_accumulator_result("events"))


repeat(execute, int(options.get("reps", 1)))
