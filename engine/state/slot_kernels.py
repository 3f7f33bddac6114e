"""numba kernels of slot tables: key → slot by open addressing. Free functions on arrays; ``slot_table`` holds state.

A table is an array of buckets, uint32, a power of two long. An entry has slot + 1 in as many bits as number the
buckets, and above them a tag, bits of the key's hash, so that the key of another slot is hardly ever fetched (a cache
miss); 0 is a free bucket. While it grows there are two: ``fresh``, where new keys go, and ``old``, whose entries are
carried over bit by bit; ``old`` is empty otherwise. Slots are numbered 0, 1, 2 … in order of first sight and never
move, so an entry may stand in both tables.

Importing this module imports numba. ``*_slow`` functions are the obvious twins for the tests.
"""

# mypy: disable-error-code="assignment"
# numba types the variables of a kernel, not what numpy says of its scalars.

from __future__ import annotations

from typing import Any

import numpy as np

from engine.state.intrinsics import kernel, prefetch, word_at

__all__ = [
    "carry_over_ints",
    "carry_over_lanes",
    "carry_over_texts",
    "find_int_slots",
    "find_lane_slots",
    "find_slots_slow",
    "find_text_slots",
    "gather_texts",
    "mark_blocks",
    "slots_of_numbers",
]

_MIX_A = np.uint64(0xFF51AFD7ED558CCD)
_MIX_B = np.uint64(0xC4CEB9FE1A85EC53)
_U33 = np.uint64(33)
_U1 = np.uint64(1)
_U2 = np.uint64(2)
_U3 = np.uint64(3)
_SEED = np.uint64(0x9E3779B97F4A7C15)
_U32 = np.uint64(32)
_LOW32 = np.uint64(0xFFFFFFFF)
_PRIME = np.uint64(0x100000001B3)
#: Rows that are looked up together.
_BLOCK = 256
#: So many buckets before it is its turn, the key of an entry that is carried over is fetched.
_AHEAD = 16


@kernel(inline="always")
def _mix(key: Any) -> Any:
    """Murmur3's 64-bit finaliser."""
    h = np.uint64(key)
    h ^= h >> _U33
    h *= _MIX_A
    h ^= h >> _U33
    h *= _MIX_B
    return h ^ (h >> _U33)


@kernel(inline="always")
def _likely_slot(fresh: Any, mask: Any, bucket: Any, tag: Any) -> Any:
    """Return the slot of the first of four buckets with this tag, that of the last, or -1, if none has it. Without a
    branch."""
    tag_mask = mask ^ _LOW32
    entry = np.uint64(fresh[(bucket + _U3) & mask])
    other = np.uint64(fresh[(bucket + _U2) & mask])
    entry = other if other & tag_mask == tag else entry
    other = np.uint64(fresh[(bucket + _U1) & mask])
    entry = other if other & tag_mask == tag else entry
    other = np.uint64(fresh[bucket])
    entry = other if other & tag_mask == tag else entry
    return np.int32(entry & mask) - 1


@kernel()
def guess_int_slots(keys: Any, start: int, end: int, fresh: Any, key_of_slot: Any, slot_of_row: Any) -> None:
    """Write the slot of each key that stands in one of the four buckets from where its hash says, -1 for all others.

    Three loops without a branch, so that many cache misses are on their way at once: a mispredicted one in the loop
    that probes would wait for each by itself. Where keys were looked for in one bucket only, a quarter to a third of
    them were left to that loop.
    """
    mask = np.uint64(fresh.size - 1)
    tag_mask = mask ^ _LOW32
    for row in range(start, end):
        prefetch(fresh, np.int64(_mix(keys[row]) & mask))
    for row in range(start, end):
        h = _mix(keys[row])
        slot = _likely_slot(fresh, mask, h & mask, (h >> _U32) & tag_mask)
        slot_of_row[row] = slot
        prefetch(key_of_slot, np.int64(max(slot, np.int32(0))))
    for row in range(start, end):
        slot = slot_of_row[row]
        same = key_of_slot[max(slot, 0)] == keys[row]
        slot_of_row[row] = slot if same else -1


