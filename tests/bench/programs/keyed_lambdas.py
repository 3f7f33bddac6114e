"""Ours: a keyed running sum with untyped lambdas, one result per event: EVENTS KEYS PARALLELISM [rows] [count].

With ``rows`` events are made by an object, which does not compile: all is interpreted. With ``count`` the events that
came out are counted, by a slower filter, and printed.
"""

import sys

from engine.datastream import StreamExecutionEnvironment
from engine.datastream.functions import FilterFunction

num_events, num_keys, parallelism = map(int, sys.argv[1:4])


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


env = StreamExecutionEnvironment.get_execution_environment()
env.set_parallelism(parallelism)
events = env.from_sequence(0, num_events - 1).map(Event() if "rows" in sys.argv else event)
sums = events.key_by(lambda e: e[0]).reduce(lambda so_far, e: (e[0], so_far[1] + e[1], e[2]))
sums.filter(Counting() if "count" in sys.argv else lambda e: e[2] < 0).print()
result = env.execute("keyed running sum, lambdas")
if "count" in sys.argv:
    print("events", result.get_accumulator_result("events"))
