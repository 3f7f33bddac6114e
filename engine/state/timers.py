"""Timers of one operator in one subtask: event and processing time, by key and namespace. Pure: time is an argument.

Not here: the TimerService that user functions see (``operators/functions``), which registers for the current key.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias, final

from engine.state.chunks import dump_chunk, load_chunk
from engine.state.key_groups import canonical_key, key_group_of

__all__ = ["Timer", "TimerService"]

#: (time in ms, key, namespace)
Timer: TypeAlias = tuple[int, Any, Any]

#: Before event time has begun; Long.MIN_VALUE as in Flink.
NO_WATERMARK_MS: Final = -(2**63)
#: Deleted timers stay in the heap until they are more than the living ones and more than this.
_DEAD_TIMERS_MIN: Final = 256


@final
class _TimerQueue:
    """A set of timers in order of time; those of one time come in the order of their registration."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Timer]] = []
        #: timer → its place in the order; what is in the heap but not in here was deleted
        self.live: dict[Timer, int] = {}
        self._count = itertools.count()

    def register(self, timer: Timer) -> None:
        if timer in self.live:
            return
        order = self.live[timer] = next(self._count)
        heapq.heappush(self._heap, (timer[0], order, timer))

    def delete(self, timer: Timer) -> None:
        if self.live.pop(timer, None) is not None and len(self._heap) > 2 * len(self.live) + _DEAD_TIMERS_MIN:
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
        """Take out timers up to ``until_ms``, also those registered while this runs."""
        live = self.live
        while self._heap and self._heap[0][0] <= until_ms:  # looked up anew: the caller may register and delete
            _, order, timer = heapq.heappop(self._heap)
            if live.get(timer) == order:
                del live[timer]
                yield timer


@final
class TimerService:
    """Registering a timer that exists changes nothing; deleting one that does not, neither."""

    def __init__(self, max_parallelism: int) -> None:
        self._max_parallelism = max_parallelism
        self._event_time = _TimerQueue()
        self._processing_time = _TimerQueue()
        self.current_watermark = NO_WATERMARK_MS

    def register_event_time(self, key: Any, namespace: Any, time_ms: int) -> None:
        """A time that the watermark has passed fires at the watermark's next advance."""
        self._event_time.register((time_ms, key, namespace))

    def delete_event_time(self, key: Any, namespace: Any, time_ms: int) -> None:
        self._event_time.delete((time_ms, key, namespace))

    def register_processing_time(self, key: Any, namespace: Any, time_ms: int) -> None:
        self._processing_time.register((time_ms, key, namespace))

    def delete_processing_time(self, key: Any, namespace: Any, time_ms: int) -> None:
        self._processing_time.delete((time_ms, key, namespace))

    def advance_watermark(self, watermark_ms: int) -> Iterator[Timer]:
        """Set the watermark at once; the iterator takes out the event timers due by it, in order of time. What is
        registered meanwhile and due comes too."""
        self.current_watermark = max(self.current_watermark, watermark_ms)
        return self._event_time.pop_due(watermark_ms)

    def due_processing(self, now_ms: int) -> Iterator[Timer]:
        """Take out the processing timers due by ``now_ms``, in order of time."""
        return self._processing_time.pop_due(now_ms)

    def next_processing_ms(self) -> int | None:
        """Return the earliest processing timer's time, or None: when to call ``due_processing``."""
        return self._processing_time.next_ms()

    def next_event_ms(self) -> int | None:
        return self._event_time.next_ms()

    def num_timers(self) -> int:
        return len(self._event_time.live) + len(self._processing_time.live)

    def snapshot(self, key_groups: Iterable[int]) -> dict[int, bytes]:
        """Return the timers of these key groups; groups without timers are left out."""
        wanted = set(key_groups)
        groups: dict[int, tuple[list[Timer], list[Timer]]] = {}
        for position, queue in enumerate((self._event_time, self._processing_time)):
            for timer in queue.live:
                group = key_group_of(timer[1], self._max_parallelism)
                if group in wanted:
                    groups.setdefault(group, ([], []))[position].append(timer)
        return {group: dump_chunk(timers, "timers") for group, timers in groups.items()}

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        """Take up chunks of ``snapshot``."""
        for data in chunks.values():
            for queue, timers in zip((self._event_time, self._processing_time), load_chunk(data), strict=True):
                for time_ms, key, namespace in timers:
                    queue.register((time_ms, canonical_key(key), namespace))