@kernel()
def find_int_slots(
    keys: Any,
    row: int,
    buckets: tuple[Any, Any],
    key_of_slot: Any,
    counts: tuple[int, int],
    slot_of_row: Any,
    first: Any,
) -> tuple[int, int]:
    """Find or make the slot of each key from ``row`` on; return (row reached, number of slots).

    ``keys``, ``key_of_slot``: int64; ``buckets``: (fresh, old); ``counts``: (slots in use, slots at which to stop);
    ``slot_of_row``: int32, out; ``first``: int32, out: the row that made slot ``counts[0] + i``.
    Stops before a new key for which there is no room.
    20-30 M keys/s of a million different ones, 80 M of ten thousand.
    """
    fresh, old = buckets
    num_slots, slots_max = counts
    base = num_slots
    mask = np.uint64(fresh.size - 1)
    old_mask = np.uint64(max(old.size, 1) - 1)
    guessed = row
    while row < keys.size:
        if row == guessed and key_of_slot.size > 0:
            guessed = min(row + _BLOCK, keys.size)
            guess_int_slots(keys, row, guessed, fresh, key_of_slot, slot_of_row)
        if row < guessed and slot_of_row[row] >= 0:
            row += 1
            continue
        key = keys[row]
        h = _mix(key)
        bucket = h & mask
        tag = (h >> _U32) & (mask ^ _LOW32)
        entry = np.uint64(fresh[bucket])
        while entry != 0 and (entry & ~mask != tag or key_of_slot[(entry & mask) - _U1] != key):
            bucket = (bucket + _U1) & mask
            entry = np.uint64(fresh[bucket])
        slot: Any = np.int64(entry & mask) - 1
        if slot < 0 and old.size > 0:
            place = h & old_mask
            old_tag = (h >> _U32) & (old_mask ^ _LOW32)
            entry = np.uint64(old[place])
            while entry != 0 and (entry & ~old_mask != old_tag or key_of_slot[(entry & old_mask) - _U1] != key):
                place = (place + _U1) & old_mask
                entry = np.uint64(old[place])
            slot = np.int64(entry & old_mask) - 1
        if slot < 0:
            if num_slots >= slots_max:
                return row, num_slots
            slot = num_slots
            fresh[bucket] = tag | np.uint64(slot + 1)
            key_of_slot[slot] = key
            first[slot - base] = row
            num_slots += 1
        slot_of_row[row] = slot
        row += 1
    return row, num_slots


@kernel(inline="always")
def _hash_lanes(lanes: Any, row: Any) -> Any:
    h = _SEED
    for lane in range(lanes.shape[1]):
        h = _mix(h ^ np.uint64(lanes[row, lane]))
    return h


@kernel(inline="always")
def _same_lanes(left: Any, i: Any, right: Any, j: Any) -> bool:
    for lane in range(left.shape[1]):  # noqa: SIM110 - a kernel
        if left[i, lane] != right[j, lane]:
            return False
    return True


@kernel()
def guess_lane_slots(
    keys: Any, start: int, end: int, fresh: Any, key_of_slot: Any, hashes: Any, slot_of_row: Any
) -> None:
    """As ``guess_int_slots`` for keys of several int64; writes the hash of row ``start + i`` to ``hashes[i]``."""
    mask = np.uint64(fresh.size - 1)
    tag_mask = mask ^ _LOW32
    for row in range(start, end):
        h = _hash_lanes(keys, row)
        hashes[row - start] = h
        prefetch(fresh, np.int64(h & mask))
    num_lanes = keys.shape[1]
    flat = key_of_slot.reshape(key_of_slot.size)
    for row in range(start, end):
        h = hashes[row - start]
        slot = _likely_slot(fresh, mask, h & mask, (h >> _U32) & tag_mask)
        slot_of_row[row] = slot
        prefetch(flat, np.int64(max(slot, np.int32(0))) * num_lanes)
    for row in range(start, end):
        slot = slot_of_row[row]
        if slot >= 0 and not _same_lanes(key_of_slot, slot, keys, row):
            slot_of_row[row] = -1


