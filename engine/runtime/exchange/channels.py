"""The channels of a gate: where their elements come from, a subpartition of the same slot or the transport.

Not here: what the elements of several channels mean together (``gate``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol, final

from engine.core.errors import EngineError
from engine.core.records import Batch
from engine.protocol.stream import CheckpointBarrier, Element, Records
from engine.runtime.exchange.overtaking import insert_overtaking, overtake, overtaken_batches
from engine.runtime.exchange.partition import ResultPartition, SubpartitionView
from engine.runtime.exchange.wire import Decoder, Frame, RemoteError

__all__ = ["Channel", "ChannelSource", "LocalChannel", "RemoteChannel", "initial_credit"]

_CREDIT_MAX: Final = 8
#: Batches that all channels of a task together may have under way; 256 of 32 kB are 8 MB.
_CREDIT_TOTAL: Final = 256
#: Before event time has begun in a channel.


def initial_credit(num_channels: int) -> int:
    """Return the batches that a channel may have under way. Two are the least that keep it flowing."""
    return max(2, min(_CREDIT_MAX, _CREDIT_TOTAL // max(1, num_channels)))


class ChannelSource(Protocol):
    """Where a channel's elements come from."""

    bytes_in: int

    def poll(self) -> Element | None: ...

    def has_next(self) -> bool: ...

    def has_priority(self) -> bool:
        """Whether the next element is a barrier that has overtaken records."""
        ...

    def overtaken(self, barrier: CheckpointBarrier) -> list[Batch]:
        """Return the batches that ``barrier``, polled just now, has overtaken. They are polled later."""
        ...

    def overtake(self, checkpoint_id: int) -> None:
        """Let the barrier overtake what it waits behind on this side."""
        ...

    def close(self) -> None: ...


@final
class Channel:
    """One channel with what it has said so far."""

    __slots__ = (
        "index",
        "input_index",
        "is_blocked",
        "is_ended",
        "is_listed",
        "source",
        "superstep",
        "valve_index",
    )

    def __init__(self, index: int, input_index: int) -> None:
        self.index = index  #: in the gate
        self.input_index = input_index
        self.source: ChannelSource
        self.valve_index = 0  #: in the valve of its input
        self.is_ended = False
        self.is_listed = False  #: in the gate's list of channels with elements
        self.is_blocked = False  #: its barrier has come, those of others are waited for
        self.superstep: int | None = None  #: ended in this channel, not yet in all: the channel is blocked


@final
class LocalChannel:
    """Reads a subpartition of the same slot directly: no copy, no second queue, the same bound."""

    def __init__(self, subpartition: int, on_data: Callable[[], None]) -> None:
        self.bytes_in = 0
        self._subpartition = subpartition
        self._on_data = on_data
        self._partition: ResultPartition | None = None
        self._view: SubpartitionView | None = None
        self._decoder = Decoder()
        self.is_closed = False

    @property
    def is_attached(self) -> bool:
        return self._partition is not None

    def attach(self, partition: ResultPartition) -> None:
        """The producer is there: begin to read."""
        if self.is_closed:
            return
        self._partition = partition
        self._view = partition.open_view(self._subpartition, self._on_data)
        self._on_data()

    def has_next(self) -> bool:
        return self._view is not None and self._view.has_next()

    def poll(self) -> Element | None:
        if self._view is None:
            return None
        while True:
            item = self._view.poll()
            if isinstance(item, Frame):
                self.bytes_in += item.size_bytes
                element = self._decoder.decode(item.kind, item.buffers[0])
                if element is None:
                    continue  # a schema
                assert not isinstance(element, RemoteError), element
                return element
            if type(item) is Records:
                assert self._partition is not None
                size = self._view.size_of(item.batch)
                self.bytes_in += size
                self._partition.bytes_out += size
            return item

    def has_priority(self) -> bool:
        return self._view is not None and self._view.has_priority()

    def overtaken(self, barrier: CheckpointBarrier) -> list[Batch]:
        return [] if self._view is None else self._view.overtaken(barrier)

    def overtake(self, checkpoint_id: int) -> None:
        pass  # it waits in the producer's queue, whose task sees to it

    def close(self) -> None:
        self.is_closed = True
        if self._view is not None:
            self._view.close()
            self._view = None


@final
class RemoteChannel:
    """Holds what came in for one channel and gives credit back as it is read."""

    def __init__(self, credit: int, on_data: Callable[[], None], on_error: Callable[[EngineError], None]) -> None:
        self.bytes_in = 0
        self.add_credit: Callable[[int], None] = lambda credit: None
        self.unsubscribe: Callable[[], None] = lambda: None
        #: An aligned barrier has come, perhaps behind much: it is to overtake when its time is up.
        self.on_timed_barrier: Callable[[CheckpointBarrier], None] = lambda barrier: None
        self._queue: deque[Element] = deque()
        self._on_data = on_data
        self._on_error = on_error
        self._consumed = 0
        self._extra_credit = 0  #: given for what a barrier has overtaken, not to be given again
        #: barriers that are here before the batches that they have overtaken, and how many of those are missing
        self._early: list[tuple[CheckpointBarrier, int]] = []
        self._credit_step = max(1, credit // 2)

    # transport.ChannelReceiver

    def receive(self, element: Element, size_bytes: int) -> None:
        self.bytes_in += size_bytes
        if type(element) is CheckpointBarrier and element.options.unaligned:
            self._receive_overtaking(element)
            return
        self._queue.append(element)
        if self._early and type(element) is Records:
            early = [(barrier, missing - 1) for barrier, missing in self._early]
            self._early = [(barrier, missing) for barrier, missing in early if missing]
            for barrier, missing in early:
                if not missing:
                    insert_overtaking(self._queue, barrier)
        self._on_data()
        if type(element) is CheckpointBarrier and element.options.aligned_timeout_ms:
            self.on_timed_barrier(element)

    def _receive_overtaking(self, barrier: CheckpointBarrier) -> None:
        """What it has overtaken at the producer is fetched whether the task reads or not: it belongs to the checkpoint.
        When all is here the barrier overtakes the rest."""
        if barrier.num_overtaken:
            self._early.append((barrier, barrier.num_overtaken))
            self._extra_credit += barrier.num_overtaken
            self.add_credit(barrier.num_overtaken)
            return
        insert_overtaking(self._queue, barrier)
        self._on_data()

    def fail(self, error: EngineError) -> None:
        self._on_error(error)

    # ChannelSource

    def has_next(self) -> bool:
        return bool(self._queue)

    def poll(self) -> Element | None:
        if not self._queue:
            return None
        element = self._queue.popleft()
        if type(element) is Records and self._extra_credit:
            self._extra_credit -= 1
        elif type(element) is Records:
            self._consumed += 1
            if self._consumed >= self._credit_step:
                self.add_credit(self._consumed)
                self._consumed = 0
        return element

    def has_priority(self) -> bool:
        queue = self._queue
        return bool(queue) and type(queue[0]) is CheckpointBarrier and queue[0].options.unaligned

    def overtaken(self, barrier: CheckpointBarrier) -> list[Batch]:
        return overtaken_batches(self._queue, barrier)

    def overtake(self, checkpoint_id: int) -> None:
        if overtake(self._queue, checkpoint_id):
            self._on_data()

    def close(self) -> None:
        self._queue.clear()
        self._early.clear()
        self.unsubscribe()
