"""Small bounded operators of the DataSet API: pass on, count, number rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from engine.core.records import Batch, RowBatch
from engine.operators.base import BATCH_ONLY, Operator, OperatorSpec
from engine.operators.functions import MapFunction, RuntimeContext

__all__ = ["CountSpec", "NumberRows", "PassSpec"]


@final
@dataclass(frozen=True)
class PassSpec(OperatorSpec):
    """Hands every batch on as it is."""

    num_inputs: int = 1

    def build(self) -> Operator:
        return _Pass()


@final
class _Pass(Operator):
    def process_batch(self, input_index: int, batch: Batch) -> None:
        self.out.emit(batch)


@final
@dataclass(frozen=True)
class CountSpec(OperatorSpec):
    """Emit (subtask, number of its records) at the end."""

    not_checkpointed = BATCH_ONLY
    blocks = True

    def build(self) -> Operator:
        return _Count()

    def describe(self) -> str:
        return "vectorised"


@final
class _Count(Operator):
    def __init__(self) -> None:
        self._count = 0

    def process_batch(self, input_index: int, batch: Batch) -> None:
        self._count += len(batch)

    def finish(self) -> None:
        self.out.emit(RowBatch([(self.ctx.runtime_context.get_index_of_this_subtask(), self._count)]))


@final
class NumberRows(MapFunction):
    """Row → (index, row), consecutive over all subtasks; the broadcast set "counts" has (subtask, count) of each."""

    def open(self, runtime_context: RuntimeContext) -> None:
        own = runtime_context.get_index_of_this_subtask()
        self._next = sum(count for subtask, count in runtime_context.get_broadcast_variable("counts") if subtask < own)

    def map(self, value: Any) -> tuple[int, Any]:
        index = self._next
        self._next += 1
        return (index, value)
