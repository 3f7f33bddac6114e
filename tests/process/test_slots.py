"""Real slot processes over Unix sockets and over TCP: what goes in comes out, once, in time, in bounded memory."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest

from engine.core import user_code
from engine.core.metrics import IntCounter
from engine.core.records import ColumnBatch, RowBatch
from engine.graph.transformation import ShipStrategy
from engine.operators.base import Operator, OperatorSpec, PollResult, SourceOperator
from engine.operators.keys import FieldKey
from engine.protocol.lifecycle import ExecutionState
from tests.process.slot_cluster import ROOT, SlotCluster, Vertex, Wire
from tests.process.slot_operators import Apply, Collect, Numbers

UNIX = ("127.0.0.1", "127.0.0.1")
TCP = ("127.0.0.1", "127.0.0.2")  # different hosts by name: no Unix socket


def in_slots(hosts: tuple[str, ...], body: Callable[[SlotCluster], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        async with SlotCluster(hosts) as cluster:
            await body(cluster)

    asyncio.run(run())


def rows_by_subtask(cluster: SlotCluster) -> dict[int, list[Any]]:
    assert not cluster.story.errors, [error.message + error.trace for error in cluster.story.errors.values()]
    return {subtask: rows for _, (subtask, rows) in cluster.story.events}


def number(i: int) -> tuple[str, int]:
    return f"w{i % 97}", i


@pytest.mark.parametrize("hosts", [UNIX, TCP], ids=["unix", "tcp"])
@pytest.mark.parametrize("blocking", [False, True], ids=["pipelined", "blocking"])
def test_every_ship_strategy_delivers_each_record_once(hosts: tuple[str, ...], blocking: bool):
    strategies = [
        Wire("src", "sink", ShipStrategy.FORWARD),
        Wire("src", "sink", ShipStrategy.HASH, key_selector=lambda row: row[0]),
        Wire("src", "sink", ShipStrategy.REBALANCE),
        Wire("src", "sink", ShipStrategy.RESCALE),
        Wire("src", "sink", ShipStrategy.SHUFFLE),
        Wire("src", "sink", ShipStrategy.GLOBAL),
        Wire("src", "sink", ShipStrategy.CUSTOM, lambda row: row[1], lambda key, num: (key // 10) % num),
        Wire("src", "sink", ShipStrategy.BROADCAST),
    ]
    count = 20_000

    async def body(cluster: SlotCluster) -> None:
        for wire in strategies:
            wire.blocking = blocking
            name = wire.strategy.name
            vertices = [Vertex(f"src {name}", [Numbers(count, number)], 2), Vertex(f"sink {name}", [Collect()], 4)]
            if wire.strategy is ShipStrategy.FORWARD:
                vertices[1].parallelism = 2
            wire.source, wire.target = f"src {name}", f"sink {name}"
            cluster.story.events.clear()
            await cluster.run(vertices, [wire])
            rows = rows_by_subtask(cluster)
            expected = Counter(number(i) for i in range(count))
            if wire.strategy is ShipStrategy.BROADCAST:
                assert all(Counter(part) == expected for part in rows.values())
                continue
            assert Counter(row for part in rows.values() for row in part) == expected, name
            sizes = [len(rows[subtask]) for subtask in sorted(rows)]
            match wire.strategy:
                case ShipStrategy.GLOBAL:
                    assert sizes == [count, 0, 0, 0]
                case ShipStrategy.REBALANCE | ShipStrategy.RESCALE:
                    assert sizes == [count // 4] * 4
                case ShipStrategy.HASH:
                    words = [{row[0] for row in part} for part in rows.values()]
                    assert sum(map(len, words)) == 97, "a key went to two subtasks"
                case _:
                    assert all(sizes)

    in_slots(hosts, body)


@dataclass(frozen=True)
class Columns(OperatorSpec):
    batches: int
    num_inputs = 0

    def build(self) -> Operator:
        return _Columns(self.batches)


class _Columns(SourceOperator):
    def __init__(self, batches: int) -> None:
        self._batches = batches

    def poll(self, rows_max: int) -> PollResult:
        import pyarrow as pa

        self._batches -= 1
        numbers = range(self._batches * 1000, (self._batches + 1) * 1000)
        words = pa.array([f"w{i % 97}" for i in numbers])
        if self._batches % 2:
            words = words.dictionary_encode()
        columns = pa.record_batch({"word": words, "n": pa.array(numbers, pa.int64())})
        self.out.emit(ColumnBatch(columns))
        return PollResult.MORE if self._batches else PollResult.END


@pytest.mark.parametrize("blocking", [False, True], ids=["pipelined", "blocking"])
def test_column_batches_cross_slots_partitioned_like_rows(blocking: bool):
    async def body(cluster: SlotCluster) -> None:
        wires = [
            Wire("columns", "sink", ShipStrategy.HASH, FieldKey(0), blocking=blocking),
            Wire("rows", "sink", ShipStrategy.HASH, FieldKey(0), blocking=blocking, input_index=0),
        ]
        vertices = [
            Vertex("columns", [Columns(20)], 1),
            Vertex("rows", [Numbers(1000, number)], 2),
            Vertex("sink", [Collect()], 2),
        ]
        await cluster.run(vertices, wires)
        rows = rows_by_subtask(cluster)
        assert Counter(row for part in rows.values() for row in part) == Counter(
            [number(i) for i in range(20_000)] + [number(i) for i in range(1000)]
        )
        assert not {row[0] for row in rows[0]} & {row[0] for row in rows[1]}

    in_slots(TCP, body)


@pytest.mark.parametrize("hosts", [UNIX, TCP], ids=["unix", "tcp"])
def test_a_record_of_50_megabytes_passes(hosts: tuple[str, ...]):
    async def body(cluster: SlotCluster) -> None:
        vertices = [
            Vertex("src", [Numbers(3, lambda i: b"x" * (50_000_000 if i == 1 else 10))]),
            Vertex("sink", [Apply(len), Collect()]),
        ]
        await cluster.run(vertices, [Wire("src", "sink")], lambda name, subtask: int(name == "sink"))
        assert rows_by_subtask(cluster) == {0: [10, 50_000_000, 10]}

    in_slots(hosts, body)


class Point:
    """A class that slots know only by value: the program's own."""

    made = 0

    def __init__(self, x: int) -> None:
        self.x = x


