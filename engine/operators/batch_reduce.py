"""Bounded aggregation to one row per key: reduce, sum/min/max of fields, distinct. Combined before the exchange.

A combiner may emit (key, partial row) pairs, so a reduce function may change what its key was computed from. Partial
rows are of the same form as input rows; merging is folding again. Past the memory budget the combiner empties
itself, the final operator writes runs sorted by the key's hash and merges them.
"""

from __future__ import annotations

import abc
import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, Final, final

from engine.core.errors import UserCodeError
from engine.core.records import Batch, Row, RowBatch, rows_of
from engine.operators.base import BATCH_ONLY, Operator, OperatorContext, OperatorSpec, Output
from engine.operators.batch_functions import method_of
from engine.operators.batch_keys import BoundKeys, missing_field
from engine.operators.batch_order import first_of, keys_of, normal_key, order_key
from engine.operators.batch_spill import CHUNK_ROWS, Run, chunks_of, memory_budget, rows_bytes, write_run
from engine.operators.bound_function import BoundFunction
from engine.operators.failure import user_error

__all__ = ["DistinctFold", "ExtremeFold", "FieldsFold", "Fold", "FoldSpec", "ReduceFold", "get_field", "with_field"]

_FAN_IN_MAX: Final = 64


class Fold(abc.ABC):
    """How rows of one key become one row. Configuration: picklable."""

    #: the user's function, to be opened and closed; None for built-in folds
    function: Any = None

    @abc.abstractmethod
    def build(self) -> Callable[[Any, Any], Any]:
        """Return (row so far, next row) → row. Rows are not changed in place."""

    def new_table(self, operator_name: str) -> FoldTable:
        return FoldTable(self.build(), operator_name)


class FoldTable:
    """One folded row per key. The general form; some folds have a faster one."""

    def __init__(self, combine: Callable[[Any, Any], Any], operator_name: str) -> None:
        self._combine = combine
        self._name = operator_name
        self._row_by_key: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self._row_by_key)

    def add(self, keys: Iterable[Any], rows: list[Any]) -> None:
        table, combine = self._row_by_key, self._combine
        for key, row in zip(keys, rows, strict=True):
            if key in table:
                try:
                    table[key] = combine(table[key], row)
                except BaseException as error:
                    raise user_error(error, operator_name=self._name, record=row) from error
            else:
                table[key] = row

    def entries(self) -> Iterable[tuple[Any, Any]]:
        """Return (key, folded row) of each key, in the order in which the keys came."""
        return self._row_by_key.items()


@final
@dataclass(frozen=True)
class ReduceFold(Fold):
    """The user's reduce function."""

    function: Any

    def build(self) -> Callable[[Any, Any], Any]:
        return method_of(self.function, "reduce")


@final
@dataclass(frozen=True)
class DistinctFold(Fold):
    """The first row of each key."""

    def build(self) -> Callable[[Any, Any], Any]:
        return lambda first, _: first

    def new_table(self, operator_name: str) -> FoldTable:
        return _FirstRows(self.build(), operator_name)


@final
class _FirstRows(FoldTable):
    def add(self, keys: Iterable[Any], rows: list[Any]) -> None:
        table = self._row_by_key
        for key, row in zip(keys, rows, strict=True):
            if key not in table:
                table[key] = row


def get_field(row: Any, field: int | str) -> Any:
    """Return a field of a tuple, list, Row, dict or object."""
    if isinstance(field, int) or isinstance(row, dict | Row):
        return row[field]
    return getattr(row, field)


def with_field(row: Any, field: int | str, value: Any) -> Any:
    """Return a copy of the row with one field replaced."""
    if isinstance(row, tuple):
        if isinstance(field, str):
            return row._replace(**{field: value})  # type: ignore[attr-defined]
        changed = (*row[:field], value, *row[field + 1 :])
        return changed if type(row) is tuple else type(row)(*changed)
    import copy

    copied = copy.copy(row)
    if isinstance(row, Row):
        copied._values = list(row._values)
    if isinstance(field, int) or isinstance(row, dict | Row):
        copied[field] = value
    else:
        setattr(copied, field, value)
    return copied


def _smaller(a: Any, b: Any) -> Any:
    if a is None or a != a:
        return b
    return b if b is not None and b == b and b < a else a


def _larger(a: Any, b: Any) -> Any:
    if a is None or a != a:
        return b
    return b if b is not None and b == b and b > a else a


def _sum(a: Any, b: Any) -> Any:
    if a is None:
        return b
    return a if b is None else a + b


_OPERATIONS: Final[dict[str, Callable[[Any, Any], Any]]] = {"sum": _sum, "min": _smaller, "max": _larger}


