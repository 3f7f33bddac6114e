"""Runs one operator, or a chain of specs, without a runtime: batches, watermarks and ends in, collected output out.

Coordinators run too, in the same thread: an event is delivered when it is sent.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
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
    batch_for,
)
from engine.operators.functions import RuntimeContext
from engine.state.key_groups import key_group_range
from engine.state.operator_state import OperatorStateSnapshot, redistribute
from engine.state.parts import DeltaPart, FilePart, HostedPart, OperatorStateRegistry


class CollectedOutput:
    """An Output that remembers: ``batches``, ``side``, ``watermarks_ms``, ``supersteps``; ``story``: batches and
    watermarks in their order."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.side: dict[str, list[Batch]] = {}
        self.watermarks_ms: list[int] = []
        self.idle: list[bool] = []
        self.supersteps: list[int] = []
        self.story: list[Batch | int] = []

    def emit(self, batch: Batch) -> None:
        if len(batch):
            self.batches.append(batch)
            self.story.append(batch)

    def emit_side(self, tag: str, batch: Batch) -> None:
        self.side.setdefault(tag, []).append(batch)

    def emit_watermark(self, watermark_ms: int) -> None:
        self.watermarks_ms.append(watermark_ms)
        self.story.append(watermark_ms)

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
            self._operator.process_batch(self._input_index, batch_for(self._operator, batch))

    def emit_side(self, tag: str, batch: Batch) -> None:
        pass

    def emit_watermark(self, watermark_ms: int) -> None:
        self._operator.process_watermark(watermark_ms)

    def emit_idle(self, idle: bool) -> None:
        self._operator.process_idle(idle)

    def emit_superstep_end(self, superstep: int) -> None:
        self._operator.end_superstep(superstep)


@dataclass
class SubtaskSnapshot:
    """What a checkpoint has of one subtask; lists have one entry an operator."""

    checkpoint_id: int
    #: part → chunks by key group, oldest layer first
    layers: list[dict[str, list[dict[int, bytes]]]] = field(default_factory=list)
    lists: list[OperatorStateSnapshot | None] = field(default_factory=list)
    #: (operator, part) → (format, folder)
    folders: dict[tuple[int, str], tuple[str, str]] = field(default_factory=dict)
    #: parts of which only the changes were taken
    num_deltas: int = 0


