"""Window join on columns: each slice of time keeps both sides' records as they came; a window that fires sorts them by
key and pairs them in one go.

Tumbling, sliding and cumulating windows of event time, without lateness. Semantics are those of ``operators/window``,
which takes over, with all that is kept, when something comes that columns cannot do. The pairs of one key come in the
row operator's order: by left record, then by right one, each in order of arrival.

State is in memory: with the backend ``rocksdb`` rows do everything.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.late_dataclass import dataclass
from engine.core.records import BATCH_ROWS_MAX
from engine.operators.base import Operator, OperatorContext, OperatorSpec, Output
from engine.operators.column_fields import are_alike, column_index, is_named, named_schema
from engine.operators.column_join import ColumnJoinOperator, ColumnJoinSpec, records_at
from engine.operators.compile.translate import Shape
from engine.operators.join_pairs import FromBatch, Pairs, pair_function, pair_shape
from engine.operators.join_state import SideRecords, chunks_of, in_order, key_columns, key_kinds, records_in
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.process import keeps_state
from engine.operators.row_output import maker_of
from engine.operators.window import LATE_RECORDS_DROPPED, WindowOperator, WindowSpec
from engine.operators.window_functions import JoinedFunction
from engine.operators.window_slices import Slices, slices_of
from engine.time.triggers import EventTimeTrigger
from engine.time.windows import TIME_MIN_MS, TimeWindow

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

__all__ = ["ColumnWindowJoinSpec", "column_window_join"]

#: Panes that one batch may have before it is cut.
_PANES_MAX: Final = 32
#: Batches that are smaller together become one in a pane: many small ones cost more than their content.
_MERGED_ROWS_MAX: Final = 1 << 16


@final
@dataclass(frozen=True)
class ColumnWindowJoinSpec(ColumnJoinSpec):
    """``shape``: of the results when the function is compiled; None = it is called for each pair."""

    rows: WindowSpec

    def build(self) -> Operator:
        return _ColumnWindowJoinOperator(self)

    def describe(self) -> str:
        how = "function called for each pair" if self.shape is None else "function compiled"
        return f"vectorised, {self.rows.assigner!r}, records by slice, {how}"


def column_window_join(rows: WindowSpec, shapes: tuple[Shape | None, Shape | None]) -> OperatorSpec | None:
    """Return the columnar form of a window join; None if there is none. ``shapes``: of both sides' records."""
    function = rows.function
    if not isinstance(function, JoinedFunction) or keeps_state(function.given):
        return None
    first, second = rows.key_selectors
    if not isinstance(first, FieldKey | ComposedKey) or type(first) is not type(second):
        return None
    if slices_of(rows.assigner) is None or type(rows.trigger) is not EventTimeTrigger:
        return None
    if rows.evictor is not None or rows.allowed_lateness_ms:
        return None
    is_plain = not function.is_flat and maker_of(rows.output_type) is None
    return ColumnWindowJoinSpec(rows, pair_shape(function.given, *shapes) if is_plain else None)


# --- state ------------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class _Some:
    """Records of one side and slice. ``arrivals``: rising numbers, the order in which they came; ``fired_ms``: of
    restored ones, up to when their windows have fired."""

    columns: pa.RecordBatch
    times_ms: Array
    arrivals: Array
    fired_ms: int = TIME_MIN_MS


def _append(kept: list[_Some], some: _Some) -> None:
    kept.append(some)
    while len(kept) > 1 and _are_small(kept[-2], kept[-1]):
        last = kept.pop()
        kept[-1] = _Some(*_joined([kept[-1], last]), last.fired_ms)


def _are_small(before: _Some, last: _Some) -> bool:
    """Whether two batches are to become one: as in a binary counter, so that a row is copied a few times only."""
    sizes = before.times_ms.size, last.times_ms.size
    return sizes[0] < 2 * sizes[1] and sum(sizes) <= _MERGED_ROWS_MAX and before.fired_ms == last.fired_ms


def _joined(kept: list[_Some]) -> tuple[pa.RecordBatch, Array, Array]:
    import numpy as np
    import pyarrow as pa

    if len(kept) == 1:
        return kept[0].columns, kept[0].times_ms, kept[0].arrivals
    (columns,) = pa.Table.from_batches([some.columns for some in kept]).combine_chunks().to_batches()
    times_ms, arrivals = ([some.times_ms for some in kept], [some.arrivals for some in kept])
    return columns, np.concatenate(times_ms), np.concatenate(arrivals)


