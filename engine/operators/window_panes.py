"""What one slice of a window holds: an accumulator of each aggregate for each slot, in one array of 64-bit columns.

The values of a slot lie side by side, so that a record touches one cache line. Column 0 counts the records; a slot
whose count is 0 has nothing in the slice. Floats stand there as their bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np

from engine.state.paged_array import PagedArray
from engine.state.short_decimals import sum_size_max

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

__all__ = ["Accumulator", "Pane", "lanes_in"]

_COUNT: Final = 0


@final
@dataclass(frozen=True, slots=True)
class Accumulator:
    """One column of a pane. ``kind``: sum, min, max, first, last; ``column``: where it stands; ``seed``: what it begins
    with, None = with the first value; ``lanes``: of a sum of long decimals, where its upper lane and its size stand
    (``window_sums``)."""

    kind: str
    column: int
    is_float: bool
    seed: int | float | None = None
    lanes: tuple[int, int] | None = None

    def merge(
        self,
        target: Array,
        source: Array,
        slots: Array,
        fresh: Array,
        *,
        comparable: Callable[[Array, Array], tuple[Array, Array]],
        plainly: bool = False,
    ) -> None:
        """Take up ``source``, which comes after ``target``, both (slots, columns); ``slots``: those that source has a
        value of; ``fresh``: of these, whether target has none. ``comparable``: gives numbers in the order of what both
        hold. ``plainly``: a NaN wins only where it came first."""
        if self.lanes is not None:
            self._merge_lanes(target, source, slots)
            return
        into, of = _typed(target, self)[slots], _typed(source, self)[slots]
        match self.kind:
            case "sum":
                merged = into + of
                if not self.is_float and (((into ^ merged) & (of ^ merged)) < 0).any():
                    raise OverflowError("a sum of a window does not fit into 64 bits")
            case "min":
                before, after = comparable(into, of)
                merged = np.where((after < before) | ((of != of) & (not plainly)), of, into)
            case "max":
                before, after = comparable(into, of)
                merged = np.where((after > before) | ((of != of) & (not plainly)), of, into)
            case "first":
                merged = into
            case "last":
                merged = of
            case _:
                raise AssertionError(f"{self.kind} is no accumulator of one value")
        _typed(target, self)[slots] = np.where(fresh, of, merged)

    def _merge_lanes(self, target: Array, source: Array, slots: Array) -> None:
        """Where target has no value its lanes are 0."""
        assert self.lanes is not None
        high, size = self.lanes
        sizes = target[:, size].view(np.float64), source[:, size].view(np.float64)
        merged = sizes[0][slots] + sizes[1][slots]
        if (merged >= sum_size_max()).any():
            raise OverflowError("a sum of decimals of a window is rounded")
        into, of = lanes_in(target[slots], self), lanes_in(source[slots], self)
        lower = into[:, 0] + of[:, 0]
        carry = lower.astype(np.uint64) < of[:, 0].astype(np.uint64)
        target[slots, self.column], target[slots, high] = lower, into[:, 1] + of[:, 1] + carry
        sizes[0][slots] = merged


def lanes_in(values: Array, accumulator: Accumulator) -> Array:
    """Return the lanes of a sum, a copy; ``values``: rows of a pane."""
    assert accumulator.lanes is not None
    return np.stack([values[:, accumulator.column], values[:, accumulator.lanes[0]]], axis=1)


def _typed(values: Array, accumulator: Accumulator) -> Array:
    column: Array = values[:, accumulator.column]
    return column.view(np.float64) if accumulator.is_float else column


@final
class Pane:
    """``width``: columns, the count of records included."""

    def __init__(self, width: int) -> None:
        self._values = PagedArray(np.int64, width)

    @property
    def values(self) -> Array:
        return self._values.array

    @property
    def nbytes(self) -> int:
        return self._values.nbytes

    def reserve(self, num_slots: int) -> None:
        self._values.reserve(num_slots)

    def column(self, index: int, is_float: bool = False) -> Array:
        column: Array = self._values.array[:, index]
        return column.view(np.float64) if is_float else column

    def widen(self, width: int) -> None:
        """Add columns of zeros."""
        old = self._values.array
        self._values = PagedArray(np.int64, width)
        self._values.reserve(old.shape[0])
        self._values.array[: old.shape[0], : old.shape[1]] = old

    def slots(self, begin: int = 0, end: int | None = None) -> Array:
        """Return the slots that have records, rising; of those from ``begin`` on, before ``end``."""
        return np.flatnonzero(self._values.array[begin:end, _COUNT]) + begin

    def give_back(self, begin: int, end: int) -> None:
        """Nobody reads these slots any more: their memory may go, and then they have no records."""
        self._values.give_back(begin, end)

    def compact(self, kept: Array) -> None:
        """``kept``: rising slots; slot ``kept[i]`` becomes slot i."""
        old = self._values.array
        inside = kept[kept < old.shape[0]]
        values = PagedArray(np.int64, old.shape[1])
        values.reserve(kept.size)
        values.array[: inside.size] = old[inside]
        self._values = values
