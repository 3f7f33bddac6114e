"""The frame of operators on columns that keep records by key until something comes that only rows can take.

Then the operator on rows gets everything that is kept, and goes on: for good. A restored subtask may find state of
both, as those it follows may have worked in different ways; what the one on rows has, only rows can go on with. With
``rocksdb`` rows take over when managed memory ends.
"""

from __future__ import annotations

import abc
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from engine.core.dictionaries import plain_columns
from engine.core.records import Batch, ColumnBatch, Named
from engine.operators.base import Operator, OperatorContext, Output
from engine.operators.column_fields import has_fields
from engine.operators.computed_keys import KeyFunction, KeysBeside
from engine.operators.handed_over import why_handed_over
from engine.operators.keyed import KEYED_PART
from engine.operators.memory_watch import MemoryWatch

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ColumnsUntilRows"]


class ColumnsUntilRows(Operator):
    """``rows``: what takes over; ``selector``: the key, as ``rows`` has it; ``key``: what it is on columns, where it is
    a function."""

    def __init__(self, rows: Any, selector: Any, key: KeyFunction | None) -> None:
        self._rows = rows
        #: where the key's columns stand
        self._selector = selector if key is None else key.selector
        self._given = selector
        self._keys = KeysBeside(key)
        self._is_on_rows = False

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._watch = MemoryWatch(ctx)
        self._rows.open(ctx, out)
        self._open_state(ctx)
        self._is_on_rows = ctx.state.keyed[KEYED_PART].num_entries() > 0

    def close(self) -> None:
        self._rows.close()

    def process_batch(self, input_index: int, batch: Batch) -> None:
        is_here = not self._must_hand_over()
        is_full = is_here and self._watch.must_leave(self._kept_bytes())
        if is_here and not is_full and self._takes(batch):
            return
        if is_here:
            self._note_rows(why_handed_over(batch, is_full=is_full))
        self._hand_over()
        self._rows.process_batch(input_index, batch)

    def finish(self) -> None:
        if self._must_hand_over():
            self._hand_over()
        else:
            self._emit_final()
        self._rows.finish()

    def _must_hand_over(self) -> bool:
        return self._is_on_rows or self._has_others()

    def _hand_over(self) -> None:
        self._is_on_rows = True
        self._give_to_rows()

    def _emit_final(self) -> None:
        """The input has ended, and all that is kept is still here."""

    @abc.abstractmethod
    def _open_state(self, ctx: OperatorContext) -> None: ...

    @abc.abstractmethod
    def _has_others(self) -> bool:
        """Whether state was restored that columns of one type cannot go on with."""
        ...

    @abc.abstractmethod
    def _kept_bytes(self) -> int: ...

    def _takes(self, batch: Batch) -> bool:
        """Process the batch, if columns can; else nothing has been done."""
        if not isinstance(batch, ColumnBatch) or batch.scalar:
            return False
        keyed = self._keys.of(batch)
        if keyed is None:
            self._note_rows(self._keys.why)
            return False
        given = keyed.columns
        return self._takes_columns(plain_columns(given, lambda: self._only_keys(given.schema)), batch)

    def _only_keys(self, schema: pa.Schema) -> Collection[int]:
        """Return which columns of a batch may stay in tidy dictionaries."""
        return ()

    @staticmethod
    def _has_fields(named: Named, fields: Iterable[int | str | None]) -> bool:
        """Whether records that become Rows have these fields: an object that is no tuple would be a field itself."""
        return not isinstance(named, type) or (issubclass(named, tuple) and has_fields(named, fields))

    @abc.abstractmethod
    def _takes_columns(self, columns: pa.RecordBatch, batch: ColumnBatch) -> bool:
        """As ``_takes``. ``columns``: those of the batch, with its keys and without dictionaries but for these."""
        ...

    @abc.abstractmethod
    def _give_to_rows(self) -> None:
        """Give what is kept to the operator on rows, and forget it."""
        ...
