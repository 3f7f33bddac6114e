"""Interval join on columns: each side's records in arrays, chained by key; a batch finds all its partners in one go.

A batch is of one side and looks for partners on the other one only, so its rows do not see each other. Semantics are
those of ``operators/interval_join``, which takes over, with all that is kept, when something comes that columns cannot
do: rows, keys of different types on both sides, lists as values, times beyond 62 bits. The pairs of one record come in
order of arrival of its partners.

What is more than the operator's share of memory lies in files, whatever the backend (``spilling_intervals``): then
records and the time wait, and the partners of many records are looked for in a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import starmap
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.errors import EngineError
from engine.core.records import BATCH_ROWS_MAX, Batch, RowBatch
from engine.operators.base import Operator, OperatorContext, Output
from engine.operators.column_fields import are_alike, column_index, is_named, named_schema, own_schema
from engine.operators.column_join import KEEPS_STATE, TIME_LIMIT_MS, ColumnJoinOperator, ColumnJoinSpec, records_at
from engine.operators.compile.translate import Shape
from engine.operators.computed_keys import join_keys
from engine.operators.interval_join import (
    LATE_RECORDS_DROPPED,
    IntervalJoinOperator,
    IntervalJoinSpec,
    ProcessJoinFunction,
)
from engine.operators.join_pairs import FromBatch, Pairs, pair_function, pair_shape
from engine.operators.join_state import (
    RowStore,
    SideRecords,
    chunks_of,
    key_columns,
    key_kinds,
    records_in,
)
from engine.operators.keyed import last_row
from engine.operators.memory_watch import MemoryWatch
from engine.operators.opened_functions import keeps_state
from engine.operators.output_tag import OutputTag
from engine.operators.passes import Passes
from engine.operators.row_output import maker_of
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from engine.operators.join_segments import FoundPairs
    from engine.operators.spilling_intervals import SpillingIntervals
    from engine.state.slot_table import SlotTable

    Array = np.ndarray[Any, Any]

__all__ = ["ColumnIntervalJoinSpec", "IntervalState", "Stored", "column_interval_join"]

_LEFT: Final = 0
#: Fewer rows of a side, or keys, than this are never worth a compaction.
_COMPACT_MIN: Final = 1 << 16


@final
@dataclass(frozen=True)
class ColumnIntervalJoinSpec(ColumnJoinSpec):
    """``shape``: of the results when the function is compiled; None = it is called for each pair."""

    rows: IntervalJoinSpec

    def build(self) -> Operator:
        return _ColumnIntervalJoinOperator(self)

    def describe(self) -> str:
        how = "function called for each pair" if self.shape is None else "function compiled"
        return f"vectorised, {self.rows.describe()}, records by key{self.how_keys_are_made()}, {how}"


def column_interval_join(
    rows: IntervalJoinSpec, shapes: tuple[Shape | None, Shape | None]
) -> ColumnIntervalJoinSpec | str:
    """Return the columnar form of an interval join, or why there is none. ``shapes``: of both sides' records."""
    if keeps_state(rows.function):
        return KEEPS_STATE
    if not -TIME_LIMIT_MS < rows.lower_ms <= rows.upper_ms < TIME_LIMIT_MS:
        return "its bounds are beyond 62 bits"
    keys = join_keys(rows.key_selectors, shapes)
    if isinstance(keys, str):
        return keys
    return ColumnIntervalJoinSpec(rows, pair_shape(rows.function, *shapes, rows.output_type), keys)


# --- state ------------------------------------------------------------------------------------------------------------


@final
class _Side:
    """One side's records. Those before ``mark`` with times up to ``floor_ms`` count as removed."""

    def __init__(self, schema: pa.Schema, keys: list[int]) -> None:
        self.keys = keys
        self.store = RowStore(schema)
        self.mark = 0
        self.floor_ms = -TIME_LIMIT_MS
        self.compact_at = _COMPACT_MIN

    def live(self) -> Array:
        """Return the rows that are kept, rising."""
        import numpy as np

        is_live = self.store.times_ms > self.floor_ms
        is_live[self.mark :] = True
        return np.flatnonzero(is_live)


