"""What single channels say becomes what the task hears."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest

from engine.checkpoint.alignment import NoteFirstBarrier, TakeSnapshot
from engine.core.errors import ExternalError
from engine.core.records import RowBatch
from engine.protocol.checkpoint import CheckpointOptions
from engine.protocol.stream import (
    END_OF_DATA,
    WATERMARK_MAX_MS,
    CheckpointBarrier,
    Element,
    EndOfSuperstep,
    Records,
    Watermark,
    WatermarkStatus,
)
from engine.runtime.exchange.channels import RemoteChannel, initial_credit
from engine.runtime.exchange.gate import (
    BatchArrived,
    IdleChanged,
    InputEnded,
    InputGate,
    SuperstepEnded,
    WatermarkAdvanced,
)


class Queue:
    """A channel's source that a test fills."""

    def __init__(self) -> None:
        self.bytes_in = 0
        self.elements: deque[Element] = deque()

    def poll(self) -> Element | None:
        return self.elements.popleft() if self.elements else None

    def has_next(self) -> bool:
        return bool(self.elements)

    def has_priority(self) -> bool:
        return False

    def overtaken(self, barrier: CheckpointBarrier) -> list[Any]:
        return []

    def overtake(self, checkpoint_id: int) -> None:
        pass

    def close(self) -> None:
        self.elements.clear()


class Harness:
    def __init__(self, inputs: Sequence[int], inputs_first: Sequence[int] = ()) -> None:
        self.gate = InputGate(inputs, inputs_first)
        for channel in self.gate.channels:
            channel.source = Queue()

    def send(self, channel: int, *elements: Any) -> None:
        listed = self.gate.channels[channel]
        for element in elements:
            if not isinstance(element, (str, int)):
                listed.source.elements.append(element)
            else:
                listed.source.elements.append(Records(RowBatch([element])))
            self.gate.on_data(listed)

    def heard(self) -> list[Any]:
        found: list[Any] = []
        while self.gate.has_next():
            event = self.gate.next()
            if event is None:
                break
            found.append(event.batch.rows[0] if isinstance(event, BatchArrived) else event)
        return found


def test_channels_take_turns():
    gate = Harness([0, 0, 0])
    gate.send(0, "a1", "a2", "a3")
    gate.send(1, "b1")
    gate.send(2, "c1", "c2")
    assert gate.heard() == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_batches_tell_their_input():
    gate = Harness([0, 1])
    gate.send(1, "x")
    assert gate.gate.next() == BatchArrived(1, RowBatch(["x"]))


def test_inputs_first_are_read_to_their_end_before_others():
    gate = Harness([0, 1, 1, 2], inputs_first=(1, 2))
    gate.send(0, "probe")
    gate.send(3, "later")
    gate.send(1, "build", END_OF_DATA)
    assert gate.heard() == ["build"]
    gate.send(2, END_OF_DATA)
    assert gate.heard() == [InputEnded(1), "later"]
    gate.send(3, END_OF_DATA)
    assert gate.heard() == [InputEnded(2), "probe"]


def test_watermark_is_the_least_of_all_channels():
    gate = Harness([0, 1])
    gate.send(0, Watermark(10))
    assert gate.heard() == []
    gate.send(1, Watermark(5), Watermark(7))
    assert gate.heard() == [WatermarkAdvanced(5), WatermarkAdvanced(7)]
    gate.send(1, Watermark(20))
    assert gate.heard() == [WatermarkAdvanced(10)]


def test_idle_and_ended_channels_do_not_hold_the_watermark_back():
    gate = Harness([0, 0, 0])
    gate.send(0, Watermark(10))
    gate.send(1, WatermarkStatus(True))
    assert gate.heard() == []
    gate.send(2, END_OF_DATA)
    assert gate.heard() == [WatermarkAdvanced(10)]
    gate.send(1, "a record is no word on event time")
    gate.send(0, Watermark(20))
    assert gate.heard()[1:] == [WatermarkAdvanced(20)]


