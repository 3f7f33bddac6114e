"""Keyed rolling reduce, sum, min, max, min_by, max_by on rows, and the pre-aggregation before an exchange.

Streaming emits one result per record; with ``emit_final`` (batch) only the last one per key, when the input has ended.
State is the value state ``$aggregate``: in memory a dict of this operator; with the backend ``rocksdb``, or beside
state that the user's function has of its own, in the backend. The pre-aggregation hands on what it holds before each
barrier. Not here: windows, changelogs, the columnar sum (``operators/text``).
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import numbers
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, final

from engine.core.errors import EngineError
from engine.core.late_dataclass import dataclass
from engine.core.records import BATCH_ROWS_MAX, Batch, Row, RowBatch, rows_of
from engine.operators.after_columns import AfterColumns
from engine.operators.base import Operator, OperatorContext, OperatorSpec, Output
from engine.operators.bound_function import BoundFunction
from engine.operators.failure import user_error
from engine.operators.keyed import Keys, is_on_disk, last_row, open_keyed_state, open_mapping, see_keys
from engine.operators.keys import NAN, FieldKey, canonical_key, field_of
from engine.operators.without_kinds import NOT_TAKEN_BACK, check_is_plain
from engine.state.backend import KeyedStateBackend
from engine.state.descriptors import StateTtlConfig, ValueStateDescriptor
from engine.state.heap_states import MISSING
from engine.state.mapping_part import MappingPart

__all__ = ["AGGREGATE_KINDS", "CombineAggregateSpec", "FieldAggregate", "KeyedAggregateSpec", "KeyedReduceSpec"]

AGGREGATE_KINDS: Final = ("sum", "min", "max", "min_by", "max_by")
#: Of the values so far, in checkpoints.
STATE_NAME: Final = "$aggregate"
#: Keys that a pre-aggregation holds before it hands them on; some tens of MB of small records.
COMBINE_KEYS_MAX: Final = 200_000
#: A pre-aggregation that leaves more than this share of its records is not worth its cost: it steps aside.
_COMBINE_SHARE_MAX: Final = 0.8


@final
@dataclass(frozen=True)
class KeyedReduceSpec(OperatorSpec):
    """``function``: ReduceFunction or callable (value so far, next value) → value. ``ttl_ms``: keys without a record
    for so long are forgotten, by the wall clock; 0 = never; not with ``emit_final``."""

    key_selector: Any
    function: Any
    emit_final: bool = False
    ttl_ms: int = 0

    @property
    def blocks(self) -> bool:  # type: ignore[override]
        return self.emit_final

    def build(self) -> Operator:
        return AfterColumns(self.build_on_rows(), self.key_selector)

    def build_on_rows(self) -> Operator:
        """For operators that have this one inside."""
        function = BoundFunction(self.function, "reduce")
        return _KeyedReduceOperator(self.key_selector, function, self.emit_final, self.ttl_ms)

    def describe(self) -> str:
        return "interpreted"


@final
@dataclass(frozen=True)
class KeyedAggregateSpec(OperatorSpec):
    """``kind``: one of AGGREGATE_KINDS; ``field``: position or name; ignored when records are scalars.
    ``ttl_ms``: as in KeyedReduceSpec."""

    key_selector: Any
    kind: str
    field: int | str
    emit_final: bool = False
    ttl_ms: int = 0

    @property
    def blocks(self) -> bool:  # type: ignore[override]
        return self.emit_final

    def build(self) -> Operator:
        return AfterColumns(self.build_on_rows(), self.key_selector)

    def build_on_rows(self) -> Operator:
        """For operators that have this one inside."""
        aggregate = FieldAggregate(self.kind, self.field)
        if self.kind == "sum" and self.field == 1 and not self.ttl_ms:
            return _PairSumOperator(self.key_selector, aggregate, self.emit_final)
        return _KeyedReduceOperator(self.key_selector, aggregate, self.emit_final, self.ttl_ms)

    def describe(self) -> str:
        return "built-in on rows"


@final
@dataclass(frozen=True)
class CombineAggregateSpec(OperatorSpec):
    """Aggregates what is at hand before the exchange; the KeyedAggregateSpec behind it gives the same results."""

    key_selector: Any
    kind: str
    field: int | str
    keys_max: int = COMBINE_KEYS_MAX

    def build(self) -> Operator:
        return _CombineOperator(KeyedAggregateSpec(self.key_selector, self.kind, self.field, True), self.keys_max)

    def describe(self) -> str:
        return "built-in on rows"


# ---------------------------------------------------------------------------------------------------------------------


@final
class FieldAggregate:
    """sum, min, max, min_by, max_by as (so far, next) → so far. Other fields are the first record's; inputs are never
    changed; ties of min_by and max_by keep the earlier record. Source: PyFlink's KeyedStream._accumulate."""

    def __init__(self, kind: str, field: int | str) -> None:
        if kind not in AGGREGATE_KINDS:
            raise ValueError(f"Unknown aggregation {kind!r}; expected one of {', '.join(AGGREGATE_KINDS)}.")
        self.kind = kind
        self.field = field
        self.operator_name = ""
        methods = {"sum": self._sum, "min": self._min, "max": self._max, "min_by": self._min_by, "max_by": self._max_by}
        self.call: Callable[[Any, Any], Any] = methods[kind]

    def open(self, ctx: OperatorContext) -> None:
        self.operator_name = ctx.operator_name

    def close(self) -> None:
        pass

    def value(self, row: Any) -> Any:
        kind = type(row)
        if kind is tuple:
            return row[self.field]
        if isinstance(row, Row):
            check_is_plain(row, f"{self.kind}()", NOT_TAKEN_BACK)
        return row if _is_scalar(row) else field_of(row, self.field)

    def check_first(self, row: Any) -> None:
        """Raise TypeError when the first record of a key cannot be aggregated."""
        value = self.value(row)
        if self.kind == "sum" and not isinstance(value, numbers.Number):
            raise TypeError(f"value {value!r:.80} is not a number")

    def _sum(self, first: Any, second: Any) -> Any:
        if type(first) is tuple and type(second) is tuple:  # the usual case, without the calls below
            field: Any = self.field
            value = first[field] + second[field]
            return (*first[:field], value, *first[field + 1 :]) if field != -1 else (*first[:-1], value)
        return _replaced(first, self.field, self.value(first) + self.value(second))

    def _min(self, first: Any, second: Any) -> Any:
        value, other = self.value(first), self.value(second)
        return _replaced(first, self.field, other if other < value else value)

    def _max(self, first: Any, second: Any) -> Any:
        value, other = self.value(first), self.value(second)
        return _replaced(first, self.field, other if other > value else value)

    def _min_by(self, first: Any, second: Any) -> Any:
        return second if self.value(second) < self.value(first) else first

    def _max_by(self, first: Any, second: Any) -> Any:
        return second if self.value(second) > self.value(first) else first

    def error(self, error: BaseException, record: Any) -> EngineError:
        seen = TypeError(f"{self.kind} on field {self.field!r}: {self._explain(error, record)}")
        return user_error(seen, operator_name=self.operator_name, record=record)

    def _explain(self, error: BaseException, record: Any) -> str:
        if isinstance(error, (IndexError, KeyError, AttributeError)):
            fields = f"{len(record)} fields" if hasattr(record, "__len__") else "no fields"
            return f"the record has no such field ({fields}): {error}"
        try:
            value = self.value(record)
        except Exception as no_field:
            return f"cannot read the field of a {type(record).__name__}: {no_field}"
        if self.kind == "sum" and not isinstance(value, numbers.Number):
            return f"value {value!r:.80} is not a number"
        return f"value {value!r:.80} does not go with those before it: {error}"


