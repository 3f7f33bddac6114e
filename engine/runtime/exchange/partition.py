"""What a task hands to its consumers: one result partition per exit, one subpartition per consumer channel.

Pipelined: records wait in a buffer until it is full or its time is up; at most ``QUEUE_BUFFERS_MAX`` full buffers wait
for the consumer, then ``has_room()`` is false and the task is not stepped. Blocking: full buffers go to one file in the
slot's work folder; readers come when all is written, as often as they like.

Not here: which record goes to which subpartition (``partitioners``), sockets (``transport``).
"""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol, final

from engine.core.dictionaries import bytes_of_rows, has_dictionary, plain_columns
from engine.core.errors import ExternalError
from engine.core.records import BATCH_ROWS_MAX, Batch, ColumnBatch, RowBatch
from engine.protocol.control import ResultPartitionDescriptor
from engine.protocol.stream import CheckpointBarrier, Element, Records
from engine.runtime.exchange.overtaking import insert_overtaking, overtake, overtaken_batches
from engine.runtime.exchange.wire import Encoder, Frame, FrameKind, estimate_row_bytes

__all__ = [
    "OVERFULL_BUFFERS",
    "QUEUE_BUFFERS_MAX",
    "BlockingPartition",
    "PartitionRegistry",
    "PipelinedPartition",
    "ResultPartition",
    "SubpartitionView",
]

#: Full buffers that may wait in one subpartition. Two keep the consumer busy; more smooth uneven steps.
QUEUE_BUFFERS_MAX: Final = 8
#: Full buffers in one subpartition at which a step that goes on emitting waits, until there is room again.
OVERFULL_BUFFERS: Final = 4 * QUEUE_BUFFERS_MAX
#: Every so many flushes the size of a row is estimated anew.
_ESTIMATE_INTERVAL: Final = 64
_KIND_BITS: Final = 8


class SubpartitionView(Protocol):
    """One consumer's place in one subpartition."""

    def poll(self) -> Element | Frame | None:
        """Take the next element, encoded already if it comes from a file; None when nothing is there now."""
        ...

    def needs_credit(self) -> bool:
        """Whether what ``poll`` would return is a batch of records (and not an event, or nothing)."""
        ...

    def has_next(self) -> bool: ...

    def has_priority(self) -> bool:
        """Whether ``poll`` would return a barrier that has overtaken records."""
        ...

    def overtaken(self, barrier: CheckpointBarrier) -> list[Batch]:
        """Return the batches that ``barrier``, polled just now, has overtaken; they stay where they are."""
        ...

    def observe(self, num_rows: int, size_bytes: int) -> None:
        """A batch of so many rows took so many bytes when it was encoded."""
        ...

    def size_of(self, batch: Batch) -> int:
        """Return about how many bytes the batch would take on the wire."""
        ...

    def close(self) -> None: ...


class ResultPartition(Protocol):
    """What the task and the transport see of both kinds."""

    descriptor: ResultPartitionDescriptor
    bytes_out: int
    operator_name: str  #: whose records these are, for messages
    #: Called when what was added turns out to be impossible to send: the producing task fails. False when it has ended.
    on_error: Callable[[BaseException], bool]

    def add(self, subpartition: int, batch: Batch) -> None: ...

    def add_event(self, element: Element) -> None:
        """Close the buffers and put the element into every subpartition: in order, but before the records that wait
        there if it is an unaligned barrier."""
        ...

    def overtake(self, checkpoint_id: int) -> None:
        """Let the barrier overtake what it still waits behind."""
        ...

    def has_room(self) -> bool: ...

    def num_waiting(self) -> int:
        """Return how many full buffers wait in the fullest subpartition."""
        ...

    def is_overfull(self) -> bool:
        """Whether one step has added so much that it must wait inside."""
        ...

    def flush(self) -> None:
        """Let consumers have what is in the buffers."""
        ...

    def finish(self) -> None:
        """Nothing follows: END_OF_DATA has been added."""
        ...

    def is_readable(self) -> bool:
        """False while a blocking partition is being written."""
        ...

    def open_view(self, subpartition: int, on_data: Callable[[], None]) -> SubpartitionView:
        """``on_data`` is called whenever ``poll`` may return something new."""
        ...

    def release(self) -> None: ...


