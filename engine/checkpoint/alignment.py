"""Decides what barriers mean for a task with several input channels: when it snapshots, which channels wait. Pure.

Aligned: a channel whose barrier has come waits until all have delivered it; then the task snapshots. At least once:
the same, but nobody waits. Unaligned: the task snapshots at the first barrier, and what the other channels still
deliver before theirs is captured as in-flight records. An aligned checkpoint that takes too long goes on unaligned.

Channels are FIFO, so a newer barrier in a channel says that an older one will not come there any more. An ended channel
has delivered every barrier. Not here: channels and records (``runtime/exchange/gate``), what a snapshot is.
Source: Carbone et al., "Lightweight Asynchronous Snapshots for Distributed Dataflows" (2015), and Flink's
CheckpointBarrierHandler.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import field
from typing import TypeAlias, final

from engine.core.late_dataclass import dataclass
from engine.protocol.checkpoint import CheckpointFailureReason
from engine.protocol.stream import CheckpointBarrier

__all__ = [
    "AbandonCheckpoint",
    "AlignmentTimedOut",
    "BarrierAligner",
    "BarrierReceived",
    "BlockChannel",
    "CancelReceived",
    "ChannelEnded",
    "CheckpointAborted",
    "Command",
    "EndCapture",
    "Event",
    "NoteFirstBarrier",
    "TakeSnapshot",
    "UnblockChannels",
]


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BarrierReceived:
    channel: int
    barrier: CheckpointBarrier


@dataclass(frozen=True, slots=True)
class CancelReceived:
    """A task before this one will not deliver the barrier."""

    channel: int
    checkpoint_id: int


@dataclass(frozen=True, slots=True)
class ChannelEnded:
    channel: int


@dataclass(frozen=True, slots=True)
class CheckpointAborted:
    """The JobManager has given the checkpoint up."""

    checkpoint_id: int


@dataclass(frozen=True, slots=True)
class AlignmentTimedOut:
    checkpoint_id: int


Event: TypeAlias = BarrierReceived | CancelReceived | ChannelEnded | CheckpointAborted | AlignmentTimedOut


# --- commands --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NoteFirstBarrier:
    """Alignment begins: for the timeout, and for what people are shown."""

    barrier: CheckpointBarrier


@dataclass(frozen=True, slots=True)
class BlockChannel:
    channel: int


@dataclass(frozen=True, slots=True)
class UnblockChannels:
    channels: frozenset[int]


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Snapshot now; ``barrier`` goes out. With ``options.unaligned``: what channels deliver until ``EndCapture`` and
    before their barrier belongs to the checkpoint too (``BarrierAligner.captured_by``)."""

    barrier: CheckpointBarrier


@dataclass(frozen=True, slots=True)
class EndCapture:
    """All channels have delivered the barrier of an unaligned checkpoint."""

    checkpoint_id: int


@dataclass(frozen=True, slots=True)
class AbandonCheckpoint:
    """The task cannot take part, or not to the end: tell the tasks behind and, with a ``reason``, the JobManager, which
    hears of others from those who began."""

    checkpoint_id: int
    reason: CheckpointFailureReason | None
    message: str


Command: TypeAlias = NoteFirstBarrier | BlockChannel | UnblockChannels | TakeSnapshot | EndCapture | AbandonCheckpoint


# --- the decider -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Pending:
    """A checkpoint of which some barrier has come, but not all."""

    barrier: CheckpointBarrier
    delivered: set[int] = field(default_factory=set)
    #: Unaligned and snapshotted: what the channels outside of ``delivered`` bring belongs to it.
    is_capturing: bool = False

    @property
    def blocks(self) -> bool:
        return not self.is_capturing and not self.barrier.options.at_least_once


