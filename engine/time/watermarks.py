"""WatermarkStrategy: how event times are found and how far event time has come. Configuration only, PyFlink's names.

The operator that applies it is ``operators/timestamps``.
"""

from __future__ import annotations

import abc
import datetime as dt
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from engine.core.errors import ProgramError
from engine.core.late_dataclass import dataclass

__all__ = [
    "Duration",
    "FieldTimestamps",
    "IngestionTimeAssigner",
    "Instant",
    "Time",
    "TimestampAssigner",
    "Watermark",
    "WatermarkGenerator",
    "WatermarkOutput",
    "WatermarkStrategy",
    "span_ms",
]


def _whole_ms(given: Any, what: str) -> int:
    """Return milliseconds as an int: half a second is 500, half a millisecond is an error."""
    if hasattr(given, "__index__") or (isinstance(given, float) and given.is_integer()):
        return int(given)
    raise ProgramError(f"{what}: expected whole milliseconds, got {given!r:.80} of type {type(given).__name__}.")


@dataclass(frozen=True)
class Duration:
    """A span of time; made by ``Duration.of_seconds(5)`` and its siblings."""

    milliseconds: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "milliseconds", _whole_ms(self.milliseconds, "Duration"))

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


@dataclass(frozen=True, init=False)
class Time:
    """A span of time, the older spelling: ``Time.seconds(5)``."""

    _milliseconds: int

    def __init__(self, milliseconds: int) -> None:
        object.__setattr__(self, "_milliseconds", _whole_ms(milliseconds, "Time"))

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


def span_ms(span: Time | Duration | dt.timedelta, what: str) -> int:
    """Return a span of time in milliseconds. ``what`` names the argument in errors."""
    match span:
        case Time():
            return span.to_milliseconds()
        case Duration():
            return span.to_millis()
        case dt.timedelta():
            return span // dt.timedelta(milliseconds=1)
    raise ProgramError(f"{what}: expected a Time, Duration or timedelta such as Time.seconds(5), got {span!r:.80}.")


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
class FieldTimestamps(TimestampAssigner):
    """The event time is a field, in milliseconds: by position or name. Columns stay columns (ours, not PyFlink's)."""

    field: int | str

    def extract_timestamp(self, value: Any, record_timestamp: int) -> int:
        field: Any = self.field
        time_ms: int = getattr(value, field) if isinstance(field, str) and not isinstance(value, dict) else value[field]
        return time_ms


@dataclass(frozen=True)
class IngestionTimeAssigner(TimestampAssigner):
    """The time is the clock's when the record comes by, never less than that of the one before (Flink's). The operator
    reads its own clock, once a batch, and its watermark goes on with it when no record comes."""

    def extract_timestamp(self, value: Any, record_timestamp: int) -> int:
        raise ProgramError("IngestionTimeAssigner is for a WatermarkStrategy, whose operator knows the time.")


@dataclass(frozen=True)
class Watermark:
    """No record with an event time up to ``timestamp`` is expected any more. What a custom generator emits."""

    timestamp: int

    def get_timestamp(self) -> int:
        return self.timestamp


class WatermarkOutput(abc.ABC):
    """Where a generator sends its watermarks; one that is not later than the last is ignored."""

    @abc.abstractmethod
    def emit_watermark(self, watermark: Watermark | int) -> None: ...

    @abc.abstractmethod
    def mark_idle(self) -> None:
        """Do not wait for this stream until it has a record or a watermark again."""

    @abc.abstractmethod
    def mark_active(self) -> None: ...


class WatermarkGenerator(abc.ABC):
    """Flink's: says when event time advances. One object per subtask, made by the strategy's supplier."""

    @abc.abstractmethod
    def on_event(self, event: Any, event_timestamp: int, output: WatermarkOutput) -> None:
        """A record has come. A watermark emitted here follows it."""

    @abc.abstractmethod
    def on_periodic_emit(self, output: WatermarkOutput) -> None:
        """Called after each batch and every ``pipeline.auto-watermark-interval``."""


Span = Time | Duration | dt.timedelta