@final
class _Buffer:
    """Collects batches of one subpartition into elements of about the segment size."""

    __slots__ = ("_columns", "_row_bytes", "_segment_bytes", "_since_estimate", "rows", "size_bytes", "stamps")

    def __init__(self, segment_bytes: int) -> None:
        self._segment_bytes = segment_bytes
        self._row_bytes = 0.0
        self._since_estimate = 0
        self.rows: list[object] = []
        self.stamps: list[int] | None = None
        self._columns: list[ColumnBatch] = []
        self.size_bytes = 0  #: of the columns; rows are estimated

    def is_empty(self) -> bool:
        return not self.rows and not self._columns

    def add(self, batch: Batch) -> list[Records]:
        """Take the batch in; return what is full now."""
        if type(batch) is RowBatch:
            return self._add_rows(batch)
        assert isinstance(batch, ColumnBatch), batch
        return self._add_columns(batch)

    def take(self) -> Records | None:
        """Return what is left as one element, if anything is."""
        if self.rows:
            taken = Records(RowBatch(self.rows, self.stamps))
            self.rows, self.stamps = [], None
            return taken
        if self._columns:
            merged = Records(_concatenated(self._columns))
            self._columns = []
            self.size_bytes = 0
            return merged
        return None

    def _rows_max(self, batch: RowBatch) -> int:
        self._since_estimate -= 1
        if self._since_estimate < 0:
            self._since_estimate = _ESTIMATE_INTERVAL
            self._row_bytes = max(1.0, estimate_row_bytes(batch))
        return max(1, min(BATCH_ROWS_MAX, int(self._segment_bytes / self._row_bytes)))

    def size_of(self, batch: Batch) -> int:
        """Return about how many bytes the batch would take on the wire."""
        return bytes_of_rows(batch.columns) if isinstance(batch, ColumnBatch) else int(len(batch) * self._row_bytes)

    def observe(self, num_rows: int, size_bytes: int) -> None:
        """A frame of so many rows took so many bytes: better than any sample."""
        self._row_bytes = max(1.0, size_bytes / num_rows)
        self._since_estimate = _ESTIMATE_INTERVAL

    def _add_rows(self, batch: RowBatch) -> list[Records]:
        full: list[Records] = []
        stamps = batch.timestamps_ms
        if self._columns or (self.rows and (self.stamps is None) is not (stamps is None)):
            taken = self.take()
            assert taken is not None
            full.append(taken)
        rows_max = self._rows_max(batch)
        if not self.rows and rows_max <= len(batch.rows) <= 2 * rows_max:
            full.append(Records(batch))  # as it is, without a copy
            return full
        self.rows.extend(batch.rows)
        if stamps is not None:
            if self.stamps is None:
                self.stamps = []
            self.stamps.extend(stamps)
        if len(self.rows) < rows_max:
            return full
        if len(self.rows) <= 2 * rows_max:
            taken = self.take()
            assert taken is not None
            full.append(taken)
            return full
        whole = RowBatch(self.rows, self.stamps)
        cut = len(whole) - len(whole) % rows_max
        full.extend(Records(whole.slice(at, at + rows_max)) for at in range(0, cut, rows_max))
        rest = whole.slice(cut, len(whole))
        self.rows, self.stamps = rest.rows, rest.timestamps_ms
        return full

    def _add_columns(self, batch: ColumnBatch) -> list[Records]:
        full: list[Records] = []
        if self.rows or (self._columns and not _is_alike(self._columns[-1], batch)):
            taken = self.take()
            assert taken is not None
            full.append(taken)
        self._columns.append(batch)
        self.size_bytes += bytes_of_rows(batch.columns)
        if self.size_bytes >= self._segment_bytes or sum(map(len, self._columns)) >= BATCH_ROWS_MAX:
            taken = self.take()
            assert taken is not None
            full.append(taken)
        return full


