"""The sources of the simulated jobs. Splits can rewind; each has the ids from its start to its end.

A record is (generation of its reader, id, key). Event time goes on by 1 with each id, and by more between two splits.
Splits are handed out in order, so a reader whose watermark stays behind all that it still has to read makes nothing
late.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

from engine.connectors.simple import SequenceSplit
from engine.connectors.source import Boundedness, Source, SourceReader, Split, SplitEnumerator, without_assigned
from engine.core.errors import ExternalError
from engine.core.records import Batch, RowBatch
from engine.operators.base import (
    CoordinatorContext,
    CoordinatorSpec,
    Operator,
    OperatorCoordinator,
    OperatorSpec,
    PollResult,
    SourceOperator,
)
from engine.state.descriptors import ListStateDescriptor
from tests.sim import generations
from tests.sim.world import current

__all__ = ["Numbers", "PacedSource", "QuietSource", "SplitSource"]


#: The hole in event time between two splits.
HOLE_MS: Final = 10


@dataclass(frozen=True)
class Numbers:
    """The ids ``first`` … in splits, emitted a few at a time with a pause in between."""

    first: int
    num_splits: int
    split_rows: int
    num_keys: int
    interval_ms: tuple[int, int]

    def splits(self) -> list[tuple[int, int]]:
        end = self.first + self.num_splits * self.split_rows
        return [(start, start + self.split_rows) for start in range(self.first, end, self.split_rows)]

    def rows(self, generation: int, ids: range) -> RowBatch:
        rows = [(generation, row_id, row_id % self.num_keys) for row_id in ids]
        return RowBatch(rows, [self.time_of(row_id) for row_id in ids])

    def time_of(self, row_id: int) -> int:
        at = row_id - self.first
        return at + at // self.split_rows * HOLE_MS


def _refuse_to_start() -> None:
    if current().now < current().parts["disturbance"].starts_fail_until:
        raise ExternalError("The input cannot be listed: nobody answers.")


def _tell(ctx: Any, what: str, detail: str) -> None:
    runtime = ctx.runtime_context
    task = f"source {runtime.get_index_of_this_subtask()}#{runtime.get_attempt_number()}"
    current().tell(ctx.slot_shared["sim"].name, what, f"{ctx.job_id[:4]} {task} {detail}")


# --- an operator of its own, whose events say of which attempt they are -----------------------------------------------


@dataclass(frozen=True)
class SplitSource(OperatorSpec):
    numbers: Numbers
    num_inputs = 0

    def build(self) -> Operator:
        return _SplitOperator(self.numbers)

    def coordinator(self) -> CoordinatorSpec:
        return _SplitCoordinatorSpec(self.numbers)


@final
class _SplitOperator(SourceOperator):
    """Its state: the splits that it has, and where in the first it is. After a rescale it may begin with several."""

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers

    def open(self, ctx: Any, out: Any) -> None:
        super().open(ctx, out)
        self._generation = generations.of_task(ctx)
        subtask = ctx.runtime_context.get_index_of_this_subtask()
        self._rng = current().rng(f"reader {ctx.job_id} {subtask} {self._generation}")
        self._state = ctx.state.operator_states().get_list_state(ListStateDescriptor("positions"))
        self._positions: deque[tuple[int, int]] = deque(self._state.get())
        self._no_more = False
        self._due_ms: int | None = None
        self._newest_checkpoint = ctx.state.restored_from
        #: (newest checkpoint before, start of a split)
        self._received: list[tuple[int, int]] = []
        if not self._positions:
            ctx.send_event(("next?",))
        elif ctx.state.is_restored:
            _tell(ctx, "restored", f"{list(self._positions)}")

    def poll(self, rows_max: int) -> PollResult:
        if not self._positions:
            return PollResult.END if self._no_more else PollResult.IDLE
        now_ms = self.ctx.clock.now_ms()
        if self._due_ms is not None and now_ms < self._due_ms:
            return PollResult.IDLE
        at, end = self._positions[0]
        num = min(rows_max, self._rng.randint(1, 4), end - at)
        self.out.emit(self._numbers.rows(self._generation, range(at, at + num)))
        _tell(self.ctx, "emits", f"{at}…{at + num - 1}")
        self._due_ms = now_ms + self._rng.randint(*self._numbers.interval_ms)
        if at + num < end:
            self._positions[0] = (at + num, end)
        else:
            self._positions.popleft()
        next_id = min((start for start, _ in self._positions), default=at + num)
        self.out.emit_watermark(self._numbers.time_of(next_id) - 1)
        if not self._positions:
            self.ctx.send_event(("next?",))
        return PollResult.IDLE

    def next_timer_ms(self) -> int | None:
        return self._due_ms if self._positions else None

    def on_timer(self, now_ms: int) -> None:
        self._due_ms = None
        self.ctx.wake()

    def handle_event(self, event: object) -> None:
        match event:
            case ("split", start, end, generation):
                generations.check_same("split", generation, self._generation)
                assert not self._positions, "a split that nobody asked for"
                self._positions.append((start, end))
                self._received.append((self._newest_checkpoint, start))
                self._due_ms = None
            case ("none",):
                self._no_more = True
            case _:
                raise AssertionError(event)

    def snapshot_state(self, checkpoint_id: int) -> None:
        self._state.update(list(self._positions))
        self._newest_checkpoint = checkpoint_id

    def report(self) -> object:
        return (not self._positions and not self._no_more, list(self._received))


@dataclass(frozen=True)
class _SplitCoordinatorSpec(CoordinatorSpec):
    numbers: Numbers
    can_resume = True

    def create(self) -> OperatorCoordinator:
        return _SplitCoordinator(self.numbers)


@final
class _SplitCoordinator(OperatorCoordinator):
    def __init__(self, numbers: Numbers) -> None:
        self._splits = deque(numbers.splits())

    def restore(self, state: bytes, committables: Mapping[int, object]) -> None:
        if state:
            self._splits = deque(pickle.loads(state))

    def start(self, ctx: CoordinatorContext) -> None:
        super().start(ctx)
        generations.starts_once(ctx, "enumerator")
        _refuse_to_start()

    def resume(self, ctx: CoordinatorContext, reports: Mapping[int, Any]) -> None:
        super().start(ctx)
        generations.resumes(ctx, "enumerator")
        _refuse_to_start()
        known = {start for _, received in reports.values() for since, start in received if since >= ctx.restored_from}
        if not known <= {start for start, _ in self._splits}:
            generations.fail(f"splits {known} were handed out, of {self._splits}")
        self._splits = deque(split for split in self._splits if split[0] not in known)
        for subtask, (is_waiting, _) in reports.items():
            if is_waiting:
                self.handle_event(subtask, ctx.attempt_number, ("next?",))

    def handle_event(self, subtask_index: int, attempt_number: int, event: object) -> None:
        generations.check_same("enumerator, attempt", attempt_number, self.ctx.attempt_number)
        if self._splits:
            start, end = self._splits.popleft()
            self.ctx.send_event(subtask_index, ("split", start, end, generations.of_coordinator(self.ctx)))
        else:
            self.ctx.send_event(subtask_index, ("none",))

    def snapshot(self, checkpoint_id: int) -> bytes:
        return pickle.dumps(list(self._splits))


# --- the engine's own source operator ---------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class PacedSource(Source):
    """For ``SourceSpec``: the engine's operator, events and coordinator, a reader and an enumerator of ours."""

    numbers: Numbers
    boundedness = Boundedness.BOUNDED

    def create_enumerator(self) -> SplitEnumerator:
        return _PacedEnumerator(self.numbers)

    def create_reader(self) -> SourceReader:
        return _PacedReader(self.numbers)


