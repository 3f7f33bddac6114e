"""Keys of sessions: which key each session has, and keys that get other slots, bit by bit, when most have no session.

Not here: what sessions begin and end at, and hold (``session_state``), what changed (``session_changes``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, final

import numpy as np
import pyarrow as pa

from engine.state.paged_array import PagedArray
from engine.state.slot_table import SlotTable

Array = np.ndarray[Any, Any]

__all__ = ["KeyRenewal", "SessionKeys"]

#: Keys and sessions that are looked at for each row that comes in while keys are renewed, and for each batch at least:
#: that is over long before there are twice as many keys again.
_RENEWED_PER_ROW: Final = 8
_RENEWED_MIN: Final = 1 << 12


@final
class SessionKeys:
    """Stands where ``WindowState`` has its table of keys: gives the key of each session."""

    def __init__(self, table: SlotTable) -> None:
        self.table = table
        #: by session
        self.key_slots = PagedArray(np.int32)
        self.num_slots = 0  #: of sessions
        self.restored: Array = np.zeros(0, np.int64)

    @property
    def nbytes(self) -> int:
        return self.table.nbytes + self.key_slots.nbytes

    def keys_of(self, sessions: Array) -> list[pa.Array]:
        return self.table.keys_of(self.key_slots.array[sessions])

    def slots_of(self, columns: Sequence[pa.Array]) -> Array:
        """Return the sessions whose accumulators are being restored."""
        return self.restored


@final
class KeyRenewal:
    """A table of the keys that are needed, made bit by bit beside the one that goes on. ``heads``: by key, 0 where it
    has no session; ``are_marked``: whether keys from one slot to another are needed though they have none.

    What happens meanwhile is written here too (``follow``, ``name``), so when the last bit is done the arrays take the
    places of the others, and nothing has to be looked through.
    """

    def __init__(self, keys: SessionKeys, heads: PagedArray, are_marked: Callable[[int, int], Array]) -> None:
        self._keys = keys
        self._own_heads = heads
        self._are_marked = are_marked
        self.table = SlotTable(keys.table.kinds)
        self.heads = PagedArray(np.int64)
        self.key_slots = PagedArray(np.int32)
        #: by slot so far, the one here plus 1; 0 = none
        self._places = PagedArray(np.int32)
        self._places.reserve(keys.table.num_slots)
        self.key_slots.reserve(keys.num_slots)
        #: slots so far by slot here, in pieces
        self._kept: list[Array] = []
        #: of keys and sessions, how many there were at the beginning, and are behind: later ones have followed
        self._todo = keys.table.num_slots, keys.num_slots
        self._done = 0, 0

    @property
    def nbytes(self) -> int:
        arrays = self.heads, self.key_slots, self._places
        return self.table.nbytes + sum(array.nbytes for array in arrays) + sum(slots.nbytes for slots in self._kept)

    def kept(self) -> Array:
        """Return which slot so far each one here was."""
        return np.concatenate(self._kept) if self._kept else np.zeros(0, np.int64)

    def _place(self, slots: Array) -> None:
        """Give these keys, none of which has one, a slot here."""
        if not slots.size:
            return
        placed, _ = self.table.find(self._keys.table.keys_of(slots))
        self.heads.reserve(self.table.num_slots)
        self._places.array[slots] = placed + 1
        self.heads.array[placed] = self._own_heads.array[slots]
        # The null key takes its slot before the others of its batch.
        self._kept.append(slots[np.argsort(placed, kind="stable")])

    def follow(self, slots: Array, *, are_needed: bool = True) -> None:
        """Sessions of these keys have come, or gone: then they are not needed for that."""
        self._places.reserve(self._keys.table.num_slots)
        if are_needed:
            self._place(np.unique(slots[self._places.array[slots] == 0]))
        places = self._places.array[slots]
        there = places > 0
        self.heads.array[places[there] - 1] = self._own_heads.array[slots[there]]

    def name(self, sessions: Array, slots: Array) -> None:
        """These sessions have these keys, which have been followed."""
        self.key_slots.reserve(self._keys.num_slots)
        self.key_slots.array[sessions] = self._places.array[slots] - 1

    def step(self, num_rows: int) -> bool:
        """Go on by what is due with so many rows; return whether it is over."""
        left = max(_RENEWED_MIN, num_rows * _RENEWED_PER_ROW)
        (num_keys, num_sessions), (keys_done, sessions_done) = self._todo, self._done
        if keys_done < num_keys:
            end = min(num_keys, keys_done + left)
            is_needed = (self._own_heads.array[keys_done:end] != 0) | self._are_marked(keys_done, end)
            is_needed &= self._places.array[keys_done:end] == 0
            self._place(np.flatnonzero(is_needed) + keys_done)
            left -= end - keys_done
            keys_done = end
        if keys_done == num_keys and left > 0:
            end = min(num_sessions, sessions_done + left)
            slots = self._keys.key_slots.array[sessions_done:end]
            # A number that no session has may have the slot of a key that is gone.
            known = np.where(slots < self._places.capacity, slots, 0)
            self.key_slots.array[sessions_done:end] = self._places.array[known] - 1
            sessions_done = end
        self._done = keys_done, sessions_done
        return self._done == self._todo
