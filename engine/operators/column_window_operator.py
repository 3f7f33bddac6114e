"""Event-time windows over columns: tumbling, sliding and cumulating, with built-in aggregates.

A batch finds the slots of its keys once; each slice of time (``window_slices``) has a pane of accumulators by slot
(``window_panes``); a window is one pane, or several that are merged when it fires. Semantics are those of
``operators/window``: lateness by window, one result more for each late record, what is too late to a side output. Types
that kernels do not know (sums of texts…) make the row operator take over before the first
record. Sums of floats over several slices are added slice by slice, so the last digits may differ from those on rows.
What depends on the order of a window's records (first, last, records, functions of the user's) cannot be put together
of slices, into which they came mixed: there each window has a pane of its own, and a record goes into several.

What only comes up on the way (other types, rows, a null in a record to be reduced, a sum beyond 64 bits) makes it take
over too, with what the windows hold by then. A restored subtask may find state in both places, as those it follows may
have worked in different ways; what the row operator has, only rows can go on with.

What is more than the operator's share of memory lies in files, slice by slice (``spilling_windows``): records for these
wait until a window fires.
"""

from __future__ import annotations

import collections
from collections.abc import Collection, Generator, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal, final

from engine.core.arrow_arrays import arrow_of
from engine.core.dictionaries import plain_columns, plain_schema
from engine.core.records import BATCH_ROWS_MAX, Batch, ColumnBatch, Named, RowBatch
from engine.operators.base import Operator, OperatorContext, Output
from engine.operators.column_fields import column_index, has_fields, named_schema, only_keys
from engine.operators.computed_keys import KeysBeside, WithoutKeys, own_records
from engine.operators.handed_over import NEEDS_A_VALUE, ROUNDED_DECIMALS, why_handed_over
from engine.operators.keyed import KEYED_PART, TIMERS_PART
from engine.operators.keys import ComposedKey, key_fields
from engine.operators.left_windows import WINDOW_SLOTS_PART
from engine.operators.memory_watch import MemoryWatch
from engine.operators.pane_rows import by_record, rows_of_panes
from engine.operators.rows_output import RowsOutput
from engine.operators.users_folds import folds_of, num_nested, users_choice
from engine.operators.window import LATE_RECORDS_DROPPED, WindowOperator
from engine.operators.window_contents import AggregateFold
from engine.operators.window_slices import Slices, WholeWindows, slices_of
from engine.state.key_groups import key_group_range
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS, TimeWindow

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from engine.operators.column_folds import WindowFolds
    from engine.operators.column_window import ColumnWindowSpec
    from engine.operators.overlapping_windows import OverlappingWindows
    from engine.operators.spilling_windows import SpillingWindows
    from engine.operators.window_state import WindowState

    Array = np.ndarray[Any, Any]

__all__ = ["ColumnWindowOperator"]

#: Windows of times beyond begin or end where 64 bits do not reach; they are left to rows.
_TIME_LIMIT_MS: Final = 1 << 62
#: Keys of which results are made one by one, in Python, before others work: some 10 ms.
_CALLS_MAX: Final = 4096
_END: Final[Any] = object()