@final
@dataclass(frozen=True)
class FieldsFold(Fold):
    """``aggregations``: ("sum" | "min" | "max", field) in the order stated. Other fields come from any row of the key.

    None and (in min and max) NaN count as missing: they are the result only when there is nothing else.
    """

    aggregations: tuple[tuple[str, int | str], ...]

    def build(self) -> Callable[[Any, Any], Any]:
        parts = [(_OPERATIONS[kind], field) for kind, field in self.aggregations]

        def combine(row: Any, other: Any) -> Any:
            for operation, field in parts:
                row = with_field(row, field, operation(get_field(row, field), get_field(other, field)))
            return row

        return combine

    def new_table(self, operator_name: str) -> FoldTable:
        (kind, field), *more = self.aggregations
        if not more and isinstance(field, int):
            return _OneFieldTable(self, kind, field, operator_name)
        return _FieldsTable(self, operator_name)

    def explained(self, error: BaseException, name: str, row: Any) -> UserCodeError:
        for kind, field in self.aggregations:
            try:
                get_field(row, field)
            except Exception:
                return user_error(missing_field(f"{kind}({field!r}):", row), operator_name=name, record=row)
        return user_error(error, operator_name=name, record=row)


class _FieldsTable(FoldTable):
    def __init__(self, fold: FieldsFold, operator_name: str) -> None:
        super().__init__(fold.build(), operator_name)
        self._fold = fold

    def add(self, keys: Iterable[Any], rows: list[Any]) -> None:
        table, combine = self._row_by_key, self._combine
        fields = [field for _, field in self._fold.aggregations]
        row: Any = None
        try:
            for key, row in zip(keys, rows, strict=True):
                if key in table:
                    table[key] = combine(table[key], row)
                else:
                    for field in fields:  # a field that is not there is an error also for a key with one row
                        get_field(row, field)
                    table[key] = row
        except BaseException as error:
            raise self._fold.explained(error, self._name, row) from error


@final
class _OneFieldTable(_FieldsTable):
    """One aggregated field: bare values are folded, and put into a row only at the end. 5 M rows/s and more."""

    def __init__(self, fold: FieldsFold, kind: str, field: int, operator_name: str) -> None:
        super().__init__(fold, operator_name)
        self._kind = kind
        self._field = field
        self._operation = _OPERATIONS[kind]
        self._value_by_key: dict[Any, Any] = {}

    def add(self, keys: Iterable[Any], rows: list[Any]) -> None:
        keys = list(keys)
        try:
            values = list(map(itemgetter(self._field), rows))
        except BaseException as error:
            row = next(row for row in rows if not _has(row, self._field))
            raise self._fold.explained(error, self._name, row) from error
        if self._kind == "sum" and _PLAIN_NUMBERS.issuperset(map(type, values)):
            self._sum(keys, values, rows)
        else:
            self._fold_values(keys, values, rows)

    def _sum(self, keys: list[Any], values: list[Any], rows: list[Any]) -> None:
        table = self._value_by_key
        fresh = 0
        for key, value in zip(keys, values, strict=True):
            if key in table:
                try:
                    table[key] += value
                except TypeError:  # None, or text, from an earlier batch
                    table[key] = _sum(table[key], value)
            else:
                table[key] = value
                fresh += 1
        if fresh:
            self._keep_rows(keys, rows)

    def _fold_values(self, keys: list[Any], values: list[Any], rows: list[Any]) -> None:
        table, operation = self._value_by_key, self._operation
        _number = -1
        try:
            for _number, (key, value) in enumerate(zip(keys, values, strict=True)):
                table[key] = operation(table[key], value) if key in table else value
        except BaseException as error:
            raise user_error(error, operator_name=self._name, record=rows[_number]) from error
        self._keep_rows(keys, rows)

    def _keep_rows(self, keys: list[Any], rows: list[Any]) -> None:
        table = self._row_by_key
        for key, row in zip(keys, rows, strict=True):
            if key not in table:
                table[key] = row

    def entries(self) -> Iterable[tuple[Any, Any]]:
        field = self._field
        for (key, row), value in zip(self._row_by_key.items(), self._value_by_key.values(), strict=True):
            yield key, row if row[field] is value else with_field(row, field, value)


_PLAIN_NUMBERS: Final = frozenset({int, float})


def _has(row: Any, field: int) -> bool:
    try:
        row[field]
    except Exception:
        return False
    return True


