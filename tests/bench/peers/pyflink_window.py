"""Count, sum and max in 10 s event-time windows in PyFlink, 5 s of disorder: EVENTS KEYS PARALLELISM."""

import sys

from pyflink.common import Configuration, Duration, Time, Types, WatermarkStrategy
from pyflink.common.watermark_strategy import TimestampAssigner
from pyflink.datastream import StreamExecutionEnvironment
from pyflink.datastream.functions import AggregateFunction, ProcessWindowFunction
from pyflink.datastream.window import TumblingEventTimeWindows

num_events, num_keys, parallelism = map(int, sys.argv[1:4])


def event(i):
    mixed = (i * 0x9E3779B97F4A7C15 ^ i >> 7) & 0xFFFFFFFFFFFF
    return mixed % num_keys, (mixed & 0xFFFFF) / 1000.0, 1_700_000_000_000 + i // 100 + 5000 - (mixed >> 17) % 5000


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


config = Configuration()
config.set_string("rest.port", "0")
config.set_string("python.executable", sys.executable)
env = StreamExecutionEnvironment.get_execution_environment(config)
env.set_parallelism(parallelism)
folded = Types.TUPLE([Types.LONG(), Types.DOUBLE(), Types.DOUBLE()])
watermarks = WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_seconds(5)).with_timestamp_assigner(Stamp())
kind = Types.TUPLE([Types.LONG(), Types.DOUBLE(), Types.LONG()])
events = env.from_collection(range(num_events), Types.LONG()).map(event, output_type=kind)
windows = (
    events.assign_timestamps_and_watermarks(watermarks)
    .key_by(lambda e: e[0], key_type=Types.LONG())
    .window(TumblingEventTimeWindows.of(Time.seconds(10)))
    .aggregate(
        CountSumMax(),
        WithWindow(),
        accumulator_type=folded,
        output_type=Types.TUPLE([Types.LONG(), Types.LONG(), Types.LONG(), Types.DOUBLE(), Types.DOUBLE()]),
    )
)
with windows.execute_and_collect() as results:
    print("events", sum(result[2] for result in results))
