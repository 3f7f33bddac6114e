"""When an exit hands on what waits in its buffers."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from engine.core.records import BATCH_ROWS_MAX, ColumnBatch, RowBatch, rows_of
from engine.graph.transformation import Partitioning, ShipStrategy
from engine.operators.keys import FieldKey
from engine.operators.row_loop import RowLoop
from engine.protocol.checkpoint import CheckpointOptions
from engine.protocol.control import ResultPartitionDescriptor
from engine.protocol.stream import END_OF_DATA, CancelBarrier, CheckpointBarrier, Records, Watermark, WatermarkStatus
from engine.runtime.exchange.partition import BlockingPartition, PipelinedPartition
from engine.runtime.exchange.wire import Decoder, Frame
from engine.runtime.taskmanager.task_exit import TaskExit
from engine.runtime.taskmanager.watchdog import Watchdog


def exit_with(
    timeout_ms: int, delays: list, partitioning: Partitioning = Partitioning(ShipStrategy.REBALANCE), channels: int = 1
) -> tuple[TaskExit, PipelinedPartition]:
    partition = PipelinedPartition(ResultPartitionDescriptor("p", "d", channels, False, timeout_ms), 32_768)
    made = TaskExit(
        partition,
        partitioning,
        "op",
        0,
        lambda delay_s, action: delays.append((delay_s, action)),
        Watchdog(RowLoop.of({})),
        lambda partition: None,
    )
    return made, partition


@pytest.mark.parametrize("timeout_ms", [10, 100])
def test_a_record_waits_for_half_of_the_timeout_and_has_the_rest_for_its_way(timeout_ms):
    delays = []
    task_exit, partition = exit_with(timeout_ms, delays)
    view = partition.open_view(0, lambda: None)
    task_exit.emit(RowBatch([1]))
    task_exit.emit(RowBatch([2]))
    assert not view.has_next()
    ((delay_s, flush),) = delays  # the second record waits for the flush of the first
    assert delay_s == pytest.approx(timeout_ms / 2000)
    flush()
    assert view.poll().batch.rows == [1, 2]
    task_exit.emit(RowBatch([3]))
    assert len(delays) == 2


def test_without_time_to_wait_a_record_is_handed_on_at_once_and_full_buffers_need_no_timer():
    for timeout_ms, expected in ((0, True), (-1, False)):
        delays = []
        task_exit, partition = exit_with(timeout_ms, delays)
        task_exit.emit(RowBatch([1]))
        assert partition.open_view(0, lambda: None).has_next() is expected
        assert delays == []


def keyed_columns(timeout_ms: int) -> tuple[TaskExit, list, list]:
    """An exit with two channels that has emitted 1000 records; the timers, and the views."""
    delays: list = []
    task_exit, partition = exit_with(timeout_ms, delays, Partitioning(ShipStrategy.HASH, FieldKey(0)), 2)
    views = [partition.open_view(channel, lambda: None) for channel in range(2)]
    task_exit.emit(ColumnBatch(pa.record_batch({"key": range(1000), "n": range(1000)})))
    return task_exit, delays, views


def polled(views: list) -> list[int]:
    return sorted(row[0] for view in views for row in rows_of(view.poll().batch).rows)


def test_columns_that_are_gathered_wait_no_longer_than_the_buffer_timeout():
    task_exit, delays, views = keyed_columns(100)
    assert not any(view.has_next() for view in views)
    task_exit.flush_after(99_000_000)
    assert not any(view.has_next() for view in views)
    ((_, flush),) = delays
    flush()
    assert polled(views) == list(range(1000))
    task_exit, _, views = keyed_columns(100)
    task_exit.flush_after(100_000_000)  # a long step
    assert polled(views) == list(range(1000))
    _, _, views = keyed_columns(0)
    assert polled(views) == list(range(1000))


@pytest.mark.parametrize(
    "tell",
    [
        lambda task_exit: task_exit.emit_idle(True),
        lambda task_exit: task_exit.emit_superstep_end(1),
        lambda task_exit: task_exit.emit_event(CancelBarrier(3)),
        lambda task_exit: task_exit.end(),
    ],
)
def test_no_event_goes_before_columns_that_are_gathered(tell):
    task_exit, _, views = keyed_columns(-1)
    assert not any(view.has_next() for view in views)
    tell(task_exit)
    assert polled(views) == list(range(1000))
    assert all(type(view.poll()) is not Records for view in views)


def test_an_unaligned_barrier_overtakes_columns_that_were_gathered_and_they_count_as_overtaken():
    task_exit, _, views = keyed_columns(-1)
    task_exit.emit_event(CheckpointBarrier(1, 0, CheckpointOptions(unaligned=True)))
    barriers = [view.poll() for view in views]
    overtaken = [view.overtaken(barrier) for view, barrier in zip(views, barriers, strict=True)]
    assert [barrier.num_overtaken for barrier in barriers] == [1, 1]
    assert sum(len(batch) for batches in overtaken for batch in batches) == 1000
    assert polled(views) == list(range(1000))


def test_rows_do_not_go_before_columns_that_are_gathered():
    task_exit, _, views = keyed_columns(-1)
    task_exit.emit(RowBatch([(key, -1) for key in range(8)]))
    task_exit.end()
    seen = [[], []]
    for rows, view in zip(seen, views, strict=True):
        while type(element := view.poll()) is Records:
            rows += rows_of(element.batch).rows
    assert sorted(row for rows in seen for row in rows if row[1] >= 0) == [(n, n) for n in range(1000)]
    assert all([row[1] < 0 for row in rows] == sorted(row[1] < 0 for row in rows) for rows in seen)
    assert sum(map(len, seen)) == 1008


def elements(view) -> list:
    """What waits, records as their number."""
    found = []
    while view.has_next():
        element = view.poll()
        found.append(len(element.batch) if isinstance(element, Records) else element)
    return found


def test_a_watermark_waits_with_the_records_in_front_of_it_and_the_newest_stands_for_all():
    delays = []
    task_exit, partition = exit_with(100, delays)
    view = partition.open_view(0, lambda: None)
    task_exit.emit_watermark(1)  # nothing to wait with
    assert elements(view) == [Watermark(1)]
    task_exit.emit(RowBatch([1]))
    task_exit.emit_watermark(2)
    task_exit.emit(RowBatch([2]))
    task_exit.emit_watermark(3)
    assert elements(view) == []
    delays.pop()[1]()
    assert elements(view) == [2, Watermark(3)]
    task_exit.emit_watermark(4)
    assert elements(view) == [Watermark(4)]
    task_exit.emit(RowBatch([3]))
    delays.pop()[1]()  # the record is gone when the watermark comes, and nothing will come for it
    task_exit.emit_watermark(5)
    assert elements(view) == [1, Watermark(5)]
    assert not delays


@pytest.mark.parametrize("timeout_ms", [100, -1])
def test_a_watermark_goes_before_whatever_else_is_told_and_with_a_full_batch(timeout_ms):
    tellers = [
        (lambda task_exit: task_exit.emit_idle(True), WatermarkStatus(True)),
        (lambda task_exit: task_exit.emit_event(CancelBarrier(3)), CancelBarrier(3)),
        (lambda task_exit: task_exit.end(), END_OF_DATA),
    ]
    for tell, told in tellers:
        task_exit, partition = exit_with(timeout_ms, [])
        view = partition.open_view(0, lambda: None)
        task_exit.emit(RowBatch([1]))
        task_exit.emit_watermark(7)
        tell(task_exit)
        assert elements(view) == [1, Watermark(7), told]
    task_exit, partition = exit_with(timeout_ms, [])
    view = partition.open_view(0, lambda: None)
    task_exit.emit(RowBatch(list(range(BATCH_ROWS_MAX))))
    task_exit.emit_watermark(7)
    assert elements(view)[-1] == Watermark(7)


def test_without_time_to_wait_a_watermark_goes_at_once():
    task_exit, partition = exit_with(0, [])
    view = partition.open_view(0, lambda: None)
    for millis in (1, 2):
        task_exit.emit(RowBatch([millis]))
        task_exit.emit_watermark(millis)
    assert elements(view) == [1, Watermark(1), 1, Watermark(2)]


def test_watermarks_leave_columns_gathered_until_there_are_enough_of_them():
    task_exit, _, views = keyed_columns(-1)  # 1000 of them
    for number in range(1, 2 * BATCH_ROWS_MAX // 1000 + 1):
        task_exit.emit_watermark(number)
        assert not any(view.has_next() for view in views)
        task_exit.emit(ColumnBatch(pa.record_batch({"key": range(1000), "n": range(1000)})))
    task_exit.emit_watermark(99)
    for view in views:
        *rows, last = elements(view)
        assert last == Watermark(99)
        assert sum(rows) > BATCH_ROWS_MAX // 2


def numbers_of(batch) -> list[int]:
    return [row[1] for row in rows_of(batch).rows]


PARTITIONINGS = {
    "hash": Partitioning(ShipStrategy.HASH, FieldKey(0)),
    "broadcast": Partitioning(ShipStrategy.BROADCAST),
    "rebalance": Partitioning(ShipStrategy.REBALANCE),
}


@pytest.mark.parametrize("timeout_ms", [0, 100, -1, "blocking"])
@pytest.mark.parametrize("name", PARTITIONINGS)
def test_whatever_happens_a_watermark_is_behind_the_records_that_it_was_told_behind(
    name, timeout_ms, tmp_path, monkeypatch
):
    """Nothing is lost, nor told twice, and the last watermark comes before all that is told behind it."""
    monkeypatch.setattr("engine.runtime.taskmanager.task_exit.BATCH_ROWS_MAX", 300)
    partitioning, is_blocking = PARTITIONINGS[name], timeout_ms == "blocking"
    for seed in range(8):
        rng, delays, decoders = random.Random(seed), [], [Decoder() for _ in range(3)]
        task_exit, partition = exit_with(-1 if is_blocking else timeout_ms, delays, partitioning, 3)
        if is_blocking:
            partition = BlockingPartition(ResultPartitionDescriptor("p", "d", 3, True, 100), 1000, str(tmp_path))
            task_exit = TaskExit(partition, partitioning, "op", 0, None, Watchdog(RowLoop.of({})), lambda _: None)
        views = [partition.open_view(channel, lambda: None) for channel in range(3)]
        seen = [[], [], []]
        number, in_flight = 0, {}

        def poll(seen=seen, views=views, decoders=decoders, in_flight=in_flight):
            for own, view, decoder in zip(seen, views, decoders, strict=True):
                while view.has_next():
                    element = view.poll()
                    if isinstance(element, Frame):
                        element = decoder.decode(element.kind, b"".join(element.buffers))
                    own += numbers_of(element.batch) if type(element) is Records else [element]
                    if type(element) is CheckpointBarrier:
                        in_flight[id(own), element.checkpoint_id] = [
                            n for batch in view.overtaken(element) for n in numbers_of(batch)
                        ]

        for _ in range(60):
            match rng.choice(["columns", "columns", "rows", "watermark", "watermark", "timer", "step", "poll", "tell"]):
                case "columns":
                    keys = np.arange(number, number := number + rng.choice([1, 40, 200]))
                    task_exit.emit(ColumnBatch(pa.record_batch({"key": keys % 11, "n": keys})))
                case "rows":
                    task_exit.emit(RowBatch([(number % 11, number)]))
                    number += 1
                case "watermark":
                    task_exit.emit_watermark(number)
                case "timer" if delays:
                    delays.pop(0)[1]()
                case "step":
                    task_exit.flush_after(rng.choice([0, 10**9]))
                case "poll":
                    poll()
                case "tell":
                    options = CheckpointOptions(unaligned=rng.random() < 0.5)
                    barrier = CheckpointBarrier(number, 0, options)
                    told = rng.choice([WatermarkStatus(True), CancelBarrier(number), barrier])
                    if isinstance(told, WatermarkStatus):
                        task_exit.emit_idle(told.idle)
                    elif not is_blocking:
                        task_exit.emit_event(told)
        task_exit.emit_watermark(number)
        task_exit.end()
        poll()
        assert sorted(n for own in seen for n in own if type(n) is int) == sorted(
            n for n in range(number) for _ in range(3 if name == "broadcast" else 1)
        )
        for own in seen:
            told = [element for element in own if type(element) is not int]
            assert told[-2:] == [Watermark(number), END_OF_DATA]
            times_ms = [element.timestamp_ms for element in told if isinstance(element, Watermark)]
            assert times_ms == sorted(times_ms)
            for at, element in enumerate(own):
                behind = [n for n in own[at:] if type(n) is int]
                if isinstance(element, Watermark):
                    assert all(n >= element.timestamp_ms for n in behind)
                elif isinstance(element, CheckpointBarrier):
                    before = [n for n in behind if n < element.checkpoint_id]
                    assert before == in_flight[id(own), element.checkpoint_id]
                    assert not before or element.options.unaligned
                elif isinstance(element, CancelBarrier):
                    assert all(n >= element.checkpoint_id for n in behind)
