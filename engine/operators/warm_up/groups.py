"""Running aggregates of changelogs."""

from __future__ import annotations

from engine.operators.warm_up import tables

__all__ = ["warm_up", "warm_up_operators"]


def warm_up() -> None:
    tables.warm_up()
    warm_up_operators()


def warm_up_operators() -> None:
    import numpy as np

    from engine.operators.group_kernels import count_groups, count_values, sum_values

    slots, kinds, signs = np.zeros(1, np.int32), np.zeros(1, np.int8), np.zeros(1, np.int8)
    nums, counts, rows = np.zeros((1, 2), np.int64), np.zeros((1, 2), np.int64), np.zeros(1, np.int64)
    valid = np.ones(1, np.bool_)
    count_groups(slots, kinds, 1, np.zeros(1, np.int64), np.zeros(1, np.int64), signs, nums, rows)
    count_values(slots, signs, nums, valid, np.zeros(1, np.int64), counts)
    for kind in (np.int64, np.float64):
        sum_values(slots, signs, counts, np.zeros(1, kind), valid, np.zeros(1, kind), np.zeros((1, 2), kind))
