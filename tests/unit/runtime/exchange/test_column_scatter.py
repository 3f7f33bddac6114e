"""Rows of plain columns laid out by channel: the same records as cut one by one, in batches of a good size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.records import Batch, ColumnBatch, rows_of
from engine.runtime.exchange import column_scatter
from engine.runtime.exchange.column_scatter import ColumnScatter

BATCH_ROWS = 16
KINDS = {
    "bytes": [pa.int8(), pa.uint8()],
    "halves": [pa.int16(), pa.uint16(), pa.float16()],
    "words": [pa.int32(), pa.float32(), pa.date32()],
    "numbers": [pa.int64(), pa.float64()],
    "times": [pa.timestamp("us"), pa.uint64(), pa.int8()],
}


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(column_scatter, "BATCH_ROWS_MAX", BATCH_ROWS)


def batch_of(numbers: list[int], shape: str = "numbers", stamped: bool = False, skipped: int = 0) -> ColumnBatch:
    """A record a number; it is a slice of a larger batch if ``skipped``."""
    values = np.array([0] * skipped + numbers, np.int64)
    arrays = [pa.array(values).cast(pa.int64()) for _ in KINDS[shape]]
    arrays = [_cast(array, kind) for array, kind in zip(arrays, KINDS[shape], strict=True)]
    columns = pa.RecordBatch.from_arrays(arrays, names=[f"f{i}" for i in range(len(arrays))])
    whole = ColumnBatch(columns, values * 10 if stamped else None)
    return whole.slice(skipped, len(values))


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_floating(kind):
        return pa.array(array.to_numpy().astype(kind.to_pandas_dtype()))
    return array.cast(pa.int32()).cast(kind) if kind == pa.date32() else array.cast(kind)


def records(batch: Batch) -> list[Any]:
    rows = rows_of(batch)
    return list(zip(rows.rows, rows.timestamps_ms or [None] * len(rows.rows), strict=True))


ADDED = st.tuples(
    st.integers(1, 40), st.sampled_from(sorted(KINDS)), st.booleans(), st.integers(0, 3), st.integers(0, 2**32)
)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.one_of(st.just("take"), ADDED), max_size=12), st.integers(1, 6), st.booleans())
def test_each_channel_gets_its_records_in_their_order_whatever_is_held(
    steps: list[Any], num_channels: int, gathers: bool
):
    scatter = ColumnScatter(num_channels, gathers=gathers)
    expected: list[list[Any]] = [[] for _ in range(num_channels)]
    found: list[list[Any]] = [[] for _ in range(num_channels)]
    begun = 0
    for step in [*steps, "take"]:
        if step == "take":
            parts = scatter.take()
        else:
            size, shape, stamped, skipped, seed = step
            batch = batch_of([n % 100 for n in range(begun, begun + size)], shape, stamped, skipped)
            begun += size
            rng = np.random.default_rng(seed)
            # Evenly, all to one, or something between.
            channels = rng.integers(0, rng.integers(1, num_channels + 1), size).astype(np.uint16)
            for record, channel in zip(records(batch), channels.tolist(), strict=True):
                expected[channel].append(record)
            added = scatter.add(batch, channels)
            assert added is not None
            parts = added
            if not gathers:
                assert sum(len(part) for _, part in parts) == size
        for channel, part in parts:
            assert 0 < len(part) <= BATCH_ROWS * 1.25 or part.columns.num_rows == len(part) <= 40
            found[channel] += records(part)
    assert found == expected


def test_parts_become_as_large_as_batches_are():
    scatter = ColumnScatter(4, gathers=True)
    channels = np.arange(BATCH_ROWS, dtype=np.uint16) % 4
    sizes = []
    for _ in range(8):
        sizes.append([len(part) for _, part in scatter.add(batch_of(list(range(BATCH_ROWS))), channels) or ()])
    assert sizes == [[], [], [], [BATCH_ROWS] * 4] * 2


def test_a_batch_that_goes_to_one_channel_is_handed_on_as_it_is():
    batch = batch_of(list(range(100)))
    [(channel, part)] = ColumnScatter(3, gathers=True).add(batch, np.full(100, 2, np.uint16)) or ()
    assert (channel, part) == (2, batch)


def test_a_channel_that_gets_nearly_all_does_not_get_it_in_one_piece():
    channels = np.zeros(70, np.uint16)
    channels[3] = 1
    parts = ColumnScatter(2, gathers=True).add(batch_of(list(range(70))), channels) or []
    sizes = [len(part) for channel, part in parts if channel == 0]
    assert sum(sizes) == 69
    assert max(sizes) <= BATCH_ROWS
    assert min(sizes) >= BATCH_ROWS // 2


def test_few_rows_do_not_hold_on_to_the_memory_of_many():
    scatter = ColumnScatter(2, gathers=True)
    assert scatter.add(batch_of([1, 2, 3]), np.array([0, 1, 0], np.uint16)) == []
    first = scatter.take()
    assert [part.columns.column(0).buffers()[1].size for _, part in first] == [24, 24]
    scatter.add(batch_of([7, 8]), np.array([1, 1], np.uint16))  # into the same memory
    assert [records(part) for _, part in first] == [[((1, 1.0), None), ((3, 3.0), None)], [((2, 2.0), None)]]
    assert [(channel, records(part)) for channel, part in scatter.take()] == [(1, [((7, 7.0), None), ((8, 8.0), None)])]
    assert scatter.take() == []


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", "b"]),
        pa.array([1, None]),
        pa.array([True, False]),
        pa.array(["a", "b"]).dictionary_encode().cast(pa.dictionary(pa.int8(), pa.string())),
        pa.array([1, 2]).dictionary_encode(),
        pa.array([[1], [2]]),
        pa.array([1, 2], pa.decimal128(5)),
        pa.nulls(2),
    ],
)
def test_other_columns_are_left_alone(column: pa.Array):
    scatter = ColumnScatter(2, gathers=True)
    held = batch_of([5])
    assert scatter.add(held, np.zeros(1, np.uint16)) == []
    mixed = ColumnBatch(pa.record_batch({"n": pa.array([1, 2]), "c": column}))
    assert scatter.add(mixed, np.zeros(2, np.uint16)) is None
    assert [records(part) for _, part in scatter.take()] == [records(held)]


def test_wide_records_are_not_gathered_without_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(column_scatter, "_GATHERED_BYTES_MAX", 5 * 16)
    scatter = ColumnScatter(2, gathers=True)
    channels = np.array([0, 1], np.uint16)
    counts = [sum(len(part) for _, part in scatter.add(batch_of([1, 2]), channels) or ()) for _ in range(6)]
    assert counts == [0, 0, 6, 0, 0, 6]
