"""Time to live of slots: when each was written last, as one more column, and which have expired.

As ``state/ttl`` does it for values on rows, by the wall clock, on create and write, never returning what has expired;
one clock reading a batch. An expired slot is begun anew by its key's next record; nobody looks for the others but when
the table has doubled or an epoch ends. What lies in older layers of a checkpoint needs no removal: it has expired
there too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, final

import numpy as np

from engine.core.clock import Clock

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

__all__ = ["WRITTEN", "Expiry"]

#: The column of state, int64: wall time of the last write, in ms.
WRITTEN: Final = "written"


@final
class Expiry:
    """The law; shared by all tables of an operator."""

    def __init__(self, ttl_ms: int, clock: Clock) -> None:
        self.ttl_ms = ttl_ms
        self._clock = clock

    def now_ms(self) -> int:
        return self._clock.now_ms()

    def has_expired(self, written_ms: Array) -> Array:
        return written_ms <= self._clock.now_ms() - self.ttl_ms

    def begun(self, written_ms: Array, slots: Array, first: Array) -> Array:
        """Write the time of these slots; return the rows that begin one: ``first``, of new slots, and the first of each
        slot that has expired."""
        now_ms = self._clock.now_ms()
        written_ms[slots[first]] = now_ms
        late = np.flatnonzero(written_ms[slots] <= now_ms - self.ttl_ms)
        if late.size:
            _, at = np.unique(slots[late], return_index=True)
            first = np.concatenate([first, late[at].astype(first.dtype)])
        written_ms[slots] = now_ms
        return first
