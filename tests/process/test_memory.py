"""Memory stays flat on an endless stream."""

from __future__ import annotations

import time

import psutil

from engine.common import Configuration, WatermarkStrategy
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.connectors import DataGeneratorSource
from tests.process.cluster_jobs import engine_processes

#: Pages that a warm process may still touch for the first time; a leak of one small object a record is 100 times that.
GROWTH_MAX_MB = 24


def slots_memory_mb() -> float:
    """Memory private to zygote and slots: what they share does not count."""
    return sum(psutil.Process(pid).memory_full_info().uss for pid in engine_processes()) / 2**20


def test_an_endless_keyed_stream_does_not_grow():
    env = StreamExecutionEnvironment.get_execution_environment(Configuration())
    env.set_parallelism(2)
    source = DataGeneratorSource(lambda index: (index % 1000, "x" * 50), None)
    pairs = env.from_source(source, WatermarkStrategy.no_watermarks(), "endless")
    pairs.map(lambda pair: (pair[0], 1)).key_by(0).sum(1).add_sink(lambda pair: None)
    client = env.execute_async("endless")
    try:
        time.sleep(4)  # the job fills its buffers and its thousand keys
        early_mb = slots_memory_mb()
        time.sleep(8)
        late_mb = slots_memory_mb()
    finally:
        client.cancel().result()
    assert late_mb - early_mb < GROWTH_MAX_MB, f"{early_mb:.0f} MB after 4 s, {late_mb:.0f} MB after 12 s"
