"""Key → key group → subtask: one law for rows and columns, equal in every process and run.

``hash()`` is salted per process for str and bytes, so it must never decide where a record goes. Keys that compare equal
in Python (1, 1.0, True) go to the same group; all NaN go to one.

Source: Flink's KeyGroupRangeAssignment (group = murmur(hash) % max; subtask = group * parallelism // max).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import math
import uuid
import zlib
from collections.abc import Sequence
from typing import Any, Final

from engine.core.errors import ProgramError
from engine.core.records import Row

__all__ = [
    "MAX_PARALLELISM_DEFAULT",
    "MAX_PARALLELISM_MAX",
    "NAN",
    "KeyToSubtask",
    "canonical_key",
    "key_group_of",
    "key_group_range",
    "stable_hash",
    "subtask_of_key_group",
]

MAX_PARALLELISM_DEFAULT: Final = 128
MAX_PARALLELISM_MAX: Final = 1 << 15
#: Entries of the key → subtask memo of one exchange; enough for skewed keys, bounded for unique ones.
_MEMO_SIZE_MAX: Final = 1 << 17

_BYTE: Final = 256
#: One key in so many was missing: then most of the time goes into those.
_MISSED_SHARE: Final = 4

#: The one NaN that keyed state stores: NaN differs from itself, so a dict finds it only by identity.
NAN: Final = float("nan")

_MASK32 = 0xFFFFFFFF
_NEVER_NAN: Final = frozenset((int, str, bytes, bool, type(None)))


def mix32(h: int) -> int:
    """Murmur3's finaliser on 32 bits: every input bit reaches every output bit."""
    h ^= h >> 16
    h = (h * 0x85EBCA6B) & _MASK32
    h ^= h >> 13
    h = (h * 0xC2B2AE35) & _MASK32
    return h ^ (h >> 16)


def stable_hash(key: Any) -> int:
    """Return a 32-bit hash of a key.

    str and bytes: CRC-32 of the (UTF-8) bytes; integers in 64 bits: low xor high word; others by their parts.
    Raises: ProgramError for a type whose hash could differ between processes (plain objects, sets, lists, dicts).
    """
    kind = type(key)
    if kind is str:
        return zlib.crc32(key.encode("utf-8", "surrogatepass"))
    if kind is int or kind is bool:
        if -(1 << 63) <= key < (1 << 63):
            return (key ^ (key >> 32)) & _MASK32
        return zlib.crc32(repr(int(key)).encode())
    if kind is tuple or kind is Row:
        h = 0x9E3779B9 ^ len(key)
        for part in key:
            h = (mix32(h) * 31 + stable_hash(part)) & _MASK32
        return h
    return _hash_rare(key)


def _hash_rare(key: Any) -> int:
    match key:
        case None:
            return 0x2545F491
        case float():
            if math.isnan(key):
                return 0x7FC00000
            if key.is_integer():
                return stable_hash(int(key))
            return zlib.crc32(key.hex().encode())
        case bytes():
            return zlib.crc32(key)
        case decimal.Decimal():
            if key.is_nan():
                return 0x7FC00000
            # Equal numbers of other types must meet: integers as int, binary fractions as float.
            if key.is_finite() and key == key.to_integral_value():
                return stable_hash(int(key))
            as_float = float(key)
            same = math.isinf(as_float) or decimal.Decimal(as_float) == key
            return _hash_rare(as_float) if same else zlib.crc32(str(key.normalize()).encode())
        case dt.datetime():
            moment = key.astimezone(dt.UTC) if key.tzinfo else key
            return zlib.crc32(moment.isoformat().encode())
        case dt.time() if key.tzinfo is not None and key.utcoffset() is not None:
            # Aware times are equal when they mean the same moment: 12:00+00:00 == 13:00+01:00.
            since_midnight = dt.timedelta(0, (key.hour * 60 + key.minute) * 60 + key.second, key.microsecond)
            return _hash_rare(since_midnight - (key.utcoffset() or dt.timedelta()))
        case dt.date() | dt.time():
            return zlib.crc32(key.isoformat().encode())
        case dt.timedelta():
            return stable_hash((key.days, key.seconds, key.microseconds))
        case str():
            return zlib.crc32(str.__str__(key).encode("utf-8", "surrogatepass"))
        case int():
            return stable_hash(int(key))
        case tuple():
            return stable_hash(tuple(key))
        case enum.Enum():
            return zlib.crc32(f"{type(key).__qualname__}.{key.name}".encode())
        case uuid.UUID():
            return zlib.crc32(key.bytes)
    if dataclasses.is_dataclass(key) and not isinstance(key, type):
        return stable_hash(tuple(getattr(key, field.name) for field in dataclasses.fields(key)))
    item = getattr(key, "item", None)  # numpy scalars
    if item is not None and type(key).__module__ == "numpy":
        return stable_hash(key.item())
    raise ProgramError(
        f"{key!r} of type {type(key).__name__} cannot be a key: its hash is not the same in every process. "
        "Use str, bytes, int, float, bool, None, tuple, Decimal, date/time, Enum, UUID, a dataclass or Row of these."
    )


