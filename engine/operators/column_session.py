"""Session windows of event time over columns, with built-in aggregates or records that are chosen.

A kernel finds or makes the session of each row, in order, and says which sessions have become one, and when. Semantics
are those of ``operators/window``, which takes over, with all that is held, when something comes that columns cannot do
(rows, other types, a sum beyond 64 bits). Sessions that have fired are kept for what is late, and fire again for each
record of it. What came first, of two sessions that become one, is what it is on rows: the session that was changed last
goes second (``session_state``).

What is more than the operator's share of memory lies in files, partition by partition of the keys
(``spilling_sessions``): then records and the time wait, and all are taken up in a pass.
"""

from __future__ import annotations

import collections
from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.dictionaries import plain_columns, plain_schema
from engine.core.records import BATCH_ROWS_MAX, Batch, ColumnBatch, Named, RowBatch
from engine.operators.aggregate import FieldAggregate
from engine.operators.base import Operator, OperatorContext, OperatorSpec, Output
from engine.operators.column_fields import column_index, has_fields, named_schema, only_keys
from engine.operators.computed_keys import KeyFunction, KeysBeside, WithoutKeys, own_records
from engine.operators.field_aggregates import FieldAggregateOf, RowAggregates
from engine.operators.handed_over import why_handed_over
from engine.operators.keyed import KEYED_PART, TIMERS_PART
from engine.operators.keys import ComposedKey, FieldKey, key_fields
from engine.operators.memory_watch import MemoryWatch
from engine.operators.passes import Passes
from engine.operators.record_choice import RecordChoice
from engine.operators.users_folds import folds_of, num_nested, users_choice, why_not_folded
from engine.operators.window import LATE_RECORDS_DROPPED, WindowOperator, WindowSpec
from engine.operators.window_contents import AggregateFold, ReduceFold
from engine.operators.window_functions import PassThrough
from engine.state.key_groups import canonical_key, key_group_range
from engine.time.assigners import EventTimeSessionWindows, MergingWindowAssigner
from engine.time.triggers import EventTimeTrigger
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS, TimeWindow

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from engine.operators.column_folds import WindowFolds
    from engine.operators.compile.translate import Shape
    from engine.operators.session_state import Assigned, Edges, SessionState
    from engine.operators.spilling_sessions import SpillingSessions
    from engine.operators.window_state import WindowState

    Array = np.ndarray[Any, Any]

__all__ = ["ColumnSessionSpec", "column_session", "sessions_on_rows"]

#: Times, gaps and lateness beyond are left to rows: sums of them stay within 64 bits.
_TIME_LIMIT_MS: Final = 1 << 61
#: Sessions of which results are made one by one, in Python, before others work: some 10 ms.
_CALLS_MAX: Final = 4096
_NO_TYPES: Final = "the types of its records are not declared"


@final
@dataclass(frozen=True)
class ColumnSessionSpec(OperatorSpec):
    """Results are (key…, start, end, aggregates…), or records. ``rows``: the same on rows, for what columns cannot do.
    ``keeps_record``: results are the first record of the session with the one aggregate in place of its field; with a
    ``choice``, the record that is chosen so."""

    key_selector: FieldKey | ComposedKey
    aggregates: tuple[FieldAggregateOf, ...]
    gap_ms: int
    rows: WindowSpec
    keeps_record: bool = False
    choice: RecordChoice | None = None
    #: what a user's fold begins with: the first record's own values; its results are rows
    seeds: tuple[None, ...] | None = None
    #: the function that ``key_selector`` stands for, if it does
    key: KeyFunction | None = None
    preload = ("engine.operators.warm_up.sessions",)

    @property
    def emits_columns(self) -> bool:
        return self.seeds is None and not num_nested(self.key, self.rows)

    @property
    def is_users(self) -> bool:
        """Whether it folds or chooses by a function of the user's."""
        return isinstance(self.rows.fold, ReduceFold) and not isinstance(self.rows.fold.given, FieldAggregate)

    def build(self) -> Operator:
        return _ColumnSessionOperator(self)

    def describe(self) -> str:
        tier = "compiled on columns, else interpreted" if self.is_users else "vectorised"
        computed = "" if self.key is None else self.key.describe()
        return f"{tier}, {self.rows.assigner!r}, accumulators by session{computed}"


