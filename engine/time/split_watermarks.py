"""How far event time has come in a source that reads several splits: no further than in the one furthest behind.

Pure: told what happens to each split, it says what follows for the source. Not here: where a split's own watermark
comes from (``operators/event_time``), and the same question about an exchange's channels (``runtime/exchange/gate``).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import final

from engine.time.windows import TIME_MIN_MS

__all__ = ["SplitWatermarks"]


@final
class SplitWatermarks:
    """The lowest watermark of all splits that are neither idle nor ended. Source: Flink's WatermarkOutputMultiplexer.

    A split takes part from ``add`` on, when it has no record yet: until it has a watermark of its own the source's does
    not advance, so what it will have is not late. Callers look at ``watermark_ms`` and ``is_idle`` after each call.
    """

    def __init__(self) -> None:
        #: Of each split, how far it has come; not to be changed by others.
        self.watermark_of: dict[str, int] = {}
        self._idle: set[str] = set()
        #: The source's watermark. It never goes back, whatever a new split or one that is idle no more has to say.
        self.watermark_ms = TIME_MIN_MS
        #: There are splits, and nobody needs to wait for any of them.
        self.is_idle = False

    def __len__(self) -> int:
        return len(self.watermark_of)

    def add(self, split_id: str) -> None:
        """The split was assigned; one that is known stays as it is."""
        if split_id not in self.watermark_of:
            self.watermark_of[split_id] = TIME_MIN_MS
            self.is_idle = False

    def remove(self, split_id: str) -> None:
        """The split has been read to its end: it is waited for no longer."""
        if self.watermark_of.pop(split_id, None) is not None:
            self._idle.discard(split_id)
            self._combine()

    def advance(self, split_id: str, watermark_ms: int) -> None:
        """The split's watermark has come so far; one that is not later than its last changes nothing."""
        before_ms = self.watermark_of[split_id]
        if watermark_ms > before_ms:
            self.watermark_of[split_id] = watermark_ms
            if before_ms <= self.watermark_ms:  # else another one is further behind
                self._combine()

    def set_idle(self, split_id: str, idle: bool) -> None:
        assert split_id in self.watermark_of, split_id
        if idle is not (split_id in self._idle):
            (self._idle.add if idle else self._idle.discard)(split_id)
            self._combine()

    def is_split_idle(self, split_id: str) -> bool:
        return split_id in self._idle

    def ahead_of(self, limit_ms: int) -> frozenset[str]:
        """Return the splits that are beyond ``limit_ms``."""
        return frozenset(split_id for split_id, own_ms in self.watermark_of.items() if own_ms > limit_ms)

    def lowest_begun_ms(self) -> int | None:
        """Return the lowest watermark of the splits that have one and are not idle; None if there is no such split."""
        begun = (ms for split_id, ms in self.watermark_of.items() if ms > TIME_MIN_MS and split_id not in self._idle)
        return min(begun, default=None)

    def _combine(self) -> None:
        active: Collection[int] = self.watermark_of.values()
        if self._idle:
            active = [ms for split_id, ms in self.watermark_of.items() if split_id not in self._idle]
        self.is_idle = bool(self.watermark_of) and not active
        if active:
            lowest_ms = min(active)
            if lowest_ms > self.watermark_ms:
                self.watermark_ms = lowest_ms
