"""numba kernels of texts and words: free functions on arrays, nothing resolved here.

Importing this module imports numba: do it where a kernel is about to run. Compiled code is cached on disk
(``NUMBA_CACHE_DIR``, else beside this file or in the user's cache folder).

Words are found 64 bytes at a time, as bits that say which bytes part them, and looked up in blocks: first each one's
hash, then where it would stand, then whether it does, in loops without a branch of their own, so that many cache misses
are on their way at once.

The table of words, made and grown by ``operators/text.WordTable``, is four arrays:

- ``index`` uint32, a power of two long, at least four times the words: number of the word + 1, 0 = free. Open
  addressing by the upper bits of the hash, linear probing.
- ``rows`` uint64 (words + 1, 4): row number + 1 is (first 8 bytes, next 8 bytes, (length + 1) << 32 | hash, sum).
  Words are numbered in order of first sight, so that those that come often stand side by side. Row 0 is no word.
- ``arena`` uint8: the bytes of all words, in order of their numbers; ``offsets`` int32: where each begins, so that the
  two are an Arrow string column as they are.
"""

# mypy: disable-error-code="assignment"
# numba types the variables of a kernel, not what numpy says of its scalars.

from __future__ import annotations

from typing import Any

import numpy as np

from engine.state.intrinsics import kernel, lowest_bit, marks_of_64, prefetch, set_word_at, word_at

__all__ = ["add_words", "count_words", "enter_rows", "lower_letters", "split_words"]

_U0 = np.uint64(0)
_U1 = np.uint64(1)
_U32 = np.uint64(32)
_LOW32 = np.uint64(0xFFFFFFFF)
_MIX_A = np.uint64(0x9E3779B97F4A7C15)
_MIX_B = np.uint64(0xC2B2AE3D27D4EB4F)
_MIX_C = np.uint64(0xFF51AFD7ED558CCD)
#: What of the first and of the next eight bytes is in a word of 0 to 16 bytes.
_FIRST = np.array([(1 << 8 * min(length, 8)) - 1 for length in range(17)], np.uint64)
_NEXT = np.array([(1 << 8 * max(length - 8, 0)) - 1 for length in range(17)], np.uint64)
#: Bytes of a word that stand in its row.
_HEAD = 16
#: Words that are looked up together, and bytes that are looked at together.
_BLOCK = 256
_STEP = 64


# --- where words are --------------------------------------------------------------------------------------------------


@kernel(inline="always")
def _separator_width(data: Any, i: int) -> int:
    """Return the bytes of the separator at ``i`` whose first byte may begin one, or 0 when it is part of a word.

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


@kernel()
def _separators(data: Any, base: int, firsts: Any, overhang: Any) -> tuple[Any, Any]:
    """Return (bits of separators of several bytes that begin within 64 bytes, bits of what hangs over their end).

    ``firsts``: bits of the bytes that may begin one; ``overhang``: of the 64 bytes before.
    """
    bits, over = overhang, _U0
    while firsts != _U0:
        place = lowest_bit(firsts)
        firsts &= firsts - _U1
        for k in range(place, place + _separator_width(data, base + place)):
            if k < _STEP:
                bits |= _U1 << np.uint64(k)
            else:
                over |= _U1 << np.uint64(k - _STEP)
    return bits, over


@kernel(inline="always")
def _take_words(bits: Any, base: int, begin: Any, words: tuple[Any, Any], num_words: Any) -> tuple[Any, Any]:
    """Write the words that end within 64 bytes; return (begin of the next one, number of words)."""
    begins, lengths = words
    while bits != _U0:
        end = base + lowest_bit(bits)
        bits &= bits - _U1
        begins[num_words] = begin
        lengths[num_words] = end - begin
        num_words += np.uint64(end > begin)
        begin = end + 1
    return begin, num_words


@kernel()
def _find_block(data: Any, place: tuple[Any, Any, Any], ranges: tuple[Any, Any], words: tuple[Any, Any]) -> Any:
    """Find words until a block has hardly room left or the text has ended; return (their number, place behind them).

    ``place``: (byte up to which has been looked, begin of the word at hand, overhang of ``_separators``); the first is
    beyond the text once that has ended. ``ranges``: as ``marks_of_64`` takes them, of the bytes that part words and of
    those that may begin what does. ``words``: (begins, lengths), int64, out.
    """
    base, begin, overhang = place
    part, may_part = ranges
    num_words = _U0
    room = np.uint64(words[0].size - _STEP)
    while base + _STEP <= data.size and num_words < room:
        bits = marks_of_64(data, base, part)
        firsts = marks_of_64(data, base, may_part)
        if firsts | overhang:
            wide, overhang = _separators(data, base, firsts, overhang)
            bits |= wide
        begin, num_words = _take_words(bits, base, begin, words, num_words)
        base += _STEP
    left = data.size - base
    if 0 <= left < _STEP and num_words < room:
        last = np.zeros(_STEP, np.uint8)
        last[:left] = data[base:]
        end = _U1 << np.uint64(left)
        wide, overhang = _separators(data, base, marks_of_64(last, 0, may_part) & (end - _U1), overhang)
        # The end of the text is the end of a word.
        bits = marks_of_64(last, 0, part) & (end - _U1) | wide | end
        begin, num_words = _take_words(bits, base, begin, words, num_words)
        base += _STEP
    return np.int64(num_words), (base, begin, overhang)


@kernel()
def lower_letters(data: Any, out: Any) -> None:
    """Copy a text (uint8) with its ASCII letters made small."""
    for i in range(data.size):
        is_large = np.uint8(data[i] - np.uint8(ord("A"))) < np.uint8(26)
        out[i] = data[i] | np.uint8(is_large) << np.uint8(5)


@kernel()
def split_words(data: Any, text: Any, ranges: tuple[Any, Any], values: Any, offsets: Any) -> int:
    """Write all words of a text one after the other into ``values`` (16 bytes larger than the text), where each ends
    into ``offsets`` (int32, ``data.size // 2 + 2``, the first is 0); return their number. See ``count_words``."""
    begins, lengths = np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.int64)
    offsets[0] = 0
    used = np.int64(0)
    num_words = 0
    place = (np.int64(0), np.int64(0), _U0)
    while place[0] <= data.size:
        found, place = _find_block(data, place, ranges, (begins, lengths))
        for k in range(found):
            begin, length = begins[k], lengths[k]
            if length <= _HEAD and begin + _HEAD <= text.size:
                # What is too much is written over by the next word.
                set_word_at(values, used, word_at(text, begin))
                set_word_at(values, used + 8, word_at(text, begin + 8))
            else:
                values[used : used + length] = text[begin : begin + length]
            used += length
            num_words += 1
            offsets[num_words] = used
    return num_words