@kernel()
def find_lane_slots(
    keys: Any,
    row: int,
    buckets: tuple[Any, Any],
    key_of_slot: Any,
    counts: tuple[int, int],
    slot_of_row: Any,
    first: Any,
) -> tuple[int, int]:
    """As ``find_int_slots`` for keys of several int64: ``keys``, ``key_of_slot`` are (rows, lanes). 18 M/s of a
    million different pairs, 55 M/s of 7000, making the lanes included."""
    fresh, old = buckets
    num_slots, slots_max = counts
    base = num_slots
    mask = np.uint64(fresh.size - 1)
    old_mask = np.uint64(max(old.size, 1) - 1)
    hashes = np.empty(_BLOCK, np.uint64)
    begun = guessed = row
    while row < keys.shape[0]:
        if row == guessed:
            begun, guessed = row, min(row + _BLOCK, keys.shape[0])
            guess_lane_slots(keys, begun, guessed, fresh, key_of_slot, hashes, slot_of_row)
        if slot_of_row[row] >= 0:
            row += 1
            continue
        h = hashes[row - begun]
        bucket = h & mask
        tag = (h >> _U32) & (mask ^ _LOW32)
        entry = np.uint64(fresh[bucket])
        while entry != 0 and (
            entry & ~mask != tag or not _same_lanes(key_of_slot, np.int64(entry & mask) - 1, keys, row)
        ):
            bucket = (bucket + _U1) & mask
            entry = np.uint64(fresh[bucket])
        slot: Any = np.int64(entry & mask) - 1
        if slot < 0 and old.size > 0:
            place = h & old_mask
            old_tag = (h >> _U32) & (old_mask ^ _LOW32)
            entry = np.uint64(old[place])
            while entry != 0 and (
                entry & ~old_mask != old_tag or not _same_lanes(key_of_slot, np.int64(entry & old_mask) - 1, keys, row)
            ):
                place = (place + _U1) & old_mask
                entry = np.uint64(old[place])
            slot = np.int64(entry & old_mask) - 1
        if slot < 0:
            if num_slots >= slots_max:
                return row, num_slots
            slot = num_slots
            fresh[bucket] = tag | np.uint64(slot + 1)
            for lane in range(keys.shape[1]):
                key_of_slot[slot, lane] = keys[row, lane]
            first[slot - base] = row
            num_slots += 1
        slot_of_row[row] = slot
        row += 1
    return row, num_slots


@kernel(inline="always")
def _hash_text(content: Any, begin: Any, end: Any) -> Any:
    """FNV-1a over words of eight bytes, mixed, cut to 32 bits."""
    h = _SEED
    at = begin
    while at + 8 <= end:
        h = (h ^ word_at(content, at)) * _PRIME
        h ^= h >> _U33
        at += 8
    word = np.uint64(end - begin)
    shift = np.uint64(8)
    while at < end:
        word |= np.uint64(content[at]) << shift
        shift += np.uint64(8)
        at += 1
    return np.uint32(_mix(h ^ word))


@kernel(inline="always")
def _same_text(arena: Any, start: Any, content: Any, begin: Any, length: Any) -> bool:
    k = 0
    while k + 8 <= length:
        if word_at(arena, start + k) != word_at(content, begin + k):
            return False
        k += 8
    while k < length:
        if arena[start + k] != content[begin + k]:
            return False
        k += 1
    return True


@kernel()
def guess_text_slots(
    texts: tuple[Any, Any], start: int, end: int, fresh: Any, keys: tuple[Any, Any], hashes: Any, slot_of_row: Any
) -> None:
    """As ``guess_int_slots`` for texts; writes the hash of row ``start + i`` to ``hashes[i]`` (uint64) as well."""
    offsets, content = texts
    arena, begin_of_slot = keys
    mask = np.uint64(fresh.size - 1)
    tag_mask = mask ^ _LOW32
    for row in range(start, end):
        h = np.uint64(_hash_text(content, np.int64(offsets[row]), np.int64(offsets[row + 1])))
        hashes[row - start] = h
        prefetch(fresh, np.int64(h & mask))
    for row in range(start, end):
        h = hashes[row - start]
        slot = _likely_slot(fresh, mask, h & mask, h & tag_mask)
        slot_of_row[row] = slot
        prefetch(begin_of_slot, np.int64(max(slot, np.int32(0))))
    for row in range(start, end):
        slot = slot_of_row[row]
        if slot >= 0:
            prefetch(arena, np.int64(begin_of_slot[slot]))
    for row in range(start, end):
        slot = slot_of_row[row]
        if slot >= 0:
            begin, at = np.int64(offsets[row]), np.int64(begin_of_slot[slot])
            length = np.int64(offsets[row + 1]) - begin
            if np.int64(begin_of_slot[slot + 1]) - at != length or not _same_text(arena, at, content, begin, length):
                slot_of_row[row] = -1


