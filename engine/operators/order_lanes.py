"""The order of values as lanes of 64 bits: of two records the one comes first whose first other lane is smaller.

A field has a lane that says whether it is null, which comes first, then those of its value. Numbers and times have one,
decimals two. Of a text these are its bytes, eight a lane with zeros behind the end, then its length: UTF-8 is in the
order of code points, which is Python's, and the length tells a text from the same one with zeros behind it. Where
smaller ones come last, all bits are inverted. Texts that are longer than all before want more lanes.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa

from engine.state.arrow_views import as_int64, is_int64_like, is_text_like, text_views, valid_mask

Array = np.ndarray[Any, Any]

__all__ = ["TEXT_BYTES_MAX", "can_order", "lanes_needed", "order_lanes", "widened"]

#: Longer texts are left to rows: each record that is kept would have lanes for the longest.
TEXT_BYTES_MAX: Final = 256
_LANE_BYTES: Final = 8
_SIGN: Final = np.int64(-(2**63))


def can_order(kind: pa.DataType) -> bool:
    """Whether values of this type can have lanes."""
    return is_int64_like(kind) or is_text_like(kind)


def lanes_needed(column: pa.Array) -> int | None:
    """Return how many lanes a field with these values wants, None = a text is too long."""
    kind = column.type
    if is_int64_like(kind):
        return 2
    if pa.types.is_decimal(kind):
        return 3
    offsets, _ = text_views(column)
    longest = int(np.diff(offsets).max(initial=0))
    if longest > TEXT_BYTES_MAX:
        return None
    # Powers of two, as each wider one makes all lanes anew.
    return 2 + (1 << max(0, -(-longest // _LANE_BYTES) - 1).bit_length())


def order_lanes(column: pa.Array, num_lanes: int, *, ascending: bool) -> Array:
    """Return the lanes of some values, int64 (rows, lanes). ``num_lanes``: as many as ``lanes_needed`` at least."""
    lanes = np.zeros((len(column), num_lanes), np.int64)
    lanes[:, 0] = 1
    lanes[:, 1:] = _values(column, num_lanes - 1)
    if column.null_count:
        valid = valid_mask(column)
        lanes[:, 0] = valid
        lanes[~valid, 1:] = 0
    return lanes if ascending else ~lanes


def _values(column: pa.Array, num_lanes: int) -> Array:
    kind = column.type
    if is_int64_like(kind):
        return _numbers(column)[:, None]
    if pa.types.is_decimal(kind):  # of 128 bits, the low half first
        offsets, content = text_views(column)
        halves = content[offsets[0] : offsets[-1]].view(np.int64).reshape(-1, 2)
        return np.stack([halves[:, 1], halves[:, 0] ^ _SIGN], axis=1)
    return _texts(column, num_lanes)


def _numbers(column: pa.Array) -> Array:
    """NaN is the greatest."""
    bits = as_int64(column)
    if pa.types.is_floating(column.type):  # of negative ones, all bits but the sign are in the opposite order
        return np.where(bits < 0, bits ^ np.int64(0x7FFF_FFFF_FFFF_FFFF), bits)
    return bits ^ _SIGN if column.type == pa.uint64() else bits


def _texts(column: pa.Array, num_lanes: int) -> Array:
    offsets, content = text_views(column)
    begin, size = offsets[:-1, None].astype(np.int64), np.diff(offsets)[:, None]
    at = np.arange((num_lanes - 1) * _LANE_BYTES)
    lanes = np.zeros((len(column), num_lanes), np.int64)
    if content.size:
        padded = np.where(at < size, content[np.minimum(begin + at, content.size - 1)], np.uint8(0))
        lanes[:, :-1] = np.ascontiguousarray(padded).view(">i8")
    lanes[:, :-1] ^= _SIGN
    lanes[:, -1:] = size
    return lanes


def widened(lanes: Array, num_lanes: int, *, ascending: bool) -> Array:
    """Return the lanes of a text field as if there had been so many from the beginning."""
    more = np.full((lanes.shape[0], num_lanes - lanes.shape[1]), _SIGN if ascending else ~_SIGN)
    wide = np.concatenate([lanes[:, :-1], more, lanes[:, -1:]], axis=1)
    is_null = (lanes[:, 0] if ascending else ~lanes[:, 0]) == 0
    wide[is_null, 1:] = 0 if ascending else -1
    return wide
