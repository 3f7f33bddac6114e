"""Stamps records with event times and emits watermarks in the middle of a stream, as a WatermarkStrategy says.

The operator of ``assign_timestamps_and_watermarks``. What is behind a source knows nothing of its splits: where each
should have a watermark of its own the strategy belongs to ``from_source`` (``connectors/stamped_source``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from engine.core.records import Batch
from engine.operators.base import Operator, OperatorContext, OperatorSpec, Output
from engine.operators.event_time import MAIN_SPLIT, EventTime, is_called
from engine.protocol.stream import WATERMARK_MAX_MS
from engine.time.watermarks import WatermarkStrategy

__all__ = ["TimestampsSpec"]


@final
@dataclass(frozen=True)
class TimestampsSpec(OperatorSpec):
    """``keeps_columns``: as of EventTime."""

    strategy: WatermarkStrategy
    keeps_columns: bool = True

    def build(self) -> Operator:
        return _TimestampsOperator(self.strategy, self.keeps_columns)

    def describe(self) -> str:
        return "by a function: compiled on columns, else interpreted" if is_called(self.strategy) else ""


@final
class _TimestampsOperator(Operator):
    takes_kinds = True

    def __init__(self, strategy: WatermarkStrategy, keeps_columns: bool) -> None:
        self._strategy = strategy
        self._keeps_columns = keeps_columns

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._time = EventTime(self._strategy, ctx, out, keeps_columns=self._keeps_columns)
        self._time.add_split(MAIN_SPLIT)

    def tier(self, planned: str) -> str:
        return self._time.tier(planned)

    def process_batch(self, input_index: int, batch: Batch) -> None:
        self._time.process(batch)

    def process_watermark(self, watermark_ms: int) -> None:
        # Upstream watermarks are replaced by ours, but for the last one, which ends event time.
        if watermark_ms == WATERMARK_MAX_MS:
            self._time.end()

    def process_idle(self, idle: bool) -> None:
        # As with watermarks: what is upstream does not know our strategy. Without one of our own it is handed on.
        strategy = self._strategy
        if strategy.out_of_orderness_ms is None and strategy.generator_supplier is None:
            self._time.set_idle(MAIN_SPLIT, idle)

    def next_timer_ms(self) -> int | None:
        return self._time.next_timer_ms()

    def on_timer(self, now_ms: int) -> None:
        self._time.on_timer(now_ms)
