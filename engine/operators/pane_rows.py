"""Which rows of a batch are of which pane of event time: a pane begins each so many milliseconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    #: a row, where its pane starts, the windows of it that have fired
    _Late = tuple[int, int, list[tuple[int, int]]]

__all__ = ["by_record", "rows_of_panes"]

#: Panes that one batch may have before it is cut.
_PANES_MAX: Final = 32


def rows_of_panes(times_ms: Array, slice_ms: int, offset_ms: int) -> Iterator[tuple[int, int, list[tuple[int, Array]]]]:
    """Yield parts of a batch, most often one: the rows where it begins and ends, and where each of its panes starts,
    with its rows (int32, rising), in the order in which panes come first. The arrays are nobody else's to keep."""
    num_rows = times_ms.size
    if not num_rows:
        return
    low, high = int(times_ms.min()), int(times_ms.max())
    start = low - (low - offset_ms) % slice_ms
    if high < start + slice_ms:
        yield 0, num_rows, [(start, _all_rows(num_rows))]
    elif high < start + 2 * slice_ms:
        yield 0, num_rows, _of_two(times_ms, start, start + slice_ms)
    else:
        yield from _of_many(times_ms, slice_ms, offset_ms)


@cache
def _first_rows(num_rows: int) -> Array:
    import numpy as np

    return np.arange(num_rows, dtype=np.int32)


def _all_rows(num_rows: int) -> Array:
    return _first_rows(1 << (num_rows - 1).bit_length())[:num_rows]


def _of_two(times_ms: Array, start: int, middle: int) -> list[tuple[int, Array]]:
    import numpy as np

    from engine.operators.column_kernels import rows_of_two_panes

    earlier, later = np.empty((2, times_ms.size + 1), np.int32)
    num_earlier = rows_of_two_panes(times_ms, middle, earlier, later)
    panes = [(start, earlier[:num_earlier]), (middle, later[: times_ms.size - num_earlier])]
    return panes if times_ms[0] < middle else panes[::-1]


def _of_many(times_ms: Array, slice_ms: int, offset_ms: int) -> Iterator[tuple[int, int, list[tuple[int, Array]]]]:
    import numpy as np

    from engine.operators.column_kernels import panes_of_times, rows_by_pane

    pane_of_row, rows = np.empty((2, times_ms.size), np.int32)
    starts = np.empty(_PANES_MAX, np.int64)
    end = 0
    while end < times_ms.size:
        begin = end
        end, num_panes = panes_of_times(times_ms, begin, (slice_ms, offset_ms), starts, 0, pane_of_row)
        ends = np.empty(num_panes, np.int64)
        rows_by_pane(pane_of_row, begin, end, ends, rows)
        first = [begin, *ends[:-1].tolist()]
        bounds = zip(starts[:num_panes].tolist(), first, ends.tolist(), strict=True)
        yield begin, end, [(start, rows[one:other]) for start, one, other in bounds]


def by_record(late: Iterable[_Late]) -> list[_Late]:
    """Return late rows in the order of records; of one record, the last window first, as on rows."""
    return sorted(late, key=lambda one: (one[0], -one[1]))
