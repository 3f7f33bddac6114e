"""How many records a step takes: as many as make it last 2 to 10 ms and fill a queue's worth of buffers. Pure.

A slow user function thus sees small batches, so that cancel, buffer timeout and the other tasks of the slot are served;
a fast one sees large batches. It begins with one record: nobody knows yet how long that takes. A step that fills more
buffers than may wait would have to wait inside until slow consumers have taken them, and a checkpoint would wait with
it: its source could not take a snapshot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

from engine.core.records import BATCH_ROWS_MAX
from engine.runtime.exchange.partition import QUEUE_BUFFERS_MAX, ResultPartition

__all__ = ["StepSize"]

_LONG_NS: Final = 10_000_000
_SHORT_NS: Final = 2_000_000
_WANTED_NS: Final = 5_000_000
_GROWTH_MAX: Final = 8
#: A rest of a batch that is so many times smaller than a step goes along with it: alone it would cost as many calls.
_REST_SHARE: Final = 4


@final
class StepSize:
    """``rows_max``: records for the next step. ``partitions``: where steps put what they emit; may still grow."""

    def __init__(self, partitions: Sequence[ResultPartition] = ()) -> None:
        self.rows_max = 1
        self._partitions = partitions
        self._waited = 0  #: full buffers that wait at the begin of the step, in the fullest queue
        self._waiting_max = 0

    def end_of(self, start: int, num_rows: int) -> int:
        """Return up to which of a batch's rows a step goes that begins at row ``start``."""
        end = start + self.rows_max
        return num_rows if num_rows - end <= self.rows_max // _REST_SHARE else end

    def begin(self) -> None:
        self._waited = self._waiting_max = max((one.num_waiting() for one in self._partitions), default=0)

    def look(self) -> None:
        """The step is about to wait, or has ended."""
        for partition in self._partitions:
            self._waiting_max = max(self._waiting_max, partition.num_waiting())

    def observe(self, num_rows: int, took_ns: int) -> None:
        """A step of ``num_rows`` records took so long."""
        if num_rows <= 0:
            return
        self.look()
        num_filled = self._waiting_max - self._waited
        if took_ns > _LONG_NS:
            self.rows_max = max(1, min(self.rows_max, num_rows * _WANTED_NS // took_ns))
        elif took_ns < _SHORT_NS and num_rows >= self.rows_max:
            growth = min(_GROWTH_MAX, max(2, _WANTED_NS // max(1, took_ns)))
            if num_filled:
                growth = max(1, min(growth, QUEUE_BUFFERS_MAX // num_filled))
            self.rows_max = min(BATCH_ROWS_MAX, self.rows_max * growth)
        if num_filled > QUEUE_BUFFERS_MAX:
            self.rows_max = max(1, min(self.rows_max, num_rows * QUEUE_BUFFERS_MAX // num_filled))
