"""Texts that are compared on columns: numbers in the same order, of one batch and what its slots hold.

UTF-8 is in the order of code points, which is Python's. Unlike lanes of their bytes (``order_lanes``) ranks need no
room in the state and have no limit of length, but are made anew for each batch: they are for what is compared with one
value a key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.core.arrow_arrays import arrow_of, numbers_of
from engine.state.slot_columns import StateColumn

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

__all__ = ["Ranks"]


@final
class Ranks:
    """``values``: the rank of each row's; ``held``: of what slots hold, by slot: kernels change it, and ``put_back``
    lets the column hold what it says then. Of other slots it says nothing."""

    def __init__(self, column: pa.Array, state: StateColumn, slots: Array, num_slots: int) -> None:
        self._state = state
        self._touched = np.unique(slots)
        both = pa.concat_arrays([state.get(self._touched), column]).dictionary_encode()
        order = numbers_of(pc.sort_indices(both.dictionary))
        self._distinct = both.dictionary.take(arrow_of(order))
        ranks = np.empty(order.size, np.int64)
        ranks[order] = np.arange(order.size)
        of_both = ranks[numbers_of(both.indices)]
        self._held_before, self.values = of_both[: self._touched.size], of_both[self._touched.size :]
        self.held = np.empty(num_slots, np.int64)
        self.held[self._touched] = self._held_before

    def column(self, ranks: Array) -> pa.Array:
        """Return the texts of these ranks."""
        return self._distinct.take(arrow_of(ranks))

    def put_back(self) -> None:
        changed = self._touched[self.held[self._touched] != self._held_before]
        if changed.size:
            self._state.put(changed, self.column(self.held[changed]))
