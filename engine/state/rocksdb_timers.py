"""Timers of one operator in the RocksDB of its keyed state: more of them than memory. Contract: ``timers.Timers``.

A row's key: key group (2 bytes) | 0, where states have the length of their name | queue | time | key | namespace. So
the timers of a key group lie in order of time, are cut and copied with it at a restore, and are in every checkpoint of
files. Its value is empty, or key and namespace where their bytes do not say of which types they were.

In memory: of each queue and key group the first timers (``_Front``), what has changed since the last write, and a heap
of the key groups by their first time. Those of one time fire key group by key group, in the order of the bytes of their
keys: as the rows of the states lie that they are going to ask for.
"""

from __future__ import annotations

import heapq
import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, final

from engine.core.errors import ProgramError
from engine.state.backend import VOID
from engine.state.key_groups import canonical_key
from engine.state.rocksdb_backend import RocksDBKeyedStateBackend, walk
from engine.state.timers import NO_WATERMARK_MS, Timer, TimerService, dump_timers, read_timers
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS, CountWindow, GlobalWindow, TimeWindow

__all__ = ["RocksTimers"]

_GROUP: Final = struct.Struct(">H")
_TIME: Final = struct.Struct(">Q")
_TIME_SIZE: Final = _TIME.size
#: Added to a time, so that its bytes are in order also before 1970.
_ZERO: Final = 1 << 63
_EVENT, _PROCESSING = range(2)
_QUEUES: Final = (_EVENT, _PROCESSING)
_NO_NAME: Final = 0
_NO_GROUP: Final = 0xFFFF
#: Changes that wait at most: what a checkpoint has to write while the task stands still, some ms.
_WAITING_MAX: Final = 2048
#: The same in memory, and what the first timers of all key groups take: shares of the operator's memory.
_WAITING_SHARE: Final = 64
_FRONTS_SHARE: Final = 64
#: Timers of a key group that are read at a time. More of them would hardly save any time.
_FRONT_ROWS: Final = 64
#: What the bytes of a timer take in memory besides themselves: the object and its places in a list and a dict.
_ROW_BYTES: Final = 150
#: Entries of the heap that may be out of date, besides as many as there are key groups.
_STALE_MAX: Final = 64

#: Types whose bytes say what they were.
_PLAIN: Final = frozenset((str, int, bytes, type(None), TimeWindow, CountWindow, GlobalWindow))
_RARE: Final = b"u"


@final
class _Front:
    """The first timers of a queue and key group. A timer's *tail*: its row's key from the time on."""

    __slots__ = ("bound", "entry", "prefix", "size_bytes", "tails", "values")

    def __init__(self, prefix: bytes) -> None:
        self.prefix = prefix
        #: in order; all there are before ``bound``
        self.tails: list[bytes] = []
        #: of those whose row has a value
        self.values: dict[bytes, bytes] = {}
        #: from here on timers are on the disk, and what changes is not looked up; None = there are no more
        self.bound: bytes | None = None
        #: the time in the heap, no later than that of the first timer; None = there is no timer
        self.entry: bytes | None = None
        self.size_bytes = 0

    def put(self, at: int, tail: bytes, value: bytes) -> None:
        self.tails.insert(at, tail)
        if value:
            self.values[tail] = value
        self.size_bytes += len(tail) + _ROW_BYTES

    def take(self, at: int) -> tuple[bytes, bytes]:
        tail = self.tails.pop(at)
        self.size_bytes -= len(tail) + _ROW_BYTES
        return tail, self.values.pop(tail, b"") if self.values else b""

    def halve(self) -> None:
        """Leave the later half to the disk, where it is or is about to be written."""
        half = (len(self.tails) + 1) // 2
        if half == len(self.tails):
            return
        self.bound = self.tails[half]
        while len(self.tails) > half:
            self.take(-1)

    def first_time(self) -> bytes | None:
        """Return the time before which there is no timer."""
        first = self.tails[0] if self.tails else self.bound
        return None if first is None else first[:_TIME_SIZE]


