"""Window join on columns: each slice of time keeps both sides' records as they came; a window that fires sorts them by
key and pairs them in one go.

Tumbling, sliding and cumulating windows of event time. Semantics are those of ``operators/window``, which takes over,
with all that is kept, when something comes that columns cannot do: with lateness, each late record gives all pairs of
its key in its windows again. The pairs of one key come in the row operator's order: by left record, then by right one,
each in order of arrival.

What is more than the operator's share of memory lies in files, slice by slice, whatever the backend; a window that
fires reads it partition by partition of the keys (``window_join_state``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from engine.core.late_dataclass import dataclass
from engine.core.records import BATCH_ROWS_MAX
from engine.operators.base import Operator, OperatorContext, Output
from engine.operators.column_join import KEEPS_STATE, TIME_LIMIT_MS, ColumnJoinOperator, ColumnJoinSpec, records_at
from engine.operators.compile.translate import Shape
from engine.operators.computed_keys import join_keys
from engine.operators.join_pairs import FromBatch, Pairs, pair_function, pair_shape
from engine.operators.join_state import in_order
from engine.operators.memory_watch import MemoryWatch
from engine.operators.opened_functions import keeps_state
from engine.operators.pane_rows import rows_of_panes
from engine.operators.window import LATE_RECORDS_DROPPED, WindowOperator, WindowSpec
from engine.operators.window_functions import JoinedFunction
from engine.operators.window_slices import Slices, slices_of
from engine.time.triggers import EventTimeTrigger
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS, TimeWindow

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from engine.operators.late_pairs import LatePairs
    from engine.operators.window_join_state import WindowContent, WindowJoinState

    Array = np.ndarray[Any, Any]
    #: a window that has fired before, and rows of either side that are pairs
    _Run = tuple[tuple[int, int], Array, Array]

__all__ = ["ColumnWindowJoinSpec", "column_window_join"]


@final
@dataclass(frozen=True)
class ColumnWindowJoinSpec(ColumnJoinSpec):
    """``shape``: of the results when the function is compiled; None = it is called for each pair."""

    rows: WindowSpec

    def build(self) -> Operator:
        return _ColumnWindowJoinOperator(self)

    def describe(self) -> str:
        how = "function called for each pair" if self.shape is None else "function compiled"
        return f"vectorised, {self.rows.assigner!r}, records by slice{self.how_keys_are_made()}, {how}"


def column_window_join(rows: WindowSpec, shapes: tuple[Shape | None, Shape | None]) -> ColumnWindowJoinSpec | str:
    """Return the columnar form of a window join, or why there is none. ``shapes``: of both sides' records."""
    function = rows.function
    if not isinstance(function, JoinedFunction):
        return "co_group gives its function all records of both sides"
    if keeps_state(function.given):
        return KEEPS_STATE
    if slices_of(rows.assigner) is None:
        return f"its windows are {type(rows.assigner).__name__}"
    if type(rows.trigger) is not EventTimeTrigger:
        return f"its trigger is {type(rows.trigger).__name__}"
    if rows.evictor is not None:
        return "it has an evictor"
    if rows.allowed_lateness_ms >= TIME_LIMIT_MS:
        return "its allowed lateness is beyond 62 bits"
    keys = join_keys(rows.key_selectors, shapes)
    if isinstance(keys, str):
        return keys
    shape = None if function.is_flat else pair_shape(function.given, *shapes, rows.output_type)
    return ColumnWindowJoinSpec(rows, shape, keys)


# --- the operator -----------------------------------------------------------------------------------------------------


