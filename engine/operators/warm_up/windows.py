"""Windows of event time: panes, accumulators of numbers, records that are chosen. Distinct values need no more than
tables of pairs."""

from __future__ import annotations

from functools import cache

from engine.operators.warm_up import tables

__all__ = ["warm_up", "warm_up_accumulators", "warm_up_operators", "warm_up_panes"]


def warm_up() -> None:
    tables.warm_up()
    warm_up_operators()


def warm_up_operators() -> None:
    warm_up_panes()
    warm_up_accumulators("int32")


@cache
def warm_up_panes() -> None:
    """Which rows are of which pane."""
    import numpy as np

    from engine.operators import column_kernels as kernels

    times_ms, starts, panes = np.arange(2), np.empty(32, np.int64), np.empty(2, np.int32)
    kernels.panes_of_times(times_ms, 0, (10, 0), starts, 0, panes)
    kernels.rows_by_pane(panes, 0, 2, np.empty(1, np.int64), np.empty(2, np.int32))
    kernels.rows_of_two_panes(times_ms, 1, np.empty(3, np.int32), np.empty(3, np.int32))


@cache
def warm_up_accumulators(slot_type: str) -> None:
    """``slot_type``: keys have slots of 32 bits, sessions numbers of 64."""
    import numpy as np

    from engine.operators import column_kernels as kernels
    from engine.operators import decimal_kernels
    from engine.operators.window_panes import Pane

    rows, slots = np.zeros(2, np.int32), np.zeros(2, slot_type)
    out = np.empty(2, np.int32), np.empty(2, np.int32)
    pane = Pane(4)
    pane.reserve(1)
    kernels.count_rows(rows, slots, pane.column(0), *out)
    for values in (np.zeros(2, np.int64), np.zeros(2, np.float64)):
        is_float = values.dtype == np.float64
        held = pane.column(1, is_float)
        add = kernels.add_floats if is_float else kernels.add_ints
        compared = (kernels.lower_to, kernels.raise_to, kernels.lower_to_or_nan, kernels.raise_to_or_nan)
        for kernel in (add, *compared, kernels.put_last):
            kernel(rows, slots, values, held)
        kernels.choose_of_rows(rows, slots, values, (0, False), held, out[0])
    codes, ranks = np.zeros(2, np.int64), np.zeros(2, np.int32)
    kernels.choose_codes_of_rows(rows, slots, codes, ranks, (0, False), pane.column(1), out[0])
    sums = pane.column(1), pane.column(2), pane.column(3, is_float=True)
    decimal_kernels.add_lanes(rows, slots, np.zeros((2, 2), np.int64), 1.0, *sums)