@pytest.mark.parametrize("idle_first", [True, False])
def test_event_time_of_an_ended_channel_counts_when_the_others_are_idle(idle_first):
    gate = Harness([0, 0])
    gate.send(0, Watermark(5))
    if idle_first:
        gate.send(0, WatermarkStatus(True))
    gate.send(1, Watermark(WATERMARK_MAX_MS), END_OF_DATA)
    if not idle_first:
        gate.send(0, WatermarkStatus(True))
    assert WatermarkAdvanced(WATERMARK_MAX_MS) in gate.heard()


def test_idleness_of_all_is_told_and_taken_back():
    gate = Harness([0, 0])
    gate.send(0, WatermarkStatus(True))
    gate.send(1, WatermarkStatus(True))
    assert gate.heard() == [IdleChanged(True)]
    gate.send(1, WatermarkStatus(False), Watermark(3))
    assert gate.heard() == [IdleChanged(False), WatermarkAdvanced(3)]


def test_inputs_catch_up_each_for_itself():
    """As with two-input operators of Flink, whose inputs have a valve each."""
    gate = Harness([0, 1, 1])
    gate.send(0, Watermark(50))
    gate.send(1, Watermark(60))
    gate.send(2, Watermark(70))
    assert gate.heard() == [WatermarkAdvanced(50)]
    gate.send(1, WatermarkStatus(True), WatermarkStatus(False))  # its input is at 70 now
    gate.send(0, Watermark(100))
    assert gate.heard() == [WatermarkAdvanced(70)]
    gate.send(0, WatermarkStatus(True))
    gate.send(2, Watermark(80))
    assert gate.heard() == [WatermarkAdvanced(80)]
    gate.send(1, WatermarkStatus(True))
    gate.send(2, WatermarkStatus(True))
    assert gate.heard() == [WatermarkAdvanced(100), IdleChanged(True)]
    gate.send(1, WatermarkStatus(False))
    assert gate.heard() == [IdleChanged(False)]


def test_a_superstep_ends_when_every_channel_has_ended_it():
    gate = Harness([0, 0, 1])
    gate.send(0, "a", EndOfSuperstep(1), "a of 2")
    gate.send(1, "b", EndOfSuperstep(1))
    assert gate.heard() == ["a", "b"]
    gate.send(2, "c", EndOfSuperstep(1))
    assert gate.heard() == ["c", SuperstepEnded(1), "a of 2"]


def test_a_static_input_has_to_end_but_not_to_take_part_in_supersteps():
    gate = Harness([0, 1])
    gate.send(0, "a", EndOfSuperstep(1))
    gate.send(1, "static")
    assert gate.heard() == ["a", "static"]
    gate.send(1, END_OF_DATA)
    assert gate.heard() == [InputEnded(1), SuperstepEnded(1)]
    gate.send(0, EndOfSuperstep(2), END_OF_DATA)
    assert gate.heard() == [SuperstepEnded(2), InputEnded(0)]
    assert gate.gate.is_ended


def test_inputs_end_when_all_their_channels_have():
    gate = Harness([0, 0, 1])
    gate.send(0, END_OF_DATA)
    gate.send(2, END_OF_DATA)
    assert gate.heard() == [InputEnded(1)]
    assert not gate.gate.is_ended
    gate.send(1, "last", END_OF_DATA)
    assert gate.heard() == ["last", InputEnded(0)]
    assert gate.gate.is_ended


def test_a_failed_channel_is_raised():
    gate = Harness([0])
    gate.gate.on_error(ExternalError("connection lost"))
    gate.gate.on_error(ExternalError("second"))
    with pytest.raises(ExternalError, match="connection lost"):
        gate.gate.has_next()


def test_credit_returns_as_batches_are_read_not_as_they_come():
    added: list[int] = []
    channel = RemoteChannel(8, lambda: None, lambda error: None)
    channel.add_credit = added.append
    for i in range(8):
        channel.receive(Records(RowBatch([i])), 10)
    channel.receive(Watermark(1), 10)
    assert added == []
    for _ in range(9):
        channel.poll()
    assert added == [4, 4]
    assert channel.bytes_in == 90


