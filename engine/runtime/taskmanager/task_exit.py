"""An exit of a running chain: partitions what leaves and keeps the buffer timeout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, final

from engine.core.records import BATCH_ROWS_MAX, Batch
from engine.graph.transformation import Partitioning
from engine.operators.functions import RuntimeContext
from engine.protocol.stream import END_OF_DATA, Element, EndOfSuperstep, Watermark, WatermarkStatus
from engine.runtime.exchange.column_scatter import GATHERED_CHANNELS_MAX
from engine.runtime.exchange.partition import ResultPartition
from engine.runtime.exchange.partitioners import make_channel_selector
from engine.runtime.taskmanager.watchdog import Watchdog

__all__ = ["TaskExit"]

#: Share of the buffer timeout after which a buffer is handed on. The other half is for the way: being encoded, waiting
#: for the consumer's step, and being processed with all that was gathered meanwhile. So that the timeout is what it
#: says, a bound for the record and not just for its buffer; full buffers, and so throughput, do not know it.
_WAIT_SHARE: Final = 0.5


@final
class TaskExit:
    """A ``ChainExit`` into one result partition.

    Buffer timeout in milliseconds: 0 = hand on at once (a busy consumer still gets merged batches), > 0 = half of it
    after the first record came into an empty buffer, -1 = only full buffers and before events.

    A watermark waits with the records in front of it, and the newest stands for those before it: sent after each batch
    of a source it would cut every buffer short. It never waits for longer than records do, and later is always right.
    """

    def __init__(
        self,
        partition: ResultPartition,
        partitioning: Partitioning,
        operator_name: str,
        subtask_index: int,
        call_later: Callable[[float, Callable[[], None]], Any],
        watchdog: Watchdog,
        pause: Callable[[ResultPartition], None],
    ) -> None:
        self.partition = partition
        self._watchdog = watchdog
        self._pause = pause  #: lets others work, until the partition has room
        descriptor = partition.descriptor
        self._timeout_ms = -1 if descriptor.blocking else descriptor.buffer_timeout_ms
        self._selector = make_channel_selector(
            partitioning,
            descriptor.num_subpartitions,
            operator_name=operator_name,
            subtask_index=subtask_index,
            max_parallelism=descriptor.max_parallelism,
            gathers=self._timeout_ms != 0,
        )
        self._call_later = call_later
        self._flush_is_due = False
        #: as many as are cut together (``column_scatter``)
        self._rows_max = BATCH_ROWS_MAX * min(descriptor.num_subpartitions, GATHERED_CHANNELS_MAX)
        self._watermark_ms: int | None = None  #: that waits
        self._rows_before_it = 0  #: records since the last one that was sent

    def open(self, runtime_context: RuntimeContext) -> None:
        self._selector.open(runtime_context)

    def close(self) -> None:
        self._selector.close()

    # ChainExit

    def emit(self, batch: Batch) -> None:
        partition = self.partition
        for channel, part in self._selector.split(batch):
            partition.add(channel, part)
        self._rows_before_it += len(batch)
        if self._timeout_ms == 0:
            partition.flush()
        elif self._timeout_ms > 0 and not self._flush_is_due:
            self._flush_is_due = True
            self._call_later(self._timeout_ms * _WAIT_SHARE / 1000, self._flush)
        if self._watchdog.is_late or partition.is_overfull():
            self._pause(partition)

    def flush_after(self, took_ns: int) -> None:
        """The task has not been back at its loop for so long: if the buffer timeout is shorter, it may be over."""
        if 0 < self._timeout_ms * 1_000_000 <= took_ns:
            self._add_held()
            self.partition.flush()

    def _flush(self) -> None:
        self._flush_is_due = False
        self._add_held()
        self.partition.flush()

    def _add_held(self) -> None:
        """Hand on what the selector has held back to cut it together with what comes, and the watermark behind it."""
        for channel, part in self._selector.take_held():
            self.partition.add(channel, part)
        if self._watermark_ms is not None:
            watermark, self._watermark_ms, self._rows_before_it = Watermark(self._watermark_ms), None, 0
            self.partition.add_event(watermark)

    def emit_watermark(self, watermark_ms: int) -> None:
        self._watermark_ms = watermark_ms
        is_waited_for = 0 < self._rows_before_it < self._rows_max and (self._flush_is_due or self._timeout_ms < 0)
        if not is_waited_for or self._timeout_ms == 0:
            self._add_held()

    def emit_idle(self, idle: bool) -> None:
        self.emit_event(WatermarkStatus(idle))

    def emit_superstep_end(self, superstep: int) -> None:
        self.emit_event(EndOfSuperstep(superstep))

    # of the task

    def emit_event(self, element: Element) -> None:
        """Send a barrier, or the end of one, behind all that was emitted; before it if the barrier is unaligned."""
        self._add_held()
        self.partition.add_event(element)

    def end(self) -> None:
        self.emit_event(END_OF_DATA)
        self.partition.finish()
