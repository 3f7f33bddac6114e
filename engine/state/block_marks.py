"""Marks of what changed in arrays with one entry a slot: a byte for some slots in a row, which share it.

The memory of an increment (``changes``) for state on columns. ``shift``: so many slots share a mark, as a power of two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from engine.state.paged_array import zeros

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

__all__ = ["grown_marks", "marked_slots", "moved_marks", "num_marked", "united_marks"]


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
    slots = (np.flatnonzero(marks.view(np.bool_))[:, None] << shift) + np.arange(1 << shift)
    slots = slots.ravel()
    return slots[slots < num_slots]


def united_marks(some: Array, others: Array) -> Array:
    """Return what is marked in either, in an array of its own."""
    larger, smaller = (some, others) if some.size >= others.size else (others, some)
    united: Array = larger.copy()
    united[: smaller.size] |= smaller
    return united


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