@dataclass(frozen=True)
class CheckPoints(OperatorSpec):
    def build(self) -> Operator:
        return _CheckPoints()


class _CheckPoints(Operator):
    def open(self, ctx: Any, out: Any) -> None:
        super().open(ctx, out)
        Point.made = 100  # state of the class in this slot, before any record of it came

    def process_batch(self, input_index: int, batch: RowBatch) -> None:
        checked = []
        for point in batch.rows:
            Point.made += 1
            checked.append((Point.made, isinstance(point, Point)))
        self.out.emit(RowBatch(checked))


def test_records_of_the_programs_own_class_keep_their_class_and_its_state():
    async def body(cluster: SlotCluster) -> None:
        wire = Wire("src", "sink", buffer_timeout_ms=0)
        await cluster.run(
            [Vertex("src", [Numbers(3000, Point)]), Vertex("sink", [CheckPoints(), Collect()])],
            [wire],
            lambda name, subtask: int(name == "sink"),
        )
        assert rows_by_subtask(cluster) == {0: [(i + 101, True) for i in range(3000)]}

    in_slots(UNIX, body)


@pytest.mark.parametrize("together", [True, False], ids=["same slot", "two slots"])
def test_a_slow_consumer_bounds_its_producer(together: bool):
    def slow(row: Any) -> None:
        import time

        time.sleep(0.0005)

    async def body(cluster: SlotCluster) -> None:
        vertices = [Vertex("src", [Numbers(10**9, number)]), Vertex("sink", [Apply(slow)])]
        place = (lambda name, subtask: 0) if together else (lambda name, subtask: int(name == "sink"))
        cluster.deploy(vertices, [Wire("src", "sink", ShipStrategy.REBALANCE)], place)
        source, sink = cluster.attempt("src"), cluster.attempt("sink")
        latest: dict[Any, Any] = {}

        def seen() -> bool:
            for report in cluster.story.reports:
                latest.update(report.metrics)
            if not {source, sink} <= latest.keys() or latest[sink].records_in <= 1500:
                return False
            # A busy machine takes its time to fill the buffers.
            return latest[source].backpressured_ms > latest[source].busy_ms

        await cluster.until(seen)
        # Eight buffers of 32 kB here, eight under way, one open, some in the sockets: not the whole input.
        assert latest[source].records_out < latest[sink].records_in + 150_000
        cluster.cancel(source)
        cluster.cancel(sink)
        await cluster.until(lambda: cluster.has_ended(source) and cluster.has_ended(sink))

    in_slots(UNIX, body)


