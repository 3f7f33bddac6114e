"""What the engine adds to a keyed function, its state, timers and results, beside the same work in a bare loop.

    python -m tests.bench keyed_steps [--rounds 30]

CPU time of a batch of 16,384 records over 1000 keys, best of several rounds, both in one process, alternating. The bare
loop calls the same functions on the same records, keeps state in a dict and results in a list; it has no names, no
checkpoints, no time. The engine's part is (operator - bare loop) / (records x steps): each is one step, or as many as
is said, of which one is the function's call and others are what it asks of the engine (reading state, writing it,
registering a timer, taking it off, calling ``on_timer``; a second result).
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from typing import Any, final

from engine.common import Duration, WatermarkStrategy
from engine.core.late_dataclass import dataclass
from engine.core.records import BATCH_ROWS_MAX, RowBatch
from engine.operators.aggregate import KeyedAggregateSpec, KeyedReduceSpec
from engine.operators.base import OperatorSpec
from engine.operators.functions import FlatMapFunction, MapFunction
from engine.operators.keys import FieldKey
from engine.operators.output_tag import OutputTag
from engine.operators.process import ProcessSpec
from engine.operators.process_functions import KeyedProcessFunction, ProcessFunction
from engine.operators.timestamps import TimestampsSpec
from engine.state.descriptors import ValueStateDescriptor
from tests.bench.row_steps import LIMIT_NS, cpu_ns
from tests.bench.stats import record
from tests.testing.operator_harness import OperatorHarness

#: Those of a slot.
GC_THRESHOLDS = 20_000, 50, 100
NUM_KEYS = 1000
SIDE = OutputTag("side")
Bare = Callable[[list[Any], list[int]], Any]


class Yields(ProcessFunction):
    def process_element(self, value, ctx):
        yield value


class Lists(ProcessFunction):
    def process_element(self, value, ctx):
        return [value]


class Stamped(ProcessFunction):
    def process_element(self, value, ctx):
        yield value, ctx.timestamp()


class ToSide(ProcessFunction):
    def process_element(self, value, ctx):
        yield SIDE, value


class Counts(KeyedProcessFunction):
    def open(self, runtime_context):
        self.count = runtime_context.get_state(ValueStateDescriptor("count"))

    def process_element(self, value, ctx):
        count = (self.count.value() or 0) + 1
        self.count.update(count)
        yield value[0], count


class CountingMap(MapFunction):
    def open(self, runtime_context):
        self.count = runtime_context.get_state(ValueStateDescriptor("count"))

    def map(self, value):
        count = (self.count.value() or 0) + 1
        self.count.update(count)
        return value[0], count


class Splits(FlatMapFunction):
    def open(self, runtime_context):
        pass

    def flat_map(self, value):
        return [value, value]


class Timers(KeyedProcessFunction):
    def process_element(self, value, ctx):
        ctx.timer_service().register_event_time_timer(value[1])

    def on_timer(self, timestamp, ctx):
        yield ctx.get_current_key(), timestamp


class DictValue:
    """State of a bare loop."""

    def __init__(self):
        self.cells = {}

    def value(self):
        return self.cells.get(self.key)

    def update(self, value):
        self.cells[self.key] = value


def bare_process(function: Any) -> Bare:
    ctx = Context()

    def run(rows, stamps):
        results = []
        for row, stamp in zip(rows, stamps):
            ctx.now = stamp
            results.extend(function.process_element(row, ctx))
        return results

    return run


class Context:
    def timestamp(self):
        return self.now


def bare_keyed(function: Any, method: str = "process_element") -> Bare:
    state = function.count = DictValue()
    call = getattr(function, method)

    def process(rows, stamps):
        results = []
        for row in rows:
            state.key = row[0]
            results.extend(call(row, None))
        return results

    def one(rows, stamps):
        results = []
        for row in rows:
            state.key = row[0]
            results.append(call(row))
        return results

    return process if method == "process_element" else one


def bare_splits(rows, stamps):
    results, call = [], Splits().flat_map
    for row in rows:
        results.extend(call(row))
    return results


def bare_timers(rows, stamps):
    function, service, results = Timers(), BareTimers(), []
    for row in rows:
        service.key = row[0]
        function.process_element(row, service)
    for at, key in sorted(service.due):
        service.key = key
        results.extend(function.on_timer(at, service))
    return results


class BareTimers:
    """A context that is its own timer service."""

    def __init__(self):
        self.due = {}

    def timer_service(self):
        return self

    def register_event_time_timer(self, timestamp):
        self.due[timestamp, self.key] = None

    def get_current_key(self):
        return self.key


def bare_reduce(rows, stamps):
    state, results = {}, []
    for row in rows:
        so_far = state.get(row[0])
        state[row[0]] = row = row if so_far is None else add(so_far, row)
        results.append(row)
    return results


def add(a, b):
    return a[0], a[1] + b[1]


def bare_times(rows, stamps):
    return [row[1] for row in rows], max(stamps)


@final
@dataclass(frozen=True)
class Case:
    spec: OperatorSpec
    bare: Bare
    num_steps: int = 1
    #: let time pass, so that timers fire
    fires: bool = False


def cases() -> dict[str, Case]:
    key = FieldKey(0)
    times = WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_seconds(1))
    return {
        "process, yields": Case(ProcessSpec(Yields()), bare_process(Yields())),
        "process, gives a list": Case(ProcessSpec(Lists()), bare_process(Lists())),
        "process, asks for the time": Case(ProcessSpec(Stamped()), bare_process(Stamped())),
        "process, side output": Case(ProcessSpec(ToSide()), bare_process(ToSide())),
        "keyed process, value state": Case(ProcessSpec(Counts(), key), bare_keyed(Counts()), 3),
        "keyed map, value state": Case(
            ProcessSpec(CountingMap(), key, None, "map"), bare_keyed(CountingMap(), "map"), 3
        ),
        "keyed flat_map, two results": Case(ProcessSpec(Splits(), key, None, "flat_map"), bare_splits, 2),
        "keyed process, a timer": Case(ProcessSpec(Timers(), key), bare_timers, 4, fires=True),
        "reduce": Case(KeyedReduceSpec(key, add), bare_reduce),
        "sum": Case(KeyedAggregateSpec(key, "sum", 1), bare_reduce),
        "timestamps and watermarks": Case(
            TimestampsSpec(times.with_timestamp_assigner(lambda row, at: row[1] + 0)), bare_times
        ),
    }


def measure(name: str, case: Case, num_rounds: int) -> dict[str, Any]:
    bare, own = [], []
    with OperatorHarness(case.spec, memory_bytes=1 << 30) as harness:
        for number in range(num_rounds):
            start = number * BATCH_ROWS_MAX
            rows = [(i * 7919 % NUM_KEYS, i) for i in range(start, start + BATCH_ROWS_MAX)]
            batch = RowBatch(rows, [i for _, i in rows])
            bare.append(cpu_ns(lambda batch=batch: case.bare(batch.rows, batch.timestamps_ms)))

            def run(batch: RowBatch = batch) -> None:
                harness.process_batch(batch)
                if case.fires:
                    harness.watermark(batch.rows[-1][1])

            own.append(cpu_ns(run))
            output = harness.output
            assert output.batches or output.side, name
            for found in (output.batches, output.story, output.side):
                found.clear()
    bare_ns, own_ns = min(bare) / BATCH_ROWS_MAX, min(own) / BATCH_ROWS_MAX
    return {
        "workload": "keyed-steps",
        "step": name,
        "bare_ns_a_record": round(bare_ns, 1),
        "own_ns_a_record": round(own_ns, 1),
        "steps": case.num_steps,
        "engine_ns_a_step": round((own_ns - bare_ns) / case.num_steps, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    gc.set_threshold(*GC_THRESHOLDS)
    results = [measure(name, case, options.rounds) for name, case in cases().items()]
    for row in results:
        record(row)
        print(
            f"{row['step']:28} bare loop {row['bare_ns_a_record']:7} ns a record, operator {row['own_ns_a_record']:7}, "
            f"engine {row['engine_ns_a_step']:6} ns a record and step of {row['steps']} (aim {LIMIT_NS:.0f})"
        )


if __name__ == "__main__":
    main()