@kernel()
def find_text_slots(
    texts: tuple[Any, Any],
    row: int,
    buckets: tuple[Any, Any],
    keys: tuple[Any, Any],
    counts: tuple[int, int],
    slot_of_row: Any,
    first: Any,
) -> tuple[int, int]:
    """As ``find_int_slots`` for texts and bytes. 9-10 M keys/s of a million different ones
    of ten bytes, 30 M of ten thousand, before they were hashed and compared eight bytes at a time (1.7 times as quick).

    ``texts``: (offsets int32 or int64, content uint8); ``keys``: (arena uint8, begin_of_slot uint32 or int64
    (slots + 1,)): the bytes of slot s are ``arena[begin_of_slot[s]:begin_of_slot[s + 1]]``.
    """
    offsets, content = texts
    arena, begin_of_slot = keys
    fresh, old = buckets
    num_slots, slots_max = counts
    base = num_slots
    mask = np.uint64(fresh.size - 1)
    old_mask = np.uint64(max(old.size, 1) - 1)
    hashes = np.empty(_BLOCK, np.uint64)
    begun = guessed = row
    while row < slot_of_row.size:
        if row == guessed:
            begun, guessed = row, min(row + _BLOCK, slot_of_row.size)
            guess_text_slots(texts, begun, guessed, fresh, keys, hashes, slot_of_row)
        if slot_of_row[row] >= 0:
            row += 1
            continue
        begin = np.int64(offsets[row])
        length = np.int64(offsets[row + 1]) - begin
        h = hashes[row - begun]
        bucket = h & mask
        tag = h & ~mask
        slot: Any = -1
        while fresh[bucket] != 0:
            entry = np.uint64(fresh[bucket])
            if entry & ~mask == tag:
                slot = np.int64(entry & mask) - 1
                start = np.int64(begin_of_slot[slot])
                is_alike = np.int64(begin_of_slot[slot + 1]) - start == length
                if is_alike and _same_text(arena, start, content, begin, length):
                    break
                slot = -1
            bucket = (bucket + _U1) & mask
        if slot < 0 and old.size > 0:
            place = h & old_mask
            while old[place] != 0:
                entry = np.uint64(old[place])
                if entry & ~old_mask == h & ~old_mask:
                    slot = np.int64(entry & old_mask) - 1
                    start = np.int64(begin_of_slot[slot])
                    is_alike = np.int64(begin_of_slot[slot + 1]) - start == length
                    if is_alike and _same_text(arena, start, content, begin, length):
                        break
                    slot = -1
                place = (place + _U1) & old_mask
        if slot < 0:
            used = np.int64(begin_of_slot[num_slots])
            if num_slots >= slots_max or used + length > arena.size:
                return row, num_slots
            slot = num_slots
            fresh[bucket] = tag | np.uint64(slot + 1)
            for k in range(length):
                arena[used + k] = content[begin + k]
            begin_of_slot[slot + 1] = used + length
            first[slot - base] = row
            num_slots += 1
        slot_of_row[row] = slot
        row += 1
    return row, num_slots


@kernel(inline="always")
def _enter(fresh: Any, mask: Any, h: Any, tag: Any, slot: Any) -> None:
    """Enter a slot that may stand there already."""
    entry = tag | np.uint64(slot + 1)
    bucket = h & mask
    while fresh[bucket] != 0 and np.uint64(fresh[bucket]) != entry:
        bucket = (bucket + _U1) & mask
    fresh[bucket] = entry


@kernel()
def carry_over_ints(old: Any, start: int, end: int, key_of_slot: Any, fresh: Any) -> None:
    """Enter what stands in the buckets ``old[start:end]`` in ``fresh``, which has room. 31 M a second."""
    mask, old_mask = np.uint64(fresh.size - 1), np.uint64(old.size - 1)
    for place in range(start, end):
        ahead = old[min(place + _AHEAD, end - 1)]
        prefetch(key_of_slot, np.int64(max(np.uint64(ahead) & old_mask, _U1) - _U1))
        if old[place] == 0:
            continue
        slot = np.int64(np.uint64(old[place]) & old_mask) - 1
        h = _mix(key_of_slot[slot])
        _enter(fresh, mask, h, (h >> _U32) & (mask ^ _LOW32), slot)


