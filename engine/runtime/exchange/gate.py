"""The input side of a task: channels, which of them may be read, and what their elements mean together.

Channels with elements are read in turn, one element each. Watermarks, idleness, ends and supersteps of single channels
become events of the whole input here. Pure but for the channels' sources, which are given: a subpartition of the same
slot, or the transport.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias, final

from engine.core.errors import EngineError
from engine.core.records import Batch
from engine.protocol.stream import (
    WATERMARK_MAX_MS,
    Element,
    EndOfData,
    EndOfSuperstep,
    Records,
    Watermark,
    WatermarkStatus,
)
from engine.runtime.exchange.partition import ResultPartition, SubpartitionView
from engine.runtime.exchange.wire import Decoder, Frame, RemoteError

__all__ = [
    "BatchArrived",
    "Channel",
    "GateEvent",
    "IdleChanged",
    "InputEnded",
    "InputGate",
    "LocalChannel",
    "RemoteChannel",
    "SuperstepEnded",
    "WatermarkAdvanced",
    "initial_credit",
]

_CREDIT_MAX: Final = 8
#: Batches that all channels of a task together may have under way; 256 of 32 kB are 8 MB.
_CREDIT_TOTAL: Final = 256
_NEVER_MS: Final = -(1 << 63)


def initial_credit(num_channels: int) -> int:
    """Return the batches that a channel may have under way. Two are the least that keep it flowing."""
    return max(2, min(_CREDIT_MAX, _CREDIT_TOTAL // max(1, num_channels)))


# --- what the task is told ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BatchArrived:
    input_index: int
    batch: Batch


@dataclass(frozen=True, slots=True)
class WatermarkAdvanced:
    watermark_ms: int


@dataclass(frozen=True, slots=True)
class IdleChanged:
    """All channels are idle, or one is not any more."""

    idle: bool


@dataclass(frozen=True, slots=True)
class SuperstepEnded:
    """Every channel that still delivers has ended the superstep."""

    superstep: int


@dataclass(frozen=True, slots=True)
class InputEnded:
    """All channels of a logical input have delivered their last element."""

    input_index: int


GateEvent: TypeAlias = BatchArrived | WatermarkAdvanced | IdleChanged | SuperstepEnded | InputEnded


# --- channels ------------------------------------------------------------------------------------------------------


class ChannelSource(Protocol):
    """Where a channel's elements come from."""

    bytes_in: int

    def poll(self) -> Element | None: ...

    def has_next(self) -> bool: ...

    def close(self) -> None: ...


