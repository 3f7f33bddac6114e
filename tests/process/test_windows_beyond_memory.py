"""A job whose window holds four times what it has of managed memory: in a slot process, which stays small."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import suppress

import psutil

from engine.common import Configuration, Time, WatermarkStrategy
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.aggregates import avg, count, max_, min_, sum_
from engine.datastream.lowering import lower, reachable
from engine.datastream.window import TumblingEventTimeWindows
from engine.operators.column_window import ColumnWindowSpec
from tests.process.cluster_jobs import engine_processes
from tests.process.slot_cluster import ROOT

NUM_KEYS = 2_400_000
#: of a key, with its share of the index and the accumulators of its window: what is held without files
BYTES_OF_KEY = 115
MANAGED_MB = 64
EVERY = 100_000
#: Of the whole slot, with its code and buffers: 200 seen, and 396 where there is room for all.
PEAK_MAX_MB = 290


class _Peak(threading.Thread):
    """Samples how much memory of its own the largest slot has, until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mb = 0.0
        self._is_over = threading.Event()

    def run(self) -> None:
        while not self._is_over.wait(0.1):
            sizes = [0]
            for pid in engine_processes():
                with suppress(psutil.Error):
                    sizes.append(psutil.Process(pid).memory_full_info().uss)
            self.peak_mb = max(self.peak_mb, max(sizes) / 2**20)

    def stop(self) -> None:
        self._is_over.set()
        self.join()


def run(tmp_path: str) -> None:
    """Run the job and print its results and the peak, as JSON."""
    settings = Configuration()
    settings.set_string("taskmanager.memory.managed.size", f"{MANAGED_MB}m")
    settings.set_string("io.tmp.dirs", tmp_path)
    env = StreamExecutionEnvironment.get_execution_environment(settings)
    env.set_parallelism(1)
    env.enable_checkpointing(1000)
    env.get_checkpoint_config().set_checkpoint_storage_dir(f"file://{tmp_path}/checkpoints")
    times = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_field(1)
    records = env.from_sequence(0, NUM_KEYS - 1).map(lambda i: (i * 7919 % 2400000, i, i % 7, i % 1000))
    windows = records.assign_timestamps_and_watermarks(times).key_by(0)
    windows = windows.window(TumblingEventTimeWindows.of(Time.milliseconds(10 * NUM_KEYS)))
    fields = [how(field) for field in (1, 2, 3) for how in (sum_, min_, max_, avg)]
    some = windows.aggregate(count(), *fields).filter(lambda row: row[0] % 100000 == 0)
    planned = [node.spec for node in reachable(lower([some._members[0].node], batch=False))]
    assert any(isinstance(spec, ColumnWindowSpec) for spec in planned)
    peak = _Peak()
    peak.start()
    try:
        results = sorted(some.execute_and_collect())
    finally:
        peak.stop()
    print(json.dumps([results, peak.peak_mb]))


def test_a_window_of_four_times_the_managed_memory_fires_in_full(tmp_path):
    """In a process of its own: local environments of one process share a cluster, with the memory of the first one."""
    assert NUM_KEYS * BYTES_OF_KEY > 4 * MANAGED_MB * 2**20
    words = [sys.executable, "-m", __name__, str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=240)
    results, peak_mb = json.loads(done.stdout)
    assert [row[0] for row in results] == list(range(0, NUM_KEYS, EVERY))
    for key, start, end, number, total, least, largest, mean, *_ in results:
        assert (start, end, number) == (0, 10 * NUM_KEYS, 1)
        assert total * 7919 % NUM_KEYS == key
        assert total == least == largest == mean
    assert peak_mb < PEAK_MAX_MB


if __name__ == "__main__":
    run(sys.argv[1])