def key_group_of(key: Any, max_parallelism: int) -> int:
    return mix32(stable_hash(key)) % max_parallelism


def subtask_of_key_group(key_group: int, parallelism: int, max_parallelism: int) -> int:
    return key_group * parallelism // max_parallelism


def key_group_range(subtask_index: int, parallelism: int, max_parallelism: int) -> range:
    """Return the key groups of a subtask; ranges of all subtasks tile [0, max_parallelism)."""
    start = (subtask_index * max_parallelism + parallelism - 1) // parallelism
    end = ((subtask_index + 1) * max_parallelism + parallelism - 1) // parallelism
    return range(start, end)


class KeyToSubtask(dict[Any, int]):
    """Memo of key → subtask: ``list(map(memo.__getitem__, keys))`` runs at C speed on repeated keys.

    Forgets all when it grows past its bound. Keys that are equal share an entry, which is right by the law above.
    """

    def __init__(self, parallelism: int, max_parallelism: int) -> None:
        super().__init__()
        assert 0 < parallelism <= max_parallelism
        self._parallelism = parallelism
        self._max_parallelism = max_parallelism
        self._num_missed = 0  #: since the last batch

    def of_keys(self, keys: Sequence[Any]) -> bytes | None:
        """Return the subtask of each key, a byte a key, where that is quicker than looking the keys up one by one: when
        the last batch was mostly of keys not seen before, and these are integers or texts. None = look them up.

        Rate: 15 M integers, 5 M texts a second; the lookup costs 0.7 us for a key that is missing.
        """
        num_missed, self._num_missed = self._num_missed, 0
        if self._parallelism > _BYTE or num_missed * _MISSED_SHARE < len(keys):
            return None
        kinds = set(map(type, keys))
        if kinds != {int} and kinds != {str}:
            return None
        self._num_missed = len(keys)  # go on like this
        import numpy as np

        if kinds == {int}:
            try:
                numbers = np.array(keys, np.int64)
            except OverflowError:
                return None
            hashes = (numbers ^ (numbers >> 32)).astype(np.uint32)
        else:
            crc32 = zlib.crc32
            hashes = np.array([crc32(key.encode("utf-8", "surrogatepass")) for key in keys], np.uint32)
        hashes ^= hashes >> np.uint32(16)
        hashes *= np.uint32(0x85EBCA6B)
        hashes ^= hashes >> np.uint32(13)
        hashes *= np.uint32(0xC2B2AE35)
        hashes ^= hashes >> np.uint32(16)
        groups = hashes % np.uint32(self._max_parallelism)
        return (groups * np.uint32(self._parallelism) // np.uint32(self._max_parallelism)).astype(np.uint8).tobytes()

    def __missing__(self, key: Any) -> int:
        self._num_missed += 1
        subtask = mix32(stable_hash(key)) % self._max_parallelism * self._parallelism // self._max_parallelism
        if len(self) >= _MEMO_SIZE_MAX:
            self.clear()
        self[key] = subtask
        return subtask


def canonical_key(key: Any) -> Any:
    """Return ``key`` with every NaN in it replaced by ``NAN``, so that all NaN are one key.

    Keyed state calls it only when a key is not found: a stored key is always canonical, hence a NaN that is
    another object always misses.
    """
    if type(key) in _NEVER_NAN:  # most keys: 50 ns instead of 500
        return key
    match key:
        case float():
            return NAN if math.isnan(key) else key
        case tuple():
            parts = tuple(map(canonical_key, key))
            changed = any(a is not b for a, b in zip(parts, key, strict=True))
            return parts if changed and type(key) is tuple else key
        case Row():
            if any(canonical_key(part) is not part for part in key):
                return Row(*map(canonical_key, key))
            return key
        case decimal.Decimal():
            return NAN if key.is_nan() else key
    if type(key).__module__ == "numpy" and key != key:
        return NAN
    return key