@final
class WindowJoinState:
    """Implements ``parts.KeyedPart``. ``fields``: of the key, by side."""

    def __init__(
        self, max_parallelism: int, slices: Slices, fields: tuple[tuple[int | str, ...], ...], *, is_tuple: bool
    ) -> None:
        self._max_parallelism = max_parallelism
        self._slices = slices
        self._fields = fields
        self._is_tuple = is_tuple
        self.watermark_ms = TIME_MIN_MS
        self.clear()

    def clear(self) -> None:
        #: start → records by side
        self.panes: dict[int, tuple[list[_Some], list[_Some]]] = {}
        self.schemas: list[pa.Schema | None] = [None, None]
        self.keys: list[list[int]] = [[], []]
        self.kinds: list[pa.DataType] | None = None
        self.num_arrived = 0
        #: Restored from subtasks whose records were of other types, after the parallelism has changed: other keys.
        self.others: dict[int, bytes] = {}

    def define(self, side: int, schema: pa.Schema) -> bool:
        """Note the types of a side; False when columns cannot do it."""
        known = self.schemas[side]
        if known is not None:
            return are_alike(known, schema)
        fields = [column_index(schema, field) for field in self._fields[side]]
        kinds = key_kinds(schema, fields)
        if kinds is None or self.kinds not in (None, kinds):
            return False
        self.schemas[side], self.keys[side], self.kinds = named_schema(schema, is_named(schema)), fields, kinds
        return True

    def append(
        self, side: int, start: int, columns: pa.RecordBatch, times_ms: Array, arrivals: Array, fired_ms: int
    ) -> None:
        """The columns are the state's own from now on."""
        import pyarrow as pa

        if start not in self.panes:
            self.panes[start] = [], []
        own = pa.RecordBatch.from_arrays(columns.columns, schema=self.schemas[side])
        _append(self.panes[start][side], _Some(own, times_ms, arrivals, fired_ms))

    def records_of(self, side: int, window: tuple[int, int]) -> tuple[pa.RecordBatch, Array | None] | None:
        """Return one side's records of a window that is about to fire, None = there are none, and the rows in order of
        arrival, None = as they are."""
        import numpy as np

        panes = [self.panes[start][side] for start in self._slices.slices_of(window) if start in self.panes]
        kept = [some for some in itertools.chain.from_iterable(panes) if some.fired_ms < window[1] - 1]
        if not kept:
            return None
        columns, _, arrivals = _joined(kept)
        return columns, None if len(panes) == 1 else np.argsort(arrivals, kind="stable")

    def key_columns(self, side: int, columns: pa.RecordBatch) -> list[pa.Array]:
        assert self.kinds is not None
        return key_columns(columns, self.keys[side], self.kinds)

    def records(self) -> Iterator[SideRecords]:
        """Yield all that is kept, each side in order of arrival within a slice."""
        for side in range(2):
            for start in sorted(self.panes):
                for some in self.panes[start][side]:
                    fired_ms = max(self.watermark_ms, some.fired_ms)
                    yield SideRecords(side, some.columns, some.times_ms, some.arrivals, fired_ms)
        for chunk in self.others.values():
            yield from records_in(chunk)

    # --- KeyedPart

    def num_entries(self) -> int:
        kept = (some for pane in self.panes.values() for side in pane for some in side)
        return sum(some.times_ms.size for some in kept) + len(self.others)

    def snapshot(self, key_groups: Iterable[int]) -> dict[int, bytes]:
        wanted = set(key_groups)
        chunks = chunks_of(self._kept(), wanted)
        return chunks | {group: chunk for group, chunk in self.others.items() if group in wanted}

    def _kept(self) -> Iterator[tuple[SideRecords, Array]]:
        from engine.state.column_hash import groups_of_rows

        others, self.others = self.others, {}
        for records in self.records():
            keys = [records.columns.column(key) for key in self.keys[records.side]]
            groups = groups_of_rows(keys, self._max_parallelism, is_tuple=self._is_tuple)
            yield records, groups.astype("int64")
        self.others = others

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        import numpy as np
        import pyarrow as pa

        for group, chunk in chunks.items():
            found = list(records_in(chunk))
            if not all(self.define(records.side, records.columns.schema) for records in found):
                self.others[group] = chunk
                continue
            size, offset = self._slices.slice_ms, self._slices.offset_ms
            for records in found:
                times_ms = records.times_ms
                starts = times_ms - (times_ms - offset) % size
                for start in np.unique(starts).tolist():
                    rows = np.flatnonzero(starts == start)
                    columns = records.columns.take(pa.array(rows))
                    arrivals = records.arrivals[rows]
                    self.append(records.side, start, columns, times_ms[rows], arrivals, records.watermark_ms)
                    self.num_arrived = max(self.num_arrived, int(arrivals[-1]) + 1)


# --- the operator -----------------------------------------------------------------------------------------------------


