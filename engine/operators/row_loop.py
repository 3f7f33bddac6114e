"""Loops over rows that another thread may cut short, so that a function that turns slow gives back what it has.

``[call(row) for row in loop.begin(rows)]`` costs what a plain comprehension costs: nothing asks the time in it. Whoever
finds that it takes too long calls ``RowLoop.cut``; the loop ends after the row it is at, and the operator goes on with
the rows that ``taken`` leaves. Pure; who cuts is ``runtime/taskmanager/watchdog``.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator
from typing import Any, final

from engine.operators.base import OperatorContext

__all__ = ["RowLoop", "Rows"]

_KEY = "row loop"


@final
class Rows:
    """The rows of one loop; iterate once."""

    __slots__ = ("_iterator", "_left", "_length")

    def __init__(self, rows: list[Any]) -> None:
        self._iterator: Any = iter(rows)
        self._length = len(rows)
        self._left: list[Any] = []  #: how many rows were left when the loop was cut

    def __iter__(self) -> Iterator[Any]:
        iterator: Iterator[Any] = self._iterator
        return iterator

    def taken(self) -> int:
        """Return how many rows the loop has taken. The last of them is the one it is at, or failed at."""
        return self._length - (self._left[0] if self._left else operator.length_hint(self._iterator))

    def cut(self) -> None:
        """Make the iterator end after the row it is at. Thread-safe."""
        if not self._left:
            iterator = self._iterator
            # One call into C holds the interpreter lock: the loop takes no row between the count and the end.
            steps = ((iterator.__length_hint__,), (iterator.__setstate__, self._length))
            self._left.extend(itertools.starmap(operator.call, steps))


@final
class RowLoop:
    """The loop that runs now in a slot; one for all operators of the slot, as it has one thread."""

    def __init__(self) -> None:
        self.current: Rows | None = None

    @staticmethod
    def of(slot_shared: dict[str, Any]) -> RowLoop:
        loop: RowLoop = slot_shared.setdefault(_KEY, RowLoop())
        return loop

    @staticmethod
    def of_context(ctx: OperatorContext) -> RowLoop:
        return RowLoop.of(ctx.slot_shared)

    def begin(self, rows: list[Any]) -> Rows:
        current = self.current = Rows(rows)
        return current

    def end(self) -> None:
        self.current = None

    def cut(self) -> None:
        """Thread-safe; does nothing between loops."""
        current = self.current
        if current is not None:
            current.cut()
