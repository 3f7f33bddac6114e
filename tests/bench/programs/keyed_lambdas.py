"""Ours: a keyed running sum with untyped lambdas, one result per event: EVENTS KEYS PARALLELISM."""

import sys

from engine.datastream import StreamExecutionEnvironment
from engine.datastream.functions import FilterFunction

num_events, num_keys, parallelism = map(int, sys.argv[1:])


def event(i):
    mixed = (i * 0x9E3779B97F4A7C15 ^ i >> 7) & 0xFFFFFFFFFFFF
    return mixed % num_keys, (mixed & 0xFFFFF) / 1000.0, i


class Counting(FilterFunction):
    """Lets nothing pass; the job's result has the number of events, so that none is lost unseen."""

    def open(self, runtime_context):
        from engine.core.metrics import IntCounter

        self.seen = IntCounter()
        runtime_context.add_accumulator("events", self.seen)
        self.add = self.seen.add

    def filter(self, value):
        self.add(1)
        return False


env = StreamExecutionEnvironment.get_execution_environment()
env.set_parallelism(parallelism)
events = env.from_sequence(0, num_events - 1).map(event)
sums = events.key_by(lambda e: e[0]).reduce(lambda so_far, e: (e[0], so_far[1] + e[1], e[2]))
sums.filter(Counting()).print()
result = env.execute("keyed running sum, lambdas")
print("events", result.get_accumulator_result("events"))
