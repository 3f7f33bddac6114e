"""What changed in sessions over columns since which barrier, and the increments that say so.

Keys are marked, not sessions: those of a key become one, and their numbers are given again. An increment has all
sessions of each key that changed, and takes the place of what lower layers have of it; keys that have none any more are
a stream of their own behind them (``session_unsent``). Marks of a partition that lies in a file lie there with it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
import pyarrow as pa

from engine.operators.session_unsent import metadata_of
from engine.state.block_marks import grown_marks, marked_slots, moved_marks, num_marked, num_united, united_marks
from engine.state.changes import CHANGED_MIN, EpochLog
from engine.state.column_chunks import GONE_KEYS, INCREMENT, by_group, empty_chunk, streams
from engine.state.column_hash import groups_of_rows
from engine.state.noted import NotedDelta
from engine.state.slot_kernels import mark_blocks

if TYPE_CHECKING:
    from engine.operators.session_state import SessionState

    Array = np.ndarray[Any, Any]

__all__ = ["Changed", "SessionChanges", "increment_of"]

#: Each key has a mark of its own, as those of windows have (``window_changes``).
_MARK_SHIFT: Final = 0
#: Of the state's bytes, for marks: epochs beyond it are forgotten, oldest first.
_MARKS_SHARE: Final = 1 / 4
#: Fewer keys than this are remembered in any case.
_MARKED_MIN: Final = CHANGED_MIN
#: Rows of columns that are noted in the time of an entry of objects.
_ROWS_PER_ENTRY: Final = 8


@final
class _Notes:
    """Marks of an epoch, or of several, by slot of the key; united when somebody reads them."""

    def __init__(self) -> None:
        self.marks: tuple[Array, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(own.nbytes for own in self.marks)

    def add(self, later: _Notes) -> None:
        self.marks = (*self.marks, *later.marks)

    def unite(self) -> None:
        self.marks = (united_marks(self.marks),) if self.marks else ()


def _nbytes_of(notes: _Notes) -> int:
    return notes.nbytes


def increment_of(state: SessionState) -> dict[str | bytes, str | bytes]:
    """Return what a chunk of an increment says of itself."""
    return {**state.metadata(), INCREMENT: "1"}


@final
class SessionChanges:
    """Notes nothing before the first barrier, since no increment builds on less."""

    def __init__(self) -> None:
        self._log: EpochLog[_Notes] = EpochLog(_Notes, _Notes.add, _nbytes_of)
        self._now: _Notes | None = None

    # --- what happens

    def mark(self, slots: Array, num_slots: int) -> None:
        """Sessions of these keys, int32, change."""
        if self._now is not None and slots.size:
            have = united_marks(self._now.marks) if self._now.marks else np.zeros(0, np.uint8)
            marks = grown_marks(have, num_slots, _MARK_SHIFT)
            self._now.marks = (marks,)
            mark_blocks(slots, _MARK_SHIFT, marks)

    def marked(self, num_slots: int, num_sessions: int) -> Array:
        """Return the keys that are marked in any epoch, rising: they are needed though they may have no session. With
        more of them than sessions an increment is not worth it: until the next barrier nothing is noted."""
        marks = [own for notes in self._log.notes() for own in notes.marks]
        marked = marked_slots(united_marks(marks), num_slots, _MARK_SHIFT)
        if marked.size > max(_MARKED_MIN, num_sessions):
            self.clear()
            return marked[:0]
        return marked

    def are_marked(self, begin: int, end: int) -> Array:
        """Return whether keys are marked in any epoch, of those from ``begin`` on, before ``end``."""
        found = np.zeros(end - begin, np.bool_)
        for notes in self._log.notes():
            for marks in notes.marks:
                own = marks[begin:end]
                found[: own.size] |= own != 0
        return found

    def compact(self, kept: Array) -> None:
        """``kept``: slots, all that are marked among them; slot ``kept[i]`` becomes slot i."""
        for notes in self._log.notes():
            if notes.marks:
                notes.marks = (moved_marks(united_marks(notes.marks), kept, _MARK_SHIFT),)

    def clear(self) -> None:
        """The next snapshot is a full one."""
        self._log.clear()
        self._now = None

    @property
    def nbytes(self) -> int:
        return sum(notes.nbytes for notes in self._log.notes())

    # --- epochs

    def begin_epoch(self, checkpoint_id: int, state_bytes: int) -> None:
        self._now = self._log.begin(checkpoint_id, max(CHANGED_MIN, int(state_bytes * _MARKS_SHARE)))

    def forget_epochs(self, until_checkpoint_id: int, kept_ids: Container[int] = ()) -> None:
        self._log.forget(until_checkpoint_id, kept_ids)
        for notes in self._log.notes():
            notes.unite()

    def knows(self, checkpoint_id: int) -> bool:
        """Whether it is known what changed since that barrier."""
        return any(begun_by == checkpoint_id for begun_by, _ in self._log.items())

    def counts(self, since: int = 0) -> dict[int, int]:
        """Return how many keys are marked in each epoch from that barrier on, by what began it, oldest first."""
        return {
            begun_by: sum(num_marked(own, _MARK_SHIFT) for own in notes.marks)
            for begun_by, notes in self._log.items()
            if begun_by >= since
        }

    # --- increments

    def num_changed(self, since_checkpoint_id: int, at_most: int) -> int | None:
        notes = self._log.since(since_checkpoint_id)
        if notes is None:
            return None
        changed = num_united(notes.marks, _MARK_SHIFT, at_most)
        return changed if changed <= at_most else None

    def delta(self, state: SessionState, since_checkpoint_id: int) -> Changed | None:
        """Return what an increment has; None = a full snapshot is needed."""
        notes = self._log.since(since_checkpoint_id)
        return None if notes is None else Changed(state, notes)

    def note(
        self, state: SessionState, key_groups: Iterable[int], since_checkpoint_id: int, entries_max: int
    ) -> NotedDelta | None:
        """As ``delta``, copied now and made into bytes later; None also where that takes longer than ``entries_max``
        entries do."""
        rows_max = entries_max * _ROWS_PER_ENTRY
        notes = self._log.since(since_checkpoint_id)
        if notes is None or not state.is_defined or num_united(notes.marks, _MARK_SHIFT, rows_max) > rows_max:
            return None
        changed = Changed(state, notes, rows_max)
        if changed.num_rows > rows_max:
            return None
        key_groups = list(key_groups)
        return NotedDelta(changed.num_rows // _ROWS_PER_ENTRY, lambda: changed.chunks(key_groups))


@final
class Changed:
    """What an increment has, copied; nothing is, and ``num_rows`` is larger, where it would be more than
    ``rows_max``."""

    def __init__(self, state: SessionState, notes: _Notes, rows_max: int | None = None) -> None:
        self._cut = state.cut_of_keys()
        self._rows: list[pa.RecordBatch] = []
        self._gone: list[pa.RecordBatch] = []
        self.num_rows = 0
        self._metadata = increment_of(state)
        slots = marked_slots(united_marks(notes.marks), state.num_keys, _MARK_SHIFT)
        own, gone = state.sessions_of_keys(slots)
        self.num_rows = own.sessions.size + gone.size + state.num_distinct(own.sessions)
        if rows_max is not None and self.num_rows > rows_max:
            return
        if own.sessions.size:
            self._rows.append(state.rows_of(own))
        if gone.size:
            keys = state.keys_of_slots(gone)
            self._gone.append(pa.RecordBatch.from_arrays(keys, names=[f"k{index}" for index in range(len(keys))]))

    def add(self, other: Changed) -> None:
        """``other``: of other keys."""
        self._rows += other._rows
        self._gone += other._gone
        self.num_rows += other.num_rows

    def chunks(self, key_groups: Iterable[int]) -> dict[int, bytes]:
        """Depends on nothing but what was copied."""
        wanted = set(key_groups)
        chunks = streams(self._pieces(self._rows, 2, wanted), self._metadata)
        for group, keys in streams(self._pieces(self._gone, 0, wanted), metadata_of(GONE_KEYS)).items():
            chunks[group] = chunks.get(group, empty_chunk(self._metadata)) + keys
        return chunks

    def _pieces(
        self, batches: list[pa.RecordBatch], first_key: int, wanted: set[int]
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        num_keys, max_parallelism, is_tuple = self._cut
        for rows in batches:
            keys = rows.columns[first_key : first_key + num_keys]
            yield from by_group(rows, groups_of_rows(keys, max_parallelism, is_tuple=is_tuple), wanted)
