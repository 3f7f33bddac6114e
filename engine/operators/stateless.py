"""Operators on rows that remember nothing: map, flat_map, filter, project, and their two-input forms.

Each is one loop a batch around the user's function. Records keep their event times. A columnar batch is turned into
rows here, at the entrance of the user's function (``rows_of``), except where columns can be kept.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, final

from engine.core.records import BATCH_ROWS_MAX, Batch, ColumnBatch, RowBatch, rows_of
from engine.operators.base import Operator, OperatorContext, OperatorSpec, Output
from engine.operators.bound_function import BoundFunction
from engine.operators.failure import user_error
from engine.operators.row_loop import RowLoop, Rows

__all__ = [
    "CoFlatMapSpec",
    "CoMapSpec",
    "FilterSpec",
    "FlatMapSpec",
    "MapBatchesSpec",
    "MapSpec",
    "ProjectSpec",
]

_INTERPRETED = "interpreted"
_VECTORISED = "vectorised"


@final
@dataclass(frozen=True)
class MapSpec(OperatorSpec):
    """``function``: MapFunction or callable."""

    function: Any

    def build(self) -> Operator:
        return _MapOperator((BoundFunction(self.function, "map"),))

    def describe(self) -> str:
        return _INTERPRETED


@final
@dataclass(frozen=True)
class CoMapSpec(OperatorSpec):
    """``function``: CoMapFunction."""

    function: Any
    num_inputs = 2

    def build(self) -> Operator:
        return _MapOperator((BoundFunction(self.function, "map1"), BoundFunction(self.function, "map2")))

    def describe(self) -> str:
        return _INTERPRETED


@final
@dataclass(frozen=True)
class FlatMapSpec(OperatorSpec):
    """``function``: FlatMapFunction or callable; returns an iterable, or None for nothing."""

    function: Any

    def build(self) -> Operator:
        return _FlatMapOperator((BoundFunction(self.function, "flat_map"),))

    def describe(self) -> str:
        return _INTERPRETED


@final
@dataclass(frozen=True)
class CoFlatMapSpec(OperatorSpec):
    """``function``: CoFlatMapFunction."""

    function: Any
    num_inputs = 2

    def build(self) -> Operator:
        return _FlatMapOperator((BoundFunction(self.function, "flat_map1"), BoundFunction(self.function, "flat_map2")))

    def describe(self) -> str:
        return _INTERPRETED


@final
@dataclass(frozen=True)
class FilterSpec(OperatorSpec):
    """``function``: FilterFunction or callable."""

    function: Any

    def build(self) -> Operator:
        return _FilterOperator(BoundFunction(self.function, "filter"))

    def describe(self) -> str:
        return _INTERPRETED


@final
@dataclass(frozen=True)
class ProjectSpec(OperatorSpec):
    """Keep the fields at ``indexes``, in that order; results are tuples. Columns stay columns."""

    indexes: tuple[int, ...]

    def build(self) -> Operator:
        return _ProjectOperator(self.indexes)

    def describe(self) -> str:
        return _VECTORISED


@final
@dataclass(frozen=True)
class MapBatchesSpec(OperatorSpec):
    """``function`` gets whole batches: a pyarrow RecordBatch, pandas DataFrame or dict of numpy arrays, by
    ``batch_format`` ("pyarrow", "pandas", "numpy"); it returns any of the three. Columns of rows are named f0, f1…"""

    function: Any
    batch_format: str = "pyarrow"

    def build(self) -> Operator:
        return _MapBatchesOperator(BoundFunction(self.function, "map"), self.batch_format)

    def describe(self) -> str:
        return _VECTORISED


# ---------------------------------------------------------------------------------------------------------------------


@final
class _MapOperator(Operator):
    def __init__(self, functions: tuple[BoundFunction, ...]) -> None:
        self._functions = functions

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._loop = RowLoop.of_context(ctx)
        self._functions[0].open(ctx)
        for function in self._functions[1:]:  # one object behind both inputs: it is opened once
            function.operator_name = ctx.operator_name

    def process_batch(self, input_index: int, batch: Batch) -> None:
        batch = rows_of(batch)
        function = self._functions[input_index]
        call = function.call
        while True:
            rows = self._loop.begin(batch.rows)
            try:
                # A comprehension, not map(): StopIteration out of the user's function must not end the loop silently.
                results = [call(row) for row in rows]
            except BaseException as error:
                raise function.error(error, batch.rows[rows.taken() - 1]) from error
            self._loop.end()
            taken = rows.taken()
            if taken == len(batch.rows):
                self.out.emit(RowBatch(results, batch.timestamps_ms))
                return
            self.out.emit(RowBatch(results, batch.slice(0, taken).timestamps_ms))
            batch = batch.slice(taken, len(batch.rows))

    def close(self) -> None:
        self._functions[0].close()


def _failing(rows: list[Any], remaining: Iterator[Any]) -> Any:
    """Return the row that a loop over ``remaining = iter(rows)`` took last."""
    return rows[len(rows) - operator.length_hint(remaining) - 1]


@final
class _FlatMapOperator(Operator):
    def __init__(self, functions: tuple[BoundFunction, ...]) -> None:
        self._functions = functions

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._loop = RowLoop.of_context(ctx)
        self._functions[0].open(ctx)
        for function in self._functions[1:]:  # one object behind both inputs: it is opened once
            function.operator_name = ctx.operator_name

    def process_batch(self, input_index: int, batch: Batch) -> None:
        batch = rows_of(batch)
        function = self._functions[input_index]
        while batch.rows:
            rows = self._loop.begin(batch.rows)
            if batch.timestamps_ms is None:
                self._process(function, rows)
            else:
                self._process_stamped(function, rows, batch.timestamps_ms)
            batch = batch.slice(rows.taken(), len(batch.rows))

    def _process(self, function: BoundFunction, rows: Rows) -> None:
        call = function.call
        pending: list[Any] = []
        for row in rows:
            try:
                results = call(row)
                if type(results) is list:
                    pending += results
                    rest = None
                elif results is None:
                    continue
                else:
                    rest = _iterator(results)
                    pending += itertools.islice(rest, BATCH_ROWS_MAX)
            except BaseException as error:
                raise function.error(error, row) from error
            if len(pending) >= BATCH_ROWS_MAX:
                self._emit(pending, None)
                pending = []
                if rest is not None:
                    self._drain(function, row, rest, None)
                self._loop.current = rows  # others may have had a turn
        self._loop.end()
        if pending:
            self._emit(pending, None)

    def _process_stamped(self, function: BoundFunction, rows: Rows, stamps: list[int]) -> None:
        call = function.call
        pending: list[Any] = []
        pending_stamps: list[int] = []
        for row, stamp in zip(rows, stamps):  # not strict: the rows may be cut short
            size = len(pending)
            try:
                results = call(row)
                if results is None:
                    continue
                rest = _iterator(results)
                pending += itertools.islice(rest, BATCH_ROWS_MAX)
            except BaseException as error:
                raise function.error(error, row) from error
            pending_stamps += [stamp] * (len(pending) - size)
            if len(pending) >= BATCH_ROWS_MAX:
                self._emit(pending, pending_stamps)
                pending, pending_stamps = [], []
                self._drain(function, row, rest, stamp)
                self._loop.current = rows
        self._loop.end()
        if pending:
            self._emit(pending, pending_stamps)

    def _drain(self, function: BoundFunction, row: Any, rest: Iterator[Any], stamp: int | None) -> None:
        """Emit what a record yields beyond one batch, chunk by chunk: it may yield millions."""
        while True:
            try:
                chunk = list(itertools.islice(rest, BATCH_ROWS_MAX))
            except BaseException as error:
                raise function.error(error, row) from error
            if not chunk:
                return
            self._emit(chunk, None if stamp is None else [stamp] * len(chunk))

    def _emit(self, rows: list[Any], stamps: list[int] | None) -> None:
        batch = RowBatch(rows, stamps)
        if len(rows) <= 2 * BATCH_ROWS_MAX:
            self.out.emit(batch)
            return
        for start in range(0, len(rows), BATCH_ROWS_MAX):
            self.out.emit(batch.slice(start, start + BATCH_ROWS_MAX))

    def close(self) -> None:
        self._functions[0].close()


def _iterator(results: Any) -> Iterator[Any]:
    """Return an iterator over what flat_map returned; raises TypeError for what cannot be meant."""
    if isinstance(results, (str, bytes)):
        raise TypeError(
            f"flat_map returned the {type(results).__name__} {results[:40]!r}, which would be cut into characters. "
            "Return a list of records, e.g. [value], or use map."
        )
    if not isinstance(results, Iterable):
        raise TypeError(
            f"flat_map returned {results!r:.80} of type {type(results).__name__}; "
            "expected an iterable of records (list, generator…), or None for nothing."
        )
    return iter(results)


@final
class _FilterOperator(Operator):
    def __init__(self, function: BoundFunction) -> None:
        self._function = function

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._loop = RowLoop.of_context(ctx)
        self._function.open(ctx)

    def process_batch(self, input_index: int, batch: Batch) -> None:
        batch = rows_of(batch)
        call = self._function.call
        while True:
            rows = self._loop.begin(batch.rows)
            stamps = batch.timestamps_ms
            try:
                if stamps is None:
                    kept = [row for row in rows if call(row)]
                else:
                    keeps = [bool(call(row)) for row in rows]
                    kept = list(itertools.compress(batch.rows, keeps))
                    stamps = list(itertools.compress(stamps, keeps))
            except BaseException as error:
                raise self._function.error(error, batch.rows[rows.taken() - 1]) from error
            self._loop.end()
            if kept:
                self.out.emit(RowBatch(kept, stamps))
            if rows.taken() == len(batch.rows):
                return
            batch = batch.slice(rows.taken(), len(batch.rows))

    def close(self) -> None:
        self._function.close()


@final
class _ProjectOperator(Operator):
    def __init__(self, indexes: tuple[int, ...]) -> None:
        self._indexes = indexes
        self._get = operator.itemgetter(*indexes)

    def process_batch(self, input_index: int, batch: Batch) -> None:
        if isinstance(batch, ColumnBatch) and not batch.scalar:
            self.out.emit(ColumnBatch(batch.columns.select(list(self._indexes)), batch.timestamps_ms))
            return
        batch = rows_of(batch)
        get = self._get
        remaining = iter(batch.rows)
        try:
            rows = [get(row) for row in remaining] if len(self._indexes) > 1 else [(get(row),) for row in remaining]
        except Exception as error:
            row = _failing(batch.rows, remaining)
            seen = TypeError(f"project({', '.join(map(str, self._indexes))}) does not fit the record: {error}")
            raise user_error(seen, operator_name=self.ctx.operator_name, record=row) from error
        self.out.emit(RowBatch(rows, batch.timestamps_ms))


@final
class _MapBatchesOperator(Operator):
    def __init__(self, function: BoundFunction, batch_format: str) -> None:
        self._function = function
        self._format = batch_format

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._function.open(ctx)

    def process_batch(self, input_index: int, batch: Batch) -> None:
        try:
            columns = _columns_of(batch)
            given: Any = columns
            if self._format == "pandas":
                given = columns.to_pandas()
            elif self._format == "numpy":
                given = {
                    name: column.to_numpy(zero_copy_only=False)
                    for name, column in zip(columns.schema.names, columns.columns, strict=True)
                }
            results = _record_batches(self._function.call(given))
        except BaseException as error:
            raise self._function.error(error, f"a batch of {len(batch)} records") from error
        stamps = batch.timestamps_ms if isinstance(batch, ColumnBatch) else None
        for result in results:
            kept = stamps if result.num_rows == len(batch) else None
            if result.num_rows:
                self.out.emit(ColumnBatch(result, kept))

    def close(self) -> None:
        self._function.close()


def _columns_of(batch: Batch) -> Any:
    import pyarrow as pa

    if isinstance(batch, ColumnBatch):
        return batch.columns
    rows = batch.rows
    if rows and isinstance(rows[0], (tuple, list)):
        arrays = [pa.array(column) for column in zip(*rows, strict=True)]
    else:
        arrays = [pa.array(rows)]
    return pa.RecordBatch.from_arrays(arrays, names=[f"f{i}" for i in range(len(arrays))])


def _record_batches(result: Any) -> list[Any]:
    import pyarrow as pa

    if result is None:
        return []
    if isinstance(result, pa.RecordBatch):
        return [result]
    if isinstance(result, pa.Table):
        return result.to_batches()
    if isinstance(result, dict):
        return [pa.RecordBatch.from_pydict({str(name): pa.array(column) for name, column in result.items()})]
    if type(result).__name__ == "DataFrame":
        return pa.Table.from_pandas(result, preserve_index=False).to_batches()
    raise TypeError(
        f"map_batches returned a {type(result).__name__}; expected a pyarrow RecordBatch or Table, "
        "a pandas DataFrame, or a dict of columns."
    )
