"""Unaligned barriers from a producer's queue to a consumer's gate: each record is in the state or in flight, once."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest

from engine.checkpoint.alignment import AbandonCheckpoint, EndCapture, TakeSnapshot
from engine.core.ids import IntermediateDatasetID, ResultPartitionID
from engine.core.records import RowBatch, rows_of
from engine.protocol.checkpoint import CheckpointOptions
from engine.protocol.control import ResultPartitionDescriptor
from engine.protocol.stream import END_OF_DATA, CheckpointBarrier, Element, Records, Watermark
from engine.runtime.exchange.channels import LocalChannel, RemoteChannel
from engine.runtime.exchange.gate import BatchArrived, InputGate
from engine.runtime.exchange.overtaking import insert_overtaking, overtake, overtaken_batches
from engine.runtime.exchange.partition import PipelinedPartition

UNALIGNED = CheckpointOptions(unaligned=True)


def records(name: str) -> Records:
    return Records(RowBatch([name]))


def names(queue: deque[Element]) -> list[Any]:
    return [
        element.batch.rows[0]
        if isinstance(element, Records)
        else (element.checkpoint_id, element.num_overtaken)
        if isinstance(element, CheckpointBarrier)
        else element
        for element in queue
    ]


def test_a_barrier_goes_to_the_front_and_counts_the_batches_behind_it():
    queue: deque[Element] = deque([records("a"), Watermark(1), records("b")])
    insert_overtaking(queue, CheckpointBarrier(1, 0, UNALIGNED))
    queue.append(records("after"))
    assert names(queue) == [(1, 2), "a", Watermark(1), "b", "after"]
    barrier = queue.popleft()
    assert isinstance(barrier, CheckpointBarrier)
    assert [batch.rows for batch in overtaken_batches(queue, barrier)] == [["a"], ["b"]]  # type: ignore[attr-defined]


def test_no_barrier_overtakes_another():
    queue: deque[Element] = deque([records("a"), CheckpointBarrier(1, 0), records("b")])
    insert_overtaking(queue, CheckpointBarrier(2, 0, UNALIGNED))
    assert names(queue) == ["a", (1, 0), (2, 1), "b"]


def test_a_waiting_barrier_can_overtake_later():
    queue: deque[Element] = deque([records("a"), records("b"), CheckpointBarrier(1, 0), records("after")])
    assert overtake(queue, 1)
    assert names(queue) == [(1, 2), "a", "b", "after"]
    assert not overtake(queue, 1)
    assert not overtake(queue, 2)


class Wire:
    """What lies between a subpartition and a remote channel: frames in order, records only while there is credit."""

    def __init__(self, partition: PipelinedPartition, channel: RemoteChannel, credit: int) -> None:
        self.view = partition.open_view(0, lambda: None)
        self.channel = channel
        self.credit = credit
        self.under_way: deque[Element] = deque()
        channel.add_credit = self.add_credit

    def add_credit(self, credit: int) -> None:
        self.credit += credit

    def send(self) -> bool:
        if not self.view.has_next() or (self.view.needs_credit() and not self.credit):
            return False
        self.credit -= self.view.needs_credit()
        element = self.view.poll()
        assert element is not None
        self.under_way.append(element)
        return True

    def receive(self) -> bool:
        if not self.under_way:
            return False
        self.channel.receive(self.under_way.popleft(), 1)
        return True


class World:
    """Producers, wires and one consumer, moved by a seed."""

    def __init__(self, seed: int, options: CheckpointOptions) -> None:
        self.rng = rng = random.Random(seed)
        self.options = options
        self.gate = InputGate([0] * rng.randint(1, 4))
        self.partitions: list[PipelinedPartition] = []
        self.wires: list[Wire] = []
        for channel in self.gate.channels:
            index = channel.index
            descriptor = ResultPartitionDescriptor(
                ResultPartitionID(f"p{index}"), IntermediateDatasetID.from_text("d"), 1, False, 0
            )
            partition = PipelinedPartition(descriptor, rng.choice([1, 200]))
            on_data = lambda channel=channel: self.gate.on_data(channel)  # noqa: E731
            if rng.random() < 0.5:
                channel.source = LocalChannel(0, on_data)
                channel.source.attach(partition)
            else:
                channel.source = RemoteChannel(2, on_data, self.fail)
                self.wires.append(Wire(partition, channel.source, 2))
            self.partitions.append(partition)
        self.emitted: list[list[str]] = [[] for _ in self.partitions]
        self.barriers = [0] * len(self.partitions)  #: last one of each
        self.ended: set[int] = set()
        self.before: dict[int, list[str]] = {}  #: what belongs to a checkpoint
        self.processed: list[str] = []
        self.pending: list[str] = []  #: taken from the gate, not processed yet
        self.state: dict[int, list[str]] = {}
        self.complete: dict[int, list[str]] = {}
        self.abandoned: set[int] = set()

    def fail(self, error: Exception) -> None:
        raise error

    def produce(self, index: int) -> None:
        if index in self.ended:
            return
        partition, roll = self.partitions[index], self.rng.random()
        if roll < 0.7:
            name = f"{index}.{len(self.emitted[index])}"
            self.emitted[index].append(name)
            partition.add(0, RowBatch([name]))
            if roll < 0.4:
                partition.flush()
        elif roll < 0.9 and self.barriers[index] < 3:
            self.barriers[index] += 1
            id_ = self.barriers[index]
            self.before.setdefault(id_, []).extend(self.emitted[index])
            partition.add_event(CheckpointBarrier(id_, 0, self.options))
        elif roll > 0.98:
            self.end(index)

    def end(self, index: int) -> None:
        if index not in self.ended:
            self.ended.add(index)
            for id_ in range(self.barriers[index] + 1, 4):
                self.before.setdefault(id_, []).extend(self.emitted[index])
            self.partitions[index].add_event(END_OF_DATA)

    def consume(self) -> None:
        if self.gate.is_urgent:
            while (event := self.gate.next_urgent()) is not None:
                self.handle(event)
        elif self.pending:
            self.processed.append(self.pending.pop(0))
        elif self.gate.has_next() and (event := self.gate.next()) is not None:
            self.handle(event)

    def handle(self, event: Any) -> None:
        match event:
            case BatchArrived(_, batch):
                self.pending.extend(rows_of(batch).rows)
            case TakeSnapshot(barrier):
                self.state[barrier.checkpoint_id] = list(self.processed)
                if not barrier.options.unaligned:
                    assert not self.pending
                    self.complete[barrier.checkpoint_id] = list(self.processed)
                elif self.pending:
                    self.gate.capture(barrier.checkpoint_id, 0, RowBatch(list(self.pending)))
            case EndCapture(id_):
                captured = [row for _, batch in self.gate.take_captured(id_) for row in rows_of(batch).rows]
                self.complete[id_] = self.state[id_] + captured
            case AbandonCheckpoint(id_):
                assert self.options.aligned_timeout_ms, event  # one that timed out subsumes those before it
                self.abandoned.add(id_)

    def overtake(self) -> None:
        """The timeout of an aligned checkpoint, at one of the places where it may wait."""
        id_ = self.rng.randint(1, 3)
        if self.rng.random() < 0.5:
            self.rng.choice(self.partitions).overtake(id_)
        else:
            self.gate.time_out_alignment(id_)

    def run(self) -> None:
        rng = self.rng
        for _ in range(rng.randint(20, 300)):
            roll = rng.random()
            if roll < 0.4:
                self.produce(rng.randrange(len(self.partitions)))
            elif roll < 0.7 and self.wires:
                wire = rng.choice(self.wires)
                rng.choice([wire.send, wire.receive])()
            elif roll < 0.75 and self.options.aligned_timeout_ms:
                self.overtake()
            else:
                self.consume()
        for index in range(len(self.partitions)):
            self.end(index)
        idle = 0
        while idle < 3:
            moved = [wire.send() or wire.receive() for wire in self.wires]
            before = self.progress()
            for _ in range(5):
                self.consume()
            idle = 0 if any(moved) or before != self.progress() else idle + 1

    def progress(self) -> tuple[int, int, int]:
        return len(self.processed), len(self.pending), len(self.complete)


@pytest.mark.parametrize("options", [UNALIGNED, CheckpointOptions(aligned_timeout_ms=1)], ids=["unaligned", "timeout"])
@pytest.mark.parametrize("seed", range(150))
def test_state_and_records_in_flight_are_all_before_the_barriers_once(seed: int, options: CheckpointOptions):
    world = World(seed, options)
    world.run()
    assert sorted(world.processed) == sorted(name for part in world.emitted for name in part), f"seed {seed}"
    assert world.gate.is_ended
    for id_ in set(range(1, max(world.barriers) + 1)) - world.abandoned:
        assert sorted(world.complete[id_]) == sorted(world.before[id_]), f"seed {seed}, checkpoint {id_}"
    for wire in world.wires:
        assert wire.credit - wire.channel._extra_credit <= 2, f"seed {seed}: credit grows"


def test_what_a_barrier_has_overtaken_comes_over_the_wire_though_nobody_reads():
    descriptor = ResultPartitionDescriptor(ResultPartitionID("p"), IntermediateDatasetID.from_text("d"), 1, False, 0)
    partition = PipelinedPartition(descriptor, 1)
    channel = RemoteChannel(2, lambda: None, lambda error: None)
    wire = Wire(partition, channel, 2)
    for i in range(6):
        partition.add(0, RowBatch([f"r{i}"]))
    while wire.send() or wire.receive():
        pass
    partition.add_event(CheckpointBarrier(1, 0, UNALIGNED))
    partition.add(0, RowBatch(["after"]))
    while wire.send() or wire.receive():
        pass
    assert channel.has_priority()
    barrier = channel.poll()
    assert isinstance(barrier, CheckpointBarrier)
    assert [rows_of(batch).rows for batch in channel.overtaken(barrier)] == [[f"r{i}"] for i in range(6)]
