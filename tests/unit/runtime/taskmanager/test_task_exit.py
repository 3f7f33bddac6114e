"""When an exit hands on what waits in its buffers."""

from __future__ import annotations

import pytest

from engine.core.records import RowBatch
from engine.graph.transformation import Partitioning, ShipStrategy
from engine.operators.row_loop import RowLoop
from engine.protocol.control import ResultPartitionDescriptor
from engine.runtime.exchange.partition import PipelinedPartition
from engine.runtime.taskmanager.task_exit import TaskExit
from engine.runtime.taskmanager.watchdog import Watchdog


def exit_with(timeout_ms: int, delays: list) -> tuple[TaskExit, PipelinedPartition]:
    partition = PipelinedPartition(ResultPartitionDescriptor("p", "d", 1, False, timeout_ms), 32_768)
    made = TaskExit(
        partition,
        Partitioning(ShipStrategy.REBALANCE),
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
