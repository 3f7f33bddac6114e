"""Marks of what changed in arrays with one entry a slot: a byte for some slots in a row, which share it.

The memory of an increment (``changes``) for state on columns. ``shift``: so many slots share a mark, as a power of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from engine.state.paged_array import zeros

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

__all__ = ["grown_marks", "marked_slots", "moved_marks", "num_marked", "num_united", "united_marks"]

#: Marks that are looked at together where those of several epochs are counted.
_COUNTED: Final = 1 << 16


def grown_marks(marks: Array, num_slots: int, shift: int) -> Array:
    """Return the marks with room for so many slots."""
    wanted = (num_slots >> shift) + 1
    if marks.size >= wanted:
        return marks
    grown = zeros(max(wanted, 2 * marks.size), np.uint8)
    grown[: marks.size] = marks
    return grown


def num_marked(marks: Array, shift: int) -> int:
    """Return about how many slots are marked: too many rather than too few."""
    return int(np.count_nonzero(marks.view(np.bool_))) << shift


def marked_slots(marks: Array, num_slots: int, shift: int) -> Array:
    """Return the slots that are marked, rising."""
    blocks = np.flatnonzero(marks[: (num_slots >> shift) + 1].view(np.bool_))
    slots: Array = blocks if not shift else ((blocks[:, None] << shift) + np.arange(1 << shift)).ravel()
    return slots[: np.searchsorted(slots, num_slots)]


def united_marks(some: Sequence[Array]) -> Array:
    """Return what is marked in any; of a single one itself."""
    if len(some) == 1:
        return some[0]
    united: Array = np.zeros(max((marks.size for marks in some), default=0), np.uint8)
    for marks in some:
        united[: marks.size] |= marks
    return united


def num_united(some: Sequence[Array], shift: int, at_most: int) -> int:
    """Return about how many slots are marked in any, or more than ``at_most``; without an array of that size, whose
    pages would all be new."""
    if len(some) <= 1:
        return sum(num_marked(marks, shift) for marks in some)
    count = 0
    for begin in range(0, max(marks.size for marks in some), _COUNTED):
        if count > at_most:
            break
        part = np.zeros(_COUNTED, np.uint8)
        for marks in some:
            own = marks[begin : begin + _COUNTED]
            part[: own.size] |= own
        count += num_marked(part, shift)
    return count


def moved_marks(marks: Array, kept: Array, shift: int) -> Array:
    """Return the marks of slots ``kept[i]`` as those of slots i."""
    from engine.state.slot_kernels import mark_blocks

    moved = np.zeros((kept.size >> shift) + 1, np.uint8)
    blocks = kept >> shift
    is_marked = np.zeros(kept.size, np.bool_)
    is_known = blocks < marks.size
    is_marked[is_known] = marks[blocks[is_known]] != 0
    mark_blocks(np.flatnonzero(is_marked).astype(np.int32), shift, moved)
    return moved
