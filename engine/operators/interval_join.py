"""Interval join: pairs of records of one key whose event times are near each other. Semantics are Flink's.

Each side keeps its records until the watermark says that no partner can come any more.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, final

from engine.core.errors import EngineError, ProgramError
from engine.core.records import Batch, RowBatch, rows_of
from engine.core.type_info import TypeInformation
from engine.operators.base import Operator, OperatorContext, OperatorSpec, Output
from engine.operators.bound_function import BoundFunction
from engine.operators.functions import Function
from engine.operators.join_state import JOIN_PART, LeftRecords
from engine.operators.keyed import Keys, open_keyed_state, open_timers
from engine.operators.left_chunks import LeftChunks
from engine.operators.results import Results
from engine.operators.unsent_pairs import PAIRS_PART, rows_of_pairs
from engine.state.descriptors import MapStateDescriptor
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS

__all__ = ["IntervalJoinOperator", "IntervalJoinSpec", "ProcessJoinFunction"]

IN1 = TypeVar("IN1")
IN2 = TypeVar("IN2")
OUT = TypeVar("OUT")

_LEFT: Final = 0
LATE_RECORDS_DROPPED: Final = "numLateRecordsDropped"


class ProcessJoinFunction(Function, Generic[IN1, IN2, OUT]):
    """Called for each pair; returns or yields results (Flink's; PyFlink has no interval join)."""

    class Context(abc.ABC):
        @abc.abstractmethod
        def get_left_timestamp(self) -> int: ...

        @abc.abstractmethod
        def get_right_timestamp(self) -> int: ...

        @abc.abstractmethod
        def get_timestamp(self) -> int:
            """Return the later of the two: the event time of the results."""

    @abc.abstractmethod
    def process_element(self, left: Any, right: Any, ctx: Context) -> Iterable[Any] | None: ...


@final
@dataclass(frozen=True)
class IntervalJoinSpec(OperatorSpec):
    """Pairs with left + lower ≤ right ≤ left + upper, in ms. ``function``: ProcessJoinFunction, or (left, right) →
    result. ``late_tags``: side outputs of late records of each side."""

    key_selectors: tuple[Any, Any]
    lower_ms: int
    upper_ms: int
    function: Any
    late_tags: tuple[str | None, str | None] = (None, None)
    output_type: TypeInformation | None = None
    num_inputs: int = 2

    def build(self) -> Operator:
        return IntervalJoinOperator(self)

    def describe(self) -> str:
        return f"from {self.lower_ms} to {self.upper_ms} ms"


@final
class _Context(ProcessJoinFunction.Context):
    def __init__(self) -> None:
        self.times = (0, 0)

    def get_left_timestamp(self) -> int:
        return self.times[0]

    def get_right_timestamp(self) -> int:
        return self.times[1]

    def get_timestamp(self) -> int:
        return max(self.times)


@final
class IntervalJoinOperator(Operator):
    """``is_inside``: of an operator on columns, which restores what such a one has left."""

    def __init__(self, spec: IntervalJoinSpec, *, is_inside: bool = False) -> None:
        self._spec = spec
        self._is_inside = is_inside
        #: what an operator on columns has left in the checkpoint, until the first record or watermark
        self._left: LeftRecords | None = None
        #: pairs that such a one had not sent, until anything happens
        self._left_pairs: LeftChunks | None = None
        self._keys = [Keys(selector) for selector in spec.key_selectors]
        self.function = BoundFunction(spec.function, "process_element")
        #: of each side: earliest and latest partner, relative to its own record
        self._bounds = ((spec.lower_ms, spec.upper_ms), (-spec.upper_ms, -spec.lower_ms))
        self._context = _Context()
        self.backend: Any = None

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self.backend = open_keyed_state(ctx)
        self.timers = open_timers(ctx)
        #: of each side: event time → records
        self._buffers = [self.backend.map_state(MapStateDescriptor(f"$interval-join-{side}")) for side in range(2)]
        self._results = Results(out, self._spec.output_type, "process_element")
        self._late_dropped = ctx.runtime_context.get_metrics_group().counter(LATE_RECORDS_DROPPED)
        for keys in self._keys:
            keys.open(ctx)
        self.function.open(ctx)
        if not self._is_inside and ctx.state.has_left(JOIN_PART):
            self._left = LeftRecords()
            ctx.state.add_keyed(JOIN_PART, self._left)
        if not self._is_inside and ctx.state.has_left(PAIRS_PART):
            self._left_pairs = LeftChunks()
            ctx.state.add_keyed(PAIRS_PART, self._left_pairs)

    def _send_left(self) -> None:
        """Send the results of pairs that were not sent before the checkpoint."""
        left, self._left_pairs = self._left_pairs, None
        for chunk in () if left is None else left.take_chunks():
            for pairs, times in rows_of_pairs(chunk):
                self.join_pairs(pairs, times)

    def _take_left(self) -> None:
        self._send_left()
        left, self._left = self._left, None
        for records in () if left is None else left.take():
            self.adopt(records.side, *records.rows())

    def adopt(self, side: int, rows: list[Any], stamps: list[int]) -> None:
        """Keep records that another operator has joined with what came before."""
        for key, row, stamp in zip(self._keys[side].of(rows), rows, stamps, strict=True):
            self.backend.set_current_key(key)
            self._keep(side, row, stamp)

    def join_pairs(self, pairs: Iterable[tuple[Any, Any]], times: Iterable[tuple[int, int]]) -> None:
        """Call the function for each pair; ``times``: event times of each pair's records."""
        for pair, self._context.times in zip(pairs, times, strict=True):
            self._call(pair)
        self._results.flush()

    def take_results(self, results: Iterable[Any], stamps: Iterable[int]) -> None:
        """Hand on what the function has given for some pairs, among it what goes to side outputs."""
        for result, stamp in zip(results, stamps, strict=True):
            if self._results.take((result,), stamp) is not None:
                self._results.flush()
        self._results.flush()

    def close(self) -> None:
        try:
            self.function.close()
            for keys in self._keys:
                keys.close()
        finally:
            if self.backend is not None:
                self.backend.close()

    def process_batch(self, input_index: int, batch: Batch) -> None:
        self._take_left()
        batch = rows_of(batch)
        if batch.timestamps_ms is None:
            raise ProgramError(
                "An interval join got records without timestamps. Call assign_timestamps_and_watermarks() with a "
                "timestamp assigner on both streams before it."
            )
        keys = self._keys[input_index].of(batch.rows)
        watermark_ms = self.timers.current_watermark
        for key, row, stamp in zip(keys, batch.rows, batch.timestamps_ms, strict=True):
            if watermark_ms != TIME_MIN_MS and stamp < watermark_ms:
                self._too_late(input_index, row, stamp)
                continue
            self.backend.set_current_key(key)
            self._join(input_index, row, stamp)
            self._keep(input_index, row, stamp)
        self._results.flush()

    def _too_late(self, side: int, row: Any, stamp: int) -> None:
        tag = self._spec.late_tags[side]
        if tag is None:
            self._late_dropped.inc()
        else:
            self.out.emit_side(tag, RowBatch([row], [stamp]))

    def _keep(self, side: int, row: Any, stamp: int) -> None:
        buffer = self._buffers[side]
        buffer.put(stamp, [*(buffer.get(stamp) or ()), row])
        last_partner_ms = stamp + max(0, self._bounds[side][1])
        if last_partner_ms < TIME_MAX_MS:
            self.timers.register_event_time(self.backend.current_key, (side, stamp), last_partner_ms)

    def _join(self, side: int, row: Any, stamp: int) -> None:
        lower_ms, upper_ms = self._bounds[side]
        partners = [
            (other_ms, rows)
            for other_ms, rows in self._buffers[1 - side].items()
            if stamp + lower_ms <= other_ms <= stamp + upper_ms
        ]
        for other_ms, rows in partners:
            self._context.times = (stamp, other_ms) if side == _LEFT else (other_ms, stamp)
            for other in rows:
                pair = (row, other) if side == _LEFT else (other, row)
                self._call(pair)

    def _call(self, pair: tuple[Any, Any]) -> None:
        context = self._context
        rest: Iterator[Any] | None = None
        try:
            call: Callable[..., Any] = self.function.call
            if isinstance(self._spec.function, ProcessJoinFunction):
                found = call(*pair, context)
            else:
                found = (call(*pair),)
            if found is not None:
                rest = self._results.take(found, context.get_timestamp())
        except EngineError:
            raise
        except Exception as error:
            raise self.function.error(error, pair) from error
        while rest is not None:
            self._results.flush()
            try:
                rest = self._results.take(rest, context.get_timestamp())
            except Exception as error:
                raise self.function.error(error, pair) from error

    def process_idle(self, idle: bool) -> None:
        self._send_left()
        super().process_idle(idle)

    def next_timer_ms(self) -> int | None:
        return None if self._left_pairs is None else self.ctx.clock.now_ms()

    def on_timer(self, now_ms: int) -> None:
        self._send_left()

    def finish(self) -> None:
        self._send_left()

    def process_watermark(self, watermark_ms: int) -> None:
        self._take_left()
        for _, key, (side, stamp) in self.timers.advance_watermark(watermark_ms):
            self.backend.set_current_key(key)
            self._buffers[side].remove(stamp)
        self.out.emit_watermark(watermark_ms)
