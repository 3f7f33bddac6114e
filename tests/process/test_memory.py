"""Memory stays flat on an endless stream."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil

from engine.common import Configuration, WatermarkStrategy
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.connectors import DataGeneratorSource
from engine.datastream.functions import SinkFunction
from tests.process.cluster_jobs import engine_processes
from tests.testing.patience import best_of, until

#: Pages that a warm process may still touch for the first time.
GROWTH_MAX_MB = 24
#: What an idle machine does in some seconds; a leak of 50 bytes for each would be 75 MB.
MANY = 1_500_000


def slots_memory_mb() -> float:
    """Memory private to zygote and slots: what they share does not count."""
    total = 0
    for pid in engine_processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            total += psutil.Process(pid).memory_full_info().uss
    return total / 2**20


class Counts(SinkFunction):
    """Notes in a file of its process how many records have come: a byte for ten thousand."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def invoke(self, value, context=None):
        self.count += 1
        if self.count % 10_000 == 0:
            with (self.folder / str(os.getpid())).open("ab") as notes:
                notes.write(b".")


def test_an_endless_keyed_stream_does_not_grow(tmp_path):
    env = StreamExecutionEnvironment.get_execution_environment(Configuration())
    env.set_parallelism(2)
    source = DataGeneratorSource(lambda index: (index % 1000, "x" * 50), None)
    pairs = env.from_source(source, WatermarkStrategy.no_watermarks(), "endless")
    pairs.map(lambda pair: (pair[0], 1)).key_by(0).sum(1).add_sink(Counts(tmp_path))

    def num_seen() -> int:
        return sum(path.stat().st_size for path in tmp_path.iterdir()) * 10_000

    def growth_mb() -> float:
        """Over so many records: a leak grows each time, what is touched for the first time does not."""
        seen, early_mb = num_seen(), slots_memory_mb()
        until(lambda: num_seen() > seen + MANY, "many records", 120)
        return slots_memory_mb() - early_mb

    client = env.execute_async("endless")
    try:
        until(lambda: num_seen() > MANY // 2, "the job fills its buffers and its thousand keys", 120)
        best_of(growth_mb, GROWTH_MAX_MB, f"growth over {MANY} records, MB")
    finally:
        client.cancel().result()