def column_session(
    rows: WindowSpec, shape: Shape | None = None, key: KeyFunction | None = None
) -> ColumnSessionSpec | None:
    """Return the columnar form of session windows; None if there is none. ``shape``: of the records, if known;
    ``key``: what the key selector is on columns, where it is a function."""
    planned = _planned(rows, shape, key)
    return planned if isinstance(planned, ColumnSessionSpec) else None


def sessions_on_rows(rows: WindowSpec, shape: Shape | None, *, from_rows: bool, key: KeyFunction | None = None) -> str:
    """Return why these windows run on rows, in a few words for who reads the plan; "" = they are not sessions, or they
    do not. ``from_rows``: so come their records."""
    if not isinstance(rows.assigner, MergingWindowAssigner):
        return ""
    planned = _planned(rows, shape, key)
    if isinstance(planned, str) and not (from_rows and planned == _NO_TYPES):
        return planned
    return "its input is rows, of no source that has columns" if from_rows else ""


def _planned(rows: WindowSpec, shape: Shape | None, key: KeyFunction | None) -> ColumnSessionSpec | str:
    """Return the columnar form, or why there is none."""
    fold, assigner = rows.fold, rows.assigner
    selectors = rows.key_selectors if key is None else (key.selector,)
    if len(selectors) != 1:
        return "it joins two streams"
    if not isinstance(selectors[0], FieldKey | ComposedKey):
        return "its key is no field" if selectors[0] is not None else "it has no key"
    if not isinstance(assigner, EventTimeSessionWindows):
        return "its gap is not fixed" if assigner.is_event_time() else "its time is the clock's"
    if type(rows.trigger) is not EventTimeTrigger:
        return f"its trigger is {type(rows.trigger).__name__}"
    if rows.evictor is not None:
        return f"it has a {type(rows.evictor).__name__}"
    if max(assigner._gap, rows.allowed_lateness_ms) >= _TIME_LIMIT_MS:
        return "its gap or lateness is no time of this world"
    if fold is None:
        return "its function sees every record"
    if isinstance(fold, AggregateFold):
        if not isinstance(fold.given, RowAggregates):
            return "merge() of its AggregateFunction is not compiled"
        return ColumnSessionSpec(selectors[0], fold.given.aggregates, assigner._gap, rows, key=key)
    if not isinstance(fold, ReduceFold) or not isinstance(rows.function, PassThrough):
        return "its results go through a window function"
    if isinstance(fold.given, FieldAggregate) and fold.given.kind not in ("min_by", "max_by"):
        one = FieldAggregateOf(fold.given.kind, fold.given.field)
        return ColumnSessionSpec(selectors[0], (one,), assigner._gap, rows, keeps_record=True, key=key)
    if isinstance(fold.given, FieldAggregate):
        choice: RecordChoice | None = RecordChoice.of_kind(fold.given.kind, fold.given.field)
    elif shape is None:
        return _NO_TYPES
    else:
        choice = users_choice(rows, shape, key)
    if choice is None:
        # What a reduce function makes of two sessions is what it makes of their fields, as it is of two records.
        folds = None if shape is None else folds_of(rows, shape, key)
        if folds is None or set(folds.seeds) != {None}:
            return _NO_TYPES if shape is None else why_not_folded(rows, shape, key)
        seeds = (None,) * len(folds.seeds)
        return ColumnSessionSpec(selectors[0], folds.aggregates, assigner._gap, rows, seeds=seeds, key=key)
    compared = FieldAggregateOf("min", choice.field)
    return ColumnSessionSpec(selectors[0], (compared,), assigner._gap, rows, True, choice=choice, key=key)


