"""What changed in windows over columns since which barrier: the memory behind their increments.

Of a pane (slice of time) in memory slots are marked, of one in files partitions of keys; besides it is noted
which panes were begun and which are gone. A pane that nobody touches in an epoch has no marks, and costs nothing. Not
here: what is done with it (``spilling_windows``).
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np

from engine.state.block_marks import grown_marks, marked_slots, moved_marks, num_united, united_marks
from engine.state.changes import CHANGED_MIN, EpochLog
from engine.state.slot_kernels import mark_blocks
from engine.time.windows import TIME_MAX_MS

if TYPE_CHECKING:
    from engine.operators.window_panes import Pane

    Array = np.ndarray[Any, Any]

__all__ = ["PaneNotes", "WindowChanges"]

#: Each slot has a mark of its own, unlike those of aggregations, of which eight share one: a byte beside the 16 to 100
#: of a slot. One per cent of the keys by chance is then one per cent of what is written, and little enough to be noted
#: at the barrier; with eight it would be 8 %, and every sixth increment a full layer.
_MARK_SHIFT: Final = 0
#: Of the state's bytes in memory, for marks: epochs beyond it are forgotten, oldest first.
_MARKS_SHARE: Final = 1 / 4
_NO_MARKS: Final[Any] = np.zeros(0, np.uint8)


@final
class PaneNotes:
    """What changed in an epoch, or in several. Panes go by where they start."""

    def __init__(self) -> None:
        #: of panes in memory; several arrays are united when somebody reads them
        self.slots: dict[int, tuple[Array, ...]] = {}
        #: of panes in files
        self.partitions: dict[int, Array] = {}
        #: begun, and there still
        self.begun: set[int] = set()
        #: gone, with the entries they had, unless they were begun here
        self.gone: dict[int, int] = {}
        #: watermark at the beginning
        self.watermark_ms = TIME_MAX_MS

    def num_slots(self, at_most: int) -> int:
        """Return how many slots changed, of panes in memory, or more than ``at_most``."""
        return sum(num_united(marks, _MARK_SHIFT, at_most) for marks in self.slots.values())

    def slots_of(self, start: int, pane: Pane) -> Array:
        """Return the slots of a pane in memory that changed."""
        return marked_slots(united_marks(self.slots.get(start, ())), pane.values.shape[0], _MARK_SHIFT)

    def unite(self) -> None:
        """Have one array a pane."""
        self.slots = {start: (united_marks(marks),) for start, marks in self.slots.items()}

    @property
    def nbytes(self) -> int:
        return sum(own.nbytes for marks in self.slots.values() for own in marks)

    def drop(self, start: int, num_entries: int) -> None:
        """A pane is gone."""
        self.slots.pop(start, None)
        self.partitions.pop(start, None)
        if start in self.begun:
            self.begun.discard(start)
        else:
            self.gone.setdefault(start, num_entries)

    def add(self, later: PaneNotes) -> None:
        """Take up what was noted behind this."""
        for start, num_entries in later.gone.items():
            self.drop(start, num_entries)
        self.begun |= later.begun
        for start, marks in later.slots.items():
            self.slots[start] = (*self.slots.get(start, ()), *marks)
        for start, own in later.partitions.items():
            self.partitions[start] = own | self.partitions.get(start, np.uint8(0))
        self.watermark_ms = min(self.watermark_ms, later.watermark_ms)


@final
class WindowChanges:
    """Notes nothing before the first barrier, since no increment builds on less. ``num_partitions``: of panes in
    files."""

    def __init__(self, num_partitions: int) -> None:
        self._num_partitions = num_partitions
        self._log: EpochLog[PaneNotes] = EpochLog(PaneNotes, PaneNotes.add, lambda notes: notes.nbytes)
        self._now: PaneNotes | None = None
        self.nbytes = 0

    # --- what happens

    def begin_pane(self, start: int) -> None:
        if self._now is not None:
            self._now.begun.add(start)

    def mark_slots(self, start: int, slots: Array, num_slots: int) -> None:
        """These slots of a pane in memory change; int32."""
        if self._now is not None:
            (have,) = self._now.slots.get(start, (_NO_MARKS,))
            marks = grown_marks(have, num_slots, _MARK_SHIFT)
            if marks is not have:
                self._now.slots[start] = (marks,)
                self.nbytes += marks.nbytes - have.nbytes
            mark_blocks(slots, _MARK_SHIFT, marks)

    def mark_partitions(self, start: int, partitions: Any) -> None:
        """These partitions of a pane in files change: an array of numbers, or a slice."""
        if self._now is not None:
            self._marks_of_partitions(self._now, start)[partitions] = 1

    def _marks_of_partitions(self, notes: PaneNotes, start: int) -> Array:
        if start not in notes.partitions:
            notes.partitions[start] = np.zeros(self._num_partitions, np.uint8)
        return notes.partitions[start]

    def drop(self, start: int, num_entries: int) -> None:
        """A pane is gone, in which so many entries were."""
        if self._now is not None:
            self._now.drop(start, num_entries)

    def clear(self) -> None:
        """Everything is gone: the next snapshot is a full one."""
        self._log.clear()
        self._now, self.nbytes = None, 0

    # --- what lies elsewhere now, but is what it was

    def compact(self, kept: Array) -> None:
        """``kept``: rising slots; slot ``kept[i]`` becomes slot i."""
        for notes in self._log.notes():
            notes.slots = {
                start: (moved_marks(united_marks(marks), kept, _MARK_SHIFT),) for start, marks in notes.slots.items()
            }
        self._count()

    def to_files(self, start: int, slots: Array, partitions: Array) -> None:
        """These slots of a pane go to partitions of files, whose numbers are given; ``forget_slots`` follows."""
        for notes in self._log.notes():
            if start in notes.slots:
                marks = united_marks(notes.slots[start])
                is_marked = slots < marks.size
                is_marked[is_marked] = marks[slots[is_marked]] != 0
                if is_marked.any():
                    self._marks_of_partitions(notes, start)[partitions[is_marked]] = 1

    def forget_slots(self, starts: Iterable[int]) -> None:
        """No slot of these panes is in memory any more."""
        for start in starts:
            for notes in self._log.notes():
                notes.slots.pop(start, None)
        self._count()

    # --- epochs

    def begin_epoch(self, checkpoint_id: int, watermark_ms: int, state_bytes: int) -> None:
        self._now = self._log.begin(checkpoint_id, max(CHANGED_MIN, int(state_bytes * _MARKS_SHARE)))
        self._now.watermark_ms = watermark_ms
        self._count()

    def since(self, checkpoint_id: int) -> PaneNotes | None:
        """Return what changed since that barrier, to be read before more changes; None = not known."""
        return self._log.since(checkpoint_id)

    def forget_epochs(self, until_checkpoint_id: int, kept_ids: Container[int] = ()) -> None:
        self._log.forget(until_checkpoint_id, kept_ids)
        for notes in self._log.notes():
            notes.unite()
        self._count()

    def _count(self) -> None:
        self.nbytes = sum(notes.nbytes for notes in self._log.notes())
