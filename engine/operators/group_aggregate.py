"""Running aggregates of each key over a changelog, on rows: count, sum, avg, min, max of what is there.

What the input takes back (-U, -D) is taken out again. Semantics are those of Flink's GroupAggFunction, which SQL's
GROUP BY becomes. What comes out is a changelog of Rows: +I with a key's first record, -U and +U when a result changes,
-D when its last record is gone; the key is forgotten then. What leaves all results equal (NaN to NaN as well) is not
told, but with a time to live it is, as what follows would forget them. What is taken back of a key that has no records
is left out.

A null takes no part: a sum, minimum or average of nulls only is null. Sums and averages of integers and decimals are
exact. Floats are subtracted, as in Flink: what rounding has lost does not come back until the key has no value left; an
infinity or a NaN leaves a NaN behind. Minima and maxima know how often each value is there; NaN is greater than all
else, and -0.0 counts as 0.0. A value that is taken back before it came is missed until it comes, as in Flink.
Not here: aggregates of plain streams, one result a record (``operators/aggregate``), and windows.
"""

from __future__ import annotations

import decimal
import numbers
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, final

from engine.core.errors import EngineError
from engine.core.late_dataclass import dataclass
from engine.core.records import Batch, Row, RowKind, kind_of, row_of_kind, rows_of
from engine.operators.base import Operator, OperatorContext, OperatorSpec, Output
from engine.operators.failure import user_error
from engine.operators.field_aggregates import FieldAggregateOf
from engine.operators.keyed import Keys, open_keyed_state
from engine.operators.keys import ComposedKey, field_of
from engine.operators.regular_join import time_to_live
from engine.operators.results import Gathered
from engine.state.descriptors import MapStateDescriptor, ValueStateDescriptor

if TYPE_CHECKING:
    from engine.operators.group_slots import GroupSlots

__all__ = ["GROUP_KINDS", "GROUP_PART", "GroupAggregateOperator", "GroupAggregateSpec", "exact_sum"]

GROUP_KINDS: Final = ("count", "sum", "avg", "min", "max")
#: In checkpoints: (number of records, what results begin with, accumulators); of minima and maxima value → how often.
_STATE_NAME: Final = "$group"
_VALUES_NAME: Final = "$group-values-{}"
#: Python's own context rounds to 28 digits: what was rounded away could not be taken back. 38 digits are what columns
#: have, 19 those of the number of records.
_EXACT: Final = decimal.Context(prec=76, Emax=999_999, Emin=-999_999)
#: Name of the part of state in checkpoints that an operator on columns has, for good.
GROUP_PART: Final = "group-aggregates"
_ADDING: Final = (RowKind.INSERT, RowKind.UPDATE_AFTER)


@final
@dataclass(frozen=True)
class GroupAggregateSpec(OperatorSpec):
    """``aggregates``: of GROUP_KINDS. Results are Rows of the key's fields and the aggregates; ``in_place``: the first
    record since the key had none, with each aggregate in place of its field. ``names``: of the fields of results, or,
    in place, of records that have none of their own. ``emit_final``: one +I a key at the end (batch)."""

    key_selector: Any
    aggregates: tuple[FieldAggregateOf, ...]
    in_place: bool = False
    names: tuple[str, ...] | None = None
    ttl_ms: int | None = None
    emit_final: bool = False

    @property
    def blocks(self) -> bool:  # type: ignore[override]
        return self.emit_final

    @property
    def why_rows(self) -> str:
        """Why it cannot run on columns, whatever its input and its key are; "" = it can."""
        if self.ttl_ms is not None:
            return "its state has a time to live"
        if any(aggregate.kind in ("min", "max") for aggregate in self.aggregates):
            return "minima and maxima of a changelog"
        return ""

    def build(self) -> Operator:
        return GroupAggregateOperator(self)

    def describe(self) -> str:
        return "a changelog, built-in on rows" + (f": {self.why_rows}" if self.why_rows else "")


def exact_sum(total: Any, value: Any, *, is_added: bool) -> Any:
    """Return a sum with a value more or less."""
    if isinstance(total, decimal.Decimal) and isinstance(value, decimal.Decimal | int):
        return _EXACT.add(total, value) if is_added else _EXACT.subtract(total, value)
    if isinstance(value, decimal.Decimal) and isinstance(total, int):
        return _EXACT.add(total, value) if is_added else _EXACT.subtract(total, value)
    return total + value if is_added else total - value


class _Values(Protocol):
    """How often each value of a key is there, NaN as None; in the keyed state, or in the accumulator."""

    def get(self, key: Any) -> Any: ...
    def put(self, key: Any, value: Any) -> None: ...
    def remove(self, key: Any) -> None: ...
    def items(self) -> Iterable[tuple[Any, Any]]: ...