def _is_scalar(row: Any) -> bool:
    return isinstance(row, (str, bytes, numbers.Number)) or row is None


def _replaced(row: Any, field: Any, value: Any) -> Any:
    """Return a copy of ``row`` whose ``field`` is ``value``; a scalar is replaced as a whole."""
    if type(row) is tuple:
        if field == -1:
            return (*row[:-1], value)
        return (*row[:field], value, *row[field + 1 :])
    if _is_scalar(row):
        return value
    if isinstance(row, Row):
        row = copy.copy(row)
        row[field] = value
        return row
    if isinstance(row, (list, dict)):
        changed: Any = row.copy()
        changed[field] = value
        return changed
    if isinstance(row, tuple) and isinstance(field, str):
        return row._replace(**{field: value})  # type: ignore[attr-defined]
    if isinstance(row, tuple):
        parts = list(row)
        parts[field] = value
        return type(row)(*parts)
    if dataclasses.is_dataclass(row) and not isinstance(row, type):
        return dataclasses.replace(row, **{field: value})
    changed = copy.copy(row)
    setattr(changed, field, value)
    return changed


@final
class _KeyedReduceOperator(Operator):
    def __init__(
        self, key_selector: Any, reducer: BoundFunction | FieldAggregate, emit_final: bool, ttl_ms: int = 0
    ) -> None:
        self.keys = Keys(key_selector)
        self._reducer = reducer
        self._emit_final = emit_final
        self._ttl_ms = ttl_ms
        #: key → value so far; keys are canonical (``canonical_key``)
        self.state: dict[Any, Any] = {}
        #: False when another operator keeps the state, or hands it on before each barrier
        self.registers_state = True
        self._part: MappingPart | None = None
        self._backend: KeyedStateBackend | None = None

    @property
    def is_in_backend(self) -> bool:
        return self._backend is not None

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self.keys.open(ctx)
        if self._ttl_ms or (self.registers_state and is_on_disk(ctx)):
            self._open_backend()
        else:
            ctx.runtime_context._open_keyed_state = self._open_backend  # when the user's function asks for state
        self._reducer.open(ctx)
        ctx.runtime_context._open_keyed_state = None
        if self._backend is not None:
            descriptor = ValueStateDescriptor(STATE_NAME)
            if self._ttl_ms:
                descriptor.enable_time_to_live(StateTtlConfig(self._ttl_ms))
            self._value = self._backend.value_state(descriptor)
        elif self.registers_state:
            self._part = open_mapping(
                ctx,
                STATE_NAME,
                items=lambda: self.state.items(),
                get=lambda key: self.state.get(key, MISSING),
                put=lambda key, value: self.state.__setitem__(key, value),
                size=lambda: len(self.state),
            )

    def process_batch(self, input_index: int, batch: Batch) -> None:
        batch = rows_of(batch)
        results = self.accumulate(batch.rows)
        if not self._emit_final:
            self.out.emit(RowBatch(results, batch.timestamps_ms))

    def _open_backend(self) -> KeyedStateBackend:
        self._backend = open_keyed_state(self.ctx)
        return self._backend

    def accumulate(self, rows: list[Any]) -> list[Any]:
        """Take up ``rows``; return the value of each one's key after it."""
        if self._backend is not None:
            return self._accumulate_in_backend(self._backend, rows)
        state = self.state
        reduce = self._reducer.call
        results: list[Any] = []
        row = key = None
        keys = self.keys.of(rows)
        if self._part is not None and self._part.wants_keys:
            see_keys(self._part, self.keys, keys, rows)
        try:
            for key, row in zip(keys, rows, strict=True):
                try:
                    so_far = state[key]
                except KeyError:
                    result = self._first_or_nan(key, row)
                else:
                    state[key] = result = reduce(so_far, row)
                results.append(result)
        except EngineError:
            raise
        except BaseException as error:
            self.keys.check(key, row)
            raise self._reducer.error(error, row) from error
        return results

    def adopt(self, keys: list[Any], values: list[Any]) -> None:
        """Go on with these values of keys that have none yet."""
        if self._backend is not None:
            for key, value in zip(keys, values, strict=True):
                self._backend.set_current_key(key)
                self._value.update(value)
            self._backend.clear_current_key()
            return
        if self._part is not None and self._part.wants_keys:
            see_keys(self._part, self.keys, keys, values)
        self.state.update(zip(map(canonical_key, keys), values, strict=True))

    def _first_or_nan(self, key: Any, row: Any) -> Any:
        key = canonical_key(key)
        self.state[key] = result = self._reducer.call(self.state[key], row) if key in self.state else self._first(row)
        return result

    def _first(self, row: Any) -> Any:
        if isinstance(self._reducer, FieldAggregate):
            self._reducer.check_first(row)
        return row

    def _accumulate_in_backend(self, backend: KeyedStateBackend, rows: list[Any]) -> list[Any]:
        reduce, state = self._reducer.call, self._value
        results: list[Any] = []
        row = key = None
        keys = self.keys.of(rows)
        try:
            for key, row in zip(keys, rows, strict=True):
                backend.set_current_key(key)
                so_far = state.value()
                result = self._first(row) if so_far is None else reduce(so_far, row)
                state.update(result)
                results.append(result)
        except EngineError:
            raise
        except BaseException as error:
            self.keys.check(key, row)
            raise self._reducer.error(error, row) from error
        finally:
            backend.clear_current_key()
        return results

    def _values_in_backend(self, backend: KeyedStateBackend) -> Iterator[Any]:
        for key in backend.keys(STATE_NAME):
            backend.set_current_key(key)
            yield self._value.value()

    def finish(self) -> None:
        if not self._emit_final:
            return
        if self._backend is not None:
            _emit_in_chunks(self.out, self._values_in_backend(self._backend))
            self._backend.clear_current_key()
        else:
            _emit_in_chunks(self.out, self.state.values())
            self.state = {}

    def close(self) -> None:
        try:
            self.keys.close()
        finally:
            try:
                self._reducer.close()
            finally:
                if self._backend is not None:
                    self._backend.close()