@final
class BarrierAligner:
    """One for all channels of a task's inputs.

    Invariants between events: a pending checkpoint lacks the barrier of an open channel; at most one pending checkpoint
    blocks, and exactly the open channels in its ``delivered`` are blocked.
    """

    def __init__(self, num_channels: int) -> None:
        self._open = set(range(num_channels))
        #: newest barrier of each channel: an older one that has not come does not come any more
        self._newest = [0] * num_channels
        #: by id, ascending
        self._pending: dict[int, _Pending] = {}
        self.is_capturing = False  #: whether ``captured_by`` may return something
        #: Everything up to here was snapshotted or given up.
        self._settled_id = 0
        #: Given up, but later than ``_settled_id``.
        self._given_up: set[int] = set()

    def captured_by(self, channel: int) -> list[int]:
        """Return the checkpoints to which a record belongs that the channel delivers now."""
        return [id_ for id_, p in self._pending.items() if p.is_capturing and channel not in p.delivered]

    def handle(self, event: Event) -> list[Command]:
        match event:
            case BarrierReceived(channel, barrier):
                commands = list(self._on_barrier(channel, barrier))
            case CancelReceived(_, checkpoint_id):
                commands = list(self._on_cancel(checkpoint_id))
            case ChannelEnded(channel):
                self._open.discard(channel)
                commands = [command for id_ in list(self._pending) for command in self._complete_if_all(id_)]
            case CheckpointAborted(checkpoint_id):
                commands = list(self._on_aborted(checkpoint_id))
            case AlignmentTimedOut(checkpoint_id):
                commands = list(self._on_timeout(checkpoint_id))
        self.is_capturing = any(pending.is_capturing for pending in self._pending.values())
        assert all(self._open - pending.delivered for pending in self._pending.values()), self._pending
        assert sum(pending.blocks for pending in self._pending.values()) <= 1, self._pending
        return commands

    def _on_barrier(self, channel: int, barrier: CheckpointBarrier) -> Iterator[Command]:
        assert channel in self._open, f"a barrier in channel {channel}, which has ended"
        id_ = barrier.checkpoint_id
        for other in [other for other, p in self._pending.items() if other < id_ and channel not in p.delivered]:
            yield from self._give_up(
                other, CheckpointFailureReason.SUBSUMED, f"barrier {id_} came where barrier {other} was expected"
            )
        self._newest[channel] = max(self._newest[channel], id_)
        if id_ <= self._settled_id or id_ in self._given_up:
            return
        pending = self._pending.get(id_)
        if pending is None:
            newest = max(self._newest)
            if newest > id_:
                message = f"barrier {newest} came where barrier {id_} was expected"
                yield from self._give_up(id_, CheckpointFailureReason.SUBSUMED, message)
                return
            pending = _Pending(barrier)
            self._pending = dict(sorted([*self._pending.items(), (id_, pending)]))
            yield NoteFirstBarrier(barrier)
        assert channel not in pending.delivered, f"barrier {id_} came twice in channel {channel}"
        if barrier.options.unaligned and pending.blocks:
            yield from self._capture(pending)  # by its first barrier, or because a task before had to
        pending.delivered.add(channel)
        if pending.blocks:
            yield BlockChannel(channel)
        yield from self._complete_if_all(id_)

    def _capture(self, pending: _Pending) -> Iterator[Command]:
        """Go on unaligned: snapshot now, and let the blocked channels go."""
        id_ = pending.barrier.checkpoint_id
        for other in [other for other, p in self._pending.items() if other < id_ and not p.is_capturing]:
            yield from self._give_up(
                other, CheckpointFailureReason.SUBSUMED, f"the snapshot of checkpoint {id_} had to come first"
            )
        options = dataclasses.replace(pending.barrier.options, unaligned=True)
        pending.barrier = dataclasses.replace(pending.barrier, options=options)
        pending.is_capturing = True
        yield TakeSnapshot(pending.barrier)
        yield from _unblocked(pending.delivered)

    def _on_timeout(self, checkpoint_id: int) -> Iterator[Command]:
        pending = self._pending.get(checkpoint_id)
        if pending is not None and pending.blocks:
            yield from self._capture(pending)

    def _complete_if_all(self, id_: int) -> Iterator[Command]:
        pending = self._pending[id_]
        if not self._open <= pending.delivered:
            return
        del self._pending[id_]
        self._settle(id_)
        if pending.is_capturing:
            yield EndCapture(id_)
            return
        yield TakeSnapshot(pending.barrier)
        if pending.blocks:
            # After the snapshot: they may deliver records of the next epoch.
            yield from _unblocked(pending.delivered)

    def _settle(self, id_: int) -> None:
        # Whoever lacked an older barrier would have had to deliver it first: the older ones are settled too.
        assert all(other > id_ for other in self._pending), (id_, self._pending)
        self._settled_id = max(self._settled_id, id_)
        self._given_up = {other for other in self._given_up if other > self._settled_id}

    def _on_cancel(self, id_: int) -> Iterator[Command]:
        if id_ > self._settled_id and id_ not in self._given_up:
            yield from self._give_up(id_, None, "")

    def _on_aborted(self, id_: int) -> Iterator[Command]:
        if id_ > self._settled_id:
            for command in self._give_up(id_, None, ""):
                if isinstance(command, UnblockChannels):  # the JobManager tells all tasks itself
                    yield command

    def _give_up(self, id_: int, reason: CheckpointFailureReason | None, message: str) -> Iterator[Command]:
        pending = self._pending.pop(id_, None)
        self._given_up.add(id_)
        yield AbandonCheckpoint(id_, reason, message)
        if pending is not None and pending.blocks:
            yield from _unblocked(pending.delivered)


def _unblocked(channels: set[int]) -> Iterator[Command]:
    if channels:
        yield UnblockChannels(frozenset(channels))