@final
class _OwnValues(dict[Any, int]):
    """Of keys that expire: values of a key must not expire one by one."""

    def put(self, key: Any, value: int) -> None:
        self[key] = value

    def remove(self, key: Any) -> None:
        self.pop(key, None)


def _is_better(kind: str, value: Any, other: Any) -> bool:
    """``value``, ``other``: None = NaN."""
    if value is None or other is None:
        return value is not other and (value is None) is (kind == "max")
    return bool(value < other if kind == "min" else value > other)


@final
class GroupAggregateOperator(Operator):
    """``is_inside``: of an operator on columns, which restores what such a one has left."""

    def __init__(self, spec: GroupAggregateSpec, *, is_inside: bool = False) -> None:
        self._spec = spec
        self._is_inside = is_inside
        self._keys = Keys(spec.key_selector)
        self._left: GroupSlots | None = None
        self.backend: Any = None

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._results = Gathered(out)
        self._keys.open(ctx)
        self.backend = open_keyed_state(ctx)
        ttl_ms = self._spec.ttl_ms
        self._state = self.backend.value_state(time_to_live(ValueStateDescriptor(_STATE_NAME), ttl_ms))
        #: by aggregate: values that are counted
        self._values: dict[int, Any] = {
            index: self.backend.map_state(MapStateDescriptor(_VALUES_NAME.format(index)))
            for index, aggregate in enumerate(self._spec.aggregates)
            if aggregate.kind in ("min", "max") and ttl_ms is None
        }
        if not self._is_inside and ctx.state.has_left(GROUP_PART):
            from engine.operators.group_slots import GroupSlots

            self._left = GroupSlots(ctx, self._spec, self._spec.key_selector)

    def close(self) -> None:
        try:
            self._keys.close()
        finally:
            if self.backend is not None:
                self.backend.close()

    # --- what an operator on columns has left, or gives ---------------------------------------------------------------

    def _take_left(self) -> None:
        left, self._left = self._left, None
        if left is not None:
            self.adopt(left.groups())
            left.clear()

    def adopt(self, groups: Iterable[tuple[list[Any], list[Any]]]) -> None:
        """Go on with these keys, which have no state yet, and what is held of them."""
        for keys, held in groups:
            for key, group in zip(keys, held, strict=True):
                self.backend.set_current_key(key)
                self._state.update(group)

    # --- records ------------------------------------------------------------------------------------------------------

    def process_batch(self, input_index: int, batch: Batch) -> None:
        self._take_left()
        batch = rows_of(batch)
        stamps: Iterable[int | None] = batch.timestamps_ms or [None] * len(batch.rows)
        for key, row, stamp in zip(self._keys.of(batch.rows), batch.rows, stamps, strict=True):
            self.backend.set_current_key(key)
            self._take(key, row, stamp)
        self._results.flush()

    def _take(self, key: Any, row: Any, stamp: int | None) -> None:
        spec, is_added = self._spec, kind_of(row) in _ADDING
        group = self._state.value()
        if group is None:
            if not is_added:
                return
            group = 0, self._begun(key, row), tuple(map(_empty, spec.aggregates))
        num, first, before = group
        after = tuple(self._changed(index, so_far, row, is_added=is_added) for index, so_far in enumerate(before))
        if num + (1 if is_added else -1) == 0:
            self._forget()
            self._tell(RowKind.DELETE, first, before, stamp)
            return
        self._state.update((num + (1 if is_added else -1), first, after))
        if not num:
            self._tell(RowKind.INSERT, first, after, stamp)
            return
        told = zip(self.results(before), self.results(after), strict=True)
        if spec.ttl_ms is not None or not all(_is_same(*pair) for pair in told):
            self._tell(RowKind.UPDATE_BEFORE, first, before, stamp)
            self._tell(RowKind.UPDATE_AFTER, first, after, stamp)

    def _forget(self) -> None:
        self._state.clear()
        for values in self._values.values():
            values.clear()

    def _begun(self, key: Any, row: Any) -> Any:
        """Return what results of a key begin with."""
        if self._spec.in_place:
            return row_of_kind(RowKind.INSERT, row, self._spec.names)
        return tuple(key) if isinstance(self._spec.key_selector, ComposedKey) else (key,)

    def _changed(self, index: int, so_far: Any, row: Any, *, is_added: bool) -> Any:
        """Return an accumulator after a record has come, or gone."""
        aggregate = self._spec.aggregates[index]
        if aggregate.field is None:
            return so_far + (1 if is_added else -1)
        value: Any = None
        try:
            value = _value_of(row, aggregate.field)
            if value is None:
                return so_far
            match aggregate.kind:
                case "count":
                    return so_far + (1 if is_added else -1)
                case "sum" | "avg":
                    return _summed(so_far, value, is_added=is_added)
            return self._extreme(index, so_far, value, is_added=is_added)
        except EngineError:
            raise
        except Exception as error:
            told = TypeError(f"{aggregate.kind} on field {aggregate.field!r}: {_explained(error, value, row)}")
            raise user_error(told, operator_name=self.ctx.operator_name, record=row) from error

    def _extreme(self, index: int, so_far: Any, value: Any, *, is_added: bool) -> Any:
        """``so_far``: (the extreme, whether there is one), and of keys that expire the values."""
        kind = self._spec.aggregates[index].kind
        value = None if value != value else value + 0.0 if isinstance(value, float) else value
        held, is_there = so_far[:2]
        values: _Values = _OwnValues(*so_far[2:]) if self._spec.ttl_ms is not None else self._values[index]
        if is_there:
            _is_better(kind, value, held)  # values that cannot be compared are told at once
        num = (values.get(value) or 0) + (1 if is_added else -1)
        if num:
            values.put(value, num)
        else:
            values.remove(value)
        if num == 1 and is_added:
            if not is_there or _is_better(kind, value, held):
                held, is_there = value, True
        elif num == 0 and not is_added and is_there and held == value:
            held, is_there = _extreme_of(kind, values)
        return (held, is_there) if self._spec.ttl_ms is None else (held, is_there, dict(values.items()))

    # --- results ------------------------------------------------------------------------------------------------------

    def results(self, accumulators: Sequence[Any]) -> list[Any]:
        found: list[Any] = []
        for aggregate, so_far in zip(self._spec.aggregates, accumulators, strict=True):
            match aggregate.kind:
                case "count":
                    found.append(so_far)
                case "sum":
                    found.append(so_far[0])
                case "avg":
                    found.append(so_far[0] / so_far[1] if so_far[1] else None)
                case _:
                    found.append((float("nan") if so_far[0] is None else so_far[0]) if so_far[1] else None)
        return found

    def _tell(self, kind: RowKind, first: Any, accumulators: Sequence[Any], stamp: int | None) -> None:
        if not self._spec.emit_final:
            self._results.give(self._record(kind, first, accumulators), stamp)

    def _record(self, kind: RowKind, first: Any, accumulators: Sequence[Any]) -> Row:
        results = self.results(accumulators)
        if not self._spec.in_place:
            return row_of_kind(kind, (*first, *results), self._spec.names)
        made = row_of_kind(kind, first)
        for aggregate, value in zip(self._spec.aggregates, results, strict=True):
            made[aggregate.field if len(made) > 1 else 0] = value  # type: ignore[index]
        return made

    def process_watermark(self, watermark_ms: int) -> None:
        self._take_left()
        self.out.emit_watermark(watermark_ms)

    def finish(self) -> None:
        self._take_left()
        if self._spec.emit_final:
            for key in self.backend.keys(_STATE_NAME):
                self.backend.set_current_key(key)
                _, first, accumulators = self._state.value()
                self._results.give(self._record(RowKind.INSERT, first, accumulators), None)
            self.backend.clear_current_key()
            self._results.flush()


