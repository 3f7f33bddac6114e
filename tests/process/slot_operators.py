"""Tiny operators for the tests of slots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.core.records import Batch, RowBatch, rows_of
from engine.operators.base import Operator, OperatorSpec, PollResult, SourceOperator


@dataclass(frozen=True)
class Numbers(OperatorSpec):
    """Emits make(i) for i = subtask, subtask + parallelism… below count."""

    count: int
    make: Callable[[int], Any] = int
    num_inputs = 0

    def build(self) -> Operator:
        return _Numbers(self)


class _Numbers(SourceOperator):
    def __init__(self, spec: Numbers) -> None:
        self._spec = spec

    def open(self, ctx: Any, out: Any) -> None:
        super().open(ctx, out)
        step = ctx.runtime_context.get_number_of_parallel_subtasks()
        self._left = range(ctx.runtime_context.get_index_of_this_subtask(), self._spec.count, step)

    def poll(self, rows_max: int) -> PollResult:
        part, self._left = self._left[:rows_max], self._left[rows_max:]
        self.out.emit(RowBatch([self._spec.make(i) for i in part]))
        return PollResult.MORE if self._left else PollResult.END


@dataclass(frozen=True)
class Apply(OperatorSpec):
    """Maps each row; ``None`` is dropped."""

    function: Callable[[Any], Any]

    def build(self) -> Operator:
        return _Apply(self.function)


class _Apply(Operator):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def process_batch(self, input_index: int, batch: Batch) -> None:
        function = self._function
        self.out.emit(RowBatch([v for v in [function(row) for row in rows_of(batch).rows] if v is not None]))


@dataclass(frozen=True)
class Collect(OperatorSpec):
    """Sends all rows that it got, with its subtask, as one event at the end."""

    def build(self) -> Operator:
        return _Collect()


class _Collect(Operator):
    def open(self, ctx: Any, out: Any) -> None:
        super().open(ctx, out)
        self._rows: list[Any] = []

    def process_batch(self, input_index: int, batch: Batch) -> None:
        self._rows.extend(rows_of(batch).rows)

    def finish(self) -> None:
        self.ctx.send_event((self.ctx.runtime_context.get_index_of_this_subtask(), self._rows))
