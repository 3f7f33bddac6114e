"""Keys that come in dictionaries: each value is looked up once, and once only while the same dictionary comes again.

Not here: the table in which values are looked up (``slot_table``), what tidy columns are (``core/dictionaries``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

import numpy as np

from engine.core.arrow_arrays import arrow_of
from engine.core.dictionaries import same_values
from engine.state.arrow_views import valid_mask, values_of
from engine.state.slot_kernels import slots_of_numbers

if TYPE_CHECKING:
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

__all__ = ["EncodedKeys"]

_UNKNOWN = -1


@final
class EncodedKeys:
    """Knows the slots of the last dictionary's values, as far as they have been looked up."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Slots have got other numbers."""
        self._values: pa.Array | None = None
        self._slot_of_number: Array = np.zeros(0, np.int32)

    @property
    def nbytes(self) -> int:
        return self._slot_of_number.nbytes

    def find(
        self, column: pa.Array, find_plain: Callable[[list[pa.Array]], tuple[Array, Array]]
    ) -> tuple[Array, Array]:
        """Return what ``find_plain`` would of a tidy column without its dictionary: slots, and the rows that made new
        ones, in the same order."""
        values = column.dictionary
        if self._values is None or not same_values(values, self._values):
            self._values = values
            self._slot_of_number = np.full(len(values) + 1, _UNKNOWN, np.int32)  # the last one is that of null
        indices = column.indices
        numbers = values_of(indices)
        if indices.null_count:
            numbers = np.where(valid_mask(indices), numbers, np.int32(len(values)))
        slot_of_row, unknown = np.empty(numbers.size, np.int32), np.empty(numbers.size, np.int32)
        rows = unknown[: slots_of_numbers(numbers, self._slot_of_number, slot_of_row, unknown)]
        if not rows.size:
            return slot_of_row, rows
        try:
            slots, first = find_plain([column.take(arrow_of(rows)).dictionary_decode()])
        except BaseException:
            self.forget()
            raise
        self._slot_of_number[numbers[rows]] = slots
        return self._slot_of_number[numbers], rows[first]
