from __future__ import annotations

import math
import operator

import numpy as np
import pyarrow as pa
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from engine.operators import column_kernels as kernels
from engine.runtime.exchange.column_hash import subtask_of_rows
from engine.state.hash_kernels import channels_of_ints, count_by_channel, order_by_channel, write_rows
from engine.state.key_groups import key_group_of, subtask_of_key_group

QUICK = settings(max_examples=40, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
INT64 = st.integers(-(2**63), 2**63 - 1)
NUMBERS = st.one_of(st.integers(-5, 5), INT64)
FLOATS = st.one_of(st.sampled_from([math.nan, 0.0, -0.0, math.inf]), st.floats(width=32))
ROWS = st.lists(st.tuples(st.integers(0, 3), NUMBERS, FLOATS), max_size=12)


def arrays(rows):
    slots = np.array([row[0] for row in rows], np.int32)
    return slots, np.array([row[1] for row in rows], np.int64), np.array([row[2] for row in rows], np.float64)


@QUICK
@given(st.lists(INT64, max_size=40), st.integers(1, 70), st.integers(128, 1000))
def test_channels_follow_the_law_of_key_groups(keys, num_channels, max_parallelism):
    channels = np.empty(len(keys), np.uint16)
    channels_of_ints(np.array(keys, np.int64), max_parallelism, num_channels, channels)
    expected = [subtask_of_key_group(key_group_of(key, max_parallelism), num_channels, max_parallelism) for key in keys]
    assert channels.tolist() == expected
    column = pa.array([*keys, None], pa.int64())  # a null takes the other way to the same law
    assert subtask_of_rows([column], num_channels, max_parallelism, is_tuple=False).tolist()[:-1] == expected


@QUICK
@given(st.lists(st.integers(0, 6), max_size=60))
def test_rows_are_ordered_by_channel_and_keep_their_order_within(channels):
    order, ends = np.empty(len(channels), np.int32), np.zeros(7, np.int64)
    order_by_channel(np.array(channels, np.uint16), ends, order)
    assert order.tolist() == sorted(range(len(channels)), key=channels.__getitem__)
    assert ends.tolist() == [sum(channel <= c for channel in channels) for c in range(7)]


@QUICK
@given(st.integers(1, 4).flatmap(lambda num: st.lists(st.integers(0, num - 1), max_size=40).map(lambda c: (num, c))))
def test_rows_are_written_behind_those_of_their_channel_or_not_at_all(given_):
    num_channels, channels = given_
    room = 12
    begin = np.arange(num_channels) * room
    place, counts = begin.copy(), np.full(num_channels, -1)
    values = [np.arange(len(channels), dtype=f"u{width}") for width in (1, 2, 4, 8)]
    out = [np.full(num_channels * room, 99, own.dtype) for own in values]
    where = np.array([(a.ctypes.data, b.ctypes.data, a.itemsize) for a, b in zip(values, out)], np.int64)
    channel_of_row, place_of_row = np.array(channels, np.uint16), np.empty(len(channels), np.int32)
    is_written = write_rows(channel_of_row, place, begin + room, counts, place_of_row, where)
    expected = [[row for row, channel in enumerate(channels) if channel == c] for c in range(num_channels)]
    assert counts.tolist() == list(map(len, expected))
    assert is_written == (max(map(len, expected)) <= room)
    if not is_written:
        expected = [[] for _ in range(num_channels)]
    assert (place - begin).tolist() == list(map(len, expected))
    for own in out:
        assert own.tolist() == [value for rows in expected for value in (*rows, *[99] * (room - len(rows)))]
    count_by_channel(channel_of_row, counts)
    assert counts.tolist() == [channels.count(channel) for channel in range(num_channels)]


@QUICK
@given(st.lists(st.integers(-50, 50), max_size=40), st.integers(1, 9), st.integers(-8, 8), st.integers(1, 5))
def test_panes_are_found_until_there_is_no_room_for_another(times_ms, size, offset, room):
    starts, out = np.empty(room, np.int64), np.empty(len(times_ms), np.int32)
    row, num_panes = kernels.panes_of_times(np.array(times_ms, np.int64), 0, (size, offset), starts, 0, out)
    expected = [time_ms - (time_ms - offset) % size for time_ms in times_ms]
    assert [int(starts[pane]) for pane in out[:row]] == expected[:row]
    assert len(set(expected[:row])) == num_panes <= room
    assert row == len(times_ms) or (num_panes == room and expected[row] not in expected[:row])


LAWS = {
    (sign, negated): (lambda new, held, compare=compare, negated=negated: compare(new, held) != negated)
    for sign, compare in enumerate((operator.lt, operator.le, operator.gt, operator.ge))
    for negated in (False, True)
}


@QUICK
@given(ROWS, st.sampled_from(list(LAWS)), st.booleans())
def test_records_are_chosen_row_by_row(rows, law, of_floats):
    slots, ints, floats = arrays(rows)
    values = floats if of_floats else ints
    held, numbers = np.zeros(4, values.dtype), np.array([7, 3, 0, 9])  # rows of this batch have the numbers from 10 on
    after, chosen = np.empty_like(values), np.empty(slots.size, np.int64)
    kernels.choose_running(slots, values, law, held, numbers, 10, after, chosen)
    best, row_of_slot, expected = [values.dtype.type(0)] * 4, [-1] * 4, []
    for row, slot in enumerate(slots.tolist()):
        if LAWS[law](values[row], best[slot]):
            best[slot], row_of_slot[slot] = values[row], row
        expected.append((repr(best[slot]), row_of_slot[slot]))
    assert list(zip(map(repr, after), chosen.tolist(), strict=True)) == expected
    assert list(map(repr, held)) == list(map(repr, best))

    picked = np.arange(slots.size, dtype=np.int32)
    acc, taken = np.zeros((4, 3), values.dtype)[:, 1], np.empty(slots.size, np.int32)
    num_taken = kernels.choose_of_rows(picked, slots, values, law, acc, taken)
    assert taken[:num_taken].tolist() == [row for row, (_, of) in enumerate(expected) if of == row]
    assert list(map(repr, acc)) == list(map(repr, best))


@QUICK
@given(ROWS)
def test_counting_lists_slots_that_begin_with_their_first_row(rows):
    slots, _, _ = arrays(rows)
    acc = np.array([0, 2, 0, 0], np.int64)
    begun_slots, begun_rows = np.empty(slots.size, np.int32), np.empty(slots.size, np.int32)
    picked = np.arange(0, slots.size, 2, dtype=np.int32)
    begun = kernels.count_rows(picked, slots, acc, begun_slots, begun_rows)
    seen = [int(slots[row]) for row in picked]
    first = {slot: int(picked[i]) for i, slot in reversed(list(enumerate(seen))) if slot != 1}
    assert dict(zip(begun_slots[:begun].tolist(), begun_rows[:begun].tolist(), strict=True)) == first
    assert acc.tolist() == [seen.count(slot) + (2 if slot == 1 else 0) for slot in range(4)]


def lowered(held, value):
    return value if value < held else held


def lowered_or_nan(held, value):
    return value if value < held or value != value else held


def raised(held, value):
    return value if value > held else held


def raised_or_nan(held, value):
    return value if value > held or value != value else held


TWINS = [
    (kernels.add_floats, lambda held, value: held + value, None),
    (kernels.lower_to, lowered, kernels.running_min),
    (kernels.lower_to_or_nan, lowered_or_nan, None),
    (kernels.raise_to, raised, kernels.running_max),
    (kernels.raise_to_or_nan, raised_or_nan, None),
    (kernels.put_last, lambda held, value: value, None),
]


@QUICK
@given(ROWS)
def test_accumulating_kernels_do_what_their_twins_do(rows):
    slots, ints, floats = arrays(rows)
    every = np.arange(slots.size, dtype=np.int32)
    for values in (ints, floats):
        for kernel, twin, running in TWINS:
            if kernel is kernels.add_floats and values is ints:
                continue
            acc = np.ones(4, values.dtype)
            held, after = acc.tolist(), []
            for slot, value in zip(slots.tolist(), values.tolist(), strict=True):
                held[slot] = twin(held[slot], value)
                after.append(held[slot])
            kernel(every, slots, values, acc)
            assert repr(acc.tolist()) == repr(held)
            if running is not None:
                acc, out = np.ones(4, values.dtype), np.empty(slots.size, values.dtype)
                running(slots, values, acc, out)
                assert repr(out.tolist()) == repr(after)


@QUICK
@given(ROWS)
def test_sums_stop_before_they_leave_64_bits(rows):
    slots, ints, _ = arrays(rows)
    held, after = [0] * 4, []
    for slot, value in zip(slots.tolist(), ints.tolist(), strict=True):
        if not -(2**63) <= held[slot] + value < 2**63:
            break
        held[slot] += value
        after.append(held[slot])
    sums, out = np.zeros(4, np.int64), np.empty(slots.size, np.int64)
    assert kernels.running_sum_of_ints(slots, ints, sums, out) == len(after)
    assert sums.tolist() == held
    assert out[: len(after)].tolist() == after
    sums = np.zeros(4, np.int64)
    assert kernels.add_ints(np.arange(slots.size, dtype=np.int32), slots, ints, sums) == len(after)
    assert sums.tolist() == held
