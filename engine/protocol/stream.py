"""In-band elements: what travels through a channel, in order. All else travels by ``engine/protocol/control``."""

from __future__ import annotations

from dataclasses import field
from typing import Final, TypeAlias

from engine.core.late_dataclass import dataclass
from engine.core.records import Batch
from engine.protocol.checkpoint import CheckpointOptions

__all__ = [
    "END_OF_DATA",
    "WATERMARK_MAX_MS",
    "CancelBarrier",
    "CheckpointBarrier",
    "Element",
    "EndOfData",
    "EndOfSuperstep",
    "Records",
    "Watermark",
    "WatermarkStatus",
]

#: The watermark that says "event time is over"; Long.MAX_VALUE as in Flink.
WATERMARK_MAX_MS: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Records:
    """A batch of records. One element whatever its shape: the batch is the unit of cost."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Watermark:
    """No record with an event time ≤ ``timestamp_ms`` follows in this channel."""

    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class WatermarkStatus:
    """The channel went idle (its watermark no longer counts) or came back."""

    idle: bool


@dataclass(frozen=True, slots=True)
class CheckpointBarrier:
    """Separates the records before a checkpoint from those after it."""

    checkpoint_id: int
    timestamp_ms: int
    options: CheckpointOptions = field(default_factory=CheckpointOptions)
    #: Batches of records that an unaligned barrier has overtaken in its channel: they come right behind it and belong
    #: before it.
    num_overtaken: int = 0


@dataclass(frozen=True, slots=True)
class CancelBarrier:
    """The checkpoint is abandoned: stop waiting for its barriers."""

    checkpoint_id: int


@dataclass(frozen=True, slots=True)
class EndOfSuperstep:
    """All records of one superstep of an iteration have been sent in this channel (bulk iterations only)."""

    superstep: int


@dataclass(frozen=True, slots=True)
class EndOfData:
    """The last element of a channel."""


END_OF_DATA: Final = EndOfData()

Element: TypeAlias = (
    Records | Watermark | WatermarkStatus | CheckpointBarrier | CancelBarrier | EndOfSuperstep | EndOfData
)
