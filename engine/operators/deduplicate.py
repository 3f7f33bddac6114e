"""Deduplication by key, in order of arrival: the first record of each key, or always the last one.

The first ones are given as they are, once. The last one is a changelog of Rows, as of Flink's
DeduplicateKeepLastRowFunction: +I, then -U of the former and +U of the new one for each record; what its input takes
back (-U, -D) is deleted, -D. ``emit_final`` (batch): one +I for each key at the end.

By a field in place of arrival it is a top-N of one. Null is a key like any other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, final

from engine.core.records import Batch, Row, RowKind, kind_of, row_of_kind, rows_of
from engine.operators.base import Operator, OperatorContext, OperatorSpec, Output
from engine.operators.keyed import Keys, open_keyed_state, open_mapping
from engine.operators.keys import canonical_key
from engine.operators.last_records import LAST_PART, LastRecords
from engine.operators.regular_join import time_to_live
from engine.operators.results import Gathered
from engine.operators.seen_keys import SEEN_PART, LeftKeys
from engine.operators.without_kinds import NOT_KEPT, check_is_plain
from engine.state.descriptors import ValueStateDescriptor
from engine.state.heap_states import MISSING

__all__ = ["FIRST", "LAST", "DeduplicateOperator", "DeduplicateSpec"]

FIRST: Final = "first"
LAST: Final = "last"
#: In checkpoints: whether there was a record of the key; the last one of it.
_STATE_NAMES: Final = {FIRST: "$seen", LAST: "$last"}


@final
@dataclass(frozen=True)
class DeduplicateSpec(OperatorSpec):
    """``keeps``: FIRST or LAST; ``names``: of the fields, for records that have none of their own."""

    key_selector: Any
    keeps: str
    names: tuple[str, ...] | None = None
    ttl_ms: int | None = None
    emit_final: bool = False

    @property
    def blocks(self) -> bool:  # type: ignore[override]
        return self.emit_final and self.keeps == LAST

    @property
    def why_rows(self) -> str:
        """Why it cannot run on columns, whatever its input and its key are; "" = it can."""
        return "" if self.ttl_ms is None else "its state has a time to live"

    def build(self) -> Operator:
        return DeduplicateOperator(self)

    def describe(self) -> str:
        why = self.why_rows
        return "on rows" + (f": {why}" if why else "")


@final
class DeduplicateOperator(Operator):
    """``is_inside``: of an operator on columns."""

    def __init__(self, spec: DeduplicateSpec, *, is_inside: bool = False) -> None:
        self._spec = spec
        self._is_inside = is_inside
        self._keys = Keys(spec.key_selector)
        self._left: LeftKeys | None = None
        self._left_records: LastRecords | None = None
        self.backend: Any = None
        #: key → its last record, of batch jobs
        self._final: dict[Any, Any] = {}

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._results = Gathered(out)
        self._keys.open(ctx)
        name = _STATE_NAMES[self._spec.keeps]
        if self._spec.blocks:
            open_mapping(
                ctx,
                name,
                items=lambda: self._final.items(),
                get=lambda key: self._final.get(key, MISSING),
                put=lambda key, value: self._final.__setitem__(key, value),
                size=lambda: len(self._final),
                incremental=False,  # keys go again
            )
            return
        self.backend = open_keyed_state(ctx)
        self._state = self.backend.value_state(time_to_live(ValueStateDescriptor(name), self._spec.ttl_ms))
        if not self._is_inside and ctx.state.has_left(SEEN_PART):
            self._left = LeftKeys(ctx, self._spec.key_selector)
        if not self._is_inside and ctx.state.has_left(LAST_PART):
            self._left_records = LastRecords(ctx, self._spec.key_selector)  # of a changelog or not

    def close(self) -> None:
        try:
            self._keys.close()
        finally:
            if self.backend is not None:
                self.backend.close()

    def _take_left(self) -> None:
        left, self._left = self._left, None
        if left is not None:
            self.adopt(left.take())
        records, self._left_records = self._left_records, None
        if records is not None:
            self.adopt_last(records.rows())
            records.clear()

    def adopt_last(self, rows: Iterable[list[Any]]) -> None:
        """Keep these records, each the last one of its key; in the order in which the keys came, where it counts."""
        for some in rows:
            for key, row in zip(self._keys.of(some), some, strict=True):
                if self.backend is None:
                    self._final[canonical_key(key)] = row
                else:
                    self.backend.set_current_key(key)
                    self._state.update(row)

    def adopt(self, keys: Iterable[Any]) -> None:
        """Know these keys."""
        for key in keys:
            self.backend.set_current_key(key)
            self._state.update(True)

    def process_batch(self, input_index: int, batch: Batch) -> None:
        self._take_left()
        batch = rows_of(batch)
        stamps: Iterable[int | None] = batch.timestamps_ms or [None] * len(batch.rows)
        records = zip(self._keys.of(batch.rows), batch.rows, stamps, strict=True)
        if self._spec.keeps == FIRST:
            for key, row, stamp in records:
                if isinstance(row, Row):
                    check_is_plain(row, "first_row()", NOT_KEPT)
                self.backend.set_current_key(key)
                if self._state.value() is None:
                    self._state.update(True)
                    self._results.give(row, stamp)
        elif self.backend is None:
            for key, row, _ in records:
                if kind_of(row) in (RowKind.INSERT, RowKind.UPDATE_AFTER):
                    self._final[canonical_key(key)] = row
                else:
                    self._final.pop(canonical_key(key), None)
        else:
            for key, row, stamp in records:
                self._replace(key, row, stamp)
        self._results.flush()

    def _replace(self, key: Any, row: Any, stamp: int | None) -> None:
        self.backend.set_current_key(key)
        names = self._spec.names
        former = self._state.value()
        if kind_of(row) in (RowKind.UPDATE_BEFORE, RowKind.DELETE):
            if former is not None:
                self._state.clear()
                self._results.give(row_of_kind(RowKind.DELETE, former, names), stamp)
            return
        if former is None:
            self._results.give(row_of_kind(RowKind.INSERT, row, names), stamp)
        else:
            self._results.give(row_of_kind(RowKind.UPDATE_BEFORE, former, names), stamp)
            self._results.give(row_of_kind(RowKind.UPDATE_AFTER, row, names), stamp)
        self._state.update(row)

    def process_watermark(self, watermark_ms: int) -> None:
        self._take_left()
        self.out.emit_watermark(watermark_ms)

    def finish(self) -> None:
        self._take_left()
        for row in self._final.values():
            self._results.give(row_of_kind(RowKind.INSERT, row, self._spec.names), None)
        self._final = {}
        self._results.flush()
