"""Chunks of state that an operator of another kind has left in a checkpoint, for the one that follows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["LeftChunks"]


class LeftChunks:
    """Implements ``parts.KeyedPart``: holds the chunks until they are taken up. Increments stand behind what they
    build on, in one chunk."""

    def __init__(self) -> None:
        self._chunks: dict[int, bytes] = {}

    def num_entries(self) -> int:
        return len(self._chunks)

    def snapshot(self, key_groups: Iterable[int]) -> dict[int, bytes]:
        wanted = set(key_groups)
        return {group: chunk for group, chunk in self._chunks.items() if group in wanted}

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        for group, chunk in chunks.items():
            self._chunks[group] = self._chunks.get(group, b"") + chunk

    def chunks(self) -> Iterable[bytes]:
        return self._chunks.values()

    def take_chunks(self) -> Iterable[bytes]:
        """Return the chunks and forget them."""
        chunks, self._chunks = self._chunks, {}
        return chunks.values()
