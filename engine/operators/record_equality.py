"""Which records in columns are equal as Python's: -0.0 is 0.0, no NaN is equal to any, null is null.

All types are ``slot_columns.can_be_kept``; records that are compared are of one schema.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

__all__ = ["are_equal", "hashes_of_records"]

#: In place of a null.
_NULL: Final = 0x5BD1E995


def hashes_of_records(columns: pa.RecordBatch) -> tuple[Array, Array]:
    """Return a hash of each record, uint64, and whether the record is equal to itself, uint8: not with a NaN in it."""
    import numpy as np

    hashes, is_equal = np.zeros(columns.num_rows, np.uint64), np.ones(columns.num_rows, np.bool_)
    _mix(columns.columns, hashes, is_equal)
    return hashes, is_equal.astype(np.uint8)


def _mix(columns: Sequence[pa.Array], hashes: Array, is_equal: Array) -> None:
    import numpy as np
    import pyarrow as pa

    from engine.operators.regular_join_kernels import mix_hashes
    from engine.state.arrow_views import valid_mask

    for column in columns:
        valid = valid_mask(column) if column.null_count else None
        if pa.types.is_struct(column.type):
            mix_hashes(hashes, np.ones(len(column), np.int64) if valid is None else valid.astype(np.int64))
            _mix(column.flatten(), hashes, is_equal)
            continue
        values = _numbers(column, is_equal, valid)
        mix_hashes(hashes, values if valid is None else np.where(valid, values, np.int64(_NULL)))


def _numbers(column: pa.Array, is_equal: Array, valid: Array | None) -> Array:
    """Return an int64 for each value, the same for equal ones; anything for nulls."""
    import numpy as np
    import pyarrow as pa

    from engine.core.arrow_arrays import bools_of
    from engine.state.arrow_views import values_of
    from engine.state.column_hash import hash_of_column

    kind = column.type
    if pa.types.is_boolean(kind):
        return bools_of(column).astype(np.int64)
    if pa.types.is_floating(kind):
        floats = values_of(column).astype(np.float64) + 0.0  # of zeros one sign
        is_nan = np.isnan(floats)
        is_equal &= ~(is_nan if valid is None else is_nan & valid)
        bits: Array = floats.view(np.int64)
        return bits
    if pa.types.is_decimal(kind):
        halves = np.frombuffer(column.buffers()[1], np.int64).reshape(-1, 2)[column.offset :][: len(column)]
        both: Array = halves[:, 0] ^ (halves[:, 1] << np.int64(1))
        return both
    if pa.types.is_fixed_size_binary(kind):
        return hash_of_column(column.cast(pa.binary())).astype(np.int64)
    if pa.types.is_integer(kind) or pa.types.is_temporal(kind):
        return values_of(column).astype(np.int64)
    return hash_of_column(column).astype(np.int64)


def are_equal(columns: pa.RecordBatch, others: pa.RecordBatch) -> Array:
    """Return which records are equal to those in their places among the others, bool."""
    import numpy as np

    found = np.ones(columns.num_rows, np.bool_)
    for column, other in zip(columns.columns, others.columns, strict=True):
        found &= _equal_values(column, other)
    return found


def _equal_values(column: pa.Array, other: pa.Array) -> Array:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from engine.core.arrow_arrays import bools_of
    from engine.state.arrow_views import valid_mask

    valid, other_valid = valid_mask(column), valid_mask(other)
    if pa.types.is_struct(column.type):
        found = np.ones(len(column), np.bool_)
        for field, other_field in zip(column.flatten(), other.flatten(), strict=True):
            found &= _equal_values(field, other_field)
    else:
        found = bools_of(pc.equal(column, other).fill_null(False))
    return np.where(valid & other_valid, found, valid == other_valid)
