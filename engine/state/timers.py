"""Timers of one operator in one subtask: event and processing time, by key and namespace. Pure: time is an argument.

Here: the contract, and timers in memory. Timers on the disk: ``rocksdb_timers``. Not here: the TimerService that user
functions see (``operators/functions``), which registers for the current key.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias, final

from engine.core.errors import ProgramError
from engine.state.changes import CHANGED_MIN, EpochLog
from engine.state.chunks import dump_chunk, load_chunk
from engine.state.key_groups import canonical_key, key_group_of
from engine.state.noted import NotedDelta
from engine.time.windows import TIME_MAX_MS

__all__ = ["NO_WATERMARK_MS", "ImpliedTimers", "Timer", "TimerService", "Timers", "dump_timers", "read_timers"]

#: (time in ms, key, namespace)
Timer: TypeAlias = tuple[int, Any, Any]

#: of each queue: what came and what went
_Notes: TypeAlias = list[tuple[set[Timer], set[Timer]]]

#: Before event time has begun; Long.MIN_VALUE as in Flink.
NO_WATERMARK_MS: Final = -(2**63)
#: Deleted timers stay in the heap until they are more than the living ones and more than this.
_DEAD_TIMERS_MIN: Final = 256
#: When more than one of so many in the heap have been taken off it one by one, the rest of what is due is taken at
#: once: going through the heap then costs no more than what was done already.
_POPPED_SHARE: Final = 16
#: What a chunk begins with; the last byte is the version of its format.
_PREFIX: Final = b"TIME\x01"


@final
class _TimerQueue:
    """A set of timers in order of time; those of one time come in the order of their registration."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Timer]] = []
        #: timer → its place in the order; what is in the heap but not in here was deleted
        self.live: dict[Timer, int] = {}
        #: what came and what went in this epoch, without what came and went; None = nobody asks
        self.came: set[Timer] | None = None
        self.gone: set[Timer] = set()
        self._count = itertools.count()

    def register(self, time_ms: int, key: Any, namespace: Any) -> None:
        timer = time_ms, key, namespace
        order = next(self._count)
        if self.live.setdefault(timer, order) != order:
            return
        if self.came is not None:
            if timer in self.gone:
                self.gone.discard(timer)
            else:
                self.came.add(timer)
        heapq.heappush(self._heap, (time_ms, order, timer))

    def delete(self, timer: Timer) -> None:
        if self.live.pop(timer, None) is None:
            return
        if self.came is not None:
            self._note_gone(self.came, timer)
        if len(self._heap) > 2 * len(self.live) + _DEAD_TIMERS_MIN:
            self._heap = [(timer[0], order, timer) for timer, order in self.live.items()]
            heapq.heapify(self._heap)

    def next_ms(self) -> int | None:
        heap = self._heap
        while heap:
            time_ms, order, timer = heap[0]
            if self.live.get(timer) == order:
                return time_ms
            heapq.heappop(heap)
        return None

    def pop_due(self, until_ms: int) -> Iterator[Timer]:
        """Take out timers up to ``until_ms``, also those registered while this runs. Nobody asks ``next_ms`` then."""
        live = self.live
        #: the last one comes next
        due: list[tuple[int, int, Timer]] = []
        num_popped = 0
        try:
            while True:
                heap = self._heap  # looked up anew: the caller may register and delete
                if due and not (heap and heap[0] < due[-1]):
                    _, order, timer = due.pop()
                elif heap and heap[0][0] <= until_ms:
                    if num_popped * _POPPED_SHARE > len(heap) and not due:
                        due, num_popped = self._cut(until_ms), 0
                        continue
                    num_popped += 1
                    _, order, timer = heapq.heappop(heap)
                else:
                    return
                if live.get(timer) == order:
                    del live[timer]
                    if self.came is not None:
                        self._note_gone(self.came, timer)
                    yield timer
        finally:
            if due:  # the caller has failed
                self._heap += due
                heapq.heapify(self._heap)

    def _cut(self, until_ms: int) -> list[tuple[int, int, Timer]]:
        """Take what is due off the heap and return it, the first last. Where much is, sorting it at once takes less
        than half of what taking it off one by one would."""
        heap = self._heap
        due = sorted([entry for entry in heap if entry[0] <= until_ms], reverse=True)
        self._heap = [entry for entry in heap if entry[0] > until_ms]
        heapq.heapify(self._heap)
        return due

    def _note_gone(self, came: set[Timer], timer: Timer) -> None:
        if timer in came:
            came.discard(timer)
        else:
            self.gone.add(timer)


