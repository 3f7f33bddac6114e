"""State of windows over columns: keys by slot, panes of accumulators, and rows that say the same.

Not here: what a checkpoint has of it (``window_chunks``), panes in files (``spilling_windows``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, final

import numpy as np
import pyarrow as pa

from engine.core.arrow_arrays import arrow_of
from engine.core.errors import ProgramError
from engine.core.records import ColumnBatch, Named, record_values
from engine.operators import column_kernels as kernels
from engine.operators import window_sums
from engine.operators.column_fields import column_index, is_named
from engine.operators.computed_keys import own_records
from engine.operators.field_aggregates import FieldAggregateOf
from engine.operators.record_choice import RecordChoice
from engine.operators.window_changes import WindowChanges
from engine.operators.window_distinct import DistinctValues
from engine.operators.window_fields import (
    AggregatedField,
    RecordLayout,
    averages,
    can_be_aggregated,
    codes_for,
    field_of_kind,
)
from engine.operators.window_panes import Accumulator, Pane
from engine.state.arrow_views import valid_mask, values_of
from engine.state.short_decimals import lanes_of, lanes_of_units
from engine.state.slot_columns import can_be_kept
from engine.state.slot_table import SlotTable
from engine.state.struct_keys import can_be_row_key
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS

Array = np.ndarray[Any, Any]

__all__ = ["FIELDS", "WindowState", "other_fields"]

#: Fewer slots than this are never worth a compaction.
_COMPACT_SLOTS_MIN: Final = 1 << 16
_ADDED_MAX: Final = 1 << 14  #: values that are added at once, in the processor's cache
#: In the metadata of a chunk: the fields that its columns are of.
FIELDS: Final = b"fields"


@final
class WindowState:
    """``keeps_record``: what a window holds is its first record, with one field aggregated; with a ``choice``, the one
    that was chosen by that field. ``seeds``: what it holds is a tuple of the aggregates, made by a user's fold; by
    aggregate, what it begins with, None = its first value. ``is_users``: a user's function folds or chooses.
    ``by_window``: a pane is a window, not a slice of several (``WholeWindows``); ``num_slices``: of how many panes the
    content of a window is put together."""

    def __init__(
        self,
        max_parallelism: int,
        aggregates: Sequence[FieldAggregateOf],
        keeps_record: bool,
        is_tuple: bool,
        *,
        seeds: Sequence[int | float | None] | None = None,
        choice: RecordChoice | None = None,
        is_users: bool = False,
        by_window: bool = False,
        num_slices: int = 1,
    ) -> None:
        self.max_parallelism = max_parallelism
        self._aggregates = aggregates
        self._keeps_record = keeps_record
        self._seeds = seeds
        self._choice = choice
        self.is_users = is_users or seeds is not None
        self._by_window = by_window
        self._num_slices = num_slices
        #: as Python compares: a NaN is neither smaller nor greater
        self._compares_plainly = keeps_record or seeds is not None
        self.is_tuple = is_tuple
        #: start → key group of which there was anything → watermark of its subtask in the checkpoint; and the least one
        self.restored_groups: dict[int, dict[int, int]] = {}
        self.restored_panes: dict[int, int] = {}
        #: notes what changes, where somebody asks for it
        self.changes: WindowChanges | None = None
        self.watermark_ms = TIME_MIN_MS
        self.keeps_slots = False  #: somebody knows slots by number: they must not move
        self.clear()

    def clear(self) -> None:
        self.layout: RecordLayout | None = None
        #: Restored from subtasks whose records were of other types, after the parallelism has changed: other keys.
        self.others: list[WindowState] = []
        self.panes: dict[int, Pane] = {}
        #: While a watermark makes panes fire that are over then: start → slots below have fired, and are gone.
        self.fired: dict[int, int] = {}
        self._fields: list[AggregatedField] = []
        self._accumulators: list[tuple[Accumulator, AggregatedField]] = []
        self._distinct: list[DistinctValues] = []
        #: of the rows that ``take_up`` is taking up, those whose records are chosen
        self._taken: Array = np.zeros(0, np.int32)
        self._width = 1
        self._compact_at = _COMPACT_SLOTS_MIN

    # --- types -------------------------------------------------------------------------------------------------------

    def define(self, schema: pa.Schema, keys: Sequence[int]) -> bool:
        """Make everything for records of that schema; False when columns cannot do it."""
        if min(keys) < 0 or not all(can_be_row_key(schema.types[key]) for key in keys):
            return False
        indexes = [0 if a.field is None else column_index(schema, a.field) for a in self._aggregates]
        if min(indexes) < 0 or not all(map(can_be_aggregated, self._aggregates, (schema.types[i] for i in indexes))):
            return False
        if self._keeps_record and not all(map(can_be_kept, schema.types)):
            return False
        self.layout = RecordLayout(schema, tuple(keys))
        self._table = SlotTable([schema.types[key] for key in keys])
        seeds = self._seeds or [None] * len(indexes)
        # Of any type: what is added or compared, by whatever else it is aggregated too.
        compared = {i for i, own in zip(indexes, self._aggregates, strict=True) if own.kind in ("sum", "min", "max")}
        for aggregate, index, seed in zip(self._aggregates, indexes, seeds, strict=True):
            if aggregate.kind == "count_distinct":
                self._add_distinct(index)
            elif aggregate.field is not None:
                field = self._field(index, is_compared=index in compared or aggregate.kind == "avg")
                self._add("sum" if aggregate.kind == "avg" else aggregate.kind, field, seed)
        if self._keeps_record:
            for index, kind in enumerate(schema.types):
                if index != indexes[0]:  # coded: null is a value of its own there
                    field = AggregatedField(index, kind, 0, codes_for(kind))
                    self._fields.append(field)
                    self._add("first" if self._choice is None else "chosen", field)
        return True

    def _field(self, index: int, *, is_compared: bool = True) -> AggregatedField:
        assert self.layout is not None
        for field in self._fields:
            if field.index == index:
                return field
        self._fields.append(field_of_kind(index, self.layout.schema.types[index], is_compared))
        return self._fields[-1]

    def _add_distinct(self, index: int) -> None:
        assert self.layout is not None
        if all(distinct.index != index for distinct in self._distinct):
            self._distinct.append(DistinctValues(index, self.layout.schema.types[index], self._width))
            self._width += 1

    def _add(self, kind: str, field: AggregatedField, seed: int | float | None = None) -> None:
        if kind == "count" or self._find(kind, field, seed) is not None:
            return
        self._accumulators.append((Accumulator(kind, self._width, field.is_float, seed), field))
        self._width += 1

    def _find(self, kind: str, field: AggregatedField, seed: int | float | None = None) -> Accumulator | None:
        return next(
            (a for a, own in self._accumulators if a.kind == kind and own is field and repr(a.seed) == repr(seed)), None
        )

    def another(self) -> WindowState:
        """Return an empty one for the same aggregates, without types."""
        return WindowState(
            self.max_parallelism,
            self._aggregates,
            self._keeps_record,
            self.is_tuple,
            seeds=self._seeds,
            choice=self._choice,
            is_users=self.is_users,
            by_window=self._by_window,
            num_slices=self._num_slices,
        )

    @property
    def named(self) -> Named:
        """Whether the records that windows hold are Rows."""
        return self._keeps_record and self.layout is not None and self.layout.named

    def is_named(self, schema: pa.Schema) -> Named:
        """Whether windows of such records would hold Rows."""
        return self._keeps_record and is_named(schema)

    # --- records -----------------------------------------------------------------------------------------------------

    def slots_of(self, columns: pa.RecordBatch) -> Array:
        assert self.layout is not None
        return self._table.slots_of([columns.column(key) for key in self.layout.keys])

    def begin_batch(self, columns: pa.RecordBatch, *, is_held: bool = False) -> bool:
        """Prepare the values of the batch whose rows ``take_up`` takes; False when rows have to take it. ``is_held``:
        the records have waited, which ``can_take_later`` has allowed."""
        if not is_held and not self.takes_decimals():
            return False
        for distinct in self._distinct:
            distinct.begin_batch(columns.column(distinct.index))
        for field in self._fields:
            if field.codes is not None and field.codes.num_slots > field.renew_at:
                field.renew_codes(self._places_of(field))
            column = columns.column(field.index)
            if field.has_long(column):
                self._make_room(field)
            field.lanes = lanes_of(column) if self._is_wide(field) else None
            field.valid = None
            field.column = None
            if field.is_only_kept and self._keeps_record:
                if self._choice is None:
                    field.column = column
                else:
                    field.values = field.codes_of(column)
                continue
            if column.null_count:
                if self._compares_plainly:
                    return False  # whether a None can be aggregated is for the row operator to say
                field.valid = valid_mask(column)
                if not field.present:
                    self._count_apart(field)
            if field.codes is not None:
                field.values = field.codes_of(column)
            elif field.is_float:
                field.values = values_of(column).astype(np.float64, copy=False)
            else:
                field.values = field.ints_of(column)
        return True

    def takes_decimals(self) -> bool:
        """Whether Python would give the very sums of decimals, unless they are too large."""
        return window_sums.takes_decimals(self._accumulators)

    @property
    def why_no_sum(self) -> str:
        """Why sums were not taken up."""
        return window_sums.why_not(self._accumulators)

    def _make_room(self, field: AggregatedField) -> None:
        """Decimals of many digits have come."""
        if field.codes is None and any(own is field and a.kind != "sum" for a, own in self._accumulators):
            field.code_decimals(self._places_of(field))
        self.widen_sums(field)

    def widen_sums(self, field: AggregatedField) -> None:
        """Hold sums of a field in lanes, with their sizes, from now on."""
        for at, (own, of) in enumerate(self._accumulators):
            if of is field and own.kind == "sum" and own.lanes is None:
                wide = replace(own, lanes=(self._width, self._width + 1))
                self._accumulators[at] = wide, field
                self._width += 2
                for pane in self.panes.values():
                    pane.widen(self._width)
                    window_sums.widen(pane, wide)
        if field.lanes is None and field.values is not None and field.codes is None:
            field.lanes = lanes_of_units(field.values)  # of the batch that is being taken up

    def widen_all_sums(self) -> bool:
        """As ``widen_sums``, of all fields of decimals; return whether there was one that has been as it was."""
        found = [field for own, field in window_sums.sums_of(self._accumulators) if field.of_decimals and not own.lanes]
        for field in found:
            self.widen_sums(field)
        return bool(found)

    def _is_wide(self, field: AggregatedField) -> bool:
        return any(own.lanes is not None for own, of in self._accumulators if of is field)

    def _places_of(self, field: AggregatedField) -> list[tuple[Array, Array]]:
        """Return all columns of panes that have values of a field, no sums, each with the slots that have something."""
        columns = [own.column for own, of in self._accumulators if of is field and own.kind != "sum"]
        return [(pane.column(column), pane.slots()) for pane in self.panes.values() for column in columns]

    # --- records that are taken up later

    def fields_read(self) -> list[int]:
        """Return which fields of a record are read, rising."""
        assert self.layout is not None
        read = {*self.layout.keys, *(field.index for field in self._fields), *(own.index for own in self._distinct)}
        return sorted(read)

    def can_take_later(self, columns: pa.RecordBatch) -> bool:
        """Whether ``begin_batch`` will take rows of this batch."""
        if not self.takes_decimals():
            return False
        if not self._compares_plainly:
            return True
        return not any(
            columns.column(field.index).null_count
            for field in self._fields
            if not (field.is_only_kept and self._keeps_record)
        )

    def bound_of_records(self, columns: pa.RecordBatch) -> float:
        """Return how much the records can add to any sum of integers at most, or of decimals, in parts of their limit
        as if that were ``SUM_MAX``."""
        return window_sums.bound_of_records(self._accumulators, columns, self._num_slices)

    def bound_of_pane(self, start: int) -> float:
        """Return what no sum of integers of a pane is beyond, or of decimals."""
        return window_sums.bound_of_pane(self._accumulators, self.panes[start], self._num_slices)

    def sums(self) -> list[Accumulator]:
        """Return the sums that are no floats."""
        return [own for own, _ in window_sums.sums_of(self._accumulators)]

    # ---

    def _count_apart(self, field: AggregatedField) -> None:
        """The first null of a field: count its values in a column of their own from now on."""
        field.present = self._width
        self._width += 1
        for pane in self.panes.values():
            pane.widen(self._width)
            pane.column(field.present)[:] = pane.column(0)

    def take_up(self, start: int, rows: Array, slots: Array) -> bool:
        """Take up the rows of a pane; False when a sum would not fit into 64 bits: then none has been taken up."""
        pane = self.panes.get(start)
        if pane is None:
            pane = self.panes[start] = Pane(self._width)
            if self.changes is not None:
                self.changes.begin_pane(start)
        pane.reserve(self._table.num_slots)
        if not window_sums.add_up(
            self._accumulators, pane, rows, slots, num_slices=self._num_slices, widened=self.widen_sums
        ):
            return False
        begun_slots, begun_rows = np.empty(rows.size, np.int32), np.empty(rows.size, np.int32)
        begun = kernels.count_rows(rows, slots, pane.column(0), begun_slots, begun_rows)
        of_records = rows, begun_slots[:begun], begun_rows[:begun]
        for field in self._fields:
            begins = of_records
            if field.present:
                begins = self._present_rows(field, pane, rows, slots)
            for accumulator, own in self._accumulators:
                if own is field:
                    self._accumulate(accumulator, field, pane, slots, begins)
        for distinct in self._distinct:
            distinct.take_up(start, pane, rows, slots)
        if self.changes is not None:
            self.changes.mark_slots(start, slots[rows], self._table.num_slots)
        return True

    def _present_rows(
        self, field: AggregatedField, pane: Pane, rows: Array, slots: Array
    ) -> tuple[Array, Array, Array]:
        if field.valid is not None:
            rows = rows[field.valid[rows]]
        begun_slots, begun_rows = np.empty(rows.size, np.int32), np.empty(rows.size, np.int32)
        begun = kernels.count_rows(rows, slots, pane.column(field.present), begun_slots, begun_rows)
        return rows, begun_slots[:begun], begun_rows[:begun]

    def _accumulate(
        self,
        accumulator: Accumulator,
        field: AggregatedField,
        pane: Pane,
        slots: Array,
        begins: tuple[Array, Array, Array],
    ) -> None:
        rows, begun_slots, begun_rows = begins
        values = field.values
        acc = pane.column(accumulator.column, accumulator.is_float)
        if field.column is not None:
            if begun_rows.size:
                acc[begun_slots] = field.codes_of(field.column.take(arrow_of(begun_rows)))
            return
        assert values is not None
        kind = accumulator.kind
        if kind == "sum" and not accumulator.is_float:
            pass  # begins with 0, and ``window_sums`` has added to it
        elif accumulator.seed is not None:
            acc[begun_slots] = accumulator.seed
        elif kind != "sum":
            acc[begun_slots] = values[begun_rows]
        else:
            acc[begun_slots] = -0.0  # the only float that leaves every other one as it is
        match kind:
            case "sum" if accumulator.is_float:
                kernels.add_floats(rows, slots, values, acc)
            case "sum":
                pass  # done by ``window_sums``
            case "min" | "max" if field.order is not None:
                law = RecordChoice.of_kind(f"{kind}_by", 0).law if self._choice is None else self._choice.law
                ranks = field.order.ranks(values[rows], acc[slots[rows]])
                taken = np.empty(rows.size, np.int32)
                self._taken = taken[: kernels.choose_codes_of_rows(rows, slots, values, ranks, law, acc, taken)]
            case "min" if self._choice is not None:
                taken = np.empty(rows.size, np.int32)
                self._taken = taken[: kernels.choose_of_rows(rows, slots, values, self._choice.law, acc, taken)]
            case "chosen":  # its field comes after the one that is compared
                kernels.put_last(self._taken, slots, values, acc)
            case "min" if self._compares_plainly:
                kernels.lower_to(rows, slots, values, acc)
            case "min":
                kernels.lower_to_or_nan(rows, slots, values, acc)
            case "max" if self._compares_plainly:
                kernels.raise_to(rows, slots, values, acc)
            case "max":
                kernels.raise_to_or_nan(rows, slots, values, acc)
            case "last":
                kernels.put_last(rows, slots, values, acc)

    # --- results -----------------------------------------------------------------------------------------------------

    def empty_values(self) -> Array:
        """Return accumulators by slot of which none has anything, for ``merge``."""
        return np.zeros((self._table.num_slots, self._width), np.int64)

    def count_distinct_together(self, starts: list[int], merged: Array) -> None:
        """Count the distinct values of panes that have been merged."""
        for distinct in self._distinct:
            distinct.count_together(starts, merged)

    def merge(self, target: Array, source: Array, slots: Array) -> None:
        """Take up what comes after ``target``: arrays (slots, columns). Raises: OverflowError."""
        if self._choice is not None:
            self._merge_chosen(self._choice, target, source, slots)
            return
        for accumulator, field in self._accumulators:
            having = slots[source[slots, field.present] > 0]
            fresh = target[having, field.present] == 0
            accumulator.merge(
                target, source, having, fresh, plainly=self._compares_plainly, comparable=field.comparable
            )
        for column in {0, *(field.present for field in self._fields)}:
            target[slots, column] += source[slots, column]

    def _merge_chosen(self, choice: RecordChoice, target: Array, source: Array, slots: Array) -> None:
        """As ``merge``, of records of which one stays; both sides have one."""
        compared, field = next((a, field) for a, field in self._accumulators if a.kind == "min")
        held, following = field.comparable(_typed(target, compared)[slots], _typed(source, compared)[slots])
        taken = slots[choice.takes_over(following, held)]
        for accumulator, _ in self._accumulators:
            target[taken, accumulator.column] = source[taken, accumulator.column]
        target[slots, 0] += source[slots, 0]

    def results(self, window: tuple[int, int], slots: Array, values: Array) -> pa.RecordBatch:
        layout = self.layout
        assert layout is not None
        if self._keeps_record:
            made: list[pa.Array] = [None] * len(layout.schema)
            for accumulator, field in self._accumulators:
                made[field.index] = self._column(accumulator, field, values[slots])
            return pa.RecordBatch.from_arrays(made, names=layout.schema.names)
        arrays = self._table.keys_of(slots)
        names = [layout.schema.names[key] for key in layout.keys]
        arrays += [arrow_of(np.full(slots.size, edge, np.int64)) for edge in window]
        rows = values[slots]
        for aggregate in self._aggregates:
            arrays.append(self._result(aggregate, rows))
        names += ["window_start", "window_end", *(aggregate.column_name for aggregate in self._aggregates)]
        return pa.RecordBatch.from_arrays(arrays, names=names)

    def held(self, slots: Array, values: Array) -> tuple[list[Any], list[Any]]:
        """Return the keys of these slots, of one field each, and what a user's function has made by key."""
        (keys,) = map(record_values, self._table.keys_of(slots))
        if self._seeds is None:
            return keys, self._records(slots, values)
        rows = values[slots]
        parts = []
        for aggregate, seed in zip(self._aggregates, self._seeds, strict=True):
            if aggregate.field is None:
                parts.append(rows[:, 0].tolist())
                continue
            field = self._field(self._index_of(aggregate))
            accumulator = self._find(aggregate.kind, field, seed)
            assert accumulator is not None
            is_plain = field.codes is None and field.kind in (pa.int64(), pa.float64())
            column = _typed(rows, accumulator) if is_plain else self._column(accumulator, field, rows)
            parts.append(column.tolist() if is_plain else record_values(column))
        return keys, list(zip(*parts, strict=True))

    def _records(self, slots: Array, values: Array) -> list[Any]:
        return own_records(ColumnBatch(self.results((0, 0), slots, values), named=self.named)).to_rows().rows

    def accumulators(self, start: int, only: Array | None) -> tuple[list[tuple[Any, ...]], list[Any]]:
        """Return the fields of each key of a pane and what the row operator's accumulator of it would be; ``only``: of
        these slots."""
        slots = self.panes[start].slots()
        return self.accumulators_of(start, slots if only is None else np.intersect1d(slots, only))

    def accumulators_of(self, start: int, slots: Array) -> tuple[list[tuple[Any, ...]], list[Any]]:
        """As ``accumulators``, of slots that have something in the pane."""
        values = self.panes[start].values
        if self._seeds is not None:
            plain_keys, made = self.held(slots, values)
            return [(key,) for key in plain_keys], made
        keys = list(zip(*map(record_values, self._table.keys_of(slots)), strict=True))
        if self._keeps_record:
            return keys, self._records(slots, values)
        rows = values[slots]
        parts: list[list[Any]] = []
        for aggregate in self._aggregates:
            if aggregate.kind == "count_distinct":
                parts.append(self._distinct_of(aggregate).sets_of(start, slots))
            elif aggregate.kind == "avg":
                field = self._field(self._index_of(aggregate))
                sums = self._find("sum", field)
                assert sums is not None
                totals = self._column(sums, field, rows).to_pylist()
                parts.append(list(zip(totals, rows[:, field.present].tolist(), strict=True)))
            else:
                parts.append(record_values(self._result(aggregate, rows)))
        return keys, list(map(list, zip(*parts, strict=True)))

    @property
    def averages_decimals(self) -> bool:
        """Whether results are of no column: Python gives each average of decimals as many places as it needs."""
        return any(own.kind == "avg" and self._field(self._index_of(own)).of_decimals for own in self._aggregates)

    def _index_of(self, aggregate: FieldAggregateOf) -> int:
        assert self.layout is not None
        assert aggregate.field is not None
        return column_index(self.layout.schema, aggregate.field)

    def _distinct_of(self, aggregate: FieldAggregateOf) -> DistinctValues:
        index = self._index_of(aggregate)
        return next(distinct for distinct in self._distinct if distinct.index == index)

    def _result(self, aggregate: FieldAggregateOf, rows: Array) -> pa.Array:
        if aggregate.field is None:
            return arrow_of(rows[:, 0])
        if aggregate.kind == "count_distinct":
            return arrow_of(rows[:, self._distinct_of(aggregate).column])
        field = self._field(self._index_of(aggregate))
        if aggregate.kind == "count":
            return arrow_of(rows[:, field.present])
        accumulator = self._find("sum" if aggregate.kind == "avg" else aggregate.kind, field)
        assert accumulator is not None
        if aggregate.kind != "avg":
            return self._column(accumulator, field, rows)
        return averages(_typed(rows, accumulator), rows[:, field.present])

    def _column(self, accumulator: Accumulator, field: AggregatedField, rows: Array) -> pa.Array:
        if accumulator.kind == "sum" and field.of_decimals:
            return window_sums.column_of(rows, accumulator, field, rows[:, field.present] > 0)
        return field.column_of(accumulator.kind, _typed(rows, accumulator), rows[:, field.present] > 0)

    # --- forgetting --------------------------------------------------------------------------------------------------

    def drop(self, starts: Iterable[int], *, compact: bool = False) -> None:
        """Forget panes; keys that are in none of the others too: once they are most, or some, with ``compact``."""
        for start in starts:
            del self.panes[start]
            for distinct in self._distinct:
                distinct.drop(start)
        if self.keeps_slots or (self._table.num_slots < self._compact_at and not compact):
            return
        live = np.zeros(self._table.num_slots, np.bool_)
        for pane in self.panes.values():
            live[pane.slots()] = True
        kept = np.flatnonzero(live)
        if 2 * kept.size < live.size or (compact and 4 * kept.size < 3 * live.size):
            self._compact(kept)
        self._compact_at = max(_COMPACT_SLOTS_MIN, 2 * self._table.num_slots)

    def forget(self, start: int, slots: Array) -> None:
        """Forget these slots of a pane."""
        pane = self.panes[start]
        pane.values[slots] = 0
        for distinct in self._distinct:
            distinct.keep(start, pane.slots())

    def _compact(self, kept: Array) -> None:
        if self.changes is not None:
            self.changes.compact(kept)
        self._table.compact(kept)
        for pane in self.panes.values():
            pane.compact(kept)
        for distinct in self._distinct:
            distinct.compact(kept)
        for field in self._fields:
            if field.codes is not None:
                field.renew_codes(self._places_of(field))

    @property
    def is_firing(self) -> bool:
        """Whether some slots of a pane have fired, and others have not."""
        return any(slot != TIME_MAX_MS for slot in self.fired.values())

    def slots_left(self, start: int, pane: Pane) -> Array:
        """Return the slots of a pane that have something, but for those that are gone."""
        slots = pane.slots()
        return slots[slots >= self.fired[start]] if start in self.fired else slots

    def watermark_of(self, start: int) -> int:
        """Return up to when the pane's windows have fired: right after a restore, the time itself is not known yet."""
        return max(self.watermark_ms, self.restored_panes.get(start, TIME_MIN_MS))

    @property
    def nbytes(self) -> int:
        if self.layout is None:
            return 0
        codes = sum(field.nbytes for field in self._fields)
        distinct = sum(own.nbytes for own in self._distinct)
        marks = 0 if self.changes is None else self.changes.nbytes
        return self._table.nbytes + sum(pane.nbytes for pane in self.panes.values()) + codes + distinct + marks

    # --- what a checkpoint keeps of it (``window_chunks``) -----------------------------------------------------------

    def num_distinct(self, start: int) -> int:
        """Return how many distinct values a pane has."""
        return sum(distinct.num_pairs(start) for distinct in self._distinct)

    def num_entries(self) -> int:
        own = sum(pane.values.shape[0] for pane in self.panes.values())
        return own + sum(other.num_entries() for other in self.others)

    def _rows_of(self, start: int, pane: Pane, slots: Array, keys: list[pa.Array]) -> pa.RecordBatch:
        """Columns: keys, pane, records, then for each accumulator its values and how many values it was made of."""
        values = pane.values[slots]
        arrays = [*keys, arrow_of(np.full(slots.size, start, np.int64)), arrow_of(values[:, 0])]
        for accumulator, field in self._accumulators:
            held = values[:, accumulator.column]
            if accumulator.kind == "sum" and field.of_decimals:
                arrays.append(window_sums.column_of(values, accumulator, field))
            elif field.is_decimal:
                arrays.append(field.column_of_ints(accumulator.kind, np.ascontiguousarray(held)))
            else:
                arrays.append(arrow_of(held) if field.codes is None else field.decoded(held))
        for field in self._fields:
            arrays.append(arrow_of(values[:, field.present]))
        for distinct in self._distinct:
            arrays.append(distinct.lists_of(start, slots, values[:, distinct.column]))
        return pa.RecordBatch.from_arrays(arrays, names=[f"c{i}" for i in range(len(arrays))])

    def for_types(self, schema: pa.Schema, keys: tuple[int, ...]) -> WindowState:
        """Return what holds windows of such records: this or one of the others."""
        for state in (self, *self.others):
            if state.layout is None:
                break
            wanted = RecordLayout(schema, keys)
            if state.layout.schema.types == schema.types and (state.layout.keys, state.layout.named) == (
                keys,
                wanted.named,
            ):
                return state
        else:
            state = self.another()
            self.others.append(state)
        if not state.define(schema, keys):
            raise other_fields(schema)
        return state

    def fields_held(self) -> str:
        """Return which field each of a chunk's columns is of, and whether its panes are windows: with others they would
        be taken for each other."""
        held = [str(field.index) for _, field in self._accumulators]
        held += [f"distinct {distinct.index}" for distinct in self._distinct]
        return ",".join([*held, "by window"] if self._by_window else held)

    def _put(self, batch: pa.RecordBatch, watermark_ms: int) -> None:
        assert self.layout is not None
        num_keys = len(self.layout.keys)
        columns = batch.columns
        slots = self._table.slots_of(columns[:num_keys])
        start = columns[num_keys][0].as_py()
        self.restored_panes[start] = watermark_ms
        records = values_of(columns[num_keys + 1])
        end = num_keys + 2 + len(self._accumulators)
        presents = columns[end : end + len(self._fields)]
        for field, present in zip(self._fields, presents, strict=True):
            if not field.present and not np.array_equal(values_of(present), records):
                self._count_apart(field)
        if start not in self.panes:
            self.panes[start] = Pane(self._width)
        pane = self.panes[start]
        pane.reserve(self._table.num_slots)
        pane.column(0)[slots] = records
        for field, present in zip(self._fields, presents, strict=True):
            if field.present:
                pane.column(field.present)[slots] = values_of(present)
        for at, held in enumerate(columns[num_keys + 2 : end]):
            accumulator, field = self._accumulators[at]
            if accumulator.kind == "sum" and field.of_decimals:
                if not accumulator.lanes and not window_sums.fit(held):
                    self._make_room(field)
                window_sums.put(pane, self._accumulators[at][0], slots, held)
                continue
            if field.has_long(held):
                self._make_room(field)
            pane.column(accumulator.column)[slots] = field.held_of(held)
        for distinct, lists in zip(self._distinct, columns[end + len(self._fields) :], strict=True):
            distinct.restore(start, pane, slots, lists)


def other_fields(schema: pa.Schema) -> ProgramError:
    return ProgramError(
        f"Windows over columns of the types {', '.join(map(str, schema.types))} were restored, which this version of "
        "the program aggregates by other fields. Give the operator another uid to begin afresh."
    )


def _typed(rows: Array, accumulator: Accumulator) -> Array:
    column = np.ascontiguousarray(rows[:, accumulator.column])
    return column.view(np.float64) if accumulator.is_float else column
