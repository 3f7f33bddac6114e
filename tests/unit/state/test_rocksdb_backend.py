"""What only the rocksdb backend has: files, memory that stays in its limit, rows. The rest: ``tests/contract``."""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time

import pytest

from engine.core.clock import ManualClock
from engine.core.errors import ExternalError, ProgramError
from engine.state import rocksdb_options
from engine.state.descriptors import (
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    StateTtlConfig,
    ValueStateDescriptor,
)
from engine.state.key_groups import key_group_of
from engine.state.rocksdb_backend import RocksDBKeyedStateBackend
from engine.state.rocksdb_files import payload_of
from engine.state.rocksdb_options import MergePlan, ValuePlaces
from engine.time.watermarks import Duration

VALUE = ValueStateDescriptor("value")
LIST = ListStateDescriptor("list")
MAP = MapStateDescriptor("map")
MEMORY_BYTES = 24 << 20


@pytest.fixture
def make(tmp_path):
    made = []

    def make(session="s", clock=None, memory_bytes=0):
        folder = str(tmp_path / f"db-{len(made)}")
        backend = RocksDBKeyedStateBackend(
            clock or ManualClock(), 128, folder=folder, memory_bytes=memory_bytes, session=session
        )
        made.append(backend)
        return backend

    yield make
    for backend in made:
        backend.close()


def fill(backend, keys, value="v"):
    values, elements, entries = backend.value_state(VALUE), backend.list_state(LIST), backend.map_state(MAP)
    for key in keys:
        backend.set_current_key(key)
        values.update((key, value))
        elements.add_all([key, value])
        entries.put(key, value)
        entries.put("other", value)


def contents(backend):
    values, elements, entries = backend.value_state(VALUE), backend.list_state(LIST), backend.map_state(MAP)
    found = {}
    for key in backend.keys("value"):
        backend.set_current_key(key)
        found[key] = (values.value(), elements.get(), sorted(entries.items(), key=str))
    return found


def test_files_are_restored_by_the_next_attempt_and_at_any_parallelism(make, tmp_path):
    first = make("first")
    fill(first, range(300))
    expected = contents(first)
    first.freeze(str(tmp_path / "chk")).finish()
    fill(first, range(100, 400), "after the checkpoint")
    halves = []
    for number, groups in enumerate((range(50), range(50, 128))):
        shutil.copytree(tmp_path / "chk", tmp_path / f"copy-{number}")
        half = make(f"half-{number}")
        half.restore_files(str(tmp_path / f"copy-{number}"), groups)
        assert contents(half) == {key: found for key, found in expected.items() if key_group_of(key, 128) in groups}
        half.freeze(str(tmp_path / f"chk-{number}")).finish()
        halves.append((str(tmp_path / f"chk-{number}"), groups))
    whole = make("whole")
    for folder, groups in halves:
        whole.restore_files(folder, groups)
    assert contents(whole) == expected
    fill(whole, range(5), "appended")  # behind what the former subtasks appended
    whole.set_current_key(3)
    assert whole.list_state(LIST).get() == [3, "v", 3, "appended"]


def test_a_file_name_in_checkpoints_never_means_two_contents(make, tmp_path):
    first = make("first")
    fill(first, range(50))
    first.freeze(str(tmp_path / "1")).finish()
    tables = {name for name in os.listdir(tmp_path / "1") if not first.is_mutable(name)}
    assert tables
    assert {name for name in os.listdir(tmp_path / "1") if name.startswith(("CURRENT", "MANIFEST"))} <= {
        name for name in os.listdir(tmp_path / "1") if first.is_mutable(name)
    }
    # Two attempts go on from the same checkpoint with different records; the second does not know of the first.
    later = []
    for attempt in ("second", "third"):
        shutil.copytree(tmp_path / "1", tmp_path / f"for {attempt}")
        backend = make(attempt)
        backend.restore_files(str(tmp_path / f"for {attempt}"), range(128))
        fill(backend, range(50, 60), attempt)
        backend.freeze(str(tmp_path / attempt)).finish()
        names = {name for name in os.listdir(tmp_path / attempt) if not backend.is_mutable(name)}
        assert tables < names  # an increment: the old files under their old names
        later.append(names - tables)
    assert not later[0] & later[1]


def test_chunks_are_of_the_state_as_of_the_last_freeze(make, tmp_path):
    backend = make()
    fill(backend, range(10))
    expected = contents(backend)
    backend.freeze_rows()
    chunks = backend.snapshot(range(128))
    fill(backend, range(20), "later")
    backend._cache.write_out()
    restored = make()
    restored.restore(dict(chunks))
    assert contents(restored) == expected


