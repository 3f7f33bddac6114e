"""What a join on columns does with the pairs it has found: compiled where that is proven, else a call for each pair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, final

from engine.core.arrow_arrays import arrow_of
from engine.core.records import ColumnBatch
from engine.core.type_info import RowTypeInfo, TypeInformation
from engine.operators.column_fields import is_named, own_schema
from engine.operators.compile.errors import NotCompilable
from engine.operators.compile.translate import Shape

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from engine.operators.compile.pairs import PairFunction

    Array = np.ndarray[Any, Any]

__all__ = [
    "FromBatch",
    "Pairs",
    "Picked",
    "is_compiled_condition",
    "pair_condition",
    "pair_function",
    "pair_shape",
    "records_of",
]


class Picked(Protocol):
    """Records of one side, one for each pair. ``schema``: of the records, without computed keys; it says whether they
    are Rows (``column_fields.is_named``)."""

    schema: pa.Schema

    def column(self, index: int) -> pa.Array: ...


@final
class FromBatch:
    """Implements ``Picked``: these rows of some columns. ``mask``: True where there is none; its fields are null."""

    def __init__(self, columns: pa.RecordBatch, rows: Array, mask: Array | None = None) -> None:
        self.schema = own_schema(columns.schema)
        self._columns = columns
        self._rows = arrow_of(rows, mask=mask)

    def __len__(self) -> int:
        return len(self._rows)

    def column(self, index: int) -> pa.Array:
        return self._columns.column(index).take(self._rows)


@final
class Pairs(Sequence[Any]):
    """The fields of the left records, then of the right ones, as columns that are made when they are asked for.

    ``times_ms``: of the results, None = they have none.
    """

    def __init__(self, left: Picked, right: Picked, times_ms: Array | None, num_pairs: int) -> None:
        self._sides = (left, right)
        self._num_pairs = num_pairs
        self.times_ms = times_ms

    def __len__(self) -> int:
        return sum(len(side.schema) for side in self._sides)

    def __getitem__(self, index: Any) -> Any:
        left, right = self._sides
        size = len(left.schema)
        return left.column(index) if index < size else right.column(index - size)

    def apply(self, function: PairFunction) -> ColumnBatch | None:
        left, right = self._sides
        return function.apply((left.schema, right.schema), self, self._num_pairs, self.times_ms)

    def holds(self, condition: PairFunction) -> Any:
        """Return for which pairs a condition holds, bool; None = ask the interpreter."""
        left, right = self._sides
        return condition.holds((left.schema, right.schema), self, self._num_pairs)

    def rows(self) -> Iterator[tuple[Any, Any]]:
        """Return the pairs as Python objects."""
        return zip(*(records_of(side) for side in self._sides), strict=True)


def records_of(side: Picked) -> list[Any]:
    """Return the records as Python objects."""
    import pyarrow as pa

    arrays = [side.column(index) for index in range(len(side.schema))]
    columns = pa.RecordBatch.from_arrays(arrays, names=side.schema.names)
    return ColumnBatch(columns, named=is_named(side.schema)).to_rows().rows


def pair_shape(
    function: Any, left: Shape | None, right: Shape | None, output_type: TypeInformation | None = None
) -> Shape | None:
    """Return what a function gives for pairs of such records if it can be compiled; None = it is called."""
    if left is None or right is None:
        return None
    from engine.operators.compile.pairs import result_shape, translate_pair

    names = _row_names(output_type)
    if names is not None and len(set(names)) < len(names):
        return None
    try:
        return result_shape(translate_pair(function, left, right, row_names=names))
    except NotCompilable:
        return None


def _row_names(output_type: TypeInformation | None) -> tuple[str, ...] | None:
    """Return the names of the Rows that tuples become where such a type is declared; as ``row_output.maker_of``."""
    return tuple(output_type.get_field_names()) if isinstance(output_type, RowTypeInfo) else None


def pair_function(function: Any, output_type: TypeInformation | None = None) -> PairFunction:
    """Return what computes the results of a join, one that ``pair_shape`` has a shape for."""
    from engine.operators.compile.pairs import PairFunction

    return PairFunction(function, row_names=_row_names(output_type))


def pair_condition(function: Any) -> PairFunction:
    """Return what computes for which pairs a condition holds."""
    from engine.operators.compile.pairs import PairFunction

    return PairFunction(function, is_condition=True)


def is_compiled_condition(function: Any, left: Shape | None, right: Shape | None) -> bool:
    """Whether a condition of pairs of such records can be compiled."""
    if left is None or right is None:
        return False
    from engine.operators.compile.pairs import translate_pair

    try:
        translate_pair(function, left, right, as_condition=True)
    except NotCompilable:
        return False
    return True
