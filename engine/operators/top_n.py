"""Top-N: of each key the n records that come first by some fields, as a changelog. Semantics are those of Flink's
AppendOnlyTopNFunction and RetractableTopNFunction, which SQL's ROW_NUMBER() … <= n becomes.

Of equal records the earlier one comes first. Null is smaller than all else and NaN greater, as in Flink's order by
default. A record that comes in pushes the last one out: -D, +I. With ranks each record that moves is told: -U, +U, and
+I for a rank that nobody had.

Plain records that are pushed out are forgotten. Of a changelog (``retracts``) all records are kept, as one that is
taken back gives its place to the one behind the last: -D, +I; with ranks -U, +U for each that moves, and -D for a rank
that nobody has any more. What is taken back is the first of the key's records that is equal: -0.0 is 0.0, no NaN is
equal to any. If there is none, nothing happens (Flink's "lenient").

Results are Rows; ``emit_final`` (batch) gives one +I for each at the end.
"""

from __future__ import annotations

import functools
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from engine.core.errors import UserCodeError
from engine.core.records import Batch, Row, RowKind, kind_of, row_of_kind, rows_of
from engine.operators.base import Operator, OperatorContext, OperatorSpec, Output
from engine.operators.failure import user_error
from engine.operators.keyed import Keys, open_keyed_state, open_mapping
from engine.operators.keys import canonical_key, field_of
from engine.operators.left_chunks import LeftChunks
from engine.operators.regular_join import time_to_live
from engine.operators.results import Gathered
from engine.operators.top_chunks import TOP_PART, rows_in
from engine.operators.without_kinds import NOT_KEPT, check_is_plain
from engine.state.descriptors import ValueStateDescriptor
from engine.state.heap_states import MISSING

__all__ = ["RANK", "TopNOperator", "TopNSpec", "changes_of", "changes_without"]

#: Name of the field with the rank.
RANK: Final = "rank"
#: Of the records of a key, in checkpoints.
STATE_NAME: Final = "$top"


@final
@dataclass(frozen=True)
class TopNSpec(OperatorSpec):
    """``order``: fields, most important first, and whether smaller ones come first; ``names``: of the fields, for
    records that have none of their own; ``retracts``: the input is a changelog."""

    key_selector: Any
    n: int
    order: tuple[tuple[int | str, bool], ...]
    with_rank: bool = False
    names: tuple[str, ...] | None = None
    ttl_ms: int | None = None
    emit_final: bool = False
    retracts: bool = False

    @property
    def blocks(self) -> bool:  # type: ignore[override]
        return self.emit_final

    @property
    def why_rows(self) -> str:
        """Why it cannot run on columns, whatever its input and its key are; "" = it can."""
        return "" if self.ttl_ms is None else "its state has a time to live"

    def build(self) -> Operator:
        return TopNOperator(self)

    def describe(self) -> str:
        why = self.why_rows
        return "on rows" + (f": {why}" if why else "")


def changes_of(kept: Sequence[Any], place: int, row: Any, spec: TopNSpec) -> Iterator[tuple[RowKind, Any, int]]:
    """Yield (kind, record, rank from 1) for a record that comes in at a place of those of its key."""
    is_full = len(kept) == spec.n
    if not spec.with_rank:
        if is_full:
            yield RowKind.DELETE, kept[-1], 0
        yield RowKind.INSERT, row, 0
        return
    for rank, former in enumerate(kept[place:], place + 1):
        yield RowKind.UPDATE_BEFORE, former, rank
        yield RowKind.UPDATE_AFTER, row, rank
        row = former
    if not is_full:
        yield RowKind.INSERT, row, len(kept) + 1