def _is_alike(left: ColumnBatch, right: ColumnBatch) -> bool:
    if (left.scalar, left.named) != (right.scalar, right.named):
        return False
    if (left.timestamps_ms is None) is not (right.timestamps_ms is None):
        return False
    if (left.kinds is None) is not (right.kinds is None):  # of the one that has none, records may be no Rows
        return False
    return left.columns.schema is right.columns.schema or bool(left.columns.schema.equals(right.columns.schema))


def _concatenated(batches: list[ColumnBatch]) -> ColumnBatch:
    if len(batches) == 1:
        return batches[0]
    import numpy as np
    import pyarrow as pa

    parts = [batch.columns for batch in batches]
    try:
        table = pa.Table.from_batches(parts).combine_chunks()
    except pa.ArrowException:
        if not any(map(has_dictionary, parts[0].schema.types)):
            raise
        # Dictionaries with nulls cannot be made one, nor those with more values together than their type can number.
        table = pa.Table.from_batches(list(map(plain_columns, parts))).combine_chunks()
    stamps = kinds = None
    if batches[0].timestamps_ms is not None:
        stamps = np.concatenate([batch.timestamps_ms for batch in batches if batch.timestamps_ms is not None])
    if batches[0].kinds is not None:
        kinds = np.concatenate([batch.kinds for batch in batches if batch.kinds is not None])
    (whole,) = table.to_batches()  # else combine_chunks has left several
    return ColumnBatch(whole, stamps, batches[0].scalar, batches[0].named, kinds)


def _raise(error: BaseException) -> bool:
    raise error


# --- pipelined -----------------------------------------------------------------------------------------------------


@final
class _PipelinedSubpartition:
    """A queue of full buffers and one open buffer; also its single consumer's view."""

    __slots__ = ("_on_data", "buffer", "flushed", "num_full", "queue")

    def __init__(self, segment_bytes: int) -> None:
        self.buffer = _Buffer(segment_bytes)
        self.queue: deque[Element] = deque()
        self.num_full = 0  #: elements of ``queue`` that are records
        #: The consumer may take the open buffer before it is full. As it goes on filling until it is taken, small
        #: batches merge by themselves while the consumer is busy.
        self.flushed = False
        self._on_data: Callable[[], None] | None = None

    def add(self, batch: Batch) -> None:
        full = self.buffer.add(batch)
        if full:
            self.queue.extend(full)
            self.num_full += len(full)
            self._notify()

    def add_event(self, element: Element) -> None:
        rest = self.buffer.take()
        if rest is not None:
            self.queue.append(rest)
            self.num_full += 1
        if type(element) is CheckpointBarrier and element.options.unaligned:
            insert_overtaking(self.queue, element)
        else:
            self.queue.append(element)
        self._notify()

    def overtake(self, checkpoint_id: int) -> None:
        if overtake(self.queue, checkpoint_id):
            self._notify()

    def has_priority(self) -> bool:
        return bool(self.queue) and type(self.queue[0]) is CheckpointBarrier and self.queue[0].options.unaligned

    def overtaken(self, barrier: CheckpointBarrier) -> list[Batch]:
        return overtaken_batches(self.queue, barrier)

    def flush(self) -> None:
        if not self.buffer.is_empty():
            self.flushed = True
            self._notify()

    def _notify(self) -> None:
        if self._on_data is not None:
            self._on_data()

    def attach(self, on_data: Callable[[], None]) -> None:
        self._on_data = on_data

    def has_next(self) -> bool:
        return bool(self.queue) or (self.flushed and not self.buffer.is_empty())

    def needs_credit(self) -> bool:
        return type(self.queue[0]) is Records if self.queue else self.has_next()

    def poll(self) -> Element | None:
        if self.queue:
            element = self.queue.popleft()
            if type(element) is Records:
                self.num_full -= 1
            return element
        if self.flushed:
            self.flushed = False
            return self.buffer.take()
        return None

    def observe(self, num_rows: int, size_bytes: int) -> None:
        self.buffer.observe(num_rows, size_bytes)

    def size_of(self, batch: Batch) -> int:
        return self.buffer.size_of(batch)

    def close(self) -> None:
        self._on_data = None

    def release(self) -> None:
        self.queue.clear()
        self.num_full = 0
        self.buffer.take()
        self.flushed = False
        self._on_data = None