@kernel()
def carry_over_lanes(old: Any, start: int, end: int, key_of_slot: Any, fresh: Any) -> None:
    """As ``carry_over_ints`` for keys of several lanes."""
    mask, old_mask = np.uint64(fresh.size - 1), np.uint64(old.size - 1)
    num_lanes = key_of_slot.shape[1]
    flat = key_of_slot.reshape(key_of_slot.size)
    for place in range(start, end):
        ahead = old[min(place + _AHEAD, end - 1)]
        prefetch(flat, np.int64(max(np.uint64(ahead) & old_mask, _U1) - _U1) * num_lanes)
        if old[place] == 0:
            continue
        slot = np.int64(np.uint64(old[place]) & old_mask) - 1
        h = _hash_lanes(key_of_slot, slot)
        _enter(fresh, mask, h, (h >> _U32) & (mask ^ _LOW32), slot)


@kernel()
def carry_over_texts(old: Any, start: int, end: int, keys: tuple[Any, Any], fresh: Any) -> None:
    """As ``carry_over_ints`` for texts, ``keys`` as in ``find_text_slots``. Their hashes are not kept, which would take
    4 bytes each: texts are read again, fetched ahead."""
    arena, begin_of_slot = keys
    mask, old_mask = np.uint64(fresh.size - 1), np.uint64(old.size - 1)
    slots = np.empty(_BLOCK, np.int64)
    place = start
    while place < end:
        num_slots = 0
        until = min(place + _BLOCK, end)
        for taken in range(place, until):
            if old[taken] != 0:
                slot = np.int64(np.uint64(old[taken]) & old_mask) - 1
                slots[num_slots] = slot
                num_slots += 1
                prefetch(begin_of_slot, slot)
        for k in range(num_slots):
            prefetch(arena, np.int64(begin_of_slot[slots[k]]))
        for k in range(num_slots):
            slot = slots[k]
            h = np.uint64(_hash_text(arena, np.int64(begin_of_slot[slot]), np.int64(begin_of_slot[slot + 1])))
            _enter(fresh, mask, h, h & ~mask, slot)
        place = until


@kernel()
def gather_texts(arena: Any, begin_of_slot: Any, slots: Any, offsets: Any, content: Any) -> None:
    """Copy the texts of ``slots`` one after the other into ``content``, where ``offsets`` (int64, filled) says."""
    for i in range(slots.size):
        begin = np.int64(begin_of_slot[slots[i]])
        at = offsets[i]
        for k in range(np.int64(begin_of_slot[slots[i] + 1]) - begin):
            content[at + k] = arena[begin + k]


@kernel()
def slots_of_numbers(numbers: Any, slot_of_number: Any, slot_of_row: Any, unknown: Any) -> int:
    """Write the slot of each row's number; return how many numbers have none, and write the first row of each to
    ``unknown``. All int32. -1 in ``slot_of_number`` = none; -2 is written for those that were met. 1 ns a row."""
    num = 0
    for row in range(numbers.size):
        slot = slot_of_number[numbers[row]]
        if slot == -1:
            slot_of_number[numbers[row]] = -2
            unknown[num] = row
            num += 1
        slot_of_row[row] = slot
    return num


@kernel()
def mark_blocks(slots: Any, shift: int, marks: Any) -> None:
    """Set ``marks[slot >> shift]`` (uint8) of each slot (int32). 1300-1800 M rows/s."""
    for row in range(slots.size):
        marks[slots[row] >> shift] = 1


def find_slots_slow(keys: Any, slot_of_key: dict[Any, int]) -> tuple[list[int], list[int]]:
    """Twin of the find kernels: (slot of each key, rows that made new slots); keeps the slots in a dict."""
    slots, first = [], []
    for row, key in enumerate(keys):
        if key not in slot_of_key:
            slot_of_key[key] = len(slot_of_key)
            first.append(row)
        slots.append(slot_of_key[key])
    return slots, first
