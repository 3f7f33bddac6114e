"""What changed in sessions over columns since which barrier, and the increments that say so.

Keys are marked, not sessions: those of a key become one, and their numbers are given again. An increment has all
sessions of each key that changed, and takes the place of what lower layers have of it; keys that have none any more are
a stream of their own behind them (``session_unsent``). Only of sessions in memory: those in files are written whole.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
import pyarrow as pa

from engine.operators.session_unsent import metadata_of
from engine.state.block_marks import grown_marks, marked_slots, moved_marks, num_united, united_marks
from engine.state.changes import CHANGED_MIN, EpochLog
from engine.state.column_chunks import GONE_KEYS, INCREMENT, by_group, empty_chunk, streams
from engine.state.column_hash import groups_of_rows
from engine.state.noted import NotedDelta
from engine.state.slot_kernels import mark_blocks

if TYPE_CHECKING:
    from engine.operators.session_state import SessionState

    Array = np.ndarray[Any, Any]

__all__ = ["SessionChanges"]

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


@final
class SessionChanges:
    """Notes nothing before the first barrier, since no increment builds on less."""

    def __init__(self) -> None:
        self._log: EpochLog[_Notes] = EpochLog(_Notes, _Notes.add, lambda notes: notes.nbytes)
        self._now: _Notes | None = None

    # --- what happens

    def mark(self, slots: Array, num_slots: int) -> None:
        """Sessions of these keys, int32, change."""
        if self._now is not None:
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

    # --- increments

    def num_changed(self, since_checkpoint_id: int, at_most: int) -> int | None:
        notes = self._log.since(since_checkpoint_id)
        if notes is None:
            return None
        changed = num_united(notes.marks, _MARK_SHIFT, at_most)
        return changed if changed <= at_most else None

    def delta(
        self, state: SessionState, key_groups: Iterable[int], since_checkpoint_id: int
    ) -> dict[int, bytes] | None:
        """Return the chunks of an increment; None = a full snapshot is needed."""
        notes = self._log.since(since_checkpoint_id)
        if notes is None:
            return None
        return _Changed(state, notes).chunks(list(key_groups)) if state.is_defined else {}

    def note(
        self, state: SessionState, key_groups: Iterable[int], since_checkpoint_id: int, entries_max: int
    ) -> NotedDelta | None:
        """As ``delta``, copied now and made into bytes later; None also where that takes longer than ``entries_max``
        entries do."""
        rows_max = entries_max * _ROWS_PER_ENTRY
        notes = self._log.since(since_checkpoint_id)
        if notes is None or not state.is_defined or num_united(notes.marks, _MARK_SHIFT, rows_max) > rows_max:
            return None
        changed = _Changed(state, notes, rows_max)
        if changed.num_rows > rows_max:
            return None
        key_groups = list(key_groups)
        return NotedDelta(changed.num_rows // _ROWS_PER_ENTRY, lambda: changed.chunks(key_groups))


class _Changed:
    """What an increment has, copied; nothing is, and ``num_rows`` is larger, where it would be more than
    ``rows_max``."""

    def __init__(self, state: SessionState, notes: _Notes, rows_max: int | None = None) -> None:
        self._cut = state.cut_of_keys()
        self._rows: pa.RecordBatch | None = None
        self._gone: pa.RecordBatch | None = None
        self.num_rows = 0
        slots = marked_slots(united_marks(notes.marks), state.num_keys, _MARK_SHIFT)
        own, gone = state.sessions_of_keys(slots)
        self.num_rows = own.sessions.size + gone.size + state.num_distinct(own.sessions)
        if rows_max is not None and self.num_rows > rows_max:
            return
        if own.sessions.size:
            self._rows = state.rows_of(own)
        if gone.size:
            keys = state.keys_of_slots(gone)
            self._gone = pa.RecordBatch.from_arrays(keys, names=[f"k{index}" for index in range(len(keys))])
        self._metadata = {**state.metadata(), INCREMENT: "1"}

    def chunks(self, key_groups: Iterable[int]) -> dict[int, bytes]:
        """Depends on nothing but what was copied."""
        chunks: dict[int, bytes] = {}
        if self._rows is not None:
            chunks |= streams(self._pieces(self._rows, 2, key_groups), self._metadata)
        if self._gone is not None:
            for group, keys in streams(self._pieces(self._gone, 0, key_groups), metadata_of(GONE_KEYS)).items():
                chunks[group] = chunks.get(group, empty_chunk(self._metadata)) + keys
        return chunks

    def _pieces(
        self, rows: pa.RecordBatch, first_key: int, key_groups: Iterable[int]
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        num_keys, max_parallelism, is_tuple = self._cut
        keys = rows.columns[first_key : first_key + num_keys]
        return by_group(rows, groups_of_rows(keys, max_parallelism, is_tuple=is_tuple), set(key_groups))
