"""A job on each state backend fails after a checkpoint, goes on from it, and has counted every record once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from engine.common import Configuration, Types, WatermarkStrategy
from engine.datastream import KeyedProcessFunction, RuntimeExecutionMode, StreamExecutionEnvironment
from engine.datastream.connectors import DataGeneratorSource
from engine.datastream.state import ListStateDescriptor, MapStateDescriptor, ValueStateDescriptor

NUM_ROWS = 8000
NUM_KEYS = 50


class Count(KeyedProcessFunction):
    """Counts in three kinds of state; the first attempt fails when a third checkpoint is complete. ``padding_bytes``:
    of a value that each key has besides."""

    def __init__(self, folder, padding_bytes=0):
        # Large ones take seconds on a busy machine, so the second is enough.
        self.folder, self.least = folder, 2 if padding_bytes else 3
        self.padding_bytes = padding_bytes

    def open(self, runtime_context):
        self.total = runtime_context.get_state(ValueStateDescriptor("total"))
        self.seen = runtime_context.get_list_state(ListStateDescriptor("seen"))
        self.by_digit = runtime_context.get_map_state(MapStateDescriptor("by digit"))
        self.padding = runtime_context.get_state(ValueStateDescriptor("padding"))
        self.attempt = runtime_context.get_attempt_number()
        self.num_here = 0

    def has_completed(self):
        found = Path(self.folder).glob("*/chk-*/_metadata")
        return any(int(path.parent.name.removeprefix("chk-")) >= self.least for path in found)

    def process_element(self, value, ctx):
        self.num_here += 1
        if self.attempt == 0 and self.num_here > NUM_ROWS // 8:
            time.sleep(0.005)  # so that a busy machine takes the checkpoints, too, before all is read
        if self.attempt == 0 and self.num_here % 50 == 0 and self.has_completed():
            raise RuntimeError("after a checkpoint")
        total = (self.total.value() or 0) + 1
        restored = self.attempt > 0 and self.num_here == 1 and total > 1
        self.total.update(total)
        if total == 1:
            self.padding.update(value.to_bytes(8, "big") * (self.padding_bytes // 8))
        elif self.padding.value() != (value % NUM_KEYS).to_bytes(8, "big") * (self.padding_bytes // 8):
            raise ValueError("another value than the key had")
        self.seen.add(value)
        self.by_digit.put(value % 10, (self.by_digit.get(value % 10) or 0) + 1)
        if restored:
            yield "restored", 0, 0, 0
        if total == NUM_ROWS // NUM_KEYS:
            yield "done", ctx.get_current_key(), sum(self.seen.get()), sum(self.by_digit.values())


@pytest.mark.parametrize(
    ("backend", "incremental", "padding_bytes"),
    [
        ("hashmap", False, 0),
        ("hashmap", True, 0),
        ("hashmap", True, 2 << 20),  # so much that it is restored while records flow
        ("rocksdb", False, 0),
        ("rocksdb", True, 0),
    ],
)
def test_state_of_each_backend_survives_a_failure_exactly_once(backend, incremental, padding_bytes, tmp_path):
    folder = str(tmp_path / "checkpoints")
    config = Configuration()
    for key, value in {
        "state.backend.type": backend,
        "execution.checkpointing.incremental": str(incremental).lower(),
        "execution.checkpointing.interval": "200 ms",
        "execution.checkpointing.dir": f"file://{folder}",
        "restart-strategy.type": "fixed-delay",
        "restart-strategy.fixed-delay.attempts": "5",
        "restart-strategy.fixed-delay.delay": "50 ms",
    }.items():
        config.set_string(key, value)
    env = StreamExecutionEnvironment.get_execution_environment(config)
    env.set_parallelism(2)
    env.set_runtime_mode(RuntimeExecutionMode.STREAMING)
    source = DataGeneratorSource(lambda number: number, NUM_ROWS, 500 if padding_bytes else 2000)
    numbers = env.from_source(source, WatermarkStrategy.no_watermarks(), "numbers", Types.LONG())
    counted = numbers.key_by(lambda number: number % NUM_KEYS, Types.LONG()).process(Count(folder, padding_bytes))
    with counted.execute_and_collect() as results:
        found = list(results)
    assert ("restored", 0, 0, 0) in found
    assert sorted(row for row in found if row[0] == "done") == [
        ("done", key, sum(range(key, NUM_ROWS, NUM_KEYS)), NUM_ROWS // NUM_KEYS) for key in range(NUM_KEYS)
    ]
