"""Made-up records as columns: a function of a whole array of indexes, at numpy's speed.

Not here: the generator that calls a function for each index (``simple``).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, final

from engine.connectors.source import (
    Boundedness,
    Source,
    SourceReader,
    Split,
    SplitEnumerator,
    SplitOrder,
    without_assigned,
)
from engine.core.arrow_arrays import arrow_of
from engine.core.late_dataclass import dataclass
from engine.core.records import BATCH_ROWS_MAX, Batch, ColumnBatch
from engine.core.type_info import RowTypeInfo, TupleTypeInfo, TypeInformation, Types
from engine.operators.base import OperatorContext
from engine.operators.bound_function import BoundFunction

if TYPE_CHECKING:
    import pyarrow as pa

    #: name, type, and that of the column; None: it has no column of its own, and the one that comes is taken
    _Field = tuple[str, TypeInformation, pa.DataType | None]

__all__ = ["ColumnGeneratorSource", "columns_of"]

#: Subtasks take turns by so many indexes, so that none runs far ahead of the others in event time.
_BLOCK: Final = BATCH_ROWS_MAX
_ENDLESS: Final = 1 << 62


@final
@dataclass(frozen=True, slots=True)
class GeneratorSplit:
    """The indexes from ``next`` on in the blocks of one subtask: every ``step``-th block, up to ``end``."""

    split_id: str
    next: int
    end: int
    step: int


@final
@dataclass(frozen=True)
class ColumnGeneratorSource(Source):
    """``function(indexes)``: int64 array 0, 1, 2 … → a RecordBatch, a dict of columns or a sequence of them, one entry
    an index. ``count``: None = without end. ``type_info``: of the records; gives the columns their names and types, and
    says whether the records are Rows."""

    function: Any
    count: int | None = None
    type_info: TypeInformation | None = None
    emits_columns = True

    @property
    def boundedness(self) -> Boundedness:  # type: ignore[override]
        return Boundedness.CONTINUOUS_UNBOUNDED if self.count is None else Boundedness.BOUNDED

    def create_enumerator(self) -> SplitEnumerator:
        return _Enumerator(_ENDLESS if self.count is None else self.count)

    def create_reader(self) -> SourceReader:
        return _Reader(self)

    def without_user_code(self) -> Source:
        return ColumnGeneratorSource(None, self.count)


@final
class _Enumerator(SplitEnumerator):
    def __init__(self, end: int) -> None:
        self._end = end
        self._splits: list[GeneratorSplit] = []

    def start(self, parallelism: int) -> None:
        self._splits = [
            GeneratorSplit(str(i), i * _BLOCK, self._end, parallelism)
            for i in range(parallelism)
            if i * _BLOCK < self._end
        ]

    def next_split(self, subtask_index: int, host: str) -> Split | None:
        return self._splits.pop(0) if self._splits else None

    def snapshot(self) -> object:
        return list(self._splits)

    def restore(self, state: object, parallelism: int) -> None:
        assert isinstance(state, list)
        self._splits = list(state)

    def assigned(self, splits: Collection[Split]) -> None:
        self._splits = without_assigned(self._splits, splits)


@final
class _Reader(SourceReader):
    split_order = SplitOrder.ONE_BY_ONE

    def __init__(self, source: ColumnGeneratorSource) -> None:
        self._split_id = ""  #: of the last batch
        self._function = BoundFunction(source.function, "map")
        self._type_info = source.type_info
        self._fields: list[_Field] | None = None
        self._is_named = isinstance(source.type_info, RowTypeInfo)
        #: what is being read first
        self._splits: list[GeneratorSplit] = []

    def open(self, ctx: OperatorContext) -> None:
        super().open(ctx)
        self._function.open(ctx)
        if self._type_info is not None:
            self._fields = _fields_of(self._type_info)

    def add_split(self, split: Split) -> None:
        assert isinstance(split, GeneratorSplit)
        self._splits.append(split)

    def poll(self, rows_max: int) -> Batch | None:
        import numpy as np

        if not self._splits:
            return None
        split = self._splits[0]
        start = split.next
        block_end = start - start % _BLOCK + _BLOCK
        end = min(split.end, block_end, start + rows_max)
        following = end if end < block_end else end + (split.step - 1) * _BLOCK
        self._split_id = split.split_id
        if following >= split.end:
            self._splits.pop(0)
            self.end_split(split.split_id)
        else:
            self._splits[0] = replace(split, next=following)
        indexes = np.arange(start, end, dtype=np.int64)
        try:
            columns = columns_of(self._function.call(indexes), self._fields)
            if columns.num_rows != end - start:
                raise ValueError(f"the generator returned {columns.num_rows} records for {end - start} indexes")
        except BaseException as error:
            raise self._function.error(error, f"indexes {start} to {end - 1}") from error
        return ColumnBatch(columns, named=self._is_named)

    def split_of_batch(self) -> str:
        return self._split_id

    def wants_split(self) -> bool:
        return not self._splits

    def is_drained(self) -> bool:
        return not self._splits

    def snapshot(self) -> list[Split]:
        return list(self._splits)

    def close(self) -> None:
        self._function.close()


def _fields_of(type_info: TypeInformation) -> list[_Field] | None:
    if isinstance(type_info, TupleTypeInfo):
        named = zip(type_info.get_field_names(), type_info.get_field_types(), strict=True)
        return [(name, kind, kind.to_arrow()) for name, kind in named]
    own = type_info.to_arrow()
    return None if own is None else [("f0", type_info, own)]


def columns_of(made: Any, fields: list[_Field] | None) -> pa.RecordBatch:
    """Return what a function made as a RecordBatch of these fields. Raises: TypeError when it is no such thing."""
    import pyarrow as pa

    if isinstance(made, pa.RecordBatch):
        arrays, names = made.columns, made.schema.names
    elif isinstance(made, dict):
        arrays, names = list(made.values()), [str(name) for name in made]
    elif isinstance(made, (tuple, list)):
        arrays, names = list(made), [f"f{i}" for i in range(len(made))]
    else:
        raise TypeError(f"got a {type(made).__name__}; expected a RecordBatch, a dict or a tuple of columns")
    if fields is None:
        return pa.RecordBatch.from_arrays([_array(array, None) for array in arrays], names=names)
    if len(fields) != len(arrays):
        raise TypeError(f"got {len(arrays)} columns; the type information has {len(fields)} fields")
    typed = []
    for values, (name, declared, kind) in zip(arrays, fields, strict=True):
        array = _array(values, kind)
        if declared == Types.BIG_DEC() and not pa.types.is_decimal(array.type):
            raise TypeError(f"column {name!r} is {array.type}; its declared type is a decimal")
        typed.append(array)
    return pa.RecordBatch.from_arrays(typed, names=[name for name, *_ in fields])


def _array(values: Any, kind: pa.DataType | None) -> pa.Array:
    import pyarrow as pa

    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if not isinstance(values, pa.Array):
        is_numpy = type(values).__module__ == "numpy" and hasattr(values, "dtype")
        values = arrow_of(values) if is_numpy else pa.array(values)
    return values if kind is None or values.type == kind else values.cast(kind)
