"""Regular join on columns: the records of both sides in arrays, chained by key, as in ``column_interval_join``.

A kernel finds the changes that a batch makes. Results are columns, in outer joins with kinds, for theirs are a
changelog; where a function makes the results of an outer join it is called, and they are Rows. As long as records only
come, and all of a key are partners, their numbers are not kept (``regular_join_state``). Where records go, or outer
joins have a condition, the pairs of whole records are found first, then for which the condition holds (compiled, or
called), then what changes. Inputs may be changelogs: what is taken back is found by the hash of the record.

``operators/regular_join`` takes over, with all that is kept, when something comes that columns cannot do: rows, keys of
different types on both sides, lists as values, changelogs of Rows without names where a function sees them; with the
backend ``rocksdb`` also when state is more than its share of managed memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import starmap
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.arrow_arrays import arrow_of, bools_of
from engine.core.errors import EngineError
from engine.core.records import (
    BATCH_ROWS_MAX,
    ROW_KINDS,
    Batch,
    ColumnBatch,
    RowBatch,
    RowKind,
)
from engine.operators.base import Operator, OperatorContext, Output
from engine.operators.column_interval_join import Stored
from engine.operators.column_join import ColumnJoinOperator, ColumnJoinSpec
from engine.operators.compile.expressions import Kind
from engine.operators.compile.translate import Shape
from engine.operators.computed_keys import join_keys
from engine.operators.join_pairs import (
    FromBatch,
    Pairs,
    Picked,
    is_compiled_condition,
    pair_condition,
    pair_function,
    pair_shape,
    records_of,
)
from engine.operators.join_state import RowStore
from engine.operators.keyed import last_row
from engine.operators.regular_join import Beside, RegularJoinOperator, RegularJoinSpec
from engine.operators.regular_join_state import RegularState
from engine.operators.row_output import maker_of

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

__all__ = ["ColumnRegularJoinSpec", "column_regular_join"]

_LEFT: Final = 0
#: Kinds of what comes; all else goes.
_COMES: Final = RowKind.INSERT.value
_COMES_AGAIN: Final = RowKind.UPDATE_AFTER.value


@final
@dataclass(frozen=True)
class ColumnRegularJoinSpec(ColumnJoinSpec):
    """``shape``: of the results, when these are columns; None = they are rows. ``has_kinds``: an input is a changelog;
    ``is_condition_compiled``: of a join with one."""

    rows: RegularJoinSpec
    has_kinds: bool = False
    is_condition_compiled: bool = False

    @property
    def emits_kinds(self) -> bool:  # type: ignore[override]
        return self.has_kinds or any(self.rows.is_outer)

    def build(self) -> Operator:
        return _ColumnRegularJoinOperator(self)

    def describe(self) -> str:
        if self.emits_kinds:
            how = "a changelog of " + ("rows" if self.shape is None else "columns")
        elif isinstance(self.rows.output, Beside):
            how = "columns beside columns"
        else:
            how = "function called for each pair" if self.shape is None else "function compiled"
        condition = ""
        if self.rows.condition is not None:
            condition = ", condition compiled" if self.is_condition_compiled else ", condition called for each pair"
        return f"vectorised, {self.rows.how}, records by key{self.how_keys_are_made()}{condition}, {how}"


def column_regular_join(
    rows: RegularJoinSpec, shapes: tuple[Shape | None, Shape | None], *, has_kinds: bool = False
) -> ColumnRegularJoinSpec | str:
    """Return the columnar form of a regular join, or why there is none. ``shapes``: of both sides' records;
    ``has_kinds``: an input is a changelog."""
    keys = join_keys(rows.key_selectors, shapes)
    if isinstance(keys, str):
        return keys
    for shape in shapes:
        if shape is not None and shape.record is not None and isinstance(rows.output, Beside):
            return f"its records are objects of {shape.record.__name__}, and no function makes its results"
    is_changelog = has_kinds or any(rows.is_outer)
    result: Shape | None = None
    if isinstance(rows.output, Beside):
        if rows.output.names is not None or any(rows.is_outer) or not has_kinds:
            kinds = [
                (Kind.OPAQUE,) * size if own is None else own.kinds
                for own, size in zip(shapes, rows.output.sizes, strict=True)
            ]
            result = Shape(kinds[0] + kinds[1], names=rows.output.names)
    elif not is_changelog:
        result = pair_shape(rows.output, *shapes, rows.output_type)
    is_compiled = rows.condition is not None and is_compiled_condition(rows.condition, *shapes)
    return ColumnRegularJoinSpec(rows, result, keys, has_kinds=has_kinds, is_condition_compiled=is_compiled)


# --- the operator -----------------------------------------------------------------------------------------------------


@final
class _ColumnRegularJoinOperator(ColumnJoinOperator):
    takes_kinds = True
    _needs_times = False

    def __init__(self, spec: ColumnRegularJoinSpec) -> None:
        rows = spec.rows
        super().__init__(spec, RegularJoinOperator(rows, is_inside=True))
        self._spec = spec
        self._is_outer = rows.is_outer
        is_compiled = spec.shape is not None and not isinstance(rows.output, Beside)
        self._compiled = pair_function(rows.output, rows.output_type) if is_compiled else None
        self._make = maker_of(rows.output_type)
        self._condition = None if rows.condition is None else pair_condition(rows.condition)
        #: functions see the records
        self._has_functions = rows.condition is not None or not isinstance(rows.output, Beside)

    def open(self, ctx: OperatorContext, out: Output) -> None:
        import numpy as np

        from engine.operators import join_kernels, regular_join_kernels
        from engine.state.slot_expiry import Expiry

        super().open(ctx, out)
        self._kernels = join_kernels
        self._counting = regular_join_kernels
        self._rows.open(ctx, out)
        rows = self._spec.rows
        state = RegularState(
            ctx.runtime_context.get_max_number_of_parallel_subtasks(),
            self._spec.key_fields,
            is_tuple=self._spec.is_tuple,
            is_outer=rows.is_outer,
            is_counted=rows.ttl_ms is not None or (rows.condition is not None and any(rows.is_outer)),
            expiry=None if rows.ttl_ms is None else Expiry(rows.ttl_ms, ctx.clock),
        )
        self._register(ctx, state, has_disk=True)
        size = BATCH_ROWS_MAX
        #: kinds, rows, partners that the kernel writes
        self._found = np.empty(size, np.int8), np.empty(size, np.int64), np.empty(size, np.int64)
        #: rows, partners of pairs
        self._pairs = np.empty(size, np.int64), np.empty(size, np.int64)

    def _takes(self, batch: Batch) -> bool:  # type: ignore[override]
        if not isinstance(batch, ColumnBatch) or batch.scalar:
            return False
        if isinstance(batch.named, type) and isinstance(self._spec.rows.output, Beside):
            return False
        return batch.kinds is None or bool(batch.named) or not self._has_functions  # those are Rows without names

    # --- records

    def _process_batch(self, side: int, columns: pa.RecordBatch, batch: ColumnBatch) -> None:
        has_changes = batch.kinds is not None and bool(batch.kinds.any())
        if self._state.counts(has_changes):
            self._process_changes(side, columns, batch.timestamps_ms, batch.kinds if has_changes else None)
        else:
            self._process_columns(side, columns, batch.timestamps_ms)

    def _process_columns(self, side: int, columns: pa.RecordBatch, times_ms: Any) -> None:
        import numpy as np

        kept = self._state.kept
        slots = self._slots_of(side, columns)
        known = slots if slots.min(initial=0) >= 0 else slots[slots >= 0]
        own = kept.sides[side]
        is_first = _first_of_slots(known, own.store.chains[1])
        found = columns
        if known is not slots:
            found = columns.filter(arrow_of(slots >= 0))
            of_known, is_first = is_first, np.zeros(slots.size, np.uint8)
            is_first[slots >= 0] = of_known
        self._find(side, columns, times_ms, (slots, is_first))
        kept.append(side, found, np.zeros(known.size, np.int64), known)

    def _slots_of(self, side: int, columns: pa.RecordBatch) -> Array:
        """Return the slot of each row's key, int32; -1 = equal to none."""
        import numpy as np

        kept = self._state.kept
        valid = _valid_keys([columns.column(key) for key in kept.sides[side].keys])
        if valid is None:
            return kept.slots_of(side, columns)
        slots = np.full(columns.num_rows, -1, np.int32)
        slots[bools_of(valid)] = kept.slots_of(side, columns.filter(valid))
        return slots

    def _find(self, side: int, columns: pa.RecordBatch, times_ms: Any, rows: tuple[Array, Array]) -> None:
        import numpy as np

        other = self._state.kept.sides[1 - side]
        store = None if other is None else other.store
        chains: tuple[Array, Array] = (np.zeros((0, 2), np.int64),) * 2 if store is None else store.chains
        is_outer = self._is_outer[side], self._is_outer[1 - side]
        at: tuple[int, int, int] = 0, 0, -1
        while at[0] < rows[0].size:
            *reached, num = self._kernels.changes_of_chains(*rows, at, is_outer, *chains, *self._found)
            at = reached[0], reached[1], reached[2]
            if not num:
                continue
            kinds, own_rows, partners = self._found[0][:num], self._found[1][:num], self._found[2][:num]
            stamps = None if times_ms is None else times_ms[own_rows]
            if any(is_outer):
                self._emit_changes(side, (kinds, own_rows, kinds == _COMES, partners), columns, store, stamps)
                continue
            assert store is not None
            holds = self._holding(side, columns, store, own_rows, partners)
            if holds is not None and not holds.all():
                own_rows, partners = own_rows[holds], partners[holds]
                stamps = None if stamps is None else stamps[holds]
            if own_rows.size:
                self._emit(_pairs_of(side, FromBatch(columns, own_rows), Stored(store, partners), stamps))

    def _holding(
        self, side: int, columns: pa.RecordBatch, store: RowStore, own_rows: Array, partners: Array
    ) -> Array | None:
        """Return for which pairs of rows of a batch and kept ones the condition holds, bool; None = for all."""
        import numpy as np

        if self._condition is None:
            return None
        pairs = _pairs_of(side, FromBatch(columns, own_rows), Stored(store, partners), None)
        holds = pairs.holds(self._condition)
        if holds is not None:
            return np.array(holds, np.bool_)
        # Most records are in several pairs: each is made once.
        unique, of_unique = np.unique(own_rows, return_inverse=True)
        own = records_of(FromBatch(columns, unique))
        lefts = [own[at] for at in of_unique.tolist()]
        unique, of_unique = np.unique(partners, return_inverse=True)
        other = records_of(Stored(store, unique))
        rights = [other[at] for at in of_unique.tolist()]
        if side != _LEFT:
            lefts, rights = rights, lefts
        return np.array(self._rows.matches(zip(lefts, rights, strict=True)), np.bool_)

    # --- records that go, conditions of outer joins

    def _process_changes(self, side: int, columns: pa.RecordBatch, times_ms: Any, kinds: Array | None) -> None:
        """``kinds``: int8, None = all rows come."""
        import numpy as np

        state = self._state
        now_ms = state.now_ms()
        slots = self._slots_of(side, columns)
        kinds = np.zeros(slots.size, np.int8) if kinds is None else np.array(kinds, np.int8)
        is_added = ((kinds == _COMES) | (kinds == _COMES_AGAIN)).astype(np.uint8)
        kept = np.flatnonzero((is_added != 0) & (slots >= 0))
        added = columns if kept.size == slots.size else columns.take(arrow_of(kept))
        first = state.add(side, added, slots[kept], now_ms)
        if not is_added.all():
            state.remove(side, columns, slots, is_added, first, now_ms)
        partners = np.zeros(slots.size, np.int64)
        self._find_changes(side, columns, times_ms, (slots, is_added, kinds), (partners, now_ms))
        if self._is_outer[side]:
            state.partners(side)[first : first + kept.size] = partners[kept]
        state.forget_gone()

    def _find_changes(
        self,
        side: int,
        columns: pa.RecordBatch,
        times_ms: Any,
        rows: tuple[Array, Array, Array],
        written: tuple[Array, int],
    ) -> None:
        """Hand on what the rows (slots, 1 = they come, kinds) change. ``written``: where the number of partners of each
        row goes, and when that is."""
        import numpy as np

        state = self._state
        slots, is_added, kinds = rows
        partners, now_ms = written
        other = state.kept.sides[1 - side]
        store = None if other is None else other.store
        links, ends = (np.zeros((0, 2), np.int64),) * 2 if store is None else store.chains
        is_outer = self._is_outer[side], self._is_outer[1 - side]
        row = 0
        while row < slots.size:
            found = self._counting.partners_of_rows(slots, row, state.floor_ms(now_ms), links, ends, *self._pairs)
            reached, num = found
            if reached == row:
                size = 2 * self._pairs[0].size
                self._pairs = np.empty(size, np.int64), np.empty(size, np.int64)
                continue
            own, others = self._pairs[0][:num], self._pairs[1][:num]
            holds = np.ones(num, np.uint8)
            if self._condition is not None and store is not None:
                for at in range(0, num, BATCH_ROWS_MAX):
                    part = slice(at, at + BATCH_ROWS_MAX)
                    matching: Any = self._holding(side, columns, store, own[part], others[part])
                    holds[part] = matching
            size = 2 * num + reached - row
            out = np.empty(size, np.int8), np.empty(size, np.int64), np.empty(size, np.uint8), np.empty(size, np.int64)
            num = self._counting.changes_of_pairs(
                is_added,
                kinds,
                (row, reached),
                (own, others, holds),
                is_outer,
                (now_ms, state.epoch),
                links,
                state.touched(1 - side),
                state.partners(1 - side),
                partners,
                out,
            )
            for at in range(0, num, BATCH_ROWS_MAX):
                changes = tuple(each[at : min(at + BATCH_ROWS_MAX, num)] for each in out)
                self._emit_found(side, changes, columns, store, times_ms)
            row = reached

    def _emit_found(
        self,
        side: int,
        changes: tuple[Array, ...],
        columns: pa.RecordBatch,
        store: RowStore | None,
        times_ms: Array | None,
    ) -> None:
        kinds, rows, owns, partners = changes
        stamps = None if times_ms is None else times_ms[rows]
        if any(self._is_outer) or kinds.any():
            self._emit_changes(side, (kinds, rows, owns != 0, partners), columns, store, stamps)
        else:
            assert store is not None
            self._emit(_pairs_of(side, FromBatch(columns, rows), Stored(store, partners), stamps))

    # --- results

    def _emit_beside(
        self, output: Beside, fields: list[pa.Array], stamps: Array | None, kinds: Array | None = None
    ) -> None:
        import pyarrow as pa

        names = output.names or tuple(f"f{index}" for index in range(len(fields)))
        made = pa.RecordBatch.from_arrays(fields, names=names)
        self.out.emit(ColumnBatch(made, stamps, named=output.names is not None, kinds=kinds))

    def _emit(self, pairs: Pairs) -> None:
        output, stamps = self._spec.rows.output, pairs.times_ms
        if isinstance(output, Beside):
            self._emit_beside(output, [pairs[index] for index in range(len(pairs))], stamps)
            return
        compiled = None if self._compiled is None else pairs.apply(self._compiled)
        if compiled is not None:
            self.out.emit(compiled)
            return
        results = self._called(list(pairs.rows()))
        if self._make is not None:
            results = list(map(self._make, results))
        self.out.emit(RowBatch(results, None if stamps is None else stamps.tolist()))

    def _called(self, pairs: list[tuple[Any, Any]]) -> list[Any]:
        function = self._rows.function
        remaining = iter(pairs)
        try:
            return list(starmap(function.call, remaining))
        except EngineError:
            raise
        except Exception as error:
            raise function.error(error, last_row(pairs, remaining)) from error

    def _emit_changes(
        self,
        side: int,
        found: tuple[Array, Array, Array, Array],
        columns: pa.RecordBatch,
        store: RowStore | None,
        stamps: Array | None,
    ) -> None:
        """Hand on changes: (kind, row that makes it, whether that is in it, partner or -1) of each."""
        kinds, rows, here, partners = found
        there = partners >= 0
        stored = None if store is None else Stored(store, partners[there])
        output = self._spec.rows.output
        if isinstance(output, Beside) and (output.names is not None or any(self._is_outer)):
            own = FromBatch(columns, rows, None if here.all() else ~here)
            fields = [
                [own.column(index) for index in range(output.sizes[side])],
                [_spread(stored, index, there) for index in range(output.sizes[1 - side])],
            ]
            first, second = fields if side == _LEFT else reversed(fields)
            self._emit_beside(output, [*first, *second], stamps, kinds.copy())  # the kernel writes there again
            return
        records = [
            _spread_list(records_of(FromBatch(columns, rows[here])), here.tolist()),
            _spread_list([] if stored is None else records_of(stored), there.tolist()),
        ]
        lefts, rights = records if side == _LEFT else reversed(records)
        named = map(ROW_KINDS.__getitem__, kinds.tolist())
        self._rows.take_changes(zip(named, lefts, rights, strict=True), None if stamps is None else stamps.tolist())

    # --- time, the way to rows

    def _process_time(self, watermark_ms: int) -> None:
        pass

    def _hand_over(self) -> None:
        self._is_on_rows = True
        if self._state.num_entries():
            self._rows.adopt(self._state.records())
            self._state.clear()


