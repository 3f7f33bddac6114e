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
    own_kind = (_plain_kinds or _known_kinds()).get(dtype)
    if own_kind is None or values.ndim != 1 or (kind is not None and kind != own_kind):
        return pa.array(values, kind, mask=mask)
    if dtype.kind == "b":
        values_bytes = np.packbits(values, bitorder="little")
    else:
        values_bytes = values if values.flags.c_contiguous else np.ascontiguousarray(values)
    valid = None if mask is None else pa.py_buffer(np.packbits(~mask, bitorder="little"))
    return pa.Array.from_buffers(own_kind, values.size, [valid, pa.py_buffer(values_bytes)])


#: numpy's type → Arrow's, of numbers and booleans in this machine's order of bytes; looking it up is half of a short
#: array's cost otherwise
_plain_kinds: dict[Any, pa.DataType] = {}


def _known_kinds() -> dict[Any, pa.DataType]:
    import numpy as np
    import pyarrow as pa

    _plain_kinds.update({np.dtype(code): pa.from_numpy_dtype(np.dtype(code)) for code in "?bhilqBHILQefd"})
    return _plain_kinds


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
