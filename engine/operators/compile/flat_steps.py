"""Flat_map functions on columnar batches: each place that gives a record is evaluated for all rows that come to it, and
what the places give is put in the order in which the interpreter gives it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.core.arrow_arrays import arrow_of
from engine.core.records import ColumnBatch
from engine.operators.compile.errors import Doubt
from engine.operators.compile.expressions import Expression, Field, Frame, Kind, Mask, Value
from engine.operators.compile.flat import Bind, Choose, Each, Emit, FlatTranslation, Node, Numbers, Parts, Several
from engine.operators.compile.texts import array_of

__all__ = ["ARROW_TYPES", "flattened"]

ARROW_TYPES: Final = {Kind.INT: pa.int64(), Kind.FLOAT: pa.float64(), Kind.BOOL: pa.bool_(), Kind.STR: pa.string()}
#: Parts and numbers that the records of a batch may have together.
_PARTS_MAX: Final = 1 << 20
#: str.split()'s white space.
_SPACES: Final = "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B)))
_WHITE_SPACE: Final = _SPACES + "\u2028\u2029\u202f\u205f\u3000"

Array = np.ndarray[Any, Any]


def flattened(batch: ColumnBatch, translation: FlatTranslation, frame: Frame) -> ColumnBatch:
    """Return what the function gives of a batch that is not empty and no changelog; of no record, the batch without
    its rows. Raises: Doubt."""
    run = _Run(frame)
    run.go(translation.node, None)
    if not run.given:
        return batch.slice(0, 0)
    shape = translation.shape
    rows, columns = run.merged(len(shape.kinds))
    names = [f"f{index}" for index in range(len(shape.kinds))] if shape.names is None else list(shape.names)
    stamps = batch.timestamps_ms
    return ColumnBatch(
        pa.RecordBatch.from_arrays(columns, names=names),
        None if stamps is None else stamps[rows],
        scalar=shape.is_scalar,
        named=shape.record or shape.names is not None,
    )


@final
class _Columns(Sequence[Any]):
    """Columns of some rows of others, taken when they are asked for."""

    def __init__(self, columns: Sequence[Any], rows: pa.Array) -> None:
        self._columns = columns
        self._rows = rows
        self._taken: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self._columns)

    def __getitem__(self, index: Any) -> Any:
        if index not in self._taken:
            self._taken[index] = self._columns[index].take(self._rows)
        return self._taken[index]


@final
class _Run:
    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        #: rows of the frame, ascending, and the fields of the record that each one gives; in order of the function
        self.given: list[tuple[Array, list[pa.Array]]] = []

    def go(self, node: Node, mask: Mask) -> None:
        """Evaluate for the rows of ``mask``, None = all."""
        match node:
            case Emit(items):
                self._emit(items, mask)
            case Several(nodes):
                for one in nodes:
                    self.go(one, mask)
            case Bind(number, value, body):
                self._frame.lets[number] = value.evaluate(self._frame, mask)
                self.go(body, mask)
            case Choose(test, then, other):
                holds = np.broadcast_to(test.evaluate(self._frame, mask).values, self._frame.num_rows)
                for branch, chosen in ((then, holds), (other, ~holds)):
                    chosen = chosen if mask is None else chosen & mask
                    if chosen.any():
                        self.go(branch, chosen)
            case Each():
                self._each(node, mask)

    def merged(self, num_fields: int) -> tuple[Array, list[pa.Array]]:
        """Return the row that each record comes from, and the records' fields, in the interpreter's order."""
        if len(self.given) == 1:
            return self.given[0]
        rows = np.concatenate([own for own, _ in self.given])
        order = np.argsort(rows, kind="stable")
        columns = []
        for index in range(num_fields):
            parts = [fields[index] for _, fields in self.given]
            if len({part.type for part in parts}) > 1:
                raise Doubt
            columns.append(pa.concat_arrays(parts).take(arrow_of(order)))
        return rows[order], columns

    def _emit(self, items: Sequence[Expression], mask: Mask) -> None:
        rows = np.arange(self._frame.num_rows) if mask is None else np.flatnonzero(mask)
        self.given.append((rows, [self._field(item, mask, rows) for item in items]))

    def _field(self, item: Expression, mask: Mask, rows: Array) -> pa.Array:
        if isinstance(item, Field):  # as it is, nulls included, but for one type wherever it is given
            column = self._frame.columns[item.index]
            if item.kind in ARROW_TYPES and column.type != ARROW_TYPES[item.kind]:
                column = pc.cast(column, ARROW_TYPES[item.kind])
        else:
            value = item.evaluate(self._frame, mask)
            if item.kind is Kind.STR:
                column = array_of(value, self._frame.num_rows)
            else:
                column = pa.array(np.broadcast_to(value.values, self._frame.num_rows), ARROW_TYPES[item.kind])
        return column if mask is None else column.take(arrow_of(rows))

    # --- parts

    def _each(self, node: Each, mask: Mask) -> None:
        rows = np.arange(self._frame.num_rows) if mask is None else np.flatnonzero(mask)
        if isinstance(node.items, Numbers):
            value, owner = self._numbers(node.items, mask, rows)
        else:
            value, owner = self._parts(node.items, mask, rows)
        if not owner.size:
            return
        inner = Frame(_Columns(self._frame.columns, arrow_of(owner)), owner.size)  # type: ignore[arg-type]
        inner.lets = {number: _taken(let, owner) for number, let in self._frame.lets.items()}
        inner.lets[node.number] = value
        run = _Run(inner)
        run.go(node.body, None)
        if run.given:
            num_fields = len(run.given[0][1])
            given, columns = run.merged(num_fields)
            self.given.append((owner[given], columns))

    def _numbers(self, numbers: Numbers, mask: Mask, rows: Array) -> tuple[Value, Array]:
        stops = np.broadcast_to(numbers.stop.evaluate(self._frame, mask).values, self._frame.num_rows)[rows]
        counts = np.maximum(stops, 0)
        if counts.size and (int(counts.max()) > _PARTS_MAX or int(counts.sum()) > _PARTS_MAX):
            raise Doubt
        begins = np.cumsum(counts) - counts
        values = np.arange(int(counts.sum())) - np.repeat(begins, counts)
        return Value(values, 0, max(int(counts.max()) - 1, 0) if counts.size else 0), np.repeat(rows, counts)

    def _parts(self, parts: Parts, mask: Mask, rows: Array) -> tuple[Value, Array]:
        texts = array_of(parts.text.evaluate(self._frame, mask), self._frame.num_rows)
        if mask is not None:
            texts = texts.take(arrow_of(rows))
        if parts.separator is None:
            texts = pc.utf8_trim(texts, characters=_WHITE_SPACE)
            lists = pc.split_pattern_regex(texts, pattern=f"[{_WHITE_SPACE}]+")
        else:
            lists = pc.split_pattern(texts, pattern=parts.separator)
        owner = rows[pc.list_parent_indices(lists).to_numpy()]
        values = pc.list_flatten(lists)
        if parts.separator is None:
            is_word = pc.not_equal(pc.binary_length(values), 0)  # of a text of white space there is one that is empty
            if not pc.all(is_word, min_count=0).as_py():
                values, owner = values.filter(is_word), owner[is_word.to_numpy(zero_copy_only=False)]
        if owner.size > _PARTS_MAX:
            raise Doubt
        return Value(values), owner


def _taken(value: Value, rows: Array) -> Value:
    """Return the value of each of these rows."""
    values = value.values
    if isinstance(values, pa.Array):
        return dataclasses.replace(value, values=values.take(arrow_of(rows)))
    return dataclasses.replace(value, values=values[rows]) if np.ndim(values) else value
