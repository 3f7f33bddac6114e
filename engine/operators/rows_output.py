"""Where the row operator inside one on columns sends what it makes."""

from __future__ import annotations

from typing import final

from engine.core.records import Batch
from engine.operators.base import Output

__all__ = ["RowsOutput"]


@final
class RowsOutput:
    """An Output: to ours, or to nobody while it is told the time."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self.is_silent = False

    def emit(self, batch: Batch) -> None:
        self._out.emit(batch)

    def emit_side(self, tag: str, batch: Batch) -> None:
        self._out.emit_side(tag, batch)

    def emit_watermark(self, watermark_ms: int) -> None:
        if not self.is_silent:
            self._out.emit_watermark(watermark_ms)

    def emit_idle(self, idle: bool) -> None:
        self._out.emit_idle(idle)

    def emit_superstep_end(self, superstep: int) -> None:
        self._out.emit_superstep_end(superstep)
