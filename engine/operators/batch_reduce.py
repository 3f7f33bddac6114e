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
from itertools import groupby
from typing import Any, Final, final

from engine.core.errors import ProgramError, UserCodeError
from engine.core.records import Batch, Row, RowBatch, rows_of
from engine.operators.base import Operator, OperatorContext, OperatorSpec, Output
from engine.operators.batch_functions import close_function, method_of, open_function
from engine.operators.batch_order import bind_key, first_of, keys_of, normal_key
from engine.operators.batch_spill import CHUNK_ROWS, Run, chunks_of, memory_budget, rows_bytes, write_run
from engine.operators.failure import user_error

__all__ = ["DistinctFold", "FieldsFold", "Fold", "FoldSpec", "ReduceFold", "get_field", "with_field"]

_FAN_IN_MAX: Final = 64


class Fold(abc.ABC):
    """How rows of one key become one row. Configuration: picklable."""

    #: the user's function, to be opened and closed; None for built-in folds
    function: Any = None

    @abc.abstractmethod
    def build(self) -> Callable[[Any, Any], Any]:
        """Return (row so far, next row) → row. Rows are not changed in place."""

    def fold_rows(self, table: dict[Any, Any], keys: Iterable[Any], rows: list[Any], name: str) -> None:
        """Fold rows into ``table``; called after ``build``. ``name``: the operator's, for errors."""
        combine = self.build()
        for key, row in zip(keys, rows, strict=True):
            if key in table:
                try:
                    table[key] = combine(table[key], row)
                except Exception as error:
                    raise user_error(error, operator_name=name, record=row) from error
            else:
                table[key] = row


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

    def fold_rows(self, table: dict[Any, Any], keys: Iterable[Any], rows: list[Any], name: str) -> None:
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

    def fold_rows(self, table: dict[Any, Any], keys: Iterable[Any], rows: list[Any], name: str) -> None:
        (kind, field), *more = self.aggregations
        if more or not isinstance(field, int) or set(map(type, rows)) != {tuple}:
            self._fold_slowly(table, keys, rows, name)
            return
        # One field of plain tuples, the usual case: fold bare values first, touch each key's row once per batch.
        operation = _OPERATIONS[kind]
        values: dict[Any, Any] = {}
        fresh: dict[Any, Any] = {}
        row: Any = None
        try:
            if kind == "sum":
                for key, row in zip(keys, rows, strict=True):
                    if key in values:
                        value = values[key]
                        new = row[field]
                        values[key] = value + new if value is not None and new is not None else _sum(value, new)
                    else:
                        values[key] = row[field]
                        fresh[key] = row
            else:
                for key, row in zip(keys, rows, strict=True):
                    if key in values:
                        values[key] = operation(values[key], row[field])
                    else:
                        values[key] = row[field]
                        fresh[key] = row
            for key, value in values.items():
                row = fresh[key]
                before = table.get(key)
                if before is not None:
                    value = operation(before[field], value)
                table[key] = row if value is row[field] else (*row[:field], value, *row[field + 1 :])
        except Exception as error:
            raise self._explained(error, name, row) from error

    def _fold_slowly(self, table: dict[Any, Any], keys: Iterable[Any], rows: list[Any], name: str) -> None:
        combine = self.build()
        fields = [field for _, field in self.aggregations]
        row: Any = None
        try:
            for key, row in zip(keys, rows, strict=True):
                if key in table:
                    table[key] = combine(table[key], row)
                else:
                    for field in fields:  # a field that is not there is an error also for a key with one row
                        get_field(row, field)
                    table[key] = row
        except Exception as error:
            raise self._explained(error, name, row) from error

    def _explained(self, error: Exception, name: str, row: Any) -> UserCodeError:
        for kind, field in self.aggregations:
            try:
                get_field(row, field)
            except Exception:
                wrong = ProgramError(f"{kind}({field!r}): the record has no field {field!r}.")
                return user_error(wrong, operator_name=name, record=row)
        return user_error(error, operator_name=name, record=row)


@final
@dataclass(frozen=True)
class FoldSpec(OperatorSpec):
    """Fold rows by key. ``key`` None: all rows of the subtask are one group.

    ``is_combiner``: rows that follow in the next operator are folded again, so memory may be emptied at any time.
    ``reads_pairs``, ``writes_pairs``: records are (key, partial row), for folds that may change what the key came from.
    """

    key: Any  #: key selector, or None
    fold: Fold
    reads_pairs: bool = False
    writes_pairs: bool = False
    is_combiner: bool = False

    def build(self) -> Operator:
        return _FoldOperator(self)

    def describe(self) -> str:
        return "hash combine" if self.is_combiner else "hash aggregate"


@final
class _FoldOperator(Operator):
    def __init__(self, spec: FoldSpec) -> None:
        self._spec = spec
        self._fold = spec.fold
        self._table: dict[Any, Any] = {}
        self._runs: list[Run] = []
        self._is_open = False
        #: entries of the table at which its size is estimated again
        self._check_at = 1024

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._budget = memory_budget(ctx.memory_bytes)
        if self._budget < 1 << 20:
            self._check_at = 1
        self._key = None if self._spec.key is None else bind_key(self._spec.key, ctx.runtime_context)
        self._is_open = True
        open_function(self._fold.function, ctx.runtime_context, ctx.operator_name)

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
        self._fold.fold_rows(self._table, keys, rows, name)
        if len(self._table) >= self._check_at:
            self._bound_memory()

    def _bound_memory(self) -> None:
        sample = list(zip(range(64), self._table.items(), strict=False))
        entry_bytes = 100 + rows_bytes([item for _, item in sample]) // len(sample)
        if entry_bytes * len(self._table) <= self._budget:
            self._check_at = max(self._check_at, min(len(self._table) * 2, self._budget // entry_bytes + 1))
            return
        if self._spec.is_combiner:
            self._emit(self._drain())
        else:
            entries = sorted(((hash(key), key, row) for key, row in self._drain()), key=first_of)
            self._runs.append(write_run(self.ctx.work_dir, "fold", entries))

    def _drain(self) -> Iterable[tuple[Any, Any]]:
        table, self._table = self._table, {}
        return table.items()

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
            table: dict[Any, Any] = {}
            keys, rows = [], []
            for _, key, row in entries:
                keys.append(normal_key(key))
                rows.append(row)
            self._fold.fold_rows(table, keys, rows, name)
            yield from table.items()

    def close(self) -> None:
        for run in self._runs:
            run.delete()
        self._runs, self._table = [], {}
        if self._is_open:
            self._is_open = False
            close_function(self._fold.function)
