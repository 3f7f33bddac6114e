"""How long a task stands still while a window fires: ``python -m tests.bench.window_firing [--keys 2000000]``.

Count, sum and maximum by int64 key: tumbling windows, windows of four slices (``--slide``), in files (``--memory-mb
64``), or sessions (``--sessions``); behind them results become rows, as for a function (``--alone``: nothing does). One
watermark closes a window of all keys, once in one piece, as it was done before, once in pieces, between which a slot
steps its other tasks: the longest piece and the sum, in milliseconds of CPU time, of several rounds the best by its
sum. ``--rows``: windows on rows, of a hundredth of the keys.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from engine.core.records import rows_of
from engine.operators.field_aggregates import RowAggregates, WindowRecord, count, max_, sum_
from engine.operators.keys import FieldKey
from engine.operators.window import WindowSpec
from engine.operators.window_contents import AggregateFold
from engine.operators.window_functions import window_call
from engine.time.assigners import TumblingEventTimeWindows
from engine.time.triggers import EventTimeTrigger
from tests.bench.stats import record
from tests.bench.window_checkpoint import send, spec_of
from tests.bench.window_spill import Counted
from tests.testing.operator_harness import OperatorHarness

_SIZE_MS = 4000
_ROWS_PART = 100


class MadeRows(Counted):
    """Counts records that have been made rows."""

    def emit(self, batch: Any) -> None:
        super().emit(rows_of(batch))


def _rows_spec() -> Any:
    fold = AggregateFold(RowAggregates([count(), sum_(1), max_(1)]))
    assigner = TumblingEventTimeWindows(_SIZE_MS, 0)
    return WindowSpec((FieldKey(0),), assigner, EventTimeTrigger(), window_call(WindowRecord(1)), fold)


def pieces_ms(harness: OperatorHarness, watermark_ms: int, in_pieces: bool) -> list[float]:
    """Return what each piece took."""
    found = []
    begin = time.thread_time()
    pieces = None
    if in_pieces:
        pieces = harness.head.advance_watermark(watermark_ms)
    else:
        harness.head.process_watermark(watermark_ms)
    found.append((time.thread_time() - begin) * 1e3)
    while pieces is not None:
        begin = time.thread_time()
        try:
            next(pieces)
        except StopIteration:
            pieces = None
        found.append((time.thread_time() - begin) * 1e3)
    return found


def measure(spec: Any, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    best: dict[str, dict[str, float]] = {}
    rng = np.random.default_rng(1)
    with OperatorHarness(spec, memory_bytes=options.memory_mb << 20) as harness:
        out = Counted() if options.alone else MadeRows()
        harness.output.emit = out.emit  # type: ignore[method-assign]
        for number in range(2 * options.rounds + 2):
            start = number * 3 * _SIZE_MS
            for slice_ms in range(0, _SIZE_MS, _SIZE_MS // 4 if options.slide else _SIZE_MS):
                send(harness, rng.permutation(options.keys), start + slice_ms + 1)
            if options.slide:
                harness.watermark(start + _SIZE_MS - 2)
            out.num_rows = 0
            found = pieces_ms(harness, start + (_SIZE_MS - 1 if options.slide else 2 * _SIZE_MS), number % 2 == 1)
            harness.watermark(start + 2 * _SIZE_MS)
            if number < 2:
                continue  # kernels are compiled, pages are touched
            way = "in pieces" if number % 2 else "in one piece"
            told = {"longest, ms": max(found), "sum, ms": sum(found), "pieces": len(found), "results": out.num_rows}
            if way not in best or told["sum, ms"] < best[way]["sum, ms"]:
                best[way] = told
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=2_000_000)
    parser.add_argument("--memory-mb", type=int, default=1 << 14, help="the operator's share")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--slide", action="store_true")
    parser.add_argument("--sessions", action="store_true")
    parser.add_argument("--rows", action="store_true")
    options = parser.parse_args()
    if options.rows:
        options.keys //= _ROWS_PART
    found = measure(_rows_spec() if options.rows else spec_of(options.slide, False, options.sessions), options)
    record(found)
    print(json.dumps({way: {name: round(v, 2) for name, v in own.items()} for way, own in found.items()}, indent=2))


if __name__ == "__main__":
    main()
