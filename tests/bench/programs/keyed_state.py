"""Keyed byte state that is updated at a steady rate: what checkpoints and recovery are measured on.

    keyed_state.py HOST PORT KEYS VALUE_BYTES RATE HOT_KEYS BEAT_FILE BACKEND FOLDER INTERVAL PARALLELISM

Every key is written once, then only the first HOT_KEYS. RATE 0 = as fast as it goes. While it processes, each subtask
appends a line "<epoch ms> <subtask> <index>" to BEAT_FILE, at most every 50 ms. Prints the job's id and leaves.
"""

from __future__ import annotations

import os
import sys
import time

from engine.common import Configuration, Types, WatermarkStrategy
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.connectors.data_generator import DataGeneratorSource
from engine.datastream.functions import KeyedProcessFunction, RuntimeContext
from engine.datastream.state import ValueStateDescriptor


class Update(KeyedProcessFunction):
    def __init__(self, value_bytes: int, beat: str) -> None:
        self.value_bytes = value_bytes
        self.beat = beat

    def open(self, runtime_context: RuntimeContext) -> None:
        self.subtask = runtime_context.get_index_of_this_subtask()
        self.state = runtime_context.get_state(ValueStateDescriptor("value", Types.PICKLED_BYTE_ARRAY()))
        # Pieces of it do not compress, and are made as quickly as zeros.
        self.noise = os.urandom(self.value_bytes + (1 << 20))
        self.stream = open(self.beat, "a", encoding="ascii")
        self.last = 0.0

    def process_element(self, value, ctx):
        start = (value[1] * 0x9E3779B1) & 0xFFFFF
        self.state.update(self.noise[start : start + self.value_bytes])
        now = time.time()
        if now - self.last >= 0.05:
            self.last = now
            self.stream.write(f"{round(now * 1000)} {self.subtask} {value[1]}\n")
            self.stream.flush()
        yield value[0]


def main() -> None:
    host, port, *numbers, beat, backend, folder, interval, parallelism = sys.argv[1:]
    keys, value_bytes, rate, hot = map(int, numbers)
    env = StreamExecutionEnvironment.create_remote_environment(host, int(port), parallelism=int(parallelism))
    settings = Configuration()
    settings.set_string("execution.checkpointing.interval", interval)
    settings.set_string("execution.checkpointing.dir", f"file://{folder}")
    settings.set_string("execution.checkpointing.incremental", "true")
    settings.set_string("state.backend.type", backend)
    settings.set_string("restart-strategy.type", "exponential-delay")
    env.configure(settings)
    source = DataGeneratorSource(lambda i: (i % keys if i < keys else i % hot, i), None, rate or None)
    (
        env.from_source(source, WatermarkStrategy.no_watermarks(), "generator")
        .key_by(lambda row: row[0])
        .process(Update(value_bytes, beat))
        .uid("state")
        .add_sink(lambda row: None)
    )
    print(env.execute_async("keyed state").get_job_id(), flush=True)


if __name__ == "__main__":
    main()