def test_appending_to_a_long_list_writes_the_new_elements_only(make):
    backend = make()
    state = backend.list_state(LIST)
    written = []
    put_all = backend._put_all
    backend._put_all = lambda rows: put_all(
        [(written.append(len(value or b"")), (key, value))[1] for key, value in rows]
    )
    backend.set_current_key("k")
    elements = [f"element {number}" for number in range(20_000)]
    for element in elements:
        state.add(element)
    backend._cache.write_out()
    assert sum(written) < 2 * sum(map(len, elements))
    assert state.get() == elements
    assert len(state.get()) == 20_000


def test_a_value_in_the_programs_hands_is_kept_whatever_else_is_read_and_written_meanwhile(make):
    backend = make()
    value, entries = backend.value_state(VALUE), backend.map_state(MAP)
    backend.set_current_key("k")
    value.update([])
    in_hand = value.value()
    for number in range(5000):  # more than the cache has
        entries.put(number, [number])
    in_hand.append("changed in place")
    backend._cache.write_out()
    backend._cache.clear()
    assert value.value() == ["changed in place"]
    assert backend._cache._loaned == {(backend._tables["value"], None, "k")}
    backend.set_current_key("another")
    backend._cache.write_out()
    assert not backend._cache._loaned


def test_a_list_in_many_rows_is_written_as_one_when_it_was_read(make):
    backend = make()
    state = backend.list_state(LIST)
    for number in range(40):
        backend.set_current_key("k")
        state.add(number)
        backend._cache.write_out()
        backend._cache.clear()
    backend.set_current_key("k")
    assert state.get() == list(range(40))
    backend._cache.write_out()
    assert backend.list_rows((backend._tables["list"], None, "k")) == (list(range(40)), 1)


def test_expired_rows_leave_the_disk_though_nobody_asks_for_them(make):
    clock = ManualClock(1000)
    backend = make(clock=clock)
    descriptor = ReducingStateDescriptor("sum", lambda a, b: a + b)
    descriptor.enable_time_to_live(StateTtlConfig.new_builder(Duration.of_millis(10)).build())
    state = backend.reducing_state(descriptor)
    for number in range(3000):
        backend.set_current_key(number)
        state.add(1)
    backend._cache.write_out()
    clock.advance(20)
    for number in range(1000):
        backend.set_current_key(("new", number))
        state.add(1)
    backend._cache.write_out()
    assert len(list(backend.keys("sum"))) == 1000


def test_a_missing_list_of_states_is_noticed(make, tmp_path):
    backend = make()
    fill(backend, range(3))
    backend._cache.write_out()
    backend._rocksdict.Checkpoint(backend._db).create_checkpoint(str(tmp_path / "bare"))
    with pytest.raises(ProgramError, match="not whole: the list of states is missing"):
        make().restore_files(str(tmp_path / "bare"), range(128))


FOUR_TIMES_ITS_MEMORY = """
import os, sys, psutil
from engine.core.clock import ManualClock
from engine.state.descriptors import ListStateDescriptor, ValueStateDescriptor
from engine.state.rocksdb_backend import RocksDBKeyedStateBackend

folder, memory_bytes = sys.argv[1], int(sys.argv[2])
backend = RocksDBKeyedStateBackend(ManualClock(), 128, folder=folder, memory_bytes=memory_bytes, session="s")
values = backend.value_state(ValueStateDescriptor("v"))
lists = backend.list_state(ListStateDescriptor("l"))
backend.set_current_key("warm up")
values.update(b"")
process = psutil.Process()
before = peak = process.memory_info().rss
num_keys = 4 * memory_bytes // 3000
for number in range(num_keys):
    backend.set_current_key(f"{number}-" * 50)  # keys as large as that fill the cache: large values do not lie in it
    values.update(os.urandom(2000))
    backend.set_current_key(number % 100)
    lists.add(os.urandom(1000))
    if number % 500 == 0:
        peak = max(peak, process.memory_info().rss)
for number in range(0, num_keys, 5):
    backend.set_current_key(f"{number}-" * 50)
    assert len(values.value()) == 2000
    if number % 500 == 0:
        peak = max(peak, process.memory_info().rss)
size = sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder))
print(size, peak - before)
"""