class ImpliedTimers(Protocol):
    """Event timers that follow from other state of the operator, which fires them itself."""

    def timers(self) -> Iterable[Timer]: ...

    def num_timers(self) -> int: ...


class Timers(Protocol):
    """What operators ask of whatever keeps their timers. Registering a timer that exists changes nothing; deleting one
    that does not, neither. The watermark is not part of state, it comes again.

    Timers fire in order of time. Those of one time: in memory in the order of their registration, in RocksDB by key.
    """

    current_watermark: int

    def register_event_time(self, key: Any, namespace: Any, time_ms: int) -> None:
        """A time that the watermark has passed fires at the watermark's next advance."""
        ...

    def delete_event_time(self, key: Any, namespace: Any, time_ms: int) -> None: ...

    def register_processing_time(self, key: Any, namespace: Any, time_ms: int) -> None: ...

    def delete_processing_time(self, key: Any, namespace: Any, time_ms: int) -> None: ...

    def advance_watermark(self, watermark_ms: int) -> Iterator[Timer]:
        """Set the watermark at once; the iterator takes out the event timers due by it, in order of time. What is
        registered meanwhile and due comes too."""
        ...

    def due_processing(self, now_ms: int) -> Iterator[Timer]:
        """Take out the processing timers due by ``now_ms``, in order of time."""
        ...

    def last_processing(self) -> Iterator[Timer]:
        """Take out all processing timers, in order of time. What is registered meanwhile never fires: a timer that
        registers the next one would go on for ever."""
        ...

    def next_processing_ms(self) -> int | None:
        """Return the earliest processing timer's time, or None: when to call ``due_processing``."""
        ...

    def next_event_ms(self) -> int | None: ...


