"""Rows that wait: taken by partition, and what was made of them in the order in which they came."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from engine.core.records import ColumnBatch
from engine.operators import held_rows
from engine.operators.held_rows import HeldRows, Results
from tests.testing.operator_harness import CollectedOutput

NUM_PARTITIONS = 4


def held(rng, num_batches: int, *, stamped: bool) -> tuple[HeldRows, list[int]]:
    """Rows 0, 1, 2…, and the partition of each; a watermark of the rows before it after some batches."""
    rows, partitions = HeldRows(1 << 20, NUM_PARTITIONS), list[int]()
    for _ in range(num_batches):
        own = rng.integers(0, NUM_PARTITIONS, rng.integers(1, 9)).astype(np.uint16)
        numbers = np.arange(len(partitions), len(partitions) + own.size)
        rows.add(pa.record_batch([pa.array(numbers)], names=["n"]), numbers + 100 if stamped else None, own)
        partitions += own.tolist()
        for _ in range(rng.integers(0, 3)):
            rows.add_watermark(-len(partitions))
    return rows, partitions


def numbers_of(batch: ColumnBatch | None) -> list[int]:
    if batch is None:
        return []
    numbers = batch.columns.column(0).to_pylist()
    assert batch.timestamps_ms is None or batch.timestamps_ms.tolist() == [number + 100 for number in numbers]
    return numbers


@pytest.mark.parametrize("block_rows", [1, 7, 1000])
@pytest.mark.parametrize("stamped", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_rows_come_by_partition_and_results_in_their_order(seed, stamped, block_rows, monkeypatch):
    monkeypatch.setattr(held_rows, "_BLOCK_ROWS", block_rows)
    monkeypatch.setattr(held_rows, "BATCH_ROWS_MAX", 5)
    rng = np.random.default_rng(seed)
    rows, partitions = held(rng, 12, stamped=stamped)
    assert [number for batch in rows.batches() for number in numbers_of(batch)] == list(range(len(partitions)))
    assert rows.peek().parts() == rows.peek().parts()  # nothing is taken
    assert rows.num_rows == len(partitions)
    assert not rows.fits(None if stamped else np.zeros(1, np.int64))
    taken = rows.take()
    assert (rows.num_rows, rows.filled, rows.take_watermarks()) == (0, 0, [])
    by_place = sorted(range(len(partitions)), key=lambda number: partitions[number])
    for cut in {*range(0, len(partitions), 4), len(partitions)}:  # so many have been taken up
        results, left = Results(taken), cut
        for number, begin, end in taken.parts():
            columns, stamps, numbers = taken.of_partition(number)
            assert numbers.tolist() == numbers_of(ColumnBatch(columns, stamps)) == by_place[begin:end]
            if left:
                results.emit(ColumnBatch(columns.slice(0, left), None if stamps is None else stamps[:left]))
            left = max(0, left - (end - begin))
        assert results.num_rows == cut
        if cut < len(partitions):
            assert numbers_of(taken.as_they_came(cut)) == sorted(by_place[cut:])
        out = CollectedOutput()
        expected = sorted(by_place[:cut])
        for _ in results.emit_in_order(out):
            sent = [number for batch in out.batches for number in numbers_of(batch)]
            assert sent + numbers_of(results.unemitted()) == expected
        assert results.unemitted() is None
        assert max(map(len, out.batches), default=0) <= 5
        assert [number for batch in out.batches for number in numbers_of(batch)] == expected
        before = 0
        for step in out.story:
            if isinstance(step, int):
                assert step == -before
            else:
                before += len(step)
        assert out.watermarks_ms == ([time_ms for _, time_ms in taken.watermarks] if cut == len(partitions) else [])
