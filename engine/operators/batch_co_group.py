"""co_group: the rows of two bounded inputs that share a key, handed to a function as two groups.

Rows are tagged with their side and collected in one ``GroupTable``; within a key the first input's rows come first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

from engine.core.errors import UserCodeError
from engine.core.records import Batch, rows_of
from engine.operators.base import BATCH_ONLY, Operator, OperatorContext, OperatorSpec, Output
from engine.operators.batch_functions import MultiResultFunction
from engine.operators.batch_group import GroupTable
from engine.operators.batch_keys import BoundKeys
from engine.operators.batch_order import first_of, keys_of
from engine.operators.batch_spill import SpillableRows

__all__ = ["CoGroupSpec"]


@final
@dataclass(frozen=True)
class CoGroupSpec(OperatorSpec):
    """Call ``function(rows of input 0, rows of input 1)`` for each key of either input."""

    not_checkpointed = BATCH_ONLY
    first_key: Any
    second_key: Any
    function: Any
    num_inputs = 2
    blocks = True

    def build(self) -> Operator:
        return _CoGroup(self)

    def describe(self) -> str:
        return "groups of two inputs"


@final
class _CoGroup(Operator):
    def __init__(self, spec: CoGroupSpec) -> None:
        self._spec = spec
        self._bound: BoundKeys | None = None
        self._keys: list[Callable[[Any], Any]] = []
        self._table: GroupTable | None = None
        self._first: SpillableRows | None = None
        self._function: MultiResultFunction | None = None

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._bound = BoundKeys(ctx)
        self._keys = keys = [self._bound.bind(key) for key in (self._spec.first_key, self._spec.second_key)]
        self._table = GroupTable(
            lambda tagged: keys[tagged[0]](tagged[1]),
            work_dir=ctx.work_dir,
            memory_bytes=ctx.memory_bytes,
            operator_name=ctx.operator_name,
            order=((first_of, True),),
        )
        self._first = SpillableRows(ctx.work_dir, ctx.memory_bytes, "cogroup")
        self._function = MultiResultFunction(self._spec.function, ("co_group",), 2, ctx, out)
        self._function.open()

    def process_batch(self, input_index: int, batch: Batch) -> None:
        assert self._table is not None
        rows = rows_of(batch).rows
        try:
            self._table.add([(input_index, row) for row in rows])
        except UserCodeError:
            keys_of(self._keys[input_index], rows, self.ctx.operator_name)  # the same error, without our tag
            raise

    def finish(self) -> None:
        assert self._table is not None
        assert self._first is not None
        assert self._function is not None
        for key, tagged in self._table.groups():
            self._first.clear()
            head = self._split(tagged)
            second = _chain(head, tagged)
            self._function(iter(self._first), second, record=_Group(key))
        self._function.collector.flush()

    def _split(self, tagged: Iterator[Any]) -> list[Any]:
        """Keep the rows of input 0; return the first row of input 1, which had to be read to see their end."""
        assert self._first is not None
        waiting: list[Any] = []
        for side, row in tagged:
            if side:
                self._first.extend(waiting)
                return [row]
            waiting.append(row)
            if len(waiting) >= 256:
                self._first.extend(waiting)
                waiting = []
        self._first.extend(waiting)
        return []

    def close(self) -> None:
        try:
            if self._function is not None:
                self._function.close()
        finally:
            if self._first is not None:
                self._first.clear()
            if self._table is not None:
                self._table.close()
            if self._bound is not None:
                self._bound.close()


def _chain(head: list[Any], tagged: Iterator[Any]) -> Iterator[Any]:
    yield from head
    for _, row in tagged:
        yield row


@final
class _Group:
    def __init__(self, key: Any) -> None:
        self._key = key

    def __repr__(self) -> str:
        return f"<groups of key {self._key!r}>"