@final
class PipelinedPartition:
    """Consumers read while the producer writes; each element once."""

    def __init__(self, descriptor: ResultPartitionDescriptor, segment_bytes: int, operator_name: str = "") -> None:
        self.descriptor = descriptor
        self.operator_name = operator_name
        self.bytes_out = 0
        self.on_error: Callable[[BaseException], bool] = _raise
        self._subpartitions = [_PipelinedSubpartition(segment_bytes) for _ in range(descriptor.num_subpartitions)]

    def add(self, subpartition: int, batch: Batch) -> None:
        self._subpartitions[subpartition].add(batch)

    def add_event(self, element: Element) -> None:
        for subpartition in self._subpartitions:
            subpartition.add_event(element)

    def overtake(self, checkpoint_id: int) -> None:
        for subpartition in self._subpartitions:
            subpartition.overtake(checkpoint_id)

    def has_room(self) -> bool:
        for subpartition in self._subpartitions:  # noqa: SIM110 - a generator costs more than the loop
            if subpartition.num_full >= QUEUE_BUFFERS_MAX:
                return False
        return True

    def num_waiting(self) -> int:
        return max([subpartition.num_full for subpartition in self._subpartitions])

    def is_overfull(self) -> bool:
        for subpartition in self._subpartitions:  # noqa: SIM110 - asked at each emit
            if subpartition.num_full >= OVERFULL_BUFFERS:
                return True
        return False

    def flush(self) -> None:
        for subpartition in self._subpartitions:
            subpartition.flush()

    def finish(self) -> None:
        pass

    def is_readable(self) -> bool:
        return True

    def open_view(self, subpartition: int, on_data: Callable[[], None]) -> _PipelinedSubpartition:
        view = self._subpartitions[subpartition]
        view.attach(on_data)
        return view

    def release(self) -> None:
        for subpartition in self._subpartitions:
            subpartition.release()


# --- blocking ------------------------------------------------------------------------------------------------------


@final
class BlockingPartition:
    """One file of frames for all subpartitions, and for each the places of its frames. Memory: one buffer each."""

    def __init__(
        self,
        descriptor: ResultPartitionDescriptor,
        segment_bytes: int,
        work_dir: str,
        operator_name: str = "",
        codec: str = "",
    ) -> None:
        self.descriptor = descriptor
        self.operator_name = operator_name
        self.bytes_out = 0
        self.on_error: Callable[[BaseException], bool] = _raise
        num = descriptor.num_subpartitions
        self._buffers = [_Buffer(segment_bytes) for _ in range(num)]
        self._encoders = [Encoder(operator_name, codec) for _ in range(num)]
        #: offset << 8 | kind, size; two entries a frame
        self._index = [array("Q") for _ in range(num)]
        self._path = os.path.join(work_dir, f"{descriptor.partition_id}.spill")
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._size = 0
        self._is_finished = False
        self._waiting: list[Callable[[], None]] = []

    def add(self, subpartition: int, batch: Batch) -> None:
        for element in self._buffers[subpartition].add(batch):
            self._write(subpartition, element)

    def add_event(self, element: Element) -> None:
        for subpartition, buffer in enumerate(self._buffers):
            rest = buffer.take()
            if rest is not None:
                self._write(subpartition, rest)
            self._write(subpartition, element)

    def overtake(self, checkpoint_id: int) -> None:
        pass  # nobody waits for what is in a file

    def _write(self, subpartition: int, element: Element) -> None:
        for frame in self._encoders[subpartition].encode(element):
            try:
                written = os.writev(self._fd, list(frame.buffers))
                if written < frame.size_bytes:  # a signal or a nearly full disk: the rest in pieces
                    rest = memoryview(b"".join(frame.buffers))[written:]
                    while rest:
                        rest = rest[os.write(self._fd, rest) :]
            except OSError as error:
                raise ExternalError(
                    f"Cannot spill to {self._path}: {error.strerror}; {self._size} bytes were written. "
                    "Free space there or set io.tmp.dirs to a larger disk."
                ) from error
            index = self._index[subpartition]
            index.append(self._size << _KIND_BITS | frame.kind)
            index.append(frame.size_bytes)
            self._size += frame.size_bytes
            self.bytes_out += frame.size_bytes
            batch = element.batch if type(element) is Records else None
            if type(batch) is RowBatch and frame.kind is FrameKind.ROWS:
                self._buffers[subpartition].observe(len(batch), frame.size_bytes)

    def has_room(self) -> bool:
        return True

    def num_waiting(self) -> int:
        return 0

    def is_overfull(self) -> bool:
        return False

    def flush(self) -> None:
        pass

    def finish(self) -> None:
        self._is_finished = True
        self._buffers.clear()
        self._encoders.clear()
        waiting, self._waiting = self._waiting, []
        for on_data in waiting:
            on_data()

    def is_readable(self) -> bool:
        return self._is_finished

    def open_view(self, subpartition: int, on_data: Callable[[], None]) -> _SpilledView:
        if not self._is_finished:
            self._waiting.append(on_data)
        return _SpilledView(self, self._index[subpartition])

    def read(self, offset: int, size: int) -> bytes:
        assert self._fd >= 0, f"{self.descriptor.partition_id} was released"
        data = os.pread(self._fd, size, offset)
        while len(data) < size:  # pread returns at most 2 GiB
            more = os.pread(self._fd, size - len(data), offset + len(data))
            if not more:
                raise ExternalError(f"{self._path} ends before byte {offset + size}; somebody changed it.")
            data += more
        return data

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            try:
                os.unlink(self._path)
            except FileNotFoundError:
                pass  # the work folder is gone already


