"""A keyed running sum in Bytewax, one result an event: EVENTS KEYS. One process: more give less a CPU-second."""

import sys

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import DynamicSource, StatelessSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.run import cli_main

num_events, num_keys = map(int, sys.argv[1:3])
BATCH = 1000


class Events(StatelessSourcePartition):
    def __init__(self):
        self.next = 0

    def next_batch(self):
        if self.next >= num_events:
            raise StopIteration
        start, self.next = self.next, min(num_events, self.next + BATCH)
        mixed = [i * 2654435761 & 0xFFFFFFFF for i in range(start, self.next)]
        return [(str(m % num_keys), (m & 0xFFFFF) / 1000.0) for m in mixed]


class Source(DynamicSource):
    def build(self, step_id, worker_index, worker_count):
        return Events()


class Counting(StatelessSinkPartition):
    seen = 0

    def write_batch(self, items):
        Counting.seen += len(items)


class Sink(DynamicSink):
    def build(self, step_id, worker_index, worker_count):
        return Counting()


def add(so_far, amount):
    total = (so_far or 0.0) + amount
    return total, total


flow = Dataflow("keyed")
op.output("out", op.stateful_map("sum", op.input("events", flow, Source()), add), Sink())
cli_main(flow)
print("events", Counting.seen)