@final
class Channel:
    """One channel with what it has said so far."""

    __slots__ = ("input_index", "is_ended", "is_idle", "is_listed", "source", "superstep", "watermark_ms")

    def __init__(self, input_index: int) -> None:
        self.input_index = input_index
        self.source: ChannelSource
        self.watermark_ms = _NEVER_MS
        self.is_idle = False
        self.is_ended = False
        self.is_listed = False  #: in the gate's list of channels with elements
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
        self._queue: deque[Element] = deque()
        self._on_data = on_data
        self._on_error = on_error
        self._consumed = 0
        self._credit_step = max(1, credit // 2)

    # transport.ChannelReceiver

    def receive(self, element: Element, size_bytes: int) -> None:
        self.bytes_in += size_bytes
        self._queue.append(element)
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
        if type(element) is Records:
            self._consumed += 1
            if self._consumed >= self._credit_step:
                self.add_credit(self._consumed)
                self._consumed = 0
        return element

    def close(self) -> None:
        self._queue.clear()
        self.unsubscribe()


# --- the gate ------------------------------------------------------------------------------------------------------


@final
class InputGate:
    """All channels of a task's inputs.

    ``input_of_channel``: logical input of each channel. ``inputs_first``: inputs that must end before any other is
    read, in this order.
    """

    def __init__(self, input_of_channel: Sequence[int], inputs_first: Sequence[int] = ()) -> None:
        self.channels = [Channel(input_index) for input_index in input_of_channel]
        self.error: EngineError | None = None
        self._listed: deque[Channel] = deque()
        self._parked: list[Channel] = []
        self._events: deque[GateEvent] = deque()
        self._watermark_ms = _NEVER_MS
        self._is_idle = False
        self._open_channels_by_input: dict[int, int] = {}
        for channel in self.channels:
            count = self._open_channels_by_input.get(channel.input_index, 0)
            self._open_channels_by_input[channel.input_index] = count + 1
        self._num_open = len(self.channels)
        self._num_blocked = 0
        self._inputs_first = [index for index in inputs_first if index in self._open_channels_by_input]

    @property
    def is_ended(self) -> bool:
        """All channels have ended and everything was told."""
        return self._num_open == 0 and not self._events

    def bytes_in(self) -> int:
        return sum(channel.source.bytes_in for channel in self.channels)

    # --- called by the channels' sources

    def on_data(self, channel: Channel) -> None:
        if not channel.is_listed:
            channel.is_listed = True
            self._listed.append(channel)

    def on_error(self, error: EngineError) -> None:
        if self.error is None:
            self.error = error

    # --- called by the task

    def has_next(self) -> bool:
        """Whether ``next`` may have something; cheap. Raises the error of a failed channel."""
        if self.error is not None:
            raise self.error
        return bool(self._events) or bool(self._listed)

    def next(self) -> GateEvent | None:
        while True:
            if self._events:
                return self._events.popleft()
            if not self._listed:
                return None
            channel = self._listed.popleft()
            if self._must_wait(channel):
                self._parked.append(channel)
                continue
            element = channel.source.poll()
            if channel.source.has_next():
                self._listed.append(channel)
            else:
                channel.is_listed = False
            if element is None:
                continue
            if type(element) is Records:
                if channel.is_idle:
                    self._set_idle(channel, False)
                return BatchArrived(channel.input_index, element.batch)
            self._handle(channel, element)

    def close(self) -> None:
        for channel in self.channels:
            channel.source.close()

    # --- elements that are not records

    def _must_wait(self, channel: Channel) -> bool:
        if channel.superstep is not None:
            return True
        first = self._inputs_first
        return bool(first) and channel.input_index != first[0]

    def _unpark(self) -> None:
        self._listed.extend(self._parked)
        self._parked.clear()

    def _handle(self, channel: Channel, element: Element) -> None:
        match element:
            case Watermark(timestamp_ms):
                channel.watermark_ms = max(channel.watermark_ms, timestamp_ms)
                if channel.is_idle:
                    self._set_idle(channel, False)
                self._advance_watermark()
            case WatermarkStatus(idle):
                self._set_idle(channel, idle)
            case EndOfSuperstep(superstep):
                channel.superstep = superstep
                self._num_blocked += 1
                self._check_superstep()
            case EndOfData():
                self._end(channel)
            case _:
                pass  # barriers: nobody sends them yet

    def _advance_watermark(self) -> None:
        combined = WATERMARK_MAX_MS
        counted = False
        for channel in self.channels:
            if not channel.is_idle and not channel.is_ended:
                combined = min(combined, channel.watermark_ms)
                counted = True
        if not counted:
            # Nobody is waited for any more: event time is where the furthest channel has come, an ended one's end of
            # time included. Source: Flink's StatusWatermarkValve.
            combined = max(channel.watermark_ms for channel in self.channels)
        if combined > self._watermark_ms:
            self._watermark_ms = combined
            self._events.append(WatermarkAdvanced(combined))

    def _set_idle(self, channel: Channel, idle: bool) -> None:
        channel.is_idle = idle
        all_idle = all(other.is_idle or other.is_ended for other in self.channels)
        if all_idle is not self._is_idle:
            self._is_idle = all_idle
            self._events.append(IdleChanged(all_idle))
        if idle:
            self._advance_watermark()

    def _check_superstep(self) -> None:
        if not self._num_blocked or self._num_blocked < self._num_open:
            return
        superstep = max(channel.superstep for channel in self.channels if channel.superstep is not None)
        for channel in self.channels:
            channel.superstep = None
        self._num_blocked = 0
        self._unpark()
        self._events.append(SuperstepEnded(superstep))

    def _end(self, channel: Channel) -> None:
        channel.is_ended = True
        self._num_open -= 1
        index = channel.input_index
        self._open_channels_by_input[index] -= 1
        if not self._open_channels_by_input[index]:
            self._events.append(InputEnded(index))
            if index in self._inputs_first:
                self._inputs_first.remove(index)
                self._unpark()
        if self._num_open:
            self._advance_watermark()
            self._check_superstep()
