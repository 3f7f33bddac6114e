"""Takes up restored state key group by key group after the task has begun: each when the first record of one of its
keys comes, the others in between.

A task that restores a gigabyte then has its first results after milliseconds. While something is left the backend
calls ``clean_up`` with each record, as it does for state that expires; afterwards a record costs what it always does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from engine.state.heap_states import KeyContext
from engine.state.key_groups import key_group_of
from engine.state.parts import ChunkSource

__all__ = ["LateRestore"]


@final
class LateRestore:
    """``sizes``: key group → about how many entries it has. ``take`` takes up a chunk, ``on_end`` is called when there
    is nothing left. Raises (all methods): CorruptStateError, ProgramError."""

    def __init__(
        self,
        source: ChunkSource,
        sizes: dict[int, int],
        keys: KeyContext,
        max_parallelism: int,
        take: Callable[[bytes], None],
        on_end: Callable[[], None],
    ) -> None:
        self._source = source
        self._left = sizes
        self._keys = keys
        self._max_parallelism = max_parallelism
        self._take = take
        self._on_end = on_end

    def num_entries(self) -> int:
        return sum(self._left.values())

    def clean_up(self) -> None:
        """The current key is about to be used."""
        group = key_group_of(self._keys.key_or_none, self._max_parallelism)
        if group in self._left:
            self._load(group)

    def load_one(self) -> None:
        self._load(next(iter(self._left)))

    def load_all(self) -> None:
        while self._left:
            self.load_one()

    def close(self) -> None:
        self._left.clear()
        self._source.close()

    def _load(self, group: int) -> None:
        for chunk in self._source.read(group):
            self._take(chunk)
        del self._left[group]
        if not self._left:
            self._source.close()
            self._on_end()
