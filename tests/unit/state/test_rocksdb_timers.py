"""What only timers in RocksDB have: rows, and memory in its limit. The rest: ``tests/contract/test_timers.py``."""

from __future__ import annotations

import subprocess
import sys

import pytest

from engine.core.clock import ManualClock
from engine.state.chunks import load_keyed
from engine.state.descriptors import ValueStateDescriptor
from engine.state.rocksdb_backend import RocksDBKeyedStateBackend, walk
from engine.state.rocksdb_timers import RocksTimers
from engine.time.windows import TimeWindow

MEMORY_BYTES = 32 << 20  # what threads and buffers take besides is some 5 MB, however little there is
VALUE = ValueStateDescriptor("value")
WINDOW = TimeWindow(0, 60_000)


@pytest.fixture
def make(tmp_path):
    made = []

    def make():
        backend = RocksDBKeyedStateBackend(
            ManualClock(), 128, folder=str(tmp_path / f"db-{len(made)}"), memory_bytes=0, session=f"s{len(made)}"
        )
        made.append(backend)
        return backend

    yield make
    for backend in made:
        backend.close()


def rows_of(backend):
    backend.freeze_rows()
    return [row for row, _ in walk(backend.frozen_rows(), b"") if not row.startswith(b"\xff\xff")]


def written(backend, monkeypatch):
    """Return a list that gets all rows as they are written."""
    rows, write_rows = [], backend.write_rows

    def note(batch):
        batch = list(batch)
        rows.extend(batch)
        write_rows(batch)

    monkeypatch.setattr(backend, "write_rows", note)
    return rows


def test_timers_that_come_and_go_between_two_writes_cost_none(make, monkeypatch):
    backend = make()
    timers, rows = RocksTimers(backend), written(backend, monkeypatch)
    for number in range(2000):  # a timeout that every record puts off
        timers.register_event_time("k", None, 10**9 + number)
        timers.delete_event_time("k", None, 10**9 + number - 1)
    for key in range(300):
        timers.register_event_time(key, WINDOW, 5)
    assert len(list(timers.advance_watermark(5))) == 300
    backend.freeze_rows()
    assert [value for _, value in rows] == [b""]


def test_registering_again_what_was_written_a_moment_ago_costs_nothing(make, monkeypatch):
    backend = make()
    timers, rows = RocksTimers(backend), written(backend, monkeypatch)
    keys = [f"key {number}" for number in range(500)]
    for _ in range(4):
        for key in keys:
            timers.register_event_time(key, WINDOW, 59_999)
        timers.write_out()
    assert len(rows) == len(keys)


def test_timers_are_rows_of_no_state(make):
    backend = make()
    timers, state = RocksTimers(backend), backend.value_state(VALUE)
    for key in range(200):
        timers.register_event_time(key, WINDOW, 5)
        timers.register_processing_time(key, None, 6)
        if key % 2:
            backend.set_current_key(key)
            state.update(key)
    backend.freeze_rows()
    chunks = dict(backend.snapshot(range(128)))
    found = [load_keyed(chunk, "test") for chunk in chunks.values()]
    assert {name for states in found for name in states} == {"value"}
    assert sorted(backend.keys("value")) == list(range(1, 200, 2))
    assert len(rows_of(backend)) == 500


def test_a_window_that_ends_for_many_keys_takes_them_out_in_portions(make):
    backend = make()
    timers = RocksTimers(backend)
    for key in range(30_000):
        timers.register_event_time(key, WINDOW, 59_999)
    held = fired = 0
    for _ in timers.advance_watermark(60_000):
        fired += 1
        if not fired % 1000:
            held = max(held, sum(front.size_bytes for front in timers._fronts[0].values()))
    assert fired == 30_000
    assert held < backend.memory_bytes / 8
    assert not rows_of(backend)


FOUR_TIMES_ITS_MEMORY = """
import os, sys, psutil
from engine.core.clock import ManualClock
from engine.state.rocksdb_backend import RocksDBKeyedStateBackend
from engine.state.rocksdb_timers import RocksTimers
from engine.time.windows import TimeWindow

folder, memory_bytes = sys.argv[1], int(sys.argv[2])
backend = RocksDBKeyedStateBackend(ManualClock(), 128, folder=folder, memory_bytes=memory_bytes, session="s")
timers = RocksTimers(backend)
timers.register_event_time("warm up", None, 1)
assert len(list(timers.advance_watermark(1))) == 1
process = psutil.Process()
before = peak = process.memory_info().rss
num_timers, fired = 4 * memory_bytes // 500, 0
for number in range(num_timers):
    start = 1000 * (number % 3)
    timers.register_event_time(os.urandom(450), TimeWindow(start, start + 1000), start + 999)
    if number % 1000 == 0:
        peak = max(peak, process.memory_info().rss)
timers.write_out()
backend._db.flush(True)
size = sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder))
last_ms = 0
for time_ms, _, _ in timers.advance_watermark(10_000):
    assert time_ms >= last_ms
    last_ms = time_ms
    fired += 1
    if fired % 1000 == 0:
        peak = max(peak, process.memory_info().rss)
assert fired == num_timers, fired
print(size, peak - before)
"""


def test_timers_four_times_as_large_as_their_memory_stay_within_it(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FOUR_TIMES_ITS_MEMORY, str(tmp_path / "db"), str(MEMORY_BYTES)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    size_bytes, grown_bytes = map(int, done.stdout.split())
    assert size_bytes > 3.8 * MEMORY_BYTES
    assert grown_bytes < MEMORY_BYTES, f"grew by {grown_bytes >> 20} MB"
