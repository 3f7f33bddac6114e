"""Numpy arrays as Arrow's and back, for numbers and booleans, without pyarrow asking for pandas.

``pa.array``, ``pa.scalar`` and ``to_numpy`` import pandas where it is installed, to know its values: 0.2 s in a slot
that may never see one. What stands here takes the bytes themselves; anything else goes to ``pa.array``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

__all__ = ["arrow_of", "bools_of", "numbers_of"]


def arrow_of(values: Array, kind: pa.DataType | None = None, *, mask: Array | None = None) -> pa.Array:
    """Return ``pa.array(values, kind, mask=mask)``. Shares the memory of contiguous numbers."""
    import numpy as np
    import pyarrow as pa

    dtype = values.dtype
    is_plain = dtype.kind in "iufb" and dtype.itemsize <= 8 and dtype.isnative and values.ndim == 1
    if not is_plain or (kind is not None and kind != pa.from_numpy_dtype(dtype)):
        return pa.array(values, kind, mask=mask)
    own = np.packbits(values, bitorder="little") if dtype.kind == "b" else np.ascontiguousarray(values)
    valid = None if mask is None else pa.py_buffer(np.packbits(~mask, bitorder="little"))
    return pa.Array.from_buffers(pa.from_numpy_dtype(dtype), values.size, [valid, pa.py_buffer(own)])


def numbers_of(column: pa.Array) -> Array:
    """Return the values of a column of integers or floats, read only; what stands at nulls has no meaning."""
    import numpy as np

    dtype, buffer = column.type.to_pandas_dtype(), column.buffers()[1]
    if buffer is None:
        return np.zeros(len(column), dtype)
    return np.frombuffer(buffer, dtype)[column.offset : column.offset + len(column)]


def bools_of(column: pa.Array) -> Array:
    """Return the values of a column of booleans; what stands at nulls has no meaning."""
    import numpy as np

    buffer = column.buffers()[1]
    if buffer is None:
        return np.zeros(len(column), bool)
    bits = np.unpackbits(np.frombuffer(buffer, np.uint8), count=column.offset + len(column), bitorder="little")
    return bits[column.offset :].view(bool)
