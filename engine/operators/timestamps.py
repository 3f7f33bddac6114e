"""Stamps records with event times and emits watermarks as a WatermarkStrategy says.

The built-in strategies emit one watermark a batch, behind it; a custom generator also between records and by the clock.
A stream without records for the strategy's idle timeout is marked idle: event time further down goes on without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, final

from engine.core.config import Configuration
from engine.core.options import JobOptions
from engine.core.records import Batch, ColumnBatch, RowBatch, rows_of
from engine.operators.base import Operator, OperatorContext, OperatorSpec, Output
from engine.operators.column_fields import column_index, picked_timestamp_field
from engine.operators.failure import user_error
from engine.protocol.stream import WATERMARK_MAX_MS
from engine.time.watermarks import (
    TimestampAssigner,
    Watermark,
    WatermarkGenerator,
    WatermarkOutput,
    WatermarkStrategy,
)
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS

if TYPE_CHECKING:
    import numpy as np

__all__ = ["TimestampsSpec"]

#: What an assigner sees as the previous timestamp of a record without one; Long.MIN_VALUE as in Flink.
NO_TIMESTAMP_MS = TIME_MIN_MS


@final
@dataclass(frozen=True)
class TimestampsSpec(OperatorSpec):
    strategy: WatermarkStrategy

    def build(self) -> Operator:
        return _TimestampsOperator(self.strategy)

    @property
    def emits_columns(self) -> bool:
        """Whether columns that come in stay columns."""
        strategy = self.strategy
        if strategy.generator_supplier is not None:
            return False
        return strategy.timestamp_assigner is None or picked_timestamp_field(strategy.timestamp_assigner) is not None


@final
class _TimestampsOperator(Operator):
    def __init__(self, strategy: WatermarkStrategy) -> None:
        self._strategy = strategy
        self._watermark_ms = NO_TIMESTAMP_MS
        self._generator: WatermarkGenerator | None = None
        self._is_idle = False
        #: where the event time stands, if the assigner only picks it
        self._field = picked_timestamp_field(strategy.timestamp_assigner)

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        now_ms = ctx.clock.now_ms()
        self._active_ms = now_ms  #: when the last record came
        if self._strategy.generator_supplier is not None:
            self._generator = self._strategy.generator_supplier()
            self._generator_output = _GeneratorOutput(self)
            self._interval_ms = Configuration(ctx.config).get(JobOptions.AUTO_WATERMARK_INTERVAL)
            self._periodic_ms = now_ms + self._interval_ms

    # --- records -----------------------------------------------------------------------------------------------------

    def process_batch(self, input_index: int, batch: Batch) -> None:
        if isinstance(batch, ColumnBatch) and self._generator is None and len(batch):
            column_stamps = self._column_stamps(batch)
            if column_stamps is not None:
                self._process_columns(ColumnBatch(batch.columns, column_stamps, batch.scalar))
                return
        rows = rows_of(batch)
        if not rows.rows:
            return
        stamps = self._stamp(rows)
        if self._strategy.idle_timeout_ms is not None:
            self._active_ms = self.ctx.clock.now_ms()
        self.set_idle(False)
        if self._generator is not None:
            self._process_with_generator(self._generator, RowBatch(rows.rows, stamps))
            return
        self.out.emit(RowBatch(rows.rows, stamps))
        delay_ms = self._strategy.out_of_orderness_ms
        if delay_ms is not None and stamps:
            self.advance(max(stamps) - delay_ms - 1)

    def _process_columns(self, batch: ColumnBatch) -> None:
        if self._strategy.idle_timeout_ms is not None:
            self._active_ms = self.ctx.clock.now_ms()
        self.set_idle(False)
        self.out.emit(batch)
        delay_ms = self._strategy.out_of_orderness_ms
        if delay_ms is not None and batch.timestamps_ms is not None:
            self.advance(int(batch.timestamps_ms.max()) - delay_ms - 1)

    def _column_stamps(self, batch: ColumnBatch) -> np.ndarray[Any, Any] | None:
        """Return the event times if they stand in a column of integers, or in the batch already; else None."""
        import pyarrow as pa

        if self._strategy.timestamp_assigner is None:
            return batch.timestamps_ms
        if self._field is None or batch.scalar:
            return None
        index = column_index(batch.columns.schema, self._field)
        if index < 0:
            return None
        column = batch.columns.column(index)
        if column.null_count or not pa.types.is_signed_integer(column.type):
            return None
        stamps: np.ndarray[Any, Any] = column.to_numpy().astype("int64", copy=False)
        return None if int(stamps.min()) == TIME_MIN_MS else stamps

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
        if min(stamps) <= TIME_MIN_MS or max(stamps) > TIME_MAX_MS:
            self._refuse(batch.rows, stamps)
        return stamps

    def _refuse(self, rows: list[Any], stamps: list[int]) -> NoReturn:
        row, stamp = next((r, s) for r, s in zip(rows, stamps, strict=True) if not TIME_MIN_MS < s <= TIME_MAX_MS)
        error = ValueError(f"the timestamp {stamp} is no time in milliseconds: it does not fit into 64 bits")
        raise user_error(error, operator_name=self.ctx.operator_name, record=row)

    def _process_with_generator(self, generator: WatermarkGenerator, batch: RowBatch) -> None:
        output = self._generator_output
        stamps = batch.timestamps_ms or [NO_TIMESTAMP_MS] * len(batch)
        emitted = 0
        for index, (row, stamp) in enumerate(zip(batch.rows, stamps, strict=True)):
            try:
                generator.on_event(row, stamp, output)
            except Exception as error:
                raise user_error(error, operator_name=self.ctx.operator_name, record=row) from error
            if output.calls:
                self.out.emit(batch.slice(emitted, index + 1))
                emitted = index + 1
                output.carry_out()
        self.out.emit(batch.slice(emitted, len(batch)) if emitted else batch)
        self._emit_periodically(generator)

    def _emit_periodically(self, generator: WatermarkGenerator) -> None:
        try:
            generator.on_periodic_emit(self._generator_output)
        except Exception as error:
            raise user_error(error, operator_name=self.ctx.operator_name) from error
        self._generator_output.carry_out()

    # --- time --------------------------------------------------------------------------------------------------------

    def advance(self, watermark_ms: int) -> None:
        """Emit a watermark if event time advances by it."""
        if watermark_ms > self._watermark_ms:
            self._watermark_ms = watermark_ms
            self.out.emit_watermark(watermark_ms)

    def set_idle(self, idle: bool) -> None:
        if idle is not self._is_idle:
            self._is_idle = idle
            self.out.emit_idle(idle)

    def process_watermark(self, watermark_ms: int) -> None:
        # Upstream watermarks are replaced by ours, but for the last one, which ends event time.
        if watermark_ms == WATERMARK_MAX_MS:
            self._is_idle = False
            self.advance(watermark_ms)

    def process_idle(self, idle: bool) -> None:
        # As with watermarks: what is upstream does not know our strategy. Without one of our own it is handed on.
        strategy = self._strategy
        if strategy.out_of_orderness_ms is None and strategy.generator_supplier is None:
            self.set_idle(idle)

    def next_timer_ms(self) -> int | None:
        timeout_ms = self._strategy.idle_timeout_ms
        idle_ms = None if timeout_ms is None or self._is_idle else self._active_ms + timeout_ms
        if self._generator is None or self._interval_ms <= 0:
            return idle_ms
        return self._periodic_ms if idle_ms is None else min(idle_ms, self._periodic_ms)

    def on_timer(self, now_ms: int) -> None:
        timeout_ms = self._strategy.idle_timeout_ms
        if timeout_ms is not None and now_ms >= self._active_ms + timeout_ms:
            self.set_idle(True)
        if self._generator is not None and now_ms >= self._periodic_ms:
            self._periodic_ms = now_ms + self._interval_ms
            self._emit_periodically(self._generator)


@final
class _GeneratorOutput(WatermarkOutput):
    """Keeps what the generator says until the records before it have been emitted."""

    def __init__(self, operator: _TimestampsOperator) -> None:
        self._operator = operator
        #: a watermark, or whether idle
        self.calls: list[int | bool] = []

    def emit_watermark(self, watermark: Watermark | int) -> None:
        time_ms = watermark.timestamp if isinstance(watermark, Watermark) else int(watermark)
        self.calls += [False, min(time_ms, WATERMARK_MAX_MS)]

    def mark_idle(self) -> None:
        self.calls.append(True)

    def mark_active(self) -> None:
        self.calls.append(False)

    def carry_out(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            if isinstance(call, bool):
                self._operator.set_idle(call)
            else:
                self._operator.advance(call)
