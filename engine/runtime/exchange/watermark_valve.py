"""What watermarks and idleness of single channels mean together. Pure; the rules are Flink's.

``StatusWatermarkValve`` combines the channels of one logical input, ``CombinedWatermark`` the inputs of a task. Not
here: splits within a source (``time/split_watermarks``).

Source: Flink's StatusWatermarkValve (channels) and IndexedCombinedWatermarkStatus (inputs of an operator).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias, final

from engine.core.late_dataclass import dataclass
from engine.protocol.stream import WATERMARK_MAX_MS

__all__ = ["NEVER_MS", "CombinedWatermark", "IdleChanged", "StatusWatermarkValve", "ValveOutput", "WatermarkAdvanced"]

#: Before any watermark.
NEVER_MS: Final = -(1 << 63)


@dataclass(frozen=True, slots=True)
class WatermarkAdvanced:
    watermark_ms: int


@dataclass(frozen=True, slots=True)
class IdleChanged:
    """All channels are idle, or one is not any more."""

    idle: bool


ValveOutput: TypeAlias = WatermarkAdvanced | IdleChanged


@dataclass(slots=True)
class _Status:
    watermark_ms: int = NEVER_MS
    is_idle: bool = False
    #: Its watermark counts: it is active, and has caught up with what was told since it became so.
    is_aligned: bool = True
    #: It has ended without coming to the end of time: nobody waits for it.
    is_gone: bool = False


@final
class StatusWatermarkValve:
    """The watermark of an input is the least of its aligned channels and never goes back.

    A channel that was idle while the others advanced holds nobody up: until it has caught up with what was told it is
    not aligned. When all channels are idle nobody is waited for any more: the greatest watermark of all is told, so
    that it does not matter in which order they became idle. What an idle channel says of event time is not heard; its
    sender says first that it is active.

    All methods return what the task is told, in order.
    """

    def __init__(self, num_channels: int) -> None:
        self._channels = [_Status() for _ in range(num_channels)]
        self._told_ms = NEVER_MS
        self._is_idle = False

    def watermark(self, channel: int, watermark_ms: int) -> Sequence[ValveOutput]:
        status = self._channels[channel]
        if status.is_idle or watermark_ms <= status.watermark_ms:
            return ()
        status.watermark_ms = watermark_ms
        if watermark_ms >= self._told_ms:
            status.is_aligned = True
        return self._advance()

    def status(self, channel: int, idle: bool) -> Sequence[ValveOutput]:
        status = self._channels[channel]
        if idle is status.is_idle or status.is_gone:
            return ()
        status.is_idle = idle
        if not idle:
            status.is_aligned = status.watermark_ms >= self._told_ms
            return (*self._set_idle(False), *self._advance())
        status.is_aligned = False
        return self._after_leaving()

    def end(self, channel: int) -> Sequence[ValveOutput]:
        """The channel has delivered its last element. At the end of time it stays what it is, as in Flink; one that did
        not come so far, e.g. without event time, is left out from now on."""
        status = self._channels[channel]
        if status.watermark_ms == WATERMARK_MAX_MS:
            return ()
        status.is_gone = True
        status.is_aligned = False
        if all(other.is_gone for other in self._channels):
            return ()  # nobody is told anything behind the last element
        return self._after_leaving()

    def _after_leaving(self) -> Sequence[ValveOutput]:
        if any(not other.is_idle and not other.is_gone for other in self._channels):
            return self._advance()
        return (*self._told(max(other.watermark_ms for other in self._channels)), *self._set_idle(True))

    def _advance(self) -> Sequence[ValveOutput]:
        aligned = [other.watermark_ms for other in self._channels if other.is_aligned]
        return self._told(min(aligned, default=NEVER_MS))

    def _told(self, watermark_ms: int) -> Sequence[ValveOutput]:
        if watermark_ms <= self._told_ms:
            return ()
        self._told_ms = watermark_ms
        return (WatermarkAdvanced(watermark_ms),)

    def _set_idle(self, idle: bool) -> Sequence[ValveOutput]:
        if idle is self._is_idle:
            return ()
        self._is_idle = idle
        return (IdleChanged(idle),)


@final
class CombinedWatermark:
    """The watermark of a task with several inputs: the least of those that are not idle; of all when all are."""

    def __init__(self, inputs: Iterable[int]) -> None:
        self._watermark_ms = dict.fromkeys(inputs, NEVER_MS)
        self._idle: set[int] = set()
        self._told_ms = NEVER_MS

    def take(self, input_index: int, outputs: Iterable[ValveOutput]) -> list[ValveOutput]:
        """What the valve of an input says → what the task is told."""
        told: list[ValveOutput] = []
        for output in outputs:
            was_idle = len(self._idle) == len(self._watermark_ms)
            match output:
                case WatermarkAdvanced(watermark_ms):
                    self._watermark_ms[input_index] = watermark_ms
                case IdleChanged(True):
                    self._idle.add(input_index)
                case IdleChanged(False):
                    self._idle.discard(input_index)
            is_idle = len(self._idle) == len(self._watermark_ms)
            combined = self._combined_ms(is_idle)
            if combined > self._told_ms:
                self._told_ms = combined
                told.append(WatermarkAdvanced(combined))
            if is_idle is not was_idle:
                told.append(IdleChanged(is_idle))
        return told

    def _combined_ms(self, is_idle: bool) -> int:
        if is_idle:
            return max(self._watermark_ms.values())
        return min(ms for index, ms in self._watermark_ms.items() if index not in self._idle)
