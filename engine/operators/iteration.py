"""Bulk iteration: a loop inside the job. Three kinds of operator meet in each slot, and a coordinator decides.

::

    initial ─→ Intake            Head ─→ loop body ─→ Tail        Head ─(side output)─→ result
                  └── LoopState ──┘ ↑                   │
                        of the slot └───────────────────┘         Head ⇄ Coordinator: again, or enough?

The graph itself stays without a circle: head (a source), tail and intake run side by side (co-location) and hand
rows over through ``ctx.slot_shared``. A superstep ends with an EndOfSuperstep element in each channel of the body;
tails tell their head, heads tell the coordinator, and only when all have does the next superstep begin anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, final

from engine.core.records import Batch, RowBatch, rows_of
from engine.operators.base import (
    BATCH_ONLY,
    CoordinatorSpec,
    Operator,
    OperatorContext,
    OperatorCoordinator,
    OperatorSpec,
    Output,
    PollResult,
    SourceOperator,
)
from engine.operators.batch_spill import SpillableRows, memory_budget

__all__ = ["RESULT_TAG", "LoopHeadSpec", "LoopIntakeSpec", "LoopTailSpec"]

#: Side output of the head with the rows of the last superstep.
RESULT_TAG: Final = "iteration-result"


# --- between heads and coordinator --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SuperstepEnded:
    """Head → coordinator: this slot's part of the superstep is over."""

    superstep: int
    #: records of the termination criterion
    num_termination_records: int


@dataclass(frozen=True, slots=True)
class SuperstepAllowed:
    """Coordinator → heads: begin this superstep."""

    superstep: int


@dataclass(frozen=True, slots=True)
class LoopEnded:
    """Coordinator → heads: the rows fed back last are the result."""


# --- in the slot --------------------------------------------------------------------------------------------------


@final
class LoopState:
    """What intake, head and tails of one subtask share."""

    def __init__(self) -> None:
        self.rows: SpillableRows | None = None
        self.intake_ended = False
        # By superstep, as another slot's head may begin one and send rows here before this slot's head has heard of it.
        self.feedback: dict[int, SpillableRows] = {}
        self.num_termination_records: dict[int, int] = {}
        #: superstep that each tail ended last
        self.ended_by_tail: dict[str, int] = {}
        self.wake_head: Callable[[], None] = _nobody

    def wake(self) -> None:
        self.wake_head()


def _nobody() -> None:
    pass


def _state_of(ctx: OperatorContext, loop_id: str) -> LoopState:
    key = f"{loop_id}/{ctx.runtime_context.get_index_of_this_subtask()}"
    state = ctx.slot_shared.setdefault(key, LoopState())
    assert isinstance(state, LoopState)
    return state


def _loop_dir(ctx: OperatorContext, loop_id: str) -> str:
    """Return a folder that outlives the intake's task: rows wait there until the head reads them."""
    return os.path.join(os.path.dirname(ctx.work_dir.rstrip("/")) or ctx.work_dir, f"loop-{loop_id}")


@final
@dataclass(frozen=True)
class LoopIntakeSpec(OperatorSpec):
    """Keeps the initial rows for the head."""

    not_checkpointed = BATCH_ONLY
    loop_id: str

    def build(self) -> Operator:
        return _Intake(self.loop_id)


@final
class _Intake(Operator):
    def __init__(self, loop_id: str) -> None:
        self._loop_id = loop_id

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._state = _state_of(ctx, self._loop_id)
        budget = memory_budget(ctx.memory_bytes) // 2
        self._state.rows = SpillableRows(_loop_dir(ctx, self._loop_id), budget, "initial")

    def process_batch(self, input_index: int, batch: Batch) -> None:
        assert self._state.rows is not None
        self._state.rows.extend(rows_of(batch).rows)

    def finish(self) -> None:
        self._state.intake_ended = True
        self._state.wake()


@final
@dataclass(frozen=True)
class LoopHeadSpec(OperatorSpec):
    """Source of the loop body: emits what is fed back, superstep by superstep, and the result to ``RESULT_TAG``."""

    not_checkpointed = BATCH_ONLY
    loop_id: str
    supersteps_max: int
    #: names of the tails that must end a superstep: "feedback" and, with a criterion, "termination"
    tails: tuple[str, ...]
    num_inputs = 0

    def build(self) -> Operator:
        return _Head(self)

    def coordinator(self) -> CoordinatorSpec:
        return _LoopCoordinatorSpec(self.supersteps_max, "termination" in self.tails)

    def describe(self) -> str:
        return f"bulk iteration, at most {self.supersteps_max} supersteps"


