"""Keys that a function of the user's gives, for operators on columns: ``key_by(lambda r: (r.user, r.at // 60))``.

What picks fields is a key of fields. What computes is done on columns, before the operator looks at a batch: the key's
columns stand behind those of the records, with names of their own, and go no further than the operator. Nobody sends
them: computing them again behind the exchange costs about what their bytes on the way would (decision 63).

A batch of which the function's result is in doubt goes to the operator on rows, which calls the function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, final

from engine.core.late_dataclass import dataclass
from engine.core.records import Batch, ColumnBatch, RowBatch, record_values
from engine.operators.base import Output
from engine.operators.column_fields import KEY_NAME, own_columns, own_fields
from engine.operators.compile.errors import NotCompilable
from engine.operators.compile.expressions import Expression, Field, Kind
from engine.operators.compile.translate import Fields, Shape, translate
from engine.operators.keys import ComposedKey, FieldKey, key_fields

if TYPE_CHECKING:
    import pyarrow as pa

    from engine.operators.compile.column_steps import ColumnFunction

__all__ = [
    "JoinKeys",
    "KeyFunction",
    "KeysBeside",
    "WithoutKeys",
    "fields_of_sides",
    "join_keys",
    "key_function_of",
    "own_columns",
    "own_records",
    "python_keys",
]

#: What the key of each side of a join is on columns, where it is a function.
JoinKeys: TypeAlias = "tuple[KeyFunction | None, KeyFunction | None]"


@final
@dataclass(frozen=True)
class KeyFunction:
    """``given``: the user's function, which rows call; ``selector``: where its result is in columns; ``num_computed``:
    how many of them are made for it, 0 = it picks fields of the records. ``kind``: of a single value."""

    given: Any
    selector: FieldKey | ComposedKey
    num_computed: int
    kind: Kind | None = None

    def describe(self) -> str:
        return ", its key computed on columns" if self.num_computed else ""


def key_function_of(given: Any, shape: Shape | None) -> KeyFunction | str:
    """Return what a key selector is on columns of such records, or why there are no columns for it."""
    if shape is None:
        return "its key is a function of records whose types the plan does not know"
    try:
        result = translate(given, shape, method="get_key").result
    except NotCompilable as error:
        return f"its key is a function that is not compiled ({error})"
    if isinstance(result, Expression):
        if isinstance(result, Field):
            return KeyFunction(given, FieldKey(result.index), 0, result.kind)
        return KeyFunction(given, FieldKey(KEY_NAME.format(0)), 1, result.kind)
    if not isinstance(result, Fields) or result.is_row:
        return "its key is a whole record"
    if len(result.items) == 1:
        return "its key is a tuple of one value"
    if all(isinstance(item, Field) for item in result.items):
        return KeyFunction(given, ComposedKey(tuple(item.index for item in result.items)), 0)  # type: ignore[attr-defined]
    num = len(result.items)
    return KeyFunction(given, ComposedKey(tuple(map(KEY_NAME.format, range(num)))), num)


def join_keys(selectors: Sequence[Any], shapes: Sequence[Shape | None]) -> JoinKeys | str:
    """Return what the keys of a join's sides are on columns of such records, or why there are no columns for them."""
    found: list[KeyFunction | None] = []
    for side, selector, shape in zip(("first", "second"), selectors, shapes, strict=True):
        if isinstance(selector, FieldKey | ComposedKey):
            found.append(None)
            continue
        key = key_function_of(selector, shape)
        if isinstance(key, str):
            return f"of the {side} input {key}"
        found.append(key)
    first, second = (len(fields) for fields in fields_of_sides(selectors, (found[0], found[1])))
    on_columns = [selector if key is None else key.selector for selector, key in zip(selectors, found, strict=True)]
    if type(on_columns[0]) is not type(on_columns[1]) or first != second:
        return "the keys of both inputs have not as many fields"
    if found[0] is not None and found[1] is not None and found[0].kind is not found[1].kind:
        return "the keys of both inputs are of different types"
    return found[0], found[1]


def fields_of_sides(selectors: Sequence[Any], keys: JoinKeys) -> tuple[tuple[int | str, ...], ...]:
    """Return the columns that the key of each side of a join is."""
    return tuple(
        key_fields(selector if key is None else key.selector) for selector, key in zip(selectors, keys, strict=True)
    )


@final
class KeysBeside:
    """Puts the columns of computed keys behind those of the records. ``key``: None = nothing is to be done."""

    def __init__(self, key: KeyFunction | None) -> None:
        self._num = 0 if key is None else key.num_computed
        self._key = key
        self._function: ColumnFunction | None = None

    @property
    def why(self) -> str:
        """Why only the function itself could tell the keys of the last batch."""
        reason = "" if self._function is None else self._function.reason
        return f"its key's function was not computed on columns: {reason or 'what it gives is another key'}"

    def of(self, batch: ColumnBatch) -> ColumnBatch | None:
        """Return the batch, which is not empty, with its keys; None when only the function itself can tell them."""
        if not self._num:
            return batch
        import pyarrow as pa

        assert self._key is not None
        if self._function is None:
            from engine.operators.compile.column_steps import ColumnFunction

            self._function = ColumnFunction(self._key.given, is_filter=False, method="get_key")
        columns = batch.columns
        names = columns.schema.names
        if own_fields(names) < len(names):
            return None
        made = self._function.apply(batch)
        if made is None or made is batch or made.named or made.scalar is not (self._num == 1):
            return None
        keys = made.columns.columns
        if len(keys) != self._num:
            return None
        names = [*names, *map(KEY_NAME.format, range(self._num))]
        return replace(batch, columns=pa.RecordBatch.from_arrays([*columns.columns, *keys], names=names))


def own_records(batch: ColumnBatch) -> ColumnBatch:
    """Return the records as they came, without computed keys."""
    columns = own_columns(batch.columns)
    return batch if columns is batch.columns else replace(batch, columns=columns)


def python_keys(columns: Sequence[pa.Array], *, is_tuple: bool) -> list[Any]:
    """Return keys as they are on rows. ``is_tuple``: also of a single column."""
    values = [record_values(column) for column in columns]
    return list(zip(*values, strict=True)) if is_tuple or len(values) > 1 else values[0]


def _renamed(batch: ColumnBatch) -> ColumnBatch:
    names = batch.columns.schema.names
    if not names or own_fields(names[:1]):
        return batch
    names = [name if own_fields([name]) else f"key{index}" for index, name in enumerate(names)]
    return replace(batch, columns=batch.columns.rename_columns(names))


@final
class WithoutKeys:
    """An Output in front of another: computed keys go no further behind records, and under no such name before the
    results of windows. ``num_nested``: of these results, so many columns are one tuple, the key, as on rows."""

    def __init__(self, out: Output, *, num_nested: int = 0) -> None:
        self._out = out
        self._num_nested = num_nested
        self.emit_watermark, self.emit_idle = out.emit_watermark, out.emit_idle
        self.emit_superstep_end = out.emit_superstep_end

    def emit(self, batch: Batch) -> None:
        if isinstance(batch, ColumnBatch):
            batch = _renamed(own_records(batch))
        if self._num_nested and isinstance(batch, ColumnBatch):
            rows, num = batch.to_rows(), self._num_nested
            batch = RowBatch([(row[:num], *row[num:]) for row in rows.rows], rows.timestamps_ms)
        self._out.emit(batch)

    def emit_side(self, tag: str, batch: Batch) -> None:
        self._out.emit_side(tag, own_records(batch) if isinstance(batch, ColumnBatch) else batch)