@final
class _ColumnWindowJoinOperator(ColumnJoinOperator):
    def __init__(self, spec: ColumnWindowJoinSpec) -> None:
        slices = slices_of(spec.rows.assigner)
        assert slices is not None, spec.rows.assigner
        function = spec.rows.function
        assert isinstance(function, JoinedFunction)
        self._spec = spec
        self._slices: Slices = slices
        super().__init__(WindowOperator(spec.rows, is_inside=True))
        self._compiled = None if spec.shape is None else pair_function(function.given)
        self._watermark_ms = TIME_MIN_MS
        #: (end, start) of windows that have a pane and have not fired
        self._pending: set[tuple[int, int]] = set()

    def open(self, ctx: OperatorContext, out: Output) -> None:
        from engine.operators import column_kernels, join_kernels

        super().open(ctx, out)
        self._kernels, self._join_kernels = column_kernels, join_kernels
        self._rows.open(ctx, out)
        self._late_dropped = ctx.runtime_context.get_metrics_group().counter(LATE_RECORDS_DROPPED)
        selectors = self._spec.rows.key_selectors
        state = WindowJoinState(
            ctx.runtime_context.get_max_number_of_parallel_subtasks(),
            self._slices,
            tuple(key.fields if isinstance(key, ComposedKey) else (key.field,) for key in selectors),
            is_tuple=isinstance(selectors[0], ComposedKey),
        )
        self._register(ctx, state)
        for start, sides in self._state.panes.items():
            for some in itertools.chain(*sides):
                self._expect(start, some.fired_ms)

    # --- records

    def _process_columns(self, side: int, columns: pa.RecordBatch, times_ms: Any) -> None:
        import numpy as np
        import pyarrow as pa

        law = self._slices.slice_ms, self._slices.offset_ms
        pane_of_row = np.empty(times_ms.size, np.int32)
        starts = np.empty(_PANES_MAX, np.int64)
        row = 0
        while row < times_ms.size:
            begin = row
            row, num_panes = self._kernels.panes_of_times(times_ms, row, law, starts, 0, pane_of_row)
            for pane, start in enumerate(starts[:num_panes].tolist()):
                rows = begin + np.flatnonzero(pane_of_row[begin:row] == pane)
                if self._is_too_late(side, start, columns, times_ms, rows):
                    continue
                if start not in self._state.panes:
                    self._expect(start, self._watermark_ms)
                # A copy: a slice would keep the whole batch in memory.
                arrivals = self._state.num_arrived + rows
                self._state.append(side, start, columns.take(pa.array(rows)), times_ms[rows], arrivals, TIME_MIN_MS)
        self._state.num_arrived += times_ms.size

    def _is_too_late(self, side: int, start: int, columns: pa.RecordBatch, times_ms: Array, rows: Array) -> bool:
        """Whether no window of the slice is alive; then its rows are dropped, or sent aside."""

        last_end = self._slices.last_end(start)
        if last_end is not None and last_end - 1 > self._watermark_ms:
            return False
        late = rows[times_ms[rows] <= self._watermark_ms]
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

    # --- time

    def _process_time(self, watermark_ms: int) -> None:
        self._watermark_ms = self._state.watermark_ms = max(self._watermark_ms, watermark_ms)
        for end, begin in sorted(window for window in self._pending if window[0] - 1 <= watermark_ms):
            self._pending.discard((end, begin))
            self._fire((begin, end))
        panes = self._state.panes
        for start in list(panes):
            last_end = self._slices.last_end(start)
            if last_end is None or last_end - 1 <= watermark_ms:
                del panes[start]

    def _fire(self, window: tuple[int, int]) -> None:
        import numpy as np

        from engine.state.slot_table import SlotTable

        state = self._state
        left, right = (state.records_of(side, window) for side in range(2))
        if left is None or right is None or state.kinds is None:
            return
        table = SlotTable(state.kinds)
        slots = [table.slots_of(state.key_columns(side, columns)) for side, (columns, _) in enumerate((left, right))]
        groups = [
            self._grouped(own, order, table.num_slots) for own, (_, order) in zip(slots, (left, right), strict=True)
        ]
        lefts, rights = np.empty(BATCH_ROWS_MAX, np.int64), np.empty(BATCH_ROWS_MAX, np.int64)
        at = 0, -1, -1
        while at[0] < table.num_slots:
            *reached, num_pairs = self._join_kernels.pairs_of_groups(groups[0], groups[1], at, lefts, rights)
            at = reached[0], reached[1], reached[2]
            if num_pairs:
                times_ms = np.full(num_pairs, window[1] - 1, np.int64)
                picked = FromBatch(left[0], lefts[:num_pairs]), FromBatch(right[0], rights[:num_pairs])
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
        for records in in_order(state.records()):
            self._rows.adopt_records(records.side, *records.rows(), records.watermark_ms)
        self._pending.clear()
        state.clear()
