"""Plain lambdas that run on columns, in slot processes: one of them is killed, and every result comes once."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

from engine.common import RestartStrategies
from engine.datastream import StreamExecutionEnvironment, vectorise
from engine.datastream.functions import MapFunction
from engine.datastream.lowering import lower, reachable
from engine.operators.column_aggregate import ColumnReduceSpec

NUM_EVENTS = vectorise.SEQUENCE_MIN
NUM_KEYS = 53
EVERY = 50


class KillsItsSlotOnce(MapFunction):
    """Slow, so that there are checkpoints before."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)
        self.seen = 0

    def map(self, value):
        self.seen += 1
        time.sleep(0.001)
        if self.seen == 3500:
            try:
                os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return value
            os.kill(os.getpid(), signal.SIGKILL)
        return value


def test_counts_of_compiled_lambdas_come_once_each_though_a_slot_dies(tmp_path):
    env = StreamExecutionEnvironment.create_local_environment(2)
    env.enable_checkpointing(200)
    env.set_restart_strategy(RestartStrategies.fixed_delay_restart(3, 100))
    pairs = env.from_sequence(0, NUM_EVENTS - 1).map(lambda i: (i * 7919 % NUM_KEYS, 1))
    counts = pairs.key_by(lambda pair: pair[0]).reduce(lambda a, b: (a[0], a[1] + b[1]))
    some = counts.filter(lambda pair: pair[1] % EVERY == 0)
    planned = [node.spec for node in reachable(lower([some._members[0].node], batch=False))]
    assert any(isinstance(spec, ColumnReduceSpec) for spec in planned)
    results = Counter(some.map(KillsItsSlotOnce(tmp_path / "killed")).execute_and_collect())
    by_key = Counter(i * 7919 % NUM_KEYS for i in range(NUM_EVENTS))
    assert results == Counter((key, n) for key, total in by_key.items() for n in range(EVERY, total + 1, EVERY))
    assert (tmp_path / "killed").exists()
