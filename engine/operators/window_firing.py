"""What a window over columns holds when it fires, in parts: a batch of keys each, so that others can work in between.

A window is one pane, or several that are merged range by range of the slots; in both cases slots rise, and so the
order of results is that of the keys' first records. Not here: what is made of it (``column_window_operator``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from engine.core.records import BATCH_ROWS_MAX
from engine.operators.window_contents import AggregateFold
from engine.operators.window_panes import Pane
from engine.operators.window_state import WindowState
from engine.state.column_hash import groups_of_rows
from engine.state.key_groups import canonical_key
from engine.state.short_decimals import sum_size_max

Array = np.ndarray[Any, Any]

__all__ = ["contents", "in_parts", "parts_of", "rows_of_panes", "slots_beside"]


def contents(state: WindowState, starts: Iterable[int], only: Array | None) -> tuple[Array, Array]:
    """Return (slots, accumulators by slot) of the panes together; ``only``: of these slots. Raises: OverflowError."""
    starts = [start for start in starts if start in state.panes]
    panes = [state.panes[start] for start in starts]
    if len(panes) == 1:
        values = panes[0].values
        slots = panes[0].slots() if only is None else only
        return slots, values
    merged = state.empty_values()
    for pane in panes:
        slots = pane.slots()
        if only is not None:
            slots = np.intersect1d(slots, only)
        state.merge(merged, pane.values, slots)
    state.count_distinct_together(starts, merged)
    return np.flatnonzero(merged[:, 0]), merged


def parts_of(state: WindowState, starts: Iterable[int], only: Array | None) -> Iterator[tuple[Array, Array] | None]:
    """Yield what ``contents`` returns, a batch of slots each; None = there is none yet, but time has passed.

    Raises: OverflowError before the first part.
    """
    starts = [start for start in starts if start in state.panes]
    panes = [state.panes[start] for start in starts]
    if len(panes) > 1 and only is None and not any(map(state.num_distinct, starts)):
        bound, size = 0, 0.0
        for pane in panes:
            of_ints, of_decimals = _bounds_of(state, pane)
            bound, size = bound + of_ints, size + of_decimals
            yield None
        if bound < 1 << 63 and (not size or size < sum_size_max()):
            yield from _merged_parts(state, panes)
            return
    slots, values = contents(state, starts, only)
    for part in in_parts(slots, BATCH_ROWS_MAX):
        yield part, values


def slots_beside(state: WindowState, slots: Array, groups: list[int]) -> Array:
    """Return those of the slots whose keys are in none of these key groups."""
    if not groups:
        return slots
    of_slots = groups_of_rows(state._table.keys_of(slots), state.max_parallelism, is_tuple=state.is_tuple)
    return slots[~np.isin(of_slots, groups)]


def rows_of_panes(
    state: WindowState, slots_of: dict[int, Array], window: tuple[int, int], fold: AggregateFold, *, is_nested: bool
) -> list[tuple[Any, ...]]:
    """Return the results of a window on rows. ``slots_of``: of each of its panes."""
    merged: dict[Any, tuple[tuple[Any, ...], Any]] = {}
    for start, slots in slots_of.items():
        for fields, accumulator in zip(*state.accumulators_of(start, slots), strict=True):
            key = canonical_key(fields)
            have = merged.get(key)
            merged[key] = (fields, accumulator) if have is None else (have[0], fold.merge(have[1], accumulator))
    return [
        (*((fields,) if is_nested else fields), *window, *fold.result(accumulator))
        for fields, accumulator in merged.values()
    ]


def in_parts(slots: Array, size: int) -> Iterator[Array]:
    return (slots[at : at + size] for at in range(0, slots.size, size))


def _bounds_of(state: WindowState, pane: Pane) -> tuple[int, float]:
    """Return what no sum of integers of a pane is beyond, exactly, and no size of a long sum of decimals."""
    bound, size = 0, 0.0
    for own in state.sums():
        column = pane.column(own.column)
        if not column.size:
            continue
        if own.lanes is None:
            bound = max(bound, -int(column.min()), int(column.max()))
        else:
            size = max(size, float(pane.column(own.lanes[1], is_float=True).max()))
    return bound, size


def _merged_parts(state: WindowState, panes: list[Pane]) -> Iterator[tuple[Array, Array] | None]:
    merged = state.empty_values()
    found = np.zeros(0, np.int64)
    for at in range(0, merged.shape[0], BATCH_ROWS_MAX):
        for pane in panes:
            slots = at + np.flatnonzero(pane.values[at : at + BATCH_ROWS_MAX, 0])
            if slots.size:
                state.merge(merged, pane.values, slots)
        found = np.concatenate((found, at + np.flatnonzero(merged[at : at + BATCH_ROWS_MAX, 0])))
        if found.size < BATCH_ROWS_MAX:
            yield None
        else:
            yield found[:BATCH_ROWS_MAX], merged
            found = found[BATCH_ROWS_MAX:]
    if found.size:
        yield found, merged
