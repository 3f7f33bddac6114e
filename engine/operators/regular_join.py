"""Regular join: every pair of records of one key, however far apart in time; unmatched ones too in outer joins.

What comes out is a changelog (Rows with a RowKind): a record of an outer side comes alone, and that is taken back when
its first partner comes. An inner join of plain records gives plain results. Both inputs may be changelogs. A key that
is null, or a tuple with a null in it, is equal to none. Semantics are those of Flink's StreamingJoinOperator.

A result has the event time of the record that made it. State is all records of both sides; with a time to live each is
forgotten that long after it was last written, and nothing is taken back for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, final

from engine.core.errors import EngineError
from engine.core.late_dataclass import dataclass
from engine.core.records import Batch, Row, RowKind, kind_of, row_of_kind, rows_of
from engine.core.type_info import TypeInformation
from engine.operators.base import Operator, OperatorContext, OperatorSpec, Output
from engine.operators.bound_function import BoundFunction
from engine.operators.join_state import JOIN_PART, LeftRecords, SideRecords
from engine.operators.keyed import Keys, open_keyed_state
from engine.operators.keys import canonical_key
from engine.operators.results import Gathered
from engine.operators.row_output import maker_of
from engine.state.descriptors import ListStateDescriptor, StateTtlConfig
from engine.time.watermarks import Duration

__all__ = ["JOIN_KINDS", "Beside", "RegularJoinOperator", "RegularJoinSpec", "is_null_key", "time_to_live"]

#: kind → whether the left and the right side keep what has no partner
JOIN_KINDS: Final = {
    "inner": (False, False),
    "left": (True, False),
    "right": (False, True),
    "full": (True, True),
}
_LEFT: Final = 0
_ADDING: Final = (RowKind.INSERT, RowKind.UPDATE_AFTER)


@final
@dataclass(frozen=True)
class Beside:
    """Output of a join: the fields of both records, one after the other, None for those of a missing one.

    ``sizes``: fields of each side; ``names``: results are Rows with these, None = tuples.
    """

    sizes: tuple[int, int]
    names: tuple[str, ...] | None = None

    def __call__(self, left: Any, right: Any) -> Any:
        values = (
            *((None,) * self.sizes[0] if left is None else left),
            *((None,) * self.sizes[1] if right is None else right),
        )
        return values if self.names is None else row_of_kind(RowKind.INSERT, values, self.names)


@final
@dataclass(frozen=True)
class RegularJoinSpec(OperatorSpec):
    """``how``: one of JOIN_KINDS; ``output``: Beside, or (left, right) → result, with None for a missing record;
    ``condition``: (left, right) → whether they match, beside their keys."""

    key_selectors: tuple[Any, Any]
    how: str
    output: Any
    condition: Any = None
    ttl_ms: int | None = None
    output_type: TypeInformation | None = None
    num_inputs: int = 2

    @property
    def is_outer(self) -> tuple[bool, bool]:
        return JOIN_KINDS[self.how]

    def build(self) -> Operator:
        return RegularJoinOperator(self)

    def describe(self) -> str:
        return f"{self.how}, on rows"


def is_null_key(key: Any) -> bool:
    """Whether a key is equal to none, itself included."""
    return key is None or (isinstance(key, tuple) and None in key)


def time_to_live(descriptor: Any, ttl_ms: int | None) -> Any:
    """Return the descriptor of a state, with a time to live if there is one."""
    if ttl_ms is not None:
        descriptor.enable_time_to_live(StateTtlConfig.new_builder(Duration.of_millis(ttl_ms)).build())
    return descriptor


def _same(record: Any, other: Any) -> bool:
    """Whether a retraction means a record: of what comes as columns, tuples stand for Rows."""
    if isinstance(record, Row | tuple) and isinstance(other, Row | tuple):
        return tuple(record) == tuple(other)
    return bool(record == other)


@final
class RegularJoinOperator(Operator):
    """``is_inside``: of an operator on columns, which restores what such a one has left.

    State of a side is a list in order of arrival: records, or where the side is outer pairs (record, number of its
    partners), as a record without partners stands in the output alone.
    """

    def __init__(self, spec: RegularJoinSpec, *, is_inside: bool = False) -> None:
        self._spec = spec
        self._is_inside = is_inside
        self._is_outer = spec.is_outer
        self._left: LeftRecords | None = None
        self._keys = [Keys(selector) for selector in spec.key_selectors]
        self.function = BoundFunction(spec.output, "join")
        self._condition = None if spec.condition is None else BoundFunction(spec.condition, "filter")
        self._make = maker_of(spec.output_type)
        self._stamp: int | None = None
        self.backend: Any = None

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._results = Gathered(out)
        self.backend = open_keyed_state(ctx)
        #: by side
        self._held = [
            self.backend.list_state(time_to_live(ListStateDescriptor(f"$regular-join-{side}"), self._spec.ttl_ms))
            for side in range(2)
        ]
        for keys in self._keys:
            keys.open(ctx)
        self.function.open(ctx)
        if self._condition is not None:
            self._condition.open(ctx)
        if not self._is_inside and ctx.state.has_left(JOIN_PART):
            self._left = LeftRecords()
            ctx.state.add_keyed(JOIN_PART, self._left)

    def close(self) -> None:
        try:
            self.function.close()
            if self._condition is not None:
                self._condition.close()
            for keys in self._keys:
                keys.close()
        finally:
            if self.backend is not None:
                self.backend.close()

    # --- what an operator on columns has left, or gives ---------------------------------------------------------------

    def _take_left(self) -> None:
        left, self._left = self._left, None
        if left is not None:
            for pieces in left.take_groups():
                self.adopt(pieces)

    def adopt(self, pieces: Iterable[SideRecords]) -> None:
        """Keep records that another operator has joined with each other; all there are of their keys. With a time to
        live they are written now, unless it is over."""
        #: of each side: (record, number of its partners or None = all of its key)
        sides_of_key: dict[Any, tuple[list[Any], list[Any]]] = {}
        floor_ms = None if self._spec.ttl_ms is None else self.ctx.clock.now_ms() - self._spec.ttl_ms
        for records in pieces:
            rows, times_ms = records.rows()
            counts = [None] * len(rows) if records.partners is None else records.partners.tolist()
            keys = self._keys[records.side].of(rows)
            for key, row, time_ms, count in zip(keys, rows, times_ms, counts, strict=True):
                if floor_ms is None or not 0 < time_ms <= floor_ms:
                    sides_of_key.setdefault(canonical_key(key), ([], []))[records.side].append((row, count))
        for key, sides in sides_of_key.items():
            self.backend.set_current_key(key)
            for side, counted in enumerate(sides):
                if self._is_outer[side]:
                    num = len(sides[1 - side])
                    self._held[side].add_all([(row, num if count is None else count) for row, count in counted])
                else:
                    self._held[side].add_all([row for row, _ in counted])

    def matches(self, pairs: Iterable[tuple[Any, Any]]) -> list[bool]:
        """Return for which pairs that an operator on columns has found the condition holds."""
        condition = self._condition
        assert condition is not None
        found = []
        for pair in pairs:
            try:
                found.append(bool(condition.call(*pair)))
            except EngineError:
                raise
            except Exception as error:
                raise condition.error(error, pair) from error
        return found

    def take_changes(self, changes: Iterable[tuple[RowKind, Any, Any]], stamps: Sequence[int] | None) -> None:
        """Hand on what an operator on columns has found. ``changes``: kind, left, right, of which one may be None."""
        if stamps is None:
            self._stamp = None
            for change in changes:
                self._give(*change)
        else:
            for change, self._stamp in zip(changes, stamps, strict=True):
                self._give(*change)
        self._results.flush()

    # --- records ------------------------------------------------------------------------------------------------------

    def process_batch(self, input_index: int, batch: Batch) -> None:
        self._take_left()
        batch = rows_of(batch)
        stamps: Iterable[int | None] = batch.timestamps_ms or [None] * len(batch.rows)
        is_outer = self._is_outer[input_index]
        keys = self._keys[input_index].of(batch.rows)
        for key, row, stamp in zip(keys, batch.rows, stamps, strict=True):
            self._stamp = stamp
            kind = kind_of(row)
            if kind is not RowKind.INSERT:
                row = row_of_kind(RowKind.INSERT, row)
            if not is_null_key(key):
                self.backend.set_current_key(key)
                if kind in _ADDING:
                    self._add(input_index, row, kind)
                else:
                    self._retract(input_index, row, kind)
            elif is_outer:
                self._pair(RowKind.INSERT if kind in _ADDING else RowKind.DELETE, input_index, row, None)
        self._results.flush()

    def _add(self, side: int, row: Any, kind: RowKind) -> None:
        partners = self._held[1 - side].get()
        places = self._matching(side, row, partners)
        if self._is_outer[1 - side] and places:
            for place in places:
                partner, num = partners[place]
                if not num:
                    self._pair(RowKind.DELETE, side, None, partner)
                partners[place] = partner, num + 1
            self._held[1 - side].update(partners)
        if self._is_outer[side] and not places:
            self._pair(RowKind.INSERT, side, row, None)
        shown = RowKind.INSERT if any(self._is_outer) else kind
        for place in places:
            self._pair(shown, side, row, self._record(1 - side, partners[place]))
        self._held[side].add((row, len(places)) if self._is_outer[side] else row)

    def _retract(self, side: int, row: Any, kind: RowKind) -> None:
        own = self._held[side].get()
        for place, element in enumerate(own):
            if _same(self._record(side, element), row):
                del own[place]
                self._held[side].update(own)
                break
        partners = self._held[1 - side].get()
        places = self._matching(side, row, partners)
        if self._is_outer[side]:
            kind = RowKind.DELETE
            if not places:
                self._pair(kind, side, row, None)
        for place in places:
            self._pair(kind, side, row, self._record(1 - side, partners[place]))
        if self._is_outer[1 - side] and places:
            for place in places:
                partner, num = partners[place]
                if num == 1:
                    self._pair(RowKind.INSERT, side, None, partner)
                partners[place] = partner, max(0, num - 1)
            self._held[1 - side].update(partners)

    def _record(self, side: int, element: Any) -> Any:
        return element[0] if self._is_outer[side] else element

    def _matching(self, side: int, row: Any, partners: list[Any]) -> Sequence[int]:
        """Return the places of the partners that match."""
        if self._condition is None:
            return range(len(partners))
        call = self._condition.call
        places = []
        for place, element in enumerate(partners):
            partner = self._record(1 - side, element)
            pair = (row, partner) if side == _LEFT else (partner, row)
            try:
                if call(*pair):
                    places.append(place)
            except EngineError:
                raise
            except Exception as error:
                raise self._condition.error(error, pair) from error
        return places

    # --- results ------------------------------------------------------------------------------------------------------

    def _pair(self, kind: RowKind, side: int, own: Any, partner: Any) -> None:
        if side == _LEFT:
            self._give(kind, own, partner)
        else:
            self._give(kind, partner, own)

    def _give(self, kind: RowKind, left: Any, right: Any) -> None:
        try:
            result = self.function.call(left, right)
        except EngineError:
            raise
        except Exception as error:
            raise self.function.error(error, (left, right)) from error
        if kind is not RowKind.INSERT or any(self._is_outer):
            result = row_of_kind(kind, result)
        if self._make is not None:
            result = self._make(result)
        self._results.give(result, self._stamp)

    def process_watermark(self, watermark_ms: int) -> None:
        self._take_left()
        self.out.emit_watermark(watermark_ms)

    def finish(self) -> None:
        self._take_left()
