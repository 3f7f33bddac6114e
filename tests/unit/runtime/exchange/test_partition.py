"""Result partitions: when buffers leave, how much may wait, what a file gives back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine.core.ids import IntermediateDatasetID, ResultPartitionID
from engine.core.records import BATCH_ROWS_MAX, ColumnBatch, RowBatch, rows_of
from engine.protocol.control import ResultPartitionDescriptor
from engine.protocol.stream import END_OF_DATA, Records, Watermark
from engine.runtime.exchange.partition import (
    QUEUE_BUFFERS_MAX,
    BlockingPartition,
    PartitionRegistry,
    PipelinedPartition,
    SubpartitionView,
)
from engine.runtime.exchange.wire import Decoder, Frame

SEGMENT = 1000


def descriptor(num: int = 1, blocking: bool = False) -> ResultPartitionDescriptor:
    dataset_id = IntermediateDatasetID.from_text("edge")
    return ResultPartitionDescriptor(ResultPartitionID.of(dataset_id, 0, 0), dataset_id, num, blocking, 100)


def pipelined(num: int = 1) -> tuple[PipelinedPartition, list[SubpartitionView], list[int]]:
    partition = PipelinedPartition(descriptor(num), SEGMENT)
    calls: list[int] = []
    views = [partition.open_view(i, lambda i=i: calls.append(i)) for i in range(num)]
    return partition, views, calls


def drain(view: SubpartitionView) -> list[Any]:
    decoder, found = Decoder(), []
    while view.has_next():
        item = view.poll()
        if isinstance(item, Frame):
            item = decoder.decode(item.kind, item.buffers[0])
            if item is None:
                continue
        found.append(item.batch if isinstance(item, Records) else item)
    return found


def test_rows_wait_until_the_buffer_is_full():
    partition, (view,), calls = pipelined()
    partition.add(0, RowBatch([("word", 1)] * 10))
    assert (view.has_next(), calls) == (False, [])
    partition.add(0, RowBatch([("word", 1)] * 60))
    assert calls == [0]
    assert [len(batch) for batch in drain(view)] == [70]


def test_a_flushed_buffer_goes_on_filling_until_it_is_taken():
    partition, (view,), calls = pipelined()
    for i in range(3):
        partition.add(0, RowBatch([i]))
        partition.flush()
    assert drain(view) == [RowBatch([0, 1, 2])]
    assert calls == [0, 0, 0]
    partition.flush()
    assert not view.has_next()


def test_a_large_batch_is_cut_into_buffers_of_about_the_segment_size():
    partition, (view,), _ = pipelined()
    rows = [("word", i) for i in range(5000)]
    partition.add(0, RowBatch(rows, list(range(5000))))
    partition.flush()
    batches = drain(view)
    assert [row for batch in batches for row in batch.rows] == rows
    assert [stamp for batch in batches for stamp in batch.timestamps_ms] == list(range(5000))
    assert 20 < len(batches) < 200


def test_a_record_larger_than_a_buffer_is_one_buffer():
    partition, (view,), _ = pipelined()
    partition.add(0, RowBatch([b"x" * 10 * SEGMENT] * 3))
    assert [len(batch) for batch in drain(view)] == [1, 1, 1]


def test_tiny_rows_are_bounded_by_number():
    partition = PipelinedPartition(descriptor(), 100 << 20)
    view = partition.open_view(0, lambda: None)
    for _ in range(3):
        partition.add(0, RowBatch([None] * BATCH_ROWS_MAX))
    assert max(len(batch) for batch in drain(view)) <= 2 * BATCH_ROWS_MAX


def test_events_close_the_buffer_and_keep_their_place():
    partition, views, _ = pipelined(2)
    partition.add(0, RowBatch([1]))
    partition.add_event(Watermark(5))
    partition.add(0, RowBatch([2]))
    partition.add_event(END_OF_DATA)
    assert drain(views[0]) == [RowBatch([1]), Watermark(5), RowBatch([2]), END_OF_DATA]
    assert drain(views[1]) == [Watermark(5), END_OF_DATA]


def test_there_is_room_until_one_subpartition_has_its_buffers_full():
    partition, views, _ = pipelined(2)
    for _ in range(QUEUE_BUFFERS_MAX):
        assert partition.has_room()
        partition.add(1, RowBatch([b"x" * 2 * SEGMENT]))
    assert not partition.has_room()
    views[1].poll()
    assert partition.has_room()


def test_only_records_need_credit():
    partition, (view,), _ = pipelined()
    partition.add(0, RowBatch([1]))
    assert not view.needs_credit()  # not flushed: nothing is there
    partition.add_event(END_OF_DATA)
    assert view.needs_credit()
    view.poll()
    assert not view.needs_credit()


def test_shapes_and_stamps_are_not_mixed_in_a_batch():
    partition, (view,), _ = pipelined()
    columns = ColumnBatch(pa.record_batch({"a": [1]}))
    batches = [RowBatch([1]), RowBatch([2], [2]), columns, ColumnBatch(pa.record_batch({"a": [2]}), np.array([2]))]
    for batch in batches:
        partition.add(0, batch)
    partition.flush()
    found = drain(view)
    assert [type(batch) for batch in found] == [RowBatch, RowBatch, ColumnBatch, ColumnBatch]
    assert [batch.timestamps_ms is None for batch in found] == [True, False, True, False]


def test_small_column_batches_become_one():
    partition, (view,), _ = pipelined()
    for i in range(5):
        partition.add(0, ColumnBatch(pa.record_batch({"a": [i], "w": [str(i)]}), np.array([i])))
    partition.flush()
    (batch,) = drain(view)
    assert rows_of(batch).rows == [(i, str(i)) for i in range(5)]
    assert batch.timestamps_ms.tolist() == list(range(5))


def test_blocking_partition_is_read_when_complete_and_again(tmp_path: Path):
    partition = BlockingPartition(descriptor(2, True), SEGMENT, str(tmp_path))
    calls: list[str] = []
    early = partition.open_view(1, lambda: calls.append("ready"))
    rows = [("word", i) for i in range(3000)]
    for at in range(0, 3000, 100):
        partition.add(at // 100 % 2, RowBatch(rows[at : at + 100]))
    partition.add(0, ColumnBatch(pa.record_batch({"a": ["x"], "b": [9]})))
    assert not early.has_next()
    partition.add_event(END_OF_DATA)
    assert (partition.is_readable(), calls) == (False, [])
    partition.finish()
    assert calls == ["ready"]
    for _ in range(2):
        views = [partition.open_view(i, lambda: None) for i in range(2)]
        found = [drain(view) for view in views]
        assert [part[-1] for part in found] == [END_OF_DATA, END_OF_DATA]
        assert sorted(row for part in found for batch in part[:-1] for row in rows_of(batch).rows) == [*rows, ("x", 9)]
    assert drain(early)[-1] == END_OF_DATA
    assert partition.bytes_out == os.path.getsize(next(tmp_path.iterdir()))
    partition.release()
    assert list(tmp_path.iterdir()) == []
    partition.release()


def test_registry_tells_who_waits_for_a_partition():
    registry = PartitionRegistry()
    partition, _, _ = pipelined()
    name = partition.descriptor.partition_id
    found: list[Any] = []
    assert registry.find(name) is None
    registry.wait_for(name, found.append)
    dropped = found.clear
    registry.wait_for(name, dropped)
    registry.stop_waiting(name, dropped)
    registry.register(partition)
    assert found == [partition]
    assert registry.find(name) is partition
    registry.release(name)
    assert registry.find(name) is None


def test_an_error_while_sending_is_raised_when_no_task_listens():
    partition, _, _ = pipelined()
    with pytest.raises(ValueError, match="no"):
        partition.on_error(ValueError("no"))
