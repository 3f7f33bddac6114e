"""Runs one operator, or a chain of specs, without a runtime: batches, watermarks and ends in, collected output out.

Coordinators run too, in the same thread: an event is delivered when it is sent.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from engine.core.clock import Clock, SystemClock
from engine.core.ids import JobID, OperatorID
from engine.core.records import Batch, RowBatch, rows_of
from engine.operators.base import (
    CoordinatorContext,
    JobOutcome,
    Operator,
    OperatorContext,
    OperatorCoordinator,
    OperatorSpec,
    PollResult,
    SourceOperator,
)
from engine.operators.functions import RuntimeContext


class CollectedOutput:
    """An Output that remembers: ``batches``, ``side``, ``watermarks_ms``, ``supersteps``."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.side: dict[str, list[Batch]] = {}
        self.watermarks_ms: list[int] = []
        self.idle: list[bool] = []
        self.supersteps: list[int] = []

    def emit(self, batch: Batch) -> None:
        if len(batch):
            self.batches.append(batch)

    def emit_side(self, tag: str, batch: Batch) -> None:
        self.side.setdefault(tag, []).append(batch)

    def emit_watermark(self, watermark_ms: int) -> None:
        self.watermarks_ms.append(watermark_ms)

    def emit_idle(self, idle: bool) -> None:
        self.idle.append(idle)

    def emit_superstep_end(self, superstep: int) -> None:
        self.supersteps.append(superstep)

    @property
    def rows(self) -> list[Any]:
        return [row for batch in self.batches for row in rows_of(batch).rows]

    @property
    def timestamps_ms(self) -> list[int | None]:
        found: list[int | None] = []
        for batch in self.batches:
            stamps = rows_of(batch).timestamps_ms
            found += [None] * len(batch) if stamps is None else stamps
        return found


class _Next:
    """An Output that calls the next operator of a chain."""

    def __init__(self, operator: Operator, input_index: int = 0) -> None:
        self._operator = operator
        self._input_index = input_index

    def emit(self, batch: Batch) -> None:
        if len(batch):
            self._operator.process_batch(self._input_index, batch)

    def emit_side(self, tag: str, batch: Batch) -> None:
        pass

    def emit_watermark(self, watermark_ms: int) -> None:
        self._operator.process_watermark(watermark_ms)

    def emit_idle(self, idle: bool) -> None:
        self._operator.process_idle(idle)

    def emit_superstep_end(self, superstep: int) -> None:
        self._operator.end_superstep(superstep)


