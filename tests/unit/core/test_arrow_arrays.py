"""Conversions without pandas beside pyarrow's own."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.arrow_arrays import arrow_of, bools_of, numbers_of

DTYPES = ["bool", "int8", "uint8", "int16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64"]
OTHERS = ["datetime64[ms]", "U3", "O"]


@st.composite
def arrays(draw: st.DrawFn, dtypes: list[str]) -> np.ndarray:
    dtype = draw(st.sampled_from(dtypes))
    numbers = np.array(draw(st.lists(st.integers(0, 100), max_size=40)), np.int64)
    values = (numbers % 2 == 0) if dtype == "bool" else numbers.astype(dtype)
    if dtype.startswith("float") and values.size:
        values[0] = np.nan
    step = draw(st.sampled_from([1, 2, -1]))
    return values[::step]


@settings(deadline=None)
@given(arrays(DTYPES + OTHERS), st.randoms(use_true_random=False), st.booleans())
def test_an_array_is_the_one_that_pyarrow_makes(values, random, masked):
    mask = np.array([random.random() < 0.3 for _ in range(values.size)], bool) if masked else None
    made = arrow_of(values, mask=mask)
    made.validate(full=True)
    expected = pa.array(values, mask=mask)
    assert made.type == expected.type
    assert made.null_count == expected.null_count
    assert str(made.to_pylist()) == str(expected.to_pylist())  # a NaN is not equal to itself


def test_another_type_is_made_as_pyarrow_makes_it():
    assert arrow_of(np.arange(3), pa.int32()).equals(pa.array([0, 1, 2], pa.int32()))
    assert arrow_of(np.arange(3), pa.int64()).equals(pa.array([0, 1, 2]))


def test_numbers_are_shared_not_copied():
    values = np.arange(5)
    assert arrow_of(values).buffers()[1].address == values.ctypes.data


@settings(deadline=None)
@given(arrays(DTYPES), st.integers(0, 9), st.integers(0, 9))
def test_values_come_back_from_any_slice(values, start, length):
    column = arrow_of(values).slice(start, length)
    back = bools_of(column) if values.dtype == bool else numbers_of(column)
    assert back.dtype == values.dtype
    np.testing.assert_array_equal(back, values[start : start + length])


def test_columns_without_memory_have_their_length():
    assert numbers_of(pa.array([], pa.int16())).tolist() == []
    assert bools_of(pa.array([], pa.bool_())).tolist() == []
    assert numbers_of(pa.nulls(2, pa.int64())).size == 2
    assert bools_of(pa.nulls(2, pa.bool_())).size == 2