@final
class IntervalState:
    """Implements ``parts.KeyedPart``. ``fields``: of the key, by side."""

    def __init__(self, max_parallelism: int, fields: tuple[tuple[int | str, ...], ...], *, is_tuple: bool) -> None:
        self._max_parallelism = max_parallelism
        self._fields = fields
        self._is_tuple = is_tuple
        self.watermark_ms = TIME_MIN_MS
        #: Called when rows get other numbers.
        self.on_renumbered: Callable[[], None] = lambda: None
        self.clear()

    def clear(self) -> None:
        self.sides: list[_Side | None] = [None, None]
        self.table: SlotTable | None = None
        #: Restored from subtasks whose records were of other types, after the parallelism has changed: other keys.
        self.others: dict[int, bytes] = {}

    def define(self, side: int, schema: pa.Schema) -> bool:
        """Make everything for records of that schema; False when columns cannot do it."""
        from engine.state.slot_columns import can_be_kept
        from engine.state.slot_table import SlotTable

        known = self.sides[side]
        if known is not None:
            return are_alike(known.store.schema, schema)
        fields = [column_index(schema, field) for field in self._fields[side]]
        kinds = key_kinds(schema, fields)
        if kinds is None or not all(map(can_be_kept, schema.types)):
            return False
        if self.table is None:
            self.table = SlotTable(kinds)
        elif self.table.kinds != kinds:
            return False
        self.sides[side] = _Side(named_schema(schema, is_named(schema)), fields)
        return True

    def slots_of(self, side: int, columns: pa.RecordBatch) -> Array:
        """Return the slot of each row's key, with room for it on both sides."""
        own = self.sides[side]
        assert own is not None
        assert self.table is not None
        slots = self.table.slots_of(key_columns(columns, own.keys, self.table.kinds))
        for each in self.sides:
            if each is not None:
                each.store.reserve_slots(self.table.num_slots)
        return slots

    def remove_until(self, floors_ms: tuple[int, int]) -> None:
        """Remove what has come so far up to these times, by side."""
        for side, floor_ms in zip(self.sides, floors_ms, strict=True):
            if side is None:
                continue
            side.floor_ms, side.mark = floor_ms, side.store.num_rows
            if side.mark >= side.compact_at:
                live = side.live()
                if 2 * live.size <= side.mark:
                    self._compact(side, live)
                    self.on_renumbered()
                side.compact_at = max(_COMPACT_MIN, 2 * live.size)

    def _compact(self, side: _Side, live: Array) -> None:
        """Forget the removed rows; keys of none too, once they are most."""
        import numpy as np

        from engine.state.slot_table import SlotTable

        side.store.keep(live)
        side.mark = live.size
        assert self.table is not None
        stores = [each.store for each in self.sides if each is not None]
        used = np.zeros(self.table.num_slots, np.bool_)
        for store in stores:
            used[store.slots] = True
        kept = np.flatnonzero(used)
        if used.size < _COMPACT_MIN or 2 * kept.size > used.size:
            return
        keys = self.table.keys_of(kept)
        self.table = SlotTable(self.table.kinds)
        slot_of_slot = np.zeros(used.size, np.int32)
        slot_of_slot[kept] = self.table.slots_of(keys)
        for store in stores:
            store.keep(np.arange(store.num_rows), slot_of_slot)

    def records(self) -> Iterator[SideRecords]:
        """Yield all that is kept, each side in order of arrival."""
        for index, side in enumerate(self.sides):
            if side is not None:
                live = side.live()
                for at in range(0, live.size, BATCH_ROWS_MAX):
                    part = live[at : at + BATCH_ROWS_MAX]
                    store = side.store
                    yield SideRecords(index, store.records(part), store.times_ms[part], part, self.watermark_ms)
        for chunk in self.others.values():
            yield from records_in(chunk)

    @property
    def nbytes(self) -> int:
        table = 0 if self.table is None else self.table.nbytes
        return table + sum(side.store.nbytes for side in self.sides if side is not None)

    # --- KeyedPart

    def num_entries(self) -> int:
        return sum(side.store.num_rows for side in self.sides if side is not None) + len(self.others)

    def snapshot(self, key_groups: Iterable[int]) -> dict[int, bytes]:
        wanted = set(key_groups)
        chunks = chunks_of(self._kept(), wanted)
        return chunks | {group: chunk for group, chunk in self.others.items() if group in wanted}

    def _kept(self) -> Iterator[tuple[SideRecords, Array]]:
        from engine.state.column_hash import groups_of_rows

        others, self.others = self.others, {}
        for records in self.records():
            own = self.sides[records.side]
            assert own is not None
            keys = [records.columns.column(key) for key in own.keys]
            groups = groups_of_rows(keys, self._max_parallelism, is_tuple=self._is_tuple)
            yield records, groups.astype("int64")
        self.others = others

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        for group, chunk in chunks.items():
            found = list(records_in(chunk))
            is_known = group not in self.others
            if not (is_known and all(self.define(records.side, records.columns.schema) for records in found)):
                self.others[group] = self.others.get(group, b"") + chunk
                continue
            for records in found:
                self.append(
                    records.side, records.columns, records.times_ms, self.slots_of(records.side, records.columns)
                )

    def append(self, side: int, columns: pa.RecordBatch, times_ms: Array, slots: Array) -> None:
        own = self.sides[side]
        assert own is not None
        own.store.append(columns, times_ms, slots)


