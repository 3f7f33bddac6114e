"""Batches for which others wait: ``python -m tests.bench.state_pauses [--memory-mb 256] [--only MECHANISM]``.

What columnar keyed state does to itself now and then, each alone in a process: an aggregation goes to files (int64 or
text keys) and takes up records there, windows go to files (tumbling, or sliding ones that share keys), sessions forget
keys that have none, the index of text keys grows. CPU time of a batch in ms: the median and the five longest, but for
the first two, which load kernels.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from engine.core.records import BATCH_ROWS_MAX, ColumnBatch
from engine.operators.column_aggregate import ColumnAggregateSpec
from engine.operators.keys import FieldKey
from tests.bench import session_spill, state_memory, window_spill
from tests.bench.state_memory import print_each
from tests.testing.operator_harness import OperatorHarness

_NUM_LONGEST = 5
_WARM_UP = 2
_GAP_MS = 1000
#: Bytes of state by key in each, about: so that memory ends when half of the keys have come.
_BYTES_PER_KEY = 20
_BYTES_PER_SESSION = 128

Batches = Iterator[tuple[ColumnBatch, int | None]]


def _numbers(num_keys: int) -> Iterator[np.ndarray[Any, Any]]:
    for start in range(0, num_keys, BATCH_ROWS_MAX):
        yield np.arange(start, min(num_keys, start + BATCH_ROWS_MAX))


def _aggregate(kind: str) -> Callable[[int], tuple[Any, Batches]]:
    def made(memory_bytes: int) -> tuple[Any, Batches]:
        num_keys = 2 * memory_bytes // _BYTES_PER_KEY
        batches = (state_memory.batch_of(int(own[0]), own.size, kind) for own in _numbers(num_keys))
        return ColumnAggregateSpec(FieldKey(0), "sum", 1), ((batch, None) for batch in batches)

    return made


def _windows(slide: bool) -> Callable[[int], tuple[Any, Batches]]:
    def batches(num_keys: int) -> Batches:
        rng = np.random.default_rng(1)
        num_batches = 3 * num_keys // BATCH_ROWS_MAX
        for number in range(num_batches):
            stamps = np.full(BATCH_ROWS_MAX, window_spill._SIZE_MS * (1 + number / num_batches), np.int64)
            yield window_spill.batch_of(rng.integers(0, num_keys, BATCH_ROWS_MAX), stamps), None

    def made(memory_bytes: int) -> tuple[Any, Batches]:
        num_keys = memory_bytes // _BYTES_PER_KEY // (4 if slide else 1)
        return window_spill.spec_of("files", slide), batches(num_keys)

    return made


def _sessions(memory_bytes: int) -> tuple[Any, Batches]:
    """Each key comes once; the memory stays large, and is for the keys that are open at a time."""
    num_open = memory_bytes // _BYTES_PER_SESSION

    def batches() -> Batches:
        for own in _numbers(6 * num_open):
            stamps = own * _GAP_MS // num_open
            yield window_spill.batch_of(own, stamps), int(stamps[0]) - 5

    return session_spill.spec_of("memory", _GAP_MS), batches()


MECHANISMS: dict[str, Callable[[int], tuple[Any, Batches]]] = {
    "aggregate": _aggregate("int"),
    "text-aggregate": _aggregate("text"),
    "windows": _windows(slide=False),
    "sliding-windows": _windows(slide=True),
    "session-keys": _sessions,
    "text-growth": _aggregate("text"),
}
#: All of it stays in memory.
_WITHOUT_LIMIT = ("session-keys", "text-growth")


def measure(mechanism: str, memory_mb: int) -> dict[str, float]:
    spec, batches = MECHANISMS[mechanism](memory_mb << 20)
    share = 1 << 40 if mechanism in _WITHOUT_LIMIT else memory_mb << 20
    spent_ms: list[float] = []
    with OperatorHarness(spec, memory_bytes=share) as harness:
        out = window_spill.Counted()
        harness.output.emit = out.emit  # type: ignore[method-assign]
        harness.output.emit_watermark = out.emit_watermark  # type: ignore[method-assign]
        for batch, watermark_ms in batches:
            begin_ns = time.thread_time_ns()
            harness.process_batch(batch)
            if watermark_ms is not None:
                harness.watermark(watermark_ms)
            spent_ms.append((time.thread_time_ns() - begin_ns) / 1e6)
        entries = sum(part.num_entries() for part in harness.contexts[0].state.keyed.values())
    del spent_ms[:_WARM_UP]
    longest = sorted(spent_ms)[: -_NUM_LONGEST - 1 : -1]
    return {
        **{f"longest {place}, ms": ms for place, ms in enumerate(longest, 1)},
        "median, ms": float(np.median(spent_ms)),
        "all, CPU-s": sum(spent_ms) / 1e3,
        "entries, M": entries / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory-mb", type=int, default=256, help="the operator's share")
    parser.add_argument("--only", choices=MECHANISMS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.only, options.memory_mb)))
        return
    print_each([options.only] if options.only else MECHANISMS, __spec__.name)


if __name__ == "__main__":
    main()