@final
class TimerService:
    """Timers in memory; implements ``Timers``. As a part of state it is a ``NotingPart``."""

    def __init__(self, max_parallelism: int, *, owner: str = "Timers", incremental: bool = False) -> None:
        self._max_parallelism = max_parallelism
        self._owner = owner
        self._incremental = incremental
        #: by queue: what came, what went
        self._log: EpochLog[_Notes] = EpochLog(_no_notes, _add_notes, _num_notes)
        self._event_time = _TimerQueue()
        self._processing_time = _TimerQueue()
        #: event timers beside those in here, for checkpoints
        self.implied: ImpliedTimers | None = None
        self.current_watermark = NO_WATERMARK_MS

    def register_event_time(self, key: Any, namespace: Any, time_ms: int) -> None:
        self._event_time.register(time_ms, key, namespace)

    def delete_event_time(self, key: Any, namespace: Any, time_ms: int) -> None:
        self._event_time.delete((time_ms, key, namespace))

    def register_processing_time(self, key: Any, namespace: Any, time_ms: int) -> None:
        self._processing_time.register(time_ms, key, namespace)

    def delete_processing_time(self, key: Any, namespace: Any, time_ms: int) -> None:
        self._processing_time.delete((time_ms, key, namespace))

    def advance_watermark(self, watermark_ms: int) -> Iterator[Timer]:
        self.current_watermark = max(self.current_watermark, watermark_ms)
        return self._event_time.pop_due(watermark_ms)

    def due_processing(self, now_ms: int) -> Iterator[Timer]:
        return self._processing_time.pop_due(now_ms)

    def last_processing(self) -> Iterator[Timer]:
        return iter(list(self._processing_time.pop_due(TIME_MAX_MS)))

    def next_processing_ms(self) -> int | None:
        return self._processing_time.next_ms()

    def next_event_ms(self) -> int | None:
        return self._event_time.next_ms()

    def num_timers(self) -> int:
        num_implied = 0 if self.implied is None else self.implied.num_timers()
        return len(self._event_time.live) + len(self._processing_time.live) + num_implied

    # --- snapshots -------------------------------------------------------------------------------------------------

    def num_entries(self) -> int:
        return self.num_timers()

    def snapshot(self, key_groups: Iterable[int]) -> dict[int, bytes]:
        """Return the timers of these key groups; groups without timers are left out."""
        everything = [(position, timer, True) for position, queue in self._queues() for timer in queue.live]
        if self.implied is not None:
            everything += [(0, timer, True) for timer in self.implied.timers()]
        return self._chunks(key_groups, everything)

    def take_event_timers(self, may_take: Callable[[Iterable[Timer]], bool]) -> bool:
        """Forget all event timers, if there are no others and whoever is to imply them says so."""
        if self._processing_time.live or not may_take(self._event_time.live):
            return False
        self._event_time = _TimerQueue()
        return True

    def _queues(self) -> Iterator[tuple[int, _TimerQueue]]:
        return enumerate((self._event_time, self._processing_time))

    def _chunks(self, key_groups: Iterable[int], timers: Iterable[tuple[int, Timer, bool]]) -> dict[int, bytes]:
        """``timers``: (queue, timer, whether it is there or gone)."""
        wanted = set(key_groups)
        groups: dict[int, tuple[list[Timer], ...]] = {}
        for position, timer, is_live in timers:
            group = key_group_of(timer[1], self._max_parallelism)
            if group in wanted:
                lists = groups.setdefault(group, ([], [], [], []))
                lists[position if is_live else 2 + position].append(timer)
        return {group: dump_timers(lists, self._owner) for group, lists in groups.items()}

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        """Take up chunks of ``snapshot``, then of ``snapshot_delta``."""
        for data in chunks.values():
            for position, timers in enumerate(read_timers(data, self._owner)):
                queue = (self._event_time, self._processing_time)[position % 2]
                for time_ms, key, namespace in timers:
                    if position < 2:
                        queue.register(time_ms, canonical_key(key), namespace)
                    else:
                        queue.delete((time_ms, canonical_key(key), namespace))

    def snapshot_delta(self, key_groups: Iterable[int], since_checkpoint_id: int) -> dict[int, bytes] | None:
        changed = self._changed_since(since_checkpoint_id)
        return None if changed is None else self._chunks(key_groups, self._in_order(changed))

    def note_delta(self, key_groups: Iterable[int], since_checkpoint_id: int, entries_max: int) -> NotedDelta | None:
        """Timers never change, so their order is all that must be noted."""
        changed = self._changed_since(since_checkpoint_id)
        num_changed = 0 if changed is None else sum(map(len, changed))
        if changed is None or num_changed > entries_max:
            return None
        noted = self._in_order(changed)
        return NotedDelta(num_changed, lambda: self._chunks(key_groups, noted))

    def _changed_since(self, checkpoint_id: int) -> list[set[Timer]] | None:
        """Return the timers of each queue; None = not known, or so many that a full snapshot is better."""
        notes = None if self.implied is not None else self._log.since(checkpoint_id)
        if notes is None:
            return None
        changed = [came | gone for came, gone in notes]
        return None if 2 * sum(map(len, changed)) > self.num_timers() else changed

    def _in_order(self, changed: Sequence[set[Timer]]) -> list[tuple[int, Timer, bool]]:
        """In order of registration, which is the order in which timers of one time fire."""
        found: list[tuple[int, Timer, bool]] = []
        for position, queue in self._queues():
            order = queue.live
            timers = sorted(changed[position], key=lambda timer: order.get(timer, -1))
            found += [(position, timer, timer in order) for timer in timers]
        return found

    def begin_epoch(self, checkpoint_id: int) -> None:
        if self._incremental:
            notes = self._log.begin(checkpoint_id, max(CHANGED_MIN, self.num_timers()))
            for position, queue in self._queues():
                queue.came, queue.gone = notes[position]

    def forget_epochs(self, until_checkpoint_id: int, kept_ids: Container[int] = ()) -> None:
        self._log.forget(until_checkpoint_id, kept_ids)

    def num_changed(self, since_checkpoint_id: int, at_most: int) -> int | None:
        return self._log.num_since(since_checkpoint_id, at_most)


def _no_notes() -> _Notes:
    return [(set(), set()), (set(), set())]


def _add_notes(notes: _Notes, more: _Notes) -> None:
    for (came, gone), (more_came, more_gone) in zip(notes, more, strict=True):
        came |= more_came
        gone |= more_gone


def _num_notes(notes: _Notes) -> int:
    return sum(len(came) + len(gone) for came, gone in notes)


def dump_timers(timers: Sequence[list[Timer]], owner: str) -> bytes:
    """Return the chunk of a key group. ``timers``: four lists, as ``read_timers`` gives them."""
    return _PREFIX + dump_chunk(tuple(timers), f"{owner}: timers")


def read_timers(data: bytes | memoryview, owner: str = "Timers", *, tolerant: bool = False) -> tuple[list[Timer], ...]:
    """Return what a chunk holds: timers in event time, in processing time, and those removed of both (in deltas)."""
    if bytes(data[: len(_PREFIX)]) != _PREFIX:
        raise ProgramError(f"{owner}: timers in a format that is not known here, written by another release.")
    timers: tuple[list[Timer], ...] = load_chunk(data[len(_PREFIX) :], f"{owner}: timers", tolerant=tolerant)
    return timers