def _is_same(value: Any, other: Any) -> bool:
    return bool(value == other or (value != value and other != other))


def _empty(aggregate: FieldAggregateOf) -> Any:
    """Return the accumulator of no records."""
    match aggregate.kind:
        case "count":
            return 0
        case "sum" | "avg":
            return None, 0
    return None, False


def _value_of(row: Any, field: int | str) -> Any:
    if isinstance(row, Row | tuple | list):
        return field_of(row, field)
    if row is None or isinstance(row, str | bytes | numbers.Number):
        return row
    raise TypeError(f"a changelog is of Rows, tuples or single values, not of objects of {type(row).__name__}")


def _summed(so_far: tuple[Any, int], value: Any, *, is_added: bool) -> tuple[Any, int]:
    """``so_far``: sum, None without values, and the number of values."""
    if not isinstance(value, numbers.Number):
        raise TypeError("is not a number")
    total, num = so_far
    if isinstance(value, bool):
        value = int(value)
    num += 1 if is_added else -1
    if num == 0:
        return None, 0
    if total is None:
        return (value if is_added else exact_sum(0, value, is_added=False)), num
    return exact_sum(total, value, is_added=is_added), num


def _extreme_of(kind: str, values: _Values) -> tuple[Any, bool]:
    """Return the least or greatest of the values that are there, and whether there are any."""
    held, is_there = None, False
    for value, num in values.items():
        if num > 0 and (not is_there or _is_better(kind, value, held)):
            held, is_there = value, True
    return held, is_there


def _explained(error: Exception, value: Any, row: Any) -> str:
    if isinstance(error, IndexError | KeyError | AttributeError):
        fields = f"{len(row)} fields" if hasattr(row, "__len__") else "no fields"
        return f"the record has no such field ({fields}): {error}"
    return f"value {value!r:.80} {error}" if str(error) == "is not a number" else f"value {value!r:.80}: {error}"
