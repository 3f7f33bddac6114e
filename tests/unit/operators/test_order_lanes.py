"""Lanes are in the order of Python's values, for all types that a top-N can be ordered by."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.operators.order_lanes import TEXT_BYTES_MAX, can_order, lanes_needed, order_lanes, widened

TEXTS = st.text(st.sampled_from("a\0bä€\uffff\U0001f600"), max_size=12)
FLOATS = st.floats(allow_nan=True, width=16)
VALUES = {
    pa.string(): TEXTS,
    pa.large_string(): TEXTS,
    pa.binary(): st.binary(max_size=20),
    pa.binary(3): st.binary(min_size=3, max_size=3),
    pa.decimal128(38, 4): st.decimals(-(10**33), 10**33, places=4, allow_nan=False),
    pa.decimal128(5, 2): st.decimals(-999, 999, places=2, allow_nan=False),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float64(): FLOATS,
    pa.float16(): FLOATS,
    pa.bool_(): st.booleans(),
    pa.date32(): st.dates(date(1900, 1, 1), date(2100, 1, 1)),
    pa.timestamp("us", "UTC"): st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),
}


def compare(a, b):
    """Null first, NaN last."""
    x, y = ((v is not None, v != v, 0 if v is None or v != v else v) for v in (a, b))
    return 0 if x == y else -1 if x < y else 1


@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("kind", VALUES, ids=str)
def test_lanes_are_in_the_order_of_the_values(kind, ascending):
    assert can_order(kind)

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.one_of(st.none(), VALUES[kind]), min_size=2, max_size=10), st.integers(0, 2), st.integers(0, 5))
    def check(values, skipped, more):
        given_ = [np.float16(v) if kind == pa.float16() and v is not None else v for v in values]
        column = pa.array([*given_[:skipped], *given_], kind).slice(skipped)
        needed = lanes_needed(column)
        lanes = order_lanes(column, needed, ascending=ascending)
        assert lanes.shape == (len(values), needed)
        keys = list(map(tuple, lanes.tolist()))
        for a, one in zip(values, keys, strict=True):
            for b, other in zip(values, keys, strict=True):
                expected = compare(a, b) if ascending else compare(b, a)
                assert (one > other) - (one < other) == expected
        if kind in (pa.string(), pa.large_string(), pa.binary()):
            wide = order_lanes(column, needed + more, ascending=ascending)
            assert np.array_equal(widened(lanes, needed + more, ascending=ascending), wide)

    check()


def test_lanes_grow_by_powers_of_two_up_to_the_longest_text_that_is_taken():
    needed = [lanes_needed(pa.array(["a" * length])) for length in (0, 1, 8, 9, 16, 17, 33, TEXT_BYTES_MAX)]
    assert needed == [3, 3, 3, 4, 4, 6, 10, 34]
    assert lanes_needed(pa.array(["a", "a" * (TEXT_BYTES_MAX + 1)])) is None
    assert lanes_needed(pa.array([Decimal(1)])) == 3
    assert not can_order(pa.list_(pa.int64()))