@final
class _Head(SourceOperator):
    def __init__(self, spec: LoopHeadSpec) -> None:
        self._spec = spec
        self._superstep = 0
        #: rows still to be emitted; None = waiting for the intake, the tails or the coordinator
        self._emitting: Iterator[Any] | None = None
        self._source: SpillableRows | None = None
        self._reported = 0
        self._is_last = False
        self._state: LoopState | None = None

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._state = _state_of(ctx, self._spec.loop_id)
        self._state.wake_head = ctx.wake

    def _begin(self, rows: SpillableRows | None) -> None:
        self._source = rows
        self._emitting = iter(()) if rows is None else iter(rows)

    def poll(self, rows_max: int) -> PollResult:
        state = self._state
        assert state is not None
        if self._emitting is not None:
            return self._emit(rows_max)
        if self._superstep == 0:
            if not state.intake_ended:
                return PollResult.IDLE
            self._start_superstep(1, state.rows)
            state.rows = None
            return PollResult.MORE
        done = all(state.ended_by_tail.get(tail, 0) >= self._superstep for tail in self._spec.tails)
        if done and self._reported < self._superstep:
            self._reported = self._superstep
            num_records = state.num_termination_records.pop(self._superstep, 0)
            self.ctx.send_event(SuperstepEnded(self._superstep, num_records))
        return PollResult.IDLE

    def _start_superstep(self, superstep: int, rows: SpillableRows | None) -> None:
        self._superstep = superstep
        self._begin(rows)

    def _emit(self, rows_max: int) -> PollResult:
        assert self._emitting is not None
        rows = list(islice(self._emitting, rows_max))
        if rows:
            if self._is_last:
                self.out.emit_side(RESULT_TAG, RowBatch(rows))
            else:
                self.out.emit(RowBatch(rows))
            return PollResult.MORE
        self._emitting = None
        if self._source is not None:
            self._source.clear()
            self._source = None
        if self._is_last:
            return PollResult.END
        self.out.emit_superstep_end(self._superstep)
        # The tail may be in this very chain and have ended the superstep within that call.
        return PollResult.MORE

    def handle_event(self, event: object) -> None:
        state = self._state
        assert state is not None
        feedback = state.feedback.pop(self._superstep, None)
        match event:
            case SuperstepAllowed(superstep):
                assert superstep == self._superstep + 1, (superstep, self._superstep)
                self._start_superstep(superstep, feedback)
            case LoopEnded():
                self._is_last = True
                self._begin(feedback)
            case _:
                raise AssertionError(event)
        self.ctx.wake()

    def close(self) -> None:
        state = self._state
        for rows in (self._source, *((state.rows, *state.feedback.values()) if state is not None else ())):
            if rows is not None:
                rows.clear()
        try:
            os.rmdir(_loop_dir(self.ctx, self._spec.loop_id))
        except (OSError, AttributeError):
            pass  # never made, shared with other subtasks, or not opened


@final
@dataclass(frozen=True)
class LoopTailSpec(OperatorSpec):
    """End of the loop body. ``tail``: "feedback" keeps rows for the next superstep, "termination" counts them."""

    not_checkpointed = BATCH_ONLY
    loop_id: str
    tail: str

    def build(self) -> Operator:
        return _Tail(self)


@final
class _Tail(Operator):
    def __init__(self, spec: LoopTailSpec) -> None:
        self._spec = spec
        self._superstep = 1

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._state = _state_of(ctx, self._spec.loop_id)

    def process_batch(self, input_index: int, batch: Batch) -> None:
        state, superstep = self._state, self._superstep
        if self._spec.tail == "termination":
            counts = state.num_termination_records
            counts[superstep] = counts.get(superstep, 0) + len(batch)
            return
        if superstep not in state.feedback:
            budget = memory_budget(self.ctx.memory_bytes) // 2
            state.feedback[superstep] = SpillableRows(_loop_dir(self.ctx, self._spec.loop_id), budget, "feedback")
        state.feedback[superstep].extend(rows_of(batch).rows)

    def end_superstep(self, superstep: int) -> None:
        self._superstep = superstep + 1
        self._state.ended_by_tail[self._spec.tail] = superstep
        self._state.wake()


# --- in the JobManager --------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class _LoopCoordinatorSpec(CoordinatorSpec):
    supersteps_max: int
    has_criterion: bool

    def create(self) -> OperatorCoordinator:
        return _LoopCoordinator(self.supersteps_max, self.has_criterion)


@final
class _LoopCoordinator(OperatorCoordinator):
    """Waits for all heads at the end of each superstep, then lets all go on or all stop."""

    def __init__(self, supersteps_max: int, has_criterion: bool) -> None:
        self._supersteps_max = supersteps_max
        self._has_criterion = has_criterion
        self._superstep = 1
        self._records_by_subtask: dict[int, int] = {}

    def handle_event(self, subtask_index: int, attempt_number: int, event: object) -> None:
        assert isinstance(event, SuperstepEnded), event
        assert event.superstep == self._superstep, (event, self._superstep)
        self._records_by_subtask[subtask_index] = event.num_termination_records
        if len(self._records_by_subtask) < self.ctx.parallelism:
            return
        satisfied = self._has_criterion and sum(self._records_by_subtask.values()) == 0
        self._records_by_subtask = {}
        answer: object
        if satisfied or self._superstep >= self._supersteps_max:
            answer = LoopEnded()
        else:
            self._superstep += 1
            answer = SuperstepAllowed(self._superstep)
        for target in range(self.ctx.parallelism):
            self.ctx.send_event(target, answer)