@final
@dataclass(frozen=True)
class ExtremeFold(Fold):
    """Keeps the row with the smallest (or largest) values of the fields, the first of equal ones."""

    fields: tuple[int | str, ...]
    largest: bool

    def build(self) -> Callable[[Any, Any], Any]:
        fields, largest = self.fields, self.largest

        def key(row: Any) -> tuple[Any, ...]:
            return tuple([order_key(get_field(row, field)) for field in fields])

        def choose(row: Any, other: Any) -> Any:
            own, others = key(row), key(other)
            return other if (others > own if largest else others < own) else row

        return choose


@final
@dataclass(frozen=True)
class FoldSpec(OperatorSpec):
    """Fold rows by key. ``key`` None: all rows of the subtask are one group.

    ``is_combiner``: rows that follow in the next operator are folded again, so memory may be emptied at any time.
    ``reads_pairs``, ``writes_pairs``: records are (key, partial row), for folds that may change what the key came from.
    """

    not_checkpointed = BATCH_ONLY
    key: Any  #: key selector, or None
    fold: Fold
    reads_pairs: bool = False
    writes_pairs: bool = False
    is_combiner: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", not self.is_combiner)

    def build(self) -> Operator:
        return _FoldOperator(self)

    def describe(self) -> str:
        return "hash combine" if self.is_combiner else "hash aggregate"


@final
class _FoldOperator(Operator):
    def __init__(self, spec: FoldSpec) -> None:
        self._spec = spec
        self._fold = spec.fold
        self._runs: list[Run] = []
        self._keys: BoundKeys | None = None
        self._function = None if spec.fold.function is None else BoundFunction(spec.fold.function, "reduce")
        #: entries of the table at which its size is estimated again
        self._check_at = 1024

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._table = self._fold.new_table(ctx.operator_name)
        self._budget = memory_budget(ctx.memory_bytes)
        if self._budget < 1 << 20:
            self._check_at = 1
        self._keys = BoundKeys(ctx)
        self._key = None if self._spec.key is None else self._keys.bind(self._spec.key)
        if self._function is not None:
            self._function.open(ctx)

    def process_batch(self, input_index: int, batch: Batch) -> None:
        rows = rows_of(batch).rows
        if not rows:
            return
        name = self.ctx.operator_name
        keys: Iterable[Any]
        if self._spec.reads_pairs:
            keys = [normal_key(pair[0]) for pair in rows]
            rows = [pair[1] for pair in rows]
        elif self._key is None:
            keys = [None] * len(rows)
        else:
            keys = keys_of(self._key, rows, name)
        self._table.add(keys, rows)
        if len(self._table) >= self._check_at:
            self._bound_memory()

    def _bound_memory(self) -> None:
        sample = list(islice(self._table.entries(), 64))
        entry_bytes = 100 + rows_bytes(sample) // len(sample)
        if entry_bytes * len(self._table) <= self._budget:
            self._check_at = max(self._check_at, min(len(self._table) * 2, self._budget // entry_bytes + 1))
            return
        if self._spec.is_combiner:
            self._emit(self._drain())
        else:
            entries = sorted(((hash(key), key, row) for key, row in self._drain()), key=first_of)
            self._runs.append(write_run(self.ctx.work_dir, "fold", entries))

    def _drain(self) -> Iterable[tuple[Any, Any]]:
        table, self._table = self._table, self._fold.new_table(self.ctx.operator_name)
        return table.entries()

    def _emit(self, entries: Iterable[tuple[Any, Any]]) -> None:
        for chunk in chunks_of(entries, CHUNK_ROWS):
            self.out.emit(RowBatch(chunk if self._spec.writes_pairs else [row for _, row in chunk]))

    def finish(self) -> None:
        if not self._runs:
            self._emit(self._drain())
            return
        rest = sorted(((hash(key), key, row) for key, row in self._drain()), key=first_of)
        while len(self._runs) > _FAN_IN_MAX:
            part, self._runs = self._runs[:_FAN_IN_MAX], self._runs[_FAN_IN_MAX:]
            merged = ((hash(key), key, row) for key, row in self._merged(part, []))
            self._runs.append(write_run(self.ctx.work_dir, "fold", merged))
            for run in part:
                run.delete()
        self._emit(self._merged(self._runs, rest))

    def _merged(self, runs: list[Run], rest: list[Any]) -> Iterator[tuple[Any, Any]]:
        name = self.ctx.operator_name
        for _, entries in groupby(heapq.merge(*runs, rest, key=first_of), key=first_of):
            table = self._fold.new_table(name)
            keys, rows = [], []
            for _, key, row in entries:
                keys.append(normal_key(key))
                rows.append(row)
            table.add(keys, rows)
            yield from table.entries()

    def close(self) -> None:
        for run in self._runs:
            run.delete()
        self._runs = []
        try:
            if self._function is not None:
                self._function.close()
        finally:
            if self._keys is not None:
                self._keys.close()
