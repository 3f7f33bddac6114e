"""What joins on columns have in common: they take what they can as columns, and give all to their row operator when
they no longer can. How records are kept and matched: ``column_interval_join``, ``column_window_join``.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from engine.core.dictionaries import plain_columns
from engine.core.records import Batch, ColumnBatch
from engine.operators.base import Operator, OperatorContext, OperatorSpec
from engine.operators.column_fields import has_fields, is_named, named_schema, own_columns
from engine.operators.compile.translate import Shape
from engine.operators.computed_keys import JoinKeys, KeysBeside, fields_of_sides
from engine.operators.handed_over import why_handed_over
from engine.operators.join_state import JOIN_PART, JoinPlace
from engine.operators.keyed import KEYED_PART, TIMERS_PART
from engine.operators.keys import ComposedKey, key_fields
from engine.operators.memory_watch import MemoryWatch
from engine.state.key_groups import key_group_range
from engine.state.parts import KeyedPart

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["KEEPS_STATE", "TIME_LIMIT_MS", "ColumnJoinOperator", "ColumnJoinSpec", "JoinState", "records_at"]

#: Times and bounds beyond are left to rows: sums of two, and the ends of windows, stay within 64 bits.
TIME_LIMIT_MS: Final = 1 << 62
#: Why a join stays on rows.
KEEPS_STATE: Final = "its function has an open() that may ask for keyed state"


def records_at(columns: pa.RecordBatch, rows: Any, times_ms: Any) -> ColumnBatch:
    """Return these rows of what has come, whose schema says whether they are Rows."""
    import pyarrow as pa

    taken = own_columns(columns.take(pa.array(rows))).replace_schema_metadata(None)
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
    """``rows``: the same join on rows; ``shape``: of the results when these are columns, None = they are rows;
    ``keys``: by side, what a key selector is on columns, where it is a function."""

    rows: Any
    shape: Shape | None = None
    keys: JoinKeys = (None, None)
    num_inputs: int = 2
    #: whether columns that come out have the kinds of a changelog
    emits_kinds = False
    preload = ("engine.operators.warm_up.joins",)

    @property
    def emits_columns(self) -> bool:
        return self.shape is not None

    @property
    def key_fields(self) -> tuple[tuple[int | str, ...], ...]:
        """The columns that the key of each side is."""
        return fields_of_sides(self.rows.key_selectors, self.keys)

    @property
    def is_tuple(self) -> bool:
        """Whether keys are tuples."""
        first, key = self.rows.key_selectors[0], self.keys[0]
        return isinstance(first if key is None else key.selector, ComposedKey)

    def how_keys_are_made(self) -> str:
        return ", its key computed on columns" if any(key is not None and key.num_computed for key in self.keys) else ""


class ColumnJoinOperator(Operator):
    """``rows``: its operator on rows, which may take over at any batch."""

    _state: Any
    #: whether records have to have timestamps
    _needs_times = True

    takes_objects = True

    def __init__(self, spec: ColumnJoinSpec, rows: Any) -> None:
        self._rows = rows
        self._keys = [KeysBeside(key) for key in spec.keys]
        #: by side, the fields that the program names as the key
        self._named_fields = [key_fields(selector) for selector in spec.rows.key_selectors]
        #: the row operator has taken over
        self._is_on_rows = False

    @staticmethod
    def _place(ctx: OperatorContext, spec: ColumnJoinSpec) -> JoinPlace:
        runtime = ctx.runtime_context
        max_parallelism = runtime.get_max_number_of_parallel_subtasks()
        subtask = runtime.get_index_of_this_subtask(), runtime.get_number_of_parallel_subtasks()
        return JoinPlace(
            max_parallelism,
            key_group_range(*subtask, max_parallelism),
            spec.key_fields,
            is_tuple=spec.is_tuple,
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
            columns = self._with_keys(input_index, batch)
            if columns is not None and self._state.define(input_index, columns.schema):
                self._process_batch(input_index, columns, batch)
                return
        if is_here:
            self._note_rows(why_handed_over(batch, is_full=must_leave, needs_times=self._needs_times))
        self._hand_over()
        self._rows.process_batch(input_index, batch)

    def _with_keys(self, side: int, batch: ColumnBatch) -> pa.RecordBatch | None:
        """Return the columns with the key's, in a schema that says whether they are Rows; None = rows have to take the
        batch."""
        if not has_fields(batch.named, self._named_fields[side]):
            return None
        keyed = self._keys[side].of(batch)
        if keyed is None:
            self._note_rows(self._keys[side].why)
            return None
        columns = plain_columns(keyed.columns)
        return columns.replace_schema_metadata(named_schema(columns.schema, batch.named).metadata)

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
