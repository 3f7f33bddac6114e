"""Barriers of several channels in every order, against an obvious model: which records are before which barrier."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest

from engine.checkpoint.alignment import (
    AbandonCheckpoint,
    AlignmentTimedOut,
    BarrierAligner,
    BarrierReceived,
    BlockChannel,
    CancelReceived,
    ChannelEnded,
    CheckpointAborted,
    Command,
    EndCapture,
    Event,
    NoteFirstBarrier,
    TakeSnapshot,
    UnblockChannels,
)
from engine.protocol.checkpoint import CheckpointFailureReason, CheckpointOptions
from engine.protocol.stream import CheckpointBarrier

ALIGNED = CheckpointOptions()
AT_LEAST_ONCE = CheckpointOptions(at_least_once=True)
UNALIGNED = CheckpointOptions(unaligned=True)
MODES = {"aligned": ALIGNED, "at least once": AT_LEAST_ONCE, "unaligned": UNALIGNED}

#: A channel's elements: "r" a record, a number a barrier, -n the cancel of n, "end". All scripts end.
Script = tuple[str | int, ...]


def barrier(checkpoint_id: int, options: CheckpointOptions = ALIGNED) -> CheckpointBarrier:
    return CheckpointBarrier(checkpoint_id, 0, options)


class Task:
    """Reads scripts in an order that is given and does as the aligner says."""

    def __init__(self, scripts: Sequence[Script], options: CheckpointOptions) -> None:
        self.scripts = scripts
        self.options = options
        self.aligner = BarrierAligner(len(scripts))
        self.at = [0] * len(scripts)
        self.blocked: set[int] = set()
        self.read: list[tuple[int, int]] = []  #: (channel, place) of records
        self.snapshots: dict[int, set[tuple[int, int]]] = {}
        self.complete: set[int] = set()
        self.abandoned: list[int] = []
        self.ended: set[int] = set()

    def choices(self) -> list[int]:
        return [c for c in range(len(self.scripts)) if c not in self.blocked and self.at[c] < len(self.scripts[c])]

    def advance(self, channel: int) -> None:
        element = self.scripts[channel][self.at[channel]]
        place = (channel, self.at[channel])
        self.at[channel] += 1
        if element == "r":
            for id_ in self.aligner.captured_by(channel):
                self.snapshots[id_].add(place)
            self.read.append(place)
            return
        event: Event
        if element == "end":
            self.ended.add(channel)
            event = ChannelEnded(channel)
        else:
            assert isinstance(element, int)
            event = BarrierReceived(channel, barrier(element, self.options))
            if element < 0:
                event = CancelReceived(channel, -element)
        self.tell(event)

    def tell(self, event: Event) -> None:
        for command in self.aligner.handle(event):
            self.do(command)

    def do(self, command: Command) -> None:
        match command:
            case BlockChannel(channel):
                assert channel not in self.blocked
                self.blocked.add(channel)
            case UnblockChannels(channels):
                self.blocked -= channels
            case TakeSnapshot(taken):
                id_ = taken.checkpoint_id
                assert id_ not in self.snapshots, "twice"
                assert id_ > max(self.snapshots, default=0), "an older snapshot after a newer one"
                self.snapshots[id_] = set(self.read)
                if not taken.options.unaligned:
                    self.complete.add(id_)
            case EndCapture(id_):
                self.complete.add(id_)
            case AbandonCheckpoint(id_):
                assert id_ not in self.abandoned
                self.abandoned.append(id_)

    def expected(self, id_: int) -> set[tuple[int, int]]:
        """The records before barrier ``id_`` of each channel; all of a channel that ends without it."""
        found = set()
        for channel, script in enumerate(self.scripts):
            until = script.index(id_) if id_ in script else len(script)
            found |= {(channel, place) for place in range(until) if script[place] == "r"}
        return found


def orders(scripts: Sequence[Script], options: CheckpointOptions) -> Iterator[Task]:
    """Yield the task at the end of every order in which the channels can be read."""
    pending: list[tuple[int, ...]] = [()]
    while pending:
        order = pending.pop()
        task = Task(scripts, options)
        for channel in order:
            task.advance(channel)
        choices = task.choices()
        if not choices:
            yield task
        pending.extend((*order, channel) for channel in choices)


WHOLE: dict[str, tuple[Script, ...]] = {
    "one channel": (("r", 1, "r", 2, "end"),),
    "two": (("r", 1, "r", 2, "end"), ("r", 1, "r", 2, "r", "end")),
    "three": (("r", 1, "r", "end"), (1, "r", "end"), ("r", 1, "end")),
    "one ends early": (("r", "end"), ("r", 1, "r", 2, "end")),
    "one ends between": (("r", 1, "r", "end"), (1, "r", 2, "r", "end"), ("r", "end")),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", WHOLE)
def test_every_order_gives_each_checkpoint_what_was_before_its_barriers(name: str, mode: str):
    scripts = WHOLE[name]
    ids = {element for script in scripts for element in script if isinstance(element, int)}
    count = 0
    for task in orders(scripts, MODES[mode]):
        count += 1
        assert not task.blocked
        assert task.at == [len(script) for script in scripts], "somebody waits for ever"
        assert task.complete == ids
        assert not task.abandoned
        for id_ in ids:
            if mode == "at least once":
                assert task.snapshots[id_] >= task.expected(id_)
            else:
                assert task.snapshots[id_] == task.expected(id_)
    assert count >= 1


BROKEN: dict[str, tuple[Script, ...]] = {
    "a barrier is left out": (("r", 1, "r", 2, "end"), ("r", 2, "r", "end")),
    "one is cancelled": (("r", 1, "r", 2, "end"), ("r", -1, "r", 2, "end")),
    "both cancel": (("r", -1, "r", 2, "end"), (-1, 2, "end")),
    "one cancels, one is left out": (("r", 1, 3, "end"), (-1, "r", 2, 3, "end")),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BROKEN)
def test_every_order_gives_up_what_cannot_be_and_goes_on(name: str, mode: str):
    scripts = BROKEN[name]
    last = max(element for script in scripts for element in script if isinstance(element, int))
    for task in orders(scripts, MODES[mode]):
        assert not task.blocked
        assert task.at == [len(script) for script in scripts], "somebody waits for ever"
        assert last in task.complete
        assert not task.complete & set(task.abandoned)
        for id_ in task.complete:
            if mode != "at least once":
                assert task.snapshots[id_] == task.expected(id_)


@pytest.mark.parametrize("seed", range(300))
def test_random_histories_with_timeouts_and_aborts(seed: int):
    rng = random.Random(seed)
    scripts = []
    for _ in range(rng.randint(1, 5)):
        script: list[str | int] = []
        for id_ in range(1, rng.randint(1, 5) + 1):
            script += ["r"] * rng.randint(0, 3)
            if rng.random() < 0.9:
                script.append(id_ if rng.random() < 0.9 else -id_)
        scripts.append((*script, "r", "end"))
    task = Task(scripts, rng.choice(list(MODES.values())))
    aborted: set[int] = set()
    while choices := task.choices():
        if rng.random() < 0.1:
            task.tell(AlignmentTimedOut(rng.randint(1, 5)))
        elif rng.random() < 0.05:
            id_ = rng.randint(1, 6)
            aborted |= {id_} - task.complete
            task.tell(CheckpointAborted(id_))
        else:
            task.advance(rng.choice(choices))
    assert not task.blocked, seed
    assert task.at == [len(script) for script in scripts], f"seed {seed}: somebody waits for ever"
    assert not task.complete & (set(task.abandoned) | aborted), seed
    if not task.options.at_least_once:
        for id_ in task.complete:
            assert task.snapshots[id_] == task.expected(id_), f"seed {seed}, checkpoint {id_}"


def test_the_first_barrier_blocks_its_channel_and_the_last_resumes_all():
    aligner = BarrierAligner(2)
    assert aligner.handle(BarrierReceived(0, barrier(7))) == [NoteFirstBarrier(barrier(7)), BlockChannel(0)]
    assert aligner.handle(BarrierReceived(1, barrier(7))) == [
        BlockChannel(1),
        TakeSnapshot(barrier(7)),
        UnblockChannels(frozenset({0, 1})),
    ]


def test_a_newer_barrier_subsumes_the_pending_checkpoint():
    aligner = BarrierAligner(2)
    aligner.handle(BarrierReceived(0, barrier(7)))
    first, second, *rest = aligner.handle(BarrierReceived(1, barrier(8)))
    assert isinstance(first, AbandonCheckpoint)
    assert (first.checkpoint_id, first.reason) == (7, CheckpointFailureReason.SUBSUMED)
    assert second == UnblockChannels(frozenset({0}))
    assert rest == [NoteFirstBarrier(barrier(8)), BlockChannel(1)]


def test_a_timeout_snapshots_at_once_and_the_barrier_goes_out_unaligned():
    aligner = BarrierAligner(2)
    aligner.handle(BarrierReceived(0, barrier(7)))
    assert aligner.handle(AlignmentTimedOut(7)) == [
        TakeSnapshot(barrier(7, UNALIGNED)),
        UnblockChannels(frozenset({0})),
    ]
    assert (aligner.captured_by(0), aligner.captured_by(1)) == ([], [7])
    assert aligner.handle(AlignmentTimedOut(7)) == []
    assert aligner.handle(BarrierReceived(1, barrier(7))) == [EndCapture(7)]
    assert aligner.captured_by(1) == []


def test_an_unaligned_barrier_ends_an_alignment_that_has_begun():
    aligner = BarrierAligner(3)
    aligner.handle(BarrierReceived(0, barrier(7)))
    assert aligner.handle(BarrierReceived(1, barrier(7, UNALIGNED))) == [
        TakeSnapshot(barrier(7, UNALIGNED)),
        UnblockChannels(frozenset({0})),
    ]
    assert aligner.captured_by(2) == [7]


def test_the_abort_of_a_checkpoint_frees_its_channels_and_late_barriers_mean_nothing():
    aligner = BarrierAligner(2)
    aligner.handle(BarrierReceived(0, barrier(7)))
    assert aligner.handle(CheckpointAborted(7)) == [UnblockChannels(frozenset({0}))]
    assert aligner.handle(BarrierReceived(1, barrier(7))) == []
    assert aligner.handle(CheckpointAborted(9)) == []
    assert aligner.handle(BarrierReceived(1, barrier(9))) == []


def test_a_cancel_is_told_once_whoever_sends_it_again():
    aligner = BarrierAligner(2)
    (told,) = aligner.handle(CancelReceived(0, 7))
    assert isinstance(told, AbandonCheckpoint)
    assert aligner.handle(CancelReceived(1, 7)) == []
