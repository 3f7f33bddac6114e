"""The kernels of joins against loops over lists."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.operators import join_kernels as kernels

SLOTS = 4
ROWS = st.lists(st.tuples(st.integers(0, SLOTS - 1), st.integers(-9, 9)), max_size=12)


def chained(rows):
    links, ends = np.zeros((len(rows) + 1, 2), np.int64), np.zeros((SLOTS, 2), np.int64)
    links[: len(rows), 0] = [time for _, time in rows]
    slots = np.array([slot for slot, _ in rows], np.int32)
    half = len(rows) // 2
    assert kernels.link_rows(slots[:half], 0, links, ends) == half
    kernels.link_rows(slots[half:], half, links, ends)
    return links, ends


@settings(max_examples=200, deadline=None)
@given(ROWS, ROWS, st.integers(-5, 5), st.integers(0, 5), st.integers(0, 12), st.integers(-10, 10), st.integers(1, 5))
def test_pairs_of_chains_are_the_partners_within_the_bounds_in_order(
    rows, partners, lower, width, mark, floor, portion
):
    links, ends = chained(partners)
    slots, times = np.array([s for s, _ in rows], np.int32), np.array([t for _, t in rows], np.int64)
    out = np.empty(portion, np.int64), np.empty(portion, np.int64)
    found, at = [], (0, -1)
    while at[0] < len(rows):
        *reached, num = kernels.pairs_of_chains(
            slots, times, at, (lower, lower + width), (mark, floor), links, ends, *out
        )
        at = tuple(reached)
        found += list(zip(out[0][:num].tolist(), out[1][:num].tolist(), strict=True))
    assert found == [
        (row, partner)
        for row, (slot, time) in enumerate(rows)
        for partner, (own, other) in enumerate(partners)
        if own == slot and lower <= other - time <= lower + width and (partner >= mark or other > floor)
    ]
    # What is linked afterwards comes behind the rest, also where the head of a chain has been unlinked.
    links[len(partners)] = floor + 1, -1
    kernels.link_rows(np.array([2], np.int32), len(partners), links, ends)
    *_, num = kernels.pairs_of_chains(
        np.array([2], np.int32), np.zeros(1, np.int64), (0, -1), (-99, 99), (mark, floor), links, ends, *map(wide, out)
    )
    live = [i for i, (slot, time) in enumerate(partners) if slot == 2 and (i >= mark or time > floor)]
    assert num == len(live) + 1


def wide(_):
    return np.empty(100, np.int64)


@settings(max_examples=200, deadline=None)
@given(ROWS, ROWS, st.integers(1, 5))
def test_pairs_of_groups_are_the_product_of_each_slot(left, right, portion):
    grouped = []
    for rows in (left, right):
        starts, order = np.zeros(SLOTS + 1, np.int64), np.empty(len(rows), np.int64)
        kernels.order_by_slot(np.array([slot for slot, _ in rows], np.int32), starts, order)
        assert order.tolist() == sorted(range(len(rows)), key=lambda row: rows[row][0])
        grouped.append((starts, order))
    out = np.empty(portion, np.int64), np.empty(portion, np.int64)
    found, at = [], (0, -1, -1)
    while at[0] < SLOTS:
        *reached, num = kernels.pairs_of_groups(*grouped, at, *out)
        at = tuple(reached)
        found += list(zip(out[0][:num].tolist(), out[1][:num].tolist(), strict=True))
    assert found == [
        (i, j)
        for slot in range(SLOTS)
        for i, (own, _) in enumerate(left)
        if own == slot
        for j, (other, _) in enumerate(right)
        if other == slot
    ]
