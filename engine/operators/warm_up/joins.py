"""Interval, regular and window joins: chains of records, groups of them, and the slices of windows."""

from __future__ import annotations

from engine.operators.warm_up import tables

__all__ = ["warm_up", "warm_up_operators"]


def warm_up() -> None:
    tables.warm_up()
    warm_up_operators()


def warm_up_operators() -> None:
    import numpy as np

    from engine.operators import join_kernels as kernels
    from engine.operators import regular_join_kernels as regular
    from engine.operators.warm_up.windows import warm_up_panes

    slots, times_ms = np.zeros(2, np.int32), np.zeros(2, np.int64)
    links, ends = np.zeros((2, 2), np.int64), np.zeros((1, 2), np.int64)
    kernels.link_rows(slots, 0, links, ends)
    out = np.empty(1, np.int64), np.empty(1, np.int64)
    kernels.pairs_of_chains(slots, times_ms, (0, -1), (0, 0), (0, 0), links, ends, *out)
    codes = np.zeros(2, np.uint64)
    rows = codes, times_ms, times_ms, times_ms, times_ms
    kernels.pairs_of_codes(rows, rows[:3], (0, 0, -1), (0, 0), (0, 1), 0, *out)
    found = np.empty(4, np.int8), np.empty(4, np.int64), np.empty(4, np.int64)
    kernels.changes_of_chains(slots, np.zeros(2, np.uint8), (0, 0, -1), (True, True), links, ends, *found)
    hashes, bytes_, removed = np.zeros(2, np.uint64), np.zeros(2, np.uint8), np.empty(2, np.int64)
    regular.mix_hashes(hashes, times_ms)
    given = slots, bytes_, bytes_, hashes, 0, regular.LIVES_ON
    regular.find_removed(*given, links, ends, hashes, removed, times_ms.copy())
    touched = np.zeros(2, np.int32)
    regular.settle_chains(slots, regular.LIVES_ON, (0, 0), links, ends, touched)
    regular.partners_of_rows(slots, 0, regular.LIVES_ON, links, ends, *out)
    pairs = np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.uint8)
    changes = np.empty(4, np.int8), np.empty(4, np.int64), np.empty(4, np.uint8), np.empty(4, np.int64)
    numbers = np.zeros(2, np.int64)
    regular.changes_of_pairs(
        bytes_, np.zeros(2, np.int8), (0, 1), pairs, (True, True), (0, 0), links, touched, numbers, numbers, changes
    )
    group = np.zeros(2, np.int64), np.empty(2, np.int64)
    kernels.order_by_slot(slots, *group)
    kernels.pairs_of_groups(group, group, (0, -1, -1), *out)
    warm_up_panes()