@final
class _ColumnSessionOperator(Operator):
    takes_objects = True

    def __init__(self, spec: ColumnSessionSpec) -> None:
        self._spec = spec
        self._rows = WindowOperator(spec.rows, is_inside=True)
        self._keys = KeysBeside(spec.key)
        #: the row operator has taken over
        self._is_on_rows = False
        #: the time now, and what of it others have been told
        self._watermark_ms = self._told_ms = TIME_MIN_MS
        self._named: Named = False  #: records of the current batch are Rows, or objects of a class
        #: of a user's fold, by the types of the records that came last; None = they cannot be folded here
        self._folds: WindowFolds | None = None
        self._folded_schema: pa.Schema | None = None

    def open(self, ctx: OperatorContext, out: Output) -> None:
        from engine.operators.session_state import SESSIONS_PART, SessionState
        from engine.operators.spilling_sessions import SpillingSessions

        super().open(ctx, out)
        self._watch = MemoryWatch(ctx)
        self._rows.open(ctx, out)
        if self._spec.key is not None:
            self.out = WithoutKeys(out, num_nested=num_nested(self._spec.key, self._spec.rows))
        self._late_dropped = ctx.runtime_context.get_metrics_group().counter(LATE_RECORDS_DROPPED)
        runtime = ctx.runtime_context
        self._max_parallelism = runtime.get_max_number_of_parallel_subtasks()
        self._is_tuple = isinstance(self._spec.key_selector, ComposedKey)
        self._state: SessionState = SessionState(
            self._empty_windows,
            self._spec.gap_ms,
            self._max_parallelism,
            is_tuple=self._is_tuple,
            lateness_ms=self._spec.rows.allowed_lateness_ms,
        )
        # A row may begin a level by a merge, and the next one by firing.
        self._rows_max = BATCH_ROWS_MAX // 2 if self._spec.rows.allowed_lateness_ms else BATCH_ROWS_MAX
        self._sessions: SpillingSessions = SpillingSessions(
            self._state,
            self._max_parallelism,
            key_group_range(
                runtime.get_index_of_this_subtask(), runtime.get_number_of_parallel_subtasks(), self._max_parallelism
            ),
            is_tuple=self._is_tuple,
            folder=ctx.work_dir,
            bytes_max=self._watch.limit_bytes,
            aggregated_of=self._aggregated,
            keeps_late=self._spec.rows.late_tag is not None,
            gap_ms=self._spec.gap_ms,
        )
        ctx.state.add_keyed(SESSIONS_PART, self._sessions)
        self._state = self._sessions.state
        self._passes = Passes(self._sessions, ctx.clock, self, self._on_pass_over)
        self._sessions.on_waited = self._passes.be_due  # or each increment would have it anew
        if self._state.unsent:
            self._passes.due_ms = ctx.clock.now_ms()
        parts = ctx.state.keyed
        self._is_on_rows = any(parts[name].num_entries() > 0 for name in (KEYED_PART, TIMERS_PART))

    def _empty_windows(self) -> WindowState:
        from engine.operators.window_state import WindowState

        spec = self._spec
        return WindowState(
            self._max_parallelism,
            spec.aggregates,
            spec.keeps_record,
            self._is_tuple,
            seeds=spec.seeds,
            choice=spec.choice,
            is_users=spec.is_users,
        )

    def close(self) -> None:
        self._rows.close()
        self._sessions.close()

    # --- records

    def process_batch(self, input_index: int, batch: Batch) -> None:
        self._send_unsent(self._state)
        for at in range(0, max(1, len(batch)), self._rows_max):
            end = min(len(batch), at + self._rows_max)
            self._process(input_index, batch if len(batch) <= self._rows_max else batch.slice(at, end))

    def _process(self, input_index: int, batch: Batch) -> None:
        on_rows = self._is_on_rows or self._state.others
        if on_rows or not self._takes(batch) or not self._process_columns(batch):
            if not on_rows:
                self._note_rows(why_handed_over(batch, needs_times=True))
            self._hand_over()
            self._rows.process_batch(input_index, batch)

    def _process_columns(self, batch: Batch) -> bool:
        """Return whether the records have been taken up, or wait; if not, only rows can do it."""
        assert isinstance(batch, ColumnBatch)
        keyed = self._keys.of(batch) if len(batch) else batch
        if keyed is None:
            self._note_rows(self._keys.why)
            return False
        given, times_ms = keyed.columns, batch.timestamps_ms
        columns = plain_columns(given, lambda: self._only_keys(given.schema))
        assert times_ms is not None
        aggregated = self._aggregated_or_none(columns)
        if aggregated is None:
            return False
        schema = aggregated.schema if columns is given else plain_schema(aggregated.schema)
        if not self._defines(schema, batch.named):
            return False
        sessions = self._sessions
        if sessions.is_spilled and batch.named != self._named:
            self._passes.take_up_all()
        self._named = sessions.named = batch.named
        if sessions.is_spilled:
            if sessions.can_hold(aggregated):
                sessions.hold(columns, aggregated, times_ms)
                self._passes.go_on()
                return True
            return False
        if not self._state.begin_batch(aggregated):
            return False
        left = self._state.take_up_batch(columns, aggregated, times_ms, self._watermark_ms, self)
        if left is not None:
            self._note_rows(self._state.why_no_sum)
            self._hand_over(self._taken_up_on_rows(left, columns))
        elif self._watch.must_spill(self._state.nbytes):
            sessions.spill(self._watermark_ms)
            self._state = sessions.state
        return True

    def _only_keys(self, schema: pa.Schema) -> Collection[int]:
        """Return which columns of a batch may stay in dictionaries."""
        spec = self._spec
        if self._sessions.is_spilled or spec.seeds is not None or spec.keeps_record:
            return ()
        return only_keys(schema, key_fields(spec.key_selector), [aggregate.field for aggregate in spec.aggregates])

    def fire(self, state: SessionState, due: Edges) -> None:
        """Emit what these sessions give."""
        for at in range(0, due.sessions.size, BATCH_ROWS_MAX):
            part = due.part(at, at + BATCH_ROWS_MAX)
            if self._spec.seeds is not None:
                self.out.emit(RowBatch(*state.folded(part)))
            elif state.averages_decimals:
                assert isinstance(self._spec.rows.fold, AggregateFold)
                rows, times_ms = state.result_rows(part, self._spec.rows.fold.result)
                if nested := num_nested(self._spec.key, self._spec.rows):
                    rows = [(row[:nested], *row[nested:]) for row in rows]
                self.out.emit(RowBatch(rows, times_ms))
            else:
                self.out.emit(ColumnBatch(*state.results(part), named=state.named))

    def put_aside(self, state: SessionState, columns: pa.RecordBatch, times_ms: Array) -> None:
        """Drop records that came too late, or send them aside."""
        if self._spec.rows.late_tag is None:
            self._late_dropped.inc(columns.num_rows)
        else:
            self.out.emit_side(self._spec.rows.late_tag, ColumnBatch(columns, times_ms, named=self._named))

    def _takes(self, batch: Batch) -> bool:
        if not isinstance(batch, ColumnBatch) or batch.scalar or batch.timestamps_ms is None:
            return False
        if batch.named and self._spec.is_users and self._spec.choice is None:
            return False  # what a function makes of Rows is not said by columns, but for one that picks one of both
        times_ms = batch.timestamps_ms
        return not len(batch) or bool(times_ms.min() > -_TIME_LIMIT_MS and times_ms.max() < _TIME_LIMIT_MS)

    def _aggregated(self, columns: pa.RecordBatch) -> pa.RecordBatch:
        """Return key and values of records that columns can take."""
        aggregated = self._aggregated_or_none(columns)
        assert aggregated is not None
        return aggregated

    def _aggregated_or_none(self, columns: pa.RecordBatch) -> pa.RecordBatch | None:
        """Return key and values, of a user's fold None when rows have to take the batch."""
        if self._spec.seeds is None:
            return columns
        if self._folded_schema is None or not self._folded_schema.equals(columns.schema):
            from engine.operators.column_folds import shape_of_schema

            self._folded_schema = columns.schema
            shape = shape_of_schema(columns.schema)
            folds = None if shape is None else folds_of(self._spec.rows, shape, self._spec.key)
            as_planned = folds is not None and (folds.aggregates, folds.seeds) == (
                self._spec.aggregates,
                self._spec.seeds,
            )
            self._folds = folds if as_planned else None
        return None if self._folds is None else self._folds.derived(columns)

    def _defines(self, schema: pa.Schema, named: Named) -> bool:
        if named and self._spec.keeps_record:
            schema = named_schema(schema, named)
        if self._spec.seeds is not None:
            return self._state.define(schema, [0])
        if self._spec.is_users and not self._state.is_defined:
            from engine.operators.column_folds import shape_of_schema

            shape = shape_of_schema(schema)
            if shape is None or users_choice(self._spec.rows, shape, self._spec.key) != self._spec.choice:
                return False
        fields = key_fields(self._spec.key_selector)
        # Functions ask for them in their own way.
        asked: list[int | str | None] = [] if self._spec.key is not None else [*fields]
        if not self._spec.is_users:
            asked += [aggregate.field for aggregate in self._spec.aggregates]
        if not has_fields(named, asked):
            return False
        return self._state.define(schema, [column_index(schema, field) for field in fields])

    def _taken_up_on_rows(self, assigned: Assigned, columns: pa.RecordBatch) -> dict[int, Any]:
        """Do the rest of a batch in which a sum does not fit into 64 bits; return the accumulators of sessions."""
        fold = self._spec.rows.fold
        assert fold is not None
        held = self._state.parts()
        records = own_records(ColumnBatch(columns, named=self._named)).to_rows().rows
        sessions = assigned.sessions
        for rows, merges, fires in assigned.steps_left():
            for source, target, _, goes_first in merges.tolist():
                pair = held.pop(source), held[target]
                held[target] = fold.merge(*pair) if goes_first else fold.merge(*reversed(pair))
            for row in rows.tolist():
                session = int(sessions[row])
                if session in held:
                    held[session] = fold.add(held[session], records[row])
                else:
                    held[session] = fold.first(records[row])
            self._fire_rows(fires, held)
        return held

    def _fire_rows(self, due: Edges, held: Mapping[int, Any]) -> None:
        """As ``_fire``, of accumulators of the row operator."""
        keys = self._state.keys_of(due.sessions)
        for session, start, end, key in zip(*due.lists(), keys, strict=True):
            self._rows.fire_held(TimeWindow(start, end), [self._key(key)], [held[session]], self._watermark_ms)

    def _key(self, fields: tuple[Any, ...]) -> Any:
        return canonical_key(fields if self._is_tuple else fields[0])

    # --- time

    def process_watermark(self, watermark_ms: int) -> None:
        collections.deque(self.advance_watermark(watermark_ms) or (), maxlen=0)

    def advance_watermark(self, watermark_ms: int) -> Generator[None, None, None] | None:
        self._send_unsent(self._state)
        if self._is_on_rows or self._state.others:
            self._hand_over()  # before the time goes on
            return self._rows.advance_watermark(watermark_ms)
        self._watermark_ms = max(self._watermark_ms, watermark_ms)
        if not self._sessions.is_spilled:
            return self._advance(watermark_ms)
        self._sessions.advance(self._watermark_ms)
        if watermark_ms == TIME_MAX_MS:
            self._passes.take_up_all()  # the end of all time: results come before the barrier of a last savepoint
        self._tell_time()
        return None

    def _advance(self, watermark_ms: int) -> Generator[None, None, None]:
        """Let sessions in memory fire, in pieces."""
        is_slow = self._spec.seeds is not None or (self._state.is_defined and self._state.averages_decimals)
        for due in self._state.advance_in_parts(watermark_ms, _CALLS_MAX if is_slow else BATCH_ROWS_MAX):
            self.fire(self._state, due)
            yield
        self.out.emit_watermark(watermark_ms)
        self._told_ms = self._watermark_ms

    def can_snapshot_between(self) -> bool:
        return self._is_on_rows and self._rows.can_snapshot_between()  # those that have fired are there still

    def _tell_time(self) -> None:
        """Let the time go on for others, or see to it that it will."""
        if self._sessions.is_spilled and (self._sessions.is_passing or self._sessions.is_due()):
            self._passes.be_due()
        elif self._told_ms < self._watermark_ms:
            self._told_ms = self._watermark_ms
            self.out.emit_watermark(self._watermark_ms)

    # --- sessions in files

    def _on_pass_over(self, until_ms: int) -> None:
        if self._told_ms < until_ms:
            self._told_ms = until_ms
            self.out.emit_watermark(until_ms)
        if self._sessions.has_little():
            self._passes.take_up_all()
            self._sessions.gather()
        self._tell_time()

    def _send_unsent(self, state: SessionState) -> None:
        """Send what was to be sent when the checkpoint was made, before anything else."""
        if not state.unsent:
            return
        unsent, state.unsent = list(state.unsent.values()), {}
        for late in (late for own in unsent for late in own.late):
            assert late.timestamps_ms is not None
            self._named = late.named
            self.put_aside(state, late.columns, late.timestamps_ms)
        due = state.of_same_types()
        for rows in (rows for own in unsent for rows in own.due):
            due.put(rows)
        if due.num_sessions:
            self.fire(due, due.in_order())

    def process_idle(self, idle: bool) -> None:
        self._send_unsent(self._state)
        self._passes.take_up_all()
        self.out.emit_idle(idle)

    def end_superstep(self, superstep: int) -> None:
        self._passes.take_up_all()
        self.out.emit_superstep_end(superstep)

    def prepare_snapshot(self, checkpoint_id: int) -> None:
        self._send_unsent(self._state)  # what waits is part of the snapshot: the task does not stand still for it

    def next_timer_ms(self) -> int | None:
        return self._passes.due_ms

    def on_timer(self, now_ms: int) -> None:
        self._passes.due_ms = None
        self._send_unsent(self._state)
        self._passes.take_turn()

    # --- the way to rows, and the end

    def _hand_over(self, parts: dict[int, Any] | None = None) -> None:
        """Give all sessions to the row operator, if that has not been done; it takes every record from now on.
        ``parts``: what sessions hold, where that is no longer in the state.

        Not in ``open``, where nobody notes yet what changes since the checkpoint that was restored.
        """
        self._passes.take_up_all()
        if not self._is_on_rows:
            self._rows.timers.current_watermark = self._watermark_ms
        self._is_on_rows = True
        if not self._sessions.num_entries():
            return
        for state in self._sessions.states():
            self._send_unsent(state)
            for session in state.open_sessions(parts if state is self._state else None):
                window = TimeWindow(session.start, session.end)
                key = self._key(session.fields)
                self._rows.adopt_session(key, window, session.accumulator, has_fired=session.has_fired)
        self._sessions.clear()

    def finish(self) -> None:
        self._send_unsent(self._state)
        self._passes.take_up_all()
        if self._is_on_rows or self._state.others:
            self._hand_over()
        self._rows.finish()
