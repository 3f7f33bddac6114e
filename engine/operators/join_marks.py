"""Which records of a join have come since which barrier: the memory behind its increments.

Records get rising numbers as they come, so what has come since a barrier is what has a number from there on; what is
gone is said in a few words (``join_state.Told``), as records go by time and not one by one.
"""

from __future__ import annotations

from collections.abc import Container
from typing import final

from engine.core.late_dataclass import dataclass
from engine.state.changes import EPOCHS_MAX

__all__ = ["JoinMark", "JoinMarks"]


@final
@dataclass(frozen=True, slots=True)
class JoinMark:
    """At a barrier: ``arrived``, the number of the next record, by side; watermarks and slices of time that were gone
    until then; entries."""

    arrived: tuple[int, int]
    num_watermarks: int
    num_gone: int
    num_entries: int


@final
class JoinMarks:
    """Notes nothing before the first barrier, since no increment builds on less."""

    def __init__(self) -> None:
        self._marks: dict[int, JoinMark] = {}
        self.num_watermarks = 0
        #: where slices of time began that are gone, since the oldest barrier; and how many were before
        self._gone: list[int] = []
        self._num_gone_before = 0

    def clear(self) -> None:
        """The next snapshot is a full one."""
        self._marks, self._gone = {}, []

    def of(self, checkpoint_id: int) -> JoinMark | None:
        return self._marks.get(checkpoint_id)

    def note_gone(self, start: int) -> None:
        if self._marks:
            self._gone.append(start)

    def gone_since(self, mark: JoinMark) -> tuple[int, ...]:
        return tuple(sorted(set(self._gone[mark.num_gone - self._num_gone_before :])))

    def begin(self, checkpoint_id: int, arrived: tuple[int, int], num_entries: int) -> None:
        num_gone = self._num_gone_before + len(self._gone)
        self._marks[checkpoint_id] = JoinMark(arrived, self.num_watermarks, num_gone, num_entries)
        while len(self._marks) > EPOCHS_MAX:
            del self._marks[min(self._marks)]  # what builds on it is a full one
        self._forget_gone()

    def forget(self, until_checkpoint_id: int, kept_ids: Container[int] = ()) -> None:
        self._marks = {id: mark for id, mark in self._marks.items() if id >= until_checkpoint_id or id in kept_ids}
        self._forget_gone()

    def _forget_gone(self) -> None:
        first = min((mark.num_gone for mark in self._marks.values()), default=self._num_gone_before + len(self._gone))
        del self._gone[: first - self._num_gone_before]
        self._num_gone_before = first
