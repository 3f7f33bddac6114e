"""WatermarkStrategy: how event times are found and how far event time has come. Configuration only, PyFlink's names.

The operator that applies it is ``operators/timestamps``.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["Duration", "Instant", "Time", "TimestampAssigner", "WatermarkStrategy"]


@dataclass(frozen=True)
class Duration:
    """A span of time; made by ``Duration.of_seconds(5)`` and its siblings."""

    milliseconds: int

    @staticmethod
    def of_days(days: int) -> Duration:
        return Duration(days * 86_400_000)

    @staticmethod
    def of_hours(hours: int) -> Duration:
        return Duration(hours * 3_600_000)

    @staticmethod
    def of_minutes(minutes: int) -> Duration:
        return Duration(minutes * 60_000)

    @staticmethod
    def of_seconds(seconds: int) -> Duration:
        return Duration(seconds * 1000)

    @staticmethod
    def of_millis(millis: int) -> Duration:
        return Duration(millis)

    @staticmethod
    def of_nanos(nanos: int) -> Duration:
        return Duration(nanos // 1_000_000)

    def to_millis(self) -> int:
        return self.milliseconds


@dataclass(frozen=True)
class Time:
    """A span of time, the older spelling: ``Time.seconds(5)``."""

    _milliseconds: int

    def to_milliseconds(self) -> int:
        return self._milliseconds

    @staticmethod
    def milliseconds(milliseconds: int) -> Time:
        return Time(milliseconds)

    @staticmethod
    def seconds(seconds: int) -> Time:
        return Time(seconds * 1000)

    @staticmethod
    def minutes(minutes: int) -> Time:
        return Time(minutes * 60_000)

    @staticmethod
    def hours(hours: int) -> Time:
        return Time(hours * 3_600_000)

    @staticmethod
    def days(days: int) -> Time:
        return Time(days * 86_400_000)


@dataclass(frozen=True)
class Instant:
    """A point in time."""

    seconds: int
    nanos: int

    def to_epoch_milli(self) -> int:
        return self.seconds * 1000 + self.nanos // 1_000_000

    @staticmethod
    def of_epoch_milli(epoch_milli: int) -> Instant:
        return Instant(epoch_milli // 1000, epoch_milli % 1000 * 1_000_000)


class TimestampAssigner(abc.ABC):
    @abc.abstractmethod
    def extract_timestamp(self, value: Any, record_timestamp: int) -> int:
        """Return the record's event time in milliseconds. ``record_timestamp``: what it had, or a very small number."""


@dataclass(frozen=True)
class WatermarkStrategy:
    """How to stamp records and when to advance event time. ``out_of_orderness_ms`` None = no watermarks at all."""

    out_of_orderness_ms: int | None = None
    timestamp_assigner: TimestampAssigner | Callable[[Any, int], int] | None = None
    idle_timeout_ms: int | None = None
    alignment: tuple[str, int, int] | None = None

    @staticmethod
    def no_watermarks() -> WatermarkStrategy:
        return WatermarkStrategy()

    @staticmethod
    def for_monotonous_timestamps() -> WatermarkStrategy:
        return WatermarkStrategy(out_of_orderness_ms=0)

    @staticmethod
    def for_bounded_out_of_orderness(max_out_of_orderness: Duration) -> WatermarkStrategy:
        return WatermarkStrategy(out_of_orderness_ms=max_out_of_orderness.milliseconds)

    def with_timestamp_assigner(
        self, timestamp_assigner: TimestampAssigner | Callable[[Any, int], int]
    ) -> WatermarkStrategy:
        return replace(self, timestamp_assigner=timestamp_assigner)

    def with_idleness(self, idle_timeout: Duration) -> WatermarkStrategy:
        return replace(self, idle_timeout_ms=idle_timeout.milliseconds)

    def with_watermark_alignment(
        self, watermark_group: str, max_allowed_watermark_drift: Duration, update_interval: Duration | None = None
    ) -> WatermarkStrategy:
        interval_ms = 1000 if update_interval is None else update_interval.milliseconds
        return replace(self, alignment=(watermark_group, max_allowed_watermark_drift.milliseconds, interval_ms))
