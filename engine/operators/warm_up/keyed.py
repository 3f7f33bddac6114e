"""Keyed aggregates: running sums, minima, maxima, and records that are chosen."""

from __future__ import annotations

from engine.operators.warm_up import tables

__all__ = ["warm_up", "warm_up_operators"]


def warm_up() -> None:
    tables.warm_up()
    warm_up_operators()


def warm_up_operators() -> None:
    import numpy as np

    from engine.operators import (
        column_aggregate_operator,  # noqa: F401 - slots have it from here
        decimal_kernels,
    )
    from engine.operators import column_kernels as kernels
    from engine.operators.column_choice import ChosenRows
    from engine.operators.record_choice import RecordChoice

    slots, first = np.zeros(2, np.int32), np.zeros(1, np.int32)
    for values in (np.zeros(2, np.int64), np.zeros(2, np.float64)):
        is_float = values.dtype == np.float64
        add = kernels.running_sum_of_floats if is_float else kernels.running_sum_of_ints
        for kernel in (add, kernels.running_min, kernels.running_max):
            kernel(slots, values, np.zeros(1, values.dtype), np.empty(2, values.dtype))
        choice = RecordChoice.of_kind("max_by", 0)
        ChosenRows(choice).choose(slots, first, values, np.zeros(1, values.dtype))
    lanes = np.zeros((2, 2), np.int64)
    limit = np.int64(0), np.int64(1)
    decimal_kernels.running_sum_of_lanes(slots, lanes, limit, np.zeros((1, 2), np.int64), np.empty((2, 2), np.int64))
    for kernel in (decimal_kernels.running_min_of_lanes, decimal_kernels.running_max_of_lanes):
        kernel(slots, lanes, np.zeros((1, 2), np.int64), np.empty((2, 2), np.int64))
    ChosenRows(choice).choose(slots, first, lanes, np.zeros((1, 2), np.int64))