@final
class RocksTimers:
    """Implements ``timers.Timers``; as a part of state it is a ``HostedPart``. Timers that ``host`` was restored with
    are there at once. Used by one thread, but for ``snapshot``."""

    def __init__(self, host: RocksDBKeyedStateBackend, *, owner: str = "Timers") -> None:
        self.host = host
        self._owner = owner
        self._codec = host.key_codec
        self._fronts: tuple[dict[int, _Front], dict[int, _Front]] = ({}, {})
        #: of each queue: (time, key group), not later than the group's first timer. Old entries are left in it.
        self._heaps: tuple[list[tuple[bytes, int]], list[tuple[bytes, int]]] = ([], [])
        self._front_bytes = self._fronts_bytes = host.memory_bytes // _FRONTS_SHARE
        #: rows to write; None = to delete
        self._changed: dict[bytes, bytes | None] = {}
        #: rows to write after these that are not stored then, so those that go before need no write at all
        self._fresh: dict[bytes, bytes] = {}
        self._waiting_bytes = 0
        self._waiting_bytes_max = host.memory_bytes // _WAITING_SHARE
        #: rows that were written last and not removed since: registering them again, as for each record, costs no write
        self._recent: set[bytes] = set()
        self._last_namespace: tuple[Any, bytes] = (VOID, b"n")
        self._is_at_end = False
        #: the rows for a savepoint that is about to be written
        self._frozen: Any = None
        self.current_watermark = NO_WATERMARK_MS
        self._find_restored()
        host.before_freeze.append(self._before_freeze)

    # --- the contract ----------------------------------------------------------------------------------------------

    def register_event_time(self, key: Any, namespace: Any, time_ms: int) -> None:
        self._register(_EVENT, key, namespace, time_ms)

    def delete_event_time(self, key: Any, namespace: Any, time_ms: int) -> None:
        self._delete(_EVENT, key, namespace, time_ms)

    def register_processing_time(self, key: Any, namespace: Any, time_ms: int) -> None:
        if not self._is_at_end:
            self._register(_PROCESSING, key, namespace, time_ms)

    def delete_processing_time(self, key: Any, namespace: Any, time_ms: int) -> None:
        self._delete(_PROCESSING, key, namespace, time_ms)

    def advance_watermark(self, watermark_ms: int) -> Iterator[Timer]:
        self.current_watermark = max(self.current_watermark, watermark_ms)
        return self._pop_due(_EVENT, watermark_ms)

    def due_processing(self, now_ms: int) -> Iterator[Timer]:
        return self._pop_due(_PROCESSING, now_ms)

    def last_processing(self) -> Iterator[Timer]:
        self._is_at_end = True
        return self._pop_due(_PROCESSING, TIME_MAX_MS)

    def next_processing_ms(self) -> int | None:
        return self._next_ms(_PROCESSING)

    def next_event_ms(self) -> int | None:
        return self._next_ms(_EVENT)

    # --- timers come and go ----------------------------------------------------------------------------------------

    def _tail(self, encoded: bytes, namespace: Any, time_ms: int) -> bytes:
        if namespace is not self._last_namespace[0]:
            self._last_namespace = (namespace, self._codec.encode(namespace))
        try:
            return b"".join((_TIME.pack(int(time_ms) + _ZERO), encoded, self._last_namespace[1]))
        except struct.error:
            raise ProgramError(
                f"{self._owner}: a timer's time must fit into 64 bits, got {time_ms}: no watermark and no clock ever "
                "reaches it."
            ) from None

    def _value(self, key: Any, encoded: bytes, namespace: Any) -> bytes:
        """Return what the row has to hold so that key and namespace come back as they are: 1.0 has the bytes of 1."""
        if type(key) in _PLAIN and type(namespace) in _PLAIN:
            return b""
        if _is_plain(key, encoded) and _is_plain(namespace, self._last_namespace[1]):
            return b""
        return self.host.value_codec.dumps((key, namespace))

    def _register(self, queue: int, key: Any, namespace: Any, time_ms: int) -> None:
        group, encoded = self.host.encoded(key)
        tail = self._tail(encoded, namespace, time_ms)
        front = self._fronts[queue].get(group)
        if front is None:
            front = self._new_front(queue, group)
        row = front.prefix + tail
        if front.bound is not None and tail >= front.bound:
            if row in self._fresh or row in self._recent:
                return
            self._changed[row] = self._value(key, encoded, namespace)
        else:
            at = bisect_left(front.tails, tail)
            if at < len(front.tails) and front.tails[at] == tail:
                return
            value = self._value(key, encoded, namespace)
            front.put(at, tail, value)
            self._fresh[row] = value
            if len(front.tails) > 2 * _FRONT_ROWS or front.size_bytes > 2 * self._front_bytes:
                front.halve()
            if front.entry is None or tail[:_TIME_SIZE] < front.entry:
                self._enter(queue, group, front)
        self._note_waiting(row)

    def _delete(self, queue: int, key: Any, namespace: Any, time_ms: int) -> None:
        group, encoded = self.host.encoded(key)
        front = self._fronts[queue].get(group)
        if front is None:
            return
        tail = self._tail(encoded, namespace, time_ms)
        if front.bound is None or tail < front.bound:
            at = bisect_left(front.tails, tail)
            if at == len(front.tails) or front.tails[at] != tail:
                return
            front.take(at)
        self._remove(front.prefix + tail)

    def _remove(self, row: bytes) -> None:
        if self._fresh.pop(row, None) is not None:
            self._waiting_bytes -= len(row) + _ROW_BYTES
            return
        self._changed[row] = None
        self._recent.discard(row)
        self._note_waiting(row)

    def _note_waiting(self, row: bytes) -> None:
        self._waiting_bytes += len(row) + _ROW_BYTES
        if len(self._changed) + len(self._fresh) >= _WAITING_MAX or self._waiting_bytes > self._waiting_bytes_max:
            self.write_out()

    def write_out(self) -> None:
        """Write what waits."""
        if not self._changed and not self._fresh:
            return
        fresh, changed = self._fresh, self._changed
        self._fresh, self._changed, self._waiting_bytes = {}, {}, 0
        self._recent = {row for row, value in changed.items() if value is not None}
        self._recent.update(fresh)
        self.host.write_rows([*changed.items(), *fresh.items()])

    def _before_freeze(self) -> None:
        self._frozen = None  # of a savepoint that was given up
        self.write_out()

    # --- the first ones --------------------------------------------------------------------------------------------

    def _new_front(self, queue: int, group: int) -> _Front:
        front = self._fronts[queue][group] = _Front(_prefix(group, queue))
        self._front_bytes = self._fronts_bytes // sum(map(len, self._fronts))
        return front

    def _enter(self, queue: int, group: int, front: _Front) -> None:
        """The group has a first timer that is earlier than its entry in the heap."""
        front.entry = front.first_time()
        assert front.entry is not None, "a group without timers has no place in the heap"
        heap, fronts = self._heaps[queue], self._fronts[queue]
        heapq.heappush(heap, (front.entry, group))
        if len(heap) > 2 * len(fronts) + _STALE_MAX:
            heap[:] = [(other.entry, number) for number, other in fronts.items() if other.entry is not None]
            heapq.heapify(heap)

    def _first(self, queue: int) -> tuple[bytes, _Front] | None:
        """Return the earliest time and the group that has it, whose timer is in memory then."""
        heap, fronts = self._heaps[queue], self._fronts[queue]
        while heap:
            time, group = heap[0]
            front = fronts[group]
            if time != front.entry:
                heapq.heappop(heap)  # out of date
                continue
            if not front.tails and front.bound is not None:
                self._load(queue, front)
            first = front.first_time()
            if first == time:
                return time, front
            front.entry = first
            if first is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (first, group))
        return None

    def _load(self, queue: int, front: _Front) -> None:
        """Read the next timers of a group whose front is empty."""
        assert front.bound is not None, "there are no others"
        assert not front.tails, "they come behind those that are there"
        self.write_out()
        start, bound = len(front.prefix), front.bound
        front.bound = None
        for row, value in self.host.rows_between(front.prefix + bound, _end(front.prefix)):
            tail = row[start:]
            if len(front.tails) >= _FRONT_ROWS or front.size_bytes > self._front_bytes:
                front.bound = tail
                return
            front.put(len(front.tails), tail, value)

    def _pop_due(self, queue: int, until_ms: int) -> Iterator[Timer]:
        """Whatever is registered and deleted between two steps counts."""
        until = _TIME.pack(min(max(until_ms, TIME_MIN_MS), TIME_MAX_MS) + _ZERO)
        while (found := self._first(queue)) is not None and found[0] <= until:
            front = found[1]
            tail, value = front.take(0)
            self._remove(front.prefix + tail)
            yield self._timer(tail, value)

    def _next_ms(self, queue: int) -> int | None:
        found = self._first(queue)
        return None if found is None else int(_TIME.unpack(found[0])[0]) - _ZERO

    def _timer(self, tail: bytes, value: bytes) -> Timer:
        time_ms = _TIME.unpack_from(tail)[0] - _ZERO
        if value:
            key, namespace = self.host.value_codec.loads(value, "timers")
            return time_ms, canonical_key(key), namespace
        key, end = self._codec.decode(tail, _TIME_SIZE)
        return time_ms, key, self._codec.decode(tail, end)[0]

    # --- snapshots -------------------------------------------------------------------------------------------------

    def num_entries(self) -> int:
        """Return no more than the number of key groups that have timers: counting would read them all."""
        return sum(front.entry is not None for fronts in self._fronts for front in fronts.values())

    def snapshot(self, key_groups: Iterable[int]) -> Iterator[tuple[int, bytes]]:
        if self._frozen is None:
            self.freeze_rows()
        rows, self._frozen = self._frozen, None
        for group in key_groups:
            timers = self._timers_of(group, rows)
            if any(timers):
                yield group, dump_timers(timers, self._owner)

    def freeze_rows(self) -> None:
        self.write_out()
        self._frozen = self.host.frozen_rows()

    def _timers_of(self, group: int, rows: Any) -> tuple[list[Timer], ...]:
        """Return all timers of a key group, as ``dump_timers`` takes them."""
        timers: tuple[list[Timer], ...] = ([], [], [], [])
        for row, value in walk(rows, _prefix(group, _EVENT)[:3]):
            timers[row[3]].append(self._timer(row[4:], value))
        return timers

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        """Take up chunks of this class or of ``TimerService``."""
        for data in chunks.values():
            for position, timers in enumerate(read_timers(data, self._owner)):
                change = self._register if position < 2 else self._delete
                for time_ms, key, namespace in timers:
                    change(position % 2, canonical_key(key), namespace, time_ms)

    def move_to(self, timers: TimerService) -> None:
        """Give all timers to others, in memory: the job has another setting now."""
        self.write_out()
        self.host.before_freeze.remove(self._before_freeze)
        for group in sorted(self._fronts[_EVENT].keys() | self._fronts[_PROCESSING].keys()):
            timers.restore({group: dump_timers(self._timers_of(group, self.host.frozen_rows()), self._owner)})
            self.host.delete_rows(_prefix(group, _EVENT), _end(_prefix(group, _PROCESSING)))

    def _find_restored(self) -> None:
        """Find the first timer of each queue and key group: a few reads for each group that has any rows."""
        rows = self.host.frozen_rows()
        rows.seek(bytes(2))
        while rows.valid():
            row: bytes = rows.key()
            group: int = _GROUP.unpack_from(row)[0]
            if group == _NO_GROUP:
                return
            if row[2] != _NO_NAME:
                rows.seek(_GROUP.pack(group + 1))
                continue
            queue = row[3]
            front = self._new_front(queue, group)
            front.bound = row[len(front.prefix) :]
            self._enter(queue, group, front)
            rows.seek(_end(front.prefix))


def _prefix(group: int, queue: int) -> bytes:
    return _GROUP.pack(group) + bytes((_NO_NAME, queue))


def _end(prefix: bytes) -> bytes:
    """Return what comes behind all rows of a queue and key group."""
    return prefix[:3] + bytes((prefix[3] + 1,))


def _is_plain(value: Any, encoded: bytes = b"") -> bool:
    """Whether the bytes of a key or namespace tell what it is. True and 1.0 have those of 1, a named tuple those of a
    tuple; values of rare types are stored as they are."""
    kind = type(value)
    if kind in _PLAIN or encoded.startswith(_RARE):
        return True
    if kind is float:
        return not value.is_integer()
    return kind is tuple and all(map(_is_plain, value))
