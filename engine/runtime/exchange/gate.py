"""The input side of a task: channels, which of them may be read, and what their elements mean together.

Channels with elements are read in turn, one element each. Watermarks, idleness, ends, supersteps and barriers of single
channels become events of the whole input here. Pure but for the channels' sources, which are given (``channels``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias, final

from engine.checkpoint.alignment import (
    AbandonCheckpoint,
    AlignmentTimedOut,
    BarrierAligner,
    BarrierReceived,
    BlockChannel,
    CancelReceived,
    ChannelEnded,
    CheckpointAborted,
    Command,
    EndCapture,
    NoteFirstBarrier,
    TakeSnapshot,
    UnblockChannels,
)
from engine.core.errors import EngineError
from engine.core.late_dataclass import dataclass
from engine.core.records import Batch
from engine.protocol.stream import (
    CancelBarrier,
    CheckpointBarrier,
    Element,
    EndOfData,
    EndOfSuperstep,
    Records,
    Watermark,
    WatermarkStatus,
)
from engine.runtime.exchange.channels import Channel
from engine.runtime.exchange.watermark_valve import (
    CombinedWatermark,
    IdleChanged,
    StatusWatermarkValve,
    ValveOutput,
    WatermarkAdvanced,
)

__all__ = [
    "BarrierEvent",
    "BatchArrived",
    "GateEvent",
    "IdleChanged",
    "InputEnded",
    "InputGate",
    "SuperstepEnded",
    "WatermarkAdvanced",
]


# --- what the task is told ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BatchArrived:
    input_index: int
    batch: Batch


@dataclass(frozen=True, slots=True)
class SuperstepEnded:
    """Every channel that still delivers has ended the superstep."""

    superstep: int


@dataclass(frozen=True, slots=True)
class InputEnded:
    """All channels of a logical input have delivered their last element."""

    input_index: int


#: Those of checkpoints are the aligner's commands that are not about channels.
BarrierEvent: TypeAlias = NoteFirstBarrier | TakeSnapshot | EndCapture | AbandonCheckpoint
GateEvent: TypeAlias = BatchArrived | WatermarkAdvanced | IdleChanged | SuperstepEnded | InputEnded | BarrierEvent


@final
class InputGate:
    """All channels of a task's inputs.

    ``input_of_channel``: logical input of each channel. ``inputs_first``: inputs that must end before any other is
    read, in this order.
    """

    def __init__(self, input_of_channel: Sequence[int], inputs_first: Sequence[int] = ()) -> None:
        self.channels = [Channel(index, input_index) for index, input_index in enumerate(input_of_channel)]
        self._aligner = BarrierAligner(len(self.channels))
        self._priority: deque[Channel] = deque()  #: channels with a barrier that has overtaken records
        self._num_urgent = 0  #: snapshots in ``_events`` that must not wait
        #: of unaligned checkpoints: what came, or was on its way, between their snapshot and their barriers
        self._captured: dict[int, list[tuple[int, Batch]]] = {}
        #: in-flight records of the checkpoint that the task was restored from: before all others
        self._restored: deque[BatchArrived] = deque()
        self.error: EngineError | None = None
        #: An aligned barrier with a timeout waits in a channel; may be called again for the same checkpoint.
        self.on_timed_barrier: Callable[[CheckpointBarrier], None] = lambda barrier: None
        self._listed: deque[Channel] = deque()
        self._parked: list[Channel] = []
        self._events: deque[GateEvent] = deque()
        self._open_channels_by_input: dict[int, int] = {}
        for channel in self.channels:
            channel.valve_index = self._open_channels_by_input.get(channel.input_index, 0)
            self._open_channels_by_input[channel.input_index] = channel.valve_index + 1
        self._valves = {index: StatusWatermarkValve(count) for index, count in self._open_channels_by_input.items()}
        self._combined = CombinedWatermark(self._valves)
        self._num_open = len(self.channels)
        self._num_in_superstep = 0  #: channels that have ended the superstep
        self._inputs_first = [index for index in inputs_first if index in self._open_channels_by_input]

    @property
    def is_ended(self) -> bool:
        """All channels have ended and everything was told."""
        return self._num_open == 0 and not self._events and not self._restored

    def bytes_in(self) -> int:
        return sum(channel.source.bytes_in for channel in self.channels)

    # --- called by the channels' sources

    def on_data(self, channel: Channel) -> None:
        if not channel.is_listed:
            channel.is_listed = True
            self._listed.append(channel)
        if channel.source.has_priority():
            self._priority.append(channel)

    def on_error(self, error: EngineError) -> None:
        if self.error is None:
            self.error = error

    # --- called by the task

    def has_next(self) -> bool:
        """Whether ``next`` may have something; cheap. Raises the error of a failed channel."""
        if self.error is not None:
            raise self.error
        return bool(self._events) or bool(self._listed) or bool(self._restored)

    @property
    def is_urgent(self) -> bool:
        """Whether ``next_urgent`` may have something: the task should ask even when it cannot go on."""
        return bool(self._priority) or bool(self._num_urgent)

    def next_urgent(self) -> GateEvent | None:
        """Return what is left to tell up to barriers that have overtaken records; never records."""
        while True:
            if self._events:
                return self._next_event()
            if not self._priority:
                return None
            channel = self._priority.popleft()
            if channel.source.has_priority():
                element = channel.source.poll()
                assert element is not None
                self._handle(channel, element)

    def _next_event(self) -> GateEvent:
        event = self._events.popleft()
        self._num_urgent -= _is_urgent(event)
        return event

    def next(self) -> GateEvent | None:
        while True:
            if self._restored:
                return self._restored.popleft()
            if self._events:
                return self._next_event()
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
                if self._aligner.is_capturing:
                    for id_ in self._aligner.captured_by(channel.index):
                        self._captured[id_].append((channel.input_index, element.batch))
                return BatchArrived(channel.input_index, element.batch)
            self._handle(channel, element)

    def close(self) -> None:
        for channel in self.channels:
            channel.source.close()

    def abort_checkpoint(self, checkpoint_id: int) -> None:
        """The JobManager has given the checkpoint up: wait for its barriers no longer."""
        self._carry_out(self._aligner.handle(CheckpointAborted(checkpoint_id)))
        self._captured.pop(checkpoint_id, None)

    def time_out_alignment(self, checkpoint_id: int) -> None:
        """It takes too long to align the checkpoint: let it go on unaligned."""
        for channel in self.channels:
            channel.source.overtake(checkpoint_id)
        self._carry_out(self._aligner.handle(AlignmentTimedOut(checkpoint_id)))

    def restore(self, batches: Iterable[tuple[int, Batch]]) -> None:
        """Take up in-flight records, by input, before anything is read."""
        self._restored.extend(BatchArrived(input_index, batch) for input_index, batch in batches)

    def capture(self, checkpoint_id: int, input_index: int, batch: Batch) -> None:
        """The task has taken this over but not processed it when it snapshotted."""
        self._captured[checkpoint_id].append((input_index, batch))

    def take_captured(self, checkpoint_id: int) -> list[tuple[int, Batch]]:
        """Return all in-flight records of the checkpoint, by input."""
        return self._captured.pop(checkpoint_id, [])

    # --- elements that are not records

    def _must_wait(self, channel: Channel) -> bool:
        if channel.superstep is not None or channel.is_blocked:
            return True
        first = self._inputs_first
        return bool(first) and channel.input_index != first[0]

    def _unpark(self) -> None:
        self._listed.extend(self._parked)
        self._parked.clear()

    def _handle(self, channel: Channel, element: Element) -> None:
        match element:
            case Watermark(timestamp_ms):
                self._tell(channel, self._valves[channel.input_index].watermark(channel.valve_index, timestamp_ms))
            case WatermarkStatus(idle):
                self._tell(channel, self._valves[channel.input_index].status(channel.valve_index, idle))
            case EndOfSuperstep(superstep):
                channel.superstep = superstep
                self._num_in_superstep += 1
                self._check_superstep()
            case CheckpointBarrier():
                overtaken = channel.source.overtaken(element) if element.num_overtaken else []
                self._carry_out(self._aligner.handle(BarrierReceived(channel.index, element)))
                captured = self._captured.get(element.checkpoint_id)
                if captured is not None:  # else nobody waits for this barrier any more
                    captured.extend((channel.input_index, batch) for batch in overtaken)
            case CancelBarrier(checkpoint_id):
                self._carry_out(self._aligner.handle(CancelReceived(channel.index, checkpoint_id)))
            case EndOfData():
                # Before the end of the input is told: after a restore it is told again.
                self._carry_out(self._aligner.handle(ChannelEnded(channel.index)))
                self._end(channel)
            case Records():
                raise AssertionError("records are handed on by next()")

    def _carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case BlockChannel(index):
                    self.channels[index].is_blocked = True
                case UnblockChannels(indexes):
                    for index in indexes:
                        self.channels[index].is_blocked = False
                    self._unpark()
                case _:
                    self._events.append(command)
                    self._num_urgent += _is_urgent(command)
                    if isinstance(command, TakeSnapshot) and command.barrier.options.unaligned:
                        restored = [(arrived.input_index, arrived.batch) for arrived in self._restored]
                        self._captured[command.barrier.checkpoint_id] = restored
                    elif isinstance(command, AbandonCheckpoint):
                        self._captured.pop(command.checkpoint_id, None)

    def _tell(self, channel: Channel, outputs: Sequence[ValveOutput]) -> None:
        if outputs:
            self._events.extend(self._combined.take(channel.input_index, outputs))

    def _check_superstep(self) -> None:
        if not self._num_in_superstep or self._num_in_superstep < self._num_open:
            return
        superstep = max(channel.superstep for channel in self.channels if channel.superstep is not None)
        for channel in self.channels:
            channel.superstep = None
        self._num_in_superstep = 0
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
            self._tell(channel, self._valves[index].end(channel.valve_index))
            self._check_superstep()


def _is_urgent(event: GateEvent) -> bool:
    return isinstance(event, TakeSnapshot) and event.barrier.options.unaligned