def changes_without(kept: Sequence[Any], place: int, spec: TopNSpec) -> Iterator[tuple[RowKind, Any, int]]:
    """As ``changes_of`` for the record at a place that is taken back. ``kept``: all records of its key, with it."""
    if not spec.with_rank:
        yield RowKind.DELETE, kept[place], 0
        if len(kept) > spec.n:
            yield RowKind.INSERT, kept[spec.n], 0
        return
    for rank in range(place + 1, min(spec.n, len(kept)) + 1):
        if rank == len(kept):
            yield RowKind.DELETE, kept[rank - 1], rank
        else:
            yield RowKind.UPDATE_BEFORE, kept[rank - 1], rank
            yield RowKind.UPDATE_AFTER, kept[rank], rank


def _comparable(value: Any) -> tuple[int, Any]:
    if value is None:
        return 0, 0
    return (2, 0) if value != value else (1, value)  # NaN


def _opposite(one: Any, other: Any) -> int:
    return int(one < other) - int(one > other)


#: Makes of a comparable value one that is in the opposite order.
_descending: Final = functools.cmp_to_key(_opposite)


def _is_same(record: Any, other: Any) -> bool:
    """Whether a retraction means a record: of what comes as columns, tuples stand for Rows."""
    if not (isinstance(record, Row | tuple) and isinstance(other, Row | tuple)):
        return bool(record == other)
    # Not the tuples themselves: they would find a NaN equal to itself.
    return len(record) == len(other) and all(one == another for one, another in zip(record, other, strict=True))