# --- the table of words -----------------------------------------------------------------------------------------------


@kernel(inline="always")
def _shift_of(index: Any) -> Any:
    """Return by how many bits a hash of 32 is shifted to be a place in the index."""
    shift = 32
    while (1 << (32 - shift)) < index.size:
        shift -= 1
    return np.uint64(shift)


@kernel()
def _head_bytewise(text: Any, begin: Any, length: Any) -> tuple[Any, Any]:
    first, following = _U0, _U0
    for k in range(min(length, _HEAD)):
        if k < 8:
            first |= np.uint64(text[begin + k]) << np.uint64(8 * k)
        else:
            following |= np.uint64(text[begin + k]) << np.uint64(8 * (k - 8))
    return first, following


@kernel()
def _hash_rest(text: Any, begin: Any, length: Any) -> Any:
    """Return a hash of what a word of more than 16 bytes has behind them."""
    h = _U0
    for k in range(_HEAD, length - 8, 8):
        h = (h ^ word_at(text, begin + k)) * _MIX_A
        h ^= h >> _U32
    # The last eight, some of which may have been there.
    h = (h ^ word_at(text, begin + length - 8)) * _MIX_B
    h = (h ^ (h >> _U32)) * _MIX_C
    return h


@kernel()
def _differs(arena: Any, start: Any, text: Any, begin: Any, length: Any) -> bool:
    """Return whether a word of more than 16 bytes, which agree, is another one than that in the arena."""
    for k in range(_HEAD, length - 8, 8):
        if word_at(arena, start + k) != word_at(text, begin + k):
            return True
    return word_at(arena, start + length - 8) != word_at(text, begin + length - 8)


@kernel()
def _guess_block(text: Any, words: tuple[Any, Any], num_words: int, table: Any, heads: Any, guesses: Any) -> None:
    """Write of each word (first bytes, next bytes, length and hash) to ``heads``, three arrays, as in its row; and the
    entry of the index at its first place to ``guesses``."""
    begins, lengths = words
    firsts, nexts, marks = heads
    index, rows, _, _ = table
    shift = _shift_of(index)
    flat = rows.reshape(rows.size)
    longest = np.int64(0)
    # Loops of their own, as two of these are done eight words at a time.
    if num_words > 0 and begins[num_words - 1] + _HEAD <= text.size:
        for k in range(num_words):
            begin, length = begins[k], lengths[k]
            longest = max(longest, length)
            short = np.uint64(min(length, _HEAD))
            firsts[k] = word_at(text, begin) & _FIRST[short]
            nexts[k] = word_at(text, begin + 8) & _NEXT[short]
    else:
        for k in range(num_words):
            longest = max(longest, lengths[k])
            firsts[k], nexts[k] = _head_bytewise(text, begins[k], lengths[k])
    for k in range(num_words):
        h = (firsts[k] * _MIX_A) ^ (nexts[k] * _MIX_B)
        h = (h ^ (h >> _U32)) * _MIX_C
        marks[k] = np.uint64(lengths[k] + 1) << _U32 | h >> _U32
    if longest > _HEAD:
        for k in range(num_words):
            if lengths[k] > _HEAD:
                marks[k] ^= _hash_rest(text, begins[k], lengths[k]) >> _U32
    for k in range(num_words):
        prefetch(index, np.int64((marks[k] & _LOW32) >> shift))
    for k in range(num_words):
        entry = index[(marks[k] & _LOW32) >> shift]
        guesses[k] = entry
        prefetch(flat, np.int64(entry) * 4)


