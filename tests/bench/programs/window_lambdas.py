"""Ours: count, sum and max in 10 s event-time windows with untyped Python functions, 5 s of disorder:
EVENTS KEYS PARALLELISM [rows] [typed] [reps=2]. With ``rows`` events are made by an object, which does not compile: so
nothing does, unless their type is declared (``typed``). ``reps``: execute it so many times, see ``repeating``.
PARALLELISM is 1 or 2."""

import sys

from engine.common import Duration, Time, Types, WatermarkStrategy
from engine.common.watermark_strategy import TimestampAssigner
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.functions import AggregateFunction, FilterFunction, ProcessWindowFunction
from engine.datastream.window import TumblingEventTimeWindows
from tests.bench.programs.repeating import options_of, repeat

num_events, num_keys, parallelism = map(int, sys.argv[1:4])
options = options_of(sys.argv[4:])
part = num_events // parallelism


def event(j):
    # The source gives each of two readers one half of the numbers: both halves become one interleaved sequence.
    i = parallelism * j if j < part else parallelism * (j - part) + 1
    mixed = (i * 0x9E3779B97F4A7C15 ^ i >> 7) & 0xFFFFFFFFFFFF
    return mixed % num_keys, (mixed & 0xFFFFF) / 1000.0, 1_700_000_000_000 + i // 100 + 5000 - (mixed >> 17) % 5000


class Event:
    def __call__(self, j):
        return event(j)


class Stamp(TimestampAssigner):
    def extract_timestamp(self, value, record_timestamp):
        return value[2]


class CountSumMax(AggregateFunction):
    def create_accumulator(self):
        return 0, 0.0, float("-inf")

    def add(self, value, accumulator):
        count, total, largest = accumulator
        amount = value[1]
        return count + 1, total + amount, amount if amount > largest else largest

    def get_result(self, accumulator):
        return accumulator

    def merge(self, acc_a, acc_b):
        return acc_a[0] + acc_b[0], acc_a[1] + acc_b[1], max(acc_a[2], acc_b[2])


class WithWindow(ProcessWindowFunction):
    def process(self, key, context, elements):
        (result,) = elements
        yield key, context.window().start, *result


class Counting(FilterFunction):
    """Lets nothing pass; the job's result has the number of events, so that none is lost unseen."""

    def open(self, runtime_context):
        from engine.core.metrics import IntCounter

        self.seen = IntCounter()
        runtime_context.add_accumulator("events", self.seen)

    def filter(self, value):
        self.seen.add(value[2])
        return False


def execute():
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(parallelism)
    watermarks = WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_seconds(5))
    source = Event() if "rows" in options else event
    row_type = Types.TUPLE([Types.LONG(), Types.DOUBLE(), Types.LONG()]) if "typed" in options else None
    events = env.from_sequence(0, num_events - 1).map(source, output_type=row_type)
    events = events.assign_timestamps_and_watermarks(watermarks.with_timestamp_assigner(Stamp()))
    windows = events.key_by(lambda e: e[0]).window(TumblingEventTimeWindows.of(Time.seconds(10)))
    windows.aggregate(CountSumMax(), WithWindow()).filter(Counting()).print()
    result = env.execute("windows, lambdas")
    print("events", result.get_accumulator_result("events"))


repeat(execute, int(options.get("reps", 1)))