@final
class ColumnWindowOperator(Operator):
    takes_objects = True

    def __init__(self, spec: ColumnWindowSpec) -> None:
        slices = slices_of(spec.rows.assigner)
        assert slices is not None, spec.rows.assigner
        self._spec = spec
        self._slices: Slices = slices
        #: what has a pane
        self._panes: Slices | WholeWindows = WholeWindows(slices) if spec.by_window else slices
        self._lateness_ms = spec.rows.allowed_lateness_ms
        self._late_tag = spec.rows.late_tag
        self._rows = WindowOperator(spec.rows, is_inside=True)
        self._keys = KeysBeside(spec.key)
        #: of a user's fold, when the types of its records are known; False = they cannot be folded here
        self._folds: WindowFolds | Literal[False] | None = None
        self._folded_schema: pa.Schema | None = None
        self._folded_named: Named = False
        #: the row operator has taken over
        self._is_on_rows = False
        self._named: Named = False  #: records of the current batch are Rows, or objects of a class
        self._watermark_ms = TIME_MIN_MS
        #: (end, start) of windows that have a pane and have not fired
        self._pending: set[tuple[int, int]] = set()
        #: whether a pane may be there when a window of it has fired
        self._keeps_fired = self._lateness_ms > 0 or (not spec.by_window and slices.size_ms != slices.slice_ms)
        #: whether a checkpoint would tell what a watermark still makes
        self._can_snapshot = True

    def open(self, ctx: OperatorContext, out: Output) -> None:
        from engine.operators.overlapping_windows import OverlappingWindows
        from engine.operators.spilling_windows import SpillingWindows
        from engine.operators.window_state import WindowState

        super().open(ctx, out)
        self._watch = MemoryWatch(ctx)
        self._rows_output = RowsOutput(out)
        self._rows.open(ctx, self._rows_output)
        if self._spec.key is not None:
            self.out = WithoutKeys(out, num_nested=num_nested(self._spec.key, self._spec.rows))
        runtime = ctx.runtime_context
        self._late_dropped = runtime.get_metrics_group().counter(LATE_RECORDS_DROPPED)
        is_tuple = isinstance(self._spec.key_selector, ComposedKey)
        max_parallelism = runtime.get_max_number_of_parallel_subtasks()
        self._state: WindowState = WindowState(
            max_parallelism,
            self._spec.aggregates,
            self._spec.keeps_record,
            is_tuple,
            seeds=self._spec.seeds,
            choice=self._spec.choice,
            is_users=self._spec.is_users,
            by_window=self._spec.by_window,
            num_slices=self._panes.num_slices,
        )
        self._windows: SpillingWindows = SpillingWindows(
            self._state,
            max_parallelism,
            key_group_range(
                runtime.get_index_of_this_subtask(), runtime.get_number_of_parallel_subtasks(), max_parallelism
            ),
            is_tuple=is_tuple,
            folder=ctx.work_dir,
            bytes_max=self._watch.limit_bytes,
        )
        self._spilled = self._windows.spilled
        self._overlapping: OverlappingWindows | None = None
        if isinstance(self._panes, WholeWindows):
            self._overlapping = OverlappingWindows(self._panes, self._windows, self._lateness_ms, _TIME_LIMIT_MS)
        ctx.state.add_keyed(WINDOW_SLOTS_PART, self._windows)
        for state in (self._state, *self._state.others):
            for start, watermark_ms in state.restored_panes.items():
                self._expect(start, watermark_ms)
        parts = ctx.state.keyed
        self._is_on_rows = any(parts[name].num_entries() > 0 for name in (KEYED_PART, TIMERS_PART))

    def close(self) -> None:
        self._rows.close()
        self._spilled.clear()

    # --- records -----------------------------------------------------------------------------------------------------

    def process_batch(self, input_index: int, batch: Batch) -> None:
        rest: Batch | None = batch
        on_rows = self._is_on_rows or self._state.others
        keyed = None
        if not on_rows and isinstance(batch, ColumnBatch) and not batch.scalar:
            keyed = self._keys.of(batch)
            if keyed is None:
                self._note_rows(self._keys.why)
        if keyed is not None and isinstance(batch, ColumnBatch):
            given = keyed.columns
            columns = plain_columns(given, lambda: self._only_keys(given.schema))
            aggregated = self._aggregated(batch, columns)
            self._named = batch.named
            schema = None if aggregated is None else aggregated.schema
            if schema is not None and columns is not given:
                schema = plain_schema(schema)
            if batch.timestamps_ms is not None and aggregated is not None and self._takes(schema):
                rest = self._process_columns(columns, aggregated, batch.timestamps_ms)
                if rest is not None:
                    rest = replace(rest, named=batch.named)
        if rest is not None:
            if not on_rows:
                self._note_rows(why_handed_over(batch, needs_times=True))
            self._hand_over()
            self._rows.process_batch(input_index, own_records(rest) if isinstance(rest, ColumnBatch) else rest)
        elif self._windows.has_too_much() or (not self._spilled and self._watch.must_spill(self._state.nbytes)):
            self._make_room()
        elif self._spilled:
            self._windows.step()

    def _only_keys(self, schema: pa.Schema) -> Collection[int]:
        """Return which columns of a batch may stay in dictionaries."""
        spec = self._spec
        if self._state.layout is None or self._spilled or self._overlapping is not None:
            return ()
        if spec.seeds is not None or spec.keeps_record:
            return ()
        return only_keys(schema, key_fields(spec.key_selector), [aggregate.field for aggregate in spec.aggregates])

    def _make_room(self) -> None:
        """Let slices go to files: those whose windows have fired first, then those of windows that fire last."""
        first_ends: dict[int, int] = {}
        for end, begin in self._pending:
            for start in self._panes.slices_of((begin, end)):
                first_ends[start] = min(end, first_ends.get(start, end))
        self._windows.make_room(lambda start: first_ends.get(start, TIME_MAX_MS))

    def _aggregated(self, batch: ColumnBatch, columns: pa.RecordBatch) -> pa.RecordBatch | None:
        """Return key and values, or None when rows have to take the batch."""
        return columns if self._spec.seeds is None else self._folded(columns, batch.named)

    def _folded(self, columns: pa.RecordBatch, named: Named) -> pa.RecordBatch | None:
        """Return key and values of a user's fold, or None when rows have to take the batch."""
        known = self._folded_schema
        if known is None or named != self._folded_named or not known.equals(columns.schema):
            from engine.operators.column_folds import shape_of_schema

            self._folded_schema, self._folded_named = columns.schema, named
            shape = shape_of_schema(named_schema(columns.schema, named))
            folds = None if shape is None else folds_of(self._spec.rows, shape, self._spec.key)
            as_planned = folds is not None and repr((folds.aggregates, folds.seeds)) == repr(
                (self._spec.aggregates, self._spec.seeds)
            )
            self._folds = folds if folds is not None and as_planned else False
        return self._folds.derived(columns) if self._folds else None

    def _takes(self, schema: pa.Schema) -> bool:
        named = self._spec.keeps_record and self._named
        if self._state.layout is not None:
            return bool(self._state.layout.schema.types == schema.types) and self._state.named == named
        if named:
            schema = named_schema(schema, named)
        if self._spec.seeds is not None:
            return self._state.define(schema, [0])
        if self._spec.is_users:
            from engine.operators.column_folds import shape_of_schema

            shape = shape_of_schema(schema)
            if shape is None or users_choice(self._spec.rows, shape, self._spec.key) != self._spec.choice:
                return False
        fields = key_fields(self._spec.key_selector)
        # Functions ask for them in their own way.
        asked: list[int | str | None] = [] if self._spec.key is not None else [*fields]
        if not self._spec.is_users:
            asked += [aggregate.field for aggregate in self._spec.aggregates]
        if not has_fields(self._named, asked):
            return False
        return self._state.define(schema, [column_index(schema, field) for field in fields])

    def _process_columns(
        self, columns: pa.RecordBatch, aggregated: pa.RecordBatch, times_ms: Array
    ) -> ColumnBatch | None:
        """Take up the rows; return those that are left to the row operator, if any. ``aggregated``: keys and values."""
        if self._overlapping is not None:
            return self._process_by_window(columns, aggregated, times_ms)
        if not self._spilled:
            return self._process_in_memory(columns, aggregated, times_ms)
        import pyarrow as pa

        is_left, is_done = self._process_spilled(columns, aggregated, times_ms)
        if is_left.all() and is_done:
            return self._process_in_memory(columns, aggregated, times_ms)
        if not is_left.any():
            return None
        rows = pa.array(is_left.nonzero()[0])
        if not is_done:
            self._note_rows(self._state.why_no_sum)
            return ColumnBatch(columns.take(rows), times_ms[is_left])
        return self._process_in_memory(columns.take(rows), aggregated.take(rows), times_ms[is_left])

    def _process_spilled(
        self, columns: pa.RecordBatch, aggregated: pa.RecordBatch, times_ms: Array
    ) -> tuple[Array, bool]:
        """Take up the rows of slices that are in files; return which rows are left, and False if they are for the row
        operator."""
        import numpy as np

        starts = times_ms - (times_ms - self._slices.offset_ms) % self._slices.slice_ms
        is_left = np.ones(times_ms.size, np.bool_)
        if self._lateness_ms:
            self._evict_beside_late(np.unique(starts).tolist())
        late: list[tuple[Array, int, list[tuple[int, int]]]] = []
        low, high = (int(starts.min()), int(starts.max())) if starts.size else (0, -1)
        for start in self._spilled.starts():
            rows = np.flatnonzero(starts == start) if low <= start <= high else starts[:0]
            if not rows.size:
                continue
            if self._is_too_late(start, columns, times_ms, rows):
                is_left[rows] = False
            elif fired := self._fired_windows(start):
                late.append((rows, start, fired))
            elif self._windows.hold(start, aggregated, rows):
                is_left[rows] = False
            else:
                return is_left, False
        return is_left, not late or self._take_up_late_spilled(late, aggregated, is_left)

    def _evict_beside_late(self, starts: list[int]) -> None:
        """Late records make windows fire again: their slices are all in memory, or all in files."""
        late = [(start, self._fired_windows(start)) for start in starts if -_TIME_LIMIT_MS < start < _TIME_LIMIT_MS]
        is_settled = False
        while not is_settled:  # a slice that goes to files may be in windows of one that was looked at before
            is_settled = True
            for start, fired in late:
                for window in fired:
                    slices = self._panes.slices_of(window)
                    is_here = start not in self._spilled or any(other in self._state.panes for other in slices)
                    if is_here and any(other in self._spilled for other in slices):
                        self._windows.evict(slices)
                        self._spilled.add_pane(start)
                        self._expect(start, self._watermark_ms)
                        is_settled = False

    def _take_up_late_spilled(
        self, late: list[tuple[Array, int, list[tuple[int, int]]]], aggregated: pa.RecordBatch, is_left: Array
    ) -> bool:
        """As ``_take_up_late``, for slices in files: partition by partition of the keys. Return False if only rows can
        go on."""
        import numpy as np
        import pyarrow as pa

        from engine.operators.window_sums import SUM_MAX

        in_order = by_record((row, start, fired) for rows, start, fired in late for row in rows.tolist())
        records = aggregated.take(pa.array([row for row, _, _ in in_order]))
        if not self._state.can_take_later(records):
            return False
        needed = {start for _, _, fired in late for window in fired for start in self._panes.slices_of(window)}
        self._windows.settle(needed)
        if self._spilled.has_tail(needed.intersection(self._spilled.starts())):
            self._spilled.flush()
        for partitions, own in self._windows.by_partition(records):
            state = self._windows.load(sorted(needed), partitions)
            batch = records.take(pa.array(own))
            if not state.begin_batch(batch):
                return False
            slots = state.slots_of(batch)
            changed = set()
            for at, number in enumerate(own.tolist()):
                row, start, fired = in_order[number]
                rows = np.array([at], np.int32)
                if not self._spilled.raise_bound(start, state.bound_of_records(batch.slice(at, 1)), SUM_MAX):
                    break
                state.take_up(start, rows, slots)
                is_left[row] = False
                changed.add(start)
                for window in fired:
                    self._fire_late(state, window, slots[rows])
            for start in changed:
                self._windows.write_back(state, start, partitions, has_news=True)
            if is_left[[in_order[number][0] for number in own.tolist()]].any():
                return False
        return True

    def _process_by_window(
        self, columns: pa.RecordBatch, aggregated: pa.RecordBatch, times_ms: Array
    ) -> ColumnBatch | None:
        """As ``_process_columns``, where a record goes into several panes: all records are taken up, or none is."""
        assert self._overlapping is not None
        if not self._overlapping.can_take(aggregated, times_ms):
            if self._overlapping.is_beyond:
                self._note_rows(self._state.why_no_sum)
            return ColumnBatch(columns, times_ms)
        if self._spilled:
            self._hold_by_window(aggregated, times_ms)
        left = self._process_in_memory(columns, aggregated, times_ms)
        assert left is None, "what only rows can take is known before"
        return None

    def _hold_by_window(self, aggregated: pa.RecordBatch, times_ms: Array) -> None:
        """Take up the rows of windows that are in files."""
        import numpy as np

        assert self._overlapping is not None
        late: list[tuple[Array, int, list[tuple[int, int]]]] = []
        for start, rows in self._overlapping.in_files(times_ms):
            if fired := self._fired_windows(start):
                late.append((rows, start, fired))
            else:
                is_held = self._windows.hold(start, aggregated, rows)
                assert is_held, "what only rows can take is known before"
        if late:
            is_done = self._take_up_late_spilled(late, aggregated, np.ones(times_ms.size, np.bool_))
            assert is_done, "what only rows can take is known before"

    def _process_in_memory(
        self, columns: pa.RecordBatch, aggregated: pa.RecordBatch, times_ms: Array
    ) -> ColumnBatch | None:
        taken: list[Array] = []
        slots: Array | None = None
        for begin, end, panes in rows_of_panes(times_ms, self._slices.slice_ms, self._slices.offset_ms):
            late: list[tuple[int, Array, list[tuple[int, int]]]] = []
            by_pane: list[tuple[int, Array]] = []
            for start, rows in panes:
                if not -_TIME_LIMIT_MS < start < _TIME_LIMIT_MS:
                    self._note_rows("timestamps at the ends of time")
                    return _left(columns, times_ms, taken)
                if self._is_too_late(start, columns, times_ms, rows):
                    taken.append(rows)
                else:
                    by_pane.append((start, rows))
            if self._overlapping is not None:
                alive, is_all = [start for start, _ in by_pane], len(panes) == 1
                found = self._overlapping.in_memory(alive, times_ms, begin, end, self._watermark_ms, is_all=is_all)
                by_pane = list(found)
            for start, rows in by_pane:
                if slots is None:
                    if not self._state.begin_batch(aggregated):
                        is_null = self._state.takes_decimals()
                        self._note_rows(NEEDS_A_VALUE if is_null else ROUNDED_DECIMALS)
                        return _left(columns, times_ms, taken)
                    slots = self._state.slots_of(aggregated)
                if start not in self._state.panes:
                    self._expect(start, self._watermark_ms)
                fired = self._fired_windows(start)
                if fired:
                    late.append((start, rows, fired))
                elif self._state.take_up(start, rows, slots):
                    taken.append(rows)
                else:
                    self._note_rows(self._state.why_no_sum)
                    return _left(columns, times_ms, taken)
            if slots is not None and not self._take_up_late(late, slots, taken):
                self._note_rows(self._state.why_no_sum)
                return _left(columns, times_ms, taken)
        return None

    def _is_too_late(self, start: int, columns: pa.RecordBatch, times_ms: Array, rows: Array) -> bool:
        """Whether no window of the slice is alive; then its rows are dropped, or sent aside."""
        last_end = self._slices.last_end(start)
        if last_end is not None and last_end - 1 + self._lateness_ms > self._watermark_ms:
            return False
        late = rows[times_ms[rows] + self._lateness_ms <= self._watermark_ms]
        if self._late_tag is None:
            self._late_dropped.inc(int(late.size))
        elif late.size:
            self.out.emit_side(
                self._late_tag, ColumnBatch(columns.take(arrow_of(late)), times_ms[late], named=self._named)
            )
        return True

    def _take_up_late(
        self, late: list[tuple[int, Array, list[tuple[int, int]]]], slots: Array, taken: list[Array]
    ) -> bool:
        """Take up rows whose windows have fired, in their order: each gives results of its own, with all before it.

        ``late``: (start of the pane, rows, windows). Return False if a sum does not fit into 64 bits.
        """
        import numpy as np

        in_order = by_record((row, start, fired) for start, rows, fired in late for row in rows.tolist())
        for row, start, fired in in_order:
            rows = np.array([row], np.int32)
            if not self._state.take_up(start, rows, slots):
                return False
            taken.append(rows)
            for window in fired:
                self._fire_late(self._state, window, slots[rows])
        return True

    def _expect(self, start: int, watermark_ms: int) -> None:
        """Let the windows of a new pane fire when their time comes."""
        for begin, end in self._panes.windows_with(start):
            if end - 1 > watermark_ms:
                self._pending.add((end, begin))

    def _fired_windows(self, start: int) -> list[tuple[int, int]]:
        """Return the windows of a slice that have fired and are kept for late records."""
        watermark_ms = self._watermark_ms
        return [
            window
            for window in self._panes.windows_with(start)
            if window[1] - 1 <= watermark_ms < window[1] - 1 + self._lateness_ms
        ]

    # --- time --------------------------------------------------------------------------------------------------------

    def process_watermark(self, watermark_ms: int) -> None:
        collections.deque(self.advance_watermark(watermark_ms) or (), maxlen=0)

    def advance_watermark(self, watermark_ms: int) -> Generator[None, None, None] | None:
        if self._is_on_rows or self._state.others:
            self._hand_over()  # before the time goes on
        self._watermark_ms = max(self._watermark_ms, watermark_ms)
        if self._is_on_rows:
            self._state.watermark_ms = self._watermark_ms
            return self._rows.advance_watermark(watermark_ms)
        due = sorted(window for window in self._pending if window[0] - 1 <= watermark_ms)
        if due:
            return self._advance(due, watermark_ms)
        self._end_advance(watermark_ms)
        return None

    def _advance(self, due: list[tuple[int, int]], watermark_ms: int) -> Generator[None, None, None]:
        """Fire these windows, in pieces. No two end together: the time that a checkpoint is told in between is that
        before the window that is firing, and keys of it that have fired are not there any more. Where they are kept,
        for other windows or what is late, it waits for the window's end: all keys of a pane have the same time."""
        for end, begin in due:
            self._state.watermark_ms = max(self._state.watermark_ms, end - 2)
            self._pending.discard((end, begin))
            yield from self._fire((begin, end))
            self._can_snapshot = True
            self._state.watermark_ms = max(self._state.watermark_ms, end - 1)
            if not self._keeps_fired:
                (start,) = self._panes.slices_of((begin, end))
                self._state.fired[start] = TIME_MAX_MS  # all of it, however slots are numbered
                if start in self._spilled:
                    self._windows.drop([start])
            yield
        self._end_advance(watermark_ms)

    def _end_advance(self, watermark_ms: int) -> None:
        self._can_snapshot = True
        self._state.watermark_ms = self._watermark_ms
        self._state.fired.clear()
        if self._state.panes or self._spilled:
            self._forget(watermark_ms)
        self.out.emit_watermark(watermark_ms)

    def can_snapshot_between(self) -> bool:
        return self._rows.can_snapshot_between() if self._is_on_rows else self._can_snapshot

    def _forget(self, watermark_ms: int) -> None:
        over = [start for start in (*self._state.panes, *self._spilled.starts()) if self._is_over(start, watermark_ms)]
        if over:
            self._windows.drop(over)

    def _is_over(self, start: int, watermark_ms: int) -> bool:
        """Whether nobody needs the slice any more, once all windows that are due have fired."""
        last_end = self._panes.last_end(start)
        return last_end is None or last_end - 1 + self._lateness_ms <= watermark_ms

    def _fire(self, window: tuple[int, int]) -> Iterator[None]:
        """Emit the window's results, in pieces."""
        starts = self._panes.slices_of(window)
        if not any(start in self._spilled for start in starts):
            self._can_snapshot = not self._keeps_fired
            for slot in self._fire_of(self._state, window, None):
                if self._can_snapshot and slot is not None:
                    self._state.fired[starts[0]] = slot + 1
                yield
            return
        self._can_snapshot = False
        # All of it by partition: what is still in memory goes to the files.
        self._windows.evict(starts)
        kept = [start for start in starts if start in self._spilled and not self._is_over(start, self._watermark_ms)]
        if self._spilled.has_tail(kept):
            self._spilled.flush()
        there = [start for start in starts if start in self._spilled]
        for partitions in self._windows.pieces_of(there):
            state = self._windows.load(there, partitions)
            for _ in self._fire_of(state, window, None):
                yield
            for start in kept:
                if self._spilled.has_records(start, partitions):
                    self._windows.write_back(state, start, partitions)  # the next one need not fold them again

    def _fire_late(self, state: WindowState, window: tuple[int, int], slots: Array) -> None:
        """Emit the window's results of these slots. All its slices are in memory, or all in files."""
        starts = self._panes.slices_of(window)
        assert state is not self._state or not any(start in self._spilled for start in starts), window
        collections.deque(self._fire_of(state, window, slots), maxlen=0)

    def _fired_before(self, window: tuple[int, int]) -> list[int]:
        """Return the key groups of which a window that is pending had fired in the checkpoint that was restored:
        barriers that overtake records find the time further on in some subtasks than in others."""
        fired: set[int] = set()
        for state in (self._state, *self._state.others):
            for start in self._panes.slices_of(window) if state.restored_groups else ():
                times_ms = state.restored_groups.get(start, {})
                fired.update(group for group, time_ms in times_ms.items() if time_ms >= window[1] - 1)
        return sorted(fired)

    def _fire_of(self, state: WindowState, window: tuple[int, int], only: Array | None) -> Iterator[int | None]:
        """Emit a window's results; yield after each piece up to which slot that is, if there is only one pane."""
        import numpy as np

        from engine.operators.window_firing import in_parts, parts_of, slots_beside

        if state.averages_decimals:
            yield from self._fire_rows(state, window, only)
            return
        fired = self._fired_before(window) if only is None else []
        parts = parts_of(state, self._panes.slices_of(window), only)
        while True:
            try:
                part = next(parts, _END)
            except OverflowError:
                yield from self._fire_rows(state, window, only)
                return
            if part is _END:
                return
            if part is None:
                yield None
                continue
            slots, values = part
            if fired:
                slots = slots_beside(state, slots, fired)
                if not slots.size:
                    continue
            if not self._spec.fires_on_rows:
                columns = state.results(window, slots, values)
                stamps = np.full(slots.size, window[1] - 1, np.int64)
                self.out.emit(ColumnBatch(columns, stamps, named=state.named))
                yield int(slots[-1])
                continue
            for few in in_parts(slots, _CALLS_MAX):
                keys, made = state.held(few, values)
                self._rows.fire_held(TimeWindow(*window), keys, made, self._watermark_ms)
                yield int(few[-1])

    def _fire_rows(self, state: WindowState, window: tuple[int, int], only: Array | None) -> Iterator[int | None]:
        """As ``_fire_of``, where a sum over the slices does not fit into 64 bits, or results are of no column."""
        import numpy as np

        from engine.operators.window_firing import in_parts, rows_of_panes, slots_beside

        fold = self._spec.rows.fold
        assert isinstance(fold, AggregateFold)
        is_nested = num_nested(self._spec.key, self._spec.rows) > 0
        fired = self._fired_before(window) if only is None else []
        slots_of = {
            start: slots_beside(state, state.panes[start].slots(), fired)
            if only is None
            else np.intersect1d(state.panes[start].slots(), only)
            for start in self._panes.slices_of(window)
            if start in state.panes
        }
        if len(slots_of) == 1:
            ((start, slots),) = slots_of.items()
            for part in in_parts(slots, _CALLS_MAX):
                rows = rows_of_panes(state, {start: part}, window, fold, is_nested=is_nested)
                self.out.emit(RowBatch(rows, [window[1] - 1] * len(rows)))
                yield int(part[-1])
            return
        rows = rows_of_panes(state, slots_of, window, fold, is_nested=is_nested)
        for at in range(0, len(rows), BATCH_ROWS_MAX):
            few = rows[at : at + BATCH_ROWS_MAX]
            self.out.emit(RowBatch(few, [window[1] - 1] * len(few)))
            yield None

    # --- the way to rows, and the end --------------------------------------------------------------------------------

    def _hand_over(self) -> None:
        """Give all windows to the row operator, if that has not been done; it takes every record from now on.

        Not in ``open``, where nobody notes yet what changes since the checkpoint that was restored.
        """
        if not self._is_on_rows and self._watermark_ms > TIME_MIN_MS:
            self._rows_output.is_silent = True
            self._rows.process_watermark(self._watermark_ms)
            self._rows_output.is_silent = False
        self._is_on_rows = True
        if self._state.layout is None:
            return
        self._windows.settle()
        for state in (self._state, *self._state.others):
            state.watermark_ms = self._state.watermark_ms
            self._adopt(state)
        starts = self._spilled.starts()
        for partitions in self._windows.pieces_of(starts):
            self._adopt(self._windows.load(starts, partitions))
        self._pending.clear()
        self._windows.clear()

    def _adopt(self, state: WindowState) -> None:
        is_tuple = isinstance(self._spec.key_selector, ComposedKey)
        for start in sorted(state.panes):
            fields, accumulators = state.accumulators(start, None)
            keys = fields if is_tuple else [key for (key,) in fields]
            for begin, end in self._panes.windows_with(start):
                if end - 1 + self._lateness_ms > state.watermark_of(start):
                    has_fired = (end, begin) not in self._pending
                    if not has_fired and (fired := self._fired_before((begin, end))):
                        self._adopt_rest(state, start, (begin, end), fired)
                    else:
                        self._rows.adopt(TimeWindow(begin, end), keys, accumulators, has_fired=has_fired)

    def _adopt_rest(self, state: WindowState, start: int, window: tuple[int, int], fired: list[int]) -> None:
        """As ``_adopt``, of a window that has fired of these key groups."""
        import numpy as np

        from engine.operators.window_firing import slots_beside

        slots = state.panes[start].slots()
        left = slots_beside(state, slots, fired)
        for part, has_fired in ((left, False), (np.setdiff1d(slots, left), True)):
            if not has_fired or self._lateness_ms:
                fields, accumulators = state.accumulators_of(start, part)
                keys = fields if isinstance(self._spec.key_selector, ComposedKey) else [key for (key,) in fields]
                self._rows.adopt(TimeWindow(*window), keys, accumulators, has_fired=has_fired)

    def finish(self) -> None:
        if self._is_on_rows or self._state.others:
            self._hand_over()
            self._rows.finish()


def _left(columns: pa.RecordBatch, times_ms: Array, taken: list[Array]) -> ColumnBatch:
    import numpy as np

    is_left = np.ones(times_ms.size, np.bool_)
    for rows in taken:
        is_left[rows] = False
    rows = is_left.nonzero()[0]
    return ColumnBatch(columns.take(arrow_of(rows)), times_ms[rows])
