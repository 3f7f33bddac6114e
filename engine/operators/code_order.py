"""Values that windows hold by number (codes), in the order of the values: for what is compared and is no number.

UTF-8 is in the order of code points, which is Python's. A rank says where a value stands among others. Ranks of all
values of a table are good until it has more of them; while it grows, only what is compared is ranked, so that a batch
costs its own rows, however many values there are. See ``column_ranks`` for keyed aggregations, which hold no codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import numpy as np
import pyarrow.compute as pc

from engine.core.arrow_arrays import numbers_of
from engine.state.paged_array import PagedArray
from engine.state.slot_table import SlotTable

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

__all__ = ["CodeOrder"]


@final
class CodeOrder:
    """``codes``: the table of values, which may grow meanwhile, but not be compacted."""

    def __init__(self, codes: SlotTable) -> None:
        self._codes = codes
        self._ranks = PagedArray(np.int32)
        #: so many codes have ranks among all, 0 = none
        self._num_ranked = 0
        #: what was ranked since by itself: once it is as much as the table, all of it is
        self._num_apart = 0

    @property
    def nbytes(self) -> int:
        return self._ranks.nbytes

    def ranks(self, *compared: Array) -> Array:
        """Return the rank of each code, by code, int32; of others than are compared it says nothing. To be used before
        the next call."""
        num_codes = self._codes.num_slots
        if num_codes != self._num_ranked:
            self._ranks.reserve(num_codes)
            self._num_apart += sum(codes.size for codes in compared)
            if self._num_apart < num_codes:
                self._num_ranked = 0
                self._rank(np.unique(np.concatenate(compared)))
                return self._ranks.array
            self._num_ranked, self._num_apart = num_codes, 0
            self._rank(np.arange(num_codes))
        return self._ranks.array

    def _rank(self, codes: Array) -> None:
        order = numbers_of(pc.sort_indices(self._codes.keys_of(codes)[0]))
        self._ranks.array[codes[order]] = np.arange(codes.size, dtype=np.int32)