@pytest.mark.parametrize(("channels", "credit"), [(1, 8), (32, 8), (64, 4), (1000, 2)])
def test_many_channels_share_the_memory(channels: int, credit: int):
    assert initial_credit(channels) == credit


# --- barriers --------------------------------------------------------------------------------------------------------


def barrier(checkpoint_id: int, **options: Any) -> CheckpointBarrier:
    return CheckpointBarrier(checkpoint_id, 0, CheckpointOptions(**options))


def test_a_channel_waits_at_its_barrier_while_others_are_read_on():
    gate = Harness([0, 0])
    gate.send(0, "a", barrier(1), "a after")
    gate.send(1, "b")
    assert gate.heard() == ["a", "b", NoteFirstBarrier(barrier(1))]
    gate.send(1, "b too", barrier(1), "b after")
    assert gate.heard() == ["b too", TakeSnapshot(barrier(1)), "b after", "a after"]


def test_the_snapshot_comes_before_the_end_of_the_input_is_told():
    gate = Harness([0, 1])
    gate.send(0, barrier(1))
    gate.send(1, END_OF_DATA)
    assert gate.heard() == [NoteFirstBarrier(barrier(1)), TakeSnapshot(barrier(1)), InputEnded(1)]
    gate.send(0, END_OF_DATA)
    assert gate.heard() == [InputEnded(0)]


def test_an_aborted_checkpoint_blocks_nobody():
    gate = Harness([0, 0])
    gate.send(0, barrier(1), "a after")
    gate.send(1, "b")
    assert gate.heard() == [NoteFirstBarrier(barrier(1)), "b"]
    gate.gate.abort_checkpoint(1)
    gate.send(1, barrier(1), "b after")
    assert gate.heard() == ["a after", "b after"]


def test_watermarks_wait_behind_the_barrier_of_their_channel():
    gate = Harness([0, 0])
    gate.send(0, Watermark(1), barrier(1), Watermark(9))
    gate.send(1, Watermark(5))
    assert gate.heard() == [WatermarkAdvanced(1), NoteFirstBarrier(barrier(1))]
    gate.send(1, barrier(1))
    assert gate.heard() == [TakeSnapshot(barrier(1)), WatermarkAdvanced(5)]


@pytest.mark.parametrize("seed", range(60))
def test_the_records_heard_before_a_snapshot_are_those_before_its_barriers(seed: int):
    rng = random.Random(seed)
    num_channels = rng.randint(1, 5)
    scripts: list[deque[Any]] = []
    before: dict[int, set[str]] = {1: set(), 2: set(), 3: set()}
    for channel in range(num_channels):
        script: deque[Any] = deque()
        names: set[str] = set()
        ends_after = rng.randint(0, 6)
        for id_ in (1, 2, 3):
            if ends_after >= id_:
                new = [f"{channel}.{id_}.{i}" for i in range(rng.randint(0, 4))]
                script.extend(new)
                names |= set(new)
                if ends_after > id_:
                    script.append(barrier(id_))
            before[id_] |= names
        script.append(END_OF_DATA)
        scripts.append(script)
    gate = Harness([rng.randint(0, 1) for _ in range(num_channels)])
    heard: list[Any] = []
    while any(scripts):
        channel = rng.choice([index for index, script in enumerate(scripts) if script])
        gate.send(channel, scripts[channel].popleft())
        if rng.random() < 0.5:
            heard += gate.heard()
    heard += gate.heard()
    assert gate.gate.is_ended
    for id_, names in before.items():
        if TakeSnapshot(barrier(id_)) in heard:
            until = heard.index(TakeSnapshot(barrier(id_)))
            assert {name for name in heard[:until] if isinstance(name, str)} == names, f"seed {seed}"
        else:
            assert NoteFirstBarrier(barrier(id_)) not in heard, f"seed {seed}: a snapshot is missing"
