"""Stamps records with event times and emits watermarks as a WatermarkStrategy says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from engine.core.records import Batch, RowBatch, rows_of
from engine.operators.base import Operator, OperatorSpec
from engine.operators.failure import user_error
from engine.protocol.stream import WATERMARK_MAX_MS
from engine.time.watermarks import TimestampAssigner, WatermarkStrategy

__all__ = ["TimestampsSpec"]

#: What an assigner sees as the previous timestamp of a record without one; Long.MIN_VALUE as in Flink.
NO_TIMESTAMP_MS = -(2**63)


@final
@dataclass(frozen=True)
class TimestampsSpec(OperatorSpec):
    strategy: WatermarkStrategy

    def build(self) -> Operator:
        return _TimestampsOperator(self.strategy)


@final
class _TimestampsOperator(Operator):
    def __init__(self, strategy: WatermarkStrategy) -> None:
        self._strategy = strategy
        self._watermark_ms = NO_TIMESTAMP_MS

    def process_batch(self, input_index: int, batch: Batch) -> None:
        rows = rows_of(batch)
        stamps = self._stamp(rows)
        self.out.emit(RowBatch(rows.rows, stamps))
        delay_ms = self._strategy.out_of_orderness_ms
        if delay_ms is not None and stamps:
            watermark_ms = max(stamps) - delay_ms - 1
            if watermark_ms > self._watermark_ms:
                self._watermark_ms = watermark_ms
                self.out.emit_watermark(watermark_ms)

    def _stamp(self, batch: RowBatch) -> list[int] | None:
        assigner = self._strategy.timestamp_assigner
        if assigner is None:
            return batch.timestamps_ms
        extract = assigner.extract_timestamp if isinstance(assigner, TimestampAssigner) else assigner
        known = batch.timestamps_ms or [NO_TIMESTAMP_MS] * len(batch.rows)
        stamps: list[int] = []
        for row, stamp in zip(batch.rows, known, strict=True):
            try:
                stamps.append(int(extract(row, stamp)))
            except BaseException as error:
                raise user_error(error, operator_name=self.ctx.operator_name, record=row) from error
        return stamps

    def process_watermark(self, watermark_ms: int) -> None:
        # Upstream watermarks are replaced by ours, but for the last one, which ends event time.
        if watermark_ms == WATERMARK_MAX_MS:
            self.out.emit_watermark(watermark_ms)
