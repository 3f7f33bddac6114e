"""Small bounded operators of the DataSet API: pass on, count, number rows, keep the extreme row; keys by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from engine.core.records import Batch, RowBatch
from engine.operators.base import Operator, OperatorSpec
from engine.operators.batch_order import order_key
from engine.operators.batch_reduce import Fold, get_field
from engine.operators.functions import MapFunction, RuntimeContext
from engine.operators.keys import field_of

__all__ = ["CountSpec", "ExtremeFold", "NamedFieldKey", "NumberRows", "PassSpec", "PositionKey", "whole_record"]


def whole_record(record: Any) -> Any:
    """The key is the record itself."""
    return record


@final
@dataclass(frozen=True, slots=True)
class NamedFieldKey:
    """The key is field ``f<position>`` of a tuple, as Java's field expressions say it, or a field of that name."""

    name: str
    position: int

    def __call__(self, record: Any) -> Any:
        return record[self.position] if type(record) is tuple else field_of(record, self.name)


@final
@dataclass(frozen=True, slots=True)
class PositionKey:
    """Several keys as a tuple, where one of them is a ``NamedFieldKey``."""

    parts: tuple[Callable[[Any], Any], ...]

    def __call__(self, record: Any) -> tuple[Any, ...]:
        return tuple([part(record) for part in self.parts])


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
