"""A table that an operator keeps by itself (key → value), as a part of state, in chunks as of a value state.

For operators whose loops would be slowed down by a state object.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any, final

from engine.state.changes import CHANGED_MIN, EpochLog
from engine.state.chunks import StateChunk, dump_keyed, load_keyed
from engine.state.heap_states import MISSING
from engine.state.key_groups import canonical_key, key_group_of
from engine.state.key_types import KeyTypes
from engine.state.noted import UNSETTLED, NotedDelta, Settler

__all__ = ["MappingPart"]


@final
class MappingPart:
    """Implements ``parts.NotingPart``. ``name``: of the state, for readers of savepoints.

    ``items``: all entries; ``get``: the value of a key or MISSING; ``put``: takes up a restored entry; ``size``: their
    number. Keys never go. Call ``see`` with the keys of each batch, when ``wants_keys``.
    """

    def __init__(
        self,
        name: str,
        max_parallelism: int,
        *,
        items: Callable[[], Iterable[tuple[Any, Any]]],
        get: Callable[[Any], Any],
        put: Callable[[Any, Any], None],
        size: Callable[[], int],
        owner: str,
        incremental: bool,
        key_types: KeyTypes | None = None,
    ) -> None:
        self._name = name
        self._max_parallelism = max_parallelism
        self._items = items
        self._get = get
        self._put = put
        self._owner = owner
        self._incremental = incremental
        self.num_entries = size
        self._key_types = key_types or KeyTypes(owner)
        self._log: EpochLog[set[Any]] = EpochLog(set, set.update, len)
        self._note: Callable[[Iterable[Any]], None] | None = None

    @property
    def wants_keys(self) -> bool:
        return self._note is not None or self._key_types.is_open

    def see(self, keys: list[Any]) -> None:
        """These keys are about to be written. Raises TypeError when one is not hashable."""
        if self._note is not None:
            self._note(keys)
        if self._key_types.is_open:
            for key in keys:
                self._key_types.see(key)
                if not self._key_types.is_open:
                    break

    def snapshot(self, key_groups: Iterable[int]) -> dict[int, bytes]:
        return self._chunks(key_groups, self._items())

    def _chunks(self, key_groups: Iterable[int], items: Iterable[tuple[Any, Any]]) -> dict[int, bytes]:
        wanted = set(key_groups)
        groups: dict[int, tuple[list[Any], list[Any]]] = {}
        for key, value in items:
            group = key_group_of(key, self._max_parallelism)
            if group in wanted:
                keys, values = groups.setdefault(group, ([], []))
                keys.append(key)
                values.append(value)
        return {
            group: dump_keyed({self._name: StateChunk("value", False, [(None, *entries)])}, self._owner)
            for group, entries in groups.items()
        }

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        for data in chunks.values():
            chunk = load_keyed(data, self._owner).get(self._name)
            if chunk is None:
                continue
            for _, keys, values in chunk.entries:
                self._key_types.note(keys)
                for key, value in zip(keys, values, strict=True):
                    self._put(canonical_key(key), value)

    def snapshot_delta(self, key_groups: Iterable[int], since_checkpoint_id: int) -> dict[int, bytes] | None:
        changed = self._changed_since(since_checkpoint_id)
        return None if changed is None else self._chunks(key_groups, self._items_of(changed))

    def note_delta(self, key_groups: Iterable[int], since_checkpoint_id: int, entries_max: int) -> NotedDelta | None:
        changed = self._changed_since(since_checkpoint_id)
        if changed is None or len(changed) > entries_max:
            return None
        settler = Settler(entries_max - len(changed))
        noted = []
        for key, value in self._items_of(changed):
            settled = settler.settled(value)
            if settled is UNSETTLED:
                return None
            noted.append((key, settled))
        return NotedDelta(entries_max - settler.entries_left, lambda: self._chunks(key_groups, noted))

    def _changed_since(self, checkpoint_id: int) -> set[Any] | None:
        """Return the keys; None = not known, or so many that a full snapshot is better."""
        keys = self._log.since(checkpoint_id)
        if keys is None:
            return None
        # Keys as the selector gave them: of those that are not canonical (NaN) the table has another object.
        changed = set(map(canonical_key, keys))
        return None if 2 * len(changed) > self.num_entries() else changed

    def _items_of(self, keys: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        for key in keys:
            value = self._get(key)
            if value is not MISSING:
                yield key, value

    def begin_epoch(self, checkpoint_id: int) -> None:
        if self._incremental:
            self._note = self._log.begin(checkpoint_id, max(CHANGED_MIN, self.num_entries())).update

    def forget_epochs(self, until_checkpoint_id: int, kept_ids: Container[int] = ()) -> None:
        self._log.forget(until_checkpoint_id, kept_ids)

    def num_changed(self, since_checkpoint_id: int, at_most: int) -> int | None:
        return self._log.num_since(since_checkpoint_id, at_most)