class RestoredOperator:
    """Implements ``RestoredState`` over the snapshots of all former subtasks."""

    def __init__(
        self,
        snapshots: Sequence[SubtaskSnapshot],
        index: int,
        key_groups: range,
        deal: Callable[[list[OperatorStateSnapshot]], OperatorStateSnapshot],
    ) -> None:
        self._snapshots = snapshots
        self._index = index
        self._key_groups = key_groups
        self._deal = deal
        self.watched_as = self.told_as = ""

    def keyed_later(self, part: str) -> None:
        return None

    def keyed_layers(self, part: str) -> Iterator[dict[int, bytes]]:
        for snapshot in self._snapshots:
            for layer in snapshot.layers[self._index].get(part, []):
                yield {group: chunk for group, chunk in layer.items() if group in self._key_groups}

    def keyed_folders(self, part: str, format: str) -> Iterator[tuple[str, range]]:
        for number, snapshot in enumerate(self._snapshots):
            found = snapshot.folders.get((self._index, part))
            if found is not None:
                assert found[0] == format
                # The part may do with it what it likes; others restore from the same snapshot.
                copy = f"{found[1]}-for-{self._key_groups.start}-{number}-{id(self)}"
                shutil.copytree(found[1], copy)
                yield copy, self._key_groups

    def lists(self) -> OperatorStateSnapshot | None:
        found = [lists for snapshot in self._snapshots if (lists := snapshot.lists[self._index]) is not None]
        return self._deal(found) if found else None

    def part_names(self) -> Sequence[str]:
        names = {name for snapshot in self._snapshots for name in snapshot.layers[self._index]}
        names |= {name for s in self._snapshots for index, name in s.folders if index == self._index}
        return sorted(names)


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
        job: str = "job",
        coordinators: list[OperatorCoordinator | None] | None = None,
        config: dict[str, str] | None = None,
        memory_bytes: int = 64 << 20,
        restored: Sequence[SubtaskSnapshot] | None = None,
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
        self._job = job
        self._coordinators = coordinators
        self._config = config or {}
        self._memory_bytes = memory_bytes
        self._restored = restored
        self.contexts: list[OperatorContext] = []
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
                context = self._context(index)
                self.contexts.insert(0, context)
                self.operators[index].open(context, out)
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
            job_id=JobID.from_text(self._job),
            job_name="test job",
            config=self._config,
            clock=self.clock,
            work_dir=self._work_dir.name,
            memory_bytes=self._memory_bytes,
            send_event=send_event,
            wake=self.woken.set,
            host=self._host,
            state=OperatorStateRegistry(
                None
                if self._restored is None
                else RestoredOperator(self._restored, index, self._key_groups(), self._deal)
            ),
        )

    def _key_groups(self) -> range:
        return key_group_range(
            self.subtask_index, self._parallelism, self.runtime_context.get_max_number_of_parallel_subtasks()
        )

    def _restored_operator(self, index: int) -> RestoredOperator:
        assert self._restored is not None
        return RestoredOperator(self._restored, index, self._key_groups(), self._deal)

    def _deal(self, lists: list[OperatorStateSnapshot]) -> OperatorStateSnapshot:
        return redistribute(lists, self._parallelism)[self.subtask_index]

    def snapshot(
        self, checkpoint_id: int, *, since: SubtaskSnapshot | None = None, folder: str | None = None
    ) -> SubtaskSnapshot:
        """Do what a task does at a barrier. ``since``: build on that snapshot. ``folder``: parts that keep files lay
        them there, without it they give chunks."""
        for operator in self.operators:
            operator.prepare_snapshot(checkpoint_id)
        for operator in self.operators:
            operator.snapshot_state(checkpoint_id)
        taken = SubtaskSnapshot(checkpoint_id)
        for index, context in enumerate(self.contexts):
            layers: dict[str, list[dict[int, bytes]]] = {}
            for name, part in context.state.keyed.items():
                if isinstance(part, FilePart):
                    where = (
                        f"{folder or self._work_dir.name}/frozen-{checkpoint_id}-{self.subtask_index}-{index}-{name}"
                    )
                    part.freeze(where).finish()
                    if folder is not None:
                        taken.folders[index, name] = (part.format, where)
                        continue
                    layers[name] = [dict(part.snapshot(self._key_groups()))]
                    continue
                if isinstance(part, HostedPart) and folder is not None:
                    layers[name] = []
                    continue
                delta = None
                if since is not None and isinstance(part, DeltaPart):
                    delta = part.snapshot_delta(self._key_groups(), since.checkpoint_id)
                if delta is not None and since is not None:
                    taken.num_deltas += 1
                    layers[name] = [*since.layers[index][name], dict(delta)]
                else:
                    layers[name] = [dict(part.snapshot(self._key_groups()))]
                if isinstance(part, DeltaPart):
                    part.begin_epoch(checkpoint_id)
                    part.forget_epochs(checkpoint_id)
            taken.layers.append(layers)
            taken.lists.append(None if context.state.lists is None else context.state.lists.snapshot())
        return taken

    @property
    def head(self) -> Operator:
        return self.operators[0]

    def process(self, rows: Iterable[Any], timestamps_ms: list[int] | None = None, *, input_index: int = 0) -> None:
        self.process_batch(RowBatch(list(rows), timestamps_ms), input_index=input_index)

    def process_batch(self, batch: Batch, *, input_index: int = 0) -> None:
        self.head.process_batch(input_index, batch_for(self.head, batch))

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
        self, *, until: Callable[[], bool] | None = None, rows_max: int = 1024, timeout_s: float = 120.0
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

        operator_id = OperatorID.from_text(f"Test-{index}")  # of harnesses without a name
        coordinator.start(
            CoordinatorContext(parallelism, JobID.from_text("job"), {}, send_event, attempt_number, operator_id)
        )
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