def test_state_four_times_as_large_as_its_memory_stays_within_it(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FOUR_TIMES_ITS_MEMORY, str(tmp_path / "db"), str(MEMORY_BYTES)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    size_bytes, grown_bytes = map(int, done.stdout.split())
    assert size_bytes > 3 * MEMORY_BYTES  # the rest is in the write buffers
    assert grown_bytes < MEMORY_BYTES, f"grew by {grown_bytes >> 20} MB"


def test_files_have_the_state_of_the_barrier_however_much_is_written_until_they_are_there(make, tmp_path):
    """Little and far more than a write buffer (1 MB) comes after the barrier, while tables are merged all the time."""
    backend, rng = make("first"), random.Random(7)
    state = backend.value_state(VALUE)
    model: dict[int, bytes] = {}

    def put(number: int) -> None:
        for _ in range(number):
            key = rng.randrange(3000)
            backend.set_current_key(key)
            if rng.random() < 0.1:
                state.clear()
                model.pop(key, None)
            else:
                model[key] = rng.randbytes(rng.choice((10, 1000, 3000)))
                state.update(model[key])

    for number in range(12):
        put(2000)
        at_barrier = dict(model)
        files = backend.freeze(str(tmp_path / f"chk-{number}"))
        thread = threading.Thread(target=files.finish)
        if number % 3:  # else the task has to see to it by itself
            thread.start()
        put((4000, 5, 300)[number % 3])
        if not number % 3:
            thread.start()
        thread.join()
        files.finish()
        again = make(f"again-{number}")
        again.restore_files(str(tmp_path / f"chk-{number}"), range(128))
        found = {}
        for key in again.keys("value"):
            again.set_current_key(key)
            found[key] = again.value_state(VALUE).value()
        assert found == at_barrier
        again.close()


def test_a_freeze_that_is_given_up_leaves_the_state_alone(make, tmp_path):
    backend = make("first")
    fill(backend, range(50))
    files = backend.freeze(str(tmp_path / "1"))
    files.abandon()
    with pytest.raises(ExternalError, match="given up"):
        files.finish()
    assert not (tmp_path / "1").exists()
    fill(backend, range(50, 60))
    backend.freeze(str(tmp_path / "2"))
    files = backend.freeze(str(tmp_path / "3"))  # the one before is completed first
    assert (tmp_path / "2" / "CURRENT").exists()
    backend.close()
    with pytest.raises(ExternalError, match="given up"):
        files.finish()


def test_a_folder_that_cannot_be_written_fails_the_checkpoint_and_not_the_task(make, tmp_path):
    backend = make("first")
    fill(backend, range(50))
    (tmp_path / "1").mkdir()
    files = backend.freeze(str(tmp_path / "1"))
    files.settle()
    fill(backend, range(50, 60))
    with pytest.raises(OSError, match="exists"):
        files.finish()
    backend.freeze(str(tmp_path / "2")).finish()
    again = make("again")
    again.restore_files(str(tmp_path / "2"), range(128))
    assert contents(again) == contents(backend)


def test_entries_of_a_log_are_found_across_its_blocks():
    entries = [bytes([number % 251]) * 5000 for number in range(40)]
    log, left = b"", 32 << 10
    for entry in entries:
        while entry:
            if left <= 7:
                log, left = log + bytes(left), 32 << 10
            part, entry = entry[: left - 7], entry[left - 7 :]
            log += bytes(4) + len(part).to_bytes(2, "little") + b"\x01" + part
            left -= 7 + len(part)
    assert payload_of(log) == b"".join(entries)
    assert payload_of(log[:-10]).startswith(b"".join(entries[:-1]))


@pytest.fixture
def small_gigabyte(monkeypatch):
    """Options of a model of 1 GB, 64 times as small."""
    monkeypatch.setattr(rocksdb_options, "_WRITE_BUFFER_MAX", 1 << 20)
    monkeypatch.setattr(rocksdb_options, "_FILE_UNIT_MAX", 256 << 10)
    monkeypatch.setattr(rocksdb_options, "_TABLE_BYTES_MIN", 8 << 10)


class Increments:
    """Take checkpoints of random values. ``model``: what they are."""

    def __init__(self, backend, folder, value_bytes):
        self.backend, self.folder, self.value_bytes = backend, folder, value_bytes
        self.rng = random.Random(3)
        self.model = {}
        self.known = {}
        self.number = -1

    def put(self, keys):
        state = self.backend.value_state(VALUE)
        for key in keys:
            self.backend.set_current_key(key)
            self.model[key] = self.rng.randbytes(self.value_bytes)
            state.update(self.model[key])

    def take(self):
        """Return the bytes that a checkpoint writes."""
        self.number += 1
        target = self.folder / str(self.number)
        self.backend.freeze(str(target)).finish()
        sizes = {path.name: path.stat().st_size for path in target.iterdir()}
        is_new = lambda name: self.known.get(name) != sizes[name] or self.backend.is_mutable(name)  # noqa: E731
        written = sum(size for name, size in sizes.items() if is_new(name))
        self.known = sizes
        return written

    def await_merges(self):
        deadline = time.monotonic() + 60
        while self.backend._db.property_int_value("rocksdb.num-running-compactions"):
            assert time.monotonic() < deadline, "tables are merged for ever"
            time.sleep(0.001)


def take_increments(backend, folder, *, num_keys, changed, value_bytes, rounds):
    """Take a full checkpoint, then one after each time so many keys at random were changed. Return the bytes that each
    wrote, how many files the last one has, and the values as of it."""
    increments = Increments(backend, folder, value_bytes)
    increments.put(range(num_keys))
    written = []
    for number in range(rounds + 1):
        if number:
            increments.put(increments.rng.sample(range(num_keys), changed))
        written.append(increments.take())
        increments.await_merges()
    return written, len(increments.known), increments.model


def values_in(backend):
    found = {}
    for key in backend.keys("value"):
        backend.set_current_key(key)
        found[key] = backend.value_state(VALUE).value()
    return found


@pytest.mark.usefixtures("small_gigabyte")
def test_increments_are_small_whichever_keys_change_and_whenever_tables_are_merged(make, tmp_path):
    written, _, model = take_increments(make("first"), tmp_path, num_keys=8000, changed=80, value_bytes=2000, rounds=30)
    full, *increments = written
    assert full > 8000 * 2000
    shares = [increment / full for increment in increments]
    assert statistics.mean(shares) < 0.025, shares
    assert max(shares) < 0.08, shares
    again = make("again")
    again.restore_files(str(tmp_path / "30"), range(128))
    assert values_in(again) == model


@pytest.mark.usefixtures("small_gigabyte")
def test_increments_behind_a_long_full_checkpoint_are_small_though_the_same_keys_change_all_the_time(make, tmp_path):
    """20 000 changes a second of 5000 keys for 2 to 4 s, of which at most 2048 wait: all of it 64 times as small."""
    increments = Increments(make("first"), tmp_path, 2000)
    increments.put(range(8000))
    full = increments.take()
    assert full > 8000 * 2000
    shares = []
    for number in (960, 1040, 800, 960, 1120, 1040):  # whenever tables are merged meanwhile
        for start in range(0, number, 32):
            increments.put(key % 80 for key in range(start, start + 32))
            increments.backend._cache.write_out()
        shares.append(increments.take() / full)
    assert max(shares) < 0.05, shares
    again = make("again")
    again.restore_files(str(tmp_path / "6"), range(128))
    assert values_in(again) == increments.model


def test_files_of_values_that_are_no_longer_needed_leave_the_disk(make, tmp_path, monkeypatch):
    monkeypatch.setattr(rocksdb_options, "_WRITE_BUFFER_MAX", 64 << 10)
    backend = make()
    increments = Increments(backend, tmp_path, 2000)
    increments.put(range(1500))
    for _ in range(60):
        increments.put(increments.rng.sample(range(1500), 150))
        increments.await_merges()
    # Nothing given up: 5 times as much as is needed.
    assert backend._db.property_int_value("rocksdb.total-blob-file-size") < 4 * 1500 * 2000
    assert values_in(backend) == increments.model


def test_old_files_are_given_up_only_where_much_is_no_longer_needed():
    plan = MergePlan()
    name = "blob_garbage_collection_age_cutoff"
    assert [plan.note(0, 0), plan.note(1000, 90)] == [{}, {}]
    assert plan.note(1000, 110) == {name: "0.08"}
    assert [plan.note(1000, 110), plan.note(1000, 40)] == [{}, {}]
    assert plan.note(1000, 20) == {name: "0.0"}
    assert plan.note(1000, 90) == {}


def test_checkpoints_that_have_little_in_them_do_not_leave_a_file_each(make, tmp_path):
    _, num_files, model = take_increments(make("first"), tmp_path, num_keys=500, changed=5, value_bytes=500, rounds=40)
    assert num_files < 20
    again = make("again")
    again.restore_files(str(tmp_path / "40"), range(128))
    assert values_in(again) == model


def test_values_go_where_the_size_of_checkpoints_says():
    places = ValuePlaces(unit_bytes=16 << 20)
    kb, gb = 1 << 10, 1 << 30
    at_the_end = {"blob_file_starting_level": "6"}
    assert [places.note(10 * kb, gb) for _ in range(4)] == [{}, {}, at_the_end, {}]
    assert places.note(2 << 20, gb) == {}  # neither little nor much: as before
    assert places.note(4 << 20, gb) == {"blob_file_starting_level": "0"}
    assert [places.note(10 * kb, gb) for _ in range(2)] == [{}, {}]
    assert places.note(2 << 20, gb) == {}
    assert [places.note(10 * kb, gb) for _ in range(3)] == [{}, {}, at_the_end]  # only three in a row count
    assert places.note(9 << 20, 1000 * gb) == {"blob_file_starting_level": "0"}  # more than half a write buffer
