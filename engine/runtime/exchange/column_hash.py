"""Key → subtask for columns: which columns are the key, and which subtask has each row's key group.

The law itself stands in ``state/column_hash``.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, final

from engine.core.dictionaries import is_tidy, same_values
from engine.core.records import ColumnBatch
from engine.operators.column_fields import has_fields
from engine.operators.keys import ComposedKey, FieldKey
from engine.state.column_hash import hash_of_column, raw_hashes, warm_up

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

__all__ = ["KnownChannels", "hash_of_column", "key_columns", "subtask_of_rows", "warm_up"]


def key_columns(batch: ColumnBatch, selector: Any) -> tuple[list[pa.Array], bool] | None:
    """Return the key's columns and whether the key is a tuple of them; None when the selector must see rows."""
    match selector:
        case FieldKey(field):
            fields: tuple[int | str, ...] = (field,)
        case ComposedKey(fields):
            pass
        case _:
            return None
    if batch.scalar:
        return None  # records are bare values: field 0 is a part of the value
    if not has_fields(batch.named, fields):
        return None
    columns = []
    for field in fields:
        num_columns = batch.columns.num_columns
        index = field if isinstance(field, int) else batch.columns.schema.get_field_index(field)
        if index < 0 and isinstance(field, int):
            index += num_columns
        if not 0 <= index < num_columns:
            return None  # the selector's own error names the record
        columns.append(batch.columns.column(index))
    return columns, isinstance(selector, ComposedKey)


@final
class KnownChannels:
    """The channels of the values of the last dictionary that was seen, those of null behind them."""

    def __init__(self) -> None:
        self._values: pa.Array | None = None
        self._channels: Array | None = None

    def of(self, values: pa.Array, parallelism: int, max_parallelism: int) -> Array:
        import pyarrow as pa

        if self._channels is None or self._values is None or not same_values(self._values, values):
            all_values = pa.concat_arrays([values, pa.nulls(1, values.type)])
            self._values = values
            self._channels = subtask_of_rows([all_values], parallelism, max_parallelism, is_tuple=False)
        return self._channels


def subtask_of_rows(
    columns: list[pa.Array],
    parallelism: int,
    max_parallelism: int,
    *,
    is_tuple: bool,
    known: KnownChannels | None = None,
) -> Array:
    """Return the subtask of each row, uint16. ``known``: kept from batch to batch of one stream."""
    import numpy as np

    from engine.state.arrow_views import valid_mask, values_of

    kind = columns[0].type
    channels = np.empty(len(columns[0]), np.uint16)
    if not is_tuple and kind in _plain_ints() and not columns[0].null_count:
        from engine.state.hash_kernels import channels_of_ints

        keys = values_of(columns[0]).astype(np.int64, copy=False)  # the one type that the kernel is loaded for
        channels_of_ints(keys, max_parallelism, parallelism, channels)
        return channels
    if not is_tuple and known is not None and len(columns) == 1 and is_tidy(columns[0]):
        values, indices = columns[0].dictionary, columns[0].indices
        of_values = known.of(values, parallelism, max_parallelism)
        numbers = values_of(indices)
        if indices.null_count:
            numbers = np.where(valid_mask(indices), numbers, len(values))
        return of_values[numbers]
    from engine.state.hash_kernels import channels_of_hashes

    channels_of_hashes(raw_hashes(columns, is_tuple=is_tuple), max_parallelism, parallelism, channels)
    return channels


@cache
def _plain_ints() -> frozenset[pa.DataType]:
    import pyarrow as pa

    return frozenset([pa.int8(), pa.int16(), pa.int32(), pa.int64()])