@kernel(inline="always")
def _is_row(rows: Any, entry: Any, first: Any, following: Any, mark: Any) -> Any:
    row = rows[entry]
    return ((row[0] ^ first) | (row[1] ^ following) | (row[2] ^ mark)) == _U0


@kernel()
def _add_block(
    text: Any, words: tuple[Any, Any, Any], size: int, table: Any, heads: Any, guesses: Any, num_words: int
) -> tuple[int, int]:
    """Add what ``_guess_block`` has prepared; return (words added, number of different ones in the table).

    ``words``: (begins, lengths, addends). Stops before a new word for which there is no room.
    """
    begins, lengths, addends = words
    firsts, nexts, marks = heads
    index, rows, arena, offsets = table
    shift = _shift_of(index)
    mask = np.uint64(index.size - 1)
    for k in range(size):
        first, following, mark, length = firsts[k], nexts[k], marks[k], lengths[k]
        entry = guesses[k]
        # Most words end here.
        if _is_row(rows, entry, first, following, mark) and length <= _HEAD:
            rows[entry, 3] += np.uint64(addends[k])
            continue
        place = (mark & _LOW32) >> shift
        while True:
            entry = index[place]
            if entry == 0:
                used = np.int64(offsets[num_words])
                if num_words + 1 >= rows.shape[0] or used + length > arena.size:
                    return k, num_words
                begin = begins[k]
                for byte in range(length):
                    arena[used + byte] = text[begin + byte]
                num_words += 1
                offsets[num_words] = used + length
                index[place] = num_words
                rows[num_words, 0], rows[num_words, 1], rows[num_words, 2] = first, following, mark
                rows[num_words, 3] = np.uint64(addends[k])
                break
            if _is_row(rows, entry, first, following, mark) and (
                length <= _HEAD or not _differs(arena, np.int64(offsets[entry - 1]), text, begins[k], length)
            ):
                rows[entry, 3] += np.uint64(addends[k])
                break
            place = (place + _U1) & mask
    return size, num_words


@kernel()
def count_words(
    data: Any, text: Any, position: int, ranges: tuple[Any, Any], table: Any, num_words: int
) -> tuple[int, int]:
    """Count the words of ``data[position:]`` into the table; return (position reached, number of different words).

    ``data``: uint8, UTF-8; the words end with it, and none is begun at the position. ``text``: the same with each byte
    as words have it. ``ranges``: as ``_find_block`` takes them. Stops before a new word for which there is no room.
    600-900 MB/s on Zipf text of 100 k words, one core.
    """
    begins, lengths = np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.int64)
    heads = (np.empty(_BLOCK, np.uint64), np.empty(_BLOCK, np.uint64), np.empty(_BLOCK, np.uint64))
    guesses, ones = np.empty(_BLOCK, np.uint32), np.ones(_BLOCK, np.int64)
    place = (np.int64(position), np.int64(position), _U0)
    while place[0] <= data.size:
        found, place = _find_block(data, place, ranges, (begins, lengths))
        _guess_block(text, (begins, lengths), found, table, heads, guesses)
        added, num_words = _add_block(text, (begins, lengths, ones), found, table, heads, guesses, num_words)
        if added < found:
            return begins[added], num_words
    return data.size, num_words


@kernel()
def add_words(column: tuple[Any, Any, Any], row: int, table: Any, num_words: int) -> tuple[int, int]:
    """Add a column of numbers to their words, from ``row`` on; return (row reached, number of different words).

    ``column``: (values, offsets, addends): the word of row r is ``values[offsets[r]:offsets[r + 1]]`` (uint8; int32 or
    int64); addends int64, sums wrap. Stops before a new word for which there is no room.
    """
    values, offsets, addends = column
    begins, lengths = np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.int64)
    heads = (np.empty(_BLOCK, np.uint64), np.empty(_BLOCK, np.uint64), np.empty(_BLOCK, np.uint64))
    guesses = np.empty(_BLOCK, np.uint32)
    while row < addends.size:
        size = min(_BLOCK, addends.size - row)
        for k in range(size):
            begins[k] = offsets[row + k]
            lengths[k] = np.int64(offsets[row + k + 1]) - np.int64(offsets[row + k])
        _guess_block(values, (begins, lengths), size, table, heads, guesses)
        words = (begins, lengths, addends[row : row + size])
        added, num_words = _add_block(values, words, size, table, heads, guesses, num_words)
        row += added
        if added < size:
            break
    return row, num_words


@kernel()
def enter_rows(rows: Any, num_words: int, index: Any) -> None:
    """Enter all words of ``rows`` in an index that is free."""
    shift = _shift_of(index)
    mask = np.uint64(index.size - 1)
    for number in range(1, num_words + 1):
        place = (rows[number, 2] & _LOW32) >> shift
        while index[place] != 0:
            place = (place + _U1) & mask
        index[place] = number
