"""Regular join on columns: the records of both sides in arrays, chained by key, as in ``column_interval_join``.

A kernel finds the changes that a batch makes. Results are columns, in outer joins with kinds, for theirs are a
changelog; where a function makes the results of an outer join it is called, and they are Rows. As all records of a key
are partners of each other, no number of them is kept: a record stands alone in the output as long as the other side has
none of its key.

``operators/regular_join`` takes over, with all that is kept, when something comes that columns cannot do: rows, and so
retractions, keys of different types on both sides, lists as values; with the backend ``rocksdb`` also when state is
more than its share of managed memory. A condition of an inner join that compiles says which pairs are none. Increments
have the records that came since.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import starmap
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.arrow_arrays import arrow_of
from engine.core.errors import EngineError
from engine.core.records import (
    BATCH_ROWS_MAX,
    ROW_KINDS,
    Batch,
    ColumnBatch,
    RowBatch,
    RowKind,
)
from engine.operators.base import Operator, OperatorContext, OperatorSpec, Output
from engine.operators.column_interval_join import IntervalState, Stored
from engine.operators.column_join import ColumnJoinOperator, ColumnJoinSpec
from engine.operators.compile.expressions import Kind
from engine.operators.compile.translate import Shape
from engine.operators.join_pairs import (
    FromBatch,
    Pairs,
    Picked,
    is_compiled_condition,
    pair_function,
    pair_shape,
    records_of,
)
from engine.operators.join_state import RowStore, SideRecords, chunks_of
from engine.operators.keyed import last_row
from engine.operators.keys import ComposedKey
from engine.operators.regular_join import Beside, RegularJoinOperator, RegularJoinSpec
from engine.operators.row_output import maker_of
from engine.state.changes import EPOCHS_MAX

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

__all__ = ["ColumnRegularJoinSpec", "column_regular_join"]

_LEFT: Final = 0
#: Kind of what comes; all else goes.
_COMES: Final = RowKind.INSERT.value
#: Rows that are turned into columns at once while a snapshot is made.
_ROWS_MAX: Final = 1 << 18


@final
@dataclass(frozen=True)
class ColumnRegularJoinSpec(ColumnJoinSpec):
    """``shape``: of the results, when these are columns; None = they are rows."""

    rows: RegularJoinSpec

    @property
    def emits_kinds(self) -> bool:  # type: ignore[override]
        return any(self.rows.is_outer)

    def build(self) -> Operator:
        return _ColumnRegularJoinOperator(self)

    def describe(self) -> str:
        if any(self.rows.is_outer):
            how = "a changelog of " + ("columns" if isinstance(self.rows.output, Beside) else "rows")
        elif isinstance(self.rows.output, Beside):
            how = "columns beside columns"
        else:
            how = "function called for each pair" if self.shape is None else "function compiled"
        condition = "" if self.rows.condition is None else ", condition compiled"
        return f"vectorised, {self.rows.how}, records by key{condition}, {how}"


def column_regular_join(rows: RegularJoinSpec, shapes: tuple[Shape | None, Shape | None]) -> OperatorSpec | None:
    """Return the columnar form of a regular join; None if there is none. ``shapes``: of both sides' records."""
    if rows.why_rows or not (rows.condition is None or is_compiled_condition(rows.condition, *shapes)):
        return None
    shape = None
    if isinstance(rows.output, Beside):
        kinds = [
            (Kind.OPAQUE,) * size if own is None else own.kinds
            for own, size in zip(shapes, rows.output.sizes, strict=True)
        ]
        shape = Shape(kinds[0] + kinds[1], names=rows.output.names)
    elif not any(rows.is_outer) and maker_of(rows.output_type) is None:
        shape = pair_shape(rows.output, *shapes)
    return ColumnRegularJoinSpec(rows, shape)


# --- state ------------------------------------------------------------------------------------------------------------


@final
class RegularState:
    """Implements ``parts.DeltaPart``: records come, and none goes."""

    def __init__(self, max_parallelism: int, fields: tuple[tuple[int | str, ...], ...], *, is_tuple: bool) -> None:
        self._max_parallelism = max_parallelism
        self._is_tuple = is_tuple
        self.kept = IntervalState(max_parallelism, fields, is_tuple=is_tuple)
        #: checkpoint → rows of each side at its barrier
        self._marks: dict[int, tuple[int, int]] = {}

    @property
    def others(self) -> dict[int, bytes]:
        return self.kept.others

    def define(self, side: int, schema: pa.Schema) -> bool:
        return self.kept.define(side, schema)

    @property
    def nbytes(self) -> int:
        return self.kept.nbytes

    def clear(self) -> None:
        self.kept.clear()
        self._marks = {}

    def num_entries(self) -> int:
        return self.kept.num_entries()

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        self.kept.restore(chunks)

    def snapshot(self, key_groups: Iterable[int]) -> dict[int, bytes]:
        wanted = set(key_groups)
        chunks = chunks_of(self._kept_since((0, 0)), wanted)
        for group, chunk in self.kept.others.items():
            if group in wanted:
                chunks[group] = chunks.get(group, b"") + chunk
        return chunks

    def _kept_since(self, begin: tuple[int, int]) -> Iterator[tuple[SideRecords, Array]]:
        import numpy as np

        from engine.state.column_hash import groups_of_rows

        for index, side in enumerate(self.kept.sides):
            if side is None:
                continue
            store = side.store
            for at in range(begin[index], store.num_rows, _ROWS_MAX):
                part = np.arange(at, min(at + _ROWS_MAX, store.num_rows))
                columns = store.records(part)
                keys = [columns.column(key) for key in side.keys]
                groups = groups_of_rows(keys, self._max_parallelism, is_tuple=self._is_tuple).astype("int64")
                yield SideRecords(index, columns, store.times_ms[part], part, 0), groups

    # --- DeltaPart

    def _num_rows(self) -> tuple[int, int]:
        left, right = (0 if side is None else side.store.num_rows for side in self.kept.sides)
        return left, right

    def snapshot_delta(self, key_groups: Iterable[int], since_checkpoint_id: int) -> dict[int, bytes] | None:
        mark = self._marks.get(since_checkpoint_id)
        return None if mark is None or self.kept.others else chunks_of(self._kept_since(mark), key_groups)

    def num_changed(self, since_checkpoint_id: int, at_most: int) -> int | None:
        mark = self._marks.get(since_checkpoint_id)
        if mark is None or self.kept.others:
            return None
        num = sum(self._num_rows()) - sum(mark)
        return num if num <= at_most else None

    def begin_epoch(self, checkpoint_id: int) -> None:
        self._marks[checkpoint_id] = self._num_rows()
        while len(self._marks) > EPOCHS_MAX:
            del self._marks[min(self._marks)]  # what builds on it is a full one

    def forget_epochs(self, until_checkpoint_id: int, kept_ids: Container[int] = ()) -> None:
        self._marks = {id: mark for id, mark in self._marks.items() if id >= until_checkpoint_id or id in kept_ids}


