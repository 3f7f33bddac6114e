"""How many records a step takes: as many as make it last 2 to 10 ms. Pure.

A slow user function thus sees small batches, so that cancel, buffer timeout and the other tasks of the slot are served;
a fast one sees large batches. It begins with one record: nobody knows yet how long that takes.
"""

from __future__ import annotations

from typing import Final, final

from engine.core.records import BATCH_ROWS_MAX

__all__ = ["StepSize"]

_LONG_NS: Final = 10_000_000
_SHORT_NS: Final = 2_000_000
_WANTED_NS: Final = 5_000_000
_GROWTH_MAX: Final = 8


@final
class StepSize:
    """``rows_max``: records for the next step."""

    def __init__(self) -> None:
        self.rows_max = 1

    def observe(self, num_rows: int, took_ns: int) -> None:
        """A step of ``num_rows`` records took so long."""
        if num_rows <= 0:
            return
        if took_ns > _LONG_NS:
            self.rows_max = max(1, min(self.rows_max, num_rows * _WANTED_NS // took_ns))
        elif took_ns < _SHORT_NS and num_rows >= self.rows_max:
            growth = min(_GROWTH_MAX, max(2, _WANTED_NS // max(1, took_ns)))
            self.rows_max = min(BATCH_ROWS_MAX, self.rows_max * growth)
