"""Session windows of event time over columns, with built-in aggregates and without lateness.

A batch is taken up in one go: a kernel finds or makes the session of each row, in order, and says which sessions have
become one. Semantics are those of ``operators/window``, which takes over, with all that is held, when something comes
that columns cannot do (rows, other types, a sum beyond 64 bits). Sums of floats of merged sessions are added session by
session, so the last digits may differ from those on rows. First and last values, and records that are chosen, are left
to rows: merged sessions do not know what came first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.records import BATCH_ROWS_MAX, Batch, ColumnBatch
from engine.operators.base import Operator, OperatorContext, OperatorSpec, Output
from engine.operators.column_fields import column_index, plain_columns
from engine.operators.field_aggregates import FieldAggregateOf, RowAggregates
from engine.operators.keyed import KEYED_PART, TIMERS_PART
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.memory_watch import MemoryWatch
from engine.operators.window import LATE_RECORDS_DROPPED, WindowOperator, WindowSpec
from engine.operators.window_contents import AggregateFold
from engine.state.key_groups import canonical_key
from engine.time.assigners import EventTimeSessionWindows
from engine.time.triggers import EventTimeTrigger
from engine.time.windows import TIME_MIN_MS, TimeWindow

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from engine.operators.session_state import SessionState

    Array = np.ndarray[Any, Any]

__all__ = ["ColumnSessionSpec", "column_session"]

#: Times and gaps beyond are left to rows: sums of two stay within 64 bits.
_TIME_LIMIT_MS: Final = 1 << 61
_KINDS: Final = frozenset(("count", "sum", "min", "max", "avg", "count_distinct"))


@final
@dataclass(frozen=True)
class ColumnSessionSpec(OperatorSpec):
    """Results are (key…, start, end, aggregates…). ``rows``: the same on rows, for what columns cannot do."""

    key_selector: FieldKey | ComposedKey
    aggregates: tuple[FieldAggregateOf, ...]
    gap_ms: int
    rows: WindowSpec
    emits_columns = True
    preload = ("engine.operators.warm_up.sessions",)

    def build(self) -> Operator:
        return _ColumnSessionOperator(self)

    def describe(self) -> str:
        return f"vectorised, {self.rows.assigner!r}, accumulators by session"


def column_session(rows: WindowSpec) -> ColumnSessionSpec | None:
    """Return the columnar form of session windows; None if there is none."""
    selectors, fold, assigner = rows.key_selectors, rows.fold, rows.assigner
    if len(selectors) != 1 or not isinstance(selectors[0], FieldKey | ComposedKey):
        return None
    if not isinstance(assigner, EventTimeSessionWindows) or assigner._gap >= _TIME_LIMIT_MS:
        return None
    if type(rows.trigger) is not EventTimeTrigger or rows.evictor is not None or rows.allowed_lateness_ms:
        return None
    if not isinstance(fold, AggregateFold) or not isinstance(fold.given, RowAggregates):
        return None
    if not {aggregate.kind for aggregate in fold.given.aggregates} <= _KINDS:
        return None
    return ColumnSessionSpec(selectors[0], fold.given.aggregates, assigner._gap, rows)


@final
class _ColumnSessionOperator(Operator):
    def __init__(self, spec: ColumnSessionSpec) -> None:
        self._spec = spec
        self._rows = WindowOperator(spec.rows, is_inside=True)
        #: the row operator has taken over
        self._is_on_rows = False
        self._watermark_ms = TIME_MIN_MS

    def open(self, ctx: OperatorContext, out: Output) -> None:
        from engine.operators.session_state import SESSIONS_PART, SessionState

        super().open(ctx, out)
        self._watch = MemoryWatch(ctx)
        self._rows.open(ctx, out)
        self._late_dropped = ctx.runtime_context.get_metrics_group().counter(LATE_RECORDS_DROPPED)
        self._state: SessionState = SessionState(
            ctx.runtime_context.get_max_number_of_parallel_subtasks(),
            self._spec.aggregates,
            self._spec.gap_ms,
            is_tuple=isinstance(self._spec.key_selector, ComposedKey),
        )
        ctx.state.add_keyed(SESSIONS_PART, self._state)
        parts = ctx.state.keyed
        self._is_on_rows = any(parts[name].num_entries() > 0 for name in (KEYED_PART, TIMERS_PART))

    def close(self) -> None:
        self._rows.close()

    # --- records

    def process_batch(self, input_index: int, batch: Batch) -> None:
        rest: Batch | None = batch
        on_rows = self._is_on_rows or self._state.others or self._watch.must_leave(self._state.nbytes)
        if not on_rows and self._takes(batch):
            assert isinstance(batch, ColumnBatch)
            columns = plain_columns(batch.columns)
            if self._defines(columns.schema) and self._state.begin_batch(columns):
                rest = self._process_columns(columns, batch.timestamps_ms)
        if rest is not None:
            self._hand_over()
            self._rows.process_batch(input_index, rest)

    @staticmethod
    def _takes(batch: Batch) -> bool:
        if not isinstance(batch, ColumnBatch) or batch.scalar or batch.timestamps_ms is None:
            return False
        times_ms = batch.timestamps_ms
        return not len(batch) or bool(times_ms.min() > -_TIME_LIMIT_MS and times_ms.max() < _TIME_LIMIT_MS)

    def _defines(self, schema: pa.Schema) -> bool:
        selector = self._spec.key_selector
        fields = selector.fields if isinstance(selector, ComposedKey) else (selector.field,)
        return self._state.define(schema, [column_index(schema, field) for field in fields])

    def _process_columns(self, columns: pa.RecordBatch, times_ms: Any) -> ColumnBatch | None:
        """Take up the rows; return those that are left to the row operator, if any."""
        import numpy as np
        import pyarrow as pa

        session_of_row, merged = self._state.assign(columns, times_ms, self._watermark_ms)
        late = np.flatnonzero(session_of_row < 0)
        if self._spec.rows.late_tag is None:
            self._late_dropped.inc(int(late.size))
        elif late.size:
            self.out.emit_side(self._spec.rows.late_tag, ColumnBatch(columns.take(pa.array(late)), times_ms[late]))
        rows = np.flatnonzero(session_of_row >= 0).astype(np.int32)
        if not rows.size or (self._state.merge(merged) and self._state.take_up(rows, session_of_row)):
            return None
        return ColumnBatch(columns.take(pa.array(rows)), times_ms[rows])

    # --- time

    def process_watermark(self, watermark_ms: int) -> None:
        if self._is_on_rows or self._state.others:
            self._hand_over()  # before the time goes on
            self._rows.process_watermark(watermark_ms)
            return
        self._watermark_ms = max(self._watermark_ms, watermark_ms)
        if self._state.first_end_ms - 1 <= watermark_ms:
            due = self._state.due(watermark_ms)
            for at in range(0, due.size, BATCH_ROWS_MAX):
                self.out.emit(ColumnBatch(*self._state.results(due[at : at + BATCH_ROWS_MAX])))
            if due.size:
                self._state.drop(due)
        self.out.emit_watermark(watermark_ms)

    # --- the way to rows, and the end

    def _hand_over(self) -> None:
        """Give all sessions to the row operator, if that has not been done; it takes every record from now on.

        Not in ``open``, where nobody notes yet what changes since the checkpoint that was restored.
        """
        if not self._is_on_rows:
            self._rows.timers.current_watermark = self._watermark_ms
        self._is_on_rows = True
        if not self._state.num_entries():
            return
        is_tuple = isinstance(self._spec.key_selector, ComposedKey)
        for session in self._state.open_sessions():
            key = canonical_key(session.fields if is_tuple else session.fields[0])
            self._rows.adopt_session(key, TimeWindow(session.start, session.end), session.accumulator)
        self._state.clear()

    def finish(self) -> None:
        if self._is_on_rows or self._state.others:
            self._hand_over()
        self._rows.finish()