@final
class _ColumnWindowJoinOperator(ColumnJoinOperator):
    _state: WindowJoinState

    def __init__(self, spec: ColumnWindowJoinSpec) -> None:
        slices = slices_of(spec.rows.assigner)
        assert slices is not None, spec.rows.assigner
        function = spec.rows.function
        assert isinstance(function, JoinedFunction)
        self._spec = spec
        self._slices: Slices = slices
        self._lateness_ms = spec.rows.allowed_lateness_ms
        super().__init__(spec, WindowOperator(spec.rows, is_inside=True))
        self._compiled = None if spec.shape is None else pair_function(function.given, spec.rows.output_type)
        self._watermark_ms = TIME_MIN_MS
        #: (end, start) of windows that have a pane and have not fired
        self._pending: set[tuple[int, int]] = set()

    def open(self, ctx: OperatorContext, out: Output) -> None:
        from engine.operators import join_kernels
        from engine.operators.window_join_state import WindowJoinState

        super().open(ctx, out)
        self._join_kernels = join_kernels
        self._rows.open(ctx, out)
        self._late_dropped = ctx.runtime_context.get_metrics_group().counter(LATE_RECORDS_DROPPED)
        self._memory = MemoryWatch(ctx)
        state = WindowJoinState(self._place(ctx, self._spec), self._slices)
        self._register(ctx, state)
        for start in state.starts():
            for fired_ms in state.fired_of(start):
                self._expect(start, fired_ms)

    def close(self) -> None:
        super().close()
        self._state.spilled.clear()

    # --- records

    def _process_columns(self, side: int, columns: pa.RecordBatch, times_ms: Any) -> None:
        import numpy as np
        import pyarrow as pa

        late: list[tuple[Array, list[tuple[int, int]]]] = []
        for _, _, panes in rows_of_panes(times_ms, self._slices.slice_ms, self._slices.offset_ms):
            for start, rows_of_pane in panes:
                rows = rows_of_pane.astype(np.int64)
                if self._is_too_late(side, start, columns, times_ms, rows):
                    continue
                if start not in self._state or start in self._state.returned:
                    self._expect(start, self._watermark_ms)
                    self._state.returned.discard(start)
                if fired := self._fired_windows(start):
                    late.append((rows, fired))
                # A copy: a slice would keep the whole batch in memory.
                arrivals = self._state.num_arrived + rows
                self._state.append(side, start, columns.take(pa.array(rows)), times_ms[rows], arrivals, TIME_MIN_MS)
        if late:
            self._fire_late(side, columns, late)
        self._state.num_arrived += times_ms.size
        if self._state.has_too_much() or (not self._state.spilled and self._memory.must_spill(self._state.nbytes)):
            self._make_room()

    def _make_room(self) -> None:
        """Let slices go to files: those whose windows have fired first, then those of windows that fire last."""
        first_ends: dict[int, int] = {}
        for end, begin in self._pending:
            for start in self._slices.slices_of((begin, end)):
                first_ends[start] = min(end, first_ends.get(start, end))
        self._state.make_room(lambda start: first_ends.get(start, TIME_MAX_MS))

    def _is_too_late(self, side: int, start: int, columns: pa.RecordBatch, times_ms: Array, rows: Array) -> bool:
        """Whether no window of the slice is alive; then its rows are dropped, or sent aside."""
        last_end = self._slices.last_end(start)
        if last_end is not None and last_end - 1 + self._lateness_ms > self._watermark_ms:
            return False
        late = rows[times_ms[rows] + self._lateness_ms <= self._watermark_ms]
        tag = self._spec.rows.late_tag
        if tag is None:
            self._late_dropped.inc(int(late.size))
        elif late.size:
            self.out.emit_side(tag, records_at(columns, late, times_ms))
        return True

    def _expect(self, start: int, watermark_ms: int) -> None:
        """Let the windows of a new pane fire when their time comes."""
        for begin, end in self._slices.windows_with(start):
            if end - 1 > watermark_ms:
                self._pending.add((end, begin))

    def _fired_windows(self, start: int) -> list[tuple[int, int]]:
        """Return the windows of a slice that have fired and are kept for late records, the last one first."""
        if not self._lateness_ms:
            return []
        watermark_ms = self._watermark_ms
        windows = self._slices.windows_with(start)
        return [window for window in windows if window[1] - 1 <= watermark_ms < window[1] - 1 + self._lateness_ms]

    def _fire_late(self, side: int, columns: pa.RecordBatch, late: list[tuple[Array, list[tuple[int, int]]]]) -> None:
        """Give the pairs of windows that have fired once more for each record that came late, in order of these."""
        import pyarrow as pa

        from engine.operators.late_pairs import LatePairs

        state = self._state
        in_order = sorted(((row, fired) for rows, fired in late for row in rows.tolist()), key=lambda one: one[0])
        keys = state.key_columns(side, columns.take(pa.array([row for row, _ in in_order])))
        starts = {start for _, fired in late for window in fired for start in self._slices.slices_of(window)}
        pairs = LatePairs(state, keys, filter(state.__contains__, starts), self._lateness_ms)
        runs: list[_Run] = []
        num_pairs = 0
        for number, (row, fired) in enumerate(in_order):
            for window in fired:
                for lefts, rights in pairs.of(number, state.num_arrived + row, window):
                    runs.append((window, lefts, rights))
                    num_pairs += lefts.size
                    if num_pairs >= BATCH_ROWS_MAX:
                        self._emit_late(pairs, runs)
                        runs, num_pairs = [], 0
        if runs:
            self._emit_late(pairs, runs)

    def _emit_late(self, late: LatePairs, runs: list[_Run]) -> None:
        import numpy as np

        made = None
        if self._compiled is not None:
            lefts, rights = (np.concatenate([run[side] for run in runs]) for side in (1, 2))
            times_ms = np.repeat([window[1] - 1 for window, *_ in runs], [lefts.size for _, lefts, _ in runs])
            picked = FromBatch(late.columns(0), lefts), FromBatch(late.columns(1), rights)
            made = Pairs(*picked, times_ms, times_ms.size).apply(self._compiled)
        if made is not None:
            self.out.emit(made)
            return
        for window, lefts, rights in runs:
            pairs = Pairs(FromBatch(late.columns(0), lefts), FromBatch(late.columns(1), rights), None, lefts.size)
            self._rows.join_pairs(list(pairs.rows()), TimeWindow(*window))

    # --- time

    def _process_time(self, watermark_ms: int) -> None:
        self._watermark_ms = self._state.watermark_ms = max(self._watermark_ms, watermark_ms)
        for end, begin in sorted(window for window in self._pending if window[0] - 1 <= watermark_ms):
            self._pending.discard((end, begin))
            for partitions in self._state.pieces_of((begin, end)):
                self._fire((begin, end), partitions)
        self._state.drop([start for start in self._state.starts() if self._is_over(start, watermark_ms)])

    def _is_over(self, start: int, watermark_ms: int) -> bool:
        last_end = self._slices.last_end(start)
        return last_end is None or last_end - 1 + self._lateness_ms <= watermark_ms

    def _fire(self, window: tuple[int, int], partitions: range | None) -> None:
        import numpy as np

        from engine.state.slot_table import SlotTable

        state = self._state
        left, right = (state.content_of(side, window, partitions, self._lateness_ms) for side in range(2))
        if left is None or right is None or state.kinds is None:
            return
        table = SlotTable(state.kinds)
        slots = [table.slots_of(state.key_columns(side, own.columns)) for side, own in enumerate((left, right))]
        groups = [
            self._grouped(own, content.order, table.num_slots)
            for own, content in zip(slots, (left, right), strict=True)
        ]
        if left.is_new is not None or right.is_new is not None:
            groups[0] = _of_firing(groups[0], slots, (left, right))
        lefts, rights = np.empty(BATCH_ROWS_MAX, np.int64), np.empty(BATCH_ROWS_MAX, np.int64)
        at = 0, -1, -1
        while at[0] < table.num_slots:
            *reached, num_pairs = self._join_kernels.pairs_of_groups(groups[0], groups[1], at, lefts, rights)
            at = reached[0], reached[1], reached[2]
            if num_pairs:
                times_ms = np.full(num_pairs, window[1] - 1, np.int64)
                picked = FromBatch(left.columns, lefts[:num_pairs]), FromBatch(right.columns, rights[:num_pairs])
                self._emit(Pairs(*picked, times_ms, times_ms.size), window)

    def _grouped(self, slots: Array, arrival: Array | None, num_slots: int) -> tuple[Array, Array]:
        """Return where each slot's rows begin, and the rows by slot. ``arrival``: the order of those of one slot."""
        import numpy as np

        starts, order = np.zeros(num_slots + 1, np.int64), np.empty(slots.size, np.int64)
        self._join_kernels.order_by_slot(slots if arrival is None else slots[arrival], starts, order)
        return starts, order if arrival is None else arrival[order]

    def _emit(self, pairs: Pairs, window: tuple[int, int]) -> None:
        made = None if self._compiled is None else pairs.apply(self._compiled)
        if made is not None:
            self.out.emit(made)
        else:
            self._rows.join_pairs(list(pairs.rows()), TimeWindow(*window))

    # --- the way to rows, and the end

    def _hand_over(self) -> None:
        state = self._state
        if not self._is_on_rows:
            self._rows.timers.current_watermark = self._watermark_ms
        self._is_on_rows = True
        if not state.num_entries():
            return
        for piece in state.records():
            for records in in_order(piece):
                self._rows.adopt_records(records.side, *records.rows(), records.watermark_ms)
        self._pending.clear()
        state.clear()


def _of_firing(
    group: tuple[Array, Array], slots: list[Array], contents: tuple[WindowContent, ...]
) -> tuple[Array, Array]:
    """Return a side's rows without those of keys that have fired and of which nothing has come since a restore."""
    import numpy as np

    starts, order = group
    fires = np.zeros(starts.size - 1, np.bool_)
    for own, content in zip(slots, contents, strict=True):
        fires[own if content.is_new is None else own[content.is_new]] = True
    sizes = np.diff(starts)
    return np.concatenate(([0], np.cumsum(np.where(fires, sizes, 0)))), order[np.repeat(fires, sizes)]
