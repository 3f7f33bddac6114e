"""Operators whose watermark makes results without end, until something else of their slot has happened."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final

from engine.core.records import Batch, RowBatch
from engine.operators.base import Operator, OperatorSpec, PollResult, SourceOperator

#: A piece is a record: far more of them than an exchange takes before it has no room.
_PIECES_MAX: Final = 300_000


def seen(operator: Operator) -> set[str]:
    """Return what has happened in this slot."""
    found: set[str] = operator.ctx.slot_shared.setdefault("seen", set())
    return found


@dataclass(frozen=True)
class Ends(OperatorSpec):
    """Emits a record and a watermark, then waits for "end"."""

    num_inputs = 0

    def build(self) -> Operator:
        return _Ends()


class _Ends(SourceOperator):
    def __init__(self) -> None:
        self._is_sent = self._ends = False

    def handle_event(self, event: object) -> None:
        self._ends = True

    def poll(self, rows_max: int) -> PollResult:
        if not self._is_sent:
            self._is_sent = True
            self.out.emit(RowBatch([0]))
            self.out.emit_watermark(1)
        return PollResult.END if self._ends else PollResult.IDLE


@dataclass(frozen=True)
class Endless(OperatorSpec):
    """Tells "fires" when it has begun with its first watermark, goes on until ``until`` has happened, and tells
    "fired". Tells "snapshot" too, and sees it."""

    until: str
    can_snapshot: bool = False

    def build(self) -> Operator:
        return _Endless(self)


class _Endless(Operator):
    def __init__(self, spec: Endless) -> None:
        self._spec = spec
        self._has_fired = False

    def process_batch(self, input_index: int, batch: Batch) -> None:
        self.out.emit(batch)

    def advance_watermark(self, watermark_ms: int) -> Generator[None, None, None]:
        if not self._has_fired:
            self._has_fired = True
            self.ctx.send_event("fires")
            seen(self).add("fires")
            for _ in range(_PIECES_MAX):
                if self._spec.until in seen(self):
                    break
                self.out.emit(RowBatch([1]))
                yield
            else:
                raise AssertionError(f"{self._spec.until!r} has not happened while results came in pieces")
            self.ctx.send_event("fired")
        self.out.emit_watermark(watermark_ms)

    def can_snapshot_between(self) -> bool:
        return self._spec.can_snapshot

    def snapshot_state(self, checkpoint_id: int) -> None:
        seen(self).add("snapshot")
        self.ctx.send_event("snapshot")


@dataclass(frozen=True)
class Other(OperatorSpec):
    """Sees "other" when it is stepped while somebody fires, and ends; or when it is told to."""

    by_event: bool = False
    num_inputs = 0

    def build(self) -> Operator:
        return _Other(self.by_event)


class _Other(SourceOperator):
    def __init__(self, by_event: bool) -> None:
        self._may = not by_event

    def handle_event(self, event: object) -> None:
        self._may = True

    def poll(self, rows_max: int) -> PollResult:
        if not self._may:
            return PollResult.IDLE
        if "fires" not in seen(self):
            return PollResult.MORE
        seen(self).add("other")
        return PollResult.END


@dataclass(frozen=True)
class Swallow(OperatorSpec):
    def build(self) -> Operator:
        return _Swallow()


class _Swallow(Operator):
    def process_batch(self, input_index: int, batch: Batch) -> None:
        pass

    def process_watermark(self, watermark_ms: int) -> None:
        self.ctx.send_event(("watermark", watermark_ms))


@dataclass(frozen=True)
class Stops(OperatorSpec):
    """Passes records on, and after the first is not ready for more until it is told."""

    def build(self) -> Operator:
        return _Stops()


class _Stops(Operator):
    def __init__(self) -> None:
        self._is_full = self._is_told = False

    def process_batch(self, input_index: int, batch: Batch) -> None:
        self._is_full = True
        self.out.emit(batch)

    def is_ready(self) -> bool:
        return self._is_told or not self._is_full

    def handle_event(self, event: object) -> None:
        self._is_told = True
        self.ctx.send_event("told")


def events_of(story: Any, attempt: Any) -> list[Any]:
    return [event for whose, event in story.events if whose == attempt]
