"""What process and window functions yield, on its way to the operator's outputs: batched, stamped, sent to its side.

The caller iterates the user's generator through ``take`` inside its own try block and flushes outside of it, so that a
failure of an operator further down is never taken for one of this function.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, final

from engine.core.records import BATCH_ROWS_MAX, RowBatch
from engine.core.type_info import TypeInformation
from engine.operators.base import Output
from engine.operators.output_tag import OutputTag
from engine.operators.row_output import maker_of

__all__ = ["USUAL_RESULTS", "Gathered", "Results", "iterator_of"]


#: Surely iterable; asking an abstract class costs ten times as much.
USUAL_RESULTS: Final = frozenset((list, tuple, types.GeneratorType))


def iterator_of(results: Any, method: str) -> Iterator[Any]:
    """Return an iterator over what a function returned; raises TypeError for what cannot be meant."""
    if type(results) in USUAL_RESULTS:
        return iter(results)
    if isinstance(results, (str, bytes)):
        raise TypeError(
            f"{method} returned the {type(results).__name__} {results[:40]!r}, which would be cut into characters. "
            "Return a list of records, e.g. [value], or use map."
        )
    if not isinstance(results, Iterable):
        raise TypeError(
            f"{method} returned {results!r:.80} of type {type(results).__name__}; "
            "expected an iterable of records (list, generator…), or None for nothing."
        )
    return iter(results)


@final
class Results:
    """Collects results of one operator; ``flush`` hands them on. ``method`` names the function in messages.

    A loop over records may add to ``rows`` and ``stamps`` itself, after ``begin``; ``flush`` replaces both. ``make`` is
    to be called on each row, if it is there.
    """

    def __init__(self, out: Output, output_type: TypeInformation | None, method: str) -> None:
        self._out = out
        self._method = method
        self.make = maker_of(output_type)
        self.rows: list[Any] = []
        self.stamps: list[int] = []  #: event times, one a row, if they have any
        self._stamped = False
        #: tag id → rows, stamps, what makes them Rows
        self._sides: dict[str, tuple[list[Any], list[int], Callable[[Any], Any] | None]] = {}
        self._num_side = 0

    def begin(self, *, stamped: bool) -> None:
        """What is added next has event times, or has none. Hands on what is there, if that is otherwise."""
        if self._stamped is not stamped:
            self.flush()
            self._stamped = stamped

    def is_full(self) -> bool:
        """Whether there is as much as fits into a batch."""
        return len(self.rows) + self._num_side >= BATCH_ROWS_MAX

    def take(self, results: Any, stamp_ms: int | None) -> Iterator[Any] | None:
        """Take what ``results`` (an iterable) gives, all with that event time.

        Returns the rest of it when as much as fits into a batch was taken: ``flush``, then take the rest.
        """
        if self._stamped is not (stamp_ms is not None):
            if self.rows or self._num_side:
                return iterator_of(results, self._method)  # stamped and unstamped records never share a batch
            self._stamped = stamp_ms is not None
        iterator = iterator_of(results, self._method)
        rows, stamps, make = self.rows, self.stamps, self.make
        for result in iterator:
            if type(result) is tuple and result and type(result[0]) is OutputTag:
                self.take_side(result, stamp_ms)
                if self.is_full():
                    return iterator
                continue
            rows.append(result if make is None else make(result))
            if stamp_ms is not None:
                stamps.append(stamp_ms)
            if len(rows) >= BATCH_ROWS_MAX:
                return iterator
        return None

    def take_side(self, result: tuple[Any, ...], stamp_ms: int | None) -> None:
        """Take a pair whose first item is an OutputTag. Raises: TypeError if it is no pair."""
        if len(result) != 2:
            raise TypeError(f"{self._method} gave {result!r:.120}: expected (tag, value) for a side output.")
        tag, value = result
        side = self._sides.get(tag.tag_id)
        if side is None:
            side = self._sides[tag.tag_id] = ([], [], maker_of(tag.type_info))
        rows, stamps, make = side
        rows.append(value if make is None else make(value))
        if stamp_ms is not None:
            stamps.append(stamp_ms)
        self._num_side += 1

    def flush(self) -> None:
        """Hand on everything taken."""
        rows, stamps = self.rows, self.stamps
        if rows:
            self.rows, self.stamps = [], []
            self._out.emit(RowBatch(rows, stamps if self._stamped else None))
        if self._num_side:
            sides, self._sides = self._sides, {}
            self._num_side = 0
            for tag_id, (side_rows, side_stamps, _) in sides.items():
                self._out.emit_side(tag_id, RowBatch(side_rows, side_stamps if self._stamped else None))


@final
class Gathered:
    """Records that an operator makes one by one, each with the event time of the one that it comes from, in batches."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._rows: list[Any] = []
        self._stamps: list[int] = []

    def give(self, row: Any, stamp_ms: int | None) -> None:
        self._rows.append(row)
        if stamp_ms is not None:
            self._stamps.append(stamp_ms)
        if len(self._rows) >= BATCH_ROWS_MAX:
            self.flush()

    def flush(self) -> None:
        """Hand on everything given."""
        if self._rows:
            rows, stamps = self._rows, self._stamps
            self._rows, self._stamps = [], []
            self._out.emit(RowBatch(rows, stamps or None))