@final
class Stored:
    """Implements ``join_pairs.Picked``: rows of a store."""

    def __init__(self, store: RowStore, rows: Array) -> None:
        self.schema = own_schema(store.schema)
        self._store = store
        self._rows = rows

    def column(self, index: int) -> pa.Array:
        return self._store.column(index, self._rows)


# --- the operator -----------------------------------------------------------------------------------------------------


@final
class _ColumnIntervalJoinOperator(ColumnJoinOperator):
    _state: SpillingIntervals

    def __init__(self, spec: ColumnIntervalJoinSpec) -> None:
        self._spec = spec
        rows = spec.rows
        super().__init__(spec, IntervalJoinOperator(rows, is_inside=True))
        #: of each side: earliest and latest partner, relative to its own record
        self._bounds = ((rows.lower_ms, rows.upper_ms), (-rows.upper_ms, -rows.lower_ms))
        self._compiled = None if spec.shape is None else pair_function(rows.function, rows.output_type)
        self._make = maker_of(rows.output_type)
        #: what others have been told of the time
        self._told_ms = TIME_MIN_MS

    def open(self, ctx: OperatorContext, out: Output) -> None:
        from engine.operators import join_kernels
        from engine.operators.spilling_intervals import SpillingIntervals
        from engine.operators.unsent_pairs import PAIRS_PART, UnsentPairs

        super().open(ctx, out)
        self._kernels = join_kernels
        self._rows.open(ctx, out)
        self._late_dropped = ctx.runtime_context.get_metrics_group().counter(LATE_RECORDS_DROPPED)
        self._memory = MemoryWatch(ctx)
        state = SpillingIntervals(self._place(ctx, self._spec), self._bounds)
        self._register(ctx, state)
        state.settle()
        self._unsent = UnsentPairs(state)
        ctx.state.add_keyed(PAIRS_PART, self._unsent)
        self._passes = Passes(state, ctx.clock, self._emit_found, self._on_pass_over)
        if self._unsent:
            self._passes.due_ms = ctx.clock.now_ms()

    def close(self) -> None:
        super().close()
        self._state.clear()

    # --- records

    def process_batch(self, input_index: int, batch: Batch) -> None:
        self._send_unsent()
        super().process_batch(input_index, batch)

    def _process_columns(self, side: int, columns: pa.RecordBatch, times_ms: Any) -> None:
        columns, times_ms = self._in_time(side, columns, times_ms)
        if not times_ms.size:
            return
        if self._state.is_spilled:
            self._hold(side, columns, times_ms)
            return
        kept = self._state.memory
        slots = kept.slots_of(side, columns)
        partners = kept.sides[1 - side]
        if partners is not None:
            self._join(side, columns, times_ms, slots, partners)
        kept.append(side, columns, times_ms, slots)
        if self._memory.must_spill(kept.nbytes):
            self._state.spill()

    def _in_time(self, side: int, columns: pa.RecordBatch, times_ms: Array) -> tuple[pa.RecordBatch, Array]:
        """Send what is late aside, or drop it; return the rest."""
        import pyarrow as pa

        watermark_ms = self._state.watermark_ms
        if watermark_ms == TIME_MIN_MS or not times_ms.size or times_ms.min() >= watermark_ms:
            return columns, times_ms
        is_late = times_ms < watermark_ms
        late = is_late.nonzero()[0]
        tag = self._spec.rows.late_tags[side]
        if tag is None:
            self._late_dropped.inc(int(late.size))
        else:
            self.out.emit_side(tag, records_at(columns, late, times_ms))
        rest = (~is_late).nonzero()[0]
        return columns.take(pa.array(rest)), times_ms[rest]

    def _join(self, side: int, columns: pa.RecordBatch, times_ms: Array, slots: Array, partners: _Side) -> None:
        import numpy as np

        store = partners.store
        rows, others = np.empty(BATCH_ROWS_MAX, np.int64), np.empty(BATCH_ROWS_MAX, np.int64)
        gone = partners.mark, partners.floor_ms
        at = 0, -1
        while at[0] < slots.size:
            *reached, num_pairs = self._kernels.pairs_of_chains(
                slots, times_ms, at, self._bounds[side], gone, *store.chains, rows, others
            )
            at = reached[0], reached[1]
            if not num_pairs:
                continue
            own_rows, other_rows = rows[:num_pairs], others[:num_pairs]
            own, other = FromBatch(columns, own_rows), Stored(store, other_rows)
            times = times_ms[own_rows], store.times_ms[other_rows]
            if side == _LEFT:
                self._emit(Pairs(own, other, np.maximum(*times), num_pairs), times)
            else:
                self._emit(Pairs(other, own, np.maximum(*times), num_pairs), times[::-1])

    def _emit(self, pairs: Pairs, times: tuple[Array, Array]) -> None:
        """Hand on the results of some pairs. ``times``: event times of the left and the right records."""
        made = None if self._compiled is None else pairs.apply(self._compiled)
        if made is not None:
            self.out.emit(made)
            return
        if isinstance(self._spec.rows.function, ProcessJoinFunction):
            self._rows.join_pairs(pairs.rows(), zip(*(each.tolist() for each in times), strict=True))
            return
        assert pairs.times_ms is not None
        results, stamps = self._called(list(pairs.rows())), pairs.times_ms.tolist()
        if any(type(result) is tuple and result and type(result[0]) is OutputTag for result in results):
            self._rows.take_results(results, stamps)
        else:
            self.out.emit(RowBatch(results if self._make is None else list(map(self._make, results)), stamps))

    def _called(self, pairs: list[tuple[Any, Any]]) -> list[Any]:
        function = self._rows.function
        remaining = iter(pairs)
        try:
            return list(starmap(function.call, remaining))
        except EngineError:
            raise
        except Exception as error:
            raise function.error(error, last_row(pairs, remaining)) from error

    # --- time

    def process_watermark(self, watermark_ms: int) -> None:
        self._send_unsent()
        super().process_watermark(watermark_ms)

    def _process_time(self, watermark_ms: int) -> None:
        self._state.advance(watermark_ms)
        if watermark_ms == TIME_MAX_MS:
            self._passes.take_up_all()  # the end of all time: results come before the barrier of a last savepoint

    def _emit_time(self, watermark_ms: int) -> None:
        if not self._state.is_waiting:
            self._told_ms = max(self._told_ms, watermark_ms)
            self.out.emit_watermark(watermark_ms)

    # --- records in files

    def _hold(self, side: int, columns: pa.RecordBatch, times_ms: Array) -> None:
        self._state.hold(side, columns, times_ms)
        self._passes.be_due()
        self._passes.go_on()

    def _on_pass_over(self, until_ms: int) -> None:
        if self._told_ms < until_ms:
            self._told_ms = until_ms
            self.out.emit_watermark(until_ms)
        if self._state.is_waiting:
            self._passes.be_due()
        elif self._state.has_little():
            self._state.gather()

    def _emit_found(self, found: FoundPairs) -> None:
        from engine.operators.join_segments import portions

        for rows in portions(found):
            left, right = (FromBatch(own, rows) for own in found.sides)
            times = found.times_ms[0][rows], found.times_ms[1][rows]
            self._emit(Pairs(left, right, times[0].clip(min=times[1]), rows.size), times)

    def _send_unsent(self) -> None:
        """Send what was to be sent when the checkpoint was made, before anything else."""
        if self._unsent:
            for found in self._unsent.take():
                self._emit_found(found)

    def process_idle(self, idle: bool) -> None:
        self._send_unsent()
        self._passes.take_up_all()
        super().process_idle(idle)

    def end_superstep(self, superstep: int) -> None:
        self._passes.take_up_all()
        super().end_superstep(superstep)

    def prepare_snapshot(self, checkpoint_id: int) -> None:
        self._send_unsent()  # what waits is part of the snapshot: the task does not stand still for it

    def next_timer_ms(self) -> int | None:
        return self._passes.due_ms

    def on_timer(self, now_ms: int) -> None:
        self._passes.due_ms = None
        self._send_unsent()
        self._passes.take_turn()

    # --- the way to rows, and the end

    def _hand_over(self) -> None:
        self._passes.take_up_all()
        state = self._state
        if not self._is_on_rows:
            self._rows.timers.current_watermark = state.watermark_ms
        self._is_on_rows = True
        if not state.num_entries():
            return
        for records in state.records():
            self._rows.adopt(records.side, *records.rows())
        state.clear()

    def finish(self) -> None:
        self._send_unsent()
        self._passes.take_up_all()
        super().finish()