@final
class _SpilledView:
    def __init__(self, partition: BlockingPartition, index: array[int]) -> None:
        self._partition = partition
        self._index = index
        self._at = 0

    def has_next(self) -> bool:
        return self._partition.is_readable() and self._at < len(self._index)

    def needs_credit(self) -> bool:
        return self.has_next() and FrameKind(self._index[self._at] & 0xFF).is_records

    def poll(self) -> Frame | None:
        if not self.has_next():
            return None
        place, size = self._index[self._at], self._index[self._at + 1]
        self._at += 2
        content = self._partition.read(place >> _KIND_BITS, size)
        return Frame(FrameKind(place & 0xFF), (content,), size)

    def has_priority(self) -> bool:
        return False

    def overtaken(self, barrier: CheckpointBarrier) -> list[Batch]:
        return []

    def observe(self, num_rows: int, size_bytes: int) -> None:
        pass

    def size_of(self, batch: Batch) -> int:
        return 0

    def close(self) -> None:
        pass


# --- registry ------------------------------------------------------------------------------------------------------


@final
class PartitionRegistry:
    """The partitions of one slot, by id, and who waits for one that is not there yet."""

    def __init__(self) -> None:
        self._partitions: dict[str, ResultPartition] = {}
        self._waiting: dict[str, list[Callable[[ResultPartition], None]]] = {}

    def register(self, partition: ResultPartition) -> None:
        partition_id = partition.descriptor.partition_id
        assert partition_id not in self._partitions, partition_id
        self._partitions[partition_id] = partition
        for found in self._waiting.pop(partition_id, ()):
            found(partition)

    def find(self, partition_id: str) -> ResultPartition | None:
        return self._partitions.get(partition_id)

    def wait_for(self, partition_id: str, found: Callable[[ResultPartition], None]) -> None:
        """Call ``found`` as soon as the partition is registered."""
        self._waiting.setdefault(partition_id, []).append(found)

    def stop_waiting(self, partition_id: str, found: Callable[[ResultPartition], None]) -> None:
        waiting = self._waiting.get(partition_id, [])
        if found in waiting:
            waiting.remove(found)

    def release(self, partition_id: str) -> None:
        partition = self._partitions.pop(partition_id, None)
        if partition is not None:
            partition.release()

    def release_all(self) -> None:
        for partition_id in list(self._partitions):
            self.release(partition_id)