@final
class _PacedEnumerator(SplitEnumerator):
    def __init__(self, numbers: Numbers) -> None:
        self._splits = deque(SequenceSplit(str(start), start, end) for start, end in numbers.splits())

    def start(self, parallelism: int) -> None:
        _refuse_to_start()

    def next_split(self, subtask_index: int, host: str) -> Split | None:
        return self._splits.popleft() if self._splits else None

    def snapshot(self) -> tuple[SequenceSplit, ...]:
        return tuple(self._splits)

    def restore(self, state: object, parallelism: int) -> None:
        assert isinstance(state, tuple), state
        _refuse_to_start()
        self._splits = deque(state)

    def assigned(self, splits: Collection[Split]) -> None:
        self._splits = deque(without_assigned(self._splits, splits))


@final
class _PacedReader(SourceReader):
    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers
        self._split: SequenceSplit | None = None
        self._due = 0.0

    def open(self, ctx: Any) -> None:
        super().open(ctx)
        self._generation = generations.of_task(ctx)
        self._rng = current().rng(f"reader {ctx.job_id} {ctx.operator_name} {current().next_id('reader')}")

    def add_split(self, split: Split) -> None:
        assert self._split is None, "one split at a time"
        assert isinstance(split, SequenceSplit)
        self._split = split

    def poll(self, rows_max: int) -> Batch | None:
        split, world = self._split, current()
        if split is None or world.now < self._due:
            return None
        num = min(rows_max, self._rng.randint(1, 4), split.end - split.start)
        at, end = split.start, split.start + num
        self._split = SequenceSplit(split.split_id, end, split.end) if end < split.end else None
        pause = self._rng.randint(*self._numbers.interval_ms) / 1000
        self._due = world.now + pause
        self.ctx.slot_shared["sim"].mailbox.call_later(pause, self.ctx.wake)
        _tell(self.ctx, "emits", f"{at}…{end - 1}")
        return self._numbers.rows(self._generation, range(at, end))

    def wants_split(self) -> bool:
        return self._split is None

    def is_drained(self) -> bool:
        return self._split is None

    def snapshot(self) -> list[Split]:
        return [] if self._split is None else [self._split]


# --- an input without records -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QuietSource(OperatorSpec):
    """Says that it is idle, has nothing for a while, and ends: event time must not wait for it."""

    seconds: float
    num_inputs = 0

    def build(self) -> Operator:
        return _QuietOperator(self.seconds)


@final
class _QuietOperator(SourceOperator):
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def open(self, ctx: Any, out: Any) -> None:
        super().open(ctx, out)
        # Counted from its first attempt: else a job that fails often would never end.
        ends = current().parts.setdefault("quiet inputs end", {})
        self._end_ms = ends.setdefault(ctx.job_id, ctx.clock.now_ms() + int(1000 * self._seconds))
        self._is_idle = False

    def poll(self, rows_max: int) -> PollResult:
        if not self._is_idle:
            self._is_idle = True
            self.out.emit_idle(True)
        return PollResult.IDLE if self.ctx.clock.now_ms() < self._end_ms else PollResult.END

    def next_timer_ms(self) -> int | None:
        return self._end_ms

    def on_timer(self, now_ms: int) -> None:
        self.ctx.wake()
