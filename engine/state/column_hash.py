"""Key → key group for columns: the law of ``state/key_groups`` on whole arrays.

Strings and integers are hashed by kernels; other types through their distinct values, each hashed once by the law for
single keys. pyarrow and numpy are loaded only when a column is hashed.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

from engine.core.arrow_arrays import arrow_of, bools_of, numbers_of
from engine.core.records import record_values
from engine.state.key_groups import stable_hash

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

__all__ = ["groups_of_rows", "hash_of_column", "mixed_hashes", "raw_hashes", "warm_up"]

_MASK32: Final = 0xFFFFFFFF
#: Rows below which the scalar law beats loading and calling kernels.
_KERNEL_ROWS_MIN: Final = 64


def groups_of_rows(columns: list[pa.Array], max_parallelism: int, *, is_tuple: bool) -> Array:
    """Return the key group of each row, uint64. ``is_tuple``: the key is the tuple of the columns, also of a single
    one."""
    import numpy as np

    group: Array = mixed_hashes(columns, is_tuple=is_tuple) % np.uint64(max_parallelism)
    return group


def mixed_hashes(columns: list[pa.Array], *, is_tuple: bool) -> Array:
    """Return the hash of each row's key, of which the key group is the rest; uint64 with 32 bits used. Several columns
    are a tuple, whoever forgets to say so."""
    return _mix32(raw_hashes(columns, is_tuple=is_tuple))


def raw_hashes(columns: list[pa.Array], *, is_tuple: bool) -> Array:
    """Return what ``mixed_hashes`` mixes in the end."""
    is_tuple = is_tuple or len(columns) > 1
    return _mixed_fields(columns, len(columns[0])) if is_tuple else hash_of_column(columns[0])


def _mix32(h: Array) -> Array:
    """Murmur3's finaliser; 32-bit values in uint64, so that products do not overflow."""
    import numpy as np

    mask = np.uint64(_MASK32)
    h = h ^ (h >> np.uint64(16))
    h = (h * np.uint64(0x85EBCA6B)) & mask
    h = h ^ (h >> np.uint64(13))
    h = (h * np.uint64(0xC2B2AE35)) & mask
    return h ^ (h >> np.uint64(16))


def hash_of_column(column: pa.Array) -> Array:
    """Return ``stable_hash`` of each value, uint64 with 32 bits used."""
    import numpy as np
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        return _by_distinct(column)
    if pa.types.is_struct(kind):
        return _hash_rows(column)
    is_large = pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
    if _is_hashed_as_text(column):
        hashes = _hash_text(column, np.int64 if is_large else np.int32)
    elif pa.types.is_integer(kind) and kind != pa.uint64():
        values = numbers_of(column).astype(np.int64, copy=False)
        hashes = ((values ^ (values >> np.int64(32))) & np.int64(_MASK32)).astype(np.uint64)
    else:
        return _by_distinct(column)
    if column.null_count:
        hashes[bools_of(column.is_null())] = stable_hash(None)
    return hashes


def _is_hashed_as_text(column: pa.Array) -> bool:
    import pyarrow as pa

    types, kind = pa.types, column.type
    is_text = types.is_string(kind) or types.is_binary(kind)
    is_text = is_text or types.is_large_string(kind) or types.is_large_binary(kind)
    return bool(is_text) and len(column) >= _KERNEL_ROWS_MIN


def _hash_rows(column: pa.Array) -> Array:
    """Hash structs as the Rows that they are in records: by their fields."""
    import numpy as np

    hashes = _mixed_fields(column.flatten(), len(column))
    if column.null_count:
        hashes = np.where(bools_of(column.is_null()), np.uint64(stable_hash(None)), hashes)
    return hashes


def _mixed_fields(columns: list[pa.Array], num_rows: int) -> Array:
    """Return what ``stable_hash`` is of each row's tuple."""
    import numpy as np

    h = np.full(num_rows, 0x9E3779B9 ^ len(columns), dtype=np.uint64)
    for column in columns:
        h = (_mix32(h) * np.uint64(31) + hash_of_column(column)) & np.uint64(_MASK32)
    return h


def _by_distinct(column: pa.Array) -> Array:
    """Hash each distinct value once: many texts by the kernel, else by the scalar law."""
    import numpy as np
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        try:
            column = column.dictionary_encode()
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
            return np.array([stable_hash(value) for value in record_values(column)], dtype=np.uint64)
    values = column.dictionary
    if _is_hashed_as_text(values):
        of_values = hash_of_column(values)
    else:
        of_values = np.array([*map(stable_hash, record_values(values))], np.uint64)
    of_code = np.append(of_values, np.uint64(stable_hash(None)))  # one more entry for nulls
    codes = numbers_of(column.indices)
    if column.null_count:
        codes = np.where(bools_of(column.indices.is_valid()), codes, len(of_code) - 1)
    return of_code[codes]


def _hash_text(column: pa.Array, offset_type: Any) -> Array:
    import numpy as np

    from engine.state.arrow_views import kernel_view
    from engine.state.hash_kernels import crc32_of_texts

    _, offsets_buffer, bytes_buffer = column.buffers()
    offsets = kernel_view(np.frombuffer(offsets_buffer, dtype=offset_type))
    offsets = offsets[column.offset : column.offset + len(column) + 1]
    content = kernel_view(np.frombuffer(bytes_buffer or b"", dtype=np.uint8))
    hashes = np.empty(len(column), dtype=np.uint64)
    crc32_of_texts(offsets, content, _crc_tables(), hashes)
    return hashes


def warm_up(kind: pa.DataType) -> None:
    """Load the kernel for texts of this type. Called in the zygote, once for all slots."""
    import numpy as np

    hash_of_column(arrow_of(np.arange(_KERNEL_ROWS_MIN)).cast(kind))


@cache
def _crc_tables() -> Array:
    """Return the tables of CRC-32: entry 256 k + b is what the byte b does when k bytes follow it; uint32 (2048,)."""
    import numpy as np

    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> np.uint32(1)) ^ np.uint32(0xEDB88320), table >> np.uint32(1))
    tables = [table]
    for _ in range(7):
        tables.append(table[tables[-1] & 0xFF] ^ (tables[-1] >> np.uint32(8)))
    return np.concatenate(tables)