def peak_memory_mb(pid: int) -> int:
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read()).group(1)) // 1024


def test_a_blocking_exchange_spills_stays_flat_and_can_be_read_again():
    async def body(cluster: SlotCluster) -> None:
        vertices = [
            Vertex("src", [Numbers(150_000, lambda i: (i, os.urandom(500)))], 1),
            Vertex("sink", [Apply(lambda row: row[0] if len(row[1]) == 500 else None), Collect()], 2),
        ]
        wires = [Wire("src", "sink", ShipStrategy.REBALANCE, blocking=True)]
        cluster.deploy(vertices, wires, only=["src"])
        source = cluster.attempt("src")
        await cluster.until(lambda: cluster.has_ended(source))
        assert cluster.story.last[source].state is ExecutionState.FINISHED, cluster.story.errors
        assert peak_memory_mb(cluster.slots[0].pid) < 70, "75 MB were not spilled"
        for _ in range(2):
            cluster.story.events.clear()
            for subtask in range(2):
                cluster.story.states.pop(cluster.attempt("sink", subtask), None)
            attempts = cluster.deploy(vertices, wires, only=["sink"])
            await cluster.until(lambda attempts=attempts: all(map(cluster.has_ended, attempts)))
            rows = rows_by_subtask(cluster)
            assert sorted([*rows[0], *rows[1]]) == list(range(150_000))
        assert peak_memory_mb(cluster.slots[0].pid) < 90

    in_slots(UNIX, body)


def test_a_consumer_deployed_before_its_producer_waits_for_it():
    async def body(cluster: SlotCluster) -> None:
        vertices = [Vertex("src", [Numbers(100)], 2), Vertex("sink", [Collect()], 2)]
        wires = [Wire("src", "sink", ShipStrategy.REBALANCE)]
        cluster.deploy(vertices, wires, only=["sink"])
        await cluster.until(
            lambda: all(ExecutionState.RUNNING in cluster.story.states[cluster.attempt("sink", i)] for i in (0, 1))
        )
        cluster.deploy(vertices, wires, only=["src"])
        await cluster.until(lambda: all(cluster.has_ended(cluster.attempt("sink", i)) for i in (0, 1)))
        rows = rows_by_subtask(cluster)
        assert sorted([*rows[0], *rows[1]]) == list(range(100))

    in_slots(UNIX, body)


@dataclass(frozen=True)
class CountAll(OperatorSpec):
    """Counts with an accumulator and a metric, prints the first row."""

    def build(self) -> Operator:
        return _CountAll()


class _CountAll(Operator):
    def open(self, ctx: Any, out: Any) -> None:
        super().open(ctx, out)
        self._accumulator = IntCounter()
        ctx.runtime_context.add_accumulator("rows", self._accumulator)
        self._metric = ctx.runtime_context.get_metrics_group().counter("seen")

    def process_batch(self, input_index: int, batch: RowBatch) -> None:
        if not self._metric.get_count():
            print("first row", batch.rows[0])
        self._accumulator.add(len(batch))
        self._metric.inc(len(batch))
        self.out.emit(batch)


