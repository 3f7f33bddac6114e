"""Ours: key_by → count → sink at a steady rate: RATE SECONDS TIMEOUT_MS KEYS PARALLELISM FOLDER.

Each subtask of the sink writes a file into FOLDER when it ends: for each event two big-endian 64-bit integers, when it
was made and how long it took to its sink, in nanoseconds of the machine's monotonic clock.
"""

import sys
import time
from array import array

from engine.common import Types, WatermarkStrategy
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.connectors import DataGeneratorSource
from engine.datastream.functions import KeyedProcessFunction, SinkFunction
from engine.datastream.state import ValueStateDescriptor

rate, seconds, timeout_ms, keys, parallelism = map(int, sys.argv[1:6])
folder = sys.argv[6]


def event(index, now=time.monotonic_ns):
    return (index * 2654435761 & 0xFFFFFFFF) % keys, now()


class Count(KeyedProcessFunction):
    def open(self, runtime_context):
        self.state = runtime_context.get_state(ValueStateDescriptor("count", Types.LONG()))

    def process_element(self, value, ctx):
        count = (self.state.value() or 0) + 1
        self.state.update(count)
        yield value[0], count, value[1]


class Clocking(SinkFunction):
    def open(self, runtime_context):
        self.path = f"{folder}/{runtime_context.get_index_of_this_subtask()}"
        self.seen = array("q")

    def invoke(self, value):
        made = value[2]
        self.seen.append(made)
        self.seen.append(time.monotonic_ns() - made)

    def close(self):
        self.seen.byteswap()
        with open(self.path, "wb") as out:
            self.seen.tofile(out)


env = StreamExecutionEnvironment.get_execution_environment()
env.set_parallelism(parallelism)
env.set_buffer_timeout(timeout_ms)
source = DataGeneratorSource(event, rate * seconds, rate)
events = env.from_source(source, WatermarkStrategy.no_watermarks(), "generator")
events.key_by(lambda e: e[0]).process(Count()).add_sink(Clocking())
env.execute("latency")
