"""Top-N and last rows: chains of records by key."""

from __future__ import annotations

from engine.operators.warm_up import tables

__all__ = ["warm_up", "warm_up_operators"]


def warm_up() -> None:
    tables.warm_up()
    warm_up_operators()


def warm_up_operators() -> None:
    import numpy as np

    from engine.operators.top_kernels import order_of_chains, take_last, take_last_changes, take_top

    slots, lanes = np.zeros(2, np.int32), np.zeros((2, 2), np.int64)
    chains = np.zeros(1, np.int64), np.zeros(1, np.int64)
    places = np.zeros(2, np.int64), np.zeros(2, np.int64), np.zeros((2, 2), np.int64)
    out = np.empty((4, 4), np.int64)
    take_top(slots, lanes, (0, 0), (1, False), 1, chains, places, np.empty(2, np.int64), out)
    order_of_chains(*chains, places[0], 1, np.empty(1, np.int64), np.empty(1, np.int64))
    numbers, changes = np.zeros(1, np.int64), np.empty((4, 2), np.int64)
    take_last(slots, (0, 0), numbers, np.empty(4, np.int8), changes, np.empty(2, np.int32), np.empty(2, np.int64))
    by_slot = numbers, np.zeros(1, np.uint8), np.zeros(0, np.int64)
    given = np.empty(4, np.int8), changes, np.empty(2, np.int32), np.empty(2, np.int64)
    take_last_changes(slots, np.zeros(2, np.int8), (0, 0), by_slot, *given)
    _warm_up_segments()


def _warm_up_segments() -> None:
    import numpy as np

    from engine.operators.regular_join_kernels import mix_hashes  # in the same part as joins
    from engine.operators.top_segment_kernels import find_equal, order_of_segments, pack_segments, take_changes

    lanes, hashes, ones = np.zeros((2, 2), np.int64), np.zeros(2, np.uint64), np.ones(2, np.uint8)
    of_rows = np.zeros(2, np.int32), np.zeros(2, np.int8), lanes, hashes, ones
    places = np.zeros(2, np.int64), np.zeros((2, 2), np.int64), np.zeros(2, np.uint64)
    mix_hashes(hashes.copy(), np.zeros(2, np.int64))
    segments, arena, numbers = np.zeros((1, 3), np.int64), np.zeros(64, np.int64), np.zeros(2, np.int64)
    out = np.empty((8, 4), np.int64)
    take_changes(of_rows, (0, 0, 0, 0), (1, False), 1, segments, arena, places, numbers.copy(), numbers.copy(), out)
    find_equal(of_rows, segments, arena, places, np.empty((2, 2), np.int64))
    order_of_segments(segments, arena, 1, numbers.copy(), numbers.copy())
    pack_segments(segments, arena, 1, np.zeros(64, np.int64))
