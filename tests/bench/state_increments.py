"""What increments of sessions and joins on columns have: ``python -m tests.bench.state_increments [--keys 1000000]``.

A session of each int64 key (count, sum, maximum), or a record of each key on both sides of an interval join or a window
join that fires later. Then one per cent of the keys, by chance, get a record, on both sides, before each checkpoint:
what is written, the CPU time of who writes it, and of the task at the barrier, without the fork. Each kind with memory
for all and, with ``--memory-mb``, in files; ``--busy``: the operator's timers are not served, so records wait at a
barrier. It drives the code of a slot, in a process of its own for each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from typing import Any

import numpy as np
import pyarrow as pa

from engine.core.records import BATCH_ROWS_MAX, ColumnBatch
from engine.operators.column_interval_join import column_interval_join
from engine.operators.column_session import column_session
from engine.operators.column_window_join import column_window_join
from engine.operators.compile.expressions import Kind
from engine.operators.compile.translate import Shape
from engine.operators.field_aggregates import RowAggregates, WindowRecord, count, max_, sum_
from engine.operators.interval_join import IntervalJoinSpec
from engine.operators.keys import FieldKey
from engine.operators.window import WindowSpec
from engine.operators.window_contents import AggregateFold
from engine.operators.window_functions import JoinedFunction, window_call
from engine.time.assigners import EventTimeSessionWindows, TumblingEventTimeWindows
from engine.time.triggers import EventTimeTrigger
from tests.bench.state_files import unnamed_bytes
from tests.bench.state_memory import STRIDE, print_each
from tests.bench.state_spill import Nowhere
from tests.bench.window_checkpoint import Barriers
from tests.testing.operator_harness import OperatorHarness

KINDS = ("sessions", "interval-join", "window-join")
PLACES = ("memory", "files")
_SIZE_MS = 100_000
_RECORD = Shape((Kind.INT, Kind.INT))


def spec_of(kind: str) -> Any:
    keys = FieldKey(0), FieldKey(0)
    if kind == "sessions":
        fold = AggregateFold(RowAggregates([count(), sum_(1), max_(1)]))
        windows = EventTimeSessionWindows(_SIZE_MS)
        return column_session(WindowSpec(keys[:1], windows, EventTimeTrigger(), window_call(WindowRecord(1)), fold))
    if kind == "interval-join":
        rows = IntervalJoinSpec(keys, -1, 1, lambda a, b: (a[0], a[1] + b[1]))
        return column_interval_join(rows, (_RECORD, _RECORD))
    function = JoinedFunction(lambda left, right: (left[0], left[1] + right[1]), False)
    windowed = WindowSpec(keys, TumblingEventTimeWindows(_SIZE_MS, 0), EventTimeTrigger(), function)
    return column_window_join(windowed, (_RECORD, _RECORD))


def send(harness: OperatorHarness, numbers: np.ndarray[Any, Any], stamp_ms: int, num_sides: int) -> None:
    for at in range(0, numbers.size, BATCH_ROWS_MAX):
        part = numbers[at : at + BATCH_ROWS_MAX]
        keys = (part.astype(np.uint64) * np.uint64(STRIDE)).view(np.int64)
        columns = pa.record_batch([pa.array(keys), pa.array(part % 7)], names=["k", "v"])
        for side in range(num_sides):
            harness.process_batch(ColumnBatch(columns, np.full(part.size, stamp_ms, np.int64)), input_index=side)


def rest(harness: OperatorHarness) -> None:
    """Let the operator take up what waits, as its timers would."""
    while (due_ms := harness.head.next_timer_ms()) is not None:
        harness.head.on_timer(due_ms)


def measure(kind: str, place: str, num_keys: int, memory_mb: int, rounds: int, share: float, busy: bool) -> Any:
    rng = np.random.default_rng(1)
    memory_bytes = (memory_mb << 20) if place == "files" else 1 << 40
    num_sides = 1 if kind == "sessions" else 2
    with (
        tempfile.TemporaryDirectory() as folder,
        OperatorHarness(spec_of(kind), memory_bytes=memory_bytes) as harness,
    ):
        before = unnamed_bytes()
        harness.output.emit = Nowhere().emit  # type: ignore[method-assign]
        send(harness, rng.permutation(num_keys), 1, num_sides)
        harness.head.process_idle(False)  # takes up all that waits
        barriers = Barriers(harness, folder)
        full, made = barriers.take(), []
        for number in range(rounds):
            some = rng.choice(num_keys, max(1, int(num_keys * share)), replace=False)
            send(harness, some, 50 + 10 * number, num_sides)
            harness.watermark(number - 10)
            if not busy:
                rest(harness)
            made.append(barriers.take())
        found = {f"full, {name}": value for name, value in full.items()}
        found |= {f"increment, {name}": statistics.median(own[name] for own in made) for name in full}
        found["worst increment, written MB"] = max(own["written MB"] for own in made)
        found["files, MB"] = (unnamed_bytes() - before) / 1e6
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--memory-mb", type=int, default=64, help="the operator's share where it lies in files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.01, help="of the keys that change")
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--only", choices=[f"{kind}-in-{place}" for kind in KINDS for place in PLACES])
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        kind, place = options.only.split("-in-")
        shape = options.keys, options.memory_mb, options.rounds, options.share, options.busy
        print(json.dumps(measure(kind, place, *shape)))
        return
    ways = [options.only] if options.only else [f"{kind}-in-{place}" for kind in KINDS for place in PLACES]
    print_each(ways, __spec__.name)


if __name__ == "__main__":
    main()
