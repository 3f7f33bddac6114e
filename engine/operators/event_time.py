"""Event time as a WatermarkStrategy says it: stamps records, asks a generator a split, and tells what comes of it.

Used by the sources that ``from_source`` makes, with the splits that they read (``connectors/stamped_source``), and in
the middle of a stream, where all is one split (``timestamps``). Which watermark several splits have together is said
by ``time/split_watermarks``.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NoReturn, final

from engine.core.arrow_arrays import numbers_of
from engine.core.config import Configuration
from engine.core.errors import ProgramError
from engine.core.options import JobOptions
from engine.core.records import Batch, ColumnBatch, RowBatch, rows_of
from engine.operators.base import OperatorContext, Output
from engine.operators.column_fields import column_index, picked_timestamp_field
from engine.operators.failure import user_error
from engine.operators.seen_records import shown
from engine.protocol.stream import WATERMARK_MAX_MS
from engine.time.split_watermarks import SplitWatermarks
from engine.time.watermarks import (
    IngestionTimeAssigner,
    TimestampAssigner,
    Watermark,
    WatermarkGenerator,
    WatermarkOutput,
    WatermarkStrategy,
)
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS

if TYPE_CHECKING:
    import numpy as np

    from engine.operators.compile.stamps import StampFunction

__all__ = ["MAIN_SPLIT", "NO_TIMESTAMP_MS", "EventTime", "is_called"]

#: What an assigner sees as the previous timestamp of a record without one; Long.MIN_VALUE as in Flink.
NO_TIMESTAMP_MS: Final = TIME_MIN_MS
#: The id of what is read without splits, or by a reader that does not tell them.
MAIN_SPLIT: Final = ""


def is_called(strategy: WatermarkStrategy) -> bool:
    """Return whether something of the strategy must see records as rows, unless it compiles."""
    if strategy.generator_supplier is not None:
        return True
    assigner = strategy.timestamp_assigner
    if assigner is None or isinstance(assigner, IngestionTimeAssigner):
        return False
    return picked_timestamp_field(assigner) is None


@final
class EventTime:
    """Of one subtask. The built-in strategies tell one watermark a batch, behind it; a custom generator also between
    records and by the clock. A split without records for the idle timeout is left out of the watermark; when all are,
    or when there was none for so long, the stream is idle.

    ``keeps_columns``: records that come as columns stay so although a function has to see them as rows.

    Nothing of it is in checkpoints: after a restore generators begin anew, as in Flink. What is downstream has the time
    that it had, and time does not go back.
    """

    def __init__(
        self, strategy: WatermarkStrategy, ctx: OperatorContext, out: Output, *, keeps_columns: bool = True
    ) -> None:
        self._ctx = ctx
        self._out = out
        self._keeps_columns = keeps_columns
        self._assigner = strategy.timestamp_assigner
        #: where the event time stands, if the assigner only picks it
        self._field = picked_timestamp_field(strategy.timestamp_assigner)
        self._is_ingestion_time = isinstance(strategy.timestamp_assigner, IngestionTimeAssigner)
        self._compiled: StampFunction | None = None  #: made for the first columns
        self._ingested_ms = NO_TIMESTAMP_MS  #: ingestion time: when the last record came
        self._delay_ms = strategy.out_of_orderness_ms
        self._timeout_ms = strategy.idle_timeout_ms
        self._supplier = strategy.generator_supplier
        self.splits = SplitWatermarks()
        self._generators: dict[str, _SplitGenerator] = {}
        self._told_ms = NO_TIMESTAMP_MS
        self._is_told_idle = False
        self._ended = False
        #: By split, when its last record came, in time that counts: while nothing could be read no time passes.
        self._active_ms: dict[str, int] = {}
        now_ms = ctx.clock.now_ms()
        self._empty_ms: int | None = now_ms  #: since when there is no split; None = there is one, or it was told
        self._uncounted_ms = 0
        self._interval_ms = Configuration(ctx.config).get(JobOptions.AUTO_WATERMARK_INTERVAL)
        self._periodic_ms = now_ms + self._interval_ms

    @property
    def watermark_ms(self) -> int:
        return self._told_ms

    @property
    def is_idle(self) -> bool:
        return self._is_told_idle

    def tier(self, planned: str) -> str:
        """Return how times are found, for people. ``planned``: what is said of it before anything came."""
        why = "" if self._compiled is None else self._compiled.reason
        return f"{planned}; interpreted ({why})" if why else planned

    # --- splits ------------------------------------------------------------------------------------------------------

    def add_split(self, split_id: str, *, is_read: bool = True) -> None:
        """The split was assigned. ``is_read`` False: its turn comes later; until ``begin_split`` it is not idle."""
        if split_id in self.splits.watermark_of:
            return
        self.splits.add(split_id)
        self._empty_ms = None
        if self._supplier is not None:
            self._generators[split_id] = _SplitGenerator(self._new_generator(self._supplier))
        if is_read:
            self.begin_split(split_id)
        self._tell()

    def _new_generator(self, supplier: Callable[[], WatermarkGenerator]) -> WatermarkGenerator:
        try:
            generator = supplier()
        except Exception as error:
            raise user_error(error, operator_name=self._ctx.operator_name) from error
        if not hasattr(generator, "on_event") or not hasattr(generator, "on_periodic_emit"):
            seen = TypeError(f"the function given to for_generator() made {generator!r:.80}, no WatermarkGenerator")
            raise user_error(seen, operator_name=self._ctx.operator_name)
        return generator

    def begin_split(self, split_id: str) -> None:
        if self._timeout_ms is not None and split_id in self.splits.watermark_of:
            self._active_ms[split_id] = self._counted_ms()

    def end_split(self, split_id: str) -> None:
        """All records of the split have been processed."""
        if split_id not in self.splits.watermark_of:
            return
        self.splits.remove(split_id)
        self._generators.pop(split_id, None)
        self._active_ms.pop(split_id, None)
        if not len(self.splits) and self._timeout_ms is not None:
            self._empty_ms = self._counted_ms()
        self._tell()

    # --- records -----------------------------------------------------------------------------------------------------

    def process(self, batch: Batch, split_id: str = MAIN_SPLIT) -> None:
        """Stamp and hand on the next records of a split, and what event time makes of them."""
        if not len(batch):
            return
        if split_id not in self.splits.watermark_of:
            raise ProgramError(
                f"The source of {self._ctx.operator_name!r} has records of split {split_id!r}, which was not assigned "
                "to it or has ended: see split_of_batch() and take_ended() of its reader."
            )
        stamped, rows = self._stamped(batch)
        if self._timeout_ms is not None:
            self._active_ms[split_id] = self._counted_ms()
        if self._is_told_idle or self.splits.is_split_idle(split_id):
            self.set_idle(split_id, False)
        if self._supplier is not None:
            self._process_with_generator(self._generators[split_id], split_id, rows or rows_of(stamped), stamped)
            return
        self._out.emit(stamped)
        if self._delay_ms is None or stamped.timestamps_ms is None:
            return
        stamps = stamped.timestamps_ms
        highest_ms = max(stamps) if isinstance(stamps, list) else int(stamps.max())
        self.advance(split_id, highest_ms - self._delay_ms - 1)

    def _stamped(self, batch: Batch) -> tuple[Batch, RowBatch | None]:
        """Return the batch with event times, and its records as rows if somebody has to see them: they stay columns
        all the same, unless that may have changed them."""
        if isinstance(batch, RowBatch):
            seen = RowBatch(batch.rows, self._stamp(batch))
            return seen, seen
        stamps = self._column_stamps(batch)
        is_called = stamps is None and self._assigner is not None
        if not is_called and self._supplier is None:
            return replace(batch, timestamps_ms=stamps), None
        rows, are_unchanged = shown(batch if stamps is None else replace(batch, timestamps_ms=stamps))
        seen = RowBatch(rows.rows, self._stamp(rows)) if is_called else rows
        # A generator sees them one by one, while others go on their way already.
        can_change = self._supplier is not None and (bool(batch.named) or batch.kinds is not None)
        if not self._keeps_columns or can_change or not are_unchanged():
            return seen, seen
        if is_called:
            import numpy as np

            stamps = np.array(seen.timestamps_ms, np.int64)
        return replace(batch, timestamps_ms=stamps), seen

    def _column_stamps(self, batch: ColumnBatch) -> np.ndarray[Any, Any] | None:
        """Return the event times if no assigner has to be called for them, else None."""
        import pyarrow as pa

        if self._assigner is None:
            return batch.timestamps_ms
        if self._is_ingestion_time:
            import numpy as np

            return np.full(len(batch), self._ingestion_ms(), np.int64)
        if self._field is None or batch.scalar:
            return self._computed_stamps(batch)
        index = column_index(batch.columns.schema, self._field)
        if index < 0:
            return None
        column = batch.columns.column(index)
        if column.null_count or not pa.types.is_signed_integer(column.type):
            return None
        stamps: np.ndarray[Any, Any] = numbers_of(column).astype("int64", copy=False)
        return None if int(stamps.min()) == TIME_MIN_MS else stamps

    def _computed_stamps(self, batch: ColumnBatch) -> np.ndarray[Any, Any] | None:
        if self._compiled is None:
            from engine.operators.compile.stamps import StampFunction

            self._compiled = StampFunction(self._assigner)
        return self._compiled.apply(batch, NO_TIMESTAMP_MS)

    def _stamp(self, batch: RowBatch) -> list[int] | None:
        assigner = self._assigner
        if assigner is None:
            return batch.timestamps_ms
        if self._is_ingestion_time:
            return [self._ingestion_ms()] * len(batch)
        extract = assigner.extract_timestamp if isinstance(assigner, TimestampAssigner) else assigner
        known = batch.timestamps_ms or [NO_TIMESTAMP_MS] * len(batch.rows)
        given: list[Any] = []
        try:
            for row, stamp in zip(batch.rows, known, strict=True):
                given.append(extract(row, stamp))
        except BaseException as error:
            row = batch.rows[len(given)]
            raise user_error(error, operator_name=self._ctx.operator_name, record=row) from error
        stamps = given if set(map(type, given)) == {int} else self._as_millis(batch.rows, given)
        if min(stamps) <= TIME_MIN_MS or max(stamps) > TIME_MAX_MS:
            self._refuse(batch.rows, stamps)
        return stamps

    def _ingestion_ms(self) -> int:
        self._ingested_ms = max(self._ingested_ms, self._ctx.clock.now_ms())
        return self._ingested_ms

    def _as_millis(self, rows: list[Any], given: list[Any]) -> list[int]:
        """Return what an assigner gave, where it is numbers, as whole milliseconds."""
        stamps: list[int] = []
        for row, time in zip(rows, given, strict=True):
            if not isinstance(time, float | numbers.Number) and not hasattr(time, "__index__"):
                seen = TypeError(_no_timestamp(time))
                raise user_error(seen, operator_name=self._ctx.operator_name, record=row)
            try:
                stamps.append(int(time))
            except (TypeError, ValueError, OverflowError) as error:  # complex numbers, NaN, infinity
                seen = TypeError(_no_timestamp(time))
                raise user_error(seen, operator_name=self._ctx.operator_name, record=row) from error
        return stamps

    def _refuse(self, rows: list[Any], stamps: list[int]) -> NoReturn:
        row, stamp = next((r, s) for r, s in zip(rows, stamps, strict=True) if not TIME_MIN_MS < s <= TIME_MAX_MS)
        error = ValueError(f"the timestamp {stamp} is no time in milliseconds: it does not fit into 64 bits")
        raise user_error(error, operator_name=self._ctx.operator_name, record=row)

    def _process_with_generator(self, split: _SplitGenerator, split_id: str, rows: RowBatch, batch: Batch) -> None:
        """``rows``: the records of ``batch``, for the generator to see."""
        stamps = rows.timestamps_ms or [NO_TIMESTAMP_MS] * len(rows)
        emitted = 0
        on_event, output = split.generator.on_event, split.output
        for index, (row, stamp) in enumerate(zip(rows.rows, stamps, strict=True)):
            try:
                on_event(row, stamp, output)
            except Exception as error:
                raise user_error(error, operator_name=self._ctx.operator_name, record=row) from error
            if output.calls:
                self._out.emit(batch.slice(emitted, index + 1))
                emitted = index + 1
                self._carry_out(split_id, output.take())
        self._out.emit(batch.slice(emitted, len(batch)) if emitted else batch)
        self._ask(split_id, split)

    def _ask(self, split_id: str, split: _SplitGenerator) -> None:
        try:
            split.generator.on_periodic_emit(split.output)
        except Exception as error:
            raise user_error(error, operator_name=self._ctx.operator_name) from error
        self._carry_out(split_id, split.output.take())

    def _carry_out(self, split_id: str, calls: list[int | bool]) -> None:
        for call in calls:
            if isinstance(call, bool):
                self.set_idle(split_id, call)
            else:
                self.advance(split_id, call)

    # --- time --------------------------------------------------------------------------------------------------------

    def advance(self, split_id: str, watermark_ms: int) -> None:
        splits = self.splits
        splits.advance(split_id, watermark_ms)
        if splits.watermark_ms > self._told_ms:  # else nothing is new: a watermark changes no idleness
            self._tell()

    def set_idle(self, split_id: str, idle: bool) -> None:
        self.splits.set_idle(split_id, idle)
        self._tell()

    def end(self) -> None:
        """No record follows: event time comes to its end, and nothing is timed any more."""
        self._ended = True
        if self._is_told_idle:  # else the end of time would not be heard downstream
            self._is_told_idle = False
            self._out.emit_idle(False)
        if self._told_ms < WATERMARK_MAX_MS:
            self._told_ms = WATERMARK_MAX_MS
            self._out.emit_watermark(WATERMARK_MAX_MS)

    def _tell(self) -> None:
        """Tell downstream what has changed: first that the stream is active, last that it is idle."""
        splits = self.splits
        if self._ended:
            return
        if self._is_told_idle and len(splits) and not splits.is_idle:
            self._is_told_idle = False
            self._out.emit_idle(False)
        if splits.watermark_ms > self._told_ms:
            self._told_ms = splits.watermark_ms
            self._out.emit_watermark(self._told_ms)
        if splits.is_idle and not self._is_told_idle:
            self._is_told_idle = True
            self._out.emit_idle(True)

    def leave_out(self, millis: int) -> None:
        """Nothing could be read for so long (backpressure, waiting for other sources): nobody was idle meanwhile."""
        self._uncounted_ms += millis

    def is_waiting(self, split_id: str) -> None:
        """The split has been made to wait for others: that is not idle."""
        if split_id in self._active_ms:
            self._active_ms[split_id] = self._counted_ms()

    def _counted_ms(self) -> int:
        return self._ctx.clock.now_ms() - self._uncounted_ms

    def next_timer_ms(self) -> int | None:
        if self._ended:
            return None
        times = []
        if self._timeout_ms is not None:
            since = [ms for split_id, ms in self._active_ms.items() if not self.splits.is_split_idle(split_id)]
            if self._empty_ms is not None:
                since.append(self._empty_ms)
            if since:
                times.append(min(since) + self._timeout_ms + self._uncounted_ms)
        if (self._generators or self._is_ingestion_time) and self._interval_ms > 0:
            times.append(self._periodic_ms)
        return min(times, default=None)

    def on_timer(self, now_ms: int) -> None:
        if self._ended:
            return
        if self._timeout_ms is not None:
            self._find_idle(now_ms - self._uncounted_ms - self._timeout_ms)
        if self._interval_ms > 0 and now_ms >= self._periodic_ms:
            self._periodic_ms = now_ms + self._interval_ms
            for split_id, split in self._generators.items():
                self._ask(split_id, split)
            if self._is_ingestion_time and self._delay_ms is not None:
                reached_ms = self._ingestion_ms() - self._delay_ms - 1  # what comes now, of whatever split, is later
                for split_id in list(self.splits.watermark_of):
                    self.advance(split_id, reached_ms)

    def _find_idle(self, latest_ms: int) -> None:
        for split_id, active_ms in self._active_ms.items():
            if active_ms <= latest_ms:
                self.splits.set_idle(split_id, True)
        self._tell()
        if self._empty_ms is not None and self._empty_ms <= latest_ms:
            self._empty_ms = None
            if not self._is_told_idle:
                self._is_told_idle = True
                self._out.emit_idle(True)


def _no_timestamp(given: Any) -> str:
    hint = ", e.g. int(value.timestamp() * 1000)" if hasattr(given, "timestamp") else ""
    return (
        f"the timestamp assigner returned {given!r:.80} of type {type(given).__name__}; expected milliseconds since "
        f"1970 as an int{hint}"
    )


@final
class _SplitGenerator:
    """The generator of one split, and what it has said."""

    def __init__(self, generator: WatermarkGenerator) -> None:
        self.generator = generator
        self.output = _GeneratorOutput()


@final
class _GeneratorOutput(WatermarkOutput):
    """Keeps what the generator says until the records before it have been emitted."""

    def __init__(self) -> None:
        #: a watermark, or whether idle
        self.calls: list[int | bool] = []

    def emit_watermark(self, watermark: Watermark | int) -> None:
        time_ms = watermark.timestamp if isinstance(watermark, Watermark) else int(watermark)
        self.calls += [False, min(time_ms, WATERMARK_MAX_MS)]

    def mark_idle(self) -> None:
        self.calls.append(True)

    def mark_active(self) -> None:
        self.calls.append(False)

    def take(self) -> list[int | bool]:
        calls, self.calls = self.calls, []
        return calls
