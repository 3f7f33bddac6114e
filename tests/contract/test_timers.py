"""Timers against a set that is sorted, in memory and in RocksDB: the contract ``state/timers.Timers``."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import itertools
import random

import pytest

from engine.core.clock import ManualClock
from engine.core.errors import ProgramError
from engine.core.records import Row
from engine.state import rocksdb_timers
from engine.state.key_groups import NAN, key_group_of
from engine.state.rocksdb_backend import RocksDBKeyedStateBackend
from engine.state.rocksdb_timers import RocksTimers
from engine.state.timers import TimerService
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS, CountWindow, GlobalWindow, TimeWindow

#: few, so that each has many timers
MAX_PARALLELISM = 4
ALL_GROUPS = range(MAX_PARALLELISM)
KINDS = ("memory", "rocksdb", "rocksdb, next to nothing in memory")
KEYS = ["a", "b", "", 1, -2, 10**30, None, b"a", 1.5, ("a", 1), (None, ("b",)), dt.date(2024, 2, 29), *range(100, 120)]
NAMESPACES = [None, TimeWindow(0, 10), TimeWindow(-10, 0), GlobalWindow.get(), CountWindow(3), (0, 5)]

Point = collections.namedtuple("Point", "x y")


class TimersOfAKind:
    """Makes timers, and others from what these leave in a checkpoint."""

    def __init__(self, kind, folder):
        self.kind = kind
        self.folder = folder
        self.numbers = itertools.count()
        self.hosts = []

    def make(self, folders=(), kind=None):
        """``folders``: files of former ones, with the key groups to take of them."""
        if (kind or self.kind) == "memory":
            return TimerService(MAX_PARALLELISM)
        number = next(self.numbers)
        host = RocksDBKeyedStateBackend(
            ManualClock(), MAX_PARALLELISM, folder=f"{self.folder}/db-{number}", memory_bytes=0, session=f"s{number}"
        )
        self.hosts.append(host)
        for folder, groups in folders:
            host.restore_files(folder, groups)
        return RocksTimers(host)

    def snapshot(self, timers, groups=ALL_GROUPS):
        if isinstance(timers, RocksTimers):
            timers.freeze_rows()
        return dict(timers.snapshot(groups))

    def by_chunks(self, timers, kind=None):
        """As from a savepoint, with any setting."""
        restored = self.make(kind=kind)
        chunks = list(self.snapshot(timers).items())
        for part in (chunks[::2], chunks[1::2]):
            restored.restore(dict(part))
        return restored

    def by_files(self, timers):
        """As from a checkpoint: by three subtasks first, then by one again."""
        if not isinstance(timers, RocksTimers):
            return self.by_chunks(timers)
        third = [range(1), range(1, 2), range(2, 4)]
        parts = [self.make([(self.frozen(timers), groups)], "rocksdb") for groups in third]
        return self.make([(self.frozen(part), groups) for part, groups in zip(parts, third, strict=True)], "rocksdb")

    def frozen(self, timers):
        folder = f"{self.folder}/frozen-{next(self.numbers)}"
        timers.host.freeze(folder).finish()
        return folder

    def close(self):
        for host in self.hosts:
            host.close()


@pytest.fixture(params=KINDS)
def kinds(request, tmp_path, monkeypatch):
    if "nothing" in request.param:
        monkeypatch.setattr(rocksdb_timers, "_FRONT_ROWS", 2)
        monkeypatch.setattr(rocksdb_timers, "_WAITING_MAX", 5)
    made = TimersOfAKind(request.param, str(tmp_path))
    yield made
    made.close()


@pytest.fixture
def timers(kinds):
    return kinds.make()


class History:
    """A random history of two queues, with what must be in them."""

    def __init__(self, kinds, seed):
        self.kinds = kinds
        self.rng = random.Random(seed)
        self.timers = kinds.make()
        self.model = (set(), set())
        self.seen = []

    def change(self, around_ms, register_share=0.7):
        queue, time_ms = self.rng.randrange(2), around_ms + self.rng.randint(-20, 20)
        key, namespace = self.rng.choice(KEYS), self.rng.choice(NAMESPACES)
        is_new = self.rng.random() < register_share
        if not is_new and self.model[queue] and self.rng.random() < 0.7:  # one that is there
            time_ms, key, namespace = self.rng.choice(sorted(self.model[queue], key=repr))
        timers = self.timers
        if queue:
            change = timers.register_processing_time if is_new else timers.delete_processing_time
        else:
            change = timers.register_event_time if is_new else timers.delete_event_time
        change(key, namespace, time_ms)
        (self.model[queue].add if is_new else self.model[queue].discard)((time_ms, key, namespace))

    def advance(self, until_ms):
        queue = self.rng.randrange(2)
        model = self.model[queue]
        due = self.timers.due_processing(until_ms) if queue else self.timers.advance_watermark(until_ms)
        for number, timer in enumerate(due):
            assert timer in model
            assert timer[0] == min(model, key=lambda timer: timer[0])[0] <= until_ms
            model.remove(timer)
            if number < 30 and self.rng.random() < 0.5:
                self.change(timer[0], 0.4)
        assert all(time_ms > until_ms for time_ms, _, _ in model)

    def check(self):
        for queue, next_ms in enumerate((self.timers.next_event_ms, self.timers.next_processing_ms)):
            assert next_ms() == min((time_ms for time_ms, _, _ in self.model[queue]), default=None)

    def run(self, num_steps):
        for step in range(num_steps):
            now_ms = step // 4
            match self.rng.randrange(40):
                case 0:
                    kind = self.rng.choice((*KINDS, self.kinds.kind))
                    self.timers = self.kinds.by_chunks(self.timers, kind)
                case 1:
                    self.timers = self.kinds.by_files(self.timers)
                case 2 | 3 | 4:
                    self.advance(now_ms)
                case 5:
                    self.advance(now_ms + self.rng.randint(-40, 40))
                case _:
                    self.change(now_ms)
            self.check()
        if self.kinds.kind != "memory" and not isinstance(self.timers, RocksTimers):
            self.timers = self.kinds.by_chunks(self.timers)
        self.advance(TIME_MAX_MS)


@pytest.mark.parametrize("seed", range(4))
def test_timers_behave_as_a_sorted_set_whatever_happens_while_they_fire_and_wherever_they_are_restored(kinds, seed):
    History(kinds, seed).run(300)


def test_timers_fire_once_however_often_they_are_registered(timers):
    for _ in range(3):
        for key in range(20):
            timers.register_event_time(key, None, 5)
            timers.register_event_time(key, TimeWindow(0, 6), 5)
            timers.register_processing_time(key, None, 5)
    fired = list(timers.advance_watermark(5))
    assert len(fired) == len(set(fired)) == 40
    assert len(list(timers.due_processing(5))) == 20
    assert timers.next_event_ms() is timers.next_processing_ms() is None


def test_deleted_timers_do_not_fire_and_come_back_when_they_are_registered_again(timers):
    keys = range(200)
    for changed in (keys, keys[50:150], keys[100:], keys[150:]):
        for key in changed:
            for change in (timers.register_event_time, timers.delete_event_time, timers.register_event_time):
                change(key, None, key // 10)
    for key in keys[::3]:
        timers.delete_event_time(key, None, key // 10)
        timers.delete_event_time(key, None, 7)  # there is none, but for some
    fired = [key for _, key, _ in timers.advance_watermark(100)]
    assert sorted(fired) == [key for key in keys if key % 3]


def test_times_at_both_ends_and_before_1970_are_in_order(timers):
    times = [TIME_MAX_MS, TIME_MIN_MS, -1, 0, 1, -(2**40), 2**40, 255, 256]
    for time_ms in times:
        timers.register_event_time("k", None, time_ms)
    assert [time_ms for time_ms, _, _ in timers.advance_watermark(TIME_MAX_MS - 1)] == sorted(times)[:-1]
    assert [time_ms for time_ms, _, _ in timers.advance_watermark(TIME_MAX_MS)] == [TIME_MAX_MS]


def test_keys_and_namespaces_come_back_as_they_were_and_equal_ones_are_one_timer(kinds):
    keys = [True, 2.0, 3.5, "s", Point(1, 2), (True, "x"), decimal.Decimal(7), dt.datetime(2024, 1, 1), Row(a=1), NAN]
    timers = kinds.make()
    for key in keys:
        timers.register_event_time(key, Point(3, 4), 9)
    timers.register_event_time(7, (3, 4), 9)  # equal to one that is there, which stays
    for restored in (kinds.by_chunks(timers), kinds.by_files(timers), timers):
        fired = list(restored.advance_watermark(9))
        assert sorted(repr(key) for _, key, _ in fired) == sorted(map(repr, keys))
        assert {type(namespace) for _, _, namespace in fired} == {Point}
        assert any(key is NAN for _, key, _ in fired)


def test_the_chunk_of_a_key_group_has_its_timers_alone(kinds, timers):
    for key in KEYS:
        timers.register_processing_time(key, None, 5)
    chunks = kinds.snapshot(timers)
    assert set(chunks) == {key_group_of(key, MAX_PARALLELISM) for key in KEYS}
    assert kinds.snapshot(timers, range(0)) == {}
    some = kinds.make()
    some.restore({group: chunk for group, chunk in chunks.items() if group < 2})
    assert {key for _, key, _ in some.due_processing(5)} == {
        key for key in KEYS if key_group_of(key, MAX_PARALLELISM) < 2
    }


def test_at_the_end_all_fire_but_those_that_are_registered_meanwhile(timers):
    for key in range(30):
        timers.register_processing_time(key, None, key)
    fired = []
    for time_ms, key, _ in timers.last_processing():
        fired.append(key)
        timers.register_processing_time(key, None, time_ms + 10**6)
    assert fired == list(range(30))


def test_the_watermark_is_set_before_the_first_timer_fires_and_never_goes_back(timers):
    assert timers.current_watermark == TIME_MIN_MS
    timers.register_event_time("k", None, 1)
    for _ in timers.advance_watermark(10):
        assert timers.current_watermark == 10
    list(timers.advance_watermark(4))
    assert timers.current_watermark == 10


def test_a_time_that_never_comes_is_refused_where_it_has_no_bytes(kinds, timers):
    if kinds.kind == "memory":
        return
    with pytest.raises(ProgramError, match=r"fit into 64 bits, got 9223372036854775808"):
        timers.register_event_time("k", None, TIME_MAX_MS + 1)