class OperatorHarness:
    """One subtask of a chain. Use as a context manager: it opens at entry and closes at exit.

    ``coordinators``: one per spec (or None) shared by all subtasks of a test; made by ``start_coordinators``.
    """

    def __init__(
        self,
        *specs: OperatorSpec,
        subtask_index: int = 0,
        parallelism: int = 1,
        attempt_number: int = 0,
        clock: Clock | None = None,
        host: str = "localhost",
        name: str = "Test",
        coordinators: list[OperatorCoordinator | None] | None = None,
    ) -> None:
        self.operators: list[Operator] = [spec.build() for spec in specs]
        self.output = CollectedOutput()
        self.clock = clock or SystemClock()
        self.woken = threading.Event()
        self.subtask_index = subtask_index
        self.attempt_number = attempt_number
        self.events: list[object] = []
        self._specs = specs
        self._parallelism = parallelism
        self._host = host
        self._name = name
        self._coordinators = coordinators
        self._work_dir = tempfile.TemporaryDirectory()
        self.runtime_context = RuntimeContext(
            task_name=name, subtask_index=subtask_index, parallelism=parallelism, attempt_number=attempt_number
        )

    def __enter__(self) -> OperatorHarness:
        if self._coordinators is None:
            self._coordinators = start_coordinators(*self._specs, parallelism=self._parallelism, harnesses=[self])
        try:
            for index in reversed(range(len(self.operators))):
                last = index == len(self.operators) - 1
                out = self.output if last else _Next(self.operators[index + 1])
                self.operators[index].open(self._context(index), out)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for operator in self.operators:
            operator.close()
        self._work_dir.cleanup()

    def _context(self, index: int) -> OperatorContext:
        def send_event(event: object) -> None:
            self.events.append(event)
            coordinator = (self._coordinators or [])[index] if self._coordinators else None
            if coordinator is not None:
                coordinator.handle_event(self.subtask_index, self.attempt_number, event)

        return OperatorContext(
            runtime_context=self.runtime_context,
            operator_id=OperatorID.from_text(f"{self._name}-{index}"),
            operator_name=self._name,
            job_id=JobID.from_text("job"),
            job_name="test job",
            config={},
            clock=self.clock,
            work_dir=self._work_dir.name,
            memory_bytes=64 << 20,
            send_event=send_event,
            wake=self.woken.set,
            host=self._host,
        )

    @property
    def head(self) -> Operator:
        return self.operators[0]

    def process(self, rows: Iterable[Any], timestamps_ms: list[int] | None = None, *, input_index: int = 0) -> None:
        self.process_batch(RowBatch(list(rows), timestamps_ms), input_index=input_index)

    def process_batch(self, batch: Batch, *, input_index: int = 0) -> None:
        self.head.process_batch(input_index, batch)

    def watermark(self, watermark_ms: int) -> None:
        self.head.process_watermark(watermark_ms)

    def end(self) -> None:
        """End all inputs of the head, then finish the chain head to tail."""
        for index in range(self._specs[0].num_inputs):
            self.head.end_input(index)
        self.head.finish()
        for operator in self.operators[1:]:
            operator.end_input(0)
            operator.finish()

    def run_source(
        self, *, until: Callable[[], bool] | None = None, rows_max: int = 1024, timeout_s: float = 20.0
    ) -> CollectedOutput:
        """Poll the source at the head to its end, or until ``until()``; then finish (at the end only)."""
        source = self.head
        assert isinstance(source, SourceOperator)
        deadline = time.monotonic() + timeout_s
        while until is None or not until():
            assert time.monotonic() < deadline, f"source did not end in {timeout_s} s; rows: {len(self.output.rows)}"
            self.woken.clear()
            now_ms = self.clock.now_ms()
            timer_ms = source.next_timer_ms()
            if timer_ms is not None and timer_ms <= now_ms:
                source.on_timer(now_ms)
            match source.poll(rows_max):
                case PollResult.END:
                    self.end()
                    return self.output
                case PollResult.IDLE:
                    timer_ms = source.next_timer_ms()
                    wait_s = 0.05 if timer_ms is None else max(0.0, min(0.05, (timer_ms - now_ms) / 1000))
                    self.woken.wait(wait_s)
        return self.output


def start_coordinators(
    *specs: OperatorSpec, parallelism: int, harnesses: list[OperatorHarness], attempt_number: int = 0
) -> list[OperatorCoordinator | None]:
    """Create and start the coordinators of a chain whose subtasks are ``harnesses`` (index = subtask)."""
    coordinators: list[OperatorCoordinator | None] = []
    for index, spec in enumerate(specs):
        made = spec.coordinator()
        if made is None:
            coordinators.append(None)
            continue
        coordinator = made.create()

        def send_event(subtask_index: int, event: object, index: int = index) -> None:
            target = next(harness for harness in harnesses if harness.subtask_index == subtask_index)
            target.operators[index].handle_event(event)

        coordinator.start(CoordinatorContext(parallelism, JobID.from_text("job"), {}, send_event, attempt_number))
        coordinators.append(coordinator)
    return coordinators


def end_job(
    coordinators: list[OperatorCoordinator | None], outcome: JobOutcome, *, finished_subtasks: Iterable[int] = ()
) -> None:
    """Tell the coordinators how the job went, as the JobMaster does."""
    for coordinator in coordinators:
        if coordinator is not None:
            for subtask_index in finished_subtasks:
                coordinator.subtask_finished(subtask_index)
            coordinator.job_ended(outcome)
