"""Ours: a keyed running sum with untyped lambdas, one result per event: EVENTS KEYS PARALLELISM [rows] [typed] [count]
[reps=2].

With ``rows`` events are made by an object, which does not compile: all is interpreted, unless their type is declared
(``typed``; ``named``: they are Rows, and summed by ``sum``). With ``count`` the events that
came out are counted, by a slower filter, and printed. ``reps``: execute it so many times, see ``repeating``.
"""

import sys

from engine.common import Types
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
    fields = [Types.LONG(), Types.DOUBLE(), Types.LONG()]
    row_type = Types.ROW(fields) if "named" in options else Types.TUPLE(fields) if "typed" in options else None
    events = env.from_sequence(0, num_events - 1).map(Event() if "rows" in options else event, output_type=row_type)
    keyed = events.key_by(lambda e: e[0])
    if "named" in options:
        sums = keyed.sum("f1")
    else:
        sums = keyed.reduce(lambda so_far, e: (e[0], so_far[1] + e[1], e[2]))
    sums.filter(Counting() if "count" in options else lambda e: e[2] < 0).print()
    result = env.execute("keyed running sum, lambdas")
    if "count" in options:
        print("events", result.get_accumulator_result("events"))


repeat(execute, int(options.get("reps", 1)))
