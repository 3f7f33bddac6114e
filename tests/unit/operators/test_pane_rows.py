"""Rows of a batch by pane of event time: those that belong there, rising, whatever the times are."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.operators.pane_rows import rows_of_panes

TIMES = st.one_of(
    st.lists(st.integers(-30, 30), max_size=40),  # one pane, two, a few
    st.lists(st.integers(-2000, 2000), max_size=200),  # more panes than one part has
    st.lists(st.sampled_from([-(2**62), -1, 0, 9, 10, 2**62]), max_size=9),
)


@settings(max_examples=300)
@given(TIMES, st.integers(1, 40), st.integers(-5, 5))
def test_each_row_is_once_in_the_pane_of_its_time(times: list[int], slice_ms: int, offset_ms: int):
    times_ms = np.array(times, np.int64)
    seen: list[int] = []
    at = 0
    for begin, end, panes in rows_of_panes(times_ms, slice_ms, offset_ms):
        assert begin == at < end
        at = end
        first: list[int] = []
        for start, rows in panes:
            assert rows.dtype == np.int32
            numbers = rows.tolist()
            assert numbers == sorted(numbers)
            assert numbers
            assert all(begin <= row < end for row in numbers)
            assert (start - offset_ms) % slice_ms == 0
            assert all(start <= times[row] < start + slice_ms for row in numbers)
            first.append(numbers[0])
            seen += numbers
        assert first == sorted(first)  # panes as they come first
    assert at == len(times)
    assert sorted(seen) == list(range(len(times)))