# --- the operator -----------------------------------------------------------------------------------------------------


@final
class _ColumnRegularJoinOperator(ColumnJoinOperator):
    def __init__(self, spec: ColumnRegularJoinSpec) -> None:
        rows = spec.rows
        super().__init__(RegularJoinOperator(rows, is_inside=True))
        self._spec = spec
        self._is_outer = rows.is_outer
        is_compiled = spec.shape is not None and not isinstance(rows.output, Beside)
        self._compiled = pair_function(rows.output) if is_compiled else None
        self._make = maker_of(rows.output_type)
        self._condition = None if rows.condition is None else pair_function(rows.condition, is_condition=True)

    def open(self, ctx: OperatorContext, out: Output) -> None:
        import numpy as np

        from engine.operators import join_kernels

        super().open(ctx, out)
        self._kernels = join_kernels
        self._rows.open(ctx, out)
        selectors = self._spec.rows.key_selectors
        state = RegularState(
            ctx.runtime_context.get_max_number_of_parallel_subtasks(),
            tuple(key.fields if isinstance(key, ComposedKey) else (key.field,) for key in selectors),
            is_tuple=isinstance(selectors[0], ComposedKey),
        )
        self._register(ctx, state, has_disk=True)
        size = BATCH_ROWS_MAX
        #: kinds, rows, partners that the kernel writes
        self._found = np.empty(size, np.int8), np.empty(size, np.int64), np.empty(size, np.int64)

    _needs_times = False

    def _takes(self, batch: Batch) -> bool:  # type: ignore[override]
        return isinstance(batch, ColumnBatch) and not batch.scalar

    # --- records

    def _process_columns(self, side: int, columns: pa.RecordBatch, times_ms: Any) -> None:
        import numpy as np

        kept = self._state.kept
        own = kept.sides[side]
        valid = _valid_keys([columns.column(key) for key in own.keys])
        found = columns if valid is None else columns.filter(valid)
        known = kept.slots_of(side, found)
        is_first = _first_of_slots(known, own.store.chains[1])
        slots = known
        if valid is not None:
            slots = np.full(columns.num_rows, -1, np.int32)
            places = valid.to_numpy(zero_copy_only=False).nonzero()[0]
            slots[places] = known
            everywhere = np.zeros(columns.num_rows, np.uint8)
            everywhere[places] = is_first
            is_first = everywhere
        self._find(side, columns, times_ms, (slots, is_first))
        kept.append(side, found, np.zeros(known.size, np.int64), known)

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
                self._emit_changes(side, (kinds, own_rows, partners), columns, store, stamps)
            else:
                assert store is not None
                self._emit_pairs(side, (columns, own_rows), (store, partners), stamps)

    def _emit_pairs(
        self, side: int, own: tuple[pa.RecordBatch, Array], other: tuple[RowStore, Array], stamps: Array | None
    ) -> None:
        """Hand on the pairs of rows of a batch and of those that are kept, as far as the condition holds."""
        import numpy as np

        pairs = _pairs_of(side, FromBatch(*own), Stored(*other), stamps, own[1].size)
        if self._condition is not None:
            holds = pairs.holds(self._condition)
            if holds is None:
                holds = np.array(self._rows.matches(pairs.rows()), np.bool_)
            kept = np.flatnonzero(holds)
            if not kept.size:
                return
            if kept.size < own[1].size:
                stamps = None if stamps is None else stamps[kept]
                picked = FromBatch(own[0], own[1][kept]), Stored(other[0], other[1][kept])
                pairs = _pairs_of(side, *picked, stamps, kept.size)
        self._emit(pairs)

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
        found: tuple[Array, Array, Array],
        columns: pa.RecordBatch,
        store: RowStore | None,
        stamps: Array | None,
    ) -> None:
        """Hand on changes: (kind, row, partner or -1) of each, where the row is not in what goes."""
        kinds, rows, partners = found
        here, there = kinds == _COMES, partners >= 0
        stored = None if store is None else Stored(store, partners[there])
        output = self._spec.rows.output
        if isinstance(output, Beside):
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
            self._rows.adopt(self._state.kept.records())
            self._state.clear()


def _pairs_of(side: int, own: Picked, other: Picked, stamps: Array | None, num: int) -> Pairs:
    return Pairs(own, other, stamps, num) if side == _LEFT else Pairs(other, own, stamps, num)


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
