"""How many records a step takes: as many as make it last 2 to 10 ms and fill a queue's worth of buffers. Pure.

A slow user function thus sees small batches, so that cancel, buffer timeout and the other tasks of the slot are served;
a fast one sees large batches. It begins with one record: nobody knows yet how long that takes. What a call costs
however few its records (a model, a look-up over the network) is no reason for small batches: it is known from steps of
different size, one of which is tried now and then, and stands outside of the account. A step that fills more buffers
than may wait would have to wait inside until slow consumers have taken them, and a checkpoint would wait with it: its
source could not take a snapshot.
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
#: After so many full steps of one size one of twice the size is tried: of slow records every 32nd step takes two.
_TRIAL_STEPS: Final = 32
#: Not where it might take longer than two of these: cancel waits for it.
_TRIAL_NS_MAX: Final = 1_000_000_000
#: A rest of a batch that is so many times smaller than a step goes along with it: alone it would cost as many calls.
_REST_SHARE: Final = 4


@final
class StepSize:
    """``rows_max``: records for the next step. ``partitions``: where steps put what they emit; may still grow."""

    def __init__(self, partitions: Sequence[ResultPartition] = ()) -> None:
        self.rows_max = 1
        #: what a step seems to cost whatever its size
        self._fixed_ns = 0
        #: records and duration of the last full step
        self._full = (0, 0)
        self._steps_to_trial = 1  #: the first record tells nothing of the second
        self._tried_from = 0  #: the size before a trial; 0 = none is under way
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
        is_full = num_rows >= self.rows_max
        if is_full:
            self._compare(num_rows, took_ns)
        tried_from, self._tried_from = self._tried_from, 0
        if tried_from and self._fixed_ns < took_ns // 4:
            self.rows_max = min(self.rows_max, tried_from)  # twice the records take twice as long: no gain
        else:
            self._resize(num_rows, took_ns - self._fixed_ns, took_ns, num_filled)
        if num_filled > QUEUE_BUFFERS_MAX:
            self.rows_max = max(1, min(self.rows_max, num_rows * QUEUE_BUFFERS_MAX // num_filled))

    def _compare(self, num_rows: int, took_ns: int) -> None:
        """Learn of two full steps one after the other, of different sizes, what both have cost besides records."""
        (fewer, short_ns), (more, long_ns) = sorted([self._full, (num_rows, took_ns)])
        self._full = (num_rows, took_ns)
        if fewer and 2 * more >= 3 * fewer:
            self._fixed_ns = max(0, short_ns - max(0, long_ns - short_ns) * fewer // (more - fewer))
            self._fixed_ns = min(self._fixed_ns, took_ns)
        else:
            self._fixed_ns -= self._fixed_ns >> 4  # one of them may have been held up: it is forgotten, and found anew

    def _resize(self, num_rows: int, rows_ns: int, took_ns: int, num_filled: int) -> None:
        """``rows_ns``: what the records took of ``took_ns``. They may take as long as the fixed cost does."""
        is_full = num_rows >= self.rows_max
        wanted_ns = max(_WANTED_NS, self._fixed_ns)
        smaller = max(1, min(self.rows_max, num_rows * wanted_ns // max(1, rows_ns)))
        if rows_ns > max(_LONG_NS, self._fixed_ns) and smaller < self.rows_max:
            self.rows_max = smaller
        elif is_full and rows_ns < max(_SHORT_NS, self._fixed_ns // 2):
            growth = min(_GROWTH_MAX, max(2, wanted_ns // max(1, rows_ns)))
            if num_filled:
                growth = max(1, min(growth, QUEUE_BUFFERS_MAX // num_filled))
            self.rows_max = min(BATCH_ROWS_MAX, self.rows_max * growth)
        elif is_full and not num_filled and took_ns <= _TRIAL_NS_MAX:
            self._steps_to_trial -= 1
            if not self._steps_to_trial and self.rows_max < BATCH_ROWS_MAX:
                self._tried_from, self.rows_max = self.rows_max, min(BATCH_ROWS_MAX, 2 * self.rows_max)
            if self._steps_to_trial <= 0:
                self._steps_to_trial = _TRIAL_STEPS