@final
class TopNOperator(Operator):
    """``is_inside``: of an operator on columns, which restores what such a one has left."""

    def __init__(self, spec: TopNSpec, *, is_inside: bool = False) -> None:
        self._spec = spec
        self._is_inside = is_inside
        self._left: LeftChunks | None = None
        self._keys = Keys(spec.key_selector)
        self.backend: Any = None
        #: key → its records in their order, of batch jobs
        self._final: dict[Any, Sequence[Any]] = {}

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._results = Gathered(out)
        self._keys.open(ctx)
        if self._spec.emit_final:
            open_mapping(
                ctx,
                STATE_NAME,
                items=lambda: self._final.items(),
                get=lambda key: self._final.get(key, MISSING),
                put=lambda key, value: self._final.__setitem__(key, value),
                size=lambda: len(self._final),
                incremental=False,  # keys go again
            )
        else:
            self.backend = open_keyed_state(ctx)
            self._state = self.backend.value_state(time_to_live(ValueStateDescriptor(STATE_NAME), self._spec.ttl_ms))
        if not self._is_inside and ctx.state.has_left(TOP_PART):
            self._left = LeftChunks()
            ctx.state.add_keyed(TOP_PART, self._left)

    def close(self) -> None:
        try:
            self._keys.close()
        finally:
            if self.backend is not None:
                self.backend.close()

    # --- what an operator on columns has left -------------------------------------------------------------------------

    def _take_left(self) -> None:
        left, self._left = self._left, None
        if left is not None:
            for chunk in left.take_chunks():
                self.adopt(rows_in(chunk))

    def adopt(self, rows: list[Any]) -> None:
        """Keep records; of each key all there are, in their order."""
        rows_of_key: dict[Any, list[Any]] = {}
        for key, row in zip(self._keys.of(rows), rows, strict=True):
            rows_of_key.setdefault(canonical_key(key), []).append(row)
        for key, some in rows_of_key.items():
            self._put(key, tuple(some if self._spec.retracts else some[: self._spec.n]))

    # --- records ------------------------------------------------------------------------------------------------------

    def _kept(self, key: Any) -> Sequence[Any]:
        if self.backend is None:
            return self._final.get(canonical_key(key), ())
        self.backend.set_current_key(key)
        return self._state.value() or ()

    def _put(self, key: Any, kept: Sequence[Any]) -> None:
        if self.backend is None:
            self._final[canonical_key(key)] = kept
        else:
            self.backend.set_current_key(key)
            self._state.update(kept)

    def _forget(self, key: Any) -> None:
        if self.backend is None:
            self._final.pop(canonical_key(key), None)
        else:
            self.backend.set_current_key(key)
            self._state.clear()

    def process_batch(self, input_index: int, batch: Batch) -> None:
        self._take_left()
        batch = rows_of(batch)
        stamps: Iterable[int | None] = batch.timestamps_ms or [None] * len(batch.rows)
        spec = self._spec
        for key, row, stamp in zip(self._keys.of(batch.rows), batch.rows, stamps, strict=True):
            if isinstance(row, Row) and not spec.retracts:
                check_is_plain(row, "top_n()", f"{NOT_KEPT} With top_n(…, changelog=True) all are kept.")
            if spec.retracts and kind_of(row) in (RowKind.UPDATE_BEFORE, RowKind.DELETE):
                self._take_back(key, row, stamp)
                continue
            kept = self._kept(key)
            place = self._place(row, kept)
            if place >= spec.n and not spec.retracts:
                continue
            if place < spec.n and not spec.emit_final:
                for kind, changed, rank in changes_of(kept[: spec.n], place, row, spec):
                    self._give(kind, changed, rank, stamp)
            self._put(key, (*kept[:place], row, *(kept[place:] if spec.retracts else kept[place : spec.n - 1])))
        self._results.flush()

    def _take_back(self, key: Any, row: Any, stamp: int | None) -> None:
        spec, kept = self._spec, self._kept(key)
        if not kept:
            return
        try:
            own = self._ordered(row)
            equal = range(bisect_left(kept, own, key=self._ordered), bisect_right(kept, own, key=self._ordered))
        except Exception as error:
            raise self._not_comparable(error, row) from error
        place = next((place for place in equal if _is_same(kept[place], row)), None)
        if place is None:
            return
        if place < spec.n and not spec.emit_final:
            for kind, changed, rank in changes_without(kept, place, spec):
                self._give(kind, changed, rank, stamp)
        if len(kept) > 1:
            self._put(key, (*kept[:place], *kept[place + 1 :]))
        else:
            self._forget(key)

    def _place(self, row: Any, kept: Sequence[Any]) -> int:
        """Return where the record comes in: behind all that are not greater."""
        place = len(kept)
        try:
            if self._spec.retracts:
                return bisect_right(kept, self._ordered(row), key=self._ordered)
            own = [_comparable(field_of(row, field)) for field, _ in self._spec.order]
            while place and self._is_before(own, kept[place - 1]):
                place -= 1
        except Exception as error:
            raise self._not_comparable(error, row) from error
        return place

    def _not_comparable(self, error: Exception, row: Any) -> UserCodeError:
        fields = ", ".join(repr(field) for field, _ in self._spec.order)
        seen = TypeError(f"top_n by {fields}: the record cannot be compared: {type(error).__name__}: {error}")
        return user_error(seen, operator_name=self.ctx.operator_name, record=row)

    def _is_before(self, own: list[tuple[int, Any]], other: Any) -> bool:
        for value, (field, ascending) in zip(own, self._spec.order, strict=True):
            former = _comparable(field_of(other, field))
            if value != former:
                return value < former if ascending else value > former
        return False

    def _ordered(self, row: Any) -> Any:
        """Return what sorts a record among those of its key."""
        parts = []
        for field, ascending in self._spec.order:
            value = _comparable(field_of(row, field))
            parts.append(value if ascending else _descending(value))
        return parts

    def _give(self, kind: RowKind, row: Any, rank: int, stamp: int | None) -> None:
        made = row_of_kind(kind, row, self._spec.names)
        if self._spec.with_rank:
            made = _ranked(made, rank)
        self._results.give(made, stamp)

    def process_watermark(self, watermark_ms: int) -> None:
        self._take_left()
        self.out.emit_watermark(watermark_ms)

    def finish(self) -> None:
        self._take_left()
        for kept in self._final.values():
            for rank, row in enumerate(kept[: self._spec.n], 1):
                self._give(RowKind.INSERT, row, rank, None)
        self._final = {}
        self._results.flush()


def _ranked(row: Any, rank: int) -> Any:
    """Return the Row with a last field, its rank."""
    names = row.as_dict() if row.has_field_names() else None
    return row_of_kind(row.get_row_kind(), (*row, rank), None if names is None else (*names, RANK))