def test_final_report_has_accumulators_merged_over_the_chain_and_metrics():
    async def body(cluster: SlotCluster) -> None:
        vertices = [Vertex("src", [Numbers(1000), CountAll(), CountAll()]), Vertex("sink", [Collect()])]
        story = await cluster.run(vertices, [Wire("src", "sink")], lambda name, subtask: int(name == "sink"))
        last = story.last[cluster.attempt("src")]
        assert user_code.loads(last.accumulators)["rows"].get_local_value() == 2000
        assert last.metrics.user["CountAll.seen"] == 1000
        assert last.metrics.records_out == 1000
        sink = story.last[cluster.attempt("sink")].metrics
        assert sink.records_in == 1000
        assert sink.bytes_in > 2000
        with open(cluster.stdout_path) as output:
            assert output.read().count("first row 0\n") == 2

    in_slots(UNIX, body)


@dataclass(frozen=True)
class OneRecord(OperatorSpec):
    """A source that emits one record, then as many as each event says."""

    num_inputs = 0

    def build(self) -> Operator:
        return _OneRecord()


class _OneRecord(SourceOperator):
    due = 1

    def poll(self, rows_max: int) -> PollResult:
        self.out.emit(RowBatch(["only"] * self.due))
        self.due = 0
        return PollResult.IDLE

    def handle_event(self, event: object) -> None:
        assert isinstance(event, int)
        self.due += event
        self.ctx.wake()


@dataclass(frozen=True)
class Tell(OperatorSpec):
    def build(self) -> Operator:
        return _Tell()


class _Tell(Operator):
    def process_batch(self, input_index: int, batch: RowBatch) -> None:
        self.ctx.send_event(batch.rows)


@pytest.mark.parametrize("timeout_ms", [0, 30])
@pytest.mark.parametrize("together", [True, False], ids=["same slot", "two slots"])
def test_a_record_leaves_a_buffer_that_is_not_full_when_its_time_is_up(timeout_ms: int, together: bool):
    async def body(cluster: SlotCluster) -> None:
        vertices = [Vertex("src", [OneRecord()]), Vertex("sink", [Tell()])]
        place = (lambda name, subtask: 0) if together else (lambda name, subtask: int(name == "sink"))
        cluster.deploy(vertices, [Wire("src", "sink", buffer_timeout_ms=timeout_ms)], place)
        for num in (1, 2, 3):
            await cluster.until(lambda num=num: len(cluster.story.events) == num)
            cluster.send_event(cluster.attempt("src"), "src0", 1)
        assert {tuple(event) for _, event in cluster.story.events} == {("only",)}

    in_slots(UNIX, body)


def test_without_a_timeout_only_full_buffers_leave():
    async def body(cluster: SlotCluster) -> None:
        vertices = [Vertex("src", [OneRecord()]), Vertex("sink", [Tell()])]
        cluster.deploy(vertices, [Wire("src", "sink", buffer_timeout_ms=-1)], lambda name, subtask: int(name == "sink"))
        source = cluster.attempt("src")
        # A report comes after a second of running: time enough for any timeout.
        await cluster.until(
            lambda: any(source in r.metrics and r.metrics[source].records_out for r in cluster.story.reports)
        )
        assert cluster.story.events == []
        cluster.send_event(source, "src0", 10_000)
        await cluster.until(lambda: sum(len(rows) for _, rows in cluster.story.events) > 1000)
        assert sum(len(rows) for _, rows in cluster.story.events) <= 10_000, "the last buffer was not full"

    in_slots(UNIX, body)


def test_a_slot_is_light_before_columns_are_touched():
    heavy = ("numpy", "pyarrow", "numba", "asyncio", "grpc", "cloudpickle")
    program = f"import engine.runtime.taskmanager.slot_process, sys; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