@final
class _PairSumOperator(Operator):
    """sum(1): the word count. Pairs take a tighter loop; all else goes to the general operator.

    Rate: 7-10 M pairs/s in batch form, 5 M/s in streaming form by field 0, about half of it by a lambda, one core.
    """

    def __init__(self, key_selector: Any, aggregate: FieldAggregate, emit_final: bool) -> None:
        self._general = _KeyedReduceOperator(key_selector, aggregate, emit_final)
        self._general.registers_state = False
        self.registers_state = True
        self._part: MappingPart | None = None
        self._aggregate = aggregate
        self._emit_final = emit_final
        self._by_first = key_selector == FieldKey(0)
        #: key (as the first record had it, canonical) → sum
        self.sums: dict[Any, Any] = {}
        #: key → field 0 of its first record, unless that is the key
        self._firsts: dict[Any, Any] = {}

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._general.registers_state = self.registers_state and is_on_disk(ctx)
        self._general.open(ctx, out)
        if self.registers_state and not self._general.is_in_backend:
            self._part = open_mapping(
                ctx,
                STATE_NAME,
                items=lambda: itertools.chain(
                    self._general.state.items(), zip(self.sums, self._results(), strict=True)
                ),
                get=self._result_of,
                put=self._restore,
                size=lambda: len(self.sums) + len(self._general.state),
            )

    def _result_of(self, key: Any) -> Any:
        if key in self.sums:
            return (key if self._by_first else self._firsts[key], self.sums[key])
        return self._general.state.get(key, MISSING)

    def _restore(self, key: Any, value: Any) -> None:
        is_pair = type(value) is tuple and len(value) == 2
        if self._general.state or not is_pair or (self._by_first and canonical_key(value[0]) != key is not NAN):
            self._general.state[key] = value
            # A layer of a checkpoint below may have had it when all were pairs still.
            self.sums.pop(key, None)
            self._firsts.pop(key, None)
            return
        self.sums[key] = value[1]
        if not self._by_first:
            self._firsts[key] = value[0]

    def adopt(self, keys: list[Any], values: list[Any]) -> None:
        """As of the general operator."""
        if self._general.is_in_backend:
            self._general.adopt(keys, values)
            return
        if self._part is not None and self._part.wants_keys:
            see_keys(self._part, self._general.keys, keys, values)
        for key, value in zip(map(canonical_key, keys), values, strict=True):
            self._restore(key, value)

    def process_batch(self, input_index: int, batch: Batch) -> None:
        batch = rows_of(batch)
        if self._general.is_in_backend:
            self._process_in_backend(batch)
            return
        if self._part is not None and self._part.wants_keys:
            keys = self._general.keys
            see_keys(self._part, keys, keys.of(batch.rows), batch.rows)
        if self._general.state or set(map(type, batch.rows)) != {tuple} or set(map(len, batch.rows)) != {2}:
            self._general.state.update(zip(self.sums, self._results(), strict=True))
            self.sums, self._firsts = {}, {}
            self._general.process_batch(input_index, batch)
        elif self._emit_final:
            self._accumulate(batch.rows)
        else:
            self.out.emit(RowBatch(self._accumulate_and_list(batch.rows), batch.timestamps_ms))

    def _process_in_backend(self, batch: RowBatch) -> None:
        results = self._general.accumulate(batch.rows)
        if self._emit_final:
            return
        if self._by_first:  # as in the loop below: the key as the record has it, 1.0 or True where the first had 1
            results = [
                (row[0], result[1]) if type(row) is tuple and type(result) is tuple and len(result) == 2 else result
                for row, result in zip(batch.rows, results, strict=True)
            ]
        self.out.emit(RowBatch(results, batch.timestamps_ms))

    def _results(self) -> Iterable[tuple[Any, Any]]:
        return self.sums.items() if self._by_first else zip(self._firsts.values(), self.sums.values(), strict=True)

    def _keyed(self, pairs: list[tuple[Any, Any]], remaining: Iterator[tuple[Any, Any]]) -> Iterable[tuple[Any, Any]]:
        """Return (key, value) of each pair; ``remaining`` is an iterator over ``pairs`` that shows how far it came."""
        if self._by_first:
            return remaining
        return zip(self._general.keys.of(pairs), map(operator.itemgetter(1), remaining), strict=True)

    def _accumulate(self, pairs: list[tuple[Any, Any]]) -> None:
        sums = self.sums
        remaining = iter(pairs)
        keyed = self._keyed(pairs, remaining)
        key = None
        try:
            for key, value in keyed:
                try:
                    sums[key] += value
                except KeyError:
                    self._first_or_nan(key, value, last_row(pairs, remaining))
        except Exception as error:
            raise self._error(error, key, last_row(pairs, remaining)) from error

    def _accumulate_and_list(self, pairs: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        sums = self.sums
        firsts = self._firsts
        by_first = self._by_first
        results: list[tuple[Any, Any]] = []
        append = results.append
        remaining = iter(pairs)
        keyed = self._keyed(pairs, remaining)
        key = None
        try:
            for key, value in keyed:
                try:
                    total = sums[key] + value
                except KeyError:
                    append(self._first_or_nan(key, value, last_row(pairs, remaining)))
                else:
                    sums[key] = total
                    append((key if by_first else firsts[key], total))
        except Exception as error:
            raise self._error(error, key, last_row(pairs, remaining)) from error
        return results

    def _first_or_nan(self, key: Any, value: Any, pair: tuple[Any, Any]) -> tuple[Any, Any]:
        key = canonical_key(key)
        if key in self.sums:
            self.sums[key] += value
        else:
            self._aggregate.check_first(pair)
            self.sums[key] = value
            if not self._by_first:
                self._firsts[key] = pair[0]
        return (key if self._by_first else self._firsts[key], self.sums[key])

    def _error(self, error: Exception, key: Any, pair: tuple[Any, Any]) -> EngineError:
        self._general.keys.check(key, pair)
        return self._aggregate.error(error, pair)

    def finish(self) -> None:
        if self._emit_final:
            self._general.finish()
            _emit_in_chunks(self.out, self._results())
            self.sums, self._firsts = {}, {}

    def close(self) -> None:
        self._general.close()


@final
class _CombineOperator(Operator):
    """Runs the final aggregation on what comes by, hands its state on when it grows large and at the end."""

    def __init__(self, spec: KeyedAggregateSpec, keys_max: int) -> None:
        aggregation: Any = spec.build_on_rows()
        aggregation.registers_state = False
        self._aggregation = aggregation
        self._keys_max = keys_max
        self._rows_since_flush = 0
        self._passes_through = False

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._aggregation.open(ctx, out)

    def process_batch(self, input_index: int, batch: Batch) -> None:
        if self._passes_through:
            self.out.emit(batch)
            return
        self._aggregation.process_batch(input_index, batch)
        self._rows_since_flush += len(batch)
        num_keys = self._num_keys()
        if num_keys >= self._keys_max:
            self._passes_through = num_keys > _COMBINE_SHARE_MAX * self._rows_since_flush
            self._flush()

    def _num_keys(self) -> int:
        if isinstance(self._aggregation, _PairSumOperator):
            return len(self._aggregation.sums) + len(self._aggregation._general.state)
        return len(self._aggregation.state)

    def _flush(self) -> None:
        self._aggregation.finish()
        self._rows_since_flush = 0

    def process_watermark(self, watermark_ms: int) -> None:
        # What is held belongs before the watermark.
        self._flush()
        self.out.emit_watermark(watermark_ms)

    def prepare_snapshot(self, checkpoint_id: int) -> None:
        self._flush()

    def end_superstep(self, superstep: int) -> None:
        self._flush()
        self.out.emit_superstep_end(superstep)

    def finish(self) -> None:
        self._flush()

    def close(self) -> None:
        self._aggregation.close()


def _emit_in_chunks(out: Output, rows: Iterable[Any]) -> None:
    remaining = iter(rows)
    while chunk := list(itertools.islice(remaining, BATCH_ROWS_MAX)):
        out.emit(RowBatch(chunk))
