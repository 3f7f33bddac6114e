"""Ours: a Python function that does not compile, called for each record, with no exchange: EVENTS ROUNDS PARALLELISM
[count] [reps=2].

It takes the SHA-256 of a short text ROUNDS times, as one does to hide names: 1 µs for two rounds, 3.5 for ten. What
it takes by itself is printed. ``count``: the records that came out are counted, and printed. ``reps``: execute it so
many times, see ``repeating``.
"""

import hashlib
import sys
import time

from engine.core.metrics import IntCounter
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.functions import FilterFunction
from tests.bench.programs.repeating import options_of, repeat

num_events, rounds, parallelism = map(int, sys.argv[1:4])
options = options_of(sys.argv[4:])


def hidden(i):
    digest = str(i).encode()
    for _ in range(rounds):
        digest = hashlib.sha256(digest).digest()
    return i, digest


class Counting(FilterFunction):
    """Lets nothing pass."""

    def open(self, runtime_context):
        self.seen = IntCounter()
        runtime_context.add_accumulator("events", self.seen)

    def filter(self, value):
        self.seen.add(len(value[1]) == 32)
        return False


def execute():
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(parallelism)
    records = env.from_sequence(0, num_events - 1).map(hidden)
    records.filter(Counting() if "count" in options else lambda r: r[0] < 0).print()
    result = env.execute("a map of Python")
    if "count" in options:
        print("events", result.get_accumulator_result("events"))


if "reps" in options:
    begun = time.process_time()
    for number in range(20_000):
        hidden(number)
    print(f"the function alone: {(time.process_time() - begun) / 20_000 * 1e6:.2f} µs of CPU time a record")
repeat(execute, int(options.get("reps", 1)))