def _pairs_of(side: int, own: FromBatch, other: Stored, stamps: Array | None) -> Pairs:
    return Pairs(own, other, stamps, len(own)) if side == _LEFT else Pairs(other, own, stamps, len(own))


def _valid_keys(keys: list[pa.Array]) -> pa.Array | None:
    """Return which rows have no null in their key; None = all."""
    import pyarrow.compute as pc

    valid = None
    for key in keys:
        if key.null_count:
            valid = key.is_valid() if valid is None else pc.and_(valid, key.is_valid())
    return valid


def _first_of_slots(slots: Array, ends: Array) -> Array:
    """Return 1 for each row that is the first one ever of its slot. ``ends``: of the chains before these rows."""
    import numpy as np

    is_first = np.zeros(slots.size, np.uint8)
    fresh = np.flatnonzero(ends[slots, 0] == 0)
    _, first = np.unique(slots[fresh], return_index=True)
    is_first[fresh[first]] = 1
    return is_first


def _spread(stored: Picked | None, index: int, present: Array) -> pa.Array:
    """Return one field of records, in their order, where there are some, and null elsewhere."""
    import numpy as np
    import pyarrow as pa

    if stored is None:  # what the fields of that side are is not known yet
        return pa.nulls(present.size)
    if present.all():
        return stored.column(index)
    if not present.any():
        return pa.nulls(present.size, stored.schema.types[index])
    places = np.cumsum(present) - 1
    return stored.column(index).take(arrow_of(np.maximum(places, 0), mask=~present))


def _spread_list(values: list[Any], present: list[bool]) -> list[Any]:
    """Return a list with the values where there are some, in order, and None elsewhere."""
    if len(values) == len(present):
        return values
    remaining = iter(values)
    return [next(remaining) if there else None for there in present]
