"""Count, sum and max in 10 s event-time windows in Bytewax, 5 s of disorder: EVENTS KEYS. One process."""

import sys
from datetime import UTC, datetime, timedelta

import bytewax.operators as op
import bytewax.operators.windowing as windowing
from bytewax.dataflow import Dataflow
from bytewax.inputs import DynamicSource, StatelessSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.run import cli_main

num_events, num_keys = map(int, sys.argv[1:3])
BATCH = 1000
START = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


class Events(StatelessSourcePartition):
    def __init__(self):
        self.next = 0

    def next_batch(self):
        if self.next >= num_events:
            raise StopIteration
        start, self.next = self.next, min(num_events, self.next + BATCH)
        return [self.event(i) for i in range(start, self.next)]

    def event(self, i):
        mixed = (i * 0x9E3779B97F4A7C15 ^ i >> 7) & 0xFFFFFFFFFFFF
        at = START + timedelta(milliseconds=i // 100 + 5000 - (mixed >> 17) % 5000)
        return str(mixed % num_keys), ((mixed & 0xFFFFF) / 1000.0, at)


class Source(DynamicSource):
    def build(self, step_id, worker_index, worker_count):
        return Events()


class Counting(StatelessSinkPartition):
    seen = 0

    def write_batch(self, items):
        Counting.seen += sum(value[0] for _, (_, value) in items)


class Sink(DynamicSink):
    def build(self, step_id, worker_index, worker_count):
        return Counting()


def add(so_far, event):
    count, total, largest = so_far
    amount = event[0]
    return count + 1, total + amount, amount if amount > largest else largest


def merge(a, b):
    return a[0] + b[0], a[1] + b[1], max(a[2], b[2])


# The clock stands still: else windows close by the machine's clock, before a replay has brought all their events.
clock = windowing.EventClock(
    lambda value: value[1], wait_for_system_duration=timedelta(seconds=5), now_getter=lambda: START
)
windows = windowing.TumblingWindower(length=timedelta(seconds=10), align_to=START)
flow = Dataflow("window")
events = op.input("events", flow, Source())
folded = windowing.fold_window("fold", events, clock, windows, lambda: (0, 0.0, float("-inf")), add, merge)
op.output("out", folded.down, Sink())
cli_main(flow)
print("events", Counting.seen)