@dataclass(frozen=True)
class WatermarkStrategy:
    """How to stamp records and when to advance event time. ``out_of_orderness_ms`` None = no watermarks at all, or
    those of ``generator_supplier``."""

    out_of_orderness_ms: int | None = None
    timestamp_assigner: TimestampAssigner | Callable[[Any, int], int] | None = None
    idle_timeout_ms: int | None = None
    alignment: tuple[str, int, int] | None = None
    #: without arguments → WatermarkGenerator
    generator_supplier: Callable[[], WatermarkGenerator] | None = None

    @staticmethod
    def for_generator(generator_supplier: Callable[[], WatermarkGenerator]) -> WatermarkStrategy:
        """Let a WatermarkGenerator decide; pass its class or a function that makes one (Flink's, not PyFlink's)."""
        if not callable(generator_supplier):
            raise ProgramError(
                f"for_generator({generator_supplier!r:.80}): expected the class of a WatermarkGenerator or a function "
                "without arguments that makes one: each split has a generator of its own."
            )
        return WatermarkStrategy(generator_supplier=generator_supplier)

    @staticmethod
    def no_watermarks() -> WatermarkStrategy:
        return WatermarkStrategy()

    @staticmethod
    def for_monotonous_timestamps() -> WatermarkStrategy:
        return WatermarkStrategy(out_of_orderness_ms=0)

    @staticmethod
    def for_ingestion_time() -> WatermarkStrategy:
        """Let records have the time at which they come by: nothing is late (Flink's ingestion time)."""
        return WatermarkStrategy(out_of_orderness_ms=0, timestamp_assigner=IngestionTimeAssigner())

    @staticmethod
    def for_bounded_out_of_orderness(max_out_of_orderness: Span) -> WatermarkStrategy:
        return WatermarkStrategy(
            out_of_orderness_ms=_checked_span(max_out_of_orderness, "for_bounded_out_of_orderness", 0)
        )

    def with_timestamp_assigner(
        self, timestamp_assigner: TimestampAssigner | Callable[[Any, int], int]
    ) -> WatermarkStrategy:
        _check_assigner(timestamp_assigner)
        return replace(self, timestamp_assigner=timestamp_assigner)

    def with_timestamp_field(self, field: int | str) -> WatermarkStrategy:
        """Take the event time from a field that has milliseconds (ours, not PyFlink's)."""
        return replace(self, timestamp_assigner=FieldTimestamps(field))

    def with_idleness(self, idle_timeout: Span) -> WatermarkStrategy:
        return replace(self, idle_timeout_ms=_checked_span(idle_timeout, "with_idleness", 1))

    def with_watermark_alignment(
        self, watermark_group: str, max_allowed_watermark_drift: Span, update_interval: Span | None = None
    ) -> WatermarkStrategy:
        name = "with_watermark_alignment"
        if not isinstance(watermark_group, str) or not watermark_group:
            raise ProgramError(f"{name}({watermark_group!r:.80}, …): expected the name of a group, not empty.")
        drift_ms = _checked_span(max_allowed_watermark_drift, f"{name}, the drift", 0)
        interval_ms = 1000 if update_interval is None else _checked_span(update_interval, f"{name}, the interval", 1)
        return replace(self, alignment=(watermark_group, drift_ms, interval_ms))


def _checked_span(span: Any, what: str, at_least_ms: int) -> int:
    millis = span_ms(span, what)
    if millis < at_least_ms:
        raise ProgramError(f"{what}: expected at least {at_least_ms} ms, got {millis} ms.")
    return millis


def _check_assigner(assigner: Any) -> None:
    """Raises: ProgramError for what would fail at the first record, or be left out without a word."""
    if isinstance(assigner, type):
        raise ProgramError(
            f"with_timestamp_assigner({assigner.__name__}): got a class; pass an object of it: {assigner.__name__}()."
        )
    extract = getattr(assigner, "extract_timestamp", assigner)
    if not callable(extract):
        raise ProgramError(
            f"with_timestamp_assigner({assigner!r:.80}): expected a TimestampAssigner object or a function of a record "
            "and its timestamp so far."
        )
    try:
        inspect.signature(extract).bind(None, 0)
    except TypeError:
        raise ProgramError(
            f"with_timestamp_assigner({getattr(extract, '__name__', assigner)!s:.80}): it has to take two arguments, "
            "the record and its timestamp so far, e.g. lambda record, timestamp: record[1]."
        ) from None
    except ValueError:
        pass  # a built-in function that tells nothing of its arguments
