"""Partitions of the keys of a subtask, cut by hash: those of a key group lie in a row. For state that goes to files.

Not to be confused with key groups, which are cut for good: how many partitions there are, and which keys they have, is
the business of one run of one subtask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np

from engine.state.chunks import LazyChunks
from engine.state.column_hash import mixed_hashes

if TYPE_CHECKING:
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

__all__ = ["HashPartitions"]

#: A hash has so many bits.
_CODE_BITS: Final = 32


@final
class HashPartitions:
    """``number``: of partitions; ``is_tuple``: the key is a tuple of its columns even if it is a single one."""

    def __init__(self, number: int, max_parallelism: int, key_groups: range, *, is_tuple: bool) -> None:
        self.number = number
        self._max_parallelism = max_parallelism
        self._key_groups = key_groups
        self._is_tuple = is_tuple
        #: partitions of a key group, or 1 where a partition has several groups
        self._num_subs = max(1, number // max(1, len(key_groups)))

    def of_rows(self, keys: Sequence[pa.Array]) -> Array:
        """Return the number of each row's partition, uint16."""
        return self._of_hashes(mixed_hashes(list(keys), is_tuple=self._is_tuple)).astype(np.uint16)

    def codes_of_rows(self, keys: Sequence[pa.Array]) -> Array:
        """Return a number for each row's key by which rows can be sorted: those of a partition lie in a row then, and
        equal keys have the same one. uint64; other keys may have it too."""
        hashes = mixed_hashes(list(keys), is_tuple=self._is_tuple)
        codes: Array = self._of_hashes(hashes) << np.uint64(_CODE_BITS) | hashes
        return codes

    def codes_of(self, partitions: range) -> tuple[int, int]:
        """Return where the codes of partitions begin, and end."""
        return partitions.start << _CODE_BITS, partitions.stop << _CODE_BITS

    def _of_hashes(self, hashes: Array) -> Array:
        groups = hashes % np.uint64(self._max_parallelism) - np.uint64(self._key_groups.start)
        if self._num_subs > 1:
            sub = hashes // np.uint64(self._max_parallelism) % np.uint64(self._num_subs)
            numbers = groups * np.uint64(self._num_subs) + sub
        else:
            numbers = groups * np.uint64(self.number) // np.uint64(max(self.number, len(self._key_groups)))
        # The rest, for a key of another subtask's range: it is in no checkpoint, but neither may it break anything.
        of_rows: Array = numbers % np.uint64(self.number)
        return of_rows

    def of_group(self, group: int) -> range:
        """Return the partitions that have the keys of a key group."""
        at = group - self._key_groups.start
        if self._num_subs > 1:
            return range(at * self._num_subs, (at + 1) * self._num_subs)
        first = at * self.number // max(self.number, len(self._key_groups))
        return range(first, first + 1)

    def lazy_chunks(
        self,
        key_groups: Sequence[int],
        having: Sequence[int],
        others: Mapping[int, bytes],
        make: Callable[[range, set[int]], Mapping[int, bytes]],
    ) -> LazyChunks:
        """Return the chunks of the key groups ``having``, made when asked for, those of the same partitions at once.

        ``others``: chunks that are there already; ``make``: makes those of key groups all of whose keys are in the
        partitions; ``key_groups``: all that are asked for.
        """
        made: dict[int, bytes] = {}

        def chunk_of(group: int) -> bytes:
            if group in others:
                return others[group]
            if group not in made:
                made.clear()
                numbers = self.of_group(group)
                made.update(make(numbers, {other for other in key_groups if self.of_group(other) == numbers}))
            return made[group]

        return LazyChunks({group: group for group in having}, chunk_of)
