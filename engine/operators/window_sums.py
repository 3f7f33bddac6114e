"""Sums of integers and of decimals that windows over columns hold: how values are added, and how near to a limit.

A sum of integers has 64 bits. One of decimals begins like that; with the first value, or sum, that does not fit it gets
two more columns of its panes: the upper lane (``state/short_decimals``), and the size, a float, which is what values
come to without their signs. No sum of some of these values in any order is beyond that, so as long as the sizes of all
panes of a window are below what Python's context rounds, sums are those of rows, in whatever order these add and merge.
Chunks have no sizes: what has come before a barrier rows have added, too, so that of the sum itself does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from engine.operators import column_kernels as kernels
from engine.operators import decimal_kernels
from engine.operators.handed_over import BEYOND_64_BITS, ROUNDED_DECIMALS
from engine.operators.window_fields import AggregatedField
from engine.operators.window_panes import Accumulator, Pane, lanes_in
from engine.state.arrow_views import valid_mask
from engine.state.short_decimals import (
    adds_exactly,
    lanes_of,
    sizes_of,
    sum_size_max,
    units_of,
)

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

__all__ = [
    "SUM_MAX",
    "Accumulators",
    "add_up",
    "bound_of_pane",
    "bound_of_records",
    "column_of",
    "fit",
    "put",
    "sums_of",
    "takes_decimals",
    "why_not",
    "widen",
]

Accumulators = list[tuple[Accumulator, AggregatedField]]

#: A sum of integers that may come so near to 64 bits is left to rows; reckoned with floats. Bounds of decimals are in
#: parts of their own limit, as if that were this one.
SUM_MAX: Final = float(1 << 62)
#: Floats are rounded as they are added, and so is what they are compared with.
_ROUNDED: Final = 1.001


def sums_of(accumulators: Accumulators) -> Iterator[tuple[Accumulator, AggregatedField]]:
    """Yield the sums that are no floats."""
    return ((own, field) for own, field in accumulators if own.kind == "sum" and not own.is_float)


def takes_decimals(accumulators: Accumulators) -> bool:
    """Whether Python would give the very sums of decimals that are added here, unless they are too large."""
    return all(adds_exactly(field.kind.scale) for _, field in sums_of(accumulators) if field.of_decimals)


# --- records ----------------------------------------------------------------------------------------------------------


def add_up(
    accumulators: Accumulators,
    pane: Pane,
    rows: Array,
    slots: Array,
    *,
    num_slices: int,
    widened: Callable[[AggregatedField], None],
) -> bool:
    """Add the rows to all sums, which are 0 at first, or to none; return whether they fit.

    ``num_slices``: of a window, whose panes are added when it fires; ``widened``: makes room for long sums of a field.
    """
    limit = sum_size_max() / num_slices
    added: list[tuple[Accumulator, Array, Array]] = []
    for at in range(len(accumulators)):
        own, field = accumulators[at]
        if own.kind != "sum" or own.is_float:
            continue
        present = rows if field.valid is None else rows[field.valid[rows]]
        values, done = field.values, 0
        if own.lanes is None:
            assert values is not None
            done = kernels.add_ints(present, slots, values, pane.column(own.column))
            if done < present.size and field.of_decimals:
                np.subtract.at(pane.column(own.column), slots[present[:done]], values[present[:done]])
                widened(field)
                own = accumulators[at][0]
        if own.lanes is not None:
            assert field.lanes is not None
            values = field.lanes
            done = _add_lanes(pane, own, present, slots, values, limit)
        assert values is not None
        added.append((own, present[:done], values))
        if done < present.size:
            for own, taken, values in added:
                _take_back(pane, own, taken, slots, values)
            return False
    return True


def _add_lanes(pane: Pane, own: Accumulator, rows: Array, slots: Array, lanes: Array, limit: float) -> int:
    assert own.lanes is not None
    columns = pane.column(own.column), pane.column(own.lanes[0]), pane.column(own.lanes[1], is_float=True)
    return int(decimal_kernels.add_lanes(rows, slots, lanes, limit, *columns))


def _take_back(pane: Pane, own: Accumulator, rows: Array, slots: Array, values: Array) -> None:
    if own.lanes is None:
        np.subtract.at(pane.column(own.column), slots[rows], values[rows])
        return
    opposite = np.empty_like(values)
    opposite[:, 0] = -values[:, 0]
    opposite[:, 1] = ~values[:, 1] + (values[:, 0] == 0)
    _add_lanes(pane, own, rows, slots, opposite, np.inf)  # sizes stay too large: rows go on, which ask for none


def widen(pane: Pane, own: Accumulator) -> None:
    """Fill the columns of lanes that a pane has got."""
    assert own.lanes is not None
    sums = pane.column(own.column)
    pane.column(own.lanes[0])[:] = sums >> 63
    pane.column(own.lanes[1], is_float=True)[:] = np.abs(sums.astype(np.float64))


def why_not(accumulators: Accumulators) -> str:
    """Return why sums have not been taken up."""
    return ROUNDED_DECIMALS if any(field.of_decimals for _, field in sums_of(accumulators)) else BEYOND_64_BITS


# --- bounds -----------------------------------------------------------------------------------------------------------


def bound_of_records(accumulators: Accumulators, columns: pa.RecordBatch, num_slices: int) -> float:
    """Return how much the records can add to any sum at most."""
    bound = 0.0
    for _, field in sums_of(accumulators):
        column = columns.column(field.index)
        if field.of_decimals:
            of_rows = sizes_of(lanes_of(column)) * _share(num_slices)
        else:
            of_rows = np.abs(field.ints_of(column).astype(np.float64))
        bound += float((of_rows[valid_mask(column)] if column.null_count else of_rows).sum())
    return bound


def bound_of_pane(accumulators: Accumulators, pane: Pane, num_slices: int) -> float:
    """Return what no sum of a pane is beyond."""
    bound = 0.0
    for own, field in sums_of(accumulators):
        if own.lanes is None:
            size = float(np.abs(pane.column(own.column).astype(np.float64)).sum())
        else:
            size = float(pane.column(own.lanes[1], is_float=True).sum())
        bound += size * (_share(num_slices) if field.of_decimals else 1.0)
    return bound


def _share(num_slices: int) -> float:
    """Return what makes a bound of sizes one of integers."""
    return SUM_MAX * _ROUNDED * num_slices / sum_size_max()


# --- what a checkpoint keeps ------------------------------------------------------------------------------------------


def fit(held: pa.Array) -> bool:
    """Whether these sums are integers of 64 bits."""
    lanes = lanes_of(held)
    return bool(np.array_equal(lanes[:, 0] >> 63, lanes[:, 1]))


def put(pane: Pane, own: Accumulator, slots: Array, held: pa.Array) -> None:
    """Take up sums of a chunk, which have room."""
    if own.lanes is None:
        pane.column(own.column)[slots] = units_of(held)
        return
    lanes = lanes_of(held)
    pane.column(own.column)[slots], pane.column(own.lanes[0])[slots] = lanes[:, 0], lanes[:, 1]
    pane.column(own.lanes[1], is_float=True)[slots] = sizes_of(lanes)


def column_of(rows: Array, own: Accumulator, field: AggregatedField, valid: Array | None = None) -> pa.Array:
    """Return sums of decimals as values."""
    held = np.ascontiguousarray(rows[:, own.column]) if own.lanes is None else lanes_in(rows, own)
    return field.column_of_ints("sum", held, valid)
