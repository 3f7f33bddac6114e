"""What joins on columns have in common: they take what they can as columns, and give all to their row operator when
they no longer can. How records are kept and matched: ``column_interval_join``, ``column_window_join``.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from engine.core.dictionaries import plain_columns
from engine.core.records import Batch, ColumnBatch
from engine.operators.base import Operator, OperatorContext, OperatorSpec
from engine.operators.column_fields import is_named, named_schema
from engine.operators.compile.translate import Shape
from engine.operators.handed_over import why_handed_over
from engine.operators.join_state import JOIN_PART, JoinPlace
from engine.operators.keyed import KEYED_PART, TIMERS_PART
from engine.operators.keys import ComposedKey
from engine.operators.memory_watch import MemoryWatch
from engine.state.key_groups import key_group_range
from engine.state.parts import KeyedPart

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["TIME_LIMIT_MS", "ColumnJoinOperator", "ColumnJoinSpec", "JoinState", "records_at"]

#: Times and bounds beyond are left to rows: sums of two, and the ends of windows, stay within 64 bits.
TIME_LIMIT_MS: Final = 1 << 62


def records_at(columns: pa.RecordBatch, rows: Any, times_ms: Any) -> ColumnBatch:
    """Return these rows of what has come, whose schema says whether they are Rows."""
    import pyarrow as pa

    taken = columns.take(pa.array(rows)).replace_schema_metadata(None)
    return ColumnBatch(taken, times_ms[rows], named=is_named(columns.schema))


class JoinState(KeyedPart, Protocol):
    """The records of both sides."""

    @property
    def others(self) -> dict[int, bytes]:
        """Key group → chunk of records of other types, for rows."""
        ...

    def define(self, side: int, schema: pa.Schema) -> bool:
        """Return whether records of this schema, which says whether they are Rows, can be kept beside others."""
        ...


@dataclass(frozen=True)
class ColumnJoinSpec(OperatorSpec):
    """``rows``: the same join on rows; ``shape``: of the results when these are columns, None = they are rows."""

    rows: Any
    shape: Shape | None = None
    num_inputs: int = 2
    #: whether columns that come out have the kinds of a changelog
    emits_kinds = False
    preload = ("engine.operators.warm_up.joins",)

    @property
    def emits_columns(self) -> bool:
        return self.shape is not None


class ColumnJoinOperator(Operator):
    """``rows``: its operator on rows, which may take over at any batch."""

    _state: Any
    #: whether records have to have timestamps
    _needs_times = True

    def __init__(self, rows: Any) -> None:
        self._rows = rows
        #: the row operator has taken over
        self._is_on_rows = False

    @staticmethod
    def _place(ctx: OperatorContext, selectors: Sequence[Any]) -> JoinPlace:
        """``selectors``: of the key, by side, both of one kind."""
        runtime = ctx.runtime_context
        max_parallelism = runtime.get_max_number_of_parallel_subtasks()
        subtask = runtime.get_index_of_this_subtask(), runtime.get_number_of_parallel_subtasks()
        return JoinPlace(
            max_parallelism,
            key_group_range(*subtask, max_parallelism),
            tuple(key.fields if isinstance(key, ComposedKey) else (key.field,) for key in selectors),
            is_tuple=isinstance(selectors[0], ComposedKey),
            folder=ctx.work_dir,
            bytes_max=MemoryWatch(ctx).limit_bytes,
        )

    def _register(self, ctx: OperatorContext, state: JoinState, *, has_disk: bool = False) -> None:
        """The end of ``open``, when the row operator is open. ``has_disk``: with the backend ``rocksdb`` rows take over
        when state outgrows its share of memory, for which it tells ``nbytes``; else the join has files of its own."""
        self._state = state
        self._watch = MemoryWatch(ctx) if has_disk else None
        ctx.state.add_keyed(JOIN_PART, state)
        parts = ctx.state.keyed
        self._is_on_rows = any(name in parts and parts[name].num_entries() > 0 for name in (KEYED_PART, TIMERS_PART))

    def close(self) -> None:
        self._rows.close()

    # --- records

    def process_batch(self, input_index: int, batch: Batch) -> None:
        must_leave = self._watch is not None and self._watch.must_leave(self._state.nbytes)
        is_here = not (self._is_on_rows or self._state.others)
        if is_here and not must_leave and self._takes(batch):
            assert isinstance(batch, ColumnBatch)
            columns = plain_columns(batch.columns)
            columns = columns.replace_schema_metadata(named_schema(columns.schema, batch.named).metadata)
            if self._state.define(input_index, columns.schema):
                self._process_batch(input_index, columns, batch)
                return
        if is_here:
            self._note_rows(why_handed_over(batch, is_full=must_leave, needs_times=self._needs_times))
        self._hand_over()
        self._rows.process_batch(input_index, batch)

    @staticmethod
    def _takes(batch: Batch) -> bool:
        if not isinstance(batch, ColumnBatch) or batch.scalar or batch.timestamps_ms is None:
            return False
        times_ms = batch.timestamps_ms
        return not len(batch) or bool(times_ms.min() > -TIME_LIMIT_MS and times_ms.max() < TIME_LIMIT_MS)

    def _process_batch(self, side: int, columns: pa.RecordBatch, batch: ColumnBatch) -> None:
        """``columns``: of the batch, with a schema that says whether they are Rows."""
        self._process_columns(side, columns, batch.timestamps_ms)

    @abc.abstractmethod
    def _process_columns(self, side: int, columns: pa.RecordBatch, times_ms: Any) -> None: ...

    # --- time

    def process_watermark(self, watermark_ms: int) -> None:
        if self._is_on_rows or self._state.others:
            self._hand_over()  # before the time goes on
            self._rows.process_watermark(watermark_ms)
            return
        self._process_time(watermark_ms)
        self._emit_time(watermark_ms)

    @abc.abstractmethod
    def _process_time(self, watermark_ms: int) -> None:
        """Fire and forget what is due; the watermark is handed on afterwards."""

    def _emit_time(self, watermark_ms: int) -> None:
        self.out.emit_watermark(watermark_ms)

    # --- the way to rows, and the end

    @abc.abstractmethod
    def _hand_over(self) -> None:
        """Give all records to the row operator, if that has not been done; it takes every record from now on.

        Not in ``open``, where nobody notes yet what changes since the checkpoint that was restored.
        """

    def finish(self) -> None:
        if self._is_on_rows or self._state.others:
            self._hand_over()
        self._rows.finish()
