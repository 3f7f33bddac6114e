"""Arrow arrays as numpy arrays and back, without a copy where there can be one: what columnar state is made from.

Not here: hashing for the exchange (``state/column_hash``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from engine.core.arrow_arrays import arrow_of, bools_of

if TYPE_CHECKING:
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

__all__ = [
    "as_int64",
    "fixed_width",
    "from_int64",
    "is_int64_like",
    "is_text_like",
    "kernel_view",
    "of_texts",
    "text_views",
    "valid_mask",
    "values_of",
]

_NAN_BITS = np.frombuffer(np.array([np.nan]).tobytes(), np.int64)[0]


def is_int64_like(kind: pa.DataType) -> bool:
    """Whether a value of this type is told by 64 bits: numbers, booleans, dates, times."""
    import pyarrow as pa

    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_temporal(kind)
    ) and not pa.types.is_interval(kind)


def is_text_like(kind: pa.DataType) -> bool:
    """Whether a value is told by its bytes: text, bytes, decimals."""
    import pyarrow as pa

    types = pa.types
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_decimal128(kind)
        or types.is_fixed_size_binary(kind)
    )


def fixed_width(kind: pa.DataType) -> int:
    """Return the bytes of each value of a text-like type, 0 if they vary."""
    import pyarrow as pa

    is_fixed = pa.types.is_decimal(kind) or pa.types.is_fixed_size_binary(kind)
    return int(kind.byte_width) if is_fixed else 0


def valid_mask(column: pa.Array) -> Array:
    """Return which values are not null, bool."""
    return bools_of(column.is_valid())


class _Open:
    """What numpy takes an array from; keeps the owner of its memory."""

    __slots__ = ("__array_interface__", "_owner")

    def __init__(self, array: Array) -> None:
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}
        self._owner = array


def kernel_view(array: Array) -> Array:
    """Return the array as kernels take it: one that could be written to, though nobody may.

    numba compiles a kernel for such arrays and once more for others, and which of them a batch has depends on the way
    it came: over the exchange, out of a file, by another operator. 2 us.
    """
    return array if array.flags.writeable else np.asarray(_Open(array))


def values_of(column: pa.Array) -> Array:
    """Return the values of a fixed-width column (not boolean) as they are; what stands at nulls has no meaning.

    To be read only, whatever numpy says of it: see ``kernel_view``.
    """
    kind = column.type
    buffer = column.buffers()[1]
    dtype = _dtype_of(kind)
    if buffer is None:
        return np.zeros(len(column), dtype)
    return kernel_view(np.frombuffer(buffer, dtype))[column.offset : column.offset + len(column)]


def _dtype_of(kind: pa.DataType) -> Any:
    import pyarrow as pa

    if pa.types.is_temporal(kind):
        return np.int32 if kind.bit_width == 32 else np.int64
    return kind.to_pandas_dtype()


def as_int64(column: pa.Array) -> Array:
    """Return 64 bits a value by which equal values are equal: all NaN are one, and so are 0.0 and -0.0."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_boolean(kind):
        booleans = bools_of(column)
        return (booleans & valid_mask(column) if column.null_count else booleans).astype(np.int64)
    values = values_of(column)
    if pa.types.is_floating(kind):
        floats = values.astype(np.float64) + 0.0  # -0.0 + 0.0 is 0.0
        bits = floats.view(np.int64)
        is_nan = np.isnan(floats)
        if is_nan.any():
            bits[is_nan] = _NAN_BITS
        return bits
    if values.dtype == np.int64:
        return values
    return values.view(np.int64) if values.dtype == np.uint64 else values.astype(np.int64)


def from_int64(values: Array, kind: pa.DataType, valid: Array | None) -> pa.Array:
    """Return the column that ``as_int64`` was made from. ``valid``: None = all."""
    import pyarrow as pa

    mask = None if valid is None or valid.all() else ~valid
    if pa.types.is_boolean(kind):
        return arrow_of(values != 0, kind, mask=mask)
    if pa.types.is_floating(kind):
        return arrow_of(values.view(np.float64).astype(_dtype_of(kind)), kind, mask=mask)
    native = values.view(np.uint64) if kind == pa.uint64() else values.astype(_dtype_of(kind), copy=False)
    if pa.types.is_temporal(kind):
        width = pa.int32() if kind.bit_width == 32 else pa.int64()
        return arrow_of(native, width, mask=mask).cast(kind) if width.bit_width == 32 else _retyped(native, kind, mask)
    return arrow_of(native, kind, mask=mask)


def _retyped(values: Array, kind: pa.DataType, mask: Array | None) -> pa.Array:
    import pyarrow as pa

    return arrow_of(values, pa.int64(), mask=mask).view(kind)


def text_views(column: pa.Array) -> tuple[Array, Array]:
    """Return (offsets, content) of a text-like column: row r is ``content[offsets[r]:offsets[r + 1]]``."""
    import pyarrow as pa

    kind = column.type
    buffers = column.buffers()
    num_rows = len(column)
    width = fixed_width(kind)
    if width:
        content = kernel_view(np.frombuffer(buffers[1] or b"", np.uint8))
        return np.arange(column.offset, column.offset + num_rows + 1, dtype=np.int64) * width, content
    wide = pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
    if buffers[1] is None:
        return np.zeros(num_rows + 1, np.int32), np.zeros(0, np.uint8)
    offsets = kernel_view(np.frombuffer(buffers[1], np.int64 if wide else np.int32))
    content = kernel_view(np.frombuffer(buffers[2] or b"", np.uint8))
    return offsets[column.offset : column.offset + num_rows + 1], content


def of_texts(offsets: Array, content: Array, kind: pa.DataType) -> pa.Array:
    """Return the column of these texts. ``offsets``: int64, from 0."""
    import pyarrow as pa

    num_rows = offsets.size - 1
    if fixed_width(kind):
        return pa.Array.from_buffers(kind, num_rows, [None, pa.py_buffer(content)])
    wide = pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
    if not wide:
        if offsets[-1] > np.iinfo(np.int32).max:
            raise OverflowError("a column of more than 2 GiB of text")
        offsets = offsets.astype(np.int32)
    return pa.Array.from_buffers(kind, num_rows, [None, pa.py_buffer(offsets), pa.py_buffer(content)])
