"""numba kernels shared by operators: free functions on arrays, no allocation, nothing resolved here.

Importing this module imports numba: do it where a kernel is about to run. Compiled code is cached on disk
(``NUMBA_CACHE_DIR``, else beside this file or in the user's cache folder).

The word table that several kernels share is four arrays, made and grown by ``operators/text.WordTable``:

- ``table`` uint64 (capacity, 4), capacity a power of two: a row is (first 8 bytes, length + 1, sum, number of the
  word); length + 1 == 0 marks a free row. Open addressing, linear probing, at most half full.
- ``arena`` uint8: the bytes of all words, in order of their numbers; ``offsets`` int32: where each begins, so that the
  two are an Arrow string column as they are.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

__all__ = ["add_words", "count_words", "rehash", "split_words", "sums_of_words"]

_SEED = np.uint64(0xCBF29CE484222325)  # FNV-1a, 64 bits
_PRIME = np.uint64(0x100000001B3)
_U0 = np.uint64(0)
_U1 = np.uint64(1)
_U3 = np.uint64(3)
_U8 = np.uint64(8)
_U32 = np.uint64(32)
_U64 = np.uint64(64)
_MIX = np.uint64(0x9E3779B97F4A7C15)

# Values of ``class_of_byte``.
_WORD = 0
_SEPARATOR = 1
_MAYBE = 2  # the first byte of a separator of several bytes: look closer


@numba.njit(nogil=True, cache=True, inline="always")
def _separator_width(data: Any, i: int) -> int:
    """Return the bytes of the separator at ``i`` whose first byte is of class _MAYBE, or 0 when it is part of a word.

    These are Unicode's spaces as ``str.split()`` knows them, in UTF-8, and ``\\r`` before ``\\n``.
    """
    b = data[i]
    left = data.size - i
    if b == 0x0D:
        return 1 if left > 1 and data[i + 1] == 0x0A else 0
    if b == 0xC2:
        return 2 if left > 1 and (data[i + 1] == 0x85 or data[i + 1] == 0xA0) else 0
    if left < 3:
        return 0
    second, third = data[i + 1], data[i + 2]
    if b == 0xE1:
        return 3 if second == 0x9A and third == 0x80 else 0
    if b == 0xE3:
        return 3 if second == 0x80 and third == 0x80 else 0
    if second == 0x80:
        return 3 if third <= 0x8A or third == 0xA8 or third == 0xA9 or third == 0xAF else 0
    return 3 if second == 0x81 and third == 0x9F else 0


@numba.njit(nogil=True, cache=True, inline="always")
def _mixed(h: Any, first8: Any) -> Any:
    """Return the hash of a word: ``h`` is FNV-1a of its bytes from the ninth on."""
    h = (h ^ first8) * _MIX
    return h ^ (h >> _U32)


@numba.njit(nogil=True, cache=True, inline="always")
def _lowered(byte: Any, plain_of_byte: Any) -> Any:
    plain = plain_of_byte[byte]
    return plain if plain != 0 else byte


@numba.njit(nogil=True, cache=True)
def _differs(arena: Any, start: Any, data: Any, begin: Any, length: Any, plain_of_byte: Any) -> bool:
    """Return whether a word of more than eight bytes, of which eight agree, is another one than that in the arena."""
    for k in range(8, length):  # noqa: SIM110 - a kernel
        if arena[start + k] != _lowered(data[begin + k], plain_of_byte):
            return True
    return False


@numba.njit(nogil=True, cache=True)
def _copy(data: Any, begin: Any, length: Any, plain_of_byte: Any, arena: Any, used: Any) -> None:
    for k in range(length):
        arena[used + k] = _lowered(data[begin + k], plain_of_byte)


@numba.njit(nogil=True, cache=True)
def count_words(
    data: Any, position: int, tables: tuple[Any, Any], table: Any, arena: Any, offsets: Any, num_words: int
) -> tuple[int, int]:
    """Count the words of ``data[position:]`` into the table; return (position reached, number of words).

    ``data``: uint8, UTF-8; the words end with it. ``tables``: (class_of_byte, plain_of_byte), uint8 (256,); the second
    says what a byte of a word becomes; 0 = look at its class, and if it is no separator it stays.
    Stops before a new word for which table or arena have no room. 130-200 MB/s on Zipf text of 100 k words, one core.
    """
    class_of_byte, plain_of_byte = tables
    mask = np.uint64(table.shape[0] - 1)
    words_max = min(table.shape[0] // 2, offsets.size - 1)
    end = data.size
    i = position
    while i < end:
        kind = class_of_byte[data[i]]
        if kind != _WORD:
            width = 1 if kind == _SEPARATOR else _separator_width(data, i)
            if width > 0:
                i += width
                continue
        begin = i
        h = _SEED
        first8 = _U0
        shift = _U0
        while i < end:
            b = data[i]
            byte = np.uint64(plain_of_byte[b])
            if byte == _U0:
                kind = class_of_byte[b]
                if kind == _SEPARATOR or (kind == _MAYBE and _separator_width(data, i) > 0):
                    break
                byte = np.uint64(b)
            if shift < _U64:
                first8 |= byte << shift
                shift += _U8
            else:
                h = (h ^ byte) * _PRIME
            i += 1
        length = i - begin
        mark = np.uint64(length + 1)
        # Probing stands here and in add_words: as a function of its own it halves the rate.
        slot = _mixed(h, first8) & mask
        while True:
            found = table[slot, 1]
            if found == mark and table[slot, 0] == first8:
                start = offsets[table[slot, 3]]
                if length <= 8 or not _differs(arena, start, data, begin, length, plain_of_byte):
                    table[slot, 2] += _U1
                    break
            elif found == _U0:
                used = np.int64(offsets[num_words])
                if num_words >= words_max or used + length > arena.size:
                    return begin, num_words
                _copy(data, begin, length, plain_of_byte, arena, used)
                table[slot, 0], table[slot, 1], table[slot, 2] = first8, mark, _U1
                table[slot, 3] = np.uint64(num_words)
                num_words += 1
                offsets[num_words] = used + length
                break
            slot = (slot + _U1) & mask
    return i, num_words


@numba.njit(nogil=True, cache=True)
def add_words(
    column: tuple[Any, Any, Any], row: int, same: Any, table: Any, arena: Any, offsets: Any, num_words: int
) -> tuple[int, int]:
    """Add a column of numbers to their words, from ``row`` on; return (row reached, number of words).

    ``column``: (values, begins, addends): the word of row r is ``values[begins[r]:begins[r + 1]]`` (uint8; int32 or
    int64); addends int64, sums wrap. ``same``: uint8 (256,), 0, 1 … 255: words are taken as they are.
    Stops before a new word for which there is no room.
    """
    values, begins, addends = column
    mask = np.uint64(table.shape[0] - 1)
    words_max = min(table.shape[0] // 2, offsets.size - 1)
    while row < addends.size:
        begin = np.int64(begins[row])
        length = np.int64(begins[row + 1]) - begin
        h = _SEED
        first8 = _U0
        for k in range(length):
            byte = np.uint64(values[begin + k])
            if k < 8:
                first8 |= byte << (np.uint64(k) << _U3)
            else:
                h = (h ^ byte) * _PRIME
        mark = np.uint64(length + 1)
        slot = _mixed(h, first8) & mask
        while True:
            found = table[slot, 1]
            if found == mark and table[slot, 0] == first8:
                start = offsets[table[slot, 3]]
                if length <= 8 or not _differs(arena, start, values, begin, length, same):
                    table[slot, 2] += np.uint64(addends[row])
                    break
            elif found == _U0:
                used = np.int64(offsets[num_words])
                if num_words >= words_max or used + length > arena.size:
                    return row, num_words
                _copy(values, begin, length, same, arena, used)
                table[slot, 0], table[slot, 1], table[slot, 2] = first8, mark, np.uint64(addends[row])
                table[slot, 3] = np.uint64(num_words)
                num_words += 1
                offsets[num_words] = used + length
                break
            slot = (slot + _U1) & mask
        row += 1
    return row, num_words


@numba.njit(nogil=True, cache=True)
def rehash(old: Any, arena: Any, offsets: Any, new: Any) -> None:
    """Move all rows of ``old`` into the free, larger table ``new``."""
    mask = np.uint64(new.shape[0] - 1)
    for source in range(old.shape[0]):
        if old[source, 1] == _U0:
            continue
        number = old[source, 3]
        h = _SEED
        for k in range(offsets[number] + 8, offsets[number + _U1]):
            h = (h ^ np.uint64(arena[k])) * _PRIME
        h = _mixed(h, old[source, 0])
        slot = h & mask
        while new[slot, 1] != _U0:
            slot = (slot + _U1) & mask
        for column in range(4):
            new[slot, column] = old[source, column]


@numba.njit(nogil=True, cache=True)
def sums_of_words(table: Any, sum_of_word: Any) -> None:
    """Write each word's sum to ``sum_of_word`` (int64), by number."""
    for slot in range(table.shape[0]):
        if table[slot, 1] != _U0:
            sum_of_word[table[slot, 3]] = np.int64(table[slot, 2])


@numba.njit(nogil=True, cache=True)
def split_words(data: Any, class_of_byte: Any, plain_of_byte: Any, values: Any, offsets: Any) -> int:
    """Write all words of ``data`` one after the other into ``values`` (as large as data), where each ends into
    ``offsets`` (int32, ``data.size // 2 + 2``, the first is 0); return their number."""
    end = data.size
    used = 0
    num_words = 0
    offsets[0] = 0
    i = 0
    while i < end:
        kind = class_of_byte[data[i]]
        width = 1 if kind == _SEPARATOR else (_separator_width(data, i) if kind == _MAYBE else 0)
        if width > 0:
            if used > offsets[num_words]:
                num_words += 1
                offsets[num_words] = used
            i += width
            continue
        values[used] = _lowered(data[i], plain_of_byte)
        used += 1
        i += 1
    if used > offsets[num_words]:
        num_words += 1
        offsets[num_words] = used
    return num_words
